"""Predict the gain of LoRA from scores known before fine-tuning, and judge it on tasks and models left out.

Rank correlation is not prediction: it ignores the size of a gain, and gains fall with probe accuracy anyway (there is
less left to gain). So a small regression is fitted without the task, the model, or both, and its mean absolute error
is set beside that of predictors that need no score: first of predicting no gain at all.
"""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ntps.errors import NtpsError, in_range, one_of
from ntps.study.table import CHANGES

if TYPE_CHECKING:
    import pandas as pd

INPUTS = {
    "zero": "predict no gain",
    "mean": "the mean gain of the other cells",
    "accuracy": "linear in the probe's accuracy",
    "ntps": "linear in the score, standardised over tasks within each model (levels of models do not compare)",
    "ntps_raw": "linear in the raw score",
    "accuracy + ntps": "linear in both",
}
OVER = ("task", "model", "both")
STUDY_INPUTS = {  # further inputs that a study has: columns of its table, linear in each
    "accuracy + explained": ("accuracy", "explained_heldout"),
    "accuracy + ceiling": ("accuracy", "ceiling_heldout"),
    "accuracy + held back": ("accuracy", "held_back"),
    "accuracy + saved": ("accuracy", "saved"),
    "accuracy + held back + explained": ("accuracy", "held_back", "explained_heldout"),
}


def to_grid(frame: "pd.DataFrame", column: str) -> np.ndarray:
    """Return one column as a complete (models, data sets) array, both in order of first appearance.

    Args:
        frame: Table with the columns `model`, `dataset` and `column`.
        column: Name of the column.

    Raises:
        NtpsError: If a column is missing, or a model lacks a data set or has it twice.
    """
    for name in ("model", "dataset", column):
        if name not in frame.columns:
            raise NtpsError(f"the table has no column {name!r}; it has: {', '.join(map(str, frame.columns))}.")
    models, datasets = frame["model"].unique(), frame["dataset"].unique()
    counts = frame.groupby(["model", "dataset"]).size()
    if len(frame) != len(models) * len(datasets) or not (counts == 1).all():
        raise NtpsError("the table must hold every model with every dataset exactly once.")
    wide = frame.set_index(["model", "dataset"])[column].unstack()
    return wide.loc[models, datasets].to_numpy(dtype=float)


def gain_frame(frame: "pd.DataFrame") -> "pd.DataFrame":
    """Return the rows of a study's table (`Study.frame`) that have a gain, averaged over seeds, `task` as `dataset`.

    Raises:
        NtpsError: If it has no column `gain`.
    """
    if "gain" not in frame:
        raise NtpsError("the table has no column 'gain'; run the study with lora=TrainSettings(), which adds it.")
    numbers = frame.dropna(subset=["gain"]).rename(columns={"task": "dataset"}).drop(columns=["status", "reason"])
    return numbers.groupby(["model", "dataset"], sort=False).mean().reset_index()


def tuned_changes(frame: "pd.DataFrame") -> dict[str, Any]:
    """Return what training changed where any of it was kept; cells that kept the start are only counted.

    Args:
        frame: `Study.frame()` of a study with gains.

    Returns:
        `n_cells`, `n_tuned`, `n_tasks` (those with a tuned cell), and for `gain` and each of `CHANGES` the `mean` over
        tasks of the mean over their tuned cells, with `low` and `high`, a 95 % t interval over tasks.
    """
    cells = frame.dropna(subset=["gain"])
    tuned = cells[cells["tuned"] > 0]
    by_task = tuned.groupby("task")[["gain", *CHANGES]].mean()
    means = {str(name): mean_of_tasks(by_task[name].dropna().to_numpy()) for name in by_task}
    return {"n_cells": len(cells), "n_tuned": len(tuned), "n_tasks": len(by_task), **means}


def mean_of_tasks(values: np.ndarray) -> dict[str, float]:
    """Return `mean`, `low` and `high` of one value per task: a 95 % t interval, NaN for fewer than two tasks."""
    from scipy.stats import t

    n = len(values)
    mean = float(values.mean()) if n else math.nan
    half = float(t.ppf(0.975, n - 1) * values.std(ddof=1) / math.sqrt(n)) if n > 1 else math.nan
    return {"mean": mean, "low": mean - half, "high": mean + half}


