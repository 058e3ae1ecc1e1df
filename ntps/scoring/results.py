"""The results of scoring, frozen: as numbers, as tables for a terminal or a notebook, as JSON."""

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from operator import attrgetter
from typing import TYPE_CHECKING, Any, cast

from markupsafe import Markup

from ntps._files import Record, jsonable, picked
from ntps._names import short_name, shortened
from ntps._text import (
    BAR_WIDTH,
    WIDTH,
    Column,
    bar,
    fixed,
    html_table,
    interval_text,
    listed,
    percent,
    text_table,
    wrap,
)
from ntps.errors import NtpsError, one_of
from ntps.scoring.learning import LearningCurve
from ntps.scoring.predictors import Predictor
from ntps.scoring.readouts import LayerChoice, Readout
from ntps.tasks.task import labels_in_words

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

SCHEMA_VERSION = 1
_LEAST_BAR = 6
_LABEL = 24  # characters of a label in a table
NO_ACCURACY = {
    "regression": "A dash for accuracy: real values have no classes.",
    "multilabel": "R² is the mean over labels. A dash for accuracy: each label has its own, in the table of labels.",
}
_SHOWN_FRACTIONS = (0.05, 0.5, 0.95)  # of the official convention's 19
_NESTED = ("bounds", "curve", "null", "interval", "control")
_OPTIONAL = (
    "explained_heldout", "ceiling_heldout", "retained_heldout", "accuracy_heldout", "null", "interval", "control"
)  # fmt: skip
_FEW = 200  # texts below which intervals are somewhat narrow (`python -m benchmarks.coverage`)
_ENOUGH = 10  # texts per direction from which in-sample losses say something of other texts


def held_out_limits(kind: str, n_texts: int, sizes: Mapping[str, int], folds: int) -> list[str]:
    """Return what limits numbers on held-out texts: no accuracy, few texts, rare classes.

    Args:
        kind: Of the labels.
        n_texts: Number of labelled texts.
        sizes: Number of texts of each class, or with each of several labels; empty for real values.
        folds: Number of folds.
    """
    notes = [NO_ACCURACY[kind]] if kind in NO_ACCURACY else []
    if n_texts < _FEW:
        far = ", less where a few values lie far from the others" if kind == "regression" else ""
        notes.append(f"With fewer than {_FEW} texts, 95 % intervals hold about 90 %{far}.")
    rare = [f"{name!r} ({size})" for name, size in sizes.items() if 0 < size < folds]
    if rare:
        named = listed(rare[:5] + ([f"{len(rare) - 5} more"] if len(rare) > 5 else []))
        rarity = "such a class hardly counts in these numbers"
        if kind == "multilabel":
            rarity = "R² of such a label, which counts like any other in the mean, says little"
        notes.append(f"Fewer texts than folds: {named}; {rarity}.")
    return notes


def share_above_chance(ntps: float, chance: float) -> float:
    """Return (NTPS - chance) / (1 - chance): 0 at chance, 1 when U lies inside V; NaN when chance is 1."""
    return (ntps - chance) / (1 - chance) if chance < 1 else math.nan


