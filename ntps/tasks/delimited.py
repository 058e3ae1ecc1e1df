"""Delimited text as people have it: its separator, its quotes, and whether its first line names the columns.

Between commas and semicolons quotes are read as spreadsheets write them. Between tabs and bars they usually are
ordinary characters: there they count only if they are well formed throughout and no field runs over the end of a row.
"""

import csv
import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from ntps.errors import NtpsError
from ntps.tasks.tables import Columns, Table

SEPARATORS = {",": "comma", ";": "semicolon", "\t": "tab", "|": "bar"}
_RAW = "\t|"  # separators between which a quote may be an ordinary character
_LINE_END = re.compile(r"\r\n|\r|\n")
_SEP_LINE = re.compile(r'"?sep=([^\w"\r\n])"?[ \t]*(?:\r\n|\r|\n)', re.IGNORECASE)  # how Excel is told the separator
_SAMPLE = 1000, 1 << 20  # rows and characters from which the separator is told
_MAX_FIELD = 2**31 - 1  # characters


class _Row(NamedTuple):
    line: int
    fields: list[str]


class _Dialect(NamedTuple):
    separator: str
    quotes: bool = True
    skip_spaces: bool = False


def read_delimited(path: Path, text: str, *, header: bool = True) -> Table:
    """Read CSV, TSV or the like. No value is converted: "NA" and "None" stay strings, "007" stays itself.

    The separator is the one, of comma, semicolon, tab and bar, that gives rows of equal length, unless a first line
    `sep=...` names it.

    Args:
        path: The file, for messages.
        text: Its content.
        header: Whether the first line names the columns; otherwise they are "1", "2", ...

    Raises:
        NtpsError: If rows are of different lengths, or a quote is not closed; the message names the line.
    """
    named = _SEP_LINE.match(text)
    first = 1
    if named:
        text, first = text[named.end() :], 2
    with _long_fields():
        separator = named[1] if named else _separator(path, text)
        rows = _read(path, text, separator, first)
    names = rows[0].fields if header else [str(number) for number in range(1, len(rows[0].fields) + 1)]
    body = rows[1:] if header else rows
    return Table(
        columns=Columns(names, lambda place: [row.fields[place] for row in body]),
        n_rows=len(body),
        where=lambda row: f"{path}, line {body[row].line}",
        headed=header,
    )


@contextmanager
def _long_fields() -> Iterator[None]:
    limit = csv.field_size_limit(_MAX_FIELD)
    try:
        yield
    finally:
        csv.field_size_limit(limit)


def _separator(path: Path, text: str) -> str:
    """Return the separator under which the most rows have as many fields as the first, which has several."""
    usual = "\t" if path.suffix.lower() == ".tsv" else ","
    best, most = usual, 0.0
    n_rows, n_characters = _SAMPLE
    for separator in sorted(SEPARATORS, key=lambda one: one != usual):
        for quotes in (True, False) if separator in _RAW else (True,):
            widths = []
            try:
                for row in islice(_rows(path, text[:n_characters], _Dialect(separator, quotes)), n_rows):
                    widths.append(len(row.fields))
            except NtpsError:
                pass  # the rows before the fault tell
            even = sum(width == widths[0] for width in widths[1:]) / max(len(widths) - 1, 1)
            if even > most and widths[0] > 1:
                best, most = separator, even
    return best


def _read(path: Path, text: str, separator: str, first: int) -> list[_Row]:
    """Return the rows as the first dialect reads them that leaves no fault; otherwise say what is wrong."""
    plain = _Dialect(separator)
    dialects = [plain, *([plain._replace(quotes=False)] if separator in _RAW else [])]
    if _spaced(path, text, plain):
        dialects.insert(0, plain._replace(skip_spaces=True))
    for dialect in dialects[:-1]:
        try:
            return _even(path, text, dialect, first)
        except NtpsError:
            pass
    return _even(path, text, dialects[-1], first)


