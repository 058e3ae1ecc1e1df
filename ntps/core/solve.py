"""A layer, solved once: both encoders, scores at all ranks, and the loss they imply, exactly and as bounds.

With U the perception encoder and V the next-token encoder, P the orthogonal projector on the first k_V columns of V:

    NTPS(k_U, k_V) = ||P U||_F^2 / ||U||_F^2                                   (the paper's Definition of the score)

and, with lambda_i the perception eigenvalues and Explained(V_k) = tr((V^T M V)^-1 V^T X X^T V),

    excess loss = sum_{i <= k_U} lambda_i - Explained(V_{k_V})                 (exact)

between bounds proportional to 1 - NTPS (the paper's Theorem 2, with its constants written out; see `loss_bounds`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ntps.core.encoders import (
    POOLED_RTOL,
    Encoder,
    Whitening,
    layer_autoregressive_encoder,
    row_whitening,
    solve_encoder,
    whitening,
)
from ntps.core.heldout import VARIANCE_RTOL, HeldOut, Keep, held_out_errors
from ntps.core.moments import LayerMoments
from ntps.core.pooled import PooledMoments
from ntps.core.subspaces import explained_curve, nested_basis, ntps_table
from ntps.core.threads import one_thread_if_narrow
from ntps.errors import NtpsError


def loss_bounds(
    eigenvalues: Tensor, k_u: int, k_v: int, *, missing: float, smallest: float = 1.0, largest: float = 1.0
) -> tuple[float, float]:
    """Bound the excess loss by the part of U that V misses.

    With p_i the share of the i-th whitened perception direction inside V, the excess loss is
    sum_{i<=k_u} lambda_i (1 - p_i) - sum_{i>k_u} lambda_i p_i, and the p_i of a whole basis sum to k_v. So, with m the
    missing part sum_{i<=k_u} (1 - p_i),

        (lambda_k - lambda_{k+1}) m - lambda_{k+1} (k_v - k_u)  <=  excess  <=  lambda_1 m,        k = k_u.

    For k_u = k_v, or k_u = rank(X), where lambda_{k+1} = 0, this is the paper's Theorem 2. Whitened,
    m = k_u (1 - NTPS~). Unwhitened, m lies between mu_min(M) and mu_max(M) times ||U||_F^2 (1 - NTPS).

    Args:
        eigenvalues: All perception eigenvalues, descending.
        k_u: Number of perception directions.
        k_v: Number of next-token directions.
        missing: m, or ||U||_F^2 (1 - NTPS) for the raw bounds.
        smallest: mu_min(M) for the raw bounds, else 1.
        largest: mu_max(M) for the raw bounds, else 1.

    Returns:
        (lower, upper).
    """
    if k_u == 0:
        return 0.0, 0.0
    last = float(eigenvalues[k_u - 1])
    following = float(eigenvalues[k_u]) if k_u < len(eigenvalues) else 0.0
    lower = (last - following) * smallest * missing - following * (k_v - k_u)
    return lower, float(eigenvalues[0]) * largest * missing


@dataclass(frozen=True, eq=False, kw_only=True)
class Solved:
    """The solution of a layer: both encoders, and every quantity that depends on ranks, at all ranks.

    Attributes:
        states: (n, d) pooled states.
        targets: (n, c) float64, one-hot labels or real targets.
        fold_of: (n,) fold of each text, or `None`.
        pooled: Moments of states and targets.
        next_token: C0 and C1.
        center: Whether U was solved from centred moments.
        separate: Whether each target has its own penalty where something is held out; see `held_out_errors`.
        pooled_rtol: Relative tolerance of the decompositions of M.
        plain: The decomposition of M.
        centered: The decomposition of the centred M.
        U: Perception encoder (of the centred moments when `center`).
        V: Next-token encoder.
        table: (rank_v, columns of U) NTPS, see `ntps_table`.
        whitened_table: The same for M^(1/2) U and M^(1/2) V: NTPS~, which knows no condition number of M.
        explained: (rank_v,) Explained(V_k) in the moments of U.
        r2: (rank_v,) share of label variance explained through V_k by a readout with intercept, in sample, in [0, 1].
        ceiling: The same through all d directions.
    """

    states: Tensor
    targets: Tensor
    fold_of: Tensor | None
    pooled: PooledMoments
    next_token: LayerMoments
    center: bool
    separate: bool = False
    pooled_rtol: float
    plain: Whitening
    centered: Whitening
    U: Encoder
    V: Encoder
    table: Tensor
    whitened_table: Tensor
    explained: Tensor
    r2: Tensor
    ceiling: float

    @property
    def layer(self) -> int:
        """The layer's number."""
        return self.next_token.layer

    @property
    def d(self) -> int:
        """Width of a hidden state."""
        return self.pooled.d

    def ntps_at(self, k_u: int, k_v: int) -> float:
        """Return NTPS(k_U, k_V); NaN where there is no direction."""
        return float(self.table[k_v - 1, k_u - 1]) if k_u and k_v else math.nan

    def whitened_ntps_at(self, k_u: int, k_v: int) -> float:
        """Return NTPS~(k_U, k_V); NaN where there is no direction."""
        return float(self.whitened_table[k_v - 1, k_u - 1]) if k_u and k_v else math.nan

    def r2_at(self, k_v: int) -> float:
        """Return the share of label variance explained through V_k in sample."""
        return float(self.r2[k_v - 1]) if k_v else 0.0

    def retained_at(self, k_v: int) -> float:
        """Return explained / ceiling; NaN where the ceiling is 0."""
        return min(self.r2_at(k_v) / self.ceiling, 1.0) if self.ceiling > 0 else math.nan

    def excess_at(self, k_u: int, k_v: int) -> float:
        """Return the excess loss, at least 0 if U is complete: then only rounding could make it negative."""
        explained = float(self.explained[k_v - 1]) if k_v else 0.0
        excess = float(self.U.eigenvalues[:k_u].sum()) - explained
        return max(excess, 0.0) if k_u >= self.U.rank else excess

    @cached_property
    def folds(self) -> tuple[PooledMoments, ...]:
        """Moments of each fold; empty without folds."""
        if self.fold_of is None:
            return ()
        members = [torch.nonzero(self.fold_of == fold)[:, 0] for fold in self.fold_of.unique().tolist()]
        return tuple(PooledMoments.of(self.states[rows], self.targets[rows]) for rows in members)

    def held_out(self, ks: Sequence[int], *, keep: Keep | None = None) -> HeldOut:
        """Return what V's first k directions, for each of `ks`, and all directions read on texts held out.

        Args:
            ks: Numbers of directions.
            keep: What to keep beside R^2.

        Raises:
            NtpsError: If there are no folds.
        """
        if self.fold_of is None:
            raise NtpsError("this layer was solved without folds.")
        return held_out_errors(
            self.states, self.targets, self.fold_of, self.V.vectors, ks, separate=self.separate, keep=keep
        )

    @one_thread_if_narrow
    def without_fold(self, fold: int) -> Solved:
        """Return the solution without the texts of one fold: the label side is solved anew, V is kept.

        Args:
            fold: Index in `folds`.

        Raises:
            NtpsError: If there are no folds.
        """
        if self.fold_of is None:
            raise NtpsError("this layer was solved without folds.")
        rows = torch.nonzero(self.fold_of != self.fold_of.unique()[fold])[:, 0]
        return _solve_labels(
            states=self.states[rows],
            targets=self.targets[rows],
            fold_of=None,
            pooled=self.pooled - self.folds[fold],
            next_token=self.next_token,
            V=self.V,
            center=self.center,
            separate=self.separate,
            k_u=self.U.vectors.shape[1],
            pooled_rtol=self.pooled_rtol,
        )


