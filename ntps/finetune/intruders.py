"""Intruder dimensions: singular vectors of a tuned weight matrix that the original matrix does not have.

Low-rank fine-tuning tends to put new directions on top of a matrix's spectrum, nearly orthogonal to all it had before;
full fine-tuning turns the old ones a little. Source: Shuttleworth, Andreas, Torralba, Sharma, *LoRA vs Full
Fine-tuning: An Illusion of Equivalence*, arXiv 2410.21228 (2024), Algorithm 1.
"""

import re
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from ntps.errors import NtpsError, in_range
from ntps.finetune.adapters import linear_modules


@dataclass(frozen=True)
class Intruders:
    """The intruder dimensions of one weight matrix.

    Attributes:
        module: Name of the module.
        block: Number of the block it stands in, or `None`.
        k: How many top singular vectors of the tuned matrix were looked at.
        count: How many of them are intruders, in [0, k].
        ranks: Their places in the tuned spectrum, from 0, the largest singular value.
        cosines: (k,) largest |cosine| of each with any singular vector of the original matrix, in [0, 1].
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
        """Return JSON values."""
        return {**asdict(self), "ranks": list(self.ranks), "cosines": list(self.cosines)}


def intruder_dimensions(
    before: Tensor, after: Tensor, *, k: int = 10, epsilon: float = 0.6
) -> tuple[list[int], Tensor]:
    """Return which of the tuned matrix's top left singular vectors are new, and how close each is to an old one.

    Computed in float64. Two equal singular values have no vectors of their own: a tiny change may turn them freely in
    their plane, which can look like an intruder.

    Args:
        before: (m, n) original weights.
        after: (m, n) tuned weights.
        k: Top singular vectors to look at; at most min(m, n) are.
        epsilon: A vector whose largest |cosine| with all original ones is below this is an intruder, in (0, 1].

    Returns:
        Their places from 0, and (k,) largest |cosine|.

    Raises:
        NtpsError: If shapes differ, a weight is not finite, or an option is out of range.
    """
    in_range(k, 1, None, "k")
    if isinstance(epsilon, bool) or not 0 < epsilon <= 1:
        raise NtpsError(f"epsilon is {epsilon!r}; it must lie above 0 and be at most 1.")
    if before.ndim != 2 or before.shape != after.shape:
        raise NtpsError(
            f"the weights have shapes {tuple(before.shape)} and {tuple(after.shape)}; give two alike (m, n)."
        )
    old, new = before.detach().to(torch.float64), after.detach().to(torch.float64)
    if not torch.isfinite(old).all() or not torch.isfinite(new).all():
        raise NtpsError("a weight is not finite; singular vectors need finite matrices.")
    known = torch.linalg.svd(old, full_matrices=False)[0]
    top = torch.linalg.svd(new, full_matrices=False)[0][:, :k]
    cosines = (known.T @ top).abs().amax(0).clamp(0.0, 1.0)
    return torch.nonzero(cosines < epsilon).flatten().tolist(), cosines.cpu()


def find_intruders(before: Any, after: Any, *, k: int = 10, epsilon: float = 0.6) -> tuple[Intruders, ...]:
    """Look for intruder dimensions in every linear map of a network, after LoRA (merged) or full fine-tuning.

    Takes two singular value decompositions a matrix that has changed; one that has not has none.

    Args:
        before: The network as it was.
        after: The tuned network, adapters merged.
        k: See `intruder_dimensions`.
        epsilon: See `intruder_dimensions`.

    Raises:
        NtpsError: If a linear map of one network is missing, or of another shape, in the other.
    """
    tuned, rows = linear_modules(after), []
    for name, module in linear_modules(before).items():
        if name not in tuned:
            raise NtpsError(f"module {name!r} is not in the tuned network; merge adapters first, and give one model.")
        old, new = (_matrix(part) for part in (module, tuned[name]))
        most = min(k, *old.shape)
        if old.shape == new.shape and torch.equal(old, new):
            ranks: list[int] = []
            cosines, change = torch.ones(most), 0.0
        else:
            ranks, cosines = intruder_dimensions(old, new, k=k, epsilon=epsilon)
            size = float(old.double().norm())
            change = float((new.double() - old.double()).norm()) / size if size else float("inf")
        number = re.search(r"\.(\d+)\.", f".{name}.")
        row = Intruders(
            module=name,
            block=int(number[1]) if number else None,
            k=most,
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
