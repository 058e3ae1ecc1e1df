"""Classifiers out of fold: frequencies, words and probes against scikit-learn by hand, C chosen by other folds."""

import warnings

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score, log_loss

from ntps.finetune.head import fit_head
from ntps.scoring import assign_folds, linear_probe
from ntps.scoring import predictors as module
from ntps.scoring.predictors import PROBE_CS, TFIDF_CS, judge, means, probe_layers, tfidf
from ntps.scoring.probes import knn_accuracy, training_probe
from ntps.scoring.readouts import Readout


def reference(labels, fold_of, groups=None):
    one_hot = np.eye(labels.max() + 1)[labels]
    baseline = np.empty(len(labels))
    for fold in np.unique(fold_of):
        baseline[fold_of == fold] = ((one_hot[fold_of == fold] - one_hot[fold_of != fold].mean(0)) ** 2).sum(1)
    groups = np.arange(len(labels)) if groups is None else groups
    return Readout(name="a readout", errors=baseline, baseline=baseline, groups=groups, origin="here")


@pytest.fixture(scope="module")
def problem():
    """(labels, folds, states of layers 0 and 3): three unequal classes, of which layer 3 says more."""
    rng = np.random.default_rng(0)
    labels = rng.permutation(np.repeat([0, 1, 2], [60, 40, 20]))
    fold_of = assign_folds(labels, 4)
    means = rng.normal(size=(3, 8))
    return labels, fold_of, {layer: rng.normal(size=(120, 8)) * 3 + share * means[labels]
                             for layer, share in ((0, 0.5), (3, 4.0))}  # fmt: skip


# Scores


def test_label_frequencies_say_the_majority_and_have_no_r2(problem):
    labels, fold_of, _ = problem
    probabilities = means(np.eye(3)[labels], fold_of)
    for fold in range(4):
        expected = np.bincount(labels[fold_of != fold]) / (fold_of != fold).sum()
        assert np.allclose(probabilities[fold_of == fold], expected)
    found = judge("label frequencies", probabilities, labels, reference(labels, fold_of))
    assert found.name == "label frequencies"
    assert (found.accuracy, found.balanced_accuracy) == pytest.approx((0.5, 1 / 3))
    assert found.r2 == pytest.approx(0, abs=1e-12) and found.interval == pytest.approx((0, 0), abs=1e-9)
    shares = np.array([0.5, 1 / 3, 1 / 6])
    assert found.log_loss == pytest.approx(-(shares * np.log(shares)).sum(), abs=0.01)


def test_scores_against_their_definitions(problem):
    labels, fold_of, _ = problem
    probabilities = np.random.default_rng(1).dirichlet(np.ones(3), size=120)
    groups = np.arange(120) // 2
    found = judge("guesses", probabilities, labels, reference(labels, fold_of, groups))
    assert found.accuracy == pytest.approx(np.mean(probabilities.argmax(1) == labels))
    assert found.balanced_accuracy == pytest.approx(balanced_accuracy_score(labels, probabilities.argmax(1)))
    assert found.log_loss == pytest.approx(log_loss(labels, probabilities))
    brier = ((probabilities - np.eye(3)[labels]) ** 2).sum(1)
    assert np.allclose(found.readout.errors, brier)
    assert found.r2 == pytest.approx(1 - brier.sum() / found.readout.baseline.sum())
    assert found.interval == found.readout.interval()
    assert found.readout.groups is groups and found.readout.origin == "here"
    low, high = found.accuracy_interval
    assert 0 < low < found.accuracy < high < 1
    assert np.array_equal(found.margins > 0, found.predicted == labels)
    others = np.where(np.eye(3)[labels] > 0, -1.0, probabilities).max(1)
    assert np.allclose(found.margins, probabilities[np.arange(120), labels] - others)
    names = {"name", "accuracy", "balanced_accuracy", "log_loss", "r2", "interval", "accuracy_interval"}
    assert found.to_dict().keys() == names


