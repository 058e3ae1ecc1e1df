"""Permutation null: each value is the score of shuffled labels; p-values are uniform where labels mean nothing."""

import dataclasses
import math

import numpy as np
import pytest
from helpers.problems import make_problem, representations_of, solve
from scipy.stats import kstest

from ntps.errors import NtpsError
from ntps.scoring import layer_null, nulls, permutation_null, score
from ntps.scoring.nulls import against_null, choice_p, r2_of_sums, shuffled_orders


@pytest.mark.parametrize("center", [False, True])
@pytest.mark.parametrize("k_u", [1, 2, 3])
def test_each_permutation_is_the_score_of_the_shuffled_labels(center, k_u):
    problem = make_problem(3, n=60, d=7, c=3)
    k_u = min(k_u, 3 - center)
    found = layer_null(solve(problem, center=center), k_u, 3, 5, seed=1)
    labels = problem.labels[shuffled_orders(len(problem.labels), 5, seed=1)]
    assert np.array_equal(labels[0], problem.labels)
    assert len({row.tobytes() for row in labels}) == 6
    for index, row in enumerate(labels):
        plain = solve(dataclasses.replace(problem, labels=row), center=center)
        for null, expected in ((found.ntps, plain.ntps_at(k_u, 3)), (found.explained, plain.r2_at(3))):
            assert [null.observed, *null.values][index] == pytest.approx(expected, abs=1e-9)
    assert (found.layer, found.k_u, found.k_v, found.permutations) == (0, k_u, 3, 5)


def test_blocks_do_not_change_it(monkeypatch):
    solved = solve(make_problem(4))
    whole = layer_null(solved, 3, 3, 30)
    monkeypatch.setattr(nulls, "_BLOCK", 1)
    assert np.allclose(layer_null(solved, 3, 3, 30).ntps.values, whole.ntps.values, atol=1e-12)


@pytest.mark.slow
def test_p_values_are_uniform_when_labels_mean_nothing():
    found = [layer_null(solve(make_problem(seed, n=50, d=6, c=2, signal=0.0)), 2, 3, 99) for seed in range(120)]
    for ps in ([null.ntps.p_value for null in found], [null.explained.p_value for null in found]):
        assert kstest(ps, "uniform").pvalue > 0.01
        assert 0.01 <= np.mean(np.array(ps) <= 0.1) <= 0.2


def held_out_nulls(seeds, permutations=39, **options):
    for seed in seeds:
        problem = make_problem(seed, **options)
        yield layer_null(solve(problem, folds=True), 2, 3, permutations, seed=seed).ceiling_heldout


@pytest.mark.long
def test_held_out_p_values_are_uniform_when_labels_mean_nothing():
    """Neither the folds nor the choice of a penalty makes labels without meaning a finding."""
    ps = np.array([null.p_value for null in held_out_nulls(range(100), n=40, d=6, c=2, signal=0.0)])
    # Labels that read as frequencies do tie, so small values may be rarer than uniform, never more frequent.
    assert np.mean(ps <= 0.1) <= 0.19
    assert np.mean(ps <= 0.5) <= 0.65
    assert 0.3 < np.mean(ps) < 0.75


def test_held_out_signal_has_a_small_p_value():
    for null in held_out_nulls(range(3), n=120, d=6, c=2, signal=3.0):
        assert null.p_value == 1 / 40
        assert null.mean < 0.05 < null.observed
        assert null.z > 5


def test_the_null_of_what_is_held_out_refits_every_shuffle():
    problem = make_problem(5, n=48)
    solved = solve(problem, folds=True)
    found = layer_null(solved, 3, 3, 4, seed=2)
    values = [found.ceiling_heldout.observed, *found.ceiling_heldout.values]
    for order, value in zip(shuffled_orders(48, 4, seed=2), values, strict=True):
        again = solve(dataclasses.replace(problem, labels=problem.labels[order]), folds=True)
        assert again.held_out([3]).ceiling == pytest.approx(value, abs=1e-9)
    assert found.fold_sums.shape == (5, 4, 2)
    assert r2_of_sums(found.fold_sums) == pytest.approx(values)
    assert found.to_dict()["ceiling_heldout"]["observed"] == values[0]
    assert layer_null(solve(problem), 3, 3, 4).ceiling_heldout is None
    assert "ceiling_heldout" not in layer_null(solve(problem), 3, 3, 4).to_dict()


