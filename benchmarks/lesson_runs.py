"""Make what lessons 03 to 05 read where they are not to run it themselves: three to five minutes on one core.

    python -m benchmarks.lesson_runs [runs] [study] [screens]

Writes ntps/course/data/lesson_NAME.json for each NAME, for all three by default; `ntps.course.measurements` reads them.
"""

import argparse
import json
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import ntps
from ntps import TrainSettings, before_and_after
from ntps._files import atomic_write
from ntps.errors import one_of
from ntps.finetune import LoraResult

FOLDER = Path(__file__).parents[1] / "ntps/course/data"
SHORT: dict[str, Any] = {"steps": 80, "batch_size": 8, "evaluate_every": 16}
SETTINGS = {
    "topic": TrainSettings(margin=0, **SHORT),
    "watermark": TrainSettings(**SHORT),
    "low": TrainSettings(rank=1, alpha=1, **SHORT),
    "loud": TrainSettings(rank=1, alpha=32, **SHORT),
    "whole": TrainSettings(method="full", **SHORT),
}
STUDIED = ["topic", "tense", "person", "register", "sentiment", "intent", "length", "parity", "agreement", "watermark"]
SCREENED = ["topic", "tense", "register", "intent", "sentiment", "first_mentioned", "watermark", "noise"]
KEPT_OF_PROVENANCE = ("classes", "n_trained", "versions")
LEFT_OUT_OF_LAYERS = ("curve", "interval")  # long, and no lesson reads them


def runs() -> dict[str, Any]:
    """Return the fine-tuning runs of lesson 04; print their gains."""
    network = ntps.load_model("miniworld-base", dtype="float32", head=True)
    rows = {}
    for name, settings in SETTINGS.items():
        task = ntps.load_task("miniworld/topic" if name == "topic" else "miniworld/watermark", limit=600)
        parts = {} if name in ("topic", "watermark") else {"layers": -1, "analyses": ["intruders"]}
        run = before_and_after(network, task, settings=settings, **parts)
        rows[name] = trimmed(run)
        print(f"{name:10s} gain {run.gain:+.2f}", flush=True)
    return rows


def trimmed(run: LoraResult) -> dict[str, Any]:
    """Return a run as JSON values, without what no lesson reads and without paths."""
    row = json.loads(run.to_json())
    for name in ("schema_version", "kind", "gain"):
        del row[name]
    for when in ("before", "after"):
        row[when]["layers"] = [
            {name: value for name, value in layer.items() if name not in LEFT_OUT_OF_LAYERS}
            for layer in row[when]["layers"]
        ]
    row["provenance"] = {name: row["provenance"][name] for name in KEPT_OF_PROVENANCE}
    return row


def study() -> dict[str, Any]:
    """Return the study of lesson 03."""
    settings = ntps.StudySettings(limit=300, permutations=100)
    tasks = [f"miniworld/{name}" for name in STUDIED]
    with tempfile.TemporaryDirectory() as folder:
        made = ntps.run_study(["miniworld-base", "miniworld-base@step150"], tasks, output=folder, settings=settings)
    cells = [cell.to_dict() for cell in made.cells]
    for cell in cells:
        cell["seconds"], cell["score"]["provenance"] = None, {}
    return {"models": list(made.models), "tasks": list(made.tasks), "settings": asdict(made.settings), "cells": cells}


def screens() -> dict[str, Any]:
    """Return the prescreenings of lesson 05: of its eight tasks, and of its file of letters."""
    eight = ntps.prescreen("miniworld-base", [f"miniworld/{name}" for name in SCREENED], budget=2, probe_steps=0)
    letters = ntps.load_task("miniworld/first_mentioned", n=400, seed=5)
    own = ntps.prescreen(ntps.load_model("miniworld-base", dtype="float32"), [letters])
    rows = {"eight": eight.to_dict(), "own": own.to_dict()}
    for row in rows.values():
        row["calibrations"] = [each["steps"] for each in row["calibrations"]]  # they are bundled
        for name in ("schema_version", "kind", "version"):
            del row[name]
    return rows


MAKERS: dict[str, Callable[[], dict[str, Any]]] = {"runs": runs, "study": study, "screens": screens}


def main() -> None:
    """Make what is asked for, and write it with nine decimals."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME")
    for name in parser.parse_args().names or MAKERS:
        one_of(name, MAKERS, "NAME")
        rounded = json.loads(json.dumps(MAKERS[name]()), parse_float=lambda text: round(float(text), 9))
        atomic_write(FOLDER / f"lesson_{name}.json", json.dumps(rounded) + "\n")


if __name__ == "__main__":
    main()
