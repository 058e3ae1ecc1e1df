"""Tables of labelled text from local files.

No reader knows which columns hold texts and labels.
"""

import codecs
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ntps import _hub
from ntps.errors import NtpsError
from ntps.tasks.delimited import read_delimited
from ntps.tasks.tables import Columns, Table, clean_name, refuse

EXTENSIONS = (".csv", ".tsv", ".jsonl", ".ndjson", ".json", ".parquet")
_MARKS = (  # those of UTF-32 first: the one of UTF-16 is the start of one of them
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_MOST_DIGITS = 4300  # of a whole number that Python reads


def read_file(path: Path, *, header: bool = True) -> Table:
    """Read one CSV, TSV, JSON Lines, JSON or Parquet file.

    Args:
        path: The file.
        header: Whether the first line of a CSV or TSV file names its columns; otherwise they are "1", "2", ...

    Raises:
        NtpsError: If the extension is unknown, or the file is missing, empty, binary, malformed or in an encoding other
            than UTF-8, UTF-16 and UTF-32.
    """
    extension = path.suffix.lower()
    if extension not in EXTENSIONS:
        raise NtpsError(f"{path}: unknown kind of file; accepted are {', '.join(EXTENSIONS)} and save_to_disk folders.")
    if extension not in {".csv", ".tsv"}:
        refuse({"header": None if header else False}, f"a {extension} file, which names its columns itself")
    if extension == ".parquet":
        table = _parquet(path)
    else:
        text = _text(path)
        if extension in {".csv", ".tsv"}:
            table = read_delimited(path, text, header=header)
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
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise NtpsError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}.") from error
    if not data.strip():
        raise NtpsError(f"{path} is empty; at least two labelled texts are needed.")
    return data


def _text(path: Path) -> str:
    """Return the content of a text file in UTF-8, UTF-16 or UTF-32, without byte order marks."""
    data = _bytes(path)
    encoding = next((name for mark, name in _MARKS if data.startswith(mark)), None) or _unmarked(data)
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        if b"\0" in data and encoding == "utf-8":
            raise NtpsError(f"{path} is a binary file; {path.suffix} must be text in UTF-8.") from error
        line = data.count(b"\n", 0, error.start) + 1
        byte = f"0x{data[error.start]:02x}"
        raise NtpsError(f"{path}, line {line}: not {encoding.upper()} (byte {byte}); save it as UTF-8.") from error
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise NtpsError(f"{path}, line {line}: a NUL character, as in a binary file; remove it, or save as UTF-8.")
    return text.lstrip("\ufeff")


def _unmarked(data: bytes) -> str:
    """Return the encoding of text without a byte order mark: one with NUL bytes only if it makes lines of a table."""
    if b"\0" in data:
        for _, encoding in _MARKS:
            try:
                text = data.decode(encoding)
            except UnicodeDecodeError:
                continue
            table = re.search(r"[\r\n]", text) and re.search(r"[,;\t|]", text)
            if "\0" not in text and (table or re.match(r"\s*[{\[]", text)):
                return encoding
    return "utf-8"


def _json_lines(path: Path, text: str) -> Table:
    """Read one JSON object per line; blank lines are skipped."""
    records: list[dict[str, Any]] = []
    lines: list[int] = []
    for number, line in enumerate(re.split(r"\r\n|\r|\n", text), start=1):
        if not line.strip("\ufeff \t"):
            continue
        try:
            record = _load(line.lstrip("\ufeff"))  # a mark in between is where files were joined
        except (ValueError, RecursionError) as error:
            raise NtpsError(f"{path}, line {number}: not valid JSON ({_reason(error)}).") from error
        if not isinstance(record, dict):
            raise NtpsError(f"{path}, line {number}: a JSON {_kind(record)}; each line must be an object.")
        records.append(record)
        lines.append(number)
    return _of_records(records, lambda row: f"{path}, line {lines[row]}")


def _json(path: Path, text: str) -> Table:
    """Read a JSON list of objects, or JSON Lines, which data sets often have under this extension."""
    try:
        records = _load(text)
    except (ValueError, RecursionError) as error:
        if isinstance(error, json.JSONDecodeError) and error.msg == "Extra data" and text.lstrip().startswith("{"):
            return _json_lines(path, text)
        position = f", line {error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        raise NtpsError(f"{path}{position}: not valid JSON ({_reason(error)}).") from error
    if not isinstance(records, list):
        raise NtpsError(f"{path}: a JSON {_kind(records)}; a list of objects is needed.")
    for number, record in enumerate(records, start=1):
        if not isinstance(record, dict):
            raise NtpsError(f"{path}, item {number}: a JSON {_kind(record)}; each item must be an object.")
    return _of_records(records, lambda row: f"{path}, item {row + 1}")


def _load(text: str) -> Any:
    """Return JSON values; a whole number of more digits than Python reads stays a string."""
    return json.loads(text, parse_int=lambda digits: int(digits) if len(digits) <= _MOST_DIGITS else digits)


def _reason(error: Exception) -> str:
    """Return why JSON cannot be read."""
    return "nested too deeply" if isinstance(error, RecursionError) else getattr(error, "msg", str(error))


def _parquet(path: Path) -> Table:
    """Read a Parquet file, with the class names that `datasets` writes into its metadata."""
    if not path.is_file() or path.stat().st_size == 0:
        _bytes(path)  # raises the error that fits
    import pyarrow
    import pyarrow.parquet

    def fail(error: Exception, what: str) -> NtpsError:
        return NtpsError(f"{path}: {what} ({_hub.first_line(error)}).")

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            schema, n_rows = file.schema_arrow, file.metadata.num_rows
    except (pyarrow.ArrowException, OSError, KeyError) as error:
        raise fail(error, "not a readable Parquet file") from error
    names = list(schema.names)

    def read(place: int) -> list[Any]:
        name = names[place]
        try:
            with pyarrow.parquet.ParquetFile(path) as file:
                column = file.read(columns=[name]).column(name)
            return column.to_pylist()
        except UnicodeDecodeError:
            for row, value in enumerate(column):
                try:
                    value.as_py()
                except UnicodeDecodeError as error:
                    byte = f"0x{error.object[error.start]:02x}"
                    raise NtpsError(
                        f"{path}, row {row + 1}: column {name!r} is not UTF-8 (byte {byte}); write it as UTF-8."
                    ) from error
            raise
        except (pyarrow.ArrowException, OSError, KeyError, ValueError) as error:
            raise fail(error, f"column {name!r} cannot be read") from error

    declared = {}
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        for name, feature in features.items():
            if feature.get("_type") == "ClassLabel":
                declared[clean_name(name)] = tuple(map(str, feature["names"]))
    except (KeyError, TypeError, AttributeError, ValueError):
        pass  # not written by datasets
    columns = Columns(names, read)
    return Table(columns=columns, n_rows=n_rows, where=lambda row: f"{path}, row {row + 1}", declared=declared)


def _of_records(records: list[dict[str, Any]], where: Callable[[int], str]) -> Table:
    """Make a table of records; one that lacks a key has None there."""
    names = list(dict.fromkeys(name for record in records for name in record))
    columns = Columns(names, lambda place: [record.get(names[place]) for record in records])
    return Table(columns=columns, n_rows=len(records), where=where)


def _kind(value: Any) -> str:
    """Return JSON's name for the type of a value."""
    words = {dict: "object", list: "list", str: "string", bool: "boolean", type(None): "null"}
    return words.get(type(value), "number")
