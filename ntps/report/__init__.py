"""Pictures and pages. Names are imported when they are first used: a score's page needs nothing of a study."""

from typing import TYPE_CHECKING

from ntps._lazy import lazy_names

if TYPE_CHECKING:
    from ntps.report.plots import intruder_count, plot_curve, plot_layers, plot_runs, plot_tasks, setting_name
    from ntps.report.ranking import plot_depths, plot_learning, plot_ranking, write_ranking
    from ntps.report.scores import write_report
    from ntps.report.study import write_study
    from ntps.report.study_plots import plot_against, plot_choice, plot_models, plot_options

__all__ = [
    "intruder_count",
    "plot_against",
    "plot_choice",
    "plot_curve",
    "plot_depths",
    "plot_layers",
    "plot_learning",
    "plot_models",
    "plot_options",
    "plot_ranking",
    "plot_runs",
    "plot_tasks",
    "setting_name",
    "write_ranking",
    "write_report",
    "write_study",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "plots": ("intruder_count", "plot_curve", "plot_layers", "plot_runs", "plot_tasks", "setting_name"),
        "ranking": ("plot_depths", "plot_learning", "plot_ranking", "write_ranking"),
        "scores": ("write_report",),
        "study": ("write_study",),
        "study_plots": ("plot_against", "plot_choice", "plot_models", "plot_options"),
    },
)
