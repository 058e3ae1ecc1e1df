"""From which block on adapters are worth having: where the layer profile says that labels get lost."""

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ntps.models import collect
from ntps.models.processes import Processes
from ntps.scoring import Readout, assign_folds, labels_of
from ntps.scoring.headline import layer_readouts
from ntps.scoring.readouts import compare_readouts

if TYPE_CHECKING:
    from ntps.models.language_model import LanguageModel
    from ntps.tasks import Task

logger = logging.getLogger(__name__)


def start_of_loss(model: "LanguageModel", train: "Task", *, max_length: int | None, seed: int) -> int:
    """Return the first block whose output reads the training texts' labels worse than an earlier layer.

    Args:
        model: From `ntps.load_model`.
        train: Labelled texts.
        max_length: As in `ntps.collect`.
        seed: Seed of the folds on which layers are judged.

    Returns:
        The block, counted from 0; 0 too where the last layer reads the labels as well as any.

    Raises:
        NtpsError: If a text has no token.
    """
    representations, processes = collect(model, train, max_length=max_length, progress=False), Processes(model.device)
    labels, last = labels_of(representations), representations.layers[-1]

    def choose() -> int:
        fold_of = assign_folds(labels.values, groups=labels.groups, seed=seed)
        if fold_of is None:  # nothing to judge layers on
            return last
        return last_of_the_best(layer_readouts(representations, labels, fold_of, origin=""))

    kept = processes.of_main(choose)
    start, found = kept, f"labels get lost after layer {kept} of {last}"
    if kept == last:
        start, found = 0, f"no layer reads the labels better than layer {last}"
    if processes.is_main:
        where = f"blocks from {start} on" if start else "all blocks"
        logger.info("%s; adapters go to %s.", found, where)
    return start


def last_of_the_best(readouts: Sequence[Readout]) -> int:
    """Return the last layer that cannot be told from the best one.

    Args:
        readouts: One per layer from 0 on, of the same texts.
    """
    best = max(readouts, key=lambda readout: readout.r2)
    return max(layer for layer, readout in enumerate(readouts) if compare_readouts(best, readout).tie)
