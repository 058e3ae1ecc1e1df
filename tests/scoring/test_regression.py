"""Real values as targets: closed forms against readouts refitted by hand, planted R², noise, what has no meaning."""

import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from helpers import naive
from helpers.problems import make_problem, representations_of, solve
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import Ridge

import ntps
from ntps.core.heldout import RIDGES
from ntps.errors import NtpsError
from ntps.report import write_report
from ntps.scoring import ScoreSettings, assign_folds, labels_of, layer_null, score_layers
from ntps.scoring.headline import baselines_of
from ntps.scoring.nulls import shuffled_orders
from ntps.scoring.predictors import TFIDF_ALPHAS, tfidf_values
from ntps.tasks import LabelColumn, Task

SENTENCE = "No layer holds these values"


def planted(n=150, *, r2=0.5, seed=0, d=8, layers=1, unit=1.0, offset=0.0):
    """Representations whose last layer's states give values with a known population R^2, about 0 in the others."""
    rng = np.random.default_rng(seed)
    problem = make_problem(seed, n=n, d=d, c=2, signal=0.0)
    x = naive.pooled(problem.texts)
    signal = (x - x.mean(0)) @ rng.normal(size=d)
    values = np.sqrt(r2) * signal / signal.std() + np.sqrt(1 - r2) * rng.normal(size=n)
    others = [[rng.normal(size=h.shape) for h in problem.texts] for _ in range(layers - 1)]
    representations = representations_of(problem, *others, problem.texts)
    task = Task.of("planted", representations.task.texts, offset + unit * values)
    return problem, dataclasses.replace(representations, task=task), values


# Numbers


def test_held_out_values_are_those_of_ridge_readouts_refitted_by_hand():
    problem, representations, values = planted(n=90, unit=25.0, offset=300.0)
    fold_of = assign_folds(values, seed=4)
    (found,) = score_layers(representations, labels_of(representations), ScoreSettings(seed=4, k_v=3))
    y = ((values - values.mean()) / values.std())[:, None]
    V, states = found.solved.V.vectors.numpy(), naive.pooled(problem.texts)
    errors, baseline = naive.held_out(states, y, fold_of, V, [3], RIDGES)
    assert np.allclose(found.readouts["v"].errors, errors[0], atol=1e-8)
    assert np.allclose(found.readouts["all"].errors, errors[1], atol=1e-8)
    assert np.allclose(found.readouts["all"].baseline, baseline, atol=1e-10)
    assert found.score.ceiling_heldout == pytest.approx(1 - errors[1].sum() / baseline.sum(), abs=1e-8)
    assert 0.2 < found.score.ceiling_heldout < 0.8
    assert found.score.accuracy_heldout is None


@pytest.mark.parametrize("center", [False, True])
def test_u_is_the_direction_of_least_squares(center):
    problem, representations, values = planted()
    (scored,) = ntps.score(representations, center=center, probes=False).layers
    x, y = naive.pooled(problem.texts), (values - values.mean()) / values.std()
    x = x - x.mean(0) if center else x
    u = np.linalg.lstsq(x, y, rcond=None)[0]
    (row,) = score_layers(representations, labels_of(representations), ScoreSettings(center=center))
    ours = row.solved.U.vectors[:, 0].numpy()
    assert abs(ours @ u) / np.linalg.norm(ours) / np.linalg.norm(u) == pytest.approx(1, abs=1e-9)
    assert (scored.rank_u, scored.k_u, scored.k_v) == (1, 1, 1)
    v = row.solved.V.vectors[:, :1].numpy()
    assert scored.ntps == pytest.approx(naive.score(u[:, None], v), abs=1e-9)
    through_all, through_v = naive.loss(x, y[:, None]), naive.loss(x @ v, y[:, None])
    assert scored.excess_loss == pytest.approx(through_v - through_all, abs=1e-9)  # in units of the variance
    low, high = scored.bounds["whitened"]
    assert low - 1e-9 <= scored.excess_loss <= high + 1e-9
    design = np.column_stack([np.ones(len(y)), x])
    assert scored.ceiling == pytest.approx(1 - naive.loss(design, y[:, None]), abs=1e-9)


