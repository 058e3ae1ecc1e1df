"""From batches of hidden states to moments, streaming: matrix products only, no loop over texts or positions."""

import contextlib
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ntps.core.layout import Batch, Layout
from ntps.core.moments import PREFIXES, Moments
from ntps.core.products import Products
from ntps.errors import NtpsError, in_range, one_of

_POOL_ROWS = 512  # pooled states wait in a buffer: one product of 512 rows costs far less than sixteen of 32


class NonFiniteError(NtpsError):
    """A hidden state is infinite or not a number.

    Attributes:
        layer: The layer's number.
        text: The text's place, in the batch or (as `collect_moments` raises it) in the task.
    """

    def __init__(self, layer: int, text: int, excerpt: str | None = None) -> None:
        self.layer, self.text = layer, text
        where = f"text {text} of the batch" if excerpt is None else f"text {text} ({_shorten(excerpt)!r})"
        super().__init__(
            f"layer {layer} has a hidden state that is not finite, in {where}; try another dtype (float32, bfloat16)."
        )


def _shorten(text: str, most: int = 40) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


@contextlib.contextmanager
def _float32_precision(precision: str) -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


States = tuple[Tensor | Sequence[Tensor], Tensor, Tensor, Tensor | None]
"""One batch: hidden states, mask, labels, and folds if there are any, as `MomentAccumulator.update` takes them."""


class _Filled(NamedTuple):
    """What a part of a batch adds to one layer's sums; n columns, b texts.

    `past` is (d, n), `following` (n, d), `pooled` (b, d) the means of texts whose places are `places`, `squares` the
    sums over tokens and over texts' last prefix sums, each (d,), and `grams` the whole matrices where they are kept.
    """

    fold: int
    past: Tensor
    following: Tensor
    pooled: Tensor
    places: Tensor
    squares: tuple[Tensor, Tensor]
    grams: tuple[Tensor, Tensor] | None


def _symmetric(lower: Tensor) -> Tensor:
    """Return a copy, symmetric matrices (..., d, d) on the CPU, of block lower triangles."""
    whole = lower.clone().cpu()
    for matrix in whole.flatten(0, -3):  # one at a time: temporary memory of this size would cost more than the work
        matrix.tril_().add_(matrix.tril(-1).T)
    return whole


