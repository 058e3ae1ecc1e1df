"""The two encoders in closed form: U, the directions that labels need, and V, those that next-token prediction needs.

Both are reduced-rank regressions (Izenman 1975): the rank-k linear map that predicts best in squared error. The columns
of the encoder are generalized eigenvectors, (F F^T) u = lambda B u with u^T B u = 1, in descending order of lambda:

- perception, U: B = M = E[x x^T], F = X = E[x y^T]; lambda_i is what direction i takes off the squared error;
- next token, V: B = C0 = E[sum s_t s_t^T], F = C1 = E[sum s_t h_{t+1}^T].

Both are solved in float64: scale B to a unit diagonal, so that a channel 1e5 times louder than the others hides none of
them, decompose S B S = Q diag(w) Q^T, whiten with W = S Q w^(-1/2) where w is above a relative tolerance, and take the
left singular vectors of W^T F. F F^T is never formed: squaring would lose half the digits. In float32 the score of a
real model moved from 0.76 to 0.46, so there is no option for it here.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ntps.core.moments import LayerMoments
from ntps.core.threads import one_thread_if_narrow
from ntps.errors import NtpsError

# Eigenvalues of M, scaled to a unit diagonal, below this share of the largest are rounding: M is summed in float64.
POOLED_RTOL = 1e-12
# C0 may be summed in float32, whose rounding is about 1e-7 of the scale of each channel.
PREFIX_RTOL = {"float64": 1e-12, "float32": 1e-10}
# B has no negative eigenvalues: one that appears is rounding, and so are eigenvalues up to a few times its size. Where
# features are rank-deficient (a vocabulary smaller than the width, at layer 0), float32 sums leave 1e-8 of the largest
# eigenvalue, which the tolerance alone would take for directions; where features have full rank, none is negative.
NOISE_MARGIN = 4.0
# Singular values below this share of the largest carry nothing (their square is below float64's resolution).
SINGULAR_RTOL = 1e-8


@dataclass(frozen=True, eq=False, kw_only=True)
class Whitening:
    """A symmetric positive matrix B (d, d) cut to its numerical range, of rank r.

    Attributes:
        whiten: W (d, r): W^T B W = I, with columns in the range of B.
        half: H (r, d): H^T H = B and H W = I; a square root of B.
    """

    whiten: Tensor
    half: Tensor

    @property
    def d(self) -> int:
        """The height of B."""
        return self.whiten.shape[0]

    @property
    def rank(self) -> int:
        """The numerical rank r of B."""
        return self.whiten.shape[1]

    @cached_property
    @one_thread_if_narrow
    def _extremes(self) -> tuple[float, float]:
        if not self.rank:
            return 0.0, 0.0
        values = torch.linalg.eigvalsh(self.half @ self.half.T)  # those of B that are not zero
        largest = float(values[-1])
        rounding = self.d * torch.finfo(torch.float64).eps * largest
        return (max(float(values[0]) - rounding, 0.0) if self.rank == self.d else 0.0), largest

    @property
    def smallest(self) -> float:
        """The smallest eigenvalue of B, less what rounding may have added; 0 when B is rank-deficient."""
        return self._extremes[0]

    @property
    def largest(self) -> float:
        """The largest eigenvalue of B."""
        return self._extremes[1]


def whitening(B: Tensor, *, rtol: float, max_rank: int | None = None, diagonal: Tensor | None = None) -> Whitening:
    """Decompose a symmetric positive semi-definite B (d, d), scaled so that no channel is louder than another.

    Kept are the eigenvalues w of the scaled matrix above `rtol` times the largest (or times 1, its diagonal), and above
    rounding. A channel whose diagonal entry is 0 is left out.

    Args:
        B: (d, d), converted to float64.
        rtol: Relative tolerance, in (0, 1).
        max_rank: An upper bound that is known, such as the number of texts: further eigenvalues are rounding.
        diagonal: (d,) squared scale of each channel; the diagonal of B by default. For a centred matrix, give that of
            the uncentred one: what centring cancels leaves rounding on that scale.

    Raises:
        NtpsError: If B is not square or not finite.
    """
    if B.ndim != 2 or B.shape[0] != B.shape[1]:
        raise NtpsError(f"expected a square matrix; its shape is {tuple(B.shape)}.")
    if not torch.isfinite(B).all():
        raise NtpsError("the moments are not finite; collect them again in float32 or float64.")
    B = B.to(torch.float64)
    used, units = _used_channels(B.diagonal() if diagonal is None else diagonal.to(B))
    values, vectors = torch.linalg.eigh(B[used][:, used] / units / units.T)
    values, vectors = values.flip(0), vectors.flip(1)
    noise = -NOISE_MARGIN * float(values[-1]) if len(used) else 0.0
    return _cut(values, vectors, used, units, len(B), rtol=rtol, noise=noise, max_rank=max_rank)


def row_whitening(rows: Tensor, diagonal: Tensor, *, rtol: float) -> Whitening:
    """Decompose B = A^T A of rows A (n, d), fewer than columns, as `whitening` does, without forming B.

    At width 2048 the singular values of 1,000 rows take half of the time of the eigenvalues of B, those of 500 a fifth.

    Args:
        rows: A (n, d), converted to float64.
        diagonal: (d,) squared scale of each channel, as for `whitening`.
        rtol: Relative tolerance of the eigenvalues of B, in (0, 1).

    Raises:
        NtpsError: If an entry is not finite.
    """
    rows = rows.to(torch.float64)
    if not torch.isfinite(rows).all():
        raise NtpsError("the pooled states are not finite; collect them again in float32 or float64.")
    used, units = _used_channels(diagonal)
    _, singular, vectors = torch.linalg.svd(rows[:, used] / units.T, full_matrices=False)
    values, noise = singular.square(), 0.0
    if len(values):
        noise = float(values[0]) * (max(rows.shape) * torch.finfo(torch.float64).eps) ** 2
    return _cut(values, vectors.T, used, units, rows.shape[1], rtol=rtol, noise=noise)


def _used_channels(squares: Tensor) -> tuple[Tensor, Tensor]:
    """Return the channels (m,) whose square (d,) is not zero, and their scales (m, 1)."""
    used = torch.nonzero(squares > torch.finfo(torch.float64).tiny)[:, 0]
    return used, squares[used].sqrt()[:, None]


def _cut(
    values: Tensor,
    vectors: Tensor,
    used: Tensor,
    units: Tensor,
    d: int,
    *,
    rtol: float,
    noise: float = 0.0,
    max_rank: int | None = None,
) -> Whitening:
    """Keep the eigenvectors (m, r) whose eigenvalues (r,), descending, are none of rounding; undo the scaling."""
    rank = 0
    if len(values):
        threshold = max(rtol * max(float(values[0]), 1.0), noise)
        rank = min(int((values > threshold).sum()), len(values) if max_rank is None else max_rank)
    roots, kept = values[:rank].sqrt(), vectors[:, :rank]
    whiten, half = values.new_zeros(d, rank), values.new_zeros(rank, d)
    whiten[used], half[:, used] = kept / units / roots, (kept * units * roots).T
    if rank < len(used):  # of all W with W^T B W = I, the shortest: the one in the range of B, that of H^T
        basis = torch.linalg.qr(half[:, used].T)[0]
        whiten[used] = basis @ (basis.T @ whiten[used])
    return Whitening(whiten=whiten, half=half)


@dataclass(frozen=True, eq=False, kw_only=True)
class Encoder:
    """A closed-form linear encoder: directions in order of use.

    Attributes:
        vectors: (d, r) float64; column i is the i-th generalized eigenvector, with vectors^T B vectors = I. The sign
            is fixed: the entry of largest magnitude of each column is positive.
        eigenvalues: (r,) float64, descending: the amount that each direction takes off the squared error.
        coordinates: (rank of B, r), H vectors, with H the square root `whitening.half` of B: orthonormal columns.
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
    if F.ndim != 2 or F.shape[0] != B.d:
        raise NtpsError(f"the cross moment has shape {tuple(F.shape)}; its first axis must be {B.d}.")
    if not torch.isfinite(F).all():
        raise NtpsError("the moments are not finite; collect them again in float32 or float64.")
    whitened = B.whiten.T @ F.to(torch.float64)
    left, singular, _ = torch.linalg.svd(whitened, full_matrices=columns > min(whitened.shape))
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
    return Encoder(vectors=vectors, eigenvalues=eigenvalues, coordinates=left, whitening=B, rank=rank)


