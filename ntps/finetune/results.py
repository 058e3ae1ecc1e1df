"""What fine-tuning gained and changed: frozen results, as numbers, as a table for a terminal or a notebook, as JSON."""

import html
import json
import math
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ntps._files import jsonable
from ntps._text import fixed, short_name
from ntps.scoring.results import ScoreResult

SCHEMA_VERSION = 1
_SCALARS = (
    ("accuracy", "accuracy"),
    ("balanced_accuracy", "balanced accuracy"),
    ("macro_f1", "macro F1"),
    ("next_token_loss", "next-token loss"),
)


@dataclass(frozen=True)
class Side:
    """A model, before or after, judged on the test texts.

    Attributes:
        accuracy: Share of texts that its head predicts right, in [0, 1].
        balanced_accuracy: Mean over classes of the share of their texts predicted right.
        macro_f1: Mean over classes of F1.
        next_token_loss: Nats per token after the first, under the original language-model head; `None` without one.
        score: Scores of its layers, by folds of the test texts.
        accuracy_with_validation: Before only: accuracy of the frozen probe fitted on training and validation texts.
    """

    accuracy: float
    balanced_accuracy: float
    macro_f1: float
    next_token_loss: float | None
    score: ScoreResult
    accuracy_with_validation: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values; `layers` is as in a score's JSON."""
        rest = {name: value for name, value in vars(self).items() if name != "score"}
        if self.accuracy_with_validation is None:
            del rest["accuracy_with_validation"]
        return {**rest, "layers": self.score.to_dict()["layers"]}


@dataclass(frozen=True, repr=False)
class LoraResult:
    """A model before and after fine-tuning, on the same texts.

    Attributes:
        model: The model's name.
        task: The task's name.
        n_train: Texts that training saw.
        n_validation: Texts that chose the step.
        n_test: Texts that accuracies and scores are of.
        before: The model as it was, with the frozen linear probe for a head.
        after: The tuned model with its head.
        gain_standard_error: Standard error of `gain` over test texts, paired: each is judged before and after.
        settings: Every option of the training.
        seed: Seed of split, training and folds.
        curve: See `ntps.finetune.train.FineTuned`.
        best_step: The step that was kept; 0 is the frozen probe itself.
        changes: Per layer, see `ntps.finetune.changes.LayerChange`; empty if not asked for.
        intruders: Per linear map, see `ntps.finetune.changes.Intruders`; empty if not asked for.
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

    def __repr__(self) -> str:
        return f"LoraResult({self._title()}; accuracy {self.before.accuracy:.3f} to {self.after.accuracy:.3f})"

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values; numbers that are not finite become `None`."""
        whole: dict[str, Any] = {"schema_version": SCHEMA_VERSION, "kind": "ntps-lora", **vars(self), "gain": self.gain}
        return jsonable({**whole, "before": self.before.to_dict(), "after": self.after.to_dict()})

    def to_json(self, *, indent: int | None = 2) -> str:
        """Return `to_dict()` as JSON text."""
        return json.dumps(self.to_dict(), indent=indent, allow_nan=False, ensure_ascii=False)

    def to_text(self) -> str:
        """Return two tables of at most 80 columns and a sentence that reads them."""
        lines = [f"  {'':20}{'before':>8}{'after':>8}{'change':>9}"]
        lines += [f"  {name:20}{first:>8}{second:>8}{change:>9}" for name, first, second, change in self._rows()]
        head = ("layer", "NTPS before", "after", f"{self._share} before", "after", "ceiling before", "after")
        widths = (7, 13, 7, 17, 7, 16, 7)
        lines += ["", "".join(f"{name:>{width}}" for name, width in zip(head, widths, strict=True))]
        for cells in self._layer_rows():
            lines.append("".join(f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True)))
        return "\n".join([*lines, "", *textwrap.wrap(self.sentence(), 80)])

    @property
    def _share(self) -> str:
        return "held out" if self.before.score.held_out else "explained"

    def _rows(self) -> Iterator[tuple[str, str, str, str]]:
        for key, name in _SCALARS:
            first, second = getattr(self.before, key), getattr(self.after, key)
            if first is not None and second is not None:
                yield name, fixed(first), fixed(second), f"{second - first:+.3f}"

    def _layer_rows(self) -> Iterator[tuple[str, ...]]:
        for first, second in zip(self.before.score.layers, self.after.score.layers, strict=True):
            values = [(s.ntps, s.through_v, s.ceiling if s.ceiling_heldout is None else s.ceiling_heldout)
                      for s in (first, second)]  # fmt: skip
            yield (str(first.layer), *(fixed(part[i]) for i in range(3) for part in values))

    def sentence(self) -> str:
        """Say in words what was gained, how sure that is, and what it cost."""
        error = self.gain_standard_error
        said = (
            f"{_method(self.settings)} changed accuracy by {100 * self.gain:+.1f} points over the frozen linear probe, "
            f"with a standard error of {100 * error:.1f} ({self.n_test} test texts)."
        )
        margin = self.settings["margin"]
        if self.best_step:
            said += f" The weights of step {self.best_step} of {self.curve[-1]['step']} were kept."
        else:
            said += (
                f" No look at the validation texts lowered their loss by more than {margin:g} standard errors, so the "
                "probe itself was kept."
            )
        costs = self.before.next_token_loss, self.after.next_token_loss
        if costs[0] is not None and costs[1] is not None and self.best_step:
            said += f" Predicting the next token now costs {costs[1] - costs[0]:+.3f} nats per token."
        found = sum(row["count"] for row in self.intruders)
        if self.intruders:
            looked = sum(row["k"] for row in self.intruders)
            said += f" {found} of the {looked} top singular vectors of its matrices are intruders."
        return said

    def _title(self) -> str:
        return (
            f"{short_name(self.model)} on {self.task}: {self.n_train} training, {self.n_validation} validation, "
            f"{self.n_test} test texts"
        )

    def __str__(self) -> str:
        return "\n".join([*textwrap.wrap(self._title(), 80), "", self.to_text()])

    def _repr_html_(self) -> str:
        heads = ("", "before", "after", "change")
        layer_heads = ("layer", "NTPS before", "after", f"{self._share} before", "after", "ceiling before", "after")
        tables = _table(heads, self._rows()) + _table(layer_heads, self._layer_rows())
        return f"<p><b>{html.escape(self._title())}</b></p>{tables}<p>{html.escape(self.sentence())}</p>"


