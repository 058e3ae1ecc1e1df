"""The two encoders in closed form: U, the directions that labels need, and V, those that next-token prediction needs.

Both are reduced-rank regressions (Izenman 1975): the rank-k linear map that predicts best in squared error. The columns
of the encoder are generalized eigenvectors, (F F^T) u = lambda B u with u^T B u = 1, in descending order of lambda:

- perception, U: B = M = E[x x^T], F = X = E[x y^T]; lambda_i is what direction i takes off the squared error;
- next token, V: B = C0 = E[sum s_t s_t^T], F = C1 = E[sum s_t h_{t+1}^T].

Both are solved in float64: decompose B = Q diag(w) Q^T, whiten with W = Q w^(-1/2) where w is above a relative
tolerance, and take the left singular vectors of W^T F. F F^T is never formed: squaring would lose half the digits. In
float32 the score of a real model moved from 0.76 to 0.46, so there is no option for it here.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ntps.core.moments import LayerMoments
from ntps.errors import NtpsError

# Eigenvalues of M below this share of the largest are rounding: M is summed in float64 from exact float32 states.
POOLED_RTOL = 1e-12
# C0 may be summed in float32, whose rounding is about 1e-7 of the scale of each *channel*, not of the largest one.
PREFIX_RTOL = {"float64": 1e-12, "float32": 1e-10}
# B has no negative eigenvalues: one that appears is rounding, and so are eigenvalues up to a few times its size. Where
# features are rank-deficient (a vocabulary smaller than the width, at layer 0), float32 sums leave 1e-8 of the largest
# eigenvalue, which the tolerance alone would take for directions; where features have full rank, none is negative.
NOISE_MARGIN = 4.0
# Singular values below this share of the largest carry nothing (their square is below float64's resolution).
SINGULAR_RTOL = 1e-8


@dataclass(frozen=True, eq=False)
class Whitening:
    """A symmetric positive matrix B (d, d) cut to its numerical range.

    Attributes:
        spectrum: All eigenvalues, descending (d,).
        basis: Q (d, r), eigenvectors of the r eigenvalues that were kept.
        rank: r.
    """

    spectrum: Tensor
    basis: Tensor
    rank: int

    @cached_property
    def whiten(self) -> Tensor:
        """W = Q w^(-1/2), (d, r): W^T B W = I."""
        return self.basis / self.spectrum[: self.rank].sqrt()

    @cached_property
    def half(self) -> Tensor:
        """B^(1/2) in the basis Q: w^(1/2) Q^T, (r, d)."""
        return (self.basis * self.spectrum[: self.rank].sqrt()).T

    @property
    def smallest(self) -> float:
        """The smallest eigenvalue of B; 0 when B is rank-deficient."""
        return float(self.spectrum[-1]) if self.rank == len(self.spectrum) else 0.0

    @property
    def largest(self) -> float:
        """The largest eigenvalue of B."""
        return float(self.spectrum[0])


def whitening(B: Tensor, *, rtol: float, max_rank: int | None = None, scale: float | None = None) -> Whitening:
    """Decompose a symmetric positive semi-definite B (d, d) and keep w > rtol * scale, and w above rounding.

    Args:
        B: (d, d), converted to float64.
        rtol: Relative tolerance, in (0, 1).
        max_rank: An upper bound that is known, such as the number of texts: further eigenvalues are rounding.
        scale: Value that the tolerance is relative to; the largest eigenvalue by default. For a centred matrix, give
            that of the uncentred one: what centring cancels leaves rounding on that scale.

    Raises:
        NtpsError: If B is not square or not finite.
    """
    if B.ndim != 2 or B.shape[0] != B.shape[1]:
        raise NtpsError(f"expected a square matrix; its shape is {tuple(B.shape)}.")
    if not torch.isfinite(B).all():
        raise NtpsError("the moments are not finite; collect them again in float32 or float64.")
    values, vectors = torch.linalg.eigh(B.to(torch.float64))
    rounding = max(-float(values[0]), 0.0)
    values, vectors = values.flip(0).clamp_min(0.0), vectors.flip(1)
    threshold = max(rtol * (float(values[0]) if scale is None else scale), NOISE_MARGIN * rounding)
    rank = int((values > max(threshold, torch.finfo(torch.float64).tiny)).sum())
    rank = rank if max_rank is None else min(rank, max_rank)
    return Whitening(values, vectors[:, :rank], rank)


@dataclass(frozen=True, eq=False)
class Encoder:
    """A closed-form linear encoder: directions in order of use.

    Attributes:
        vectors: (d, r) float64; column i is the i-th generalized eigenvector, with vectors^T B vectors = I. The sign
            is fixed: the entry of largest magnitude of each column is positive.
        eigenvalues: (r,) float64, descending: the amount that each direction takes off the squared error.
        coordinates: (rank of B, r), B^(1/2) vectors in the eigenbasis of B: orthonormal columns.
        whitening: The decomposition of B.
        rank: Number of directions whose eigenvalue is not zero; columns beyond it are arbitrary.
    """

    vectors: Tensor
    eigenvalues: Tensor
    coordinates: Tensor
    whitening: Whitening
    rank: int


def solve_encoder(B: Whitening, F: Tensor, *, columns: int = 0) -> Encoder:
    """Return the generalized eigenvectors of (F F^T, B), best first.

    Args:
        B: The whitened Gram (M or C0).
        F: (d, m) cross moment (X or C1).
        columns: Least number of directions to return, at most the rank of B; those beyond the ones with a non-zero
            eigenvalue are arbitrary.

    Raises:
        NtpsError: If the shapes do not fit, or F is not finite.
    """
    if F.ndim != 2 or F.shape[0] != len(B.spectrum):
        raise NtpsError(f"the cross moment has shape {tuple(F.shape)}; its first axis must be {len(B.spectrum)}.")
    if not torch.isfinite(F).all():
        raise NtpsError("the moments are not finite; collect them again in float32 or float64.")
    half = B.whiten.T @ F.to(torch.float64)
    left, singular, _ = torch.linalg.svd(half, full_matrices=columns > min(half.shape))
    rank = int((singular > SINGULAR_RTOL * singular[0]).sum()) if len(singular) and singular[0] > 0 else 0
    keep = max(rank, min(columns, B.rank))
    left = left[:, :keep]
    vectors = B.whiten @ left
    if keep:
        largest = vectors.abs().argmax(0, keepdim=True)
        signs = vectors.gather(0, largest).sign()
        vectors, left = vectors * signs, left * signs
    eigenvalues = torch.zeros(keep, dtype=torch.float64, device=vectors.device)
    eigenvalues[: min(keep, len(singular))] = singular[:keep].square()
    return Encoder(vectors, eigenvalues, left, B, rank)


def perception_encoder(
    M: Tensor,
    X: Tensor,
    *,
    rtol: float = POOLED_RTOL,
    max_rank: int | None = None,
    scale: float | None = None,
    columns: int = 0,
) -> Encoder:
    """Solve min over E, W of E||y - W E^T x||^2 (the paper's supervised encoder).

    Args:
        M: (d, d) Gram of pooled states, E[x x^T].
        X: (d, c) cross moment with the labels, E[x y^T].
        rtol: Eigenvalues of M below `rtol` times the largest are dropped.
        max_rank: Largest rank M can have, the number of texts.
        scale: See `whitening`.
        columns: See `solve_encoder`. At most c directions have an eigenvalue, so further ones are arbitrary.

    Returns:
        Encoder with at most c columns, or `columns` if that is more.
    """
    return solve_encoder(whitening(M, rtol=rtol, max_rank=max_rank, scale=scale), X, columns=columns)


def autoregressive_encoder(
    C0: Tensor, C1: Tensor, *, rtol: float = PREFIX_RTOL["float64"], max_rank: int | None = None
) -> Encoder:
    """Solve min over E, W of E sum_t ||h_{t+1} - W E^T s_t||^2 (the paper's next-token encoder).

    Args:
        C0: (d, d) Gram of prefix states.
        C1: (d, d) cross moment of prefix and next state.
        rtol: Eigenvalues of C0 below `rtol` times the largest are dropped.
        max_rank: Largest rank C0 can have, the number of (prefix, next) pairs.

    Returns:
        Encoder with up to d columns.
    """
    return solve_encoder(whitening(C0, rtol=rtol, max_rank=max_rank), C1)


def layer_autoregressive_encoder(moments: LayerMoments, *, rtol: float | None = None) -> Encoder:
    """Return V of one layer, with a tolerance that fits the dtype of its sums.

    Raises:
        NtpsError: If no text has two tokens.
    """
    if moments.n_pairs == 0:
        raise NtpsError("every text has a single token; predicting the next token needs texts of two tokens or more.")
    tolerance = PREFIX_RTOL[moments.dtype] if rtol is None else rtol
    return autoregressive_encoder(moments.C0, moments.C1, rtol=tolerance, max_rank=moments.n_pairs)
