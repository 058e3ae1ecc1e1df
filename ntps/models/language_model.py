"""`LanguageModel`: a causal network with its tokenizer, from texts to token ids to hidden states."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ntps import _hub
from ntps.errors import NtpsError, whole
from ntps.models import checkpoints
from ntps.models.states import hidden_states

if TYPE_CHECKING:
    import torch

PROBE = "The film was good, and the second part of it was even better."
_CHARACTERS = 32  # for each token that is wanted, at first, of a text that will be cut
_SPARE = 64  # tokens beyond those, whose split may depend on where the text was cut
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
        widths: Width of the hidden states of each layer.
        max_positions: Longest text in tokens, or None if the model sets no limit.
        device: Device of its inputs.
        vocabulary: Number of rows of the embedding; ids are below it.
        causal: Whether no hidden state depends on a later token.
        digest: Fingerprint of the files it was loaded from, or None for loaded objects.
    """

    name: str
    model: Any
    tokenizer: Any
    revision: str | None
    dtype: str
    source: dict[str, Any]
    n_layers: int
    widths: tuple[int, ...]
    max_positions: int | None
    device: "torch.device"
    vocabulary: int
    causal: bool
    digest: str | None = field(default=None, repr=False)

    def __repr__(self) -> str:
        return (
            f"LanguageModel({self.name!r}: {self.n_layers} layers of hidden states, width {self.width}, "
            f"{self.n_parameters:,} parameters, {self.dtype} on {self.device})"
        )

    @property
    def width(self) -> int:
        """Width d of the last hidden states."""
        return self.widths[-1]

    @property
    def inner(self) -> int:
        """Width of the feed-forward layers, by the configuration; where that is silent, 4 d as is usual."""
        config = self.config.get_text_config()
        values = [getattr(config, name, None) for name in ("intermediate_size", "ffn_dim", "n_inner", "d_inner")]
        return next((value for value in values if isinstance(value, int)), 4 * self.width)

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

        Of a long text only the beginning is read, so that time and memory follow the tokens that are kept. They are
        those of the whole text, unless the split into tokens depends on what comes more than 64 tokens later.

        Raises:
            NtpsError: If `max_length` is below 1, or an id lies beyond the model's embedding.
        """
        if max_length is not None:
            whole(max_length, 1, None, "max_length")
        limits = [limit for limit in (max_length, self.max_positions) if limit is not None]
        bare = self.tokenizer.num_special_tokens_to_add(pair=False)
        blank = [not text or text.isspace() for text in texts]
        texts = [_beginning(self.tokenizer, text, min(limits) + bare) if limits else text for text in texts]
        ids = _encode(self.tokenizer, texts) if texts else []
        ids = [row if len(row) > bare and not empty else [] for row, empty in zip(ids, blank, strict=True)]
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

    def pad(self, ids: Sequence[Sequence[int] | np.ndarray]) -> "tuple[torch.Tensor, torch.Tensor]":
        """Return (input ids, attention mask), int64 of shape (B, T) on the model's device, padded on the right.

        Padding is id 0 with a mask of 0: the states of a causal model do not depend on what follows, so neither a
        padding token nor a change of the vocabulary is needed.
        """
        import torch

        lengths = [len(row) for row in ids]
        present = torch.arange(max(lengths, default=0)) < torch.tensor(lengths, dtype=torch.int64)[:, None]
        mask, padded = present.long(), torch.zeros(present.shape, dtype=torch.int64)
        padded[present] = torch.from_numpy(np.fromiter(chain.from_iterable(ids), dtype=np.int64))
        return padded.to(self.device, non_blocking=True), mask.to(self.device, non_blocking=True)  # behind what runs

    def hidden_states(self, ids: "torch.Tensor", mask: "torch.Tensor") -> "tuple[torch.Tensor, ...]":
        """Return the `n_layers` hidden states, each (B, T, d of the layer), without gradients and without a cache."""
        import torch

        with torch.inference_mode():
            return hidden_states(self.model, ids, mask)


def gives_logits(network: Any) -> bool:
    """Return whether a network has a language-model head."""
    return getattr(network, "get_output_embeddings", lambda: None)() is not None


def check_tokenizer(tokenizer: Any, name: str, rules: Path | None = None) -> Any:
    """Return the tokenizer, set to pad and truncate on the right, after checking that it gives ids.

    transformers may replace a tokenizer's class when the configuration's `model_type` maps to another one: a word
    tokenizer beside a Qwen2 configuration then gives no ids, or ids of a few letters only, without a warning. So a text
    made of tokens of its own vocabulary goes in, and more than half of its letters must come back. The class may also
    replace rules of the `tokenizer.json` (a Llama tokenizer then drops every blank), so both must give the same ids.

    Args:
        tokenizer: A transformers tokenizer.
        name: Name of its model, for messages.
        rules: The `tokenizer.json` it was read from.

    Raises:
        NtpsError: If it is not a tokenizer, loses the text, or does not follow its rules.
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
    lost = words and 2 * len("".join(back.split())) <= len("".join(probe.split()))
    if lost or not any(ids):
        raise NtpsError(
            f"{name}: the tokenizer ({type(tokenizer).__name__}, {len(vocabulary)} tokens) gives no ids for most of a "
            "text made of its own tokens; transformers may have replaced it because of the configuration's model_type: "
            "give PreTrainedTokenizerFast(tokenizer_file=...) as tokenizer."
        )
    for text, found in zip((probe, PROBE), ids, strict=True):
        expected = found if rules is None else _by_rules(rules, text)
        if not _same_but_first_word(found, expected):
            raise NtpsError(
                f"{name}: the tokenizer ({type(tokenizer).__name__}) splits {text[:40]!r} into {len(found)} tokens and "
                f"its tokenizer.json into {len(expected)} others; transformers may have replaced it because of the "
                "configuration's model_type: give PreTrainedTokenizerFast(tokenizer_file=...) as tokenizer, or a "
                'directory whose tokenizer_config.json has the tokenizer_class "PreTrainedTokenizerFast".'
            )
    return tokenizer


def _by_rules(rules: Path, text: str) -> list[int]:
    """Return the ids that a `tokenizer.json` itself gives, without special tokens."""
    from tokenizers import Tokenizer

    core = Tokenizer.from_file(str(rules))
    core.no_truncation()
    core.no_padding()
    return list(core.encode(text, add_special_tokens=False).ids)


def _same_but_first_word(found: Sequence[int], expected: Sequence[int]) -> bool:
    """Return whether ids agree, up to two at the beginning: a configuration may put a blank before the first word."""
    pairs = zip(reversed(found), reversed(expected), strict=False)
    same = next((count for count, (one, other) in enumerate(pairs) if one != other), min(len(found), len(expected)))
    return max(len(found), len(expected)) - same <= 2


def _beginning(tokenizer: Any, text: str, n_tokens: int) -> str:
    """Return the beginning of a text that has at least `n_tokens` tokens and some to spare, or the whole text."""
    size = _CHARACTERS * (n_tokens + _SPARE)
    if len(text) > size and text.isspace():
        return ""
    while len(text) > size:
        cut = max(size // 2, *(text.rfind(blank, 0, size) for blank in " \n\t"))
        beginning = text[: cut if cut > size // 2 else size]
        if len(_encode(tokenizer, [beginning])[0]) >= n_tokens + _SPARE:
            return beginning
        size *= 4
    return text


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
