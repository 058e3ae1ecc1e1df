"""Rank tasks by the gain that fine-tuning is expected to bring, from the frozen model and a short look at training.

Scores and a probe of the frozen model cost one pass over the texts, and tasks on equal texts share it. A look
(`ntps.finetune.look`) takes the first steps of the training that would follow. A calibration (`ntps.study.calibration`)
turns what is known into an expected gain with an interval; each number of steps has its own.
"""

import logging
import math
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from ntps._files import Record, from_json, jsonable, picked
from ntps._names import file_names, short_name
from ntps._processes import refuse_processes
from ntps._text import WIDTH, counted, duration, listed, wrap
from ntps._version import __version__
from ntps.errors import NtpsError, in_range, one_of, reason_of, whole
from ntps.finetune.look import Look, look_at_training
from ntps.finetune.settings import LOOK_STEPS, TrainSettings
from ntps.models import LanguageModel, Representations, collect, load_model
from ntps.models.plan import layer_at
from ntps.scoring import ScoreSettings, labels_of, score_layers
from ntps.scoring.headline import curve_of
from ntps.scoring.readouts import choose_layer
from ntps.scoring.scores import folds_of
from ntps.study.calibration import BUNDLED_STEPS, Calibration, GainForecast, load_calibration
from ntps.study.grid import load_named, name_tasks
from ntps.study.measure import SampleSettings, held_back, probe_record, scored_and_probed
from ntps.study.study import DEPTH
from ntps.tasks import Task, TaskSource
from ntps.tasks.given import need_classes

if TYPE_CHECKING:
    import pandas as pd

SCHEMA_VERSION = 2
COLUMNS = ("rank", "task", "expected", "low", "high", "verdict", "chosen", "accuracy", "held_back", "slope", "saved",
           "next")  # fmt: skip
FROZEN = ("accuracy", "majority_rate", "ntps", "explained_heldout", "ceiling_heldout", "held_back", "n_texts",
          "n_classes")  # fmt: skip
MEASURED = (*FROZEN, "saved")

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class PrescreenSettings(SampleSettings):
    """Options of a prescreening, apart from model, tasks and calibration; further ones are those of `SampleSettings`.

    Attributes:
        seed: Seed of sample, halves, folds and training.
        seeds: Number of seeds, from `seed` on, over which halves, folds and looks are averaged.

    Raises:
        NtpsError: If an option is out of range.
    """

    seed: int = 0
    seeds: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        whole(self.seed, 0, None, "seed")
        whole(self.seeds, 1, None, "seeds")