def test_a_true_class_of_probability_nought_has_a_finite_loss():
    labels, fold_of = np.array([0, 1, 0, 1]), np.array([0, 0, 1, 1])
    found = judge("wrong", np.eye(2)[1 - labels], labels, reference(labels, fold_of))
    assert 80 < found.log_loss < 100
    assert (found.accuracy, found.r2) == (0, -3)


# Probes


def by_hand(states, labels, train, test, c):
    mean, deviation = states[train].mean(0), states[train].std(0)
    model = LogisticRegression(C=c, tol=1e-8, max_iter=5000).fit((states[train] - mean) / deviation, labels[train])
    return model.predict_proba((states[test] - mean) / deviation)


def by_hand_of_all(states, labels, fold_of, cs):
    """(C, text) probabilities of classes."""
    result = np.empty((len(cs), len(labels), labels.max() + 1))
    for fold in np.unique(fold_of):
        for index, c in enumerate(cs):
            result[index, fold_of == fold] = by_hand(states, labels, fold_of != fold, fold_of == fold, c)
    return result


def test_a_probe_is_scikit_learns_with_c_chosen_on_the_other_folds(problem):
    labels, fold_of, states = problem
    found = probe_layers(states.__getitem__, labels, fold_of, np.full(120, 3))
    every = by_hand_of_all(states[3], labels, fold_of, PROBE_CS)
    losses = -np.log(every[:, np.arange(120), labels])
    for fold in range(4):
        inside = fold_of == fold
        chosen = losses[:, ~inside].sum(1).argmin()
        assert np.allclose(found[inside], every[chosen, inside], atol=2e-3)
    assert np.allclose(found.sum(1), 1)


def test_labels_of_a_fold_do_not_choose_its_c(problem, monkeypatch):
    """The second C serves the first fold, and all texts together; the first C serves the folds that choose for it."""
    _, fold_of, states = problem

    def path(x, y, cs, test, n_classes):
        for row in ([0.999, 0.001], [0.9, 0.1]):
            yield np.tile(row, (test.shape[0], 1))

    monkeypatch.setattr(module, "logistic_path", path)
    monkeypatch.setattr(module, "PROBE_CS", (1.0, 2.0))
    labels = np.where(fold_of == 0, 1, 0)
    found = probe_layers(states.__getitem__, labels, fold_of, np.full(120, 3))
    assert (found[fold_of == 0, 1] == 0.001).all() and (found[fold_of != 0, 1] == 0.1).all()


def test_in_each_fold_the_layer_chosen_without_it_is_read(problem):
    labels, fold_of, states = problem
    layer_of = np.where(fold_of == 2, 0, 3)
    mixed = probe_layers(states.__getitem__, labels, fold_of, layer_of)
    first, last = (probe_layers(states.__getitem__, labels, fold_of, np.full(120, layer)) for layer in (0, 3))
    assert np.array_equal(mixed[fold_of == 2], first[fold_of == 2])
    assert np.array_equal(mixed[fold_of != 2], last[fold_of != 2])
    assert not np.allclose(first, last, atol=0.05)
    r2 = [judge("p", each, labels, reference(labels, fold_of)).r2 for each in (first, last)]
    assert r2[1] > 0.2 > r2[0] > -0.1


@pytest.mark.parametrize("change", [lambda x: x * 1e4 - 7, lambda x: x.astype(np.float16)], ids=["units", "float16"])
def test_units_and_precision_do_not_matter_to_a_probe(problem, change):
    labels, fold_of, states = problem
    plain = probe_layers(states.__getitem__, labels, fold_of, np.full(120, 3))
    other = probe_layers(lambda layer: change(states[layer]), labels, fold_of, np.full(120, 3))
    assert np.allclose(plain, other, atol=0.02)


# Words


