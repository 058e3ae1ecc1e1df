"""`Task`: texts with class labels, and the ways to cut and relabel them."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from ntps.errors import NtpsError, in_range
from ntps.tasks.columns import encode
from ntps.tasks.tables import Table


@dataclass(frozen=True, eq=False)
class Task:
    """A text classification data set; it never changes after it is made.

    Attributes:
        name: What tables and files call it.
        texts: The n texts. Blank ones stay: what has no tokens is skipped, and counted, where a model reads it.
        labels: Class of each text, int64 of shape (n,), in [0, n_classes). Read-only.
        classes: Class names, in a stable order: numbers by size, words by alphabet, declared names as declared.
        source: What it was made from, fit for JSON: `kind`, `path`, columns, split, limit, seed, `notes`.
    """

    name: str
    texts: tuple[str, ...]
    labels: np.ndarray = field(repr=False)
    classes: tuple[str, ...]
    source: dict[str, Any] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        texts, labels = tuple(self.texts), np.array(self.labels)
        if labels.ndim != 1 or labels.dtype.kind not in "iu":
            got = f"{labels.dtype} of shape {labels.shape}"
            raise NtpsError(f"{self.name}: labels must be class numbers, one a text, not {got}.")
        if len(texts) != len(labels):
            raise NtpsError(f"{self.name}: {len(texts)} texts, but {len(labels)} labels.")
        if len(labels) and not 0 <= labels.min() <= labels.max() < len(self.classes):
            got = f"labels from {labels.min()} to {labels.max()}"
            raise NtpsError(f"{self.name}: {got} for {len(self.classes)} classes (0 to {len(self.classes) - 1}).")
        labels = labels.astype(np.int64)
        labels.flags.writeable = False
        object.__setattr__(self, "texts", texts)
        object.__setattr__(self, "labels", labels)
        object.__setattr__(self, "classes", tuple(map(str, self.classes)))

    def __len__(self) -> int:
        return len(self.texts)

    def __repr__(self) -> str:
        return f"Task({self.name!r}: {len(self)} texts, {self.n_classes} classes, majority {self.majority_rate:.2f})"

    @property
    def n_classes(self) -> int:
        """Number of classes."""
        return len(self.classes)

    @property
    def majority_rate(self) -> float:
        """Share of the most frequent class, in [1/n_classes, 1]: the accuracy of always answering it."""
        return float(np.bincount(self.labels).max() / len(self)) if len(self) else float("nan")

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 hex digest of texts, labels and class names in their order; the task's name does not enter."""
        digest = hashlib.sha256(f"{len(self)} {self.n_classes}\0".encode())
        for text in (*self.texts, *self.classes):
            data = text.encode("utf-8", "surrogatepass")
            digest.update(len(data).to_bytes(8, "little") + data)  # the length keeps ("ab", "c") from ("a", "bc")
        digest.update(self.labels.astype("<i8").tobytes())
        return digest.hexdigest()

    def subset(self, indices: Iterable[int]) -> "Task":
        """Return the texts at `indices`, in that order, under the same classes.

        Raises:
            NtpsError: If an index is out of range.
        """
        chosen = np.asarray(list(indices), dtype=np.int64)
        if chosen.size and not -len(self) <= chosen.min() <= chosen.max() < len(self):
            raise NtpsError(f"{self.name}: index {max(chosen.max(), -chosen.min())} in a task of {len(self)} texts.")
        return replace(self, texts=tuple(self.texts[i] for i in chosen), labels=self.labels[chosen])

    def sample(self, n: int, *, seed: int = 0) -> "Task":
        """Return `n` texts without replacement, in random order; a smaller sample is the start of a larger one.

        Raises:
            NtpsError: If `n` is not between 1 and the number of texts.
        """
        in_range(whole(n, "n"), 1, len(self), "n")
        chosen = np.random.default_rng(seed).permutation(len(self))[:n]
        return replace(self.subset(chosen), source={**self.source, "sample": int(n), "sample_seed": seed})

    def split(self, fraction: float = 0.25, *, seed: int = 0) -> tuple["Task", "Task"]:
        """Return (train, test), stratified: each class keeps its share in both, as closely as whole texts allow.

        Args:
            fraction: Share of the texts that goes to the test part, in (0, 1). A class of two or more texts has at
                least one in each part; a class of one text stays in train.
            seed: Which texts go where, and their order.

        Raises:
            NtpsError: If `fraction` is not in (0, 1), or no class has two texts.
        """
        if isinstance(fraction, bool) or not isinstance(fraction, int | float) or not 0 < fraction < 1:
            raise NtpsError(f"fraction is {fraction!r}; it must lie between 0 and 1, both excluded.")
        counts = np.bincount(self.labels, minlength=self.n_classes)
        wanted = counts * fraction
        take = np.floor(wanted).astype(int)
        short = round(len(self) * fraction) - take.sum()
        take[np.argsort(take - wanted, kind="stable")[: max(short, 0)]] += 1  # the largest remainders round up
        take = np.clip(take, np.minimum(counts // 2, 1), np.maximum(counts - 1, 0))
        if not take.any():
            raise NtpsError(f"{self.name} cannot be split: none of its {self.n_classes} classes has two texts.")
        order = np.random.default_rng(seed).permutation(len(self))
        test = np.concatenate([order[self.labels[order] == c][: take[c]] for c in range(self.n_classes)])
        in_test = np.zeros(len(self), dtype=bool)
        in_test[test] = True
        note = {"split_fraction": float(fraction), "split_seed": seed}
        parts = []
        for part, mask in (("train", ~in_test), ("test", in_test)):
            task = self.subset(order[mask[order]])
            parts.append(replace(task, name=f"{self.name}:{part}", source={**self.source, **note, "part": part}))
        return parts[0], parts[1]

    def with_labels(self, labels: Sequence[Any] | np.ndarray, name: str | None = None) -> "Task":
        """Return the same texts under other labels.

        Args:
            labels: One a text. Integers are numbers of this task's classes (a permutation, say); strings and booleans
                make classes of their own.
            name: Name of the new task; None keeps the old one.

        Raises:
            NtpsError: If their number or kind does not fit.
        """
        values = np.asarray(labels)
        classes = self.classes
        if values.dtype.kind not in "iu":
            where = Table({}, lambda row: f"{name or self.name}, label {row + 1}")
            values, classes = encode(list(labels), where, "labels")
        source = {**self.source, "relabelled": True}
        return replace(self, name=name or self.name, labels=values, classes=classes, source=source)


def whole(value: Any, what: str) -> int:
    """Return `value` if it is a whole number."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise NtpsError(f"{what} is {value!r}; a whole number is needed.")
    return int(value)
