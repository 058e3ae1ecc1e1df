"""How many threads read texts and solve a layer: a second one slows down what is small."""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import ParamSpec, TypeVar

import torch

# Channels from which on two threads, on two free cores with passive waiting, are no slower than one. Below, they make a
# pass over a model of 64 take 1.7 times as long, and an eigendecomposition of 128 seven to twelve times.
NARROW_MODEL = 128
NARROW_LAYER = 512

P = ParamSpec("P")
R = TypeVar("R")


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
