"""What a perfect observer of the bundled language knows: the evidence for the numbers that its tasks state.

It knows the grammar and reads the text alone; nothing is fitted, everything is exact up to the sample of documents.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from ntps.miniworld import FACTORS, Sample, log_likelihood, sample_documents
from ntps.miniworld.grammar import SENTENCES
from ntps.miniworld.likelihood import OVERT, log_chances

documents = lru_cache(maxsize=4)(sample_documents)


def posterior(sample: Sample, factor: str) -> np.ndarray:
    """Return p(value of `factor` | text) for every document, (n, n_values), rows summing to 1."""
    log_given = log_chances(sample, factor)
    weights = np.exp(log_given - log_given.max(axis=1, keepdims=True))
    return weights / weights.sum(axis=1, keepdims=True)


def factor_gain(sample: Sample, factor: str) -> float:
    """Return what inferring a factor is worth to next-token prediction, in nats per document.

    It is the difference between two predictors that know the language: one takes every choice that expresses the factor
    for a fresh toss, the other guesses the factor from what it has read so far. 0 if the factor predicts nothing.
    """
    counts, n_values = sample.counts[factor].sum(axis=1), len(FACTORS[factor])
    if factor == "watermark":  # the second stamp and all later ones repeat the word of the first
        return float((counts - 1).mean() * np.log(n_values))
    log_given = log_chances(sample, factor)
    informed = np.logaddexp.reduce(log_given, axis=1) - (0.0 if factor in OVERT else np.log(n_values))
    return float((informed + counts * np.log(n_values)).mean())


@dataclass(frozen=True)
class EntropyRate:
    """The language's entropy.

    Attributes:
        rate: Nats per token, the end of text counted as a token: the best possible mean loss.
        standard_error: Of `rate`, from the sampled documents.
        given_factors: Nats per token for an observer who is told all factors; the rest is what context must teach.
        nats_per_document: Mean of -log p(text).
        tokens_per_document: Mean number of tokens, end of text included.
        n: Documents sampled.
    """

    rate: float
    standard_error: float
    given_factors: float
    nats_per_document: float
    tokens_per_document: float
    n: int


def entropy_rate(n: int = 5000, *, seed: int = 0, split: str = "validation", **knobs: Any) -> EntropyRate:
    """Estimate the entropy rate from `n` documents.

    The estimate is unbiased up to the ratio of two means; its standard error is that of a ratio estimator.
    """
    sample = documents(n, seed=seed, split=split, **knobs)
    nats, tokens = -log_likelihood(sample), sample.n_tokens
    rate = float(nats.mean() / tokens.mean())
    spread = float(np.std(nats - rate * tokens) / (tokens.mean() * np.sqrt(n)))
    told = float(-log_likelihood(sample, given_factors=True).mean() / tokens.mean())
    return EntropyRate(rate, spread, told, float(nats.mean()), float(tokens.mean()), n)


def bayes_accuracy(name: str, *, n: int = 20000, seed: int = 0, split: str = "validation", **knobs: Any) -> float:
    """Compute the accuracy that a perfect observer of the text would reach.

    For a factor it is the mean, over `n` documents, of the largest posterior probability, exact for each document;
    labels that the text shows outright give 1; the coin gives 0.5.
    """
    sample = documents(n, seed=seed, split=split, **knobs)
    if name in FACTORS:
        return float(posterior(sample, name).max(axis=1).mean())
    return 0.5 if name == "noise" else 1.0


def _entropy(chance: float) -> float:
    return -chance * math.log(chance) - (1 - chance) * math.log(1 - chance) if 0 < chance < 1 else 0.0


def _counting_gain(seen: Callable[[int], int]) -> float:
    """Return the nats per document that a predictor of the end saves if it knows `seen(sentences so far)`."""

    def cost(group: Callable[[int], int]) -> float:
        total = 0.0
        for value in {group(count) for count in range(1, max(SENTENCES) + 1)}:
            counts = [count for count in range(1, max(SENTENCES) + 1) if group(count) == value]
            reached = sum(n >= count for n in SENTENCES for count in counts) / len(SENTENCES)
            ended = sum(n == count for n in SENTENCES for count in counts) / len(SENTENCES)
            total += reached * _entropy(ended / reached)
        return total

    return cost(lambda count: 0) - cost(seen)


def prediction_gain(name: str, *, n: int = 5000, seed: int = 0, split: str = "validation", **knobs: Any) -> float:
    """Compute what inferring a task's label is worth to next-token prediction, in nats per document.

    For a factor see `factor_gain`. For the length and its parity it is what a predictor of the end of the text saves by
    counting sentences, or by telling even from odd; for all others 0.
    """
    if name in FACTORS:
        return factor_gain(documents(n, seed=seed, split=split, **knobs), name)
    return {"length": _counting_gain(int), "parity": _counting_gain(lambda count: count % 2)}.get(name, 0.0)
