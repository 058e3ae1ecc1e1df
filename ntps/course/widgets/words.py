"""Where words live in a model's layers: the mean hidden state of every word, and the kinds of the bundled words."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ntps.errors import NtpsError, in_range

if TYPE_CHECKING:
    from ntps.models.load import LanguageModel

KINDS = ("topic noun", "topic verb", "mood", "time", "person", "intent", "function word", "watermark")
"""Kinds of words of the bundled language, in the order in which they are drawn."""


@dataclass(frozen=True, eq=False)
class WordStates:
    """Mean hidden states of words.

    Attributes:
        words: The words that occurred often enough.
        counts: (W,) how often.
        means: (S, W, d) float64, mean state of the word's tokens in each of S layers.
        kinds: The kind of each word.
    """

    words: tuple[str, ...]
    counts: np.ndarray
    means: np.ndarray
    kinds: tuple[str, ...]


def word_kinds() -> dict[str, str]:
    """Return the kind of every word of the bundled language; a word with several roles is what it serves as most."""
    from ntps.miniworld import words

    kinds: dict[str, str] = {}

    def name(kind: str, entries: Sequence[str]) -> None:
        for entry in entries:
            for word in entry.lower().replace(",", "").split():
                kinds.setdefault(word, kind)

    name("watermark", words.WATERMARKS)
    name("function word", [word for word in words.GRAMMAR_WORDS.split() if word.isalpha()])
    for small in (*words.CONNECTIVES, *words.WHILE, *words.BECAUSE, *words.DEGREES):
        name("function word", small)
    name("function word", ("in on at to upon under beside behind near along above below by of from into",))
    for group in (*words.ADJECTIVES, *words.ADVERBS):
        name("mood", group)
    for group in words.TIMES:
        name("time", group)
    name("person", (*words.WOMEN, *words.MEN))
    for topic in words.TOPICS:
        for scene in topic.scenes:
            name("topic noun", [form for thing in scene.things for form in thing])
            name("topic verb", [form for verb in scene.verbs for form in verb])
        name("topic noun", topic.roles)
        name("topic noun", topic.places)
    for verbs in words.FRAME_VERBS:
        name("intent", [form for verb in verbs for form in verb])
    name("function word", [word for word in words.all_words() if word.isalpha()])  # what no list above has
    return kinds


def word_topics() -> dict[str, str]:
    """Return the topic of every thing, verb and role of the bundled language that belongs to one topic alone."""
    from ntps.miniworld import words

    topics: dict[str, set[str]] = {}
    for topic in words.TOPICS:
        own = set(topic.roles)
        for scene in topic.scenes:
            own |= {form for entry in (*scene.verbs, *scene.things) for form in entry}
        for word in own:
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
        texts: Texts.
        kinds: The kind of each word, lower case.
        min_count: Words seen less often are left out.
        batch_size: Texts at once.
        max_length: Most tokens of a text.

    Raises:
        NtpsError: If no word occurs often enough.
    """
    import torch

    in_range(min_count, 1, None, "min_count")
    ids = [row for row in model.tokenize(texts, max_length).ids if row]
    seen = sorted({token for row in ids for token in row})
    names = [str(token) for token in model.tokenizer.convert_ids_to_tokens(seen)]
    plain = [name.lstrip("Ġ▁ ").lower() for name in names]
    vocabulary = sorted({word for word in plain if word in kinds})
    place = {token: vocabulary.index(word) for token, word in zip(seen, plain, strict=True) if word in kinds}
    sums = torch.zeros((model.n_layers, len(vocabulary) + 1, model.width), dtype=torch.float64)
    counts = torch.zeros(len(vocabulary) + 1, dtype=torch.int64)
    ids.sort(key=len)
    for start in range(0, len(ids), batch_size):
        tokens, mask = model.pad(ids[start : start + batch_size])
        # Tokens without a kind, and padding, go to the last row, which is dropped.
        rows = torch.tensor(
            [
                place.get(token, len(vocabulary)) if kept else len(vocabulary)
                for token, kept in zip(tokens.flatten().tolist(), mask.flatten().tolist(), strict=True)
            ]
        )
        counts += torch.bincount(rows, minlength=len(counts))
        for layer, states in enumerate(model.hidden_states(tokens, mask)):
            sums[layer].index_add_(0, rows, states.flatten(0, 1).double().cpu())
    often = (counts[:-1] >= min_count).nonzero().flatten()
    if not len(often):
        raise NtpsError(
            f"no word occurs {min_count} times in these {len(texts)} texts; give more texts or other kinds."
        )
    words = tuple(vocabulary[index] for index in often.tolist())
    means = sums[:, often] / counts[often][None, :, None]
    return WordStates(words, counts[often].numpy(), means.numpy(), tuple(kinds[word] for word in words))
