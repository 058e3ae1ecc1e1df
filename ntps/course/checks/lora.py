"""Checks of the exercises on adapters and on predicting gains (lessons 04 and 05)."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from ntps.course.checks.runner import as_array, call, close, diagnose, passed, require


def merged_weight(function: Callable[..., Any]) -> None:
    """Check `function(W, B, A, alpha)`: the (m, n) weight with an adapter of factors (m, r) and (r, n) added in."""
    rng = np.random.default_rng(0)
    for m, n, r, alpha in ((5, 7, 2, 8.0), (6, 6, 3, 1.5)):
        W, B, A = rng.standard_normal((m, n)), rng.standard_normal((m, r)), rng.standard_normal((r, n))
        merged = as_array(call(function, W, B, A, alpha), (m, n), "the merged weight")
        update = B @ A
        if close(merged, W + alpha / r * update):
            continue
        change = merged - W
        diagnose(
            (
                alpha // r != alpha / r and np.allclose(change, alpha // r * update),
                "you divide with //, which cuts the fraction off; divide with /.",
            ),
            (np.allclose(change, 0), "this is W as it was; the adapter has to be added."),
            (
                np.allclose(merged, alpha / r * update),
                "this is the update alone; the layer computes with W plus the update.",
            ),
            (np.allclose(change, update), "you added B A as it is; it enters times alpha / r."),
            (
                np.allclose(change, alpha * update),
                "you multiplied by alpha; divide by the rank r too, so that alpha means the same at every rank.",
            ),
            (np.allclose(change, r / alpha * update), "your scale is r / alpha; it is alpha / r."),
            (
                np.allclose(change, alpha / np.sqrt(r) * update),
                "your scale is alpha / sqrt(r), a later variant (rank-stabilised LoRA); here it is alpha / r.",
            ),
            (
                np.allclose(change, alpha / n * update) or np.allclose(change, alpha / m * update),
                f"you divided by a side of W; the rank r is the side that B and A share, here {r}.",
            ),
            (
                m == n and np.allclose(change, alpha / r * update.T),
                "your update is transposed: it is B A, not (B A)^T.",
            ),
            otherwise=f"with W of shape {(m, n)}, r = {r} and alpha = {alpha:g} the result is not W + alpha / r B A.",
        )
    passed("merged_weight: W + alpha / r B A, of any rank.")


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


def _cosines(before: np.ndarray, after: np.ndarray, k: int) -> np.ndarray:
    """Return cosines (m, k) of all original left singular vectors with the tuned matrix's first k."""
    original = np.linalg.svd(before, full_matrices=False)[0]
    return original.T @ np.linalg.svd(after, full_matrices=False)[0][:, :k]


def _row_cosines(before: np.ndarray, after: np.ndarray, k: int) -> np.ndarray:
    """Return the products (m, k) of rows in place of columns: what a missing transpose gives."""
    old, new = (np.linalg.svd(weight, full_matrices=False)[0] for weight in (before, after))
    return old @ new.T[:, :k]


def _slips(before: np.ndarray, after: np.ndarray, k: int, epsilon: float) -> Iterator[tuple[np.ndarray, str]]:
    """Yield what a wrong answer would call intruders, as a mask over singular vectors, with what went wrong."""
    cosines = _cosines(before, after, k)
    nearest = np.abs(cosines)
    yield (
        np.abs(_row_cosines(before, after, k)).max(0) < epsilon,
        "you compare rows of the matrix of left singular vectors; the vectors are its columns: old.T @ new.",
    )
    yield nearest.max(0) >= epsilon, "you return the vectors that HAVE a counterpart; an intruder has none."
    yield cosines.max(0) < epsilon, "the sign of a singular vector is arbitrary: take the cosine's absolute value."
    yield (
        np.abs(np.diag(cosines[:k])) < epsilon,
        "you compare the i-th vector with the i-th; louder ones change places, so compare with all.",
    )
    yield (
        nearest[:k].max(0) < epsilon,
        "you compare with the original's top k only; a weak old direction may have become strong: compare with all.",
    )
    yield nearest.min(0) < epsilon, "take the LARGEST cosine over the original vectors: the closest relative."
    yield (
        np.abs(_cosines(before.T, after.T, k)).max(0) < epsilon,
        "these are the right singular vectors; here the left ones, columns of U, count.",
    )
    yield (cosines**2).max(0) < epsilon, "you compare squared cosines with epsilon; compare the cosines."
    yield (
        np.abs(_cosines(before, after - before, k)).max(0) < epsilon,
        "you decomposed the update; decompose the tuned weight.",
    )
    all_tuned = np.abs(_cosines(before, after, min(before.shape))).max(0) < epsilon
    yield all_tuned, f"look at the {k} strongest vectors only, not at all of them."


