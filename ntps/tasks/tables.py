"""The table of labelled text that every source is read into."""

import string
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ntps.errors import NtpsError

_SHOWN_NAMES, _SHOWN_CHARACTERS = 20, 40  # of the column names in a message
INVISIBLE = string.whitespace + "\x85\xa0\xad\u2007\u200b\u200e\u200f\u202f\u2060\u3000\ufeff"  # at the ends of a label


class Columns(Mapping[str, list[Any]]):
    """Columns by name, each read when it is first asked for, so that those which nobody needs cost nothing.

    Invisible characters in names are removed; a column without a name is no column. Two columns may have the same name
    as long as nobody asks for it.

    Attributes:
        doubled: Names that several columns have.
    """

    def __init__(self, names: Iterable[Any], read: Callable[[int], list[Any]]) -> None:
        """Take the names in order, and a function from a column's place to its values."""
        self.doubled: set[str] = set()
        self._places: dict[str, int] = {}
        self._read = read
        self._kept: dict[str, list[Any]] = {}
        for place, name in enumerate(names):
            cleaned = clean_name(str(name))
            if cleaned in self._places:
                self.doubled.add(cleaned)
            elif cleaned:
                self._places[cleaned] = place

    @classmethod
    def of(cls, columns: Mapping[str, list[Any]]) -> "Columns":
        """Return columns that are in memory."""
        values = list(columns.values())
        return cls(columns, values.__getitem__)

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and clean_name(name) in self._places

    def __getitem__(self, name: str) -> list[Any]:
        name = clean_name(name)
        if name not in self._kept:
            self._kept[name] = self._read(self._places[name])
        return self._kept[name]

    def only(self, rows: Sequence[int]) -> "Columns":
        """Return the columns with these rows, in this order."""
        names = list(self)
        chosen = Columns(names, lambda place: [self[names[place]][row] for row in rows])
        chosen.doubled = self.doubled
        return chosen


@dataclass(kw_only=True)
class Table:
    """Columns of equal length, read from one source.

    Attributes:
        columns: Values of each column, in the source's order; a missing value is None.
        n_rows: Number of rows.
        where: Function from a row's index to its origin in words, such as "reviews.csv, line 7".
        declared: Class names of each column for which the source declares them; the column then holds their numbers.
        splits: Names of all splits of the source; empty if it has none.
        source: Origin of the table, for `Task.source`; it includes `path`.
        headed: Whether the names were read from a first line, which may be a row in truth.
    """

    columns: Columns
    n_rows: int
    where: Callable[[int], str]
    declared: dict[str, tuple[str, ...]] = field(default_factory=dict)
    splits: tuple[str, ...] = ()
    source: dict[str, Any] = field(default_factory=dict)
    headed: bool = False

    def __len__(self) -> int:
        return self.n_rows

    @property
    def listed(self) -> str:
        """The columns' names for a message, at most 20 and shortened."""
        names = list(self.columns)
        shown = [name if len(name) <= _SHOWN_CHARACTERS else f"{name[:_SHOWN_CHARACTERS]}..." for name in names]
        more = f" and {len(names) - _SHOWN_NAMES} more" if len(names) > _SHOWN_NAMES else ""
        return ", ".join(shown[:_SHOWN_NAMES]) + more

    def only(self, rows: Sequence[int]) -> "Table":
        """Return the table of these rows, in this order."""
        columns = self.columns.only(rows)
        return replace(self, columns=columns, n_rows=len(rows), where=lambda row: self.where(rows[row]))


def clean_name(name: str) -> str:
    """Return a column's name as it is seen: without invisible characters, every blank a single space."""
    seen = (
        " " if letter.isspace() else "" if unicodedata.category(letter) in {"Cf", "Cc"} else letter for letter in name
    )
    return repaired(" ".join("".join(seen).split()))


def repaired(text: str) -> str:
    """Return a text with U+FFFD for each half of a surrogate pair, which JSON can spell and no tokenizer accepts."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def refuse(parameters: dict[str, Any], what: str) -> None:
    """Raise an NtpsError for a parameter that would have no effect."""
    for parameter, value in parameters.items():
        if value is not None:
            raise NtpsError(f"{parameter}={value!r} has no meaning for {what}.")
