"""Rank correlations for few points: intervals, permutation p-values, grids of models by tasks, corrections.

A study has about ten tasks and a handful of models that all see the *same* tasks. Two common practices go wrong there:
large-sample p-values, and treating models x tasks as so many independent points. Here p-values come from
permutations (all of them for up to seven points), and in a grid whole tasks are permuted, the same way in every model,
so that what models share is kept. Ranks are computed once; a permutation only reorders them, so thousands cost one
matrix product.
"""

import math
from dataclasses import dataclass
from functools import lru_cache
from itertools import permutations
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from ntps._files import Record
from ntps.errors import NtpsError, in_range, one_of, whole
from ntps.scoring.pvalues import TIE, permutation_p

EXACT_UP_TO = 7  # 7! = 5,040 permutations: fewer than are drawn at random for more points


@dataclass(frozen=True, kw_only=True)
class Correlation(Record):
    """A rank correlation with its uncertainty.

    Attributes:
        spearman: Spearman's rho (mid-ranks for ties), in [-1, 1]; for a grid the mean over models, or the pooled one.
            `nan` when one side is constant, with the reason in `reason`.
        interval: Confidence interval of `spearman`.
        p_value: Two-sided permutation p-value of `spearman`, in (0, 1].
        kendall: Kendall's tau-b, in [-1, 1]; for a grid the mean over models (`nan` for the pooled view).
        kendall_interval: Confidence interval of `kendall`.
        kendall_p_value: Two-sided permutation p-value of `kendall`.
        n: Number of points, or of tasks in a grid: the independent ones, however many models see them.
        n_models: Number of models in a grid, else 1.
        n_permutations: Number of permutations behind the p-values.
        exact: Whether those are all permutations there are.
        confidence: Level of the intervals.
        reason: Why something is `nan` or left out, else an empty string.
    """

    spearman: float = math.nan
    interval: tuple[float, float] = (math.nan, math.nan)
    p_value: float = math.nan
    kendall: float = math.nan
    kendall_interval: tuple[float, float] = (math.nan, math.nan)
    kendall_p_value: float = math.nan
    n: int
    n_models: int = 1
    n_permutations: int = 0
    exact: bool = False
    confidence: float = 0.95
    reason: str = ""


def spearman(
    x: ArrayLike, y: ArrayLike, *, confidence: float = 0.95, n_permutations: int = 9999, random_state: int = 0
) -> Correlation:
    """Spearman's and Kendall's correlation of two vectors, with intervals and permutation p-values.

    Intervals are on Fisher's z = artanh(r), with variance (1 + r^2 / 2) / (n - 3) for Spearman and 0.437 / (n - 4) for
    Kendall (Bonett and Wright, Psychometrika 65, 2000), the latter with t quantiles. Simulated with 5 to 96 bivariate
    normal points and correlations up to 0.8 they cover 94 to 99 % at a nominal 95 %; 1 / (n - 3) covers less, and a
    bootstrap of so few ranks repeats points. A perfect correlation, whose z is infinite, enters half a step short of
    one, so that its interval has a width.

    Args:
        x: Values (n,), finite, n >= 4. Ties share their mean rank.
        y: Values (n,), finite.
        confidence: Level of the intervals, in [0.5, 0.999].
        n_permutations: Random permutations; with up to seven points all n! are used instead.
        random_state: Seed of the random permutations.

    Raises:
        NtpsError: If there are fewer than four points, the lengths differ, or a value is not finite.
    """
    xs, ys = _vectors(x, y)
    n = len(xs)
    in_range(confidence, 0.5, 0.999, "confidence")
    order, exact = draw_permutations(n, n_permutations, random_state)
    rank_x, rank_y = unit(centered_ranks(xs)), unit(centered_ranks(ys))
    if not (rank_x.any() and rank_y.any()):
        side = "second" if rank_x.any() else "first"
        return Correlation(n=n, confidence=confidence, reason=f"the {side} variable is constant: its ranks say nothing")
    rho = float(np.clip(rank_x @ rank_y, -1, 1))
    tau, tau_null = _kendall(xs, ys, order)
    return Correlation(
        spearman=rho,
        interval=correlation_interval(rho, n, confidence=confidence),
        p_value=permutation_p(rho, rank_y[order] @ rank_x, two_sided=True, exact=exact),
        kendall=tau,
        kendall_interval=correlation_interval(tau, n, confidence=confidence, kind="kendall"),
        kendall_p_value=permutation_p(tau, tau_null, two_sided=True, exact=exact),
        n=n,
        n_permutations=len(order),
        exact=exact,
        confidence=confidence,
    )


