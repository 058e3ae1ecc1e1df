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
from ntps.encoders import Encoder, autoregressive_encoder, perception_encoder
from ntps.errors import NtpsError
from ntps.extract import collect, collect_moments
from ntps.features import Features
from ntps.models import LanguageModel, list_models, load_model
from ntps.moments import LayerMoments, Moments
from ntps.nulls import permutation_null
from ntps.results import LayerScore, ScoreResult
from ntps.score import ntps_table, read_layer, score, solve_layer
from ntps.tasks import Task, list_tasks, load_task

__all__ = [
    "Encoder",
    "Features",
    "LanguageModel",
    "LayerMoments",
    "LayerScore",
    "MomentAccumulator",
    "Moments",
    "NtpsError",
    "ScoreResult",
    "Task",
    "__version__",
    "autoregressive_encoder",
    "collect",
    "collect_moments",
    "list_models",
    "list_tasks",
    "load_model",
    "load_task",
    "ntps_table",
    "perception_encoder",
    "permutation_null",
    "read_layer",
    "score",
    "solve_layer",
]
