"""What is said of a model on a task as a whole: its best layer, what the labels are compared with, and more texts."""

from collections.abc import Sequence

import numpy as np
import torch

from ntps.models import Representations
from ntps.scoring.classifiers import Classifier, frequencies, judge, probe_layers, tfidf
from ntps.scoring.labels import Labels
from ntps.scoring.learning import LearningCurve, learning_curve
from ntps.scoring.nulls import LayerNull, choice_p
from ntps.scoring.readouts import LayerChoice, Readout, choose_layer
from ntps.scoring.results import Best


def best_layer(
    layers: Sequence[int], readouts: Sequence[Readout], fold_of: np.ndarray, nulls: Sequence[LayerNull]
) -> tuple[Best | None, LayerChoice]:
    """Return the best layer, or `None` where no layer reads the labels better than their frequencies.

    Args:
        layers: Layer numbers.
        readouts: One per layer, through all directions.
        fold_of: (n,) fold of each text.
        nulls: One per layer, or none.
    """
    choice = choose_layer(layers, readouts, fold_of)
    if not choice.holds:
        return None, choice
    best = Best(
        layer=choice.layer,
        tied=choice.tied,
        r2=choice.readout.r2,
        interval=choice.readout.interval(),
        p_value=choice_p(nulls) if nulls else None,
    )
    return best, choice


def baselines_of(
    representations: Representations, labels: Labels, fold_of: np.ndarray, choice: LayerChoice, *, seed: int
) -> tuple[tuple[Classifier, ...], LearningCurve | None]:
    """Return the logistic probe of the best layer with its baselines, and the best layer's learning curve.

    Args:
        representations: From `ntps.collect`.
        labels: From `labels_of`.
        fold_of: (n,) fold of each labelled text.
        choice: From `best_layer`.
        seed: Seed of the learning curve.
    """
    values, reference = labels.values, choice.readout

    def states(layer: int) -> np.ndarray:
        return labels.states(representations, layer)

    rows = [("logistic probe", probe_layers(states, values, fold_of, choice.by_fold))]
    if representations.task is not None:
        texts = representations.task.texts
        of_labels = [texts[i] for i in representations.text_index[labels.rows]]
        rows.append(("TF-IDF", tfidf(of_labels, values, fold_of)))
    rows.append(("label frequencies", frequencies(values, fold_of)))
    classifiers = tuple(judge(name, probabilities, values, reference) for name, probabilities in rows)
    learning = learning_curve(
        torch.from_numpy(states(choice.layer)), labels.one_hot, torch.from_numpy(fold_of), labels.groups, seed=seed
    )
    return classifiers, learning