def grid_spearman(
    x: ArrayLike,
    y: ArrayLike,
    *,
    view: str = "within",
    confidence: float = 0.95,
    n_permutations: int = 9999,
    random_state: int = 0,
) -> Correlation:
    """Correlation over a grid of models by tasks that respects that every model sees the same tasks.

    `view="within"` averages Spearman's rho over models (levels of different models never mix); `view="pooled"` ranks
    all cells together. Null: the tasks of `y` are permuted, the same way in every model. What models share in `x` and
    in `y` stays, so the p-value is right however dependent the models are. That of freely permuted cells would not be:
    a task that is easy for one model is easy for all, and ten models are nowhere near ten times the evidence. The null
    of the pooled statistic is not centred on zero (models differ in level); deviations from its mean are compared.

    Interval: a jackknife over tasks on Fisher's z, with t quantiles of n - 2 degrees of freedom, but never narrower
    than that of `spearman` for as many independent correlations as there are models (a single model has that of
    `spearman`): leaving one of five tasks out often changes no rank. Simulated (`benchmarks/coverage_correlations.py`)
    it covers 94 to 99 % at a nominal 95 % with 5, 8 and 12 tasks and one model or four nearly identical ones, and 89 %
    in the worst case, 12 tasks and four independent models that correlate at 0.97.

    Args:
        x: Predictor (models, tasks), finite, at least four tasks.
        y: Target (models, tasks), finite.
        view: `"within"` or `"pooled"`.
        confidence: Level of the interval, in [0.5, 0.999].
        n_permutations: Random joint permutations; all of them with up to seven tasks.
        random_state: Seed of the random permutations.

    Returns:
        A `Correlation`; models with a constant row are left out of the mean and named in `reason`.

    Raises:
        NtpsError: If shapes differ, there are fewer than four tasks, or a value is not finite.
    """
    xs, ys = as_grid(x, "the predictor"), as_grid(y, "the target")
    if xs.shape != ys.shape:
        raise NtpsError(f"the grids have shapes {xs.shape} and {ys.shape}; they must agree (models, tasks).")
    one_of(view, ("within", "pooled"), "view")
    in_range(confidence, 0.5, 0.999, "confidence")
    m, t = xs.shape
    order, exact = draw_permutations(t, n_permutations, random_state)
    if view == "pooled":
        defined = np.ones(m, dtype=bool)
        rank_x = unit(centered_ranks(xs.ravel())).reshape(m, t)
        rank_y = unit(centered_ranks(ys.ravel())).reshape(m, t)
        empty = not (rank_x.any() and rank_y.any())
    else:
        rank_x, rank_y = unit(centered_ranks(xs)), unit(centered_ranks(ys))
        defined = np.asarray(rank_x.any(1) & rank_y.any(1))
        rank_x, empty = rank_x / max(int(defined.sum()), 1), not bool(defined.any())
    if empty:
        reason = "every model has a constant predictor or target"
        return Correlation(n=t, n_models=m, confidence=confidence, reason=reason)
    value = float((rank_x * rank_y).sum())
    cross = rank_x.T @ rank_y  # (tasks, tasks); a permutation of the tasks takes one entry of each row
    null = cross[np.arange(t), order].sum(1)
    null_mean = float((rank_x.sum(1) * rank_y.sum(1)).sum() / t)  # over all joint permutations, in closed form
    left_out = np.flatnonzero(~defined)
    kendall: dict[str, Any] = {}
    if view == "within":
        each = [_kendall(xs[model], ys[model], order) for model in np.flatnonzero(defined)]
        tau = float(np.mean([model_tau for model_tau, _ in each]))
        tau_null = np.mean([model_null for _, model_null in each], axis=0)
        kendall = {
            "kendall": tau,
            "kendall_interval": _grid_interval(xs, ys, tau, view=view, confidence=confidence, kind="kendall"),
            "kendall_p_value": permutation_p(tau, tau_null, two_sided=True, exact=exact),
        }
    return Correlation(
        spearman=float(np.clip(value, -1, 1)),
        interval=_grid_interval(xs, ys, value, view=view, confidence=confidence),
        p_value=permutation_p(value - null_mean, null - null_mean, two_sided=True, exact=exact),
        **kendall,
        n=t,
        n_models=m,
        n_permutations=len(order),
        exact=exact,
        confidence=confidence,
        reason=f"models with a constant row left out: {left_out.tolist()}" if left_out.size else "",
    )


