"""Held-out shares in closed form equal readouts refitted on the data; a planted leak shows in sample only."""

import math

import numpy as np
import pytest
import torch
from helpers import naive
from helpers.problems import make_problem, moments_of

from ntps.core.encoders import layer_autoregressive_encoder
from ntps.core.heldout import RIDGES, held_out_explained
from ntps.core.solve import score
from ntps.errors import NtpsError


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("ridges", [RIDGES, (0.1,), (1e-4, 10.0)])
def test_equals_a_readout_refitted_for_every_fold(seed, ridges):
    folds = 2 + seed
    problem = make_problem(seed=seed, n=50 + seed, d=7, c=3, folds=folds)
    if seed == 2:
        problem.folds = np.where(np.arange(52) < 30, 0, problem.folds)  # a fold counts by its texts
    moments = moments_of(problem, folds=folds)
    V = layer_autoregressive_encoder(moments.layer(0)).vectors
    ks = [1, 3, 7]
    found = held_out_explained(moments, 0, V, ks, ridges=ridges)
    x = naive.pooled(problem.texts)
    explained, ceiling = naive.held_out(x, problem.targets, problem.folds, V.numpy(), ks, ridges)
    assert found.explained == pytest.approx(explained, abs=1e-9)
    assert found.ceiling == pytest.approx(ceiling, abs=1e-9)
    assert found.explained[-1] == pytest.approx(found.ceiling, abs=1e-9)  # V spans everything
    other, _ = naive.held_out(x, problem.targets, np.roll(problem.folds, 1), V.numpy(), ks, ridges)
    assert found.explained != pytest.approx(other, abs=1e-4)


def test_per_fold_values_are_each_folds_own():
    problem = make_problem(seed=3, n=48, d=5)
    moments = moments_of(problem, folds=4)
    V = layer_autoregressive_encoder(moments.layer(0)).vectors
    found = held_out_explained(moments, 0, V, [2], ridges=(1e-3,))
    x, y = naive.pooled(problem.texts), problem.targets
    basis = np.linalg.qr(V.numpy())[0][:, :2]
    errors = totals = 0.0
    for fold in range(4):
        train, test = problem.folds != fold, problem.folds == fold
        z = (x - x[train].mean(0)) @ basis
        penalty = 1e-3 * ((x[train] - x[train].mean(0)) ** 2).sum() / train.sum() / 5
        W = np.linalg.solve(z[train].T @ z[train] / train.sum() + penalty * np.eye(2), z[train].T @ y[train]) / (
            train.sum()
        )
        error = ((y[test] - y[train].mean(0) - z[test] @ W) ** 2).sum()
        total = ((y[test] - y[train].mean(0)) ** 2).sum()
        assert found.fold_explained[0][fold] == pytest.approx(1 - error / total, abs=1e-9)
        errors, totals = errors + error, totals + total
    assert found.explained[0] == pytest.approx(1 - errors / totals, abs=1e-9)
    assert len(found.fold_ceiling) == 4


def test_noise_labels_are_explained_in_sample_only():
    """Labels that nothing predicts: the in-sample share is that of overfitting, the held-out one nought or less."""
    inside, outside, ceilings = [], [], []
    for seed in range(8):
        problem = make_problem(seed=seed, n=60, d=20, c=2, folds=5)
        problem.labels = np.random.default_rng(100 + seed).permutation(problem.labels)
        scored = score(moments_of(problem, folds=5), k_v=20).layers[0]
        inside.append(scored.explained)
        outside.append(scored.explained_heldout)
        ceilings.append(scored.ceiling_heldout)
    assert np.mean(inside) > 0.25
    assert np.mean(outside) < 0.02
    assert np.mean(ceilings) < 0.02
    assert max(outside) < 0.15


def test_real_signal_is_found_on_held_out_texts():
    problem = make_problem(seed=1, n=400, d=8, c=3, longest=8, signal=3.0, folds=5)
    scored = score(moments_of(problem, folds=5), k_v=8).layers[0]
    assert scored.explained_heldout > 0.3
    assert scored.explained - 0.1 < scored.explained_heldout < scored.explained
    assert scored.ceiling_heldout == pytest.approx(scored.explained_heldout)


