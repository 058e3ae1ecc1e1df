"""Checks of the exercises on encoders, scores and bounds (lessons 00 to 02)."""

import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import numpy as np

from ntps.course.checks.runner import CheckFailed, as_array, as_number, call, close, diagnose, passed, plain, require


def _project(V: np.ndarray) -> np.ndarray:
    """Return the orthogonal projector on the span of V's columns."""
    Q, _ = np.linalg.qr(V)
    return Q @ Q.T


def _same_span(A: np.ndarray, B: np.ndarray, tolerance: float = 1e-4) -> bool:
    """Return whether the columns span the same space, whatever their lengths."""
    if np.linalg.matrix_rank(A) != np.linalg.matrix_rank(B):
        return False
    first, second = (_project(columns / np.linalg.norm(columns, axis=0)) for columns in (A, B))
    return float(np.abs(first - second).max()) < tolerance


def _generalized(F: np.ndarray, B: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return eigenvalues (descending) and vectors of (F F^T, B), with vectors^T B vectors = I."""
    w, Q = np.linalg.eigh(B)
    W = Q / np.sqrt(w)
    left, singular, _ = np.linalg.svd(W.T @ F)
    return singular**2, W @ left


@contextmanager
def _without_pinv() -> Iterator[None]:
    """Let `numpy.linalg.pinv` say that the exercise is to be solved without it."""

    def refuse(*_: Any, **__: Any) -> None:
        raise CheckFailed("you call pinv; this exercise is to do without it: take an orthonormal basis from a QR.")

    with mock.patch.object(np.linalg, "pinv", refuse):
        yield


def _random_gram(rng: np.random.Generator, d: int) -> np.ndarray:
    factor = rng.standard_normal((d, 2 * d)) * np.geomspace(1, 0.2, d)[:, None]
    return factor @ factor.T / (2 * d)


def next_token_encoder(function: Callable[..., Any]) -> None:
    """Check `function(C0, C1, k)`: V, (d, k), the k best directions for predicting the next state."""
    rng = np.random.default_rng(0)
    d, k = 7, 3
    C0, C1 = _random_gram(rng, d), rng.standard_normal((d, d)) * np.geomspace(1, 0.3, d)
    V = as_array(call(function, C0, C1, k), (d, k), "V")
    values, best = _generalized(C1, C0)
    require(np.linalg.matrix_rank(V) == k, f"the {k} columns of V are not independent: some direction is there twice.")
    if not _same_span(V, best[:, :k]):
        w, Q = np.linalg.eigh(C0)
        whitened = np.linalg.svd((Q / np.sqrt(w)).T @ C1)[0][:, :k]
        coefficients = np.linalg.svd(np.linalg.solve(C0, C1))[0][:, :k]
        coloured = Q * np.sqrt(w)
        lower = np.linalg.cholesky(C0)
        by_cholesky = np.linalg.svd(np.linalg.solve(lower, C1))[0][:, :k]
        diagnose(
            (
                _same_span(V, coefficients),
                "these are singular vectors of the regression coefficients C0^-1 C1; what must be well approximated is "
                "the PREDICTION, so whiten: C0^(-1/2) C1.",
            ),
            (
                _same_span(V, coloured @ np.linalg.svd(coloured.T @ C1)[0][:, :k]),
                "you multiplied by the square roots of the eigenvalues; whitening divides by them.",
            ),
            (
                _same_span(V, lower @ by_cholesky) or _same_span(V, np.linalg.solve(lower, by_cholesky)),
                "with C0 = L L^T the whitened directions are mapped back by L^-T: np.linalg.solve(L.T, directions).",
            ),
            (
                _same_span(V, best[:, -k:]),
                "these are the eigenvectors of the SMALLEST eigenvalues; eigh returns them in ascending order, so take "
                "the last.",
            ),
            (
                _same_span(V, np.linalg.svd(C1)[0][:, :k]),
                "these are eigenvectors of C1 C1^T alone; C0 must enter too, or loud directions win because they are "
                "loud.",
            ),
            (
                _same_span(V, Q[:, -k:]),
                "these are eigenvectors of C0 (principal components): nothing in them knows the next token.",
            ),
            (
                _same_span(V, _generalized(C1.T, C0)[1][:, :k]),
                "you used C1^T C1 instead of C1 C1^T: the prefix is the FIRST factor of C1 = E[sum s_t h_{t+1}^T].",
            ),
            (
                _same_span(V, whitened) or _same_span(V, Q @ whitened),
                "these directions live in whitened coordinates; map them back with W = Q w^(-1/2): V = W times them.",
            ),
            otherwise="V does not span the best directions: solve C1 C1^T v = lambda C0 v and keep the top ones.",
        )
    normal = close(V.T @ C0 @ V, np.eye(k), 1e-4)
    require(normal, "the span is right, but V^T C0 V is not the identity: scale each column so that v^T C0 v = 1.")
    gains = np.einsum("dk,de,ek->k", V, C1 @ C1.T, V)
    in_order = close(gains, values[:k], 1e-3)
    require(in_order, "the span is right, but the columns are not in order of use, best first.")
    first = np.asarray(plain(call(function, 1e-6 * C0, 1e-6 * C1, 1)), dtype=np.float64)
    require(
        first.shape == (d, 1) and _same_span(first, best[:, :1]),
        "the same data in another unit (states times 0.001) gives other directions: is a tolerance absolute that "
        "should be relative?",
    )
    passed("V is right: the top generalized eigenvectors of (C1 C1^T, C0), best first, with V^T C0 V = I.")


def perception_by_regression(function: Callable[..., Any]) -> None:
    """Check `function(x, y, k)`: (d, k) directions that span U_k, found by regression alone.

    x is (n, d), y is (n, c).
    """
    rng = np.random.default_rng(1)
    n, d, c, k = 400, 6, 4, 2
    x = rng.standard_normal((n, d)) * np.geomspace(3, 0.3, d) + 0.5 * rng.standard_normal((n, 1))
    y = x @ (rng.standard_normal((d, c)) / np.geomspace(3, 0.3, d)[:, None]) + 0.3 * rng.standard_normal((n, c))
    U = as_array(call(function, x, y, k), (d, k), "U")
    M, X = x.T @ x / n, x.T @ y / n
    if not _same_span(U, _generalized(X, M)[1][:, :k]):
        coefficients = np.linalg.solve(M, X)
        fitted = x @ coefficients
        about_means = x - x.mean(0)
        centred = np.linalg.lstsq(about_means, y - y.mean(0), rcond=None)[0]
        right_of = {
            name: np.linalg.svd(part, full_matrices=False)[2][:k].T
            for name, part in (
                ("intercept", about_means @ centred + y.mean(0)),  # what a regression with an intercept predicts
                ("no intercept in the fit", x @ centred),
                ("PCA", fitted - fitted.mean(0)),
            )
        }
        diagnose(
            (
                _same_span(U, np.linalg.svd(coefficients)[0][:, :k]),
                "you took the singular vectors of the coefficients; what must be well approximated is the PREDICTION "
                "x B, so decompose the fitted values.",
            ),
            (
                _same_span(U, coefficients[:, :k]),
                f"these are the coefficients of the first {k} labels; choose the combinations of labels that the fit "
                "predicts with most variance.",
            ),
            (
                _same_span(U, np.linalg.svd(x, full_matrices=False)[2][:k].T),
                "these are principal components of x: the labels never entered.",
            ),
            (
                _same_span(U, np.linalg.svd(X)[0][:, :k]),
                "these are singular vectors of X = x^T y / n: large features count too much; divide by M, as a "
                "regression does.",
            ),
            (
                _same_span(U, coefficients @ np.linalg.svd(fitted, full_matrices=False)[2][-k:].T),
                "these are the combinations with the LEAST variance; singular vectors come in descending order: take "
                "the first.",
            ),
            (
                _same_span(U, centred @ np.linalg.svd(about_means @ centred, full_matrices=False)[2][:k].T),
                "you centred x and y; that is a good choice, but U here is the paper's, of the uncentred moments.",
            ),
            (
                any(_same_span(U, centred @ right) for right in right_of.values()),
                "your regression has an intercept (scikit-learn's default): fit without one, fit_intercept=False.",
            ),
            (
                _same_span(U, coefficients @ right_of["PCA"]),
                "you centred the fitted values before their SVD (PCA does): decompose them as they are.",
            ),
            otherwise="the columns do not span U_k: regress y on x, B = M^-1 X; take the top right singular vectors of "
            "x B; multiply B by them.",
        )
    passed(f"the span is U_{k}: full regression, then the best rank-{k} approximation of its fitted values.")


def projector(function: Callable[..., Any]) -> None:
    """Check `function(V)`: the (d, d) orthogonal projector on the span of V's columns, without a pseudo-inverse."""
    rng = np.random.default_rng(2)
    d, k = 6, 2
    V = rng.standard_normal((d, k)) * np.array([2.0, 0.3])
    with _without_pinv():
        P = as_array(call(function, V), (d, d), "the projector")
    idempotent = close(P @ P, P)
    require(idempotent, "your projector is not idempotent (P P is not P): did you orthonormalise V?")
    require(
        close(P, P.T),
        "your projector is not symmetric: it projects along a slant; an orthogonal one is Q Q^T with orthonormal Q.",
    )
    require(
        not close(P, np.eye(d) - _project(V)),
        "this is the projector on what is orthogonal to V, I - P; the score wants the part inside.",
    )
    require(close(P @ V, V), "P V is not V: vectors of the subspace must stay as they are.")
    same = close(P, _project(V))
    require(same, f"its trace is {np.trace(P):.2f}; it should be {k}, the dimension.")
    nearly_parallel = np.stack([V[:, 0], V[:, 0] + 1e-9 * V[:, 1]], axis=1)
    with _without_pinv():
        steep = as_array(call(function, nearly_parallel), (d, d), "the projector")
    require(
        close(steep @ steep, steep, 1e-4),
        "with two nearly parallel columns it is no longer a projector: (V^T V)^-1 loses all digits there; use QR or an "
        "SVD.",
    )
    passed("a projector: symmetric, idempotent, of the right rank, and steady for nearly parallel columns.")


def ntps(function: Callable[..., Any]) -> None:
    """Check `function(U, V)`: the score of U (d, a) against the span of V (d, b)."""
    rng = np.random.default_rng(3)
    d = 8
    U = rng.standard_normal((d, 3)) * np.array([3.0, 1.0, 0.2])
    V = rng.standard_normal((d, 2)) * np.array([5.0, 0.5])
    right = float(np.square(_project(V) @ U).sum() / np.square(U).sum())
    with _without_pinv():
        value = as_number(call(function, U, V), "the score")

    def is_value(wrong: float) -> bool:
        return close(value, wrong)

    if not is_value(right):
        Q, orthonormal = np.linalg.qr(V)[0], np.linalg.qr(U)[0]
        diagnose(
            (is_value(np.sqrt(right)), "this is the root of the score: square both Frobenius norms."),
            (
                is_value(np.square(V.T @ U).sum() / np.square(U).sum()),
                f"V's columns are not orthonormal, so V^T U does not measure a projection (you got {value:.2f}): take "
                "Q from a QR of V.",
            ),
            (
                is_value(np.square(Q.T @ orthonormal).sum() / orthonormal.shape[1]),
                "you orthonormalised U too; the score keeps the lengths of U's columns, divide by ||U||_F^2.",
            ),
            (
                is_value(np.square(_project(U) @ V).sum() / np.square(V).sum()),
                "U and V are swapped: project U on the span of V, not V on the span of U.",
            ),
            (is_value(np.square(Q.T @ U).sum()), "that is ||P U||_F^2; divide it by ||U||_F^2."),
            (is_value(1 - right), "this is the part of U outside V; the score is the part inside."),
            (not 0 <= value <= 1, f"a score is a share of U, between 0 and 1; yours is {value:.3g}."),
            otherwise=f"on a random pair the score is {right:.4f}; yours is {value:.4f}.",
        )
    inside = as_number(call(function, V @ rng.standard_normal((2, 2)), V), "the score")
    require(close(inside, 1), f"U inside the span of V must score 1; yours gives {inside:.4f}.")
    outside = U - _project(V) @ U
    require(abs(as_number(call(function, outside, V), "the score")) < 1e-6, "U orthogonal to V must score 0.")
    mixed = as_number(call(function, U, V @ np.array([[1.0, 2.0], [0.0, 1e-3]])), "the score")
    require(close(mixed, right, 1e-4), "another basis of the same span gives another score; only the span may matter.")
    wide = 1500
    tracemalloc.start()
    try:
        call(function, rng.standard_normal((wide, 3)), rng.standard_normal((wide, 2)))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    require(
        peak < 4 * wide**2,  # half of a (d, d) matrix of float64
        f"with d = {wide:,} your score takes {peak / 1e6:.0f} MB: it forms a (d, d) matrix. Bracket the product, or "
        "use ||Q Q^T U|| = ||Q^T U||.",
    )
    passed("the score is right: 1 inside, 0 orthogonal, only the span of V counts, and no (d, d) matrix is formed.")


def chance_by_simulation(function: Callable[..., Any]) -> None:
    """Check `function(U, k, draws, seed)`: scores (draws,) of U against random subspaces of dimension k."""
    rng = np.random.default_rng(4)
    d, k, draws = 20, 5, 2000
    U = rng.standard_normal((d, 2)) * np.array([4.0, 0.5]) + 2.0

    def scores_of(seed: int) -> np.ndarray:
        return as_array(call(function, U, k, draws, seed), (draws,), "the scores")

    scores = scores_of(0)
    in_range = scores.min() >= 0 and scores.max() <= 1 + 1e-5
    require(in_range, "scores must lie between 0 and 1; orthonormalise each random V.")
    require(scores.std() > 1e-6, "all scores are the same; draw a new subspace each time.")
    mean, error = scores.mean(), scores.std() / np.sqrt(draws)
    if abs(mean - k / d) > 6 * error:
        positive = "numbers from rng.random are all positive, so every V leans to one side; use rng.standard_normal"
        hint = positive if mean > k / d else "is V of dimension k in d dimensions?"
        diagnose(otherwise=f"the mean is {mean:.3f}, chance is k/d = {k / d:.3f}: {hint}.")
    # The mean is k/d for much that is no random subspace; the spread is not, nor is the score when k is d.
    spread, expected = scores.std(), _spread_of_chance(U, k)
    require(
        0.85 < spread / expected < 1.15,
        f"the mean is right, but your scores spread by {spread:.3f}, those against random subspaces by {expected:.3f}: "
        "keep U as it is and draw V, k normal vectors with an orthonormal basis of their span.",
    )
    axes = np.eye(d)
    along, across = (as_array(call(function, axes[:, [i]], k, 200, 2), (200,), "the scores") for i in (0, 1))
    require(not close(along, across), "your scores do not depend on U: keep U as it is, and draw V.")
    require(
        len(np.unique(along)) > d,
        "against a single axis your scores take few values: you turn or shuffle U against one fixed V; draw V.",
    )
    between = np.mean((along > 0.01) & (along < 0.99)) > 0.5
    require(between, "against a single axis all your scores are 0 or 1: your subspaces are made of coordinate axes.")
    whole = as_array(call(function, U, d, 5, 3), (5,), "the scores")
    require(
        close(whole, np.ones(5), 1e-4),
        f"with k = d the subspace is everything and each score must be 1; yours are {np.round(whole, 2).tolist()}: "
        "orthonormalise each random V.",
    )
    same_seed = np.array_equal(scores, scores_of(0))
    require(same_seed, "the same seed gives other scores; use np.random.default_rng(seed).")
    other_seed = not np.array_equal(scores, scores_of(1))
    require(other_seed, "another seed gives the same scores; use the seed you are given.")
    passed(f"chance is k/d: your mean of {draws} draws is {mean:.3f}, k/d = {k / d:.3f}.")


def _spread_of_chance(U: np.ndarray, k: int) -> float:
    """Return the standard deviation of the score of U (d, a) against uniformly random subspaces of dimension k."""
    d = len(U)
    weights = np.square(np.linalg.svd(U, compute_uv=False))
    weights /= weights.sum()
    # The entries of a random projector: variance on the diagonal, covariance between two diagonal entries.
    variance = 2 * k * (d - k) / (d**2 * (d + 2))
    covariance = -variance / (d - 1)
    return float(np.sqrt(variance * np.square(weights).sum() + covariance * (1 - np.square(weights).sum())))


def breaking_scale(function: Callable[..., Any]) -> None:
    """Check `function(M, X, C0, C1, k)`: two sets of positive scales (d,), one for a high raw score, one for a low one.

    A reader sees scale * feature; what is predicted, next state and label, stays in its old units. Then V and U are
    divided by the scales, and no loss changes, whatever the positive scales are.
    """
    rng = np.random.default_rng(5)
    d, c, k = 8, 1, 2
    M, C0 = _random_gram(rng, d), _random_gram(rng, d)
    X, C1 = M @ rng.standard_normal((d, c)), rng.standard_normal((d, d)) * np.geomspace(1, 0.2, d)

    def raw_score(scale: np.ndarray) -> float:
        """Return NTPS of the scaled features, from their moments."""
        s = scale[:, None]
        U, V = _generalized(s * X, s * M * s.T)[1][:, :c], _generalized(s * C1, s * C0 * s.T)[1][:, :k]
        return float(np.square(_project(V) @ U).sum() / np.square(U).sum())

    scales = as_array(call(function, M, X, C0, C1, k), (2, d), "(the scales up, the scales down)")
    for scale in scales:
        require((scale > 0).all(), "scales must be positive: a zero throws a feature away, and a sign changes nothing.")
        require(
            scale.max() / scale.min() <= 1e6 * (1 + 1e-5),
            "keep the largest scale within a factor of a million of the smallest, or rounding breaks the score.",
        )
        require(
            np.ptp(scale) > 1e-9 * scale.max(),
            "all scales are equal: U and V then change length, not direction, and the score stays; scale features "
            "differently.",
        )
    before = raw_score(np.ones(d))
    up, down = (raw_score(scale) for scale in scales)
    require(not up < before < down, f"the two are swapped: your first scales give {up:.2f}, your second {down:.2f}.")
    require(
        up >= 0.95,
        f"your first scales move the score from {before:.2f} to {up:.2f}; reach 0.95. Directions shrink where features "
        "grow: what do all of them point along when one feature is tiny?",
    )
    require(
        down <= 0.05,
        f"your second scales move the score from {before:.2f} to {down:.2f}; come down to 0.05. A^-1 U and the columns "
        "of A^-1 V must be nearly at right angles: sum_i u_i v_i / a_i^2 = 0 for each column of V.",
    )
    passed(f"the raw score goes from {before:.2f} up to {up:.2f} and down to {down:.2f}, and no reader can tell.")


def excess_between_bounds(function: Callable[..., Any]) -> None:
    """Check `function(M, X, V)`: (lower, exact, upper), the whitened bounds and the excess loss, with k_U = rank(X)."""
    rng = np.random.default_rng(6)
    for d, c, k in ((6, 2, 3), (8, 3, 3), (5, 1, 2)):
        M, X, V = _random_gram(rng, d), rng.standard_normal((d, c)), rng.standard_normal((d, k))
        lower, value, upper = as_array(call(function, M, X, V), (3,), "(lower, exact, upper)")
        values, U = _generalized(X, M)
        values, U = values[:c], U[:, :c]
        explained = float(np.trace(np.linalg.solve(V.T @ M @ V, V.T @ X @ X.T @ V)))
        exact = float(values.sum() - explained)
        if not close(value, exact):
            sigma = np.sqrt(values)
            held = np.square(_project(np.linalg.cholesky(M).T @ V) @ (np.linalg.cholesky(M).T @ U)).sum(0)
            diagnose(
                (
                    close(value, (sigma * (1 - held)).sum()),
                    "you weigh with the singular values; the lambda_i are their SQUARES.",
                ),
                (close(value, explained), "that is what V explains; the excess is sum(lambda) minus it."),
                (
                    close(value, values.sum() - np.trace(V.T @ X @ X.T @ V)),
                    "the readout of V^T x must be fitted: tr((V^T M V)^-1 V^T X X^T V), with the inverse.",
                ),
                otherwise=f"the exact excess loss is {exact:.4f} here; yours is {value:.4f}.",
            )
        w, Q = np.linalg.eigh(M)
        half = (Q * np.sqrt(w)) @ Q.T
        missing = c - float(np.square(_project(half @ V) @ (half @ U)).sum())
        raw = float(np.square(U - _project(V) @ U).sum())
        bounds = np.array([values[-1], values[0]])
        if not close((lower, upper), bounds * missing):
            diagnose(
                (
                    close(upper, values[0] * missing) and abs(lower) <= 1e-6 * upper,
                    "your lower bound is 0: k is the rank of X, so take the k-th singular value, not the last of all d "
                    "(full_matrices=False).",
                ),
                (
                    close((lower, upper), np.sqrt(bounds) * missing),
                    "you multiply by the singular values; the lambda_i are their SQUARES.",
                ),
                (
                    close((upper, lower), bounds * missing),
                    "lower and upper are swapped: the largest eigenvalue belongs to the upper bound.",
                ),
                (
                    close((lower, upper), bounds * raw),
                    "you measured the missing part of U itself; whiten first: M^(1/2) U against the span of M^(1/2) V.",
                ),
                otherwise=f"the bounds are lambda_k m and lambda_1 m with m = {missing:.4f}, so "
                f"[{bounds[0] * missing:.4f}, {bounds[1] * missing:.4f}]; yours are [{lower:.4f}, {upper:.4f}].",
            )
    passed("the exact excess loss lies between its bounds, on three random problems.")


def above_chance(function: Callable[..., Any]) -> None:
    """Check `function(score, k, d)`: the score read against chance, 0 at k/d and 1 at 1."""
    value = as_number(call(function, 0.25, 32, 128), "the result")
    require(abs(value) < 1e-6, f"a score of k/d is chance and must give 0; yours gives {value:.3f}.")
    top = as_number(call(function, 1.0, 32, 128), "the result")
    require(
        close(top, 1),
        f"a perfect score must give 1; yours gives {top:.3f}: divide by the room above chance, 1 - k/d.",
    )
    below = as_number(call(function, 0.1, 32, 128), "the result")
    require(below < 0, "a score below chance must come out negative; do not cut it off at 0.")
    right = close(below, -0.2)
    require(right, f"0.1 at a chance of 0.25 is -0.2 of the room above chance; yours gives {below:.3f}.")
    fine, wanted = as_number(call(function, 0.301, 16, 128), "the result"), (0.301 - 0.125) / 0.875
    require(
        close(fine, wanted),
        f"0.301 at a chance of 0.125 is {wanted:.5f} of the room; yours gives {fine:.5f}. Return the number itself, "
        "not a rounded one.",
    )
    passed("0 at chance, 1 at the top, negative below chance.")


def smallest_rank(function: Callable[..., Any]) -> None:
    """Check `function(ranks, explained, share)`: the first rank at which `share` of the last value is reached."""
    # No rank is the position of one, one share lies between two values, and the values are no increments.
    ranks, explained = [8, 16, 32, 64, 128], [0.05, 0.2, 0.4, 0.45, 0.5]
    for share, right in ((0.8, 32), (0.5, 32), (0.9, 64), (1.0, 128), (0.05, 8)):
        value = as_number(call(function, ranks, explained, share), "the rank")
        if value != right:
            diagnose(
                (
                    value not in ranks and value == int(value) and value < len(ranks),
                    f"{value:g} is a position; return the rank that stands there, one of {ranks}.",
                ),
                (
                    value not in ranks,
                    f"{value:g} is not among the ranks {ranks}; return one of them, do not interpolate.",
                ),
                (
                    share == 0.8 and value == 128,
                    "0.8 is a share OF the last value (0.5), so 0.4 is enough; did you compare with 0.8 itself, or add "
                    "up values that are totals already?",
                ),
                (
                    share == 0.5 and value == 16,
                    "rank 16 explains 0.2, and half of 0.5 is 0.25: take the first that REACHES the share, not the "
                    "nearest.",
                ),
                (value < right, f"at rank {value:g} the share {share} of {explained[-1]} is not reached yet."),
                otherwise=f"rank {right} already reaches {share} of {explained[-1]}; you returned {value:g}. Is it >=?",
            )
    passed("the smallest rank that keeps the requested share.")