def adjust(p_values: ArrayLike, *, method: str = "holm") -> np.ndarray:
    """Adjust p-values for multiple testing.

    Args:
        p_values: P-values (m,) in [0, 1]; `nan` entries are passed through and not counted.
        method: `"holm"` (any false finding at all; Holm 1979; valid for dependent tests) or `"bh"` (share of false
            findings; Benjamini and Hochberg 1995; independent or positively dependent tests).

    Returns:
        Adjusted p-values (m,): reject at level a where they are <= a.

    Raises:
        NtpsError: If a p-value lies outside [0, 1] or the method is unknown.
    """
    from scipy.stats import false_discovery_control

    one_of(method, ("holm", "bh"), "method")
    p = np.asarray(p_values, dtype=float)
    out = np.full(p.shape, math.nan)
    known = np.flatnonzero(~np.isnan(p))
    if np.any((p[known] < 0) | (p[known] > 1)):
        raise NtpsError("a p-value lies outside [0, 1].")
    if method == "bh":
        if known.size:
            out[known] = false_discovery_control(p[known])
        return out
    order = known[np.argsort(p[known], kind="stable")]
    out[order] = np.minimum(np.maximum.accumulate(p[order] * np.arange(len(order), 0, -1)), 1)
    return out


def correlation_interval(r: float, n: int, *, confidence: float = 0.95, kind: str = "spearman") -> tuple[float, float]:
    """Confidence interval of a rank correlation `r` of `n` points (see `spearman`); Kendall's with n = 4 is [-1, 1]."""
    if math.isnan(r):
        return math.nan, math.nan
    z = _fisher(r, n, kind)
    half = _half_width(z, n, confidence, kind)
    low, high = math.tanh(z - half), math.tanh(z + half)
    return (-1.0 if r <= -1 + TIE else low), (1.0 if r >= 1 - TIE else high)


def _half_width(z: float, n: int, confidence: float, kind: str) -> float:
    """Return half the width, on Fisher's scale, of the interval of a correlation of n points."""
    from scipy.stats import norm, t

    tail = 0.5 + confidence / 2
    if kind == "spearman":
        return float(norm.ppf(tail)) * math.sqrt((1 + math.tanh(z) ** 2 / 2) / (n - 3))
    return math.inf if n < 5 else float(t.ppf(tail, n - 2)) * math.sqrt(0.437 / (n - 4))


def centered_ranks(values: np.ndarray) -> np.ndarray:
    """Return mid-ranks along the last axis minus their mean, (n + 1) / 2."""
    from scipy.stats import rankdata

    ranks: np.ndarray = rankdata(values, axis=-1)
    return ranks - (np.shape(values)[-1] + 1) / 2


def unit(ranks: np.ndarray) -> np.ndarray:
    """Scale centred ranks to length one along the last axis; constant rows stay zero."""
    norm = np.sqrt(np.square(ranks).sum(-1, keepdims=True))
    return np.divide(ranks, norm, out=np.zeros_like(ranks, dtype=float), where=norm > 0)


def draw_permutations(n: int, count: int, random_state: int) -> tuple[np.ndarray, bool]:
    """Return permutations (B, n) of n points, and whether these are all n! (`count` is then ignored)."""
    whole(count, 1, None, "n_permutations")
    if n <= EXACT_UP_TO:
        return _all_permutations(n), True
    rng = np.random.default_rng(random_state)
    return rng.permuted(np.broadcast_to(np.arange(n, dtype=np.int16), (count, n)), axis=1), False


