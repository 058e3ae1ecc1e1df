"""The lessons' interactive panels.

A panel is a plain class: set its state, get its picture as PNG and a sentence that reads it. Tests drive it without a
browser; `panel.show()` puts ipywidgets around it. Everything slow is computed before the first slider moves.
"""

from ntps.course.widgets.bounds import BoundsPanel
from ntps.course.widgets.linear_world import LinearWorld, LinearWorldPanel, plane_world, read_world
from ntps.course.widgets.lora_panel import LoraPanel
from ntps.course.widgets.panel import COLORS, Choice, Panel, Slider
from ntps.course.widgets.selection import SelectionPanel
from ntps.course.widgets.spectra import SpectraPanel, between_groups, plane_coordinates
from ntps.report.plots import PALETTE

__all__ = [
    "COLORS",
    "PALETTE",
    "BoundsPanel",
    "Choice",
    "LinearWorld",
    "LinearWorldPanel",
    "LoraPanel",
    "Panel",
    "SelectionPanel",
    "Slider",
    "SpectraPanel",
    "between_groups",
    "plane_coordinates",
    "plane_world",
    "read_world",
]
