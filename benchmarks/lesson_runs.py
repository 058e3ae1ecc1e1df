"""Make the fine-tuning runs of lesson 04 anew and write what lessons read of them: a minute and a half on one core.

    python -m benchmarks.lesson_runs

Writes ntps/course/data/lesson_runs.json, which `ntps.course.measurements.lesson_runs` reads.
"""

import json
from pathlib import Path
from typing import Any

import ntps
from ntps import TrainSettings, before_and_after
from ntps._files import atomic_write
from ntps.finetune import LoraResult

FILE = Path(__file__).parents[1] / "ntps/course/data/lesson_runs.json"
SHORT: dict[str, Any] = {"steps": 80, "batch_size": 8, "evaluate_every": 16}
SETTINGS = {
    "topic": TrainSettings(margin=0, **SHORT),
    "watermark": TrainSettings(**SHORT),
    "low": TrainSettings(rank=1, alpha=1, **SHORT),
    "loud": TrainSettings(rank=1, alpha=32, **SHORT),
    "whole": TrainSettings(method="full", **SHORT),
}
KEPT_OF_PROVENANCE = ("classes", "n_trained", "versions")
LEFT_OUT_OF_LAYERS = ("curve", "interval")  # long, and no lesson reads them


def trimmed(run: LoraResult) -> dict[str, Any]:
    """Return a run as JSON values, without what no lesson reads and without paths."""
    row = json.loads(run.to_json(), parse_float=lambda text: round(float(text), 9))
    for name in ("schema_version", "kind", "gain"):
        del row[name]
    for when in ("before", "after"):
        row[when]["layers"] = [
            {name: value for name, value in layer.items() if name not in LEFT_OUT_OF_LAYERS}
            for layer in row[when]["layers"]
        ]
    row["provenance"] = {name: row["provenance"][name] for name in KEPT_OF_PROVENANCE}
    return row


def main() -> None:
    """Run all five, print their gains, write the file."""
    network = ntps.load_model("miniworld-base", dtype="float32", head=True)
    rows = {}
    for name, settings in SETTINGS.items():
        task = ntps.load_task("miniworld/topic" if name == "topic" else "miniworld/watermark", limit=600)
        parts = {} if name in ("topic", "watermark") else {"layers": -1, "analyses": ["intruders"]}
        run = before_and_after(network, task, settings=settings, **parts)
        rows[name] = trimmed(run)
        print(f"{name:10s} gain {run.gain:+.2f}", flush=True)
    atomic_write(FILE, json.dumps(rows) + "\n")


if __name__ == "__main__":
    main()
