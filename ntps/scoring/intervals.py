"""Intervals of a layer's numbers: from the spread over held-out folds, and by leaving out one fold after another."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ntps._files import jsonable
from ntps.core import Solved
from ntps.errors import NtpsError

# In-sample shares are too high by about k / n; the jackknife's estimate of NTPS's bias is mostly noise.
CORRECTED = ("explained", "retained")


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A jackknife interval.

    Attributes:
        estimate: The value on all texts.
        low: Lower end, cut to [0, 1], at most `estimate`.
        high: Upper end, cut to [0, 1], at least `estimate`.
        standard_error: Jackknife standard error.
        bias: Jackknife estimate of the value's bias (positive: too high). The interval of `explained` and `retained` is
            about `estimate - bias`, extended to the estimate where that lies outside; that of `ntps` is about
            `estimate`.
    """

    estimate: float
    low: float
    high: float
    standard_error: float
    bias: float

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values; NaN becomes `None`."""
        return jsonable(vars(self))


def layer_intervals(solved: Solved, k_u: int, k_v: int, *, confidence: float = 0.95) -> dict[str, Interval]:
    """Return intervals of `ntps`, `explained` and `retained` of one layer, from folds left out in turn.

    With K folds and theta_(i) the value without fold i, the standard error is
    sqrt((K - 1) / K sum_i (theta_(i) - mean)^2), and the bias (K - 1) (mean - theta) (the block jackknife of
    Quenouille and Tukey); intervals take t quantiles of K - 1 degrees of freedom. The label side is solved anew each
    time; V, which is estimated from every token and has seen no label, is held fixed, so the intervals leave out its
    share of the sampling error.

    Args:
        solved: From `ntps.core.solve_layer`, with at least 3 folds.
        k_u: Perception rank.
        k_v: Next-token rank.
        confidence: Level, in (0, 1).

    Raises:
        NtpsError: If there are fewer than 3 folds.
    """
    from scipy.special import stdtrit

    n_folds = len(solved.folds)
    if n_folds < 3:
        raise NtpsError(f"intervals leave out one fold at a time and need at least 3 folds, not {n_folds}.")
    quantile = float(stdtrit(n_folds - 1, 0.5 + confidence / 2))
    whole = _values(solved, k_u, k_v)
    without = [_values(solved.without_fold(fold), k_u, k_v) for fold in range(n_folds)]
    return {
        name: _interval(estimate, np.array([row[name] for row in without]), quantile, name in CORRECTED)
        for name, estimate in whole.items()
    }


def _values(solved: Solved, k_u: int, k_v: int) -> dict[str, float]:
    """Return the quantities that have a jackknife interval; without a fold the rank of U may be smaller."""
    k_u = min(k_u, solved.U.vectors.shape[1])
    return {"ntps": solved.ntps_at(k_u, k_v), "explained": solved.r2_at(k_v), "retained": solved.retained_at(k_v)}


def _interval(estimate: float, without: np.ndarray, quantile: float, corrected: bool) -> Interval:
    k, mean = len(without), float(without.mean())
    error = math.sqrt((k - 1) / k * float(np.square(without - mean).sum()))
    bias = (k - 1) * (mean - estimate)
    middle = estimate - bias if corrected else estimate
    if math.isnan(middle):
        return Interval(estimate=estimate, low=math.nan, high=math.nan, standard_error=math.nan, bias=math.nan)
    # From few folds the bias is itself uncertain: a value is never outside its own interval.
    low, high = min(middle - quantile * error, estimate), max(middle + quantile * error, estimate)
    low, high = min(max(low, 0.0), 1.0), min(max(high, 0.0), 1.0)
    return Interval(estimate=estimate, low=low, high=high, standard_error=error, bias=bias)


def fold_interval(estimate: float, by_fold: Sequence[float], *, confidence: float = 0.95) -> dict[str, Any]:
    """Return `estimate`, `low`, `high` and `standard_error` from the spread over folds (t quantiles).

    Folds share training texts, so the interval is somewhat narrow (Bengio and Grandvalet, JMLR 5, 2004). All but the
    estimate are NaN where a fold has no value.
    """
    from scipy.special import stdtrit

    values = np.array(by_fold)
    if not np.isfinite(values).all() or not math.isfinite(estimate):
        return {"estimate": estimate, "low": math.nan, "high": math.nan, "standard_error": math.nan}
    error = float(values.std(ddof=1)) / math.sqrt(len(values))
    half = float(stdtrit(len(values) - 1, 0.5 + confidence / 2)) * error
    return {"estimate": estimate, "low": estimate - half, "high": min(estimate + half, 1.0), "standard_error": error}
