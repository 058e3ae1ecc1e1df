"""Tables of labelled text from local files.

Every reader returns a `Table`: plain columns, the origin of each row, and the class names that the source declares. No
reader knows which columns hold texts and labels.
"""

import csv
import io
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ntps import _hub
from ntps.errors import NtpsError

EXTENSIONS = (".csv", ".tsv", ".jsonl", ".ndjson", ".json", ".parquet")
_MAX_FIELD = 2**31 - 1  # one field of a CSV file, in characters


@dataclass(kw_only=True)
class Table:
    """Columns of equal length, read from one source.

    Attributes:
        columns: Values of each column, in file order; a missing value is None.
        where: Function from a row's index to its origin in words, such as "reviews.csv, line 7".
        declared: Class names of each column for which the source declares them; the column then holds their numbers.
        splits: Names of all splits of the source; empty if it has none.
        source: Origin of the table, for `Task.source`; it includes `path`.
    """

    columns: dict[str, list[Any]]
    where: Callable[[int], str]
    declared: dict[str, tuple[str, ...]] = field(default_factory=dict)
    splits: tuple[str, ...] = ()
    source: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(next(iter(self.columns.values()), []))


def read_file(path: Path) -> Table:
    """Read one CSV, TSV, JSON Lines, JSON or Parquet file.

    Raises:
        NtpsError: If the extension is unknown, or the file is missing, empty, binary, not UTF-8 or malformed.
    """
    extension = path.suffix.lower()
    if extension not in EXTENSIONS:
        raise NtpsError(f"{path}: unknown kind of file; accepted are {', '.join(EXTENSIONS)} and save_to_disk folders.")
    if extension == ".parquet":
        table = _parquet(path)
    else:
        text = _text(path)
        if extension in {".csv", ".tsv"}:
            table = _delimited(path, text, "\t" if extension == ".tsv" else None)
        elif extension == ".json":
            table = _json(path, text)
        else:
            table = _json_lines(path, text)
    if not len(table):
        raise NtpsError(f"{path} has no rows; at least two labelled texts are needed.")
    table.source = {"kind": "file", "path": str(path)}
    return table


def _bytes(path: Path) -> bytes:
    """Return a file's content; the error says why it cannot be read."""
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise NtpsError(f"{path}: file not found.") from error
    except OSError as error:
        raise NtpsError(f"cannot read {path}: {error.strerror or error}.") from error
    if not data.strip():
        raise NtpsError(f"{path} is empty; at least two labelled texts are needed.")
    return data


def _text(path: Path) -> str:
    """Return the content of a text file in UTF-8, or in UTF-16 with a byte order mark; refuse other encodings."""
    data = _bytes(path)
    encoding = "utf-16" if data[:2] in {b"\xff\xfe", b"\xfe\xff"} else "utf-8-sig"
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        if b"\0" in data:
            raise NtpsError(f"{path} is a binary file; {path.suffix} must be text in UTF-8.") from error
        raise NtpsError(
            f"{path}, line {line}: not UTF-8 (byte 0x{data[error.start]:02x}); save it as UTF-8."
        ) from error
    if "\0" in text:
        raise NtpsError(f"{path} is a binary file; {path.suffix} must be text in UTF-8.")
    return text


def _delimited(path: Path, text: str, delimiter: str | None) -> Table:
    """Read CSV or TSV with a header line. No value is converted: "NA" and "None" stay strings."""
    if delimiter is None:  # spreadsheets write semicolons in much of Europe
        header_line = text.lstrip().split("\n", 1)[0]
        delimiter = ";" if ";" in header_line and "," not in header_line else ","
    rows: list[list[str]] = []
    lines: list[int] = []
    limit = csv.field_size_limit(_MAX_FIELD)
    try:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
        start = 1
        for row in reader:
            if row:
                rows.append(row)
                lines.append(start)
            start = reader.line_num + 1
    except csv.Error as error:
        raise NtpsError(f"{path}, line {start}: not valid {path.suffix[1:].upper()} ({error}).") from error
    finally:
        csv.field_size_limit(limit)
    header = [name.strip() for name in rows[0]] if rows else []
    repeated = sorted({name for name in header if header.count(name) > 1})
    if repeated:
        raise NtpsError(f"{path}, line {lines[0]}: the header names column {repeated[0]!r} twice.")
    for row, line in zip(rows, lines, strict=True):
        if len(row) != len(header):
            raise NtpsError(
                f"{path}, line {line}: {len(row)} fields where the header has {len(header)}; "
                f"a text that holds {delimiter!r} needs quotes around it."
            )
    columns = {name: [row[index] for row in rows[1:]] for index, name in enumerate(header)}
    return Table(columns=columns, where=lambda row: f"{path}, line {lines[row + 1]}")


