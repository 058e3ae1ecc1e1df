"""How many threads solve a layer."""

import inspect
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

import torch

NARROW = 512  # channels

P = ParamSpec("P")
R = TypeVar("R")


def one_thread_if_narrow(function: Callable[P, R]) -> Callable[P, R]:
    """Decorate a function of `states` (n, d): torch works on narrow ones with one thread, and has all again afterwards.

    On two free cores with passive waiting, a second thread makes 64 channels take twice as long and 320 one and a half
    times; at 640 it neither helps nor harms.
    """
    signature = inspect.signature(function)

    @wraps(function)
    def call(*args: P.args, **options: P.kwargs) -> R:
        states, before = signature.bind(*args, **options).arguments["states"], torch.get_num_threads()
        if before == 1 or states.shape[-1] >= NARROW:
            return function(*args, **options)
        torch.set_num_threads(1)
        try:
            return function(*args, **options)
        finally:
            torch.set_num_threads(before)

    return call
