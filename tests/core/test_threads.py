"""Narrow layers are solved by one thread, and several layers at once."""

import threading
import time

import pytest
import torch
from helpers.problems import make_problem, solve

from ntps.core import shuffled_errors
from ntps.core.threads import NARROW_LAYER, SEVERAL_LAYERS, one_thread_if_narrow, several_at_once


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


def test_two_layers_are_computed_at_once_and_come_in_order():
    both = threading.Barrier(2, timeout=60)

    def read(layer):
        both.wait()  # passes only beside another call
        time.sleep(0.02 * (layer % 2 == 0))  # the later one is ready first
        return layer, torch.get_num_threads()

    assert list(several_at_once(read, range(6), bytes_each=SEVERAL_LAYERS // 2)) == [(layer, 1) for layer in range(6)]
    started = []
    thread = threading.Thread(target=lambda: started.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert started == [2]  # threads to come have as many as before


@pytest.mark.parametrize(("n_threads", "bytes_each"), [(1, 1), (2, SEVERAL_LAYERS // 2 + 1)])
def test_what_has_no_second_thread_or_no_memory_for_two_is_computed_one_by_one(n_threads, bytes_each):
    torch.set_num_threads(n_threads)
    seen = []

    def read(layer):
        seen.append((layer, threading.current_thread() is threading.main_thread(), torch.get_num_threads()))
        return layer

    rows = several_at_once(read, range(3), bytes_each=bytes_each)
    assert (next(rows), len(seen)) == (0, 1)
    assert list(rows) == [1, 2]
    assert seen == [(layer, True, n_threads) for layer in range(3)]
    torch.set_num_threads(2)


def test_three_threads_for_two_layers_leave_one_each():
    torch.set_num_threads(3)
    assert list(several_at_once(lambda layer: torch.get_num_threads(), range(2), bytes_each=1)) == [1, 1]
    assert torch.get_num_threads() == 3
    torch.set_num_threads(2)


def test_a_layer_that_fails_comes_in_its_turn_and_ends_the_work():
    seen = []

    def read(layer):
        seen.append(layer)
        if layer == 1:
            raise ValueError("layer 1")
        return layer

    rows = several_at_once(read, range(50), bytes_each=1)
    assert next(rows) == 0
    with pytest.raises(ValueError, match="layer 1"):
        next(rows)
    assert len(seen) <= 4


def test_layers_that_nobody_asks_for_are_not_computed():
    seen = []
    rows = several_at_once(seen.append, range(50), bytes_each=1)
    next(rows)
    rows.close()
    assert len(seen) <= 3
