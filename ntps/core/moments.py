"""Next-token moments, streamed: the sums over texts from which a linear prediction of the next token is solved.

| attribute | symbol | shape | meaning |
|---|---|---|---|
| `past_gram` | n C0 | (S, d, d) | sum over texts and tokens of p_t p_t^T |
| `cross` | n C1 | (S, d, d) | sum over texts and tokens of p_t h_{t+1}^T |

h_t is the hidden state of token t at one of S layers; its past p_t is the prefix sum s_t = h_1 + ... + h_t (the paper's
choice), the prefix mean s_t / t, or h_t alone. Being sums, the moments add over batches, processes and machines in any
order. No label enters them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from ntps.errors import NtpsError, in_range, one_of

PREFIXES = ("sum", "mean", "last")
POOLINGS = ("mean", "last")
PRECISIONS = ("auto", "highest", "high", "medium")


class NonFiniteError(NtpsError):
    """A hidden state is infinite or not a number.

    Attributes:
        layer: The layer's number.
        text: Index of the text, in the batch or (as `ntps.collect` raises it) among the given texts.
    """

    def __init__(self, layer: int, text: int, excerpt: str | None = None) -> None:
        self.layer, self.text = layer, text
        where = f"text {text} of the batch" if excerpt is None else f"text {text} ({excerpt[:40]!r})"
        super().__init__(
            f"layer {layer} has a hidden state that is not finite, in {where}; try another dtype (float32, bfloat16)."
        )


@dataclass(frozen=True, eq=False, kw_only=True)
class LayerMoments:
    """One layer's next-token moments: float64, means over texts.

    Attributes:
        layer: The layer's number.
        C0: (d, d) past Gram, E[sum_t p_t p_t^T].
        C1: (d, d) cross moment, E[sum_t p_t h_{t+1}^T].
        n_texts: Number of texts.
        n_pairs: Number of pairs of a past and a next token, which bounds the rank.
        dtype: Arithmetic of a batch, `"float32"` or `"float64"`; it sets the tolerance of the decomposition.
    """

    layer: int
    C0: Tensor
    C1: Tensor
    n_texts: int
    n_pairs: int
    dtype: str = "float64"


class NextTokenMoments:
    """Stream hidden states into C0 and C1 of several layers; memory does not grow with the number of texts.

    Memory: 16 S d^2 bytes on `device` for S layers of width d: 124 MB for 19 layers of width 640, 8.9 GB for 33 layers
    of width 4096. How many texts are enough depends on d: C0 can have full rank from d pairs of tokens on.

    Args:
        layers: The layer number of each entry of the stack.
        width: d, the width of a hidden state; or one number per layer, where layers differ (OPT-350m).
        prefix: The past of token t: `"sum"` s_t (the paper), `"mean"` s_t / t, or `"last"` h_t.
        dtype: `torch.float32` or `torch.float64`: arithmetic within a batch. Sums over batches are float64.
        device: Device of the sums. Hidden states may be on another one, where products are then computed.
        matmul_precision: Torch's float32 matmul precision within `update`: `"highest"`, `"high"` (TF32) or `"medium"`
            (bfloat16). `"auto"`: `"high"` on CUDA, `"highest"` elsewhere. The solvers are float64 in any case.

    Attributes:
        widths: Width of each layer's hidden states.
        width: d, the largest of them; sums and pooled states of a narrower layer are zero beyond its width.
        past_gram: (S, d, d) float64, n C0 up to rounding, of which the upper triangle is read.
        cross: (S, d, d) float64, n C1.
        counts: (3,) int64: texts, tokens, pairs of a past and a next token.

    Raises:
        NtpsError: If an option is out of range.
    """

    def __init__(
        self,
        *,
        layers: Sequence[int],
        width: int | Sequence[int],
        prefix: str = "sum",
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
        matmul_precision: str = "auto",
    ) -> None:
        self.layers = tuple(int(layer) for layer in layers)
        if not self.layers or len(set(self.layers)) < len(self.layers):
            raise NtpsError(f"layers is {list(layers)}; name at least one layer, and each only once.")
        self.widths = (width,) * len(self.layers) if isinstance(width, int) else tuple(width)
        if len(self.widths) != len(self.layers):
            raise NtpsError(f"width has {len(self.widths)} numbers; these moments have {len(self.layers)} layers.")
        for number in self.widths:
            in_range(number, 1, None, "width")
        self.width = max(self.widths)
        self.prefix = one_of(prefix, PREFIXES, "prefix")
        self.dtype = one_of(dtype, (torch.float32, torch.float64), "dtype")
        self.matmul_precision = one_of(matmul_precision, PRECISIONS, "matmul_precision")
        shape = (len(self.layers), self.width, self.width)
        self.past_gram = torch.zeros(shape, dtype=torch.float64, device=device)
        self.cross = torch.zeros(shape, dtype=torch.float64, device=device)
        self.counts = torch.zeros(3, dtype=torch.int64)

    @property
    def n_texts(self) -> int:
        """Number of texts added."""
        return int(self.counts[0])

    @property
    def n_tokens(self) -> int:
        """Number of tokens of those texts."""
        return int(self.counts[1])

    @property
    def n_pairs(self) -> int:
        """Number of pairs of a past and a next token."""
        return int(self.counts[2])

    @torch.no_grad()
    def update(self, hidden: Tensor | Sequence[Tensor], mask: Tensor, *, pooling: str = "mean") -> Tensor:
        """Add one batch and return its pooled states.

        Args:
            hidden: (S, B, T, d) or S tensors (B, T, d of the layer), any float dtype, in the order of `layers`.
            mask: (B, T), non-zero where there is a token; padding may be on either side. Every text needs a token.
            pooling: What represents a text: `"mean"` over its tokens, or its `"last"` state.

        Returns:
            (S, B, d) pooled states in `dtype`, on the device of `hidden`.

        Raises:
            NtpsError: If shapes disagree or a text has no token (nothing was added), or if a hidden state is not finite
                (the message names layer and text; the sums cannot be used any more).
        """
        mask = self._checked(hidden, mask)
        batch = TextBatch(mask, self.widths, pooling=pooling, device=hidden[0].device, moments=self)
        for index, states in enumerate(hidden):
            batch.add(index, states)
        check_finite(batch.pooled, self.layers)
        self.counts += batch.counts
        return batch.pooled

    def _add_layer(
        self, index: int, states: Tensor, lengths: Tensor, followed: Tensor, pooled: Tensor, pooling: str
    ) -> None:
        """Add one layer of a batch (B, T, d), tokens first, and fill in its pooled states (B, d).

        Nothing is added before everything is computed: where memory runs out, the batch can be added in smaller ones.
        """
        gram, cross, batch_pooled = self._products_that_fit(states, lengths, followed, pooling)
        width = self.widths[index]
        self.past_gram[index, :width, :width] += gram.to(self.past_gram.device)  # into float64, without a copy
        self.cross[index, :width, :width] += cross.to(self.cross.device)
        pooled.copy_(batch_pooled)

    def _products_that_fit(
        self, states: Tensor, lengths: Tensor, followed: Tensor, pooling: str
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return what `_products` does, from halves of the batch where a GPU has too little memory for all of it."""
        try:
            return self._products(states, lengths, followed, pooling)
        except torch.cuda.OutOfMemoryError:
            if len(lengths) == 1:
                raise
        half = len(lengths) // 2  # outside the handler, which would keep the memory of the failed attempt
        pairs, places = int((lengths[:half] - 1).sum()), half * states.shape[1]
        gram, cross, pooled = self._products_that_fit(states[:half], lengths[:half], followed[:pairs], pooling)
        more_gram, more_cross, more_pooled = self._products_that_fit(
            states[half:], lengths[half:], followed[pairs:] - places, pooling
        )
        return gram.add_(more_gram), cross.add_(more_cross), torch.cat([pooled, more_pooled])

    def _products(
        self, states: Tensor, lengths: Tensor, followed: Tensor, pooling: str
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return a batch's terms of the past Gram and the cross moment, (d, d) each, and its pooled states (B, d).

        `followed` are the places in the B T positions of the batch, texts one after another, of the tokens before
        another. Padding comes last: what stands there enters sums that nobody reads.
        """
        sums = states.cumsum(1, dtype=self.dtype)
        pooled = _pooled(states, _at(sums, lengths - 1), lengths, pooling)
        past = states if self.prefix == "last" else sums
        if self.prefix == "mean":
            past = past / torch.arange(1, states.shape[1] + 1, device=states.device)[None, :, None]
        dtype = torch.bfloat16 if self.matmul_precision == "medium" and self.dtype == torch.float32 else self.dtype
        past = past.to(dtype).flatten(0, 1)[followed]
        following = states.flatten(0, 1)[followed + 1].to(dtype)
        return _product(past, past), _product(past, following), pooled

    def _checked(self, hidden: Tensor | Sequence[Tensor], mask: Tensor) -> Tensor:
        """Return the mask as booleans beside the states, after checking the shapes."""
        if len(hidden) != len(self.layers):
            raise NtpsError(f"hidden has {len(hidden)} layers; these moments have {len(self.layers)}.")
        for layer, width, states in zip(self.layers, self.widths, hidden, strict=True):
            expected = (*mask.shape, width)
            if tuple(states.shape) != expected:
                raise NtpsError(f"layer {layer} has hidden states of shape {tuple(states.shape)}; expected {expected}.")
        mask = mask.to(hidden[0].device).bool()
        empty = ~mask.any(1)
        if empty.any():
            raise NtpsError(f"text {int(empty.nonzero()[0])} of the batch has no token; leave such texts out.")
        return mask

    def layer(self, layer: int) -> LayerMoments:
        """Return one layer's moments, means over the texts so far, on the CPU.

        Raises:
            NtpsError: If the layer is not among them, or there is no text.
        """
        if layer not in self.layers:
            raise NtpsError(f"layer {layer} is not among these moments; there are {', '.join(map(str, self.layers))}.")
        if self.n_texts == 0:
            raise NtpsError("no text has been added to these moments.")
        index = self.layers.index(layer)
        width = self.widths[index]
        upper = self.past_gram[index, :width, :width].cpu() / self.n_texts
        return LayerMoments(
            layer=layer,
            C0=upper.triu() + upper.triu(1).T,
            C1=self.cross[index, :width, :width].cpu() / self.n_texts,
            n_texts=self.n_texts,
            n_pairs=self.n_pairs,
            dtype=str(self.dtype).removeprefix("torch."),
        )

    def all_reduce(self) -> None:
        """Replace the sums in every process of `torch.distributed` by those of all processes together."""
        device = self.past_gram.device
        counts = self.counts.to(device)
        for sums in (self.past_gram, self.cross, counts):
            torch.distributed.all_reduce(sums)
        self.counts = counts.cpu()

    def __add__(self, other: NextTokenMoments) -> NextTokenMoments:
        """Return the moments of both sets of texts together, with the coarser of their dtypes.

        Raises:
            NtpsError: If layers, width or prefix differ.
        """
        if not isinstance(other, NextTokenMoments):
            return NotImplemented
        for name in ("layers", "widths", "prefix"):
            mine, theirs = getattr(self, name), getattr(other, name)
            if mine != theirs:
                raise NtpsError(f"these moments do not match: {name} is {mine} in one and {theirs} in the other.")
        coarser = torch.float32 if torch.float32 in (self.dtype, other.dtype) else torch.float64
        total = NextTokenMoments(
            layers=self.layers,
            width=self.widths,
            prefix=self.prefix,
            dtype=coarser,
            device=self.past_gram.device,
            matmul_precision=self.matmul_precision,
        )
        total.past_gram = self.past_gram + other.past_gram.to(self.past_gram.device)
        total.cross = self.cross + other.cross.to(self.cross.device)
        total.counts = self.counts + other.counts
        return total


class TextBatch:
    """A batch of texts whose hidden states come layer by layer: pooled states, and terms of next-token moments.

    Only one layer's states need to exist at a time. `NextTokenMoments.update` is this for states that all exist.

    Args:
        mask: (B, T) booleans, true where there is a token; padding may be on either side. On the CPU or `device`; on
            the CPU, a GPU need not be waited for.
        widths: Width of the states of each layer to come.
        pooling: As for `NextTokenMoments.update`.
        device: Device of the pooled states and of the products.
        moments: The sums to which the layers are added; `None` where no next token is predicted.

    Attributes:
        pooled: (S, B, d) pooled states of the layers added so far, d the largest width; zero beyond a layer's own.
            Check them with `check_finite`.
        counts: (3,) int64: texts, tokens and pairs, to be added to those of `moments` once all layers are.
    """

    def __init__(
        self,
        mask: Tensor,
        widths: Sequence[int],
        *,
        pooling: str = "mean",
        device: str | torch.device = "cpu",
        moments: NextTokenMoments | None = None,
    ) -> None:
        self.pooling = one_of(pooling, POOLINGS, "pooling")
        self.widths, self.moments, self.device = tuple(widths), moments, torch.device(device)
        order, mask = _tokens_first(mask)
        followed = torch.nn.functional.pad(mask[:, 1:], (0, 1)).flatten().nonzero().squeeze(1)
        self.counts = torch.tensor([len(mask), len(mask) + len(followed), len(followed)])
        self._order = None if order is None else order.to(device, non_blocking=True)
        self._mask, self._followed = (each.to(device, non_blocking=True) for each in (mask, followed))
        self._lengths = self._mask.sum(1)
        shape = (len(self.widths), len(mask), max(self.widths))
        self.pooled = torch.zeros(shape, dtype=torch.float32 if moments is None else moments.dtype, device=device)

    @torch.no_grad()
    def add(self, index: int, states: Tensor, *, sums: bool = True) -> None:
        """Add the states of one layer, (B, T, d of the layer), any float dtype.

        Args:
            index: Place of the layer among those to come, from 0.
            states: Its hidden states.
            sums: Whether to add to the moments; not where an attempt that ran out of memory later has done so.
        """
        states, pooled = states.to(self.device), self.pooled[index, :, : self.widths[index]]
        states = states if self._order is None else states.gather(1, self._order[:, :, None].expand_as(states))
        if self.moments is not None and sums:
            with _matmul_precision(self.moments.matmul_precision, self.device):
                self.moments._add_layer(index, states, self._lengths, self._followed, pooled, self.pooling)
        else:
            states = states.to(self.pooled.dtype).masked_fill(~self._mask[:, :, None], 0.0)
            pooled.copy_(_pooled(states, states.sum(1), self._lengths, self.pooling))


def _tokens_first(mask: Tensor) -> tuple[Tensor | None, Tensor]:
    """Return the order of positions that brings tokens before padding, `None` if they are, and the mask in it."""
    if not (mask[:, 1:] & ~mask[:, :-1]).any():
        return None, mask
    order = (~mask).int().argsort(dim=1, stable=True)
    return order, mask.gather(1, order)


def _pooled(states: Tensor, total: Tensor, lengths: Tensor, pooling: str) -> Tensor:
    """Return the pooled states (B, d) of a batch (B, T, d), tokens first, whose sums over tokens are `total` (B, d)."""
    if pooling == "mean":
        return total / lengths[:, None]
    last = _at(states, lengths - 1)
    return last.masked_fill(~total.isfinite(), torch.nan)  # an earlier state is not finite: let it show


def _at(states: Tensor, places: Tensor) -> Tensor:
    """Return of each text (B, T, d) what stands at its place (B,): (B, d)."""
    return states[torch.arange(len(states), device=states.device), places]


def check_finite(pooled: Tensor, layers: Sequence[int]) -> None:
    """Check pooled states (S, B, d), which are not finite where a hidden state is not.

    Raises:
        NonFiniteError: If one is not finite; `layers` are their numbers.
    """
    finite = pooled.isfinite().all(2)
    if not finite.all():
        layer_index, text = (~finite).nonzero()[0].tolist()
        raise NonFiniteError(layers[layer_index], text)


def _product(rows: Tensor, others: Tensor) -> Tensor:
    """Return rows^T others; of bfloat16 in float32, whose sums of products are then as exact as those of float32."""
    if rows.dtype != torch.bfloat16:
        return rows.T @ others
    if rows.is_cuda and "dtype" in torch.ops.aten.mm.overloads():  # torch 2.8
        return torch.mm(rows.T, others, out_dtype=torch.float32)
    return rows.float().T @ others.float()


@contextmanager
def _matmul_precision(precision: str, device: torch.device) -> Iterator[None]:
    """Set torch's float32 matmul precision inside the block."""
    before = torch.get_float32_matmul_precision()
    automatic = "high" if device.type == "cuda" else "highest"
    torch.set_float32_matmul_precision(automatic if precision == "auto" else precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
