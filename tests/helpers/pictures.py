"""Stand-ins for the pictures of reports, whose layout and pixels take most of a small report's time."""

from ntps.report.page import Picture


def sketch(file, alt, draw, *, figsize=(6.4, 4.6)):
    """Let everything be drawn, as `draw_picture` does, but lay nothing out and make no pixels."""
    from matplotlib.figure import Figure

    draw(Figure(figsize=figsize))
    return Picture(file, alt, b"", wide=figsize[0] > 8)


def no_picture(file, alt, draw, **_):
    """Draw nothing at all."""
    return Picture(file, alt, b"")
