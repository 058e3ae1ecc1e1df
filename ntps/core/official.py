"""The score as the paper's authors computed it in their released code (`K_sweep.py`), step by step, to compare with it.

It is not the paper's formula: everything is float32, F F^T is formed before it is whitened, the tolerance is an
absolute 1e-8, and directions are taken in the ascending order of a symmetric solver. The "first" ones are therefore
those of the *smallest* eigenvalues, for U and V alike. F F^T has at most as many positive eigenvalues as there are
classes, so most of those U come from a null space, where rounding decides which vectors they are. That makes the order
of operations part of the procedure: relative noise of 1e-7 in the moments moves single scores by up to 0.2
(`python -m benchmarks.official`, `ntps paper audit`), and so may another processor.
"""

from typing import Any

import numpy as np
import scipy.linalg
from torch import Tensor

from ntps.core.moments import LayerMoments
from ntps.core.pooled import PooledMoments

ABSOLUTE_TOLERANCE = 1e-8
_SHARES = np.arange(0.05, 1, 0.05)  # theirs, whose rounding decides a whole part here and there
FRACTIONS = tuple(round(float(share), 2) for share in _SHARES)


def ascending_eigenvectors(B: Tensor, F: Tensor) -> np.ndarray:
    """Return generalized eigenvectors (d, r) of (F F^T, B), smallest eigenvalue first, float32; r is the kept rank."""
    gram, cross = (np.asarray(matrix.cpu(), dtype=np.float32) for matrix in (B, F))
    target = cross @ cross.T
    values, vectors = scipy.linalg.eigh(gram)
    kept = values > ABSOLUTE_TOLERANCE
    # Row by row in memory, as their product with a diagonal matrix leaves it: some processors round W^T A by that.
    whiten = np.ascontiguousarray(vectors[:, kept] * (1 / np.sqrt(values[kept])))
    return whiten @ scipy.linalg.eigh(whiten.T @ target @ whiten)[1] if kept.any() else whiten


def official_curve(pooled: PooledMoments, next_token: LayerMoments) -> dict[str, list[Any]]:
    """Return the 19 scores of one layer.

    A fraction is taken of the kept rank of U and of that of V, and cut to a whole number. A pseudo-inverse projects.

    Returns:
        `fraction` (0.05, 0.1, ..., 0.95), `k_u` and `k_v`, the numbers of directions, and `ntps`, each in [0, 1] up to
        rounding, NaN where a number of directions is 0.
    """
    U = ascending_eigenvectors(pooled.M, pooled.X)
    V = ascending_eigenvectors(next_token.C0, next_token.C1)
    curve: dict[str, list[Any]] = {"fraction": list(FRACTIONS), "k_u": [], "k_v": [], "ntps": []}
    for share in _SHARES:
        u, v = U[:, : int(share * U.shape[1])], V[:, : int(share * V.shape[1])]
        score = float("nan")
        if u.size and v.size:
            projected = v @ np.linalg.pinv(v) @ u
            score = float(np.square(projected).sum() / np.square(u).sum())
        for name, value in (("k_u", u.shape[1]), ("k_v", v.shape[1]), ("ntps", score)):
            curve[name].append(value)
    return curve
