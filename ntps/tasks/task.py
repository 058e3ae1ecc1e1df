"""`Task`: texts with columns of classes, of real values or of several labels each; how to sample and split them."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from ntps._names import clean
from ntps._text import counted
from ntps.errors import NtpsError, whole


@dataclass(frozen=True, eq=False)
class LabelColumn:
    """What is to be predicted of each text: its class, a real value (regression), or which of several labels it has.

    Attributes:
        name: Name of the column.
        values: Class number of each text, int64 of shape (n,), in [0, n_classes); -1 where a text has no label. For
            regression finite real values, float64 of shape (n,); NaN where a text has none. For several labels 0 or 1
            for each, int64 of shape (n, n_labels). Read-only.
        classes: Class names, in a stable order: numbers by size, words in alphabetical order, declared names as
            declared. Empty for real values; of several labels their names.

    Raises:
        NtpsError: If the values are not class numbers of these classes, a real value is infinite, or several labels are
            not 0 or 1 for each of `classes`.
    """

    name: str
    values: np.ndarray = field(repr=False)
    classes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        values, classes = np.array(self.values), tuple(map(str, self.classes))
        real = values.dtype.kind == "f" and not classes
        several = values.ndim == 2 and values.shape[1] == len(classes) > 0 and np.isin(values, (0, 1)).all()
        if not (several or (values.ndim == 1 and (values.dtype.kind in "iu" or real))):
            kind = f"{values.dtype} of shape {values.shape}"
            accepted = "integers of shape (n_texts,), floats without classes, or 0 and 1 of shape (n_texts, n_labels)"
            raise NtpsError(f"label column {self.name!r} holds {kind}; {accepted} are needed.")
        if real and np.isinf(values).any():
            where = int(np.isinf(values).argmax())
            raise NtpsError(f"label column {self.name!r} is infinite at text {where}; finite values are needed.")
        if not real and len(values) and not -1 <= values.min() <= values.max() < len(classes):
            extremes = f"values from {values.min()} to {values.max()}"
            accepted = f"0 to {len(classes) - 1}, or -1 for a text without a label"
            raise NtpsError(f"label column {self.name!r} holds {extremes} for {len(classes)} classes ({accepted}).")
        values = values.astype(np.float64 if real else np.int64)
        values.flags.writeable = False
        object.__setattr__(self, "values", values)
        object.__setattr__(self, "classes", classes)

    def __len__(self) -> int:
        return len(self.values)

    @property
    def n_classes(self) -> int:
        """Number of classes, or of several labels; 0 for real values."""
        return len(self.classes)

    @property
    def kind(self) -> str:
        """`"classification"`, `"regression"` or `"multilabel"`."""
        return kind_of(self.values)

    @property
    def labelled(self) -> np.ndarray:
        """Whether each text has a label, bool of shape (n,)."""
        if self.kind == "multilabel":
            return np.ones(len(self), dtype=bool)
        return ~np.isnan(self.values) if self.kind == "regression" else self.values >= 0

    @property
    def majority_rate(self) -> float:
        """Share of the most frequent class among the labelled texts, in [1/n_classes, 1]; NaN unless there are classes.

        It is the accuracy of always answering that class.
        """
        if self.kind != "classification":
            return float("nan")
        counts = np.bincount(self.values[self.labelled])
        return float(counts.max() / counts.sum()) if counts.size else float("nan")


@dataclass(frozen=True, eq=False, kw_only=True)
class Task:
    """Texts with one or several label columns; it is immutable.

    Attributes:
        name: Name of the task in tables and files.
        texts: The n texts. Blank ones stay: a model's pass skips and counts texts without tokens.
        columns: The label columns, at least one. With a single column every text has a label; with several, a text may
            lack labels in some or all of them. `labels`, `classes`, `n_classes` and `majority_rate` are those of the
            first.
        source: What the task was made from, as JSON values: `kind`, `path`, columns, split, limit, seed, `notes`.

    Raises:
        NtpsError: If there is no column, two columns have the same name, a column does not have one value per text,
            or a label is missing in a single column.
    """

    name: str
    texts: tuple[str, ...]
    columns: tuple[LabelColumn, ...]
    source: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        texts, columns = tuple(self.texts), tuple(self.columns)
        if not columns:
            raise NtpsError(f"{self.name} has no label column; at least one is needed.")
        names = [column.name for column in columns]
        for column in columns:
            if names.count(column.name) > 1:
                raise NtpsError(f"{self.name} has two label columns named {column.name!r}; names must differ.")
            if len(column) != len(texts):
                raise NtpsError(
                    f"{self.name} has {len(texts)} texts, but {len(column)} labels in column {column.name!r}."
                )
        if len(columns) == 1 and not columns[0].labelled.all():
            first = int(np.argmin(columns[0].labelled))
            raise NtpsError(
                f"{self.name}: text {first} has no label in {names[0]!r}, the only label column; drop such texts."
            )
        object.__setattr__(self, "name", clean(self.name))
        object.__setattr__(self, "texts", texts)
        object.__setattr__(self, "columns", columns)

    @classmethod
    def of(
        cls,
        name: str,
        texts: Iterable[str],
        labels: Sequence[int] | np.ndarray,
        classes: Iterable[str] = (),
        *,
        label_column: str = "label",
        source: dict[str, Any] | None = None,
    ) -> "Task":
        """Return a task with one label column.

        Args:
            name: Name of the task.
            texts: The n texts.
            labels: Class number of each text, real values without classes, or 0 and 1 for several labels: the values of
                a `LabelColumn`.
            classes: Class names, or names of the labels.
            label_column: Name of the label column.
            source: What the task was made from, as JSON values.

        Raises:
            NtpsError: As for `Task` and `LabelColumn`.
        """
        column = LabelColumn(label_column, np.asarray(labels), tuple(classes))
        return cls(name=name, texts=tuple(texts), columns=(column,), source=dict(source or {}))

    def __len__(self) -> int:
        return len(self.texts)

    def __repr__(self) -> str:
        described = []
        for column in self.columns:
            label = f"{column.name}: " if len(self.columns) > 1 else ""
            n_missing = len(self) - int(column.labelled.sum())
            missing = f", {n_missing} without a label" if n_missing else ""
            majority = f", majority {column.majority_rate:.2f}" if column.kind == "classification" else ""
            described.append(f"{label}{labels_in_words(column.kind, column.n_classes)}{majority}{missing}")
        return f"Task({self.name!r}: {'; '.join([f'{len(self)} texts', *described])})"

    @property
    def labels(self) -> np.ndarray:
        """Values of the first column, see `LabelColumn`. Read-only."""
        return self.columns[0].values

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names of the first column."""
        return self.columns[0].classes

    @property
    def n_classes(self) -> int:
        """Number of classes of the first column, see `LabelColumn`."""
        return self.columns[0].n_classes

    @property
    def majority_rate(self) -> float:
        """Share of the most frequent class among the texts with a label in the first column, in [1/n_classes, 1]."""
        return self.columns[0].majority_rate

    @cached_property
    def texts_fingerprint(self) -> str:
        """SHA-256 hex digest of the texts in their order; the same for every task on the same texts."""
        return fingerprint_texts(self.texts)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 hex digest of the texts and of all label columns: names, classes and values, in their order.

        The task's own name and its source do not enter.
        """
        digest = hashlib.sha256(self.texts_fingerprint.encode())
        for column in self.columns:
            _add_strings(digest, (column.name, *column.classes))
            digest.update(column.values.astype("<f8" if column.kind == "regression" else "<i8").tobytes())
        return digest.hexdigest()

    def column(self, name: str) -> LabelColumn:
        """Return the label column of this name.

        Raises:
            NtpsError: If there is none; the message lists those there are.
        """
        for column in self.columns:
            if column.name == name:
                return column
        names = ", ".join(repr(column.name) for column in self.columns)
        raise NtpsError(f"{self.name} has no label column {name!r}; choose one of: {names}.")

    def with_column(self, name: str) -> "Task":
        """Return the task of one label column: only the texts with a label there, in their order.

        Raises:
            NtpsError: If there is no such column.
        """
        column = self.column(name)
        if len(self.columns) == 1:
            return self
        chosen = np.flatnonzero(column.labelled)
        return replace(
            self,
            texts=tuple(self.texts[index] for index in chosen),
            columns=(replace(column, values=column.values[chosen]),),
            source={**self.source, "label_column": name},
        )

    def subset(self, indices: Iterable[int]) -> "Task":
        """Return the texts at `indices`, in that order, with all label columns under the same classes.

        Raises:
            NtpsError: If an index is out of range.
        """
        chosen = np.asarray(list(indices), dtype=np.int64)
        if (beyond := chosen[(chosen < -len(self)) | (chosen >= len(self))]).size:
            raise NtpsError(f"{self.name}: index {beyond[0]} in a task of {len(self)} texts.")
        columns = tuple(replace(column, values=column.values[chosen]) for column in self.columns)
        return replace(self, texts=tuple(self.texts[index] for index in chosen), columns=columns)

    def sample(self, n: int, *, seed: int = 0) -> "Task":
        """Return `n` texts without replacement, in random order; a smaller sample is the start of a larger one.

        Raises:
            NtpsError: If `n` is not between 1 and the number of texts.
        """
        whole(n, 1, len(self), "n")
        chosen = np.random.default_rng(seed).permutation(len(self))[:n]
        return replace(self.subset(chosen), source={**self.source, "sample": int(n), "sample_seed": seed})

    def split(self, fraction: float = 0.25, *, seed: int = 0) -> tuple["Task", "Task"]:
        """Return (train, test), stratified by the classes of the first label column.

        Each class keeps its share in both, as closely as whole texts allow. Texts without a label in the first column
        are split as if they formed another class, so that every text is in one of the two.

        Args:
            fraction: Share of the texts that goes to the test task, in (0, 1). A class of two or more texts has at
                least one in each task; a class of one text stays in train. Without classes, all texts count as one.
            seed: Seed of the choice of texts and of their order.

        Raises:
            NtpsError: If `fraction` is not in (0, 1), or no class has two texts.
        """
        if isinstance(fraction, bool) or not isinstance(fraction, int | float) or not 0 < fraction < 1:
            raise NtpsError(f"fraction is {fraction!r}; it must lie between 0 and 1, both excluded.")
        first = self.columns[0]
        numbers, n_strata = strata(first.values), first.n_classes if first.kind == "classification" else 1
        stratum = np.where(first.labelled, numbers, n_strata)  # the last one holds what has no label
        counts = np.bincount(stratum, minlength=n_strata + 1)
        exact = counts * fraction
        n_test = np.floor(exact).astype(int)
        n_more = round(len(self) * fraction) - n_test.sum()
        n_test[np.argsort(n_test - exact, kind="stable")[: max(n_more, 0)]] += 1  # the largest remainders round up
        n_test = np.clip(n_test, np.minimum(counts // 2, 1), np.maximum(counts - 1, 0))
        if not n_test[:n_strata].any():
            why = f"none of its {n_strata} classes has two texts"
            why = why if first.kind == "classification" else "it has fewer than two texts"
            raise NtpsError(f"{self.name} cannot be split: {why}.")
        order = np.random.default_rng(seed).permutation(len(self))
        in_test = np.zeros(len(self), dtype=bool)
        for number, size in enumerate(n_test):
            in_test[order[stratum[order] == number][:size]] = True
        source = {**self.source, "split_fraction": float(fraction), "split_seed": seed}

        def side(name: str, chosen: np.ndarray) -> Task:
            task = self.subset(order[chosen[order]])
            return replace(task, name=f"{self.name}:{name}", source={**source, "part": name})

        return side("train", ~in_test), side("test", in_test)


def kind_of(values: np.ndarray) -> str:
    """Return the kind of the values of a `LabelColumn`: "classification", "regression" or "multilabel"."""
    return "multilabel" if values.ndim == 2 else "regression" if values.dtype.kind == "f" else "classification"


def strata(values: np.ndarray) -> np.ndarray:
    """Return what folds and parts are balanced by, (n,): class numbers; without classes all texts are alike."""
    return values if kind_of(values) == "classification" else np.zeros(len(values), dtype=np.int64)


def labels_in_words(kind: str, number: int, sizes: Sequence[int] = ()) -> str:
    """Return "3 classes", "2 of 3 classes" where only so many have a size above 0, "real values" or "3 labels"."""
    present = sum(size > 0 for size in sizes)
    lost = f"{present} of " if 0 < present < number else ""
    words = {"classification": f"{number} classes", "regression": "real values"}.get(kind, counted(number, "label"))
    return f"{lost}{words}"


def fingerprint_texts(texts: Sequence[str]) -> str:
    """Return the SHA-256 hex digest of texts in their order, as `Task.texts_fingerprint` gives it."""
    digest = hashlib.sha256()
    _add_strings(digest, texts)
    return digest.hexdigest()


def _add_strings(digest: Any, strings: Sequence[str]) -> None:
    """Add strings to a digest, each after its length: that tells ("ab", "c") from ("a", "bc")."""
    digest.update(len(strings).to_bytes(8, "little"))
    for string in strings:
        data = string.encode("utf-8", "surrogatepass")
        digest.update(len(data).to_bytes(8, "little") + data)
