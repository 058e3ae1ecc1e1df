"""What fine-tuning did to the two subspaces: angles between before and after, and which part of a change is whose.

U (what the labels want) and V (what next-token prediction wants) live in the same coordinates, the model's width,
before and after. A channel may also have become louder or quieter, which the score knows and the explained share does
not. With s the root mean square of each pooled channel, U = diag(s)^-1 U', V = diag(s)^-1 V': U' and V' are directions
in units of each channel's own scale. The score is then a function of three things, f(U', V', s), and of each there is
one before (0) and one after (1). The parts of the change are, averaged over the two orders (scale last, scale first):

    u      = mean over s of  f(U'1, V'0, s) - f(U'0, V'0, s)            the labels' directions alone
    v      = mean over s of  f(U'0, V'1, s) - f(U'0, V'0, s)            next-token directions alone
    both   = mean over s of  what changing the two together adds to u + v
    scale  = mean over (U'0, V'0) and (U'1, V'1) of  f(., ., s1) - f(., ., s0)

and u + v + both + scale = f(U'1, V'1, s1) - f(U'0, V'0, s0), exactly: a Shapley value of the scale against the rest.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ntps._files import jsonable
from ntps.core.encoders import POOLED_RTOL, whitening
from ntps.core.heldout import VARIANCE_RTOL, held_out_explained
from ntps.core.moments import LayerMoments, Moments
from ntps.core.solve import LayerSolution, default_ranks, explained_curve, ntps_table, solve_layer
from ntps.errors import NtpsError


def principal_angles(first: Tensor, second: Tensor) -> Tensor:
    """Return the principal angles between two column spaces.

    With Q1, Q2 orthonormal bases, cosines are the singular values of Q1^T Q2; small angles, whose cosine has lost them
    in rounding, come from the sines, the singular values of (I - Q1 Q1^T) Q2 (Bjorck and Golub, Math. Comp. 27, 1973).

    Args:
        first: (d, a), of any column scale; dependent columns count once.
        second: (d, b).

    Returns:
        (min(rank a, rank b),) float64 radians in [0, pi/2], ascending.

    Raises:
        NtpsError: If the heights differ or an entry is not finite.
    """
    if first.ndim != 2 or second.ndim != 2 or first.shape[0] != second.shape[0]:
        shapes = f"{tuple(first.shape)} and {tuple(second.shape)}"
        raise NtpsError(f"the subspaces have shapes {shapes}; both must be (d, k) with the same d.")
    a, b = _orthonormal(first), _orthonormal(second)
    if a.shape[1] < b.shape[1]:
        a, b = b, a  # the smaller one against the larger: then no sine belongs to a direction that has no partner
    cosines = torch.linalg.svdvals(a.T @ b).clamp(0.0, 1.0)
    sines = torch.linalg.svdvals(b - a @ (a.T @ b)).clamp(0.0, 1.0).flip(0)
    return torch.where(cosines.square() > 0.5, torch.asin(sines), torch.acos(cosines))


@dataclass(frozen=True)
class Parts:
    """A change and its four parts, which add up to it; see the module's page.

    Attributes:
        before: The value before.
        after: The value after.
        u: Part of the labels' directions (for the explained share: of pooled features and labels).
        v: Part of the next-token directions.
        both: What changing the two together adds.
        scale: Part of the channels' scale.
    """

    before: float
    after: float
    u: float
    v: float
    both: float
    scale: float

    @property
    def change(self) -> float:
        """After minus before."""
        return self.after - self.before


@dataclass(frozen=True)
class LayerChange:
    """What changed at one layer.

    Attributes:
        layer: Its number.
        k_u: Perception rank at which U is compared.
        k_v: Next-token rank at which V is compared.
        angles_u: (k_u,) principal angles between span(U) before and after, radians in [0, pi/2], ascending.
        angles_v: (k_v,) the same for span(V).
        ntps: The change of NTPS at these ranks.
        explained: The change of the share of label variance explained through V's first k_v directions.
        held_out: Whether `explained` was judged on held-out folds.
    """

    layer: int
    k_u: int
    k_v: int
    angles_u: tuple[float, ...]
    angles_v: tuple[float, ...]
    ntps: Parts
    explained: Parts
    held_out: bool

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values; numbers that are not finite become `None`."""
        parts = {name: {**vars(part), "change": part.change} for name, part in
                 (("ntps", self.ntps), ("explained", self.explained))}  # fmt: skip
        return jsonable({**vars(self), **parts})


