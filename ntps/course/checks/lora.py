"""Checks for the exercises on LoRA: they take the learner's function and say what is wrong with it."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from ntps.course.checks.linear import _array, _call, _passed, _require


def merged_weight(function: Callable[..., Any]) -> None:
    """Check `function(W, B, A, alpha)`: the (m, n) weight with an adapter of factors (m, r) and (r, n) added in.

    Raises:
        CheckFailed: With what is wrong.
    """
    rng = np.random.default_rng(0)
    for m, n, r, alpha in ((5, 7, 2, 8.0), (6, 6, 3, 1.5)):
        W, B, A = rng.standard_normal((m, n)), rng.standard_normal((m, r)), rng.standard_normal((r, n))
        given = _array(_call(function, W, B, A, alpha), (m, n), "the merged weight")
        update = B @ A
        right = W + alpha / r * update
        if np.allclose(given, right):
            continue
        _require(not np.allclose(given, W), "this is W as it was; the adapter has to be added.")
        _require(
            not np.allclose(given, right - W),
            "this is the update alone; the layer computes with W plus the update.",
        )
        _require(
            not np.allclose(given, W + update),
            "you added B A as it is; it enters times alpha / r.",
        )
        _require(
            not np.allclose(given, W + alpha * update),
            "you multiplied by alpha; divide by the rank r too, so that alpha means the same at every rank.",
        )
        _require(
            not np.allclose(given, W + r / alpha * update),
            "your scale is r / alpha; it is alpha / r.",
        )
        _require(
            not np.allclose(given, W + alpha / np.sqrt(r) * update),
            "your scale is alpha / sqrt(r), a later variant (rank-stabilised LoRA); here it is alpha / r.",
        )
        _require(
            not np.allclose(given, W + alpha / n * update) and not np.allclose(given, W + alpha / m * update),
            f"you divided by a side of W; the rank r is the side that B and A share, here {r}.",
        )
        _require(
            m != n or not np.allclose(given, W + alpha / r * update.T),
            "your update is transposed: it is B A, not (B A)^T.",
        )
        _require(False, f"with W of shape {(m, n)}, r = {r} and alpha = {alpha:g} the result is not W + alpha / r B A.")
    _passed("merged_weight: W + alpha / r B A, of any rank.")


def _planted(rng: np.random.Generator, m: int, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Return a weight and its tuned version: new directions on top, old ones louder, quieter and in another order."""
    left = np.linalg.qr(rng.standard_normal((m, m)))[0]
    right = np.linalg.qr(rng.standard_normal((n, m)))[0]
    spectrum = np.linspace(2.0, 0.5, m)
    before = (left * spectrum) @ right.T
    louder = spectrum.copy()
    louder[[0, 1, m - 1]] = 1.4, 3.1, 2.6  # the last becomes one of the strongest
    after = (left * louder) @ right.T
    signs = rng.choice([-1.0, 1.0], (2, m)) / np.sqrt(m)
    for strength, mixed in zip((4.0, 2.2), signs, strict=True):
        after += strength * np.outer(left @ mixed, np.linalg.qr(rng.standard_normal((n, 1)))[0])
    return before, after


def _closest(before: np.ndarray, after: np.ndarray, k: int) -> np.ndarray:
    """Return cosines (m, k) of all original left singular vectors with the tuned matrix's first k."""
    known = np.linalg.svd(before, full_matrices=False)[0]
    return known.T @ np.linalg.svd(after, full_matrices=False)[0][:, :k]


def _slips(before: np.ndarray, after: np.ndarray, k: int, epsilon: float) -> Iterator[tuple[np.ndarray, str]]:
    """Yield what a wrong answer would call intruders, as a mask over places, with what went wrong."""
    cosines = _closest(before, after, k)
    close = np.abs(cosines)
    yield close.max(0) >= epsilon, "you return the vectors that HAVE a counterpart; an intruder has none."
    yield cosines.max(0) < epsilon, "the sign of a singular vector is arbitrary: take the cosine's absolute value."
    yield (
        np.abs(np.diag(cosines[:k])) < epsilon,
        "you compare the i-th vector with the i-th; louder ones change places, so compare with all.",
    )
    yield (
        close[:k].max(0) < epsilon,
        "you compare with the original's top k only; a weak old direction may have become strong: compare with all.",
    )
    yield close.min(0) < epsilon, "take the LARGEST cosine over the original vectors: the closest relative."
    yield (
        np.abs(_closest(before.T, after.T, k)).max(0) < epsilon,
        "these are the right singular vectors; here the left ones, columns of U, count.",
    )
    yield (cosines**2).max(0) < epsilon, "you compare squared cosines with epsilon; compare the cosines."
    yield (
        np.abs(_closest(before, after - before, k)).max(0) < epsilon,
        "you took apart the update; take apart the tuned weight.",
    )