def test_repeats_follow_their_text():
    labels, groups = np.array([0, 1, 0, 1, 0, 1, 0, 1]), np.array([5, 2, 5, 2, 8, 9, 0, 2])
    rows = labels[shuffled_orders(8, 200, groups=groups, seed=0)]
    assert np.array_equal(rows[0], labels)
    for group in (5, 2):
        assert (np.ptp(rows[:, groups == group], axis=1) == 0).all()
    assert (np.sort(rows[:, [0, 1, 4, 5, 6]], axis=1) == [0, 0, 0, 1, 1]).all()  # one label per different text
    free = labels[shuffled_orders(8, 200, seed=0)]
    assert np.ptp(free[:, [0, 2]], axis=1).any()
    assert (free.sum(1) == 4).all()


def test_the_p_value_of_a_choice_repeats_the_choice():
    """Layers whose folds take turns at being best: in-sample choosing would call that a finding."""
    rng = np.random.default_rng(0)
    solved = solve(make_problem(1, n=60), folds=True)
    nulls_of = [dataclasses.replace(layer_null(solved, 2, 3, 99), fold_sums=sums)
                for sums in rng.uniform(0.8, 1.2, (6, 100, 4, 2))]  # fmt: skip
    for null in nulls_of[1:]:
        null.fold_sums[..., 1] = nulls_of[0].fold_sums[..., 1]
    values = []
    for b in range(100):
        errors = np.stack([null.fold_sums[b, :, 0] for null in nulls_of])  # (layers, folds)
        picked = sum(errors[np.delete(errors, f, axis=1).sum(1).argmin(), f] for f in range(4))
        values.append(1 - picked / nulls_of[0].fold_sums[b, :, 1].sum())
    assert choice_p(nulls_of) == pytest.approx((1 + np.sum(np.array(values[1:]) >= values[0])) / 100)
    assert choice_p(nulls_of[:1]) == against_null(r2_of_sums(nulls_of[0].fold_sums)).p_value


def test_signal_is_found():
    null = layer_null(solve(make_problem(1, n=200, signal=3.0)), 3, 3, 99).explained
    assert null.p_value == 0.01
    assert null.z > 5
    assert null.z == pytest.approx((null.observed - null.values.mean()) / null.values.std(ddof=1))
    assert null.mean < null.quantiles[2] < null.observed
    assert null.quantiles == pytest.approx(np.quantile(null.values, (0.05, 0.5, 0.95)))


def test_a_null_without_spread_has_no_z():
    found = against_null(np.array([1.0, 1.0, 1.0]))
    assert math.isnan(found.z)
    assert found.p_value == 1.0
    assert found.to_dict()["z"] is None
    assert "values" not in found.to_dict()


def test_a_quantity_without_a_value_has_no_null():
    found = against_null(np.array([0.5, math.nan, 0.2]))
    assert found.observed == 0.5
    assert all(math.isnan(value) for value in (found.mean, found.std, found.z, found.p_value, *found.quantiles))


def test_permutation_null_is_that_of_every_layer_at_the_scores_ranks():
    problem = make_problem(2, n=60)
    representations = representations_of(problem, problem.texts, [np.sin(h) for h in problem.texts], layers=[1, 4])
    for options in ({}, {"k_u": 2, "k_v": 5, "center": True}):
        found = permutation_null(representations, permutations=9, seed=3, **options)
        result = score(representations, **options)
        for null, scored in zip(found, result.layers, strict=True):
            assert (null.layer, null.k_u, null.k_v) == (scored.layer, scored.k_u, scored.k_v)
            assert null.ntps.observed == pytest.approx(scored.ntps, abs=1e-9)
            assert null.explained.observed == pytest.approx(scored.explained, abs=1e-9)
    (last,) = permutation_null(representations, permutations=9, seed=3, layers=[4], k_u=2, k_v=5, center=True)
    assert np.array_equal(last.ntps.values, found[1].ntps.values)
    other = permutation_null(representations, permutations=9, seed=4, layers=[4])[0]
    assert not np.array_equal(other.ntps.values, last.ntps.values)
    labelled = permutation_null(representations, permutations=9, labels=problem.labels % 2)[0]
    assert labelled.k_u == 2


@pytest.mark.parametrize(("options", "word"), [({"permutations": 0}, "permutations"), ({"seed": -1}, "seed"),
                                               ({"k_v": 9}, "k_v"), ({"layers": [3]}, "layer")])  # fmt: skip
def test_options_out_of_range(options, word):
    with pytest.raises(NtpsError, match=word):
        permutation_null(representations_of(make_problem()), **options)
