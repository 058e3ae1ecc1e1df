"""Random problems for the tests, and the way from plain arrays into an accumulator."""

from dataclasses import dataclass

import numpy as np
import torch

from helpers.models import WORDS
from ntps.core.accumulator import MomentAccumulator
from ntps.tasks.load import load_task


@dataclass
class Problem:
    """Texts of a class-dependent autoregressive process: both encoders find something, and not the same."""

    texts: list[np.ndarray]
    labels: np.ndarray
    targets: np.ndarray
    folds: np.ndarray

    @property
    def c(self):
        return self.targets.shape[1]

    @property
    def d(self):
        return self.texts[0].shape[1]


def make_problem(seed=0, *, n=80, d=8, c=3, longest=6, folds=4, signal=1.0, dtype=np.float64):
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(n) % c)
    means = signal * rng.normal(size=(c, d))
    transition = rng.normal(size=(d, d)) / np.sqrt(d)
    spread = np.exp(rng.normal(size=d))
    texts = []
    for label in labels:
        state, rows = rng.normal(size=d), []
        for _ in range(rng.integers(1, longest + 1)):
            state = 0.7 * transition @ state + 0.4 * means[label] + 0.6 * rng.normal(size=d)
            rows.append(state * spread)
        texts.append(np.array(rows).astype(dtype))
    return Problem(texts, labels, np.eye(c)[labels], rng.permutation(np.arange(n) % folds))


def pad_batch(texts, side="right", *, filler=0.0, rng=None):
    """Stack texts (each (L, d)) into (B, T, d) with a mask; holes are scattered when `side` is "holes"."""
    width, longest = texts[0].shape[1], max(map(len, texts)) + (side == "holes")
    hidden = np.full((len(texts), longest, width), filler, dtype=texts[0].dtype)
    mask = np.zeros((len(texts), longest), dtype=np.int64)
    for row, h in enumerate(texts):
        if side == "right":
            places = np.arange(len(h))
        elif side == "left":
            places = np.arange(longest - len(h), longest)
        else:
            places = np.sort(rng.choice(longest, size=len(h), replace=False))
        hidden[row, places], mask[row, places] = h, 1
    return torch.from_numpy(hidden), torch.from_numpy(mask)


def accumulate(problem, *, prefix="sum", folds=0, batch=16, dtype=torch.float64, targets=None, **options):
    """Stream one layer of a problem through an accumulator; return it."""
    c = problem.c if targets is None else targets.shape[1]
    accumulator = MomentAccumulator(
        layers=[0], width=problem.d, n_targets=c, prefix=prefix, folds=folds, accumulate_dtype=dtype, **options
    )
    for start in range(0, len(problem.texts), batch):
        part = slice(start, start + batch)
        hidden, mask = pad_batch(problem.texts[part])
        labels = torch.from_numpy(problem.labels[part] if targets is None else targets[part])
        accumulator.update(hidden[None], mask, labels, torch.from_numpy(problem.folds[part]) if folds else None)
    return accumulator


def moments_of(problem, **options):
    return accumulate(problem, **options).finalize()


def order_task(n=72, seed=0, noise=False):
    """Which of two words comes first: a bag of words cannot tell. With `noise`, labels mean nothing."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 2
    rows = []
    for label in labels:
        pair = ["good", "bad"] if label else ["bad", "good"]
        rest = list(rng.choice(WORDS[20:], size=rng.integers(1, 6)))
        rows.append(" ".join([*rest[:1], *pair, *rest[1:]]))
    labels = rng.permutation(labels) if noise else labels
    return load_task(texts=rows, labels=[("second", "first")[i] for i in labels], name="order")
