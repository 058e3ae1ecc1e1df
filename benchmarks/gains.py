"""What LoRA gains on the bundled world, and whether a score predicts it.

    python -m benchmarks.gains --output gains        # about half an hour on two cores; stop and start as you like
    python -m benchmarks.gains --output default --model miniworld-base --seeds 3 --limit 2000 --save gains_base
    python -m benchmarks.gains --output real --model DIR --task a.jsonl ... --steps 40 --seeds 1 --max-length 64

Prints, and writes to DIR/gains.json: the gain of every task, how many cells were tuned at all and what changed in
these, how often accuracy after is below before, the rank correlation of scores with the gain, and the error of
predicting it for tasks and models left out, beside that of predicting no gain. Means and intervals are by task. With
the bundled models and tasks also writes benchmarks/results/gains.csv and gains.json.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import pandas as pd

from ntps import StudySettings, TrainSettings, miniworld, run_study
from ntps._files import atomic_write, jsonable
from ntps.report.study import ERROR_COLUMNS
from ntps.study import Study
from ntps.study.gain import tuned_changes
from ntps.study.table import CHANGES

ROOT = Path(__file__).parents[1]
MODELS = ["miniworld-small", "miniworld-base@step150", "miniworld-base@step1000", "miniworld-base", "miniworld-large"]
KEPT = ("model", "task", "seed", "accuracy", "majority_rate", "ntps", "explained_heldout", "ceiling_heldout",
        "held_back", "accuracy_before", "accuracy_after", "tuned", "gain", "gain_se", *CHANGES)  # fmt: skip


def report(study: Study) -> dict[str, Any]:
    """Print what the study found, and return it."""
    frame = study.frame().dropna(subset=["gain"])
    shown = ["accuracy_before", "accuracy_after", "tuned", "gain", *CHANGES, "held_back"]
    by_task = frame.groupby("task", sort=False)[shown].mean()
    print(by_task.round(3).to_string())
    z = frame.gain / frame.gain_se.where(frame.gain_se > 0)
    below = {"tuned": int(frame.tuned.sum()), "after_below_before": int((frame.gain < 0).sum()),
             "by_two_standard_errors": int((z < -2).sum())}  # fmt: skip
    changes = tuned_changes(frame)
    print(f"\n{changes['n_tuned']} of {changes['n_cells']} cells tuned, {changes['n_tasks']} tasks; {below}")
    for name in ("gain", *CHANGES):
        print("{:20} {mean:+.3f} [{low:+.3f}, {high:+.3f}]".format(name, **changes[name]))
    evidence = study.to_dict(n_permutations=1999)["gain"]
    if evidence["refused"]:
        print(evidence["refused"])
    for name, found in evidence["correlations"].items():
        if found["spearman"] is not None and found["selected_on"] != "same_tasks":
            low, high = found["interval"]
            print(f"{name:32} {found['spearman']:+.2f} [{low:+.2f}, {high:+.2f}]  p = {found['p_value']:.3f}")
    for over, rows in evidence["errors"].items():
        table = pd.DataFrame.from_dict(rows, orient="index")[ERROR_COLUMNS]
        print(f"\nerror of the predicted gain, {over} left out\n{table.round(4).to_string()}")
    by_model = frame.groupby(["model", "task"], sort=False)[["gain", *CHANGES]].mean().reset_index().to_dict("records")
    return {"below": below, "by_model_and_task": by_model, **evidence}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", action="append", help="default: the bundled ladder")
    parser.add_argument("--task", action="append", help="default: the bundled tasks")
    parser.add_argument("--limit", type=int, default=1000)
    parser.add_argument("--max-length", type=int)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--control", action="store_true", help="also score fresh weights")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--save", help="also write the table as benchmarks/results/NAME.csv")
    given = parser.parse_args()
    bundled = not (given.model or given.task)
    study = run_study(
        given.model or MODELS,
        given.task or [f"miniworld/{name}" for name in miniworld.task_names()],
        output=given.output,
        settings=StudySettings(
            limit=given.limit, max_length=given.max_length, seeds=given.seeds, control=given.control
        ),
        lora=TrainSettings(steps=given.steps),
    )
    result = report(study)
    if bundled or given.save:
        table = study.frame()[[name for name in KEPT if name in study.frame()]]
        name = given.save or "gains"
        atomic_write(ROOT / f"benchmarks/results/{name}.csv", table.to_csv(index=False, float_format="%.5f"))
    if bundled:
        kept = {name: result[name] for name in ("below", "changes", "errors")}
        kept["correlations"] = {
            name: {key: found[key] for key in ("spearman", "interval", "p_value")}
            for name, found in result["correlations"].items()
            if found["selected_on"] == "fixed"
        }
        atomic_write(ROOT / "benchmarks/results/gains.json", json.dumps(jsonable(kept), indent=1, allow_nan=False))
    atomic_write(given.output / "gains.json", json.dumps(jsonable(result), indent=2, allow_nan=False))


if __name__ == "__main__":
    main()
