"""Studies: models by tasks, resumable, and correlations that say how rank and layer were chosen.

    study = run_study(["miniworld-base", "miniworld-base@step100"], ["miniworld/topic", ...], output="study")
    study.frame()           # one row a model and task: scores, nulls, intervals, control, measures, accuracy
    study.correlations()    # an entry a predictor, with what its rank and layer were chosen on

What is predicted (the target) is the cross-validated accuracy of a linear probe of the last layer above the majority
rate: one number for a model and task, whatever layer and rank the score is read at.
"""

import json
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from ntps._files import jsonable
from ntps._version import __version__
from ntps.errors import NtpsError, in_range, one_of
from ntps.finetune.settings import TrainSettings
from ntps.models.plan import layer_at
from ntps.study.cells import Cell, Grid, make_grid, read_cell, run_cells
from ntps.study.gain import OVER, STUDY_INPUTS, gain_frame, gain_prediction
from ntps.study.locks import lock_folder
from ntps.study.measure import SHARES, StudySettings
from ntps.study.ranks import grid_spearman, spearman
from ntps.study.selection import leave_one_out_selection, select_and_correlate
from ntps.study.table import CHOSEN, GAIN_PREDICTORS, PREDICTORS, gain_row, is_number, row
from ntps.tasks.load import Task

if TYPE_CHECKING:
    import pandas as pd

SCHEMA_VERSION = 1
DEPTH = 0.5  # of the layer that is read by default; see benchmarks/default_quantity.py
OPTION_DEPTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
TARGETS = ("above_majority", "accuracy", "balanced_accuracy", "macro_f1", "r2", "gain")
MIN_TASKS = 4


