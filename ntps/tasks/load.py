"""Labelled texts, wherever they come from: bundled tasks, local files and folders, hub data sets, lists in memory."""

import difflib
import os
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ntps.errors import NtpsError, in_range
from ntps.tasks import columns as _labels
from ntps.tasks import presets
from ntps.tasks.sources import read_folder, read_hub, read_memory
from ntps.tasks.tables import EXTENSIONS, Table, read_file, refuse
from ntps.tasks.task import Task, whole

__all__ = ["PAIR_SEPARATOR", "Task", "list_tasks", "load_task"]

# Between joined columns, and between answer choices, which are numbered from 0: "(0) one (1) another". One blank is
# what the paper's data preparation uses, so that scores of its question pairs and multiple-choice set compare.
PAIR_SEPARATOR = " "


def load_task(
    name_or_path: str | os.PathLike[str] | Any = None,
    *,
    texts: Iterable[str] | None = None,
    labels: Iterable[Any] | None = None,
    name: str | None = None,
    config: str | None = None,
    split: str | None = None,
    revision: str | None = None,
    text_column: str | None = None,
    label_column: str | None = None,
    limit: int | None = None,
    n: int | None = None,
    seed: int = 0,
    **knobs: Any,
) -> Task:
    """Load labelled texts.

    Args:
        name_or_path: One of
            a bundled task, `miniworld/NAME`;
            a data set of the paper by short name (`list_tasks()` lists them);
            a CSV, TSV, JSON Lines (.jsonl, .ndjson), JSON or Parquet file;
            a `datasets.save_to_disk` folder, or a folder of such files;
            the name of a data set on the hub;
            a `datasets.Dataset`, a `DatasetDict` or a pandas `DataFrame`.
        texts: Texts in memory, with `labels`, instead of `name_or_path`.
        labels: Their labels: integers, strings or booleans.
        name: Name of the task; by default made from `name_or_path`.
        config: Configuration of a hub data set.
        split: Split to read; by default "train", or the only one. "train[:500]" and "train[10%:20%]" take a slice.
        revision: Branch, tag or commit of a hub data set.
        text_column: Text column; by default found by its name (text, sentence, review, ...). Several, separated by
            commas, are joined by a blank; a dot looks into a field of objects ("choices.text"); a list of
            answer choices becomes "(0) one (1) another".
        label_column: Label column; by default found by its name (label, class, intent, ...).
        limit: Keep a random sample of at most so many texts; a smaller limit keeps a part of a larger one's.
        n: Number of texts of a bundled task, which is generated (default 2000).
        seed: Seed of `limit` and of a bundled task.
        **knobs: Options of a bundled task.

    Returns:
        The task. Its classes are those which occur in the whole split, before `limit`.

    Raises:
        NtpsError: If the texts cannot be had, or do not make a classification task; the message says where and why.
    """
    if limit is not None:
        in_range(whole(limit, "limit"), 1, None, "limit")
    whole(seed, "seed")
    if (name_or_path is None) == (texts is None):
        raise NtpsError("give either name_or_path or texts with labels.")
    bundled = isinstance(name_or_path, str) and name_or_path.startswith("miniworld/")
    if not bundled and (knobs or n is not None):
        culprit = next(iter(knobs), "n")
        raise NtpsError(f"option {culprit!r} is for bundled tasks (miniworld/NAME) only; use limit for fewer texts.")
    if bundled:
        given = {"config": config, "revision": revision, "text_column": text_column, "label_column": label_column}
        refuse(given, "a bundled task")
        task = _bundled(str(name_or_path), name, n, seed, split, knobs)
    else:
        preset = presets.TASKS.get(name_or_path) if isinstance(name_or_path, str) else None
        if preset:
            table = _paper(preset, config, split, revision)
            text_column = text_column or _if_there(preset.text_column, table)
            label_column = label_column or _if_there(preset.label_column, table)
        else:
            table = _table(name_or_path, texts, labels, config, split, revision)
        default = "texts" if name_or_path is None else Path(table.source["path"]).stem if (
            table.source["kind"] == "file") else str(table.source["path"])  # fmt: skip
        name = name or (str(name_or_path) if preset else default)
        task = _make(table, name, text_column, label_column, [preset.note] if preset and preset.note else [])
    source = {**task.source, "limit": limit, "seed": seed}
    task = replace(task, source=source)
    if limit is not None and limit < len(task):
        task = replace(task.sample(limit, seed=seed), source=source)
    _check(task)
    return task


