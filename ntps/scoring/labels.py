"""The labels of a pass's texts, and the folds in which these are held out."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch

from ntps.errors import NtpsError
from ntps.models import Representations
from ntps.tasks import LabelColumn
from ntps.tasks.classes import read_labels
from ntps.tasks.tables import Columns, Table
from ntps.tasks.task import kind_of, strata

DEFAULT_FOLDS = 5
_CONSTANT = 1e-12  # standard deviation, in units of the largest value, below which rounding is much of it
LabelSource = str | LabelColumn | Sequence[Any] | np.ndarray | None  # see `labels_of`


@dataclass(frozen=True, eq=False, kw_only=True)
class Labels:
    """Labels of those texts of a pass that have one.

    Attributes:
        name: Name of the label column.
        values: (m, ...) of each labelled text, as in `LabelColumn`.
        classes: Class names, or names of several labels; none for real values.
        rows: (m,) row of each labelled text among the representations' states.
        n_missing: Number of texts with tokens but without a label.
        groups: (m,) equal numbers for equal texts.

    Raises:
        NtpsError: If real values, or several labels, do not vary.
    """

    name: str
    values: np.ndarray
    classes: tuple[str, ...]
    rows: np.ndarray
    n_missing: int
    groups: np.ndarray

    def __post_init__(self) -> None:
        if self.kind != "classification" and not self._standardized.any():
            raise NtpsError(
                f"all {len(self.values)} values of {self.name!r} are the same; there is nothing to predict."
            )

    @property
    def n_classes(self) -> int:
        """Number of classes, or of several labels; 0 for real values."""
        return len(self.classes)

    @property
    def kind(self) -> str:
        """`"classification"`, `"regression"` or `"multilabel"`."""
        return kind_of(self.values)

    @property
    def class_sizes(self) -> tuple[int, ...]:
        """Number of texts of each class, or with each of several labels; empty for real values."""
        if self.kind == "regression":
            return ()
        several = self.kind == "multilabel"
        return tuple((self.values.sum(0) if several else np.bincount(self.values, minlength=self.n_classes)).tolist())

    @property
    def targets(self) -> torch.Tensor:
        """(m, c) float64: one-hot classes; real values (c = 1), or several labels, of mean 0 and variance 1 each.

        So R^2 of several labels is the mean of theirs, up to how even the folds are.
        """
        if self.kind != "classification":
            return torch.from_numpy(self._standardized)
        return torch.nn.functional.one_hot(torch.from_numpy(self.values), self.n_classes).double()

    @cached_property
    def _standardized(self) -> np.ndarray:
        """(m, c) real values of mean 0 and variance 1; zeros where they vary no more than rounding does."""
        values = self.values.reshape(len(self.values), -1)
        largest = np.abs(values).max(0)
        scaled = values / np.where(largest > 0, largest, 1.0)  # squares of very large or small values have no number
        centered = scaled - scaled.mean(0)
        deviation = centered.std(0)
        varies = deviation > _CONSTANT
        return np.where(varies, centered / np.where(varies, deviation, 1.0), 0.0)

    def in_units(self, predicted: np.ndarray) -> np.ndarray:
        """Return predicted targets (m, c) in the units of `values`, as targets are made from these; not for classes."""
        values, targets = self.values.reshape(len(self.values), -1), self._standardized
        span = np.ptp(targets, axis=0)
        span = np.where(span > 0, span, 1.0)
        unit = values.max(0) / span - values.min(0) / span  # the difference of very large values has no number
        return values.min(0) + (predicted - targets.min(0)) * unit

    def states(self, representations: Representations, layer: int) -> np.ndarray:
        """Return the pooled states (m, d) of the labelled texts at one layer."""
        states = representations.layer(layer)
        return states if len(self.rows) == len(states) else states[self.rows]

    def layer_memory(self, representations: Representations) -> int:
        """Return about how many bytes it takes to solve the widest layer and to judge its readouts."""
        d, n = max(representations.widths), len(self.rows)
        columns = self.n_classes if self.kind == "multilabel" else 1  # of errors that are kept, at every penalty
        return 30_000_000 + 110 * d**2 + n * (10 * d + 700 * columns)


def labels_of(representations: Representations, labels: LabelSource = None) -> Labels:
    """Return the labels to score representations against.

    Args:
        representations: From `ntps.collect`.
        labels: `None` for the first label column of the task they were collected from, the name of one of its columns,
            a `LabelColumn` (the way to give real values in memory), or one label per given text: integers, strings or
            booleans, `None` where a text has none.

    Raises:
        NtpsError: If there are no such labels, their number does not fit, or no text has one.
    """
    task = representations.task
    if labels is None or isinstance(labels, str):
        if task is None:
            raise NtpsError("these representations were collected from texts without labels; pass labels=.")
        column = task.columns[0] if labels is None else task.column(labels)
    elif isinstance(labels, LabelColumn):
        column = labels
    else:
        column = _read_given(labels)
    if len(column) != representations.n_given:
        raise NtpsError(f"there are {len(column)} labels for {representations.n_given} texts; one per text is needed.")
    values = column.values[representations.text_index]
    rows = np.flatnonzero(column.labelled[representations.text_index])
    if not len(rows):
        raise NtpsError(f"no text with a token has a label in {column.name!r}.")
    return Labels(
        name=column.name,
        values=values[rows],
        classes=column.classes,
        rows=rows,
        n_missing=len(values) - len(rows),
        groups=representations.text_group[rows],
    )


def _read_given(labels: Any) -> LabelColumn:
    """Return labels in memory as a label column."""
    try:
        values = labels.tolist() if hasattr(labels, "tolist") else list(labels)
    except TypeError:
        raise NtpsError(f"labels is {labels!r}; give the name of a label column, or one label per text.") from None
    source = {"path": "the given texts"}
    table = Table(
        columns=Columns.of({"labels": values}),
        n_rows=len(values),
        where=lambda row: f"label {row + 1}",
        source=source,
    )
    return read_labels(table, "labels", allow_missing=True)


def assign_folds(
    labels: np.ndarray, folds: int | str = "auto", *, groups: np.ndarray | None = None, seed: int = 0
) -> np.ndarray | None:
    """Return the fold (n,) of each text, stratified: every class is spread evenly, at random.

    Without classes (real values, several labels) all texts are alike.

    Equal texts share a fold: a readout that was fitted on a text must not be judged on its repeat. A class may have
    fewer texts than there are folds, which scikit-learn's `StratifiedGroupKFold` would refuse or warn about.

    Args:
        labels: (n, ...) as in `LabelColumn`.
        folds: Number of folds; 0 for none; `"auto"` for 5, or the number of different texts in the largest class if
            smaller (none if 1).
        groups: (n,) equal numbers for equal texts; by default all texts differ.
        seed: Seed of the shuffle.

    Returns:
        The fold numbers from 0, or `None` without folds.

    Raises:
        NtpsError: If the number is 1, negative, or above the number of different texts in the largest class.
    """
    _, first, group = np.unique(
        np.arange(len(labels)) if groups is None else groups, return_index=True, return_inverse=True
    )
    classes = kind_of(labels) == "classification"
    class_of = strata(labels)[first]  # where equal texts have different labels, that of the first one
    largest = int(np.bincount(class_of, minlength=1).max())
    if folds == "auto":
        folds = min(DEFAULT_FOLDS, largest) if largest > 1 else 0
    if isinstance(folds, bool) or not isinstance(folds, int | np.integer):
        raise NtpsError(f"folds is {folds!r}; it must be 'auto', 0 (none) or a number of at least 2.")
    if folds == 0:
        return None
    if largest < 2:
        few = "no class has more than 1 different text" if classes else "there is no more than 1 different text"
        raise NtpsError(f"folds is {folds}; {few}: give more texts, or no folds (0).")
    if not 2 <= folds <= largest:
        counted = "different texts in the largest class" if classes else "different texts"
        raise NtpsError(f"folds is {folds}; it must be 0 (none) or between 2 and {largest}, the number of {counted}.")
    order = np.random.default_rng(seed).permutation(len(first))
    sizes = np.bincount(group)
    order = order[np.lexsort((-sizes[order], class_of[order]))]  # by class, the most repeated first
    dealt = np.zeros((folds, int(class_of.max()) + 1))  # number of texts of each class in each fold
    fold_of_group = np.empty(len(first), dtype=np.int64)
    for index in order:
        of_class = dealt[:, class_of[index]]
        fold = int(np.lexsort((dealt.sum(1), of_class))[0])  # fewest of its class, then fewest texts
        fold_of_group[index] = fold
        dealt[fold, class_of[index]] += sizes[index]
    return fold_of_group[group]
