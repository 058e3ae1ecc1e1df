"""A study's grid of cells: each a model on a task, written atomically under a key of all that it depends on.

A study may be killed at any moment: what is there on the next start is read, what is missing is computed. A file is
believed when its checksum, key and version fit; otherwise the cell is computed again, and said so.
"""

import hashlib
import json
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ntps._files import atomic_write, jsonable, read_json, sha256_json
from ntps._version import __version__
from ntps.errors import NtpsError
from ntps.finetune.settings import TrainSettings
from ntps.models.load import load_model, model_fingerprint
from ntps.study.measure import StudySettings, measure
from ntps.tasks.load import Task, load_task

CELL_SCHEMA = 2


@dataclass(frozen=True)
class Cell:
    """One place of the grid: what is asked for, its content key, or why it cannot be computed.

    Attributes:
        model: The model as it was named.
        task: The task's name in the study.
        seed: Seed of sample, folds, permutations, and of a control's weights.
        control: Whether the weights are fresh ones.
        key: SHA-256 over fingerprints of model and task, seed, settings and package version; controls of models with
            one architecture share it, and are computed once.
        reason: Why there is no such model or task; empty when there is.
        part: `"score"` or `"gain"`: what LoRA gains is a cell of its own, so that a study can be given it later.
    """

    model: str
    task: str
    seed: int
    control: bool
    key: str
    reason: str = ""
    part: str = "score"

    @property
    def place(self) -> dict[str, Any]:
        """What a file says about where in the grid it belongs."""
        names = ("model", "task", "seed", "control", "part")
        return {name: getattr(self, name) for name in names}

    def __str__(self) -> str:
        weights = " (random weights)" if self.control else " (LoRA)" if self.part == "gain" else ""
        return f"{self.model}{weights} on {self.task}, seed {self.seed}"


