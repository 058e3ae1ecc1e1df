"""Every exercise check accepts the solution and names the fault of each planted wrong answer."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from ntps.course import checks
from ntps.course.checks import CheckFailed
from ntps.finetune.changes import intruder_dimensions
from ntps.scoring.pvalues import permutation_p

SOLUTIONS = Path(__file__).parents[2] / "notebooks" / "solutions"


def solution_functions() -> dict:
    """The functions of all solution cells, as the notebooks define them."""
    namespace: dict = {"np": np}
    for path in sorted(SOLUTIONS.glob("ex*.py")):
        for cell in path.read_text(encoding="utf-8").split("\n# %%"):
            head, _, body = cell.partition("\n")
            if 'tags=["solution"]' in head and "[markdown]" not in head and re.search(r"^def ", body, re.MULTILINE):
                exec(compile(body, str(path), "exec"), namespace)
    return namespace


SOLVED = solution_functions()
CHECKS = {name: getattr(checks, name) for name in checks.__all__ if name != "CheckFailed"}
RIGHT = {check: SOLVED["score" if name == "ntps" else name] for name, check in CHECKS.items()}
SCORE = SOLVED["score"]

# Lessons 00 to 02: what a learner may write instead ------------------------------------------------------------------


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
    return SCORE(U, V)


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


# Lesson 03 ------------------------------------------------------------------------------------------------------------


def judged(accuracies, sizes, *, within=1e-4, exact=False):
    for name, size in sizes.items():
        off = abs(accuracies * size - np.round(accuracies * size))
        if (off == 0).all() if exact else (off < within).all():
            return name
    return "none"


def joined(row):
    return f"{row['question_1']} {row['question_2']}"


def choose(values, accuracy, task, *, leak=False, signed=False, pearson=False):
    keep = np.ones(len(accuracy), dtype=bool)
    keep[task] = leak
    x, y = values[:, keep], accuracy[keep]
    if not pearson:
        x, y = x.argsort(1).argsort(1), y.argsort().argsort()
    rho = np.array([np.corrcoef(row, y)[0, 1] for row in x])
    return int((rho if signed else np.abs(rho)).argmax())


# Lesson 04 ------------------------------------------------------------------------------------------------------------

PREDICTED = SOLVED["gain_without_task"]


def cosines(before, after, k):
    left = [np.linalg.svd(part, full_matrices=False)[0] for part in (before, after)]
    return left[0].T @ left[1][:, :k]


def intruders(before, after, k, epsilon):
    return [int(i) for i in np.flatnonzero(np.abs(cosines(before, after, k)).max(0) < epsilon)]


def where(mask):
    return np.flatnonzero(mask)


def leaking(accuracy, gain, task):
    return np.polyval(np.polyfit(accuracy.ravel(), gain.ravel(), 1), accuracy[:, task])


def cell_by_cell(accuracy, gain, task):
    found = []
    for model in range(len(gain)):
        keep = np.ones(gain.shape, dtype=bool)
        keep[model, task] = False
        found.append(np.polyval(np.polyfit(accuracy[keep], gain[keep], 1), accuracy[model, task]))
    return np.array(found)


def model_by_model(accuracy, gain, task):
    rows = zip(np.delete(accuracy, task, 1), np.delete(gain, task, 1), accuracy[:, task], strict=True)
    return np.array([np.polyval(np.polyfit(x, y, 1), at) for x, y, at in rows])


def errors(accuracy, gain, *, line=PREDICTED, leak=False, size=np.abs, rival=None):
    tasks = range(gain.shape[1])
    first = np.stack([line(accuracy, gain, task) for task in tasks], 1)
    means = [gain.mean() if leak else np.delete(gain, task, 1).mean() for task in tasks]
    second = np.broadcast_to(means if rival is None else rival, gain.shape)
    return size(first - gain).mean(), size(second - gain).mean()


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
    (checks.above_chance, lambda score, k, d: max(SOLVED["above_chance"](score, k, d), 0), "negative"),
    (
        checks.smallest_rank,
        lambda ranks, explained, share: SOLVED["smallest_rank"](ranks, explained, 0) - 1,
        "not among",
    ),
    (checks.smallest_rank, lambda ranks, explained, share: 1, "not reached"),
    (
        checks.smallest_rank,
        lambda r, e, share: next((a for a, v in zip(r, e, strict=True) if v >= share), r[-1]),
        "OF the last value",
    ),
    (checks.permutation_p, lambda o, null: np.mean(null >= o), "divide the hits by 99"),
    (checks.permutation_p, lambda o, null: 0.0, "p is 0"),
    (checks.permutation_p, lambda o, null: (1 + np.sum(null > o)) / (1 + len(null)), "ties|should be"),
    (checks.permutation_p, lambda o, null: (1 + np.sum(null <= o)) / (1 + len(null)), "below|should be"),
    (checks.permutation_p, lambda o, null: np.sum(null >= o) + 1, "between 0 and 1"),
    (checks.permutation_p, lambda o, null: None, "return"),
    (checks.permutation_p, lambda o, null: "small", "one number"),
    (checks.choose_without, lambda v, a, t: choose(v, a, t, leak=True), "leaks"),
    (checks.choose_without, lambda v, a, t: choose(v, a, t, signed=True), "absolute"),
    (checks.choose_without, lambda v, a, t: choose(v, a, t, pearson=True), "Pearson"),
    (checks.choose_without, lambda v, a, t: 20, "row number"),
    (checks.choose_without, lambda v, a, t: (choose(v, a, t) + 1) % 20, "option .* has"),
    (checks.judged_on, lambda a, s: judged(a, s, exact=True), "last bit"),
    (checks.judged_on, lambda a, s: judged(a[:1], s), "by chance"),
    (checks.judged_on, lambda a, s: judged(a, s, within=0.6), "so wide"),
    (checks.judged_on, lambda a, s: "train", "the answer is|so wide|by chance"),
    (checks.judged_on, lambda a, s: 1066, "'train', 'test' or 'none'"),
    (checks.joined_questions, lambda rows: [joined(row) for row in rows][:1], "you return the first"),
    (
        checks.joined_questions,
        lambda rows: [joined(rows[0]), *(row["question_1"] for row in rows[1:])],
        "only the first of",
    ),
    (checks.joined_questions, lambda rows: joined(rows[0]), "the list of texts"),
    (checks.joined_questions, lambda rows: [row["question_1"] + row["question_2"] for row in rows], "blank"),
    (checks.joined_questions, lambda rows: [row["question_1"] for row in rows], "last row"),
    (checks.merged_weight, lambda W, B, A, alpha: W + B @ A, "as it is"),
    (checks.merged_weight, lambda W, B, A, alpha: W + alpha * B @ A, "divide by the rank"),
    (checks.merged_weight, lambda W, B, A, alpha: W + len(A) / alpha * B @ A, "r / alpha"),
    (checks.merged_weight, lambda W, B, A, alpha: W + alpha / np.sqrt(len(A)) * B @ A, "sqrt"),
    (checks.merged_weight, lambda W, B, A, alpha: W + alpha / A.shape[1] * B @ A, "a side of W"),
    (checks.merged_weight, lambda W, B, A, alpha: alpha / len(A) * B @ A, "the update alone"),
    (checks.merged_weight, lambda W, B, A, alpha: W, "as it was"),
    (checks.merged_weight, lambda W, B, A, alpha: W + alpha / len(A) * A @ B, "raised ValueError"),
    (
        checks.merged_weight,
        lambda W, B, A, alpha: W + alpha / len(A) * ((B @ A).T if W.shape[0] == W.shape[1] else B @ A),
        "transposed",
    ),
    (checks.merged_weight, lambda W, B, A, alpha: W - alpha / len(A) * B @ A, "is not W"),
    (checks.merged_weight, lambda W, B, A, alpha: None, "return"),
    (checks.intruder_indices, lambda b, a, k, e: where(np.abs(cosines(b, a, k)).max(0) >= e), "HAVE a counterpart"),
    (checks.intruder_indices, lambda b, a, k, e: where(cosines(b, a, k).max(0) < e), "sign"),
    (
        checks.intruder_indices,
        lambda b, a, k, e: where(np.abs(np.diag(cosines(b, a, k)[:k])) < e),
        "compare the i-th",
    ),
    (checks.intruder_indices, lambda b, a, k, e: where(np.abs(cosines(b, a, k)[:k]).max(0) < e), "top k only"),
    (checks.intruder_indices, lambda b, a, k, e: where(np.abs(cosines(b, a, k)).min(0) < e), "LARGEST"),
    (checks.intruder_indices, lambda b, a, k, e: intruders(b.T, a.T, k, e), "right singular vectors"),
    (
        checks.intruder_indices,
        lambda b, a, k, e: where(np.abs(cosines(b, a, len(b))[:, -k:]).max(0) < e),
        "weakest",
    ),
    (checks.intruder_indices, lambda b, a, k, e: where((cosines(b, a, k) ** 2).max(0) < e), "squared"),
    (checks.intruder_indices, lambda b, a, k, e: intruders(b, a - b, k, e), "decomposed the update"),
    (checks.intruder_indices, lambda b, a, k, e: intruders(b, a, len(b), e), "strongest vectors only"),
    (checks.intruder_indices, lambda b, a, k, e: np.abs(cosines(b, a, k)).max(0) < e, "indices"),
    (checks.intruder_indices, lambda b, a, k, e: np.abs(cosines(b, a, k)).max(0), "not indices"),
    (checks.intruder_indices, lambda b, a, k, e: len(intruders(b, a, k, e)), "indices"),
    (checks.intruder_indices, lambda b, a, k, e: [*intruders(b, a, k, e)[:-1], 4], "the intruders among"),
    (
        checks.intruder_indices,
        lambda b, a, k, e: [0] if np.array_equal(a, b) else intruders(b, a, k, e),
        "has not changed",
    ),
    (checks.intruder_indices, lambda b, a, k, e: [], "you find none"),
    (checks.gain_without_task, leaking, "has seen the answer"),
    (checks.gain_without_task, cell_by_cell, "in ALL models"),
    (checks.gain_without_task, model_by_model, "ONE"),
    (
        checks.gain_without_task,
        lambda a, g, t: np.full(len(g), np.delete(g, t, 1).mean()),
        "mean gain of the other",
    ),
    (
        checks.gain_without_task,
        lambda a, g, t: a[:, t] * (np.delete(a * g, t, 1).sum() / np.delete(a * a, t, 1).sum()),
        "origin",
    ),
    (checks.gain_without_task, lambda a, g, t: g[:, t], "that were to be predicted"),
    (checks.gain_without_task, lambda a, g, t: PREDICTED(a, g, (t + 1) % g.shape[1]), "should be"),
    (checks.gain_without_task, lambda a, g, t: PREDICTED(a, g, t)[0], "shape"),
    (checks.left_out_errors, lambda a, g: errors(a, g)[::-1], "swapped"),
    (checks.left_out_errors, lambda a, g: errors(a, g, size=np.square), "squared errors"),
    (checks.left_out_errors, lambda a, g: np.sqrt(errors(a, g, size=np.square)), "squared errors"),
    (checks.left_out_errors, lambda a, g: np.abs(errors(a, g, size=np.asarray)), "cancel"),
    (checks.left_out_errors, lambda a, g: errors(a, g, leak=True), "includes the task"),
    (checks.left_out_errors, lambda a, g: errors(a, g, line=leaking), "is its fit"),
    (checks.left_out_errors, lambda a, g: errors(a, g, rival=0.0), "no gain"),
    (checks.left_out_errors, lambda a, g: (0.1, 0.2), "the errors are"),
]


@pytest.mark.parametrize("check", RIGHT, ids=lambda check: check.__name__)
def test_solutions_pass(check, capsys):
    check(RIGHT[check])
    assert capsys.readouterr().out.startswith("✓")


@pytest.mark.parametrize(("check", "wrong", "says"), WRONG, ids=[f"{c.__name__}-{s[:20]}" for c, _, s in WRONG])
def test_wrong_answers_are_diagnosed(check, wrong, says):
    with pytest.raises(CheckFailed, match=says):
        check(wrong)


@pytest.mark.parametrize("check", RIGHT, ids=lambda check: check.__name__)
def test_every_check_has_two_planted_wrong_answers(check):
    assert sum(entry[0] is check for entry in WRONG) >= 2


@pytest.mark.parametrize("check", RIGHT, ids=lambda check: check.__name__)
@pytest.mark.parametrize(
    ("answer", "says"), [(todo, "not written yet"), (crash, "IndexError: too many indices"), (np.eye(3), "itself")]
)
def test_every_check_says_when_there_is_no_answer(check, answer, says):
    with pytest.raises(CheckFailed, match=says):
        check(answer)


@pytest.mark.parametrize(
    ("check", "function"),
    [
        (checks.projector, lambda V: torch.from_numpy(SOLVED["projector"](V))),
        (checks.ntps, lambda U, V: torch.tensor(SCORE(U, V), dtype=torch.float64)),
        (checks.left_out_errors, lambda a, g: list(errors(a, g))),
        (checks.intruder_indices, lambda b, a, k, e: set(SOLVED["intruder_indices"](b, a, k, e).tolist())),
    ],
    ids=["tensor", "scalar tensor", "list", "set"],
)
def test_other_types_are_understood(check, function, capsys):
    check(function)
    assert capsys.readouterr().out.startswith("✓")


def test_the_library_agrees(capsys):
    def intruders_of(before, after, k, epsilon):
        return intruder_dimensions(torch.from_numpy(before), torch.from_numpy(after), k=k, epsilon=epsilon)[0]

    checks.intruder_indices(intruders_of)
    checks.permutation_p(permutation_p)
    assert capsys.readouterr().out.count("✓") == 2


def test_only_the_sentence_shows_in_a_notebook():
    error = CheckFailed("your projector is not idempotent")
    assert error._render_traceback_() == ["✗ your projector is not idempotent"]
