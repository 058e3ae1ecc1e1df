"""Held-out R^2: ridge readouts of a layer's states, judged text by text on folds that they were not fitted on.

For each fold, states are standardised on the other folds, a ridge readout of the first k next-token directions (and of
all d) is fitted there, and the squared error of every text of the fold is kept. One decomposition serves all penalties:
of the k x k Gram, or of the n x n kernel where the training texts are fewer. V comes from all texts: it has seen no
label.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from ntps.errors import NtpsError

# A label variance below this share of the mean square is rounding: the labels are constant.
VARIANCE_RTOL = 1e-14
# Half decades, in units of the mean variance of the standardised states. At the largest, a readout says no more than
# the label frequencies, which is right for labels that have nothing to do with the states.
RIDGES = tuple(10.0 ** (half / 2) for half in range(-16, 11))
_EIGENVALUE_RTOL = 1e-13
_BLOCK = 4_000_000  # numbers of one product held at once


@dataclass(frozen=True, eq=False, kw_only=True)
class HeldOut:
    """Squared errors of readouts on texts that they were not fitted on.

    R^2 = 1 - (sum of errors) / (sum of baseline errors) is at most 1, and below 0 where the readout is worse than the
    label frequencies; for one-hot labels it is the Brier skill score.

    Attributes:
        ks: The requested numbers of next-token directions.
        errors: (len(ks), n) squared error of each text's out-of-fold prediction from the first k directions.
        ceiling_errors: (n,) the same from all d directions.
        baseline: (n,) squared error of predicting the mean target of the other folds.
        predicted: (n,) target with the largest out-of-fold prediction from all directions: the class, if one-hot.
        fitted: (n, c) the predictions themselves from all directions, where they were asked for.
    """

    ks: tuple[int, ...]
    errors: Tensor = field(repr=False)
    ceiling_errors: Tensor = field(repr=False)
    baseline: Tensor = field(repr=False)
    predicted: Tensor = field(repr=False)
    fitted: Tensor | None = field(default=None, repr=False)

    @property
    def ceiling(self) -> float:
        """R^2 through all d directions; NaN for constant targets."""
        return r2_of(self.ceiling_errors, self.baseline)

    @property
    def explained(self) -> tuple[float, ...]:
        """R^2 through the first k directions, for each of `ks`."""
        return tuple(self.at(k) for k in self.ks)

    def errors_at(self, k: int) -> Tensor:
        """Return the errors (n,) through the first k directions; NaN for k = 0.

        Raises:
            NtpsError: If k is not among `ks`.
        """
        if k == 0:
            return torch.full_like(self.baseline, math.nan)
        if k not in self.ks:
            raise NtpsError(f"no held-out value was computed for k = {k}; there are {', '.join(map(str, self.ks))}.")
        return self.errors[self.ks.index(k)]

    def at(self, k: int) -> float:
        """Return R^2 through the first k directions; NaN for k = 0 or constant targets.

        Raises:
            NtpsError: If k is not among `ks`.
        """
        return r2_of(self.errors_at(k), self.baseline)


def r2_of(errors: Tensor | np.ndarray, baseline: Tensor | np.ndarray) -> float:
    """Return 1 - sum(errors) / sum(baseline); NaN where the baseline makes no error."""
    total = float(baseline.sum())
    return 1 - float(errors.sum()) / total if total > 0 else math.nan


def held_out_errors(
    states: Tensor,
    targets: Tensor,
    fold_of: Tensor,
    V: Tensor,
    ks: Sequence[int],
    *,
    part: Tensor | None = None,
    ridges: Sequence[float] = RIDGES,
    separate: bool = False,
    keep_fitted: bool = False,
) -> HeldOut:
    """Evaluate readouts of V's first k directions, and of all d, on folds they were not fitted on.

    The penalty is chosen for each fold and each k by the error on the *other* folds, so no text judges a penalty that
    it chose. Targets that are not parts of one (several labels) may each have their own: one that cannot be read then
    costs the others nothing.

    Args:
        states: (n, d) pooled states, any float dtype; they enter memory as float64, once for each fold in turn.
        targets: (n, c) float64, one-hot labels or real targets.
        fold_of: (n,) fold of each text; at least two folds.
        V: (d, r) next-token directions, best first.
        ks: Numbers of directions, each in [1, r].
        part: (n,) whether a text may be trained on; all by default. Every text is judged all the same.
        ridges: Penalties in units of the mean variance of the standardised states.
        separate: Whether each target has its own penalty; for one-hot labels, all have one. It takes memory for
            (len(ks) + 1, len(ridges), n, c) numbers.
        keep_fitted: Whether to return predictions, which takes memory for (len(ridges), n, c) numbers.

    Raises:
        NtpsError: If there are fewer than two folds.
    """
    n, d = len(states), states.shape[1]
    sizes = sorted({*ks, d})
    errors = torch.zeros(len(sizes), len(ridges), n, targets.shape[1] if separate else 1, dtype=torch.float64)
    predicted = torch.zeros(len(ridges), n, dtype=torch.int32)
    kept = torch.zeros(len(ridges), *targets.shape, dtype=torch.float64) if keep_fitted else None
    baseline = torch.zeros(n, dtype=torch.float64)
    for split in splits(states, fold_of, V=V[:, : max(ks, default=0)], part=part):
        train, test = targets[split.train], targets[split.test]
        mean = train.mean(0)
        baseline[split.test] = (test - mean).square().sum(1)
        cross = split.cross(train - mean)
        for index, k in enumerate(sizes):
            for rows, fitted in split.ridge(cross[:k], ridges):
                values = fitted + mean
                errors[index][:, split.test[rows]] = _by_penalty((test[rows] - values).square(), separate)
                if k == d:
                    predicted[:, split.test[rows]] = values.argmax(2).int()
                    if kept is not None:
                        kept[:, split.test[rows]] = values
    chosen = torch.stack([choose_elsewhere(losses, fold_of) for losses in errors])  # (sizes, n, c or 1)
    picked = errors.gather(1, chosen[:, None])[:, 0].sum(2)
    if float(baseline.sum()) <= VARIANCE_RTOL * float(targets.square().sum()):
        baseline, picked = torch.zeros_like(baseline), torch.zeros_like(picked)
    return HeldOut(
        ks=tuple(ks),
        errors=picked[[sizes.index(k) for k in ks]],
        ceiling_errors=picked[-1],
        baseline=baseline,
        predicted=predicted.gather(0, chosen[-1:, :, 0])[0].long(),
        fitted=None if kept is None else kept.gather(0, chosen[-1:].expand(-1, *targets.shape))[0],
    )


def _by_penalty(errors: Tensor, separate: bool) -> Tensor:
    """Return errors (..., c) as they are, or their sums (..., 1) where all targets have one penalty."""
    return errors if separate else errors.sum(-1, keepdim=True)


def choose_elsewhere(losses: Tensor, fold_of: Tensor) -> Tensor:
    """Return for each text the option with the smallest summed loss on the texts of all other folds.

    Args:
        losses: (options, n, ...) loss of each option on each text.
        fold_of: (n,) fold of each text.

    Returns:
        (n, ...) option indices, equal within a fold.
    """
    chosen = torch.zeros(losses.shape[1:], dtype=torch.long)
    for fold in fold_of.unique():
        chosen[fold_of == fold] = losses[:, fold_of != fold].sum(1).argmin(0)
    return chosen


def shuffled_errors(
    states: Tensor,
    fold_of: Tensor,
    targets: Tensor,
    orders: Tensor,
    *,
    ridges: Sequence[float] = RIDGES,
    separate: bool = False,
) -> Tensor:
    """Return the fold sums from which held-out R^2 (all directions) of many labellings of the same texts follows.

    The readout is linear in the targets, so each fold is decomposed once for all labellings; the penalty is chosen anew
    for each.

    Args:
        states: (n, d) pooled states.
        fold_of: (n,) fold of each text.
        targets: (n, c) float64, as for `held_out_errors`.
        orders: (B, n) for each labelling, the row of `targets` that each text gets.
        ridges: As for `held_out_errors`.
        separate: As for `held_out_errors`.

    Returns:
        (B, folds, 2) float64: summed squared error and summed baseline error on each fold.
    """
    count, n = orders.shape
    folds = len(fold_of.unique())
    losses = torch.zeros(count, folds, len(ridges), targets.shape[1] if separate else 1, dtype=torch.float64)
    baseline = torch.zeros(count, folds, dtype=torch.float64)
    step = max(1, _BLOCK // (targets.shape[1] * n))
    for index, split in enumerate(splits(states, fold_of)):
        for start in range(0, count, step):
            some = slice(start, start + step)
            given = targets[orders[some].T]  # (n, b, c)
            mean = given[split.train].mean(0)
            test = given[split.test] - mean
            baseline[some, index] = test.square().sum((0, 2))
            cross = split.cross((given[split.train] - mean).reshape(len(split.train), -1))
            for rows, fitted in split.ridge(cross, ridges):
                residual = test[rows] - fitted.reshape(len(ridges), -1, *test.shape[1:])
                losses[some, index] += _by_penalty(residual.square().sum(1), separate).transpose(0, 1)
    elsewhere = losses.sum(1, keepdim=True) - losses
    errors = losses.gather(2, elsewhere.argmin(2, keepdim=True))[:, :, 0].sum(2)
    return torch.stack([errors, baseline], dim=2)


def splits(
    states: Tensor, fold_of: Tensor, *, V: Tensor | None = None, part: Tensor | None = None
) -> Iterator["Split"]:
    """Yield training and test texts of each fold, standardised on the training ones.

    Args:
        states: (n, d) pooled states.
        fold_of: (n,) fold of each text.
        V: (d, r) next-token directions, which the first coordinates are to follow.
        part: (n,) whether a text may be trained on; all by default. Every text of a fold is judged all the same.

    Raises:
        NtpsError: If there are fewer than two folds.
    """
    folds = fold_of.unique()
    if len(folds) < 2:
        raise NtpsError(f"held-out values need at least two folds, not {len(folds)}.")
    for fold in folds:
        inside = fold_of == fold
        train = ~inside if part is None else ~inside & part
        yield Split(states=states, train=torch.nonzero(train)[:, 0], test=torch.nonzero(inside)[:, 0], V=V)


@dataclass(frozen=True, eq=False, kw_only=True)
class Split:
    """Training and test texts of one fold, in coordinates that are standardised on the training texts.

    Attributes:
        states: (n, d) all states.
        train: Rows of the training texts.
        test: Rows of the test texts.
        V: (d, r) directions whose first k span the first k coordinates, for every k; `None` for the channels.
    """

    states: Tensor
    train: Tensor
    test: Tensor
    V: Tensor | None = None

    def __post_init__(self) -> None:
        if not len(self.train):
            raise NtpsError("a fold leaves no text to fit a readout on; use fewer folds or more texts.")

    @cached_property
    def _mean_and_scale(self) -> tuple[Tensor, Tensor]:
        """(d,) means, and 1 / standard deviation or 0 for a channel that is constant up to rounding."""
        states = self.states[self.train]
        largest, smallest = states.amax(0).double(), states.amin(0).double()
        rounding = torch.finfo(states.dtype).eps * torch.maximum(largest.abs(), smallest.abs())
        varies = largest - smallest > 4 * rounding
        states = states.double()
        return states.mean(0), torch.where(varies, 1 / states.std(0, correction=0).where(varies, 1.0), 0.0)

    @cached_property
    def _rotation(self) -> Tensor | None:
        if self.V is None or not self.V.numel():
            return None
        # V^T (x - mean) = (V / scale)^T z for standardised z; a constant channel says nothing about a text.
        scale = self._mean_and_scale[1]
        return torch.linalg.qr(self.V / scale.where(scale > 0, torch.inf)[:, None], mode="complete")[0]

    def coordinates(self, rows: Tensor) -> Tensor:
        """Return the coordinates (len(rows), d) of some texts, float64."""
        mean, scale = self._mean_and_scale
        standardized = (self.states[rows].double() - mean) * scale
        return standardized if self._rotation is None else standardized @ self._rotation

    @cached_property
    def _test_coordinates(self) -> Tensor:
        return self.coordinates(self.test)

    @cached_property
    def _train_coordinates(self) -> Tensor:
        return self.coordinates(self.train)

    @cached_property
    def _gram(self) -> Tensor:
        """(d, d) Gram of the training texts."""
        return self._train_coordinates.T @ self._train_coordinates

    def cross(self, targets: Tensor) -> Tensor:
        """Return Z^T Y (d, m) of the training texts' coordinates Z and their centred targets Y (n_train, m)."""
        return self._train_coordinates.T @ targets

    def eigenbasis(self, k: int) -> tuple[Tensor, Tensor]:
        """Decompose the first k coordinates Z_k of the training texts.

        Returns:
            Orthonormal E (k, r) and the eigenvalues (r,) of E^T Z_k^T Z_k E, which is diagonal.
        """
        if k <= len(self.train):
            values, basis = torch.linalg.eigh(self._gram[:k, :k])
        else:
            rows = self._train_coordinates[:, :k]
            values, vectors = torch.linalg.eigh(rows @ rows.T)
            basis = rows.T @ vectors / values.clamp_min(torch.finfo(torch.float64).tiny).sqrt()
        keep = values > _EIGENVALUE_RTOL * len(values) * values[-1:].clamp_min(0.0)
        return basis[:, keep], values[keep]

    def ridge(self, cross: Tensor, ridges: Sequence[float]) -> Iterator[tuple[slice, Tensor]]:
        """Yield predictions of the test texts, about the mean, by readouts of the first k coordinates.

        Args:
            cross: The first k rows (k, m) of `cross`.
            ridges: Penalties in units of the mean variance of the standardised states.

        Yields:
            Which test texts, and their predictions (len(ridges), texts, m).
        """
        k, targets = cross.shape
        basis, values = self.eigenbasis(k)
        unit = len(self.train) * float((self._mean_and_scale[1] > 0).double().mean())
        penalties = unit * torch.tensor(ridges, dtype=torch.float64)
        projected = basis.T @ cross  # (r, m)
        step = max(1, _BLOCK // max(1, len(ridges) * targets))
        for start in range(0, len(self.test), step):
            rows = slice(start, start + step)
            inside = self._test_coordinates[rows, :k] @ basis
            yield rows, torch.stack([(inside / (values + penalty)) @ projected for penalty in penalties])
