"""A study's cells, each a model on a task: computed once, written atomically, shared by any number of processes.

A cell's file is named by a key of all that it depends on, and is used only if checksum, key and version fit; otherwise
the cell is computed again, and a message says why. A study may be killed at any moment: the next start computes what is
missing. Every cell has its own lock, which the operating system releases when its process dies: any number of
processes, on any machines that see the folder, share one study, each computing cells that no other has locked. The
workers of an executor are such processes: they are sent jobs, and what they compute is read from the folder.
"""

import json
import logging
import re
import secrets
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ntps._files import atomic_write, file_lock, from_json, read_json, sha256_json, sweep
from ntps._text import counted, progress
from ntps._version import __version__
from ntps.errors import NtpsError, reason_of
from ntps.models import Representations, collect, load_model
from ntps.study.grid import CELL_SCHEMA, Cell, Grid
from ntps.study.measure import StudySettings, measure
from ntps.study.records import CellResult, GainRecord
from ntps.tasks import Task

if TYPE_CHECKING:
    from ntps.finetune.settings import TrainSettings

_KEY_DIGITS = 24  # digits of the key in a file's name
_SHORTEST_WAIT, _LONGEST_WAIT = 0.05, 2.0  # seconds before asking again for cells that other processes compute

Message = tuple[str, int, str]  # name of the logger, level, text

logger = logging.getLogger(__name__)


class CellStore:
    """The files of a study's cells: `cells/TASK-KEY.json`, each with a lock in `locks/`."""

    def __init__(self, folder: str | Path) -> None:
        """Take the study's folder, which is created when the first cell is written.

        Raises:
            NtpsError: If it is a file.
        """
        self.folder = Path(folder)
        if self.folder.exists() and not self.folder.is_dir():
            raise NtpsError(f"output {self.folder} is a file; name a folder.")

    def make(self) -> None:
        """Make the folder.

        Raises:
            NtpsError: If it cannot be written.
        """
        try:
            (self.folder / "locks").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise NtpsError(f"cannot write {self.folder}: {error.strerror or error}.") from error

    def path(self, cell: Cell) -> Path:
        """Return the path of a cell's file: the task's name, in safe characters, and the start of the key."""
        words = re.sub(r"[^\w.-]+", "-", cell.task).strip("-").encode()[-60:].decode(errors="ignore")
        return self.folder / "cells" / f"{words}-{cell.key[:_KEY_DIGITS]}.json"

    def read(self, cell: Cell) -> tuple[CellResult | None, str]:
        """Return a cell's result and an empty string, or `None` and why an existing file cannot be used."""
        path = self.path(cell)
        if not path.is_file():
            return None, ""
        try:
            content = read_json(path)
        except NtpsError:
            return None, f"{path} is damaged (not JSON)"
        if not isinstance(content, dict) or "version" not in content:
            return None, f"{path} is damaged (not a cell)"
        if content["version"] != __version__:
            return None, f"{path} is from version {content['version']} of ntps, this is {__version__}"
        if content.get("checksum") != sha256_json(content):
            return None, f"{path} is damaged (its checksum does not fit)"
        try:
            result = CellResult.from_dict(content.get("result"))
        except NtpsError as error:
            return None, f"{path} is damaged ({error})"
        if result.key != cell.key:
            return None, f"{path} belongs to another cell"
        return replace(result, **cell.position), ""  # a control may have been computed for another model

    def written(self, cell: Cell) -> int:
        """Return when a cell's file was written, in nanoseconds; 0 when there is none."""
        try:
            return self.path(cell).stat().st_mtime_ns
        except OSError:
            return 0

    def write(self, cell: Cell, result: CellResult) -> None:
        """Write a cell's result atomically, with schema, version and checksum.

        Raises:
            NtpsError: If the folder cannot be written.
        """
        content = {"kind": "ntps-cell", "schema": CELL_SCHEMA, "version": __version__, "result": result.to_dict()}
        content["checksum"] = sha256_json(content)
        atomic_write(self.path(cell), json.dumps(content, ensure_ascii=False, allow_nan=False) + "\n")

    def outdated(self, cells: Sequence[Cell]) -> dict[str, str]:
        """Return, by key of a cell that has no file, why a file of the same position in the grid is not used."""
        files = {self.path(cell): cell for cell in cells}
        missing = {json.dumps(cell.position): cell.key for path, cell in files.items() if not path.is_file()}
        reasons: dict[str, str] = {}
        for path in sorted((self.folder / "cells").glob("*.json")) if missing else ():
            try:
                content = {} if path in files else read_json(path)
                version, result = content["version"], content["result"]
                key = missing[json.dumps({name: result[name] for name in cells[0].position})]
            except (NtpsError, KeyError, TypeError, ValueError):  # of another position, or not a cell
                continue
            reasons[key] = (
                f"{path} is of other weights, texts or settings"
                if version == __version__
                else f"{path} is from version {version} of ntps, this is {__version__}"
            )
        return reasons

    @contextmanager
    def lock(self, cell: Cell) -> Iterator[bool]:
        """Try to lock a cell without waiting for it; the context's value says whether this process now holds it.

        The lock is the operating system's (`flock`, or what Windows has), and ends with the process that holds it.

        Raises:
            NtpsError: If the folder cannot be written.
        """
        from filelock import Timeout

        self.make()
        try:
            # The file stays: removing it would split the lock in two.
            lock = file_lock(self.folder / "locks" / f"{self.path(cell).stem}.lock")
            lock.acquire(blocking=False)
        except Timeout:
            yield False
            return
        except OSError as error:
            raise NtpsError(f"cannot write {self.folder}: {error.strerror or error}.") from error
        try:
            yield True
        finally:
            lock.release()

    def sweep(self) -> None:
        """Remove the half-written files of processes that died."""
        sweep(self.folder / "cells")


