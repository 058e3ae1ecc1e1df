"""Permutation null: each value is the score of shuffled labels; p-values are uniform where labels mean nothing."""

import dataclasses
import math

import numpy as np
import pytest
from helpers.problems import make_problem, representations_of, solve
from scipy.stats import kstest

from ntps.errors import NtpsError
from ntps.scoring import layer_null, nulls, permutation_null, score
from ntps.scoring.nulls import against_null, shuffled_labels


@pytest.mark.parametrize("center", [False, True])
@pytest.mark.parametrize("k_u", [1, 2, 3])
def test_each_permutation_is_the_score_of_the_shuffled_labels(center, k_u):
    problem = make_problem(3, n=60, d=7, c=3)
    k_u = min(k_u, 3 - center)
    found = layer_null(solve(problem, center=center), k_u, 3, 5, seed=1)
    labels = shuffled_labels(problem.labels, 5, seed=1)
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


def test_p_values_are_uniform_when_labels_mean_nothing():
    found = [layer_null(solve(make_problem(seed, n=50, d=6, c=2, signal=0.0)), 2, 3, 99) for seed in range(120)]
    for ps in ([null.ntps.p_value for null in found], [null.explained.p_value for null in found]):
        assert kstest(ps, "uniform").pvalue > 0.01
        assert 0.01 <= np.mean(np.array(ps) <= 0.1) <= 0.2


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
