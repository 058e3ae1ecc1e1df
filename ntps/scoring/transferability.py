"""Measures of how well features suit labels that need no gradient training: LogME, H-score, reduced-rank R^2.

They read the same pooled features as the probes and the score, from one pass over the texts. What each leaves
unchanged:

| measure | range | scale of all features | scale of one feature | shift |
|---|---|---|---|---|
| `logme` | any real number, higher is better | unchanged | changes it | changes it |
| `h_score` | [0, classes - 1] | unchanged | unchanged | unchanged |
| `h_score(shrinkage=...)` | [0, classes - 1] | unchanged | changes it | unchanged |
| `reduced_rank_r2` | [0, 1] in sample | unchanged | unchanged | unchanged |
"""

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from ntps.errors import NtpsError, in_range
from ntps.scoring.probes import Folds, check_features, knn_accuracy, linear_probe, make_folds, one_thread, standardise


def logme(features: ArrayLike, labels: ArrayLike) -> float:
    """Log of the maximum evidence per text (You et al., ICML 2021), the mean over one-hot label columns.

    For one column y (n,) and features F (n, d): w ~ N(0, I / alpha), y | w ~ N(F w, I / beta), so that
    y ~ N(0, I / beta + F F^T / alpha), and the measure is the maximum over alpha, beta > 0 of log p(y | alpha, beta) /
    n. Features are not centred and there is no intercept, as in the paper.

    Public implementations disagree when n < d (-0.81 against 25.2 on the same data), so this follows the definition.
    The evidence in weight space is (d log alpha + n log beta - log |alpha I + beta F^T F| - ...) / 2; the determinant
    is of size d, and its d - n directions without data contribute (d - n) log alpha, which cancels that much of d log
    alpha. Summing over the n singular values alone leaves (d - n) log(alpha) / 2 too much, which grows with d - n and
    changes with the unit of the features, as evidence must not. Others stop the fixed-point iteration early or
    fix alpha / beta, which falls short of the maximum. In the n-dimensional form used here the question does not
    arise. With F = U diag(s) V^T, z = U^T y and t = beta / alpha, the best noise variance is v = (sum_i z_i^2 / (1 + t
    s_i^2) + r^2) / n (r^2 what lies outside U), and -(log(2 pi v) + 1 + sum_i log(1 + t s_i^2) / n) / 2 is maximised
    over t alone, on a grid with refinement, so neither a start nor a step size matters.

    Args:
        features: (n, d), finite, not all zero.
        labels: Class indices (n,), at least two different; classes without texts do not count.

    Returns:
        The measure. `inf` when fewer than n directions of the features fit a column exactly: there the evidence has no
        maximum.

    Raises:
        NtpsError: If shapes or values are unusable, or all features are zero.
    """
    x, y = check_features(features, labels)
    f = x.astype(np.float64)
    scale = np.abs(f).max()
    if scale == 0:
        raise NtpsError("all features are zero; the evidence of such features has no meaning.")
    n, onehot = len(y), np.eye(int(y.max()) + 1)[y]
    with one_thread():
        left, values, _ = np.linalg.svd(f / scale, full_matrices=False)
    keep = values > max(f.shape) * np.finfo(float).eps * values[0]
    s2 = np.square(values[keep] / values[0])  # relative to the largest: t then has no unit
    z2 = np.square(left[:, keep].T @ onehot)  # (rank, classes)
    total = onehot.sum(0)  # ||y||^2 of a one-hot column
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
    columns = np.arange(onehot.shape[1])
    centre, width, points = np.full(len(columns), (low + high) / 2), (high - low) / 2, 129
    best = np.full(len(columns), -math.inf)
    while width > 1e-6:
        grid = centre + np.linspace(-width, width, points)[:, None]
        found = evidence(grid)
        best, index = np.maximum(best, found.max(0)), found.argmax(0)
        centre, width, points = grid[index, columns], 2 * width / (points - 1), 17
    return float(best.mean())


def h_score(features: ArrayLike, labels: ArrayLike, *, shrinkage: float | str | None = None) -> float:
    """H-score: tr(cov(f)^-1 cov(E[f | y])) (Bao et al., ICIP 2019), in [0, classes - 1].

    The between-class share of the covariance in whitened coordinates: for one-hot labels the sum of squared canonical
    correlations, so with few texts it tends to its maximum whatever the labels. Shrinkage (Ibrahim et al., 2021,
    "Newer is not always better") replaces cov(f) by (1 - a) cov(f) + a tr(cov(f)) / d I and the between-class
    covariance by (1 - a) times itself, with the Ledoit-Wolf a. Without shrinkage the pseudo-inverse is used, with a
    tolerance relative to each feature's own variance, so features that are constant or copies of others change nothing.

    Args:
        features: (n, d), finite.
        labels: Class indices (n,), at least two different.
        shrinkage: `None`, `"ledoit-wolf"`, or a number in [0, 1].

    Raises:
        NtpsError: If shapes or values are unusable, all features are constant, or `shrinkage` is none of the above.
    """
    x, y = check_features(features, labels)
    centred, means, weights = _centred_by_class(x, y)
    n, d = centred.shape
    if isinstance(shrinkage, str):
        if shrinkage != "ledoit-wolf":
            raise NtpsError(f"shrinkage is {shrinkage!r}; it must be None, 'ledoit-wolf' or a number in [0, 1].")
        a = _ledoit_wolf(centred)
    else:
        a = 0.0 if shrinkage is None else float(in_range(shrinkage, 0, 1, "shrinkage"))
    between = means * np.sqrt(weights)[:, None]  # (classes, d); its Gram is cov(E[f | y])
    with one_thread():
        if a == 0:
            scaled, _ = standardise(x, x)  # the value does not depend on units, so the tolerance must not either
            between = (np.eye(len(weights))[y].T @ scaled) / n / np.sqrt(weights)[:, None]
            return float(np.square(between @ _whitener(scaled)).sum())
        covariance = (1 - a) * (centred.T @ centred) / n
        covariance[np.diag_indices(d)] += a * np.square(centred).sum() / n / d
        return float((1 - a) * np.sum(between.T * np.linalg.solve(covariance, between.T)))


