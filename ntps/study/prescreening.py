"""Which tasks are worth fine-tuning for: the expected gain of each, from the frozen model alone.

Scores, ceilings and a probe of the frozen model cost one pass over the texts; the calibration (`ntps.study.calibration`)
turns them into an expected gain with an interval. Nothing is trained but the probe.
"""

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from ntps._files import jsonable
from ntps._text import counted, short_name
from ntps._version import __version__
from ntps.core.solve import score
from ntps.errors import NtpsError, in_range
from ntps.models.features import Features
from ntps.models.load import LanguageModel, load_model
from ntps.models.passes import collect
from ntps.models.plan import layer_at
from ntps.scoring.probes import linear_probe
from ntps.study.calibration import Calibration, load_calibration
from ntps.study.cells import load_named, name_tasks
from ntps.study.measure import DEFAULT_LIMIT
from ntps.study.study import DEPTH
from ntps.study.table import held_back
from ntps.tasks.load import Task

if TYPE_CHECKING:
    import pandas as pd

SCHEMA_VERSION = 1
COLUMNS = ("rank", "task", "expected", "low", "high", "verdict", "chosen", "accuracy", "held_back", "ntps")


@dataclass(frozen=True)
class Prescreening:
    """Tasks by expected gain, best first, those that failed last.

    Attributes:
        model: The model's name.
        rows: A dictionary a task: `task`, `status` ("done" or "failed"), `reason`; if done `n_texts`, `n_classes`,
            `accuracy`, `majority_rate`, `ntps` and `explained_heldout` (half the depth), `ceiling_heldout` (last
            layer), `held_back`, `expected`, `low`, `high` (gain in accuracy), `verdict`, `sentence`, `outside`,
            `chosen` (within the budget).
        budget: How many tasks may be fine-tuned; `None` for no limit.
        calibration: What made the forecasts.
        settings: `limit`, `max_length`, `folds`, `seed`.
    """

    model: str
    rows: tuple[dict[str, Any], ...]
    budget: int | None
    calibration: Calibration
    settings: dict[str, Any]

    def to_dataframe(self) -> "pd.DataFrame":
        """Return one row a task, best first."""
        import pandas as pd

        frame = pd.DataFrame(self.rows)
        frame.insert(0, "rank", range(1, len(frame) + 1))
        return frame

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return cast(
            "dict[str, Any]",
            jsonable(
                {
                    "schema_version": SCHEMA_VERSION,
                    "kind": "ntps-prescreening",
                    "version": __version__,
                    "model": self.model,
                    "budget": self.budget,
                    "settings": self.settings,
                    "tasks": list(self.rows),
                    "calibration": self.calibration.to_dict(),
                }
            ),
        )

    def to_json(self) -> str:
        """Return `to_dict()` as JSON text."""
        return json.dumps(self.to_dict(), indent=2, ensure_ascii=False, allow_nan=False)

    @property
    def basis(self) -> str:
        """Say what the forecasts rest on."""
        about, level = self.calibration.about, self.calibration.confidence
        error, plain = about["mean_absolute_error"], about["mean_absolute_error_of_the_mean_gain"]
        text = (
            f"Forecasts with {100 * level:.0f} % intervals, fitted on {counted(len(about['models']), 'model')} and "
            f"{counted(len(about['tasks']), 'task')} ({about.get('world', 'a study of your own')}); on tasks left out "
            f"their mean error is {100 * error:.1f} points, that of the mean gain {100 * plain:.1f}, and "
            f"{100 * self.calibration.coverage:.0f} % lie inside. Tasks of another kind may differ more."
        )
        read, fewest = about.get("limit"), min((row["n_texts"] for row in self.rows if "n_texts" in row), default=0)
        if read and fewest < 0.9 * read:
            text += (
                f" What is held back shows less with fewer texts: the fit read {read} of a task, here are as few as "
                f"{fewest}, so gains may be larger."
            )
        return text

    def __str__(self) -> str:
        import textwrap

        done = [row for row in self.rows if row["status"] == "done"]
        lines = [
            *textwrap.wrap(f"{short_name(self.model)}: {counted(len(done), 'task')} by expected gain of LoRA", 80),
            "",
        ]
        width = max([4, *(len(row["task"]) for row in done)])
        width = min(width, 28)
        lines.append(f"  {'task':{width}}  probe  gain  verdict")
        for row in done:
            mark = "*" if row["chosen"] and self.budget is not None else " "
            gain = f"{100 * row['expected']:+.0f}"
            star = " (outside what was fitted)" if row["outside"] else ""
            name = row["task"] if len(row["task"]) <= width else "…" + row["task"][1 - width :]
            first = f"{mark} {name:{width}}  {row['accuracy']:.2f}  {gain:>5}  "
            lines += textwrap.wrap(first + row["sentence"] + star, 80, subsequent_indent=" " * len(first))
        for row in self.rows:
            if row["status"] != "done":
                lines += ["", *textwrap.wrap(f"{row['task']} failed: {row['reason']}", 80)]
        if self.budget is not None:
            lines += ["", f"* within the budget of {self.budget}"]
        return "\n".join([*lines, "", *textwrap.wrap(self.basis, 80)])

    def _repr_html_(self) -> str:
        import html

        frame = self.to_dataframe()
        shown = frame[[name for name in COLUMNS if name in frame]]
        return f"{shown.round(3).to_html(index=False)}<p>{html.escape(self.basis)}</p>"


