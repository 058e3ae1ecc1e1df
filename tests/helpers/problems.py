"""Random problems for the tests, and the ways from plain arrays to moments, a solution and representations."""

from dataclasses import dataclass

import numpy as np
import torch

from helpers.models import WORDS
from helpers.naive import pooled
from ntps.core import NextTokenMoments, solve_layer
from ntps.tasks import Task, load_task


@dataclass
class Problem:
    """Texts of a class-dependent autoregressive process: both encoders find something, and not the same."""

    texts: list[np.ndarray]
    labels: np.ndarray
    c: int
    folds: np.ndarray

    @property
    def targets(self):
        return np.eye(self.c)[self.labels]

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
    return Problem(texts, labels, c, rng.permutation(np.arange(n) % folds))


def pad_batch(texts, side="right", *, filler=0.0, rng=None):
    """Stack texts (each (L, d)) into (B, T, d) with a mask; holes are scattered when `side` is "holes"."""
    width, longest = texts[0].shape[1], max(map(len, texts)) + (side == "holes")
    hidden = np.full((len(texts), longest, width), filler, dtype=texts[0].dtype)
    mask = np.zeros((len(texts), longest), dtype=np.int64)
    for row, h in enumerate(texts):
        if side == "right":
            positions = np.arange(len(h))
        elif side == "left":
            positions = np.arange(longest - len(h), longest)
        else:
            positions = np.sort(rng.choice(longest, size=len(h), replace=False))
        hidden[row, positions], mask[row, positions] = h, 1
    return torch.from_numpy(hidden), torch.from_numpy(mask)


def stream(*stacks, layers=None, batch=16, pooling="mean", dtype=torch.float64, **options):
    """Stream the texts of one or several layers through moments; return those and pooled states (S, n, d)."""
    layers = range(len(stacks)) if layers is None else layers
    moments = NextTokenMoments(layers=layers, width=stacks[0][0].shape[1], dtype=dtype, **options)
    pooled_states = []
    for start in range(0, len(stacks[0]), batch):
        padded = [pad_batch(texts[start : start + batch]) for texts in stacks]
        hidden, mask = [states for states, _ in padded], padded[0][1]
        pooled_states.append(moments.update(hidden, mask, pooling=pooling))
    return moments, torch.cat(pooled_states, dim=1)


def solve(problem, *, folds=False, targets=None, prefix="sum", dtype=torch.float64, **options):
    """Solve one layer of a problem."""
    moments, states = stream(problem.texts, prefix=prefix, dtype=dtype)
    fold_of = torch.from_numpy(problem.folds) if folds else None
    targets = torch.from_numpy(problem.targets if targets is None else targets)
    return solve_layer(states[0], targets, moments.layer(0), fold_of=fold_of, **options)


def representations_of(problem, *stacks, layers=None, metadata=None, dtype=torch.float64):
    """Return representations of a problem's texts, or of several layers of them, with its labels as a task."""
    from ntps.models import Representations

    moments, states = stream(*(stacks or [problem.texts]), layers=layers, dtype=dtype)
    n = len(problem.texts)
    task = Task.of("problem", [f"text {i}" for i in range(n)], problem.labels, "abcdefgh"[: problem.c])
    return Representations(
        states=states.numpy(),
        layers=moments.layers,
        widths=moments.widths,
        next_token=moments,
        text_index=np.arange(n),
        text_group=np.arange(n),
        lengths=np.array([len(h) for h in problem.texts]),
        metadata={"model": "a model", "texts_fingerprint": task.texts_fingerprint, **(metadata or {})},
        task=task,
    )


def pooled_tensor(problem):
    return torch.from_numpy(pooled(problem.texts))


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


def word_task(n=40, *, longest=12, seed=0, classes=3, blank=()):
    """Random words with random labels; texts at the indices in `blank` have no token."""
    rng = np.random.default_rng(seed)
    texts = [" ".join(rng.choice(WORDS, size=rng.integers(1, longest + 1))) for _ in range(n)]
    for index in blank:
        texts[index] = "  "
    return Task.of("words", texts, rng.permutation(np.arange(n) % classes), "abcdef"[:classes])
