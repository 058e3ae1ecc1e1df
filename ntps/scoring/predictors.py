"""Predictors judged out of fold: the logistic probe of a layer, TF-IDF of the words, and plain label frequencies.

Real values and several labels have no logistic probe: beside TF-IDF with ridge regression stands their mean.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from ntps._files import Record
from ntps.core.heldout import choose_elsewhere
from ntps.scoring.probes import class_scores, logistic_path, one_thread, standardize
from ntps.scoring.readouts import Readout, share_interval

PROBE_CS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # on standardised states, where weaker penalties cost time and win nothing
TFIDF_CS = (0.1, 1.0, 10.0, 100.0)
TFIDF_ALPHAS = (0.1, 0.3, 1.0, 3.0, 10.0, 100.0, 1000.0)
_SMALLEST = float(np.finfo(np.float32).tiny)
_Features = Callable[[np.ndarray, np.ndarray], tuple[Any, Any]]


@dataclass(frozen=True, kw_only=True)
class Predictor(Record):
    """How well labels are predicted of texts that the predictor was not fitted on.

    Attributes:
        name: What it reads.
        accuracy: Share of texts whose class is predicted right, in [0, 1]; NaN without classes.
        balanced_accuracy: Mean over classes of the share of their texts predicted right, in [0, 1].
        log_loss: Mean of -log of the probability given to the true class, in nats.
        r2: R^2 of its predictions, at most 1; for classes of its probabilities for the one-hot labels, which is a Brier
            skill score.
        interval: 95 % interval of `r2`; see `Readout`.
        accuracy_interval: 95 % interval of `accuracy`; see `share_interval`.
        readout: Its errors, text by text.
        margins: (n,) probability of the true class minus the largest of the others; below 0 for a wrong prediction.
            `None` without classes.
        predicted: (n,) class number predicted for each text; `None` without classes.
    """

    left_out = ("readout", "margins", "predicted")

    name: str
    accuracy: float
    balanced_accuracy: float
    log_loss: float
    r2: float
    interval: tuple[float, float]
    accuracy_interval: tuple[float, float]
    readout: Readout = field(repr=False, compare=False)
    margins: np.ndarray | None = field(default=None, repr=False, compare=False)
    predicted: np.ndarray | None = field(default=None, repr=False, compare=False)


def judge(name: str, probabilities: np.ndarray, labels: np.ndarray, reference: Readout) -> Predictor:
    """Return the scores of out-of-fold probabilities (n, c) for labels (n,).

    Args:
        name: What the classifier reads.
        probabilities: Class probabilities (n, c).
        labels: Class numbers (n,).
        reference: A readout of the same texts, for their baseline errors and groups.
    """
    texts = np.arange(len(labels))
    truth, predicted = probabilities[texts, labels], probabilities.argmax(1)
    others = probabilities.copy()
    others[texts, labels] = -1.0
    accuracy, balanced_accuracy, _ = class_scores(labels, predicted)
    readout = replace(reference, name=name, errors=np.square(probabilities).sum(1) - 2 * truth + 1)
    return Predictor(
        name=name,
        accuracy=accuracy,
        balanced_accuracy=balanced_accuracy,
        log_loss=float(-np.log(np.maximum(truth, _SMALLEST)).mean()),
        r2=readout.r2,
        interval=readout.interval(),
        accuracy_interval=share_interval(accuracy, len(np.unique(reference.groups))),
        readout=readout,
        margins=truth - others.max(1),
        predicted=predicted,
    )


def judge_values(name: str, predicted: np.ndarray, targets: np.ndarray, reference: Readout) -> Predictor:
    """Return the scores of out-of-fold predictions (n, c) of targets (n, c) that are not classes; see `judge`."""
    readout = replace(reference, name=name, errors=np.square(predicted - targets).sum(1))
    return Predictor(
        name=name,
        accuracy=math.nan,
        balanced_accuracy=math.nan,
        log_loss=math.nan,
        r2=readout.r2,
        interval=readout.interval(),
        accuracy_interval=(math.nan, math.nan),
        readout=readout,
    )


def means(targets: np.ndarray, fold_of: np.ndarray) -> np.ndarray:
    """Return for each text the mean target (n, c) of the other folds: of one-hot labels, their frequencies."""
    result = np.empty_like(targets)
    for fold in np.unique(fold_of):
        result[fold_of == fold] = targets[fold_of != fold].mean(0)
    return result


def probe_layers(
    states: Callable[[int], np.ndarray], labels: np.ndarray, fold_of: np.ndarray, layer_of: np.ndarray
) -> np.ndarray:
    """Return out-of-fold probabilities (n, c) of logistic probes on standardised states.

    In each fold the probe reads the layer that was chosen without it, and its C is the one with the smallest log loss
    on the other folds.

    Args:
        states: Returns the states (n, d) of a layer.
        labels: Class numbers (n,).
        fold_of: Fold of each text (n,).
        layer_of: Layer of each text (n,), equal within a fold.
    """
    result = np.empty((len(labels), int(labels.max()) + 1))
    for layer in np.unique(layer_of):
        features = states(int(layer))

        def standardized(train: np.ndarray, test: np.ndarray, x: np.ndarray = features) -> tuple[Any, Any]:
            return standardize(x[train], x[test])

        rows = layer_of == layer
        result[rows] = _logistic(standardized, labels, fold_of, PROBE_CS)[rows]
    return result


def tfidf(texts: Sequence[str], labels: np.ndarray, fold_of: np.ndarray) -> np.ndarray:
    """Return out-of-fold probabilities (n, c) of logistic regression on TF-IDF of the words of texts (n,)."""
    return _logistic(_words(texts), labels, fold_of, TFIDF_CS)


def tfidf_values(texts: Sequence[str], targets: np.ndarray, fold_of: np.ndarray) -> np.ndarray:
    """Return out-of-fold predictions (n, c) of targets (n, c) by ridge regression on TF-IDF of the words."""
    from sklearn.linear_model import Ridge

    def path(x: Any, y: np.ndarray, test: Any) -> Iterator[np.ndarray]:
        for alpha in TFIDF_ALPHAS:
            yield Ridge(alpha=alpha).fit(x, y).predict(test).reshape(-1, targets.shape[1])

    return _out_of_fold(_words(texts), targets, fold_of, path, lambda fitted: np.square(fitted - targets))


def _words(texts: Sequence[str]) -> _Features:
    """Return what gives the TF-IDF of the words of training and test texts."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    def vectorized(train: np.ndarray, test: np.ndarray) -> tuple[Any, Any]:
        vectorizer = TfidfVectorizer(sublinear_tf=True, token_pattern=r"\w+", dtype=np.float32)
        try:
            return vectorizer.fit_transform([texts[i] for i in train]), vectorizer.transform([texts[i] for i in test])
        except ValueError:  # no training text has a word, so there is nothing to tell texts apart by
            return np.zeros((len(train), 1)), np.zeros((len(test), 1))

    return vectorized


