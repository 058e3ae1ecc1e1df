"""From representations and labels to numbers, and what to read them against."""

from ntps.scoring.intervals import Interval, layer_intervals
from ntps.scoring.labels import Labels, assign_folds, labels_of
from ntps.scoring.measures import h_score, logme, reduced_rank_r2, spectrum
from ntps.scoring.nulls import LayerNull, Null, layer_null
from ntps.scoring.probes import knn_accuracy, linear_probe, training_probe
from ntps.scoring.reading import read_layer
from ntps.scoring.readouts import Comparison, Readout, tied_groups
from ntps.scoring.results import Best, LayerScore, ScoreResult
from ntps.scoring.scores import ScoreSettings, compare, jackknife, permutation_null, score, score_layers, score_task

__all__ = [
    "Best",
    "Comparison",
    "Interval",
    "Labels",
    "LayerNull",
    "LayerScore",
    "Null",
    "Readout",
    "ScoreResult",
    "ScoreSettings",
    "assign_folds",
    "compare",
    "h_score",
    "jackknife",
    "knn_accuracy",
    "labels_of",
    "layer_intervals",
    "layer_null",
    "linear_probe",
    "logme",
    "permutation_null",
    "read_layer",
    "reduced_rank_r2",
    "score",
    "score_layers",
    "score_task",
    "spectrum",
    "tied_groups",
    "training_probe",
]