def _as_indices(result: Any, most: int) -> set[int]:
    """Return the learner's indices as a set of whole numbers from 0 to `most`, exclusive."""
    values = np.asarray(sorted(result) if isinstance(result, set) else result)
    require(
        values.dtype != bool and values.ndim == 1,
        "return the indices of the intruders as a list of whole numbers, such as [0, 3]; np.flatnonzero turns a yes or "
        "no for each vector into that.",
    )
    indices = as_array(values, (len(values),), "the list of indices")
    whole = bool((indices == indices.round()).all()) and bool(((indices >= 0) & (indices < most)).all())
    require(whole, f"{values.tolist()} are not indices (whole numbers from 0); did you return cosines?")
    return {int(index) for index in indices}


def intruder_indices(function: Callable[..., Any]) -> None:
    """Check `function(before, after, k, epsilon)`: the indices, from 0, of the intruders among the top k.

    Of the tuned matrix's k strongest left singular vectors those whose largest |cosine| with any original one is below
    epsilon.
    """
    k, epsilon = 5, 0.6
    cases = []
    for seed in range(12):
        before, after = _planted(np.random.default_rng(seed), 9, 12)
        right = set(np.flatnonzero(np.abs(_cosines(before, after, k)).max(0) < epsilon).tolist())
        answer = _as_indices(call(function, before, after, k, epsilon), max(before.shape))
        cases.append((before, after, right, answer))
    wrong = [(right, answer) for *_, right, answer in cases if answer != right]
    if wrong:
        right, answer = wrong[0]
        require(
            answer,
            f"you find none, but vectors {sorted(right)} resemble no original one. Did you look at the weakest? "
            "Singular values come in descending order: take the first k.",
        )
        # One answer may be that of several slips; a slip is named when it gives all of them.
        slips = zip(*(_slips(before, after, k, epsilon) for before, after, *_ in cases), strict=True)
        diagnose(
            *(
                (
                    all(
                        set(np.flatnonzero(mask).tolist()) == case[3]
                        for (mask, _), case in zip(slip, cases, strict=True)
                    ),
                    slip[0][1],
                )
                for slip in slips
            ),
            otherwise=f"the intruders among the top {k} are {sorted(right)}; you return {sorted(answer)}.",
        )
    before = np.random.default_rng(0).standard_normal((6, 8))
    unchanged = _as_indices(call(function, before, before, 4, epsilon), 8)
    require(not unchanged, f"a weight that has not changed has no intruders; you return {sorted(unchanged)}.")
    passed("intruder_indices: top vectors of the tuned weight without a counterpart among ALL the old ones.")


def _line(accuracy: np.ndarray, gain: np.ndarray, left_out: np.ndarray | None = None) -> tuple[float, float]:
    """Return intercept and slope of the least-squares line through the cells that are not left out."""
    cells = slice(None) if left_out is None else ~left_out
    x, y = accuracy[cells], gain[cells]
    slope = float(((x - x.mean()) * (y - y.mean())).sum() / np.square(x - x.mean()).sum())
    return float(y.mean() - slope * x.mean()), slope


def _column(shape: tuple[int, int], task: int) -> np.ndarray:
    """Return a mask (models, tasks) of all cells of one task."""
    mask = np.zeros(shape, dtype=bool)
    mask[:, task] = True
    return mask


def _gains(seed: int, m: int = 4, t: int = 7) -> tuple[np.ndarray, np.ndarray]:
    """Return accuracies and gains (models, tasks) of a made-up study."""
    rng = np.random.default_rng(seed)
    accuracy = np.clip(rng.uniform(0.3, 1.0, t) + 0.05 * rng.standard_normal((m, t)), 0.05, 1)
    gain = 0.3 - 0.3 * accuracy + 0.1 * rng.standard_normal(t) + 0.03 * rng.standard_normal((m, t))
    return accuracy, gain