def texts_of(labels, *, telling=True, seed=0):
    rng = np.random.default_rng(seed)
    rest = [f"w{number}" for number in range(30)]
    words = ["Good", "bad", "odd"]
    return [" ".join([*rng.choice(rest, 6), words[label if telling else 0], "."]) for label in labels]


def test_a_telling_word_tells(problem):
    labels, fold_of, _ = problem
    found = judge("TF-IDF", tfidf(texts_of(labels), labels, fold_of), labels, reference(labels, fold_of))
    assert found.accuracy > 0.98 and found.r2 > 0.9 and found.log_loss < 0.15
    none = tfidf(texts_of(labels, telling=False), labels, fold_of)
    assert judge("TF-IDF", none, labels, reference(labels, fold_of)).r2 < 0.1


def test_words_of_one_letter_count_and_the_order_of_words_does_not(problem):
    labels, fold_of, _ = problem
    letters = [text.replace("Good", "a").replace("bad", "b").replace("odd", "c") for text in texts_of(labels)]
    found = tfidf(letters, labels, fold_of)
    assert (found.argmax(1) == labels).mean() > 0.98
    turned = [" ".join(reversed(text.split())) for text in letters]
    assert np.allclose(tfidf(turned, labels, fold_of), found, atol=1e-3)


def test_texts_without_a_word_are_read_by_frequencies(problem):
    labels, fold_of, _ = problem
    found = tfidf(["!? ..."] * 120, labels, fold_of)
    assert np.allclose(found, means(np.eye(3)[labels], fold_of), atol=0.01)
    some = ["!" if fold < 3 else "word" for fold in fold_of]  # words in the judged fold alone
    assert np.isfinite(tfidf(some, labels, fold_of)).all()


def test_tfidf_is_scikit_learns_on_one_fold(problem, monkeypatch):
    from sklearn.feature_extraction.text import TfidfVectorizer

    labels, fold_of, _ = problem
    texts = texts_of(np.random.default_rng(5).permutation(labels))
    monkeypatch.setattr(module, "TFIDF_CS", TFIDF_CS[1:2])
    found = tfidf(texts, labels, fold_of)
    train, test = np.flatnonzero(fold_of != 1), np.flatnonzero(fold_of == 1)
    vectorizer = TfidfVectorizer(sublinear_tf=True, token_pattern=r"\w+")
    x = vectorizer.fit_transform([texts[i] for i in train])
    model = LogisticRegression(C=1.0, tol=1e-8, max_iter=5000).fit(x, labels[train])
    assert np.allclose(model.predict_proba(vectorizer.transform([texts[i] for i in test])), found[test], atol=2e-3)


def test_a_class_that_no_training_text_has():
    labels, fold_of = np.array([0, 1, 0, 1, 0, 1, 2]), np.array([0, 0, 1, 1, 0, 1, 1])
    states = np.random.default_rng(0).normal(size=(7, 3))
    found = probe_layers(lambda _: states, labels, fold_of, np.zeros(7, dtype=int))
    assert found.shape == (7, 3) and found[6, 2] == 0 and np.allclose(found.sum(1), 1)
    assert np.isfinite(judge("p", found, labels, reference(labels, fold_of)).log_loss)


def test_many_classes_of_few_texts_are_no_reason_to_warn():
    """scikit-learn takes more classes than half the texts for a regression, and says so at every fit."""
    rng = np.random.default_rng(0)
    labels = np.concatenate([np.arange(14), np.zeros(6, dtype=int)])
    fold_of, x = assign_folds(labels, 3), rng.normal(size=(20, 4))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert tfidf([f"word{label}" for label in labels], labels, fold_of).shape == (20, 14)
        assert probe_layers(lambda _: x, labels, fold_of, np.zeros(20, dtype=int)).shape == (20, 14)
        assert 0 <= linear_probe(x, labels).accuracy <= 1 and 0 <= knn_accuracy(x, labels) <= 1
        assert training_probe(x, labels)
        assert fit_head(x, labels, 14)
