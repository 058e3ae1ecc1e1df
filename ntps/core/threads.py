"""How many threads read texts and solve a layer, and how many layers are solved at once.

A second thread slows down what is small, and does little for the decompositions of several hundred channels: two layers
of 640 at once, with one thread each, take less than half of what they take one after the other with two threads
(`python -m benchmarks --only layers`).
"""

import inspect
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import wraps
from typing import ParamSpec, TypeVar

import torch

# Channels from which on two threads, on two free cores with passive waiting, are no slower than one. Below, they make a
# pass over a model of 64 take 1.7 times as long, and an eigendecomposition of 128 seven to twelve times.
NARROW_MODEL = 128
NARROW_LAYER = 512
# Bytes that layers solved at once may take together, beside the states.
SEVERAL_LAYERS = 1_000_000_000

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")


@contextmanager
def one_torch_thread(wanted: bool) -> Iterator[None]:
    """Let torch work with one thread inside the block, if wanted, and with all again afterwards."""
    before = torch.get_num_threads()
    if not wanted or before == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def one_thread_if_narrow(function: Callable[P, R]) -> Callable[P, R]:
    """Decorate a function whose first argument is states (n, d), or has a width `d`: narrow ones take one thread."""
    signature = inspect.signature(function)

    @wraps(function)
    def call(*args: P.args, **options: P.kwargs) -> R:
        first = next(iter(signature.bind(*args, **options).arguments.values()))
        width = first.shape[-1] if isinstance(first, torch.Tensor) else first.d
        with one_torch_thread(width < NARROW_LAYER):
            return function(*args, **options)

    return call


def several_at_once(function: Callable[[T], R], items: Sequence[T], *, bytes_each: int = 1) -> Iterator[R]:
    """Yield `function(item)` of each item, in order, several computed at once with their share of torch's threads.

    Args:
        function: What to do with a layer, or with a narrow model; it may be called in another thread.
        items: The layers or models.
        bytes_each: Memory that a call takes, and its result, where that is much.
    """
    threads = torch.get_num_threads()
    at_once = min(threads, len(items), max(1, SEVERAL_LAYERS // bytes_each))
    if at_once < 2:
        yield from map(function, items)
        return
    running: deque[Future[R]] = deque()
    pool = ThreadPoolExecutor(at_once, initializer=torch.set_num_threads, initargs=(threads // at_once,))
    try:
        for item in items:
            if len(running) == at_once:
                yield running.popleft().result()
            running.append(pool.submit(function, item))
        while running:
            yield running.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)  # the pool has changed what threads to come would start with
