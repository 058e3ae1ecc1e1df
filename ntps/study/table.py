"""One row of a study's table: a cell at one layer, with its control and its gain."""

import math
from typing import Any

from ntps._files import picked
from ntps.scoring.results import share_above_chance
from ntps.study.records import PROBE, SCORED, GainRecord, ScoreRecord

COUNTS = ("n_texts", "n_scored", "n_probed", "n_tokens", "n_classes")
CHOSEN = ("ntps", "explained", "retained", "explained_heldout")  # predictors with a rank and layer to choose
OFFICIAL = "ntps_official"  # the released code's scores, with a fraction and layer to choose
TRAINING = ("training_accuracy", "training_error")  # of the released code's probes
PREDICTORS = {
    "ntps": "NTPS at the default rank",
    "above_chance": "(NTPS - k/d) / (1 - k/d)",
    "ntps_z": "NTPS against shuffled labels, in standard deviations",
    "explained": "share of label variance explained through V, in sample",
    "explained_heldout": "the same on held-out folds",
    "explained_gain": "explained_heldout minus that of random weights",
    "retained": "explained / ceiling",
    "ceiling_heldout": "share that all directions explain on held-out folds",
    "logme": "LogME",
    "hscore": "H-score",
    "hscore_shrunk": "H-score with Ledoit-Wolf shrinkage",
    "knn": "accuracy of 5 nearest neighbours above the majority rate",
}
GAIN_PREDICTORS = {
    **PREDICTORS,
    "accuracy": "accuracy of the linear probe of the last layer",
    "held_back": "held-out R^2 of the layer that is best on other folds minus that of the last layer",
    "saved": "validation loss that the first 20 steps of training save, in nats; 0 where they save none",
}
GAINS = {
    "saved": GAIN_PREDICTORS["saved"],
    "tuned": "1 if weights of the training were kept; 0 if the head that training starts from was, and nothing changed",
    "gain": "accuracy after LoRA minus that of the frozen probe, on the same test texts; 0 where that probe was kept",
    "gain_se": "its standard error, paired over test texts",
    "accuracy_before": "accuracy of the frozen probe on the test texts",
    "accuracy_after": "accuracy after LoRA on the test texts",
    "ntps_change": "NTPS after minus before, on the test texts, at the layer read; missing where not tuned",
    "explained_change": "the same of the share explained on held-out folds",
    "ceiling_change": "the same of the ceiling on held-out folds",
    "next_token_change": "next-token loss after minus before, nats per token",
}
CHANGES = ("ntps_change", "explained_change", "ceiling_change", "next_token_change")  # those of tuned cells
MEASURES = {
    "logme": "logme",
    "hscore": "h_score",
    "hscore_shrunk": "h_score_shrunk",
    "knn": "knn_above_majority",
}  # columns, and the measures of the layer read that they show
RANDOM = ("ntps", "explained", "explained_heldout", "retained", "ceiling_heldout")


def score_row(score: ScoreRecord, control: ScoreRecord | None, depth: float) -> dict[str, Any]:
    """Return the columns of a model's scores on a task.

    Args:
        score: Record of the pretrained model.
        control: Record of random weights; without it the columns that need it are left out.
        depth: Share of the depth at which scores and measures are read; a layer whose measures were not taken has NaN.
    """
    layer = score.at_depth(depth)
    row = picked(score, *COUNTS) | picked(layer, *SCORED)
    row["held_back"] = score.held_back
    row["above_chance"] = share_above_chance(layer.ntps, layer.chance)
    row |= picked(layer, "ntps_z", "ntps_p", "ceiling_heldout_z", "ceiling_heldout_p")
    for name, (low, high) in layer.intervals.items():
        row |= {f"{name}_low": low, f"{name}_high": high}
    measures = layer.measures or {}
    row |= {column: measures.get(name, math.nan) for column, name in MEASURES.items()}
    row |= {name: score.probe[name] for name in (*PROBE, *TRAINING) if name in score.probe}
    if control is not None:
        control_layer = control.at_depth(depth)
        row |= {f"{name}_random": getattr(control_layer, name) for name in RANDOM}
        row["explained_gain"] = layer.explained_heldout - control_layer.explained_heldout
        row |= {f"{name}_random": control.probe[name] for name in ("balanced_accuracy", "r2")}
    return row


def gain_row(gain: GainRecord | None, layer: int | None) -> dict[str, Any]:
    """Return the columns `GAINS`: all NaN where there is no gain, `CHANGES` where nothing was tuned or scored.

    Args:
        gain: What fine-tuning gained.
        layer: Layer at which the row's scores are read; `None` where scoring failed.

    Raises:
        NtpsError: If the layer was not scored before and after fine-tuning.
    """
    if gain is None:
        return dict.fromkeys(GAINS, math.nan)
    row = dict.fromkeys(GAINS, math.nan) | {
        **picked(gain, "saved", "gain", "accuracy_before", "accuracy_after"),
        "tuned": float(gain.best_step > 0),
        "gain_se": gain.standard_error,
    }
    tuned = None if layer is None else gain.at(layer)
    if gain.best_step == 0:
        return row
    row["next_token_change"] = gain.next_token_loss_after - gain.next_token_loss_before
    if tuned is not None:
        row["ntps_change"] = tuned.after.ntps - tuned.before.ntps
        row["explained_change"] = tuned.after.explained_heldout - tuned.before.explained_heldout
        row["ceiling_change"] = tuned.after.ceiling_heldout - tuned.before.ceiling_heldout
    return row


def is_number(column: Any) -> bool:
    """Return whether a column of the table holds numbers."""
    return getattr(column.dtype, "kind", "O") in "if"
