"""Subspaces: bases that nest, the score of all ranks at once, what a nested subspace explains, principal angles."""

import torch
from torch import Tensor

from ntps.core.encoders import Whitening
from ntps.errors import NtpsError


def nested_basis(vectors: Tensor, *, rtol: float = 1e-9) -> Tensor:
    """Orthonormalise columns so that, for every k, the first k results span the same space as the first k columns.

    A thin QR does it when all columns are independent. A column that depends on the ones before it must add nothing,
    but QR would put an arbitrary direction there: then columns are added one by one, and such a column is left zero.

    Args:
        vectors: (m, K) float64.
        rtol: A column counts as dependent if less than this share of its length is new.

    Returns:
        (m, K): orthonormal columns, or zero columns where nothing new was added.
    """
    m, count = vectors.shape
    norms = vectors.norm(dim=0)
    columns = vectors / torch.where(norms > 0, norms, 1.0)
    basis = torch.zeros_like(vectors)
    if count == 0 or m == 0:
        return basis
    leading = min(m, count)
    Q, R = torch.linalg.qr(columns[:, :leading])
    if (R.diagonal().abs() > rtol).all():
        basis[:, :leading] = Q
        return basis
    for k in range(count):
        new = columns[:, k]
        for _ in range(2):  # twice is enough: the second pass removes what rounding left of the first
            new = new - basis[:, :k] @ (basis[:, :k].T @ new)
        length = new.norm()
        if length > rtol:
            basis[:, k] = new / length
    return basis


def ntps_table(U: Tensor, V: Tensor) -> Tensor:
    """Return NTPS for every pair of ranks at once.

    One thin QR of V gives an orthonormal basis of span(V[:, :k]) for every k; the two-way cumulative sum of
    (Q^T U)^2, divided by the cumulative squared lengths of U's columns, is the score of every pair.

    Args:
        U: (d, a) perception directions, best first.
        V: (d, b) next-token directions, best first.

    Returns:
        (b, a): entry [j, i] is NTPS(k_U = i + 1, k_V = j + 1), in [0, 1], non-decreasing in j.

    Raises:
        NtpsError: If the heights differ.
    """
    if U.ndim != 2 or V.ndim != 2 or U.shape[0] != V.shape[0]:
        raise NtpsError(f"U has shape {tuple(U.shape)} and V {tuple(V.shape)}; both must be (d, k) with the same d.")
    U, V = U.to(torch.float64), V.to(torch.float64)
    inside = (nested_basis(V).T @ U).square().cumsum(0).cumsum(1)
    lengths = U.square().sum(0).cumsum(0)
    return (inside / lengths).clamp(0.0, 1.0)


def explained_curve(M: Whitening, X: Tensor, V: Tensor) -> Tensor:
    """Return Explained(V_k) = tr((V^T M V)^-1 V^T X X^T V) for k = 1, ..., b.

    It is what the best linear readout of the first k directions takes off the squared error: the part of M^(-1/2) X
    that lies in the span of M^(1/2) V_k.

    Args:
        M: The decomposed Gram of pooled states.
        X: (d, c) cross moment.
        V: (d, b) directions.

    Returns:
        (b,) float64, non-decreasing.
    """
    basis = nested_basis(M.half @ V)
    return (basis.T @ (M.whiten.T @ X)).square().sum(1).cumsum(0)


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
        a, b = b, a  # the smaller against the larger, so that every sine belongs to a direction with a partner
    cosines = torch.linalg.svdvals(a.T @ b).clamp(0.0, 1.0)
    sines = torch.linalg.svdvals(b - a @ (a.T @ b)).clamp(0.0, 1.0).flip(0)
    return torch.where(cosines.square() > 0.5, torch.asin(sines), torch.acos(cosines))


def _orthonormal(columns: Tensor) -> Tensor:
    """Return an orthonormal basis of the column space, whatever the columns' lengths."""
    columns = columns.to(torch.float64)
    if not torch.isfinite(columns).all():
        raise NtpsError("a subspace holds a number that is not finite; collect the moments again.")
    lengths = columns.norm(dim=0)
    left, singular, _ = torch.linalg.svd(columns / torch.where(lengths > 0, lengths, 1.0), full_matrices=False)
    size = max(columns.shape) * torch.finfo(torch.float64).eps
    return left[:, singular > size * singular.max()] if len(singular) else left