def as_grid(values: ArrayLike, what: str) -> np.ndarray:
    """Return a finite float array whose last axis has at least four tasks; one dimension becomes one model."""
    array = np.atleast_2d(np.asarray(values, dtype=float))
    if array.shape[-1] < 4:
        raise NtpsError(f"{what} has {array.shape[-1]} tasks; a correlation needs at least 4.")
    if not np.isfinite(array).all():
        where = tuple(int(i) for i in np.argwhere(~np.isfinite(array))[0])
        raise NtpsError(f"{what} is not finite at index {where}; leave that model or task out.")
    return array


def _vectors(x: ArrayLike, y: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    xs, ys = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    if xs.ndim != 1 or xs.shape != ys.shape:
        raise NtpsError(f"a correlation needs two vectors of one length; these have shapes {xs.shape} and {ys.shape}.")
    if len(xs) < 4:
        raise NtpsError(f"a correlation of {len(xs)} points says nothing; give at least four.")
    for name, values in (("first", xs), ("second", ys)):
        if not np.isfinite(values).all():
            index = int(np.flatnonzero(~np.isfinite(values))[0])
            raise NtpsError(f"the {name} variable is not finite at index {index}; leave that point out.")
    return xs, ys


def _signs(values: np.ndarray) -> np.ndarray:
    left, right = values[..., :, None], values[..., None, :]
    return (left > right).astype(np.int8) - (left < right).astype(np.int8)


def _unit_signs(values: np.ndarray) -> np.ndarray:
    """Signs of all differences along the last axis, as one vector of length one: their products are tau-b."""
    return unit(_signs(values).reshape(*values.shape[:-1], -1).astype(float))


def _kendall(x: np.ndarray, y: np.ndarray, order: np.ndarray) -> tuple[float, np.ndarray]:
    """Return tau-b of two vectors that are not constant, and of `x` with every permutation of `y` (B,)."""
    signs_x, signs_y = _signs(x), _signs(y)
    norm = math.sqrt(float(np.square(signs_x, dtype=float).sum()) * float(np.square(signs_y, dtype=float).sum()))
    i, j = np.triu_indices(len(x), 1)
    weights, null = signs_x[i, j].astype(np.float32), np.empty(len(order))
    step = max(1, 2_000_000 // len(i))  # bounds the memory
    for start in range(0, len(order), step):
        block = order[start : start + step]
        null[start : start + step] = 2 * (signs_y[block[:, i], block[:, j]].astype(np.float32) @ weights)
    return float(np.clip((signs_x * signs_y).sum(dtype=float) / norm, -1, 1)), null / norm


def _grid_interval(
    x: np.ndarray, y: np.ndarray, value: float, *, view: str, confidence: float, kind: str = "spearman"
) -> tuple[float, float]:
    """Return the interval that `grid_spearman` describes; for a single model `correlation_interval`."""
    from scipy.stats import t as student

    m, t = x.shape
    if m == 1:
        return correlation_interval(value, t, confidence=confidence, kind=kind)
    others = np.array([[j for j in range(t) if j != i] for i in range(t)])
    xs, ys = x[:, others].swapaxes(0, 1), y[:, others].swapaxes(0, 1)  # (t, models, t - 1)
    if view == "pooled":
        xs, ys = xs.reshape(t, 1, -1), ys.reshape(t, 1, -1)
    ranks_x, ranks_y = (unit(centered_ranks(v)) if kind == "spearman" else _unit_signs(v) for v in (xs, ys))
    defined = ranks_x.any(-1) & ranks_y.any(-1)
    means = (ranks_x * ranks_y).sum(-1).sum(1) / np.maximum(defined.sum(1), 1)
    z = np.array([_fisher(float(v), t, kind) for v in means])
    error = math.sqrt((t - 1) / t * float(np.square(z - z.mean()).sum()))
    middle = _fisher(value, t, kind)
    least = _half_width(middle, t, confidence, kind) / math.sqrt(m)
    half = max(float(student.ppf(0.5 + confidence / 2, t - 2)) * error, least)
    return math.tanh(middle - half), math.tanh(middle + half)


def _fisher(r: float, n: int, kind: str = "spearman") -> float:
    limit = 1 - (6 / (n**3 - n) if kind == "spearman" else 2 / (n * (n - 1)))  # half a step short of a perfect order
    return math.atanh(min(max(r, -limit), limit))


@lru_cache(maxsize=8)
def _all_permutations(n: int) -> np.ndarray:
    return np.array(list(permutations(range(n))), dtype=np.int16)
