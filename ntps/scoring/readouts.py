"""Readouts judged text by text: R^2 with an interval, paired comparisons, groups that tie, the choice of a layer."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, cast

import numpy as np
import torch

from ntps._files import Record, jsonable
from ntps.core.heldout import r2_of
from ntps.errors import NtpsError

# Readouts of different folds share training texts, so errors of different texts are not independent: their standard
# error is that of independent ones times this, which covers as it says (`python -m benchmarks.coverage`).
FOLD_FACTOR = 1.25
CONFIDENCE = 0.95


@dataclass(frozen=True, eq=False, kw_only=True)
class Readout(Record):
    """Out-of-fold squared errors of one way to read the labels of a set of texts.

    Attributes:
        name: What was read, such as `"layer 9"`.
        errors: (n,) squared error of each text's prediction, summed over one-hot classes.
        baseline: (n,) squared error of predicting the label frequencies of the other folds.
        groups: (n,) equal numbers for equal texts, which count as one observation.
        origin: Fingerprint of texts, labels and folds: only readouts of one origin are compared.
        loo_errors: (folds,) leave-one-out errors on the texts of the other folds; see `ntps.core.HeldOut`. By them a
            layer is chosen; `None` where there is one layer only.
    """

    name: str
    errors: np.ndarray = field(repr=False)
    baseline: np.ndarray = field(repr=False)
    groups: np.ndarray = field(repr=False)
    origin: str = ""
    loo_errors: torch.Tensor | None = field(default=None, repr=False)

    @cached_property
    def r2(self) -> float:
        """1 - sum(errors) / sum(baseline): at most 1, negative if worse than label frequencies, NaN if undefined."""
        return r2_of(self.errors, self.baseline)

    @cached_property
    def influence(self) -> np.ndarray:
        """(n,) contribution of each text to `r2`, about its mean."""
        return ((1 - self.r2) * self.baseline - self.errors) / self.baseline.mean()

    @property
    def standard_error(self) -> float:
        """Standard error of `r2` over texts, with the readouts of the folds given."""
        return _standard_error(self.influence, self.groups)

    def interval(self) -> tuple[float, float]:
        """Return a 95 % interval for the R^2 that such readouts reach on new texts of the same kind, cut at 1."""
        half = _quantile(CONFIDENCE) * self.standard_error
        return self.r2 - half, min(self.r2 + half, 1.0)

    def to_dict(self) -> dict[str, Any]:
        """Return `estimate`, `low`, `high` (95 %) and `standard_error`; NaN becomes `None`."""
        low, high = self.interval()
        return jsonable({"estimate": self.r2, "low": low, "high": high, "standard_error": self.standard_error})


@dataclass(frozen=True, kw_only=True)
class Comparison(Record):
    """The difference between two readouts of the same texts.

    Attributes:
        names: Names of the two.
        difference: R^2 of the first minus that of the second.
        standard_error: Paired standard error of the difference.
        interval: Interval of the difference.
        confidence: Its level.
        p_value: Two-sided, normal approximation.
        n: Number of texts.
    """

    names: tuple[str, str]
    difference: float
    standard_error: float
    interval: tuple[float, float]
    confidence: float
    p_value: float
    n: int

    @property
    def tie(self) -> bool:
        """Whether the interval holds 0: the two cannot be told apart."""
        return not (self.interval[0] > 0 or self.interval[1] < 0)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values; NaN becomes `None`."""
        return jsonable({**vars(self), "tie": self.tie})


def compare_readouts(a: Readout, b: Readout, *, confidence: float = CONFIDENCE) -> Comparison:
    """Compare two readouts of the same texts, paired text by text.

    Raises:
        NtpsError: If the texts, labels or folds differ, or `confidence` is not inside (0, 1).
    """
    if not 0 < confidence < 1:
        raise NtpsError(f"confidence is {confidence}; it must lie between 0 and 1.")
    if a.origin != b.origin or len(a.errors) != len(b.errors):
        raise NtpsError(
            f"{a.name} and {b.name} were judged on different texts, labels or folds; use the same for both."
        )
    difference = a.r2 - b.r2
    error = _standard_error(a.influence - b.influence, a.groups)
    half = _quantile(confidence) * error
    z = abs(difference) / error if error > 0 else (0.0 if difference == 0 else math.inf)
    return Comparison(
        names=(a.name, b.name),
        difference=difference,
        standard_error=error,
        interval=(difference - half, difference + half),
        confidence=confidence,
        p_value=math.nan if math.isnan(difference) else math.erfc(z / math.sqrt(2)),
        n=len(a.errors),
    )


