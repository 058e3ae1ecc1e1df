"""The settings of a pass, checked before anything runs, and its plan: layers, batches, memory."""

import math
import operator
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ntps._files import Record, jsonable, picked, sha256_json
from ntps._names import one_line
from ntps._text import counted
from ntps._version import __version__
from ntps.core.moments import POOLINGS, PRECISIONS, PREFIXES
from ntps.errors import NtpsError, one_of, whole
from ntps.models import representations

if TYPE_CHECKING:
    import torch

    from ntps.models.language_model import LanguageModel

MAX_BATCH_TOKENS = 8192  # padding included: bounds the memory that a batch takes
DEFAULT_MAX_LENGTH = 512
STATE_DTYPES = ("float32", "float16")


@dataclass(frozen=True, kw_only=True)
class PassSettings(Record):
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


@dataclass(frozen=True, kw_only=True)
class PassPlan(Record):
    """What a pass of a model over texts will read and take.

    Attributes:
        model: Name of the model.
        device: Where it runs.
        dtype: Type of its weights and states.
        n_texts: Number of texts with tokens.
        n_tokens: Number of their tokens, after cutting.
        n_truncated: Number of texts that are cut.
        max_length: Largest number of tokens of a text.
        layers: Layers that are read.
        width: Width of their hidden states, the largest where layers differ.
        batch_size: Largest number of texts in a batch.
        batch_tokens: Largest number of tokens in a batch, padding included.
        sums_on: Where C0 and C1 are summed.
        device_bytes: Bytes on the device by what takes them, as `device_memory` has them.
        host_bytes: Bytes in this machine's memory beside that: pooled `"states"`, `"tokens"`, and `"sums"` where they
            are not on the device.
        disk_bytes: Bytes of pooled states in a temporary file, where they are too many for memory.
    """

    model: str
    device: str
    dtype: str
    n_texts: int
    n_tokens: int
    n_truncated: int
    max_length: int
    layers: tuple[int, ...]
    width: int
    batch_size: int
    batch_tokens: int
    sums_on: str
    device_bytes: dict[str, int]
    host_bytes: dict[str, int]
    disk_bytes: int

    @property
    def needs(self) -> dict[str, int]:
        """Bytes by place: the device, `"memory"` (with the device's where that is the CPU) and `"disk"`."""
        needs = {"memory": sum(self.host_bytes.values()), "disk": self.disk_bytes}
        place = "memory" if self.device == "cpu" else self.device
        needs[place] = needs.get(place, 0) + sum(self.device_bytes.values())
        return needs

    @property
    def beside_model(self) -> int:
        """Bytes on the device and in memory beside the weights."""
        return sum(self.device_bytes.values()) - self.device_bytes["weights"] + sum(self.host_bytes.values())

    @property
    def summary(self) -> str:
        """Texts, tokens, layers and memory, for one line."""
        read = f"{self.n_texts:,} texts, {self.n_tokens:,} tokens, {counted(len(self.layers), 'layer')}"
        return f"{read}; {size_text(self.beside_model)} beside the model"

    def fits(self, free: Mapping[str, int]) -> bool:
        """Return whether every place that `free` names has enough bytes."""
        return all(size <= free.get(place, size) for place, size in self.needs.items())

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return jsonable({**vars(self), **picked(self, "needs", "beside_model")})

    def __str__(self) -> str:
        """Return at most 12 lines of at most 80 columns."""
        cut = f"; {counted(self.n_truncated, 'text')} cut at {self.max_length}" if self.n_truncated else ""
        on_device, host = self.device_bytes, self.host_bytes
        rows = [
            ("texts", f"{self.n_texts:,}, {self.n_tokens:,} tokens{cut}"),
            ("layers", f"{len(self.layers)} of width {self.width:,}"),
            ("dtype", self.dtype),
            ("largest batch", f"{counted(self.batch_size, 'text')}, {self.batch_tokens:,} tokens with padding"),
            ("weights", f"{size_text(on_device['weights'])} on {self.device}"),
            ("batch", f"{size_text(on_device['batch'] + on_device['pooled'])} on {self.device}"),
            ("C0 and C1", f"{size_text(on_device['sums'] + host['sums'])} on {self.sums_on}"),
            ("pooled states", f"{size_text(host['states'])} in memory, {size_text(self.disk_bytes)} on disk"),
            ("tokens", f"{size_text(host['tokens'])} in memory"),
            ("in all", ", ".join(f"{size_text(size)} {_at(place)}" for place, size in self.needs.items() if size)),
        ]
        return "\n".join([one_line(f"plan of a pass of {self.model}")[:80], *(f"  {k:15}{v}" for k, v in rows)])


