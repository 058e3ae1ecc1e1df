"""Measure one model on one task for a study: scores of every layer with nulls and intervals, measures and a probe.

Everything comes from the representations of one pass, and each layer is solved once. Scores and measures, which are to
predict, read one half of the texts; the probe, which they are to predict, reads the other. On the same texts they would
share their noise: tasks of pure noise then correlate.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from ntps._files import from_json, jsonable, picked
from ntps.core import HeldOut, official_curve
from ntps.core.moments import POOLINGS, PREFIXES
from ntps.errors import NtpsError, one_of, whole
from ntps.models import Representations
from ntps.models.plan import layer_at
from ntps.models.pretrained import DTYPES
from ntps.scoring import Labels, LayerScore, Readout, ScoreSettings, assign_folds, labels_of, linear_probe, score_layers
from ntps.scoring.measures import h_score, logme
from ntps.scoring.probes import knn_accuracy, training_probe
from ntps.scoring.reading import ranks_at
from ntps.scoring.readouts import choose_layer
from ntps.scoring.scores import CONVENTIONS, ScoredLayer, folds_of, score_result
from ntps.study.records import SCORED, SHARES, LayerRecord, ScoreRecord

if TYPE_CHECKING:
    from ntps.finetune.settings import TrainSettings

DEPTHS = (0.5, 1.0)  # layers of LogME, H-score and neighbours, as shares of the depth
DEFAULT_LIMIT = 1000


@dataclass(frozen=True, kw_only=True)
class SampleSettings:
    """Options of what is read of a task, which studies and prescreenings share.

    Attributes:
        limit: Largest number of texts of a task, a seeded random sample; all when `None`.
        max_length: As in `ntps.collect`.
        folds: Folds of held-out values, intervals and probes, within each half of the texts; at least 3.

    Raises:
        NtpsError: If an option is out of range.
    """

    limit: int | None = DEFAULT_LIMIT
    max_length: int | None = None
    folds: int = 5

    def __post_init__(self) -> None:
        if self.limit is not None:
            whole(self.limit, 10, None, "limit")
        if self.max_length is not None:
            whole(self.max_length, 2, None, "max_length")
        whole(self.folds, 3, None, "folds")


@dataclass(frozen=True, kw_only=True)
class StudySettings(SampleSettings):
    """Options of a study, apart from its models and tasks; further ones are those of `SampleSettings`.

    Attributes:
        permutations: Number of shuffles of the labels for the null; at least 1.
        measure_layers: Layers of LogME, H-score and neighbours, `"default"` (at half the depth and the last) or
            `"all"`.
        center: As in `ntps.score`.
        convention: `"theory"`, or `"official"`: beside everything else, the released code's 19 scores of every layer,
            and the accuracy and error of its probes on their own training texts (`ntps.scoring.training_probe`).
        prefix, pooling: As in `ntps.collect`.
        dtype, tokenizer, revision, trust_remote_code: As in `ntps.load_model`, for every model.
        seeds: Number of repetitions: samples, halves, folds and control weights are drawn with seeds 0, ..., seeds - 1.
        control: Whether to score random weights of each model's architecture too; models of one architecture share
            them.
        test_split: Split of the texts that gains are judged on, all of it; by default a quarter of the sampled texts.

    Raises:
        NtpsError: If an option is out of range.
    """

    permutations: int = 200
    measure_layers: str = "default"
    center: bool = False
    convention: str = "theory"
    prefix: str = "sum"
    pooling: str = "mean"
    dtype: str | None = None
    tokenizer: str | None = None
    revision: str | None = None
    trust_remote_code: bool = False
    seeds: int = 1
    control: bool = True
    test_split: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        whole(self.permutations, 1, None, "permutations")
        whole(self.seeds, 1, None, "seeds")
        one_of(self.measure_layers, ("default", "all"), "measure_layers")
        one_of(self.convention, CONVENTIONS, "convention")
        one_of(self.prefix, PREFIXES, "prefix")
        one_of(self.pooling, POOLINGS, "pooling")
        if self.dtype is not None:
            one_of(self.dtype, DTYPES, "dtype")

    def of_scores(self) -> dict[str, Any]:
        """Return the options that a cell of kind `"score"` depends on: all but three."""
        return {name: value for name, value in asdict(self).items() if name not in ("seeds", "control", "test_split")}

    def of_gains(self) -> dict[str, Any]:
        """Return the options that a cell of kind `"gain"` depends on, beside the training settings."""
        return picked(self, "limit", "max_length", "folds", "dtype", "test_split") | self.loading()

    def training(self, lora: "TrainSettings | None") -> "TrainSettings | None":
        """Return the options of fine-tuning, with texts cut as they are for scores unless these options cut them."""
        return lora and replace(lora, max_length=lora.max_length or self.max_length)

    def loading(self) -> dict[str, Any]:
        """Return the options of `ntps.load_model` that a model's fingerprint depends on."""
        return picked(self, "tokenizer", "revision", "trust_remote_code")