@dataclass(frozen=True, kw_only=True)
class Prescreening(Record):
    """Tasks by expected gain, best first, those that failed last.

    Attributes:
        model: The model's name.
        rows: One dictionary per task: `task`, `status` ("done" or "failed"), `reason`; if done `n_texts`, `n_classes`,
            `accuracy`, `room` (1 - accuracy), `majority_rate`, `ntps` and `explained_heldout` (half the depth),
            `ceiling_heldout` (last layer), `held_back`, `profile` (held-out R^2 of each layer), `slope` (what the last
            doubling of training texts added to that of the best layer; NaN where they are too few for a curve),
            `expected`, `low`, `high` (gain in accuracy), `verdict`, `sentence`, `outside`, `chosen` (within the
            budget); `steps` of the look (0 without one), `saved` (nats, `None` without), `seconds` (spent on the task),
            `seconds_left` (what the rest of its training would take), `gain_per_minute` (`expected` over that; both
            `None` without a look) and `next`, the next cheapest thing to try, in words.
        budget: Number of tasks that may be fine-tuned; `None` for no limit.
        calibrations: Those behind the forecasts, by `steps`.
        settings: Options of the prescreening.
        training: Options of the training that was looked at, and that would follow.
        seconds: What it all took, without loading the model.
    """

    model: str
    rows: tuple[dict[str, Any], ...]
    budget: int | None
    calibrations: tuple[Calibration, ...]
    settings: PrescreenSettings
    training: TrainSettings
    seconds: float

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
                **picked(self, "model", "budget", "settings", "training", "seconds"),
                "tasks": self.rows,
                "calibrations": self.calibrations,
            }
        )

    @property
    def basis(self) -> str:
        """The basis of the forecasts, in words."""
        done = [row for row in self.rows if row["status"] == "done"]
        text = " ".join(_basis(each) for each in self.calibrations if each.steps in {row["steps"] for row in done})
        read = max((each.about.get("limit") or 0 for each in self.calibrations), default=0)
        fewest = min((row["n_texts"] for row in done), default=0)
        if fewest < 0.9 * read:
            text += f" The fit read {read} texts per task, this run as few as {fewest}, so gains may be larger."
        text += f" All this took {duration(self.seconds)}."
        if left := [row["seconds_left"] for row in done if row["seconds_left"] is not None]:
            text += f" Training to the end what was looked at: about {duration(sum(left))}."
        return text

    def __str__(self) -> str:
        done = [row for row in self.rows if row["status"] == "done"]
        lines = [
            *wrap(f"{short_name(self.model)}: {counted(len(done), 'task')} by expected gain of LoRA"),
            "",
        ]
        width = max([4, *(len(row["task"]) for row in done)])
        width = min(width, 28)
        lines.append(f"  {'task':{width}}  probe  room  gain  verdict")
        for row in done:
            mark = "*" if row["chosen"] and self.budget is not None else " "
            gain = f"{100 * row['expected']:+z.0f}"
            star = f" ({listed(row['outside'])} outside what was fitted)" if row["outside"] else ""
            name = row["task"] if len(row["task"]) <= width else "…" + row["task"][1 - width :]
            first = f"{mark} {name:{width}}  {row['accuracy']:.2f}  {100 * row['room']:4.0f}  {gain:>4}  "
            verdict = wrap(row["sentence"] + star, WIDTH - len(first))
            lines.append(first + ("\n" + " " * len(first)).join(verdict))
            for sentence in (_reading(row), f"next: {row['next']}" if row["next"] else ""):
                lines += ["    " + line for line in wrap(sentence, WIDTH - 4)]
        for row in self.rows:
            if row["status"] != "done":
                lines += ["", *wrap(f"{row['task']} failed: {row['reason']}")]
        if self.budget is not None:
            lines += ["", f"* within the budget of {self.budget}"]
        return "\n".join([*lines, "", *wrap(self.basis)])

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
    probe_steps: int | None = None,
    budget_seconds: float | None = None,
    calibration: Calibration | None = None,
    settings: PrescreenSettings | None = None,
    training: TrainSettings | None = None,
    output: str | Path | None = None,
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
        probe_steps: Number of first training steps to look at, one of `BUNDLED_STEPS`; 0 for the frozen model alone. By
            default 20, or what the calibration reads.
        budget_seconds: With it, looks are taken only where the forecast is not decided, longer ones where it still is
            not after shorter ones, the largest possible gain first, and none is begun after this time. Without, every
            task is looked at.
        calibration: From `ntps.calibrate` or `load_calibration`; the bundled ones when `None`.
        settings: See `PrescreenSettings`; its defaults when `None`.
        training: Options of the training that would follow; when `None` those that the calibration was fitted on, which
            for the bundled ones are the defaults.
        output: Folder for the states of the looks, one folder per task, from which `ntps lora --resume` goes on.
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
    if budget_seconds is not None:
        in_range(budget_seconds, 0, None, "budget_seconds")
    settings = settings or PrescreenSettings()
    named = name_tasks(tasks)
    need_classes(named.values(), "a prescreening")
    rounds = _rounds(calibration, probe_steps, each=budget_seconds is not None)
    training = training or _training_of(calibration, settings)
    loaded = model if isinstance(model, LanguageModel) else load_model(model)
    started = time.perf_counter()
    candidates = [_Candidate(name) for name in named]
    for candidate in candidates:
        candidate.load(named[candidate.name], settings)
    _refuse_all(candidates)
    for candidate in candidates:
        if candidate.fault is not None:
            candidate.fail(candidate.fault)
    if rounds[-1].steps:
        logger.info(
            "%s: one pass each, then at most %d steps of training.", counted(len(candidates), "task"), rounds[-1].steps
        )  # fmt: skip
    _freeze(loaded, candidates, rounds[0], settings, batch_size=batch_size, progress=progress)
    folders = dict(zip(named, file_names(list(named)), strict=True))
    with tempfile.TemporaryDirectory() if output is None else nullcontext(output) as place:
        for fitted in (each for each in rounds if each.steps):
            for candidate in sorted((each for each in candidates if each.wants_look(budget_seconds)), key=_possible):
                longest = max(sum(look.seconds for look in each.looks) for each in candidates)
                if budget_seconds is None or time.perf_counter() - started + longest <= budget_seconds:
                    candidate.look(loaded, fitted, training, settings, Path(place) / folders[candidate.name])
    for candidate in candidates:
        if candidate.fault is None and candidate.forecast is None:
            candidate.fail(
                NtpsError(f"budget_seconds is {budget_seconds:g}: no time was left to look at its training.")
            )
    _refuse_all(candidates)
    rows = [each.row(bundled=calibration is None) for each in candidates]
    ordered = sorted(rows, key=lambda row: -row.get("expected", -math.inf))
    left = len(ordered) if budget is None else budget
    for row in ordered:
        if row["status"] == "done":
            row["chosen"] = left > 0 and row["verdict"] != "little"
            left -= row["chosen"]
    return Prescreening(
        model=loaded.name,
        rows=tuple(ordered),
        budget=budget,
        calibrations=rounds,
        settings=settings,
        training=training,
        seconds=time.perf_counter() - started,
    )


