"""Who computes a study's cells beside this process: processes of this machine, or the workers of a Dask cluster."""

import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import numpy as np

from ntps._processes import process_pool, refuse_processes
from ntps.errors import NtpsError, whole
from ntps.models.load import find_device, outline_model
from ntps.models.plan import DEFAULT_MAX_LENGTH, PassSettings, free_memory, plan_of, size_text
from ntps.study.grid import reason_of
from ntps.study.measure import DEFAULT_LIMIT, StudySettings

PROCESS_BYTES = 500_000_000  # of a worker before it has loaded a model
ANSWER_SECONDS = 5

logger = logging.getLogger(__name__)


@contextmanager
def study_executor(
    models: Sequence[str],
    *,
    workers: int = 1,
    dask: str | None = None,
    settings: StudySettings | None = None,
    device: str | None = None,
    batch_size: int = 32,
) -> Iterator[Executor | None]:
    """Start what `run_study` takes as `executor`, and end it with the block.

        with study_executor(models, workers=4) as executor:
            study = run_study(models, tasks, output="study", executor=executor)

    Worker processes import the script that starts them: its own work belongs under `if __name__ == "__main__":`.

    Args:
        models: The study's models.
        workers: Number of processes on this machine, each with its share of the threads and a network of its own. One
            is this process, unless they are Dask's.
        dask: Address of a Dask scheduler, whose workers compute; `"local"` starts a cluster of `workers` processes with
            one thread each, whose dashboard is named in a message. It needs the extra `cluster`.
        settings: The study's settings.
        device: As in `run_study`.
        batch_size: As in `run_study`.

    Yields:
        An executor, or `None` where this process computes by itself.

    Raises:
        NtpsError: If `workers` is out of range, several would share a GPU or need more memory than is free, the address
            has workers of its own, torchrun has started processes, Dask is not installed, or nobody answers at the
            address within five seconds.
    """
    whole(workers, 1, None, "workers")
    if workers > 1 or dask is not None:
        refuse_processes("what starts workers", "leave out workers and dask, or torchrun")
    if dask not in (None, "local") and workers != 1:
        raise NtpsError(f"workers is {workers}, but the cluster at dask={dask} has its own; leave out one of the two.")
    if workers > 1:
        _must_fit(workers, models, settings or StudySettings(), device, batch_size)
    with ExitStack() as stack:
        if dask is not None:
            yield stack.enter_context(_dask(dask, workers))
        elif workers > 1:
            import torch

            yield stack.enter_context(process_pool(workers, max(1, torch.get_num_threads() // workers)))
        else:
            yield None


def _must_fit(
    workers: int, models: Sequence[str], settings: StudySettings, device: str | None, batch_size: int
) -> None:
    """Refuse more workers than the device or this machine's memory bears."""
    place = find_device(device)
    if place.type != "cpu":
        raise NtpsError(
            f"workers is {workers}, but {place} is one GPU: each would hold a model there and wait for the others; let "
            "torchrun start one process for each GPU."
        )
    one, free = PROCESS_BYTES, free_memory()
    for model in models:
        with suppress(Exception):  # of a model that cannot be read, the study says why
            found = outline_model(model, dtype=settings.dtype, device="cpu", **settings.loading())
            longest = settings.max_length or DEFAULT_MAX_LENGTH
            longest = min(longest, found.max_positions or longest)
            shape = PassSettings(layers=tuple(range(found.n_layers)), max_length=longest)
            lengths = np.full(settings.limit or DEFAULT_LIMIT, longest)  # as large as they may be
            one = max(one, PROCESS_BYTES + plan_of(found, lengths, shape, batch_size).needs["memory"])
    if free is not None and workers * one > free:
        raise NtpsError(
            f"workers is {workers}, each of which may take {size_text(one)} of memory, and {size_text(free)} are free; "
            f"at most {max(1, free // one)} would fit."
        )


@contextmanager
def _dask(address: str, workers: int) -> Iterator[Executor]:
    """Yield an executor of the scheduler at an address, or of one that is started with workers."""
    try:
        from distributed import Client, LocalCluster
    except ImportError as error:
        raise NtpsError("dask needs its package distributed; install it: pip install 'ntps[cluster]'.") from error

    class ClosedClient(Client):
        """A client that is closed where its start fails.

        Left to Python's collector it may be closed while another one starts, whose lock both wait for then.
        """

        def start(self, **options: Any) -> None:
            try:
                super().start(**options)
            except BaseException:
                self.close()
                raise

    with ExitStack() as stack:
        scheduler = address
        if address == "local":
            own = LocalCluster(
                n_workers=workers,
                threads_per_worker=1,
                memory_limit=None,  # it fits, or was refused; Dask would kill workers at a share of the memory
                dashboard_address="127.0.0.1:0",  # for this machine alone, at a port that is free
                silence_logs=logging.ERROR,
            )
            scheduler = stack.enter_context(own)
        try:
            client = stack.enter_context(ClosedClient(scheduler, timeout=ANSWER_SECONDS, set_as_default=False))
        except Exception as error:  # of the address, the network or the scheduler
            raise NtpsError(
                f"dask is {address!r}, where no scheduler answers within {ANSWER_SECONDS} seconds "
                f"({reason_of(error)}); give its address, such as tcp://host:8786, or local."
            ) from error
        logger.info("the dashboard of the cells: %s", client.dashboard_link)
        yield client.get_executor(pure=False)
