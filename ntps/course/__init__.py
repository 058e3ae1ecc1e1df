"""What only the lessons use: checks, panels, predictions, described figures, sentences, vocabulary, measurements."""

from ntps.course.figures import show
from ntps.course.guesses import outcome, predict
from ntps.course.layers import solve
from ntps.course.printing import say
from ntps.course.waiting import progress

__all__ = ["outcome", "predict", "progress", "say", "show", "solve"]
