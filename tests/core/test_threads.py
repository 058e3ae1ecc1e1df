"""Narrow layers are solved by one thread."""

import pytest
import torch
from helpers.problems import make_problem, solve

from ntps.core import shuffled_errors
from ntps.core.threads import NARROW_LAYER, one_thread_if_narrow


@pytest.fixture(autouse=True)
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    assert torch.get_num_threads() == 2
    torch.set_num_threads(before)


@pytest.fixture
def threads(monkeypatch):
    """The numbers of threads that decompositions were computed with."""
    seen = set()

    def recorded(decompose):
        def call(*args, **options):
            seen.add(torch.get_num_threads())
            return decompose(*args, **options)

        return call

    for name in ("eigh", "eigvalsh", "qr", "svd"):
        monkeypatch.setattr(torch.linalg, name, recorded(getattr(torch.linalg, name)))
    return seen


@one_thread_if_narrow
def threads_of(states, *, fail=False):
    if fail:
        raise ValueError
    return torch.get_num_threads()


@pytest.mark.parametrize(("width", "expected"), [(1, 1), (NARROW_LAYER - 1, 1), (NARROW_LAYER, 2)])
def test_only_narrow_states_take_one_thread(width, expected):
    assert threads_of(torch.zeros(3, width)) == expected
    assert threads_of(states=torch.zeros(3, width)) == expected


def test_threads_are_as_before_after_a_failure():  # which the fixture checks
    with pytest.raises(ValueError):
        threads_of(torch.zeros(3, 2), fail=True)


def test_a_call_that_does_not_fit_is_refused_by_name():
    with pytest.raises(TypeError, match="misspelled"):
        threads_of(torch.zeros(3, 2), misspelled=1)


def test_a_layer_is_solved_and_judged_by_one_thread(threads):
    problem = make_problem()
    solved = solve(problem, folds=True)
    assert threads == {1}
    threads.clear()
    solved.held_out([2])
    assert threads == {1}
    threads.clear()
    shuffled_errors(solved.states, solved.fold_of, solved.targets, torch.arange(80)[None])
    assert threads == {1}
    threads.clear()
    assert solved.plain.largest > 0
    assert threads == {1}
    threads.clear()
    solved.without_fold(0)
    assert threads == {1}
