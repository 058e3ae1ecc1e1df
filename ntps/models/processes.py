"""The processes that torchrun started: which batches each reads, how they share sums, decisions and failures.

None waits for another that has given up: what may fail in one process runs in `together`, and fails in all of them.
"""

import atexit
import ctypes
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, TypeVar, cast

import numpy as np
import torch

from ntps._processes import world
from ntps.errors import NtpsError, reason_of

S = TypeVar("S", bound=Sequence[Any] | np.ndarray)
T = TypeVar("T")
_LONGEST_WAIT = timedelta(days=1)  # for what one process does for all; where one dies, torchrun ends the others


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

            state = PartialState(cpu=device.type == "cpu", timeout=_LONGEST_WAIT)
            self.count, self.rank = state.num_processes, state.process_index
            atexit.unregister(_leave)
            atexit.register(_leave)

    @property
    def is_main(self) -> bool:
        """Whether this is the process that reports and writes."""
        return self.rank == 0

    def share(self, batches: S) -> S:
        """Return the batches, or the texts of a batch, that this process reads."""
        return cast(S, batches[self.rank :: self.count])

    def together(self, call: Callable[[], T]) -> T:
        """Return `call()` once it has succeeded in every process; where it fails in one, it fails in all of them.

        Args:
            call: It waits for no other process.

        Raises:
            Exception: What `call` raises here, or an `NtpsError` with what it raises in another process.
        """
        if self.count == 1:
            return call()
        failure: Exception | None = None
        try:
            value = call()
        except Exception as error:
            failure = error
        reasons = self.gather(None if failure is None else reason_of(failure))
        if failure is not None:
            try:
                raise failure
            finally:
                del failure  # its traceback has this frame: a circle that would keep the memory of what failed
        for reason in reasons:
            if reason is not None:
                raise NtpsError(reason)
        return value

    def of_main(self, call: Callable[[], T]) -> T:
        """Return, in every process, what `call()` gives in the main one, where alone it runs.

        Raises:
            Exception: As for `together`.
        """
        value = self.together(lambda: call() if self.is_main else None)
        if self.count > 1:
            held = [value]
            torch.distributed.broadcast_object_list(held, src=0)
            value = held[0]
        return cast(T, value)

    def all_agree(self, decide: Callable[[], T | None]) -> T | None:
        """Return `decide()` if it gives a value in every process, otherwise `None` in all of them.

        So no process waits for a pass that another skips.
        """
        value = self.together(decide)
        return value if self.count == 1 or all(self.gather(value is not None)) else None

    def add(self, rows: np.ndarray) -> None:
        """Replace an array by its sum over processes: one process has read a text, the others hold zeros for it."""
        if self.count > 1:
            total = torch.from_numpy(rows.astype(np.float32)).to(self.device)
            torch.distributed.all_reduce(total)
            rows[...] = total.cpu().numpy()

    def add_up(self, tensors: Iterable[torch.Tensor]) -> None:
        """Replace tensors on the device, which all processes have in the same order, by their sums over processes."""
        for tensor in tensors if self.count > 1 else ():
            torch.distributed.all_reduce(tensor)

    def gather(self, value: T) -> list[T]:
        """Return what every process gives, by rank."""
        values: list[T] = [value] * self.count
        if self.count > 1:
            torch.distributed.all_gather_object(values, value)
        return values


def _leave() -> None:
    """Close the process group, whose threads must be joined before the interpreter ends, or it may abort."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


@contextmanager
def freed_memory_returned(device: torch.device) -> Iterator[None]:
    """Give memory of a CPU's large tensors back as soon as they are freed, inside the block.

    glibc keeps blocks of up to 32 MB for later, in pieces: a pass, or a score, then takes up to twice what its tensors
    do. Returning those from 4 MB on costs 1 to 10 % of the time, by machine. Where `MALLOC_MMAP_THRESHOLD_` is set, it
    has the last word.
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
