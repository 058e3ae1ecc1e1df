"""`LanguageModel`: a causal network and its tokenizer, from texts to ids to hidden states."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from ntps.errors import NtpsError, in_range
from ntps.models import checkpoints, tokens

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Tokenized:
    """Token ids of texts.

    Attributes:
        ids: One list of ids a text, without padding, with the special tokens that the tokenizer adds. Empty for a text
            that is blank or of which the tokenizer makes nothing but special tokens.
        n_truncated: How many texts were longer than allowed and lost their end.
    """

    ids: list[list[int]]
    n_truncated: int


@dataclass(eq=False)
class LanguageModel:
    """A causal language model in evaluation mode with its tokenizer.

    Attributes:
        name: What the reader called it.
        model: The network; without the language-model head unless it was loaded with `head=True`.
        tokenizer: Its tokenizer, set to pad and truncate on the right.
        revision: Commit hash of a hub model, else None.
        dtype: Name of the weights' type, such as "float32".
        source: What it was made from, fit for JSON.
        n_layers: Number of hidden states, blocks + 1: layer 0 is the embedding output, the last follows the final norm.
        width: Width d of the hidden states.
        max_positions: Longest text in tokens, or None where the model sets no limit.
        device: Where its inputs go.
        vocabulary: Number of rows of the embedding; ids are below it.
    """

    name: str
    model: Any
    tokenizer: Any
    revision: str | None
    dtype: str
    source: dict[str, Any]
    n_layers: int
    width: int
    max_positions: int | None
    device: "torch.device"
    vocabulary: int
    _digest: str | None = field(default=None, repr=False)

    def __repr__(self) -> str:
        return (
            f"LanguageModel({self.name!r}: {self.n_layers} layers of hidden states, width {self.width}, "
            f"{self.n_parameters:,} parameters, {self.dtype} on {self.device})"
        )

    @property
    def n_parameters(self) -> int:
        """Number of parameters that are loaded."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 hex digest that names configuration, tokenizer and weights; neither dtype nor device enters.

        Directory: of its files' bytes. Hub: of name and commit hash. Loaded objects: of the parameters, taken at the
        first call. With random weights, the seed stands for the weights.
        """
        if self._digest is not None:
            return self._digest
        return checkpoints.combine(checkpoints.objects_digest(self.model), checkpoints.tokenizer_digest(self.tokenizer))

    def tokenize(self, texts: Sequence[str], max_length: int | None = None) -> Tokenized:
        """Turn texts into ids, at most `max_length` (and never more than the model's positions) each.

        Raises:
            NtpsError: If `max_length` is below 1, or an id lies beyond the model's embedding.
        """
        if max_length is not None:
            in_range(max_length, 1, None, "max_length")
        limits = [limit for limit in (max_length, self.max_positions) if limit is not None]
        ids = tokens.encode(self.tokenizer, list(texts)) if len(texts) else []
        bare = self.tokenizer.num_special_tokens_to_add(pair=False)
        ids = [row if len(row) > bare and text.strip() else [] for text, row in zip(texts, ids, strict=True)]
        long = [index for index, row in enumerate(ids) if limits and len(row) > min(limits)]
        if long and ids[long[0]][-1] in self.tokenizer.all_special_ids:  # a special token belongs at the end: keep it
            short = tokens.encode(self.tokenizer, [texts[index] for index in long], max(min(limits), bare))
            for index, row in zip(long, short, strict=True):
                ids[index] = row
        for index in long:
            ids[index] = ids[index][: min(limits)]
        largest = max((max(row) for row in ids if row), default=0)
        if largest >= self.vocabulary:
            raise NtpsError(
                f"{self.name}: the tokenizer gives id {largest} ({self.tokenizer.convert_ids_to_tokens(largest)!r}), "
                f"but the model's embedding has {self.vocabulary} rows; this tokenizer does not belong to this model."
            )
        return Tokenized(ids, len(long))

    def pad(self, ids: Sequence[Sequence[int]]) -> "tuple[torch.Tensor, torch.Tensor]":
        """Return (input ids, attention mask), int64 of shape (B, T) on the model's device, padded on the right.

        Padding is id 0 under a mask of 0: a causal model's states before it do not depend on it, so no padding token,
        and no change of the vocabulary, is needed.
        """
        import torch

        longest = max((len(row) for row in ids), default=0)
        padded = torch.zeros((len(ids), longest), dtype=torch.int64)
        mask = torch.zeros_like(padded)
        for index, row in enumerate(ids):
            padded[index, : len(row)] = torch.tensor(row, dtype=torch.int64)
            mask[index, : len(row)] = 1
        return padded.to(self.device), mask.to(self.device)

    def hidden_states(self, ids: "torch.Tensor", mask: "torch.Tensor") -> "tuple[torch.Tensor, ...]":
        """Return the `n_layers` hidden states, each (B, T, d), without gradients and without a cache."""
        import torch

        with torch.inference_mode():
            output = self.model(
                input_ids=ids, attention_mask=mask, output_hidden_states=True, use_cache=False, return_dict=True
            )
        return tuple(output.hidden_states)

    def is_causal(self) -> bool:
        """Return whether hidden states stay as they are when a later token changes (one forward pass, 2 by 8)."""
        import torch

        ids = torch.arange(8, device=self.device).remainder(self.vocabulary).repeat(2, 1)
        ids[1, -1] = (ids[1, -1] + 1) % self.vocabulary
        states = self.hidden_states(ids, torch.ones_like(ids))
        for state in states:
            first, second = state[0, :-1].double(), state[1, :-1].double()
            tolerance = 64 * torch.finfo(state.dtype).eps * first.abs().max()
            if (first - second).abs().max() > tolerance:
                return False
        return True