def plan_of(
    model: "LanguageModel",
    lengths: np.ndarray,
    settings: PassSettings,
    batch_size: int,
    *,
    n_truncated: int = 0,
    dtype: str | None = None,
    sums_on: str | None = None,
) -> PassPlan:
    """Return the plan of a pass.

    Args:
        model: The model; its weights are not needed.
        lengths: (n_given,) number of tokens of each text after cutting.
        settings: The settings of the pass.
        batch_size: Largest number of texts in a batch.
        n_truncated: Number of texts that are cut.
        dtype: Type of the weights and states, by default the model's.
        sums_on: Where to sum C0 and C1, by default the device (the CPU for MPS, which has no float64).
    """
    import torch

    device = str(model.device)
    dtype = model.dtype if dtype is None else dtype
    itemsize = getattr(torch, dtype).itemsize
    sums_on = ("cpu" if model.device.type == "mps" else device) if sums_on is None else sums_on
    widths = [model.widths[layer] for layer in settings.layers]
    batches = plan_batches(lengths, batch_size)
    texts = max((len(batch) for batch in batches), default=0)
    tokens = max((len(batch) * int(lengths[batch[0]]) for batch in batches), default=0)
    tensors = [*model.model.parameters(), *model.model.buffers()]
    weights = sum(tensor.numel() * (itemsize if tensor.is_floating_point() else tensor.itemsize) for tensor in tensors)
    on_device = device_memory(
        weights=weights, widths=widths, n_tokens=tokens, n_texts=texts, itemsize=itemsize, inner=model.inner
    )
    if not model.causal:
        on_device["sums"] = 0
    sums = 0 if sums_on == device else on_device["sums"]
    on_device["sums"] -= sums
    n = int((lengths > 0).sum())
    numbers = len(widths) * n * max(widths)
    kept = [4 * numbers]
    if settings.state_dtype == "float16":  # made of the float32 ones, by way of three float32 copies of one layer
        kept.append(2 * numbers)
    in_memory = sum(size for size in kept if size <= representations.IN_MEMORY)
    return PassPlan(
        model=model.name,
        device=device,
        dtype=dtype,
        n_texts=n,
        n_tokens=int(lengths.sum()),
        n_truncated=n_truncated,
        max_length=settings.max_length,
        layers=settings.layers,
        width=max(widths),
        batch_size=texts,
        batch_tokens=tokens,
        sums_on=sums_on,
        device_bytes=on_device,
        host_bytes={
            "states": in_memory + (12 * n * max(widths) if len(kept) > 1 else 0),
            "tokens": 8 * int(lengths.sum()) + 80 * len(lengths),  # ids, twice for a moment, and to find equal texts
            "sums": sums,
        },
        disk_bytes=sum(kept) - in_memory,
    )