def _rounds(calibration: Calibration | None, probe_steps: int | None, *, each: bool) -> tuple[Calibration, ...]:
    """Return what forecasts by turns, from few steps to many; without `each`, nothing between 0 and the last."""
    if calibration is None:
        last = one_of(LOOK_STEPS if probe_steps is None else probe_steps, BUNDLED_STEPS, "probe_steps")
        return tuple(load_calibration(steps=n) for n in BUNDLED_STEPS if n in (0, last) or (each and n < last))
    if unknown := [name for name in calibration.inputs if name not in MEASURED]:
        raise NtpsError(
            f"the calibration needs {unknown[0]!r}, which a prescreening does not measure; fit one on some of: "
            f"{', '.join(MEASURED)}."
        )
    if probe_steps not in (None, calibration.steps):
        raise NtpsError(f"probe_steps is {probe_steps}; the calibration reads a look of {calibration.steps} steps.")
    return (calibration,)


@dataclass
class _Candidate:
    """A task, and what is known of it so far."""

    name: str
    task: Task | None = None
    inputs: dict[str, Any] = field(default_factory=dict)
    forecast: GainForecast | None = None
    looks: tuple[Look, ...] = ()
    seconds: float = 0.0
    fault: Exception | None = None

    def load(self, source: Task | TaskSource, settings: PrescreenSettings) -> None:
        try:
            self.task = load_named(source, settings.limit, settings.seed)
        except Exception as error:  # the other tasks go on
            self.fault = error

    def fail(self, error: Exception) -> None:
        self.fault = error
        trace = None if isinstance(error, NtpsError) else error
        level = logging.ERROR if trace else logging.WARNING
        logger.log(level, "%s failed: %s", self.name, reason_of(error), exc_info=trace)

    def wants_look(self, budget_seconds: float | None) -> bool:
        """Whether a look is to be taken: with a budget, not where the forecast is decided."""
        decided = self.forecast is not None and self.forecast.verdict != "unknown"
        return self.fault is None and (budget_seconds is None or not decided)

    def look(
        self,
        model: LanguageModel,
        fitted: Calibration,
        training: TrainSettings,
        settings: PrescreenSettings,
        place: Path,
    ) -> None:
        """Forecast after the first steps of training; what was forecast before stays if they fail."""
        task, looks = cast(Task, self.task), []
        mark = time.perf_counter()
        try:
            for seed in range(settings.seed, settings.seed + settings.seeds):
                folder = place if settings.seeds == 1 else place / f"seed-{seed}"  # as `repeat` names them
                looks.append(
                    look_at_training(
                        model, task, steps=fitted.steps, settings=training, seed=seed, output=folder,
                        resume=bool(self.looks),
                    )
                )  # fmt: skip
            inputs = {**self.inputs, "saved": float(np.mean([look.kept for look in looks]))}
            self.forecast, self.inputs, self.looks = fitted.forecast(inputs), inputs, tuple(looks)
        except Exception as error:
            if self.forecast is None:
                self.fail(error)
            else:
                logger.warning("%s: no look of %d steps: %s", self.name, fitted.steps, reason_of(error))
        self.seconds += time.perf_counter() - mark

    def row(self, *, bundled: bool) -> dict[str, Any]:
        """Return the row of `Prescreening.rows`."""
        if self.fault is not None or self.forecast is None:
            return {"task": self.name, "status": "failed", "reason": reason_of(cast(Exception, self.fault))}
        forecast = self.forecast
        steps = self.looks[0].steps if self.looks else 0
        left = float(np.mean([look.seconds_left for look in self.looks])) if self.looks else None
        longer = next((n for n in BUNDLED_STEPS if n > steps), None) if bundled else None
        pace = left / (self.looks[0].all_steps - steps) if left else None  # none is left of a run looked at whole
        per_minute = forecast.expected / left * 60 if left else None
        if forecast.verdict == "little":
            following = ""
        elif forecast.verdict == "unknown" and longer is not None:
            following = f"a look of {longer} steps"
            following += "" if pace is None else f", about {duration(pace * (longer - steps))}"
        else:
            following = f"train, about {duration(left)}" if left else "train"
            following += "" if per_minute is None else f", {100 * per_minute:+z.1f} points a minute"
        return {
            "task": self.name, "status": "done", "reason": None, "saved": None, **self.inputs,
            "room": 1 - self.inputs["accuracy"], **vars(forecast), "outside": list(forecast.outside),
            "sentence": forecast.sentence, "steps": steps, "seconds": self.seconds, "seconds_left": left,
            "gain_per_minute": per_minute, "next": following,
        }  # fmt: skip


