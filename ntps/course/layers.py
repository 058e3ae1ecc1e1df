"""One layer of a model on a task, solved without ceremony."""

import torch

from ntps.core import Solved, solve_layer
from ntps.models import Representations
from ntps.scoring import labels_of


def solve(representations: Representations, layer: int) -> Solved:
    """Return U, V and every score of one layer, against the labels of the task that the model has read.

    Args:
        representations: From `ntps.collect`, of a task.
        layer: Layer number.

    Raises:
        NtpsError: If the representations have no labels or no such layer.
    """
    labels = labels_of(representations)
    states = torch.from_numpy(labels.states(representations, layer))
    return solve_layer(states, labels.targets, representations.moments(layer))