def plan_that_fits(
    model: "LanguageModel", lengths: np.ndarray, settings: PassSettings, batch_size: int, n_truncated: int = 0
) -> PassPlan:
    """Return the plan of a pass that fits; on a GPU with sums in this machine's memory or smaller batches if it must.

    On a CPU batches stay as they were asked for, so that the same request has the same bits.

    Raises:
        NtpsError: If there is too little memory or disk; the message has the smallest change with which it would fit.
    """

    def plan(**changes: Any) -> PassPlan:
        size, limit = changes.pop("batch_size", batch_size), changes.pop("max_length", settings.max_length)
        layers = changes.pop("layers", settings.layers)
        shorter = replace(settings, max_length=limit, layers=layers)
        return plan_of(model, np.minimum(lengths, limit), shorter, size, n_truncated=n_truncated, **changes)

    first, free = plan(), free_bytes(model)
    if first.fits(free):
        return first
    if model.device.type == "cuda":
        for size in (first.batch_size, *_halves(first.batch_size)):
            for place in (first.device, "cpu"):
                other = plan(batch_size=size, sums_on=place)
                if other.fits(free):
                    return other
    place, size = next((place, size) for place, size in first.needs.items() if size > free.get(place, size))
    there = f"{size_text(size)} {_at(place)}, and {size_text(free[place])} are free"
    start = f"a pass of {model.name} over these texts takes {there}"
    few: dict[str, Any] = {"batch_size": 1, **({"sums_on": "cpu"} if model.device.type == "cuda" else {})}
    for also in ({}, few):  # alone, or with the smallest batches
        for changes, words in _changes(first, settings):
            if plan(**{**also, **changes}).fits(free):
                both = " and batch_size=1" if also and model.device.type == "cpu" else ""
                raise NtpsError(f"{start}; it would fit with {words}{both}.")
    raise NtpsError(f"{start}; it needs a smaller model, fewer texts or another machine.")


def _changes(plan: PassPlan, settings: PassSettings) -> Iterator[tuple[dict[str, Any], str]]:
    """Yield changes of a pass, those that cost least first, each with its words."""
    for size in _halves(plan.batch_size):
        yield {"batch_size": size}, f"batch_size={size}"
    for count in range(len(plan.layers) - 1, 0, -1):
        chosen = tuple(plan.layers[int(i)] for i in np.linspace(len(plan.layers) - 1, 0, count).round()[::-1])
        named = ",".join(map(str, chosen))
        yield {"layers": chosen}, f"layers={named}" if count <= 12 else f"{count} layers instead of {len(plan.layers)}"
    if plan.dtype in ("float32", "float64"):
        yield {"dtype": "bfloat16"}, "dtype=bfloat16"
    for limit in _halves(settings.max_length):
        if limit >= 2:
            yield {"max_length": limit}, f"max_length={limit}"


def _halves(number: int) -> Iterator[int]:
    """Yield half of a number, half of that, and so on to 1."""
    while number > 1:
        number //= 2
        yield number


def free_bytes(model: "LanguageModel") -> dict[str, int]:
    """Return the bytes that a pass of a model may take, by place as in `PassPlan.needs`; what is not known is absent.

    A model whose weights are there already has them counted as free.
    """
    loaded = sum(tensor.nbytes for tensor in [*model.model.parameters(), *model.model.buffers()] if not tensor.is_meta)
    free = {"memory": free_memory(), "disk": shutil.disk_usage(tempfile.gettempdir()).free}
    if model.device.type == "cuda":
        free[str(model.device)] = free_memory(model.device)
    place = "memory" if model.device.type == "cpu" else str(model.device)
    return {name: size + (loaded if name == place else 0) for name, size in free.items() if size is not None}


def free_memory(device: "torch.device | None" = None) -> int | None:
    """Return the bytes that are free on a CUDA device, or in this machine's memory; `None` if that is not known."""
    if device is not None:
        import torch

        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + cached
    found = []
    with suppress(AttributeError, OSError, ValueError):  # not everywhere
        found.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    with suppress(OSError, StopIteration):  # Linux knows what it could free
        lines = Path("/proc/meminfo").read_text().splitlines()
        found.append(1024 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable")))
    with suppress(OSError, ValueError):  # a container's limit; its cache of files can be freed
        group = Path("/sys/fs/cgroup")
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        used = int((group / "memory.current").read_text()) - int(stat.get("inactive_file", 0))
        found.append(int((group / "memory.max").read_text()) - used)
    return min(found, default=None)


def size_text(size: float) -> str:
    """Return bytes in words."""
    return f"{size / 1e9:,.1f} GB" if size >= 1e8 else f"{size / 1e6:,.1f} MB"


def _at(place: str) -> str:
    return f"in {place}" if place == "memory" else f"on {place}"
