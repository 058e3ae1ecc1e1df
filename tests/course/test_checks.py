"""Every exercise check accepts the solution and names the fault of each planted wrong answer."""

import linecache
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from ntps.course import checks, widgets
from ntps.course.checks import CheckFailed
from ntps.finetune.changes import intruder_dimensions
from ntps.scoring.pvalues import permutation_p

SOLUTIONS = Path(__file__).parents[2] / "notebooks" / "solutions"


def solution_functions() -> dict:
    """The functions of all solution cells, as the notebooks define them."""
    namespace: dict = {"np": np, "widgets": widgets}
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


def bounds(M, X, V, *, swap=False, raw=False, fit=True, total=True, factor=1.0, power=2):
    values = np.linalg.svd(whitener(M).T @ X, compute_uv=False) ** 2
    U = generalized(X, M)[:, : len(values)]
    inner = np.linalg.inv(V.T @ M @ V) if fit else np.eye(V.shape[1])
    explained = np.trace(inner @ V.T @ X @ X.T @ V)
    exact = values.sum() - explained if total else explained
    half = np.eye(len(M)) if raw else root(M)
    missing = np.square(half @ U).sum() - np.square(qr(half @ V).T @ half @ U).sum()
    values = values ** (power / 2)
    low, high = factor * values[-1] * missing, values[0] * missing
    return (high, exact, low) if swap else (low, exact, high)


def with_intercept(x, y, k, *, added=True):
    about = lstsq(x - x.mean(0), y - y.mean(0))
    predicted = (x - x.mean(0)) @ about + y.mean(0) if added else x @ about
    return about @ np.linalg.svd(predicted, full_matrices=False)[2][:k].T


def pca(values, k):
    return np.linalg.svd(values - values.mean(0), full_matrices=False)[2][:k].T


def unit_length(U, k, count, seed):
    rng = np.random.default_rng(seed)
    bases = [V / np.linalg.norm(V, axis=0) for V in rng.standard_normal((count, len(U), k))]
    return np.array([np.square(V.T @ U).sum() / np.square(U).sum() for V in bases]).clip(0, 1)


def random_u(U, k, count, seed):
    rng = np.random.default_rng(seed)
    V = qr(rng.standard_normal((len(U), k)))
    return np.array([SCORE(rng.standard_normal(U.shape), V) for _ in range(count)])


def shuffled_rows(U, k, count, seed):
    rng = np.random.default_rng(seed)
    V = np.linalg.qr(rng.standard_normal((len(U), k)))[0]
    return np.array([SCORE(rng.permutation(U), V) for _ in range(count)])


def coordinate_axes(U, k, count, seed):
    rng = np.random.default_rng(seed)
    return np.array([SCORE(U, np.eye(len(U))[:, rng.permutation(len(U))[:k]]) for _ in range(count)])


# Lesson 03 ------------------------------------------------------------------------------------------------------------


def kendall(values, accuracy, task):
    from scipy.stats import kendalltau

    return int(np.argmax([abs(kendalltau(np.delete(row, task), np.delete(accuracy, task))[0]) for row in values]))


def zero(values, task):
    filled = values.copy()
    filled[..., task] = 0
    return filled


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


def errors(accuracy, gain, *, line=PREDICTED, leak=False, size=np.abs, rival=None, average=np.mean):
    tasks = range(gain.shape[1])
    first = np.stack([line(accuracy, gain, task) for task in tasks], 1)
    means = [gain.mean() if leak else np.delete(gain, task, 1).mean() for task in tasks]
    second = np.broadcast_to(means if rival is None else rival, gain.shape)
    return average(size(first - gain)), average(size(second - gain))


def mean_of_each_model(gain):
    return np.array([[np.delete(row, task).mean() for task in range(len(row))] for row in gain])


def by_rows(before, after, k, epsilon):
    old, new = (np.linalg.svd(part, full_matrices=False)[0] for part in (before, after))
    return np.flatnonzero(np.abs(old @ new.T[:, :k]).max(0) < epsilon)


