"""The product that moments are made of, past^T next, on whatever runs it fastest without losing digits."""

from functools import cache
from typing import Any

import torch
from torch import Tensor

SYMMETRIC_BLOCKS = 5  # a a^T from block columns of its lower triangle: 3/5 of the work of a full product
ROWS = 128
_CONVERTED = 2**17  # numbers turned into float64 at once


@cache
def _onednn() -> Any:
    """Return oneDNN's float32 product x w^T, or `None` where torch's own is as fast or oneDNN is not there.

    Torch's CPU builds hand float32 products to MKL, whose AVX-512 kernels run on Intel processors only: measured on an
    AMD EPYC, MKL gives half of what oneDNN does (`python -m benchmarks --only moments`). Both are plain float32.
    """
    if not torch.backends.mkldnn.is_available() or torch.backends.cpu.get_cpu_capability() != "AVX512":
        return None
    try:
        product = torch.ops.mkldnn._linear_pointwise.default
        sample = torch.arange(6.0).view(2, 3)
        found = product(sample, sample, None, "none", [], "")
    except (AttributeError, RuntimeError):  # it is not part of torch's public interface
        return None
    return product if torch.equal(found, sample @ sample.T) else None


def _fast(like: Tensor) -> Any:
    return _onednn() if like.device.type == "cpu" and like.dtype == torch.float32 and like.numel() else None


def padded(count: int, like: Tensor) -> int:
    """Return how many rows `gather_pairs` gives for `count` tokens of values such as `like`.

    oneDNN makes, and keeps, code for every shape it meets: 200 MB for the 300 batches of 10,000 texts. Rounded up to a
    multiple of 128, with zeros, the numbers of rows are few.
    """
    return count if _fast(like) is None else -(-count // ROWS) * ROWS


def gather_pairs(past: Tensor, states: Tensor, rows: Tensor, rooms: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Return the pasts (d, n') and the next states (n', d) of n tokens, laid out as the product reads them fastest.

    Args:
        past: (m, d) what stands for the past of every token.
        states: (m, d) hidden states.
        rows: (n,) tokens that another follows.
        rooms: Dense memory (n', d) for each result, n' = `padded(n)`; rows beyond n are zero in the first, and so add
            nothing.
    """
    n, size = len(rows), len(rooms[0])
    if size > n:
        rows = torch.cat([rows, rows[-1:].expand(size - n)])
    following = torch.index_select(states, 0, rows + 1, out=rooms[1])
    if _fast(past) is None:
        return torch.index_select(past, 0, rows, out=rooms[0]).T, following
    found = rooms[0].view(past.shape[1], size)
    torch.index_select(past, 0, rows, out=found.T)
    found[:, n:] = 0.0
    return found, following


def add_product(total: Tensor, a: Tensor, b: Tensor, scratch: Tensor) -> None:
    """Add a b^T to `total` (p, q).

    Args:
        total: (p, q) float64, possibly a view.
        a: (p, n), whole rows of what `gather_pairs` gave, or the transpose of dense rows.
        b: (q, n), the same.
        scratch: At least p * q numbers of the dtype of `a`, written where nothing faster is there: memory of a GPU is
            then taken before any sum changes.
    """
    fast = _fast(a)
    if fast is None:
        found = torch.mm(a, b.T, out=scratch[: total.numel()].view(total.shape))
    else:
        found = fast(a, b, None, "none", [], "")
    if found.device.type != "cpu":
        total += found
        return
    # On CPUs torch converts `found` as a whole; a few megabytes at a time would be given back to the system and faulted
    # in anew for every sum, which costs more than the addition.
    step = max(1, _CONVERTED // total.shape[1])
    for sums, part in zip(total.split(step), found.split(step), strict=True):
        sums.add_(part)


def add_gram(total: Tensor, a: Tensor, scratch: Tensor) -> None:
    """Add a a^T to the lower triangle of `total` (d, d), by block columns; what is above is left undefined.

    Args:
        total: (d, d) float64.
        a: (d, n), from `gather_pairs`, or the transpose of dense rows.
        scratch: d * d numbers of the dtype of `a`.
    """
    d = len(a)
    step = max(64, -(-d // SYMMETRIC_BLOCKS))
    for start in range(0, d, step):
        add_product(total[start:, start : start + step], a[start:], a[start : start + step], scratch)
