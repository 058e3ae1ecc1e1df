"""Checks for the exercises: they take the learner's function, try it, and say what is wrong with it.

    from ntps.course.checks import linear as checks
    checks.projector(my_projector)

A check prints one line when all is well and raises `CheckFailed` with one sentence when not; in a notebook only the
sentence shows. Arrays are NumPy arrays; tensors and lists that the function returns are understood too.
"""

from collections.abc import Callable
from typing import Any

import numpy as np


class CheckFailed(AssertionError):
    """An exercise's function does not do yet what it should; the message says what it does instead."""

    def _render_traceback_(self) -> list[str]:
        """Tell IPython to show the sentence without a traceback."""
        return [f"✗ {self}"]


def _require(condition: Any, message: str) -> None:
    if not bool(condition):
        raise CheckFailed(message)


def _passed(message: str) -> None:
    print(f"✓ {message}")


def _call(function: Callable[..., Any], *given: Any) -> Any:
    """Call the learner's function on copies; turn what goes wrong into a sentence."""
    _require(callable(function), f"give the function itself, not {type(function).__name__}: checks.name(my_function).")
    name = getattr(function, "__name__", "your function")
    copies = [value.copy() if isinstance(value, np.ndarray) else value for value in given]
    try:
        result = function(*copies)
    except NotImplementedError:
        raise CheckFailed(
            f"{name} is not written yet: put your code in place of `raise NotImplementedError`."
        ) from None
    except CheckFailed:
        raise
    except Exception as error:
        shapes = ", ".join(str(v.shape) if isinstance(v, np.ndarray) else repr(v) for v in given)
        message = f"{name} raised {type(error).__name__}: {error} (it was given {shapes})."
        raise CheckFailed(message) from error
    for before, after in zip(given, copies, strict=True):
        changed = isinstance(before, np.ndarray) and not np.array_equal(before, after)
        _require(not changed, f"{name} changed its input in place; work on a copy.")
    _require(result is not None, f"{name} returned None; did you forget `return`?")
    return result


def _array(result: Any, shape: tuple[int, ...], what: str) -> np.ndarray:
    """Return a result as a finite float array of the right shape."""
    try:
        array = np.asarray(result, dtype=np.float64)
    except (TypeError, ValueError):
        raise CheckFailed(f"{what} must be an array of numbers; yours is {type(result).__name__}.") from None
    hint = " It looks transposed: directions are columns." if array.shape == shape[::-1] and len(shape) == 2 else ""
    _require(array.shape == shape, f"{what} must have shape {shape}; yours has {array.shape}.{hint}")
    _require(np.isfinite(array).all(), f"{what} holds NaN or infinity; did you divide by an eigenvalue of zero?")
    return array


def _number(result: Any, what: str) -> float:
    array = np.asarray(result, dtype=np.float64)
    _require(array.size == 1, f"{what} must be one number; yours has shape {array.shape}.")
    value = float(array.reshape(()))
    _require(np.isfinite(value), f"{what} is {value}; it must be finite.")
    return value


def _project(V: np.ndarray) -> np.ndarray:
    Q, _ = np.linalg.qr(V)
    return Q @ Q.T


def _same_span(A: np.ndarray, B: np.ndarray, tolerance: float = 1e-6) -> bool:
    """Return whether the columns span the same space, whatever their lengths."""
    if np.linalg.matrix_rank(A) != np.linalg.matrix_rank(B):
        return False
    return (
        float(np.abs(_project(A / np.linalg.norm(A, axis=0)) - _project(B / np.linalg.norm(B, axis=0))).max())
        < tolerance
    )


