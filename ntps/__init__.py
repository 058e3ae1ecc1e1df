"""Next Token Perception Score: what next-token prediction keeps of a labelled text task.

    >>> import ntps
    >>> task = ntps.load_task("miniworld/topic", n=400)
    >>> model = ntps.load_model("miniworld-base")
    >>> representations = ntps.collect(model, task)
    >>> result = ntps.score(representations)
    >>> result.best.r2 > 0.9  # of the best layer, on texts that its readout was not fitted on
    True

Names are imported from their rooms when they are first used, so that `import ntps` costs nothing.

Source of the method: Cheng, Hu, Huang, Balestriero, *Next Token Perception Score*, arXiv 2505.17169 (2025).
"""

from typing import TYPE_CHECKING

from ntps._lazy import lazy_names
from ntps._version import __version__
from ntps.errors import NtpsError

if TYPE_CHECKING:
    from ntps.core import (
        Encoder,
        NextTokenMoments,
        autoregressive_encoder,
        loss_bounds,
        ntps_table,
        perception_encoder,
        principal_angles,
        solve_layer,
    )
    from ntps.finetune import TrainSettings, before_and_after, fine_tune
    from ntps.models import LanguageModel, Representations, collect, list_models, load_model, plan_pass
    from ntps.report import plot_layers, write_report
    from ntps.scoring import ScoreResult, compare, h_score, jackknife, linear_probe, logme, permutation_null, score
    from ntps.study import RankSettings, StudySettings, calibrate, load_calibration, prescreen, rank, run_study
    from ntps.tasks import Task, list_tasks, load_task

_ROOMS = {
    "core": (
        "Encoder",
        "NextTokenMoments",
        "autoregressive_encoder",
        "loss_bounds",
        "ntps_table",
        "perception_encoder",
        "principal_angles",
        "solve_layer",
    ),
    "tasks": ("Task", "list_tasks", "load_task"),
    "models": ("LanguageModel", "Representations", "collect", "list_models", "load_model", "plan_pass"),
    "scoring": ("ScoreResult", "compare", "h_score", "jackknife", "linear_probe", "logme", "permutation_null", "score"),
    "finetune": ("TrainSettings", "before_and_after", "fine_tune"),
    "study": ("RankSettings", "StudySettings", "calibrate", "load_calibration", "prescreen", "rank", "run_study"),
    "report": ("plot_layers", "write_report"),
}

__all__ = [
    "Encoder",
    "LanguageModel",
    "NextTokenMoments",
    "NtpsError",
    "RankSettings",
    "Representations",
    "ScoreResult",
    "StudySettings",
    "Task",
    "TrainSettings",
    "__version__",
    "autoregressive_encoder",
    "before_and_after",
    "calibrate",
    "collect",
    "compare",
    "fine_tune",
    "h_score",
    "jackknife",
    "linear_probe",
    "list_models",
    "list_tasks",
    "load_calibration",
    "load_model",
    "load_task",
    "logme",
    "loss_bounds",
    "ntps_table",
    "perception_encoder",
    "permutation_null",
    "plan_pass",
    "plot_layers",
    "prescreen",
    "principal_angles",
    "rank",
    "run_study",
    "score",
    "solve_layer",
    "write_report",
]

__getattr__, __dir__ = lazy_names(__name__, _ROOMS)
