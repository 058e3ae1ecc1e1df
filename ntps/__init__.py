"""Next Token Perception Score: what next-token prediction keeps of a labelled text task.

    >>> import ntps
    >>> task = ntps.load_task("miniworld/topic", n=400)
    >>> model = ntps.load_model("miniworld-base")
    >>> result = ntps.score(ntps.collect_moments(model, task))
    >>> 0 <= result.best.retained <= 1
    True

Source of the method: Cheng, Hu, Huang, Balestriero, *Next Token Perception Score*, arXiv 2505.17169 (2025).
"""

__version__ = "0.1.0"

from ntps.accumulator import MomentAccumulator
from ntps.calibration import Calibration, calibrate, load_calibration
from ntps.encoders import Encoder, autoregressive_encoder, perception_encoder
from ntps.errors import NtpsError
from ntps.extract import collect, collect_moments
from ntps.features import Features
from ntps.finetune import fine_tune
from ntps.lora import before_and_after
from ntps.measured import StudySettings
from ntps.models import LanguageModel, list_models, load_model
from ntps.moments import LayerMoments, Moments
from ntps.nulls import permutation_null
from ntps.prescreen import prescreen
from ntps.results import LayerScore, ScoreResult
from ntps.score import ntps_table, read_layer, score, solve_layer
from ntps.study import run_study
from ntps.tasks import Task, list_tasks, load_task
from ntps.train_settings import TrainSettings

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
