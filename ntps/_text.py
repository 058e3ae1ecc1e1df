"""Numbers, bars and sentences as text, for a terminal of 80 columns and for pages."""

import math
import textwrap
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tqdm import tqdm

WIDTH = 80
BAR_WIDTH = 18
_EIGHTHS = " ▏▎▍▌▋▊▉"


def counted(number: int, word: str) -> str:
    """Return "1 task", "2 tasks"."""
    return f"{number} {word}" if number == 1 else f"{number} {word}s"


def short_name(name: str) -> str:
    """Return the last part of a path, or a hub name as it is."""
    return name.rstrip("/").rsplit("/", 1)[-1] if name.startswith(("/", ".", "~")) else name


def bar(value: float | None, width: int = BAR_WIDTH) -> str:
    """Return a bar for a share in [0, 1], in eighths of a character; empty below 0 or when not a number."""
    if value is None or math.isnan(value) or value <= 0:
        return ""
    eighths = round(min(value, 1.0) * width * 8)
    return "█" * (eighths // 8) + _EIGHTHS[eighths % 8].strip()


def fixed(value: float | None, digits: int = 3, missing: str = "-") -> str:
    """Return a number with so many decimals, never "-0.000"; `missing` when there is none."""
    if value is None or math.isnan(value):
        return missing
    return f"{round(value, digits) + 0.0:.{digits}f}"


def percent(value: float) -> str:
    """Return a share as whole per cent, in words where there is none."""
    return "an unknown share" if math.isnan(value) else f"{fixed(100 * value, 0)}%"


def wrap(text: str, width: int = WIDTH) -> list[str]:
    """Return the lines of a sentence; all but the first are indented by two."""
    return textwrap.wrap(text, width, subsequent_indent="  ")


def progress(total: int, unit: str, show: bool | None = None, **options: Any) -> "tqdm[Any]":
    """Return a progress bar of at most 80 columns on stderr.

    Args:
        total: Number of units.
        unit: Plural noun of what is counted.
        show: Whether to draw it; by default when stderr is a terminal.
        **options: As for `tqdm.tqdm`.
    """
    from tqdm import tqdm

    layout = (
        f"{{desc}}{{percentage:3.0f}}% |{{bar}}| {{n_fmt}}/{{total_fmt}} {unit}, {{elapsed}} gone, {{remaining}} left"
    )
    settings: dict[str, Any] = {"bar_format": layout, "ncols": WIDTH, **options}
    return tqdm(total=total, disable=None if show is None else not show, **settings)
