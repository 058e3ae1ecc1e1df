"""The processes that torchrun started: which batches each reads, how they share sums and decisions, their memory."""

import atexit
import ctypes
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TypeVar

import numpy as np
import torch

from ntps._processes import world

T = TypeVar("T")


class Processes:
    """The processes of this job, or this one alone.

    Args:
        device: The model's device; gloo connects processes on CPUs, NCCL those on GPUs.

    Attributes:
        count: Number of processes.
        rank: Index of this one; 0 is the main process.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.count, self.rank = world()
        if self.count > 1:
            from accelerate import PartialState

            state = PartialState(cpu=device.type == "cpu")
            self.count, self.rank = state.num_processes, state.process_index
            atexit.unregister(_leave)
            atexit.register(_leave)

    @property
    def is_main(self) -> bool:
        """Whether this is the process that reports and writes."""
        return self.rank == 0

    def share(self, batches: Sequence[T]) -> Sequence[T]:
        """Return the batches that this process reads."""
        return batches[self.rank :: self.count]

    def all_agree(self, decide: Callable[[], T | None]) -> T | None:
        """Return `decide()` if it gives a value in every process, otherwise `None` in all of them.

        The main process decides first and the others follow, so that no process waits for a pass that another skips.
        """
        value = decide() if self.is_main else None
        if self.count == 1:
            return value
        if self._sum(int(value is not None)) and not self.is_main:
            value = decide()
        return value if self._sum(int(value is not None)) == self.count else None

    def add(self, rows: np.ndarray) -> None:
        """Replace an array by its sum over processes: one process has read a text, the others hold zeros for it."""
        if self.count > 1:
            total = torch.from_numpy(rows.astype(np.float32)).to(self.device)
            torch.distributed.all_reduce(total)
            rows[...] = total.cpu().numpy()

    def _sum(self, number: int) -> int:
        total = torch.tensor([number], device=self.device)
        torch.distributed.all_reduce(total)
        return int(total)


def _leave() -> None:
    """Close the process group, whose threads must be joined before the interpreter ends, or it may abort."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


@contextmanager
def freed_memory_returned(device: torch.device) -> Iterator[None]:
    """Give memory of a CPU's large tensors back as soon as they are freed, inside the block.

    glibc keeps blocks of up to 32 MB for later, in pieces: a pass then takes up to twice what its tensors do. From 4 MB
    on, returning them costs 1 % of the time. `MALLOC_MMAP_THRESHOLD_`, where it is set, has the last word.
    """
    set_option = None
    if device.type == "cpu" and sys.platform == "linux" and "MALLOC_MMAP_THRESHOLD_" not in os.environ:
        with suppress(OSError, AttributeError):  # another library than glibc
            set_option = ctypes.CDLL(None).mallopt
    threshold, trim = -3, -1  # M_MMAP_THRESHOLD and M_TRIM_THRESHOLD
    if set_option is not None:
        set_option(threshold, 4 << 20)
        set_option(trim, 8 << 20)
    try:
        yield
    finally:
        if set_option is not None:  # what glibc comes to by itself once large blocks have been freed
            set_option(threshold, 32 << 20)
            set_option(trim, 64 << 20)
