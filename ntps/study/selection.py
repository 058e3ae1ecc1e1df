"""Choosing a rank and a layer by correlation, and how much of the result is due to the choice.

The paper chooses (rank, layer) per model as the pair whose score correlates best with the target, on the tasks it then
reports. The best of many options correlates with anything: with 12 tasks and 50 unrelated options, the median best
absolute rank correlation is about 0.7. Two answers: a null that repeats the choice on permuted tasks
(`select_and_correlate`), and a choice made without the task, or the model, it is judged on (`leave_one_out_selection`).
"""

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike

from ntps._files import Record
from ntps.errors import NtpsError, one_of
from ntps.scoring.pvalues import permutation_p
from ntps.study.correlations import as_grid, centered_ranks, draw_permutations, grid_spearman, unit

_BLOCK = 4_000_000  # numbers held at once while permuting


@dataclass(frozen=True, kw_only=True)
class Selection(Record):
    """The best of several options, judged on the points it was chosen on, beside the null of that choice.

    Attributes:
        spearman: Correlation of the chosen option; over several models the mean of theirs (of their absolute values
            when each model chose its own option).
        interval: 95 % interval of the chosen option as if it had been fixed, which ignores the choice.
        p_value: Selection-aware permutation p-value in (0, 1]: how often the best option of permuted tasks does as
            well.
        naive_p_value: The p-value that ignores the choice, for comparison.
        options: Chosen option per model, or one for all.
        correlations: Mean correlation over models of each option (options,); zero where an option is constant.
        null_quantiles: The 5, 50 and 95 % points of the best correlation on permuted tasks, in absolute value.
        null: All permuted best correlations (B,).
        n, n_models, n_options, n_permutations: Numbers of tasks, models, options and permutations.
    """

    left_out = ("null", "correlations")

    spearman: float
    interval: tuple[float, float]
    p_value: float
    naive_p_value: float
    options: tuple[int, ...]
    correlations: np.ndarray = field(repr=False)
    null_quantiles: tuple[float, float, float]
    null: np.ndarray = field(repr=False)
    n: int
    n_models: int
    n_options: int
    n_permutations: int


@dataclass(frozen=True, kw_only=True)
class HeldOutSelection(Record):
    """The result of options that were chosen without the task or model they are judged on.

    Attributes:
        spearman: Mean over models of the correlation between collected positions and targets; `nan` if undefined.
        interval: 95 % interval of that correlation, the collected positions taken as given.
        p_value: One-sided permutation p-value (large is good): the whole procedure is repeated on permuted tasks.
        null_mean: Mean of that null, near zero.
        null_quantiles: Its 5, 50 and 95 % points.
        options: Chosen option of each left-out task or model.
        signs: Sign (+1 or -1) with which each was used.
        positions: Collected positions (models, tasks); see `leave_one_out_selection`.
        over: `"task"` or `"model"`.
        n, n_models, n_options, n_permutations: Numbers of tasks, models, options and permutations.
    """

    left_out = ("positions",)

    spearman: float
    interval: tuple[float, float]
    p_value: float
    null_mean: float
    null_quantiles: tuple[float, float, float]
    options: tuple[int, ...]
    signs: tuple[int, ...]
    positions: np.ndarray = field(repr=False)
    over: str
    n: int
    n_models: int
    n_options: int
    n_permutations: int