def _possible(candidate: _Candidate) -> float:
    """The order of looks: the largest possible gain first."""
    return -math.inf if candidate.forecast is None else -candidate.forecast.high


def _training_of(calibration: Calibration | None, settings: PrescreenSettings) -> TrainSettings:
    """Return the training that a calibration of one's own was fitted on, or the default."""
    known = None if calibration is None else calibration.about.get("training")
    training = TrainSettings() if known is None else from_json(TrainSettings, known, "the calibration's training")
    return training if settings.max_length is None else replace(training, max_length=settings.max_length)


def _refuse_all(candidates: Sequence[_Candidate]) -> None:
    """Raise if no task is left."""
    if all(each.fault is not None for each in candidates):
        first, fault = candidates[0].name, cast(Exception, candidates[0].fault)
        raise NtpsError(f"every task failed; the first, {first}, because: {reason_of(fault)}") from fault


def _freeze(
    model: LanguageModel,
    candidates: Sequence[_Candidate],
    fitted: Calibration,
    settings: PrescreenSettings,
    *,
    batch_size: int,
    progress: bool | None,
) -> None:
    """Measure what the frozen model says of each task; equal texts share a pass. Forecast if no look is needed."""
    by_texts: dict[str, list[_Candidate]] = {}
    for candidate in candidates:
        if candidate.task is not None:
            by_texts.setdefault(candidate.task.texts_fingerprint, []).append(candidate)
    for group in by_texts.values():
        representations = None
        for candidate in group:
            task, mark = cast(Task, candidate.task), time.perf_counter()
            try:
                representations = replace(
                    representations
                    or collect(model, task, max_length=settings.max_length, batch_size=batch_size, progress=progress),
                    task=task,
                )
                measured = [
                    frozen_inputs(representations, halves=fitted.halves, folds=settings.folds, seed=seed)
                    for seed in range(settings.seed, settings.seed + settings.seeds)
                ]
                candidate.inputs = {name: _mean([each[name] for each in measured]) for name in measured[0]}
                if not fitted.steps:
                    candidate.forecast = fitted.forecast(candidate.inputs)
            except Exception as error:
                candidate.fail(error)
            candidate.seconds = time.perf_counter() - mark