def reduced_rank_r2(
    features: ArrayLike,
    labels: ArrayLike,
    *,
    rank: int | None = None,
    folds: Folds | None = None,
    random_state: int = 0,
) -> float:
    """Share of the one-hot labels' variance that a reduced-rank regression with intercept explains.

    In sample (`folds=None`) it is the `ceiling` of the score for full rank, and lambda_1 + ... + lambda_rank of the
    centred perception encoder over tr Cov(y): the R^2 of reduced-rank regression (Izenman 1975), in [0, 1],
    non-decreasing in rank, and 1 when there are no more texts than features plus one. With `folds` the regression is
    fitted on the other folds' texts and judged out of fold; it can be negative.

    Args:
        features: (n, d), finite.
        labels: Class indices (n,), at least two different.
        rank: Rank, at least 1; `None` is full rank. More than classes - 1 changes nothing.
        folds: `None`, or as in `linear_probe`.
        random_state: Seed of the folds.

    Raises:
        NtpsError: If shapes, values, rank or folds are unusable, or all features are constant.
    """
    x, y = check_features(features, labels)
    if rank is not None:
        in_range(rank, 1, None, "rank")
    onehot = np.eye(int(y.max()) + 1)[y]
    everything = np.arange(len(y))
    pairs = [(everything, everything)] if folds is None else make_folds(y, folds, random_state)
    error = variance = 0.0
    for train, test in pairs:
        mean_y = onehot[train].mean(0)
        with one_thread():
            scaled, held = standardise(x[train], x[test])
            whiten = _whitener(scaled)
            cross = scaled.T @ (onehot[train] - mean_y) / len(train)
            left, values, right = np.linalg.svd(whiten.T @ cross, full_matrices=False)
            k = len(values) if rank is None else min(rank, len(values))
            weights = whiten @ (left[:, :k] * values[:k]) @ right[:k]
            target = onehot[test] - mean_y
            error += float(np.square(target - held @ weights).sum())
            variance += float(np.square(target).sum())
    return 1 - error / variance


def transferability(
    features: ArrayLike, labels: ArrayLike, *, folds: Folds = 5, rank: int | None = None, random_state: int = 0
) -> dict[str, Any]:
    """All measures and the linear probe of one set of features, as one flat dictionary for a study's row.

    Raises:
        NtpsError: As the single functions do.
    """
    probe = linear_probe(features, labels, folds=folds, random_state=random_state).to_dict()
    names = ("accuracy", "balanced_accuracy", "macro_f1", "above_majority", "majority_rate", "r2", "mse")
    evidence = logme(features, labels)
    return {f"probe_{name}" if name != "majority_rate" else name: probe[name] for name in names} | {
        "probe_accuracy_se": probe["standard_errors"]["accuracy"],
        "logme": evidence if math.isfinite(evidence) else None,
        "h_score": h_score(features, labels),
        "h_score_shrunk": h_score(features, labels, shrinkage="ledoit-wolf"),
        "knn_accuracy": knn_accuracy(features, labels, folds=folds, random_state=random_state),
        "rrr_r2": reduced_rank_r2(features, labels, rank=rank),
        "rrr_r2_heldout": reduced_rank_r2(features, labels, rank=rank, folds=folds, random_state=random_state),
    }


def _centred_by_class(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Centred features (float64, constant columns exactly zero), class means of them, class frequencies."""
    centred = x - x.mean(0, dtype=np.float64)
    constant = centred.std(0) <= 4 * np.finfo(x.dtype).eps * np.abs(x).max(0)
    centred[:, constant] = 0
    if constant.all():
        raise NtpsError("every feature is constant; such features say nothing about the labels.")
    counts = np.bincount(y)
    means = np.eye(len(counts))[y].T @ centred / counts[:, None]
    return centred, means, counts / len(y)


def _whitener(scaled: np.ndarray) -> np.ndarray:
    """W (d, r) with W^T cov W = I on the directions of centred, standardised features that have variance."""
    n, d = scaled.shape
    if not scaled.any():
        raise NtpsError("every feature is constant; such features say nothing about the labels.")
    values, vectors = np.linalg.eigh((scaled.T @ scaled if d <= n else scaled @ scaled.T) / n)
    keep = values > max(n, d) * np.finfo(float).eps * values[-1]
    values, vectors = values[keep], vectors[:, keep]
    if d > n:
        vectors = scaled.T @ vectors / np.sqrt(n * values)
    return vectors / np.sqrt(values)


def _ledoit_wolf(centred: np.ndarray) -> float:
    from sklearn.covariance import ledoit_wolf_shrinkage

    return float(ledoit_wolf_shrinkage(centred, assume_centered=True))
