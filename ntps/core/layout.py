"""Where the tokens of batches go, so that prefix sums land where the products read them fastest.

The pasts of the tokens, of all texts or of one fold's, are the columns of a matrix (d, n); the next states are the rows
of another, (n, d). Texts are put in order of length and cut into segments of nearly equal length: one cumulative sum a
segment writes its columns in place, and no prefix sum is copied or transposed afterwards. Columns past a text's end are
zero, and so add nothing. Short batches share the two matrices and long ones are cut: a CPU then finds in its caches
what it just wrote.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ntps.core.products import Products

COLUMNS = 4096  # at most so many at once on a CPU, or one text: more would leave its caches between their uses
_SEGMENTS = {"cpu": 16, "cuda": 4}  # cumulative sums a piece: a GPU wastes less time on columns than on many launches


@dataclass(frozen=True)
class Piece:
    """Texts of one batch and one fold: b texts, n columns.

    Attributes:
        fold: The fold of the texts.
        texts: Their places among the sorted texts of the batch.
        segments: (texts, pairs of the longest, first column) of each segment; places are those of the batch.
        following: (n,) place in B * T of the next token of each column; a text's first token where there is none.
        spare: Columns without a pair: they are past the end of their text.
        n_spare: (b,) how many of them each text has.
        steps: (n,) how many tokens the past of a column holds.
        last_pairs: (b,) column of each text's last pair; any for a text of one token.
        ends: (b,) place in B * T of each text's last token.
        alone: (b,) whether a text has one token only, or `None` where none has.
    """

    fold: int
    texts: slice
    segments: tuple[tuple[slice, int, int], ...]
    following: Tensor
    spare: Tensor
    n_spare: Tensor
    steps: Tensor
    last_pairs: Tensor
    ends: Tensor
    alone: Tensor | None

    @property
    def n_columns(self) -> int:
        """The number n of columns: pairs, and spare ones."""
        return len(self.following)

    def fill(self, states: Tensor, past: Tensor, following: Tensor, prefix: str) -> Tensor:
        """Write what the products read, and return s_L, the sum of each text's states (b, d).

        Args:
            states: (B, T, d) of the whole batch, sorted, padding on the right.
            past: (d, n) memory for what stands for the past of each column's token.
            following: (n, d) dense memory for the next states.
            prefix: `"sum"`, `"mean"` or `"last"`.
        """
        flat = states.flatten(0, 1)
        torch.index_select(flat, 0, self.following, out=following)
        last = flat[self.ends]
        if not self.n_columns:
            return last
        for source, columns in self._segments(states, past):
            torch.cumsum(source, 1, out=columns)
        before = past.index_select(1, self.last_pairs).T
        last = last + before if self.alone is None else torch.where(self.alone[:, None], last, last + before)
        if prefix == "mean":
            past /= self.steps
        elif prefix == "last":
            for source, columns in self._segments(states, past):
                columns.copy_(source)
        if len(self.spare):
            past.index_fill_(1, self.spare, 0.0)
        return last

    def _segments(self, states: Tensor, past: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the states and the columns of each segment, both as (texts, pairs of the longest, d)."""
        for texts, width, first in self.segments:
            count = texts.stop - texts.start
            columns = past[:, first : first + count * width].unflatten(1, (count, width))
            yield states[texts, :width], columns.permute(1, 2, 0)

    def missing_squares(self, states: Tensor) -> Tensor:
        """Return what the squares of `following` lack to be those of all tokens, summed over texts (d,).

        A text's first token follows none: it is missing, but for the columns without a pair that name it.
        """
        return ((1 - self.n_spare)[:, None] * states[self.texts, 0].square()).sum(0)


