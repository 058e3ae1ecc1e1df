"""`LanguageModel`: a causal network with its tokenizer, from texts to token ids to hidden states."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from ntps import _hub
from ntps.errors import NtpsError, whole
from ntps.models import checkpoints

if TYPE_CHECKING:
    import torch

PROBE = "The film was good, and the second part of it was even better."
_CHUNK = 1024  # texts per call of the tokenizer, which keeps far more of a text than its ids until it returns


@dataclass(frozen=True)
class Tokenized:
    """Token ids of texts.

    Attributes:
        ids: One list of ids per text, without padding, with the special tokens that the tokenizer adds. Empty for a
            text that is blank or becomes nothing but special tokens.
        n_truncated: Number of texts that were too long and lost their end.
    """

    ids: list[list[int]]
    n_truncated: int


@dataclass(eq=False, kw_only=True)
class LanguageModel:
    """A causal language model in evaluation mode with its tokenizer.

    Attributes:
        name: Name given by the user.
        model: The network; without the language-model head unless it was loaded with `head=True`.
        tokenizer: Its tokenizer, set to pad and truncate on the right.
        revision: Commit hash of a hub model, else None.
        dtype: Name of the weights' type, such as "float32".
        source: Origin and options of loading, as JSON values.
        n_layers: Number of hidden states, blocks + 1: layer 0 is the embedding output, the last follows the final norm.
        width: Width d of the hidden states.
        max_positions: Longest text in tokens, or None if the model sets no limit.
        device: Device of its inputs.
        vocabulary: Number of rows of the embedding; ids are below it.
        digest: Fingerprint of the files it was loaded from, or None for loaded objects.
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
    digest: str | None = field(default=None, repr=False)

    def __repr__(self) -> str:
        return (
            f"LanguageModel({self.name!r}: {self.n_layers} layers of hidden states, width {self.width}, "
            f"{self.n_parameters:,} parameters, {self.dtype} on {self.device})"
        )

    @property
    def config(self) -> Any:
        """The network's transformers configuration."""
        return self.model.config

    @property
    def has_head(self) -> bool:
        """Whether the network gives logits over its vocabulary."""
        return gives_logits(self.model)

    @property
    def n_parameters(self) -> int:
        """Number of parameters that are loaded."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 hex digest of configuration, tokenizer and weights; dtype and device do not enter.

        Directory: of its files' bytes. Hub: of name and commit hash. Loaded objects: of the parameters, computed on
        first access. With random weights, the seed stands for the weights.
        """
        if self.digest is not None:
            return self.digest
        return checkpoints.combine(checkpoints.objects_digest(self.model), checkpoints.tokenizer_digest(self.tokenizer))

    def tokenize(self, texts: Sequence[str], max_length: int | None = None) -> Tokenized:
        """Turn texts into ids, at most `max_length` (and never more than the model's positions) per text.

        Raises:
            NtpsError: If `max_length` is below 1, or an id lies beyond the model's embedding.
        """
        if max_length is not None:
            whole(max_length, 1, None, "max_length")
        limits = [limit for limit in (max_length, self.max_positions) if limit is not None]
        ids = _encode(self.tokenizer, list(texts)) if len(texts) else []
        bare = self.tokenizer.num_special_tokens_to_add(pair=False)
        ids = [row if len(row) > bare and text.strip() else [] for text, row in zip(texts, ids, strict=True)]
        long = [index for index, row in enumerate(ids) if limits and len(row) > min(limits)]
        if long and ids[long[0]][-1] in self.tokenizer.all_special_ids:  # a special token belongs at the end: keep it
            short = _encode(self.tokenizer, [texts[index] for index in long], max(min(limits), bare))
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

        Padding is id 0 with a mask of 0: the states of a causal model do not depend on what follows, so neither a
        padding token nor a change of the vocabulary is needed.
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
        return hidden_states(self.model, ids, mask)

    def is_causal(self) -> bool:
        """Return whether no hidden state depends on a later token, by a forward pass over two texts of eight tokens."""
        import torch

        ids = torch.arange(8, device=self.device).remainder(self.vocabulary).repeat(2, 1)
        ids[1, -1] = (ids[1, -1] + 1) % self.vocabulary
        for state in self.hidden_states(ids, torch.ones_like(ids)):
            first, second = state[:, :-1].cpu().double()  # on the CPU, because MPS has no float64
            tolerance = 64 * torch.finfo(state.dtype).eps * first.abs().max()
            if (first - second).abs().max() > tolerance:
                return False
        return True