def list_tasks() -> list[dict[str, Any]]:
    """Return name, kind ("bundled" or "paper"), number of classes and description of every task known by name."""
    rows: list[dict[str, Any]] = []
    from ntps import miniworld

    for task in miniworld.task_names():
        about = miniworld.describe_task(task)
        rows.append(
            {
                "name": f"miniworld/{task}",
                "kind": "bundled",
                "n_classes": about["n_classes"],
                "description": about["description"],
            }
        )
    for short, preset in presets.TASKS.items():
        text = f"{preset.description} ({preset.hub}{'; ' + preset.note if preset.note else ''})"
        rows.append({"name": short, "kind": "paper", "n_classes": preset.n_classes, "description": text})
    return rows


def _bundled(path: str, name: str | None, n: int | None, seed: int, split: str | None, knobs: dict[str, Any]) -> Task:
    """Make a task of the bundled language."""
    from ntps import miniworld

    n, split = 2000 if n is None else whole(n, "n"), split or "train"
    made = miniworld.make_task(path.removeprefix("miniworld/"), n=n, seed=seed, split=split, **knobs)
    source = {"kind": "bundled", "path": path, "split": split, "n": n, "knobs": dict(knobs), "notes": []}
    return Task(name or path, tuple(made["texts"]), np.asarray(made["labels"]), tuple(made["classes"]), source)


def _paper(preset: presets.TaskPreset, config: str | None, split: str | None, revision: str | None) -> Table:
    """Read a data set of the paper."""
    wanted = split or preset.split
    base = wanted.partition("[")[0]
    if base in preset.hidden:
        raise NtpsError(f"the labels of split {base!r} of {preset.hub} are hidden; use {' or '.join(preset.splits)}.")
    return read_hub(preset.hub, config or preset.config, wanted, revision or preset.revision)


def _if_there(columns: str, table: Table) -> str | None:
    """Return a preset's columns where the table has them; a renamed column is looked for by convention."""
    return columns if all(part.split(".")[0] in table.columns for part in columns.split(",")) else None


def _table(
    given: Any, texts: Any, labels: Any, config: str | None, split: str | None, revision: str | None
) -> Table:  # fmt: skip
    """Read what is no preset: lists, loaded objects, a file, a folder, or a hub data set."""
    if texts is not None or not isinstance(given, str | os.PathLike):
        refuse({"config": config, "revision": revision}, "texts in memory")
        return read_memory(given, texts, labels, split)
    if labels is not None:
        raise NtpsError("labels go with texts; for a file or data set name its label_column.")
    path = Path(given).expanduser()
    if path.is_dir():
        refuse({"revision": revision}, "a folder")
        return read_folder(path, split, config)
    if path.exists() or path.suffix.lower() in EXTENSIONS:
        refuse({"config": config, "split": split, "revision": revision}, "a file")
        return read_file(path)
    spelled = os.fspath(given)
    if spelled.startswith((".", "~", os.sep)) or spelled.count("/") > 1 or (os.sep in spelled and path.suffix):
        raise NtpsError(f"{spelled}: file not found.")
    known = [f"miniworld/{word}" for word in _bundled_names()] + list(presets.TASKS)
    close = difflib.get_close_matches(spelled, known, n=1)
    return read_hub(spelled, config, split, revision, f" Did you mean {close[0]!r}?" if close else "")


def _bundled_names() -> tuple[str, ...]:
    from ntps import miniworld

    return tuple(miniworld.task_names())


def _make(table: Table, name: str, text_column: str | None, label_column: str | None, notes: list[str]) -> Task:
    """Find the columns of a table and make the task."""
    text_column = text_column or _labels.find_column(table, "text", _labels.TEXT_NAMES, other=label_column)
    label_column = label_column or _labels.find_column(table, "label", _labels.LABEL_NAMES, other=text_column)
    texts, repaired = _labels.texts_of(table, text_column, PAIR_SEPARATOR)
    if label_column in text_column.split(","):
        raise NtpsError(f"column {label_column!r} cannot be both text and label; columns: {', '.join(table.columns)}.")
    values, declared = _labels.column(table, label_column, "label")
    indices, classes = _labels.encode(values, table, label_column, declared)
    if repaired:
        notes = [*notes, f"{repaired} texts held broken characters (lone surrogates), now U+FFFD"]
    columns = {"text_column": text_column, "label_column": label_column}
    return Task(name, tuple(texts), indices, classes, {**table.source, **columns, "notes": notes})


def _check(task: Task) -> None:
    """Refuse what no score can be computed from."""
    present = np.unique(task.labels)
    if len(present) < 2:
        only = task.classes[present[0]] if len(present) else "none"
        cause = f" in the sample of {len(task)} texts that limit keeps" if task.source.get("limit") else ""
        raise NtpsError(f"{task.name} has one class ({only!r}){cause}; at least two are needed.")
    if not any(text.strip() for text in task.texts):
        raise NtpsError(f"{task.name}: all {len(task)} texts are blank (column {task.source.get('text_column')!r}).")