def run_cells(
    grid: Grid,
    store: CellStore,
    settings: StudySettings,
    *,
    lora: "TrainSettings | None" = None,
    device: str | None = None,
    batch_size: int = 32,
    executor: Executor | None = None,
    show: bool | None = None,
) -> list[CellResult]:
    """Compute the cells that are missing, wait for those that other processes compute, and return all results.

    Every model is loaded once, and equal texts are read once: their representations are kept until other texts come. A
    failure becomes a result with its reason, and the other cells go on. A cell that failed before this call is tried
    again, as its reason may be gone.

    Args:
        grid: The grid.
        store: Files of the cells.
        settings: See `StudySettings`.
        lora: How models are fine-tuned in cells of kind `"gain"`.
        device: As in `ntps.load_model`.
        batch_size: As in `ntps.collect`.
        executor: As in `ntps.run_study`.
        show: Whether to show progress on stderr; by default when it is a terminal.

    Returns:
        One result per cell of the grid, in its order.

    Raises:
        NtpsError: If the folder cannot be written, or a worker of the executor refuses its job (see `Job`).
    """
    store.sweep()
    results: dict[str, CellResult] = {}
    missing: dict[str, Cell] = {}  # by key, which controls of one architecture have in common
    # When the unusable file of a missing cell was written: another process writes a newer one.
    written: dict[str, int] = {}
    outdated = store.outdated(grid.cells)
    for cell in grid.cells:
        if cell.key in results or cell.key in missing:
            continue
        result, problem = store.read(cell)
        if result is not None and result.done:
            results[cell.key] = result
            continue
        missing[cell.key], written[cell.key] = cell, store.written(cell)
        if problem := problem or outdated.get(cell.key, ""):
            logger.warning("%s; computing %s again.", problem, cell)
    worker = _Worker(grid, settings, lora=lora, device=device, batch_size=batch_size)
    reasons: set[str] = set()  # that were logged: the cells of a missing model need not all say so
    with progress(len(missing), "cells", show) as bar:

        def take(cell: Cell, result: CellResult) -> None:
            results[cell.key] = result
            bar.update()
            if result.reason is not None and result.reason not in reasons:
                reasons.add(result.reason)
                trace = "" if result.traceback is None else f"\n{result.traceback}"
                logger.log(logging.ERROR if trace else logging.WARNING, "%s failed: %s%s", cell, result.reason, trace)

        if executor is not None:
            store.make()
            run = secrets.token_hex(8)
            jobs = [
                Job(
                    grid=unit,
                    folder=store.folder.resolve(),
                    written={cell.key: written[cell.key] for cell in unit.cells},
                    settings=settings,
                    lora=lora,
                    device=device,
                    batch_size=batch_size,
                    run=run,
                )
                for unit in grid.passes(list(missing.values()))
            ]
            for job in _finished(jobs, executor):
                for cell in job.grid.cells:
                    result = _newer(cell, store, written[cell.key])
                    if result is not None:
                        take(cell, result)
        groups = grid.loadings([cell for key, cell in missing.items() if key not in results])
        first_round, wait = True, _SHORTEST_WAIT
        while groups:
            held: list[Cell] = []  # by other processes
            n_before = len(results)
            for group in groups:
                for index, cell in enumerate(group):
                    result = _claim(cell, store, written[cell.key], worker)
                    if result is not None:
                        take(cell, result)
                    elif first_round:  # at first a process takes models that no other works on; then it helps
                        held += group[index:]
                        break
                    else:
                        held.append(cell)
            if held and not first_round and len(results) == n_before:
                if wait == _SHORTEST_WAIT:
                    logger.info("waiting for %s that other processes compute.", counted(len(held), "cell"))
                time.sleep(wait)
                wait = min(2 * wait, _LONGEST_WAIT)
            groups, first_round = grid.loadings(held), False
    store.sweep()
    return [replace(results[cell.key], **cell.position) for cell in grid.cells]


