"""The paper's published numbers: its figures drawn from them, its claims audited by them, and how to make them anew."""

from ntps.paper.figures import plot_words, project_words, write_figures
from ntps.paper.findings import Audit, Finding, audit
from ntps.paper.published import correlations, datasets, plot, results, words

__all__ = [
    "Audit",
    "Finding",
    "audit",
    "correlations",
    "datasets",
    "plot",
    "plot_words",
    "project_words",
    "results",
    "words",
    "write_figures",
]