def gain_without_task(function: Callable[..., Any]) -> None:
    """Check `function(accuracy, gain, task)`: the predicted gains (models,) of a task, from a line fitted without it.

    accuracy and gain are (models, tasks).
    """
    for seed in range(3):
        accuracy, gain = _gains(seed)
        m, t = gain.shape
        task = (2 + seed) % t
        predicted = as_array(call(function, accuracy, gain, task), (m,), "the predicted gains")
        known = accuracy[:, task]
        left_out = _column(gain.shape, task)
        intercept, slope = _line(accuracy, gain, left_out)
        if close(predicted, intercept + slope * known):
            changed = np.where(left_out, 9.0, gain)
            again = as_array(call(function, accuracy, changed, task), (m,), "the predicted gains")
            blind = close(again, predicted)
            require(blind, "your prediction changes when only the left-out gains change: it leaks.")
            continue
        cell_by_cell, model_by_model = np.empty(m), np.empty(m)
        for model in range(m):
            cell = np.zeros_like(left_out)
            cell[model, task] = True
            for values, line in (
                (cell_by_cell, _line(accuracy, gain, cell)),
                (model_by_model, _line(accuracy[model], gain[model], left_out[model])),
            ):
                values[model] = line[0] + line[1] * known[model]
        leaking = _line(accuracy, gain)
        x, y = accuracy[~left_out], gain[~left_out]
        diagnose(
            (close(predicted, 100 * (intercept + slope * known)), "your gains are in points; keep them as shares."),
            (
                np.allclose(predicted, leaking[0] + leaking[1] * known),
                "your line was fitted with the left-out task among the others: it has seen the answer. Remove the "
                "column.",
            ),
            (
                np.allclose(predicted, cell_by_cell),
                "you leave out one cell at a time; the other models have seen the same task, and their gains give it "
                "away. Leave the task out in ALL models.",
            ),
            (
                np.allclose(predicted, model_by_model),
                "you fit a line for each model; fit ONE on the cells of all models, they are few enough.",
            ),
            (
                np.allclose(predicted, known * (x @ y) / (x @ x)),
                "your line goes through the origin; it needs an intercept.",
            ),
            (
                np.allclose(predicted, y.mean()),
                "this is the mean gain of the other tasks, the baseline; use the probe's accuracy too.",
            ),
            (np.allclose(predicted, gain[:, task]), "you return the gains that were to be predicted."),
            (
                np.allclose(predicted, intercept + slope * (gain + accuracy)[:, task]),
                "you put in the accuracy after fine-tuning; only the one before is known.",
            ),
            otherwise=f"with task {task} left out the line is {intercept:.3f} {slope:+z.3f} accuracy; the first "
            f"prediction should be {intercept + slope * known[0]:.3f}, yours is {predicted[0]:.3f}.",
        )
    passed("gain_without_task: one line through the cells of the other tasks, read at the task's accuracies.")


def left_out_errors(function: Callable[..., Any]) -> None:
    """Check `function(accuracy, gain)`: mean absolute errors (of the line, of the mean gain), each task left out."""
    for seed in range(3):
        accuracy, gain = _gains(10 + seed, t=6)
        line, mean = np.empty_like(gain), np.empty_like(gain)
        for task in range(gain.shape[1]):
            left_out = _column(gain.shape, task)
            intercept, slope = _line(accuracy, gain, left_out)
            line[:, task], mean[:, task] = intercept + slope * accuracy[:, task], gain[~left_out].mean()
        misses = np.stack([line - gain, mean - gain])
        right, squares, signed = (part.mean((1, 2)) for part in (np.abs(misses), np.square(misses), misses))
        errors = as_array(call(function, accuracy, gain), (2,), "the two errors")
        if not close(errors, right):
            intercept, slope = _line(accuracy, gain)
            diagnose(
                (close(errors, 100 * right), "your errors are in points; keep them as shares, as the gains are."),
                (
                    close(errors, np.median(np.abs(misses), axis=(1, 2))),
                    "you take the median of the errors; their mean is asked for.",
                ),
                (
                    close(
                        errors[1],
                        np.mean([np.abs(np.delete(row, t).mean() - row[t]) for row in gain for t in range(6)]),
                    ),
                    "your mean gain is that of each model alone; take one over all models.",
                ),
                (np.allclose(errors, right[::-1]), "the two are swapped: first the line's error, then the mean's."),
                (
                    np.allclose(errors, squares) or np.allclose(errors, np.sqrt(squares)),
                    "you average squared errors; take absolute ones: they are in points of accuracy, and one bad task "
                    "does not outweigh all others.",
                ),
                (
                    np.allclose(np.abs(errors), np.abs(signed)),
                    "errors of opposite sign cancel; take absolute values before the mean.",
                ),
                (
                    np.isclose(errors[1], np.abs(gain.mean() - gain).mean()),
                    "your mean gain includes the task it predicts; the baseline must leave out the same tasks.",
                ),
                (
                    np.isclose(errors[0], np.abs(intercept + slope * accuracy - gain).mean()),
                    "your line is fitted once on all tasks: that is its fit, not a prediction. Fit it anew without "
                    "each task.",
                ),
                (
                    np.isclose(errors[1], np.abs(gain).mean()),
                    "your second error is that of predicting no gain; predict the mean gain of the OTHER tasks.",
                ),
                otherwise=f"the errors are {right[0]:.4f} (line) and {right[1]:.4f} (mean); yours are {errors[0]:.4f} "
                f"and {errors[1]:.4f}.",
            )
    passed("left_out_errors: both predictions made without the task they are judged on.")
