"""From representations and labels to scores: each layer is solved once, and everything is read off its solution."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from typing import Any, TypeVar

import numpy as np
import torch

from ntps._files import picked, sha256_json
from ntps.core import HeldOut, Keep, Solved, official_curve, solve_layer
from ntps.core.official import FRACTIONS
from ntps.core.threads import several_at_once
from ntps.errors import NtpsError, in_range, one_of, whole
from ntps.models import Representations
from ntps.models.processes import freed_memory_returned
from ntps.scoring.headline import baselines_of, best_layer, curve_of, label_values, predictions_of, probe_of
from ntps.scoring.intervals import Interval, layer_intervals
from ntps.scoring.labels import Labels, LabelSource, assign_folds, labels_of
from ntps.scoring.nulls import LayerNull, layer_null
from ntps.scoring.reading import chosen_ranks, curve_ranks, ranks_at, read_layer, readouts_of
from ntps.scoring.readouts import CONFIDENCE, Comparison, Readout, compare_readouts
from ntps.scoring.results import LayerScore, ScoreResult

R = TypeVar("R")
CONVENTIONS = ("theory", "official")
CONTROLLED = ("ntps", "explained", "retained", "ceiling", "explained_heldout", "ceiling_heldout", "accuracy_heldout")


@dataclass(frozen=True, kw_only=True)
class ScoreSettings:
    """Options of a score, apart from representations and labels: the arguments of `score` by the same names."""

    folds: int | str = "auto"
    seed: int = 0
    k_u: int | None = None
    k_v: int | None = None
    center: bool = False
    convention: str = "theory"
    fraction: float | None = None
    rtol: float | None = None
    permutations: int = 0
    intervals: bool = False
    probes: bool = True

    def __post_init__(self) -> None:
        one_of(self.convention, CONVENTIONS, "convention")
        if self.fraction is not None:
            one_of(self.fraction, FRACTIONS, "fraction")
            if self.convention != "official":
                raise NtpsError("fraction needs convention='official'; theory has the ranks k_u and k_v.")
        for name, least in (("seed", 0), ("permutations", 0), ("k_u", 1), ("k_v", 1)):
            value = getattr(self, name)
            if value is not None:
                whole(value, least, None, name)
        if self.rtol is not None and not 0 < self.rtol < 1:
            raise NtpsError(f"rtol is {self.rtol}; it must lie between 0 and 1.")
        if self.convention == "official" and (self.permutations or self.intervals):
            raise NtpsError(
                "permutations and intervals are defined for the theory's score only; they need convention='theory'."
            )
        if self.intervals and isinstance(self.folds, int) and self.folds < 3:
            raise NtpsError(f"intervals leave out one fold at a time and need at least 3 folds, not {self.folds}.")


@dataclass(frozen=True, eq=False, kw_only=True)
class ScoredLayer:
    """A layer's solution and its score.

    Attributes:
        solved: The solution.
        score: The score at the settings' ranks.
        held_out: Held-out values at every rank of the curve and of the requested shares; `None` without folds.
        readouts: `"all"` (all directions) and `"v"` (through V), text by text; empty without folds.
        null: The permutation null, if asked for.
    """

    solved: Solved
    score: LayerScore
    held_out: HeldOut | None
    readouts: dict[str, Readout]
    null: LayerNull | None


def score(
    representations: Representations,
    *,
    labels: LabelSource = None,
    control: Representations | None = None,
    layers: Sequence[int] | None = None,
    folds: int | str = "auto",
    seed: int = 0,
    k_u: int | None = None,
    k_v: int | None = None,
    center: bool = False,
    convention: str = "theory",
    fraction: float | None = None,
    rtol: float | None = None,
    permutations: int = 0,
    intervals: bool = False,
    probes: bool = True,
) -> ScoreResult:
    """Score every layer of a model on labelled texts; each layer is solved once.

    Args:
        representations: From `ntps.collect`.
        labels: See `ntps.scoring.labels_of`; by default the first label column of the task.
        control: Representations of the same texts by the same architecture with random weights
            (`load_model(..., random_weights=True)`), whose values are given beside the model's.
        layers: Layer numbers; all by default.
        folds: Held-out folds; 0 for none; `"auto"` for 5, or the size of the largest class if smaller. Equal texts
            share a fold. Without folds nothing is held out, and no layer is called the best.
        seed: Seed of folds and permutations.
        k_u: Perception rank; by default the rank of X, at most the number of classes. Directions beyond that are
            arbitrary.
        k_v: Next-token rank; by default max(k_u, round(d / 8)).
        center: Whether to solve U and the excess loss from centred moments. Explained, ceiling and retained are always
            centred (a readout with an intercept).
        convention: `"theory"` (the paper's text), or `"official"`, the released code's procedure: `curve` holds its 19
            scores, and `ntps` and `chance` those of `fraction`; the losses have one definition and stay.
        fraction: Which of the 19, from 0.05 to 0.95; with `None` `ntps` is NaN. The paper reports the layer and
            fraction that correlate best with its target over tasks: one task alone has no such score.
        rtol: Relative tolerance of the decompositions; by default one that fits the dtype of the sums.
        permutations: Number of shuffles of the labels to score; 0 for none.
        intervals: Whether to add, by the jackknife over folds, an interval of the in-sample explained share and the
            spread of NTPS. Held-out values always have an interval.
        probes: Whether to fit logistic probes on the same folds: of the best layer, and of TF-IDF beside it, and to
            compute the learning curve of the best layer. Without classes, TF-IDF with ridge regression alone.

    Raises:
        NtpsError: If an option, rank or layer is out of range, the labels do not fit, the control has other texts or
            layers, or the moments cannot be solved.
    """
    settings = ScoreSettings(
        folds=folds,
        seed=seed,
        k_u=k_u,
        k_v=k_v,
        center=center,
        convention=convention,
        fraction=fraction,
        rtol=rtol,
        permutations=permutations,
        intervals=intervals,
        probes=probes,
    )
    return _score_labels(representations, labels, settings, control, layers)


def score_task(
    representations: Representations, settings: ScoreSettings, *, control: Representations | None = None
) -> list[ScoreResult]:
    """Score every label column of the task that representations were collected from; see `score`.

    Raises:
        NtpsError: As `score`, or if they were collected from texts without labels.
    """
    if representations.task is None:
        raise NtpsError("these representations were collected from texts without labels; use score(labels=...).")
    return [_score_labels(representations, column, settings, control, None) for column in representations.task.columns]


@freed_memory_returned(torch.device("cpu"))
def _score_labels(
    representations: Representations,
    labels: LabelSource,
    settings: ScoreSettings,
    control: Representations | None,
    layers: Sequence[int] | None,
) -> ScoreResult:
    if control is not None:
        check_control(representations, control)
    resolved = labels_of(representations, labels)
    scored, nulls = [], []
    readouts: dict[str, list[Readout]] = {"all": [], "v": []}
    for row in score_layers(representations, resolved, settings, layers=layers):  # solutions are not kept
        scored.append(row.score)
        nulls += [] if row.null is None else [row.null]
        for name, readout in row.readouts.items():
            readouts[name].append(readout)
    if control is not None:
        values_only = replace(settings, permutations=0, intervals=False)
        control_layers = score_layers(control, labels_of(control, labels), values_only, layers=layers)
        scored = [
            replace(pretrained, control=picked(of_control.score, *CONTROLLED))
            for pretrained, of_control in zip(scored, control_layers, strict=True)
        ]
    result = score_result(representations, resolved, settings, scored)
    fold_of = folds_of(resolved, settings)
    if fold_of is None:
        return result
    best, choice = best_layer(result.layer_numbers, readouts["all"], fold_of, nulls)
    by_way = {name: tuple(of_layers) for name, of_layers in readouts.items()}
    result = replace(result, best=best, choice=choice, readouts=by_way)
    if resolved.kind == "multilabel":
        predicted = predictions_of(representations, resolved, fold_of, choice)
        result = replace(result, labels=label_values(predicted, resolved, fold_of, choice))
    if settings.probes:
        task = representations.task
        texts = None if task is None else [task.texts[i] for i in representations.text_index[resolved.rows]]
        baselines = baselines_of(texts, resolved, fold_of, choice.readout)
        if resolved.kind == "classification":
            baselines = (probe_of(representations, resolved, fold_of, choice), *baselines)
        learning = curve_of(representations, resolved, fold_of, choice, seed=settings.seed)
        result = replace(result, baselines=baselines, learning=learning)
    return result


@lru_cache(maxsize=4)
def folds_of(labels: Labels, settings: ScoreSettings) -> np.ndarray | None:
    """Return the fold of each labelled text, equal texts in one fold; `None` without folds."""
    return assign_folds(labels.values, settings.folds, groups=labels.groups, seed=settings.seed)


def score_result(
    representations: Representations, labels: Labels, settings: ScoreSettings, scored: Sequence[LayerScore]
) -> ScoreResult:
    """Combine scored layers with their settings and origin."""
    metadata = dict(representations.metadata)
    task = representations.task
    if task is not None:
        only_labels = [column.name for column in task.columns] == [labels.name]
        metadata |= {
            "task": task.name if only_labels else f"{task.name}:{labels.name}",
            "task_fingerprint": task.fingerprint,
            "task_source": task.source,
        }
    n_tokens = int(representations.lengths[representations.text_index[labels.rows]].sum())
    fold_of = folds_of(labels, settings)
    n_folds = 0 if fold_of is None else int(fold_of.max()) + 1
    scoring = {name: value for name, value in asdict(settings).items() if name != "convention"}
    return ScoreResult(
        layers=tuple(scored),
        convention=settings.convention,
        n_texts=len(labels.values),
        n_tokens=n_tokens,
        n_classes=labels.n_classes,
        kind=labels.kind,
        settings={**metadata.pop("settings", {}), **scoring, "folds": n_folds},
        metadata={
            **metadata,
            "label_column": labels.name,
            **_described(labels),
            "n_unlabelled": labels.n_missing,
            "n_repeated": len(labels.groups) - len(np.unique(labels.groups)),
        },
    )


def _described(labels: Labels) -> dict[str, Any]:
    """Return the classes and how often they occur, or where real values lie."""
    values = labels.values
    if labels.kind == "regression":
        with np.errstate(over="ignore"):  # no number then, which JSON has as null
            found = {"mean": values.mean(), "standard_deviation": values.std()}
        found |= {"min": values.min(), "max": values.max()}
        return {"values": {name: float(value) for name, value in found.items()}}
    return {"classes": list(labels.classes), "class_sizes": list(labels.class_sizes)}


def score_layers(
    representations: Representations,
    labels: Labels,
    settings: ScoreSettings,
    *,
    layers: Sequence[int] | None = None,
    shares: Sequence[float] = (),
) -> Iterator[ScoredLayer]:
    """Solve layers one after another and yield each solution with its score.

    Args:
        representations: From `ntps.collect`.
        labels: From `labels_of`.
        settings: See `ScoreSettings`.
        layers: Layer numbers; all by default.
        shares: Further ranks at which to compute held-out values, as shares of the width in (0, 1].

    Raises:
        NtpsError: As `score`.
    """
    fold_of = folds_of(labels, settings)
    origin = origin_of(representations, labels, fold_of)
    several = len(representations.layers if layers is None else layers) > 1
    groups = torch.from_numpy(labels.groups) if several else None  # what a layer is chosen by

    def read(solved: Solved) -> ScoredLayer:
        held_out, readouts, null = None, {}, None
        if solved.fold_of is not None:
            _, k_v = chosen_ranks(solved, None, settings.k_v)
            ranks = {*curve_ranks(solved.V.rank, k_v), *ranks_at(shares, solved)}
            held_out = solved.held_out(sorted(ranks), keep=Keep(by_text=[k_v] if k_v else [], loo_groups=groups))
            readouts = readouts_of(held_out, solved.layer, k_v, labels.groups, origin)
        scored = read_layer(
            solved,
            k_u=settings.k_u,
            k_v=settings.k_v,
            held_out=held_out,
            readouts=readouts,
            classes=labels.kind == "classification",
        )
        if settings.convention == "official":
            curve = official_curve(solved.pooled, solved.next_token)
            ntps = chance = math.nan
            if settings.fraction is not None:
                index = FRACTIONS.index(settings.fraction)
                ntps, chance = curve["ntps"][index], curve["k_v"][index] / scored.d
            scored = replace(scored, ntps=ntps, chance=chance, curve=curve)
        if settings.permutations:
            null = layer_null(
                solved, scored.k_u, scored.k_v, settings.permutations, groups=labels.groups, seed=settings.seed
            )
            scored = replace(scored, null=null.quantities())
        if settings.intervals:
            intervals = layer_intervals(solved, scored.k_u, scored.k_v)
            jackknifed = {name: interval.to_dict() for name, interval in intervals.items()}
            scored = replace(scored, interval={**jackknifed, **(scored.interval or {})})
        return ScoredLayer(solved=solved, score=scored, held_out=held_out, readouts=readouts, null=null)

    return solve_layers(representations, labels, settings, read, layers=layers)


def origin_of(representations: Representations, labels: Labels, fold_of: np.ndarray | None) -> str:
    """Return a fingerprint of texts, labels and folds: only readouts of the same ones are compared."""
    return sha256_json(
        {
            "texts": representations.metadata.get("texts_fingerprint"),
            "rows": representations.text_index[labels.rows].tolist(),
            "labels": labels.values.tolist(),
            "folds": None if fold_of is None else fold_of.tolist(),
        }
    )


def solve_layers(
    representations: Representations,
    labels: Labels,
    settings: ScoreSettings,
    read: Callable[[Solved], R],
    *,
    layers: Sequence[int] | None = None,
) -> Iterator[R]:
    """Solve layers, several at once, and yield in order what `read` makes of each solution.

    A solution holds about ten (d, d) matrices, so let go of those you do not need.

    Args:
        representations: From `ntps.collect`.
        labels: From `labels_of`.
        settings: See `ScoreSettings`.
        read: Function of a solution; it may be called in another thread.
        layers: Layer numbers; all by default.

    Raises:
        NtpsError: As `score`.
    """
    chosen = representations.layers if layers is None else layers
    if len(chosen) == 0:
        raise NtpsError("layers is empty; name at least one layer.")
    if settings.k_u is not None:
        in_range(settings.k_u, 1, min(representations.widths), "k_u")
    folds = folds_of(labels, settings)
    if settings.intervals and (folds is None or folds.max() < 2):
        raise NtpsError(f"intervals need at least 3 folds, for which {labels.name!r} has too few texts of one class.")

    def solve(layer: int) -> R:
        solved = solve_layer(
            torch.from_numpy(labels.states(representations, layer)),
            labels.targets,
            representations.moments(layer),
            fold_of=None if folds is None else torch.from_numpy(folds),
            center=settings.center,
            separate=labels.kind == "multilabel",
            k_u=settings.k_u,
            rtol=settings.rtol,
        )
        return read(solved)

    return several_at_once(solve, chosen, bytes_each=labels.layer_memory(representations))


def compare(a: ScoreResult | Readout, b: ScoreResult | Readout, *, confidence: float = CONFIDENCE) -> Comparison:
    """Compare two models, layers or ways to read a layer on the same texts, paired text by text.

    A result stands for its best layer, chosen for each fold on the others' texts; `ScoreResult.readout` gives any
    other layer, or the readout through V. `tied_groups` sorts more than two.

    Args:
        a: From `ntps.score`, with folds.
        b: The same, of the same texts, labels and folds.
        confidence: Level of the interval, in (0, 1).

    Raises:
        NtpsError: If texts, labels or folds differ, there are no folds, or `confidence` is out of range.
    """
    readouts = [each if isinstance(each, Readout) else each.readout() for each in (a, b)]
    return compare_readouts(*readouts, confidence=confidence)


def check_control(representations: Representations, control: Representations) -> None:
    """Check that a control has the same texts and layers.

    Raises:
        NtpsError: If it has not.
    """
    if representations.metadata.get("texts_fingerprint") != control.metadata.get("texts_fingerprint"):
        raise NtpsError("the control was collected from other texts; collect both from the same texts.")
    if representations.layers != control.layers:
        raise NtpsError(
            f"layers {list(representations.layers)} and {list(control.layers)} differ; the control must be of the same "
            "architecture."
        )


def permutation_null(
    representations: Representations,
    *,
    labels: LabelSource = None,
    layers: Sequence[int] | None = None,
    permutations: int = 200,
    folds: int | str = "auto",
    seed: int = 0,
    k_u: int | None = None,
    k_v: int | None = None,
    center: bool = False,
) -> tuple[LayerNull, ...]:
    """Score shuffled labels and keep every value, one `LayerNull` per layer; arguments as `score`.

    Raises:
        NtpsError: As `score`, or if `permutations` is below 1.
    """
    whole(permutations, 1, None, "permutations")
    settings = ScoreSettings(folds=folds, seed=seed, k_u=k_u, k_v=k_v, center=center, permutations=permutations)
    resolved = labels_of(representations, labels)

    def read(solved: Solved) -> LayerNull:
        return layer_null(solved, *chosen_ranks(solved, k_u, k_v), permutations, groups=resolved.groups, seed=seed)

    return tuple(solve_layers(representations, resolved, settings, read, layers=layers))


def jackknife(
    representations: Representations,
    *,
    labels: LabelSource = None,
    layers: Sequence[int] | None = None,
    folds: int | str = "auto",
    seed: int = 0,
    k_u: int | None = None,
    k_v: int | None = None,
    center: bool = False,
) -> dict[int, dict[str, Interval]]:
    """Return `layer_intervals` by layer; arguments as `score`.

    Raises:
        NtpsError: As `score`, or if there are fewer than 3 folds.
    """
    settings = ScoreSettings(folds=folds, seed=seed, k_u=k_u, k_v=k_v, center=center, intervals=True)

    def read(solved: Solved) -> tuple[int, dict[str, Interval]]:
        return solved.layer, layer_intervals(solved, *chosen_ranks(solved, k_u, k_v))

    return dict(solve_layers(representations, labels_of(representations, labels), settings, read, layers=layers))
