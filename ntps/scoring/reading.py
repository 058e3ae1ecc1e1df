"""Read the score at one pair of ranks off a solved layer."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ntps.core import HeldOut, Solved, loss_bounds
from ntps.errors import NtpsError
from ntps.scoring.readouts import Readout
from ntps.scoring.results import LayerScore


def default_ranks(rank_u: int, rank_v: int, d: int) -> tuple[int, int]:
    """Return the default (k_u, k_v): the rank of X, and max(k_u, round(d / 8)), at most the rank of V."""
    return rank_u, min(max(rank_u, round(d / 8), 1), rank_v)


def ranks_at(shares: Sequence[float], solved: Solved) -> list[int]:
    """Return the number of next-token directions at each share of the width, at least 1 and at most the rank of V."""
    return [min(max(1, round(share * solved.d)), solved.V.rank) for share in shares] if solved.V.rank else []


def chosen_ranks(solved: Solved, k_u: int | None, k_v: int | None) -> tuple[int, int]:
    """Return (k_u, k_v), by default those of `default_ranks`.

    Raises:
        NtpsError: If one is out of range; the message gives the range.
    """
    default_u, default_v = default_ranks(solved.U.rank, solved.V.rank, solved.d)
    ranks = (default_u if k_u is None else k_u, default_v if k_v is None else k_v)
    largest = (solved.U.vectors.shape[1], solved.V.vectors.shape[1])
    for name, value, most in zip(("k_u", "k_v"), ranks, largest, strict=True):
        if not (1 <= value <= most or value == most == 0):
            raise NtpsError(f"{name} is {value}; layer {solved.layer} has ranks 1 to {most}.")
    return ranks


def curve_ranks(rank_v: int, k_v: int) -> list[int]:
    """Return 1, 2, 4, ..., rank_v and k_v, in order; an empty list without directions."""
    if rank_v == 0:
        return []
    powers = {2**power for power in range(rank_v.bit_length()) if 2**power <= rank_v}
    return sorted(powers | {k_v, rank_v})


def read_layer(
    solved: Solved,
    *,
    k_u: int | None = None,
    k_v: int | None = None,
    held_out: HeldOut | None = None,
    readouts: Mapping[str, Readout] | None = None,
    classes: bool = True,
) -> LayerScore:
    """Read one pair of ranks off a layer's solution.

    Args:
        solved: From `ntps.core.solve_layer`.
        k_u: Perception rank; the rank of X by default.
        k_v: Next-token rank; max(k_u, round(d / 8)) by default.
        held_out: Held-out values at `k_v` and at the ranks of the curve, at least.
        readouts: From `readouts_of`, with `held_out`.
        classes: Whether targets are one-hot classes: others have no accuracy.

    Raises:
        NtpsError: If a rank is out of range.
    """
    k_u, k_v = chosen_ranks(solved, k_u, k_v)
    U, M = solved.U, solved.U.whitening
    ntps, whitened = solved.ntps_at(k_u, k_v), solved.whitened_ntps_at(k_u, k_v)
    lengths = float(U.vectors[:, :k_u].square().sum())
    raw = loss_bounds(U.eigenvalues, k_u, k_v, missing=lengths * (1 - ntps), smallest=M.smallest, largest=M.largest)
    tight = loss_bounds(U.eigenvalues, k_u, k_v, missing=k_u * (1 - whitened))
    ranks = curve_ranks(solved.V.rank, k_v)
    curve: dict[str, list[Any]] = {
        "k_v": ranks,
        "ntps": [solved.ntps_at(k_u, k) for k in ranks],
        "excess_loss": [solved.excess_at(k_u, k) for k in ranks],
        "explained": [solved.r2_at(k) for k in ranks],
    }
    held_out_values: dict[str, Any] = {}
    if held_out is not None and readouts is not None:
        curve["explained_heldout"] = [held_out.at(k) for k in ranks]
        through_v, through_all = readouts["v"], readouts["all"]
        intervals = {"ceiling_heldout": through_all.to_dict()}
        if k_v:
            intervals["explained_heldout"] = through_v.to_dict()
        above = through_all.interval()[0] > 0
        held_out_values = {
            "explained_heldout": through_v.r2,
            "ceiling_heldout": through_all.r2,
            "retained_heldout": through_v.r2 / through_all.r2 if above else math.nan,
            "interval": intervals,
        }
        if classes:
            right = held_out.predicted == solved.targets.argmax(1)
            held_out_values["accuracy_heldout"] = float(right.double().mean())
    return LayerScore(
        layer=solved.layer,
        d=solved.d,
        rank_m=M.rank,
        rank_u=U.rank,
        rank_v=solved.V.rank,
        k_u=k_u,
        k_v=k_v,
        ntps=ntps,
        chance=k_v / solved.d,
        ntps_whitened=whitened,
        excess_loss=solved.excess_at(k_u, k_v),
        bounds={"raw": raw, "whitened": tight},
        explained=solved.r2_at(k_v),
        ceiling=solved.ceiling,
        retained=solved.retained_at(k_v),
        curve=curve,
        **held_out_values,
    )


def readouts_of(held_out: HeldOut, layer: int, k_v: int, groups: np.ndarray, origin: str) -> dict[str, Readout]:
    """Return the readouts `"all"` (all directions) and `"v"` (the first k_v next-token directions) of a layer."""
    through_all = Readout(
        name=f"layer {layer}",
        errors=held_out.ceiling_errors.numpy(),
        baseline=held_out.baseline.numpy(),
        groups=groups,
        origin=origin,
        loo_errors=held_out.loo_errors,
    )
    errors = held_out.errors_at(k_v).numpy()
    through_v = replace(through_all, name=f"layer {layer} through V", errors=errors, loo_errors=None)
    return {"all": through_all, "v": through_v}
