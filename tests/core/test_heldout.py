"""Held-out shares in closed form equal readouts refitted on the data; a planted leak shows in sample only."""

import math

import numpy as np
import pytest
from helpers import naive
from helpers.problems import make_problem, solve

from ntps.core import held_out_explained
from ntps.core.heldout import RIDGES
from ntps.errors import NtpsError


def held_out(problem, ks, *, targets=None, **options):
    solved = solve(problem, folds=True, targets=targets)
    return held_out_explained(solved.folds, solved.V.vectors, ks, **options)


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("ridges", [RIDGES, (0.1,), (1e-4, 10.0)])
def test_equals_a_readout_refitted_for_every_fold(seed, ridges):
    problem = make_problem(seed=seed, n=50 + seed, d=7, c=3, folds=2 + seed)
    if seed == 2:
        problem.folds = np.where(np.arange(52) < 30, 0, problem.folds)  # a fold counts by its texts
    ks = [1, 3, 7]
    found = held_out(problem, ks, ridges=ridges)
    x, V = naive.pooled(problem.texts), solve(problem).V.vectors.numpy()
    explained, ceiling = naive.held_out(x, problem.targets, problem.folds, V, ks, ridges)
    assert found.explained == pytest.approx(explained, abs=1e-9)
    assert found.ceiling == pytest.approx(ceiling, abs=1e-9)
    assert found.explained[-1] == pytest.approx(found.ceiling, abs=1e-9)  # V spans everything
    other, _ = naive.held_out(x, problem.targets, np.roll(problem.folds, 1), V, ks, ridges)
    assert found.explained != pytest.approx(other, abs=1e-4)


def test_per_fold_values_are_each_folds_own():
    problem = make_problem(seed=3, n=48, d=5)
    found = held_out(problem, [2], ridges=(1e-3,))
    x, y = naive.pooled(problem.texts), problem.targets
    basis = np.linalg.qr(solve(problem).V.vectors.numpy())[0][:, :2]
    errors = totals = 0.0
    for fold in range(4):
        train, test = problem.folds != fold, problem.folds == fold
        n, mean_x, mean_y = train.sum(), x[train].mean(0), y[train].mean(0)
        z = (x - mean_x) @ basis
        penalty = 1e-3 * ((x[train] - mean_x) ** 2).sum() / n / 5
        W = np.linalg.solve(z[train].T @ z[train] / n + penalty * np.eye(2), z[train].T @ y[train] / n)
        error = ((y[test] - mean_y - z[test] @ W) ** 2).sum()
        total = ((y[test] - mean_y) ** 2).sum()
        assert found.fold_explained[0][fold] == pytest.approx(1 - error / total, abs=1e-9)
        errors, totals = errors + error, totals + total
    assert found.explained[0] == pytest.approx(1 - errors / totals, abs=1e-9)
    assert len(found.fold_ceiling) == 4
    assert found.at(2) == (found.explained[0], found.fold_explained[0])
    assert math.isnan(found.at(0)[0])
    with pytest.raises(NtpsError, match=r"k = 3.*2"):
        found.at(3)


def test_noise_labels_are_explained_in_sample_only():
    """Labels that nothing predicts: the in-sample share is that of overfitting, the held-out one nought or less."""
    inside, outside, ceilings = [], [], []
    for seed in range(8):
        problem = make_problem(seed=seed, n=60, d=20, c=2, folds=5)
        problem.labels = np.random.default_rng(100 + seed).permutation(problem.labels)
        solved = solve(problem, folds=True)
        found = solved.held_out([20])
        inside.append(solved.r2_at(20))
        outside.append(found.explained[0])
        ceilings.append(found.ceiling)
    assert np.mean(inside) > 0.25
    assert np.mean(outside) < 0.02
    assert np.mean(ceilings) < 0.02
    assert max(outside) < 0.15


def test_real_signal_is_found_on_held_out_texts():
    problem = make_problem(seed=1, n=400, d=8, c=3, longest=8, signal=3.0, folds=5)
    solved = solve(problem, folds=True)
    found = solved.held_out([8])
    assert 0.3 < found.explained[0] < solved.r2_at(8) < found.explained[0] + 0.1
    assert found.ceiling == pytest.approx(found.explained[0])


def test_texts_leaked_between_folds_would_show():
    """Every text twice, in different folds: held-out is then no better than in-sample, and the test above not idle."""
    problem = make_problem(seed=0, n=40, d=20, c=2)
    problem.labels = np.random.default_rng(7).permutation(problem.labels)
    problem.folds = np.arange(40) % 4
    clean = held_out(problem, [20]).explained[0]
    problem.texts, problem.labels = problem.texts * 2, np.tile(problem.labels, 2)
    problem.folds = np.concatenate([problem.folds, (problem.folds + 1) % 4])
    assert held_out(problem, [20]).explained[0] > 0.2 > clean


@pytest.mark.parametrize("factor", [1e-2, 1e4, 1e-40])
def test_scale_of_states_changes_nothing(factor):
    problem = make_problem(seed=2, n=60)
    plain = held_out(problem, [1, 4])
    problem.texts = [h * factor for h in problem.texts]
    assert held_out(problem, [1, 4]).explained == pytest.approx(plain.explained, abs=1e-7)


def test_collinear_states_are_solved_by_a_larger_penalty():
    problem = make_problem(seed=2, n=60, d=6)
    for h in problem.texts:
        h[:, 5] = h[:, 0]
    found = held_out(problem, [1, 5])
    assert all(math.isfinite(value) for value in (*found.explained, found.ceiling))
    assert found.explained[1] == pytest.approx(found.ceiling, abs=1e-3)


def test_penalties_that_cannot_be_factored_are_skipped():
    """A penalty below rounding may leave no factor: the others decide."""
    problem = make_problem(seed=2, n=60, d=6)
    for h in problem.texts:
        h *= np.array([1e6, 1e6, 1.0, 1.0, 1.0, 1.0])
        h[:, 1] = h[:, 0]
    assert math.isfinite(held_out(problem, [2], ridges=(1e-30, 1e-6)).explained[0])


@pytest.mark.parametrize("targets", [None, np.full((30, 1), 0.1)])
def test_constant_labels_have_no_share(targets):
    problem = make_problem(n=30)
    problem.labels = np.zeros_like(problem.labels)
    found = held_out(problem, [1, 2], targets=targets)
    assert math.isnan(found.explained[0])
    assert math.isnan(found.ceiling)
    assert len(found.fold_explained) == 2


def test_a_class_in_one_fold_only():
    problem = make_problem(seed=1, n=40, c=3)
    problem.folds = np.where(problem.labels == 2, 0, problem.folds)
    assert math.isfinite(held_out(problem, [3]).explained[0])


def test_what_cannot_be_held_out():
    problem = make_problem(n=20)
    with pytest.raises(NtpsError, match="two folds, not 0"):
        solve(problem).held_out([1])
    problem.folds[:] = 0
    with pytest.raises(NtpsError, match="two folds, not 1"):
        solve(problem, folds=True).held_out([1])
