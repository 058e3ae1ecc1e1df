"""Numbers, bars and sentences as text, for a terminal of 80 columns and for pages."""

import math
import re
import textwrap
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from markupsafe import Markup, escape

from ntps._names import clean

if TYPE_CHECKING:
    from tqdm import tqdm

WIDTH = 80
BAR_WIDTH = 18
_EIGHTHS = " ▏▎▍▌▋▊▉"
_MARK = re.compile(r"[*✓✗] ")


def counted(number: int, word: str) -> str:
    """Return "1 task", "2 tasks"."""
    return f"{number} {word}" if number == 1 else f"{number} {word}s"


def listed(items: Sequence[str]) -> str:
    """Return `a`, `a and b`, or `a, b and c`."""
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"


def duration(seconds: float) -> str:
    """Return "40 s" or "3 min"."""
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


def bar(value: float | None, width: int = BAR_WIDTH) -> str:
    """Return a bar for a share in [0, 1], in eighths of a character; empty below 0 or when not a number."""
    if value is None or math.isnan(value) or value <= 0:
        return ""
    eighths = round(min(value, 1.0) * width * 8)
    return "█" * (eighths // 8) + _EIGHTHS[eighths % 8].strip()


def fixed(value: float | None, digits: int = 3, missing: str = "-") -> str:
    """Return a number with `digits` decimals (never "-0.000"), or `missing` for `None` and NaN."""
    if value is None or math.isnan(value):
        return missing
    return f"{round(value, digits) + 0.0:.{digits}f}"


def interval_text(interval: tuple[float, float], digits: int = 3) -> str:
    """Return an interval as [low, high]."""
    return f"[{fixed(interval[0], digits)}, {fixed(interval[1], digits)}]"


def percent(value: float) -> str:
    """Return a share as a whole percentage; NaN in words."""
    return "an unknown share" if math.isnan(value) else f"{fixed(100 * value, 0)}%"


def wrap(text: str, width: int = WIDTH) -> list[str]:
    """Return the lines of a paragraph; if it begins with a mark, such as "* ", its text stands beside the mark.

    Lines are broken neither at hyphens, which would take options of commands apart, nor between a number and its "%".
    """
    indent = "  " if _MARK.match(text) else ""
    lines = textwrap.wrap(text.replace(" %", "\xa0%"), width, subsequent_indent=indent, break_on_hyphens=False)
    return [line.replace("\xa0%", " %") for line in lines]


@dataclass(frozen=True)
class Column:
    """One column of a table, for a terminal or for HTML.

    Attributes:
        heading: Name of the column.
        value: Function of a row that returns a number, a string or `None`; in HTML, `Markup` is taken as it is.
        digits: Decimals of a float.
        words: Whether the column holds words, which are set flush left; numbers are set flush right.
    """

    heading: str
    value: Callable[[Any], Any]
    digits: int = 3
    words: bool = False

    def text(self, row: Any, *, missing: str = "-") -> str:
        """Return the column's text for a row, or `missing` for `None` and NaN."""
        value = self.value(row)
        if value is None or isinstance(value, float):
            return fixed(value, self.digits, missing)
        return value if isinstance(value, Markup) else clean(str(value))


def text_table(columns: Sequence[Column], rows: Iterable[Any], *, gap: int = 2) -> list[str]:
    """Return a heading line and one line per row; a column is as wide as its widest entry."""
    headings = [column.heading for column in columns]
    lines = [headings, *([column.text(row) for column in columns] for row in rows)]
    widths = [max(map(len, cells)) for cells in zip(*lines, strict=True)]

    def line(cells: Sequence[str]) -> str:
        aligned = (
            cell.ljust(width) if column.words else cell.rjust(width)
            for column, cell, width in zip(columns, cells, widths, strict=True)
        )
        return (" " * gap).join(aligned).rstrip()

    return [line(cells) for cells in lines]


def html_table(columns: Sequence[Column], rows: Iterable[Any], *, best: Any = None) -> Markup:
    """Return an HTML table in which everything but `Markup` is escaped.

    Args:
        columns: The columns.
        rows: Whatever the columns' `value` functions take.
        best: The row to set in bold, by identity.
    """

    def cells(tag: str, values: Iterable[Any]) -> Markup:
        parts = []
        for column, value in zip(columns, values, strict=True):
            kind = Markup(' class="word"') if column.words else ""
            parts.append(Markup("<{0}{1}>{2}</{0}>").format(Markup(tag), kind, value))
        return Markup("").join(parts)

    # A heading may be broken after an underscore.
    headings = (escape(column.heading).replace("_", Markup("_<wbr>")) for column in columns)
    body = Markup("").join(
        Markup("<tr{}>{}</tr>").format(
            Markup(' class="best" style="font-weight:bold"') if best is not None and row is best else "",
            cells("td", (column.text(row, missing="–") for column in columns)),
        )
        for row in rows
    )
    return Markup("<table><thead><tr>{}</tr></thead><tbody>{}</tbody></table>").format(cells("th", headings), body)


def progress(total: int, unit: str, show: bool | None = None, **options: Any) -> "tqdm[Any]":
    """Return a progress bar of at most 80 columns on stderr.

    Args:
        total: Number of units.
        unit: Plural noun for what is counted.
        show: Whether to draw it; by default when stderr is a terminal.
        **options: As for `tqdm.tqdm`.
    """
    from tqdm import tqdm

    layout = (
        f"{{desc}}{{percentage:3.0f}}% |{{bar}}| {{n_fmt}}/{{total_fmt}} {unit}, {{elapsed}} gone, {{remaining}} left"
    )
    settings: dict[str, Any] = {"bar_format": layout, "ncols": WIDTH, **options}
    return tqdm(total=total, disable=None if show is None else not show, **settings)