def test_texts_leaked_between_folds_would_show():
    """Every text twice, in different folds: held-out is then no better than in-sample, and the test above not idle."""
    problem = make_problem(seed=0, n=40, d=20, c=2)
    problem.labels = np.random.default_rng(7).permutation(problem.labels)
    clean = score(moments_of(problem, folds=4), k_v=20).layers[0]
    problem.folds = np.arange(40) % 4
    problem.texts, problem.labels = problem.texts * 2, np.tile(problem.labels, 2)
    problem.folds = np.concatenate([problem.folds, (problem.folds + 1) % 4])
    leaked = score(moments_of(problem, folds=4), k_v=20).layers[0]
    assert leaked.explained_heldout > 0.2 > clean.explained_heldout


def test_scale_of_features_changes_nothing():
    problem = make_problem(seed=2, n=60)
    values = []
    for factor in (1.0, 1e-2, 1e4, 1e-40):
        scaled = make_problem(seed=2, n=60)
        scaled.texts = [h * factor for h in problem.texts]
        moments = moments_of(scaled, folds=4)
        V = layer_autoregressive_encoder(moments.layer(0)).vectors
        values.append(held_out_explained(moments, 0, V, [1, 4]).explained)
    for other in values[1:]:
        assert other == pytest.approx(values[0], abs=1e-7)


def test_collinear_features_are_solved_by_a_larger_penalty():
    problem = make_problem(seed=2, n=60, d=6)
    for h in problem.texts:
        h[:, 5] = h[:, 0]
    moments = moments_of(problem, folds=4)
    V = layer_autoregressive_encoder(moments.layer(0)).vectors
    found = held_out_explained(moments, 0, V, [1, 5])
    assert all(math.isfinite(value) for value in (*found.explained, found.ceiling))
    assert found.explained[1] == pytest.approx(found.ceiling, abs=1e-3)


def test_penalties_that_cannot_be_factored_are_skipped():
    """A penalty below rounding may leave no factor: the others decide, and when there is none the share is unknown."""
    problem = make_problem(seed=2, n=60, d=6)
    for h in problem.texts:
        h *= np.array([1e6, 1e6, 1.0, 1.0, 1.0, 1.0])
        h[:, 1] = h[:, 0]
    moments = moments_of(problem, folds=4)
    V = layer_autoregressive_encoder(moments.layer(0)).vectors
    assert math.isfinite(held_out_explained(moments, 0, V, [2], ridges=(1e-30, 1e-6)).explained[0])


@pytest.mark.parametrize("constant", ["one class", "constant targets"])
def test_constant_labels_have_no_share(constant):
    problem = make_problem(n=30)
    targets = None if constant == "one class" else np.full((30, 1), 0.1)
    problem.labels = np.zeros_like(problem.labels)
    moments = moments_of(problem, folds=4, targets=targets)
    V = layer_autoregressive_encoder(moments.layer(0)).vectors
    found = held_out_explained(moments, 0, V, [1, 2])
    assert math.isnan(found.explained[0])
    assert math.isnan(found.ceiling)
    assert len(found.fold_explained) == 2


def test_a_class_in_one_fold_only():
    problem = make_problem(seed=1, n=40, c=3)
    problem.folds = np.where(problem.labels == 2, 0, problem.folds)
    scored = score(moments_of(problem, folds=4)).layers[0]
    assert math.isfinite(scored.explained_heldout)


def test_what_cannot_be_held_out():
    problem = make_problem(n=20)
    plain = moments_of(problem)
    with pytest.raises(NtpsError, match="folds"):
        held_out_explained(plain, 0, torch.eye(8, dtype=torch.float64), [1])
    problem.folds[:] = 0
    with pytest.raises(NtpsError, match="no text lies in these folds"):
        score(moments_of(problem, folds=2))