def _newer(cell: Cell, store: CellStore, written: int) -> CellResult | None:
    """Return a cell's result if its file is not the unusable one that was written then."""
    return store.read(cell)[0] if store.written(cell) != written else None


def _claim(cell: Cell, store: CellStore, written: int, worker: "_Worker") -> CellResult | None:
    """Return a cell's result, computed or just written by another process; `None` while another process holds it."""
    with store.lock(cell) as held:
        if not held:
            return None
        result = _newer(cell, store, written)
        if result is None:
            result = worker.compute(cell)
            store.write(cell, result)
        return result


@dataclass(frozen=True, kw_only=True)
class Job:
    """The cells of one pass with all that it takes to compute them: what a worker of an executor is sent and calls.

    Attributes:
        grid: The cells, their tasks and tests.
        folder: The study's folder.
        written: By key of a cell, when its unusable file was written; 0 when there was none.
        settings, lora, device, batch_size: As in `run_cells`.
        run: Name of the call of `run_cells`: a worker keeps its network from job to job of one call.
        version: Version of ntps in the process that made the job.
    """

    grid: Grid
    folder: Path
    written: dict[str, int]
    settings: StudySettings
    lora: "TrainSettings | None"
    device: str | None
    batch_size: int
    run: str
    version: str = __version__

    def __str__(self) -> str:
        """Return what a dashboard shows."""
        return str(self.grid.cells[0])

    def __call__(self) -> list[Message]:
        """Compute and write the cells that no other process has, and return what was logged.

        Raises:
            NtpsError: If this process has another version of ntps, or does not see the folder or cannot write it.
        """
        if self.version != __version__:
            raise NtpsError(
                f"a worker has version {__version__} of ntps, and the study was started by {self.version}; install one "
                "version everywhere."
            )
        if not self.folder.is_dir():
            raise NtpsError(f"a worker does not see {self.folder}; name an output that all machines share.")
        with _one_job, _messages() as said:
            if self.run not in _workers:
                _workers.clear()
                _workers[self.run] = _Worker(
                    self.grid, self.settings, lora=self.lora, device=self.device, batch_size=self.batch_size
                )
            worker, store = _workers[self.run], CellStore(self.folder)
            worker.grid = self.grid
            for cell in self.grid.cells:
                _claim(cell, store, self.written[cell.key], worker)
        return said


_one_job = threading.Lock()  # a process holds one network, and settings of torch are the process's
_workers: dict[str, "_Worker"] = {}  # that of the last run


@contextmanager
def _messages() -> Iterator[list[Message]]:
    """Keep what the library logs in the block; nobody may read the streams of this process."""
    said: list[Message] = []
    handler, root = logging.Handler(), logging.getLogger("ntps")
    handler.emit = lambda record: said.append((record.name, record.levelno, record.getMessage()))  # type: ignore[method-assign]
    before = root.handlers, root.level, root.propagate
    root.handlers, root.propagate = [handler], False
    root.setLevel(logging.INFO)
    try:
        yield said
    finally:
        root.handlers, level, root.propagate = before
        root.setLevel(level)


