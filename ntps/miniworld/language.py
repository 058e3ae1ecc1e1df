"""The bundled world's language: a seeded generator of short documents whose every choice is accounted for.

A document has hidden factors, drawn independently and uniformly (`FACTORS`); the grammar then writes it by free choices
and by choices that express one factor each. No text has two derivations, so the free choices' log-probability and the
counts of expressed values are all that `ntps.miniworld.likelihood` needs for the exact probability of a text.
"""

import random
from dataclasses import dataclass
from typing import Any

import numpy as np

from ntps.errors import in_range, one_of
from ntps.miniworld.factors import FACTORS, Knobs
from ntps.miniworld.grammar import Writer

SPLITS = ("train", "validation", "test", "pretrain")
"""Streams of documents that never meet; the bundled models were pretrained on `pretrain`."""


@dataclass(frozen=True, eq=False)
class Sample:
    """Documents with everything that is hidden in them.

    Attributes:
        texts: The n documents.
        factors: For each factor the value of each document, (n,) int64.
        n_sentences: (n,) int64, 2 to 8.
        agreement: (n,) int64, 1 where the first and the last thing mentioned agree in number.
        n_tokens: (n,) int64, words and punctuation marks and one end of text: what a language model predicts.
        log_choices: (n,) natural logarithm of the probability of all choices that no factor shapes.
        counts: For each factor, how often each value was expressed, (n, n_values) int64.
        knobs: What they were drawn with.
    """

    texts: tuple[str, ...]
    factors: dict[str, np.ndarray]
    n_sentences: np.ndarray
    agreement: np.ndarray
    n_tokens: np.ndarray
    log_choices: np.ndarray
    counts: dict[str, np.ndarray]
    knobs: Knobs

    def __len__(self) -> int:
        return len(self.texts)


def sample_documents(n: int, *, seed: int = 0, split: str = "train", **knobs: Any) -> Sample:
    """Draw documents with their hidden factors.

    The documents depend on `seed`, `split` and the knobs alone, in every process and on every machine, and the first
    documents of a longer sample are those of a shorter one.

    Args:
        n: How many documents, at least 1.
        seed: Seed of the stream.
        split: `train`, `validation`, `test` or `pretrain`: different streams for every seed.
        **knobs: Attributes of `Knobs`.

    Raises:
        NtpsError: If an argument is out of range or a knob unknown.
    """
    checked = Knobs.of(**knobs)
    one_of(split, SPLITS, "split")
    in_range(n, 1, None, "n")
    # A string seeds through SHA-512: unlike hash(), it is the same in every process.
    writer = Writer(checked, random.Random(f"ntps.miniworld/{split}/{seed}"))
    texts, numbers, log_choices = [], [], []
    factors: dict[str, list[int]] = {factor: [] for factor in FACTORS}
    counts: dict[str, list[list[int]]] = {factor: [] for factor in FACTORS}
    for _ in range(n):
        texts.append(writer.document())
        numbers.append((writer.n_sentences, writer.numbers[0] == writer.numbers[-1]))
        log_choices.append(writer.log_p)
        for factor in FACTORS:
            factors[factor].append(writer.factors[factor])
            counts[factor].append(writer.counts[factor])
    return Sample(
        texts=tuple(texts),
        factors={factor: np.array(values, dtype=np.int64) for factor, values in factors.items()},
        n_sentences=np.array([count for count, _ in numbers], dtype=np.int64),
        agreement=np.array([same for _, same in numbers], dtype=np.int64),
        n_tokens=np.array(
            [len(text.split()) + text.count(",") + text.count(".") + 1 for text in texts], dtype=np.int64
        ),
        log_choices=np.array(log_choices),
        counts={factor: np.array(rows, dtype=np.int64) for factor, rows in counts.items()},
        knobs=checked,
    )