@pytest.mark.parametrize(("unit", "offset"), [(-3.0, 0.0), (1e-200, 0.0), (1e300, 0.0), (1.0, 1e6)])
def test_units_of_the_values_change_nothing(unit, offset):
    plain, other = (ntps.score(planted(n=60, **units)[1]) for units in ({}, {"unit": unit, "offset": offset}))
    for name in ("ntps", "ceiling_heldout", "explained_heldout", "excess_loss", "explained"):
        assert getattr(other[0], name) == pytest.approx(getattr(plain[0], name), abs=1e-6), name
    assert [row.r2 for row in other.baselines] == pytest.approx([row.r2 for row in plain.baselines], abs=1e-4)


def test_each_permutation_is_the_score_of_the_shuffled_values():
    problem, _, values = planted(n=60, d=7)
    y = ((values - values.mean()) / values.std())[:, None]
    found = layer_null(solve(problem, targets=y, folds=True), 1, 3, 4, seed=1)
    for index, order in enumerate(shuffled_orders(60, 4, seed=1)):
        again = solve(problem, targets=y[order], folds=True)
        for null, expected in (
            (found.ntps, again.ntps_at(1, 3)),
            (found.explained, again.r2_at(3)),
            (found.ceiling_heldout, again.held_out([3]).ceiling),
        ):
            assert [null.observed, *null.values][index] == pytest.approx(expected, abs=1e-9)
    assert len({round(value, 9) for value in found.ntps.values}) == 4


# What is found


def test_a_planted_layer_is_found_with_its_r2():
    _, representations, _ = planted(n=500, r2=0.6, layers=3)
    result = ntps.score(representations, permutations=9)
    assert result.best.layer == 2 and not result.best.tied
    low, high = result.best.interval
    assert low < 0.6 < high < low + 0.2
    assert result.best.p_value == 0.1
    assert all(abs(scored.ceiling_heldout) < 0.03 for scored in result.layers[:2])


def test_values_without_meaning_are_held_by_no_layer():
    """The same states: only the values are others."""
    _, representations, _ = planted(n=300, r2=0.6, layers=2)
    noise = LabelColumn("noise", np.random.default_rng(5).normal(size=300))
    result = ntps.score(representations, labels=noise)
    assert result.best is None and SENTENCE in " ".join(str(result).split())
    assert all(scored.ceiling_heldout < 0.02 for scored in result.layers)
    assert math.isnan(result.learning.twice)
    assert ntps.score(representations).best.layer == 1


def test_equal_texts_share_a_fold_and_a_leak_would_show():
    rng = np.random.default_rng(0)
    values, groups = np.tile(rng.normal(size=60), 2), np.tile(np.arange(60), 2)
    fold_of = assign_folds(values, groups=groups)
    assert np.array_equal(fold_of[:60], fold_of[60:])
    assert np.bincount(fold_of).tolist() == [24] * 5
    assert not np.array_equal(fold_of, assign_folds(values, groups=groups, seed=1))
    with pytest.raises(NtpsError, match=r"folds is 61.*between 2 and 60, the number of different texts\."):
        assign_folds(values, 61, groups=groups)
    with pytest.raises(NtpsError, match="no more than 1 different text"):
        assign_folds(values[:2], 2, groups=np.zeros(2))
    assert assign_folds(values[:3]).tolist() != [0, 0, 0] and assign_folds(values[:1]) is None


# What stands beside it


