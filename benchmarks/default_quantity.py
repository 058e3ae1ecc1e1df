"""Which quantity, at which rank and layer, goes with a probe's balanced accuracy on other texts?

    python -m benchmarks.default_quantity                                    # the bundled ladder and tasks
    python -m benchmarks.default_quantity --model DIR --model DIR --task a.jsonl --task b.jsonl ... --limit 500 \
        --max-length 32 --no-control --passes DIR --name quantity_real      # real ones; passes are kept in DIR

Scores read one half of the texts, the probe of the last layer the other. Every quantity is correlated with the target
over tasks within models; what is printed, and written to benchmarks/results/NAME.json, for each of them:

- `half`, `last`: at half the depth and at the last layer, k_V = max(k_U, d / 8), with an interval by task (of `half`);
- `left out task`, `left out model`: depth and rank (or depth) chosen without the one that is judged;
- `fresh weights`: random-weight controls at half the depth, against their own probes: a quantity that predicts there
  measures the task and the architecture, not pretraining.

The same for accuracy above the majority rate, which uneven classes pull down however well they are told apart.
"""

import argparse
import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ntps import StudySettings, collect, load_model
from ntps._files import atomic_write, jsonable
from ntps.errors import NtpsError
from ntps.study import Study, grid_spearman, leave_one_out_selection
from ntps.study.grid import make_grid
from ntps.study.measure import DEPTHS, measure
from ntps.study.records import CellResult
from ntps.study.table import CHOSEN

RESULTS = Path(__file__).parent / "results"
MODELS = ["miniworld-small", "miniworld-base@step150", "miniworld-base@step1000", "miniworld-base"]
NAMES = ("topic", "tense", "person", "register", "sentiment", "intent", "length", "parity", "first_mentioned")
TASKS = [f"miniworld/{name}" for name in (*NAMES, "agreement")]
QUANTITIES = (*CHOSEN, "ntps_z", "ceiling_heldout", "logme", "hscore", "hscore_shrunk", "knn")
TARGETS = ("balanced_accuracy", "above_majority")
COLUMNS = ("half", "low", "high", "p", "last", "left_out_task", "left_out_model", "fresh_weights")


def study_of(models: list[str], tasks: list[str], settings: StudySettings, passes: Path | None) -> Study:
    """Return a study whose passes, which need no labels, are kept in a folder and survive a change of the scores."""
    grid = make_grid(models, tasks, settings)
    results: dict[str, CellResult] = {}
    for cells in grid.loadings(list({cell.key: cell for cell in grid.cells}.values())):
        model = None
        for cell in cells:
            if cell.reason:
                raise NtpsError(cell.reason)
            seed = cell.seed if cell.control else None
            model = model or load_model(cell.model, random_weights=cell.control, seed=seed)
            weights = f"{Path(cell.model).name}{f'-random{seed}' if cell.control else ''}"
            task = cell.task.replace("/", "-")
            folder = None if passes is None else passes / weights / f"{task}-{cell.seed}"
            representations = collect(
                model, grid.tasks[cell.task, cell.seed], max_length=settings.max_length, folder=folder, progress=False
            )
            score = measure(representations, settings, seed=cell.seed, control=False)
            results[cell.key] = CellResult(**cell.position, key=cell.key, status="done", score=score)
            print(f"{cell}: done", file=sys.stderr, flush=True)
    cells = tuple(replace(results[cell.key], **cell.position) for cell in grid.cells)
    names = tuple(dict.fromkeys(cell.task for cell in cells))
    return Study(cells=cells, models=tuple(models), tasks=names, settings=settings)


def controls(study: Study) -> Study:
    """Return the same study of the fresh weights, each architecture once."""
    once = {cell.key: replace(cell, control=False) for cell in study.cells if cell.control and cell.done}
    names = tuple(dict.fromkeys(cell.model for cell in once.values()))
    return replace(study, cells=tuple(once.values()), models=names)


def values_of(study: Study, column: str, target: str, depth: float) -> np.ndarray:
    """Return a column (models, tasks) of the complete part of the grid."""
    models, tasks = study.usable(target=target)
    return study.table(column, depth=depth).loc[models, tasks].to_numpy(dtype=float)


def judged(study: Study, target: str) -> list[dict[str, Any]]:
    """Return one row per quantity."""
    wanted, control = values_of(study, target, target, 0.5), controls(study)
    rows = []
    for name in QUANTITIES:
        half, last = (values_of(study, name, target, depth) for depth in DEPTHS)
        if not np.isfinite(half).all() or not np.isfinite(last).all():
            continue
        fixed = grid_spearman(half, wanted, n_permutations=1999)
        row: dict[str, Any] = {"quantity": name, "half": fixed.spearman, "p": fixed.p_value}
        row |= {"low": fixed.interval[0], "high": fixed.interval[1]}
        row["last"] = grid_spearman(last, wanted, n_permutations=1).spearman
        options = study.options(name)[0] if name in CHOSEN else np.stack([half, last])
        for over, enough in (("task", wanted.shape[1] >= 5), ("model", len(wanted) >= 2)):
            if enough:
                chosen = leave_one_out_selection(options, wanted, over=over, n_permutations=1)
                row[f"left_out_{over}"] = chosen.spearman
        if control.cells:
            values, their_wanted = (values_of(control, column, target, 0.5) for column in (name, target))
            if np.isfinite(values).all():
                row["fresh_weights"] = grid_spearman(values, their_wanted, n_permutations=1).spearman
        rows.append(row)
    return rows


def show(title: str, rows: list[dict[str, Any]]) -> None:
    print(f"\n{title}\n{'quantity':18}" + "".join(f"{column:>15}" for column in COLUMNS))
    for row in rows:
        cells = "".join(f"{row[c]:>15.2f}" if row.get(c) is not None else f"{'':>15}" for c in COLUMNS)
        print(f"{row['quantity']:18}{cells}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", action="append", help="default: the bundled ladder")
    parser.add_argument("--task", action="append", help="default: the bundled tasks")
    parser.add_argument("--limit", type=int, default=1000)
    parser.add_argument("--max-length", type=int)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--permutations", type=int, default=50)
    parser.add_argument("--no-control", action="store_true", help="no fresh weights, which need passes of their own")
    parser.add_argument("--passes", type=Path, help="folder that keeps the passes")
    parser.add_argument("--name", default="quantity", help="of the file in benchmarks/results")
    given = parser.parse_args()
    settings = StudySettings(
        limit=given.limit,
        max_length=given.max_length,
        seeds=given.seeds,
        permutations=given.permutations,
        control=not given.no_control,
    )
    start = time.monotonic()
    study = study_of(given.model or MODELS, given.task or TASKS, settings, given.passes)
    tables = {target: judged(study, target) for target in TARGETS}
    models, tasks = study.usable(target=TARGETS[0])
    counts = f"{len(tasks)} tasks within {len(models)} models: {len(tasks)} independent tasks"
    for target, rows in tables.items():
        show(f"{target.replace('_', ' ')}; {counts}", rows)
    result = {
        "models": [Path(model).name for model in models], "tasks": tasks, "limit": given.limit,
        "max_length": given.max_length, "seeds": given.seeds, "seconds": round(time.monotonic() - start),
        "targets": tables,
    }  # fmt: skip
    atomic_write(RESULTS / f"{given.name}.json", json.dumps(jsonable(result), indent=1, allow_nan=False) + "\n")


if __name__ == "__main__":
    main()