def select_and_correlate(
    values: ArrayLike,
    target: ArrayLike,
    *,
    per_model: bool = False,
    n_permutations: int = 1999,
    random_state: int = 0,
) -> Selection:
    """Choose the option with the largest absolute correlation with the target, and test it against chance.

    For the null, the tasks are permuted (the same way in every model) and the best correlation among all options is
    chosen anew. Dependence among options and among models is kept, and nothing is assumed about either.

    Args:
        values: Scores (options, tasks) or (options, models, tasks), finite; an option is a rank and layer, say.
        target: (tasks,) or (models, tasks), finite.
        per_model: Choose an option for each model, as the paper does; else one option for all, by its mean correlation.
        n_permutations: Random permutations; all of them with up to seven tasks.
        random_state: Seed of the random permutations.

    Raises:
        NtpsError: If shapes differ, there are fewer than four tasks, or values are not finite.
    """
    scores, targets = _grids(values, target)
    o, m, t = scores.shape
    models = np.arange(m)
    ranks, target_ranks = unit(centered_ranks(scores)), unit(centered_ranks(targets))
    observed = _correlations(ranks, target_ranks[None])[0]  # (options, models)
    best, chosen_options = _best(observed[None], per_model)
    chosen = chosen_options[0]
    correlation = observed[chosen, models]
    signs = np.where(correlation < 0, -1, 1) if per_model else np.ones(m, dtype=int)
    order, exact = draw_permutations(t, n_permutations, random_state)
    null, naive = np.empty(len(order)), np.empty(len(order))
    block = max(1, _BLOCK // (o * m))
    for start in range(0, len(order), block):
        rows = slice(start, start + block)
        permuted = _correlations(ranks, target_ranks[:, order[rows]].swapaxes(0, 1))
        null[rows] = _best(permuted, per_model)[0]
        naive[rows] = (permuted[:, chosen, models] * signs).mean(1)
    signed = float((correlation * signs).mean()) if target_ranks.any() else math.nan
    return Selection(
        spearman=signed,
        interval=grid_spearman(scores[chosen, models] * signs[:, None], targets, n_permutations=1).interval,
        p_value=permutation_p(float(best[0]), null, exact=exact),
        naive_p_value=permutation_p(signed, naive, two_sided=True, exact=exact),
        options=tuple(int(i) for i in (chosen if per_model else chosen[:1])),
        correlations=observed.mean(1),
        null_quantiles=_quantiles(null),
        null=null,
        n=t,
        n_models=m,
        n_options=o,
        n_permutations=len(order),
    )


def leave_one_out_selection(
    values: ArrayLike,
    targets: ArrayLike,
    *,
    over: str = "task",
    n_permutations: int = 499,
    random_state: int = 0,
) -> HeldOutSelection:
    """Choose the option without a task (or model), apply it there, and correlate the collected results.

    The choice is the option with the largest absolute mean within-model Spearman correlation on what remains, which is
    used with the sign of that correlation.

    `over="task"`: scores of different options do not compare (layers differ in level), so the left-out task's raw value
    cannot be collected. Its *position* among the remaining tasks under the chosen option is collected instead: half the
    sum of signs of its differences from them, times the sign of the option's correlation. Positions
    are on one scale for all options, and when every fold chooses one option they are exactly its centred ranks, so the
    result equals the fixed option's correlation. Only scores decide a position: the left-out task's target enters
    nowhere.

    `over="model"`: the option chosen on the other models ranks the left-out model's tasks directly. Options must mean
    the same in every model (layers as a share of depth, ranks as a share of the width).

    Folds share tasks, and collected positions come from different options, so the result does not scatter as a single
    correlation of n points does: the p-value repeats the whole procedure on permuted tasks. Its null has a mean near
    zero (-0.04 to 0.01 in simulations with 1 to 50 options), reported as `null_mean`.

    Args:
        values: Scores (options, models, tasks) or (options, tasks), finite.
        targets: (models, tasks) or (tasks,), finite; at least five tasks for `over="task"`, two models for `"model"`.
        over: `"task"` or `"model"`.
        n_permutations: Random joint permutations of the tasks; all of them with up to seven tasks.
        random_state: Seed of the random permutations.

    Raises:
        NtpsError: If shapes differ, there are too few tasks or models, or values are not finite.
    """
    scores, target = _grids(values, targets)
    one_of(over, ("task", "model"), "over")
    o, m, t = scores.shape
    if over == "task" and t < 5:
        raise NtpsError(f"leaving one of {t} tasks out leaves too few to choose on; give at least five.")
    if over == "model" and m < 2:
        raise NtpsError("leaving a model out needs at least two models.")
    leave_out = _leave_task_out if over == "task" else _leave_model_out
    positions, chosen, signs = leave_out(scores, target[None])
    target_ranks = unit(centered_ranks(target))
    value = float(_mean_correlation(positions, target_ranks[None])[0])
    order, exact = draw_permutations(t, n_permutations, random_state)
    null = np.empty(len(order))
    block = max(1, _BLOCK // (o * m))
    for start in range(0, len(order), block):
        permuted = target[:, order[start : start + block]].swapaxes(0, 1)  # (block, models, tasks)
        collected = leave_out(scores, permuted)[0]
        null[start : start + block] = _mean_correlation(collected, unit(centered_ranks(permuted)))
    if not positions.any() or not target_ranks.any():
        value = math.nan
    return HeldOutSelection(
        spearman=value,
        interval=grid_spearman(positions[0], target, n_permutations=1).interval,
        p_value=permutation_p(value, null, exact=exact),
        null_mean=float(null.mean()),
        null_quantiles=_quantiles(null),
        options=tuple(int(i) for i in chosen[0]),
        signs=tuple(int(s) for s in signs[0]),
        positions=positions[0],
        over=over,
        n=t,
        n_models=m,
        n_options=o,
        n_permutations=len(order),
    )


def _leave_task_out(scores: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Positions (B, m, t), options (B, t) and signs (B, t) for targets (B, m, t)."""
    b, m, t = targets.shape
    # Half the sum over the others of sign(v_i - v_j): the position of i among the others.
    ranks = centered_ranks(scores)
    positions, chosen, signs = np.empty((b, m, t)), np.empty((b, t), dtype=int), np.empty((b, t), dtype=int)
    for i in range(t):  # the task left out
        others = [j for j in range(t) if j != i]
        rest = _correlations(unit(centered_ranks(scores[:, :, others])), unit(centered_ranks(targets[:, :, others])))
        mean = rest.mean(2)
        chosen[:, i] = np.abs(mean).argmax(1)
        signs[:, i] = np.where(mean[np.arange(b), chosen[:, i]] < 0, -1, 1)
        positions[:, :, i] = signs[:, i, None] * ranks[chosen[:, i], :, i]
    return positions, chosen, signs


def _leave_model_out(scores: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Positions (B, m, t), options (B, m) and signs (B, m) for targets (B, m, t)."""
    m = targets.shape[1]
    ranks = centered_ranks(scores)
    each = _correlations(unit(ranks), unit(centered_ranks(targets)))
    mean = (each.sum(2, keepdims=True) - each) / (m - 1)  # (B, options, left-out model)
    chosen = np.abs(mean).argmax(1)
    signs = np.where(np.take_along_axis(mean, chosen[:, None, :], 1)[:, 0] < 0, -1, 1)
    return signs[:, :, None] * ranks[chosen, np.arange(m)], chosen, signs


def _correlations(ranks: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Return correlations (B, options, models) of unit ranks (options, models, tasks) and (B, models, tasks)."""
    return np.stack([targets[:, model] @ ranks[:, model].T for model in range(ranks.shape[1])], axis=2)


def _mean_correlation(positions: np.ndarray, target_ranks: np.ndarray) -> np.ndarray:
    """Return the mean within-model Spearman (B,) of collected positions with unit target ranks."""
    return (unit(centered_ranks(positions)) * target_ranks).sum(-1).mean(-1)


def _best(correlations: np.ndarray, per_model: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return the largest |correlation| (B,) and its option per model (B, models), of (B, options, models)."""
    if per_model:
        score = np.abs(correlations)
        return score.max(1).mean(1), score.argmax(1)
    score = np.abs(correlations.mean(2))
    chosen = score.argmax(1)
    return score.max(1), np.repeat(chosen[:, None], correlations.shape[2], axis=1)


def _quantiles(null: np.ndarray) -> tuple[float, float, float]:
    low, middle, high = (float(q) for q in np.quantile(null, [0.05, 0.5, 0.95]))
    return low, middle, high


def _grids(values: ArrayLike, target: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    scores, targets = np.asarray(values, dtype=float), as_grid(target, "the target")
    if scores.ndim == 2:
        scores = scores[:, None, :]
    if scores.ndim != 3 or scores.shape[1:] != targets.shape or not len(scores):
        raise NtpsError(
            f"values have shape {np.shape(values)} and the target {np.shape(target)}; "
            "they must be (options, models, tasks) and (models, tasks), or (options, tasks) and (tasks,)."
        )
    return as_grid(scores, "the table of values"), targets
