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

from ntps.core.threads import one_thread_if_narrow
from ntps.errors import NtpsError

# A label variance below this share of the mean square is rounding: the labels are constant.
VARIANCE_RTOL = 1e-14
# Half decades, in units of the mean variance of the standardised states. At the largest, a readout says no more than
# the label frequencies, which is right for labels that have nothing to do with the states.
RIDGES = tuple(10.0 ** (half / 2) for half in range(-16, 11))
_EIGENVALUE_RTOL = 1e-13
_BLOCK = 1_000_000  # numbers of one product held at once


@dataclass(frozen=True, eq=False, kw_only=True)
class HeldOut:
    """Squared errors of readouts on texts that they were not fitted on.

    R^2 = 1 - (sum of errors) / (sum of baseline errors) is at most 1, and below 0 where the readout is worse than the
    label frequencies; for one-hot labels it is the Brier skill score.

    Attributes:
        ks: The requested numbers of next-token directions.
        explained: R^2 through the first k directions, for each of `ks`; NaN for constant targets.
        by_text: Those of `ks` whose errors were kept text by text.
        errors: (len(by_text), n) squared error of each text's out-of-fold prediction from the first k directions.
        ceiling_errors: (n,) the same from all d directions.
        baseline: (n,) squared error of predicting the mean target of the other folds.
        predicted: (n,) target with the largest out-of-fold prediction from all directions: the class, if one-hot.
        fitted: (n, c) the predictions themselves from all directions, where they were asked for.
        loo_errors: (folds,) for each fold the summed squared error, from all directions, of the texts of the *other*
            folds, each left out of the readout together with its equals; `None` without `loo_groups`.
    """

    ks: tuple[int, ...]
    explained: tuple[float, ...]
    by_text: tuple[int, ...]
    errors: Tensor = field(repr=False)
    ceiling_errors: Tensor = field(repr=False)
    baseline: Tensor = field(repr=False)
    predicted: Tensor = field(repr=False)
    fitted: Tensor | None = field(default=None, repr=False)
    loo_errors: Tensor | None = field(default=None, repr=False)

    @property
    def ceiling(self) -> float:
        """R^2 through all d directions; NaN for constant targets."""
        return r2_of(self.ceiling_errors, self.baseline)

    def errors_at(self, k: int) -> Tensor:
        """Return the errors (n,) through the first k directions; NaN for k = 0.

        Raises:
            NtpsError: If k is not among `by_text`.
        """
        if k == 0:
            return torch.full_like(self.baseline, math.nan)
        return self.errors[_place(k, self.by_text)]

    def at(self, k: int) -> float:
        """Return R^2 through the first k directions; NaN for k = 0 or constant targets.

        Raises:
            NtpsError: If k is not among `ks`.
        """
        return self.explained[_place(k, self.ks)] if k else math.nan


def _place(k: int, ks: tuple[int, ...]) -> int:
    """Return the place of k.

    Raises:
        NtpsError: If there is none.
    """
    if k not in ks:
        raise NtpsError(f"no held-out value was kept for k = {k}; there are {', '.join(map(str, ks))}.")
    return ks.index(k)


def r2_of(errors: Tensor | np.ndarray, baseline: Tensor | np.ndarray) -> float:
    """Return 1 - sum(errors) / sum(baseline); NaN where the baseline makes no error."""
    total = float(baseline.sum())
    return 1 - float(errors.sum()) / total if total > 0 else math.nan


@dataclass(frozen=True, eq=False, kw_only=True)
class Keep:
    """What `held_out_errors` keeps of its readouts beside their R^2.

    Attributes:
        by_text: Those of its `ks` whose errors to keep text by text, all by default. Each takes memory for
            (len(RIDGES), n) numbers, and so do all d directions.
        fitted: Whether to keep predictions, which takes memory for (len(RIDGES), n, c) numbers.
        loo_groups: (n,) equal numbers for equal texts; if given, leave-one-out errors are kept too. They know nothing
            of the fold, so whatever is chosen by them may be judged on it.
    """

    by_text: Sequence[int] | None = None
    fitted: bool = False
    loo_groups: Tensor | None = None