@dataclass(frozen=True)
class Study:
    """A grid of cells that is there, and what to read off it.

    Attributes:
        contents: Every cell's content, in the grid's order; `status` is "done", "failed" or "missing".
        models: Names in the order given.
        tasks: Names in the order given.
        seeds: Number of seeds.
        settings: What shaped the cells.
        lora: How models were fine-tuned for the gains; `None` when they were not.
    """

    contents: tuple[dict[str, Any], ...]
    models: tuple[str, ...]
    tasks: tuple[str, ...]
    seeds: int
    settings: StudySettings
    lora: TrainSettings | None = None

    @property
    def complete(self) -> bool:
        """Whether no cell is missing (failed ones are not missing)."""
        return all(content["status"] != "missing" for content in self.contents)

    @cached_property
    def _by_place(self) -> dict[tuple[str, str, int, bool], dict[str, Any]]:
        done = [c for c in self.contents if c["status"] == "done" and c["part"] == "score"]
        return {(c["model"], c["task"], c["seed"], c["control"]): c for c in done}

    @cached_property
    def _gains(self) -> dict[tuple[str, str, int], dict[str, Any]]:
        done = [c for c in self.contents if c["status"] == "done" and c["part"] == "gain"]
        return {(c["model"], c["task"], c["seed"]): c["gain"] for c in done}

    def frame(self, *, depth: float = DEPTH) -> "pd.DataFrame":
        """Return one row a model, task and seed, read at the default rank of the layer at a share of the depth.

        Columns: what is `PREDICTORS` (`explained_gain` and `*_random` with controls), low and high ends of the
        intervals, p-values of the null, and the probe's results at the last layer. With gains also `GAINS`.
        """
        import pandas as pd

        in_range(depth, 0, 1, "depth")
        rows = [row(self._by_place, c, depth) for c in self.contents if not c["control"] and c["part"] == "score"]
        if self.lora is not None:
            gains = [self._gains.get((found["model"], found["task"], found["seed"])) for found in rows]
            rows = [found | gain_row(gain, found.get("layer")) for found, gain in zip(rows, gains, strict=True)]
        return pd.DataFrame(rows)

    def table(self, column: str, *, depth: float = DEPTH) -> "pd.DataFrame":
        """Return one column of `frame`, averaged over seeds, models down and tasks across; empty cells are NaN."""
        frame = self.frame(depth=depth)
        one_of(column, [name for name in frame.columns if is_number(frame[name])], "column")
        wide = frame.pivot_table(index="model", columns="task", values=column, dropna=False)
        return wide.reindex(index=list(self.models), columns=list(self.tasks))

    def usable(self, *, target: str = "above_majority") -> tuple[list[str], list[str]]:
        """Return models and tasks that make a full grid: models with half of their cells, tasks all of those have.

        Raises:
            NtpsError: If fewer than four tasks remain: a correlation of three points says nothing.
        """
        known = np.isfinite(self.table(target).to_numpy(dtype=float))
        models = known.sum(1) * 2 >= known.shape[1]
        tasks = known[models].all(0) if models.any() else np.zeros(known.shape[1], dtype=bool)
        if tasks.sum() < MIN_TASKS:
            raise NtpsError(
                f"{int(tasks.sum())} tasks have results for every model; correlations need at least {MIN_TASKS}, and "
                "a dozen to say much. The cells are kept: add tasks and run again."
            )
        pick = [[n for n, keep in zip(names, mask, strict=True) if keep] for names, mask in
                ((self.models, models), (self.tasks, tasks))]  # fmt: skip
        return pick[0], pick[1]

    def options(self, quantity: str) -> tuple[np.ndarray, list[dict[str, float]]]:
        """Return values (options, models, tasks) at every depth and rank of `SHARES`, and what each option is.

        Depth and rank are shares of the model's own, so that an option means the same in each model. Values are
        rounded to six decimals: at full rank NTPS is 1 up to rounding, and ranks of rounding errors mean nothing.
        """
        one_of(quantity, CHOSEN, "quantity")
        models, tasks = self.usable()
        names = [{"depth": depth, "share": share} for depth in OPTION_DEPTHS for share in SHARES]
        values = np.full((len(names), len(models), len(tasks)), math.nan)
        for i, model in enumerate(models):
            for j, task in enumerate(tasks):
                cells = [self._by_place.get((model, task, seed, False)) for seed in range(self.seeds)]
                stacks = []
                for layers in (cell["score"]["layers"] for cell in cells if cell is not None):
                    picked = [layers[layer_at(depth, len(layers))]["grid"][quantity] for depth in OPTION_DEPTHS]
                    stacks.append(np.array(picked, dtype=float).ravel())
                values[:, i, j] = np.mean(stacks, axis=0).round(6)
        return values, names

    def correlations(
        self, *, target: str = "above_majority", depth: float = DEPTH, n_permutations: int = 1999, random_state: int = 0
    ) -> dict[str, dict[str, Any]]:
        """Return rank correlations of predictors with the target, over tasks within models.

        Keys: a predictor's name for the fixed default (`selected_on: "fixed"`); for those with a rank and layer to
        choose also `NAME:same_tasks` (chosen per model on the tasks it is judged on, as the paper does, with the null
        that repeats the choice), `NAME:held_out_task` and `NAME:held_out_model` (both `selected_on: "held_out"`).

        Each entry has `spearman`, `interval`, `p_value`, `selected_on`, `target`; fixed ones also `kendall`,
        `kendall_interval`, `kendall_p_value`, and `per_model` the same for each model. With several models the number
        is the mean over models, and the null permutes tasks in all models alike: they share the tasks.

        Raises:
            NtpsError: If fewer than four tasks are complete, or the target is unknown.
        """
        one_of(target, TARGETS, "target")
        if target == "gain" and self.lora is None:
            raise NtpsError("this study has no gains; run it with --lora (`run_study(..., lora=TrainSettings())`).")
        models, tasks = self.usable(target=target)
        wanted = self.table(target, depth=depth).loc[models, tasks].to_numpy(dtype=float)
        options: dict[str, Any] = {"n_permutations": n_permutations, "random_state": random_state}
        found: dict[str, dict[str, Any]] = {}
        frame = self.frame(depth=depth)
        for name in GAIN_PREDICTORS if target == "gain" else PREDICTORS:
            if name not in frame or not is_number(frame[name]):
                continue
            values = self.table(name, depth=depth).loc[models, tasks].to_numpy(dtype=float)
            if not np.isfinite(values).all():
                continue
            whole = grid_spearman(values, wanted, **options).to_dict()
            each = [spearman(x, y, **options).to_dict() for x, y in zip(values, wanted, strict=True)]
            extra = {"n": len(tasks), "n_models": len(models), "per_model": dict(zip(models, each, strict=True))}
            extra |= {key: whole[key] for key in ("kendall", "kendall_interval", "kendall_p_value", "reason")}
            found[name] = _entry(whole, "fixed", target, {**extra, "depth": depth})
        for name in CHOSEN:
            if name in found:
                found |= self._chosen(name, wanted, target, options)
        return found

    def _chosen(self, name: str, wanted: np.ndarray, target: str, options: dict[str, Any]) -> dict[str, dict[str, Any]]:
        values, names = self.options(name)
        if not np.isfinite(values).all() or values.shape[1:] != wanted.shape:
            return {}
        same = select_and_correlate(values, wanted, per_model=True, **options).to_dict()
        same["options"] = [names[option] for option in same["options"]]
        found = {f"{name}:same_tasks": _entry(same, "same_tasks", target, same)}
        options = {**options, "n_permutations": min(options["n_permutations"], 499)}
        for over, enough in (("task", wanted.shape[1] >= 5), ("model", wanted.shape[0] >= 2)):
            if enough:
                held = leave_one_out_selection(values, wanted, over=over, **options).to_dict()
                held["options"] = [names[option] for option in held["options"]]
                found[f"{name}:held_out_{over}"] = _entry(held, "held_out", target, held)
        return found

    def to_dict(self, *, target: str = "above_majority", n_permutations: int = 1999) -> dict[str, Any]:
        """Return JSON values that do not depend on how often the study was stopped, nor on how long it took.

        With fewer than four complete tasks `correlations` is empty and `refused` says why.
        """
        try:
            correlations, refused = self.correlations(target=target, n_permutations=n_permutations), None
        except NtpsError as error:
            correlations, refused = {}, str(error)
        names = ("model", "task", "seed", "control", "part", "status", "reason")
        return jsonable(
            {
                "schema_version": SCHEMA_VERSION,
                "kind": "ntps-study",
                "version": __version__,
                "models": list(self.models),
                "tasks": list(self.tasks),
                "seeds": self.seeds,
                "settings": asdict(self.settings),
                "complete": self.complete,
                "target": target,
                "cells": [{name: content.get(name) for name in names} for content in self.contents],
                "rows": self.frame().to_dict("records"),
                "correlations": correlations,
                "refused": refused,
                "gain": None if self.lora is None else self._gain_evidence(n_permutations),
            }
        )

    def gain_errors(self, *, over: str = "task") -> "pd.DataFrame":
        """Return how well gains are predicted for tasks or models left out, seeds averaged: `gain_prediction`.

        Args:
            over: `"task"`, `"model"` or `"both"`.

        Raises:
            NtpsError: If there are no gains, or too few models or tasks.
        """
        if self.lora is None:
            raise NtpsError("this study has no gains; run it with --lora (`run_study(..., lora=TrainSettings())`).")
        models, tasks = self.usable(target="gain")
        frame = gain_frame(self.frame())
        frame = frame[frame["model"].isin(models) & frame["dataset"].isin(tasks)]
        return gain_prediction(frame, over=over, score="ntps", accuracy="accuracy", inputs=STUDY_INPUTS)

    def _gain_evidence(self, n_permutations: int) -> dict[str, Any]:
        found: dict[str, Any] = {"settings": cast(TrainSettings, self.lora).to_dict()}
        gains = self.frame()["gain"].dropna()
        if len(gains) and gains.nunique() == 1:
            reason = f"Every gain is {gains.iloc[0]:+.3f}: there is nothing to predict."
            return found | {"correlations": {}, "errors": {}, "refused": reason}
        try:
            found |= {"correlations": self.correlations(target="gain", n_permutations=n_permutations), "refused": None}
        except NtpsError as error:
            return found | {"correlations": {}, "errors": {}, "refused": str(error)}
        found["errors"] = {}
        for over in OVER if len(self.models) > 1 else OVER[:1]:
            found["errors"][over] = self.gain_errors(over=over).to_dict("index")
        return found

    def to_json(self, **options: Any) -> str:
        """Return `to_dict()` as JSON text."""
        return json.dumps(self.to_dict(**options), indent=2, ensure_ascii=False, allow_nan=False)