@dataclass(frozen=True, kw_only=True)
class LayerScore:
    """The score of one layer at one pair of ranks.

    Attributes:
        layer: 0 is the embedding output, the last one the state after the final norm.
        d: Width of a hidden state.
        rank_m: Numerical rank of M (the centred one when centred).
        rank_u: Number of perception directions with a non-zero eigenvalue, at most the number of classes.
        rank_v: Number of next-token directions.
        k_u: Perception rank of this reading.
        k_v: Next-token rank of this reading.
        ntps: ||P U||_F^2 / ||U||_F^2, in [0, 1]; NaN when there is no direction, or no fraction was chosen among the
            19 of the official convention.
        chance: The mean of `ntps` for a uniformly random V of rank k_v: k_v / d.
        ntps_whitened: The same share after whitening by M, in [0, 1].
        excess_loss: Loss(V_{k_v}) - Loss(U_{k_u}): squared error per text, in units of one-hot labels; of real values
            and of several labels in units of their variances.
        bounds: `raw` and `whitened`, each (lower, upper) bounds on `excess_loss`.
        explained: Share of label variance that a linear readout (with intercept) of V's first k_v directions explains
            on the texts it was fitted on, in [0, 1].
        ceiling: The same for all d directions.
        retained: explained / ceiling, in [0, 1]; NaN when the ceiling is 0.
        explained_heldout: R^2 of a ridge readout of V's first k_v directions on folds that it was not fitted on, at
            most 1, below 0 when it is worse than the label frequencies; `None` without folds.
        ceiling_heldout: The same for all d directions: the number to quote.
        retained_heldout: explained_heldout / ceiling_heldout; NaN unless the interval of the latter is above 0.
        accuracy_heldout: Share of texts for whose class the readout of all directions predicts the largest value;
            `None` without classes.
        null: `ntps`, `explained` and, with folds, `ceiling_heldout` under shuffled labels, each as `Null.to_dict`.
        interval: By quantity, a mapping with `estimate`, `low`, `high` (95 %) and `standard_error`:
            `explained_heldout` and `ceiling_heldout` come with folds, `explained` and `ntps` from the jackknife. `ntps`
            has a standard error only, its spread at this number of texts.
        control: The same quantities for the architecture with random weights.
        curve: Lists over `k_v`: `ntps`, `excess_loss`, `explained` and, with folds, `explained_heldout`. With the
            official convention `fraction`, `k_u`, `k_v` and `ntps`, 19 entries each.
    """

    layer: int
    d: int
    rank_m: int
    rank_u: int
    rank_v: int
    k_u: int
    k_v: int
    ntps: float
    chance: float
    ntps_whitened: float
    excess_loss: float
    bounds: dict[str, tuple[float, float]]
    explained: float
    ceiling: float
    retained: float
    curve: dict[str, list[Any]]
    explained_heldout: float | None = None
    ceiling_heldout: float | None = None
    retained_heldout: float | None = None
    accuracy_heldout: float | None = None
    null: dict[str, Any] | None = None
    interval: dict[str, Any] | None = None
    control: dict[str, Any] | None = None

    @property
    def above_chance(self) -> float:
        """`share_above_chance` of this layer, whose chance is k_v / d."""
        return share_above_chance(self.ntps, self.chance)

    @property
    def through_v(self) -> float:
        """The share of label variance explained through V, on held-out folds if there are any."""
        return self.explained if self.explained_heldout is None else self.explained_heldout

    @property
    def through_all(self) -> float:
        """The share of label variance explained by all d directions, on held-out folds if there are any."""
        return self.ceiling if self.ceiling_heldout is None else self.ceiling_heldout


@dataclass(frozen=True, kw_only=True)
class Best:
    """The layer that reads the labels best.

    Attributes:
        layer: The layer with the largest held-out R^2.
        tied: Further layers within one paired standard error of it.
        r2: Held-out R^2 of the layer chosen, for each fold, on the texts of the other folds alone: choosing does not
            flatter it.
        interval: 95 % interval of `r2`.
        p_value: Of the held-out R^2 of a layer chosen by the other folds' out-of-fold errors, under shuffled labels and
            with the choice repeated for each shuffle (see `choice_p`); `None` without permutations.
    """

    layer: int
    tied: tuple[int, ...]
    r2: float
    interval: tuple[float, float]
    p_value: float | None = None


@dataclass(frozen=True, kw_only=True)
class LabelValue:
    """How well one of several labels is predicted by the readout of the layer that is best for all of them together.

    Attributes:
        name: Name of the label.
        r2: Held-out R^2.
        interval: 95 % interval of `r2`.
        accuracy: Share of texts of which it is said rightly whether they have the label: whether the prediction is
            above a half.
        accuracy_interval: 95 % interval of `accuracy`; see `share_interval`.
        majority_rate: Accuracy of giving all texts the more frequent answer.
        frequency: Share of texts that have the label.
    """

    name: str
    r2: float
    interval: tuple[float, float]
    accuracy: float
    accuracy_interval: tuple[float, float]
    majority_rate: float
    frequency: float


