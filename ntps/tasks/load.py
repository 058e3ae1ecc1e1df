"""`load_task`: labelled texts from bundled tasks, local files and folders, hub data sets, lists in memory."""

import difflib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ntps._files import local_path
from ntps._text import counted
from ntps.errors import NtpsError, whole
from ntps.tasks import presets
from ntps.tasks.classes import join_labels, missing_labels, read_labels, read_values
from ntps.tasks.columns import LABEL_NAMES, TEXT_NAMES, find_column, missing_texts, read_texts, split_names
from ntps.tasks.files import EXTENSIONS, read_file
from ntps.tasks.hub import read_hub
from ntps.tasks.sources import read_folder, read_lists, read_object
from ntps.tasks.tables import Table, refuse
from ntps.tasks.task import LabelColumn, Task

__all__ = ["list_tasks", "load_task"]


def load_task(
    name_or_path: str | os.PathLike[str] | Any = None,
    *,
    texts: Iterable[str] | None = None,
    labels: Iterable[Any] | Mapping[str, Iterable[Any]] | None = None,
    name: str | None = None,
    config: str | None = None,
    split: str | None = None,
    revision: str | None = None,
    text_column: str | None = None,
    label_column: str | Sequence[str] | None = None,
    header: bool = True,
    drop_missing: bool = False,
    regression: bool = False,
    multilabel: bool = False,
    limit: int | None = None,
    n: int | None = None,
    seed: int = 0,
    **knobs: Any,
) -> Task:
    """Load labelled texts.

    Args:
        name_or_path: One of
            a bundled task, `miniworld/NAME`;
            a data set of the paper by its short name (`list_tasks()` lists them);
            a CSV, TSV, JSON Lines (.jsonl, .ndjson), JSON or Parquet file (of .csv and .tsv, the separator is found:
            comma, semicolon, tab or bar);
            a `datasets.save_to_disk` folder, or a folder of such files;
            the name of a data set on the hub;
            a `datasets.Dataset`, a `DatasetDict` or a pandas `DataFrame`.
        texts: Texts in memory, with `labels`, instead of `name_or_path`.
        labels: Labels of `texts`, one per text: integers, strings or booleans; or several label columns, as a mapping
            from the name of each to its labels.
        name: Name of the task; by default derived from `name_or_path`.
        config: Configuration of a hub data set.
        split: Split to read; by default "train", or the only one. "train[:500]" and "train[10%:20%]" take a slice; of
            a data set of the paper "paper-train" and "paper-test" are the rows that its code trains and judges on.
        revision: Branch, tag or commit of a hub data set.
        text_column: Text column; by default found by its name (text, sentence, review, ...). Several names, separated
            by commas, are joined by a space; a dot looks into a field of objects ("choices.text"); a list of answer
            choices becomes "(0) one (1) another".
        label_column: Label column; by default found by its name (label, class, intent, ...). A list of names gives a
            task with several label columns, in this order: then a text may lack a label (None, NaN, an empty string) in
            some or all of them. With one column, a missing label is an error.
        header: Whether the first line of a CSV or TSV file names its columns; otherwise they are "1", "2", ...
        drop_missing: Leave out rows without a text (None, NaN, or blank) or without any label; `source["dropped"]`
            counts them.
        regression: Read labels as real values (ratings, ages, similarities), which `score` and `rank` predict by
            regression, instead of classes.
        multilabel: Read several label columns of 0 and 1 (false and true, no and yes) as one: which of these labels a
            text has. `score` and `rank` predict them together. Every text needs every label.
        limit: Keep a random sample of at most this many texts; a smaller sample is the start of a larger one.
        n: Number of texts to generate for a bundled task (default 2000).
        seed: Seed of the sample that `limit` draws, and of a bundled task.
        **knobs: Options of a bundled task.

    Returns:
        The task. Its classes are those that occur in the whole split, before `limit`.

    Raises:
        NtpsError: If the texts cannot be read, or labels are not classes (or not real values, with `regression`); the
            message says where and why.
    """
    if limit is not None:
        whole(limit, 1, None, "limit")
    whole(seed, None, None, "seed")
    if regression and multilabel:
        raise NtpsError("regression=True and multilabel=True exclude each other; labels are real values, or 0 and 1.")
    kind = "regression" if regression else "multilabel" if multilabel else "classification"
    if (name_or_path is None) == (texts is None):
        raise NtpsError("give either name_or_path or texts with labels.")
    _label_names(label_column)  # refused before anything is read
    if not isinstance(text_column, str | None):
        raise NtpsError(f"text_column is {text_column!r}; a column name, or several separated by commas, is needed.")
    bundled = isinstance(name_or_path, str) and name_or_path.startswith("miniworld/")
    preset = presets.TASKS.get(name_or_path) if isinstance(name_or_path, str) else None
    if not bundled and (knobs or n is not None):
        culprit = next(iter(knobs), "n")
        raise NtpsError(f"{culprit!r} is for bundled tasks (miniworld/NAME) only; use limit for fewer texts.")
    if (bundled or preset) and not isinstance(label_column, str | None):
        raise NtpsError(f"{name_or_path} has one label column; label_column {label_column!r} lists names for it.")
    if bundled:
        columns = {"text_column": text_column, "label_column": label_column}
        flags = {"header": None if header else False, "drop_missing": drop_missing or None}
        flags |= {"regression": regression or None, "multilabel": multilabel or None}
        refuse({"config": config, "revision": revision, **columns, **flags}, "a bundled task")
        task = _bundled_task(str(name_or_path), name, n, seed, split, knobs)
    elif preset:
        refuse({"header": None if header else False}, "a hub data set")
        table = _read_preset(preset, config, split, revision)
        text_column = text_column or _if_present(preset.text_column, table)
        label_column = label_column or _if_present(preset.label_column, table)
        name = name or str(name_or_path)
        task = _task_from_table(table, name, text_column, label_column, drop_missing, kind, preset.note)
    else:
        table = _read_table(name_or_path, texts, labels, config, split, revision, header)
        if isinstance(labels, Mapping):
            text_column, label_column = text_column or "text", label_column or list(labels)
        path = str(table.source["path"])
        default_name = Path(path).stem if table.source["kind"] == "file" else path
        task = _task_from_table(table, name or default_name, text_column, label_column, drop_missing, kind)
    source = {**task.source, "limit": limit, "seed": seed}
    if limit is not None and limit < len(task):
        task = task.sample(limit, seed=seed)
    task = replace(task, source=source)
    _check_labels(task)
    return task