def _generalized(F: np.ndarray, B: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return eigenvalues (descending) and vectors of (F F^T, B), with vectors^T B vectors = I."""
    w, Q = np.linalg.eigh(B)
    W = Q / np.sqrt(w)
    left, singular, _ = np.linalg.svd(W.T @ F)
    return singular**2, W @ left


def _random_gram(rng: np.random.Generator, d: int) -> np.ndarray:
    factor = rng.standard_normal((d, 2 * d)) * np.geomspace(1, 0.2, d)[:, None]
    return factor @ factor.T / (2 * d)


def next_token_encoder(function: Callable[..., Any]) -> None:
    """Check `function(C0, C1, k)`: V, (d, k), the k best directions for predicting the next state.

    Raises:
        CheckFailed: With what is wrong.
    """
    rng = np.random.default_rng(0)
    d, k = 7, 3
    C0, C1 = _random_gram(rng, d), rng.standard_normal((d, d)) * np.geomspace(1, 0.3, d)
    V = _array(_call(function, C0, C1, k), (d, k), "V")
    values, best = _generalized(C1, C0)
    _require(np.linalg.matrix_rank(V) == k, f"the {k} columns of V are not independent: some direction is there twice.")
    if not _same_span(V, best[:, :k]):
        _require(
            not _same_span(V, best[:, -k:]),
            "these are the eigenvectors of the SMALLEST eigenvalues; eigh returns them in ascending order, so "
            "take the last.",
        )
        _require(
            not _same_span(V, np.linalg.svd(C1)[0][:, :k]),
            "these are eigenvectors of C1 C1^T alone; C0 must enter too, or loud directions win because they are loud.",
        )
        _require(
            not _same_span(V, np.linalg.eigh(C0)[1][:, -k:]),
            "these are eigenvectors of C0 (principal components): nothing in them knows the next token.",
        )
        _require(
            not _same_span(V, _generalized(C1.T, C0)[1][:, :k]),
            "you used C1^T C1 instead of C1 C1^T: the prefix is the FIRST factor of C1 = E[sum s_t h_{t+1}^T].",
        )
        w, Q = np.linalg.eigh(C0)
        whitened = np.linalg.svd((Q / np.sqrt(w)).T @ C1)[0][:, :k]
        _require(
            not (_same_span(V, whitened) or _same_span(V, Q @ whitened)),
            "these directions live in whitened coordinates; map them back with W = Q w^(-1/2): V = W times them.",
        )
        raise CheckFailed("V does not span the best directions: solve C1 C1^T v = lambda C0 v and keep the top ones.")
    normal = np.abs(V.T @ C0 @ V - np.eye(k)).max() < 1e-6
    _require(normal, "the span is right, but V^T C0 V is not the identity: scale each column so that v^T C0 v = 1.")
    order = np.einsum("dk,de,ek->k", V, C1 @ C1.T, V)
    _require(
        np.allclose(order, values[:k], rtol=1e-5),
        "the span is right, but the columns are not in order of use, best first.",
    )
    first = np.asarray(_call(function, 1e-6 * C0, 1e-6 * C1, 1), dtype=np.float64)
    _require(
        first.shape == (d, 1) and _same_span(first, best[:, :1]),
        "the same data in another unit (states times 0.001) gives other directions: is a tolerance absolute that "
        "should "
        "be relative?",
    )
    _passed("V is right: the top generalized eigenvectors of (C1 C1^T, C0), best first, with V^T C0 V = I.")


def perception_by_regression(function: Callable[..., Any]) -> None:
    """Check `function(x, y, k)`: (d, k) directions that span U_k, found by regression alone.

    x is (n, d), y is (n, c).

    Raises:
        CheckFailed: With what is wrong.
    """
    rng = np.random.default_rng(1)
    n, d, c, k = 400, 6, 4, 2
    x = rng.standard_normal((n, d)) * np.geomspace(3, 0.3, d) + 0.5 * rng.standard_normal((n, 1))
    y = x @ (rng.standard_normal((d, c)) / np.geomspace(3, 0.3, d)[:, None]) + 0.3 * rng.standard_normal((n, c))
    found = _array(_call(function, x, y, k), (d, k), "U")
    M, X = x.T @ x / n, x.T @ y / n
    best = _generalized(X, M)[1]
    if not _same_span(found, best[:, :k]):
        fit = np.linalg.solve(M, X)
        _require(
            not _same_span(found, np.linalg.svd(fit)[0][:, :k]),
            "you took the singular vectors of the coefficients; what must be well approximated is the PREDICTION x B, "
            "so decompose the fitted values.",
        )
        _require(
            not _same_span(found, fit[:, :k]),
            f"these are the coefficients of the first {k} labels; choose the combinations of labels that the fit "
            "predicts "
            "with most variance.",
        )
        _require(
            not _same_span(found, np.linalg.svd(x, full_matrices=False)[2][:k].T),
            "these are principal components of x: the labels never entered.",
        )
        _require(
            not _same_span(found, np.linalg.svd(X)[0][:, :k]),
            "these are singular vectors of X = x^T y / n: large features count too much; divide by M, as a "
            "regression does.",
        )
        _require(
            not _same_span(found, fit @ np.linalg.svd(x @ fit, full_matrices=False)[2][-k:].T),
            "these are the combinations with the LEAST variance; singular vectors come in descending order: take "
            "the first.",
        )
        centred = np.linalg.lstsq(x - x.mean(0), y - y.mean(0), rcond=None)[0]
        values = (x - x.mean(0)) @ centred
        _require(
            not _same_span(found, centred @ np.linalg.svd(values, full_matrices=False)[2][:k].T),
            "you centred x and y; that is a good choice, but U here is the paper's, of the uncentred moments.",
        )
        raise CheckFailed(
            "the columns do not span U_k: regress y on x, B = M^-1 X; take the top right singular vectors of x "
            "B; multiply "
            "B by them."
        )
    _passed(f"the span is U_{k}: full regression, then the best rank-{k} approximation of its fitted values.")


def projector(function: Callable[..., Any]) -> None:
    """Check `function(V)`: the (d, d) orthogonal projector on the span of V's columns, without a pseudo-inverse.

    Raises:
        CheckFailed: With what is wrong.
    """
    rng = np.random.default_rng(2)
    d, k = 6, 2
    V = rng.standard_normal((d, k)) * np.array([2.0, 0.3])
    P = _array(_call(function, V), (d, d), "the projector")
    _require(
        np.allclose(P @ P, P, atol=1e-8), "your projector is not idempotent (P P is not P): did you orthonormalise V?"
    )
    _require(
        np.allclose(P, P.T, atol=1e-8),
        "your projector is not symmetric: it projects along a slant; an orthogonal one is Q Q^T with orthonormal Q.",
    )
    _require(
        not np.allclose(P, np.eye(d) - _project(V), atol=1e-8),
        "this is the projector on what is orthogonal to V, I - P; the score wants the part inside.",
    )
    _require(np.allclose(P @ V, V, atol=1e-8), "P V is not V: vectors of the subspace must stay as they are.")
    _require(
        np.allclose(P, _project(V), atol=1e-8), f"its trace is {np.trace(P):.2f}; it should be {k}, the dimension."
    )
    nearly = np.stack([V[:, 0], V[:, 0] + 1e-9 * V[:, 1]], axis=1)
    steep = _array(_call(function, nearly), (d, d), "the projector")
    _require(
        np.allclose(steep @ steep, steep, atol=1e-4),
        "with two nearly parallel columns it is no projector any more: (V^T V)^-1 loses all digits there; use QR "
        "or an SVD.",
    )
    _passed("a projector: symmetric, idempotent, of the right rank, and steady for nearly parallel columns.")


def ntps(function: Callable[..., Any]) -> None:
    """Check `function(U, V)`: the score of U (d, a) against the span of V (d, b).

    Raises:
        CheckFailed: With what is wrong.
    """
    rng = np.random.default_rng(3)
    d = 8
    U = rng.standard_normal((d, 3)) * np.array([3.0, 1.0, 0.2])
    V = rng.standard_normal((d, 2)) * np.array([5.0, 0.5])
    right = float(np.square(_project(V) @ U).sum() / np.square(U).sum())

    value = _number(_call(function, U, V), "the score")
    if abs(value - right) > 1e-8:
        Q, orthonormal = np.linalg.qr(V)[0], np.linalg.qr(U)[0]
        _require(
            abs(value - np.linalg.norm(_project(V) @ U) / np.linalg.norm(U)) > 1e-8,
            "this is the root of the score: square both Frobenius norms.",
        )
        _require(
            abs(value - np.square(V.T @ U).sum() / np.square(U).sum()) > 1e-8,
            f"V's columns are not orthonormal, so V^T U does not measure a projection (you got {value:.2f}): "
            "take Q from a QR of V.",
        )
        _require(
            abs(value - np.square(Q.T @ orthonormal).sum() / orthonormal.shape[1]) > 1e-8,
            "you orthonormalised U too; the score keeps the lengths of U's columns, divide by ||U||_F^2.",
        )
        _require(
            abs(value - np.square(_project(U) @ V).sum() / np.square(V).sum()) > 1e-8,
            "U and V are swapped: project U on the span of V, not V on the span of U.",
        )
        _require(
            abs(value - np.square(Q.T @ U).sum()) > 1e-8,
            "that is ||P U||_F^2; divide it by ||U||_F^2.",
        )
        _require(abs(value - (1 - right)) > 1e-8, "this is the part of U outside V; the score is the part inside.")
        _require(0 <= value <= 1, f"a score is a share of U, between 0 and 1; yours is {value:.3g}.")
        raise CheckFailed(f"on a random pair the score is {right:.4f}; yours is {value:.4f}.")
    inside = _number(_call(function, V @ rng.standard_normal((2, 2)), V), "the score")
    _require(abs(inside - 1) < 1e-8, f"U inside the span of V must score 1; yours gives {inside:.4f}.")
    outside = U - _project(V) @ U
    _require(abs(_number(_call(function, outside, V), "the score")) < 1e-8, "U orthogonal to V must score 0.")
    mixed = _number(_call(function, U, V @ np.array([[1.0, 2.0], [0.0, 1e-3]])), "the score")
    _require(abs(mixed - right) < 1e-6, "another basis of the same span gives another score; only the span may matter.")
    _passed("the score is right: 1 inside, 0 orthogonal, and it only knows the span of V.")


def chance_by_simulation(function: Callable[..., Any]) -> None:
    """Check `function(U, k, draws, seed)`: scores (draws,) of U against random subspaces of dimension k.

    Raises:
        CheckFailed: With what is wrong.
    """
    rng = np.random.default_rng(4)
    d, k, draws = 20, 5, 2000
    U = rng.standard_normal((d, 2)) * np.array([4.0, 0.5]) + 2.0
    scores = _array(_call(function, U, k, draws, 0), (draws,), "the scores")
    _require(
        scores.min() >= 0 and scores.max() <= 1 + 1e-9, "scores must lie between 0 and 1; orthonormalise each random V."
    )
    _require(scores.std() > 1e-6, "all scores are the same; draw a new subspace each time.")
    mean, error = scores.mean(), scores.std() / np.sqrt(draws)
    if abs(mean - k / d) > 6 * error:
        uniform = "numbers from rng.random are all positive, so every V leans to one side; use rng.standard_normal"
        hint = uniform if mean > k / d else "is V of dimension k in d dimensions?"
        raise CheckFailed(f"the mean is {mean:.3f}, chance is k/d = {k / d:.3f}: {hint}.")
    again = _array(_call(function, U, k, draws, 0), (draws,), "the scores")
    _require(np.array_equal(scores, again), "the same seed gives other scores; use np.random.default_rng(seed).")
    other = _array(_call(function, U, k, draws, 1), (draws,), "the scores")
    _require(not np.array_equal(scores, other), "another seed gives the same scores; use the seed you are given.")
    _passed(f"chance is k/d: your mean of {draws} draws is {mean:.3f}, k/d = {k / d:.3f}.")


def breaking_scale(function: Callable[..., Any]) -> None:
    """Check `function(M, X, C0, C1, k)`: positive scales (d,) of the features that move the raw score by 0.3 or more.

    A reader sees scale * feature; what is predicted, next state and label, stays in its old units. Then V and U are
    divided by the scales, and no loss changes, whatever the positive scales are.

    Raises:
        CheckFailed: With what is wrong.
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

    scale = _array(_call(function, M, X, C0, C1, k), (d,), "the scales")
    _require((scale > 0).all(), "scales must be positive: a zero throws a feature away, and a sign changes nothing.")
    _require(
        scale.max() / scale.min() <= 1e6 * (1 + 1e-9),
        "keep the largest scale within a factor of a million of the smallest, or rounding breaks the score for you.",
    )
    before, after = raw_score(np.ones(d)), raw_score(scale)
    _require(
        np.ptp(scale) > 1e-9 * scale.max(),
        "all scales are equal: U and V then change length, not direction, and the score stays; scale features "
        "differently.",
    )
    _require(
        abs(after - before) >= 0.3,
        f"the score only moves from {before:.2f} to {after:.2f}; move it by 0.3. Which features must grow so that "
        "U leaves "
        "(or enters) V? Remember that directions shrink where features grow.",
    )
    _passed(
        f"the raw score moved from {before:.2f} to {after:.2f}, and no reader of the features can tell the difference."
    )


def excess_between_bounds(function: Callable[..., Any]) -> None:
    """Check `function(M, X, V)`: (lower, exact, upper), the whitened bounds and the excess loss, with k_U = rank(X).

    Raises:
        CheckFailed: With what is wrong.
    """
    rng = np.random.default_rng(6)
    for d, c, k in ((6, 2, 3), (8, 3, 3), (5, 1, 2)):
        M, X, V = _random_gram(rng, d), rng.standard_normal((d, c)), rng.standard_normal((d, k))
        given = _array(_call(function, M, X, V), (3,), "(lower, exact, upper)")
        values, U = _generalized(X, M)
        values = values[:c]
        explained = float(np.trace(np.linalg.solve(V.T @ M @ V, V.T @ X @ X.T @ V)))
        exact = float(values.sum() - explained)
        w, Q = np.linalg.eigh(M)
        half = (Q * np.sqrt(w)) @ Q.T
        missing = c - float(np.square(_project(half @ V) @ (half @ U[:, :c])).sum())
        if not np.isclose(given[1], exact, rtol=1e-6):
            _require(
                not np.isclose(given[1], explained), "that is what V explains; the excess is sum(lambda) minus it."
            )
            plain = values.sum() - np.trace(V.T @ X @ X.T @ V)
            _require(
                not np.isclose(given[1], plain),
                "the readout of V^T x must be fitted: tr((V^T M V)^-1 V^T X X^T V), with the inverse.",
            )
            raise CheckFailed(f"the exact excess loss is {exact:.4f} here; yours is {given[1]:.4f}.")
        wanted = (values[-1] * missing, values[0] * missing)
        if not np.allclose(given[[0, 2]], wanted, rtol=1e-6):
            _require(
                not np.allclose(given[[2, 0]], wanted, rtol=1e-6),
                "lower and upper are swapped: the largest eigenvalue belongs to the upper bound.",
            )
            raw = float(np.square(U[:, :c] - _project(V) @ U[:, :c]).sum())
            _require(
                not np.allclose(given[[0, 2]], (values[-1] * raw, values[0] * raw), rtol=1e-6),
                "you measured the missing part of U itself; whiten first: M^(1/2) U against the span of M^(1/2) V.",
            )
            raise CheckFailed(
                f"the bounds are lambda_k m and lambda_1 m with m = {missing:.4f}, so [{wanted[0]:.4f}, "
                f"{wanted[1]:.4f}]; "
                f"yours are [{given[0]:.4f}, {given[2]:.4f}]."
            )
    _passed("the exact excess loss lies between its bounds, on three random problems.")


def above_chance(function: Callable[..., Any]) -> None:
    """Check `function(score, k, d)`: the score read against chance, 0 at k/d and 1 at 1.

    Raises:
        CheckFailed: With what is wrong.
    """
    value = _number(_call(function, 0.25, 32, 128), "the result")
    _require(abs(value) < 1e-12, f"a score of k/d is chance and must give 0; yours gives {value:.3f}.")
    top = _number(_call(function, 1.0, 32, 128), "the result")
    _require(
        abs(top - 1) < 1e-12,
        f"a perfect score must give 1; yours gives {top:.3f}: divide by the room above chance, 1 - k/d.",
    )
    below = _number(_call(function, 0.1, 32, 128), "the result")
    _require(below < 0, "a score below chance must come out negative; do not cut it off at 0.")
    _require(
        abs(below + 0.2) < 1e-12, f"0.1 at a chance of 0.25 is -0.2 of the room above chance; yours gives {below:.3f}."
    )
    _passed("0 at chance, 1 at the top, negative below chance.")


def smallest_rank(function: Callable[..., Any]) -> None:
    """Check `function(ranks, explained, share)`: the first rank at which `share` of the last value is reached.

    Raises:
        CheckFailed: With what is wrong.
    """
    ranks, explained = [1, 2, 4, 8, 16], [0.05, 0.2, 0.4, 0.45, 0.5]
    for share, right in ((0.8, 4), (0.9, 8), (1.0, 16), (0.05, 1)):
        value = _number(_call(function, ranks, explained, share), "the rank")
        if value != right:
            _require(value in ranks, f"{value:g} is not among the ranks {ranks}; did you return a position or a share?")
            _require(
                not (share == 0.8 and value == 16),
                "0.8 is a share OF the last value (0.5), so 0.4 is enough; did you compare with 0.8 itself?",
            )
            _require(value > right, f"at rank {value:g} the share {share} of {explained[-1]} is not reached yet.")
            raise CheckFailed(
                f"rank {right} already reaches {share} of {explained[-1]}; you returned {value:g}: is it >= ?"
            )
    _passed("the smallest rank that keeps the share asked for.")
