"""Exact probabilities: of a text, of a factor given a text, and so the language's entropy rate.

No text has two derivations and every expressing choice listens to one factor, so the sum over all factor settings
splits into one sum per factor, over its values v:

    log p(text) = log p(free choices) + sum_factors log( sum_v p(v) prod_choices p(choice | v) )

A text's probability is therefore known exactly, and the entropy E[-log p(text)] is a mean over sampled documents: its
only error is that of the mean. Divided by the mean number of tokens it is the loss that no model of the language beats.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from ntps.miniworld.factors import FACTORS
from ntps.miniworld.language import Sample, sample_documents

OVERT = ("first_mentioned", "watermark")
"""Factors that every text shows outright: who is named first, which interjection stamps it."""


def _log_given(sample: Sample, factor: str) -> np.ndarray:
    """Return log p(choices that express `factor` | value), (n, n_values)."""
    counts = sample.counts[factor].astype(float)
    n_values = counts.shape[1]
    strength = sample.knobs.strength(factor)
    if factor == "watermark":
        # One sentence is stamped anyway, each other one with probability `strength`: any of them may be the one.
        stamped, others = counts.sum(axis=1), sample.n_sentences - counts.sum(axis=1)
        with np.errstate(divide="ignore", invalid="ignore"):
            extra = np.where(stamped > 1, (stamped - 1) * np.log(strength), 0.0)
            extra = extra + np.where(others > 0, others * np.log1p(-strength), 0.0)
        log_given = np.repeat((np.log(stamped / sample.n_sentences) + extra)[:, None], n_values, axis=1)
    else:
        chances = (1 - strength) / n_values + strength * np.eye(n_values)  # [value, expressed]
        with np.errstate(divide="ignore", invalid="ignore"):
            terms = counts[:, None, :] * np.log(chances)[None]
        log_given = np.where(counts[:, None, :] > 0, terms, 0.0).sum(axis=2)
    if factor in OVERT:
        hidden = np.arange(n_values)[None] != sample.factors[factor][:, None]
        log_given = np.where(hidden, -np.inf, log_given)
    return log_given


def posterior(sample: Sample, factor: str) -> np.ndarray:
    """Return p(value of `factor` | text) for every document, (n, n_values), rows summing to 1."""
    log_given = _log_given(sample, factor)
    weights = np.exp(log_given - log_given.max(axis=1, keepdims=True))
    return weights / weights.sum(axis=1, keepdims=True)


def log_likelihood(sample: Sample, *, given_factors: bool = False) -> np.ndarray:
    """Return log p(text) of every document in nats, (n,).

    Args:
        sample: The documents.
        given_factors: Return log p(text | its factors) instead: what an observer who is told the factors would pay.
    """
    total = sample.log_choices.copy()
    for factor, values in FACTORS.items():
        log_given = _log_given(sample, factor)
        if given_factors:
            total += np.take_along_axis(log_given, sample.factors[factor][:, None], axis=1)[:, 0]
        else:
            total += np.logaddexp.reduce(log_given, axis=1) - np.log(len(values))
    return total


def factor_gain(sample: Sample, factor: str) -> float:
    """Return what inferring a factor is worth to next-token prediction, in nats per document.

    It is the difference between two predictors that know the language: one takes every choice that expresses the factor
    for a fresh toss, the other guesses the factor from what it has read so far. 0 if the factor predicts nothing.
    """
    counts, n_values = sample.counts[factor].sum(axis=1), len(FACTORS[factor])
    if factor == "watermark":  # the second stamp and all later ones repeat the word of the first
        return float((counts - 1).mean() * np.log(n_values))
    log_given = _log_given(sample, factor)
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

    Raises:
        NtpsError: If an argument or knob is out of range.
    """
    sample = sample_documents(n, seed=seed, split=split, **knobs)
    nats, tokens = -log_likelihood(sample), sample.n_tokens
    rate = float(nats.mean() / tokens.mean())
    spread = float(np.std(nats - rate * tokens) / (tokens.mean() * np.sqrt(n)))
    told = float(-log_likelihood(sample, given_factors=True).mean() / tokens.mean())
    return EntropyRate(rate, spread, told, float(nats.mean()), float(tokens.mean()), n)