def prescreen(
    model: "str | Path | LanguageModel",
    tasks: Sequence[str | Task],
    *,
    budget: int | None = None,
    calibration: Calibration | None = None,
    limit: int | None = DEFAULT_LIMIT,
    max_length: int | None = None,
    folds: int = 5,
    seed: int = 0,
    batch_size: int = 32,
    say: Callable[[str], None] | None = None,
    progress: bool | None = False,
    **loading_options: Any,
) -> Prescreening:
    """Rank tasks by the accuracy that fine-tuning with LoRA is expected to gain on them.

    Args:
        model: A name or path as for `ntps.load_model`, or a model loaded by it.
        tasks: Names, files (`NAME=PATH` names one) or `Task` objects, with different names.
        budget: How many tasks may be fine-tuned; the first so many whose verdict is not `"little"` are marked `chosen`.
        calibration: From `ntps.calibrate` or `load_calibration`; the bundled one when `None`.
        limit: Most texts of a task, a seeded random sample.
        max_length: As in `ntps.collect_moments`.
        folds: Folds of probe and held-out shares, at least 3.
        seed: Seed of sample and folds.
        batch_size: As in `ntps.collect_moments`.
        say: Told which task failed, and why; prints to stderr by default.
        progress: Show the passes' bars on stderr.
        **loading_options: For `ntps.load_model`.

    Raises:
        NtpsError: If an option is out of range, two tasks have one name, the model cannot be loaded, or every task
            fails.
    """
    if not tasks:
        raise NtpsError("prescreening needs at least one task.")
    if budget is not None:
        in_range(budget, 1, None, "budget")
    if limit is not None:
        in_range(limit, 10, None, "limit")
    in_range(folds, 3, None, "folds")
    in_range(seed, 0, None, "seed")
    tell = say or (lambda message: print(f"ntps: {message}", file=sys.stderr))
    named = name_tasks(tasks)
    calibration = calibration or load_calibration()
    loaded = load_model(model, **loading_options)
    rows: list[dict[str, Any]] = []
    for name, source in named.items():
        try:
            task = load_named(name, source, limit, seed)
            known = frozen_inputs(
                loaded, task, max_length=max_length, folds=folds, seed=seed, batch_size=batch_size, progress=progress
            )
            forecast = calibration.forecast(known)
        except NtpsError as error:
            tell(f"{name} failed: {error}")
            rows.append({"task": name, "status": "failed", "reason": str(error)})
            continue
        found = {**vars(forecast), "outside": list(forecast.outside), "sentence": forecast.sentence}
        rows.append({"task": name, "status": "done", "reason": None, **known, **found})
    if all(row["status"] == "failed" for row in rows):
        raise NtpsError(f"every task failed; the first because: {rows[0]['reason']}")
    rows.sort(key=lambda row: -row.get("expected", -float("inf")))
    left = len(rows) if budget is None else budget
    for row in rows:
        if row["status"] == "done":
            row["chosen"] = left > 0 and row["verdict"] != "little"
            left -= row["chosen"]
    settings = {"limit": limit, "max_length": max_length, "folds": folds, "seed": seed}
    return Prescreening(loaded.name, tuple(rows), budget, calibration, settings)


def frozen_inputs(
    model: LanguageModel,
    task: Task,
    *,
    max_length: int | None = None,
    folds: int = 5,
    seed: int = 0,
    batch_size: int = 32,
    progress: bool | None = False,
) -> dict[str, Any]:
    """Return what a study's table says of a frozen model on a task, by the same names, from one pass.

    Raises:
        NtpsError: As `ntps.collect_moments`.
    """
    moments, kept = collect(
        model, task, max_length=max_length, folds=folds, seed=seed, batch_size=batch_size, progress=progress
    )
    features = cast(Features, kept)  # there by default
    scored = score(moments)
    ceilings = [cast(float, layer.ceiling_heldout) for layer in scored.layers]
    middle = scored.layers[layer_at(DEPTH, len(scored.layers))]
    last = scored.layers[-1].layer
    probe = linear_probe(features.layer(last), features.labels, folds=cast(Any, features.folds), random_state=seed)
    return {
        "n_texts": scored.n_texts,
        "n_classes": scored.n_classes,
        "accuracy": probe.accuracy,
        "majority_rate": probe.majority_rate,
        "ntps": middle.ntps,
        "explained_heldout": middle.explained_heldout,
        "ceiling_heldout": ceilings[-1],
        "held_back": held_back(ceilings),
    }
