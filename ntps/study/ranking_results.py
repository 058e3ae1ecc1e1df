"""The result of a ranking, frozen: a table of models, groups that tie, and what a person would want to know next."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from ntps._files import Record, jsonable, picked
from ntps._names import shortened
from ntps._text import WIDTH, Column, counted, fixed, html_table, interval_text, listed, percent, text_table, wrap
from ntps.scoring.learning import LearningCurve
from ntps.scoring.measures import Spectrum
from ntps.scoring.predictors import Predictor
from ntps.scoring.readouts import Comparison, LayerChoice, compare_readouts
from ntps.scoring.results import LabelValue, held_out_limits, label_columns
from ntps.tasks.task import labels_in_words

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

SCHEMA_VERSION = 1
POINT = 0.01  # of R^2, in sentences
_SHORTEST_NAME = 12
_TIED_WIDTH = 6  # of the layers that tie, in words; of more the number is given
_CLOSE = 0.03  # of R^2: a baseline within this of a model leaves it little to do
_NO_V = "it reads later tokens and predicts no next one"


@dataclass(frozen=True, kw_only=True)
class LayerValue:
    """R^2 of one layer on texts that its readout was not fitted on.

    Attributes:
        layer: Number of the layer.
        r2: Held-out R^2 of all directions, at most 1.
        interval: 95 % interval of `r2`.
    """

    layer: int
    r2: float
    interval: tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class ThroughV:
    """What next-token prediction has to do with the labels, at a model's best layer.

    Attributes:
        k_v: Number of next-token directions.
        r2: Held-out R^2 through them.
        interval: 95 % interval of `r2`.
        share: `r2` over that of all directions, NaN where the latter's interval is not above 0.
        ntps: NTPS at this layer, in [0, 1].
        chance: NTPS of a random subspace of that size.
    """

    k_v: int
    r2: float
    interval: tuple[float, float]
    share: float
    ntps: float
    chance: float


@dataclass(frozen=True, eq=False, kw_only=True)
class RankedModel(Record):
    """One model's place in a ranking.

    Attributes:
        name: Its name, as short as tells it from the others.
        causal: Whether it predicts the next token, so that there is a share through V.
        n_parameters: Number of parameters.
        n_layers: Number of its layers of hidden states, read or not.
        width: Width of its best layer.
        seconds: Time of its pass.
        memory_bytes: What the pass takes where it runs, weights included, by its plan; `None` where a kept pass does
            not say.
        n_truncated: Number of texts that were cut.
        choice: Its best layer, the layers that tie with it, and the errors of the layer chosen in each fold.
        layers: R^2 of every layer that was read.
        probe: Logistic probe of the best layer; `None` without classes.
        through_v: At the best layer; `None` for a model that is not causal.
        learning: Learning curve of the best layer; `None` where there are too few texts.
        spectrum: Of the best layer's states, which knows no label; `None` unless it was asked for.
        labels: Of several labels, how well the best layer predicts each; else empty.
        predicted: (n, c) what the readout of the best layer predicts of each text, targets as in `Labels`; `None` with
            classes, of which `probe` has it.
    """

    name: str
    causal: bool
    n_parameters: int
    n_layers: int
    width: int
    seconds: float
    memory_bytes: int | None
    n_truncated: int
    choice: LayerChoice = field(repr=False)
    layers: tuple[LayerValue, ...] = field(repr=False)
    probe: Predictor | None = field(repr=False)
    through_v: ThroughV | None = field(repr=False)
    learning: LearningCurve | None = field(repr=False)
    spectrum: Spectrum | None = field(default=None, repr=False)
    labels: tuple[LabelValue, ...] = field(default=(), repr=False)
    predicted: "np.ndarray | None" = field(default=None, repr=False)

    @property
    def layer(self) -> int:
        """The best layer."""
        return self.choice.layer

    @property
    def gigabytes(self) -> float | None:
        """`memory_bytes` in GB."""
        return None if self.memory_bytes is None else self.memory_bytes / 1e9

    @property
    def tied(self) -> tuple[int, ...]:
        """Further layers within one paired standard error of it."""
        return self.choice.tied

    @property
    def r2(self) -> float:
        """Held-out R^2 of the layer that was chosen, in each fold, without that fold."""
        return self.choice.readout.r2

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval of `r2`."""
        return self.choice.readout.interval()

    @property
    def accuracy(self) -> float:
        """Share of texts that the logistic probe predicts right; NaN without classes."""
        return math.nan if self.probe is None else self.probe.accuracy

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values; NaN becomes `None`."""
        last = ("n_parameters", "n_layers", "width", "seconds", "memory_bytes", "n_truncated")
        return jsonable(
            {
                **picked(self, "name", "causal", "layer", "tied", "r2", "interval"),
                "holds": self.choice.holds,
                **picked(self, "probe", "labels", "through_v"),
                "learning_curve": self.learning,
                **picked(self, "spectrum", "layers", *last),
            }
        )


@dataclass(frozen=True, kw_only=True)
class HardText:
    """A text that every model that holds the labels predicts wrongly: its own label may be wrong.

    By the probe with classes, and else by the linear readout of the best layer. A real value is predicted wrongly if
    every model errs in the same direction by more than twice its usual (root mean square) error. Of several labels each
    is asked for, of the models that hold it.

    Attributes:
        index: Number of the text in the task, from 0.
        label: Its class, its value, or which label it has or lacks: "NAME: yes" or "NAME: no".
        predicted: The class that most models predict, their mean prediction, or the other of "yes" and "no".
        margin: How wrong, below 0, mean over models: the probability of its class minus the largest other one; the same
            of a readout's values for "yes" and "no"; for real values minus the error, in units of the usual one.
        text: Its beginning.
    """

    index: int
    label: str | float
    predicted: str | float
    margin: float
    text: str


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class Ranking(Record):
    """Models in order, best first, on one label column of a task.

    Attributes:
        task: The task's name.
        label_column: The label column's name.
        kind: `"classification"`, `"regression"` or `"multilabel"`.
        classes: Its classes, or the names of several labels; none for real values.
        class_sizes: Number of judged texts of each class, or with each of several labels; none for real values.
        n_texts: Number of texts judged: those with a label and, for every model, a token.
        n_left_out: Number of labelled texts in which some model finds no token.
        models: The models, best first.
        failed: Names of models that could not be read, with the reasons.
        groups: Names of models that cannot be told from the best of their group, best group first.
        behind: By name, each model against the best one: its difference in R^2, paired, at a level corrected for the
            number of models; empty with one model.
        baselines: TF-IDF with logistic regression (without classes: ridge), and the label frequencies or, of real
            values, the mean.
        fresh_weights: The architecture of the best model with random weights, or `None`.
        hard_texts: Texts that every model that holds the labels predicts wrongly, worst first, at most 20.
        settings: Options, as JSON values.
    """

    task: str
    label_column: str
    classes: tuple[str, ...]
    class_sizes: tuple[int, ...]
    n_texts: int
    n_left_out: int
    models: tuple[RankedModel, ...]
    failed: dict[str, str]
    groups: tuple[tuple[str, ...], ...]
    behind: dict[str, Comparison]
    baselines: tuple[Predictor, ...]
    fresh_weights: RankedModel | None
    hard_texts: tuple[HardText, ...]
    settings: dict[str, Any]
    kind: str = "classification"

    @property
    def best(self) -> RankedModel:
        """The model with the largest held-out R^2."""
        return self.models[0]

    @property
    def holds(self) -> bool:
        """Whether the best model reads the labels better than their frequencies or mean: its interval lies above 0."""
        return self.best.choice.holds

    def group_of(self, model: RankedModel) -> int:
        """Return the number of a model's group, from 1."""
        return next(number for number, names in enumerate(self.groups, 1) if model.name in names)

    def __repr__(self) -> str:
        return f"Ranking({self._title()}; best {self.best.name})"

    def __getitem__(self, name: str) -> RankedModel:
        for model in self.models:
            if model.name == name:
                return model
        raise KeyError(f"model {name!r} is not ranked; there are {', '.join(model.name for model in self.models)}")

    def to_dict(self) -> dict[str, Any]:
        """Return the ranking as JSON values; numbers that are not finite become `None`."""
        models = [
            {**model.to_dict(), "group": self.group_of(model), "behind": self.behind.get(model.name)}
            for model in self.models
        ]
        return jsonable(
            {
                "schema_version": SCHEMA_VERSION,
                **picked(self, "task", "label_column", "kind"),
                "classes": self.classes or None,
                "class_sizes": self.class_sizes or None,
                **picked(self, "n_texts", "n_left_out"),
                "best": self.best.name if self.holds else None,
                "summary": self.sentences(),
                "groups": self.groups,
                "models": models,
                "failed": [{"name": name, "reason": reason} for name, reason in self.failed.items()],
                **picked(self, "baselines", "fresh_weights", "hard_texts", "settings"),
            }
        )

    def to_dataframe(self) -> "pd.DataFrame":
        """Return one row per model, best first."""
        import pandas as pd

        rows = []
        for model in self.models:
            (low, high), v = model.interval, model.through_v
            rows.append(
                {
                    "model": model.name,
                    "group": self.group_of(model),
                    "layer": model.layer,
                    "tied": ", ".join(map(str, model.tied)),
                    "r2": model.r2,
                    "r2_low": low,
                    "r2_high": high,
                    "accuracy": model.accuracy,
                    "balanced_accuracy": model.probe.balanced_accuracy if model.probe else math.nan,
                    "log_loss": model.probe.log_loss if model.probe else math.nan,
                    "through_v": v.r2 if v else math.nan,
                    "ntps": v.ntps if v else math.nan,
                    "chance": v.chance if v else math.nan,
                    "causal": model.causal,
                    "n_parameters": model.n_parameters,
                    "seconds": model.seconds,
                    "memory_bytes": model.memory_bytes,
                }
            )
        return pd.DataFrame(rows)

    def columns(self) -> list[Column]:
        """Return the columns of a table whose rows are `table_rows`."""
        return [
            Column("", self._place, words=True),
            Column("model", lambda row: row.name, words=True),
            Column("layer", _layers),
            Column("R²", _with_half_width),
            Column("accuracy", attrgetter("accuracy"), digits=2),
            Column("via V", lambda row: row.through_v.r2 if getattr(row, "through_v", None) else None, digits=2),
            Column("size", lambda row: short_count(row.n_parameters) if isinstance(row, RankedModel) else None),
            Column("s", lambda row: getattr(row, "seconds", None), digits=0),
            Column("GB", lambda row: row.gigabytes if isinstance(row, RankedModel) else None, digits=1),
        ]

    @property
    def table_rows(self) -> list[RankedModel | Predictor]:
        """The models, then the baselines."""
        control = [] if self.fresh_weights is None else [self.fresh_weights]
        return [*self.models, *control, *self.baselines]

    def _place(self, row: RankedModel | Predictor) -> str:
        return str(self.group_of(row)) if row in self.models else ""

    def to_text(self) -> str:
        """Return a table of at most 80 columns and sentences that explain it."""
        columns, rows = self.columns(), self.table_rows
        for room in (40, 30, 24, 20, 16, _SHORTEST_NAME):
            columns[1] = Column("model", _name_in(room), words=True)
            lines = text_table(columns, rows)
            if max(map(len, lines)) <= WIDTH:
                break
        paragraphs = [wrap(paragraph) for paragraph in (*self.sentences(), *self.notes())]
        if self.best.labels:
            paragraphs.insert(0, [f"Labels, by {self.best.name}", *text_table(label_columns(), self.best.labels)])
        return "\n".join([*lines, *(line for paragraph in paragraphs for line in ("", *paragraph))])

    def sentences(self) -> list[str]:
        """Return what is known: the order, what words alone reach, more labels, and next-token prediction's part."""
        if not self.holds:
            words = self._words
            aside = ""
            if words is not None and words.interval[0] > 0:
                low, _ = compare_readouts(words.readout, self.best.choice.readout).interval
                aside = (
                    f" {self._tfidf} is ({_r2(words)}), though it cannot be told from {self.best.name} on these texts."
                )
                if low > 0:
                    aside = f" {self._tfidf} is ({_r2(words)}): the words say what no model's states do."
            guess = "their mean" if self.kind == "regression" else "the label frequencies"
            return [
                f"No model holds these {self._labels}: on texts it was not fitted on, the best readout "
                f"({self.best.name}) is not clearly better than {guess} ({_r2(self.best)}).{aside}"
            ]
        sentences = [self._order(), *self._beside()]
        return [sentence for sentence in (*sentences, self._more_labels(), self._next_token()) if sentence]

    def _order(self) -> str:
        first, *others = self.groups
        if len(self.models) == 1:
            return f"{self.best.name} reads these {self._labels} with {_r2(self.best)}{self._accuracy()}."
        if len(first) == 1:
            text = f"{first[0]} reads these {self._labels} best: {_r2(self.best)}{self._accuracy()}"
        else:
            text = (
                f"{listed(first)} cannot be told apart on {self.n_texts:,} texts: the best of them has "
                f"{_r2(self.best)}{self._accuracy()}"
            )
        gaps = [
            f"{listed(names)} {'is' if len(names) == 1 else 'are'} {self._gap(names)} behind" for names in others[:3]
        ]
        if len(others) > 3:
            gaps.append(f"{counted(sum(map(len, others[3:])), 'other')} further")
        points_are = " (a point is 0.01 of R²)" if gaps else ""
        return f"{text}; {listed(gaps)}{points_are}." if gaps else f"{text}."

    def _gap(self, names: Sequence[str]) -> str:
        """Return how far the models of a group are behind the best one."""
        intervals = [self.behind[name].interval for name in names]
        return points(min(low for low, _ in intervals), max(high for _, high in intervals))

    def _accuracy(self) -> str:
        if self.best.probe is None:
            return ""
        return f", accuracy {fixed(self.best.accuracy, 2)} {interval_text(self.best.probe.accuracy_interval, 2)}"

    @property
    def _labels(self) -> str:
        return "values" if self.kind == "regression" else "labels"

    @property
    def _tfidf(self) -> str:
        return f"TF-IDF with {'logistic' if self.kind == 'classification' else 'ridge'} regression"

    @property
    def _words(self) -> Predictor | None:
        return next((row for row in self.baselines if row.name == "TF-IDF"), None)

    def _beside(self) -> list[str]:
        """Say how the best model stands to what reads words alone, by one kind of probe, and to random weights."""
        sentences = []
        words = self._words
        if words is not None:
            probe = self.best.probe
            found = compare_readouts(self.best.choice.readout if probe is None else probe.readout, words.readout)
            low, high = found.interval
            name = self.best.name
            if low > 0:
                text = f"{name} is {points(low, high)} ahead of {self._tfidf}"
                text += ": the words alone do most of the work." if high <= _CLOSE else "."
            elif high < 0:
                text = f"{self._tfidf} is {points(-high, -low)} ahead of {name}: count words instead."
            elif max(-low, high) <= _CLOSE:
                within = counted(math.ceil(max(-low, high) / POINT), "point")
                text = f"{self._tfidf} is within {within} of {name}: the words do the work."
            else:
                text = (
                    f"{self._tfidf} cannot be told from {name} on these texts "
                    f"({fixed(high / POINT, 0)} points behind to {fixed(-low / POINT, 0)} ahead)."
                )
            sentences.append(text)
        if self.fresh_weights is not None:
            sentences.append(f"Random weights of {self.best.name}'s architecture read {_r2(self.fresh_weights)}.")
        return [" ".join(sentences)] if sentences else []

    def _more_labels(self) -> str:
        learning = self.best.learning
        if learning is None or math.isnan(learning.twice):
            return ""
        low, high = map(_signed, learning.gain_interval)
        change = "of less than a point" if low == high == "0" else f"of {low} to {high} points"
        more = "labelled texts" if self.kind == "multilabel" else self._labels
        return (
            f"With twice as many {more}, {self.best.name} would read about R² {fixed(learning.twice, 2)}, "
            f"a change {change}."
        )

    def _next_token(self) -> str:
        v = self.best.through_v
        if v is None:
            return f"There is no share through V for {self.best.name}: {_NO_V}."
        if math.isnan(v.share):
            return ""
        text = (
            f"The {v.k_v} of {self.best.width} directions that next-token prediction uses most at layer "
            f"{self.best.layer} of {self.best.name} read R² {fixed(v.r2, 2)}"
        )
        return f"{text}, {percent(v.share)} of what all read." if 0 <= v.share < 1 else f"{text}."

    def notes(self) -> list[str]:
        """Return what limits the ranking: models that failed, texts that were left out or cut, encoders without V."""
        notes = [f"Not ranked: {name}: {reason}" for name, reason in self.failed.items()]
        sizes = dict(zip(self.classes, self.class_sizes, strict=True))
        notes += held_out_limits(self.kind, self.n_texts, sizes, self.settings["folds"])
        encoders = [model.name for model in self.models[1:] if not model.causal]
        if encoders:
            verb, pronoun = ("has", _NO_V) if len(encoders) == 1 else ("have", "they read later tokens")
            notes.append(f"{listed(encoders)} {verb} no share through V: {pronoun}.")
        cut = [f"{model.n_truncated:,} for {model.name}" for model in self.models if model.n_truncated]
        if cut:
            whole = "; TF-IDF read them whole" if self._words is not None else ""
            notes.append(f"Texts that were too long and were cut: {listed(cut)}{whole}.")
        spectra = [
            f"{model.name}: effective rank {fixed(model.spectrum.effective_rank, 0)}, decay "
            f"{fixed(model.spectrum.decay, 2)}, {percent(model.spectrum.loudest)} along the loudest direction"
            for model in self.models
            if model.spectrum is not None
        ]
        if spectra:
            notes.append(f"Spectra of the best layers, which know no label: {'; '.join(spectra)}.")
        if self.n_left_out:
            notes.append(f"{self.n_left_out:,} texts were left out because some model finds no token in them.")
        return notes

    @property
    def counts(self) -> str:
        """How much was read: "400 texts, 2 classes, 3 models"."""
        kind = labels_in_words(self.kind, len(self.classes), self.class_sizes)
        return f"{self.n_texts:,} texts, {kind}, {counted(len(self.models), 'model')}"

    def _title(self) -> str:
        column = "" if self.label_column == "label" else f", {self.label_column}"
        return f"{self.task}{column}: {self.counts}"

    def __str__(self) -> str:
        return f"{self._title()}\n\n{self.to_text()}"

    def _repr_html_(self) -> str:
        paragraphs = Markup("").join(Markup("<p>{}</p>").format(text) for text in (*self.sentences(), *self.notes()))
        table = html_table(self.columns(), self.table_rows, best=self.best if self.holds else None)
        labels = html_table(label_columns(), self.best.labels) if self.best.labels else ""
        return Markup("<p><b>{}</b></p>{}{}{}").format(self._title(), table, labels, paragraphs)


