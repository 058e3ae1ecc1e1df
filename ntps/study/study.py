"""Studies of models by tasks: resumable, with correlations that state how rank and layer were chosen.

    study = run_study(["miniworld-base", "miniworld-base@step150"], ["miniworld/topic", ...], output="study")
    study.frame()           # one row per model and task: scores, nulls, intervals, control, measures, accuracy
    study.correlations()    # one entry per predictor, with what its rank and layer were chosen on

The target, which scores are to predict, is the cross-validated balanced accuracy of a linear probe of the last layer:
one number per model and task, whatever layer and rank the score is read at. The probe reads one half of the texts, the
scores read the other. Accuracy above the majority rate, a common target, falls as one class outweighs the others,
however well the probe tells them apart.
"""

import itertools
import math
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ntps._files import json_text, jsonable, picked
from ntps._processes import alone, is_main_process, refuse_processes, world
from ntps._version import __version__
from ntps.core.official import FRACTIONS
from ntps.errors import NtpsError, in_range, one_of, whole
from ntps.models.load import find_device
from ntps.study.cells import CellStore, run_cells
from ntps.study.correlations import grid_spearman, spearman
from ntps.study.gain import OVER, STUDY_INPUTS, gain_frame, gain_prediction, tuned_changes
from ntps.study.grid import make_grid
from ntps.study.measure import StudySettings
from ntps.study.records import SHARES, CellResult, GainRecord, ScoreRecord
from ntps.study.selection import leave_one_out_selection, select_and_correlate
from ntps.study.table import (
    CHOSEN,
    GAIN_PREDICTORS,
    OFFICIAL,
    PREDICTORS,
    TRAINING,
    gain_row,
    is_number,
    score_row,
)  # fmt: skip
from ntps.tasks import Task, TaskSource

if TYPE_CHECKING:
    import pandas as pd

    from ntps.finetune.settings import TrainSettings

SCHEMA_VERSION = 1
DEPTH = 0.5  # of the layer that is read by default; see benchmarks/default_quantity.py
OPTION_DEPTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
TARGET = "balanced_accuracy"
TARGETS = (TARGET, "r2", "accuracy", "macro_f1", "above_majority", "gain", *TRAINING)
MIN_TASKS = 4
MAX_HELD_OUT_PERMUTATIONS = 499  # each repeats the whole choice