def _logistic(features: _Features, labels: np.ndarray, fold_of: np.ndarray, cs: Sequence[float]) -> np.ndarray:
    """Return probabilities (n, c) of logistic regression, C chosen for each fold by the log loss on the others."""
    texts, n_classes = np.arange(len(labels)), int(labels.max()) + 1
    return _out_of_fold(
        features,
        labels,
        fold_of,
        lambda x, y, test: logistic_path(x, y, cs, test, n_classes),
        lambda probabilities: -np.log(np.maximum(probabilities[:, texts, labels], _SMALLEST)),
    )


def _out_of_fold(
    features: _Features,
    labels: np.ndarray,
    fold_of: np.ndarray,
    path: Callable[[Any, np.ndarray, Any], Iterator[np.ndarray]],
    loss: Callable[[np.ndarray], np.ndarray],
) -> np.ndarray:
    """Return predictions (n, c), the penalty chosen for each fold by the loss on the others.

    Args:
        features: Returns features of training and test texts.
        labels: (n, ...) what is predicted.
        fold_of: (n,) fold of each text.
        path: Takes features and labels of training texts and features of test texts, and yields predictions of these,
            one for each penalty.
        loss: Returns the loss of predictions (penalties, n, c): (penalties, n), or (penalties, n, c) where each of c
            targets has its own penalty.
    """
    by_fold = []
    for fold in np.unique(fold_of):
        train, test = np.flatnonzero(fold_of != fold), np.flatnonzero(fold_of == fold)
        with one_thread():
            x_train, x_test = features(train, test)
            by_fold.append((test, np.stack(list(path(x_train, labels[train], x_test)))))
    first = by_fold[0][1]
    predictions = np.empty((len(first), len(labels), *first.shape[2:]))
    for test, fitted in by_fold:
        predictions[:, test] = fitted
    losses = loss(predictions)
    losses = losses.reshape(*losses.shape, *[1] * (predictions.ndim - losses.ndim))
    chosen = choose_elsewhere(torch.from_numpy(losses), torch.from_numpy(fold_of)).numpy()
    return np.take_along_axis(predictions, chosen[None], 0)[0]