def _as_places(result: Any, most: int) -> set[int]:
    """Return the learner's places as a set of whole numbers from 0 to `most`, exclusive."""
    found = np.asarray(sorted(result) if isinstance(result, set) else result)
    _require(
        found.dtype != bool and found.ndim == 1,
        "return the places of the intruders as a list of whole numbers, such as [0, 3]; np.flatnonzero turns a yes or "
        "no for each vector into that.",
    )
    places = _array(found, (len(found),), "the list of places")
    whole = bool((places == places.round()).all()) and bool(((places >= 0) & (places < most)).all())
    _require(whole, f"{found.tolist()} are no places, which are whole numbers from 0; did you return cosines?")
    return {int(place) for place in places}


def intruder_places(function: Callable[..., Any]) -> None:
    """Check `function(before, after, k, epsilon)`: the places, from 0, of the intruders among the top k.

    Of the tuned matrix's k strongest left singular vectors those whose largest |cosine| with any original one is below
    epsilon.

    Raises:
        CheckFailed: With what is wrong.
    """
    k, epsilon = 5, 0.6
    for seed in range(12):
        rng = np.random.default_rng(seed)
        before, after = _planted(rng, 9, 12)
        cosines = _closest(before, after, k)
        right = set(np.flatnonzero(np.abs(cosines).max(0) < epsilon).tolist())
        given = _as_places(_call(function, before, after, k, epsilon), max(before.shape))
        if given == right:
            continue
        _require(
            given,
            f"you find none, but vectors {sorted(right)} resemble no original one. Did you look at the weakest? "
            "Singular values come in descending order: take the first k.",
        )
        for mask, message in _slips(before, after, k, epsilon):
            _require(given != set(np.flatnonzero(mask).tolist()), message)
        all_tuned = np.abs(_closest(before, after, 9)).max(0) < epsilon
        _require(
            given != set(np.flatnonzero(all_tuned).tolist()), f"look at the {k} strongest vectors only, not at all."
        )
        _require(False, f"the intruders among the top {k} are {sorted(right)}; you return {sorted(given)}.")
    before = np.random.default_rng(0).standard_normal((6, 8))
    same = _as_places(_call(function, before, before, 4, epsilon), 8)
    _require(not same, f"a weight that has not changed has no intruders; you return {sorted(same)}.")
    _passed("intruder_places: top vectors of the tuned weight without a counterpart among ALL the old ones.")


def _line_without(accuracy: np.ndarray, gain: np.ndarray, out: np.ndarray) -> tuple[float, float]:
    """Return intercept and slope of the least-squares line through the cells where `out` is False."""
    x, y = accuracy[~out], gain[~out]
    slope = float(((x - x.mean()) * (y - y.mean())).sum() / np.square(x - x.mean()).sum())
    return float(y.mean() - slope * x.mean()), slope


def _gains(seed: int, m: int = 4, t: int = 7) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    accuracy = np.clip(rng.uniform(0.3, 1.0, t) + 0.05 * rng.standard_normal((m, t)), 0.05, 1)
    gain = 0.3 - 0.3 * accuracy + 0.1 * rng.standard_normal(t) + 0.03 * rng.standard_normal((m, t))
    return accuracy, gain