@dataclass(frozen=True, repr=False)
class LoraRepeats:
    """The same fine-tuning under several seeds, each with a split, adapters and an order of its own.

    Attributes:
        runs: One result per seed.
        confidence: Level of the interval.
    """

    runs: tuple[LoraResult, ...]
    confidence: float = 0.95

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
        """Interval of the mean gain: Student's t over the seeds; NaN for a single one."""
        from scipy.stats import t as student

        half = student.ppf(0.5 + self.confidence / 2, max(len(self.runs) - 1, 1)) * self.gain_standard_error
        return self.gain - float(half), self.gain + float(half)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values: means over seeds, and under `seeds` every run as `LoraResult.to_dict()` gives it."""
        first = self.runs[0]

        def mean(side: str) -> dict[str, Any]:
            columns = {key: [getattr(getattr(run, side), key) for run in self.runs] for key, _ in _SCALARS}
            return {key: None if None in values else float(np.mean(values)) for key, values in columns.items()}

        whole = {
            "schema_version": SCHEMA_VERSION,
            "kind": "ntps-lora",
            "model": first.model,
            "task": first.task,
            "n_train": first.n_train,
            "n_validation": first.n_validation,
            "n_test": first.n_test,
            "before": mean("before"),
            "after": mean("after"),
            "gain": self.gain,
            "gain_standard_error": self.gain_standard_error,
            "gain_interval": list(self.gain_interval),
            "settings": first.settings,
            "seeds": [run.to_dict() for run in self.runs],
        }
        return jsonable(whole)

    def to_json(self, *, indent: int | None = 2) -> str:
        """Return `to_dict()` as JSON text."""
        return json.dumps(self.to_dict(), indent=indent, allow_nan=False, ensure_ascii=False)

    def to_text(self) -> str:
        """Return a table of at most 80 columns, a row per seed, and a sentence."""
        lines = ["   seed  accuracy before   after    gain  next-token loss  kept step"]
        lines += ["".join(f"{c:>{w}}" for c, w in zip(row, (7, 17, 8, 8, 17, 11), strict=True)) for row in self._rows()]
        return "\n".join([*lines, "", *textwrap.wrap(self.sentence(), 80)])

    def _rows(self) -> Iterator[tuple[str, ...]]:
        for run in self.runs:
            accuracies = fixed(run.before.accuracy), fixed(run.after.accuracy), f"{run.gain:+.3f}"
            yield str(run.seed), *accuracies, fixed(run.after.next_token_loss), str(run.best_step)

    def sentence(self) -> str:
        """Say in words what was gained over the seeds."""
        low, high = self.gain_interval
        said = (
            f"{_method(self.runs[0].settings)} changed accuracy by {100 * self.gain:+.1f} points over the frozen "
            f"probe, the mean of {len(self.runs)} seeds"
        )
        if math.isfinite(low):
            said += f"; {self.confidence:.0%} interval {100 * low:+.1f} to {100 * high:+.1f}"
        return said + "."

    def __str__(self) -> str:
        return "\n".join([*textwrap.wrap(self.runs[0]._title() + " a seed", 80), "", self.to_text()])

    def __repr__(self) -> str:
        return f"LoraRepeats({self.runs[0].task}: {len(self.runs)} seeds, mean gain {self.gain:+.3f})"

    def _repr_html_(self) -> str:
        heads = ("seed", "accuracy before", "after", "gain", "next-token loss", "kept step")
        return f"{_table(heads, self._rows())}<p>{html.escape(self.sentence())}</p>"


def _method(settings: dict[str, Any]) -> str:
    names = {"lora": f"LoRA of rank {settings['rank']}", "probe": "Training the head alone",
             "full": "Fine-tuning all weights", "scratch": "Training from random weights"}  # fmt: skip
    return names[settings["method"]]


def _table(heads: tuple[str, ...], rows: Iterator[tuple[str, ...]]) -> str:
    head = "".join(f"<th>{html.escape(name)}</th>" for name in heads)
    body = "".join(f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
