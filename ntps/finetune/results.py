"""The results of fine-tuning, frozen: as numbers, as tables for a terminal or a notebook, as JSON."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any

import numpy as np
from markupsafe import Markup

from ntps._files import Record, jsonable, picked
from ntps._names import short_name
from ntps._text import Column, html_table, text_table, wrap
from ntps.scoring.readouts import CONFIDENCE
from ntps.scoring.results import ScoreResult

SCHEMA_VERSION = 1
_METRICS = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "macro_f1": "macro F1",
    "next_token_loss": "next-token loss",
}
_METRIC_COLUMNS = (  # of rows (name, before, after)
    Column("", lambda row: row[0], words=True),
    Column("before", lambda row: row[1]),
    Column("after", lambda row: row[2]),
    Column("change", lambda row: f"{row[2] - row[1]:+z.3f}"),
)
_CURVE_COLUMNS = (  # of an evaluation
    Column("step", lambda row: str(row["step"])),
    Column("training loss", lambda row: row["loss"]),
    Column("validation loss", lambda row: row["validation_loss"]),
    Column("validation accuracy", lambda row: row["validation_accuracy"]),
)
_MOST_EVALUATIONS = 12  # in a table
_RUN_COLUMNS = (  # of a `LoraResult`
    Column("seed", lambda run: str(run.seed)),
    Column("accuracy before", lambda run: run.before.accuracy),
    Column("after", lambda run: run.after.accuracy),
    Column("gain", lambda run: f"{run.gain:+z.3f}"),
    Column("next-token loss", lambda run: run.after.next_token_loss),
    Column("chosen step", lambda run: str(run.best_step)),
)


@dataclass(frozen=True, kw_only=True)
class Side(Record):
    """A model before or after fine-tuning, judged on the test texts.

    Attributes:
        accuracy: Share of texts whose class is predicted right, in [0, 1].
        balanced_accuracy: Mean over classes of the share of their texts predicted right, in [0, 1].
        macro_f1: Mean over classes of F1, in [0, 1].
        next_token_loss: Nats per token after the first, under the original language-model head; `None` without one.
        score: Scores of its layers.
        accuracy_with_validation: Accuracy of the frozen probe fitted on training and validation texts, before only.
    """

    accuracy: float
    balanced_accuracy: float
    macro_f1: float
    next_token_loss: float | None
    score: ScoreResult
    accuracy_with_validation: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values; `layers` are those of `ScoreResult.to_dict`."""
        values = {name: value for name, value in vars(self).items() if name != "score"}
        if self.accuracy_with_validation is None:
            del values["accuracy_with_validation"]
        return jsonable({**values, "layers": self.score.to_dict()["layers"]})


