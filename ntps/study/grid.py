"""A study's grid: its cells, what each depends on, and the order in which they cost least."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import TYPE_CHECKING, Any

from ntps._names import clean
from ntps._version import __version__
from ntps.errors import NtpsError, reason_of
from ntps.models.checkpoints import place_of
from ntps.models.load import model_fingerprint
from ntps.study.measure import StudySettings
from ntps.study.records import CellId
from ntps.tasks import Task, TaskSource
from ntps.tasks.given import need_classes

if TYPE_CHECKING:
    from ntps.finetune.settings import TrainSettings

CELL_SCHEMA = 4  # of the cells' files; it enters their keys


@dataclass(frozen=True, kw_only=True)
class Cell(CellId):
    """One cell of the grid, to be computed.

    Attributes:
        reason: Why the model or the task cannot be read; empty if both can.
    """

    reason: str = ""

    @property
    def loading(self) -> tuple[Any, ...]:
        """Cells of equal `loading` use one loaded network: pretrained weights do not depend on the seed."""
        return self.model, self.kind, self.control, self.seed if self.control else None

    def __str__(self) -> str:
        weights = " (random weights)" if self.control else " (LoRA)" if self.kind == "gain" else ""
        return f"{self.model}{weights} on {self.task}, seed {self.seed}"


@dataclass(frozen=True, kw_only=True)
class Grid:
    """All cells of a study, its tasks by name and seed, and the test texts of gains where a split holds them."""

    cells: tuple[Cell, ...]
    tasks: dict[tuple[str, int], Task]
    tests: dict[str, Task] = field(default_factory=dict)

    def loadings(self, cells: Sequence[Cell]) -> list[list[Cell]]:
        """Return the cells in groups that use one loaded network, cells on equal texts side by side within a group."""
        texts: dict[str, int] = {}
        for task in self.tasks.values():
            texts.setdefault(task.texts_fingerprint, len(texts))

        def first_seen(cell: Cell) -> int:
            task = self.tasks.get((cell.task, cell.seed))
            return len(texts) if task is None else texts[task.texts_fingerprint]

        groups: dict[tuple[Any, ...], list[Cell]] = {}
        for cell in cells:
            groups.setdefault(cell.loading, []).append(cell)
        return [sorted(group, key=first_seen) for group in groups.values()]

    def passes(self, cells: Sequence[Cell]) -> "list[Grid]":
        """Return those of the cells that can be read in grids of their own, with what each needs.

        A grid has the cells of one network on equal texts, or one gain, whose network reads the texts again and again.
        """

        def texts_of(cell: Cell) -> str:
            return cell.key if cell.kind == "gain" else self.tasks[cell.task, cell.seed].texts_fingerprint

        readable = [cell for cell in cells if not cell.reason]
        units = [tuple(unit) for group in self.loadings(readable) for _, unit in groupby(group, key=texts_of)]
        return [
            Grid(
                cells=unit,
                tasks={(cell.task, cell.seed): self.tasks[cell.task, cell.seed] for cell in unit},
                tests={cell.task: self.tests[cell.task] for cell in unit if cell.task in self.tests},
            )
            for unit in units
        ]


def name_tasks(tasks: Sequence[str | Task | TaskSource]) -> dict[str, Task | TaskSource]:
    """Return tasks by name; strings are read by `TaskSource.parse`.

    Raises:
        NtpsError: If two have the same name, or a string names no task.
    """
    named: dict[str, Task | TaskSource] = {}
    for given in tasks:
        task = TaskSource.parse(given) if isinstance(given, str) else given
        name = clean(task.name)
        if name in named:
            raise NtpsError(f"two tasks are named {name!r}; give each its own name, as NAME=PATH.")
        named[name] = task
    return named


def load_named(task: Task | TaskSource, limit: int | None, seed: int) -> Task:
    """Return a task from `name_tasks`, a random sample of at most `limit` texts.

    Raises:
        NtpsError: If it cannot be read.
    """
    if isinstance(task, TaskSource):
        return task.load(limit=limit, seed=seed)
    return task if limit is None or limit >= len(task) else task.sample(limit, seed=seed)


def make_grid(
    models: Sequence[str],
    tasks: Sequence[str | Task | TaskSource],
    settings: StudySettings,
    *,
    lora: "TrainSettings | None" = None,
) -> Grid:
    """Read all tasks, fingerprint all models, and return the grid; cells of what cannot be read say why.

    Args:
        models: Names or directories, each once.
        tasks: As in `ntps.run_study`.
        settings: See `StudySettings`.
        lora: How models are fine-tuned for the gains; no gains when `None`.

    Raises:
        NtpsError: If no model or no task is given, or one is given twice.
    """
    if not models or not tasks:
        raise NtpsError("a study needs at least one model and one task.")
    places = [place_of(name) for name in models]
    for index, name in enumerate(models):
        if places[index] in places[:index]:
            raise NtpsError(f"model {name!r} is given twice; name each model once.")
    named = name_tasks(tasks)
    need_classes(named.values(), "a study")
    loaded: dict[tuple[str, int], Task] = {}
    task_reasons: dict[tuple[str, int], str] = {}
    for name, source in named.items():
        for seed in range(settings.seeds):
            try:
                loaded[name, seed] = load_named(source, settings.limit, seed)
            except Exception as error:  # the other tasks go on
                task_reasons[name, seed] = reason_of(error)
    tests: dict[str, Task] = {}
    test_reasons: dict[str, str] = {}  # they fail gains alone
    if lora is not None and settings.test_split is not None:
        for name, source in named.items():
            try:
                tests[name] = _test_texts(source, settings.test_split)
            except Exception as error:
                test_reasons[name] = reason_of(error)
    shapes = {"score": settings.of_scores()}
    kinds = [("score", False), ("score", True)] if settings.control else [("score", False)]
    if lora is not None:
        tested = {name: task.fingerprint for name, task in tests.items()}
        shapes["gain"] = {**settings.of_gains(), "training": lora.to_dict(), "tests": tested}
        kinds.append(("gain", False))
    cells = []
    for model in models:
        fingerprints = {
            control: _fingerprint(model, settings, control) for control in {control for _, control in kinds}
        }
        for kind, control in kinds:
            fingerprint, model_reason = fingerprints[control]
            for seed in range(settings.seeds):
                for name in named:
                    task = loaded.get((name, seed))
                    reason = model_reason or task_reasons.get((name, seed), "")
                    if kind == "gain":
                        reason = reason or test_reasons.get(name, "")
                    content = {
                        "model": fingerprint,
                        "task": task.fingerprint if task else f"unreadable {name}",
                        "seed": seed,
                        "control": control,
                        "kind": kind,
                        "settings": shapes[kind],
                        "version": __version__,
                        "schema": CELL_SCHEMA,
                    }
                    cells.append(
                        Cell(
                            model=model,
                            task=name,
                            seed=seed,
                            control=control,
                            kind=kind,
                            key=hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest(),
                            reason=reason,
                        )
                    )
    return Grid(cells=tuple(cells), tasks=loaded, tests=tests)


def _test_texts(source: Task | TaskSource, split: str) -> Task:
    if isinstance(source, Task):
        raise NtpsError(f"task {source.name!r} is loaded already, and has no split {split!r}.")
    return replace(source, options={**source.options, "split": split}).load()


def _fingerprint(model: str, settings: StudySettings, control: bool) -> tuple[str, str]:
    """Return a model's fingerprint, and why it has none; the cell's key holds the seed of a control's weights."""
    try:
        return model_fingerprint(model, random_weights=control, **settings.loading()), ""
    except Exception as error:  # the other models go on
        return f"unreadable {model}", reason_of(error)