def hidden_states(network: Any, ids: "torch.Tensor", mask: "torch.Tensor") -> "tuple[torch.Tensor, ...]":
    """Return all hidden states of a network, each (B, T, d), without gradients and without a cache."""
    import torch

    with torch.inference_mode():
        output = network(
            input_ids=ids, attention_mask=mask, output_hidden_states=True, use_cache=False, return_dict=True
        )
    return tuple(output.hidden_states)


def gives_logits(network: Any) -> bool:
    """Return whether a network has a language-model head."""
    return getattr(network, "get_output_embeddings", lambda: None)() is not None


def without_head(network: Any) -> Any:
    """Return the network under a language-model head, or under an adapter's wrapper; the weights are shared."""
    unwrap: Callable[[], Any] | None = getattr(network, "get_base_model", None)  # PEFT
    network = unwrap() if unwrap is not None else network
    return getattr(network, "base_model", network)


def check_tokenizer(tokenizer: Any, name: str) -> Any:
    """Return the tokenizer, set to pad and truncate on the right, after checking that it gives ids.

    transformers may replace a tokenizer's class when the configuration's `model_type` maps to another one: a word
    tokenizer beside a Qwen2 configuration then gives no ids, or ids of a few letters only, without a warning. So a text
    made of tokens of its own vocabulary goes in, and more than half of its letters must come back.

    Args:
        tokenizer: A transformers tokenizer.
        name: Name of its model, for messages.

    Raises:
        NtpsError: If it is not a tokenizer, or loses the text.
    """
    if not callable(tokenizer) or not hasattr(tokenizer, "get_vocab"):
        raise NtpsError(f"tokenizer has type {type(tokenizer).__name__}; give a transformers tokenizer, or its name.")
    tokenizer.padding_side = tokenizer.truncation_side = "right"
    vocabulary = tokenizer.get_vocab()
    words = [word for word, _ in sorted(vocabulary.items(), key=lambda pair: pair[1])]
    words = [word for word in words if word.isascii() and word.isalpha()]
    words = [word for word in words if len(word) > 2] or words
    probe = " ".join(words[:: max(1, len(words) // 12)][:12]) or PROBE
    try:
        ids = _encode(tokenizer, [probe, PROBE], special=False)
        back = tokenizer.decode(ids[0], skip_special_tokens=True)
    except Exception as error:
        raise NtpsError(f"{name}: the tokenizer fails on {probe!r} ({_hub.first_line(error)}).") from error
    if 2 * len("".join(back.split())) <= len("".join(probe.split())) or not any(ids):
        raise NtpsError(
            f"{name}: the tokenizer ({type(tokenizer).__name__}, {len(vocabulary)} tokens) gives no ids for most of a "
            "text made of its own tokens; transformers may have replaced it because of the configuration's model_type: "
            "give PreTrainedTokenizerFast(tokenizer_file=...) as tokenizer."
        )
    return tokenizer


def _encode(tokenizer: Any, texts: list[str], max_length: int | None = None, special: bool = True) -> list[list[int]]:
    """Return token ids without padding, cut on the right at `max_length`, without the warning about long texts."""
    ids: list[list[int]] = []
    shared: dict[int, int] = {}  # one object for each number: 10,000 texts of 500 tokens then take 40 MB, not 180
    for start in range(0, len(texts), _CHUNK):
        encoded = tokenizer(
            texts[start : start + _CHUNK],
            add_special_tokens=special,
            padding=False,
            truncation=max_length is not None,
            max_length=max_length,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
        )
        ids += [[shared.setdefault(number, int(number)) for number in row] for row in encoded["input_ids"]]
    return ids
