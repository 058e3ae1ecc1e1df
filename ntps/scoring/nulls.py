"""Permutation nulls: NTPS and held-out R^2 under shuffled labels, with z and p.

They need no second pass over the texts: of all moments only X = E[x y^T] depends on which label goes with which text,
and X of many permutations is one product of the pooled states with the shuffled targets. The null of NTPS is the
level that labels without meaning reach at this number of texts; that of held-out R^2 says whether the labels can be
read at all.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ntps._files import Record, picked
from ntps.core import Solved, nested_basis, shuffled_errors
from ntps.core.threads import one_thread_if_narrow
from ntps.scoring.pvalues import TIE, permutation_p

_BLOCK = 8_000_000  # numbers of one product held at once


@dataclass(frozen=True, kw_only=True)
class Null(Record):
    """One quantity, and its distribution under shuffled labels.

    Attributes:
        observed: The value with the labels as they are.
        mean: Mean under shuffled labels, the level that fitting noise reaches.
        std: Standard deviation under shuffled labels.
        z: (observed - mean) / std; NaN when the null does not vary.
        p_value: One-sided (large is evidence), (1 + hits) / (1 + permutations), in (0, 1].
        quantiles: The 5, 50 and 95 % points of the null.
        values: All permuted values (B,).
    """

    left_out = ("values",)

    observed: float
    mean: float
    std: float
    z: float
    p_value: float
    quantiles: tuple[float, float, float]
    values: np.ndarray = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class LayerNull(Record):
    """The permutation null of one layer.

    Attributes:
        layer: The layer's number.
        k_u: Perception rank.
        k_v: Next-token rank.
        permutations: Number of shuffles.
        ntps: The null of NTPS(k_u, k_v).
        explained: The null of the share of label variance explained through V_k in sample.
        ceiling_heldout: The null of held-out R^2 through all directions; `None` without folds.
        fold_sums: (permutations + 1, folds, 2) errors behind the last; see `ntps.core.shuffled_errors`.
    """

    layer: int
    k_u: int
    k_v: int
    permutations: int
    ntps: Null
    explained: Null
    ceiling_heldout: Null | None = None
    fold_sums: np.ndarray | None = field(default=None, repr=False)

    def quantities(self) -> dict[str, Any]:
        """Return the null of each quantity as JSON values."""
        nulls = {"ntps": self.ntps, "explained": self.explained, "ceiling_heldout": self.ceiling_heldout}
        return {name: null.to_dict() for name, null in nulls.items() if null is not None}

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return {**picked(self, "layer", "k_u", "k_v", "permutations"), **self.quantities()}


def layer_null(
    solved: Solved, k_u: int, k_v: int, permutations: int, *, groups: np.ndarray | None = None, seed: int = 0
) -> LayerNull:
    """Score shuffled labels at one layer.

    V, M and the label frequencies stay; X is computed for all permutations at once. Whitened first (A = W^T X, r x c),
    the perception encoder of a permutation needs only the c x c Gram of A: with A^T A = E diag(lambda) E^T,
    U = W A E lambda^(-1/2), so ||P U||^2 and ||U||^2 are traces of c x c matrices.

    Args:
        solved: From `ntps.core.solve_layer`; states float16 or wider.
        k_u: Perception rank.
        k_v: Next-token rank.
        permutations: At least 1; the smallest p-value is 1 / (permutations + 1).
        groups: (n,) equal numbers for equal texts, which are given one label.
        seed: Seed of the permutations; all layers see the same ones.
    """
    orders = torch.from_numpy(shuffled_orders(len(solved.targets), permutations, groups=groups, seed=seed))
    ntps, explained = _layer_values(solved, orders, k_u, k_v)
    fold_sums = held_out = None
    if solved.fold_of is not None:
        fold_sums = shuffled_errors(
            solved.states, solved.fold_of, solved.targets, orders, separate=solved.separate
        ).numpy()
        held_out = against_null(r2_of_sums(fold_sums))
    return LayerNull(
        layer=solved.layer,
        k_u=k_u,
        k_v=k_v,
        permutations=permutations,
        ntps=against_null(ntps),
        explained=against_null(explained),
        ceiling_heldout=held_out,
        fold_sums=fold_sums,
    )


def shuffled_orders(n: int, count: int, *, groups: np.ndarray | None = None, seed: int = 0) -> np.ndarray:
    """Return (count + 1, n) numbers of the texts whose labels the texts get: the first row their own, then shuffled.

    What is exchangeable are different texts: a repeat follows the first of its kind.
    """
    rng = np.random.default_rng(seed)
    own = np.arange(n)
    _, first, group = np.unique(own if groups is None else groups, return_index=True, return_inverse=True)
    shuffled = rng.permuted(np.broadcast_to(first, (count, len(first))), axis=1)
    return np.vstack([own[None], shuffled[:, group]])


def r2_of_sums(fold_sums: np.ndarray) -> np.ndarray:
    """Return held-out R^2 (B + 1,) from summed errors and baseline errors of folds (B + 1, folds, 2)."""
    errors, baseline = fold_sums.sum(1).T
    return np.where(baseline > 0, 1 - errors / np.where(baseline > 0, baseline, 1), math.nan)


def choice_p(nulls: Sequence[LayerNull]) -> float:
    """Return the p-value of the held-out R^2 of a layer that is chosen, in each fold, by the errors on the others.

    The choice is repeated for every shuffle of the labels, which all layers share, so it flatters shuffled labels as
    much as the true ones. `choose_layer` goes by leave-one-out errors, which for every shuffle would cost several times
    as much.
    """
    sums = np.stack([null.fold_sums for null in nulls if null.fold_sums is not None])  # (layers, B + 1, folds, 2)
    errors = sums[..., 0]
    chosen = (errors.sum(2, keepdims=True) - errors).argmin(0)[None]
    picked = np.take_along_axis(errors, chosen, 0)[0]
    return against_null(r2_of_sums(np.stack([picked, sums[0, ..., 1]], axis=-1))).p_value


def against_null(values: np.ndarray | Sequence[float]) -> Null:
    """Return the null of the first value, whose permuted values are the others."""
    values = np.asarray(values, dtype=float)
    observed, null = float(values[0]), values[1:]
    if not np.isfinite(values).all():
        nan = math.nan
        return Null(observed=observed, mean=nan, std=nan, z=nan, p_value=nan, quantiles=(nan, nan, nan), values=null)
    spread = float(null.std(ddof=1)) if len(null) > 1 else math.nan
    mean = float(null.mean())
    low, middle, high = (float(q) for q in np.quantile(null, (0.05, 0.5, 0.95)))
    return Null(
        observed=observed,
        mean=mean,
        std=spread,
        z=(observed - mean) / spread if spread > TIE * max(abs(mean), abs(observed)) else math.nan,
        p_value=permutation_p(observed, null),
        quantiles=(low, middle, high),
        values=null,
    )


@one_thread_if_narrow
def _layer_values(solved: Solved, orders: Tensor, k_u: int, k_v: int) -> tuple[np.ndarray, np.ndarray]:
    """Return NTPS and explained share (B + 1,) of the targets in each of `orders`."""
    n, c = solved.targets.shape
    x = solved.states.double()
    shifted = x - solved.pooled.mean_x
    M, V = solved.U.whitening, solved.V.vectors[:, :k_v]
    perception = (shifted if solved.center else x) @ M.whiten  # (n, r)
    inside = shifted @ solved.centered.whiten @ nested_basis(solved.centered.half @ V)  # (n, k_v)
    basis = nested_basis(V)
    variance = float(solved.pooled.centered().yy.trace())
    step = max(1, _BLOCK // (c * max(n, solved.d)))
    ntps, explained = [], []
    for start in range(0, len(orders), step):
        block = orders[start : start + step]
        y = solved.targets[block.T].reshape(n, -1) / n  # (n, B c)
        centered_y = y - y.mean(0)
        explained.append((inside.T @ centered_y).square().reshape(k_v, len(block), c).sum((0, 2)) / variance)
        whitened = perception.T @ (centered_y if solved.center else y)
        ntps.append(_ntps(whitened, M.whiten, basis, c, k_u))
    return torch.cat(ntps).numpy(), torch.cat(explained).clamp(0.0, 1.0).numpy()


def _ntps(A: Tensor, whiten: Tensor, basis: Tensor, c: int, k_u: int) -> Tensor:
    """Return NTPS (B,) from whitened cross moments A (r, B c), with the first k_u directions of each."""
    if k_u == 0 or not basis.numel():
        return torch.full((A.shape[1] // c,), math.nan, dtype=A.dtype)
    plain = whiten @ A
    grams = []
    for matrix in (A, plain, basis.T @ plain):
        stacked = matrix.reshape(matrix.shape[0], -1, c).permute(1, 2, 0)  # (B, c, rows)
        grams.append(stacked @ stacked.transpose(1, 2))
    eigenvalues, vectors = torch.linalg.eigh(grams[0])
    eigenvalues, vectors = eigenvalues[:, -k_u:], vectors[:, :, -k_u:]
    keep = eigenvalues > 1e-12 * eigenvalues[:, -1:]
    weights = torch.where(keep, 1 / torch.where(keep, eigenvalues, 1.0), 0.0)
    lengths, inside = (((gram @ vectors) * vectors).sum(1).mul(weights).sum(1) for gram in grams[1:])
    return (inside / lengths).clamp(0.0, 1.0)
