"""What is asked of a pass over the texts: layers, lengths, folds and batches, checked before anything is computed."""

import hashlib
import json
import math
import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ntps._version import __version__
from ntps.core.moments import PREFIXES
from ntps.errors import NtpsError, in_range, one_of

if TYPE_CHECKING:
    from ntps.tasks.load import Task

MAX_BATCH_TOKENS = 8192  # of padding and text: bounds the memory that the hidden states of all layers take
DEFAULT_MAX_LENGTH = 512
DEFAULT_FOLDS = 5


@dataclass(frozen=True)
class Request:
    """What shapes the moments, apart from model and task; checked before anything is computed."""

    layers: tuple[int, ...]
    max_length: int
    prefix: str
    folds: int
    fold_prefix: bool
    seed: int
    matmul_precision: str

    def key(self, model_fingerprint: str, dtype: str, task: "Task") -> str:
        """Return a digest of all that the moments depend on: equal keys mean equal moments.

        Batch size and device are left out: they change nothing but rounding.
        """
        parts = {
            **self.settings(),
            "model": model_fingerprint,
            "dtype": dtype,
            "task": task.fingerprint,
            "version": __version__,
        }
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def settings(self) -> dict[str, Any]:
        """Return the request as JSON values."""
        return {**self.__dict__, "layers": list(self.layers)}


def parse_layers(layers: str | int | Sequence[int], n_layers: int) -> tuple[int, ...]:
    """Return layer numbers from `"all"`, a list, or text such as `"0,6,-1"`; -1 is the last layer.

    Raises:
        NtpsError: If a number is no layer of the model; the message gives the range.
    """
    if isinstance(layers, str):
        if layers == "all":
            return tuple(range(n_layers))
        try:
            layers = [int(part) for part in layers.split(",")]
        except ValueError:
            raise NtpsError(
                f"layers is {layers!r}; give 'all' or numbers separated by commas, such as 0,6,-1."
            ) from None
    try:
        chosen = [operator.index(layer) for layer in (layers if isinstance(layers, Iterable) else [layers])]
    except TypeError:
        raise NtpsError(f"layers is {layers!r}; give 'all', a number, or a list of numbers.") from None
    for layer in chosen:
        if not -n_layers <= layer < n_layers:
            raise NtpsError(f"layer {layer} is out of range; this model has layers 0 to {n_layers - 1}.")
    if not chosen:
        raise NtpsError("layers is empty; name at least one layer.")
    return tuple(sorted({layer % n_layers for layer in chosen}))


def layer_at(depth: float, n_layers: int) -> int:
    """Return the layer at a share of the depth: 0 the embedding, 1 the last; halves round up."""
    return math.floor(depth * (n_layers - 1) + 0.5)


def make_request(
    n_layers: int,
    max_positions: int | None,
    task: "Task",
    *,
    layers: str | int | Sequence[int] = "all",
    max_length: int | None = None,
    prefix: str = "sum",
    folds: int = 0,
    fold_prefix: bool = False,
    seed: int = 0,
    matmul_precision: str = "auto",
) -> Request:
    """Check options against model and task and fill in defaults.

    Raises:
        NtpsError: If one is out of range.
    """
    one_of(prefix, PREFIXES, "prefix")
    one_of(matmul_precision, ("auto", "highest", "high", "medium"), "matmul_precision")
    wanted = DEFAULT_MAX_LENGTH if max_length is None else in_range(max_length, 2, None, "max_length")
    if folds:
        smallest = int(np.bincount(task.labels, minlength=1).max())
        if folds < 2 or folds > smallest:
            raise NtpsError(
                f"folds is {folds}; it must be 0 (none) or between 2 and {smallest}, the largest class's size."
            )
    return Request(
        layers=parse_layers(layers, n_layers),
        max_length=wanted if max_positions is None else min(wanted, max_positions),
        prefix=prefix,
        folds=folds,
        fold_prefix=fold_prefix and folds > 0,
        seed=seed,
        matmul_precision=matmul_precision,
    )


def default_folds(task: "Task") -> int:
    """Return 5, or as many folds as the largest class has texts; 0 where that is one."""
    most = min(DEFAULT_FOLDS, int(np.bincount(task.labels, minlength=1).max()))
    return most if most >= 2 else 0


def assign_folds(labels: np.ndarray, folds: int, *, seed: int = 0) -> np.ndarray:
    """Return the fold (n,) of each text, stratified: every class is spread evenly, at random.

    Args:
        labels: (n,) class indices.
        folds: Number of folds, at least 2.
        seed: Seed of the shuffle.
    """
    order = np.random.default_rng(seed).permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]  # by class, shuffled within; folds then go round and round
    assigned = np.empty(len(labels), dtype=np.int64)
    assigned[order] = np.arange(len(labels)) % folds
    return assigned


def plan_batches(lengths: np.ndarray, batch_size: int, max_tokens: int = MAX_BATCH_TOKENS) -> list[np.ndarray]:
    """Return batches of places in `lengths`, longest first (memory runs out at once, or not at all), without the empty.

    Args:
        lengths: (n,) tokens of each text.
        batch_size: Most texts in a batch.
        max_tokens: Most tokens in a batch, padding included; one text always fits.
    """
    order = np.argsort(-lengths, kind="stable")
    order = order[lengths[order] > 0]
    batches, start = [], 0
    while start < len(order):
        size = max(1, min(batch_size, max_tokens // int(lengths[order[start]])))
        batches.append(order[start : start + size])
        start += size
    return batches


def group_batches(batches: list[np.ndarray], lengths: np.ndarray, most: int) -> list[list[np.ndarray]]:
    """Return runs of batches that hold at most so many tokens together, padding included, or a batch alone.

    Args:
        batches: Places in `lengths`, longest first, from `plan_batches`.
        lengths: (n,) tokens of each text.
        most: Most tokens of a group of several batches; 0 keeps every batch alone.
    """
    groups: list[list[np.ndarray]] = []
    tokens = 0
    for batch in batches:
        size = len(batch) * int(lengths[batch[0]])
        if groups and tokens + size <= most:
            groups[-1].append(batch)
            tokens += size
        else:
            groups.append([batch])
            tokens = size
    return groups