class MomentAccumulator:
    """Stream hidden states into sums; memory does not grow with the number of texts.

    Memory: for S layers of width d, S * d^2 * 8 * (2 + F) bytes (F = max(folds, 1)) on `device`: 187 MB for 19 layers
    of width 640, 13 GB for 33 layers of width 4096. With `fold_prefix=True` it is S * d^2 * 8 * 3F.

    Args:
        layers: The layer number of each entry of the stack, for instance `range(n_layers)`.
        width: d, the width of a hidden state.
        n_targets: c, the number of classes, or of real targets.
        prefix: What stands for the past of token t: `"sum"` s_t (the paper), `"mean"` s_t / t, or `"last"` h_t.
        folds: Number of folds whose pooled sums are kept apart; 0 for none.
        fold_prefix: Keep C0 and C1 per fold too (for jackknife intervals of the score).
        device: Where sums live. Hidden states are used where they are and must be on this device.
        accumulate_dtype: `torch.float32` or `torch.float64`: the arithmetic of C0 and C1 within a batch. Sums over
            batches, and M and X, are always float64.
        matmul_precision: Torch's float32 matmul precision within `update`: `"highest"`, `"high"` (TF32) or `"medium"`
            (bfloat16). `"auto"`: `"high"` on CUDA, `"highest"` elsewhere. The solvers are float64 in any case.
        token_gram: Also keep sum_t h_t h_t^T and s_L s_L^T whole (two more matrices per layer), for the identity
            C1 + C1^T = E[s_L s_L^T] - E[sum_t h_t h_t^T]. Their diagonals are always kept.

    Raises:
        NtpsError: If an option is out of range.
    """

    def __init__(
        self,
        *,
        layers: Sequence[int],
        width: int,
        n_targets: int,
        prefix: str = "sum",
        folds: int = 0,
        fold_prefix: bool = False,
        device: str | torch.device = "cpu",
        accumulate_dtype: torch.dtype = torch.float32,
        matmul_precision: str = "auto",
        token_gram: bool = False,
    ) -> None:
        one_of(prefix, PREFIXES, "prefix")
        one_of(accumulate_dtype, (torch.float32, torch.float64), "accumulate_dtype")
        one_of(matmul_precision, ("auto", "highest", "high", "medium"), "matmul_precision")
        in_range(width, 1, None, "width")
        in_range(n_targets, 1, None, "n_targets")
        if folds == 1 or folds < 0:
            raise NtpsError(f"folds is {folds}; it must be 0 (none) or at least 2.")
        if not layers:
            raise NtpsError("layers is empty; name at least one layer.")
        self.layers = tuple(int(layer) for layer in layers)
        for place, layer in enumerate(self.layers):
            if layer in self.layers[:place]:
                raise NtpsError(f"layers names layer {layer} twice; name each once.")
        self.width, self.n_targets, self.prefix = width, n_targets, prefix
        self.folds, self.fold_prefix = folds, fold_prefix and folds > 0
        self.device = torch.device(device)
        self.accumulate_dtype = accumulate_dtype
        if matmul_precision == "auto":
            matmul_precision = "high" if self.device.type == "cuda" else "highest"
        self.matmul_precision = matmul_precision
        n_layers, pooled, prefixed = len(self.layers), max(folds, 1), folds if self.fold_prefix else 1

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.float64, device=self.device)

        self._sums = {
            "xx": zeros(pooled, n_layers, width, width),
            "xy": zeros(pooled, n_layers, width, n_targets),
            "x": zeros(pooled, n_layers, width),
            "y": zeros(pooled, n_targets),
            "yy": zeros(pooled, n_targets, n_targets),
            "ss": zeros(prefixed, n_layers, width, width),
            "sh": zeros(prefixed, n_layers, width, width),
            "token_squares": zeros(n_layers, width),
            "last_squares": zeros(n_layers, width),
            "counts": zeros(3, pooled),  # texts, tokens, pairs (s_t, h_{t+1})
        }
        if token_gram:
            self._sums["token_gram"] = zeros(n_layers, width, width)
            self._sums["last_gram"] = zeros(n_layers, width, width)
        self._pending: list[tuple[list[Tensor], Tensor, Tensor]] = []
        self._pending_rows = 0
        self._may_run_out = self.device.type == "cuda"
        self._products = Products(width, accumulate_dtype, self.device)
        self._rooms: dict[str, Tensor] = {}

    @torch.no_grad()
    def update(
        self,
        hidden: Tensor | Sequence[Tensor],
        mask: Tensor,
        labels: Tensor,
        folds: Tensor | None = None,
        *,
        return_pooled: bool = False,
    ) -> Tensor | None:
        """Add one batch. Short ones are added faster together: see `update_many`.

        Args:
            hidden: (S, B, T, d) or S tensors (B, T, d), any float dtype, in the order of `layers`.
            mask: (B, T), non-zero where there is a token; padding may be on either side. Every text has a token.
            labels: (B,) class indices in [0, n_targets), or (B, n_targets) real targets.
            folds: (B,) fold of each text in [0, folds); needed when the accumulator has folds.
            return_pooled: Return the mean-pooled states (S, B, d) of this batch, in the accumulation dtype.

        Raises:
            NtpsError: If shapes disagree, a text has no token, or a label or fold is out of range (nothing was added);
                or if a hidden state is not finite (the message names the layer and the text's place in the batch; the
                sums are spoiled then).
        """
        return self.update_many([(hidden, mask, labels, folds)], return_pooled=return_pooled)

    @torch.no_grad()
    def update_many(self, batches: Sequence[States], *, return_pooled: bool = False) -> Tensor | None:
        """Add several batches at once: the same sums, faster for short ones, since each sum is read and written once.

        Args:
            batches: What `update` takes, (hidden, mask, labels, folds) each. Together they should hold few tokens: on
                a CPU no more than `ntps.core.layout.COLUMNS` are used at once.
            return_pooled: Return the mean-pooled states (S, B, d) of all B texts, in the order of the batches.

        Raises:
            NtpsError: As `update`; the place of a text that is not finite is counted through the batches.
        """
        names = [f"batch {place}" if len(batches) > 1 else "the batch" for place in range(len(batches))]
        checked = [self._checked(name, *batch) for name, batch in zip(names, batches, strict=True)]
        laid = [Batch(mask, fold_of, self.fold_prefix, self._products) for mask, _, fold_of in checked]
        layout = Layout(laid, self._products)
        with _float32_precision(self.matmul_precision):
            pooled = [
                self._update_layer(place, [hidden[place] for hidden, *_ in batches], layout)
                for place in range(len(self.layers))
            ]
        finite = torch.stack([states.isfinite().all(1) for states in pooled])
        if not finite.all():
            place, text = (~finite).nonzero()[0].tolist()
            raise NonFiniteError(self.layers[place], text)
        lengths = torch.cat([mask.sum(1) for mask, *_ in checked])
        targets, fold_of = (torch.cat([batch[part] for batch in checked]) for part in (1, 2))
        counts = torch.stack([torch.ones_like(lengths), lengths, lengths - 1]).to(torch.float64)
        self._sums["counts"].index_add_(1, fold_of, counts)
        self._pending.append((pooled, targets, fold_of))
        self._pending_rows += len(lengths)
        if self._pending_rows >= _POOL_ROWS:
            self._flush()
        return torch.stack(pooled) if return_pooled else None

    def _checked(
        self, name: str, hidden: Tensor | Sequence[Tensor], mask: Tensor, labels: Tensor, folds: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the mask, targets (B, c) and folds (B,) of a batch that can be added."""
        mask = mask.to(self.device).bool()
        targets = self._targets(labels, mask.shape[0])
        fold_of = self._fold_of(folds, mask.shape[0])
        self._check_shapes(hidden, mask)
        empty = ~mask.any(1)
        if empty.any():
            raise NtpsError(f"text {int(empty.nonzero()[0])} of {name} has no token; leave such texts out.")
        return mask, targets, fold_of

    def _update_layer(self, place: int, hidden: Sequence[Tensor], layout: Layout) -> Tensor:
        """Add one layer's C0, C1 and squares; return the pooled states (B, d) of all texts.

        On a GPU everything that needs fresh memory is made before the first sum changes, so that when memory runs out
        the layer can be added again in halves.
        """
        filled: Iterable[_Filled] | None
        try:
            filled = self._filled(hidden, layout)
            if self._may_run_out:
                filled = list(filled)
            n_texts = sum(map(len, hidden))
            pooled = torch.empty(n_texts, self.width, dtype=self.accumulate_dtype, device=self.device)
            self._products.reserve()
        except torch.cuda.OutOfMemoryError:
            if len(hidden) == len(hidden[0]) == 1:
                raise
            filled = None
        if filled is None:  # outside the handler, so that what the failed try held is free
            return torch.cat([self._update_layer(place, *half) for half in layout.halves(hidden)])
        for part in filled:
            self._add(place, part)
            pooled.index_copy_(0, part.places, part.pooled)
        return pooled

    def _filled(self, hidden: Sequence[Tensor], layout: Layout) -> Iterator[_Filled]:
        """Yield what each part adds to the sums; memory of a CPU serves one part after the other."""
        batches = layout.batches
        pairs = zip(batches, hidden, strict=True)
        states = [batch.align(some.to(self.device)).to(self.accumulate_dtype) for batch, some in pairs]
        for part in layout.parts:
            shape = (part.n_columns, self.width)
            past, following, spare = (self._room(name, shape) for name in ("past", "next", "squares"))
            past = past.view(self.width, part.n_columns)
            last = part.fill(states, past, following, self.prefix)
            squares = part.token_squares(states, following, spare).double(), last.square().sum(0, dtype=torch.float64)
            grams = None
            if "token_gram" in self._sums:
                own = [(batch, piece.texts) for batch, piece in part.pieces]
                tokens = torch.cat([states[batch][texts][batches[batch].present[texts]] for batch, texts in own])
                grams = tokens.double().T @ tokens.double(), last.double().T @ last.double()
            pooled = last / part.lengths[:, None]
            yield _Filled(part.fold, past, following, pooled, part.places, squares, grams)

    def _add(self, place: int, part: _Filled) -> None:
        if part.following.numel():
            self._products.add_gram(self._sums["ss"][part.fold, place], part.past)
            self._products.add(self._sums["sh"][part.fold, place], part.past, part.following.T)
        self._sums["token_squares"][place] += part.squares[0]
        self._sums["last_squares"][place] += part.squares[1]
        if part.grams is not None:
            self._sums["token_gram"][place] += part.grams[0]
            self._sums["last_gram"][place] += part.grams[1]

    def _room(self, name: str, shape: Sequence[int]) -> Tensor:
        """Return memory for this part and the next ones; the caching allocator of a GPU does that by itself.

        Without it, some megabytes a layer and part are given back to the system and faulted in again, which takes as
        long as the arithmetic on them.
        """
        if self._may_run_out:
            return torch.empty(tuple(shape), dtype=self.accumulate_dtype, device=self.device)
        size = math.prod(shape)
        if name not in self._rooms or self._rooms[name].numel() < size:
            self._rooms[name] = torch.empty(size, dtype=self.accumulate_dtype)
        return self._rooms[name][:size].view(tuple(shape))

    def _flush(self) -> None:
        """Add the waiting pooled states to M and X, in float64: their ranks are then exact."""
        if not self._pending:
            return
        targets = torch.cat([batch[1] for batch in self._pending])
        fold_of = torch.cat([batch[2] for batch in self._pending])
        members = [(fold, fold_of == fold) for fold in fold_of.unique().tolist()]
        for fold, chosen in members:
            y = targets[chosen]
            self._sums["y"][fold] += y.sum(0)
            self._sums["yy"][fold] += y.T @ y
        for index in range(len(self.layers)):
            states = torch.cat([batch[0][index] for batch in self._pending]).double()
            for fold, chosen in members:
                x = states[chosen]
                self._products.add_gram(self._sums["xx"][fold, index], x.T)
                self._sums["xy"][fold, index] += x.T @ targets[chosen]
                self._sums["x"][fold, index] += x.sum(0)
        self._pending, self._pending_rows = [], 0

    def _targets(self, labels: Tensor, batch: int) -> Tensor:
        labels = torch.as_tensor(labels, device=self.device)
        if labels.shape == (batch, self.n_targets):
            finite = labels.isfinite().all(1)
            if not finite.all():
                raise NtpsError(f"a target of text {int((~finite).nonzero()[0])} of the batch is not finite.")
            return labels.double()
        if labels.shape != (batch,) or labels.is_floating_point():
            raise NtpsError(
                f"labels have shape {tuple(labels.shape)} and dtype {labels.dtype}; expected class indices ({batch},) "
                f"or real targets ({batch}, {self.n_targets})."
            )
        if batch and not 0 <= int(labels.min()) <= int(labels.max()) < self.n_targets:
            raise NtpsError(f"labels must lie in [0, {self.n_targets}); found {labels.min()} to {labels.max()}.")
        return torch.nn.functional.one_hot(labels.long(), self.n_targets).double()

    def _fold_of(self, folds: Tensor | None, batch: int) -> Tensor:
        if self.folds == 0:
            return torch.zeros(batch, dtype=torch.long, device=self.device)
        if folds is None or len(folds) != batch:
            raise NtpsError(f"this accumulator has {self.folds} folds: give the fold of each of the {batch} texts.")
        folds = torch.as_tensor(folds, device=self.device).long()
        if batch and not 0 <= int(folds.min()) <= int(folds.max()) < self.folds:
            raise NtpsError(f"folds must lie in [0, {self.folds}); found {folds.min()} to {folds.max()}.")
        return folds

    def _check_shapes(self, hidden: Tensor | Sequence[Tensor], mask: Tensor) -> None:
        if len(hidden) != len(self.layers):
            raise NtpsError(f"hidden holds {len(hidden)} layers; this accumulator was made for {len(self.layers)}.")
        expected = (*mask.shape, self.width)
        for layer, states in zip(self.layers, hidden, strict=True):
            if tuple(states.shape) != expected:
                raise NtpsError(f"layer {layer} has hidden states of shape {tuple(states.shape)}; expected {expected}.")

    def sums(self) -> dict[str, Tensor]:
        """Return the raw sums by name (float64, live tensors), for a reduction over processes."""
        self._flush()
        return self._sums

    def finalize(self, metadata: dict[str, Any] | None = None) -> "Moments":
        """Return the frozen `Moments` of all texts so far.

        Raises:
            NtpsError: If there were none.
        """
        halves = ("xx", "ss")
        sums = {n: _symmetric(value) if n in halves else value.cpu().clone() for n, value in self.sums().items()}
        if sums["counts"][0].sum() == 0:
            raise NtpsError("there is no text with a token in it; nothing to accumulate.")
        return Moments(
            sums=sums,
            layers=self.layers,
            prefix=self.prefix,
            n_folds=self.folds,
            metadata={"accumulate_dtype": str(self.accumulate_dtype).removeprefix("torch."), **(metadata or {})},
        )
