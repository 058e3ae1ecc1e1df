"""Next Token Perception Score: what next-token prediction keeps of a labelled text task.

    >>> import ntps
    >>> task = ntps.load_task("miniworld/topic", n=400)
    >>> model = ntps.load_model("miniworld-base")
    >>> result = ntps.score(ntps.collect_moments(model, task))
    >>> 0 <= result.best.retained <= 1
    True

Source of the method: Cheng, Hu, Huang, Balestriero, *Next Token Perception Score*, arXiv 2505.17169 (2025).
"""

from ntps._version import __version__
from ntps.core.accumulator import MomentAccumulator
from ntps.core.encoders import Encoder, autoregressive_encoder, perception_encoder
from ntps.core.moments import LayerMoments, Moments
from ntps.core.solve import ntps_table, read_layer, score, solve_layer
from ntps.errors import NtpsError
from ntps.finetune.compare import before_and_after
from ntps.finetune.settings import TrainSettings
from ntps.finetune.train import fine_tune
from ntps.models.features import Features
from ntps.models.load import LanguageModel, list_models, load_model
from ntps.models.passes import collect, collect_moments
from ntps.scoring.nulls import permutation_null
from ntps.scoring.results import LayerScore, ScoreResult
from ntps.study.calibration import Calibration, calibrate, load_calibration
from ntps.study.measure import StudySettings
from ntps.study.prescreening import prescreen
from ntps.study.study import run_study
from ntps.tasks.load import Task, list_tasks, load_task

__all__ = [
    "Calibration",
    "Encoder",
    "Features",
    "LanguageModel",
    "LayerMoments",
    "LayerScore",
    "MomentAccumulator",
    "Moments",
    "NtpsError",
    "ScoreResult",
    "StudySettings",
    "Task",
    "TrainSettings",
    "__version__",
    "autoregressive_encoder",
    "before_and_after",
    "calibrate",
    "collect",
    "collect_moments",
    "fine_tune",
    "list_models",
    "list_tasks",
    "load_calibration",
    "load_model",
    "load_task",
    "ntps_table",
    "perception_encoder",
    "permutation_null",
    "prescreen",
    "read_layer",
    "run_study",
    "score",
    "solve_layer",
]
