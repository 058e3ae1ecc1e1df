"""NTPS for all ranks, what it implies for the loss, exactly and as bounds, and the share that survives.

With U the perception encoder and V the next-token encoder, P the orthogonal projector on the first k_V columns of V:

    NTPS(k_U, k_V) = ||P U||_F^2 / ||U||_F^2                                   (the paper's Definition of the score)

and, with lambda_i the perception eigenvalues and Explained(V_k) = tr((V^T M V)^-1 V^T X X^T V),

    excess loss = sum_{i <= k_U} lambda_i - Explained(V_{k_V})                 (exact)

between bounds proportional to 1 - NTPS (the paper's Theorem 2, with its constants written out; see `loss_bounds`).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ntps.core.encoders import (
    POOLED_RTOL,
    Encoder,
    Whitening,
    layer_autoregressive_encoder,
    nested_basis,
    solve_encoder,
    whitening,
)
from ntps.core.heldout import VARIANCE_RTOL, HeldOut, held_out_explained
from ntps.core.moments import LayerMoments, Moments
from ntps.core.official import FRACTIONS, official_curve
from ntps.errors import NtpsError, one_of
from ntps.scoring.results import LayerScore, ScoreResult

CONVENTIONS = ("theory", "official")


def ntps_table(U: Tensor, V: Tensor) -> Tensor:
    """Return NTPS for every pair of ranks at once.

    One thin QR of V gives an orthonormal basis of span(V[:, :k]) for every k; the two-way cumulative sum of
    (Q^T U)^2, divided by the cumulative squared lengths of U's columns, is the score of every pair.

    Args:
        U: (d, a) perception directions, best first.
        V: (d, b) next-token directions, best first.

    Returns:
        (b, a): entry [j, i] is NTPS(k_U = i + 1, k_V = j + 1), in [0, 1], non-decreasing in j.

    Raises:
        NtpsError: If the heights differ.
    """
    if U.ndim != 2 or V.ndim != 2 or U.shape[0] != V.shape[0]:
        raise NtpsError(f"U has shape {tuple(U.shape)} and V {tuple(V.shape)}; both must be (d, k) with the same d.")
    U, V = U.to(torch.float64), V.to(torch.float64)
    inside = (nested_basis(V).T @ U).square().cumsum(0).cumsum(1)
    lengths = U.square().sum(0).cumsum(0)
    return (inside / lengths).clamp(0.0, 1.0)


def explained_curve(M: Whitening, X: Tensor, V: Tensor) -> Tensor:
    """Return Explained(V_k) = tr((V^T M V)^-1 V^T X X^T V) for k = 1, ..., b.

    What the best linear readout of the first k directions takes off the squared error: whitened by M, the share of
    M^(-1/2) X that lies in M^(1/2) V_k.

    Args:
        M: The decomposed Gram of pooled states.
        X: (d, c) cross moment.
        V: (d, b) directions.

    Returns:
        (b,) float64, non-decreasing.
    """
    basis = nested_basis(M.half @ V)
    return (basis.T @ (M.whiten.T @ X)).square().sum(1).cumsum(0)


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


@dataclass(frozen=True, eq=False)
class LayerSolution:
    """Everything solved once for a layer, from which any pair of ranks is read.

    Attributes:
        U: Perception encoder (of the centred moments when `center`).
        V: Next-token encoder.
        table: (rank_v, columns of U) NTPS, see `ntps_table`.
        whitened_table: The same for M^(1/2) U and M^(1/2) V: NTPS~, which knows no condition number of M.
        explained: (rank_v,) Explained(V_k) in the moments of U.
        r2: (rank_v,) share of label variance explained through V_k by a readout with intercept, in [0, 1].
        ceiling: The same through all d directions.
    """

    layer: int
    d: int
    U: Encoder
    V: Encoder
    table: Tensor
    whitened_table: Tensor
    explained: Tensor
    r2: Tensor
    ceiling: float


def solve_layer(
    moments: LayerMoments, *, center: bool = False, rtol: float | None = None, complete: bool = False
) -> LayerSolution:
    """Solve both encoders of one layer and every quantity that depends on ranks.

    Args:
        moments: The layer's moments, whole (with C0 and C1).
        center: Solve U from centred moments: the mean direction, which explains the label frequencies, then is no u.
        rtol: Relative tolerance of both decompositions; by default what fits the accumulation dtype.
        complete: Keep arbitrary directions beyond rank(X) in U.

    Raises:
        NtpsError: If the view has no C0 and C1, no text has two tokens, or a moment is not finite.
    """
    pooled_rtol = POOLED_RTOL if rtol is None else rtol
    plain = whitening(moments.M, rtol=pooled_rtol, max_rank=moments.n)
    middle = moments.centered()
    centred = whitening(middle.M, rtol=pooled_rtol, max_rank=max(moments.n - 1, 0), scale=plain.largest)
    own, cross = (centred, middle.X) if center else (plain, moments.X)
    U = solve_encoder(own, cross, complete=complete)
    V = layer_autoregressive_encoder(moments, rtol=rtol)
    basis = nested_basis(own.half @ V.vectors)
    whitened = (basis.T @ U.coordinates).square().cumsum(0).cumsum(1)
    whitened = whitened / torch.arange(1, U.vectors.shape[1] + 1, device=whitened.device)
    variance = float(middle.yy.trace())
    explained = (basis.T @ (own.whiten.T @ cross)).square().sum(1).cumsum(0)
    centred_explained = explained if center else explained_curve(centred, middle.X, V.vectors)
    reachable = float((centred.whiten.T @ middle.X).square().sum())
    share = 1.0 / variance if variance > VARIANCE_RTOL * float(moments.yy.trace()) else 0.0
    return LayerSolution(
        layer=moments.layer,
        d=moments.d,
        U=U,
        V=V,
        table=ntps_table(U.vectors, V.vectors),
        whitened_table=whitened.clamp(0.0, 1.0),
        explained=explained,
        r2=(centred_explained * share).clamp(0.0, 1.0),
        ceiling=min(max(reachable * share, 0.0), 1.0),
    )


def default_ranks(rank_u: int, rank_v: int, d: int) -> tuple[int, int]:
    """Return the default (k_u, k_v): the rank of X, and max(k_u, round(d / 8)), within what exists."""
    return rank_u, min(max(rank_u, round(d / 8), 1), rank_v)


def _curve_ranks(rank_v: int, k_v: int) -> list[int]:
    """Return 1, 2, 4, ..., rank_v and k_v, in order; nothing when there is no direction."""
    if rank_v == 0:
        return []
    powers = {2**power for power in range(rank_v.bit_length()) if 2**power <= rank_v}
    return sorted(powers | {k_v, rank_v})


def read_layer(
    solution: LayerSolution,
    *,
    k_u: int | None = None,
    k_v: int | None = None,
    held_out: "tuple[Sequence[int], HeldOut] | None" = None,
    official: list[float] | None = None,
) -> LayerScore:
    """Read one pair of ranks off a layer's solution.

    Args:
        solution: From `solve_layer`.
        k_u: Perception rank; the rank of X by default.
        k_v: Next-token rank; max(k_u, round(d / 8)) by default.
        held_out: Ranks, at least k_v and the curve's, with their held-out values.
        official: The 19 scores of the released procedure, which then are the curve and, by their mean, the score.

    Raises:
        NtpsError: If a rank is out of range.
    """
    U, V = solution.U, solution.V
    rank_v = V.vectors.shape[1]
    default_u, default_v = default_ranks(U.rank, rank_v, solution.d)
    k_u, k_v = check_ranks(solution, default_u if k_u is None else k_u, default_v if k_v is None else k_v)
    defined = k_u > 0 and k_v > 0
    ntps = float(solution.table[k_v - 1, k_u - 1]) if defined else math.nan
    whitened = float(solution.whitened_table[k_v - 1, k_u - 1]) if defined else math.nan
    explained = float(solution.explained[k_v - 1]) if k_v else 0.0
    lengths = float(U.vectors[:, :k_u].square().sum())
    M = U.whitening
    raw = loss_bounds(U.eigenvalues, k_u, k_v, missing=lengths * (1 - ntps), smallest=M.smallest, largest=M.largest)
    tight = loss_bounds(U.eigenvalues, k_u, k_v, missing=k_u * (1 - whitened))
    r2 = float(solution.r2[k_v - 1]) if k_v else 0.0
    ranks = _curve_ranks(rank_v, k_v)
    total = float(U.eigenvalues[:k_u].sum())
    curve: dict[str, list[Any]] = {
        "k_v": ranks,
        "ntps": [float(solution.table[k - 1, k_u - 1]) if k_u else math.nan for k in ranks],
        "excess_loss": [_excess(total, float(solution.explained[k - 1]), k_u >= U.rank) for k in ranks],
        "explained": [float(solution.r2[k - 1]) for k in ranks],
    }
    heldout_at: dict[str, Any] = {}
    if held_out is not None:
        asked, found = list(held_out[0]), held_out[1]
        curve["explained_heldout"] = [found.explained[asked.index(k)] for k in ranks]
        heldout_at = {
            "explained_heldout": found.explained[asked.index(k_v)] if k_v else math.nan,
            "ceiling_heldout": found.ceiling,
            "interval": {"ceiling_heldout": found.interval()},
        }
        if k_v:
            heldout_at["interval"]["explained_heldout"] = found.interval(asked.index(k_v))
    chance = k_v / solution.d
    if official is not None:
        curve = {"fraction": list(FRACTIONS), "ntps": official}
        ntps, chance = sum(official) / len(official), sum(FRACTIONS) / len(FRACTIONS)
    return LayerScore(
        layer=solution.layer,
        d=solution.d,
        rank_m=U.whitening.rank,
        rank_u=U.rank,
        rank_v=rank_v,
        k_u=k_u,
        k_v=k_v,
        ntps=ntps,
        chance=chance,
        ntps_whitened=whitened,
        excess_loss=_excess(total, explained, k_u >= U.rank),
        bounds={"raw": raw, "whitened": tight},
        explained=r2,
        ceiling=solution.ceiling,
        retained=min(r2 / solution.ceiling, 1.0) if solution.ceiling > 0 else math.nan,
        curve=curve,
        **heldout_at,
    )


def _excess(total: float, explained: float, whole: bool) -> float:
    """Return total - explained; when U is whole it cannot be negative, and rounding must not make it so."""
    return max(total - explained, 0.0) if whole else total - explained


def check_ranks(solution: LayerSolution, k_u: int, k_v: int) -> tuple[int, int]:
    """Return the ranks if the layer has them.

    Raises:
        NtpsError: If one is below 1 or above what the layer has; the message gives the range.
    """
    for name, value, most in (("k_u", k_u, solution.U.vectors.shape[1]), ("k_v", k_v, solution.V.vectors.shape[1])):
        if not (1 <= value <= most or value == most == 0):
            raise NtpsError(f"{name} is {value}; layer {solution.layer} has ranks 1 to {most}.")
    return k_u, k_v


def score(
    moments: Moments,
    *,
    k_u: int | None = None,
    k_v: int | None = None,
    center: bool = False,
    convention: str = "theory",
    layers: Sequence[int] | None = None,
    rtol: float | None = None,
) -> ScoreResult:
    """Score every layer of a set of moments.

    Args:
        moments: From `ntps.collect_moments`.
        k_u: Perception rank; by default the rank of X, at most the number of classes. Beyond it the choice of
            directions is arbitrary.
        k_v: Next-token rank; by default max(k_u, round(d / 8)).
        center: Solve U and the excess loss from centred moments. Explained, ceiling and retained are always centred
            (a readout with an intercept).
        convention: `"theory"` (the paper's text), or `"official"`: the released code's procedure. The latter replaces
            `ntps`, `chance` and `curve`; the losses have one definition and stay.
        layers: Layer numbers; all by default.
        rtol: Relative tolerance of the decompositions.

    Returns:
        ScoreResult, frozen.

    Raises:
        NtpsError: If a rank or layer is out of range, the convention is unknown, or the moments cannot be solved.
    """
    one_of(convention, CONVENTIONS, "convention")
    if rtol is not None and not 0 < rtol < 1:
        raise NtpsError(f"rtol is {rtol}; it must lie between 0 and 1.")
    scored = []
    if layers is not None and len(layers) == 0:
        raise NtpsError("layers is empty; name at least one layer.")
    for layer in moments.layers if layers is None else layers:
        view = moments.layer(layer)
        if k_u is not None and not 1 <= k_u <= view.d:
            raise NtpsError(f"k_u is {k_u}; it must lie between 1 and the width, {view.d}.")
        solution = solve_layer(view, center=center, rtol=rtol)
        if k_u is not None and k_u > solution.U.rank:  # asked for: arbitrary directions beyond the rank of X
            solution = solve_layer(view, center=center, rtol=rtol, complete=True)
        official = official_curve(view) if convention == "official" else None
        held_out = None
        if moments.n_folds:
            _, default_v = default_ranks(solution.U.rank, solution.V.rank, solution.d)
            chosen = default_v if k_v is None else k_v
            ranks = _curve_ranks(solution.V.rank, chosen)
            check_ranks(solution, solution.U.vectors.shape[1], chosen)
            held_out = (ranks, held_out_explained(moments, layer, solution.V.vectors, ranks))
        scored.append(read_layer(solution, k_u=k_u, k_v=k_v, held_out=held_out, official=official))
    return ScoreResult(
        layers=tuple(scored),
        convention=convention,
        n_texts=moments.n_texts,
        n_tokens=moments.n_tokens,
        n_classes=moments.n_targets,
        settings={
            **moments.metadata.get("settings", {}),
            "prefix": moments.prefix,
            "folds": moments.n_folds,
            "center": center,
            "rtol": rtol,
        },
        metadata=dict(moments.metadata),
    )