WRONG = [
    (checks.next_token_encoder, todo, "not written yet"),
    (checks.next_token_encoder, crash, "raised IndexError in line [0-9]+, `raise IndexError.*`: too many indices"),
    (checks.next_token_encoder, lambda C0, C1, k: np.linalg.svd(np.linalg.solve(C0, C1))[0][:, :k], "coefficients"),
    (
        checks.next_token_encoder,
        lambda C0, C1, k: coloured(C0) @ np.linalg.svd(coloured(C0).T @ C1)[0][:, :k],
        "whitening divides",
    ),
    (checks.next_token_encoder, lambda C0, C1, k: cholesky(C0, C1, k, back=lambda L: L), "mapped back by L"),
    (checks.next_token_encoder, lambda C0, C1, k: cholesky(C0, C1, k, back=np.linalg.inv), "mapped back by L"),
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
    (checks.perception_by_regression, lambda x, y, k: with_intercept(x, y, k), "intercept"),
    (checks.perception_by_regression, lambda x, y, k: with_intercept(x, y, k, added=False), "intercept"),
    (checks.perception_by_regression, lambda x, y, k: lstsq(x, y) @ pca(x @ lstsq(x, y), k), "PCA does"),
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
    (checks.projector, lambda V: V @ np.linalg.pinv(V), "you call pinv"),
    (checks.ntps, lambda U, V: np.square(V @ np.linalg.pinv(V) @ U).sum() / np.square(U).sum(), "you call pinv"),
    (
        checks.ntps,
        lambda U, V: np.square(qr(V) @ qr(V).T @ U).sum() / np.square(U).sum(),
        r"it forms a \(d, d\) matrix",
    ),
    (checks.ntps, lambda U, V: f"{SCORE(U, V):.6f}", "yours is text"),
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
    (checks.chance_by_simulation, unit_length, "k = d"),
    (checks.chance_by_simulation, random_u, "spread|do not depend on U"),
    (checks.chance_by_simulation, shuffled_rows, "spread|mean|one fixed V"),
    (checks.chance_by_simulation, coordinate_axes, "spread|single axis"),
    (checks.chance_by_simulation, lambda U, k, n, seed: np.full(n, k / len(U)), "all scores are the same"),
    (checks.chance_by_simulation, lambda U, k, n, seed: draws(normal)(U, k, n, 7), "another seed"),
    (checks.excess_between_bounds, lambda M, X, V: bounds(M, X, V, swap=True), "swapped"),
    (checks.excess_between_bounds, lambda M, X, V: bounds(M, X, V, raw=True), "whiten first"),
    (checks.excess_between_bounds, lambda M, X, V: bounds(M, X, V, fit=False), "with the inverse"),
    (checks.excess_between_bounds, lambda M, X, V: bounds(M, X, V, total=False), r"sum\(lambda\) minus"),
    (checks.excess_between_bounds, lambda M, X, V: bounds(M, X, V, factor=0.5), "bounds are lambda_k m"),
    (checks.excess_between_bounds, lambda M, X, V: (0, 1, 2), "exact excess loss is"),
    (checks.excess_between_bounds, lambda M, X, V: bounds(M, X, V, power=1), "their SQUARES|are their SQUARES"),
    (checks.excess_between_bounds, lambda M, X, V: (0.0, *bounds(M, X, V)[1:]), "full_matrices=False"),
    (checks.breaking_scale, lambda *moments: np.full((2, len(moments[0])), 3.0), "all scales are equal"),
    (checks.breaking_scale, lambda *moments: np.eye(len(moments[0]))[:2], "positive"),
    (checks.breaking_scale, lambda *moments: [np.linspace(1, 1.1, len(moments[0]))] * 2, "reach 0.95"),
    (checks.breaking_scale, lambda *moments: [SOLVED["breaking_scale"](*moments)[0]] * 2, "come down to 0.05"),
    (checks.breaking_scale, lambda *moments: SOLVED["breaking_scale"](*moments)[::-1], "swapped"),
    (checks.breaking_scale, lambda *moments: [np.geomspace(1e-9, 1, len(moments[0]))] * 2, "million"),
    (checks.breaking_scale, lambda *moments: SOLVED["breaking_scale"](*moments)[0], "shape"),
    (
        checks.breaking_scale,
        lambda *moments: np.exp(np.random.default_rng(0).normal(0, 2, (2, len(moments[0])))),
        "reach 0.95|come down",
    ),
    (checks.above_chance, lambda score, k, d: "0.00", "yours is text"),
    (checks.above_chance, lambda score, k, d: round(SOLVED["above_chance"](score, k, d), 2), "a rounded one"),
    (checks.above_chance, lambda score, k, d: score, "chance and must give 0"),
    (checks.above_chance, lambda score, k, d: score - k / d, "perfect score"),
    (checks.above_chance, lambda score, k, d: max(SOLVED["above_chance"](score, k, d), 0), "negative"),
    (
        checks.smallest_rank,
        lambda ranks, explained, share: SOLVED["smallest_rank"](ranks, explained, 0) - 1,
        "not among",
    ),
    (checks.smallest_rank, lambda ranks, explained, share: 8, "not reached"),
    (checks.smallest_rank, lambda r, e, share: int(np.argmax(np.array(e) >= share * e[-1])), "is a position"),
    (checks.smallest_rank, lambda r, e, share: r[np.abs(np.array(e) - share * e[-1]).argmin()], "not the nearest"),
    (checks.smallest_rank, lambda r, e, share: np.interp(share * e[-1], e, r), "do not interpolate"),
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
    (checks.permutation_p, lambda o, null: min(2 * SOLVED["permutation_p"](o, null), 1), "both sides"),
    (checks.choose_without, lambda v, a, t: choose(v, a, t, leak=True), "leaks"),
    (checks.choose_without, lambda v, a, t: choose(v, a, t, signed=True), "absolute"),
    (checks.choose_without, lambda v, a, t: choose(v, a, t, pearson=True), "Pearson"),
    (checks.choose_without, lambda v, a, t: 20, "row number"),
    (checks.choose_without, kendall, "Kendall"),
    (checks.choose_without, lambda v, a, t: choose(zero(v, t), zero(a, t), t, leak=True), "put a zero"),
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
    (checks.joined_questions, lambda rows: [row["question_1"] + row["question_2"] for row in rows], "space"),
    (checks.joined_questions, lambda rows: [row["question_1"] for row in rows], "last row"),
    (checks.merged_weight, lambda W, B, A, alpha: W + alpha // len(A) * B @ A, "with //"),
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
    (checks.intruder_indices, by_rows, "the vectors are its columns"),
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
    (checks.gain_without_task, lambda a, g, t: 100 * PREDICTED(a, g, t), "keep them as shares"),
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
    (checks.left_out_errors, lambda a, g: 100 * np.array(errors(a, g)), "keep them as shares"),
    (checks.left_out_errors, lambda a, g: errors(a, g, average=np.median), "the median"),
    (checks.left_out_errors, lambda a, g: errors(a, g, rival=mean_of_each_model(g)), "of each model alone"),
    # Worlds that break a measure
    (checks.lucky_coin, lambda score_of, n: np.random.default_rng(0).integers(0, 2, n), "reach 0.65"),
    (checks.lucky_coin, lambda score_of, n: np.ones(n), "toss a fair coin"),
    (checks.lucky_coin, lambda score_of, n: np.random.default_rng(0).random(n), "0 or 1"),
    (checks.lucky_coin, lambda score_of, n: score_of(np.arange(n) % 2), "shape"),
    (checks.lucky_coin, lambda score_of, n: np.arange(n - 1) % 2, "shape"),
    (checks.misleading_world, lambda: (30, 75, 1.0), "not low"),
    (checks.misleading_world, lambda: (0, 90, 1.0), "and right"),
    (checks.misleading_world, lambda: (5, 155, 40.0), "panel A allows"),
    (checks.misleading_world, lambda: (-5, 155, 4.0), "0 to 180"),
    (checks.misleading_world, lambda: (5, 155), "shape"),
    (checks.impressive_noise, lambda n, seed: noise(n, 20, seed), "reach 0.9"),
    (checks.impressive_noise, lambda n, seed: noise(n, n, seed), "Use fewer"),
    (
        checks.impressive_noise,
        lambda n, seed: (noise(n, 3, seed)[1][:, None] * 2.0, noise(n, 3, seed)[1]),
        "know the labels",
    ),
    (checks.impressive_noise, lambda n, seed: (noise(n, 110, seed)[0], np.ones(n)), "fair coin"),
    (checks.impressive_noise, lambda n, seed: noise(n, 110, seed)[0], "two things"),
    (checks.choice_from_noise, lambda n, seed: np.random.default_rng(seed).normal(size=(35, n)), "reach 0.85"),
    (checks.choice_from_noise, lambda n, seed: np.random.default_rng(seed).normal(size=(n, 5000)), "one row for each"),
    (checks.choice_from_noise, lambda n, seed: np.random.default_rng(0).normal(size=(5000, n)), "another seed"),
    (checks.choice_from_noise, lambda n, seed: np.random.default_rng(seed).integers(0, 3, (5000, n)), "ties"),
    (checks.choice_from_noise, lambda n, seed: np.random.default_rng(seed).normal(size=(20_000, n)), "fewer will do"),
    (checks.hidden_label, lambda n, seed: clouds(n, seed, lambda a, b: a), "a probe finds"),
    (checks.hidden_label, lambda n, seed: (clouds(n, seed)[0], noise(n, 1, seed + 9)[1]), "nearest neighbour names"),
    (checks.hidden_label, lambda n, seed: clouds(n, seed, lambda a, b: 0 * a), "both classes"),
    (checks.hidden_label, lambda n, seed: (clouds(n, seed)[0].T, clouds(n, seed)[1]), "must be numbers of shape"),
    (checks.hidden_label, lambda n, seed: clouds(n, seed, spread=8), "nearest neighbour names"),
    (checks.unseen_change, lambda W: W, "moved by 0 %"),
    (checks.unseen_change, lambda W: 1.5 * W, "moved by 50 %"),
    (checks.unseen_change, lambda W: W + 2 * np.random.default_rng(5).standard_normal(W.shape), "are intruders"),
    (checks.unseen_change, lambda W: W + 30 * np.outer(np.ones(len(W)), np.ones(W.shape[1])), "1 of the 10"),
    (checks.unseen_change, lambda W: np.linalg.svd(W, full_matrices=False)[0], "shape|moved by"),
    (checks.unseen_change, lambda W: np.nan * W, "numbers"),
]


# Right answers in other styles: other algorithms, types and precisions -----------------------------------------------


def single(function):
    """The same in single precision, arguments and result."""

    def answer(*arguments):
        narrow = [part.astype(np.float32) if isinstance(part, np.ndarray) else part for part in arguments]
        result = function(*narrow)
        if isinstance(result, tuple):
            return tuple(np.asarray(part, dtype=np.float32) for part in result)
        return np.asarray(result, dtype=np.float32)

    return answer


def tensor(function):
    """The same as a tensor that a gradient hangs on."""
    return lambda *arguments: torch.tensor(np.asarray(function(*arguments), dtype=float), requires_grad=True)


def nested(function):
    """The same as lists."""
    return lambda *arguments: np.asarray(function(*arguments)).tolist()


def column(function):
    """The same as one column, as scikit-learn gives it."""
    return lambda *arguments: np.asarray(function(*arguments))[:, None]


def boxed(function):
    """The same number in an array of one entry."""
    return lambda *arguments: np.array([function(*arguments)])


def by_scipy(C0, C1, k):
    from scipy.linalg import eigh

    return eigh(C1 @ C1.T, C0)[1][:, ::-1][:, :k]


def cholesky(C0, C1, k, back=lambda L: np.linalg.inv(L).T):
    L = np.linalg.cholesky(C0)
    return back(L) @ np.linalg.svd(np.linalg.solve(L, C1))[0][:, :k]


def coloured(B):
    w, Q = np.linalg.eigh(B)
    return Q * np.sqrt(w)


def by_moments(x, y, k):
    return generalized(x.T @ y / len(x), x.T @ x / len(x))[:, :k]


def by_svd(V):
    left = np.linalg.svd(V, full_matrices=False)[0]
    return left @ left.T


def gram_schmidt(V):
    basis = []
    for v in V.T:
        for _ in range(2):
            v = v / np.linalg.norm(v)
            v = v - sum((b * (b @ v) for b in basis), np.zeros(len(v)))
        basis.append(v / np.linalg.norm(v))
    return np.stack(basis, 1) @ np.stack(basis)


def by_residual(U, V):
    return 1 - np.square(U - V @ lstsq(V, U)).sum() / np.square(U).sum()


def by_angles(U, V):
    left, lengths, _ = np.linalg.svd(U, full_matrices=False)
    return np.square(lengths) @ np.square(left.T @ qr(V)).sum(1) / np.square(lengths).sum()


def ranks_by_scipy(values, accuracy, task):
    from scipy.stats import spearmanr

    found = [abs(spearmanr(np.delete(row, task), np.delete(accuracy, task))[0]) for row in values]
    return np.array([np.argmax(found)])


def by_fractions(accuracies, sizes):
    for name in ("train", "test"):
        whole = np.rint(np.multiply(accuracies, sizes[name]))
        if np.allclose(whole / sizes[name], accuracies, rtol=0, atol=1e-9):
            return name
    return "none"


def by_lstsq(accuracy, gain, task):
    keep = [t for t in range(gain.shape[1]) if t != task]
    design = np.stack([np.ones(accuracy[:, keep].size), accuracy[:, keep].ravel()], 1)
    intercept, slope = lstsq(design, gain[:, keep].ravel())
    return [intercept + slope * value for value in accuracy[:, task]]


def climbing(score_of, n):
    labels, rng = np.random.default_rng(1).integers(0, 2, n), np.random.default_rng(2)
    while score_of(labels) < 0.66:
        tried = labels.copy()
        tried[rng.choice(n, 2, replace=False)] = rng.permutation([0, 1])
        labels = max(labels, tried, key=score_of)
    return labels


def noise(n, d, seed):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((n, d)), rng.integers(0, 2, n)


def clouds(n, seed, label=np.bitwise_xor, spread=1.0):
    rng = np.random.default_rng(seed)
    first, second = rng.integers(0, 2, (2, n))
    return 10 * np.stack([first, second], 1) + spread * rng.standard_normal((n, 2)), label(first, second)


def rings(n, seed):
    rng = np.random.default_rng(seed)
    y, angle = rng.integers(0, 2, n), rng.uniform(0, 2 * np.pi, n)
    return (1 + 3 * y)[:, None] * np.stack([np.cos(angle), np.sin(angle)], 1), y


STYLES = [
    (checks.next_token_encoder, by_scipy),
    (checks.next_token_encoder, cholesky),
    (checks.next_token_encoder, single(SOLVED["next_token_encoder"])),
    (checks.next_token_encoder, tensor(SOLVED["next_token_encoder"])),
    (checks.perception_by_regression, by_moments),
    (checks.perception_by_regression, nested(SOLVED["perception_by_regression"])),
    (checks.perception_by_regression, single(SOLVED["perception_by_regression"])),
    (checks.projector, by_svd),
    (checks.projector, gram_schmidt),
    (checks.projector, nested(SOLVED["projector"])),
    (checks.projector, tensor(SOLVED["projector"])),
    (checks.ntps, by_residual),
    (checks.ntps, by_angles),
    (checks.ntps, single(SCORE)),
    (checks.ntps, boxed(SCORE)),
    (checks.ntps, tensor(SCORE)),
    (checks.chance_by_simulation, column(SOLVED["chance_by_simulation"])),
    (checks.chance_by_simulation, single(SOLVED["chance_by_simulation"])),
    (checks.chance_by_simulation, lambda U, k, n, seed: draws(normal)(U, k, n, seed).tolist()),
    (checks.excess_between_bounds, bounds),
    (checks.excess_between_bounds, single(SOLVED["excess_between_bounds"])),
    (checks.excess_between_bounds, lambda M, X, V: np.array([SOLVED["excess_between_bounds"](M, X, V)])),
    (checks.breaking_scale, single(SOLVED["breaking_scale"])),
    (checks.breaking_scale, nested(SOLVED["breaking_scale"])),
    (checks.breaking_scale, lambda *moments: 100 * np.array(SOLVED["breaking_scale"](*moments))),
    (checks.above_chance, lambda score, k, d: np.float32((score * d - k) / (d - k))),
    (checks.above_chance, lambda score, k, d: 1 - (1 - score) / (1 - k / d)),
    (checks.above_chance, boxed(SOLVED["above_chance"])),
    (checks.smallest_rank, lambda r, e, s: np.array(r)[np.array(e) >= s * e[-1]].min()),
    (checks.smallest_rank, lambda r, e, s: r[np.searchsorted(e, s * e[-1] - 1e-12)]),
    (checks.smallest_rank, boxed(SOLVED["smallest_rank"])),
    (checks.permutation_p, lambda o, null: np.mean(np.append(null, o) >= o)),
    (checks.permutation_p, boxed(SOLVED["permutation_p"])),
    (checks.permutation_p, lambda o, null: np.float32((sum(v >= o for v in null) + 1) / (len(null) + 1))),
    (checks.choose_without, ranks_by_scipy),
    (checks.choose_without, lambda v, a, t: float(choose(v, a, t))),
    (checks.choose_without, lambda v, a, t: torch.tensor([choose(v, a, t)])),
    (checks.judged_on, by_fractions),
    (checks.judged_on, lambda a, s: np.str_(judged(a, s))),
    (checks.judged_on, lambda a, s: judged(np.array(a.tolist()), dict(s), within=1e-3)),
    (checks.joined_questions, lambda rows: [joined(row) for row in rows]),
    (checks.joined_questions, lambda rows: [" ".join((row["question_1"], row["question_2"])) for row in rows]),
    (checks.joined_questions, lambda rows: list(map(joined, rows))),
    (checks.merged_weight, single(SOLVED["merged_weight"])),
    (checks.merged_weight, lambda W, B, A, alpha: W + (B * (alpha / B.shape[1])) @ A),
    (checks.merged_weight, nested(SOLVED["merged_weight"])),
    (checks.intruder_indices, lambda b, a, k, e: set(intruders(b, a, k, e))),
    (checks.intruder_indices, single(SOLVED["intruder_indices"])),
    (checks.intruder_indices, lambda b, a, k, e: [float(i) for i in intruders(b, a, k, e)]),
    (checks.gain_without_task, by_lstsq),
    (checks.gain_without_task, column(PREDICTED)),
    (checks.gain_without_task, single(PREDICTED)),
    (checks.left_out_errors, nested(SOLVED["left_out_errors"])),
    (checks.left_out_errors, column(SOLVED["left_out_errors"])),
    (checks.left_out_errors, lambda a, g: errors(a, g, line=by_lstsq)),
    (checks.lucky_coin, climbing),
    (checks.lucky_coin, column(SOLVED["lucky_coin"])),
    (checks.lucky_coin, nested(SOLVED["lucky_coin"])),
    (checks.misleading_world, lambda: (5, 155, 4)),
    (checks.misleading_world, lambda: [175.0, 30.0, 4.0]),
    (checks.misleading_world, lambda: np.array([[85, 105, 0.2]])),
    (checks.impressive_noise, lambda n, seed: noise(n, n - 5, seed)),
    (checks.impressive_noise, lambda n, seed: list(noise(n, n - 3, seed))),
    (checks.impressive_noise, lambda n, seed: tuple(map(torch.from_numpy, noise(n, n - 4, seed)))),
    (checks.choice_from_noise, lambda n, seed: np.random.default_rng(seed).random((10_000, n))),
    (checks.choice_from_noise, lambda n, seed: np.random.default_rng(seed).normal(size=(3000, n)).tolist()),
    (checks.choice_from_noise, lambda n, seed: torch.randn(4000, n, generator=torch.Generator().manual_seed(seed))),
    (checks.unseen_change, lambda W: 3 * torch.from_numpy(W)),
    (checks.unseen_change, lambda W: W @ np.linalg.qr(np.random.default_rng(3).standard_normal((W.shape[1],) * 2))[0]),
    (checks.unseen_change, lambda W: (-2 * W).astype(np.float32).tolist()),
    (checks.hidden_label, rings),
    (checks.hidden_label, lambda n, seed: list(clouds(n, seed, lambda a, b: a == b))),
    (checks.hidden_label, lambda n, seed: (clouds(n, seed)[0], clouds(n, seed)[1][:, None])),
]


@pytest.mark.parametrize(
    "check",
    [
        pytest.param(check, marks=[pytest.mark.slow] if check is checks.misleading_world else (), id=check.__name__)
        for check in RIGHT
    ],
)
def test_solutions_pass(check, capsys):
    check(RIGHT[check])
    assert capsys.readouterr().out.startswith("✓")


@pytest.mark.slow
@pytest.mark.parametrize(("check", "wrong", "says"), WRONG, ids=[f"{c.__name__}-{s[:20]}" for c, _, s in WRONG])
def test_wrong_answers_are_diagnosed(check, wrong, says):
    with pytest.raises(CheckFailed, match=says):
        check(wrong)


@pytest.mark.parametrize("check", RIGHT, ids=lambda check: check.__name__)
def test_every_check_has_four_planted_wrong_answers_and_three_styles(check):
    assert sum(entry[0] is check for entry in WRONG) >= 4
    assert sum(entry[0] is check for entry in STYLES) >= 3


@pytest.mark.parametrize("check", RIGHT, ids=lambda check: check.__name__)
@pytest.mark.parametrize(
    ("answer", "says"),
    [(todo, "not written yet"), (crash, "IndexError in line [0-9]+.*: too many indices"), (np.eye(3), "itself")],
)
def test_every_check_says_when_there_is_no_answer(check, answer, says):
    with pytest.raises(CheckFailed, match=says):
        check(answer)


@pytest.mark.slow
@pytest.mark.parametrize(("check", "answer"), STYLES, ids=[f"{c.__name__}-{i}" for i, (c, _) in enumerate(STYLES)])
def test_right_answers_in_other_styles_pass(check, answer, capsys):
    check(answer)
    assert capsys.readouterr().out.startswith("✓")


def test_the_line_of_an_error_is_the_learners_own():
    code = "def projector(V):\n    half = V[:, :1]\n    return half @ V\n"
    namespace = {}
    linecache.cache["cell"] = (len(code), None, code.splitlines(True), "cell")
    exec(compile(code, "cell", "exec"), namespace)
    with pytest.raises(CheckFailed, match=r"projector raised ValueError in line 3, `return half @ V`: matmul"):
        checks.projector(namespace["projector"])


def test_a_wrong_answer_is_traced_to_its_line():
    code = "def score(U, V):\n    if len(V) == 0:\n        return 0.0\n    inside = 0.5\n    return inside\n"
    namespace = {}
    linecache.cache["another cell"] = (len(code), None, code.splitlines(True), "another cell")
    exec(compile(code, "another cell", "exec"), namespace)
    with pytest.raises(CheckFailed, match=r"yours is 0.5000. \(Your answer came from line 5, `return inside`.\)"):
        checks.ntps(namespace["score"])
    assert sys.getprofile() is None
    with pytest.raises(CheckFailed) as failed:  # no answer, so no line that it came from
        checks.ntps(todo)
    assert "came from" not in str(failed.value)


def test_pinv_works_again_after_a_check():
    with pytest.raises(CheckFailed, match="pinv"):
        checks.projector(lambda V: V @ np.linalg.pinv(V))
    assert np.allclose(np.linalg.pinv(2 * np.eye(3)), np.eye(3) / 2)


def test_the_library_agrees(capsys):
    def intruders_of(before, after, k, epsilon):
        return intruder_dimensions(torch.from_numpy(before), torch.from_numpy(after), k=k, epsilon=epsilon)[0]

    checks.intruder_indices(intruders_of)
    checks.permutation_p(permutation_p)
    assert capsys.readouterr().out.count("✓") == 2


def test_only_the_sentence_shows_in_a_notebook():
    error = CheckFailed("your projector is not idempotent")
    assert error._render_traceback_() == ["✗ your projector is not idempotent"]
