"""Readouts text by text: errors that count texts once, paired comparisons, ties, and a choice that does not flatter."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from ntps.core import Keep, held_out_errors
from ntps.errors import NtpsError
from ntps.scoring import compare, tied_groups
from ntps.scoring.headline import best_layer
from ntps.scoring.readouts import FOLD_FACTOR, LayerChoice, Readout, choose_layer, compare_readouts


def readout(errors, *, baseline=None, groups=None, origin="a", name="layer 1", loo_errors=None):
    errors = np.asarray(errors, dtype=float)
    baseline = np.ones(len(errors)) if baseline is None else np.asarray(baseline, dtype=float)
    groups = np.arange(len(errors)) if groups is None else np.asarray(groups)
    return Readout(name=name, errors=errors, baseline=baseline, groups=groups, origin=origin, loo_errors=loo_errors)


def noisy(level, n=400, *, seed=0, **options):
    return readout(level + 0.3 * np.random.default_rng(seed).uniform(-1, 1, n), **options)


# R^2 and its error


def test_r2_and_its_standard_error_against_the_formula_of_a_ratio():
    rng = np.random.default_rng(0)
    errors, baseline = rng.uniform(0, 1, 50), rng.uniform(0.5, 1.5, 50)
    found = readout(errors, baseline=baseline)
    ratio = errors.sum() / baseline.sum()
    assert found.r2 == pytest.approx(1 - ratio)
    residual = errors - ratio * baseline
    expected = FOLD_FACTOR * np.std(residual, ddof=1) / baseline.mean() / math.sqrt(50)
    assert found.standard_error == pytest.approx(expected)
    low, high = found.interval()
    assert [low, high] == pytest.approx([found.r2 - 1.959964 * expected, found.r2 + 1.959964 * expected])
    assert found.to_dict() == {"estimate": found.r2, "low": low, "high": high, "standard_error": expected}


def test_equal_texts_are_one_observation():
    rng = np.random.default_rng(1)
    errors, baseline = rng.uniform(0, 1, 60), rng.uniform(0.5, 1.5, 60)
    once = readout(errors, baseline=baseline)
    repeated = [np.tile(each, 3) for each in (errors, baseline)]
    grouped = readout(repeated[0], baseline=repeated[1], groups=np.tile(np.arange(60), 3))
    assert (grouped.r2, grouped.standard_error) == pytest.approx((once.r2, once.standard_error))
    alone = readout(repeated[0], baseline=repeated[1])
    assert alone.standard_error < 0.6 * once.standard_error  # as if they were new texts
    renamed = dataclasses.replace(grouped, groups=grouped.groups * -7 + 5)
    assert renamed.standard_error == pytest.approx(grouped.standard_error)


def test_an_interval_covers_what_new_texts_give():
    rng = np.random.default_rng(2)
    inside = 0
    for _ in range(400):
        errors = rng.exponential(0.6, 100)
        low, high = readout(errors).interval()
        inside += low <= 0.4 <= high
    assert 0.95 < inside / 400 <= 0.985  # wider than independent errors need, by FOLD_FACTOR


def test_what_has_no_value():
    for found in (readout([0.0, 0.0], baseline=[0.0, 0.0]), readout([math.nan, 1.0])):
        assert math.isnan(found.r2)
        assert all(math.isnan(end) for end in found.interval()[:1])
        assert found.to_dict()["estimate"] is None
    assert math.isnan(readout([0.5, 0.6], groups=[3, 3]).standard_error)  # one text has no spread
    assert readout([0.0, 0.01, 0.0]).interval()[1] <= 1.0


# Two readouts


def test_a_comparison_is_paired():
    shared = np.random.default_rng(0).uniform(0, 1, 200)
    a, b = readout(shared + 0.02, name="a"), readout(shared + 0.05 * (np.arange(200) % 2) + 0.02, name="b")
    found = compare(a, b)
    assert found.names == ("a", "b") and found.n == 200
    assert found.difference == pytest.approx(0.025) and found.difference == pytest.approx(a.r2 - b.r2)
    assert found.standard_error < 0.1 * a.standard_error  # each alone is far less certain
    assert not found.tie and found.p_value < 1e-6
    assert found.interval == pytest.approx((0.025 - 1.959964 * found.standard_error,
                                            0.025 + 1.959964 * found.standard_error))  # fmt: skip
    low, high = compare(a, b, confidence=0.5).interval
    assert high - low == pytest.approx(2 * 0.67449 * found.standard_error)
    assert found.to_dict()["tie"] is False


def test_a_comparison_is_antisymmetric_and_ties_with_itself():
    a, b = noisy(0.5, seed=1), noisy(0.52, seed=2)
    one, other = compare(a, b), compare(b, a)
    assert other.difference == -one.difference
    assert other.interval == pytest.approx((-one.interval[1], -one.interval[0]))
    assert (other.standard_error, other.p_value) == pytest.approx((one.standard_error, one.p_value))
    same = compare(a, a)
    assert (same.difference, same.standard_error, same.p_value, same.tie) == (0, 0, 1, True)


def test_the_p_value_is_that_of_a_normal_and_agrees_with_the_interval():
    from scipy.stats import norm

    for seed in range(20):
        found = compare(noisy(0.5, seed=seed, n=60), noisy(0.55, seed=100 + seed, n=60))
        z = found.difference / found.standard_error
        assert found.p_value == pytest.approx(2 * norm.sf(abs(z)))
        assert found.tie == (found.p_value > 0.05)


def test_a_constant_difference_is_certain():
    found = compare(readout(np.full(10, 0.25)), readout(np.full(10, 0.5)))
    assert (found.difference, found.standard_error, found.p_value) == (0.25, 0, 0)
    assert not found.tie


def test_equal_readouts_are_told_apart_as_often_as_the_level_says():
    rng = np.random.default_rng(3)
    apart = sum(not compare(readout(rng.normal(0.5, 0.2, 80)), readout(rng.normal(0.5, 0.2, 80))).tie
                for _ in range(400))  # fmt: skip
    assert apart / 400 < 0.05


def test_readouts_of_different_texts_or_folds_are_refused():
    a, b = readout([0.1, 0.2, 0.3], name="here"), readout([0.1, 0.2, 0.3], origin="b", name="there")
    for other in (b, readout([0.1, 0.2], name="there")):
        with pytest.raises(NtpsError, match=r"here.*there"):
            compare(a, other)
        with pytest.raises(NtpsError, match="different texts, labels or folds"):
            tied_groups([a, other])
    for confidence in (0, 1, -0.5, 2):
        with pytest.raises(NtpsError, match="confidence"):
            compare(a, a, confidence=confidence)


def test_groups_that_cannot_be_told_apart():
    good, same, worse, worse_too = (
        noisy(level, seed=seed) for level, seed in ((0.3, 1), (0.305, 2), (0.6, 3), (0.6, 4))
    )
    unknown = readout(np.full(400, math.nan))
    assert tied_groups([worse, good, worse_too, same])[0] == (1, 3)
    assert set(tied_groups([worse, good, worse_too, same])[1]) == {0, 2}
    assert tied_groups([good]) == ((0,),)
    assert tied_groups([unknown, worse, good])[0][0] == 2
    assert tied_groups([unknown, unknown]) in (((0, 1),), ((0,), (1,)))
    assert sorted(sum(tied_groups([worse, good, unknown, same]), ())) == [0, 1, 2, 3]


def test_more_comparisons_are_judged_more_widely():
    """A difference of 2.2 standard errors: apart where there is one comparison, not where there are nine."""
    shared = np.random.default_rng(0).uniform(0, 1, 300)
    wiggle = np.random.default_rng(1).normal(0, 0.1, 300)
    wiggle -= wiggle.mean()
    error = compare_readouts(readout(shared), readout(shared + wiggle)).standard_error
    a, b = readout(shared), readout(shared + wiggle + 2.2 * error)
    assert len(tied_groups([a, b])) == 2
    assert len(tied_groups([a, b, *[a] * 8])) == 1


# The best layer


def choose(errors, fold_of, layers=None, loo_errors=None):
    loo_errors = torch.zeros(len(errors), len(set(fold_of))) if loo_errors is None else torch.from_numpy(loo_errors)
    readouts = [
        readout(row, name=f"layer {layer}", loo_errors=loo)
        for layer, (row, loo) in enumerate(zip(errors, loo_errors, strict=True))
    ]
    return choose_layer(layers or range(len(readouts)), readouts, np.asarray(fold_of))


def test_leave_one_out_errors_alone_decide_a_folds_layer():
    rng, layers = np.random.default_rng(0), [2, 3, 5, 7]
    fold_of = np.array([1, 2, 4, 7, 9])[np.arange(60) % 5]  # folds need not be numbered from 0
    errors, loo_errors = rng.uniform(0, 1, (4, 60)), rng.uniform(0, 1, (4, 5))
    found = choose(errors, fold_of, layers, loo_errors)
    place = loo_errors.argmin(0)[np.arange(60) % 5]
    assert found.by_fold.tolist() == [layers[layer] for layer in place]
    assert np.array_equal(found.readout.errors, errors[place, np.arange(60)])
    for layer in range(4):
        wild = errors.copy()
        wild[layer] = -1e6
        after = choose(wild, fold_of, layers, loo_errors)
        assert after.layer == layers[layer]  # out-of-fold errors name the best of all texts
        assert np.array_equal(after.by_fold, found.by_fold)


def test_layers_within_one_paired_standard_error_tie():
    shared, fold_of = np.random.default_rng(0).uniform(0, 1, 200), np.arange(200) % 5
    wiggle = np.random.default_rng(1).normal(0, 0.1, 200)
    wiggle -= wiggle.mean()
    error = compare_readouts(readout(shared), readout(shared + wiggle)).standard_error
    found = choose([shared + wiggle + 0.9 * error, shared, shared + wiggle + 1.1 * error, shared + 0.3], fold_of)
    assert (found.layer, found.tied) == (1, (0,))
    assert choose([shared, shared], fold_of).tied == (1,)


def test_no_layer_is_best_where_no_interval_is_above_nought():
    fold_of = np.arange(100) % 5
    rng = np.random.default_rng(0)
    baseline = rng.uniform(0.5, 1.5, 100)
    for shift, there in ((0.02, False), (-0.3, True)):
        errors = baseline + shift + 0.3 * rng.normal(size=100)
        readouts = [readout(errors, baseline=baseline, loo_errors=torch.zeros(5))]
        best, choice = best_layer([4], readouts, fold_of, [])
        assert isinstance(choice, LayerChoice) and choice.holds == there
        assert (best is not None) == there
    assert (best.layer, best.tied, best.p_value) == (4, (), None)
    assert (best.r2, best.interval) == (choice.readout.r2, choice.readout.interval())
    constant = readout(np.zeros(100), baseline=np.zeros(100), loo_errors=torch.zeros(5))
    none, choice = best_layer([4], [constant], fold_of, [])
    assert none is None and math.isnan(choice.readout.r2)


def simulated(seed, signal, n=120, d=16, layers=5):
    """Held-out readouts of layers of which each carries the same signal in noise of its own."""
    rng = np.random.default_rng(seed)
    labels, fold_of = rng.permutation(np.arange(n) % 2), rng.permutation(np.arange(n) % 5)
    targets, folds = torch.from_numpy(np.eye(2)[labels]), torch.from_numpy(fold_of)
    readouts = []
    for layer in range(layers):
        states = rng.normal(size=(n, d))
        states[:, 0] += signal * (2 * labels - 1)
        found = held_out_errors(torch.from_numpy(states), targets, folds, keep=Keep(loo_groups=torch.arange(n)))
        errors, baseline = found.ceiling_errors.numpy(), found.baseline.numpy()
        readouts.append(readout(errors, baseline=baseline, name=f"layer {layer}", loo_errors=found.loo_errors))
    best, choice = best_layer(range(layers), readouts, fold_of, [])
    return best, choice, [each.r2 for each in readouts]


@pytest.mark.long
def test_noise_has_no_best_layer():
    named = sum(simulated(seed, 0.0)[0] is not None for seed in range(100))
    assert named <= 5


@pytest.mark.slow
def test_signal_has_a_best_layer_and_choosing_does_not_flatter_it():
    """Layers that are all equally good: the best of them reads too high, the one chosen out of fold does not."""
    found = [simulated(seed, 1.0) for seed in range(40)]
    assert sum(best is not None for best, _, _ in found) >= 38
    true = np.mean([np.mean(values) for _, _, values in found])
    largest = np.mean([max(values) for _, _, values in found]) - true
    chosen = np.mean([choice.readout.r2 for _, choice, _ in found]) - true
    assert largest > 0.05
    assert abs(chosen) < 0.4 * largest
    assert np.mean([len(best.tied) for best, _, _ in found if best]) > 0.5
