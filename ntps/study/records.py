"""The records of a study, frozen dataclasses that are checked once, when they are read from JSON.

A number that is not finite is `null` in JSON and NaN here.
"""

import math
import types
import typing
from collections.abc import Mapping
from dataclasses import asdict, dataclass, is_dataclass
from functools import lru_cache
from typing import Any

from ntps._files import jsonable
from ntps.errors import NtpsError, one_of
from ntps.models.plan import layer_at

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
        NtpsError: If a layer is missing.
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
    next_token_loss_before: float
    next_token_loss_after: float
    layers: dict[str, TunedLayer]

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
        return {name: getattr(self, name) for name in ("model", "task", "seed", "control", "kind")}


@dataclass(frozen=True, kw_only=True)
class CellResult(CellId):
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

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return jsonable(asdict(self))

    @classmethod
    def from_dict(cls, content: Any) -> "CellResult":
        """Return the result that `to_dict` gave.

        Raises:
            NtpsError: If a field is missing, unknown, or of another type.
        """
        return from_json(cls, content)


def from_json(kind: Any, value: Any, name: str = "the record") -> Any:
    """Return JSON values as the dataclass, or other annotated type, that they were made from.

    Args:
        kind: A dataclass, `tuple[X, ...]`, `dict[str, X]`, `X | None`, `float`, `int`, `str`, `bool` or `Any`.
        value: JSON values.
        name: Name of the values, for error messages.

    Raises:
        NtpsError: If they do not fit; the message names the field.
    """
    if kind is Any or type(value) is kind:
        return value
    if kind is float and (value is None or type(value) is int):
        return math.nan if value is None else float(value)
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        return None if value is None else from_json(inner[0], value, name)
    if is_dataclass(kind) and isinstance(value, Mapping):
        hints = _hints(typing.cast(type, kind))
        if differing := sorted(hints.keys() ^ value.keys()):
            problem = "lacks" if differing[0] in hints else "has an unknown"
            raise NtpsError(f"{name} {problem} field {differing[0]!r}.")
        return kind(**{key: from_json(hints[key], item, f"{name}.{key}") for key, item in value.items()})  # type: ignore[operator]
    if origin is dict and isinstance(value, Mapping):
        return {key: from_json(inner[1], item, f"{name}[{key!r}]") for key, item in value.items()}
    if origin is tuple and isinstance(value, list | tuple):
        kinds = inner[:1] * len(value) if inner[-1] is ... else inner
        if len(kinds) == len(value):
            return tuple(from_json(*pair, f"{name}[{i}]") for i, pair in enumerate(zip(kinds, value, strict=True)))
    raise NtpsError(f"{name} is {value!r}; {getattr(kind, '__name__', kind)} is needed.")


_hints = lru_cache(typing.get_type_hints)
