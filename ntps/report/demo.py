"""The demo, `make demo`: the bundled model on the bundled tasks, beside the same model before pretraining."""

import time
from dataclasses import dataclass, replace
from operator import itemgetter
from pathlib import Path
from typing import Any

from ntps import miniworld
from ntps._files import atomic_write, json_text
from ntps._text import Column, bar, fixed, html_table, text_table, wrap
from ntps.core import HeldOut, Keep, Solved
from ntps.core.threads import several_at_once
from ntps.models import Representations, collect, load_model
from ntps.report.page import csv_text, draw_picture, render
from ntps.report.plots import plot_tasks
from ntps.report.scores import write_report
from ntps.scoring import ScoreSettings, labels_of, score
from ntps.scoring.reading import chosen_ranks
from ntps.scoring.scores import solve_layers
from ntps.tasks import Task, load_task

MODEL, RANDOM = "miniworld-base", "miniworld-base@step0"
N_TEXTS = 800
FOLDS = 5
SHOWN = "topic"  # the task that gets a full report


@dataclass(frozen=True, kw_only=True)
class Demo:
    """The demo's table: one row per task, at the last layer.

    Attributes:
        rows: `task`, `question`, `random` and `pretrained` (R^2 through V on held-out texts, before and after
            pretraining), `ceiling` (through all directions), `ntps` and `chance` of the
            pretrained model, `k_v` and `d`.
        d: Width of the model.
        k_v: Number of next-token directions.
        seconds: Duration of the demo.
        report: Path of the page.
    """

    rows: list[dict[str, Any]]
    d: int
    k_v: int
    seconds: float
    report: Path

    def __str__(self) -> str:
        columns = [
            Column("task", itemgetter("task"), words=True),
            Column("random", itemgetter("random"), digits=2),
            Column("pretrained", itemgetter("pretrained"), digits=2),
            Column("", lambda row: bar(row["pretrained"], 12), words=True),
            Column(f"all {self.d}", itemgetter("ceiling"), digits=2),
            Column(f"NTPS ({self.rows[0]['chance']:.3f}*)", itemgetter("ntps")),
        ]
        learned = max(self.rows, key=lambda row: row["pretrained"] - row["random"])
        unused = max(self.rows, key=lambda row: row["ceiling"] - row["pretrained"])
        lines = [
            *wrap(
                f"What pretraining taught {MODEL}: R² of a linear readout on held-out texts, through the {self.k_v} of "
                f"{self.d} directions that next-token prediction uses most (random weights, pretrained) and through "
                f"all {self.d} (pretrained). {N_TEXTS} texts, last layer."
            ),
            "",
            *text_table(columns, self.rows, gap=3),
            "",
            *wrap(
                "* NTPS of a random subspace of that size. The raw score depends on the scale of the features: read it "
                "against chance, and trust R² more."
            ),
            *wrap(
                f"Learned most: {learned['task']} ({fixed(learned['random'], 2)} before, "
                f"{fixed(learned['pretrained'], 2)} after). There, but hardly used: {unused['task']} "
                f"({fixed(unused['pretrained'], 2)} of the {fixed(unused['ceiling'], 2)} that all directions hold)."
            ),
            "",
            f"{self.seconds:.0f} s. Report: {self.report}",
        ]
        return "\n".join(lines)


def run_demo(output: str | Path, *, progress: bool | None = None) -> Demo:
    """Score both models on every bundled task and write report.html, demo.json, demo.csv, demo.txt and the pictures.

    Args:
        output: Destination folder; created if it does not exist.
        progress: Whether to show progress bars on stderr; by default when it is a terminal.

    Raises:
        NtpsError: If the folder cannot be written, or a bundled file is damaged.
    """
    output = Path(output)
    started = time.perf_counter()
    tasks = {name: load_task(f"miniworld/{name}", n=N_TEXTS, split="test") for name in miniworld.task_names()}
    shared = tasks[SHOWN]  # all bundled tasks have the same texts, so one pass of each model serves them all
    assert {task.texts for task in tasks.values()} == {shared.texts}
    models = [(load_model(MODEL), "all"), (load_model(RANDOM), "-1")]
    pretrained, random = several_at_once(
        lambda pair: collect(pair[0], shared, layers=pair[1], batch_size=64, progress=progress), models
    )
    rows = list(several_at_once(lambda name: _row(name, tasks[name], pretrained, random), list(tasks)))
    rows.sort(key=lambda row: -row["pretrained"])
    demo = Demo(rows=rows, d=rows[0]["d"], k_v=rows[0]["k_v"], seconds=0.0, report=output / "report.html")
    _write(demo, output)
    write_report(score(pretrained, folds=FOLDS, probes=False), output / SHOWN)
    demo = replace(demo, seconds=time.perf_counter() - started)
    atomic_write(output / "demo.txt", f"{demo}\n")
    return demo


def _row(name: str, task: Task, pretrained: Representations, random: Representations) -> dict[str, Any]:
    """Return a task's row: what `score` gives for both models at the last layer, without its curves."""

    def read(solved: Solved) -> tuple[Solved, int, int, HeldOut]:
        k_u, k_v = chosen_ranks(solved, None, None)
        return solved, k_u, k_v, solved.held_out([k_v], keep=Keep(by_text=[]))

    (solved, k_u, k_v, after), (*_, before) = (
        next(solve_layers(each, labels_of(each, task.columns[0]), ScoreSettings(folds=FOLDS), read, layers=[layer]))
        for each, layer in ((pretrained, pretrained.layers[-1]), (random, random.layers[-1]))
    )
    return {
        "task": name,
        "ntps": solved.ntps_at(k_u, k_v),
        "chance": k_v / solved.d,
        "random": before.explained[0],
        "pretrained": after.explained[0],
        "ceiling": after.ceiling,
        "k_v": k_v,
        "d": solved.d,
        "question": miniworld.describe_task(name)["question"],
    }


def _write(demo: Demo, output: Path) -> None:
    import pandas as pd

    picture = draw_picture(
        "tasks.png",
        "R² before and after pretraining, by task",
        lambda figure: plot_tasks(demo.rows, figure.add_subplot()),
        figsize=(7.4, 0.34 * len(demo.rows) + 1.4),
    )
    columns = [
        Column("task", itemgetter("task"), words=True),
        Column("what it asks", itemgetter("question"), words=True),
        Column("random weights", itemgetter("random")),
        Column("pretrained", itemgetter("pretrained")),
        Column("all directions", itemgetter("ceiling")),
        Column("NTPS", itemgetter("ntps")),
        Column("chance", itemgetter("chance")),
    ]
    page = render(
        "demo.html",
        title="ntps demo",
        heading="What next-token prediction taught a miniature model",
        demo=demo,
        model=MODEL,
        n_texts=N_TEXTS,
        picture=picture,
        table=html_table(columns, demo.rows),
        shown=SHOWN,
    )
    content = {"model": MODEL, "random": RANDOM, "tasks": demo.rows}
    atomic_write(output / "demo.json", json_text(content))  # first: it says whose the folder is
    atomic_write(output / picture.file, picture.png)
    atomic_write(output / "demo.csv", csv_text(pd.DataFrame(demo.rows)))
    atomic_write(demo.report, page)