KINDS = ("regression", "multilabel")  # what labels may be instead of classes, by the option of `load_task`


def list_tasks() -> list[dict[str, Any]]:
    """Return name, kind ("bundled" or "paper"), number of classes and description of every task known by name."""
    from ntps import miniworld

    bundled = {f"miniworld/{name}": miniworld.describe_task(name) for name in miniworld.task_names()}
    rows = [
        {"name": name, "kind": "bundled", "n_classes": about["n_classes"], "description": about["description"]}
        for name, about in bundled.items()
    ]
    for name, preset in presets.TASKS.items():
        text = f"{preset.description} ({preset.hub}{'; ' + preset.note if preset.note else ''})"
        rows.append({"name": name, "kind": "paper", "n_classes": preset.n_classes, "description": text})
    return rows


def _label_names(label_column: str | Sequence[str] | None) -> list[str]:
    """Return the names of the label columns; none if they are to be found by convention.

    Raises:
        NtpsError: If it is neither a name nor a list of different names.
    """
    if label_column is None:
        return []
    names = [label_column] if isinstance(label_column, str) else label_column
    if not isinstance(names, list | tuple) or not names or not all(isinstance(name, str) and name for name in names):
        raise NtpsError(f"label_column is {label_column!r}; a column name or a list of column names is needed.")
    repeated = next((name for name in names if names.count(name) > 1), None)
    if repeated is not None:
        raise NtpsError(f"label_column names {repeated!r} twice; name each column once.")
    return list(names)


def _bundled_task(
    path: str, name: str | None, n: int | None, seed: int, split: str | None, knobs: dict[str, Any]
) -> Task:  # fmt: skip
    """Make a task of the bundled language."""
    from ntps import miniworld

    n, split = 2000 if n is None else whole(n, None, None, "n"), split or "train"
    data = miniworld.make_task(path.removeprefix("miniworld/"), n=n, seed=seed, split=split, **knobs)
    source = {"kind": "bundled", "path": path, "split": split, "n": n, "knobs": dict(knobs), "notes": []}
    return Task.of(name or path, data["texts"], data["labels"], data["classes"], source=source)


def _read_preset(preset: presets.TaskPreset, config: str | None, split: str | None, revision: str | None) -> Table:
    """Read a data set of the paper."""
    split = split or preset.split
    if split in presets.PAPER_SPLITS:
        part = split.removeprefix("paper-")
        if preset.test is None:
            table = _read_preset(preset, config, "train", revision)
            table = table.only(paper_rows(len(table), part))
        else:
            table = _read_preset(preset, config, "train" if part == "train" else preset.test, revision)
        table.source["split"] = split
        return table
    base = split.partition("[")[0]
    if base in preset.hidden:
        raise NtpsError(f"the labels of split {base!r} of {preset.hub} are hidden; use {' or '.join(preset.splits)}.")
    return read_hub(preset.hub, config or preset.config, split, revision or preset.revision)


def paper_rows(n: int, part: str) -> list[int]:
    """Return the rows of a part, "train" (70 %) or "test" (30 %), of n rows as the paper's code shuffles them."""
    import datasets

    numbered = datasets.Dataset.from_dict({"row": range(n)})
    return list(numbered.train_test_split(test_size=0.3, seed=42)[part]["row"])


def _if_present(columns: str, table: Table) -> str | None:
    """Return a preset's columns if the table has them; a renamed column is found by convention."""
    return columns if all(name.split(".")[0] in table.columns for name in columns.split(",")) else None


