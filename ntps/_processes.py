"""What the environment says of the processes that share this work."""

import os

from ntps.errors import NtpsError


def world() -> tuple[int, int]:
    """Return how many processes share this work, and the number of this one, from 0.

    Only what torchrun sets counts, and only with `WORLD_SIZE` above 1. `RANK` alone, and what SLURM or MPI set, say
    nothing about this work: in their jobs, one command may well run for each model.

    Raises:
        NtpsError: If `WORLD_SIZE` is not a number, or another variable that torchrun sets is missing or contradicts it.
    """
    count = _number("WORLD_SIZE", 1)
    if count is None or count < 2:
        return 1, 0
    rank, local = _number("RANK", 0), _number("LOCAL_RANK", 0)
    missing = [name for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT") if not os.environ.get(name)]
    if missing or rank is None or local is None:
        raise NtpsError(
            f"WORLD_SIZE is {count}, but {missing[0]} is not set; start several processes with torchrun, or unset "
            "WORLD_SIZE for one."
        )
    if rank >= count:
        raise NtpsError(f"RANK is {rank}, but WORLD_SIZE is {count}; ranks go from 0 to {count - 1}.")
    _number("MASTER_PORT", 1)
    return count, rank


def local_rank() -> int:
    """Return the number of this process among those on its machine, from 0.

    Raises:
        NtpsError: As for `world`.
    """
    return _number("LOCAL_RANK", 0) or 0 if world()[0] > 1 else 0


def _number(name: str, least: int) -> int | None:
    """Return a whole number from the environment; `None` if it is not set, or empty."""
    text = os.environ.get(name, "").strip()
    if not text:
        return None
    if not (text.isascii() and text.isdigit() and len(text) < 10 and int(text) >= least):
        raise NtpsError(
            f"{name} is {text!r}; torchrun sets it to a whole number of at least {least}. Unset it for one process."
        )
    return int(text)


def is_main_process() -> bool:
    """Return whether this process is the one that reports and writes."""
    return world()[1] == 0


def refuse_processes(what: str, instead: str = "start it without torchrun") -> None:
    """Refuse to start under torchrun what one process does alone.

    Args:
        what: It, as the start of a sentence.
        instead: What to do, as the end of the sentence.

    Raises:
        NtpsError: If several processes share this work.
    """
    if world()[0] > 1:
        raise NtpsError(f"{what} runs in one process; {instead}.")