@dataclass(frozen=True, repr=False, kw_only=True)
class ScoreResult(Record):
    """The scores of a model's layers on one task, with their settings and origin.

    Attributes:
        layers: One `LayerScore` per layer.
        convention: `"theory"` or `"official"`.
        n_texts: Number of texts scored.
        n_tokens: Number of their tokens.
        n_classes: Number of classes, or of several labels; 0 for real values.
        kind: `"classification"`, `"regression"` or `"multilabel"`.
        settings: Every option that shaped the numbers.
        metadata: Model, revision, dtype, task fingerprint, package version.
        best: The best layer; `None` where no layer reads the labels better than their frequencies (real values: their
            mean), or without folds.
        choice: How it was chosen; `None` without folds.
        readouts: Out-of-fold errors by layer, `"all"` directions and through `"v"`; empty without folds.
        baselines: The logistic probe of the best layer, TF-IDF and label frequencies, on the same folds; without
            classes no probe, and of real values the mean.
        labels: Of several labels, how well each is predicted; else empty.
        learning: The learning curve of the best layer.
    """

    layers: tuple[LayerScore, ...]
    convention: str
    n_texts: int
    n_tokens: int
    n_classes: int
    kind: str = "classification"
    settings: dict[str, Any] = field(default_factory=dict)
    metadata: dict[str, Any] = field(default_factory=dict)
    best: Best | None = None
    choice: LayerChoice | None = field(default=None, compare=False)
    readouts: dict[str, tuple[Readout, ...]] = field(default_factory=dict, compare=False)
    baselines: tuple[Predictor, ...] = ()
    labels: tuple[LabelValue, ...] = ()
    learning: LearningCurve | None = None

    @property
    def model(self) -> str:
        """The model's name."""
        return str(self.metadata.get("model", "unnamed model"))

    @property
    def task(self) -> str:
        """The task's name."""
        return str(self.metadata.get("task", "unnamed task"))

    @property
    def chosen_score(self) -> bool:
        """Whether `ntps` is one score a layer: of the official convention's 19 it is if a fraction was chosen."""
        return self.convention != "official" or self.settings.get("fraction") is not None

    @property
    def held_out(self) -> bool:
        """Whether explained shares were also computed on held-out folds."""
        return self.layers[0].explained_heldout is not None

    @property
    def layer_numbers(self) -> tuple[int, ...]:
        """Numbers of the layers."""
        return tuple(scored.layer for scored in self.layers)

    @property
    def shown(self) -> LayerScore:
        """The layer that sentences and pictures are about: that of the largest held-out R^2; the last without folds."""
        return self.layers[-1] if self.choice is None else self[self.choice.layer]

    def readout(self, layer: int | None = None, *, through: str = "all") -> Readout:
        """Return the out-of-fold errors of a layer's readout, for `ntps.compare`.

        Args:
            layer: Layer number; by default, the layer chosen for each fold on the other folds' texts.
            through: `"all"` directions, or `"v"`, the first k_v next-token directions.

        Raises:
            NtpsError: If there are no folds, or the layer was not scored.
        """
        one_of(through, ("all", "v"), "through")
        if self.choice is None:
            raise NtpsError("without folds nothing is held out; score with folds to compare.")
        if layer is None and through == "all":
            return replace(self.choice.readout, name=short_name(self.model))
        number = self.choice.layer if layer is None else layer
        one_of(number, self.layer_numbers, "layer")
        readout = self.readouts[through][self.layer_numbers.index(number)]
        return replace(readout, name=f"{short_name(self.model)}, {readout.name}")

    def __repr__(self) -> str:
        return (
            f"ScoreResult({self._title()}; {len(self.layers)} layers, best {self.best.layer if self.best else 'none'})"
        )

    def __getitem__(self, layer: int) -> LayerScore:
        for scored in self.layers:
            if scored.layer == layer:
                return scored
        raise KeyError(f"layer {layer} was not scored; there are {', '.join(str(s.layer) for s in self.layers)}")

    def to_dataframe(self) -> "pd.DataFrame":
        """Return one row per layer; bounds, nulls, intervals and control are spread over columns, curves left out."""
        import pandas as pd

        rows = []
        for scored in self.layers:
            row = {key: value for key, value in asdict(scored).items() if key not in _NESTED}
            for kind, (lower, upper) in scored.bounds.items():
                row[f"bound_{kind}_lower"], row[f"bound_{kind}_upper"] = lower, upper
            for name, null in (scored.null or {}).items():
                row |= {f"{name}_shuffled": null["mean"], f"{name}_z": null["z"], f"{name}_p": null["p_value"]}
            for name, interval in (scored.interval or {}).items():
                if name == "ntps":  # which has no interval
                    row["ntps_standard_error"] = interval["standard_error"]
                else:
                    row[f"{name}_low"], row[f"{name}_high"] = interval["low"], interval["high"]
            for name, value in (scored.control or {}).items():
                row[f"{name}_random"] = value
            rows.append({key: math.nan if value is None else value for key, value in row.items()})
        return pd.DataFrame(rows)

    def to_dict(self) -> dict[str, Any]:
        """Return the result as JSON-able values; numbers that are not finite become `None`."""
        layers = [
            {name: value for name, value in vars(scored).items() if value is not None or name not in _OPTIONAL}
            for scored in self.layers
        ]
        return jsonable(
            {
                "schema_version": SCHEMA_VERSION,
                **picked(self, "model", "task", "n_texts", "n_tokens", "kind"),
                "n_classes": self.n_classes or None,
                "d": self.layers[0].d,
                **picked(self, "convention", "best", "baselines", "labels"),
                "learning_curve": self.learning,
                "settings": self.settings,
                "provenance": {k: v for k, v in self.metadata.items() if k not in ("model", "task", "settings")},
                "layers": layers,
            }
        )

    def to_text(self) -> str:
        """Return a table of at most 80 columns and sentences that explain it."""
        head, *rows = text_table(self._columns(), self.layers)
        room = min(WIDTH - len(head) - 2, BAR_WIDTH)
        bars = self.layers if self.held_out and room >= _LEAST_BAR else ()
        for index, scored in enumerate(bars):
            rows[index] = f"{rows[index]:{len(head)}}  {bar(scored.through_all, room)}".rstrip()
        paragraphs = [wrap(paragraph) for paragraph in (*self.sentences(), *self.notes())]
        if self.labels:
            paragraphs.insert(0, text_table(label_columns(), self.labels))
        return "\n".join([head, *rows, *(line for paragraph in paragraphs for line in ("", *paragraph))])

    def mark(self, layer: int) -> str:
        """Return `*` for the best layer, `=` for one that ties with it, else a space."""
        if self.best is None:
            return " "
        return "*" if layer == self.best.layer else "=" if layer in self.best.tied else " "

    def _columns(self) -> list[Column]:
        if self.held_out:
            readouts = {"R²": "ceiling_heldout", "through V": "explained_heldout", "accuracy": "accuracy_heldout"}
        else:
            readouts = {"in sample": "ceiling", "through V": "explained"}
        columns = [
            Column("", lambda scored: self.mark(scored.layer), words=True),
            Column("layer", attrgetter("layer")),
            *(Column(heading, attrgetter(name)) for heading, name in readouts.items()),
        ]
        if self.chosen_score:
            columns += [Column("NTPS", attrgetter("ntps")), Column("chance", attrgetter("chance"))]
        else:
            columns += [Column(f"NTPS {fraction:.0%}", _at_fraction(fraction)) for fraction in _SHOWN_FRACTIONS]
        if self.layers[0].null is not None:
            columns.append(Column("shuffled", lambda scored: scored.null["ntps"]["mean"]))
        if self.layers[0].control is not None:
            columns.append(Column("random", lambda scored: scored.control[self._quantity]))
        return columns

    @property
    def _quantity(self) -> str:
        return "ceiling_heldout" if self.held_out else "ceiling"

    def sentences(self) -> list[str]:
        """Return what is known: whether the labels can be read, and what next-token prediction has to do with it."""
        if self.choice is None:
            return [
                "Nothing is held out without folds: these shares are of the texts that the readouts were fitted on, "
                "and with few texts they are high for any labels. No layer is called the best."
            ]
        sentences = [self._what_is_read(), self._what_v_holds()]
        if self.best is not None and self.learning is not None and not math.isnan(self.learning.twice):
            twice = f"{fixed(self.learning.twice, 2)} {interval_text(self.learning.interval, 2)}"
            sentences.append(f"Twice as many labelled texts would bring R² to about {twice}.")
        return sentences

    def _what_is_read(self) -> str:
        choice = cast(LayerChoice, self.choice)
        r2 = f"R² {fixed(choice.readout.r2)} {interval_text(choice.readout.interval())}"
        if fixed(choice.readout.r2) != fixed(max(scored.through_all for scored in self.layers)):
            r2 += " where the layer is chosen without the texts it is judged on"  # the table has each layer's own
        p_value = self.best.p_value if self.best is not None else None
        labels = "values" if self.kind == "regression" else "labels"
        if self.best is None:
            text = (
                f"No layer holds these {labels}: on texts it was not fitted on, a linear readout is not clearly better "
                f"than {'their mean' if self.kind == 'regression' else 'the label frequencies'} ({r2})."
            )
        else:
            guess = (
                "squared error of guessing their mean"
                if self.kind == "regression"
                else "error of guessing by label frequencies"
            )
            tied = ""
            if self.best.tied:
                layers = listed([str(layer) for layer in sorted(self.best.tied)])
                tied = f", and layers {layers} (=) tie" if len(self.best.tied) > 1 else f", and layer {layers} (=) ties"
                tied += " with it"
            text = (
                f"* Layer {self.best.layer} holds these {labels} best{tied}: on texts it was not fitted on, a linear "
                f"readout takes {percent(self.best.r2)} off the {guess} ({r2}"
                + (f", p = {fixed(p_value)} under shuffled labels)." if p_value is not None else ").")
            )
        if self.baselines:
            classes = self.kind == "classification"
            what, name = ("Accuracy", "accuracy") if classes else ("Without a model, R²", "r2")
            text += f" {what}: {listed([f'{fixed(getattr(row, name), 2)} ({row.name})' for row in self.baselines])}."
        if self.layers[0].control is not None:
            random = max((scored.control or {})[self._quantity] for scored in self.layers)
            text += f" The best layer of random weights reads R² {fixed(random)}."
        return text

    def _what_v_holds(self) -> str:
        scored = self.shown
        if not self.chosen_score:
            curve = [value for value in scored.curve["ntps"] if not math.isnan(value)] or [math.nan]
            score = (
                f"the released code gives layer {scored.layer} {len(scored.curve['ntps'])} scores, from "
                f"{fixed(min(curve))} to {fixed(max(curve))}, and choosing among them takes several tasks"
            )
        else:
            score = (
                f"NTPS is {fixed(scored.ntps)}, where a random subspace of that size would have {fixed(scored.chance)}"
            )
            if self.convention == "official":
                score += f" (the released code's procedure, {self.settings['fraction']:.0%} of the directions)"
        if scored.null is not None:
            null = scored.null["ntps"]
            score += f" and shuffled labels {fixed(null['mean'])} (p = {fixed(null['p_value'])})"
        text = f"With {self.n_texts:,} texts and {scored.d} directions, {score}; compare it at equal numbers only."
        if self.chosen_score and scored.chance == 1:
            text = f"NTPS says nothing here: with {scored.k_v} directions V is the whole space, and holds any labels."
        if self.best is None:
            return text
        used = f"The {scored.k_v} directions that next-token prediction uses most at layer {scored.layer} read R² "
        value = fixed(scored.explained_heldout)
        if scored.retained_heldout is not None and 0 <= scored.retained_heldout < 1:
            value += f", {percent(scored.retained_heldout)} of what all {scored.d} read"
        return f"{used}{value}. {text}"

    def notes(self) -> list[str]:
        """Return what limits these numbers: few texts, rare classes, repeated texts, texts without a label."""
        notes = []
        if self.held_out:
            facts = self.metadata
            sizes = dict(zip(facts.get("classes", ()), facts.get("class_sizes", ()), strict=False))
            notes += held_out_limits(self.kind, self.n_texts, sizes, self.settings.get("folds", 0))
        if repeated := self.metadata.get("n_repeated"):
            notes.append(
                f"{repeated:,} of {self.n_texts:,} texts {'has' if repeated == 1 else 'have'} the same tokens as "
                "another one; such texts share a fold and count once in intervals."
            )
        if self.metadata.get("n_unlabelled"):
            notes.append(f"{self.metadata['n_unlabelled']:,} texts without a label were left out.")
        dropped = (self.metadata.get("task_source") or {}).get("dropped") or {}
        if any(dropped.values()):
            without_text, without_label = dropped["without_text"], dropped["without_label"]
            notes.append(f"Rows dropped: {without_text:,} without a text, {without_label:,} without a label.")
        return notes

    @property
    def losses_mean_something(self) -> bool:
        """Whether there are at least 10 texts per direction: below, noise may be much of in-sample losses."""
        return self.n_texts >= _ENOUGH * self.layers[0].d

    def _title(self) -> str:
        return (
            f"{short_name(self.model)} on {self.task}: {self.n_texts:,} texts, {self.classes_in_words}, "
            f"{self.n_tokens:,} tokens"
        )

    @property
    def classes_in_words(self) -> str:
        """How many classes there are: "3 classes", "2 of 3 classes" where a sample has lost one; "real values"."""
        return labels_in_words(self.kind, self.n_classes, self.metadata.get("class_sizes", ()))

    def __str__(self) -> str:
        return f"{self._title()}\n\n{self.to_text()}"

    def _repr_html_(self) -> str:
        best = None if self.best is None else self[self.best.layer]
        paragraphs = Markup("").join(Markup("<p>{}</p>").format(text) for text in (*self.sentences(), *self.notes()))
        labels = html_table(label_columns(), self.labels) if self.labels else ""
        return Markup("<p><b>{}</b></p>{}{}{}").format(
            self._title(), html_table(self._columns(), self.layers, best=best), labels, paragraphs
        )

    def plot(self, ax: "Axes | None" = None) -> "Axes":
        """Draw NTPS against chance, and explained shares, by layer; return the axes."""
        from ntps.report.plots import plot_layers

        return plot_layers(self, ax=ax)


def label_columns() -> list[Column]:
    """Return the columns of a table of several labels, whose rows are `LabelValue`."""
    return [
        Column("label", lambda row: shortened(row.name, _LABEL), words=True),
        Column("R²", lambda row: f"{fixed(row.r2)} {interval_text(row.interval)}"),
        Column("accuracy", attrgetter("accuracy"), digits=2),
        Column("majority", attrgetter("majority_rate"), digits=2),
        Column("frequency", attrgetter("frequency"), digits=2),
    ]


def _at_fraction(fraction: float) -> Callable[[LayerScore], float]:
    return lambda scored: scored.curve["ntps"][scored.curve["fraction"].index(fraction)]
