"""The learning curve: nested parts, its last point is the score's, it rises with signal, its forecast is a formula."""

import math

import numpy as np
import pytest
import torch
from helpers.problems import make_problem, representations_of

from ntps.core import held_out_errors
from ntps.scoring import assign_folds, score
from ntps.scoring.learning import FRACTIONS, SHRINKAGE, SHRINKAGE_ERROR, _positions, learning_curve


def states_of(n=400, d=20, *, seed=0, signal=0.6, c=2):
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(n) % c)
    means = np.eye(c, d) - 1 / c if signal else np.zeros((c, d))
    states = rng.normal(size=(n, d)) + 2 * signal * means[labels]
    return states, labels, assign_folds(labels, 5, seed=seed)


def curve_of(states, labels, fold_of, groups=None, **options):
    groups = np.arange(len(labels)) if groups is None else groups
    targets = torch.from_numpy(np.eye(labels.max() + 1)[labels])
    return learning_curve(torch.from_numpy(states), targets, torch.from_numpy(fold_of), groups, **options)


def test_parts_are_nested_with_every_class_in_proportion_and_equal_texts_together():
    rng = np.random.default_rng(0)
    labels = np.repeat(rng.permutation(np.repeat([0, 1], [300, 100])), 2)
    groups = np.arange(800) // 2
    position = _positions(labels, groups, seed=0)
    assert position.min() >= 0 and position.max() < 1
    assert np.array_equal(position[::2], position[1::2])
    smaller = np.zeros(800, dtype=bool)
    for fraction in FRACTIONS:
        part = position < fraction
        assert not (smaller & ~part).any()
        assert [part[labels == label].mean() for label in (0, 1)] == pytest.approx([fraction] * 2, abs=0.02)
        smaller = part
    assert part.all()
    assert not np.array_equal(position, _positions(labels, groups, seed=1))
    assert np.array_equal(position, _positions(labels, groups, seed=0))


def test_points_are_readouts_of_the_parts_judged_on_all_texts():
    states, labels, fold_of = states_of(200)
    found = curve_of(states, labels, fold_of, seed=3)
    position = _positions(labels, np.arange(200), 3)
    tensors = torch.from_numpy(states), torch.from_numpy(np.eye(2)[labels]), torch.from_numpy(fold_of)
    whole = held_out_errors(*tensors)
    for index, fraction in enumerate(FRACTIONS):
        part = torch.from_numpy(position < fraction)
        one = held_out_errors(*tensors, part=part)
        # The yardstick is one for all points: the frequencies of all training texts.
        expected = 1 - float(one.ceiling_errors.sum() / whole.baseline.sum())
        assert found.r2[index] == pytest.approx(expected, abs=1e-12)
        sizes = [int((part & (tensors[2] != fold)).sum()) for fold in range(5)]
        assert found.n[index] == pytest.approx(np.mean(sizes), abs=1)
    assert found.r2[-1] == pytest.approx(whole.ceiling)
    assert curve_of(states, labels, fold_of, seed=4).r2[0] != found.r2[0]


def test_the_last_point_is_the_scores():
    result = score(representations_of(make_problem(seed=1, n=120, d=6, signal=3.0)), folds=4, seed=2)
    assert result.learning.r2[-1] == pytest.approx(result.shown.ceiling_heldout, abs=1e-12)
    assert result.learning.standard_error[-1] == pytest.approx(result.readout(result.shown.layer).standard_error)
    assert result.learning.n[-1] == 90
    assert result.to_dict()["learning_curve"] == result.learning.to_dict()


def test_more_texts_read_more_where_there_is_something_to_read():
    curves = [curve_of(*states_of(seed=seed)) for seed in range(5)]
    mean = np.mean([curve.r2 for curve in curves], axis=0)
    assert mean[0] + 0.02 < mean[1] < mean[2] < mean[3] - 0.005
    assert all(curve.twice - curve.r2[-1] > -0.02 for curve in curves)
    flat = [curve_of(*states_of(seed=seed, signal=0.0)) for seed in range(5)]
    assert abs(np.mean([curve.r2[-1] for curve in flat])) < 0.03
    assert all(math.isnan(curve.twice) or curve.r2[-1] > 0 for curve in flat)
    assert sum(math.isnan(curve.twice) for curve in flat) >= 4  # nothing to forecast from


def test_the_forecast_adds_a_share_of_the_last_gain():
    states, labels, fold_of = states_of()
    found = curve_of(states, labels, fold_of)
    last = found.r2[-1] - found.r2[-2]
    assert found.twice == pytest.approx(found.r2[-1] + SHRINKAGE * last)
    low, high = found.interval
    assert (low + high) / 2 == pytest.approx(found.twice)
    half = (high - low) / 2 / 1.96
    assert half == pytest.approx(math.hypot(found.standard_error[-1], SHRINKAGE_ERROR * last))


def test_a_loss_from_more_texts_is_no_trend():
    curves = [curve_of(*states_of(100, 2, seed=seed, signal=1.0)) for seed in range(12)]
    losing = [curve for curve in curves if curve.r2[-1] < curve.r2[-2]]
    assert losing
    for curve in losing:
        assert curve.twice == curve.r2[-1]
        assert curve.interval[1] - curve.twice == pytest.approx(1.96 * curve.standard_error[-1])


def test_a_forecast_is_about_what_twice_the_texts_give():
    """Forecast from 300 texts, judged by 600 of the same kind; saying that nothing is gained is further off."""
    errors, nothing, inside = [], [], 0
    for seed in range(8):
        states, labels, _ = states_of(600, seed=seed)
        half = curve_of(states[:300], labels[:300], assign_folds(labels[:300], 5))
        truth = curve_of(states, labels, assign_folds(labels, 5)).r2[-1]
        errors.append(half.twice - truth)
        nothing.append(half.r2[-1] - truth)
        inside += half.interval[0] <= truth <= half.interval[1]
    assert abs(np.mean(errors)) < abs(np.mean(nothing))
    assert inside >= 6


def test_a_forecast_is_at_most_one():
    found = curve_of(*states_of(100, 4, signal=20.0))
    assert found.r2[-1] > 0.99
    assert found.twice <= 1 and found.interval[1] <= 1


def test_equal_texts_count_once():
    states, labels, fold_of = states_of(120)
    once = curve_of(states, labels, fold_of)
    tiled = [np.tile(each, (3, 1)) if each.ndim > 1 else np.tile(each, 3) for each in (states, labels, fold_of)]
    thrice = curve_of(*tiled, groups=np.tile(np.arange(120), 3))
    assert thrice.r2 == pytest.approx(once.r2, abs=1e-9)
    assert thrice.standard_error == pytest.approx(once.standard_error, abs=1e-9)
    assert thrice.n[-1] == 3 * once.n[-1]


def test_there_is_none_where_an_eighth_of_the_texts_is_none():
    states, labels, fold_of = states_of(10, 3)
    assert curve_of(states, labels, np.where(_positions(labels, np.arange(10), 0) < 1 / 8, 0, 1 + fold_of)) is None
    assert curve_of(*states_of(60, 3)) is not None
    few = score(representations_of(make_problem(n=8, c=2, d=4)), folds=2)
    assert few.learning is None and few.to_dict()["learning_curve"] is None
    assert len(few.baselines) == 3


def test_constant_labels_have_no_curve():
    states, labels, fold_of = states_of(80)
    found = curve_of(states, 0 * labels, fold_of)
    assert all(math.isnan(value) for value in (*found.r2, found.twice, *found.interval))
    assert found.to_dict()["twice"] is None
