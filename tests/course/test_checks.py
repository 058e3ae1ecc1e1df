"""Every exercise check accepts the solution and names the fault of each planted wrong answer."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from ntps.course import checks
from ntps.course.checks.linear import CheckFailed

SOLUTIONS = Path(__file__).parents[2] / "notebooks" / "solutions"


def solution_functions() -> dict:
    """The functions of all solution cells, as the notebooks define them."""
    namespace: dict = {"np": np}
    for path in sorted(SOLUTIONS.glob("ex0[12]_*.py")):
        for cell in path.read_text(encoding="utf-8").split("\n# %%"):
            head, _, body = cell.partition("\n")
            if 'tags=["solution"]' in head and "[markdown]" not in head and re.search(r"^def ", body, re.MULTILINE):
                exec(compile(body, str(path), "exec"), namespace)
    return namespace


SOLVED = solution_functions()


def above_chance(score, k, d):
    return (score - k / d) / (1 - k / d)


def smallest_rank(ranks, explained, share):
    return next(rank for rank, value in zip(ranks, explained, strict=True) if value >= share * explained[-1])


RIGHT = {
    checks.next_token_encoder: SOLVED["next_token_encoder"],
    checks.perception_by_regression: SOLVED["perception_by_regression"],
    checks.projector: SOLVED["projector"],
    checks.ntps: SOLVED["score"],
    checks.chance_by_simulation: SOLVED["chance_by_simulation"],
    checks.excess_between_bounds: SOLVED["excess_between_bounds"],
    checks.breaking_scale: SOLVED["breaking_scale"],
    checks.above_chance: above_chance,
    checks.smallest_rank: smallest_rank,
}


def whitener(B):
    w, Q = np.linalg.eigh(B)
    return Q / np.sqrt(w)


def generalized(F, B):
    T = whitener(B)
    return T @ np.linalg.svd(T.T @ F)[0]


def root(B):
    w, Q = np.linalg.eigh(B)
    return (Q * np.sqrt(w)) @ Q.T


def lstsq(x, y):
    return np.linalg.lstsq(x, y, rcond=None)[0]


def fitted(x, y):
    return np.linalg.svd(x @ lstsq(x, y), full_matrices=False)[2]


def qr(V):
    return np.linalg.qr(V)[0]


def in_place(U, V):
    U *= 2
    return SOLVED["score"](U, V)


def absolute_tolerance(C0, C1, k):
    w, Q = np.linalg.eigh(C0)
    keep = w > 1e-6
    T = Q[:, keep] / np.sqrt(w[keep])
    return T @ np.linalg.svd(T.T @ C1)[0][:, :k]


def crash(*args):
    raise IndexError("too many indices")


def todo(*args):
    raise NotImplementedError("your turn")


def draws(sample, orthonormal=True, k_of=lambda k: k, seeded=True):
    def function(U, k, count, seed):
        rng = np.random.default_rng(seed if seeded else None)
        bases = [sample(rng, (len(U), k_of(k))) for _ in range(count)]
        bases = [qr(V) if orthonormal else V for V in bases]
        return np.array([np.square(V.T @ U).sum() / np.square(U).sum() for V in bases])

    return function


def normal(rng, shape):
    return rng.standard_normal(shape)


def bounds(M, X, V, *, swap=False, raw=False, fit=True, total=True, factor=1.0):
    values = np.linalg.svd(whitener(M).T @ X, compute_uv=False) ** 2
    U = generalized(X, M)[:, : len(values)]
    inner = np.linalg.inv(V.T @ M @ V) if fit else np.eye(V.shape[1])
    explained = np.trace(inner @ V.T @ X @ X.T @ V)
    exact = values.sum() - explained if total else explained
    half = np.eye(len(M)) if raw else root(M)
    missing = np.square(half @ U).sum() - np.square(qr(half @ V).T @ half @ U).sum()
    low, high = factor * values[-1] * missing, values[0] * missing
    return (high, exact, low) if swap else (low, exact, high)


SCORE = SOLVED["score"]
WRONG = [
    (checks.next_token_encoder, todo, "not written yet"),
    (checks.next_token_encoder, crash, "raised IndexError: too many indices"),
    (checks.next_token_encoder, lambda C0, C1, k: None, "forget `return`"),
    (checks.next_token_encoder, lambda C0, C1, k: generalized(C1, C0)[:, :k].T, "transposed"),
    (checks.next_token_encoder, lambda C0, C1, k: generalized(C1, C0)[:, -k:], "SMALLEST"),
    (checks.next_token_encoder, lambda C0, C1, k: np.linalg.svd(C1)[0][:, :k], "C0 must enter"),
    (checks.next_token_encoder, lambda C0, C1, k: np.linalg.eigh(C0)[1][:, -k:], "principal components"),
    (checks.next_token_encoder, lambda C0, C1, k: generalized(C1.T, C0)[:, :k], "FIRST factor"),
    (
        checks.next_token_encoder,
        lambda C0, C1, k: np.linalg.svd(whitener(C0).T @ C1)[0][:, :k],
        "whitened coordinates",
    ),
    (checks.next_token_encoder, lambda C0, C1, k: qr(generalized(C1, C0)[:, :k]), "not the identity"),
    (checks.next_token_encoder, lambda C0, C1, k: generalized(C1, C0)[:, :k][:, ::-1], "order of use"),
    (checks.next_token_encoder, lambda C0, C1, k: np.repeat(generalized(C1, C0)[:, :1], k, 1), "not independent"),
    (checks.next_token_encoder, lambda C0, C1, k: generalized(C1, C0)[:, :k] * np.nan, "NaN"),
    (checks.next_token_encoder, absolute_tolerance, "absolute"),
    (checks.next_token_encoder, lambda C0, C1, k: generalized(C1 + C1.T, C0)[:, :k], "does not span"),
    (checks.perception_by_regression, lambda x, y, k: np.linalg.svd(lstsq(x, y))[0][:, :k], "PREDICTION"),
    (checks.perception_by_regression, lambda x, y, k: lstsq(x, y)[:, :k], "first 2 labels"),
    (checks.perception_by_regression, lambda x, y, k: np.linalg.svd(x)[2][:k].T, "labels never entered"),
    (checks.perception_by_regression, lambda x, y, k: np.linalg.svd(x.T @ y)[0][:, :k], "divide by M"),
    (checks.perception_by_regression, lambda x, y, k: lstsq(x, y) @ fitted(x, y)[-k:].T, "LEAST variance"),
    (
        checks.perception_by_regression,
        lambda x, y, k: SOLVED["perception_by_regression"](x - x.mean(0), y - y.mean(0), k),
        "you centred",
    ),
    (checks.perception_by_regression, lambda x, y, k: np.eye(x.shape[1])[:, :k], "do not span"),
    (checks.projector, lambda V: V @ V.T, "not idempotent.*orthonormalise"),
    (checks.projector, lambda V: qr(V), "shape"),
    (checks.projector, lambda V: np.eye(len(V)) - qr(V) @ qr(V).T, "orthogonal to V"),
    (
        checks.projector,
        lambda V: V @ np.linalg.inv(np.tril(np.ones((6, 6)))[:2] @ V) @ np.tril(np.ones((6, 6)))[:2],
        "slant",
    ),
    (checks.projector, lambda V: qr(V)[:, :1] @ qr(V)[:, :1].T, "P V is not V"),
    (checks.projector, lambda V: V @ np.linalg.inv(V.T @ V) @ V.T, "nearly parallel|raised LinAlgError"),
    (checks.ntps, lambda U, V: np.sqrt(SCORE(U, V)), "root"),
    (checks.ntps, lambda U, V: np.square(V.T @ U).sum() / np.square(U).sum(), "not orthonormal"),
    (checks.ntps, lambda U, V: SCORE(qr(U), V), "orthonormalised U"),
    (checks.ntps, lambda U, V: SCORE(V, U), "swapped"),
    (checks.ntps, lambda U, V: np.square(qr(V).T @ U).sum(), "divide it"),
    (checks.ntps, lambda U, V: 1 - SCORE(U, V), "outside"),
    (checks.ntps, lambda U, V: 7.0, "between 0 and 1"),
    (checks.ntps, lambda U, V: 0.5, "on a random pair"),
    (checks.ntps, lambda U, V: U, "one number"),
    (checks.ntps, in_place, "changed its input"),
    (checks.chance_by_simulation, draws(lambda rng, shape: rng.random(shape)), "all positive"),
    (checks.chance_by_simulation, draws(normal, orthonormal=False), "between 0 and 1"),
    (checks.chance_by_simulation, draws(normal, k_of=lambda k: k - 2), "dimension k"),
    (checks.chance_by_simulation, draws(normal, seeded=False), "same seed"),
    (checks.chance_by_simulation, lambda U, k, n, seed: np.full(n, k / len(U)), "all scores are the same"),
    (checks.chance_by_simulation, lambda U, k, n, seed: draws(normal)(U, k, n, 7), "another seed"),
    (checks.excess_between_bounds, lambda M, X, V: bounds(M, X, V, swap=True), "swapped"),
    (checks.excess_between_bounds, lambda M, X, V: bounds(M, X, V, raw=True), "whiten first"),
    (checks.excess_between_bounds, lambda M, X, V: bounds(M, X, V, fit=False), "with the inverse"),
    (checks.excess_between_bounds, lambda M, X, V: bounds(M, X, V, total=False), r"sum\(lambda\) minus"),
    (checks.excess_between_bounds, lambda M, X, V: bounds(M, X, V, factor=0.5), "bounds are lambda_k m"),
    (checks.excess_between_bounds, lambda M, X, V: (0, 1, 2), "exact excess loss is"),
    (checks.breaking_scale, lambda M, X, C0, C1, k: np.full(len(M), 3.0), "all scales are equal"),
    (checks.breaking_scale, lambda M, X, C0, C1, k: np.eye(len(M))[0], "positive"),
    (checks.breaking_scale, lambda M, X, C0, C1, k: np.linspace(1, 1.1, len(M)), "move it by 0.3"),
    (checks.breaking_scale, lambda M, X, C0, C1, k: np.geomspace(1e-9, 1, len(M)), "million"),
    (checks.above_chance, lambda score, k, d: score, "chance and must give 0"),
    (checks.above_chance, lambda score, k, d: score - k / d, "perfect score"),
    (checks.above_chance, lambda score, k, d: max(above_chance(score, k, d), 0), "negative"),
    (checks.smallest_rank, lambda ranks, explained, share: smallest_rank(ranks, explained, 0) - 1, "not among"),
    (checks.smallest_rank, lambda ranks, explained, share: 1, "not reached"),
    (
        checks.smallest_rank,
        lambda r, e, share: next((a for a, v in zip(r, e, strict=True) if v >= share), r[-1]),
        "OF the last value",
    ),
]


@pytest.mark.parametrize("check", RIGHT, ids=lambda check: check.__name__)
def test_solutions_pass(check, capsys):
    check(RIGHT[check])
    assert capsys.readouterr().out.startswith("✓")


@pytest.mark.parametrize(("check", "wrong", "says"), WRONG, ids=[f"{c.__name__}-{s[:20]}" for c, _, s in WRONG])
def test_wrong_answers_are_diagnosed(check, wrong, says):
    with pytest.raises(CheckFailed, match=says):
        check(wrong)


def test_every_check_has_two_planted_wrong_answers():
    public = {f for name, f in vars(checks).items() if callable(f) and getattr(f, "__module__", "") == checks.__name__}
    public = {f for f in public if not f.__name__.startswith("_") and f is not CheckFailed}
    assert public == set(RIGHT)
    for check in public:
        assert sum(entry[0] is check for entry in WRONG) >= 2, check.__name__


def test_tensors_are_understood(capsys):
    checks.projector(lambda V: torch.from_numpy(SOLVED["projector"](V)))
    checks.ntps(lambda U, V: torch.tensor(SCORE(U, V), dtype=torch.float64))


def test_only_the_sentence_shows_in_a_notebook():
    error = CheckFailed("your projector is not idempotent")
    assert error._render_traceback_() == ["✗ your projector is not idempotent"]


def test_a_result_instead_of_a_function_is_named():
    with pytest.raises(CheckFailed, match="the function itself"):
        checks.projector(np.eye(3))