def tied_groups(readouts: Sequence[Readout]) -> tuple[tuple[int, ...], ...]:
    """Split readouts of the same texts into groups that cannot be told apart from their best member.

    The best readout leads the first group and takes in all that tie with it; the best of the rest leads the next one.
    All comparisons together have a level of 95 %: intervals are widened for the number of comparisons with a leader
    (Bonferroni).

    Args:
        readouts: At least one.

    Returns:
        Indices into `readouts`, best group first, best member first.

    Raises:
        NtpsError: If texts, labels or folds differ.
    """
    rest = sorted(range(len(readouts)), key=lambda index: -np.nan_to_num(readouts[index].r2, nan=-np.inf))
    each = pair_confidence(len(readouts))
    groups = []
    while rest:
        leader = readouts[rest[0]]
        group = [i for i in rest if compare_readouts(leader, readouts[i], confidence=each).tie]
        groups.append(tuple(group))
        rest = [i for i in rest if i not in group]
    return tuple(groups)


def pair_confidence(n: int) -> float:
    """Return the level of each comparison with a leader, so that all of n readouts together have `CONFIDENCE`."""
    return 1 - (1 - CONFIDENCE) / max(1, n - 1)


@dataclass(frozen=True, eq=False, kw_only=True)
class LayerChoice:
    """The layer that reads the labels best, and what choosing it is worth.

    Attributes:
        layer: The layer with the smallest error on all texts.
        tied: Further layers whose error is within one paired standard error of that.
        readout: Errors, on each fold, of the layer that was chosen on the other folds' texts alone: its R^2 is not
            flattered by the choice.
        by_fold: (n,) for each text the layer chosen without its fold.
    """

    layer: int
    tied: tuple[int, ...]
    readout: Readout
    by_fold: np.ndarray = field(repr=False)

    @property
    def holds(self) -> bool:
        """Whether the labels are read better than by their frequencies: the interval's lower end is above 0."""
        return self.readout.interval()[0] > 0


def choose_layer(layers: Sequence[int], readouts: Sequence[Readout], fold_of: np.ndarray) -> LayerChoice:
    """Choose a layer, for each fold by the leave-one-out errors on the texts of all other folds.

    Out-of-fold errors would not do: readouts that were fitted on the fold make them, so its chance products with other
    folds count twice, and the R^2 of the best of twelve equal layers reads 0.03 to 0.08 too high with 100 texts.

    Args:
        layers: Layer numbers.
        readouts: One per layer, of the same texts, with leave-one-out errors if there is more than one.
        fold_of: (n,) fold of each text.
    """
    errors = np.stack([readout.errors for readout in readouts])
    numbers = np.asarray(layers)
    by_fold = np.zeros(len(fold_of), dtype=int)
    if len(readouts) > 1:
        loo_errors = torch.stack([cast(torch.Tensor, readout.loo_errors) for readout in readouts])
        by_fold = loo_errors.argmin(0).numpy()[np.unique(fold_of, return_inverse=True)[1]]
    first = readouts[0]
    best = int(errors.sum(1).argmin())
    tied = [
        layer
        for layer, readout in zip(layers, readouts, strict=True)
        if layer != layers[best] and _within_one_error(readouts[best], readout)
    ]
    chosen = Readout(
        name="the best layer",
        errors=errors[by_fold, np.arange(errors.shape[1])],
        baseline=first.baseline,
        groups=first.groups,
        origin=first.origin,
    )
    return LayerChoice(layer=int(numbers[best]), tied=tuple(tied), readout=chosen, by_fold=numbers[by_fold])


def share_interval(share: float, n: int) -> tuple[float, float]:
    """Return a 95 % interval for the share of right predictions on new texts: Wilson's, for fewer texts than there are.

    Readouts of different folds share training texts, so n texts say as much as n / `FOLD_FACTOR`^2 independent ones.

    Args:
        share: Share of texts predicted right, in [0, 1].
        n: Number of different texts.
    """
    z2, effective = _quantile(CONFIDENCE) ** 2, n / FOLD_FACTOR**2
    middle = (share + z2 / (2 * effective)) / (1 + z2 / effective)
    half = math.sqrt(z2 * (share * (1 - share) + z2 / (4 * effective)) / effective) / (1 + z2 / effective)
    return max(0.0, middle - half), min(1.0, middle + half)


def _within_one_error(best: Readout, other: Readout) -> bool:
    comparison = compare_readouts(best, other)
    return comparison.difference <= comparison.standard_error


def _standard_error(influence: np.ndarray, groups: np.ndarray) -> float:
    """Return the standard error of a mean of dependent errors; equal texts are one observation."""
    if not np.isfinite(influence).all():
        return math.nan
    _, group = np.unique(groups, return_inverse=True)
    sums = np.bincount(group, weights=influence - influence.mean())
    count = len(sums)
    if count < 2:
        return math.nan
    return FOLD_FACTOR * math.sqrt(count / (count - 1) * float(np.square(sums).sum())) / len(influence)


def _quantile(confidence: float) -> float:
    from scipy.special import ndtri

    return float(ndtri(0.5 + confidence / 2))