def perception_encoder(
    M: Tensor,
    X: Tensor,
    *,
    rtol: float = POOLED_RTOL,
    max_rank: int | None = None,
    columns: int = 0,
) -> Encoder:
    """Solve min over E, W of E||y - W E^T x||^2 (the paper's supervised encoder).

    Args:
        M: (d, d) Gram of pooled states, E[x x^T].
        X: (d, c) cross moment with the labels, E[x y^T].
        rtol: Relative tolerance, see `whitening`.
        max_rank: Largest rank M can have, the number of texts.
        columns: See `solve_encoder`. At most c directions have an eigenvalue, so further ones are arbitrary.

    Returns:
        Encoder with at most c columns, or `columns` if that is more.
    """
    return solve_encoder(whitening(M, rtol=rtol, max_rank=max_rank), X, columns=columns)


def autoregressive_encoder(
    C0: Tensor, C1: Tensor, *, rtol: float = PREFIX_RTOL["float64"], max_rank: int | None = None
) -> Encoder:
    """Solve min over E, W of E sum_t ||h_{t+1} - W E^T s_t||^2 (the paper's next-token encoder).

    Args:
        C0: (d, d) Gram of prefix states.
        C1: (d, d) cross moment of prefix and next state.
        rtol: Relative tolerance, see `whitening`.
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
