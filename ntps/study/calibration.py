"""Calibrations: a small regression from inputs known before fine-tuning to its gain, with interval and verdict.

The regression is linear in few inputs (`INPUTS`), and its forecast lies between 0, since training that does not help is
not kept, and the room above the probe. Its interval comes from its errors on tasks left out, not from its
fit: quantiles of these errors, each a share of the room above the probe, 1 - accuracy. Cells of one task are not
independent, so tasks are what is counted: each of T tasks weighs 1 / (T + 1), shared by its cells, and the rest lies
beyond every error (Lee, Barber, Willett, *Distribution-free inference with hierarchical data*, arXiv 2306.06342, 2023).
With fewer than nine tasks an interval of 80 % is therefore all that can be.
What the intervals cover holds on average over tasks of the calibration's kind, not for each task: one fitted on a
generated language says little about film reviews. `about` says what it was fitted on.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ntps._files import Record, from_json, jsonable, local_path, read_json, sha256_json
from ntps._version import __version__
from ntps.errors import NtpsError, in_range, one_of, whole
from ntps.finetune.settings import LOOK_STEPS
from ntps.study.gain import mean_of_tasks

if TYPE_CHECKING:
    import pandas as pd

CALIBRATION_SCHEMA = 3
BUNDLED = "gain_calibration_{steps}.json"
BUNDLED_STEPS = (0, 20, 50)  # of the look that each bundled calibration reads
MIN_TASKS = 6
LEAST_ROOM = 0.01  # above a probe that is right throughout
WORTH = 1  # points of accuracy; less is not worth the training
INPUTS = {
    "accuracy": "accuracy of the frozen linear probe of the last layer, cross-validated",
    "held_back": "held-out R^2 of the layer that is best on other folds minus that of the last layer",
    "saved": "validation loss that the first steps of training save, in nats; 0 where they save none",
}


@dataclass(frozen=True, kw_only=True)
class GainForecast:
    """The expected gain on one task.

    Attributes:
        expected: Accuracy after minus before, in [-1, 1].
        low, high: Ends of the interval.
        verdict: `"little"` when the upper end is at most `WORTH` (one point, as printed), `"pays"` when the lower end
            is at least that, else `"unknown"`.
        outside: Inputs that lie outside the calibration's ranges.
    """

    expected: float
    low: float
    high: float
    verdict: str
    outside: tuple[str, ...]

    @property
    def sentence(self) -> str:
        """The verdict in words, gains in points of accuracy."""
        low, high = (f"{round(100 * value):+d}" for value in (self.low, self.high))
        if self.verdict == "pays":
            return f"LoRA likely pays: {low} to {high} points"
        if self.verdict == "little":
            return f"little to gain: {low} to {high} points"
        return f"no evidence either way: {low} to {high} points"


@dataclass(frozen=True, kw_only=True)
class Calibration(Record):
    """A fitted regression of the gain.

    Attributes:
        inputs: Names of the inputs, columns of a study's table.
        steps: Number of first training steps after which `saved` is read; 0 where it is not an input.
        halves: Whether scores and probe were read from one half of the texts each, as in a study, or all from all.
        coefficients: Intercept, then one for each input.
        errors: By task, gain minus prediction of its cells as a share of the room above their probe, each predicted
            without the task.
        ranges: Smallest and largest value of each input in the fit.
        confidence: Level of the intervals.
        coverage: Share of cells inside their interval when task and errors are both left out, on average over tasks.
        about: What it was fitted on: `models`, `tasks`, `runs` (their number), `mean_absolute_error` on tasks left out,
            the same of the baselines, `mean_absolute_error_of_no_gain` and `mean_absolute_error_of_the_mean_gain`,
            `margin` (by how much the regression's is below that of no gain: `mean`, `low` and `high` over tasks), and
            what the caller of `calibrate` adds (`world`, `limit`, `training`).

    Raises:
        NtpsError: If coefficients or ranges do not match the inputs, a number is out of range or not finite, or `about`
            lacks what a prescreening says of it.
    """

    inputs: tuple[str, ...]
    steps: int
    halves: bool
    coefficients: tuple[float, ...]
    errors: dict[str, tuple[float, ...]]
    ranges: tuple[tuple[float, float], ...]
    confidence: float
    coverage: float
    about: dict[str, Any]

    def __post_init__(self) -> None:
        if len(self.coefficients) != len(self.inputs) + 1 or len(self.ranges) != len(self.inputs):
            raise NtpsError(
                f"a calibration of {len(self.inputs)} inputs has {len(self.coefficients)} coefficients and "
                f"{len(self.ranges)} ranges; it needs one coefficient more than inputs, and one range for each."
            )
        whole(self.steps, 0, None, "steps")
        if (self.steps > 0) != ("saved" in self.inputs):
            raise NtpsError(
                f"a calibration with inputs {', '.join(self.inputs)} cannot read a look of {self.steps} steps."
            )
        in_range(self.confidence, 0.5, 0.99, "the confidence of a calibration")
        _finite(self.coefficients, "coefficients")
        _finite([end for ends in self.ranges for end in ends], "ranges")
        _finite([error for errors in self.errors.values() for error in errors], "errors")
        if not self.errors or not all(self.errors.values()):
            raise NtpsError("a calibration needs errors of its tasks; there are none.")
        if not all(low <= high for low, high in self.ranges):
            raise NtpsError(f"a calibration has ranges {self.ranges}; each must go from low to high.")
        in_range(self.coverage, 0, 1, "the coverage of a calibration")
        about, margin = self.about, self.about.get("margin")
        for name in ("models", "tasks"):
            if not isinstance(about.get(name), list | tuple):
                raise NtpsError(f"a calibration must say in about.{name} what it was fitted on, as a list.")
        _finite([about.get(f"mean_absolute_error{of}") for of in ("", "_of_no_gain", "_of_the_mean_gain")], "errors")
        margins = [margin.get(name) for name in ("mean", "low", "high")] if isinstance(margin, Mapping) else [margin]
        _finite([*margins, about.get("runs"), about.get("limit") or 0], "margin, runs or limit")

    def forecast(self, values: Mapping[str, float]) -> GainForecast:
        """Return the gain to expect.

        Args:
            values: The inputs by name, and `accuracy` in any case: the gain cannot lift it above 1.

        Raises:
            NtpsError: If an input is missing or not finite.
        """
        row = []
        for name in (*self.inputs, "accuracy"):
            value = values.get(name, math.nan)
            if not math.isfinite(value):
                raise NtpsError(f"the calibration needs a number for {name!r}; got {values.get(name)!r}.")
            row.append(float(value))
        accuracy = row.pop()
        expected = float(_predict(np.array([[1.0, *row]]), np.array(self.coefficients), np.array([accuracy]))[0])
        below, above = (_room(accuracy) * end for end in error_interval(self.errors, self.confidence))
        low, high = float(max(expected + below, -accuracy)), float(min(expected + above, 1 - accuracy))
        outside = tuple(
            name
            for name, value, (first, last) in zip(self.inputs, row, self.ranges, strict=True)
            if not first - 1e-9 <= value <= last + 1e-9
        )
        return GainForecast(expected=expected, low=low, high=high, verdict=_verdict(low, high), outside=outside)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values, with a checksum."""
        header = {"kind": "ntps-calibration", "schema": CALIBRATION_SCHEMA, "version": __version__}
        content = jsonable({**header, **vars(self)})
        return {**content, "checksum": sha256_json(content)}

    @classmethod
    def from_dict(cls, content: Any, source: str = "the calibration") -> "Calibration":
        """Return the calibration that `to_dict` gave.

        Args:
            content: JSON values.
            source: Name of their origin, for error messages.

        Raises:
            NtpsError: If they are not a calibration, are damaged, or have another schema.
        """
        if not isinstance(content, dict) or content.get("kind") != "ntps-calibration":
            raise NtpsError(f"{source} is not a calibration; a study with gains writes one, calibration.json.")
        if content.get("schema") != CALIBRATION_SCHEMA:
            raise NtpsError(f"{source} has schema {content.get('schema')}; this version reads {CALIBRATION_SCHEMA}.")
        if content.get("checksum") != sha256_json(content):
            raise NtpsError(f"{source} is damaged: its checksum does not fit; write it again from the study.")
        header = ("kind", "schema", "version", "checksum")
        try:
            return from_json(cls, {name: value for name, value in content.items() if name not in header}, source)
        except NtpsError as error:
            raise NtpsError(f"{source} cannot be used: {error}") from error


def calibrate(
    frame: "pd.DataFrame",
    *,
    inputs: Sequence[str] | None = None,
    steps: int = LOOK_STEPS,
    halves: bool = True,
    confidence: float = 0.8,
    about: Mapping[str, Any] | None = None,
) -> Calibration:
    """Fit a regression of the gain on a study's cells, each a run of its own: a forecast is of one run.

    Args:
        frame: `Study.frame()` of a study with gains; each run is a row.
        inputs: Columns the gain is linear in; all of `INPUTS` that the table has when `None`.
        steps: Number of first steps that `saved` was read after, if it is an input.
        halves: Whether scores and probe were read from one half of the texts each, as in a study.
        confidence: Level of the intervals, in [0.5, 0.99].
        about: Further entries of the calibration's `about`.

    Raises:
        NtpsError: If there is no gain, all are equal, a column is missing, or there are fewer than six tasks.
    """
    in_range(confidence, 0.5, 0.99, "confidence")
    inputs = tuple(name for name in INPUTS if name in frame) if inputs is None else tuple(inputs)
    needed = ("gain", "accuracy", *inputs)
    for name in needed:
        if name not in frame:
            raise NtpsError(f"the table has no column {name!r}; it has: {', '.join(map(str, frame.columns))}.")
    cells = frame.dropna(subset=list(needed))
    tasks = cells["task"].to_numpy()
    if len(set(tasks)) < MIN_TASKS:
        raise NtpsError(
            f"a calibration needs the gains of at least {MIN_TASKS} tasks; there are {len(set(tasks))}. Add tasks."
        )
    if cells["gain"].nunique() == 1:
        raise NtpsError(f"every gain is {cells['gain'].iloc[0]:+z.3f}; a calibration needs gains that differ.")
    design = np.column_stack([np.ones(len(cells)), cells[list(inputs)].to_numpy(dtype=float)])
    gain = cells["gain"].to_numpy(dtype=float)
    accuracy = cells["accuracy"].to_numpy(dtype=float)
    columns, errors = design[:, 1:], _left_out(design, gain, accuracy, tasks)
    sizes = [_by_task(np.abs(each), tasks) for each in (errors, gain, _left_out(design[:, :1], gain, accuracy, tasks))]
    mae, mae_of_none, mae_of_mean = (np.array([each.mean() for each in size.values()]) for size in sizes)
    return Calibration(
        inputs=inputs,
        steps=steps if "saved" in inputs else 0,
        halves=halves,
        coefficients=tuple(_fit(design, gain).tolist()),
        errors={task: tuple(each.tolist()) for task, each in _by_task(errors / _room(accuracy), tasks).items()},
        ranges=tuple(zip(columns.min(0).tolist(), columns.max(0).tolist(), strict=True)),
        confidence=confidence,
        coverage=_coverage(design, gain, accuracy, tasks, confidence),
        about={
            "models": list(dict.fromkeys(cells["model"])),
            "tasks": list(dict.fromkeys(tasks)),
            "runs": len(cells),
            "mean_absolute_error": float(mae.mean()),
            "mean_absolute_error_of_no_gain": float(mae_of_none.mean()),
            "mean_absolute_error_of_the_mean_gain": float(mae_of_mean.mean()),
            "margin": mean_of_tasks(mae_of_none - mae),
            **(about or {}),
        },
    )


def load_calibration(path: str | Path | None = None, *, steps: int = 0) -> Calibration:
    """Return a calibration from a file, or a bundled one.

    Args:
        path: A file that `Calibration.to_json` wrote.
        steps: Of the bundled ones, that which reads a look of so many steps; see `BUNDLED_STEPS`.

    Raises:
        NtpsError: If it cannot be read, is damaged, or none is bundled for these steps.
    """
    if path is not None:
        return Calibration.from_dict(read_json(local_path(path)), str(path))
    one_of(steps, BUNDLED_STEPS, "steps")
    text = resources.files("ntps.study").joinpath("data", BUNDLED.format(steps=steps)).read_text(encoding="utf-8")
    return Calibration.from_dict(json.loads(text), "the bundled calibration")


def _finite(values: Sequence[Any], what: str) -> None:
    """Refuse what is not a finite number."""
    for value in values:
        if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
            raise NtpsError(f"a calibration has {value!r} among its {what}; numbers are needed.")


def _verdict(low: float, high: float) -> str:
    """Judge the ends as they are printed, in whole points."""
    first, last = round(100 * low), round(100 * high)
    return "little" if last <= WORTH else "pays" if first >= WORTH else "unknown"


def error_interval(errors: Mapping[str, Sequence[float]], confidence: float) -> tuple[float, float]:
    """Return the ends between which a new task's errors lie, by the module's rule; infinite with too few tasks."""
    share = 1 / (len(errors) + 1)
    weighted = sorted((error, share / len(cells)) for cells in errors.values() for error in cells)
    least = 1 - (1 - confidence) / 2 - 1e-9

    def first_beyond(pairs: Sequence[tuple[float, float]]) -> float:
        total = np.cumsum([weight for _, weight in pairs])
        place = int(np.searchsorted(total, least))
        return pairs[place][0] if place < len(pairs) else math.inf

    low = first_beyond([(-error, weight) for error, weight in reversed(weighted)])
    return -low, first_beyond(weighted)


def _room(accuracy: Any) -> Any:
    """Return the accuracy that is left to gain."""
    return np.maximum(1 - accuracy, LEAST_ROOM)


def _by_task(values: np.ndarray, tasks: np.ndarray) -> dict[str, np.ndarray]:
    """Return values by task, in order of first appearance."""
    return {task: values[tasks == task] for task in dict.fromkeys(tasks)}


def _fit(design: np.ndarray, gain: np.ndarray) -> np.ndarray:
    return np.linalg.lstsq(design, gain, rcond=None)[0]


def _predict(design: np.ndarray, coefficients: np.ndarray, accuracy: np.ndarray) -> np.ndarray:
    """Return the expected gains: no less than 0, since the frozen probe is kept then, and no more than the room."""
    return (design @ coefficients).clip(0, 1 - accuracy)


def _left_out(design: np.ndarray, gain: np.ndarray, accuracy: np.ndarray, tasks: np.ndarray) -> np.ndarray:
    """Return the gain minus its prediction, each task's cells predicted by the other tasks."""
    errors = np.empty(len(gain))
    for task in set(tasks):
        out = tasks == task
        errors[out] = gain[out] - _predict(design[out], _fit(design[~out], gain[~out]), accuracy[out])
    return errors


def _coverage(
    design: np.ndarray, gain: np.ndarray, accuracy: np.ndarray, tasks: np.ndarray, confidence: float
) -> float:
    shares = []
    for task in dict.fromkeys(tasks):
        out = tasks == task
        errors = _left_out(design[~out], gain[~out], accuracy[~out], tasks[~out]) / _room(accuracy[~out])
        below, above = error_interval(_by_task(errors, tasks[~out]), confidence)  # type: ignore[arg-type]
        error = gain[out] - _predict(design[out], _fit(design[~out], gain[~out]), accuracy[out])
        error /= _room(accuracy[out])
        shares.append(float(((error >= below) & (error <= above)).mean()))
    return float(np.mean(shares))
