"""The changes that fine-tuning makes: in the two subspaces of a layer, and in the singular vectors of weights.

U (the directions that labels need) and V (those that next-token prediction needs) have the same coordinates before and
after: the model's channels. The scale of a channel may change too, which affects the score but not the explained share.
With s the root mean square of each pooled channel, U = diag(s)^-1 U' and V = diag(s)^-1 V', where U'
and V' are directions in units of each channel's own scale. The score is then a function f(U', V', s) of three things,
each of which exists before (0) and after (1). The parts of its change, averaged over the two orders (scale last, scale
first), are:

    u      = mean over s of  f(U'1, V'0, s) - f(U'0, V'0, s)            the labels' directions alone
    v      = mean over s of  f(U'0, V'1, s) - f(U'0, V'0, s)            next-token directions alone
    both   = mean over s of  what changing the two together adds to u + v
    scale  = mean over (U'0, V'0) and (U'1, V'1) of  f(., ., s1) - f(., ., s0)

and u + v + both + scale = f(U'1, V'1, s1) - f(U'0, V'0, s0), exactly: the Shapley values of the scale and the rest.

Intruder dimensions are singular vectors of a tuned weight matrix that the original matrix does not have: low-rank
fine-tuning tends to put new directions, nearly orthogonal to all old ones, at the top of a matrix's spectrum, whereas
full fine-tuning turns the old ones a little. Source: Shuttleworth, Andreas, Torralba, Sharma, *LoRA vs Full
Fine-tuning: An Illusion of Equivalence*, arXiv 2410.21228 (2024), Algorithm 1.
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from ntps._files import Record, jsonable
from ntps.core import Solved, explained_curve, held_out_errors, ntps_table, principal_angles
from ntps.errors import NtpsError, in_range
from ntps.finetune.adapters import linear_modules
from ntps.scoring.scores import ScoredLayer

TOP_VECTORS = 10  # singular vectors of a matrix that are examined


@dataclass(frozen=True, kw_only=True)
class Parts(Record):
    """A change and its four parts, which add up to it; see the module's docstring.

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

    def to_dict(self) -> dict[str, Any]:
        """Return the values and the change; numbers that are not finite become `None`."""
        return jsonable({**vars(self), "change": self.change})


