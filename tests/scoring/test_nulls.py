"""Permutation null, jackknife and control: against plain computation, calibrated, and covering what they say."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.problems import make_problem, pad_batch
from scipy.stats import kstest

import ntps
from ntps.core.accumulator import MomentAccumulator
from ntps.core.solve import read_layer, solve_layer
from ntps.errors import NtpsError
from ntps.models.features import Features
from ntps.models.passes import collect
from ntps.scoring.intervals import jackknife
from ntps.scoring.nulls import against_null, permutation_null, random_control, shuffled_labels


def moments_and_features(problem, labels=None, folds=0, dtype=np.float32):
    labels = problem.labels if labels is None else labels
    accumulator = MomentAccumulator(
        layers=[0], width=problem.d, n_targets=problem.c, folds=folds, fold_prefix=folds > 0,
        accumulate_dtype=torch.float64,
    )  # fmt: skip
    hidden, mask = pad_batch(problem.texts)
    which = torch.from_numpy(problem.folds) if folds else None
    accumulator.update(hidden[None], mask, torch.from_numpy(labels), which)
    pooled = np.stack([text.mean(0) for text in problem.texts]).astype(dtype)
    n = len(labels)
    features = Features(pooled[None], labels, (0,), np.arange(n), problem.folds if folds else None)
    return accumulator.finalize(), features


class TestPermutationNull:
    @pytest.mark.parametrize("center", [False, True])
    @pytest.mark.parametrize("k_u", [None, 1, 2])
    def test_each_permutation_is_the_score_of_the_shuffled_labels(self, center, k_u):
        problem = make_problem(3, n=60, d=7, c=3)
        moments, features = moments_and_features(problem, dtype=np.float64)
        (found,) = permutation_null(moments, features, center=center, k_u=k_u, k_v=3, n_permutations=5, seed=1)
        labels = shuffled_labels(problem.labels, 5, seed=1)
        values = [found.ntps.observed, *found.ntps.values]
        shares = [found.explained.observed, *found.explained.values]
        for row, ntps_, explained in zip(labels, values, shares, strict=True):
            plain, _ = moments_and_features(problem, labels=row)
            read = read_layer(solve_layer(plain.layer(0), center=center), k_u=k_u, k_v=3)
            assert ntps_ == pytest.approx(read.ntps, abs=1e-9)
            assert explained == pytest.approx(read.explained, abs=1e-9)

    def test_blocks_do_not_change_it(self, monkeypatch):
        problem = make_problem(4)
        given = moments_and_features(problem)
        whole = permutation_null(*given, n_permutations=30)[0]
        monkeypatch.setattr("ntps.scoring.nulls._BLOCK", 1)
        assert np.allclose(permutation_null(*given, n_permutations=30)[0].ntps.values, whole.ntps.values, atol=1e-12)

    def test_float16_features_are_good_enough(self):
        moments, features = moments_and_features(make_problem(5))
        full = permutation_null(moments, features, n_permutations=50)[0]
        half = replace(features, values=features.values.astype(np.float16))
        found = permutation_null(moments, half, n_permutations=50)[0]
        assert found.explained.observed == pytest.approx(full.explained.observed, abs=5e-3)
        assert found.explained.mean == pytest.approx(full.explained.mean, abs=5e-3)

    @pytest.mark.parametrize("quantity", ["ntps", "explained"])
    def test_p_values_are_uniform_when_labels_mean_nothing(self, quantity):
        ps = []
        for seed in range(120):
            problem = make_problem(seed, n=50, d=6, c=2, signal=0.0)
            null = permutation_null(*moments_and_features(problem), k_v=3, n_permutations=99)[0]
            ps.append(getattr(null, quantity).p_value)
        assert kstest(ps, "uniform").pvalue > 0.01
        assert 0.01 <= np.mean(np.array(ps) <= 0.1) <= 0.2

    def test_signal_is_found(self):
        null = permutation_null(*moments_and_features(make_problem(1, n=200, signal=3.0)), n_permutations=99)[0]
        assert null.explained.p_value == 0.01
        assert null.explained.z > 5
        assert null.explained.mean < null.explained.quantiles[2] < null.explained.observed

    def test_a_null_without_spread_has_no_z(self):
        found = against_null(np.array([1.0, 1.0, 1.0]))
        assert math.isnan(found.z)
        assert found.p_value == 1.0
        assert found.to_dict()["z"] is None

    def test_features_of_another_pass_are_refused(self):
        moments, _ = moments_and_features(make_problem(1, n=40))
        _, features = moments_and_features(make_problem(1, n=50))
        with pytest.raises(NtpsError, match="one pass"):
            permutation_null(moments, features)

    def test_bundled_model_observed_is_the_score(self, tiny_llama):
        model = ntps.load_model(str(tiny_llama))
        texts = ["the film was good", "a bad dull book", "she read the old story", "cold winter rain"] * 10
        task = ntps.load_task(texts=texts, labels=[0, 1, 0, 1] * 10, name="t")
        moments, features = collect(model, task, keep_features=True, progress=False)
        result = ntps.score(moments)
        for null, scored in zip(permutation_null(moments, features, n_permutations=10), result.layers, strict=True):
            assert null.explained.observed == pytest.approx(scored.explained, abs=1e-6)
            assert null.ntps.observed == pytest.approx(scored.ntps, rel=1e-3)


def simulated(n, seed, folds, d=6, c=3, length=5):
    """Texts of a stationary process with its directions well apart."""
    fixed = np.random.default_rng(1)
    means, spread = 0.5 * fixed.normal(size=(c, d)), np.exp(0.3 * fixed.normal(size=d))
    decay = np.array([0.95, 0.85, 0.7, 0.3, 0.2, 0.1])
    rng = np.random.default_rng(seed)
    labels, hidden, state = rng.integers(0, c, n), np.zeros((n, length, d)), rng.normal(size=(n, d))
    for t in range(length):
        state = state * decay + 0.4 * means[labels] + 0.6 * rng.normal(size=(n, d))
        hidden[:, t] = state * spread
    accumulator = MomentAccumulator(
        layers=[0], width=d, n_targets=c, folds=folds, fold_prefix=folds > 0, accumulate_dtype=torch.float64
    )
    which = torch.from_numpy(np.arange(n) % folds) if folds else None
    mask = torch.ones(n, length, dtype=torch.int64)
    accumulator.update(torch.from_numpy(hidden)[None], mask, torch.from_numpy(labels), which)
    return accumulator.finalize()


class TestJackknife:
    def test_against_leaving_out_by_hand(self):
        problem = make_problem(2, n=60, folds=4)
        moments, _ = moments_and_features(problem, folds=4)
        found = jackknife(moments, k_v=3)[0]["explained"]
        whole = read_layer(solve_layer(moments.layer(0)), k_v=3)
        without = []
        for fold in range(4):
            keep = problem.folds != fold
            part = replace(problem, texts=[t for t, k in zip(problem.texts, keep, strict=True) if k],
                           labels=problem.labels[keep])  # fmt: skip
            plain, _ = moments_and_features(part)
            without.append(read_layer(solve_layer(plain.layer(0)), k_v=3).explained)
        assert found.estimate == pytest.approx(whole.explained)
        assert found.standard_error == pytest.approx(math.sqrt(3 / 4 * np.sum((without - np.mean(without)) ** 2)))
        assert found.bias == pytest.approx(3 * (np.mean(without) - whole.explained))

    @pytest.mark.parametrize("name", ["ntps", "explained", "retained"])
    def test_covers_the_value_of_a_large_sample(self, name):
        population = getattr(read_layer(solve_layer(simulated(100_000, 999, 0).layer(0)), k_u=3, k_v=3), name)
        inside = 0
        for seed in range(100):
            interval = jackknife(simulated(600, seed, 10), k_u=3, k_v=3)[0][name]
            inside += interval.low <= population <= interval.high
        assert 86 <= inside <= 100  # 95 +- 4 standard errors of a proportion, from below

    def test_a_value_lies_in_its_own_interval(self):
        """The bias taken off `explained` can be many standard errors: few texts, many directions."""
        outside = 0
        for seed in range(20):
            for name, found in jackknife(simulated(60, seed, 5), k_u=3, k_v=6)[0].items():
                assert found.low <= found.estimate <= found.high, name
                outside += abs(found.bias) > (found.high - found.low) / 2 and name != "ntps"
        assert outside  # without drawing out, some would not

    def test_without_prefix_folds_v_is_held_fixed(self):
        problem = make_problem(2, n=60, folds=4)
        accumulator = MomentAccumulator(layers=[0], width=problem.d, n_targets=problem.c, folds=4)
        hidden, mask = pad_batch(problem.texts)
        accumulator.update(hidden[None], mask, torch.from_numpy(problem.labels), torch.from_numpy(problem.folds))
        found = jackknife(accumulator.finalize())[0]["ntps"]
        assert found.low <= found.estimate <= found.high

    def test_needs_three_folds(self):
        moments, _ = moments_and_features(make_problem(2, folds=2), folds=2)
        with pytest.raises(NtpsError, match="folds=3 or more"):
            jackknife(moments)


class TestRandomControl:
    def test_side_by_side(self, tiny_llama):
        texts = ["the film was good", "a bad dull book"] * 10
        task = ntps.load_task(texts=texts, labels=[0, 1] * 10, name="t")
        results = [
            ntps.score(ntps.collect_moments(ntps.load_model(str(tiny_llama), random_weights=r), task, progress=False))
            for r in (False, True)
        ]
        table = random_control(*results)
        assert len(table) == len(results[0].layers)
        assert np.allclose(table["explained"] - table["explained_random"], table["explained_gain"])

    def test_other_tasks_are_refused(self, tiny_llama):
        model = ntps.load_model(str(tiny_llama))
        tasks = [ntps.load_task(texts=["good film", "bad film"] * 5, labels=[0, 1] * 5, name="t"),
                 ntps.load_task(texts=["good book", "bad book"] * 5, labels=[0, 1] * 5, name="t")]  # fmt: skip
        results = [ntps.score(ntps.collect_moments(model, task, progress=False)) for task in tasks]
        with pytest.raises(NtpsError, match="score both on one task"):
            random_control(*results)
