"""Rank tasks by the gain that fine-tuning is expected to bring, from the frozen model alone.

Scores, ceilings and a probe of the frozen model cost one pass over the texts, and tasks on equal texts share it; the
calibration (`ntps.study.calibration`) turns them into an expected gain with an interval. Nothing is trained but the
probe.
"""

import json
import logging
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from ntps._files import jsonable
from ntps._names import short_name
from ntps._processes import refuse_processes
from ntps._text import counted
from ntps._version import __version__
from ntps.errors import NtpsError, whole
from ntps.models import LanguageModel, Representations, collect, load_model
from ntps.models.plan import layer_at
from ntps.scoring import ScoreSettings, labels_of, score_layers
from ntps.scoring.scores import folds_of
from ntps.study.calibration import Calibration, load_calibration
from ntps.study.grid import load_named, name_tasks, reason_of
from ntps.study.measure import SampleSettings, halves, held_back, probe_record
from ntps.study.study import DEPTH
from ntps.tasks import Task, TaskSource
from ntps.tasks.given import need_classes

if TYPE_CHECKING:
    import pandas as pd

SCHEMA_VERSION = 1
COLUMNS = ("rank", "task", "expected", "low", "high", "verdict", "chosen", "accuracy", "held_back", "ntps")
MEASURED = ("accuracy", "majority_rate", "ntps", "explained_heldout", "ceiling_heldout", "held_back", "n_texts",
            "n_classes")  # fmt: skip

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class PrescreenSettings(SampleSettings):
    """Options of a prescreening, apart from model, tasks and calibration; further ones are those of `SampleSettings`.

    Attributes:
        seed: Seed of sample, halves and folds.

    Raises:
        NtpsError: If an option is out of range.
    """

    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        whole(self.seed, 0, None, "seed")


