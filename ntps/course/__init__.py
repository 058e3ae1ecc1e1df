"""What only the lessons use: checks, panels, predictions, figures with a description, vocabulary, measurements."""

from ntps.course.figures import show
from ntps.course.guesses import outcome, predict
from ntps.course.layers import solve
from ntps.course.waiting import progress

__all__ = ["outcome", "predict", "progress", "show", "solve"]
