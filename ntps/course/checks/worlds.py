"""Checks of the exercises that break a measure: the learner builds a case in which a number says something else.

Each is scored by itself: the case is right if the number is as large as asked for and the truth is not.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from ntps.course.checks.runner import as_array, call, passed, plain, require
from ntps.course.widgets.linear_world import plane_world, read_world


def lucky_coin(function: Callable[..., Any]) -> None:
    """Check `function(score_of, n)`: labels (n,) of 0 and 1 that mean nothing and have an NTPS of 0.65 or more.

    `score_of(labels)` returns the NTPS of labels of n texts that the learner does not see.
    """
    n, d, k = 60, 8, 3
    rng = np.random.default_rng(7)
    x = rng.standard_normal((n, d)) * np.geomspace(2, 0.3, d) + 0.5
    Q = np.linalg.qr(rng.standard_normal((d, k)))[0]
    w, vectors = np.linalg.eigh(x.T @ x / n)
    whiten = vectors / np.sqrt(w)

    def score_of(labels: Any) -> float:
        """Return NTPS of labels 0 and 1, one for each text."""
        y = np.eye(2)[_coin(labels, n)]
        left = np.linalg.svd(whiten.T @ (x.T @ y) / n, full_matrices=False)[0]
        U = whiten @ left
        return float(np.square(Q.T @ U).sum() / np.square(U).sum())

    labels = _coin(call(function, score_of, n), n)
    heads = labels.mean()
    require(0.3 <= heads <= 0.7, f"{100 * heads:.0f} % of your labels are 1; toss a fair coin.")
    score = score_of(labels)
    require(
        score >= 0.65,
        f"the NTPS of your coin is {score:.2f}; reach 0.65. A single toss rarely does: toss many, keep the luckiest.",
    )
    r2 = _left_out_r2(x, labels)
    require(r2 < 0.1, f"your labels can be read from the texts (R² {r2:.2f} on texts left out): that is no coin.")
    passed(f"NTPS {score:.2f}, chance {k / d:.2f}, and R² on texts left out is {r2:.2f}: luck looks like alignment.")


def misleading_world(function: Callable[..., Any]) -> None:
    """Check `function()`: (next_angle, label_angle, stretch) of a world of NTPS below 0.05 keeping 80 % of a label."""
    angles = as_array(call(function), (3,), "(next-token angle, label angle, stretch)")
    first, second, stretch = (float(value) for value in angles)
    require(0.2 - 1e-9 <= stretch <= 5 + 1e-9, f"the stretch is {stretch:g}; panel A allows 0.2 to 5.")
    require(min(first, second) >= 0 and max(first, second) <= 180, "angles go from 0 to 180 degrees.")
    reading = read_world(plane_world(first, second, stretch))
    found = f"NTPS {reading.ntps:.2f}, label share retained {reading.retained:.2f}"
    require(
        reading.ntps < 0.05,
        f"{found}: the score is not low. V follows N^-1 A; turn the label until u and V are at right angles.",
    )
    require(
        reading.retained >= 0.8,
        f"{found}: the score is low, and right. Make the two features go together, so that what is read along "
        "V tells the value along u: with round noise nothing can, so stretch it.",
    )
    passed(f"{found}: the arrows are at right angles, and hardly anything is lost.")


def impressive_noise(function: Callable[..., Any]) -> None:
    """Check `function(n, seed)`: features (n, d) and a coin (n,) with R² of 0.9 in sample, d below n."""
    n = 120
    for seed in (0, 1):
        x, y = _texts(call(function, n, seed), n, "features")
        d = x.shape[1]
        require(d < n - 1, f"{d} features for {n} texts: any labels can be fitted exactly. Use fewer than {n - 1}.")
        require(0.3 <= y.mean() <= 0.7, f"{100 * y.mean():.0f} % of your labels are 1; toss a fair coin.")
        inside = _r2(x, y, x, y)
        half = n // 2
        outside = _r2(x[:half], y[:half], x[half:], y[half:])
        require(
            outside < 0.2,
            f"fitted on one half of the texts, R² on the other is {outside:.2f}: your features know the labels. Draw "
            "the features without looking at them.",
        )
        require(
            inside >= 0.9,
            f"R² in sample is {inside:.2f} with {d} features; reach 0.9. What does one more feature of noise add?",
        )
    passed(f"R² in sample {inside:.2f} with {d} features of noise, {outside:.2f} on the other half.")


def choice_from_noise(function: Callable[..., Any]) -> None:
    """Check `function(n_tasks, seed)`: scores (options, n_tasks) of noise, the best |Spearman| 0.85 with anything."""
    n_tasks, most = 10, 10_000
    best, elsewhere = [], []
    previous = None
    for seed in range(4):
        values = np.asarray(plain(call(function, n_tasks, seed)))
        require(values.ndim == 2 and values.dtype.kind in "biuf", "return an array of numbers, (options, tasks).")
        require(
            values.shape[1] == n_tasks,
            f"yours has shape {values.shape}; one row for each option, {n_tasks} columns for the tasks.",
        )
        require(len(values) <= most, f"{len(values):,} options are more than {most:,}; fewer will do.")
        distinct = all(len(np.unique(row)) == n_tasks for row in values[:50])
        require(distinct, "your scores have ties; draw numbers of which no two are equal, such as normal ones.")
        require(
            previous is None or previous.shape != values.shape or not np.array_equal(previous, values),
            "another seed gives the same scores; use the seed you are given.",
        )
        previous = values
        rng = np.random.default_rng(100 + seed)
        for accuracy in rng.normal(size=(6, n_tasks)):
            best.append(np.abs(_spearman(values, accuracy)).max())
            picked = np.empty(n_tasks)
            for task in range(n_tasks):
                others = _spearman(np.delete(values, task, 1), np.delete(accuracy, task))
                option = np.abs(others).argmax()
                picked[task] = np.sign(others[option]) * values[option, task]
            elsewhere.append(float(_spearman(picked[None], accuracy)[0]))
    require(
        min(best) >= 0.85,
        f"the best of your {len(values):,} options has |Spearman| {min(best):.2f} with accuracies drawn at random; "
        "reach 0.85 each time. How many options does that take?",
    )
    passed(
        f"the best of {len(values):,} options of pure noise: {min(best):.2f} or more with any accuracies; chosen "
        f"without the task, {np.mean(elsewhere):+z.2f} on average."
    )


def hidden_label(function: Callable[..., Any]) -> None:
    """Check `function(n, seed)`: states (n, d) and labels (n,) that neighbours know and a linear probe does not."""
    n = 200
    for seed in (0, 1):
        x, y = _texts(call(function, n, seed), n, "states")
        require(0.35 <= y.mean() <= 0.65, f"{100 * y.mean():.0f} % of your labels are 1; make both classes as large.")
        half = n // 2
        linear = _r2(x[:half], y[:half], x[half:], y[half:])
        require(
            linear < 0.1,
            f"R² of a linear readout on other texts is {linear:.2f}: a probe finds your label. Give each class two "
            "clouds, so that no line parts them.",
        )
        distances = np.square(x[:, None] - x[None]).sum(-1).astype(float)
        np.fill_diagonal(distances, np.inf)
        neighbours = float((y[distances.argmin(1)] == y).mean())
        require(
            neighbours >= 0.95,
            f"the nearest neighbour names the label of {100 * neighbours:.0f} % of the texts; reach 95 %: the label "
            "must be there, only not along a line.",
        )
    passed(f"linear R² {linear:.2f}, nearest neighbour {100 * neighbours:.0f} %: a probe that fails proves no lack.")


def unseen_change(function: Callable[..., Any]) -> None:
    """Check `function(W)`: a weight (m, n) as far from W as W is from zero, or further, without an intruder."""
    k, epsilon = 10, 0.6
    for seed, shape in ((0, (24, 24)), (1, (20, 36))):
        W = np.random.default_rng(seed).standard_normal(shape)
        after = as_array(call(function, W.copy()), shape, "the weight")
        require(np.isfinite(after).all(), "the weight must hold numbers only; yours has NaN or infinity.")
        moved = float(np.linalg.norm(after - W) / np.linalg.norm(W))
        require(
            moved >= 1 - 1e-6,
            f"your weight moved by {100 * moved:.0f} % of the norm of W; it must move by 100 % or more.",
        )
        old, new = (np.linalg.svd(part, full_matrices=False)[0] for part in (W, after))
        count = int((np.abs(old.T @ new[:, :k]).max(axis=0) < epsilon).sum())
        require(
            count == 0,
            f"{count} of the {k} strongest left singular vectors of your weight are intruders, so the count sees the "
            "change. What can change while these vectors stay?",
        )
    passed(f"moved by {100 * moved:.0f} % of its norm, no intruder: the count looks at directions of the output alone.")


def _texts(result: Any, n: int, what: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the learner's features (n, d) and labels (n,)."""
    require(isinstance(result, tuple | list) and len(result) == 2, f"return two things: the {what} and the labels.")
    x = np.asarray(plain(result[0]))
    right = x.ndim == 2 and len(x) == n and x.dtype.kind in "biuf"
    require(right, f"the {what} must be numbers of shape ({n}, d); yours have {x.shape}.")
    return x.astype(float), _coin(result[1], n)