def _read_table(
    name_or_path: Any,
    texts: Any,
    labels: Any,
    config: str | None,
    split: str | None,
    revision: str | None,
    header: bool,
) -> Table:
    """Read anything but a preset: lists, loaded objects, a file, a folder, or a hub data set."""
    headless = {"header": None if header else False}
    if texts is not None:
        refuse({"config": config, "revision": revision, "split": split, **headless}, "texts in memory")
        return read_lists(texts, labels)
    if labels is not None:
        raise NtpsError("labels are for texts; for a file or data set give label_column, the name of its column.")
    if not isinstance(name_or_path, str | os.PathLike):
        refuse({"config": config, "revision": revision, **headless}, "texts in memory")
        return read_object(name_or_path, split)
    path = local_path(name_or_path)
    if path.is_dir():
        refuse({"revision": revision}, "a folder")
        return read_folder(path, split, config, header=header)
    if path.exists() or path.suffix.lower() in EXTENSIONS:
        refuse({"config": config, "split": split, "revision": revision}, "a file")
        return read_file(path, header=header)
    refuse(headless, "a hub data set")
    name = os.fspath(name_or_path)
    if name.startswith((".", "~", os.sep)) or name.count("/") > 1 or (os.sep in name and path.suffix):
        raise NtpsError(f"{name}: file not found.")
    from ntps import miniworld

    known = [f"miniworld/{task}" for task in miniworld.task_names()] + list(presets.TASKS)
    close = difflib.get_close_matches(name, known, n=1)
    return read_hub(name, config, split, revision, f" Did you mean {close[0]!r}?" if close else "")


def _task_from_table(
    table: Table,
    name: str,
    text_column: str | None,
    label_column: str | Sequence[str] | None,
    drop_missing: bool,
    kind: str,
    note: str = "",
) -> Task:
    """Make a task from a table; columns that are not named are found by convention."""
    text_column = text_column or find_column(table, "text", TEXT_NAMES, taken=_label_names(label_column))
    text_names = split_names(table, text_column)
    label_column = label_column or find_column(table, "label", LABEL_NAMES, taken=text_names)
    names = _label_names(label_column)
    for label_name in names:
        if label_name in text_names:
            raise NtpsError(f"column {label_name!r} cannot be both text and label; columns: {table.listed}.")
    source = {
        **table.source,
        "text_column": text_column,
        "label_column": label_column if isinstance(label_column, str) else names,
        "notes": [note] if note else [],
    }
    if drop_missing:
        table, source["dropped"] = _without_missing(table, text_column, names, every=kind == "multilabel")
    texts, n_repaired = read_texts(table, text_column)
    read, allow_missing = read_values if kind == "regression" else read_labels, len(names) > 1 and kind != "multilabel"
    columns = tuple(read(table, label_name, allow_missing=allow_missing) for label_name in names)
    if kind == "multilabel":
        columns = (join_labels(table, columns),)
    if n_repaired:
        source["notes"].append(f"{counted(n_repaired, 'text')} had broken characters (lone surrogates), now U+FFFD")
    return Task(name=name, texts=tuple(texts), columns=columns, source=source)


def _without_missing(
    table: Table, text_column: str, label_columns: Sequence[str], *, every: bool
) -> tuple[Table, dict[str, int]]:
    """Return the rows that have a text and a label (`every` label), and how many were left out for want of either."""
    no_text = missing_texts(table, text_column)
    missing = [missing_labels(table, name) for name in label_columns]
    no_label = set.union(*missing) if every else set.intersection(*missing)
    for name, rows_without in zip(label_columns, missing, strict=True):
        if len(no_label) == len(rows_without) == len(table):
            read_labels(table, name)  # says why
    rows = [row for row in range(len(table)) if row not in no_text and row not in no_label]
    if not rows:
        raise NtpsError(f"{table.source['path']}: none of its {len(table):,} rows has both a text and a label.")
    return table.only(rows), {"without_text": len(no_text), "without_label": len(no_label - no_text)}


def _check_labels(task: Task) -> None:
    """Refuse a task from which no score can be computed."""
    for column in _single_columns(task):
        present = set(column.values[column.labelled].tolist())
        if len(present) < 2:
            which = f": label column {column.name!r}" if column is not task.columns[0] or len(task.columns) > 1 else ""
            what = "value" if column.kind == "regression" else "class"
            first = next(iter(present), None)
            named = first if first is None or column.kind == "regression" else column.classes[first]
            classes = "no labels" if first is None else f"one {what} ({named!r})"
            limit = task.source.get("limit")
            where = f" in the sample of {len(task)} texts that limit={limit} keeps" if limit else ""
            plural = "values" if column.kind == "regression" else "classes"
            raise NtpsError(f"{task.name}{which} has {classes}{where}; at least two {plural} are needed.")
    if not any(text.strip() for text in task.texts):
        raise NtpsError(f"{task.name}: all {len(task)} texts are blank (column {task.source.get('text_column')!r}).")


def _single_columns(task: Task) -> Iterator[LabelColumn]:
    """Yield the label columns, several labels one by one."""
    for column in task.columns:
        if column.kind == "multilabel":
            for name, values in zip(column.classes, column.values.T, strict=True):
                yield LabelColumn(name, values, ("0", "1"))
        else:
            yield column