@dataclass(frozen=True)
class Part:
    """Pieces, of one batch or of several, whose products go into the same sums together.

    Attributes:
        fold: The fold of the texts.
        pieces: (place of the batch, piece).
        n_columns: The number n of columns: those of the pieces, and zeros up to a number that suits the products.
        places: (b,) place of each text, piece after piece, among all texts of the batches as they came.
        lengths: (b,) tokens of each.
    """

    fold: int
    pieces: tuple[tuple[int, Piece], ...]
    n_columns: int
    places: Tensor
    lengths: Tensor

    def fill(self, states: Sequence[Tensor], past: Tensor, following: Tensor, prefix: str) -> Tensor:
        """Write what the products read, and return s_L, the sum of each text's states (b, d), piece after piece.

        Args:
            states: (B, T, d) of each batch, sorted, padding on the right.
            past: (d, n) dense memory for what stands for the past of each column's token.
            following: (n, d) dense memory for the next states.
            prefix: `"sum"`, `"mean"` or `"last"`.
        """
        sums, start = [], 0
        for batch, piece in self.pieces:
            own = slice(start, start + piece.n_columns)
            sums.append(piece.fill(states[batch], past[:, own], following[own], prefix))
            start = own.stop
        past[:, start:].zero_()
        following[start:].zero_()
        return torch.cat(sums)

    def token_squares(self, states: Sequence[Tensor], following: Tensor, out: Tensor) -> Tensor:
        """Return the sum of h_t^2 over the tokens of these texts (d,); `out` (n, d) is written."""
        total = torch.mul(following, following, out=out).sum(0)
        for batch, piece in self.pieces:
            total += piece.missing_squares(states[batch])
        return total


class Batch:
    """What all layers of a batch share.

    Args:
        mask: (B, T) bool, true where there is a token; every text has one.
        fold_of: (B,) fold of each text.
        by_fold: Whether the products of each fold are kept apart.
        products: What the columns are laid out for.
    """

    def __init__(self, mask: Tensor, fold_of: Tensor, by_fold: bool, products: Products) -> None:
        self._mask, self._fold_of, self._by_fold, self._products = mask, fold_of, by_fold, products

    def halves(self) -> tuple["Batch", "Batch"]:
        """Return the first and the second half of the texts as batches."""
        middle = len(self._mask) // 2
        first, second = (
            Batch(self._mask[chosen], self._fold_of[chosen], self._by_fold, self._products)
            for chosen in (slice(None, middle), slice(middle, None))
        )
        return first, second

    @cached_property
    def _sorted(self) -> tuple[list[int], Tensor | None]:
        """Return the lengths of the sorted texts, and the order that sorts them (B,), or `None` if they are sorted."""
        lengths = self._mask.sum(1).tolist()
        folds = self._fold_of.tolist() if self._by_fold else [0] * len(lengths)
        order = sorted(range(len(lengths)), key=lambda text: (folds[text], -lengths[text]))
        moved = order != list(range(len(lengths)))
        return [lengths[text] for text in order], torch.tensor(order, device=self._mask.device) if moved else None

    @cached_property
    def _source(self) -> Tensor | None:
        """Return the place (B * T,) of what goes to each place of the sorted batch, or `None` if nothing moves."""
        order, mask = self._sorted[1], self._mask
        if order is None and (mask[:, :-1] >= mask[:, 1:]).all():
            return None
        within = torch.argsort((~mask).to(torch.uint8), dim=1, stable=True)  # padding to the right, tokens in order
        places = within + torch.arange(len(mask), device=mask.device)[:, None] * mask.shape[1]
        return (places if order is None else places[order]).flatten()

    def align(self, hidden: Tensor) -> Tensor:
        """Return states (B, T, d) with texts sorted and padding on the right; nothing that stands there is read."""
        if self._source is None:
            return hidden
        return hidden.flatten(0, 1).index_select(0, self._source).view(hidden.shape)

    @cached_property
    def places(self) -> Tensor:
        """The place of each sorted text in the batch as it came, (B,)."""
        order = self._sorted[1]
        return torch.arange(len(self._mask), device=self._mask.device) if order is None else order

    @cached_property
    def lengths(self) -> Tensor:
        """Tokens of each sorted text, (B,)."""
        return torch.tensor(self._sorted[0], device=self._mask.device)

    @cached_property
    def present(self) -> Tensor:
        """Where the sorted batch has a token, (B, T)."""
        return torch.arange(self._mask.shape[1], device=self._mask.device) < self.lengths[:, None]

    @cached_property
    def pieces(self) -> list[Piece]:
        """The texts, by fold where those are kept apart; on a CPU no more columns each than stay in its caches."""
        lengths, folds = self._sorted[0], [0] * len(self._mask)
        if self._by_fold:
            folds = self._fold_of.sort().values.tolist()
        most = _most_columns(self._mask.device)
        cuts, columns = [0], 0
        for text, length in enumerate(lengths):
            columns += length - 1
            if folds[text] != folds[cuts[-1]] or (columns > most and text > cuts[-1]):
                cuts.append(text)
                columns = length - 1
        ends = [*cuts[1:], len(lengths)]
        return [self._piece(folds[start], slice(start, stop)) for start, stop in zip(cuts, ends, strict=True)]

    def _piece(self, fold: int, texts: slice) -> Piece:
        lengths = self._sorted[0][texts]
        widths, segments, filled = [], [], 0
        for start, stop in _cut(lengths, _SEGMENTS.get(self._mask.device.type, 4)):
            width = lengths[start] - 1
            if width:
                segments.append((slice(texts.start + start, texts.start + stop), width, filled))
            widths += [width] * (stop - start)
            filled += width * (stop - start)
        length, columns = torch.tensor(lengths), torch.tensor(widths)
        begins = columns.cumsum(0) - columns
        text = torch.arange(len(lengths)).repeat_interleave(columns)
        step = torch.arange(filled) - begins[text] + 1
        followed = step < length[text]
        row = torch.arange(texts.start, texts.stop) * self._mask.shape[1]
        tensors = {
            "following": row[text] + torch.where(followed, step, 0),
            "spare": (~followed).nonzero()[:, 0],
            "n_spare": text[~followed].bincount(minlength=len(lengths)).to(self._products.dtype),
            "steps": step.to(self._products.dtype),
            "last_pairs": (begins + length - 2).clamp(0, max(filled - 1, 0)),
            "ends": row + length - 1,
        }
        alone = (length == 1).to(self._mask.device) if lengths[-1] == 1 else None
        there = {name: value.to(self._mask.device) for name, value in tensors.items()}
        return Piece(fold=fold, texts=texts, segments=tuple(segments), alone=alone, **there)


