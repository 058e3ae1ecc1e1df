"""Several labels of 0 and 1 read together: their mean R², each label by hand, what noise reads, what has no meaning."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from helpers import naive
from helpers.problems import make_problem, representations_of, solve

import ntps
from ntps.core.heldout import RIDGES
from ntps.errors import NtpsError
from ntps.report import write_report
from ntps.scoring import ScoreSettings, assign_folds, labels_of, layer_null, score_layers
from ntps.scoring.nulls import shuffled_orders
from ntps.scoring.predictors import tfidf_values
from ntps.tasks import LabelColumn, Task

NAMES = ("one", "two", "rare", "noise")


@pytest.fixture(scope="module")
def made():
    """Two layers, of which the second says the first three labels, the third of them being rare; and the labels."""
    rng, n = np.random.default_rng(0), 240
    values = (rng.random((n, 4)) < [0.5, 0.3, 0.06, 0.5]).astype(int)
    problem = make_problem(1, n=n, d=8, c=2, signal=0.0)
    means = rng.normal(size=(3, 8)) * [[0.4], [0.4], [1.5]]
    texts = [h + row[:3] @ means for h, row in zip(problem.texts, values, strict=True)]
    representations = representations_of(problem, problem.texts, texts)
    task = Task.of("several", representations.task.texts, values, NAMES)
    return dataclasses.replace(representations, task=task), values, texts


@pytest.fixture(scope="module")
def result(made):
    return ntps.score(made[0], permutations=9)


def standardized(values):
    return (values - values.mean(0)) / values.std(0)


def test_a_label_is_read_as_by_a_readout_refitted_by_hand(made, result):
    """Each label has its own penalty, chosen on the other folds."""
    _, values, texts = made
    targets, fold_of, x = standardized(values), assign_folds(values), naive.pooled(texts)
    assert result.choice.by_fold.tolist() == [1] * 240
    assert [label.name for label in result.labels] == list(NAMES)
    wrong, guessed = np.zeros(240), np.zeros(240)
    for index, label in enumerate(result.labels):
        target = targets[:, [index]]
        (errors,), baseline = naive.held_out(x, target, fold_of, np.eye(8), [], RIDGES)
        assert label.r2 == pytest.approx(1 - errors.sum() / baseline.sum(), abs=1e-8)
        wrong, guessed = wrong + errors, guessed + baseline
        fitted = target[:, 0] - np.sqrt(errors) * np.sign(residuals(x, target, fold_of, errors))
        said = fitted * values[:, index].std() + values[:, index].mean() > 0.5
        assert label.accuracy == np.mean(said == values[:, index])
        assert label.frequency == values[:, index].mean()
        assert label.majority_rate == max(label.frequency, 1 - label.frequency)
        assert label.interval[0] < label.r2 < label.interval[1]
        low, high = label.accuracy_interval
        assert 0 < low < label.accuracy <= high + 1e-12
    assert np.allclose(result.readouts["all"][1].errors, wrong, atol=1e-8)
    assert result[1].ceiling_heldout == pytest.approx(1 - wrong.sum() / guessed.sum(), abs=1e-8)


def residuals(x, target, fold_of, errors):
    """What readouts miss of one target (n, 1), with the penalty of each fold that gives these squared errors."""
    result = np.zeros(len(x))
    for fold in np.unique(fold_of):
        train, test = fold_of != fold, fold_of == fold
        z = (x - x[train].mean(0)) / x[train].std(0)
        tried = []
        for ridge in RIDGES:
            gram = z[train].T @ z[train] + ridge * train.sum() * np.eye(x.shape[1])
            readout = np.linalg.solve(gram, z[train].T @ (target[train] - target[train].mean()))
            tried.append((target[test] - target[train].mean() - z[test] @ readout)[:, 0])
        result[test] = min(tried, key=lambda missed: np.abs(missed**2 - errors[test]).sum())
    return result


def test_a_label_without_meaning_costs_the_others_nothing(made, result):
    """One penalty for all would shrink what can be read because of what cannot."""
    representations, values, _ = made
    alone = ntps.score(representations, labels=values[:, 1], probes=False)
    assert result.labels[1].r2 == pytest.approx(alone[1].ceiling_heldout, abs=0.01)
    assert result.labels[3].r2 < 0.02


def test_the_headline_is_the_mean_over_labels_and_its_interval_is_paired(result):
    values = [label.r2 for label in result.labels]
    assert result.choice.readout.r2 == pytest.approx(np.mean(values), abs=0.005)
    assert min(values[:3]) > 0.4 > 0.05 > values[3] > -0.1
    assert result.best.layer == 1 and not result.best.tied and result.best.p_value == 0.1
    assert result.learning.r2[-1] == pytest.approx(result[1].ceiling_heldout, abs=1e-9)
    # Errors of a text in different labels go together or not: the interval of the mean is that of their sum.
    readout = result.choice.readout
    influence = (1 - readout.r2) * readout.baseline - readout.errors
    expected = 1.25 * influence.std(ddof=1) / np.sqrt(240) / readout.baseline.mean()
    assert readout.standard_error == pytest.approx(expected)
    doubled = (readout.interval()[1] - readout.interval()[0]) / 2
    assert doubled < np.mean([(label.interval[1] - label.interval[0]) / 2 for label in result.labels])


def test_u_has_a_direction_for_each_label(made, result):
    representations, values, texts = made
    assert (result[1].rank_u, result[1].k_u) == (4, 4)
    (row,) = score_layers(representations, labels_of(representations), ScoreSettings(), layers=[1])
    x, targets = naive.pooled(texts), standardized(values)
    U, V = row.solved.U.vectors.numpy(), row.solved.V.vectors[:, :4].numpy()
    assert naive.loss(x @ U, targets) == pytest.approx(naive.loss(x, targets), abs=1e-9)
    assert result[1].ntps == pytest.approx(naive.score(U, V), abs=1e-9)
    assert result[1].excess_loss == pytest.approx(naive.loss(x @ V, targets) - naive.loss(x, targets), abs=1e-9)
    design = np.column_stack([np.ones(240), x])
    assert result[1].ceiling == pytest.approx(1 - naive.loss(design, targets) / 4, abs=1e-9)


def test_shuffles_keep_the_labels_of_a_text_together(made):
    problem = make_problem(3, n=60, d=7)
    targets = standardized(made[1][:60, [0, 1, 3]])
    found = layer_null(solve(problem, targets=targets, folds=True, separate=True), 3, 3, 4, seed=1)
    for index, order in enumerate(shuffled_orders(60, 4, seed=1)):
        again = solve(problem, targets=targets[order], folds=True, separate=True)
        for null, expected in (
            (found.ntps, again.ntps_at(3, 3)),
            (found.ceiling_heldout, again.held_out([3]).ceiling),
        ):
            assert [null.observed, *null.values][index] == pytest.approx(expected, abs=1e-9)


def test_labels_without_meaning_are_held_by_no_layer(made):
    noise = LabelColumn("3 labels", np.random.default_rng(3).integers(0, 2, (240, 3)), ("a", "b", "c"))
    found = ntps.score(made[0], labels=noise)
    assert found.best is None and "No layer holds these labels" in str(found)
    assert all(label.interval[0] < 0.02 for label in found.labels)
    assert all(scored.ceiling_heldout < 0.02 for scored in found.layers)


def test_of_a_label_that_every_text_has_the_accuracy_is_one(made):
    values = np.column_stack([made[1][:, 0], np.ones(240, dtype=int), np.zeros(240, dtype=int)])
    found = ntps.score(made[0], labels=LabelColumn("3 labels", values, ("one", "all", "none")), probes=False)
    assert [label.accuracy for label in found.labels[1:]] == [1.0, 1.0]
    assert all(np.isnan(label.r2) for label in found.labels[1:]) and found.labels[0].r2 > 0.4


def test_words_have_a_penalty_for_each_label_too():
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice([f"w{i}" for i in range(30)], size=8)) for _ in range(100)]
    said = np.array([text.split().count("w3") for text in texts]) + 0.2 * rng.normal(size=100)
    targets, fold_of = standardized(np.column_stack([said, rng.normal(size=(100, 3))])), assign_folds(said)
    found = tfidf_values(texts, targets, fold_of)
    for column in range(4):
        assert np.allclose(found[:, [column]], tfidf_values(texts, targets[:, [column]], fold_of), atol=2e-3)
    assert np.square(found - targets)[:, 0].mean() < 0.8 and np.square(found - targets)[:, 1:].mean() > 0.95


def test_what_is_shown(made, result, tmp_path):
    text = str(result)
    assert max(map(len, text.splitlines())) <= 80
    assert "240 texts, 4 labels" in text
    assert "R² is the mean over labels." in text and "probe" not in text
    for label in result.labels:
        (line,) = [line for line in text.splitlines() if line.startswith(f"{label.name} ")]
        assert f"{label.r2:.3f} [" in line and f"{label.accuracy:.2f}" in line and f"{label.majority_rate:.2f}" in line
    assert result._repr_html_().count("<table>") == 2
    content = json.loads(result.to_json())
    assert (content["kind"], content["n_classes"], content["provenance"]["classes"]) == ("multilabel", 4, list(NAMES))
    assert content["provenance"]["class_sizes"] == made[1].sum(0).tolist()
    assert [row["name"] for row in content["labels"]] == list(NAMES)
    assert content["labels"][0]["accuracy"] == result.labels[0].accuracy
    assert [row["name"] for row in content["baselines"]] == ["TF-IDF", "label frequencies"]
    assert content["baselines"][1]["accuracy"] is None and content["baselines"][1]["r2"] == pytest.approx(0, abs=1e-12)
    assert "accuracy_heldout" not in content["layers"][0]
    write_report(result, tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert "Label by label" in page and "<td>rare</td>" in page.replace(' class="word"', "") and "[-, -]" not in page
    alone = ntps.score(made[0], labels=made[1][:, 0], probes=False)
    assert alone.labels == () and "Label by label" not in (write_report(alone, tmp_path) and
                                                           (tmp_path / "report.html").read_text())  # fmt: skip


def test_a_label_that_few_texts_have_is_named(made):
    representations, values, _ = made
    few = np.column_stack([values[:, 0], np.arange(240) < 3])
    found = ntps.score(representations, labels=LabelColumn("2 labels", few, ("one", "few")), probes=False)
    assert "Fewer texts than folds: 'few' (3); R² of such a label, which counts like any other" in found.notes()[1]
    assert not any("Fewer texts" in note for note in ntps.score(representations, probes=False).notes())


def test_targets_and_what_does_not_vary(made):
    representations, values, _ = made
    labels = labels_of(representations)
    assert torch.allclose(labels.targets, torch.from_numpy(standardized(values)))
    constant = np.column_stack([values[:, 0], np.ones(240, dtype=int)])
    found = labels_of(representations, LabelColumn("two", constant, ("a", "b")))
    assert found.targets[:, 1].abs().max() == 0 and found.targets[:, 0].std(correction=0) == pytest.approx(1)
    with pytest.raises(NtpsError, match="all 240 values of 'two' are the same"):
        labels_of(representations, LabelColumn("two", 0 * constant, ("a", "b")))