@dataclass(frozen=True, kw_only=True)
class Study:
    """The results of a grid of models by tasks, with tables and correlations.

    Attributes:
        cells: One result per cell, in the grid's order.
        models: Names of the models, in the order given.
        tasks: Names of the tasks, in the order given.
        settings: Settings of the cells.
        lora: Settings of fine-tuning for the gains; `None` without gains.
    """

    cells: tuple[CellResult, ...]
    models: tuple[str, ...]
    tasks: tuple[str, ...]
    settings: StudySettings
    lora: "TrainSettings | None" = None

    @cached_property
    def _scores(self) -> dict[tuple[str, str, int, bool], ScoreRecord]:
        """Scores by model, task, seed and whether the weights are random."""
        return {(c.model, c.task, c.seed, c.control): c.score for c in self.cells if c.done and c.score is not None}

    @cached_property
    def _gains(self) -> dict[tuple[str, str, int], GainRecord]:
        """Gains by model, task and seed."""
        return {(c.model, c.task, c.seed): c.gain for c in self.cells if c.done and c.gain is not None}

    @cached_property
    def _frames(self) -> dict[float, "pd.DataFrame"]:
        """Tables by depth, each built once."""
        return {}

    def frame(self, *, depth: float = DEPTH) -> "pd.DataFrame":
        """Return one row per model, task and seed, read at the default rank of the layer at a share of the depth.

        Columns: `PREDICTORS` (`explained_gain` and `*_random` with controls), low and high ends of the intervals,
        p-values of the null, and, from the other half of the texts, the probe's results at the last layer. With gains
        also `GAINS`.

        Args:
            depth: Share of the depth, in [0, 1].

        Raises:
            NtpsError: If `depth` is out of range, or the study has gains and that layer was not scored with them.
        """
        return self._frame(depth).copy()

    def _frame(self, depth: float) -> "pd.DataFrame":
        import pandas as pd

        in_range(depth, 0, 1, "depth")
        if depth not in self._frames:
            cells = [cell for cell in self.cells if cell.kind == "score" and not cell.control]
            self._frames[depth] = pd.DataFrame([self._row(cell, depth) for cell in cells])
        return self._frames[depth]

    def _row(self, cell: CellResult, depth: float) -> dict[str, Any]:
        row: dict[str, Any] = picked(cell, "model", "task", "seed", "status", "reason")
        if cell.score is not None:
            row |= score_row(cell.score, self._scores.get((cell.model, cell.task, cell.seed, True)), depth)
        if self.lora is None:
            return row
        return row | gain_row(self._gains.get((cell.model, cell.task, cell.seed)), row.get("layer"))

    def table(self, column: str, *, depth: float = DEPTH) -> "pd.DataFrame":
        """Return one column of `frame`, averaged over seeds, one row per model and one column per task; NaN if missing.

        Raises:
            NtpsError: If there is no such column of numbers.
        """
        frame = self._frame(depth)
        one_of(column, [name for name in frame.columns if is_number(frame[name])], "column")
        wide = frame.pivot_table(index="model", columns="task", values=column, dropna=False)
        return wide.reindex(index=list(self.models), columns=list(self.tasks))

    def usable(self, *, target: str = TARGET) -> tuple[list[str], list[str]]:
        """Return models and tasks of a full grid: models with at least half of their cells, and the tasks they share.

        Raises:
            NtpsError: If fewer than four tasks remain: a correlation of three points says nothing.
        """
        known = np.isfinite(self.table(target).to_numpy(dtype=float))
        models = known.sum(1) * 2 >= known.shape[1]
        tasks = known[models].all(0) if models.any() else np.zeros(known.shape[1], dtype=bool)
        if tasks.sum() < MIN_TASKS:
            raise NtpsError(
                f"{int(tasks.sum())} tasks have results for every model; correlations need at least {MIN_TASKS}, and "
                "about a dozen for a useful interval. The cells are kept: add tasks and run again."
            )
        names = [name for name, usable in zip(self.models, models, strict=True) if usable]
        return names, [name for name, usable in zip(self.tasks, tasks, strict=True) if usable]

    def options(self, quantity: str, *, target: str = TARGET) -> tuple[np.ndarray, list[dict[str, float]]]:
        """Return values (options, models, tasks) at every depth and rank of `SHARES`, and the options.

        Depth and rank are shares of the model's own, so that an option means the same in each model. Values are
        rounded to six decimals: at full rank NTPS is 1 up to rounding, and ranks of rounding errors mean nothing.

        Args:
            quantity: One of `CHOSEN`, or `"ntps_official"`, whose options are depths and the released code's fractions,
                without those at which some model has no direction on some task.
            target: As in `usable`, which says which models and tasks there are; without a score, values are NaN.

        Raises:
            NtpsError: If the quantity is unknown, or fewer than four tasks are usable.
        """
        official = quantity == OFFICIAL
        one_of(quantity, CHOSEN if self.settings.convention == "theory" else (*CHOSEN, OFFICIAL), "quantity")
        models, tasks = self.usable(target=target)
        shares = [("fraction", share) for share in FRACTIONS] if official else [("share", share) for share in SHARES]
        options = [{"depth": depth, name: share} for depth in OPTION_DEPTHS for name, share in shares]
        values = np.full((len(options), len(models), len(tasks)), math.nan)
        for i, model in enumerate(models):
            for j, task in enumerate(tasks):
                by_seed = []
                for seed in range(self.settings.seeds):
                    score = self._scores.get((model, task, seed, False))
                    if score is not None:
                        layers = [score.at_depth(depth) for depth in OPTION_DEPTHS]
                        by_seed.append(
                            np.ravel([x.official if official else getattr(x.profile, quantity) for x in layers])
                        )
                if by_seed:
                    values[:, i, j] = np.mean(by_seed, axis=0).round(6)
        if official:
            known = np.isfinite(values).all((1, 2))
            values, options = values[known], [option for option, kept in zip(options, known, strict=True) if kept]
        return values, options

    def correlations(
        self, *, target: str = TARGET, depth: float = DEPTH, n_permutations: int = 1999
    ) -> dict[str, dict[str, Any]]:
        """Return rank correlations of predictors with the target, over tasks within models.

        Keys: a predictor's name for the fixed default (`selected_on: "fixed"`); for those with a rank and layer to
        choose also `NAME:same_tasks` (chosen per model on the tasks it is judged on, as the paper does, with the null
        that repeats the choice), `NAME:held_out_task` and `NAME:held_out_model` (both `selected_on: "held_out"`).

        Each entry has `spearman`, `interval`, `p_value`, `selected_on`, `target`; fixed ones also `kendall`,
        `kendall_interval`, `kendall_p_value`, and `per_model` the same for each model. With several models the number
        is the mean over models, and the null permutes tasks in all models alike: they share the tasks, of which `n` are
        independent, not `n` times `n_models`. Fixed ones of another target than R^2 and the gain have `spearman_r2`
        beside it, the correlation with the probe's R^2.

        Args:
            target: One of `TARGETS`.
            depth: Share of the depth at which fixed predictors are read.
            n_permutations: Number of random permutations for each null.

        Raises:
            NtpsError: If fewer than four tasks are complete, the target is unknown, or it is the gain and there is
                none.
        """
        one_of(target, TARGETS, "target")
        if target == "gain":
            self._need_gains()
        if target in TRAINING and self.settings.convention != "official":
            raise NtpsError(f"target {target!r} is measured with convention='official'.")
        models, tasks = self.usable(target=target)
        targets = self.table(target, depth=depth).loc[models, tasks].to_numpy(dtype=float)
        options: dict[str, Any] = {"n_permutations": n_permutations}
        beside = None
        if target not in ("r2", "gain"):
            beside = self.table("r2", depth=depth).loc[models, tasks].to_numpy(dtype=float)
        entries: dict[str, dict[str, Any]] = {}
        frame = self._frame(depth)
        for name in GAIN_PREDICTORS if target == "gain" else PREDICTORS:
            if name not in frame or not is_number(frame[name]):
                continue
            values = self.table(name, depth=depth).loc[models, tasks].to_numpy(dtype=float)
            if not np.isfinite(values).all():
                continue
            overall = grid_spearman(values, targets, **options).to_dict()
            per_model = {}
            for model, x, y in zip(models, values, targets, strict=True):
                per_model[model] = spearman(x, y, **options).to_dict()
            extra = {"n": len(tasks), "n_models": len(models), "per_model": per_model}
            extra |= {key: overall[key] for key in ("kendall", "kendall_interval", "kendall_p_value", "reason")}
            if beside is not None:
                extra["spearman_r2"] = grid_spearman(values, beside, n_permutations=1).to_dict()["spearman"]
            entries[name] = _entry(overall, "fixed", target, {**extra, "depth": depth})
        for name in CHOSEN:
            if name in entries:
                entries |= self._chosen(name, targets, target, options)
        if self.settings.convention == "official":
            entries |= self._chosen(OFFICIAL, targets, target, options)
        return entries

    def _chosen(
        self, name: str, targets: np.ndarray, target: str, options: dict[str, Any]
    ) -> dict[str, dict[str, Any]]:
        """Return the entries of a predictor whose rank and layer were chosen."""
        values, names = self.options(name, target=target)
        if not np.isfinite(values).all():
            return {}
        same = select_and_correlate(values, targets, per_model=True, **options).to_dict()
        same["options"] = [names[option] for option in same["options"]]
        entries = {f"{name}:same_tasks": _entry(same, "same_tasks", target, same)}
        options = {**options, "n_permutations": min(options["n_permutations"], MAX_HELD_OUT_PERMUTATIONS)}
        for over, enough in (("task", targets.shape[1] >= 5), ("model", targets.shape[0] >= 2)):
            if enough:
                held_out = leave_one_out_selection(values, targets, over=over, **options).to_dict()
                held_out["options"] = [names[option] for option in held_out["options"]]
                entries[f"{name}:held_out_{over}"] = _entry(held_out, "held_out", target, held_out)
        return entries

    def to_dict(self, *, target: str = TARGET, n_permutations: int = 1999) -> dict[str, Any]:
        """Return JSON values, which do not depend on how often the study was stopped or how long it took.

        With fewer than four complete tasks `correlations` is empty and `refused` says why.

        Args:
            target: One of `TARGETS`.
            n_permutations: Number of random permutations for each null.
        """
        try:
            correlations, refused = self.correlations(target=target, n_permutations=n_permutations), None
        except NtpsError as error:
            correlations, refused = {}, str(error)
        return jsonable(
            {
                "schema_version": SCHEMA_VERSION,
                "kind": "ntps-study",
                "version": __version__,
                **picked(self, "models", "tasks"),
                "seeds": self.settings.seeds,
                "settings": self.settings,
                "target": target,
                "cells": [cell.position | picked(cell, "status", "reason") for cell in self.cells],
                "rows": self._frame(DEPTH).to_dict("records"),
                "correlations": correlations,
                "refused": refused,
                "gain": None if self.lora is None else self._gain_evidence(self.lora, n_permutations),
            }
        )

    def gain_errors(self, *, over: str = "task") -> "pd.DataFrame":
        """Return how well gains are predicted for tasks or models left out, seeds averaged: `gain_prediction`.

        Args:
            over: `"task"`, `"model"` or `"both"`.

        Raises:
            NtpsError: If there are no gains, or too few models or tasks.
        """
        self._need_gains()
        models, tasks = self.usable(target="gain")
        frame = gain_frame(self._frame(DEPTH))
        frame = frame[frame["model"].isin(models) & frame["dataset"].isin(tasks)]
        columns = {"ntps", "accuracy", *itertools.chain.from_iterable(STUDY_INPUTS.values())}
        known = frame[sorted(columns)].notna().all(axis=1)  # a score may have failed where the gain did not
        frame = frame[frame["dataset"].isin(set(frame["dataset"]) - set(frame.loc[~known, "dataset"]))]
        return gain_prediction(frame, over=over, score="ntps", accuracy="accuracy", inputs=STUDY_INPUTS)

    def _need_gains(self) -> None:
        if self.lora is None:
            raise NtpsError("this study has no gains; run it again with lora=TrainSettings().")

    def _gain_evidence(self, lora: "TrainSettings", n_permutations: int) -> dict[str, Any]:
        """Return changes, correlations with the gain and errors of its prediction, or why there are none."""
        evidence: dict[str, Any] = {"settings": lora.to_dict(), "changes": tuned_changes(self._frame(DEPTH))}
        evidence |= {"correlations": {}, "errors": {}, "refused": None}
        gains = self._frame(DEPTH)["gain"].dropna()
        if len(gains) and gains.nunique() == 1:
            return evidence | {"refused": f"Every gain is {gains.iloc[0]:+z.3f}: there is nothing to predict."}
        try:
            evidence["correlations"] = self.correlations(target="gain", n_permutations=n_permutations)
            for over in OVER if len(self.models) > 1 else OVER[:1]:
                evidence["errors"][over] = self.gain_errors(over=over).to_dict("index")
        except NtpsError as error:
            return evidence | {"refused": str(error)}
        return evidence

    def to_json(self, *, target: str = TARGET, n_permutations: int = 1999) -> str:
        """Return `to_dict()` as JSON text."""
        return json_text(self.to_dict(target=target, n_permutations=n_permutations))


