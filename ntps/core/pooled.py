"""Pooled moments: means over texts, of one vector per text and its target, from which readouts are solved."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ntps.errors import NtpsError

_BLOCK = 8192  # texts converted to float64 at a time, so that memory-mapped states never enter memory whole


@dataclass(frozen=True, eq=False, kw_only=True)
class PooledMoments:
    """Moments of pooled states x and targets y over n texts: float64, means over texts.

    Subsets are subtracted, so training folds are all texts minus the held-out fold.

    Attributes:
        n: Number of texts.
        M: (d, d) Gram E[x x^T].
        X: (d, c) cross moment E[x y^T].
        mean_x: (d,) E[x].
        mean_y: (c,) E[y], the label frequencies.
        yy: (c, c) E[y y^T].
    """

    n: int
    M: Tensor
    X: Tensor
    mean_x: Tensor
    mean_y: Tensor
    yy: Tensor

    @classmethod
    def of(cls, states: Tensor, targets: Tensor) -> PooledMoments:
        """Return the moments of a set of texts.

        Args:
            states: (n, d) pooled states, any float dtype.
            targets: (n, c) one-hot labels or real targets.

        Raises:
            NtpsError: If there is no text, or the lengths differ.
        """
        if len(states) != len(targets) or len(states) == 0:
            raise NtpsError(f"{len(states)} pooled states and {len(targets)} targets; one target per state is needed.")
        n, d, c = len(states), states.shape[1], targets.shape[1]
        M, X, sum_x = (torch.zeros(shape, dtype=torch.float64) for shape in ((d, d), (d, c), (d,)))
        y = targets.double()
        for start in range(0, n, _BLOCK):
            x = states[start : start + _BLOCK].double()
            M += x.T @ x
            X += x.T @ y[start : start + _BLOCK]
            sum_x += x.sum(0)
        return cls(n=n, M=M / n, X=X / n, mean_x=sum_x / n, mean_y=y.mean(0), yy=y.T @ y / n)

    @property
    def d(self) -> int:
        """Width of a hidden state."""
        return self.M.shape[0]

    def centered(self) -> PooledMoments:
        """Return the moments about the means."""
        return PooledMoments(
            n=self.n,
            M=self.M - torch.outer(self.mean_x, self.mean_x),
            X=self.X - torch.outer(self.mean_x, self.mean_y),
            mean_x=torch.zeros_like(self.mean_x),
            mean_y=torch.zeros_like(self.mean_y),
            yy=self.yy - torch.outer(self.mean_y, self.mean_y),
        )

    def __sub__(self, other: PooledMoments) -> PooledMoments:
        """Return the moments of these texts without those of a subset.

        Raises:
            NtpsError: If no text is left.
        """
        n = self.n - other.n
        if n <= 0:
            raise NtpsError(f"{self.n} texts without {other.n} leave none; use fewer folds or more texts.")
        means = {
            name: (self.n * getattr(self, name) - other.n * getattr(other, name)) / n
            for name in ("M", "X", "mean_x", "mean_y", "yy")
        }
        return PooledMoments(n=n, **means)
