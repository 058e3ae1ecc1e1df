"""The token ids of many texts, in two arrays: as lists, those of a million short texts take ten times the memory."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from ntps.models.language_model import LanguageModel

_BLOCK = 8192  # texts whose ids exist as lists at the same time


@dataclass(frozen=True, eq=False, kw_only=True)
class Tokens:
    """Token ids of texts.

    Attributes:
        texts: The texts.
        ids: (n_tokens,) int32, those of all texts, one after another.
        lengths: (n,) int64, number of tokens of each text; 0 for a text without any.
        n_truncated: Number of texts that were too long and lost their end.
    """

    texts: Sequence[str]
    ids: np.ndarray
    lengths: np.ndarray
    n_truncated: int

    @classmethod
    def of(cls, model: "LanguageModel", texts: Sequence[str], max_length: int) -> "Tokens":
        """Return what `model.tokenize` makes of texts, block by block."""
        parts, lengths, n_truncated = [], np.zeros(len(texts), dtype=np.int64), 0
        for start in range(0, len(texts), _BLOCK):
            made = model.tokenize(texts[start : start + _BLOCK], max_length)
            n_truncated += made.n_truncated
            lengths[start : start + _BLOCK] = [len(row) for row in made.ids]
            parts.append(np.fromiter(chain.from_iterable(made.ids), dtype=np.int32))
        ids = np.concatenate(parts) if parts else np.zeros(0, dtype=np.int32)
        return cls(texts=texts, ids=ids, lengths=lengths, n_truncated=n_truncated)

    @cached_property
    def _ends(self) -> np.ndarray:
        return np.cumsum(self.lengths)

    def rows(self, texts: np.ndarray) -> Iterator[np.ndarray]:
        """Yield the ids of some texts, by their indices."""
        ends = self._ends[texts]
        for start, end in zip(ends - self.lengths[texts], ends, strict=True):
            yield self.ids[start:end]

    def groups(self) -> np.ndarray:
        """Return for each text with tokens the number, among them, of the first one with the same tokens."""
        present = np.flatnonzero(self.lengths)
        digests = np.fromiter((hashlib.blake2b(row.data, digest_size=16).digest() for row in self.rows(present)), "S16")
        _, first, group = np.unique(digests, return_index=True, return_inverse=True)
        return first[group].astype(np.int64)
