"""One row of a study's table: what a cell says at one layer, beside its control."""

import math
from typing import Any

from ntps.measured import layer_at

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


def is_number(column: Any) -> bool:
    """Return whether a column of the table holds numbers."""
    return getattr(column.dtype, "kind", "O") in "if"


def _above_chance(ntps: float, chance: float) -> float:
    return (ntps - chance) / (1 - chance) if chance < 1 else math.nan


def _number(value: Any) -> Any:
    return math.nan if value is None else value
