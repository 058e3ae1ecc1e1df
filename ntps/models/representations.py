"""The result of a pass: pooled states of every text and next-token moments, without any label."""

from __future__ import annotations

import math
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ntps._files import load_tensors, save_tensors
from ntps.core import LayerMoments, NextTokenMoments
from ntps.errors import NtpsError, one_of

if TYPE_CHECKING:
    from ntps.tasks import Task

KIND = "ntps-representations-2"
IN_MEMORY = 1 << 30  # bytes of pooled states that are held in memory; more are memory-mapped from disk


@dataclass(frozen=True, eq=False, kw_only=True)
class Representations:
    """Pooled states and next-token moments of texts, from one pass of a model.

    Attributes:
        states: (S, n, d) pooled states of S layers and the n texts that have tokens, as they are kept: float32, or
            float16 in the units of `offset` and `scale`; memory-mapped beyond 1 GB; zero beyond the width of a layer
            that is narrower than others. `layer` gives their values.
        layers: Number of each layer.
        widths: Width of each layer's hidden states.
        next_token: Next-token moments of the same layers; `None` for a model that reads later tokens and so predicts no
            next one.
        text_index: (n,) index of each of those texts among the given ones.
        lengths: (n_given,) number of tokens of each given text after cutting; 0 for a text without tokens.
        text_group: (n,) equal numbers for texts of equal tokens, which a model cannot tell apart.
        offset: (S, d) float32, the mean of each channel, for float16 states; else `None`.
        scale: (S, d) float32, the value of 1 in each channel, for float16 states; else `None`.
        seconds: Time that the pass took; NaN if it is not known.
        metadata: Origin of the representations as JSON values: model, revision, dtype, settings, key, version.
        task: The task whose texts they are, with its labels, or `None`.
    """

    states: np.ndarray
    layers: tuple[int, ...]
    widths: tuple[int, ...]
    next_token: NextTokenMoments | None
    text_index: np.ndarray
    lengths: np.ndarray
    text_group: np.ndarray
    offset: np.ndarray | None = None
    scale: np.ndarray | None = None
    seconds: float = math.nan
    metadata: dict[str, Any] = field(default_factory=dict)
    task: Task | None = None

    @property
    def width(self) -> int:
        """Width d of the hidden states, the largest where layers differ."""
        return int(self.states.shape[2])

    @property
    def n_texts(self) -> int:
        """Number of texts with tokens."""
        return len(self.text_index)

    @property
    def n_given(self) -> int:
        """Number of texts that the model was given, those without tokens included."""
        return len(self.lengths)

    @property
    def n_tokens(self) -> int:
        """Number of tokens."""
        return int(self.lengths.sum())

    def __repr__(self) -> str:
        layers, model = len(self.layers), self.metadata.get("model", "a model")
        return f"Representations({model!r}: {layers} layers of {self.n_texts} texts, width {self.width})"

    def layer(self, layer: int) -> np.ndarray:
        """Return the pooled states (n, d) of one layer, float32.

        Raises:
            NtpsError: If the layer is not among them.
        """
        one_of(layer, self.layers, "layer")
        index = self.layers.index(layer)
        width = self.widths[index]
        states = self.states[index, :, :width]
        if self.offset is None or self.scale is None:
            return states
        return states * self.scale[index, :width] + self.offset[index, :width]

    def moments(self, layer: int) -> LayerMoments:
        """Return the next-token moments of one layer.

        Raises:
            NtpsError: If the layer is not among them, or the model is not causal.
        """
        if self.next_token is None:
            name = self.metadata.get("model", "the model")
            raise NtpsError(
                f"{name} reads later tokens and predicts no next one, so it has no V; `ntps.rank` takes it."
            )
        return self.next_token.layer(layer)

    def save(self, path: str | Path) -> Path:
        """Write everything but the task into one checksummed safetensors file, atomically; return its path.

        Raises:
            NtpsError: If the file cannot be written.
        """
        tensors = {
            "states": torch.from_numpy(self.states),
            "text_index": torch.from_numpy(self.text_index),
            "lengths": torch.from_numpy(self.lengths),
            "text_group": torch.from_numpy(self.text_group),
        }
        if self.offset is not None and self.scale is not None:
            tensors |= {"offset": torch.from_numpy(self.offset), "scale": torch.from_numpy(self.scale)}
        header: dict[str, Any] = {"kind": KIND, "layers": self.layers, "widths": self.widths, "metadata": self.metadata}
        header["seconds"] = None if math.isnan(self.seconds) else self.seconds
        moments = self.next_token
        if moments is not None:
            tensors |= {"past_gram": moments.past_gram, "cross": moments.cross, "counts": moments.counts}
            header |= {"prefix": moments.prefix, "dtype": str(moments.dtype).removeprefix("torch.")}
        return save_tensors(path, tensors, header)

    @classmethod
    def load(cls, path: str | Path, *, task: Task | None = None) -> Representations:
        """Read what `save` wrote; pooled states stay on disk until they are read.

        Args:
            path: The file.
            task: The task whose texts they are, for its labels.

        Raises:
            NtpsError: If the file is missing, damaged or holds something else, or the task has other texts.
        """
        tensors, header = load_tensors(path, KIND)
        moments = None
        if "prefix" in header:
            moments = NextTokenMoments(
                layers=header["layers"],
                width=header["widths"],
                prefix=header["prefix"],
                dtype=getattr(torch, header["dtype"]),
            )
            moments.past_gram, moments.cross, moments.counts = (tensors[n] for n in ("past_gram", "cross", "counts"))
        if task is not None and task.texts_fingerprint != header["metadata"].get("texts_fingerprint"):
            raise NtpsError(f"{path} holds the representations of other texts than those of {task.name}.")
        return cls(
            states=tensors["states"].numpy(),
            layers=tuple(header["layers"]),
            widths=tuple(header["widths"]),
            next_token=moments,
            text_index=tensors["text_index"].numpy(),
            lengths=tensors["lengths"].numpy(),
            text_group=tensors["text_group"].numpy(),
            **{name: tensors[name].numpy() for name in ("offset", "scale") if name in tensors},
            seconds=math.nan if header["seconds"] is None else float(header["seconds"]),
            metadata=header["metadata"],
            task=task,
        )


