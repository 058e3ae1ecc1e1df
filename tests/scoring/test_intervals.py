"""Jackknife intervals: against leaving out by hand, around their estimate, and covering what they say."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from helpers.problems import make_problem, representations_of, solve
from helpers.results import assert_same

from ntps.core import NextTokenMoments, solve_layer
from ntps.errors import NtpsError
from ntps.scoring import assign_folds, jackknife, layer_intervals


def simulated(n, seed, folds=None, d=6, c=3, length=5):
    """A solved layer of texts of a stationary process with its directions well apart."""
    fixed = np.random.default_rng(1)
    means, spread = 0.5 * fixed.normal(size=(c, d)), np.exp(0.3 * fixed.normal(size=d))
    decay = np.array([0.95, 0.85, 0.7, 0.3, 0.2, 0.1])
    rng = np.random.default_rng(seed)
    labels, hidden, state = rng.integers(0, c, n), np.zeros((n, length, d)), rng.normal(size=(n, d))
    for t in range(length):
        state = state * decay + 0.4 * means[labels] + 0.6 * rng.normal(size=(n, d))
        hidden[:, t] = state * spread
    moments = NextTokenMoments(layers=[0], width=d, dtype=torch.float64)
    pooled = moments.update(torch.from_numpy(hidden)[None], torch.ones(n, length))
    fold_of = None if folds is None else torch.arange(n) % folds
    return solve_layer(pooled[0], torch.from_numpy(labels), moments.layer(0), fold_of=fold_of)


@pytest.mark.parametrize("center", [False, True])
def test_against_leaving_out_by_hand(center):
    problem = make_problem(2, n=60, folds=4)
    whole = solve(problem, folds=True, center=center)
    found = layer_intervals(whole, 2, 3)
    assert found.keys() == {"ntps", "explained"}
    for name, read in (("ntps", lambda s: s.ntps_at(2, 3)), ("explained", lambda s: s.r2_at(3))):
        without = []
        for fold in range(4):
            rest = torch.from_numpy(problem.folds != fold)
            without.append(read(solve_layer(whole.states[rest], whole.targets[rest], whole.next_token, center=center)))
        spread = np.sum((without - np.mean(without)) ** 2)
        assert found[name].estimate == pytest.approx(read(whole))
        assert found[name].standard_error == pytest.approx(math.sqrt(3 / 4 * spread), rel=1e-6)
        if name == "ntps":  # its spread alone: no interval about it would hold the value of more texts
            assert all(math.isnan(value) for value in (found[name].low, found[name].high, found[name].bias))
            continue
        assert found[name].bias == pytest.approx(3 * (np.mean(without) - read(whole)), rel=1e-6)
        middle = read(whole) - found[name].bias
        half = 3.1824463 * found[name].standard_error  # t quantile of 3 degrees of freedom
        assert found[name].low == pytest.approx(min(max(min(middle - half, read(whole)), 0), 1))
        assert found[name].high == pytest.approx(min(max(middle + half, read(whole)), 1))


@pytest.mark.long
def test_covers_the_value_of_a_large_sample():
    value = simulated(100_000, 999).r2_at(3)
    intervals = [layer_intervals(simulated(600, seed, folds=10), 3, 3)["explained"] for seed in range(100)]
    inside = sum(interval.low <= value <= interval.high for interval in intervals)
    assert 86 <= inside <= 100  # 95 - 4 standard errors of a proportion


def test_the_error_of_ntps_is_its_spread_over_samples():
    found = [layer_intervals(simulated(300, seed, folds=10), 3, 3)["ntps"] for seed in range(30)]
    spread = np.std([interval.estimate for interval in found], ddof=1)
    assert 0.5 < np.mean([interval.standard_error for interval in found]) / spread < 2


def test_a_value_lies_in_its_own_interval():
    """The bias taken off `explained` can be many standard errors: few texts, many directions."""
    outside = 0
    for seed in range(20):
        found = layer_intervals(simulated(24, seed, folds=12), 3, 6)["explained"]
        assert 0 <= found.low <= found.estimate <= found.high <= 1
        outside += abs(found.bias) > (found.high - found.low) / 2
    assert outside  # without drawing out, some would not


def test_a_fold_with_all_texts_of_a_class_leaves_ranks_within_what_is_left():
    problem = make_problem(2, n=60, c=3)
    problem.folds = np.where(problem.labels == 2, 0, 1 + np.arange(60) % 3)
    found = layer_intervals(solve(problem, folds=True), 3, 3)
    assert all(math.isfinite(interval.standard_error) for interval in found.values())


def test_jackknife_is_that_of_every_layer():
    problem = make_problem(2, n=60)
    representations = representations_of(problem, problem.texts, [np.sin(h) for h in problem.texts], layers=[1, 4])
    found = jackknife(representations, folds=4, seed=5, k_u=2, k_v=3)
    assert list(found) == [1, 4]
    problem.folds = assign_folds(problem.labels, 4, seed=5)
    assert_same(found[1], layer_intervals(solve(problem, folds=True, k_u=2), 2, 3))
    assert_same(jackknife(representations, folds=4, seed=5, k_u=2, k_v=3, layers=[4]), {4: found[4]})
    other = jackknife(representations, folds=4, seed=6, k_u=2, k_v=3)
    assert other[1]["ntps"].standard_error != found[1]["ntps"].standard_error
    assert jackknife(representations, labels=problem.labels % 2)[1]["ntps"] != jackknife(representations)[1]["ntps"]


def test_three_folds_are_needed():
    with pytest.raises(NtpsError, match="3 folds, not 2"):
        jackknife(representations_of(make_problem(2)), folds=2)
    with pytest.raises(NtpsError, match="3 folds, not 0"):
        layer_intervals(solve(make_problem(2)), 2, 3)
    with pytest.raises(NtpsError, match="folds"):
        jackknife(representations_of(make_problem(2)), folds="most")


def test_intervals_are_frozen_and_json():
    interval = layer_intervals(simulated(60, 0, folds=5), 3, 3)["ntps"]
    assert interval.to_dict().keys() == {"estimate", "low", "high", "standard_error", "bias"}
    assert interval.to_dict()["low"] is None
    with pytest.raises(dataclasses.FrozenInstanceError):
        interval.low = 0.0
