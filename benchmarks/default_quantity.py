"""Which quantity, at which rank and layer, predicts a probe's accuracy where it was not tuned?

    python -m benchmarks.default_quantity --output quantity               # the bundled ladder, three seeds
    python -m benchmarks.default_quantity --output real --model DIR --task a.csv --task b.csv --tuned-on quantity

Every quantity at every depth and rank (shares of the model's own) is correlated with the accuracy of a linear probe of
the last layer above the majority rate, over tasks within models. What is printed for each quantity:

- `fixed`: at the default of `ntps study` (half the depth, k_V = max(k_U, d / 8)), set before looking;
- `chosen`: the best depth and rank on these tasks, and `null`, what the best is on permuted tasks (median);
- `left out task`, `left out model`: depth and rank chosen without the one judged;
- `carried over`, with `--tuned-on`: depth and rank chosen on the other study, judged on this one.

Random-weight controls are judged the same way, against their own probes: a quantity that predicts there measures the
task and the architecture, not pretraining.
"""

import argparse
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from ntps import StudySettings, run_study
from ntps._files import atomic_write
from ntps.errors import NtpsError
from ntps.report.study_plots import option_map
from ntps.study import Study
from ntps.study.measure import SHARES
from ntps.study.ranks import centered_ranks, grid_spearman, unit
from ntps.study.selection import leave_one_out_selection, select_and_correlate
from ntps.study.study import OPTION_DEPTHS
from ntps.study.table import CHOSEN

MODELS = ["miniworld-small", "miniworld-base@step150", "miniworld-base@step1000", "miniworld-base"]
NAMES = ("topic", "tense", "person", "register", "sentiment", "intent", "length", "parity", "first_mentioned")
TASKS = [f"miniworld/{name}" for name in (*NAMES, "agreement")]
MEASURES = ("ntps_z", "ceiling_heldout", "reduced_rank", "logme", "hscore", "hscore_shrunk", "knn")
TARGET = "above_majority"


def target_of(study: Study) -> np.ndarray:
    models, tasks = study.usable()
    return study.table(TARGET).loc[models, tasks].to_numpy(dtype=float)


def judged(study: Study, tuned: Study | None = None) -> list[dict[str, Any]]:
    """Return one row per quantity."""
    wanted, rows = target_of(study), []
    models, tasks = study.usable()
    for name in (*CHOSEN, *MEASURES):
        table = study.table(name).loc[models, tasks].to_numpy(dtype=float)
        if not np.isfinite(table).all():
            continue
        fixed = grid_spearman(table, wanted, n_permutations=1999)
        row: dict[str, Any] = {
            "quantity": name, "fixed": fixed.spearman, "low": fixed.interval[0], "high": fixed.interval[1],
            "p": fixed.p_value,
        }  # fmt: skip
        if name in CHOSEN:
            values, options = study.options(name)
            chosen = select_and_correlate(values, wanted, n_permutations=999)
            row |= {"chosen": chosen.spearman, "null": chosen.null_quantiles[1], "p_chosen": chosen.p_value}
            row["option"] = options[chosen.options[0]]
            if len(tasks) >= 5:
                held = leave_one_out_selection(values, wanted, n_permutations=199)
                row |= {"left_out_task": held.spearman, "p_task": held.p_value}
            if len(models) >= 2:
                held = leave_one_out_selection(values, wanted, over="model", n_permutations=199)
                row |= {"left_out_model": held.spearman, "p_model": held.p_value}
            if tuned is not None:
                there, _ = tuned.options(name)
                each = (unit(centered_ranks(there)) * unit(centered_ranks(target_of(tuned)))).sum(-1).mean(-1)
                best = int(each.argmax())
                carried = grid_spearman(values[best], wanted, n_permutations=1999)
                row |= {
                    "carried_over": carried.spearman,
                    "carried_low": carried.interval[0],
                    "p_carried": carried.p_value,
                }
                row["carried_option"] = options[best]
        rows.append(row)
    return rows


def controls(study: Study) -> Study:
    """The same study of the fresh weights, each architecture once."""
    once = {cell.key: replace(cell, control=False) for cell in study.cells if cell.control and cell.done}
    names = tuple(dict.fromkeys(cell.model for cell in once.values()))
    return replace(study, cells=tuple(once.values()), models=names)


def show(title: str, rows: list[dict[str, Any]]) -> None:
    columns = (
        "fixed",
        "low",
        "high",
        "p",
        "chosen",
        "null",
        "p_chosen",
        "left_out_task",
        "left_out_model",
        "carried_over",
    )
    there = [column for column in columns if any(column in row for row in rows)]
    print(f"\n{title}\n{'quantity':18}" + "".join(f"{column:>15}" for column in there))
    for row in rows:
        cells = "".join(f"{row[c]:>15.2f}" if row.get(c) is not None else f"{'':>15}" for c in there)
        option = row.get("option")
        print(f"{row['quantity']:18}{cells}" + (f"   {option['depth']:g}, d/{1 / option['share']:g}" if option else ""))


def show_map(study: Study, name: str) -> None:
    """Print the correlation at every depth and rank."""
    found = option_map(study, name)
    print(
        f"\n{name}, by depth (down) and rank (across)\n{'':18}"
        + "".join(f"{f'd/{1 / share:g}':>8}" for share in SHARES)
    )
    for depth, line in zip(OPTION_DEPTHS, found, strict=True):
        print(f"{depth:18g}" + "".join(f"{value:8.2f}" for value in line))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", action="append", help="default: the bundled ladder")
    parser.add_argument("--task", action="append", help="default: the bundled tasks")
    parser.add_argument("--limit", type=int, default=500)
    parser.add_argument("--max-length", type=int)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--tuned-on", type=Path, help="--output of another run with the bundled defaults")
    given = parser.parse_args()
    settings = StudySettings(limit=given.limit, max_length=given.max_length, seeds=given.seeds)
    study = run_study(given.model or MODELS, given.task or TASKS, output=given.output, settings=settings)
    tuned = None
    if given.tuned_on is not None:
        recipe = json.loads((given.tuned_on / "recipe.json").read_text())
        tuned = run_study(
            recipe["models"], recipe["tasks"], output=given.tuned_on, settings=StudySettings(**recipe["settings"])
        )
    result = {"pretrained": judged(study, tuned)}
    show(f"Pretrained: {len(study.models)} models, {len(study.tasks)} tasks, {given.seeds} seeds", result["pretrained"])
    for name in ("ntps", "explained_heldout"):
        show_map(study, name)
    try:
        result["random_weights"] = judged(controls(study))
        show("Random weights, against their own probes", result["random_weights"])
    except NtpsError as error:
        print(f"\nRandom weights: {error}")
    recipe = {"models": list(study.models), "tasks": given.task or TASKS, "settings": asdict(settings)}
    atomic_write(given.output / "recipe.json", json.dumps(recipe, indent=2))
    atomic_write(given.output / "default_quantity.json", json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
