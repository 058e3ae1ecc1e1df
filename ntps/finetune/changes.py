"""What fine-tuning changed: the two subspaces of a layer, and the top singular vectors of the weight matrices.

U (the directions that labels need) and V (those that next-token prediction needs) have the same coordinates before and
after: the channels of the model. A channel's scale may have changed too, which matters to the score and not to the
explained share. With s the root mean square of each pooled channel, U = diag(s)^-1 U' and V = diag(s)^-1 V', where U'
and V' are directions in units of each channel's own scale. The score is then a function f(U', V', s) of three things,
each of which exists before (0) and after (1). The parts of its change, averaged over the two orders (scale last, scale
first), are:

    u      = mean over s of  f(U'1, V'0, s) - f(U'0, V'0, s)            the labels' directions alone
    v      = mean over s of  f(U'0, V'1, s) - f(U'0, V'0, s)            next-token directions alone
    both   = mean over s of  what changing the two together adds to u + v
    scale  = mean over (U'0, V'0) and (U'1, V'1) of  f(., ., s1) - f(., ., s0)

and u + v + both + scale = f(U'1, V'1, s1) - f(U'0, V'0, s0), exactly: a Shapley value of the scale against the rest.

Intruder dimensions are singular vectors of a tuned weight matrix that the original matrix does not have: low-rank
fine-tuning tends to put new directions, nearly orthogonal to all old ones, at the top of a matrix's spectrum, whereas
full fine-tuning turns the old ones a little. Source: Shuttleworth, Andreas, Torralba, Sharma, *LoRA vs Full
Fine-tuning: An Illusion of Equivalence*, arXiv 2410.21228 (2024), Algorithm 1.
"""

import math
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from ntps._files import jsonable
from ntps.core.encoders import POOLED_RTOL, whitening
from ntps.core.heldout import VARIANCE_RTOL, held_out_explained
from ntps.core.moments import LayerMoments, Moments
from ntps.core.solve import LayerSolution, default_ranks, explained_curve, ntps_table, solve_layer
from ntps.errors import NtpsError, in_range
from ntps.finetune.adapters import linear_modules


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


@dataclass(frozen=True, kw_only=True)
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


@dataclass(frozen=True, kw_only=True)
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
    return Parts(before=f[0, 0, 0], after=f[1, 1, 1], u=u, v=v, both=together - u - v, scale=scale)


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


@dataclass(frozen=True, kw_only=True)
class Intruders:
    """The intruder dimensions of one weight matrix.

    Attributes:
        module: Name of the module.
        block: Number of its block, or `None` outside blocks.
        k: Number of top singular vectors of the tuned matrix that were examined.
        count: Number of intruders among them, in [0, k].
        ranks: Positions of the intruders in the tuned spectrum; 0 is the largest singular value.
        cosines: (k,) largest |cosine| of each vector with any singular vector of the original matrix, in [0, 1].
        relative_change: ||W' - W||_F / ||W||_F.
    """

    module: str
    block: int | None
    k: int
    count: int
    ranks: tuple[int, ...]
    cosines: tuple[float, ...]
    relative_change: float

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values; numbers that are not finite become `None`."""
        return jsonable(asdict(self))


def intruder_dimensions(
    before: Tensor, after: Tensor, *, k: int = 10, epsilon: float = 0.6
) -> tuple[list[int], Tensor]:
    """Return which of the tuned matrix's top left singular vectors are new, and how close each is to an old one.

    Computed in float64. The vectors of two equal singular values are not determined: a tiny change may turn them
    freely in their plane, which can look like an intruder.

    Args:
        before: (m, n) original weights.
        after: (m, n) tuned weights.
        k: Number of top singular vectors to examine, at least 1; never more than min(m, n).
        epsilon: A vector is an intruder if its largest |cosine| with the original ones is below this, in (0, 1].

    Returns:
        Positions of the intruders, from 0, and the (k,) largest |cosines|.

    Raises:
        NtpsError: If shapes differ, a weight is not finite, or an option is out of range.
    """
    in_range(k, 1, None, "k")
    if isinstance(epsilon, bool) or not 0 < epsilon <= 1:
        raise NtpsError(f"epsilon is {epsilon!r}; it must lie above 0 and be at most 1.")
    if before.ndim != 2 or before.shape != after.shape:
        raise NtpsError(
            f"the weights have shapes {tuple(before.shape)} and {tuple(after.shape)}; both must be the same (m, n)."
        )
    old, new = before.detach().to(torch.float64), after.detach().to(torch.float64)
    if not torch.isfinite(old).all() or not torch.isfinite(new).all():
        raise NtpsError("a weight is not finite; singular vectors need finite matrices.")
    original = torch.linalg.svd(old, full_matrices=False)[0]
    top = torch.linalg.svd(new, full_matrices=False)[0][:, :k]
    cosines = (original.T @ top).abs().amax(0).clamp(0.0, 1.0)
    return torch.nonzero(cosines < epsilon).flatten().tolist(), cosines.cpu()


def find_intruders(before: Any, after: Any, *, k: int = 10, epsilon: float = 0.6) -> tuple[Intruders, ...]:
    """Look for intruder dimensions in every linear map of a network, after LoRA (merged) or full fine-tuning.

    It costs two singular value decompositions per matrix that has changed.

    Args:
        before: The original network.
        after: The tuned network, adapters merged.
        k: Number of top singular vectors to examine per matrix, at least 1.
        epsilon: Threshold of the cosine, as in `intruder_dimensions`.

    Raises:
        NtpsError: If a linear map of one network is missing, or of another shape, in the other.
    """
    tuned, rows = linear_modules(after), []
    for name, module in linear_modules(before).items():
        if name not in tuned:
            raise NtpsError(f"module {name!r} is not in the tuned network; merge its adapters into it first.")
        old, new = _matrix(module), _matrix(tuned[name])
        if old.shape == new.shape and torch.equal(old, new):
            ranks: list[int] = []
            cosines, change = torch.ones(min(k, *old.shape)), 0.0
        else:
            ranks, cosines = intruder_dimensions(old, new, k=k, epsilon=epsilon)
            size = float(old.double().norm())
            change = float((new.double() - old.double()).norm()) / size if size else float("inf")
        block = re.search(r"\.(\d+)\.", f".{name}.")
        row = Intruders(
            module=name,
            block=int(block[1]) if block else None,
            k=len(cosines),
            count=len(ranks),
            ranks=tuple(ranks),
            cosines=tuple(cosines.tolist()),
            relative_change=change,
        )
        rows.append(row)
    return tuple(rows)


def _matrix(module: Any) -> Tensor:
    """Return a linear map's weights as (out, in); GPT-2's `Conv1D` keeps the transpose."""
    weight = module.weight.detach()
    return weight.T if type(module).__name__ == "Conv1D" else weight