def run_study(
    models: Sequence[str],
    tasks: Sequence[str | Task | TaskSource],
    *,
    output: str | Path,
    settings: StudySettings | None = None,
    lora: "TrainSettings | None" = None,
    device: str | None = None,
    batch_size: int = 32,
    executor: Executor | None = None,
    progress: bool | None = None,
) -> Study:
    """Compute the missing cells of a grid, and return the study.

    Any number of processes, on any machines that see the folder, may run the same study or others in it: each computes
    cells that no other is computing, and all return the whole study. torchrun may start them, each then on its own GPU.

    Args:
        models: Names or directories, each once.
        tasks: Names and files, as `NAME=PATH:OPTION,...` (see `ntps.tasks.TaskSource`), or `Task` objects, with
            different names.
        output: Folder whose `cells/` keeps every cell, so that the study can be stopped and resumed at any time.
        settings: See `StudySettings`; its defaults when `None`.
        lora: Settings with which also to fine-tune every model on every task, for the gains.
        device: As in `ntps.load_model`.
        batch_size: As in `ntps.collect`.
        executor: Whose workers compute the cells, each with a network of its own; by default this process does. Any
            executor will do whose workers see `output`, models and weights under the same names and have the same
            version of ntps (see `study_executor`). Cells that it loses are computed here: the result is the same.
        progress: Whether to show a progress bar on stderr; by default when it is a terminal. Of several processes under
            torchrun the first one shows it.

    Raises:
        NtpsError: If an option is out of range, a name is given twice, the folder cannot be written, a worker has
            another version of ntps or does not see the folder, torchrun and an executor both divide the cells, or every
            cell failed.
    """
    settings = settings or StudySettings()
    whole(batch_size, 1, None, "batch_size")
    if executor is not None:
        refuse_processes("a study with an executor")
    place = find_device(device)
    if world()[0] > 1:
        device = str(place)
        progress = progress if is_main_process() else False
    if not isinstance(executor, Executor | None):
        raise NtpsError(f"executor is a {type(executor).__name__}; give a concurrent.futures.Executor.")
    store = CellStore(output)
    lora = settings.training(lora)
    grid = make_grid(models, tasks, settings, lora=lora)
    if all(cell.reason for cell in grid.cells):  # nothing can be computed: say so at once
        raise NtpsError(grid.cells[0].reason)
    with alone():  # it computes whole cells, and takes no part in the passes of the others
        cells = run_cells(
            grid, store, settings, lora=lora, device=device, batch_size=batch_size, executor=executor, show=progress
        )
    if not any(cell.done for cell in cells):
        raise NtpsError(f"every cell failed; the first because: {cells[0].reason}")
    names = tuple(dict.fromkeys(cell.task for cell in cells))
    return Study(cells=tuple(cells), models=tuple(models), tasks=names, settings=settings, lora=lora)


def _entry(numbers: dict[str, Any], selected_on: str, target: str, extra: dict[str, Any]) -> dict[str, Any]:
    first = {name: numbers[name] for name in ("spearman", "interval", "p_value")}
    return {**first, "selected_on": selected_on, "target": target, **{k: v for k, v in extra.items() if k not in first}}