@one_thread_if_narrow
def solve_layer(
    states: Tensor,
    targets: Tensor,
    next_token: LayerMoments,
    *,
    fold_of: Tensor | None = None,
    center: bool = False,
    separate: bool = False,
    k_u: int | None = None,
    rtol: float | None = None,
) -> Solved:
    """Solve both encoders of one layer and every quantity that depends on ranks.

    Args:
        states: (n, d) pooled states, any float dtype; they may be memory-mapped.
        targets: (n,) class numbers from 0, or (n, c) one-hot labels or real targets.
        next_token: The layer's C0 and C1, of these texts or of others of the same kind: no label enters them.
        fold_of: (n,) fold of each text, for held-out values.
        center: Solve U from centred moments, which leaves out the mean direction: it explains the label frequencies.
        separate: Whether each target has its own penalty where something is held out; see `held_out_errors`.
        k_u: Number of perception directions needed; those beyond the rank of X are arbitrary.
        rtol: Relative tolerance of the decompositions; by default what fits the dtype of the sums.

    Raises:
        NtpsError: If shapes do not fit, no text has two tokens, or a moment is not finite.
    """
    targets = _one_hot(targets)
    if states.ndim != 2 or states.shape[1] != next_token.C0.shape[0]:
        raise NtpsError(f"states have shape {tuple(states.shape)}; expected (n, {next_token.C0.shape[0]}).")
    if fold_of is not None and len(fold_of) != len(states):
        raise NtpsError(f"fold_of has {len(fold_of)} entries for {len(states)} states.")
    return _solve_labels(
        states=states,
        targets=targets,
        fold_of=fold_of,
        pooled=PooledMoments.of(states, targets),
        next_token=next_token,
        V=layer_autoregressive_encoder(next_token, rtol=rtol),
        center=center,
        separate=separate,
        k_u=k_u or 0,
        pooled_rtol=POOLED_RTOL if rtol is None else rtol,
    )


