"""The exact probability of a text, and so of the language's entropy rate.

No text has two derivations and every expressing choice listens to one factor, so the sum over all factor settings
splits into one sum per factor, over its values v:

    log p(text) = log p(free choices) + sum_factors log( sum_v p(v) prod_choices p(choice | v) )

A text's probability is therefore known exactly, and the entropy E[-log p(text)] is a mean over sampled documents: its
only error is that of the mean. Divided by the mean number of tokens it is the loss that no model of the language beats.
"""

import numpy as np

from ntps.miniworld.factors import FACTORS
from ntps.miniworld.language import Sample

OVERT = ("first_mentioned", "watermark")
"""Factors that every text shows outright: who is named first, which interjection stamps it."""


def log_chances(sample: Sample, factor: str) -> np.ndarray:
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


def log_likelihood(sample: Sample, *, given_factors: bool = False) -> np.ndarray:
    """Return log p(text) of every document in nats, (n,).

    Args:
        sample: The documents.
        given_factors: Return log p(text | its factors) instead: what an observer who is told the factors would pay.
    """
    total = sample.log_choices.copy()
    for factor, values in FACTORS.items():
        log_given = log_chances(sample, factor)
        if given_factors:
            total += np.take_along_axis(log_given, sample.factors[factor][:, None], axis=1)[:, 0]
        else:
            total += np.logaddexp.reduce(log_given, axis=1) - np.log(len(values))
    return total
