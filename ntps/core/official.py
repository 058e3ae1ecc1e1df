"""The score as the paper's authors computed it in their released code, step by step, for comparison only.

Their procedure differs from the paper's text: float32 throughout, an absolute tolerance of 1e-8, eigenvectors in the
ascending order in which a symmetric solver returns them. The "first" k are therefore the *smallest* ones, for U and V
alike. At most c eigenvalues of the perception problem differ from zero, so most of those U come from a null space and
rounding decides which vectors they are: relative noise of 1e-7 in the moments moves single fractions by up to 0.04 on a
real model. Compare the mean over fractions, not digit by digit.
"""

import torch
from torch import Tensor

from ntps.core.moments import LayerMoments
from ntps.core.pooled import PooledMoments

FRACTIONS = tuple(round(0.05 * step, 2) for step in range(1, 20))
ABSOLUTE_TOLERANCE = 1e-8


def ascending_eigenvectors(B: Tensor, F: Tensor) -> Tensor:
    """Return generalized eigenvectors (d, r) of (F F^T, B), smallest eigenvalue first, in float32."""
    B, F = B.to(torch.float32), F.to(torch.float32)
    values, vectors = torch.linalg.eigh(B)
    keep = values > ABSOLUTE_TOLERANCE
    whiten = vectors[:, keep] / values[keep].sqrt()
    half = whiten.T @ F
    _, directions = torch.linalg.eigh(half @ half.T)
    return whiten @ directions


def official_curve(pooled: PooledMoments, next_token: LayerMoments) -> list[float]:
    """Return the 19 scores of one layer at 5 %, 10 %, ..., 95 % of the width, each in [0, 1] up to rounding.

    The same number of directions, at least one, is taken for U and for V; a pseudo-inverse projects, as theirs does.
    """
    U = ascending_eigenvectors(pooled.M, pooled.X)
    V = ascending_eigenvectors(next_token.C0, next_token.C1)
    scores = []
    for fraction in FRACTIONS:
        count = max(1, int(fraction * pooled.d))
        u, v = U[:, :count], V[:, :count]
        if not (u.numel() and v.numel()):
            scores.append(float("nan"))
            continue
        projected = v @ (torch.linalg.pinv(v) @ u)
        scores.append(float(projected.square().sum() / u.square().sum()))
    return scores
