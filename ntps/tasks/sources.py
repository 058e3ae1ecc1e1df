"""Tables of labelled text from folders and objects in memory."""

import re
import tempfile
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import fields
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from ntps import _hub
from ntps.errors import NtpsError
from ntps.tasks.delimited import SEPARATORS
from ntps.tasks.files import EXTENSIONS, read_file
from ntps.tasks.tables import Columns, Table, clean_name, refuse

_NO_READING = {
    "name",
    "version",
    "data_dir",
    "data_files",
    "description",
    "features",
}  # of a configuration of `datasets`


def read_folder(path: Path, split: str | None, config: str | None = None, *, header: bool = True) -> Table:
    """Read a `save_to_disk` folder, or a folder of data files laid out as on the hub (a cloned data set).

    Which files belong to which split is for `datasets` to say; each is read as a single file is.

    Raises:
        NtpsError: If the folder is neither, is damaged, or has no such split.
    """
    import datasets

    saved = any((path / name).is_file() for name in ("dataset_dict.json", "state.json"))
    if (path / "config.json").is_file() and any(file.suffix in {".safetensors", ".bin"} for file in path.iterdir()):
        raise NtpsError(f"{path} is the folder of a model; labelled texts are needed.")
    if not saved and not any(file.suffix.lower() in EXTENSIONS for file in path.rglob("*")):
        raise NtpsError(
            f"{path} is a folder without data: neither a save_to_disk folder nor one of {', '.join(EXTENSIONS)} files."
        )
    try:
        with _hub.quiet(), tempfile.TemporaryDirectory() as cache:
            if saved:
                refuse({"header": None if header else False}, "a save_to_disk folder")
                loaded: Any = datasets.load_from_disk(str(path))
            else:
                builder = datasets.load_dataset_builder(str(path), config, cache_dir=cache)
    except NtpsError:
        raise
    except Exception as error:
        raise NtpsError(f"{path}: the saved data set does not load ({_hub.first_line(error)}).") from error
    if saved:
        table = from_dataset(loaded, str(path), split)
    else:
        asked = own_reading(builder.config) - (set() if header else {"header", "names", "column_names"})
        if asked:
            raise NtpsError(
                f"{path}: its README.md sets {' and '.join(sorted(asked))}, which is not followed; name one of its "
                "files."
            )
        files = {str(name): list(map(Path, listed)) for name, listed in (builder.config.data_files or {}).items()}
        table = from_files(files, str(path), split, header=header)
        table.declared |= declared_classes(builder.info.features or {})
    table.source = {"kind": "folder", "path": str(path), "config": config, "split": table.source["split"]}
    return table


def from_files(files: Mapping[str, Sequence[Path]], name: str, split: str | None, *, header: bool = True) -> Table:
    """Read the data files of one split, in their order.

    Args:
        files: The files of each split.
        name: Name of the data set, for messages.
        split: Split, as for `from_dataset`.
        header: Whether the first line of a CSV or TSV file names its columns.

    Raises:
        NtpsError: If there is no such split, or a file cannot be read.
    """
    split, base, bounds = choose_split(tuple(files), name, split)
    other = next((file for file in files[base] if file.suffix.lower() not in EXTENSIONS), None)
    if other is not None:
        kinds = ", ".join(EXTENSIONS)
        raise NtpsError(f"{name}: {other.name} is not a table; a folder of {kinds} files is needed, or one of them.")
    table = _joined([read_file(file, header=header) for file in files[base]])
    table.splits, table.source = tuple(files), {"split": split}
    return table if bounds is None else table.only(_slice(len(table), bounds, split))


def own_reading(config: Any) -> set[str]:
    """Return the options, such as names of columns, by which a data set of files wants to be read in another way."""
    usual = type(config)()
    asked = {item.name for item in fields(config) if getattr(config, item.name) != getattr(usual, item.name)}
    found = {"sep", "delimiter"} if getattr(config, "sep", None) in SEPARATORS else set()
    return asked - _NO_READING - found


