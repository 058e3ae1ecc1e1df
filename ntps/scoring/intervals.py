"""The jackknife over folds: an interval of the in-sample explained share, and the spread of NTPS."""

import math
from dataclasses import dataclass

import numpy as np

from ntps._files import Record
from ntps.core import Solved
from ntps.errors import NtpsError
from ntps.scoring.readouts import CONFIDENCE


@dataclass(frozen=True, kw_only=True)
class Interval(Record):
    """A jackknife interval.

    Attributes:
        estimate: The value on all texts.
        standard_error: Jackknife standard error.
        low: Lower end, cut to [0, 1], at most `estimate`; NaN for NTPS.
        high: Upper end, cut to [0, 1], at least `estimate`; NaN for NTPS.
        bias: Jackknife estimate of the value's bias (positive: too high); the interval is about `estimate - bias`,
            extended to the estimate where that lies outside. NaN for NTPS.
    """

    estimate: float
    standard_error: float
    low: float = math.nan
    high: float = math.nan
    bias: float = math.nan


def layer_intervals(solved: Solved, k_u: int, k_v: int) -> dict[str, Interval]:
    """Return the 95 % interval of `explained` (in sample) and the spread of `ntps`, from folds left out in turn.

    With K folds and theta_(i) the value without fold i, the standard error is
    sqrt((K - 1) / K sum_i (theta_(i) - mean)^2), and the bias (K - 1) (mean - theta) (the block jackknife of
    Quenouille and Tukey); intervals take t quantiles of K - 1 degrees of freedom. The label side is solved anew each
    time; V, which is estimated from every token and has seen no label, is held fixed, so the interval leaves out its
    share of the sampling error, about a tenth of the variance.

    NTPS has a standard error only, its spread at this number of texts. Its bias is as large as itself while texts are
    few, because U is fitted to them, so no interval about it would hold the value that more texts lead to.

    Args:
        solved: From `ntps.core.solve_layer`, with at least 3 folds.
        k_u: Perception rank.
        k_v: Next-token rank.

    Raises:
        NtpsError: If there are fewer than 3 folds.
    """
    from scipy.special import stdtrit

    n_folds = len(solved.folds)
    if n_folds < 3:
        raise NtpsError(f"intervals leave out one fold at a time and need at least 3 folds, not {n_folds}.")
    quantile = float(stdtrit(n_folds - 1, 0.5 + CONFIDENCE / 2))
    whole = _values(solved, k_u, k_v)
    without = [_values(solved.without_fold(fold), k_u, k_v) for fold in range(n_folds)]
    return {
        name: _interval(estimate, np.array([row[name] for row in without]), quantile if name == "explained" else None)
        for name, estimate in whole.items()
    }


def _values(solved: Solved, k_u: int, k_v: int) -> dict[str, float]:
    """Return the quantities that have a jackknife interval; without a fold the rank of U may be smaller."""
    k_u = min(k_u, solved.U.vectors.shape[1])
    return {"ntps": solved.ntps_at(k_u, k_v), "explained": solved.r2_at(k_v)}


def _interval(estimate: float, without: np.ndarray, quantile: float | None) -> Interval:
    k, mean = len(without), float(without.mean())
    error = math.sqrt((k - 1) / k * float(np.square(without - mean).sum()))
    if quantile is None or math.isnan(error):
        return Interval(estimate=estimate, standard_error=error)
    bias = (k - 1) * (mean - estimate)
    middle = estimate - bias
    # From few folds the bias is itself uncertain: a value is never outside its own interval.
    low, high = min(middle - quantile * error, estimate), max(middle + quantile * error, estimate)
    low, high = min(max(low, 0.0), 1.0), min(max(high, 0.0), 1.0)
    return Interval(estimate=estimate, low=low, high=high, standard_error=error, bias=bias)