@dataclass(frozen=True, kw_only=True)
class LayerChange(Record):
    """What changed at one layer.

    Attributes:
        layer: Layer number.
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


def split_change(value: Callable[[int, int, int], float]) -> Parts:
    """Split the change of f(U', V', s) into its four parts.

    Args:
        value: Function f of u, v and s, each 0 for before or 1 for after.
    """
    f = {(u, v, s): value(u, v, s) for u in (0, 1) for v in (0, 1) for s in (0, 1)}
    u = sum(f[1, 0, s] - f[0, 0, s] for s in (0, 1)) / 2
    v = sum(f[0, 1, s] - f[0, 0, s] for s in (0, 1)) / 2
    together = sum(f[1, 1, s] - f[0, 0, s] for s in (0, 1)) / 2
    scale = (f[1, 1, 1] - f[1, 1, 0] + f[0, 0, 1] - f[0, 0, 0]) / 2
    return Parts(before=f[0, 0, 0], after=f[1, 1, 1], u=u, v=v, both=together - u - v, scale=scale)


def layer_change(before: ScoredLayer, after: ScoredLayer) -> LayerChange:
    """Compare one layer before and after fine-tuning, on the same texts, at the smaller ranks of the two scores.

    The explained share is judged on held-out folds if both sides have folds. Then "u" is the label side as a whole, M
    and X, and the scale contributes nothing: a readout undoes it (up to its ridge).

    Args:
        before: The layer of the original model, from `ntps.scoring.score_layers`.
        after: The same layer of the tuned model on the same texts.

    Raises:
        NtpsError: If widths or numbers of classes differ.
    """
    sides = before, after
    solved = before.solved, after.solved
    for what, axis in (("width", 0), ("number of classes", 1)):
        sizes = [side.pooled.X.shape[axis] for side in solved]
        if sizes[0] != sizes[1]:
            raise NtpsError(
                f"the {what} is {sizes[0]} before and {sizes[1]} after; both must be of one model and task."
            )
    k_u, k_v = (min(getattr(side.score, name) for side in sides) for name in ("k_u", "k_v"))
    U, V = [side.U.vectors[:, :k_u] for side in solved], [side.V.vectors[:, :k_v] for side in solved]
    scales = [_channel_scale(side.pooled.M) for side in solved]
    held_out = before.held_out is not None and after.held_out is not None

    def ntps(u: int, v: int, s: int) -> float:
        if not k_u or not k_v:
            return math.nan
        rescaled_U, rescaled_V = (scales[u] / scales[s])[:, None] * U[u], (scales[v] / scales[s])[:, None] * V[v]
        return float(ntps_table(rescaled_U, rescaled_V)[-1, -1])

    def share(u: int, v: int) -> float:
        if not k_v:
            return 0.0
        if u == v:
            return _own_share(sides[u], k_v, held_out)
        moved = (scales[v] / scales[u])[:, None] * V[v]  # the other side's directions, in this side's channels
        if held_out:
            return held_out_errors(
                solved[u].states, solved[u].targets, cast(Tensor, solved[u].fold_of), moved, [k_v]
            ).at(k_v)
        return _share_through(solved[u], moved)

    shares = {(u, v): share(u, v) for u in (0, 1) for v in (0, 1)}
    return LayerChange(
        layer=before.solved.layer,
        k_u=k_u,
        k_v=k_v,
        angles_u=tuple(principal_angles(*U).tolist()),
        angles_v=tuple(principal_angles(*V).tolist()),
        ntps=split_change(ntps),
        explained=split_change(lambda u, v, s: shares[u, v]),
        held_out=held_out,
    )


def _own_share(side: ScoredLayer, k_v: int, held_out: bool) -> float:
    """Return the share of label variance explained through the layer's own first k_v directions."""
    if not held_out or side.held_out is None:
        return side.solved.r2_at(k_v)
    values = side.held_out if k_v in side.held_out.ks else side.solved.held_out([k_v])
    return values.at(k_v)


def _share_through(solved: Solved, V: Tensor) -> float:
    """Return the share of label variance explained, in sample, through directions V (d, k) that are not the layer's."""
    moments = solved.pooled.centered()
    if solved.ceiling == 0:  # nothing can be explained, or there is no variance
        return 0.0
    return min(float(explained_curve(solved.centered, moments.X, V)[-1] / moments.yy.trace()), 1.0)


def _channel_scale(M: Tensor) -> Tensor:
    """Return the root mean square (d,) of each pooled channel; 1 for a channel that is always zero."""
    squares = M.diagonal().clamp_min(0.0)
    return torch.where(squares > 0, squares.sqrt(), 1.0)


@dataclass(frozen=True, kw_only=True)
class Intruders(Record):
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


def intruder_dimensions(
    before: Tensor, after: Tensor, *, k: int = TOP_VECTORS, epsilon: float = 0.6
) -> tuple[list[int], Tensor]:
    """Return which of the tuned matrix's top left singular vectors are new, and how close each is to an old one.

    They are computed in float64. The vectors of two equal singular values are not determined: a tiny change may turn
    them freely in their plane, which can look like an intruder.

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


def find_intruders(before: Any, after: Any) -> tuple[Intruders, ...]:
    """Return the intruder dimensions of every linear map of a network, after LoRA (merged) or full fine-tuning.

    This costs two singular value decompositions per matrix that has changed.

    Args:
        before: The original network.
        after: The tuned network, adapters merged.

    Raises:
        NtpsError: If a linear map is missing, or has another shape, in the tuned network.
    """
    tuned, rows = linear_modules(after), []
    for name, module in linear_modules(before).items():
        if name not in tuned:
            raise NtpsError(f"module {name!r} is not in the tuned network; merge its adapters into it first.")
        old, new = _matrix(module), _matrix(tuned[name])
        if old.shape == new.shape and torch.equal(old, new):
            ranks: list[int] = []
            cosines, change = torch.ones(min(TOP_VECTORS, *old.shape)), 0.0
        else:
            ranks, cosines = intruder_dimensions(old, new)
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