def _coin(labels: Any, n: int) -> np.ndarray:
    """Return labels as (n,) whole numbers 0 and 1."""
    values = as_array(labels, (n,), "the labels")
    require(np.isin(values, (0, 1)).all(), "labels are 0 or 1, one for each text.")
    return values.astype(int)


def _r2(x: np.ndarray, y: np.ndarray, new_x: np.ndarray, new_y: np.ndarray) -> float:
    """Return R² on (new_x, new_y) of the least-squares readout with intercept fitted on (x, y)."""
    centre = x.mean(0)
    weights = np.linalg.lstsq(x - centre, y - y.mean(), rcond=None)[0]
    errors = new_y - y.mean() - (new_x - centre) @ weights
    return float(1 - np.square(errors).sum() / np.square(new_y - y.mean()).sum())


def _left_out_r2(x: np.ndarray, y: np.ndarray) -> float:
    """Return R² of a least-squares readout with intercept, each text predicted from the others."""
    features = np.hstack([np.ones((len(x), 1)), x])
    hat = features @ np.linalg.solve(features.T @ features, features.T)
    errors = (y - hat @ y) / (1 - np.diag(hat))
    return float(1 - np.square(errors).sum() / np.square(y - y.mean()).sum())


def _spearman(values: np.ndarray, accuracy: np.ndarray) -> np.ndarray:
    """Return Spearman's correlation of each row of (m, t) with (t,); no ties."""
    ranks, others = (part.argsort(-1).argsort(-1) - (len(accuracy) - 1) / 2 for part in (values, accuracy))
    return ranks @ others / np.square(others).sum()