@dataclass(frozen=True, kw_only=True)
class Prescreening:
    """Tasks by expected gain, best first, those that failed last.

    Attributes:
        model: The model's name.
        rows: One dictionary per task: `task`, `status` ("done" or "failed"), `reason`; if done `n_texts`, `n_classes`,
            `accuracy`, `majority_rate`, `ntps` and `explained_heldout` (half the depth), `ceiling_heldout` (last
            layer), `held_back`, `expected`, `low`, `high` (gain in accuracy), `verdict`, `sentence`, `outside`,
            `chosen` (within the budget).
        budget: Number of tasks that may be fine-tuned; `None` for no limit.
        calibration: The calibration behind the forecasts.
        settings: Options of the prescreening.
    """

    model: str
    rows: tuple[dict[str, Any], ...]
    budget: int | None
    calibration: Calibration
    settings: PrescreenSettings

    def to_dataframe(self) -> "pd.DataFrame":
        """Return one row per task, best first."""
        import pandas as pd

        frame = pd.DataFrame(self.rows)
        frame.insert(0, "rank", range(1, len(frame) + 1))
        return frame

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return jsonable(
            {
                "schema_version": SCHEMA_VERSION,
                "kind": "ntps-prescreening",
                "version": __version__,
                "model": self.model,
                "budget": self.budget,
                "settings": asdict(self.settings),
                "tasks": list(self.rows),
                "calibration": self.calibration.to_dict(),
            }
        )

    def to_json(self) -> str:
        """Return `to_dict()` as JSON text."""
        return json.dumps(self.to_dict(), indent=2, ensure_ascii=False, allow_nan=False)

    @property
    def basis(self) -> str:
        """The basis of the forecasts, in words."""
        about, level = self.calibration.about, self.calibration.confidence
        error, margin = about["mean_absolute_error"], about["margin"]
        none, plain = (about[f"mean_absolute_error_of_{name}"] for name in ("no_gain", "the_mean_gain"))
        better = "not shown to be better" if not margin["low"] > 0 else "better"
        text = (
            f"Forecasts with {100 * level:.0f} % intervals, fitted on {counted(len(about['models']), 'model')} and "
            f"{counted(len(about['tasks']), 'task')} ({about.get('world', 'a study of your own')}). On tasks left out "
            f"their mean error is {100 * error:.1f} points; that of predicting no gain is {100 * none:.1f}, so they "
            f"are {better} (by {100 * margin['mean']:.1f} [{100 * margin['low']:.1f}, {100 * margin['high']:.1f}] over "
            f"tasks), that of the mean gain {100 * plain:.1f}. On average over tasks "
            f"{100 * self.calibration.coverage:.0f} % of gains lie inside; tasks of another kind may differ more."
        )
        read, fewest = about.get("limit"), min((row["n_texts"] for row in self.rows if "n_texts" in row), default=0)
        if read and fewest < 0.9 * read:
            text += f" The fit read {read} texts per task, this run as few as {fewest}, so gains may be larger."
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
            gain = f"{100 * row['expected']:+z.0f}"
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
    tasks: Sequence[str | Task | TaskSource],
    *,
    budget: int | None = None,
    calibration: Calibration | None = None,
    settings: PrescreenSettings | None = None,
    batch_size: int = 32,
    progress: bool | None = None,
) -> Prescreening:
    """Rank tasks by the gain in accuracy that is expected from fine-tuning with LoRA.

    Args:
        model: A name or path for `ntps.load_model`, or a model that it has loaded.
        tasks: Names and files, as `NAME=PATH:OPTION,...` (see `ntps.tasks.TaskSource`), or `Task` objects, with
            different names.
        budget: Number of tasks that may be fine-tuned: that many, the best first, are marked `chosen`, unless their
            verdict is `"little"`.
        calibration: From `ntps.calibrate` or `load_calibration`; the bundled one when `None`.
        settings: See `PrescreenSettings`; its defaults when `None`.
        batch_size: As in `ntps.collect`.
        progress: Whether to show progress bars on stderr; by default when it is a terminal.

    Raises:
        NtpsError: If an option is out of range, two tasks have the same name, the model cannot be loaded, or every task
            fails.
    """
    refuse_processes("a prescreening")
    if not tasks:
        raise NtpsError("prescreening needs at least one task.")
    if budget is not None:
        whole(budget, 1, None, "budget")
    settings = settings or PrescreenSettings()
    named = name_tasks(tasks)
    need_classes(named.values(), "a prescreening")
    calibration = calibration or load_calibration()
    if unknown := [name for name in calibration.inputs if name not in MEASURED]:
        raise NtpsError(
            f"the calibration needs {unknown[0]!r}, which a prescreening does not measure; fit one on some of: "
            f"{', '.join(MEASURED)}."
        )
    loaded = model if isinstance(model, LanguageModel) else load_model(model)
    rows: dict[str, dict[str, Any]] = {}

    def fail(name: str, error: Exception) -> None:
        rows[name] = {"task": name, "status": "failed", "reason": reason_of(error)}
        trace = None if isinstance(error, NtpsError) else error
        logger.log(logging.ERROR if trace else logging.WARNING, "%s failed: %s", name, error, exc_info=trace)

    by_texts: dict[str, list[tuple[str, Task]]] = {}
    unread: dict[str, Exception] = {}
    for name, source in named.items():
        try:
            task = load_named(source, settings.limit, settings.seed)
            by_texts.setdefault(task.texts_fingerprint, []).append((name, task))
        except Exception as error:  # the other tasks go on
            unread[name] = error
    if not by_texts:  # nothing can be ranked: say so at once
        name, fault = next(iter(unread.items()))
        raise NtpsError(f"every task failed; the first, {name}, because: {reason_of(fault)}") from fault
    for name, fault in unread.items():
        fail(name, fault)
    options: dict[str, Any] = {"max_length": settings.max_length, "batch_size": batch_size, "progress": progress}
    for group in by_texts.values():
        representations = None
        for name, task in group:
            try:
                representations = replace(representations or collect(loaded, task, **options), task=task)
                inputs = frozen_inputs(representations, folds=settings.folds, seed=settings.seed)
                forecast = calibration.forecast(inputs)
            except Exception as error:
                fail(name, error)
                continue
            expected = {**vars(forecast), "outside": list(forecast.outside), "sentence": forecast.sentence}
            rows[name] = {"task": name, "status": "done", "reason": None, **inputs, **expected}
    ordered = sorted((rows[name] for name in named), key=lambda row: -row.get("expected", -math.inf))
    if ordered[0]["status"] == "failed":
        raise NtpsError(f"every task failed; the first, {ordered[0]['task']}, because: {ordered[0]['reason']}")
    left = len(ordered) if budget is None else budget
    for row in ordered:
        if row["status"] == "done":
            row["chosen"] = left > 0 and row["verdict"] != "little"
            left -= row["chosen"]
    return Prescreening(
        model=loaded.name, rows=tuple(ordered), budget=budget, calibration=calibration, settings=settings
    )


def frozen_inputs(representations: Representations, *, folds: int = 5, seed: int = 0) -> dict[str, Any]:
    """Return the inputs of a forecast for a frozen model on a task, named and measured as in a study's table.

    Args:
        representations: From `ntps.collect` of a task, all layers.
        folds: Number of folds.
        seed: Seed of halves and folds.

    Raises:
        NtpsError: If the folds do not fit the labels, or a layer cannot be solved.
    """
    labels, probed = halves(labels_of(representations), seed)
    settings = ScoreSettings(folds=folds, seed=seed)
    fold_of = cast(np.ndarray, folds_of(labels, settings))
    layers, readouts = [], []
    for row in score_layers(representations, labels, settings):  # solutions are not kept
        layers.append(row.score)
        readouts.append(row.readouts["all"])
    middle = layers[layer_at(DEPTH, len(layers))]
    probe = probe_record(representations, probed, settings)
    return {
        "n_texts": len(labels.values) + len(probed.values),
        "n_classes": labels.n_classes,
        "accuracy": probe["accuracy"],
        "majority_rate": probe["majority_rate"],
        "ntps": middle.ntps,
        "explained_heldout": middle.explained_heldout,
        "ceiling_heldout": layers[-1].ceiling_heldout,
        "held_back": held_back(representations.layers, readouts, fold_of),
    }
