"""The processes that share this work: what the environment says of them, and pools that this process starts."""

import atexit
import gc
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection

from ntps.errors import NtpsError, whole

MOST_THREADS = 1024  # beyond which the system may refuse them, and OpenMP then ends the process


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


@contextmanager
def alone() -> Iterator[None]:
    """Let this process work by itself inside the block, as if torchrun had not started it beside others."""
    kept = {name: os.environ.pop(name) for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK") if name in os.environ}
    try:
        yield
    finally:
        os.environ |= kept


def use_threads(count: int | None) -> None:
    """Let torch and the BLAS libraries use this many threads, in this process and in those that it starts.

    What is too small for a second thread still takes one: see `ntps.core.threads` and `ntps.scoring.probes`. In Python,
    `torch.set_num_threads` does the same for what takes long.

    Args:
        count: Number of threads, at least 1; `None` leaves all as it is.

    Raises:
        NtpsError: If it is out of range.
    """
    if count is None:
        return
    whole(count, 1, MOST_THREADS, "threads")
    os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(count))
    import torch
    from threadpoolctl import threadpool_limits

    torch.set_num_threads(count)  # where it was loaded before
    threadpool_limits(limits=count)


def relax_garbage_collection() -> None:
    """Let a process that does this work alone search less for garbage, and end without taking its objects apart.

    Torch and transformers make a million objects that stay. At Python's default a sixth of their imports goes by
    looking through them, and at the end it takes a second to free one after another what the system takes back at once.
    """
    gc.set_threshold(20_000, 50)
    atexit.register(gc.freeze)


@contextmanager
def process_pool(count: int, threads: int) -> Iterator[ProcessPoolExecutor]:
    """Yield a pool of processes that end at once with the block, or with this process, even if it is killed.

    Args:
        count: Number of processes.
        threads: Number of threads of each, which wait passively.
    """
    context = multiprocessing.get_context("spawn")  # a fork would have locks of threads that it has not
    theirs, ours = context.Pipe(duplex=False)  # nothing is sent: that this end is closed tells the processes to end
    pool = ProcessPoolExecutor(count, context, _begin, (theirs, threads))
    try:
        yield pool
    finally:
        ours.close()
        pool.shutdown(cancel_futures=True)
        theirs.close()


def _begin(alive: Connection, threads: int) -> None:
    """Prepare a process of a pool."""
    relax_garbage_collection()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C comes to all processes of a terminal; the first one answers
    threading.Thread(target=_end_with, args=(alive,), daemon=True).start()
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    use_threads(threads)
    from tqdm import tqdm

    tqdm.set_lock(threading.RLock())  # by default a semaphore of the system's, which this process would leave behind


def _end_with(alive: Connection) -> None:
    with suppress(EOFError, OSError):
        alive.recv_bytes()
    os._exit(1)
