"""What only the lessons use: exercise checks, panels, the bundled vocabulary, published figures, measurements."""

from ntps.course.layers import solve

__all__ = ["solve"]
