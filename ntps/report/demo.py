"""What `make demo` shows: the bundled model on the bundled tasks, beside the same model before pretraining."""

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from ntps import miniworld
from ntps.models.passes import collect_moments
from ntps._files import atomic_write
from ntps.models.load import load_model
from ntps.report.plots import plot_tasks
from ntps.report.page import image_tag, page, picture, table_html, write_report
from ntps.scoring.results import ScoreResult
from ntps._text import bar, fixed
from ntps.core.solve import score
from ntps.tasks.load import load_task

MODEL, RANDOM = "miniworld-base", "miniworld-base@step0"
TEXTS = 800
FOLDS = 5
SHOWN = "topic"  # the task whose full report is written too


@dataclass(frozen=True)
class Demo:
    """The demo's table: one row a task, at the last layer.

    Attributes:
        rows: `task`, `chance` and `ntps` of the pretrained model, `random` and `pretrained` (held-out share of label
            variance through V before and after pretraining), `ceiling` (through all directions), `question`.
        d: Width of the model.
        k_v: Next-token directions.
        seconds: Time it took.
        report: The page that was written.
    """

    rows: list[dict[str, Any]]
    d: int
    k_v: int
    seconds: float
    report: Path

    def __str__(self) -> str:
        lines = [
            f"What pretraining taught {MODEL}: share of label variance that a linear",
            f"readout explains on held-out texts, through the {self.k_v} of {self.d} directions that",
            f"next-token prediction uses most. {TEXTS} texts a task, last layer.",
            "",
            f"                  through {self.k_v:2d} directions           all {self.d:3d}",
            f"task              random  pretrained            pretrained    NTPS ({self.rows[0]['chance']:.3f}*)",
        ]
        for row in self.rows:
            lines.append(
                f"{row['task']:16s} {_signed(row['random'])}      {_signed(row['pretrained'])} "
                f"{bar(row['pretrained'], 12):12s}"
                f"      {_signed(row['ceiling'])}   {row['ntps']:.3f}"
            )
        learned = max(self.rows, key=lambda row: row["pretrained"] - row["random"])
        unused = max(self.rows, key=lambda row: row["ceiling"] - row["pretrained"])
        lines += [
            "",
            "* NTPS of a random subspace of that size. The raw score depends on the scale of",
            "  the features: read it against chance, and trust the shares more.",
            f"Learned most: {learned['task']} ({fixed(learned['random'], 2)} before, "
            f"{fixed(learned['pretrained'], 2)} after). There, but not used most:",
            f"{unused['task']} ({fixed(unused['pretrained'], 2)} of the {fixed(unused['ceiling'], 2)} "
            "that all directions hold).",
            "",
            f"{self.seconds:.0f} s. Report: {self.report}",
        ]
        return "\n".join(lines)


def _signed(value: float) -> str:
    return f"{fixed(value, 2):>6}"


def _score(name: str, task: Any, layers: str | int = -1) -> ScoreResult:
    return score(collect_moments(load_model(name), task, layers=layers, folds=FOLDS, batch_size=64, progress=False))


def run_demo(output: str | Path, *, progress: bool = True) -> Demo:
    """Score both models on every bundled task and write report.html, demo.json, demo.csv, demo.txt and the pictures.

    Args:
        output: Folder of the report.
        progress: Name the task at work on a terminal.

    Raises:
        NtpsError: If the folder cannot be written, or a bundled file is damaged.
    """
    from tqdm import tqdm

    output = Path(output)
    started = time.perf_counter()
    rows: list[dict[str, Any]] = []
    shown: ScoreResult | None = None
    names = miniworld.task_names()
    for name in tqdm(names, desc="tasks", ncols=80, disable=None if progress else True, leave=False):
        task = load_task(f"miniworld/{name}", n=TEXTS, split="test")
        pretrained, random = _score(MODEL, task, "all" if name == SHOWN else -1), _score(RANDOM, task)
        last = pretrained.layers[-1]
        if name == SHOWN:
            shown = pretrained
        rows.append(
            {
                "task": name,
                "ntps": last.ntps,
                "chance": last.chance,
                "random": random.layers[-1].explained_heldout,
                "pretrained": last.explained_heldout,
                "ceiling": last.ceiling_heldout,
                "k_v": last.k_v,
                "d": last.d,
                "question": miniworld.describe_task(name)["question"],
            }
        )
    assert shown is not None  # SHOWN is a bundled task
    rows.sort(key=lambda row: -row["pretrained"])
    write_report(shown, output / SHOWN)
    png = picture(lambda ax: plot_tasks(rows, ax), figsize=(7.0, 0.34 * len(rows) + 1.6))
    atomic_write(output / "tasks.png", png)
    atomic_write(output / "demo.json", json.dumps({"model": MODEL, "random": RANDOM, "tasks": rows}, indent=2) + "\n")
    atomic_write(output / "demo.csv", pd.DataFrame(rows).to_csv(index=False))
    heads = ["task", "what it asks", "random weights", "pretrained", "all directions", "NTPS", "chance"]
    keys = ("task", "question", "random", "pretrained", "ceiling", "ntps", "chance")
    table = table_html(heads, [[row[key] for key in keys] for row in rows], words=(0, 1))
    body = (
        "<h1>What next-token prediction taught a miniature model</h1>"
        f"<p class='lead'>Share of label variance that a linear readout explains on held-out texts, through the "
        f"{rows[0]['k_v']} of {rows[0]['d']} directions that next-token prediction uses most, before and after "
        f"pretraining: {MODEL}, last layer, {TEXTS} texts a task.</p>"
        f"{image_tag(png, 'explained share before and after pretraining, by task')}{table}"
        f"<p>One task in full: <a href='{SHOWN}/report.html'>{SHOWN}</a>.</p>"
    )
    path = atomic_write(output / "report.html", page("ntps demo", body))
    demo = Demo(rows, rows[0]["d"], rows[0]["k_v"], time.perf_counter() - started, path)
    atomic_write(output / "demo.txt", f"{demo}\n")
    return demo
