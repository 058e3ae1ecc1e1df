"""The words of the bundled language: their kinds and topics, and the mean hidden state of every word in a model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ntps.errors import NtpsError, in_range

if TYPE_CHECKING:
    from ntps.models import LanguageModel

KINDS = ("topic noun", "topic verb", "mood", "time", "person", "intent", "function word", "watermark")
"""Kinds of words of the bundled language, in the order in which they are drawn."""


@dataclass(frozen=True, eq=False, kw_only=True)
class WordStates:
    """Mean hidden states of words.

    Attributes:
        words: The W words that occurred often enough.
        counts: (W,) number of occurrences.
        means: (S, W, d) float64, mean state of the word's tokens in each of the model's S layers.
        kinds: The kind of each word.
    """

    words: tuple[str, ...]
    counts: np.ndarray
    means: np.ndarray
    kinds: tuple[str, ...]


def word_kinds() -> dict[str, str]:
    """Return the kind of every word of the bundled language; a word with several roles has its main one."""
    from ntps.miniworld import words

    kinds: dict[str, str] = {}

    def add(kind: str, entries: Sequence[str]) -> None:
        for entry in entries:
            for word in entry.lower().replace(",", "").split():
                kinds.setdefault(word, kind)

    add("watermark", words.WATERMARKS)
    add("function word", [word for word in words.GRAMMAR_WORDS.split() if word.isalpha()])
    for small in (*words.CONNECTIVES, *words.WHILE, *words.BECAUSE, *words.DEGREES):
        add("function word", small)
    add("function word", ("in on at to upon under beside behind near along above below by of from into",))
    for group in (*words.ADJECTIVES, *words.ADVERBS):
        add("mood", group)
    for group in words.TIMES:
        add("time", group)
    add("person", (*words.WOMEN, *words.MEN))
    for topic in words.TOPICS:
        for scene in topic.scenes:
            add("topic noun", [form for thing in scene.things for form in thing])
            add("topic verb", [form for verb in scene.verbs for form in verb])
        add("topic noun", topic.roles)
        add("topic noun", topic.places)
    for verbs in words.FRAME_VERBS:
        add("intent", [form for verb in verbs for form in verb])
    add("function word", [word for word in words.all_words() if word.isalpha()])  # those of no list above
    return kinds


def word_topics() -> dict[str, str]:
    """Return the topic of every thing, verb and role of the bundled language that belongs to one topic alone."""
    from ntps.miniworld import words

    topics: dict[str, set[str]] = {}
    for topic in words.TOPICS:
        members = set(topic.roles)
        for scene in topic.scenes:
            members |= {form for entry in (*scene.verbs, *scene.things) for form in entry}
        for word in members:
            topics.setdefault(word.lower(), set()).add(topic.name)
    return {word: next(iter(names)) for word, names in topics.items() if len(names) == 1}


def word_states(
    model: "LanguageModel",
    texts: Sequence[str],
    *,
    kinds: Mapping[str, str],
    min_count: int = 3,
    batch_size: int = 32,
    max_length: int = 256,
) -> WordStates:
    """Run a model over texts once and average the states of every word that has a kind.

    A token counts when it is a whole word of `kinds` once the tokenizer's mark for a leading space is taken off, so
    words that a real tokenizer splits are left out.

    Args:
        model: From `ntps.load_model`.
        texts: The texts.
        kinds: Kind of each word, in lower case.
        min_count: Smallest number of occurrences; rarer words are left out.
        batch_size: Number of texts in a batch.
        max_length: Largest number of tokens of a text; longer ones are cut.

    Raises:
        NtpsError: If no word occurs often enough.
    """
    import torch

    in_range(min_count, 1, None, "min_count")
    ids = sorted((row for row in model.tokenize(texts, max_length).ids if row), key=len)
    tokens_seen = sorted({token for row in ids for token in row})
    names = [str(name).lstrip("Ġ▁ ").lower() for name in model.tokenizer.convert_ids_to_tokens(tokens_seen)]
    vocabulary = sorted(set(names) & set(kinds))
    rest = len(vocabulary)  # row of tokens without a kind and of padding, which is dropped
    row_of = torch.full((max(tokens_seen, default=0) + 1,), rest)
    for token, name in zip(tokens_seen, names, strict=True):
        row_of[token] = vocabulary.index(name) if name in kinds else rest
    sums = torch.zeros((model.n_layers, rest + 1, model.width), dtype=torch.float64)
    counts = torch.zeros(rest + 1, dtype=torch.int64)
    for start in range(0, len(ids), batch_size):
        tokens, mask = model.pad(ids[start : start + batch_size])
        rows = torch.where(mask.cpu() > 0, row_of[tokens.cpu()], rest).flatten()
        counts += torch.bincount(rows, minlength=rest + 1)
        for layer, states in enumerate(model.hidden_states(tokens, mask)):
            sums[layer].index_add_(0, rows, states.flatten(0, 1).double().cpu())
    frequent = (counts[:-1] >= min_count).nonzero().flatten()
    if not len(frequent):
        raise NtpsError(
            f"no word occurs {min_count} times in these {len(texts)} texts; give more texts or other kinds."
        )
    words = tuple(vocabulary[index] for index in frequent.tolist())
    return WordStates(
        words=words,
        counts=counts[frequent].numpy(),
        means=(sums[:, frequent] / counts[frequent][None, :, None]).numpy(),
        kinds=tuple(kinds[word] for word in words),
    )
