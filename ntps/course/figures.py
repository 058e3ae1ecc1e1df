"""Figures that can be heard: shown with a description for readers who do not see them."""

import tomllib
from html import escape
from importlib import resources
from typing import TYPE_CHECKING

from ntps.errors import one_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Seen by nobody, read by screen readers.
_HIDDEN = "position:absolute;width:1px;height:1px;overflow:hidden;clip-path:inset(50%);white-space:nowrap"


def descriptions() -> dict[str, str]:
    """Return what each picture of the lessons shows, in one or two sentences, by its name in `data/pictures.toml`."""
    text = resources.files("ntps.course").joinpath("data/pictures.toml").read_text(encoding="utf-8")
    return tomllib.loads(text)


def show(name: str, figure: "Figure | None" = None) -> None:
    """Show a figure in a notebook, described in words, and close it.

    The description is the picture's `alt`, which Sphinx, nbconvert and nbviewer take from the output's metadata.
    JupyterLab ignores that: there it is a line below the picture, of the class `ntps-alt`, which is only heard.

    Args:
        name: The picture's name in `data/pictures.toml`, such as "01.2" for the second one of lesson 01.
        figure: The figure; by default matplotlib's current one.

    Raises:
        NtpsError: If there is no such picture.
    """
    import matplotlib.pyplot as plt
    from IPython.core.pylabtools import print_figure
    from IPython.display import HTML, display

    pictures = descriptions()
    alt = pictures[one_of(name, pictures, "picture")]
    figure = figure or plt.gcf()
    picture = {"image/png": print_figure(figure, "png", base64=True), "text/plain": alt}
    plt.close(figure)
    display(picture, raw=True, metadata={"image/png": {"alt": alt}})
    display(HTML(f'<p class="ntps-alt" style="{_HIDDEN}">{escape(alt)}</p>'))