def _finished(jobs: Sequence[Job], executor: Executor) -> Iterator[Job]:
    """Yield each job whose worker has come back, and log what the workers did, each message once.

    Workers that die, and executors that break, end nothing: their jobs are not yielded, and a warning says so.

    Raises:
        NtpsError: If a worker refuses its job.
    """
    futures, said, problem = {}, set(), None
    try:
        try:
            for job in jobs:
                futures[executor.submit(job)] = job
        except Exception as error:  # its pool broke already
            problem = error
        for future in as_completed(futures):
            try:
                messages = future.result()
            except NtpsError:
                raise
            except Exception as error:  # cancelled, the worker has died, or a fault of the executor
                problem = problem or error
                continue
            for name, level, text in messages:
                if text not in said:
                    logging.getLogger(name).log(level, "%s", text)
            said |= {text for _, _, text in messages}
            yield futures[future]
    finally:
        for future in futures:
            future.cancel()
    if problem is not None:
        logger.warning("workers were lost (%s); this process computes what is missing.", reason_of(problem))


class _Worker:
    """Computes cells, with the last network and the last representations kept."""

    def __init__(
        self, grid: Grid, settings: StudySettings, *, lora: "TrainSettings | None", device: str | None, batch_size: int
    ) -> None:
        self.grid, self.settings, self.lora = grid, settings, lora
        self.device, self.batch_size = device, batch_size
        self._loading: tuple[Any, ...] | None = None
        self._model: Any = None
        self._representations: Representations | None = None

    def compute(self, cell: Cell) -> CellResult:
        """Return a cell's result, which may be a failure."""
        started = time.monotonic()
        try:
            if cell.reason:
                raise NtpsError(cell.reason)
            model, task = self.model(cell), self.grid.tasks[cell.task, cell.seed]
            score = gain = None
            if cell.kind == "gain":
                gain = self.gain(model, task, cell.task, cell.seed)
            else:
                representations = self.representations(model, task)
                score = measure(representations, self.settings, seed=cell.seed, control=cell.control)
        except Exception as error:  # the other cells go on; of a fault of ours the log and the cell hold the traceback
            trace = None if isinstance(error, NtpsError) else traceback.format_exc()
            return CellResult(**cell.position, key=cell.key, status="failed", reason=reason_of(error), traceback=trace)
        seconds = round(time.monotonic() - started, 3)
        return CellResult(**cell.position, key=cell.key, status="done", seconds=seconds, score=score, gain=gain)

    def model(self, cell: Cell) -> Any:
        """Return the network of a cell; a failure to load it is kept too, so that no other cell tries again."""
        if self._loading != cell.loading:
            self._loading, self._model, self._representations = cell.loading, None, None
            try:
                self._model = self.load(cell)
            except Exception as error:
                self._model = error
        if isinstance(self._model, Exception):
            raise self._model
        return self._model

    def load(self, cell: Cell) -> Any:
        """Load the network of a cell."""
        if cell.kind == "gain":
            from ntps.finetune.before_after import load_for_training  # training needs peft, scoring does not

            dtype = (self.lora.dtype if self.lora else None) or self.settings.dtype
            return load_for_training(cell.model, dtype=dtype, device=self.device, **self.settings.loading())
        return load_model(
            cell.model,
            dtype=self.settings.dtype,
            device=self.device,
            random_weights=cell.control,
            seed=cell.seed if cell.control else None,
            **self.settings.loading(),
        )

    def representations(self, model: Any, task: Task) -> Representations:
        """Return the representations of a task, from the last pass if its texts were the same."""
        last = self._representations
        if last is None or last.task is None or last.task.texts_fingerprint != task.texts_fingerprint:
            self._representations = last = None  # frees the last ones before the next pass
            last = collect(
                model,
                task,
                max_length=self.settings.max_length,
                prefix=self.settings.prefix,
                pooling=self.settings.pooling,
                batch_size=self.batch_size,
                progress=False,
            )
        self._representations = replace(last, task=task)
        return self._representations

    def gain(self, model: Any, task: Task, name: str, seed: int) -> GainRecord:
        """Fine-tune the network on a task, which has this name in the study."""
        from ntps.finetune.before_after import fine_tune_gain

        options: dict[str, Any] = {"seed": seed, "folds": self.settings.folds, "test": self.grid.tests.get(name)}
        return from_json(GainRecord, fine_tune_gain(model, task, self.lora, **options), "the gain")
