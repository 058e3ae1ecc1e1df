"""The settings of a pass, checked before anything runs, and its plan: layers and batches."""

import math
import operator
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ntps._files import sha256_json
from ntps._version import __version__
from ntps.core.moments import POOLINGS, PRECISIONS, PREFIXES
from ntps.errors import NtpsError, one_of, whole

MAX_BATCH_TOKENS = 8192  # padding included: bounds the memory that a batch takes
DEFAULT_MAX_LENGTH = 512
STATE_DTYPES = ("float32", "float16")


@dataclass(frozen=True, kw_only=True)
class PassSettings:
    """Settings of a pass: all that shapes representations but model and texts.

    Attributes:
        layers: Layer numbers, ascending.
        max_length: Largest number of tokens of a text.

    The others are as for `ntps.collect`.
    """

    layers: tuple[int, ...]
    max_length: int
    pooling: str = "mean"
    prefix: str = "sum"
    matmul_precision: str = "auto"
    state_dtype: str = "float32"

    def __post_init__(self) -> None:
        whole(self.max_length, 2, None, "max_length")
        one_of(self.pooling, POOLINGS, "pooling")
        one_of(self.prefix, PREFIXES, "prefix")
        one_of(self.matmul_precision, PRECISIONS, "matmul_precision")
        one_of(self.state_dtype, STATE_DTYPES, "state_dtype")

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return {**asdict(self), "layers": list(self.layers)}

    def key(self, model_fingerprint: str, dtype: str, texts_fingerprint: str) -> str:
        """Return a digest of all that the representations depend on: equal keys mean equal representations.

        Batch size and device are left out, as they affect rounding only.
        """
        parts = {"model": model_fingerprint, "dtype": dtype, "texts": texts_fingerprint, "version": __version__}
        return sha256_json({**self.to_dict(), **parts})


def parse_layers(layers: str | int | Sequence[int], n_layers: int) -> tuple[int, ...]:
    """Return layer numbers from `"all"`, a list, or text such as `"0,6,-1"`; -1 is the last layer.

    Raises:
        NtpsError: If the model has no such layer; the message gives the range.
    """
    if isinstance(layers, str):
        if layers == "all":
            return tuple(range(n_layers))
        try:
            layers = [int(number) for number in layers.split(",")]
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
    """Return the layer at a share of the depth: 0 is the embedding, 1 the last layer; halves round up."""
    return math.floor(depth * (n_layers - 1) + 0.5)


def plan_batches(lengths: np.ndarray, batch_size: int, max_tokens: int = MAX_BATCH_TOKENS) -> list[np.ndarray]:
    """Return batches of text indices without empty texts, longest first: memory runs out at once or not at all.

    Args:
        lengths: (n,) number of tokens of each text.
        batch_size: Largest number of texts in a batch.
        max_tokens: Largest number of tokens in a batch, padding included; a single text may exceed it.
    """
    order = np.argsort(-lengths, kind="stable")
    order = order[lengths[order] > 0]
    batches, start = [], 0
    while start < len(order):
        size = max(1, min(batch_size, max_tokens // int(lengths[order[start]])))
        batches.append(order[start : start + size])
        start += size
    return batches


def device_memory(
    *, weights: int, widths: Sequence[int], n_tokens: int, n_texts: int, itemsize: int, inner: int
) -> dict[str, int]:
    """Return the bytes that a pass takes on its device, by what takes them; their sum is the most at any time.

    Args:
        weights: Bytes of the network's weights and buffers.
        widths: Width d of the hidden states of each layer that is read.
        n_tokens: Tokens of the largest batch, padding included.
        n_texts: Texts of that batch.
        itemsize: Bytes of a number of a hidden state.
        inner: Width of the network's feed-forward layers, of which three are held at once.

    Returns:
        `"weights"`, `"sums"` (C0 and C1 of every layer), `"pooled"` (pooled states of the batch) and `"batch"`: what
        the network's blocks or the products of one layer take for a moment, whichever is more.
    """
    width, layers = max(widths), len(widths)
    block = n_tokens * (4 * width + 3 * inner) * itemsize  # beside embeddings, residual, its norm and their sum
    products = n_tokens * width * (3 * itemsize + 4 * 4) + 2 * 4 * width**2  # four float32 copies, two products
    return {
        "weights": weights,
        "sums": 16 * layers * width**2,
        "pooled": 4 * layers * n_texts * width,
        "batch": max(block, products),
    }
