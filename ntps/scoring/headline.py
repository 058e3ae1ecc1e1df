"""What is said of a model on a task as a whole: its best layer, what the labels are compared with, and more texts."""

from collections.abc import Sequence
from dataclasses import replace
from typing import cast

import numpy as np
import torch

from ntps.core import Keep, held_out_errors
from ntps.core.threads import several_at_once
from ntps.models import Representations
from ntps.scoring.labels import Labels
from ntps.scoring.learning import LearningCurve, learning_curve
from ntps.scoring.nulls import LayerNull, choice_p
from ntps.scoring.predictors import Predictor, judge, judge_values, means, probe_layers, tfidf, tfidf_values
from ntps.scoring.readouts import LayerChoice, Readout, choose_layer, share_interval
from ntps.scoring.results import Best, LabelValue


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
    groups = torch.from_numpy(labels.groups) if len(representations.layers) > 1 else None  # what a layer is chosen by

    def read(layer: int) -> Readout:
        states = torch.from_numpy(labels.states(representations, layer))
        separate = labels.kind == "multilabel"
        held_out = held_out_errors(states, labels.targets, folds, separate=separate, keep=Keep(loo_groups=groups))
        return Readout(
            name=f"layer {layer}",
            errors=held_out.ceiling_errors.numpy(),
            baseline=held_out.baseline.numpy(),
            groups=labels.groups,
            origin=origin,
            loo_errors=held_out.loo_errors,
        )

    return list(several_at_once(read, representations.layers, bytes_each=labels.layer_memory(representations)))


def probe_of(representations: Representations, labels: Labels, fold_of: np.ndarray, choice: LayerChoice) -> Predictor:
    """Return the logistic probe of the best layer, chosen in each fold without that fold; arguments as `curve_of`."""
    probabilities = probe_layers(
        lambda layer: labels.states(representations, layer), labels.values, fold_of, choice.by_fold
    )
    return judge("logistic probe", probabilities, labels.values, choice.readout)


def baselines_of(
    texts: Sequence[str] | None, labels: Labels, fold_of: np.ndarray, reference: Readout
) -> tuple[Predictor, ...]:
    """Return what needs no model: TF-IDF of the words, and label frequencies or the mean of real values.

    Args:
        texts: The labelled texts, or `None` where they are not at hand.
        labels: From `labels_of`.
        fold_of: (n,) fold of each labelled text.
        reference: A readout of the same texts.
    """
    targets, classes = labels.targets.numpy(), labels.kind == "classification"
    rows = [("the mean" if labels.kind == "regression" else "label frequencies", means(targets, fold_of))]
    if texts is not None:
        words = tfidf(texts, labels.values, fold_of) if classes else tfidf_values(texts, targets, fold_of)
        rows.insert(0, ("TF-IDF", words))
    if classes:
        return tuple(judge(name, probabilities, labels.values, reference) for name, probabilities in rows)
    return tuple(judge_values(name, predicted, targets, reference) for name, predicted in rows)


def predictions_of(
    representations: Representations, labels: Labels, fold_of: np.ndarray, choice: LayerChoice
) -> np.ndarray:
    """Return what the readout of the best layer, chosen in each fold without that fold, predicts: targets (n, c).

    Arguments as `curve_of`.
    """
    targets, folds = labels.targets, torch.from_numpy(fold_of)
    fitted = torch.empty_like(targets)
    for layer in np.unique(choice.by_fold):
        states = torch.from_numpy(labels.states(representations, int(layer)))
        separate = labels.kind == "multilabel"
        found = held_out_errors(states, targets, folds, separate=separate, keep=Keep(fitted=True)).fitted
        rows = torch.from_numpy(choice.by_fold == layer)
        fitted[rows] = cast(torch.Tensor, found)[rows]
    return fitted.numpy()


def label_values(
    predicted: np.ndarray, labels: Labels, fold_of: np.ndarray, choice: LayerChoice
) -> tuple[LabelValue, ...]:
    """Return how the readout of the best layer predicts each of several labels.

    Args:
        predicted: (n, n_labels) from `predictions_of`.
        labels: From `labels_of`.
        fold_of: (n,) fold of each labelled text.
        choice: From `best_layer`.
    """
    targets = labels.targets.numpy()
    errors, baseline = (np.square(targets - each) for each in (predicted, means(targets, fold_of)))
    right = ((labels.in_units(predicted) > 0.5) == labels.values).mean(0)
    frequency, n_different = labels.values.mean(0), len(np.unique(labels.groups))
    result = []
    for index, name in enumerate(labels.classes):
        readout = replace(choice.readout, name=name, errors=errors[:, index], baseline=baseline[:, index])
        share = float(right[index])
        result.append(
            LabelValue(
                name=name,
                r2=readout.r2,
                interval=readout.interval(),
                accuracy=share,
                accuracy_interval=share_interval(share, n_different),
                majority_rate=float(max(frequency[index], 1 - frequency[index])),
                frequency=float(frequency[index]),
            )
        )
    return tuple(result)


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
    separate = labels.kind == "multilabel"
    return learning_curve(
        states, labels.targets, torch.from_numpy(fold_of), labels.groups, separate=separate, seed=seed
    )