def split_change(value: Callable[[int, int, int], float]) -> Parts:
    """Split the change of f(U', V', s) into its four parts.

    Args:
        value: f at (u, v, s), each 0 for before and 1 for after.
    """
    f = {(u, v, s): value(u, v, s) for u in (0, 1) for v in (0, 1) for s in (0, 1)}
    u = sum(f[1, 0, s] - f[0, 0, s] for s in (0, 1)) / 2
    v = sum(f[0, 1, s] - f[0, 0, s] for s in (0, 1)) / 2
    together = sum(f[1, 1, s] - f[0, 0, s] for s in (0, 1)) / 2
    scale = (f[1, 1, 1] - f[1, 1, 0] + f[0, 0, 1] - f[0, 0, 0]) / 2
    return Parts(f[0, 0, 0], f[1, 1, 1], u, v, together - u - v, scale)


def layer_change(before: Moments, after: Moments, layer: int, *, center: bool = False) -> LayerChange:
    """Compare one layer before and after fine-tuning, on the same texts.

    The explained share is judged on held-out folds where both moments have folds. There "u" is the label side as a
    whole, M and X, and the scale has no part: a readout undoes it (up to its ridge).

    Args:
        before: Moments of the model as it was.
        after: Moments of the tuned model on the same texts.
        layer: Layer number.
        center: As in `ntps.score`.

    Raises:
        NtpsError: If the layer is missing, widths or classes differ, or the moments cannot be solved.
    """
    for what, first, second in (("width", before.width, after.width), ("classes", before.n_targets, after.n_targets)):
        if first != second:
            raise NtpsError(f"{what} is {first} before and {second} after; the two must be of one model and task.")
    views = before.layer(layer), after.layer(layer)
    solved = [solve_layer(view, center=center) for view in views]
    k_u, k_v = _shared_ranks(solved)
    U, V = [s.U.vectors[:, :k_u] for s in solved], [s.V.vectors[:, :k_v] for s in solved]
    scales = [_channel_scale(view.M) for view in views]
    held_out = before.n_folds >= 2 and after.n_folds >= 2

    def score_of(u: int, v: int, s: int) -> float:
        if not k_u or not k_v:
            return math.nan
        left, right = ((part / scales[s][:, None]) for part in (scales[u][:, None] * U[u], scales[v][:, None] * V[v]))
        return float(ntps_table(left, right)[-1, -1])

    shares: dict[tuple[int, int], float] = {}
    for u, moments in enumerate((before, after)):
        for v in (0, 1):
            moved = V[v] if u == v else V[v] * (scales[v] / scales[u])[:, None]  # the same directions, in u's channels
            if held_out and k_v:
                shares[u, v] = held_out_explained(moments, layer, moved, [k_v]).explained[0]
            else:
                shares[u, v] = _explained(views[u], moved) if k_v else 0.0
    return LayerChange(
        layer=layer,
        k_u=k_u,
        k_v=k_v,
        angles_u=tuple(principal_angles(*U).tolist()),
        angles_v=tuple(principal_angles(*V).tolist()),
        ntps=split_change(score_of),
        explained=split_change(lambda u, v, s: shares[u, v]),
        held_out=held_out,
    )


def _shared_ranks(solved: list[LayerSolution]) -> tuple[int, int]:
    """Return the default ranks that both solutions have."""
    ranks = [default_ranks(s.U.rank, s.V.vectors.shape[1], s.d) for s in solved]
    return min(k for k, _ in ranks), min(k for _, k in ranks)


def _channel_scale(M: Tensor) -> Tensor:
    """Return the root mean square (d,) of each pooled channel; 1 for a channel that is always zero."""
    squares = M.diagonal().clamp_min(0.0)
    return torch.where(squares > 0, squares.sqrt(), 1.0)


def _explained(view: LayerMoments, V: Tensor) -> float:
    """Return the share of label variance explained through V, in sample, as `solve_layer` computes it."""
    middle = view.centered()
    variance = float(middle.yy.trace())
    if variance <= VARIANCE_RTOL * float(view.yy.trace()):
        return 0.0
    largest = float(torch.linalg.eigvalsh(view.M)[-1])
    centred = whitening(middle.M, rtol=POOLED_RTOL, max_rank=max(view.n - 1, 0), scale=largest)
    return min(max(float(explained_curve(centred, middle.X, V)[-1]) / variance, 0.0), 1.0)


def _orthonormal(columns: Tensor) -> Tensor:
    """Return an orthonormal basis of the column space, whatever the columns' lengths."""
    columns = columns.to(torch.float64)
    if not torch.isfinite(columns).all():
        raise NtpsError("a subspace holds a number that is not finite; collect the moments again.")
    lengths = columns.norm(dim=0)
    left, singular, _ = torch.linalg.svd(columns / torch.where(lengths > 0, lengths, 1.0), full_matrices=False)
    size = max(columns.shape) * torch.finfo(torch.float64).eps
    return left[:, singular > size * singular.max()] if len(singular) else left