def gain_without_task(function: Callable[..., Any]) -> None:
    """Check `function(accuracy, gain, task)`: the predicted gains (models,) of a task, from a line fitted without it.

    accuracy and gain are (models, tasks).

    Raises:
        CheckFailed: With what is wrong.
    """
    for seed in range(3):
        accuracy, gain = _gains(seed)
        m, t = gain.shape
        task = (2 + seed) % t
        out = np.zeros((m, t), dtype=bool)
        out[:, task] = True
        given = _array(_call(function, accuracy, gain, task), (m,), "the predicted gains")
        intercept, slope = _line_without(accuracy, gain, out)
        if np.allclose(given, intercept + slope * accuracy[:, task]):
            changed = gain.copy()
            changed[:, task] = 9.0
            again = _array(_call(function, accuracy, changed, task), (m,), "the predicted gains")
            _require(
                np.allclose(again, given), "your prediction changes when only the left-out gains change: it leaks."
            )
            continue
        everything = _line_without(accuracy, gain, np.zeros_like(out))
        _require(
            not np.allclose(given, everything[0] + everything[1] * accuracy[:, task]),
            "your line was fitted with the left-out task among the others: it has seen the answer. Remove the column.",
        )
        each = np.empty(m)
        for model in range(m):
            cell = np.zeros_like(out)
            cell[model, task] = True
            line = _line_without(accuracy, gain, cell)
            each[model] = line[0] + line[1] * accuracy[model, task]
        _require(
            not np.allclose(given, each),
            "you leave out one cell at a time; the other models have seen the same task, and their gains give it away. "
            "Leave the task out in ALL models.",
        )
        own = np.empty(m)
        for model in range(m):
            line = _line_without(accuracy[model], gain[model], out[model])
            own[model] = line[0] + line[1] * accuracy[model, task]
        _require(
            not np.allclose(given, own),
            "you fit a line for each model; fit ONE on the cells of all models, they are few enough.",
        )
        x, y = accuracy[~out], gain[~out]
        _require(
            not np.allclose(given, accuracy[:, task] * (x @ y) / (x @ x)),
            "your line goes through the origin; it needs an intercept.",
        )
        _require(
            not np.allclose(given, y.mean()),
            "this is the mean gain of the other tasks, the baseline; use the probe's accuracy too.",
        )
        _require(not np.allclose(given, gain[:, task]), "you return the gains that were to be predicted.")
        _require(
            not np.allclose(given, intercept + slope * (gain + accuracy)[:, task]),
            "you put in the accuracy after fine-tuning; only the one before is known.",
        )
        _require(
            False,
            f"with task {task} left out the line is {intercept:.3f} {slope:+.3f} accuracy; the first prediction should "
            f"be {intercept + slope * accuracy[0, task]:.3f}, yours is {given[0]:.3f}.",
        )
    _passed("gain_without_task: one line through the cells of the other tasks, read at the task's accuracies.")


def left_out_errors(function: Callable[..., Any]) -> None:
    """Check `function(accuracy, gain)`: mean absolute errors (of the line, of the mean gain), each task left out.

    Raises:
        CheckFailed: With what is wrong.
    """
    for seed in range(3):
        accuracy, gain = _gains(10 + seed, t=6)
        m, t = gain.shape
        line, mean = np.empty((m, t)), np.empty((m, t))
        for task in range(t):
            out = np.zeros((m, t), dtype=bool)
            out[:, task] = True
            intercept, slope = _line_without(accuracy, gain, out)
            line[:, task], mean[:, task] = intercept + slope * accuracy[:, task], gain[~out].mean()
        right = np.array([np.abs(line - gain).mean(), np.abs(mean - gain).mean()])
        given = _array(_call(function, accuracy, gain), (2,), "the two errors")
        if np.allclose(given, right):
            continue
        _require(not np.allclose(given, right[::-1]), "the two are swapped: first the line's error, then the mean's.")
        squares = np.array([np.square(line - gain).mean(), np.square(mean - gain).mean()])
        _require(
            not np.allclose(given, squares) and not np.allclose(given, np.sqrt(squares)),
            "you average squared errors; take absolute ones: they are in points of accuracy, and one bad task does not "
            "outweigh all others.",
        )
        signed = np.array([(line - gain).mean(), (mean - gain).mean()])
        _require(
            not np.allclose(np.abs(given), np.abs(signed)),
            "errors of opposite sign cancel; take absolute values before the mean.",
        )
        leaking = np.abs(gain.mean() - gain).mean()
        _require(
            not np.isclose(given[1], leaking),
            "your mean gain includes the task it predicts; the baseline must be left out of the same tasks.",
        )
        intercept, slope = _line_without(accuracy, gain, np.zeros((m, t), dtype=bool))
        _require(
            not np.isclose(given[0], np.abs(intercept + slope * accuracy - gain).mean()),
            "your line is fitted once on all tasks: that is its fit, not a prediction. Fit it anew without each task.",
        )
        _require(
            not np.isclose(given[1], np.abs(gain).mean()),
            "your second error is that of predicting no gain; predict the mean gain of the OTHER tasks.",
        )
        _require(
            False,
            f"the errors are {right[0]:.4f} (line) and {right[1]:.4f} (mean); yours {given[0]:.4f}, {given[1]:.4f}.",
        )
    _passed("left_out_errors: both predictions made without the task they are judged on.")