class Layout:
    """Batches that are added at once.

    Args:
        batches: At least one.
        products: What the columns are laid out for.
    """

    def __init__(self, batches: Sequence[Batch], products: Products) -> None:
        self.batches, self._products = batches, products

    @cached_property
    def parts(self) -> list[Part]:
        """The pieces of the batches, put together where they share a fold; on a CPU up to `COLUMNS` columns."""
        parts: list[list[tuple[int, Piece]]] = []
        latest: dict[int, list[tuple[int, Piece]]] = {}
        for place, batch in enumerate(self.batches):
            for piece in batch.pieces:
                part = latest.get(piece.fold)
                if part is None or _columns(part) + piece.n_columns > _most_columns(self._products.device):
                    latest[piece.fold] = part = []
                    parts.append(part)
                part.append((place, piece))
        return [self._part(part) for part in parts]

    def _part(self, pieces: list[tuple[int, Piece]]) -> Part:
        starts = list(itertools.accumulate((len(batch.places) for batch in self.batches), initial=0))
        places = torch.cat([starts[batch] + self.batches[batch].places[piece.texts] for batch, piece in pieces])
        lengths = torch.cat([self.batches[batch].lengths[piece.texts] for batch, piece in pieces])
        return Part(pieces[0][1].fold, tuple(pieces), self._products.padded(_columns(pieces)), places, lengths)

    def halves(self, hidden: Sequence[Tensor]) -> list[tuple[Sequence[Tensor], "Layout"]]:
        """Return the first and the second half of the batches, or of the only one's texts, with their states."""
        if len(self.batches) > 1:
            middle = len(self.batches) // 2
            cut = [(hidden[:middle], self.batches[:middle]), (hidden[middle:], self.batches[middle:])]
        else:
            middle = len(hidden[0]) // 2
            states = (hidden[0][:middle], hidden[0][middle:])
            cut = [([some], [half]) for some, half in zip(states, self.batches[0].halves(), strict=True)]
        return [(some, Layout(batches, self._products)) for some, batches in cut]


def _columns(part: list[tuple[int, Piece]]) -> int:
    return sum(piece.n_columns for _, piece in part)


def _most_columns(device: torch.device) -> float:
    return COLUMNS if device.type == "cpu" else math.inf


def _cut(lengths: list[int], most: int) -> list[tuple[int, int]]:
    """Cut descending lengths into (start, stop) of equal ones, or of nearly equal ones where those were too many.

    Batches of texts sorted by length, which is what `ntps.models.passes` makes, have few lengths each: nothing is wasted. A
    text that is shorter than the longest of its segment wastes columns, never more than a half: the share allowed is
    doubled until there are `most` segments, or until it is a half, which leaves a logarithm of the longest.
    """
    for share in (0, 1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2):
        cuts = [0]
        for place, length in enumerate(lengths):
            if length - 1 < (1 - share) * (lengths[cuts[-1]] - 1):
                cuts.append(place)
        if len(cuts) <= most:
            break
    return list(zip(cuts, [*cuts[1:], len(lengths)], strict=True))
