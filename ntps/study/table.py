"""One row of a study's table: a cell at one layer, with its control and its gain."""

import math
from collections.abc import Sequence
from typing import Any

from ntps.study.records import SCORED, GainRecord, ScoreRecord

CHOSEN = ("ntps", "explained", "retained", "explained_heldout")  # predictors with a rank and layer to choose
PREDICTORS = {
    "ntps": "NTPS at the default rank",
    "above_chance": "(NTPS - k/d) / (1 - k/d)",
    "ntps_z": "NTPS against shuffled labels, in standard deviations",
    "explained": "share of label variance explained through V, in sample",
    "explained_heldout": "the same on held-out folds",
    "explained_gain": "explained_heldout minus that of random weights",
    "retained": "explained / ceiling",
    "ceiling_heldout": "share that all directions explain on held-out folds",
    "reduced_rank": "reduced-rank regression on the pooled features, held-out R^2",
    "logme": "LogME",
    "hscore": "H-score",
    "hscore_shrunk": "H-score with Ledoit-Wolf shrinkage",
    "knn": "accuracy of 5 nearest neighbours above the majority rate",
}
GAIN_PREDICTORS = {
    **PREDICTORS,
    "accuracy": "accuracy of the linear probe of the last layer",
    "held_back": "ceiling on held-out folds of the best layer minus that of the last: what earlier layers know better",
}
GAINS = {
    "gain": "accuracy after LoRA minus that of the frozen probe, on the same test texts",
    "gain_se": "its standard error, paired over test texts",
    "accuracy_before": "accuracy of the frozen probe on the test texts",
    "accuracy_after": "accuracy after LoRA on the test texts",
    "ntps_change": "NTPS after minus before, on the test texts, at the layer read",
    "explained_change": "the same of the share explained on held-out folds",
    "ceiling_change": "the same of the ceiling on held-out folds",
    "next_token_change": "next-token loss after minus before, nats per token",
}
PROBE = {
    "accuracy": "probe_accuracy",
    "accuracy_se": "probe_accuracy_se",
    "above_majority": "probe_above_majority",
    "balanced_accuracy": "probe_balanced_accuracy",
    "macro_f1": "probe_macro_f1",
    "r2": "probe_r2",
}  # columns, and the measures of the last layer that they show
MEASURES = {
    "logme": "logme",
    "hscore": "h_score",
    "hscore_shrunk": "h_score_shrunk",
    "reduced_rank": "rrr_r2_heldout",
}  # the same of the layer read
RANDOM = ("ntps", "explained", "explained_heldout", "retained", "ceiling_heldout")


def score_row(score: ScoreRecord, control: ScoreRecord | None, depth: float) -> dict[str, Any]:
    """Return the columns of a model's scores on a task.

    Args:
        score: Record of the pretrained model.
        control: Record of random weights; without it the columns that need it are left out.
        depth: Share of the depth at which scores and measures are read; a layer whose measures were not taken has NaN.
    """
    layer, last = score.at_depth(depth), score.probe
    row: dict[str, Any] = {"n_texts": score.n_texts, "n_tokens": score.n_tokens, "n_classes": score.n_classes}
    row["majority_rate"] = last["majority_rate"]
    row |= {name: getattr(layer, name) for name in SCORED}
    row["held_back"] = held_back([each.ceiling_heldout for each in score.layers])
    row["above_chance"] = (layer.ntps - layer.chance) / (1 - layer.chance) if layer.chance < 1 else math.nan
    row |= {name: getattr(layer, name) for name in ("ntps_z", "ntps_p", "explained_z", "explained_p")}
    for name, (low, high) in layer.intervals.items():
        row |= {f"{name}_low": low, f"{name}_high": high}
    measures = layer.measures or {}
    row |= {column: measures.get(name, math.nan) for column, name in MEASURES.items()}
    row["knn"] = measures.get("knn_accuracy", math.nan) - measures.get("majority_rate", math.nan)
    row |= {column: last[name] for column, name in PROBE.items()}
    if control is not None:
        random_layer = control.at_depth(depth)
        row |= {f"{name}_random": getattr(random_layer, name) for name in RANDOM}
        row["explained_gain"] = layer.explained_heldout - random_layer.explained_heldout
        row["above_majority_random"] = control.probe["probe_above_majority"]
    return row


def gain_row(gain: GainRecord | None, layer: int | None) -> dict[str, Any]:
    """Return the columns `GAINS`; all NaN where there is no gain, and changes of scores where there is no layer.

    Args:
        gain: What fine-tuning gained.
        layer: Layer at which the row's scores are read; `None` where scoring failed.

    Raises:
        NtpsError: If the layer was not scored before and after fine-tuning.
    """
    if gain is None:
        return dict.fromkeys(GAINS, math.nan)
    row = dict.fromkeys(GAINS, math.nan) | {
        "gain": gain.gain,
        "gain_se": gain.standard_error,
        "accuracy_before": gain.accuracy_before,
        "accuracy_after": gain.accuracy_after,
        "next_token_change": gain.next_token_loss_after - gain.next_token_loss_before,
    }
    if layer is not None:
        tuned = gain.at(layer)
        row["ntps_change"] = tuned.after.ntps - tuned.before.ntps
        row["explained_change"] = tuned.after.explained_heldout - tuned.before.explained_heldout
        row["ceiling_change"] = tuned.after.ceiling_heldout - tuned.before.ceiling_heldout
    return row


def held_back(ceilings: Sequence[float]) -> float:
    """Return by how much the best layer's ceiling exceeds the last one's, at least 0."""
    return max(ceilings) - ceilings[-1]


def is_number(column: Any) -> bool:
    """Return whether a column of the table holds numbers."""
    return getattr(column.dtype, "kind", "O") in "if"
