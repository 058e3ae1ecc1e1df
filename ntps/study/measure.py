"""Measure one model on one task for a study: scores of every layer with nulls and intervals, probes and measures.

Everything comes from the representations of one pass, and each layer is solved once.
"""

from dataclasses import asdict, dataclass
from typing import Any, cast

import numpy as np

from ntps._files import jsonable
from ntps.core import HeldOut
from ntps.core.moments import PREFIXES
from ntps.errors import NtpsError, one_of, whole
from ntps.models import Representations
from ntps.models.plan import layer_at
from ntps.models.pretrained import DTYPES
from ntps.scoring import LayerScore, ScoreSettings, assign_folds, labels_of, score_layers
from ntps.scoring.measures import transferability
from ntps.scoring.reading import ranks_at
from ntps.scoring.scores import ScoredLayer, score_result
from ntps.study.records import SCORED, LayerRecord, ScoreRecord, from_json

SHARES = (1 / 64, 1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0)  # ranks that mean the same in models of any width
DEPTHS = (0.5, 1.0)  # layers at which probes and other measures are taken, as shares of the depth
DEFAULT_LIMIT = 1000


@dataclass(frozen=True, kw_only=True)
class StudySettings:
    """Options of a study, apart from its models and tasks.

    Attributes:
        limit: Largest number of texts of a task, a seeded random sample; all when `None`.
        max_length: As in `ntps.collect`.
        folds: Folds of held-out shares, intervals and probes; at least 3.
        permutations: Number of shuffles of the labels for the null; at least 1.
        measure_layers: Layers of probes and measures, `"default"` (at half the depth and the last) or `"all"`.
        center: As in `ntps.score`.
        prefix: As in `ntps.collect`.
        dtype: As in `ntps.load_model`.
        seeds: Number of repetitions: samples, folds and control weights are drawn with seeds 0, ..., seeds - 1.
        control: Whether to score random weights of each model's architecture too; models of one architecture share
            them.

    Raises:
        NtpsError: If an option is out of range.
    """

    limit: int | None = DEFAULT_LIMIT
    max_length: int | None = None
    folds: int = 5
    permutations: int = 200
    measure_layers: str = "default"
    center: bool = False
    prefix: str = "sum"
    dtype: str | None = None
    seeds: int = 1
    control: bool = True

    def __post_init__(self) -> None:
        if self.limit is not None:
            whole(self.limit, 10, None, "limit")
        if self.max_length is not None:
            whole(self.max_length, 2, None, "max_length")
        whole(self.folds, 3, None, "folds")
        whole(self.permutations, 1, None, "permutations")
        whole(self.seeds, 1, None, "seeds")
        one_of(self.measure_layers, ("default", "all"), "measure_layers")
        one_of(self.prefix, PREFIXES, "prefix")
        if self.dtype is not None:
            one_of(self.dtype, DTYPES, "dtype")

    def of_scores(self) -> dict[str, Any]:
        """Return the options that a cell of kind `"score"` depends on: all but `seeds` and `control`."""
        return {name: value for name, value in asdict(self).items() if name not in ("seeds", "control")}

    def of_gains(self) -> dict[str, Any]:
        """Return the options that a cell of kind `"gain"` depends on, beside the training settings."""
        return {name: getattr(self, name) for name in ("limit", "max_length", "folds", "dtype")}


def measure(
    representations: Representations, settings: StudySettings, *, seed: int = 0, control: bool = False
) -> ScoreRecord:
    """Return the record of a model on a task, which depends on the arguments alone.

    Args:
        representations: From `ntps.collect` of a task, all layers; the task's first label column is scored.
        settings: See `StudySettings`.
        seed: Seed of folds, permutations and probes.
        control: Whether to measure the last layer only, which is enough for a control with random weights.

    Raises:
        NtpsError: If a layer cannot be solved or has no next-token direction.
    """
    labels = labels_of(representations)
    scoring = ScoreSettings(
        folds=settings.folds, seed=seed, center=settings.center, permutations=settings.permutations, intervals=True
    )
    fold_of = assign_folds(labels.values, settings.folds, seed=seed)
    measured = _measured_layers(settings, representations.layers, control)
    scores: list[LayerScore] = []
    records = []
    for scored in score_layers(representations, labels, scoring, shares=SHARES):
        measures = None
        if scored.score.layer in measured:
            states = labels.states(representations, scored.score.layer)
            measures = transferability(states, labels.values, folds=np.asarray(fold_of), random_state=seed)
        scores.append(scored.score)
        records.append(_record(scored, measures))
    result = score_result(representations, labels, scoring, scores)
    return ScoreRecord(
        n_texts=result.n_texts,
        n_tokens=result.n_tokens,
        n_classes=result.n_classes,
        layers=tuple(records),
        provenance={"settings": result.settings, "metadata": result.metadata},
    )


def _measured_layers(settings: StudySettings, layers: tuple[int, ...], control: bool) -> set[int]:
    if control:
        return {layers[-1]}
    return set(layers) if settings.measure_layers == "all" else {layers[layer_at(d, len(layers))] for d in DEPTHS}


def _record(scored: ScoredLayer, measures: dict[str, Any] | None) -> LayerRecord:
    """Return a layer's record, with its profile over shares of the width."""
    solved, score, held_out = scored.solved, scored.score, scored.held_out
    ranks = ranks_at(SHARES, solved)
    if not ranks:
        raise NtpsError(f"layer {score.layer} has no next-token direction; the texts are too few or too short.")
    # There, because a study always has folds and permutations.
    held_out, null, intervals = cast(HeldOut, held_out), cast(dict, score.null), cast(dict, score.interval)
    content: dict[str, Any] = {name: getattr(score, name) for name in SCORED}
    for name in ("ntps", "explained"):
        content |= {f"{name}_z": null[name]["z"], f"{name}_p": null[name]["p_value"]}
    content["intervals"] = {name: (interval["low"], interval["high"]) for name, interval in intervals.items()}
    content["profile"] = {
        "share": SHARES,
        "k_v": ranks,
        "ntps": [solved.ntps_at(score.k_u, k) for k in ranks],
        "explained": [solved.r2_at(k) for k in ranks],
        "retained": [solved.retained_at(k) for k in ranks],
        "explained_heldout": [held_out.at(k)[0] for k in ranks],
    }
    content["measures"] = measures
    return from_json(LayerRecord, jsonable(content), f"layer {score.layer}")  # as it will be read again