def _solve_labels(
    *, pooled: PooledMoments, V: Encoder, center: bool, k_u: int, pooled_rtol: float, **inputs: Any
) -> Solved:
    """Solve the perception encoder and all that depends on it; `inputs` are further attributes of the solution."""
    about_means, squares = pooled.centered(), pooled.M.diagonal()
    if 2 * pooled.n < pooled.d:  # faster from there on
        rows = inputs["states"].double() / math.sqrt(pooled.n)
        plain = row_whitening(rows, squares, rtol=pooled_rtol)
        centered = row_whitening(rows - rows.mean(0), squares, rtol=pooled_rtol)
    else:
        plain = whitening(pooled.M, rtol=pooled_rtol)
        centered = whitening(about_means.M, rtol=pooled_rtol, max_rank=pooled.n - 1, diagonal=squares)
    gram, cross = (centered, about_means.X) if center else (plain, pooled.X)
    U = solve_encoder(gram, cross, columns=k_u)
    basis = nested_basis(gram.half @ V.vectors)
    whitened = (basis.T @ U.coordinates).square().cumsum(0).cumsum(1)
    explained = (basis.T @ (gram.whiten.T @ cross)).square().sum(1).cumsum(0)
    variance = float(about_means.yy.trace())
    share = 1.0 / variance if variance > VARIANCE_RTOL * float(pooled.yy.trace()) else 0.0
    explained_about_means = explained if center else explained_curve(centered, about_means.X, V.vectors)
    reachable = float((centered.whiten.T @ about_means.X).square().sum())
    return Solved(
        **inputs,
        pooled=pooled,
        V=V,
        center=center,
        pooled_rtol=pooled_rtol,
        plain=plain,
        centered=centered,
        U=U,
        table=ntps_table(U.vectors, V.vectors),
        whitened_table=(whitened / torch.arange(1, U.vectors.shape[1] + 1)).clamp(0.0, 1.0),
        explained=explained,
        r2=(explained_about_means * share).clamp(0.0, 1.0),
        ceiling=min(max(reachable * share, 0.0), 1.0),
    )


def _one_hot(targets: Tensor) -> Tensor:
    """Return targets as (n, c) float64: class numbers become one-hot rows."""
    if targets.ndim == 2:
        if not targets.isfinite().all():
            row = int((~targets.isfinite().all(1)).nonzero()[0])
            raise NtpsError(f"target {row} is not finite.")
        return targets.double()
    if targets.ndim != 1 or targets.is_floating_point() or not len(targets) or int(targets.min()) < 0:
        raise NtpsError(
            f"targets have shape {tuple(targets.shape)} and dtype {targets.dtype}; expected (n,) class numbers from 0, "
            "or (n, c) real targets."
        )
    return torch.nn.functional.one_hot(targets.long()).double()
