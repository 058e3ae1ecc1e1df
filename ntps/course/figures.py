"""Figures that can be heard: shown with a description for readers who do not see them."""

from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Seen by nobody, read by screen readers.
_HIDDEN = "position:absolute;width:1px;height:1px;overflow:hidden;clip-path:inset(50%);white-space:nowrap"


def show(alt: str, figure: "Figure | None" = None) -> None:
    """Show a figure in a notebook, described in words, and close it.

    The description is the picture's `alt`, which Sphinx, nbconvert and nbviewer take from the output's metadata.
    JupyterLab ignores that: there it is a line below the picture, of the class `ntps-alt`, which is only heard.

    Args:
        alt: What the picture shows, in one or two sentences.
        figure: The figure; by default matplotlib's current one.
    """
    import matplotlib.pyplot as plt
    from IPython.core.pylabtools import print_figure
    from IPython.display import HTML, display

    figure = figure or plt.gcf()
    picture = {"image/png": print_figure(figure, "png", base64=True), "text/plain": alt}
    plt.close(figure)
    display(picture, raw=True, metadata={"image/png": {"alt": alt}})
    display(HTML(f'<p class="ntps-alt" style="{_HIDDEN}">{escape(alt)}</p>'))