def _joined(tables: Sequence[Table]) -> Table:
    """Return one table of the rows of all; a column that one of them lacks cannot be read."""
    names = list(dict.fromkeys(name for table in tables for name in table.columns))
    starts = list(accumulate((len(table) for table in tables), initial=0))

    def read(place: int) -> list[Any]:
        for table in tables:
            if names[place] not in table.columns:
                raise NtpsError(
                    f"{table.source['path']}: no column {names[place]!r}, which other files of this split have; "
                    f"columns: {table.listed}."
                )
        return [value for table in tables for value in table.columns[names[place]]]

    def where(row: int) -> str:
        place = bisect_right(starts, row) - 1
        return tables[place].where(row - starts[place])

    columns = Columns(names, read)
    columns.doubled = set().union(*(table.columns.doubled for table in tables))
    declared = {name: classes for table in tables for name, classes in table.declared.items()}
    headed = any(table.headed for table in tables)
    return Table(columns=columns, n_rows=starts[-1], where=where, declared=declared, headed=headed)


def from_dataset(loaded: Any, name: str, split: str | None) -> Table:
    """Take one split of a `datasets` object.

    Args:
        loaded: A `Dataset` or a `DatasetDict`.
        name: Name of the data set, for messages.
        split: Split, which may be a slice such as "train[:100]"; by default "train", or the only split.

    Raises:
        NtpsError: If there is no such split, or if `split` is missing and there are several, none named "train".
    """
    import datasets

    bounds = None
    if isinstance(loaded, datasets.DatasetDict):
        splits = tuple(map(str, loaded))
        split, base, bounds = choose_split(splits, name, split)
        rows = loaded[base]
    elif isinstance(loaded, datasets.Dataset):
        rows, splits = loaded, (str(loaded.split),) if loaded.split else ()
        if split is not None and splits != (split,):
            raise NtpsError(f"split is {split!r}; {name} is one data set{f' ({splits[0]})' if splits else ''}.")
    else:
        raise NtpsError(f"{name} is a {type(loaded).__name__}; a Dataset or DatasetDict is needed.")
    rows = rows.with_format(None)  # plain values, whatever they were to become
    if bounds is not None:
        rows = rows.select(_slice(len(rows), bounds, str(split)))
    if not len(rows):
        raise NtpsError(f"{name} has no rows{f' in split {split!r}' if split else ''}.")
    names = [column for column in rows.column_names if _plain(rows.features[column])]
    origin = f"{name}, split {split}" if split else name
    return Table(
        columns=Columns(names, lambda place: _values(rows, names[place], origin)),
        n_rows=len(rows),
        where=lambda row: f"{origin}, row {row + 1}",
        declared=declared_classes(rows.features),
        splits=splits,
        source={"split": split},
    )


def _values(rows: Any, name: str, origin: str) -> list[Any]:
    """Return one column of a `datasets.Dataset`; no other is read."""
    try:
        return rows.select_columns([name])[:][name]
    except UnicodeDecodeError as error:
        raise NtpsError(f"{origin}: column {name!r} is not UTF-8 ({_hub.first_line(error)}).") from error


