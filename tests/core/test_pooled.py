"""Pooled moments: means over texts, about zero and about the means, with and without a subset."""

import numpy as np
import pytest
import torch
from helpers import naive
from helpers.problems import make_problem, pooled_tensor

from ntps.core import PooledMoments, pooled
from ntps.errors import NtpsError

FIELDS = ("M", "X", "mean_x", "mean_y", "yy")


def of(problem, rows=slice(None)):
    return PooledMoments.of(pooled_tensor(problem)[rows], torch.from_numpy(problem.targets)[rows])


def close(one, other):
    return one.n == other.n and all(torch.allclose(getattr(one, f), getattr(other, f), atol=1e-12) for f in FIELDS)


def test_equals_plain_loops():
    problem = make_problem(n=23)
    ours, loops = of(problem), naive.moments(problem.texts, problem.targets)
    assert (ours.n, ours.d) == (23, 8)
    for name in FIELDS:
        assert np.allclose(getattr(ours, name), loops[name], atol=1e-13), name
        assert getattr(ours, name).dtype == torch.float64


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_blocks_and_dtypes_of_states_change_nothing(monkeypatch, dtype):
    """Every product is made in float64, whatever the states are kept in."""
    problem = make_problem(n=23)
    states, targets = pooled_tensor(problem).to(dtype), torch.from_numpy(problem.targets)
    whole = PooledMoments.of(states.double(), targets)
    monkeypatch.setattr(pooled, "_BLOCK", 5)
    assert close(PooledMoments.of(states, targets), whole)


def test_centred_moments_are_those_of_centred_data():
    problem = make_problem(n=25)
    x, y = naive.pooled(problem.texts), problem.targets
    about_means = PooledMoments.of(torch.from_numpy(x - x.mean(0)), torch.from_numpy(y - y.mean(0)))
    assert close(of(problem).centered(), about_means)


def test_a_subset_of_the_texts_is_subtracted():
    problem = make_problem(n=30)
    whole, first, rest = of(problem), of(problem, slice(0, 11)), of(problem, slice(11, None))
    assert close(whole - first, rest)
    assert not close(whole - rest, rest)
    with pytest.raises(NtpsError, match="30 texts without 30"):
        whole - whole


def test_what_has_no_moments():
    with pytest.raises(NtpsError, match="3 pooled states and 2 targets"):
        PooledMoments.of(torch.ones(3, 2), torch.ones(2, 1))
    with pytest.raises(NtpsError, match="0 pooled states"):
        PooledMoments.of(torch.ones(0, 2), torch.ones(0, 1))