def run_study(
    models: Sequence[str],
    tasks: Sequence[str | Task],
    *,
    output: str | Path,
    settings: StudySettings | None = None,
    seeds: int = 1,
    control: bool = True,
    lora: TrainSettings | None = None,
    share: tuple[int, int] | None = None,
    device: str | None = None,
    batch_size: int = 32,
    progress: bool | None = None,
    say: Callable[[str], None] | None = None,
) -> Study:
    """Compute the cells of a grid that are not there yet, and return the study.

    Args:
        models: Names or directories, each once.
        tasks: Names, files (`NAME=PATH` names one) or `Task` objects, with different names.
        output: Folder; its `cells/` keeps every cell. Stop and start as you like.
        settings: What shapes a cell; see `StudySettings`.
        seeds: Samples, folds and control weights are drawn with seeds 0, ..., seeds - 1.
        control: Also fresh weights for each model; models of one architecture share them.
        lora: Also fine-tune every model on every task like this, and note what it gains.
        share: (I, N): compute only share I of N. Shares may run at once, on several machines that see the folder.
        device: As in `ntps.load_model`.
        batch_size: As in `ntps.collect_moments`.
        progress: Show cells and time left on stderr; by default when it is a terminal.
        say: Told what fails or is computed again; prints to stderr by default.

    Raises:
        NtpsError: If an option is out of range, a name comes twice, the folder is in use, or no cell has a result.
    """
    settings = (settings or StudySettings()).check()
    in_range(seeds, 1, None, "seeds")
    in_range(batch_size, 1, None, "batch_size")
    tell = say or (lambda message: print(f"ntps: {message}", file=sys.stderr))
    folder = Path(output)
    if folder.exists() and not folder.is_dir():
        raise NtpsError(f"--output {folder} is a file; name a folder.")
    with lock_folder(folder, share):
        if lora is not None:
            lora = replace(lora, max_length=lora.max_length or settings.max_length)
        grid = make_grid(models, tasks, settings, seeds=seeds, control=control, lora=lora)
        if all(cell.reason for cell in grid.cells):  # nothing can be computed: say so at once
            raise NtpsError(grid.cells[0].reason)
        mine = grid.share(*share) if share else grid
        _compute(mine, folder, settings, lora, device, batch_size, progress, tell)
        return _collect(grid, folder, settings, lora, models, seeds)