def test_tfidf_is_ridge_regression_with_its_penalty_chosen_on_the_other_folds():
    rng = np.random.default_rng(0)
    words = [f"w{i}" for i in range(30)]
    texts = [" ".join(rng.choice(words, size=8)) for _ in range(100)]
    values = np.array([text.split().count("w3") - text.split().count("w7") for text in texts]) + 0.3 * rng.normal(
        size=100
    )
    fold_of = assign_folds(values, 4)
    every = np.empty((len(TFIDF_ALPHAS), 100))
    for fold in range(4):
        train, test = np.flatnonzero(fold_of != fold), np.flatnonzero(fold_of == fold)
        vectorizer = TfidfVectorizer(sublinear_tf=True, token_pattern=r"\w+")
        x = vectorizer.fit_transform([texts[i] for i in train]).toarray()
        judged = vectorizer.transform([texts[i] for i in test]).toarray()
        for index, alpha in enumerate(TFIDF_ALPHAS):
            every[index, test] = Ridge(alpha=alpha).fit(x, values[train]).predict(judged)
    losses, found = np.square(every - values), tfidf_values(texts, values[:, None], fold_of)[:, 0]
    for fold in range(4):
        inside = fold_of == fold
        assert np.allclose(found[inside], every[losses[:, ~inside].sum(1).argmin(), inside], atol=2e-3)
    assert 0.3 < 1 - np.square(found - values).sum() / np.square(values - values.mean()).sum() < 1
    noise = rng.permutation(values)
    assert (
        1
        - np.square(tfidf_values(texts, noise[:, None], fold_of)[:, 0] - noise).sum()
        / np.square(noise - noise.mean()).sum()
        < 0.05
    )
    assert np.isfinite(tfidf_values(["!?"] * 100, values[:, None], fold_of)).all()


def test_the_mean_explains_nothing_and_classes_are_absent(tmp_path):
    _, representations, _ = planted(layers=2)
    result = ntps.score(representations, control=representations, intervals=True)
    tfidf, mean = result.baselines
    assert (tfidf.name, mean.name) == ("TF-IDF", "the mean")
    assert mean.r2 == pytest.approx(0, abs=1e-12) and mean.interval == pytest.approx((0, 0), abs=1e-9)
    assert all(math.isnan(row.accuracy) and row.predicted is None for row in result.baselines)
    content = json.loads(result.to_json())
    assert content["kind"] == "regression" and content["n_classes"] is None
    assert content["baselines"][1] == {
        "name": "the mean", "accuracy": None, "balanced_accuracy": None, "log_loss": None,
        "accuracy_interval": [None, None], "r2": pytest.approx(0), "interval": pytest.approx([0, 0]),
    }  # fmt: skip
    assert "accuracy_heldout" not in content["layers"][0] and "classes" not in content["provenance"]
    assert content["provenance"]["values"].keys() == {"mean", "standard_deviation", "min", "max"}
    text = " ".join(str(result).split())
    assert "150 texts, real values" in text and "A dash for accuracy: real values have no classes." in text
    assert "squared error of guessing their mean" in text and "frequencies" not in text and "probe" not in text
    assert "hold about 90 %, less where a few values lie far from the others." in text
    frame = result.to_dataframe()
    assert frame.accuracy_heldout.isna().all() and frame.ceiling_heldout.notna().all()
    write_report(result, tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert "real values have no classes" in page and ">nan<" not in page and "[-, -]" not in page
    classes = json.loads(ntps.score(representations, labels=np.arange(150) % 2, probes=False).to_json())
    assert classes["kind"] == "classification" and classes["n_classes"] == 2


def test_labels_are_standardised_and_have_to_vary():
    _, representations, _ = planted(n=40, unit=5.0, offset=-3.0)
    targets = labels_of(representations).targets
    assert targets.shape == (40, 1) and targets.dtype == torch.float64
    assert [float(targets.mean()), float(targets.std(correction=0))] == pytest.approx([0, 1], abs=1e-12)
    some = np.where(np.arange(40) < 30, np.arange(40.0), np.nan)
    found = labels_of(representations, LabelColumn("some", some))
    assert (found.n_missing, found.rows.tolist()) == (10, list(range(30)))
    for values in (np.full(40, 0.1), np.zeros(40), 1e9 + np.arange(40) * 1e-7):
        with pytest.raises(NtpsError, match=r"all 40 values of 'constant' are the same"):
            labels_of(representations, LabelColumn("constant", values))
    with pytest.raises(NtpsError, match="regression=True"):
        labels_of(representations, np.arange(40) / 7)


def test_what_needs_no_model_is_judged_on_the_folds_of_the_readouts():
    _, representations, values = planted(n=60)
    labels = labels_of(representations)
    fold_of = assign_folds(values, 3)
    result = ntps.score(representations, folds=3)
    (mean,) = baselines_of(None, labels, fold_of, result.choice.readout)
    assert np.allclose(mean.readout.errors, result.choice.readout.baseline)
    assert ntps.compare(result, mean.readout).difference == pytest.approx(result.choice.readout.r2)
