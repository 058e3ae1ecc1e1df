"""Tokenizers: that ids come out of them, and ids without padding or warnings."""

from typing import Any

from ntps import _hub
from ntps.errors import NtpsError

PROBE = "The film was good, and the second part of it was even better."


def check_tokenizer(tokenizer: Any, name: str) -> Any:
    """Return the tokenizer, set to the right side, after seeing that ids come out.

    transformers may put another class in a tokenizer's place when the configuration's `model_type` maps to one: a word
    tokenizer beside a Qwen2 configuration then gives no ids, or ids of a few letters only, without a warning. So a text
    made of tokens of its own vocabulary goes in, and more than half of its letters must come back.

    Raises:
        NtpsError: If it is no tokenizer, or loses the text.
    """
    if not callable(tokenizer) or not hasattr(tokenizer, "get_vocab"):
        raise NtpsError(f"tokenizer is a {type(tokenizer).__name__}; a transformers tokenizer, or its name, is needed.")
    tokenizer.padding_side = tokenizer.truncation_side = "right"
    vocabulary = tokenizer.get_vocab()
    words = [word for word, _ in sorted(vocabulary.items(), key=lambda pair: pair[1]) if _plain(word)]
    words = [word for word in words if len(word) > 2] or words
    probe = " ".join(words[:: max(1, len(words) // 12)][:12]) or PROBE
    try:
        ids = encode(tokenizer, [probe, PROBE], special=False)
        back = tokenizer.decode(ids[0], skip_special_tokens=True)
    except Exception as error:
        raise NtpsError(f"{name}: the tokenizer fails on {probe!r} ({_hub.first_line(error)}).") from error
    if 2 * len("".join(back.split())) <= len("".join(probe.split())) or not any(ids):
        raise NtpsError(
            f"{name}: the tokenizer ({type(tokenizer).__name__}, {len(vocabulary)} tokens) gives no ids for most of a "
            "text made of its own tokens; transformers may have replaced it because of the configuration's model_type: "
            "pass tokenizer= with PreTrainedTokenizerFast(tokenizer_file=...)."
        )
    return tokenizer


def _plain(word: str) -> bool:
    """Return whether a token of a vocabulary is spelled in plain letters."""
    return word.isascii() and word.isalpha()


# A tokenizer keeps far more of a text than its ids until it returns: so many texts at a time.
_CHUNK = 1024


def encode(tokenizer: Any, texts: list[str], max_length: int | None = None, special: bool = True) -> list[list[int]]:
    """Return token ids without padding; `max_length` cuts on the right. No warning is printed about long texts."""
    ids: list[list[int]] = []
    same: dict[int, int] = {}  # one object for each number: 10,000 texts of 500 tokens then take 40 MB, not 180
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
        ids += [[same.setdefault(number, int(number)) for number in row] for row in encoded["input_ids"]]
    return ids