@dataclass(frozen=True)
class Grid:
    """All cells of a study, those of one loading side by side, and the tasks that they read."""

    cells: tuple[Cell, ...]
    tasks: dict[tuple[str, int], Task]

    def share(self, index: int, count: int) -> "Grid":
        """Return share `index` (from 1) of `count`: consecutive cells, so that few shares load the same model."""
        n = len(self.cells)
        return Grid(self.cells[n * (index - 1) // count : n * index // count], self.tasks)


def parse_share(text: str) -> tuple[int, int]:
    """Return (I, N) from "I/N".

    Raises:
        NtpsError: If it is no such pair with 1 <= I <= N.
    """
    match = re.fullmatch(r"\s*(\d+)\s*/\s*(\d+)\s*", text)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise NtpsError(f"--cell is {text!r}; give I/N with I from 1 to N, such as 2/8.")
    return int(match[1]), int(match[2])


def name_tasks(tasks: Sequence[str | Task]) -> dict[str, str | Task]:
    """Return tasks by name; `NAME=PATH` names one, else it is its own name, or the stem of its file.

    Raises:
        NtpsError: If two have one name.
    """
    named: dict[str, str | Task] = {}
    for given in tasks:
        if isinstance(given, Task):
            name, source = given.name, given
        else:
            name, separator, path = given.partition("=")
            if not separator or Path(given).exists():
                name, path = given, given
            looks_local = Path(path).suffix.lower() in (".csv", ".tsv", ".jsonl", ".json", ".parquet", ".ndjson")
            name = Path(path).stem if name == path and looks_local else name
            source = path  # type: ignore[assignment]
        if name in named:
            raise NtpsError(f"two tasks are named {name!r}; give each a name of its own, as --task NAME=PATH.")
        named[name] = source
    return named


def make_grid(
    models: Sequence[str],
    tasks: Sequence[str | Task],
    settings: StudySettings,
    *,
    seeds: int = 1,
    control: bool = True,
    lora: TrainSettings | None = None,
) -> Grid:
    """Read all tasks, fingerprint all models, and return the grid; what cannot be read becomes a cell's reason.

    Raises:
        NtpsError: If there is no model or task, or a name comes twice.
    """
    if not models or not tasks:
        raise NtpsError("a study needs at least one --model and one --task.")
    twice = next((name for name in models if list(models).count(name) > 1), None)
    if twice is not None:
        raise NtpsError(f"model {twice!r} is given twice; name each model once.")
    named = name_tasks(tasks)
    loaded: dict[tuple[str, int], Task] = {}
    reasons: dict[tuple[str, int], str] = {}
    for name, source in named.items():
        for seed in range(seeds):
            try:
                loaded[name, seed] = load_named(name, source, settings.limit, seed)
            except NtpsError as error:
                reasons[name, seed] = str(error)
    shapes: dict[str, dict[str, Any]] = {"score": asdict(settings)}
    if lora is not None:
        shapes["gain"] = {name: shapes["score"][name] for name in ("limit", "max_length", "folds", "dtype")}
        shapes["gain"]["training"] = lora.to_dict()
    passes = [("score", False), *([("score", True)] if control else []), *([("gain", False)] if lora else [])]
    cells = []
    for model in models:
        for part, random in passes:
            for seed in range(seeds):
                try:
                    mark, reason = model_fingerprint(model, random_weights=random, seed=seed), ""
                except NtpsError as error:
                    mark, reason = f"unreadable {model}", str(error)
                for name in named:
                    task = loaded.get((name, seed))
                    parts = {
                        "model": mark,
                        "task": task.fingerprint if task else f"unreadable {name}",
                        "seed": seed,
                        "control": random,
                        "part": part,
                        "settings": shapes[part],
                        "version": __version__,
                        "schema": CELL_SCHEMA,
                    }
                    key = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
                    cells.append(Cell(model, name, seed, random, key, reason or reasons.get((name, seed), ""), part))
    return Grid(tuple(cells), loaded)


def load_named(name: str, source: str | Task, limit: int | None, seed: int) -> Task:
    """Return the task under a name from `name_tasks`, a random sample of at most `limit` texts.

    Raises:
        NtpsError: As `ntps.load_task`.
    """
    if isinstance(source, Task):
        return source if limit is None or limit >= len(source) else source.sample(limit, seed=seed)
    return load_task(source, name=name, limit=limit, seed=seed)


def cell_path(folder: Path, cell: Cell) -> Path:
    """Return where a cell is kept: a readable name and its key."""
    words = re.sub(r"[^\w.-]+", "-", cell.task).strip("-")[-60:]
    return folder / "cells" / f"{words}-{cell.key[:24]}.json"


def read_cell(folder: Path, cell: Cell) -> tuple[dict[str, Any] | None, str]:
    """Return a cell's content and an empty text, or `None` and why a file that is there is of no use."""
    path = cell_path(folder, cell)
    if not path.is_file():
        return None, _other(folder, cell)
    try:
        content = read_json(path)
    except NtpsError:
        return None, f"{path} is damaged (no JSON)"
    if not isinstance(content, dict) or "version" not in content:
        return None, f"{path} is damaged (no cell)"
    if content["version"] != __version__:
        return None, f"{path} is from version {content['version']} of ntps, this is {__version__}"
    if content.get("checksum") != sha256_json(content):
        return None, f"{path} is damaged (its checksum does not fit)"
    if content.get("key") != cell.key:
        return None, f"{path} belongs to another cell"
    return content, ""


def _other(folder: Path, cell: Cell) -> str:
    """Say why a cell of the same place, under another key, is not used; empty when there is none."""
    for path in sorted((folder / "cells").glob(f"{cell_path(folder, cell).name[:-29]}*.json")):
        try:
            content = read_json(path)
        except NtpsError:
            continue
        if isinstance(content, dict) and all(content.get(name) == value for name, value in cell.place.items()):
            if content.get("version") != __version__:
                return f"{path} is from version {content.get('version')} of ntps, this is {__version__}"
            return f"{path} is of other weights, texts or settings"
    return ""


def write_cell(folder: Path, cell: Cell, content: dict[str, Any]) -> dict[str, Any]:
    """Write a cell atomically, with its key, version and checksum; return all of it."""
    whole = {"kind": "ntps-cell", "schema": CELL_SCHEMA, "version": __version__, "key": cell.key, **cell.place}
    whole = {**whole, **jsonable(content)}
    whole["checksum"] = sha256_json(whole)
    atomic_write(cell_path(folder, cell), json.dumps(whole, ensure_ascii=False, allow_nan=False) + "\n")
    return whole


def run_cells(
    grid: Grid,
    folder: Path,
    settings: StudySettings,
    *,
    lora: TrainSettings | None = None,
    device: str | None = None,
    batch_size: int = 32,
    say: Callable[[str], None] = lambda message: None,
    done: Callable[[Cell], None] = lambda cell: None,
) -> None:
    """Compute what is missing, a loading for the cells of a model; a failure is written down, and the rest goes on.

    A cell that failed before is tried again: the reason may be gone.

    Args:
        grid: The grid, or a share of it.
        folder: The study's folder.
        settings: See `StudySettings`.
        lora: How cells of part `"gain"` are trained.
        device: As in `ntps.load_model`.
        batch_size: As in `ntps.collect_moments`.
        say: Told about files that are of no use, and about cells that fail, once for each reason.
        done: Called after each cell that had to be computed.
    """
    loaded: tuple[tuple[str, bool, int, str], Any] | None = None
    told: set[str] = set()
    for cell in grid.cells:
        content, problem = read_cell(folder, cell)
        if problem:
            say(f"{problem}; computing {cell} again.")
        if content is None or content["status"] != "done":
            started = time.monotonic()
            try:
                if cell.reason:
                    raise NtpsError(cell.reason)
                which = (cell.model, cell.control, cell.seed if cell.control else 0, cell.part)
                if loaded is None or loaded[0] != which:
                    loaded = None  # frees the last one before the next comes
                    loaded = which, _load_model(cell, settings, device)
                if isinstance(loaded[1], Exception):
                    raise loaded[1]
                task = grid.tasks[cell.task, cell.seed]
                options: dict[str, Any] = {"seed": cell.seed, "batch_size": batch_size}
                if cell.part == "gain":
                    found = {"gain": _gain(loaded[1], task, settings, lora, **options)}
                else:
                    found = measure(loaded[1], task, settings, control=cell.control, **options)
                content = {"status": "done", "reason": None, "seconds": time.monotonic() - started, **found}
            except Exception as error:  # whatever it was, the other cells go on
                reason = str(error) if isinstance(error, NtpsError) else f"{type(error).__name__}: {error}"
                content = {"status": "failed", "reason": " ".join(reason.split())}
                if content["reason"] not in told:  # the cells of a missing model need not all say so
                    say(f"{cell} failed: {content['reason']}")
                told.add(content["reason"])
            write_cell(folder, cell, content)
            done(cell)


def _gain(
    model: Any, task: Task, settings: StudySettings, lora: TrainSettings | None, **options: Any
) -> dict[str, Any]:
    from ntps.finetune.compare import fine_tune_gain  # training needs peft, scoring does not

    return fine_tune_gain(model, task, lora, folds=settings.folds, **options)


def _load_model(cell: Cell, settings: StudySettings, device: str | None) -> Any:
    """Return the model, or what went wrong: the other cells of the model need not try again."""
    try:
        if cell.part == "gain":
            from ntps.finetune.compare import load_for_training

            return load_for_training(cell.model, dtype=settings.dtype, device=device)
        return load_model(cell.model, dtype=settings.dtype, device=device, random_weights=cell.control, seed=cell.seed)
    except Exception as error:
        return error
