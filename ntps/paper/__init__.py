"""The paper's published numbers: its figures drawn from them, its claims audited by them, and how to make them anew."""

from ntps.paper.figures import plot_words, project_words, write_figures
from ntps.paper.findings import Audit, Finding, audit
from ntps.paper.published import correlations, datasets, plot, results, words
from ntps.paper.rerun import Command, commands, costs_text

__all__ = [
    "Audit",
    "Command",
    "Finding",
    "audit",
    "commands",
    "correlations",
    "costs_text",
    "datasets",
    "plot",
    "plot_words",
    "project_words",
    "results",
    "words",
    "write_figures",
]