def _spaced(path: Path, text: str, dialect: _Dialect) -> bool:
    """Return whether a blank may stand between a separator and a quote, which is no part of the field then."""
    if not re.search(rf'{re.escape(dialect.separator)} +"', text):
        return False
    try:
        return any(re.match(' +"', value) for row in _rows(path, text, dialect) for value in row.fields)
    except NtpsError:
        return True


def _even(path: Path, text: str, dialect: _Dialect, first: int) -> list[_Row]:
    """Return rows of equal length.

    Raises:
        NtpsError: If they are not, or a quoted field runs over the end of a row.
    """
    rows = list(_rows(path, text, dialect, first))
    if not rows:
        raise NtpsError(f"{path} has no rows; at least two labelled texts are needed.")
    head = rows[0]
    n_fields, separator = len(head.fields), dialect.separator
    name = SEPARATORS.get(separator, repr(separator))
    for row in rows:
        if len(row.fields) != n_fields:
            place, found = f"{path}, line {row.line}", f"{len(row.fields)} field{'s' if len(row.fields) > 1 else ''}"
            if row.fields[0].startswith("#"):
                raise NtpsError(f"{place}: {_start(row)} is no row; remove lines of comment.")
            if n_fields == 1 and row is rows[1]:
                raise NtpsError(
                    f"{path}, line {head.line}: {_start(head)} is 1 field where line {row.line} has "
                    f"{len(row.fields)}; the first line must name the columns, and a text that holds {separator!r} "
                    "needs quotes around it."
                )
            raise NtpsError(
                f"{place}: {found} where line {head.line} has {n_fields}; the separator is a {name}, and a text that "
                f"holds {separator!r} needs quotes around it."
            )
    if dialect.quotes and n_fields > 1:
        _refuse_joined_rows(path, text, rows, dialect)
    return rows


def _refuse_joined_rows(path: Path, text: str, rows: list[_Row], dialect: _Dialect) -> None:
    """Raise an NtpsError if a stray quote seems to have joined rows into one field.

    A field that swallows rows holds their ends and their separators. A text of several lines may do so too: between
    commas and semicolons it is refused only from four lines on, and if every line of the file is a row by itself.
    """
    separator, n_fields = dialect.separator, len(rows[0].fields)
    for row in rows:
        for value in row.fields:
            if "\n" not in value and "\r" not in value:
                continue
            n_ends, n_separators = len(_LINE_END.findall(value)), value.count(separator)
            if separator in _RAW:
                joined = n_separators >= n_fields - 1
            else:
                joined = n_ends > 2 and n_separators >= n_ends * (n_fields - 1)
                lines = _rows(path, text, dialect._replace(quotes=False)) if joined else ()
                if any(len(line.fields) != n_fields for line in lines):
                    return
            if joined:
                raise NtpsError(
                    f"{path}, line {row.line}: a quote opens a field of {n_ends + 1} lines, each of which is a row by "
                    "itself; remove it, or write it as two within quotes."
                )


def _rows(path: Path, text: str, dialect: _Dialect, first: int = 1) -> Iterator[_Row]:
    """Yield the rows that are not blank; `first` is the number of the text's first line."""
    reader = csv.reader(
        io.StringIO(text, newline=""),
        delimiter=dialect.separator,
        quoting=csv.QUOTE_MINIMAL if dialect.quotes else csv.QUOTE_NONE,
        skipinitialspace=dialect.skip_spaces,
        strict=True,
    )
    line = first
    try:
        for fields in reader:
            if fields:
                yield _Row(line, fields)
            line = first + reader.line_num
    except csv.Error as error:
        raise NtpsError(f"{path}, line {line}: not valid {path.suffix[1:].upper()} ({error}).") from error


def _start(row: _Row) -> str:
    """Return the start of a row for a message."""
    field = row.fields[0]
    return repr(field if len(field) <= 40 else f"{field[:40]}...")