@dataclass(frozen=True, kw_only=True, repr=False)
class LoraResult(Record):
    """A model before and after fine-tuning, judged on the same texts.

    Attributes:
        model: The model's name.
        task: The task's name.
        n_train: Number of texts trained on.
        n_validation: Number of texts that chose the step.
        n_test: Number of test texts.
        before: The original model with the frozen linear probe as its head.
        after: The tuned model with its head.
        gain_standard_error: Standard error of `gain`, paired over test texts.
        settings: Options of the training, as JSON values.
        seed: Seed of split, training and folds.
        curve: One row per evaluation, with the entries of `ntps.finetune.state.Evaluation`.
        best_step: The step whose weights were chosen; 0 is what training starts from.
        changes: One `ntps.finetune.changes.LayerChange` per layer as a mapping; empty if not requested.
        intruders: One `ntps.finetune.changes.Intruders` per linear map as a mapping; empty if not requested.
        provenance: Fingerprints, versions, split.
    """

    model: str
    task: str
    n_train: int
    n_validation: int
    n_test: int
    before: Side
    after: Side
    gain_standard_error: float
    settings: dict[str, Any]
    seed: int
    curve: tuple[dict[str, Any], ...]
    best_step: int
    changes: tuple[dict[str, Any], ...] = ()
    intruders: tuple[dict[str, Any], ...] = ()
    provenance: dict[str, Any] = field(default_factory=dict)

    @property
    def gain(self) -> float:
        """Accuracy after minus before, on the test texts."""
        return self.after.accuracy - self.before.accuracy

    @property
    def title(self) -> str:
        """Model, task and numbers of texts."""
        return (
            f"{short_name(self.model)} on {self.task}: {self.n_train} training, {self.n_validation} validation, "
            f"{self.n_test} test texts"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values; numbers that are not finite become `None`."""
        head = {"schema_version": SCHEMA_VERSION, "kind": "ntps-lora"}
        return jsonable({**head, **vars(self), "gain": self.gain})

    def to_text(self) -> str:
        """Return three tables of at most 80 columns and sentences that explain them."""
        metrics = [f"  {line}" for line in text_table(_METRIC_COLUMNS, self._metrics())]
        layers = text_table(self._layer_columns(), self._layers())
        curve = text_table(_CURVE_COLUMNS, self._evaluations())
        return "\n".join([*metrics, "", *layers, "", *curve, "", *wrap(self.sentence())])

    def _evaluations(self) -> list[dict[str, Any]]:
        """Return the evaluations of training, or as many as a table bears, the chosen one among them."""
        last = len(self.curve) - 1
        places = {round(place) for place in np.linspace(0, last, min(last + 1, _MOST_EVALUATIONS))}
        return [row for place, row in enumerate(self.curve) if place in places or row["step"] == self.best_step]

    def _metrics(self) -> Iterator[tuple[str, float, float]]:
        for key, name in _METRICS.items():
            before, after = getattr(self.before, key), getattr(self.after, key)
            if before is not None and after is not None:
                yield name, before, after

    def _layers(self) -> Iterator[tuple[Any, Any]]:
        yield from zip(self.before.score.layers, self.after.score.layers, strict=True)

    def _layer_columns(self) -> tuple[Column, ...]:
        """Columns of rows (layer before, layer after)."""
        share = "held out" if self.before.score.held_out else "explained"

        return (
            Column("layer", lambda row: str(row[0].layer)),
            Column("NTPS before", lambda row: row[0].ntps),
            Column("after", lambda row: row[1].ntps),
            Column(f"{share} before", lambda row: row[0].through_v),
            Column("after", lambda row: row[1].through_v),
            Column("ceiling before", lambda row: row[0].through_all),
            Column("after", lambda row: row[1].through_all),
        )

    def sentence(self) -> str:
        """Return in words what was gained, how certain that is, and what it cost."""
        text = (
            f"{method_words(self.settings)} changed accuracy by {100 * self.gain:+z.1f} points over the frozen linear "
            f"probe, with a standard error of {100 * self.gain_standard_error:.1f} ({self.n_test} test texts)."
        )
        if self.best_step:
            text += f" The weights of step {self.best_step} of {self.curve[-1]['step']} were chosen."
        else:
            text += (
                " No evaluation lowered the validation loss by more than "
                f"{self.settings['margin']:g} standard errors, so {_start(self.settings)} kept."
            )
            first, lowest = self.curve[0], min(self.curve, key=itemgetter("validation_loss"))
            if lowest is not first:  # few validation texts cannot tell a gain of several points from luck
                text += (
                    f" A margin of 0 would have kept step {lowest['step']}, with "
                    f"{100 * lowest['validation_accuracy']:.1f} % of the validation texts right instead of "
                    f"{100 * first['validation_accuracy']:.1f} %."
                )
        before, after = self.before.next_token_loss, self.after.next_token_loss
        if before is not None and after is not None and self.best_step:
            text += f" Predicting the next token now costs {after - before:+z.3f} nats per token."
        adapted = self.provenance.get("adapted") or {}
        if adapted.get("left_out"):
            text += f" Adapters went to {sum(adapted['modules'].values())} modules ({', '.join(adapted['modules'])})"
            others = (f"{', '.join(names)} ({reason})" for reason, names in adapted["left_out"].items())
            text += f", and not to {'; '.join(others)}."
        start = self.settings.get("start_layer")
        if adapted and start:
            text += f" The blocks before block {start} have no adapters."
        if self.intruders:
            count, examined = (sum(row[key] for row in self.intruders) for key in ("count", "k"))
            text += f" {count} of the {examined} top singular vectors of its matrices are intruders."
        return text

    def __repr__(self) -> str:
        return f"LoraResult({self.title}; accuracy {self.before.accuracy:.3f} to {self.after.accuracy:.3f})"

    def __str__(self) -> str:
        return "\n".join([*wrap(self.title), "", self.to_text()])

    def _repr_html_(self) -> str:
        tables = html_table(_METRIC_COLUMNS, self._metrics()) + html_table(self._layer_columns(), self._layers())
        evaluations = self._evaluations()
        chosen = next((row for row in evaluations if row["step"] == self.best_step), None)
        tables += html_table(_CURVE_COLUMNS, evaluations, best=chosen)
        return Markup("<p><b>{}</b></p>{}<p>{}</p>").format(self.title, tables, self.sentence())


@dataclass(frozen=True, kw_only=True, repr=False)
class LoraRepeats(Record):
    """The same fine-tuning under several seeds, each with its own split, adapters and order.

    Attributes:
        runs: One result per seed.
    """

    runs: tuple[LoraResult, ...]

    @property
    def gain(self) -> float:
        """Mean gain over the seeds."""
        return float(np.mean([run.gain for run in self.runs]))

    @property
    def gain_standard_error(self) -> float:
        """Standard deviation over seeds / sqrt(seeds). Splits share texts, so it is somewhat too small."""
        gains = [run.gain for run in self.runs]
        return float(np.std(gains, ddof=1) / math.sqrt(len(gains))) if len(gains) > 1 else math.nan

    @property
    def gain_interval(self) -> tuple[float, float]:
        """95 % interval of the mean gain by Student's t over the seeds; NaN for a single seed."""
        from scipy.stats import t as student

        half = student.ppf(0.5 + CONFIDENCE / 2, max(len(self.runs) - 1, 1)) * self.gain_standard_error
        return self.gain - float(half), self.gain + float(half)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values: means over seeds, and under `seeds` every run as `LoraResult.to_dict()` gives it."""
        first = self.runs[0]

        def means(side: str) -> dict[str, Any]:
            columns = {key: [getattr(getattr(run, side), key) for run in self.runs] for key in _METRICS}
            return {key: None if None in values else float(np.mean(values)) for key, values in columns.items()}

        return jsonable(
            {
                "schema_version": SCHEMA_VERSION,
                "kind": "ntps-lora",
                **picked(first, "model", "task", "n_train", "n_validation", "n_test"),
                "before": means("before"),
                "after": means("after"),
                **picked(self, "gain", "gain_standard_error", "gain_interval"),
                "confidence": CONFIDENCE,
                "settings": first.settings,
                "seeds": self.runs,
            }
        )

    def to_text(self) -> str:
        """Return a table of at most 80 columns, one row per seed, and a sentence."""
        return "\n".join([*text_table(_RUN_COLUMNS, self.runs), "", *wrap(self.sentence())])

    def sentence(self) -> str:
        """Return in words what was gained over the seeds."""
        low, high = self.gain_interval
        text = (
            f"{method_words(self.runs[0].settings)} changed accuracy by {100 * self.gain:+z.1f} points over the frozen "
            f"probe, the mean of {len(self.runs)} seeds"
        )
        if math.isfinite(low):
            text += f"; {CONFIDENCE:.0%} interval {100 * low:+z.1f} to {100 * high:+z.1f}"
        return text + "."

    def __repr__(self) -> str:
        return f"LoraRepeats({self.runs[0].task}: {len(self.runs)} seeds, mean gain {self.gain:+z.3f})"

    def __str__(self) -> str:
        return "\n".join([*wrap(f"{self.runs[0].title} for each seed"), "", self.to_text()])

    def _repr_html_(self) -> str:
        return html_table(_RUN_COLUMNS, self.runs) + Markup("<p>{}</p>").format(self.sentence())


def _start(settings: dict[str, Any]) -> str:
    """Return what training starts from, with a verb."""
    if settings["method"] == "scratch":
        return "the untrained random weights were"
    return "the untrained random head was" if settings["head"] == "random" else "the probe itself was"


def method_words(settings: dict[str, Any]) -> str:
    """Return the method in words that can begin a sentence."""
    names = {
        "lora": f"LoRA of rank {settings['rank']}",
        "probe": "Training the head alone",
        "full": "Fine-tuning all weights",
        "scratch": "Training from random weights",
    }
    return names[settings["method"]]
