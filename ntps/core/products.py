"""The products that moments are made of, past^T next and past^T past, by what is fastest without losing digits."""

from functools import cache
from typing import Any

import torch
from torch import Tensor

SYMMETRIC_BLOCKS = 5  # a a^T from block columns of its lower triangle: 3/5 of the work of a full product
COLUMNS = 32
NARROW = 256  # products of narrower states cost next to nothing, whatever makes them
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


class Products:
    """Products of states of one width, added to sums in float64.

    Args:
        width: d, the width of a state.
        dtype: Of the states and of the products' arithmetic.
        device: Where they are.
    """

    def __init__(self, width: int, dtype: torch.dtype, device: torch.device) -> None:
        self.width, self.dtype, self.device = width, dtype, device
        plain = device.type == "cpu" and dtype == torch.float32 and width >= NARROW
        self._fast = _onednn() if plain else None
        self._scratch: Tensor | None = None

    def padded(self, count: int) -> int:
        """Return how many columns to give to the product of `count` pairs; those added are to be zero.

        oneDNN makes, and keeps, code for every shape it meets, 3 MB for 640-wide states. Rounded up, by a sixteenth at
        most from 512 columns on, the numbers of columns are few.
        """
        if self._fast is None:
            return count
        step = max(COLUMNS, 2 ** (count.bit_length() - 5))
        return -(-count // step) * step

    def reserve(self) -> None:
        """Take the memory that products are written into: `add` and `add_gram` need no more."""
        if self._scratch is None and self._fast is None and self.dtype != torch.float64:
            self._scratch = torch.empty(self.width**2, dtype=self.dtype, device=self.device)

    def add(self, total: Tensor, a: Tensor, b: Tensor) -> None:
        """Add a b^T to `total`.

        Args:
            total: (p, q) float64, possibly a view; p and q at most d.
            a: (p, n), whole rows of a dense matrix, or the transpose of dense rows; of `dtype`, or float64.
            b: (q, n), the same.
        """
        if a.dtype == total.dtype:
            total.addmm_(a, b.T)
            return
        if self._fast is None:
            self.reserve()
            assert self._scratch is not None
            found = torch.mm(a, b.T, out=self._scratch[: total.numel()].view(total.shape))
        else:
            found = self._fast(a, b, None, "none", [], "")
        if self.device.type != "cpu":
            total += found
            return
        # On CPUs torch converts `found` as a whole; a few megabytes at a time would be given back to the system and
        # faulted in anew for every sum, which costs more than the addition.
        step = max(1, _CONVERTED // total.shape[1])
        for sums, part in zip(total.split(step), found.split(step), strict=True):
            sums.add_(part)

    def add_gram(self, total: Tensor, a: Tensor) -> None:
        """Add a a^T to the lower triangle of `total` (d, d), by block columns; what is above is left undefined.

        Args:
            total: (d, d) float64.
            a: (d, n), as in `add`.
        """
        step = max(64, -(-self.width // SYMMETRIC_BLOCKS))
        for start in range(0, self.width, step):
            self.add(total[start:, start : start + step], a[start:], a[start : start + step])