def _compute(
    grid: Grid,
    folder: Path,
    settings: StudySettings,
    lora: TrainSettings | None,
    device: str | None,
    batch_size: int,
    progress: bool | None,
    say: Callable[[str], None],
) -> None:
    from tqdm import tqdm

    kept = {cell.key: read_cell(folder, cell)[0] for cell in grid.cells}  # controls may share a key
    left = sum(content is None or content["status"] != "done" for content in kept.values())
    layout = "{desc}{percentage:3.0f}% |{bar}| {n_fmt}/{total_fmt} cells, {elapsed} gone, {remaining} left"
    with tqdm(total=left, disable=None if progress is None else not progress, bar_format=layout, ncols=80) as bar:

        def tell(message: str) -> None:
            bar.clear()
            say(message)

        def done(_: Cell) -> None:
            bar.update()

        run_cells(grid, folder, settings, lora=lora, device=device, batch_size=batch_size, say=tell, done=done)


def _collect(
    grid: Grid,
    folder: Path,
    settings: StudySettings,
    lora: TrainSettings | None,
    models: Sequence[str],
    seeds: int,
) -> Study:
    contents = []
    for cell in grid.cells:
        content = read_cell(folder, cell)[0] or {"status": "missing", "reason": None}
        contents.append({**content, **cell.place})  # a control may have been computed for another model
    failed = [content for content in contents if content["status"] == "failed"]
    if failed and len(failed) == len(contents):
        raise NtpsError(f"every cell failed; the first because: {failed[0]['reason']}")
    tasks = tuple(dict.fromkeys(cell.task for cell in grid.cells))
    return Study(tuple(contents), tuple(models), tasks, seeds, settings, lora)


def _entry(found: dict[str, Any], selected_on: str, target: str, extra: dict[str, Any]) -> dict[str, Any]:
    first = {name: found[name] for name in ("spearman", "interval", "p_value")}
    return {**first, "selected_on": selected_on, "target": target, **{k: v for k, v in extra.items() if k not in first}}
