"""The processes that torchrun started: which batches each reads, and how they share sums and decisions."""

import atexit
from collections.abc import Callable, Sequence
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
