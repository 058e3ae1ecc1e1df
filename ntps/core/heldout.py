"""Held-out explained variance in closed form, from the pooled moments of folds, without reading the texts again.

For each fold, a ridge readout W of the first k next-token directions is fitted on the moments of the other folds, and
its squared error is computed on the moments of this one: tr E[y y^T] - 2 tr(W^T X) + tr(W^T M W), all about the means
of the other folds. V itself comes from all texts: it has seen no label.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ntps.core.pooled import PooledMoments
from ntps.errors import NtpsError

# A label variance below this share of the mean square is rounding: the labels are constant.
VARIANCE_RTOL = 1e-14
RIDGES = tuple(10.0**power for power in range(-8, 1))  # in units of tr(M) / d


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """Held-out R^2 of linear readouts; at most 1, and below 0 where the readout is worse than the label frequencies.

    Attributes:
        ks: The requested numbers of next-token directions.
        explained: R^2 through the first k directions, for each of `ks`.
        ceiling: R^2 through all d directions.
        fold_explained: R^2 of each fold, one tuple per entry of `ks`.
        fold_ceiling: R^2 of each fold through all directions.
    """

    ks: tuple[int, ...]
    explained: tuple[float, ...]
    ceiling: float
    fold_explained: tuple[tuple[float, ...], ...]
    fold_ceiling: tuple[float, ...]

    def at(self, k: int) -> tuple[float, tuple[float, ...]]:
        """Return R^2 through the first k directions, over all texts and by fold; NaN for k = 0.

        Raises:
            NtpsError: If k is not among `ks`.
        """
        if k == 0:
            return math.nan, (math.nan,) * len(self.fold_ceiling)
        if k not in self.ks:
            raise NtpsError(f"no held-out value was computed for k = {k}; there are {', '.join(map(str, self.ks))}.")
        index = self.ks.index(k)
        return self.explained[index], self.fold_explained[index]


def held_out_explained(
    folds: Sequence[PooledMoments], V: Tensor, ks: Sequence[int], *, ridges: Sequence[float] = RIDGES
) -> HeldOut:
    """Evaluate readouts of V's first k directions, and of all d, on folds they were not fitted on.

    The ridge penalty is chosen for each fold and each k by the error on the *other* folds, so no text judges a penalty
    that it chose. One Cholesky factor serves every k: its leading blocks are the factors of the leading problems.

    Args:
        folds: Moments of at least two folds.
        V: (d, r) next-token directions, best first.
        ks: Numbers of directions, each in [1, r].
        ridges: Penalties in units of tr(M) / d.

    Raises:
        NtpsError: If there are fewer than two folds.
    """
    if len(folds) < 2:
        raise NtpsError(f"held-out values need at least two folds, not {len(folds)}.")
    d = V.shape[0]
    basis, _ = torch.linalg.qr(V, mode="complete")  # the first k columns span V's first k, and all d span everything
    sizes = [*ks, d]
    whole = sum(folds[1:], folds[0])
    losses = torch.zeros(len(folds), len(ridges), len(sizes), dtype=torch.float64)
    totals = torch.zeros(len(folds), dtype=torch.float64)
    counts = torch.tensor([fold.n for fold in folds], dtype=torch.float64)
    for index, fold in enumerate(folds):
        others = whole - fold
        test, train = fold.centered(others.mean_x, others.mean_y), others.centered()
        train_M, test_M = (basis.T @ M @ basis for M in (train.M, test.M))
        train_X, test_X = (basis.T @ X for X in (train.X, test.X))
        totals[index] = float(test.yy.trace())
        scale = float(train.M.trace()) / d
        for ridge_index, ridge in enumerate(ridges):
            # A tiny number keeps the factor defined when the penalty and the features are both zero.
            penalty = ridge * scale + torch.finfo(torch.float64).tiny ** 0.5
            factor, failed = torch.linalg.cholesky_ex(train_M + penalty * torch.eye(d, dtype=torch.float64))
            if failed:  # the penalty is lost in rounding: a larger one is in the list
                losses[index, ridge_index] = torch.inf
                continue
            half = torch.linalg.solve_triangular(factor, train_X, upper=False)
            for size_index, k in enumerate(sizes):
                readout = torch.linalg.solve_triangular(factor[:k, :k].T, half[:k], upper=True)
                fitted = (readout * (test_M[:k, :k] @ readout)).sum() - 2 * (readout * test_X[:k]).sum()
                losses[index, ridge_index, size_index] = totals[index] + float(fitted)
    weighted = losses * counts[:, None, None]
    elsewhere = weighted.sum(0, keepdim=True) - weighted  # the error on the other folds
    elsewhere = torch.where(torch.isfinite(elsewhere), elsewhere, torch.inf)
    chosen = elsewhere.argmin(1, keepdim=True)
    picked = losses.gather(1, chosen)[:, 0]  # (folds, sizes)
    total = float((totals * counts).sum())
    if total <= VARIANCE_RTOL * whole.n * float(whole.yy.trace()) or not torch.isfinite(picked).all():
        overall, per_fold = [math.nan] * len(sizes), [[math.nan] * len(folds)] * len(sizes)
    else:
        overall = (1 - (picked * counts[:, None]).sum(0) / total).tolist()
        per_fold = (1 - picked / totals[:, None].clamp_min(torch.finfo(torch.float64).tiny)).T.tolist()
    return HeldOut(
        ks=tuple(ks),
        explained=tuple(overall[:-1]),
        ceiling=overall[-1],
        fold_explained=tuple(map(tuple, per_fold[:-1])),
        fold_ceiling=tuple(per_fold[-1]),
    )