def declared_classes(features: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """Return the class names of the columns whose features declare them."""
    import datasets

    return {
        clean_name(column): tuple(map(str, feature.names))
        for column, feature in features.items()
        if isinstance(feature, datasets.ClassLabel)
    }


def choose_split(splits: Sequence[str], name: str, split: str | None) -> tuple[str, str, str | None]:
    """Return a split as it was named, the split it is of, and the bounds of a slice of it.

    Raises:
        NtpsError: If there is no such split, or none was named and there are several, none of them "train".
    """
    if split is None:
        if "train" not in splits and len(splits) != 1:
            raise NtpsError(f"{name} has the splits {', '.join(splits) or '(none)'}; name one.")
        split = "train" if "train" in splits else splits[0]
    base, bracket, bounds = split.partition("[")
    if base not in splits:
        raise NtpsError(f"split is {split!r}; {name} has: {', '.join(splits)}.")
    return split, base, bounds.rstrip("]") if bracket else None


def _plain(feature: Any) -> bool:
    """Return whether a column can be read without decoding pictures or sound."""
    return type(feature).__name__ not in {"Image", "Audio", "Video", "Pdf", "Nifti"}


def _slice(n_rows: int, bounds: str, split: str) -> range:
    """Return the rows FROM:TO of a split, given as numbers or percentages.

    Raises:
        NtpsError: If they are written otherwise, or are none.
    """
    match = re.fullmatch(r"(-?\d+)?(%)?:(-?\d+)?(%)?", bounds)
    if not match:
        raise NtpsError(f"split is {split!r}; a slice is written as in 'train[:100]' or 'train[10%:20%]'.")
    percent = bool(match[2] or match[4])
    low, high = (
        None if value is None else (round(int(value) * n_rows / 100) if percent else int(value))
        for value in (match[1], match[3])
    )
    rows = range(*slice(low, high).indices(n_rows))
    if not rows:
        raise NtpsError(f"split is {split!r}, which has no rows; there are {n_rows:,}.")
    return rows


def read_lists(texts: Any, labels: Any) -> Table:
    """Make a table of texts in memory and their labels.

    Args:
        texts: The texts; they become the column "text".
        labels: One label per text, which become the column "label"; or a mapping from names of label columns to labels.

    Raises:
        NtpsError: If labels are missing, or there is not one entry per text.
    """
    if labels is None:
        raise NtpsError("texts were given without labels; pass labels, with one entry per text.")
    columns = {"text": [_without_na(value) for value in _entries(texts, "texts")]}
    n_texts = len(columns["text"])
    if not n_texts:
        raise NtpsError("texts is empty; at least two labelled texts are needed.")
    if isinstance(labels, Mapping):
        invalid = next((name for name in labels if not isinstance(name, str) or name in {"", "text"}), None)
        if invalid is not None or not labels:
            culprit = "is empty" if not labels else f"has the key {invalid!r}"
            raise NtpsError(f"labels {culprit}; names of label columns are needed, other than 'text'.")
        named = {name: (f"labels[{name!r}]", values) for name, values in labels.items()}
    else:
        named = {"label": ("labels", labels)}
    for name, (what, values) in named.items():
        columns[name] = [_without_na(value) for value in _entries(values, what)]
        if len(columns[name]) != n_texts:
            raise NtpsError(f"{n_texts} texts were given with {len(columns[name])} labels in {what}.")
    source = {"kind": "memory", "path": "texts"}
    return Table(
        columns=Columns.of(columns), n_rows=n_texts, where=lambda row: f"texts, entry {row + 1}", source=source
    )


def _entries(values: Any, what: str) -> list[Any]:
    """Return the entries of a list, an array, a tensor or another iterable that has an order and no names."""
    kind = "a single string" if isinstance(values, str) else f"a {type(values).__name__}"
    try:
        if hasattr(values, "tolist"):
            return list(values.tolist())
        if not isinstance(values, str | bytes | Mapping | set | frozenset) and not hasattr(values, "columns"):
            return list(values)
    except TypeError:
        pass
    raise NtpsError(f"{what} is {kind}; a list with one entry per text is needed.")


def read_object(loaded: Any, split: str | None) -> Table:
    """Make a table of a Dataset, a DatasetDict or a DataFrame.

    Raises:
        NtpsError: If it is something else, has no rows, or has no such split.
    """
    kind = type(loaded).__name__
    if kind == "DataFrame":
        refuse({"split": split}, "a DataFrame")
        if not len(loaded):
            raise NtpsError("the DataFrame has no rows; at least two labelled texts are needed.")
        cells = getattr(loaded, "iloc", loaded)  # pandas, or polars
        columns = Columns(loaded.columns, lambda place: [_without_na(value) for value in cells[:, place]])
        source = {"kind": "memory", "path": "DataFrame"}
        return Table(columns=columns, n_rows=len(loaded), where=lambda row: f"DataFrame, row {row + 1}", source=source)
    if kind not in {"Dataset", "DatasetDict"}:
        raise NtpsError(f"a task cannot be made from {kind!r}; give a name, a path, a Dataset or a DataFrame.")
    table = from_dataset(loaded, kind, split)
    table.source = {"kind": "memory", "path": kind, **table.source}
    return table


def _without_na(value: Any) -> Any:
    """Return None for missing values (NaN, pandas' NA and NaT), which do not equal themselves."""
    try:
        return value if bool(value == value) else None  # noqa: PLR0124
    except (TypeError, ValueError):
        return value if isinstance(value, list | tuple | dict | np.ndarray) else None