def _json_lines(path: Path, text: str) -> Table:
    """Read one JSON object per line; blank lines are skipped."""
    records: list[dict[str, Any]] = []
    lines: list[int] = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (json.JSONDecodeError, RecursionError) as error:
            reason = getattr(error, "msg", "nested too deeply")
            raise NtpsError(f"{path}, line {number}: not valid JSON ({reason}).") from error
        if not isinstance(record, dict):
            raise NtpsError(f"{path}, line {number}: a JSON {_kind(record)}; each line must be an object.")
        records.append(record)
        lines.append(number)
    return Table(columns=_columns(records), where=lambda row: f"{path}, line {lines[row]}")


def _json(path: Path, text: str) -> Table:
    """Read a JSON list of objects, or JSON Lines, which data sets often have under this extension."""
    try:
        records = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        if isinstance(error, json.JSONDecodeError) and error.msg == "Extra data" and text.lstrip().startswith("{"):
            return _json_lines(path, text)
        position = f", line {error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        raise NtpsError(f"{path}{position}: not valid JSON ({getattr(error, 'msg', 'nested too deeply')}).") from error
    if not isinstance(records, list):
        raise NtpsError(f"{path}: a JSON {_kind(records)}; a list of objects is needed.")
    for number, record in enumerate(records, start=1):
        if not isinstance(record, dict):
            raise NtpsError(f"{path}, item {number}: a JSON {_kind(record)}; each item must be an object.")
    return Table(columns=_columns(records), where=lambda row: f"{path}, item {row + 1}")


def _parquet(path: Path) -> Table:
    """Read a Parquet file, with the class names that `datasets` writes into its metadata."""
    if not path.is_file() or path.stat().st_size == 0:
        _bytes(path)  # raises the error that fits
    import pyarrow
    import pyarrow.parquet

    try:
        content = pyarrow.parquet.read_table(path)
        columns = {str(name): content.column(name).to_pylist() for name in content.column_names}
    except (pyarrow.ArrowException, OSError, KeyError) as error:
        raise NtpsError(f"{path}: not a readable Parquet file ({_hub.first_line(error)}).") from error
    declared = {}
    try:
        features = json.loads((content.schema.metadata or {})[b"huggingface"])["info"]["features"]
        for name, feature in features.items():
            if feature.get("_type") == "ClassLabel":
                declared[name] = tuple(map(str, feature["names"]))
    except (KeyError, TypeError, AttributeError, ValueError):
        pass  # not written by datasets
    return Table(columns=columns, where=lambda row: f"{path}, row {row + 1}", declared=declared)


def _columns(records: list[dict[str, Any]]) -> dict[str, list[Any]]:
    """Turn records into columns; a record that lacks a key has None there."""
    names = dict.fromkeys(str(name) for record in records for name in record)
    return {name: [record.get(name) for record in records] for name in names}


def _kind(value: Any) -> str:
    """Return JSON's name for the type of a value."""
    words = {dict: "object", list: "list", str: "string", bool: "boolean", type(None): "null"}
    return words.get(type(value), "number")


def refuse(parameters: dict[str, Any], what: str) -> None:
    """Raise an NtpsError for a parameter that would have no effect."""
    for parameter, value in parameters.items():
        if value is not None:
            raise NtpsError(f"{parameter!r} ({value!r}) has no meaning for {what}.")