@one_thread_if_narrow
def held_out_errors(
    states: Tensor,
    targets: Tensor,
    fold_of: Tensor,
    V: Tensor | None = None,
    ks: Sequence[int] = (),
    *,
    part: Tensor | None = None,
    separate: bool = False,
    keep: Keep | None = None,
) -> HeldOut:
    """Evaluate readouts of V's first k directions, and of all d, on folds they were not fitted on.

    The penalty is chosen for each fold and each k by the error on the *other* folds, so no text judges a penalty that
    it chose. Targets that are not parts of one (several labels) may each have their own: one that cannot be read then
    costs the others nothing.

    Args:
        states: (n, d) pooled states, any float dtype; they enter memory as float64, once for each fold in turn.
        targets: (n, c) float64, one-hot labels or real targets.
        fold_of: (n,) fold of each text; at least two folds.
        V: (d, r) next-token directions, best first; not needed without `ks`.
        ks: Numbers of directions, each in [1, r].
        part: (n,) whether a text may be trained on; all by default. Every text is judged all the same.
        separate: Whether each target has its own penalty; for one-hot labels, all have one. What is kept by text then
            takes c times the memory.
        keep: What to keep beside R^2; by default errors by text for all of `ks`.

    Raises:
        NtpsError: If there are fewer than two folds.
    """
    keep = keep or Keep()
    n, d, groups = len(states), states.shape[1], keep.loo_groups
    sizes, by_text, folds = sorted({*ks, d}), tuple(ks if keep.by_text is None else keep.by_text), fold_of.unique()
    own = targets.shape[1] if separate else 1
    losses = torch.zeros(len(sizes), len(folds), len(RIDGES), own, dtype=torch.float64)
    errors = {k: torch.zeros(len(RIDGES), n, own, dtype=torch.float64) for k in {*by_text, d}}
    predicted = torch.zeros(len(RIDGES), n, dtype=torch.int32)
    kept = torch.zeros(len(RIDGES), *targets.shape, dtype=torch.float64) if keep.fitted else None
    baseline = torch.zeros(n, dtype=torch.float64)
    loo_errors = None if groups is None else torch.zeros(len(folds), dtype=torch.float64)
    leading = None if V is None else V[:, : max(ks, default=0)]
    for number, split in enumerate(splits(states, fold_of, V=leading, part=part)):
        train, test = targets[split.train], targets[split.test]
        mean = train.mean(0)
        baseline[split.test] = (test - mean).square().sum(1)
        cross = split.cross(train - mean)
        if groups is not None and loo_errors is not None:
            left_out = split.loo_errors(cross, train - mean, groups[split.train])
            loo_errors[number] = _by_penalty(left_out, separate).amin(0).sum()
        for index, k in enumerate(sizes):
            for rows, fitted in split.ridge(cross[:k]):
                values = fitted + mean
                found = _by_penalty((test[rows] - values).square(), separate)
                losses[index, number] += found.sum(1)
                if k in errors:
                    errors[k][:, split.test[rows]] = found
                if k == d:
                    predicted[:, split.test[rows]] = values.argmax(2).int()
                    if kept is not None:
                        kept[:, split.test[rows]] = values
    fold_index = torch.searchsorted(folds, fold_of)
    chosen = {k: best_elsewhere(losses[index]) for index, k in enumerate(sizes)}  # (folds, c or 1)
    total = {k: losses[index].gather(1, chosen[k][:, None]).sum() for index, k in enumerate(sizes)}
    picked = {}
    for k in list(errors):
        picked[k] = errors.pop(k).gather(0, chosen[k][fold_index][None])[0].sum(1)
    if float(baseline.sum()) <= VARIANCE_RTOL * float(targets.square().sum()):
        baseline, picked = torch.zeros_like(baseline), {k: torch.zeros_like(baseline) for k in picked}
    of_text = chosen[d][fold_index][None]  # (1, n, c or 1)
    return HeldOut(
        ks=tuple(ks),
        explained=tuple(r2_of(picked.get(k, total[k]), baseline) for k in ks),
        by_text=by_text,
        errors=torch.stack([picked[k] for k in by_text]) if by_text else baseline.new_empty(0, n),
        ceiling_errors=picked[d],
        baseline=baseline,
        predicted=predicted.gather(0, of_text[..., 0])[0].long(),
        fitted=None if kept is None else kept.gather(0, of_text.expand(-1, *targets.shape))[0],
        loo_errors=loo_errors,
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
    folds = fold_of.unique()
    sums = torch.stack([losses[:, fold_of == fold].sum(1) for fold in folds])
    return best_elsewhere(sums)[torch.searchsorted(folds, fold_of)]


def best_elsewhere(losses: Tensor) -> Tensor:
    """Return for each fold the option with the smallest loss on all other folds.

    Args:
        losses: (folds, options, ...) loss of each option on each fold.

    Returns:
        (folds, ...) option indices.
    """
    fold = torch.arange(len(losses))
    return torch.stack([losses[fold != own].sum(0).argmin(0) for own in fold])


@one_thread_if_narrow
def shuffled_errors(
    states: Tensor,
    fold_of: Tensor,
    targets: Tensor,
    orders: Tensor,
    *,
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
        separate: As for `held_out_errors`.

    Returns:
        (B, folds, 2) float64: summed squared error and summed baseline error on each fold.
    """
    count, n = orders.shape
    folds = len(fold_of.unique())
    losses = torch.zeros(count, folds, len(RIDGES), targets.shape[1] if separate else 1, dtype=torch.float64)
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
            for rows, fitted in split.ridge(cross):
                residual = test[rows] - fitted.reshape(len(RIDGES), -1, *test.shape[1:])
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
        n, d = len(self.train), self.states.shape[1]
        total, squares = torch.zeros(2, d, dtype=torch.float64)
        largest, smallest = torch.full_like(total, -math.inf), torch.full_like(total, math.inf)
        for _, states in self._blocks(self.train):
            largest, smallest = largest.maximum(states.amax(0)), smallest.minimum(states.amin(0))
            total += states.double().sum(0)
        mean = total / n
        for _, states in self._blocks(self.train):
            squares += (states.double() - mean).square().sum(0)
        rounding = torch.finfo(self.states.dtype).eps * torch.maximum(largest.abs(), smallest.abs())
        varies = largest - smallest > 4 * rounding
        return mean, torch.where(varies, 1 / (squares / n).sqrt().where(varies, 1.0), 0.0)

    def _blocks(self, rows: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """Yield places among rows, and their states: memory for copies of all of them is more than a pass takes."""
        step = max(1, _BLOCK // self.states.shape[1])
        for start in range(0, len(rows), step):
            yield slice(start, start + step), self.states[rows[start : start + step]]

    @cached_property
    def _unit(self) -> float:
        """The trace of the training texts' Gram over d: what a penalty of 1 is."""
        return len(self.train) * float((self._mean_and_scale[1] > 0).double().mean())

    @cached_property
    def _rotation(self) -> Tensor | None:
        if self.V is None or not self.V.numel():
            return None
        # V^T (x - mean) = (V / scale)^T z for standardised z; a constant channel says nothing about a text.
        scale = self._mean_and_scale[1]
        return torch.linalg.qr(self.V / scale.where(scale > 0, torch.inf)[:, None], mode="complete")[0]

    def _standardized(self, rows: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """Yield places among rows, and the standardised states (texts, d) of these texts, float64."""
        mean, scale = self._mean_and_scale
        for place, states in self._blocks(rows):
            yield place, (states.double() - mean) * scale

    def _rotated(self, standardized: Tensor) -> Tensor:
        return standardized if self._rotation is None else standardized @ self._rotation

    def coordinates(self, rows: Tensor) -> Tensor:
        """Return the coordinates (len(rows), d) of some texts, float64."""
        result = torch.empty(len(rows), self.states.shape[1], dtype=torch.float64)
        for place, standardized in self._standardized(rows):
            result[place] = self._rotated(standardized)
        return result

    @cached_property
    def _test_coordinates(self) -> Tensor:
        return self.coordinates(self.test)

    @cached_property
    def _gram(self) -> Tensor:
        """(d, d) Gram of the training texts."""
        result = torch.zeros(2 * self.states.shape[1:], dtype=torch.float64)
        for _, rows in self._standardized(self.train):
            result += rows.T @ rows
        return self._rotated(self._rotated(result).T)

    def cross(self, targets: Tensor) -> Tensor:
        """Return Z^T Y (d, m) of the training texts' coordinates Z and their centred targets Y (n_train, m)."""
        result = torch.zeros(targets.shape[1], self.states.shape[1], dtype=torch.float64)
        for place, rows in self._standardized(self.train):
            result += targets[place].T @ rows
        return self._rotated(result).T

    @cached_property
    def _whole(self) -> tuple[Tensor, Tensor]:
        return self._decompose(self.states.shape[1])

    def eigenbasis(self, k: int) -> tuple[Tensor, Tensor]:
        """Decompose the first k coordinates Z_k of the training texts.

        Returns:
            Orthonormal E (k, r) and the eigenvalues (r,) of E^T Z_k^T Z_k E, which is diagonal.
        """
        return self._whole if k == self.states.shape[1] else self._decompose(k)

    def _decompose(self, k: int) -> tuple[Tensor, Tensor]:
        if k <= len(self.train):
            values, basis = torch.linalg.eigh(self._gram[:k, :k])
        else:
            rows = self.coordinates(self.train)[:, :k]
            values, vectors = torch.linalg.eigh(rows @ rows.T)
            basis = rows.T @ vectors / values.clamp_min(torch.finfo(torch.float64).tiny).sqrt()
        keep = values > _EIGENVALUE_RTOL * len(values) * values[-1:].clamp_min(0.0)
        return basis[:, keep], values[keep]

    def ridge(self, cross: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """Yield predictions of the test texts, about the mean, by readouts of the first k coordinates.

        Args:
            cross: The first k rows (k, m) of `cross`.

        Yields:
            Which test texts, and their predictions (len(RIDGES), texts, m).
        """
        k, targets = cross.shape
        basis, values = self.eigenbasis(k)
        projected, weights = basis.T @ cross, self._weights(values)  # (r, m), (len(RIDGES), r)
        step = max(1, _BLOCK // max(1, len(RIDGES) * targets))
        for start in range(0, len(self.test), step):
            rows = slice(start, start + step)
            yield rows, _fitted(self._test_coordinates[rows, :k] @ basis, weights, projected)

    def loo_errors(self, cross: Tensor, targets: Tensor, groups: Tensor) -> Tensor:
        """Return the squared error of each training text by the readout without it and its equals, summed over texts.

        In closed form: with the leverage h of a text (intercept included), m equals with residuals e_1 ... e_m leave
        e_i + h (e_1 + ... + e_m) / (1 - m h) when they are all left out. Means and scales keep them.

        Args:
            cross: (d, c) from `cross`.
            targets: (n_train, c) centred targets.
            groups: (n_train,) equal numbers for equal texts.

        Returns:
            (len(RIDGES), c) float64.
        """
        basis, values = self._whole
        projected, weights = basis.T @ cross, self._weights(values)
        directions = basis if self._rotation is None else self._rotation @ basis
        result = torch.zeros(len(RIDGES), targets.shape[1], dtype=torch.float64)
        step = max(1, _BLOCK // (self.states.shape[1] + result.numel()))
        for rows, group in _whole_groups(groups, step):
            inside = torch.cat([states @ directions for _, states in self._standardized(self.train[rows])])
            leverage = inside.square() @ weights.T + 1 / len(self.train)  # (texts, penalties)
            residuals = targets[rows] - _fitted(inside, weights, projected)
            sizes = group.bincount().double()
            sums = torch.zeros(len(RIDGES), len(sizes), targets.shape[1], dtype=torch.float64)
            sums.index_add_(1, group, residuals)
            left = (1 - sizes[group, None] * leverage).clamp_min(torch.finfo(torch.float64).eps)
            result += (residuals + (leverage / left).T[..., None] * sums[:, group]).square().sum(1)
        return result

    def _weights(self, values: Tensor) -> Tensor:
        """Return 1 / (eigenvalue + penalty) (len(RIDGES), r)."""
        return 1 / (values + self._unit * torch.tensor(RIDGES, dtype=torch.float64)[:, None])


def _fitted(inside: Tensor, weights: Tensor, projected: Tensor) -> Tensor:
    """Return inside @ diag(w) @ projected for each w of `weights`; one wide product is faster than several narrow ones.

    Args:
        inside: (n, r) texts in an eigenbasis.
        weights: (penalties, r).
        projected: (r, m) targets in that basis.

    Returns:
        (penalties, n, m).
    """
    m = projected.shape[1]
    at_once = weights.split(max(1, _BLOCK // max(1, projected.numel())))
    products = [inside @ (some.T[:, :, None] * projected[:, None]).flatten(1) for some in at_once]
    return torch.cat(products, dim=1).unflatten(1, (len(weights), m)).transpose(0, 1)


def _whole_groups(groups: Tensor, step: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield rows of about `step` texts, equal texts (`groups`) together, and the number of each row's group from 0."""
    order = groups.argsort(stable=True)
    _, counts = groups[order].unique_consecutive(return_counts=True)
    block = ((counts.cumsum(0) - 1) // step).repeat_interleave(counts)
    for rows in order.split(block.unique_consecutive(return_counts=True)[1].tolist()):
        yield rows, groups[rows].unique_consecutive(return_inverse=True)[1]
