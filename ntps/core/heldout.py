"""Held-out explained variance in closed form, from the moments of folds: no second pass over the texts.

For each fold, a ridge readout W of the first k next-token directions is fitted on the moments of the other folds, and
its squared error evaluated on the moments of this one: tr E[y y^T] - 2 tr(W^T X) + tr(W^T M W), all about the means of
the other folds. V itself comes from all texts: it has seen no label.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ntps.core.moments import Moments
from ntps.errors import NtpsError

# A label variance below this share of the mean square is rounding: the labels are constant.
VARIANCE_RTOL = 1e-14
RIDGES = tuple(10.0**power for power in range(-8, 1))  # in units of tr(M) / d


@dataclass(frozen=True)
class HeldOut:
    """Held-out R^2 of linear readouts; at most 1, and below 0 where the readout is worse than the label frequencies.

    Attributes:
        explained: Through the first k next-token directions, for each k asked for.
        ceiling: Through all d directions.
        fold_explained: The same per fold, a list per k: each fold's own R^2.
        fold_ceiling: Per fold.
    """

    explained: tuple[float, ...]
    ceiling: float
    fold_explained: tuple[tuple[float, ...], ...]
    fold_ceiling: tuple[float, ...]

    def interval(self, index: int | None = None) -> dict[str, Any]:
        """Return the interval of `explained[index]`, or of `ceiling`; see `fold_interval`."""
        if index is None:
            return fold_interval(self.ceiling, self.fold_ceiling)
        return fold_interval(self.explained[index], self.fold_explained[index])


def fold_interval(estimate: float, values: Sequence[float], confidence: float = 0.95) -> dict[str, Any]:
    """Return `estimate`, `low`, `high` and `standard_error` from the spread over folds (t quantiles).

    Folds share training texts, so the interval is somewhat narrow (Bengio and Grandvalet, JMLR 5, 2004). All but the
    estimate are NaN where a fold has no value.
    """
    from scipy.stats import t as student

    folds = np.array(values)
    if not np.isfinite(folds).all() or not math.isfinite(estimate):
        return {"estimate": estimate, "low": math.nan, "high": math.nan, "standard_error": math.nan}
    error = float(folds.std(ddof=1)) / math.sqrt(len(folds))
    half = float(student.ppf(0.5 + confidence / 2, len(folds) - 1)) * error
    return {"estimate": estimate, "low": estimate - half, "high": min(estimate + half, 1.0), "standard_error": error}


def held_out_explained(
    moments: Moments, layer: int, V: Tensor, ks: Sequence[int], *, ridges: Sequence[float] = RIDGES
) -> HeldOut:
    """Evaluate readouts of V's first k directions, and of all d, on folds they were not fitted on.

    The ridge penalty is chosen for each fold and each k by the error on the *other* folds, so no text judges a penalty
    that it chose. One Cholesky factor serves every k: its leading blocks are the factors of the leading problems.

    Args:
        moments: Moments with at least two folds.
        layer: The layer number.
        V: (d, r) next-token directions, best first.
        ks: Numbers of directions, each in [1, r].
        ridges: Penalties in units of tr(M) / d.

    Raises:
        NtpsError: If the moments have no folds or a fold is empty.
    """
    if moments.n_folds < 2:
        raise NtpsError("these moments have no folds; collect them with folds=K, K at least 2.")
    d = V.shape[0]
    basis, _ = torch.linalg.qr(V, mode="complete")  # the first k columns span V's first k, and all d span everything
    sizes = [*ks, d]
    losses = torch.zeros(moments.n_folds, len(ridges), len(sizes), dtype=torch.float64)
    totals = torch.zeros(moments.n_folds, dtype=torch.float64)
    counts = torch.zeros(moments.n_folds, dtype=torch.float64)
    for fold in range(moments.n_folds):
        train = moments.without_fold(layer, fold)
        test = moments.fold(layer, fold).centered(train.mean_x, train.mean_y)
        train = train.centered()
        train_M, test_M = (basis.T @ M.to(basis) @ basis for M in (train.M, test.M))
        train_X, test_X = (basis.T @ X.to(basis) for X in (train.X, test.X))
        counts[fold], totals[fold] = test.n, float(test.yy.trace())
        scale = float(train.M.trace()) / d
        for place, ridge in enumerate(ridges):
            # A whisker above zero keeps the factor defined when the penalty and the features are both nothing.
            penalty = ridge * scale + torch.finfo(torch.float64).tiny ** 0.5
            factor, failed = torch.linalg.cholesky_ex(train_M + penalty * torch.eye(d).to(basis))
            if failed:  # the penalty drowns in rounding: a larger one is in the list
                losses[fold, place] = torch.inf
                continue
            half = torch.linalg.solve_triangular(factor, train_X, upper=False)
            for index, k in enumerate(sizes):
                readout = torch.linalg.solve_triangular(factor[:k, :k].T, half[:k], upper=True)
                fitted = (readout * (test_M[:k, :k] @ readout)).sum() - 2 * (readout * test_X[:k]).sum()
                losses[fold, place, index] = totals[fold] + float(fitted)
    weighted = losses * counts[:, None, None]
    elsewhere = weighted.sum(0, keepdim=True) - weighted  # the error on the other folds
    elsewhere = torch.where(torch.isfinite(elsewhere), elsewhere, torch.inf)
    chosen = elsewhere.argmin(1, keepdim=True)
    picked = losses.gather(1, chosen)[:, 0]  # (folds, sizes)
    total = float((totals * counts).sum())
    squares = float(moments.layer(layer).yy.trace()) * moments.n_texts
    if total <= VARIANCE_RTOL * squares or not torch.isfinite(picked).all():
        nan = float("nan")
        nans = (nan,) * moments.n_folds
        return HeldOut((nan,) * len(ks), nan, (nans,) * len(ks), nans)
    overall = (1 - (picked * counts[:, None]).sum(0) / total).tolist()
    per_fold = (1 - picked / totals[:, None].clamp_min(torch.finfo(torch.float64).tiny)).T.tolist()
    return HeldOut(
        tuple(overall[:-1]), overall[-1], tuple(tuple(values) for values in per_fold[:-1]), tuple(per_fold[-1])
    )