def allocate_states(shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """Return zeros for pooled states: in memory, or beyond 1 GB in a temporary file that goes when the array does."""
    if np.prod(shape, dtype=np.int64) * np.dtype(dtype).itemsize <= IN_MEMORY:
        return np.zeros(shape, dtype=dtype)
    file = tempfile.TemporaryFile()  # noqa: SIM115  the array holds it
    return np.memmap(file, dtype=dtype, mode="w+", shape=shape)


def kept_states(states: np.ndarray, dtype: str) -> dict[str, np.ndarray]:
    """Return `states`, and for float16 `offset` and `scale`, of representations.

    float16 has 11 bits and ends at 65,504, so every channel is kept about its mean and in units of 2^-14 of its largest
    deviation: neither a large mean nor the size of the states takes bits.

    Args:
        states: (S, n, d) float32.
        dtype: `"float32"` or `"float16"`.
    """
    if dtype == "float32":
        return {"states": states}
    kept, offset = allocate_states(states.shape, dtype), np.zeros((len(states), states.shape[2]), dtype=np.float32)
    scale = np.ones_like(offset)
    for layer, values in enumerate(states):
        offset[layer] = values.mean(0, dtype=np.float64)
        deviations = values - offset[layer]
        unit = np.abs(deviations).max(0) / 2**14
        scale[layer] = np.where(unit >= np.finfo(np.float32).tiny, unit, 1.0)
        kept[layer] = deviations / scale[layer]
    return {"states": kept, "offset": offset, "scale": scale}
