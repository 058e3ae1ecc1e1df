"""Held-out errors in closed form equal readouts refitted on the data; noise reads 0; a planted leak shows."""

import math
from unittest.mock import patch

import numpy as np
import pytest
import torch
from helpers import naive
from helpers.problems import make_problem, solve
from hypothesis import given, settings
from hypothesis import strategies as st

from ntps.core import Keep, held_out_errors, shuffled_errors
from ntps.core import heldout as module
from ntps.core.heldout import RIDGES, choose_elsewhere
from ntps.errors import NtpsError


def classes(n, d, *, seed=0, c=3, folds=4, signal=1.0, dtype=np.float64):
    """States (n, d) whose mean depends on the class, one-hot labels, folds, and directions V (d, min(d, 6))."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(n) % c)
    states = signal * rng.normal(size=(c, d))[labels] + rng.normal(size=(n, d)) * np.exp(rng.normal(size=d)) + 2.0
    return (
        states.astype(dtype),
        np.eye(c)[labels],
        rng.permutation(np.arange(n) % folds),
        rng.normal(size=(d, 6))[:, :d],
    )


def held_out(states, targets, folds, V, ks, *, ridges=RIDGES, part=None, separate=False, **keep):
    as_tensor = torch.from_numpy
    if isinstance(part, np.ndarray):
        part = as_tensor(part)
    with patch.object(module, "RIDGES", ridges):
        return held_out_errors(
            *map(as_tensor, (states, targets, folds, V)), ks, part=part, separate=separate, keep=Keep(**keep)
        )


def assert_as_refitted(states, targets, folds, V, ks, *, ridges=RIDGES, part=None, tolerance=1e-7):
    found = held_out(states, targets, folds, V, ks, ridges=ridges, part=part)
    errors, baseline = naive.held_out(states, targets, folds, V, ks, ridges, part=part)
    assert np.allclose(found.errors.numpy(), errors[:-1], atol=tolerance, rtol=tolerance)
    assert np.allclose(found.ceiling_errors.numpy(), errors[-1], atol=tolerance, rtol=tolerance)
    assert np.allclose(found.baseline.numpy(), baseline, atol=1e-12)
    expected = 1 - errors.sum(1) / baseline.sum()
    assert [*found.explained, found.ceiling] == pytest.approx(expected, abs=tolerance)
    return found


# The definition


@pytest.mark.parametrize("ridges", [RIDGES, (0.1,), (1e-4, 10.0)], ids=["all", "one", "two"])
@pytest.mark.parametrize(("n", "d", "ks"), [(52, 7, [1, 3, 6]), (30, 48, [1, 3, 6]), (24, 24, [2]), (40, 1, [1])])
def test_equals_a_readout_refitted_for_every_fold(ridges, n, d, ks):
    """More texts than directions, and fewer, where the kernel is decomposed in place of the Gram."""
    states, targets, folds, V = classes(n, d, seed=n)
    found = assert_as_refitted(states, targets, folds, V, ks, ridges=ridges)
    assert found.errors.shape == (len(ks), n)
    if ridges == RIDGES and d > 1:  # other folds are other numbers
        other, _ = naive.held_out(states, targets, np.roll(folds, 1), V, ks, ridges)
        assert not np.allclose(found.ceiling_errors.numpy(), other[-1], atol=1e-3)


def test_folds_of_unequal_size_count_by_their_texts():
    states, targets, folds, V = classes(50, 6)
    assert_as_refitted(states, targets, np.where(np.arange(50) < 25, 0, folds), V, [2, 6])


def test_a_solution_holds_out_through_its_own_v():
    problem = make_problem(seed=3, n=48, d=5)
    solved = solve(problem, folds=True)
    found = solved.held_out([2, 5])
    V = solved.V.vectors.numpy()
    errors, baseline = naive.held_out(naive.pooled(problem.texts), problem.targets, problem.folds, V, [2, 5], RIDGES)
    assert [*found.explained, found.ceiling] == pytest.approx(1 - errors.sum(1) / baseline.sum(), abs=1e-7)
    assert found.explained[-1] == pytest.approx(found.ceiling, abs=1e-7)  # V spans everything
    assert found.at(2) == found.explained[0]
    assert math.isnan(found.at(0))
    with pytest.raises(NtpsError, match=r"k = 3.*2, 5"):
        found.at(3)


def test_errors_are_kept_text_by_text_where_they_are_asked_for():
    problem = classes(60, 7)
    every, one, none = (held_out(*problem, [1, 3, 6], by_text=by_text) for by_text in (None, [3], []))
    for found in (one, none):
        assert found.explained == pytest.approx(every.explained, abs=1e-14) and found.ceiling == every.ceiling
        assert torch.equal(found.ceiling_errors, every.ceiling_errors)
    assert torch.equal(one.errors_at(3), every.errors_at(3))
    assert (len(every.errors), len(one.errors), len(none.errors)) == (3, 1, 0)
    with pytest.raises(NtpsError, match="k = 6; there are 3"):
        one.errors_at(6)


def test_texts_left_out_of_training_are_judged_all_the_same():
    states, targets, folds, V = classes(60, 7)
    part = np.arange(60) % 3 > 0
    found = assert_as_refitted(states, targets, folds, V, [2], part=part)
    whole = held_out(states, targets, folds, V, [2])
    assert len(found.ceiling_errors) == 60
    assert found.ceiling != pytest.approx(whole.ceiling, abs=1e-3)
    everything = held_out(states, targets, folds, V, [2], part=np.ones(60, dtype=bool))
    assert torch.equal(everything.ceiling_errors, whole.ceiling_errors)


def test_the_class_of_the_largest_prediction():
    states, targets, folds, V = classes(90, 5, signal=2.0)
    found = held_out(states, targets, folds, V, [], ridges=(0.1,))
    labels, predicted = targets.argmax(1), np.zeros(90, dtype=int)
    for fold in range(4):
        train, test = folds != fold, folds == fold
        z = (states - states[train].mean(0)) / states[train].std(0)
        mean = targets[train].mean(0)
        gram = z[train].T @ z[train] + 0.1 * train.sum() * np.eye(5)
        predicted[test] = (z[test] @ np.linalg.solve(gram, z[train].T @ (targets[train] - mean)) + mean).argmax(1)
    assert found.predicted.tolist() == predicted.tolist()
    assert 0.5 < np.mean(predicted == labels) < 1


def test_a_penalty_is_chosen_by_the_other_folds():
    """Errors of a fold, however large, do not move its own penalty."""
    losses = torch.tensor([[1.0, 1.0, 5.0, 5.0], [2.0, 2.0, 1.0, 1.0]], dtype=torch.float64)
    fold_of = torch.tensor([0, 0, 1, 1])
    assert choose_elsewhere(losses, fold_of).tolist() == [1, 1, 0, 0]  # each fold takes what serves the other
    losses[:, :2] = torch.tensor([[0.0], [1e9]])
    assert choose_elsewhere(losses, fold_of)[:2].tolist() == [1, 1]
    losses[:, :2] = torch.tensor([[1e9], [0.0]])
    chosen = choose_elsewhere(losses, fold_of)
    assert chosen[:2].tolist() == [1, 1] and chosen[2:].tolist() == [1, 1]


# Errors of texts left out one by one


def refitted_without(states, targets, group, penalty):
    """Squared errors (n, c) of a ridge readout with a free intercept, fitted anew without each text and its equals."""
    z = (states - states.mean(0)) / np.where(np.ptp(states, axis=0) > 0, states.std(0), np.inf)
    errors = np.empty_like(targets)
    for left_out in np.unique(group):
        rest = group != left_out
        mean_z, mean_y = z[rest].mean(0), targets[rest].mean(0)
        a, b = z[rest] - mean_z, targets[rest] - mean_y
        readout = np.linalg.solve(a.T @ a + penalty * np.eye(z.shape[1]), a.T @ b)
        errors[~rest] = np.square(targets[~rest] - mean_y - (z[~rest] - mean_z) @ readout)
    return errors


@pytest.mark.parametrize("block", [module._BLOCK, 1, 300], ids=["one block", "blocks of one text", "of a few"])
@pytest.mark.parametrize("separate", [False, True])
@pytest.mark.parametrize(("n", "d", "repeats"), [(40, 7, 0), (24, 40, 0), (36, 5, 12), (20, 30, 15)])
def test_texts_left_out_equal_a_readout_refitted_without_each(n, d, repeats, separate, block, monkeypatch):
    """By closed form for all at once: more texts than directions and fewer, texts that occur several times."""
    monkeypatch.setattr(module, "_BLOCK", block)
    states, targets, folds, V = classes(n, d, seed=n)
    group, ridges = np.arange(n), (1e-3, 0.1, 10.0)
    if repeats:
        group[-repeats:] = np.random.default_rng(0).integers(0, n - repeats, repeats)
        states, folds = states[group], folds[group]
    found = held_out(
        states, targets, folds, V, [2], ridges=ridges, separate=separate, loo_groups=torch.from_numpy(group)
    )
    for index, fold in enumerate(np.unique(folds)):
        train = folds != fold
        errors = [
            refitted_without(states[train], targets[train], group[train], ridge * train.sum()).sum(0)
            for ridge in ridges
        ]
        expected = np.min(errors, axis=0).sum() if separate else np.sum(errors, axis=1).min()
        assert found.loo_errors[index].item() == pytest.approx(expected, rel=1e-9)


def test_texts_left_out_know_nothing_of_the_fold_and_all_of_the_others():
    states, targets, folds, V = classes(60, 8)
    groups = torch.arange(60)
    before = held_out(states, targets, folds, V, (), loo_groups=groups).loo_errors
    for fold in range(4):
        inside = folds == fold
        other_states, other_targets = states.copy(), targets.copy()
        other_states[inside] = 1e3 * np.random.default_rng(fold).normal(size=(inside.sum(), 8))
        other_targets[inside] = np.roll(targets[inside], 1, axis=1)
        after = held_out(other_states, other_targets, folds, V, (), loo_groups=groups).loo_errors
        assert after[fold] == before[fold]
        assert (after != before).sum() == 3


def test_equal_texts_are_left_out_together():
    """Labels of repeated texts that say nothing are read from the copy, unless it is left out too."""
    rng = np.random.default_rng(0)
    group = np.tile(np.arange(40), 2)
    states, targets, folds = rng.normal(size=(40, 60))[group], np.eye(2)[rng.integers(0, 2, 40)][group], group % 4
    none = torch.zeros(60, 0, dtype=torch.float64).numpy()
    together, alone = (
        held_out(states, targets, folds, none, (), loo_groups=torch.from_numpy(each)).loo_errors.sum()
        for each in (group, np.arange(80))
    )
    assert alone < 0.1 * together
    assert held_out(states, targets, folds, none, ()).loo_errors is None


# What does not matter


@settings(max_examples=25, deadline=None, derandomize=True, database=None)
@given(
    seed=st.integers(0, 1000),
    wide=st.booleans(),
    factor=st.floats(-5, 5),
    channel=st.integers(0, 5),
    loudness=st.floats(-5, 5),
    shift=st.floats(-10, 10),
)
def test_units_and_order_change_nothing(seed, wide, factor, channel, loudness, shift):
    states, targets, folds, V = classes(36, 40 if wide else 6, seed=seed)
    plain = held_out(states, targets, folds, V, [1, 4])
    units = np.full(states.shape[1], 10.0**factor)
    units[channel] *= 10.0**loudness
    rng = np.random.default_rng(seed)
    texts, labels = rng.permutation(36), rng.permutation(3)
    moved = held_out(
        (states * units + shift * units)[texts],
        targets[texts][:, labels],
        folds[texts],
        V / units[:, None],  # V^T x keeps its values
        [1, 4],
    )
    assert moved.explained == pytest.approx(plain.explained, abs=1e-6)
    assert np.allclose(moved.ceiling_errors, plain.ceiling_errors[texts], atol=1e-6)
    assert np.array_equal(labels[moved.predicted], plain.predicted[texts])


def test_v_counts_by_what_it_spans():
    states, targets, folds, V = classes(50, 8)
    mix = np.triu(np.random.default_rng(1).normal(size=(6, 6))) + 3 * np.eye(6)  # keeps the span of each first k
    one, other = (held_out(states, targets, folds, basis, [1, 3, 6]) for basis in (V, V @ mix))
    assert one.explained == pytest.approx(other.explained, abs=1e-8)
    assert held_out(states, targets, folds, V[:, ::-1].copy(), [1]).explained != pytest.approx(
        one.explained[:1], abs=1e-3
    )


def test_a_loud_channel_does_not_hide_the_others():
    """Noise 1e5 times louder than the rest: the same R^2 as noise of the loudness of the rest."""
    states, targets, folds, V = classes(120, 10, signal=0.8)
    states[:, 3] = np.random.default_rng(1).normal(size=120)
    plain = held_out(states, targets, folds, V, []).ceiling
    states[:, 3] *= 1e5
    assert held_out(states, targets, folds, V, []).ceiling == pytest.approx(plain, abs=1e-9)
    assert plain > 0.2


@pytest.mark.parametrize("value", [0.0, 0.1, 1e6 / 3])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_constant_channel_says_nothing(value, dtype):
    states, targets, folds, V = classes(50, 6, dtype=dtype)
    constant = np.insert(states, 2, dtype(value), axis=1)
    V = np.insert(V, 2, 1.0, axis=0)
    found = assert_as_refitted(constant, targets, folds, V, [2, 5], tolerance=1e-6)
    without = held_out(states, targets, folds, np.delete(V, 2, axis=0), [2, 5])
    assert found.ceiling == pytest.approx(without.ceiling, abs=0.02)


def test_a_channel_that_is_constant_but_for_rounding_says_nothing():
    """Rounding that goes along with the labels must not be blown up into a channel."""
    states, targets, folds, V = classes(60, 6, signal=0.0)
    rounding = np.where(targets[:, 0] > 0, 0.1, np.nextafter(0.1, 1))
    states[:, 2] = rounding
    assert held_out(states, targets, folds, V, []).ceiling < 0.1
    states[:, 2] = targets[:, 0]
    assert held_out(states, targets, folds, V, []).ceiling > 0.3


@pytest.mark.parametrize("n", [40, 150])
def test_channels_given_twice_change_little(n):
    states, targets, folds, V = classes(n, 20, signal=0.7)
    once = held_out(states, targets, folds, V, [4])
    twice = held_out(np.hstack([states, states]), targets, folds, np.vstack([V, V]), [4])
    assert twice.ceiling == pytest.approx(once.ceiling, abs=0.02)  # the same penalty weighs half as much
    assert twice.explained == pytest.approx(once.explained, abs=0.02)


@pytest.mark.parametrize("n", [40, 100])
def test_float32_states_and_memory_maps(tmp_path, n):
    states, targets, folds, V = classes(n, 60, dtype=np.float32)
    single = held_out(states, targets, folds, V, [3])
    double = held_out(states.astype(np.float64), targets, folds, V, [3])
    assert np.allclose(single.ceiling_errors, double.ceiling_errors, atol=1e-9)
    np.save(tmp_path / "states.npy", states)
    mapped = np.load(tmp_path / "states.npy", mmap_mode="c")
    assert torch.equal(held_out(mapped, targets, folds, V, [3]).errors, single.errors)
    half = held_out(states.astype(np.float16), targets, folds, V, [3])
    assert half.ceiling == pytest.approx(double.ceiling, abs=0.02)


def test_blocks_do_not_change_it(monkeypatch):
    states, targets, folds, V = classes(50, 7)
    whole = held_out(states, targets, folds, V, [1, 4])
    monkeypatch.setattr(module, "_BLOCK", 1)
    blocks = held_out(states, targets, folds, V, [1, 4])
    assert torch.allclose(blocks.errors, whole.errors, atol=1e-10)
    assert torch.equal(blocks.predicted, whole.predicted)


# What it finds


@pytest.mark.parametrize("n", [100, 300])
def test_noise_labels_read_nothing(n):
    """With penalties up to 1e5 a readout may say no more than the frequencies; with those up to 1 it overfits."""
    found, short = [], []
    for seed in range(6):
        states, targets, folds, V = classes(n, 80, seed=seed, signal=0.0, c=2, folds=5)
        found.append(held_out(states, targets, folds, V, [5]))
        short.append(held_out(states, targets, folds, V, [5], ridges=RIDGES[:17]).ceiling)
    assert -0.03 < np.mean([each.ceiling for each in found]) < 0.02
    assert -0.03 < np.mean([each.explained[0] for each in found]) < 0.02
    assert np.mean(short) < -0.05


def test_real_signal_is_found_on_held_out_texts():
    problem = make_problem(seed=1, n=400, d=8, c=3, longest=8, signal=3.0, folds=5)
    solved = solve(problem, folds=True)
    found = solved.held_out([8])
    assert 0.3 < found.explained[0] < solved.r2_at(8) < found.explained[0] + 0.1
    assert found.ceiling == pytest.approx(found.explained[0], abs=1e-6)


def test_texts_leaked_between_folds_would_show():
    """Noise labels, every text twice: in one fold it reads nothing, in two folds the repeat gives it away."""
    states, targets, _, V = classes(60, 40, signal=0.0, c=2)
    states, targets, fold = np.tile(states, (2, 1)), np.tile(targets, (2, 1)), np.arange(60) % 4
    together = held_out(states, targets, np.tile(fold, 2), V, []).ceiling
    leaked = held_out(states, targets, np.concatenate([fold, (fold + 1) % 4]), V, []).ceiling
    assert leaked > 0.5 > 0.05 > together


# Many labellings


@pytest.mark.parametrize(("n", "d"), [(50, 7), (30, 44)])
@pytest.mark.parametrize("block", [None, 400])
def test_shuffled_labels_are_refitted(monkeypatch, n, d, block):
    if block:
        monkeypatch.setattr(module, "_BLOCK", block)
    states, targets, folds, V = classes(n, d)
    rng = np.random.default_rng(0)
    orders = np.stack([np.arange(n), *(rng.permutation(n) for _ in range(5))])
    sums = shuffled_errors(*map(torch.from_numpy, (states, folds, targets, orders)))
    assert sums.shape == (6, 4, 2)
    for order, ours in zip(orders, sums, strict=True):
        alone = held_out(states, targets[order], folds, V, [])
        for fold in range(4):
            expected = [float(each[folds == fold].sum()) for each in (alone.ceiling_errors, alone.baseline)]
            assert ours[fold].tolist() == pytest.approx(expected, abs=1e-8)
    assert not torch.allclose(sums[0], sums[1], atol=1e-3)


@pytest.mark.parametrize(("n", "d"), [(50, 7), (30, 44)])
def test_separate_targets_are_each_read_alone(n, d):
    """Two targets that the states say and one that means nothing: with one penalty for all, it costs the others."""
    states, one_hot, folds, V = classes(n, d, signal=4.0)
    rng = np.random.default_rng(0)
    targets = np.column_stack([one_hot[:, 0], one_hot[:, 1], rng.normal(size=n)])
    found = held_out(states, targets, folds, V, [2], separate=True, fitted=True)
    alone = [held_out(states, targets[:, [column]], folds, V, [2], fitted=True) for column in range(3)]
    for name in ("errors", "ceiling_errors", "baseline"):
        total = sum(getattr(each, name) for each in alone)
        assert torch.allclose(getattr(found, name), total, atol=1e-10), name
    assert torch.allclose(found.fitted, torch.cat([each.fitted for each in alone], dim=1), atol=1e-10)
    assert torch.allclose((torch.from_numpy(targets) - found.fitted).square().sum(1), found.ceiling_errors, atol=1e-10)
    assert alone[0].fitted is not None and held_out(states, targets, folds, V, []).fitted is None
    together = held_out(states, targets, folds, V, [])
    assert abs(together.ceiling - found.ceiling) > 1e-3
    orders = np.stack([np.arange(n), rng.permutation(n)])
    sums = shuffled_errors(*map(torch.from_numpy, (states, folds, targets, orders)), separate=True)
    parts = [shuffled_errors(*map(torch.from_numpy, (states, folds, targets[:, [c]], orders))) for c in range(3)]
    assert torch.allclose(sums, sum(parts), atol=1e-10)
    assert float(sums[0, :, 0].sum()) == pytest.approx(float(found.ceiling_errors.sum()))


# What has no value


@pytest.mark.parametrize("targets", [np.eye(3)[np.zeros(30, dtype=int)], np.full((30, 1), 0.1)])
def test_constant_labels_have_no_share(targets):
    states, _, folds, V = classes(30, 5)
    found = held_out(states, targets, folds, V, [1, 2])
    assert all(math.isnan(value) for value in (*found.explained, found.ceiling))
    assert float(found.baseline.sum()) == 0


@pytest.mark.parametrize("value", [0.0, 1.0, 0.1])
def test_constant_states_read_the_frequencies(value):
    _, targets, folds, V = classes(30, 5)
    states = np.full((30, 5), value)
    found = held_out(states, targets, folds, V, [1, 2])
    assert [*found.explained, found.ceiling] == pytest.approx([0, 0, 0], abs=1e-12)
    sums = shuffled_errors(*map(torch.from_numpy, (states, folds, targets)), torch.arange(30)[None])
    assert torch.allclose(sums[..., 0], sums[..., 1])


def test_a_class_in_one_fold_only():
    states, targets, folds, V = classes(40, 6)
    assert_as_refitted(states, targets, np.where(targets[:, 2] > 0, 0, folds), V, [3])


def test_what_cannot_be_held_out():
    states, targets, folds, V = classes(20, 4)
    with pytest.raises(NtpsError, match="two folds, not 1"):
        held_out(states, targets, np.zeros(20, dtype=int), V, [1])
    with pytest.raises(NtpsError, match="without folds"):
        solve(make_problem(n=20)).held_out([1])
    with pytest.raises(NtpsError, match="no text"):
        held_out(states, targets, folds, V, [1], part=folds == 0)
