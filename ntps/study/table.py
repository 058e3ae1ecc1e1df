"""One row of a study's table: what a cell says at one layer, beside its control."""

import math
from collections.abc import Sequence
from typing import Any

from ntps.models.plan import layer_at

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
    "ntps_change": "NTPS after minus before, on the test texts, at the layer read (at the last where it is not known)",
    "explained_change": "the same of the share explained on held-out folds",
    "ceiling_change": "the same of the ceiling on held-out folds",
    "next_token_change": "next-token loss after minus before, nats a token",
}
SCORES = ("layer", "d", "k_u", "k_v", "ntps", "chance", "explained", "explained_heldout", "retained", "ceiling_heldout")
PROBE = {
    "accuracy": "probe_accuracy",
    "accuracy_se": "probe_accuracy_se",
    "above_majority": "probe_above_majority",
    "balanced_accuracy": "probe_balanced_accuracy",
    "macro_f1": "probe_macro_f1",
    "r2": "probe_r2",
}
RANDOM = ("ntps", "explained", "explained_heldout", "retained", "ceiling_heldout")

Places = dict[tuple[str, str, int, bool], dict[str, Any]]


def row(cells: Places, content: dict[str, Any], depth: float) -> dict[str, Any]:
    """Return the row of a pretrained cell.

    Args:
        cells: All finished cells by model, task, seed and whether they are controls.
        content: The cell; without results when it failed or is missing.
        depth: Share of the depth at which the score is read; measures are given where they were taken there.
    """
    found: dict[str, Any] = {name: content.get(name) for name in ("model", "task", "seed", "status", "reason")}
    if content["status"] != "done":
        return found
    score = content["score"]
    layer = score["layers"][layer_at(depth, len(score["layers"]))]
    last = content["measures"][str(score["layers"][-1]["layer"])]
    found |= {name: score[name] for name in ("n_texts", "n_tokens", "n_classes")}
    found["majority_rate"] = last["majority_rate"]
    found |= {name: _number(layer[name]) for name in SCORES}
    ceilings = [_number(each["ceiling_heldout"]) for each in score["layers"]]
    found["held_back"] = held_back(ceilings)
    found["above_chance"] = _above_chance(found["ntps"], found["chance"])
    for name in ("ntps", "explained"):
        found[f"{name}_z"], found[f"{name}_p"] = (_number(layer["null"][name][key]) for key in ("z", "p_value"))
    for name, interval in layer["interval"].items():
        found[f"{name}_low"], found[f"{name}_high"] = _number(interval["low"]), _number(interval["high"])
    here = content["measures"].get(str(layer["layer"]), {})
    for name, key in (("logme", "logme"), ("hscore", "h_score"), ("hscore_shrunk", "h_score_shrunk")):
        found[name] = _number(here.get(key))
    found["reduced_rank"] = _number(here.get("rrr_r2_heldout"))
    found["knn"] = _number(here.get("knn_accuracy")) - _number(here.get("majority_rate"))
    found |= {name: _number(last[key]) for name, key in PROBE.items()}
    control = cells.get((content["model"], content["task"], content["seed"], True))
    if control is not None:
        fresh = control["score"]["layers"][layer_at(depth, len(score["layers"]))]
        found |= {f"{name}_random": _number(fresh[name]) for name in RANDOM}
        found["explained_gain"] = found["explained_heldout"] - found["explained_heldout_random"]
        measured = control["measures"][str(score["layers"][-1]["layer"])]
        found["above_majority_random"] = _number(measured["probe_above_majority"])
    return found


def held_back(ceilings: Sequence[float]) -> float:
    """Return by how much the best layer's ceiling exceeds the last one's, at least 0."""
    return max(ceilings) - ceilings[-1]


def gain_row(gain: dict[str, Any] | None, layer: int | None) -> dict[str, Any]:
    """Return the columns `GAINS` of a cell; all NaN where there is no gain.

    Args:
        gain: From `ntps.finetune.compare.fine_tune_gain`.
        layer: The layer at which the row's score is read.
    """
    if gain is None:
        return dict.fromkeys(GAINS, math.nan)
    layers = gain["layers"]
    sides = layers.get(str(layer), layers[max(layers, key=int)])

    def change(name: str) -> float:
        return float(_number(sides["after"][name]) - _number(sides["before"][name]))

    after, before = _number(gain["next_token_loss_after"]), _number(gain["next_token_loss_before"])
    return {
        "gain": gain["gain"],
        "gain_se": _number(gain["standard_error"]),
        "accuracy_before": gain["accuracy_before"],
        "accuracy_after": gain["accuracy_after"],
        "ntps_change": change("ntps"),
        "explained_change": change("explained_heldout"),
        "ceiling_change": change("ceiling_heldout"),
        "next_token_change": after - before,
    }


def is_number(column: Any) -> bool:
    """Return whether a column of the table holds numbers."""
    return getattr(column.dtype, "kind", "O") in "if"


def _above_chance(ntps: float, chance: float) -> float:
    return (ntps - chance) / (1 - chance) if chance < 1 else math.nan


def _number(value: Any) -> Any:
    return math.nan if value is None else value
