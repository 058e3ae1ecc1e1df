"""Transferability: measures of how well features suit labels that need no training: LogME, H-score, reduced-rank R^2.

They read the same pooled features as the probes and the score. The range of each, and the effect of rescaling:

| measure | range | scale of all features | scale of one feature | shift |
|---|---|---|---|---|
| `logme` | any real number, higher is better | unchanged | changes it | changes it |
| `h_score` | [0, classes - 1] | unchanged | unchanged | unchanged |
| `h_score(shrinkage=...)` | [0, classes - 1] | unchanged | changes it | unchanged |
| `reduced_rank_r2` | [0, 1] | unchanged | unchanged | unchanged |
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from ntps._files import Record
from ntps.errors import NtpsError, in_range
from ntps.scoring.probes import check_features, check_finite, column_scaling, one_thread

_TAIL = (10, 100)  # ranks between which the decay of a spectrum is fitted
_CONSTANT = "every feature is constant and so says nothing about the labels; give features that vary."


def logme(features: ArrayLike, labels: ArrayLike) -> float:
    """Log of the maximum evidence per text (You et al., ICML 2021), averaged over one-hot label columns.

    For one column y (n,) and features F (n, d): w ~ N(0, I / alpha), y | w ~ N(F w, I / beta), so that
    y ~ N(0, I / beta + F F^T / alpha); the measure is the maximum of log p(y | alpha, beta) / n over alpha, beta > 0.
    Features are not centred and there is no intercept, as in the paper.

    Public implementations disagree when n < d (-0.81 against 25.2 on the same data), so this follows the definition.
    By weights the evidence is (d log alpha + n log beta - log det(alpha I + beta F^T F) - ...) / 2. The determinant
    has size d: its d - n directions without data contribute (d - n) log alpha, which cancels as much of d log alpha.
    Implementations that sum over the n singular values only are too large by (d - n) log(alpha) / 2n, which grows with
    d - n and depends on the unit of the features, as evidence must not. Others stop the fixed-point iteration early or
    fix alpha / beta, and stay below the maximum. Neither can happen in the n-dimensional form used here: with
    F = U diag(s) V^T, z = U^T y and t = beta / alpha, the best noise variance is v = (sum_i z_i^2 / (1 + t s_i^2) +
    r^2) / n, where r^2 is the part of ||y||^2 outside U, and -(log(2 pi v) + 1 + sum_i log(1 + t s_i^2) / n) / 2 is
    maximised over t alone, on a grid that is refined, so that no starting point or step size matters.

    Args:
        features: (n, d), finite, not all zero.
        labels: Class indices (n,), at least two different; classes without texts are ignored.

    Returns:
        The measure; `inf` if fewer than n directions of the features fit a column exactly, as the evidence then has no
        maximum.

    Raises:
        NtpsError: If shapes or values are unusable, or all features are zero.
    """
    x, y = check_features(features, labels)
    f = x.astype(np.float64)
    scale = np.abs(f).max()
    if scale == 0:
        raise NtpsError("all features are zero and so say nothing about the labels; give features that vary.")
    n, targets = len(y), np.eye(int(y.max()) + 1)[y]
    with one_thread():
        left, singular, _ = np.linalg.svd(f / scale, full_matrices=False)
    keep = singular > max(f.shape) * np.finfo(float).eps * singular[0]
    s2 = np.square(singular[keep] / singular[0])  # relative to the largest: t then has no unit
    z2 = np.square(left[:, keep].T @ targets)  # (rank, classes)
    total = targets.sum(0)  # ||y||^2 of a one-hot column
    outside = np.maximum(total - z2.sum(0), 0)
    outside[outside <= n * np.finfo(float).eps * total] = 0
    if len(s2) < n and np.any(outside == 0):
        return math.inf
    if len(s2) == n:
        outside[:] = 0

    def evidence(log_t: np.ndarray) -> np.ndarray:
        shrink = 1 + np.exp(log_t)[None, :, :] * s2[:, None, None]  # (rank, grid, classes)
        variance = ((z2[:, None, :] / shrink).sum(0) + outside) / n
        return -(np.log(2 * math.pi * variance) + 1 + np.log(shrink).sum(0) / n) / 2

    low, high = -2 * math.log(n) - 20, 20 - math.log(s2.min())  # from "no signal" to "no noise"
    columns = np.arange(targets.shape[1])
    middle, width, n_points = np.full(len(columns), (low + high) / 2), (high - low) / 2, 129
    best = np.full(len(columns), -math.inf)
    while width > 1e-6:
        grid = middle + np.linspace(-width, width, n_points)[:, None]
        values = evidence(grid)
        best = np.maximum(best, values.max(0))
        middle, width, n_points = grid[values.argmax(0), columns], 2 * width / (n_points - 1), 17
    return float(best.mean())


def h_score(features: ArrayLike, labels: ArrayLike, *, shrinkage: float | str | None = None) -> float:
    """H-score: tr(cov(f)^-1 cov(E[f | y])) (Bao et al., ICIP 2019), in [0, classes - 1].

    It is the variance between classes in coordinates where the features are white: for one-hot labels, the sum of
    squared canonical correlations. With few texts it approaches its maximum whatever the labels. Shrinkage (Ibrahim et
    al., 2021, "Newer is not always better") replaces cov(f) by (1 - a) cov(f) + a tr(cov(f)) / d I and the
    between-class covariance by (1 - a) times itself, with the Ledoit-Wolf a. Without shrinkage the pseudo-inverse is
    used, with a tolerance relative to each feature's variance, so that features that are constant or copies of others
    change nothing.

    Args:
        features: (n, d), finite.
        labels: Class indices (n,), at least two different.
        shrinkage: `None`, `"ledoit-wolf"`, or the number a in [0, 1].

    Raises:
        NtpsError: If shapes or values are unusable, all features are constant, or `shrinkage` is invalid.
    """
    x, y = check_features(features, labels)
    mean, scale = column_scaling(x)
    if not scale.any():
        raise NtpsError(_CONSTANT)
    centred = np.where(scale > 0, x - mean, 0.0)
    if shrinkage is None:
        a = 0.0
    elif isinstance(shrinkage, str):
        from sklearn.covariance import ledoit_wolf_shrinkage

        if shrinkage != "ledoit-wolf":
            raise NtpsError(f"shrinkage is {shrinkage!r}; it must be None, 'ledoit-wolf' or a number in [0, 1].")
        a = float(ledoit_wolf_shrinkage(centred, assume_centered=True))
    else:
        a = float(in_range(shrinkage, 0, 1, "shrinkage"))
    if a == 0:
        centred = centred * scale  # the value does not depend on units, so the tolerance must not either
    n, d = centred.shape
    counts = np.bincount(y)
    with one_thread():
        between = np.eye(len(counts))[y].T @ centred / np.sqrt(n * counts)[:, None]  # (classes, d): Gram cov(E[f | y])
        if a == 0:
            return float(np.square(between @ _whitener(centred)).sum())
        covariance = (1 - a) * (centred.T @ centred) / n
        covariance[np.diag_indices(d)] += a * np.square(centred).sum() / n / d
        return float((1 - a) * np.sum(between.T * np.linalg.solve(covariance, between.T)))


def reduced_rank_r2(features: ArrayLike, labels: ArrayLike, *, rank: int | None = None) -> float:
    """Share of the one-hot labels' variance that a reduced-rank regression with intercept explains in sample.

    It is the R^2 of reduced-rank regression (Izenman 1975): lambda_1 + ... + lambda_rank of the centred perception
    encoder over tr Cov(y), at full rank the `ceiling` of the score. It does not decrease with the rank, and is 1 if
    there are at most as many texts as features plus one. `linear_probe` has a value for texts not fitted on, `r2`.

    Args:
        features: (n, d), finite.
        labels: Class indices (n,), at least two different.
        rank: Rank of the coefficients, at least 1; `None` is full rank, which classes - 1 already reaches.

    Returns:
        The share, in [0, 1].

    Raises:
        NtpsError: If shapes, values or rank are unusable, or all features are constant.
    """
    x, y = check_features(features, labels)
    if rank is not None:
        in_range(rank, 1, None, "rank")
    targets = np.eye(int(y.max()) + 1)[y]
    targets = targets - targets.mean(0)
    with one_thread():
        mean, scale = column_scaling(x)
        scaled = (x - mean) * scale
        singular = np.linalg.svd(_whitener(scaled).T @ (scaled.T @ targets) / len(y), compute_uv=False)
    return min(float(np.square(singular[:rank]).sum() / np.square(targets).mean(0).sum()), 1.0)


@dataclass(frozen=True, kw_only=True)
class Spectrum(Record):
    """How features spread over their directions; no label is read.

    Attributes:
        effective_rank: RankMe (Garrido et al., ICML 2023): exp of the entropy of the singular values of the features,
            divided by their sum; in [1, min(n, d)].
        decay: alpha-ReQ (Agrawal et al., NeurIPS 2022): minus the slope of log eigenvalue over log rank of the
            covariance, between ranks 10 and 100 (from 1 on where there are fewer than 20); NaN below 3 eigenvalues.
        loudest: Share of the variance along the direction of the largest, in (0, 1].
    """

    effective_rank: float
    decay: float
    loudest: float


def spectrum(features: ArrayLike) -> Spectrum:
    """Return measures of the spectrum of features, label-free rivals of what needs labels.

    Args:
        features: (n, d), finite, not all constant.

    Raises:
        NtpsError: If shapes or values are unusable, or all features are constant.
    """
    x = check_finite(features)
    singular = np.sqrt(_eigenvalues(x))
    if not singular.any():
        raise NtpsError(_CONSTANT)
    shares = singular[singular > 0] / singular.sum()
    variances = _eigenvalues(x - x.mean(0))
    variances = variances[variances > max(x.shape) * np.finfo(float).eps * variances[0]]
    if not len(variances):
        raise NtpsError(_CONSTANT)
    first = _TAIL[0] if len(variances) >= 2 * _TAIL[0] else 1
    ranks = np.arange(first, min(_TAIL[1], len(variances)) + 1)
    decay = math.nan
    if len(ranks) >= 3:
        decay = -float(np.polyfit(np.log(ranks), np.log(variances[ranks - 1]), 1)[0])
    return Spectrum(
        effective_rank=float(np.exp(-(shares * np.log(shares)).sum())),
        decay=decay,
        loudest=float(variances[0] / variances.sum()),
    )


def _eigenvalues(x: np.ndarray) -> np.ndarray:
    """Return the squared singular values of (n, d) features, largest first."""
    with one_thread():
        gram = x.T @ x if x.shape[1] <= x.shape[0] else x @ x.T
        return np.linalg.eigvalsh(gram)[::-1].clip(0.0)


def _whitener(scaled: np.ndarray) -> np.ndarray:
    """Return W (d, r) with W^T Cov W = I, r the number of directions in which centred, scaled features (n, d) vary."""
    n, d = scaled.shape
    if not scaled.any():
        raise NtpsError(_CONSTANT)
    values, vectors = np.linalg.eigh((scaled.T @ scaled if d <= n else scaled @ scaled.T) / n)
    keep = values > max(n, d) * np.finfo(float).eps * values[-1]
    values, vectors = values[keep], vectors[:, keep]
    if d > n:
        vectors = scaled.T @ vectors / np.sqrt(n * values)
    return vectors / np.sqrt(values)
