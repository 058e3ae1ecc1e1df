"""Common parts of all pages: templates that escape, pictures that a page contains, tables."""

import base64
import io
import json
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from ntps._files import atomic_write, held_folder, jsonable
from ntps._names import clean, shareable
from ntps._text import Column, html_table
from ntps._version import __version__

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

PATIENCE = 30.0  # seconds that a report waits for another one that is being written into its folder


@dataclass(frozen=True)
class Picture:
    """A picture, both a file and a part of a page.

    Attributes:
        file: Name of its file, such as `"layers.png"`.
        alt: Description of the picture.
        png: Content of the file.
        wide: Whether it needs the whole width of a page.
    """

    file: str
    alt: str
    png: bytes
    wide: bool = False

    @property
    def source(self) -> str:
        """The picture as a data URI, so that a page needs no file beside it."""
        return f"data:image/png;base64,{base64.b64encode(self.png).decode()}"


def draw_picture(
    file: str, alt: str, draw: Callable[["Figure"], Any], *, figsize: tuple[float, float] = (6.4, 4.6)
) -> Picture:
    """Return a picture of what `draw` puts on a new figure; the caller's matplotlib state is not touched.

    Args:
        file: Name of its file.
        alt: Description of the picture.
        draw: Function that draws on a figure.
        figsize: Width and height in inches.
    """
    from matplotlib import style
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    buffer = io.BytesIO()
    with style.context("default"), warnings.catch_warnings():  # legends and labels are laid out for its sizes
        warnings.filterwarnings("ignore", "Glyph .* missing")  # names of any script: a box stands for what it lacks
        figure = Figure(figsize=figsize, layout="constrained")
        FigureCanvasAgg(figure)
        draw(figure)
        figure.savefig(buffer, format="png", dpi=120)
    return Picture(file, alt, buffer.getvalue(), wide=figsize[0] > 8)


@lru_cache(maxsize=1)
def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("ntps.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def render(template: str, *, title: str, heading: str, **content: Any) -> str:
    """Return a whole, self-contained HTML page.

    Args:
        template: File in `templates/` that extends `base.html`.
        title: Title of the page's window.
        heading: First heading of the page.
        **content: Variables of the template; everything but `Markup` is escaped.
    """
    page = _environment().get_template(template)
    return clean(page.render(title=title, heading=heading, version=__version__, **content))


def write_files(folder: str | Path, pictures: Iterable[Picture], texts: Mapping[str, str]) -> list[Path]:
    """Write pictures, and texts by their files' names, each atomically; the files of two runs are not mixed."""
    folder = Path(folder)
    with held_folder(folder, seconds=PATIENCE):
        drawn = [atomic_write(folder / picture.file, picture.png) for picture in pictures]
        return drawn + [atomic_write(folder / name, text) for name, text in texts.items()]


def settings_table(settings: Mapping[str, Any]) -> Markup:
    """Return a table of settings and their values; those that are not strings are shown as JSON."""
    rows = [
        (name, value if isinstance(value, str) else json.dumps(jsonable(value), ensure_ascii=False))
        for name, value in shareable(settings).items()
    ]
    return html_table([Column("setting", itemgetter(0), words=True), Column("value", itemgetter(1), words=True)], rows)


def tables_csv(tables: "Sequence[pd.DataFrame]", names: Sequence[str]) -> str:
    """Return tables below each other as CSV; where there are several, the column `labels` names that of each row."""
    import pandas as pd

    if len(tables) == 1:
        return csv_text(tables[0])
    return csv_text(pd.concat(tables, keys=names, names=["labels"]).reset_index("labels"))


def csv_text(frame: "pd.DataFrame") -> str:
    """Return a table as CSV in which no word is a formula to a spreadsheet: such words begin with an apostrophe."""
    words = frame.select_dtypes(exclude=["number", "bool"]).columns
    return frame.assign(**{name: frame[name].map(_no_formula) for name in words}).to_csv(index=False)


def _no_formula(value: Any) -> Any:
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")) else value
