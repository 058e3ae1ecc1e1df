"""What a study keeps of a model on a task, as frozen dataclasses that are checked once, when they are read from JSON.

In JSON a number that is not finite is `null`; here it is NaN.
"""

import math
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, is_dataclass
from functools import lru_cache
from typing import Any

from ntps._files import jsonable
from ntps.errors import NtpsError, one_of
from ntps.models.plan import layer_at

STATUSES = ("done", "failed")
KINDS = ("score", "gain")
# Numbers of `ntps.LayerScore` that a study keeps under their own names.
SCORED = (
    "layer", "d", "k_u", "k_v", "ntps", "chance", "explained", "explained_heldout", "retained", "ceiling_heldout",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class RankProfile:
    """A layer's numbers at ranks that are shares of its width; every field has one entry per share.

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
    """What a study keeps of one layer; names as in `ntps.LayerScore`.

    Attributes:
        layer: Number of the layer; 0 is the embedding.
        d: Width.
        k_u: Perception rank.
        k_v: Next-token rank.
        ntps: NTPS at these ranks, in [0, 1].
        chance: k_v / d.
        explained: Share of label variance explained through V, in sample.
        explained_heldout: The same on held-out folds.
        retained: `explained` over what all directions explain.
        ceiling_heldout: Share that all directions explain on held-out folds.
        ntps_z: NTPS against shuffled labels, in standard deviations.
        ntps_p: Its one-sided p-value.
        explained_z: `explained` against shuffled labels, in standard deviations.
        explained_p: Its one-sided p-value.
        intervals: Low and high end of the 95 % interval, by name of the quantity.
        profile: The layer at other ranks.
        measures: Probe results and transferability measures by name, as `transferability` gives them; `None` at layers
            where they were not taken.
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
    explained_z: float
    explained_p: float
    intervals: dict[str, tuple[float, float]]
    profile: RankProfile
    measures: dict[str, float] | None = None


@dataclass(frozen=True, kw_only=True)
class ScoreRecord:
    """A model's layers on one task.

    Attributes:
        n_texts: Number of texts with tokens.
        n_tokens: Number of their tokens.
        n_classes: Number of classes.
        layers: All layers, from the embedding to the last.
        provenance: Model, task, settings and versions behind the numbers, as JSON values.

    Raises:
        NtpsError: If a layer is missing, or the last one has no measures.
    """

    n_texts: int
    n_tokens: int
    n_classes: int
    layers: tuple[LayerRecord, ...]
    provenance: dict[str, Any]

    def __post_init__(self) -> None:
        numbers = [record.layer for record in self.layers]
        if not numbers or numbers != list(range(len(numbers))):
            raise NtpsError(f"a score needs every layer from 0 to the last; it has {numbers}.")
        if self.last.measures is None:
            raise NtpsError(f"a score needs the measures of its last layer, {self.last.layer}.")

    @property
    def last(self) -> LayerRecord:
        """The last layer."""
        return self.layers[-1]

    @property
    def probe(self) -> dict[str, float]:
        """Measures of the last layer, the probe's results among them."""
        return self.last.measures or {}

    def at_depth(self, depth: float) -> LayerRecord:
        """Return the layer at a share of the depth, in [0, 1]: 0 is the embedding, 1 the last layer."""
        return self.layers[layer_at(depth, len(self.layers))]


@dataclass(frozen=True, kw_only=True)
class TunedNumbers:
    """A layer's numbers on the test texts, before or after fine-tuning; names as in `LayerRecord`."""

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
    """What fine-tuning gained; fields as `ntps.finetune.compare.fine_tune_gain` returns them.

    Attributes:
        accuracy_before: Accuracy of the frozen probe on the test texts, in [0, 1].
        accuracy_after: Accuracy after fine-tuning on the same texts, in [0, 1].
        gain: Their difference.
        standard_error: Standard error of the gain, paired over test texts.
        n_test: Number of test texts.
        best_step: Step whose weights were kept.
        next_token_loss_before: Next-token loss in nats per token; NaN for a model without a language-model head.
        next_token_loss_after: The same after fine-tuning.
        layers: Layers that were scored, by number as text.
    """

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
class CellResult:
    """One cell of a study, computed or failed.

    Attributes:
        model: Name of the model.
        task: Name of the task in the study.
        seed: Seed of sample, folds and permutations, and of a control's weights.
        control: Whether the weights are random.
        kind: `"score"` or `"gain"`.
        key: SHA-256 hex digest of all that the result depends on.
        status: `"done"` or `"failed"`.
        reason: Why it failed.
        traceback: Traceback of a failure that is not an `NtpsError`.
        seconds: Time it took.
        score: The result of kind `"score"`.
        gain: The result of kind `"gain"`.

    Raises:
        NtpsError: If kind or status is unknown, or a result that is done lacks its numbers.
    """

    model: str
    task: str
    seed: int
    control: bool
    kind: str
    key: str
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
        name: What they are, for error messages.

    Raises:
        NtpsError: If they do not fit; the message names the field.
    """
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return value
    if origin in (types.UnionType, typing.Union):
        return None if value is None else from_json(inner[0], value, name)
    if kind is float and value is None:
        return math.nan
    if is_dataclass(kind) and isinstance(value, Mapping):
        hints = _hints(typing.cast(type, kind))
        for key in [*value, *(field for field in hints if field not in value)]:
            if key not in hints or key not in value:
                raise NtpsError(f"{name} {'lacks' if key in hints else 'has an unknown'} field {key!r}.")
        return kind(**{key: from_json(hints[key], item, f"{name}.{key}") for key, item in value.items()})  # type: ignore[operator]
    if origin is dict and isinstance(value, Mapping):
        return {key: from_json(inner[1], item, f"{name}[{key!r}]") for key, item in value.items()}
    if origin is tuple and isinstance(value, Sequence) and not isinstance(value, str):
        each = [inner[0]] * len(value) if inner[-1] is ... else list(inner)
        if len(each) == len(value):
            return tuple(
                from_json(k, item, f"{name}[{i}]") for i, (k, item) in enumerate(zip(each, value, strict=True))
            )
    if kind is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if kind in (int, str, bool) and type(value) is kind:
        return value
    raise NtpsError(f"{name} is {value!r}; {getattr(kind, '__name__', kind)} is needed.")


@lru_cache
def _hints(kind: Any) -> dict[str, Any]:
    hints = typing.get_type_hints(kind)
    return {field.name: hints[field.name] for field in fields(kind)}
