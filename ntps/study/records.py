"""The records of a study, frozen dataclasses that are checked once, when they are read from JSON.

A number that is not finite is `null` in JSON and NaN here.
"""

import math
from dataclasses import dataclass
from typing import Any

from ntps._files import Record, from_json, picked
from ntps.core.official import FRACTIONS
from ntps.errors import NtpsError, in_range, one_of
from ntps.models.plan import layer_at

SHARES = (1 / 64, 1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0)  # ranks that mean the same in models of any width
PROBE = (
    "accuracy", "accuracy_se", "balanced_accuracy", "balanced_accuracy_se", "macro_f1", "r2", "r2_se", "above_majority",
    "majority_rate",
)  # fmt: skip
STATUSES = ("done", "failed")
KINDS = ("score", "gain")
# Values of `ntps.scoring.LayerScore` that a study keeps under the same names.
SCORED = (
    "layer", "d", "k_u", "k_v", "ntps", "chance", "explained", "explained_heldout", "retained", "ceiling_heldout",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class RankProfile:
    """A layer at ranks that are shares of its width; every field has one entry per share.

    Attributes:
        share: Shares of the width, ascending.
        k_v: Next-token ranks: the shares of the width, at least 1 and at most the number of next-token directions.
        ntps: NTPS at each rank, in [0, 1].
        explained: Share of label variance explained through V, in sample.
        retained: `explained` over what all directions explain.
        explained_heldout: `explained` on held-out folds.
    """

    share: tuple[float, ...]
    k_v: tuple[int, ...]
    ntps: tuple[float, ...]
    explained: tuple[float, ...]
    retained: tuple[float, ...]
    explained_heldout: tuple[float, ...]

    def __post_init__(self) -> None:
        for name, values in vars(self).items():
            if len(values) != len(SHARES):
                raise NtpsError(f"a profile has {len(values)} entries of {name}; {len(SHARES)} are needed.")


@dataclass(frozen=True, kw_only=True)
class LayerRecord:
    """The record of one layer; attributes that are not listed are those of `ntps.scoring.LayerScore`.

    Attributes:
        ntps_z: NTPS against shuffled labels, in standard deviations.
        ntps_p: Its one-sided p-value.
        ceiling_heldout_z: `ceiling_heldout` against shuffled labels, in standard deviations.
        ceiling_heldout_p: Its one-sided p-value.
        intervals: Low and high end of the 95 % interval of `explained_heldout` and `ceiling_heldout`.
        profile: The layer at other ranks.
        measures: LogME, H-score (plain and shrunk) and the accuracy of 5 nearest neighbours above the majority rate by
            name; `None` at layers where they were not computed.
        official: The released code's 19 scores; `None` unless asked for.
    """

    layer: int
    d: int
    k_u: int
    k_v: int
    ntps: float
    chance: float
    explained: float
    explained_heldout: float
    retained: float
    ceiling_heldout: float
    ntps_z: float
    ntps_p: float
    ceiling_heldout_z: float
    ceiling_heldout_p: float
    intervals: dict[str, tuple[float, float]]
    profile: RankProfile
    measures: dict[str, float] | None = None
    official: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        _counts(self, "d", "k_u", "k_v")
        _shares(self, "ntps", "chance", "explained", "ntps_p", "ceiling_heldout_p")
        _shares(self, "explained_heldout", "ceiling_heldout", low=-math.inf)
        if self.official is not None and len(self.official) != len(FRACTIONS):
            raise NtpsError(f"official has {len(self.official)} scores; {len(FRACTIONS)} are needed.")


@dataclass(frozen=True, kw_only=True)
class ScoreRecord:
    """The record of a model on one task.

    Attributes:
        n_texts: Number of labelled texts with tokens.
        n_scored: Number of those that scores and measures read.
        n_probed: Number of those that the probe reads: all others.
        n_tokens: Number of tokens of the pass.
        n_classes: Number of classes.
        layers: All layers, from the embedding to the last.
        held_back: Held-out R^2 of the layer that is best on the other folds, minus that of the last layer.
        probe: Results of a linear probe of the last layer by name, with standard errors as `NAME_se`.
        provenance: Model, task, settings and versions, as JSON values.

    Raises:
        NtpsError: If a layer or a result of the probe is missing.
    """

    n_texts: int
    n_scored: int
    n_probed: int
    n_tokens: int
    n_classes: int
    layers: tuple[LayerRecord, ...]
    held_back: float
    probe: dict[str, float]
    provenance: dict[str, Any]

    def __post_init__(self) -> None:
        _counts(self, "n_texts", "n_scored", "n_probed", "n_tokens", "n_classes")
        if missing := [name for name in PROBE if name not in self.probe]:
            raise NtpsError(f"a score needs {missing[0]!r} of the probe.")
        numbers = [record.layer for record in self.layers]
        if not numbers or numbers != list(range(len(numbers))):
            raise NtpsError(f"a score needs every layer from 0 to the last; it has {numbers}.")

    def at_depth(self, depth: float) -> LayerRecord:
        """Return the layer at a share of the depth, in [0, 1]: 0 is the embedding, 1 the last layer."""
        return self.layers[layer_at(depth, len(self.layers))]


@dataclass(frozen=True, kw_only=True)
class TunedNumbers:
    """A layer's values on the test texts, before or after fine-tuning."""

    ntps: float
    explained_heldout: float
    ceiling_heldout: float


@dataclass(frozen=True, kw_only=True)
class TunedLayer:
    """A layer before and after fine-tuning."""

    before: TunedNumbers
    after: TunedNumbers


@dataclass(frozen=True, kw_only=True)
class GainRecord:
    """The gain from fine-tuning, as `ntps.finetune.before_after.fine_tune_gain` returns it."""

    accuracy_before: float
    accuracy_after: float
    gain: float
    standard_error: float
    n_test: int
    best_step: int
    saved: float
    next_token_loss_before: float
    next_token_loss_after: float
    layers: dict[str, TunedLayer]

    def __post_init__(self) -> None:
        _counts(self, "n_test", "saved")
        _shares(self, "accuracy_before", "accuracy_after")
        _shares(self, "gain", low=-1)
        if not all(name.isdecimal() for name in self.layers):
            raise NtpsError(f"a gain has layers by number; it has {', '.join(self.layers)}.")

    def at(self, layer: int) -> TunedLayer:
        """Return a layer before and after fine-tuning.

        Raises:
            NtpsError: If it was not scored.
        """
        if str(layer) not in self.layers:
            scored = ", ".join(sorted(self.layers, key=int))
            raise NtpsError(
                f"layer {layer} was not scored before and after fine-tuning; choose the depth of one of: {scored}."
            )
        return self.layers[str(layer)]


@dataclass(frozen=True, kw_only=True)
class CellId:
    """The position of a cell in a study's grid, and its key.

    Attributes:
        model: Name of the model.
        task: Name of the task in the study.
        seed: Seed of sample, folds and permutations, and of a control's weights.
        control: Whether the weights are random.
        kind: `"score"`, or `"gain"`: gains have cells of their own, so that they can be added to a study later.
        key: SHA-256 hex digest of fingerprints of model and task, seed, settings and package version; controls of
            models with one architecture share it, and are computed once.
    """

    model: str
    task: str
    seed: int
    control: bool
    kind: str
    key: str

    @property
    def position(self) -> dict[str, Any]:
        """Model, task, seed, control and kind."""
        return picked(self, "model", "task", "seed", "control", "kind")


@dataclass(frozen=True, kw_only=True)
class CellResult(CellId, Record):
    """One cell of a study, computed or failed.

    Attributes:
        status: `"done"` or `"failed"`.
        reason: Reason of a failure.
        traceback: Traceback of a failure that is not an `NtpsError`.
        seconds: Duration of the computation.
        score: The result of kind `"score"`.
        gain: The result of kind `"gain"`.

    Raises:
        NtpsError: If kind or status is unknown, or a result that is done lacks its record.
    """

    status: str
    reason: str | None = None
    traceback: str | None = None
    seconds: float | None = None
    score: ScoreRecord | None = None
    gain: GainRecord | None = None

    def __post_init__(self) -> None:
        one_of(self.kind, KINDS, "kind")
        one_of(self.status, STATUSES, "status")
        if self.done and (self.score if self.kind == "score" else self.gain) is None:
            raise NtpsError(f"a cell of kind {self.kind!r} that is done needs its {self.kind}.")

    @property
    def done(self) -> bool:
        """Whether there is a result."""
        return self.status == "done"

    @classmethod
    def from_dict(cls, content: Any) -> "CellResult":
        """Return the result that `to_dict` gave.

        Raises:
            NtpsError: If a field is missing, unknown, or of another type.
        """
        return from_json(cls, content)


def _shares(record: Any, *names: str, low: float = 0.0) -> None:
    """Refuse values that are neither NaN nor between `low` and 1, up to rounding."""
    for name in names:
        value = getattr(record, name)
        if not (math.isnan(value) or low - 1e-6 <= value <= 1 + 1e-6):
            raise NtpsError(f"{name} is {value}; it must be between {low} and 1.")


def _counts(record: Any, *names: str) -> None:
    """Refuse negative numbers."""
    for name in names:
        in_range(getattr(record, name), 0, None, name)
