"""The learning curve of a readout: R^2 after an eighth, a quarter, half and all of the training texts, and after twice.

All points are judged on the same held-out texts; a smaller training set is part of every larger one, with every class
in proportion (of several labels, the rarest that a text has; texts with real values are added at random).
"""

import math
from dataclasses import dataclass, replace

import numpy as np
import torch

from ntps._files import Record
from ntps.core import held_out_errors
from ntps.scoring.readouts import Readout, compare_readouts

FRACTIONS = (0.125, 0.25, 0.5, 1.0)
# A doubling of the texts gains about this share of what the doubling before it gained; the error of the share is
# its spread over tasks and layers (`python -m benchmarks.learning_curves`).
SHRINKAGE = 0.6
SHRINKAGE_ERROR = 0.3


@dataclass(frozen=True, kw_only=True)
class LearningCurve(Record):
    """R^2 on held-out texts by number of training texts.

    Attributes:
        n: Mean number of training texts of each point.
        r2: Held-out R^2 of each point, all judged on the same texts.
        standard_error: Standard error of each.
        twice: R^2 to expect of twice the largest number of training texts; NaN unless the interval of the last point is
            above 0: labels that cannot be read yet give no trend.
        interval: 95 % interval of `twice`.
        gain_interval: 95 % interval of what twice the texts add to the last point; narrower than `interval`, as all
            points are judged on the same texts.
    """

    n: tuple[int, ...]
    r2: tuple[float, ...]
    standard_error: tuple[float, ...]
    twice: float
    interval: tuple[float, float]
    gain_interval: tuple[float, float]


def learning_curve(
    states: torch.Tensor,
    targets: torch.Tensor,
    fold_of: torch.Tensor,
    groups: np.ndarray,
    *,
    separate: bool = False,
    seed: int = 0,
) -> LearningCurve | None:
    """Return the learning curve of a readout of all directions of one layer.

    There is none where an eighth of the texts leaves a fold without one to be fitted on.

    Args:
        states: (n, d) pooled states.
        targets: (n, c) as in `Labels`.
        fold_of: (n,) fold of each text.
        groups: (n,) equal numbers for equal texts.
        separate: As for `ntps.core.held_out_errors`.
        seed: Seed of the order in which texts are added.
    """
    position = _positions(targets.argmax(1).numpy(), groups, seed)
    parts = [torch.from_numpy(position < fraction) for fraction in FRACTIONS]
    if not all((parts[0] & (fold_of != fold)).any() for fold in fold_of.unique()):
        return None
    sizes, errors = [], []
    for part in parts:
        held_out = held_out_errors(states, targets, fold_of, part=part, separate=separate)
        errors.append(held_out.ceiling_errors.numpy())
        sizes.append(round(float(part.sum()) * (1 - 1 / len(fold_of.unique()))))
    # Judged against the label frequencies of all training texts, so that the points compare.
    last = Readout(name="all", errors=errors[-1], baseline=held_out.baseline.numpy(), groups=groups)
    curve = [replace(last, errors=each) for each in errors]
    # Half of the texts read the labels better than all by chance only, so a loss is no trend.
    gain = max(curve[-1].r2 - curve[-2].r2, 0.0)
    twice = curve[-1].r2 + SHRINKAGE * gain if curve[-1].interval()[0] > 0 else math.nan
    half = 1.96 * math.hypot(curve[-1].standard_error, SHRINKAGE_ERROR * gain)
    paired = compare_readouts(curve[-1], curve[-2]).standard_error
    half_gain = 1.96 * math.hypot(paired, SHRINKAGE_ERROR * gain)
    added = math.nan if math.isnan(twice) else SHRINKAGE * gain
    return LearningCurve(
        n=tuple(sizes),
        r2=tuple(point.r2 for point in curve),
        standard_error=tuple(point.standard_error for point in curve),
        twice=np.minimum(twice, 1.0).item(),
        interval=(twice - half, np.minimum(twice + half, 1.0).item()),
        gain_interval=(added - half_gain, added + half_gain),
    )


def _positions(labels: np.ndarray, groups: np.ndarray, seed: int) -> np.ndarray:
    """Return the position (n,) of each text in [0, 1) among those of its class, shuffled; equal texts stay together."""
    _, first, group = np.unique(groups, return_index=True, return_inverse=True)
    order = np.random.default_rng(seed).permutation(len(first))
    position = np.empty(len(first))
    for label in np.unique(labels):
        members = order[labels[first][order] == label]
        position[members] = (np.arange(len(members)) + 0.5) / len(members)
    return position[group]