def gain_prediction(
    frame: "pd.DataFrame",
    *,
    over: str = "task",
    score: str = "ntps_gain",
    accuracy: str = "linear_accuracy",
    inputs: Mapping[str, Sequence[str]] | None = None,
    confidence: float = 0.95,
    n_bootstrap: int = 2000,
    random_state: int = 0,
) -> "pd.DataFrame":
    """Return the errors of predicting the gain of left-out tasks or models, beside those of baselines.

    Predictions are least squares on all cells but those left out. `over="task"` leaves one task out in all models,
    `"model"` one model with all its tasks (the other models have seen the same tasks), and `"both"` predicts each cell
    from cells that share neither its task nor its model. The score is standardised within a model over all tasks,
    left-out ones included: scores are known before any fine-tuning, and no gain is used. Intervals are by bootstrap
    over tasks with everything refitted (a task drawn twice counts twice in fit and in error, and is left out as one);
    with 12 tasks such percentile intervals are somewhat narrow. If the score's rank and layer were themselves chosen
    with the gains of all cells in sight, as in the paper's figures, its error is optimistic, and a margin over the
    baseline is not evidence.

    Args:
        frame: Complete table with columns `model`, `dataset`, `gain` and the two named next, such as `gain_frame`'s.
        over: `"task"`, `"model"` or `"both"`.
        score: Name of the column of the score before fine-tuning.
        accuracy: Name of the column of the probe's accuracy before fine-tuning.
        inputs: Further regressions, as a mapping from names to columns; `STUDY_INPUTS` for a study.
        confidence: Level of the intervals.
        n_bootstrap: Number of bootstrap samples.
        random_state: Seed of the bootstrap.

    Returns:
        A frame indexed by input (`INPUTS` and `inputs`): `mae`, `low`, `high`; `margin` = MAE of predicting no gain
        minus this one (positive is better), `margin_low`, `margin_high`; and `margin_to_mean` and
        `margin_to_accuracy`, the same to the mean gain and to the regression on accuracy.

    Raises:
        NtpsError: If columns or cells are missing, or there are fewer than four tasks or (for models) two models.
    """
    import pandas as pd

    one_of(over, OVER, "over")
    in_range(n_bootstrap, 1, None, "n_bootstrap")
    in_range(confidence, 0.5, 0.999, "confidence")
    target, x, a = to_grid(frame, "gain"), to_grid(frame, score), to_grid(frame, accuracy)
    m, t = target.shape
    if t < 4 or (over != "task" and m < 2):
        raise NtpsError(f"{m} models and {t} tasks are too few to leave one out; give at least 4 tasks and 2 models.")
    spread = x.std(1, keepdims=True)
    z = np.divide(x - x.mean(1, keepdims=True), spread, out=np.zeros_like(x), where=spread > 0)
    one = np.ones_like(x)
    designs = {
        "mean": [one],
        "accuracy": [one, a],
        "ntps": [one, z],
        "ntps_raw": [one, x],
        "accuracy + ntps": [one, a, z],
    }
    for name, columns in (inputs or {}).items():
        designs[name] = [one, *(to_grid(frame, column) for column in columns)]
    rng = np.random.default_rng(random_state)
    weights = np.vstack([np.ones(t), rng.multinomial(t, np.full(t, 1 / t), size=n_bootstrap)]).astype(float)
    weights = weights[(weights > 0).sum(1) >= 3]  # a sample of fewer different tasks cannot be fitted with one left out
    errors = {"zero": np.abs(np.broadcast_to(target, (len(weights), m, t)))}
    for name, design in designs.items():
        errors[name] = np.abs(_predict(np.stack(design, -1), target, weights, over) - target)
    mae = {name: (e.mean(1) * weights).sum(1) / weights.sum(1) for name, e in errors.items()}
    rows = {}
    for name, values in mae.items():
        low, high = _interval(values[1:], confidence)
        row = {"mae": values[0], "low": low, "high": high}
        for label, baseline in (("margin", "zero"), ("margin_to_mean", "mean"), ("margin_to_accuracy", "accuracy")):
            difference = mae[baseline] - values
            low, high = _interval(difference[1:], confidence)
            row |= {label: difference[0], f"{label}_low": low, f"{label}_high": high}
        rows[name] = row
    table = pd.DataFrame.from_dict(rows, orient="index").loc[[*INPUTS, *(inputs or {})]].rename_axis("inputs")
    table.attrs.update(over=over, source=frame.attrs.get("source", ""))
    return table


def _predict(design: np.ndarray, target: np.ndarray, weights: np.ndarray, over: str) -> np.ndarray:
    """Predictions (B, models, tasks) for designs (models, tasks, p) under task weights (B, tasks).

    Normal equations add over cells, so leaving out is a subtraction. A vanishing ridge covers a constant column.
    """
    gram = np.einsum("mtp,mtq->mtpq", design, design)
    moment = design * target[..., None]
    if over == "model":
        g, h = np.einsum("bt,mtpq->bmpq", weights, gram), np.einsum("bt,mtp->bmp", weights, moment)
        coefficients = _solve(g.sum(1, keepdims=True) - g, h.sum(1, keepdims=True) - h)[:, :, None]
    elif over == "task":
        g, h = weights[..., None, None] * gram.sum(0), weights[..., None] * moment.sum(0)
        coefficients = _solve(g.sum(1, keepdims=True) - g, h.sum(1, keepdims=True) - h)[:, None]
    else:
        g, h = weights[:, None, :, None, None] * gram, weights[:, None, :, None] * moment
        g = g.sum((1, 2), keepdims=True) - g.sum(1, keepdims=True) - g.sum(2, keepdims=True) + g
        h = h.sum((1, 2), keepdims=True) - h.sum(1, keepdims=True) - h.sum(2, keepdims=True) + h
        coefficients = _solve(g, h)
    return (coefficients * design).sum(-1)


def _solve(gram: np.ndarray, moment: np.ndarray) -> np.ndarray:
    size = np.trace(gram, axis1=-2, axis2=-1)[..., None, None]
    return np.linalg.solve(gram + 1e-12 * size * np.eye(gram.shape[-1]), moment[..., None])[..., 0]


def _interval(values: np.ndarray, confidence: float) -> tuple[float, float]:
    if not len(values):
        return math.nan, math.nan
    low, high = np.quantile(values, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)