def points(low: float, high: float) -> str:
    """Return an interval of R^2 differences in words: "3 to 6 points", "up to 2 points", "less than 1 point"."""
    if math.isnan(low) or math.isnan(high):
        return "an unknown number of points"
    ends = [round(max(end, 0.0) / POINT) for end in (low, high)]
    if ends[1] < 1:
        return "less than 1 point"
    if ends[0] == ends[1]:
        return f"about {counted(ends[1], 'point')}"
    return f"up to {counted(ends[1], 'point')}" if ends[0] == 0 else f"{ends[0]} to {ends[1]} points"


def short_count(number: int) -> str:
    """Return a number of parameters in few characters: 870K, 135M, 7.2B."""
    for unit, letter in ((1e9, "B"), (1e6, "M"), (1e3, "K")):
        if number >= unit:
            return f"{number / unit:.1f}{letter}" if number < 9.95 * unit else f"{number / unit:.0f}{letter}"
    return str(number)


def ranges(numbers: Sequence[int]) -> str:
    """Return numbers with runs of three or more joined: 3, 7-9."""
    parts: list[list[int]] = []
    for number in sorted(numbers):
        if parts and number == parts[-1][-1] + 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    words = [[f"{run[0]}-{run[-1]}"] if len(run) > 2 else [str(number) for number in run] for run in parts]
    return ", ".join(word for run in words for word in run)


def layer_in_words(model: RankedModel) -> str:
    """Return a model's best layer and those that tie with it: "7", "7 (= 5, 8-10)", "7 (12 tie)"."""
    tied = ranges(model.tied)
    if len(tied) > _TIED_WIDTH:
        return f"{model.layer} ({len(model.tied)} tie)"
    return f"{model.layer} (= {tied})" if tied else str(model.layer)


def _name_in(room: int) -> Callable[[Any], str]:
    return lambda row: shortened(row.name, room)


def _signed(value: float) -> str:
    if math.isnan(value):
        return "?"
    return f"{round(value / POINT) + 0:+d}" if round(value / POINT) else "0"


def _r2(row: RankedModel | Predictor) -> str:
    return f"R² {fixed(row.r2, 2)} {interval_text(row.interval, 2)}"


def _layers(row: Any) -> str | None:
    if not isinstance(row, RankedModel):
        return None
    return layer_in_words(row)


def _with_half_width(row: Any) -> str:
    low, high = row.interval
    half = fixed((high - low) / 2)
    return fixed(row.r2) if half == "0.000" else f"{fixed(row.r2)} ±{half}"