def _mean(values: Sequence[Any]) -> Any:
    """Return the mean over seeds, layer by layer of a profile; a number of texts or classes as it is."""
    return values[0] if isinstance(values[0], int) else np.mean(values, axis=0).tolist()


def _reading(row: Mapping[str, Any]) -> str:
    """Return which layer reads a task's labels best, and whether more texts would help, in words."""
    profile = row["profile"]
    best, last = int(np.argmax(profile)), len(profile) - 1
    if profile[best] <= 0:
        return "no layer reads the labels"
    text = f"layer {best} of {last} reads best: R2 {profile[best]:.2f}"
    text += "" if best == last else f" (last {profile[last]:z.2f})"
    return text if math.isnan(row["slope"]) else f"{text}; doubling the texts gave {row['slope']:+z.2f}"


def _basis(fitted: Calibration) -> str:
    """Return what a calibration's forecasts are worth."""
    about = fitted.about
    error, margin = about["mean_absolute_error"], about["margin"]
    none, plain = (about[f"mean_absolute_error_of_{name}"] for name in ("no_gain", "the_mean_gain"))
    better = "not shown to be better" if not margin["low"] > 0 else "better"
    after = f"Forecasts after {fitted.steps} steps" if fitted.steps else "Forecasts from the frozen model"
    return (
        f"{after} with {100 * fitted.confidence:.0f} % intervals, fitted on {counted(about['runs'], 'run')} of "
        f"{counted(len(about['models']), 'model')} on {counted(len(about['tasks']), 'task')} "
        f"({about.get('world', 'a study of your own')}). On tasks left out "
        f"their mean error is {100 * error:.1f} points; that of predicting no gain is {100 * none:.1f}, so they "
        f"are {better} (by {100 * margin['mean']:z.1f} [{100 * margin['low']:z.1f}, {100 * margin['high']:z.1f}] over "
        f"tasks), that of the mean gain {100 * plain:z.1f}. On average over tasks "
        f"{100 * fitted.coverage:.0f} % of gains lie inside; tasks of another kind may differ more."
    )


def frozen_inputs(
    representations: Representations, *, halves: bool = False, folds: int = 5, seed: int = 0
) -> dict[str, Any]:
    """Return the inputs of a forecast for a frozen model on a task, named and measured as in a study's table.

    Args:
        representations: From `ntps.collect` of a task, all layers.
        halves: Whether to score one half of the texts and probe the other, as a study does, or all texts both times.
        folds: Number of folds.
        seed: Seed of halves and folds.

    Raises:
        NtpsError: If the folds do not fit the labels, or a layer cannot be solved.
    """
    labels = probed = labels_of(representations)
    n_texts = len(labels.values)
    if halves:
        labels, probed = scored_and_probed(labels, seed)
    settings = ScoreSettings(folds=folds, seed=seed)
    fold_of = cast(np.ndarray, folds_of(labels, settings))
    layers, readouts = [], []
    for row in score_layers(representations, labels, settings):  # solutions are not kept
        layers.append(row.score)
        readouts.append(row.readouts["all"])
    middle = layers[layer_at(DEPTH, len(layers))]
    choice = choose_layer(representations.layers, readouts, fold_of)
    curve = curve_of(representations, labels, fold_of, choice, seed=seed)
    probe = probe_record(representations, probed, settings)
    return {
        "n_texts": n_texts,
        "n_classes": labels.n_classes,
        "accuracy": probe["accuracy"],
        "majority_rate": probe["majority_rate"],
        "ntps": middle.ntps,
        "explained_heldout": middle.explained_heldout,
        "ceiling_heldout": layers[-1].ceiling_heldout,
        "held_back": held_back(representations.layers, readouts, fold_of),
        "profile": [readout.r2 for readout in readouts],
        "slope": math.nan if curve is None else curve.r2[-1] - curve.r2[-2],
    }
