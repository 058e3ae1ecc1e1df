"""What is said of a model on a task as a whole: its best layer, what the labels are compared with, and more texts."""

from collections.abc import Sequence

import numpy as np
import torch

from ntps.core import held_out_errors
from ntps.models import Representations
from ntps.scoring.labels import Labels
from ntps.scoring.learning import LearningCurve, learning_curve
from ntps.scoring.nulls import LayerNull, choice_p
from ntps.scoring.predictors import Predictor, judge, judge_values, means, probe_layers, tfidf, tfidf_values
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


def layer_readouts(
    representations: Representations, labels: Labels, fold_of: np.ndarray, *, origin: str
) -> list[Readout]:
    """Return one readout per layer, through all directions.

    Args:
        representations: From `ntps.collect`, of any model.
        labels: From `labels_of`.
        fold_of: (n,) fold of each labelled text.
        origin: Fingerprint of texts, labels and folds.
    """
    folds = torch.from_numpy(fold_of)
    readouts = []
    for layer in representations.layers:
        states = torch.from_numpy(labels.states(representations, layer))
        none = torch.zeros(states.shape[1], 0, dtype=torch.float64)
        held_out = held_out_errors(states, labels.targets, folds, none, ())
        readouts.append(
            Readout(
                name=f"layer {layer}",
                errors=held_out.ceiling_errors.numpy(),
                baseline=held_out.baseline.numpy(),
                groups=labels.groups,
                origin=origin,
            )
        )
    return readouts


def probe_of(representations: Representations, labels: Labels, fold_of: np.ndarray, choice: LayerChoice) -> Predictor:
    """Return the logistic probe of the best layer, chosen in each fold without that fold; arguments as `curve_of`."""
    probabilities = probe_layers(
        lambda layer: labels.states(representations, layer), labels.values, fold_of, choice.by_fold
    )
    return judge("logistic probe", probabilities, labels.values, choice.readout)


def baselines_of(
    texts: Sequence[str] | None, labels: Labels, fold_of: np.ndarray, reference: Readout
) -> tuple[Predictor, ...]:
    """Return what needs no model: TF-IDF of the words, and the label frequencies or the mean of real values.

    Args:
        texts: The labelled texts, or `None` where they are not at hand.
        labels: From `labels_of`.
        fold_of: (n,) fold of each labelled text.
        reference: A readout of the same texts.
    """
    targets = labels.targets.numpy()
    constant = means(targets, fold_of)
    if labels.regression:
        values = targets[:, 0]
        rows = [] if texts is None else [("TF-IDF", tfidf_values(texts, values, fold_of))]
        rows.append(("the mean", constant[:, 0]))
        return tuple(judge_values(name, predicted, values, reference) for name, predicted in rows)
    rows = [] if texts is None else [("TF-IDF", tfidf(texts, labels.values, fold_of))]
    rows.append(("label frequencies", constant))
    return tuple(judge(name, probabilities, labels.values, reference) for name, probabilities in rows)


def curve_of(
    representations: Representations, labels: Labels, fold_of: np.ndarray, choice: LayerChoice, *, seed: int
) -> LearningCurve | None:
    """Return the learning curve of the best layer.

    Args:
        representations: From `ntps.collect`.
        labels: From `labels_of`.
        fold_of: (n,) fold of each labelled text.
        choice: From `best_layer`.
        seed: Seed of the order in which texts are added.
    """
    states = torch.from_numpy(labels.states(representations, choice.layer))
    return learning_curve(states, labels.targets, torch.from_numpy(fold_of), labels.groups, seed=seed)