def measure(
    representations: Representations, settings: StudySettings, *, seed: int = 0, control: bool = False
) -> ScoreRecord:
    """Return the record of a model on a task, which depends on the arguments alone.

    Args:
        representations: From `ntps.collect` of a task, all layers; the task's first label column is scored.
        settings: See `StudySettings`.
        seed: Seed of folds, permutations and probes.
        control: Whether to take LogME, H-score and neighbours of the last layer only, which is enough for a control
            with random weights.

    Raises:
        NtpsError: If a layer cannot be solved or has no next-token direction, or a half has too few texts for the
            folds.
    """
    labels, probed = scored_and_probed(labels_of(representations), seed)
    scoring = ScoreSettings(folds=settings.folds, seed=seed, center=settings.center, permutations=settings.permutations)
    fold_of = cast(np.ndarray, folds_of(labels, scoring))
    layers = representations.layers
    measured = {layers[-1]} if control else {layers[layer_at(depth, len(layers))] for depth in DEPTHS}
    if settings.measure_layers == "all" and not control:
        measured = set(layers)
    scores: list[LayerScore] = []
    records, readouts = [], []
    for scored in score_layers(representations, labels, scoring, shares=SHARES):
        measures = None
        if scored.score.layer in measured:
            states = labels.states(representations, scored.score.layer)
            measures = _measures(states, labels.values, fold_of)
        scores.append(scored.score)
        readouts.append(scored.readouts["all"])
        records.append(_record(scored, measures, settings.convention))
    result = score_result(representations, labels, scoring, scores)
    return ScoreRecord(
        n_texts=len(labels.values) + len(probed.values),
        n_scored=len(labels.values),
        n_probed=len(probed.values),
        n_tokens=representations.n_tokens,
        n_classes=result.n_classes,
        layers=tuple(records),
        held_back=held_back(representations.layers, readouts, fold_of),
        probe=probe_record(representations, probed, scoring, training=settings.convention == "official"),
        provenance={"settings": result.settings, "metadata": result.metadata},
    )


def split_halves(labels: np.ndarray, groups: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the places of two halves, stratified by class, with equal texts on one side.

    Args:
        labels: (n,) class numbers.
        groups: (n,) equal numbers for equal texts.
        seed: Seed of the split.

    Raises:
        NtpsError: If no class has two different texts.
    """
    half = np.asarray(assign_folds(labels, 2, groups=groups, seed=seed))
    return np.flatnonzero(half == 0), np.flatnonzero(half == 1)


def scored_and_probed(labels: Labels, seed: int) -> tuple[Labels, Labels]:
    """Return the labels of the texts that are scored, and of those that are probed; see `split_halves`."""
    first, second = (
        replace(labels, values=labels.values[half], rows=labels.rows[half], groups=labels.groups[half])
        for half in split_halves(labels.values, labels.groups, seed)
    )
    return first, second


def held_back(layers: Sequence[int], readouts: Sequence[Readout], fold_of: np.ndarray) -> float:
    """Return how much better an earlier layer reads the labels than the last one: a difference of held-out R^2.

    The layer is chosen, for each fold, on the other folds: choosing it on the texts that it is judged on reads a true 0
    as 0.03 to 0.08. So it may be negative.
    """
    return choose_layer(layers, readouts, fold_of).readout.r2 - readouts[-1].r2


def probe_record(
    representations: Representations, labels: Labels, settings: ScoreSettings, *, training: bool = False
) -> dict[str, Any]:
    """Return results of a linear probe of the last layer, as JSON values, with standard errors as `NAME_se`.

    With `training` also those of `training_probe`.
    """
    states = labels.states(representations, representations.layers[-1])
    fold_of = cast(np.ndarray, folds_of(labels, settings))
    probe = linear_probe(states, labels.values, folds=fold_of, random_state=settings.seed)
    names = ("accuracy", "balanced_accuracy", "macro_f1", "r2", "above_majority", "majority_rate")
    row = picked(probe, *names)
    row |= {f"{name}_se": probe.standard_errors[name] for name in names[:4]}
    return jsonable(row | (training_probe(states, labels.values) if training else {}))


def _measures(states: np.ndarray, labels: np.ndarray, fold_of: np.ndarray) -> dict[str, Any]:
    """Return the measures of a layer that need no next-token direction."""
    majority_rate = float(np.bincount(labels).max() / len(labels))
    return {
        "logme": logme(states, labels),
        "h_score": h_score(states, labels),
        "h_score_shrunk": h_score(states, labels, shrinkage="ledoit-wolf"),
        "knn_above_majority": knn_accuracy(states, labels, folds=fold_of) - majority_rate,
    }


def _record(scored: ScoredLayer, measures: dict[str, Any] | None, convention: str) -> LayerRecord:
    """Return a layer's record, with its profile over shares of the width."""
    solved, score, held_out = scored.solved, scored.score, scored.held_out
    ranks = ranks_at(SHARES, solved)
    if not ranks:
        raise NtpsError(f"layer {score.layer} has no next-token direction; the texts are too few or too short.")
    # There, because a study always has folds and permutations.
    held_out, null, intervals = cast(HeldOut, held_out), cast(dict, score.null), cast(dict, score.interval)
    content = picked(score, *SCORED)
    for name in ("ntps", "ceiling_heldout"):
        content |= {f"{name}_z": null[name]["z"], f"{name}_p": null[name]["p_value"]}
    content["intervals"] = {name: (interval["low"], interval["high"]) for name, interval in intervals.items()}
    content["profile"] = {
        "share": SHARES,
        "k_v": ranks,
        "ntps": [solved.ntps_at(score.k_u, k) for k in ranks],
        "explained": [solved.r2_at(k) for k in ranks],
        "retained": [solved.retained_at(k) for k in ranks],
        "explained_heldout": [held_out.at(k) for k in ranks],
    }
    content["measures"] = measures
    content["official"] = None
    if convention == "official":
        content["official"] = official_curve(solved.pooled, solved.next_token)["ntps"]
    return from_json(LayerRecord, jsonable(content), f"layer {score.layer}")  # as it will be read again
