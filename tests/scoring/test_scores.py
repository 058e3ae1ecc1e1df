"""Scores of representations: what is asked for is what comes out, each layer is solved once, no model runs again."""

import dataclasses
import json
import math
import threading
from collections import Counter

import numpy as np
import pytest
import torch
from helpers.memory import Account
from helpers.problems import make_problem, representations_of, solve
from helpers.results import assert_same

import ntps
import ntps.core.solve as solve_module
from ntps.core import official_curve
from ntps.errors import NtpsError
from ntps.models import load_model
from ntps.models.states import StateReader
from ntps.scoring import (
    ScoreSettings,
    assign_folds,
    jackknife,
    labels_of,
    layer_intervals,
    permutation_null,
    read_layer,
    score_layers,
    scores,
)
from ntps.scoring.reading import default_ranks, ranks_at
from ntps.tasks import LabelColumn, Task


def score(*given, probes=False, **options):
    """Score without the probes beside the layers, which take most of the time, unless they are asked for."""
    return ntps.score(*given, probes=probes, **options)


@pytest.fixture(scope="module")
def problem():
    return make_problem(seed=2, n=150, d=8, c=4)


@pytest.fixture(scope="module")
def representations(problem):
    """Layers 0, 2 and 5."""
    return representations_of(problem, *three_layers(problem), layers=[0, 2, 5])


def three_layers(problem):
    return problem.texts, [2 * h + np.sin(h) for h in problem.texts], [np.sin(h) for h in problem.texts]


@pytest.fixture(scope="module")
def control(problem):
    """The same texts seen by another network."""
    mix = np.random.default_rng(0).normal(size=(8, 8))
    return representations_of(problem, *([h @ mix for h in texts] for texts in three_layers(problem)), layers=[0, 2, 5])


# Layers, several at once


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    "read",
    [
        lambda *sides: score(sides[0], control=sides[1], permutations=9, intervals=True).to_dict(),
        lambda *sides: score(sides[0], convention="official", fraction=0.5, layers=[5, 0]).to_dict(),
        lambda *sides: [null.quantities() for null in permutation_null(sides[0], permutations=9)],
        lambda *sides: {layer: str(row) for layer, row in jackknife(sides[0], layers=[5, 2]).items()},
    ],
)
def test_layers_scored_at_once_are_those_scored_one_by_one(representations, control, two_threads, monkeypatch, read):
    threads_of = {}
    solve_layer = scores.solve_layer

    def recorded(*args, **options):
        threads_of.setdefault(threading.get_ident(), []).append(args)
        return solve_layer(*args, **options)

    monkeypatch.setattr(scores, "solve_layer", recorded)
    together = read(representations, control)
    assert threading.get_ident() not in threads_of
    torch.set_num_threads(1)
    np.testing.assert_equal(read(representations, control), together)
    assert threading.get_ident() in threads_of


@pytest.mark.parametrize(
    ("n", "d", "c", "several"),
    [(300, 320, 2, False), (3000, 192, 3, False), (20000, 24, 3, False), (8000, 32, 6, True)],
)
def test_memory_of_a_layer_is_about_what_is_reckoned_with(n, d, c, several):
    """Only so many layers are solved at once as fit into a gigabyte."""
    rng = np.random.default_rng(0)
    problem = make_problem(seed=0, n=60, d=d, c=c)
    states = rng.normal(size=(n, d)).astype(np.float32)
    values = rng.integers(0, 2, (n, c)) if several else rng.integers(0, c, n)
    labels = LabelColumn("label", values, tuple(map(str, range(c))))
    representations = dataclasses.replace(
        representations_of(problem),
        states=states[None],
        text_index=np.arange(n),
        text_group=np.arange(n),
        lengths=np.full(n, 5),
        task=None,
    )
    resolved = labels_of(representations, labels)
    with Account() as account:
        next(score_layers(representations, resolved, ScoreSettings(), layers=[0]))
    reckoned = resolved.layer_memory(representations)
    assert 0.5 * account.peak < reckoned < account.peak + 60e6, (account.peak, reckoned)


# One layer


@pytest.mark.parametrize("center", [False, True])
@pytest.mark.parametrize("ranks", [{}, {"k_u": 1, "k_v": 5}, {"k_u": 6, "k_v": 2}])
def test_score_reads_a_solution(problem, representations, center, ranks):
    problem.folds = assign_folds(problem.labels, 4, seed=3)
    solved = solve(problem, folds=True, center=center, k_u=ranks.get("k_u"))
    scored = score(representations, folds=4, seed=3, center=center, **ranks)[0]
    k_u, k_v = scored.k_u, scored.k_v
    assert (k_u, k_v) == (ranks.get("k_u", 4 - center), ranks.get("k_v", 4 - center))
    assert (scored.d, scored.rank_u, scored.rank_v, scored.rank_m) == (8, 4 - center, 8, 8)
    assert scored.ntps == pytest.approx(solved.ntps_at(k_u, k_v))
    assert scored.ntps_whitened == pytest.approx(solved.whitened_ntps_at(k_u, k_v))
    assert scored.excess_loss == pytest.approx(solved.excess_at(k_u, k_v), abs=1e-12)
    assert (scored.explained, scored.ceiling) == pytest.approx((solved.r2_at(k_v), solved.ceiling))
    assert scored.retained == pytest.approx(solved.r2_at(k_v) / solved.ceiling)
    assert scored.chance == k_v / 8
    held_out = solved.held_out([k_v])
    assert (scored.explained_heldout, scored.ceiling_heldout) == pytest.approx(
        (held_out.explained[0], held_out.ceiling)
    )
    (raw_low, raw_high), (low, high) = scored.bounds["raw"], scored.bounds["whitened"]
    assert raw_low <= low + 1e-9 <= scored.excess_loss + 2e-9 <= high + 3e-9 <= raw_high + 4e-9


@pytest.mark.parametrize(
    ("rank_u", "rank_v", "d", "expected"),
    [(3, 64, 64, (3, 8)), (20, 64, 64, (20, 20)), (3, 2, 64, (3, 2)), (0, 5, 8, (0, 1)), (1, 1, 1, (1, 1))],
)
def test_default_ranks(rank_u, rank_v, d, expected):
    assert default_ranks(rank_u, rank_v, d) == expected


def test_curve_holds_powers_of_two_and_reads_off_the_same_numbers(representations):
    curve = score(representations, k_v=5, k_u=2, layers=[0])[0].curve
    assert curve["k_v"] == [1, 2, 4, 5, 8]
    assert curve.keys() == {"k_v", "ntps", "excess_loss", "explained", "explained_heldout"}
    for index, k in enumerate(curve["k_v"]):
        alone = score(representations, k_v=k, k_u=2, layers=[0])[0]
        for name in curve.keys() - {"k_v"}:
            assert curve[name][index] == pytest.approx(getattr(alone, name), abs=1e-12), name


def test_official_convention_replaces_score_chance_and_curve(representations):
    theory = score(representations, k_v=3)
    official = score(representations, k_v=3, convention="official", fraction=0.5)
    a, b = theory[2], official[2]
    solved = next(scores.score_layers(representations, labels_of(representations), ScoreSettings(), layers=[2])).solved
    assert official.convention == "official"
    np.testing.assert_equal(b.curve, official_curve(solved.pooled, solved.next_token))
    place = b.curve["fraction"].index(0.5)
    assert (b.ntps, b.chance) == (b.curve["ntps"][place], b.curve["k_v"][place] / b.d)
    assert a.ntps != pytest.approx(b.ntps, abs=1e-3)
    assert dataclasses.replace(b, ntps=a.ntps, chance=a.chance, curve=a.curve) == a


def test_no_single_number_stands_for_the_official_scores_unless_it_is_chosen(representations):
    result = score(representations, convention="official")
    assert all(math.isnan(scored.ntps) and math.isnan(scored.chance) for scored in result.layers)
    assert [row["ntps"] for row in result.to_dict()["layers"]] == [None] * 3
    text, curve = result.to_text(), result.shown.curve["ntps"]
    for fraction in (0.05, 0.5, 0.95):
        assert f"NTPS {fraction:.0%}" in " ".join(text.splitlines()[0].split())
    known = [value for value in curve if not math.isnan(value)]
    assert f"from {min(known):.3f} to {max(known):.3f}" in " ".join(text.split())
    chosen = score(representations, convention="official", fraction=0.5)
    assert "NTPS is" in " ".join(chosen.to_text().split()) and "50%" in chosen.to_text()


# What is asked for


def test_layers_are_scored_in_the_order_asked_for(representations):
    whole, chosen = score(representations), score(representations, layers=[5, 0])
    assert [scored.layer for scored in whole.layers] == [0, 2, 5]
    assert_same(chosen.layers, (whole[5], whole[0]))
    assert whole[0].ntps != whole[5].ntps


def test_labels_folds_and_seeds_are_arguments_and_no_model_runs(tiny_llama, monkeypatch):
    model = load_model(tiny_llama, device="cpu")
    texts = ["a good film", "a bad film it was", "the dog saw a cat", "she read the old book", "rain"] * 8
    mood, topic = np.arange(40) % 5 < 2, np.arange(40) % 5 % 3
    columns = (LabelColumn("mood", mood.astype(int), ("bad", "good")), LabelColumn("topic", topic, ("a", "b", "c")))
    representations = ntps.collect(model, Task(name="two", texts=texts, columns=columns))
    monkeypatch.setattr(StateReader, "read", lambda *_: pytest.fail("the model ran again"))
    results = [score(representations, labels=labels) for labels in (None, "topic", topic.tolist())]
    assert [result.n_classes for result in results] == [2, 3, 3]
    assert [result.task for result in results] == ["two:mood", "two:topic", "two:labels"]
    assert_same(results[1].layers, results[2].layers)
    assert results[0].layers[0].ntps != results[1].layers[0].ntps
    other = score(representations, seed=1)
    assert other.settings["seed"] == 1
    assert other[1].explained_heldout != results[0][1].explained_heldout
    assert other[1].ntps == results[0][1].ntps  # folds hold out; they do not enter the score
    assert score(representations, folds=3).settings["folds"] == 3
    monkeypatch.undo()  # collected without labels, the same texts score the same
    assert_same(score(ntps.collect(model, texts), labels=topic).layers, results[1].layers)


def test_texts_without_a_label_are_left_out(problem):
    """As if they had not been labelled at all, but V is that of every text."""
    representations = representations_of(problem)
    labels = [None if index < 30 else "abcd"[label] for index, label in enumerate(problem.labels)]
    result = score(representations, labels=labels, folds=0)
    rest = dataclasses.replace(problem, texts=problem.texts[30:], labels=problem.labels[30:])
    few = dataclasses.replace(representations_of(rest), next_token=representations.next_token)
    assert_same(result.layers, score(few, folds=0).layers)
    assert (result.n_texts, result.n_tokens) == (120, sum(map(len, rest.texts)))
    assert result.metadata["n_unlabelled"] == 30
    assert result.task == "problem:labels"


def test_metadata_says_what_made_the_scores(problem):
    made = {"model": "m", "revision": "r", "settings": {"prefix": "sum", "seed": 9}, "key": "k"}
    result = score(representations_of(problem, metadata=made), seed=4, k_v=2, rtol=1e-9)
    assert (result.model, result.task, result.n_texts, result.n_classes) == ("m", "problem", 150, 4)
    assert result.n_tokens == sum(map(len, problem.texts))
    assert result.settings == {
        "prefix": "sum", "folds": 5, "seed": 4, "k_u": None, "k_v": 2, "center": False, "fraction": None, "rtol": 1e-9,
        "permutations": 0, "intervals": False, "probes": False,
    }  # fmt: skip
    assert result.metadata["label_column"] == "label"
    assert result.metadata["classes"] == list("abcd")
    assert {"revision", "key", "task_fingerprint", "task_source"} <= result.metadata.keys()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"k_u": 0}, ["k_u", "0"]),
        ({"k_u": 9}, ["k_u", "9", "8"]),
        ({"k_u": 1.5}, ["k_u", "1.5"]),
        ({"k_v": 0}, ["k_v", "0"]),
        ({"k_v": 9}, ["k_v", "9", "8"]),
        ({"k_v": "3"}, ["k_v", "'3'"]),
        ({"layers": [0, 3]}, ["layer", "3", "0, 2, 5"]),
        ({"layers": []}, ["layers"]),
        ({"convention": "paper"}, ["convention", "paper", "theory", "official"]),
        ({"fraction": 0.5}, ["fraction", "convention='official'"]),
        ({"fraction": 0.51, "convention": "official"}, ["fraction", "0.51", "0.05", "0.95"]),
        ({"rtol": 0.0}, ["rtol", "0"]),
        ({"rtol": 1.0}, ["rtol", "1"]),
        ({"folds": 1}, ["folds", "1"]),
        ({"folds": 39}, ["folds", "39", "38"]),
        ({"folds": "many"}, ["folds", "many", "auto"]),
        ({"seed": -1}, ["seed", "-1"]),
        ({"seed": 0.5}, ["seed", "0.5"]),
        ({"permutations": -1}, ["permutations", "-1"]),
        ({"permutations": True}, ["permutations", "True"]),
        ({"intervals": True, "folds": 2}, ["intervals", "3 folds", "2"]),
        ({"intervals": True, "folds": 0}, ["intervals", "3 folds", "0"]),
        ({"intervals": True, "convention": "official"}, ["intervals", "convention"]),
        ({"permutations": 9, "convention": "official"}, ["permutations", "convention"]),
        ({"labels": "genre"}, ["genre", "label"]),
        ({"labels": [0, 1]}, ["2 labels", "150 texts"]),
    ],
)
def test_options_out_of_range(representations, options, words):
    with pytest.raises(NtpsError) as caught:
        score(representations, **options)
    assert all(word in str(caught.value) for word in words), caught.value


def test_a_misspelled_option_is_refused(representations):
    for function in (score, permutation_null, jackknife):
        with pytest.raises(TypeError, match="kv"):
            function(representations, kv=3)


def test_intervals_need_a_class_that_three_folds_can_share():
    problem = make_problem(n=6, c=3)
    with pytest.raises(NtpsError, match=r"3 folds.*'label'"):
        score(representations_of(problem), intervals=True)


# What a score is read against


def test_each_layer_is_solved_once(representations, control, monkeypatch):
    calls = Counter()

    def counted(module, name):
        plain = getattr(module, name)

        def wrapper(*arguments, **options):
            calls[name] += 1
            return plain(*arguments, **options)

        monkeypatch.setattr(module, name, wrapper)

    counted(scores, "solve_layer")
    counted(solve_module, "_solve_labels")
    counted(solve_module, "layer_autoregressive_encoder")
    score(representations)
    assert calls == {"solve_layer": 3, "_solve_labels": 3, "layer_autoregressive_encoder": 3}
    calls.clear()
    result = score(representations, folds=4, permutations=5, intervals=True, control=control)
    # V once for each layer of model and control; the label side once more for each fold that is left out.
    assert calls == {"solve_layer": 6, "_solve_labels": 6 + 3 * 4, "layer_autoregressive_encoder": 6}
    assert all(row.null and row.interval and row.control for row in result.layers)


def test_what_a_score_is_read_against_is_what_was_computed(representations, control):
    options = {"k_v": 3, "center": True, "seed": 2}
    result = score(representations, folds=4, permutations=19, intervals=True, control=control, **options)
    nulls = permutation_null(representations, permutations=19, folds=4, **options)
    held_out = {scored.layer: scored.ceiling_heldout for scored in result.layers}
    intervals = jackknife(representations, folds=4, **options)
    fresh = score(control, folds=4, **options)
    for row, null in zip(json.loads(result.to_json())["layers"], nulls, strict=True):
        for name in ("ntps", "explained"):
            assert row["null"][name]["p_value"] == getattr(null, name).p_value
            assert row["null"][name]["z"] == getattr(null, name).z
            assert row["null"][name]["observed"] == pytest.approx(row[name], abs=1e-9)
        assert row["null"]["ceiling_heldout"]["observed"] == pytest.approx(held_out[row["layer"]], abs=1e-9)
        for name, interval in intervals[row["layer"]].items():
            assert row["interval"][name] == interval.to_dict()
        for name in ("explained_heldout", "ceiling_heldout"):
            assert row["interval"][name]["estimate"] == row[name]
            assert row["interval"][name]["low"] <= row[name] <= row["interval"][name]["high"]
        assert row["control"] == {name: getattr(fresh[row["layer"]], name) for name in scores.CONTROLLED}


def test_equal_texts_share_folds_count_once_and_are_named():
    """Noise labels on texts that occur three times: in different folds the repeat would give the label away."""
    problem = make_problem(seed=2, n=60, d=30)
    thrice = dataclasses.replace(problem, texts=problem.texts * 3, labels=np.tile(problem.labels, 3))
    thrice.labels = np.tile(np.random.default_rng(0).permutation(problem.labels), 3)
    plain = representations_of(thrice)
    grouped = dataclasses.replace(plain, text_group=np.tile(np.arange(60), 3))
    leaked, clean = (score(each, permutations=19, probes=True) for each in (plain, grouped))
    assert clean.metadata["n_repeated"] == 120 and leaked.metadata["n_repeated"] == 0
    assert "120 of 180" in clean.notes()[-1] and "120 of 180" not in " ".join(leaked.notes())
    assert leaked[0].ceiling_heldout > 0.15 > 0.05 > clean[0].ceiling_heldout
    assert clean.best is None and leaked.best is not None
    assert clean[0].null["ceiling_heldout"]["p_value"] > 0.05 == leaked[0].null["ceiling_heldout"]["p_value"]
    assert clean.learning.n[-1] == 144


def test_two_models_are_compared_on_the_same_texts(representations, control):
    a, b = score(representations), score(control)
    found = ntps.compare(a, b)
    assert found.difference == pytest.approx(a.readout().r2 - b.readout().r2)
    assert found.n == 150 and found.names == ("a model", "a model")
    assert ntps.compare(a, a).tie
    through_v = ntps.compare(a.readout(0), a.readout(0, through="v"))
    assert through_v.difference == pytest.approx(a[0].ceiling_heldout - a[0].explained_heldout)
    assert ntps.compare(a.readout(2), b).names[0] == "a model, layer 2"
    for other in (
        score(control, seed=1),
        score(control, labels=list("abc" * 50)),
        score(representations_of(make_problem())),
    ):
        with pytest.raises(NtpsError, match="different texts, labels or folds"):
            ntps.compare(a, other)
    with pytest.raises(NtpsError, match="folds"):
        ntps.compare(a, score(control, folds=0))


def test_the_best_layer_is_that_of_the_largest_r2_and_judged_out_of_fold():
    problem = make_problem(seed=2, n=150, d=8, c=4, signal=2.0)
    result = score(representations_of(problem, *three_layers(problem), layers=[0, 2, 5]), permutations=19, probes=True)
    values = {scored.layer: scored.ceiling_heldout for scored in result.layers}
    assert values[result.best.layer] == max(values.values()) == result.shown.ceiling_heldout
    assert set(result.choice.by_fold.tolist()) <= {0, 2, 5}
    assert result.best.r2 <= max(values.values()) + 1e-12
    assert result.best.p_value == 0.05
    assert set(result.best.tied) <= {0, 2, 5} - {result.best.layer}
    assert [row.r2 for row in result.baselines][2] == pytest.approx(0, abs=1e-12)
    probe, words, frequencies = result.baselines
    assert probe.accuracy > 0.5 > frequencies.accuracy
    assert abs(words.r2) < 0.2  # the texts of this problem are numbered, not written
    plain = score(representations_of(problem))
    assert (plain.baselines, plain.learning) == ((), None)


@pytest.mark.parametrize(
    "options", [{"convention": "official", "fraction": 0.5}, {"k_u": 2, "k_v": 7, "layers": [5, 2]}]
)
def test_control_is_scored_as_the_model_is(representations, control, options):
    result, fresh = score(representations, control=control, **options), score(control, **options)
    for row, random in zip(result.layers, fresh.layers, strict=True):
        assert row.layer == random.layer
        assert row.control["ntps"] == random.ntps
        assert row.control["ceiling_heldout"] == random.ceiling_heldout


def test_a_control_of_something_else_is_refused_before_anything_is_solved(representations, problem, monkeypatch):
    monkeypatch.setattr(scores, "solve_layer", lambda *_, **__: pytest.fail("solved before it was refused"))
    with pytest.raises(NtpsError, match="other texts"):
        score(representations, control=representations_of(make_problem(n=20, d=8)))
    with pytest.raises(NtpsError, match=r"layers \[0, 2, 5\] and \[0\]"):
        score(representations, control=representations_of(problem))


def test_shares_of_the_width_have_held_out_values(representations):
    settings = ScoreSettings(folds=4)
    for row in score_layers(representations, labels_of(representations), settings, layers=[2], shares=(0.4, 0.7)):
        assert ranks_at((0.4, 0.7), row.solved) == [3, 6]
        assert {3, 6, *row.score.curve["k_v"]} == set(row.held_out.ks)
        assert row.score == read_layer(row.solved, held_out=row.held_out, readouts=row.readouts)
        assert row.readouts["all"].r2 == pytest.approx(row.held_out.ceiling)
        assert row.readouts["v"].r2 == pytest.approx(row.held_out.at(row.score.k_v))
        assert layer_intervals(row.solved, 4, 4).keys() == {"ntps", "explained"}


# Degenerate data


def degenerate(name):
    problem = make_problem(seed=6, n=40, d=6, c=3)
    rng = np.random.default_rng(0)
    if name == "fewer texts than features":
        problem = make_problem(seed=6, n=5, d=20, c=2)
    elif name == "one text":
        problem = make_problem(seed=6, n=1, d=4, c=2)
        problem.texts[0] = rng.normal(size=(5, 4))
    elif name == "rank-deficient states":
        mix = rng.normal(size=(3, 6))
        problem.texts = [h[:, :3] @ mix for h in problem.texts]
    elif name == "a constant channel":
        for h in problem.texts:
            h[:, 0] = 3.0
    elif name == "constant states":
        problem.texts = [np.ones_like(h) for h in problem.texts]
    elif name == "a dead channel":
        for h in problem.texts:
            h[:, 2] = 0.0
    elif name == "all-zero states":
        problem.texts = [np.zeros_like(h) for h in problem.texts]
    elif name == "one dimension":
        problem = make_problem(seed=6, n=40, d=1, c=2)
    elif name == "more classes than features":
        problem = make_problem(seed=6, n=60, d=3, c=7)
    elif name == "one class":
        problem.labels = np.zeros_like(problem.labels)
    elif name == "mostly one-token texts":
        problem.texts = [rng.normal(size=(3, 6)), *(h[:1] for h in problem.texts[1:])]
    return problem


DEGENERATE = [
    "fewer texts than features", "one text", "rank-deficient states", "a constant channel", "constant states",
    "a dead channel", "all-zero states", "one dimension", "more classes than features", "one class",
    "mostly one-token texts",
]  # fmt: skip


@pytest.mark.parametrize("name", DEGENERATE)
@pytest.mark.parametrize("center", [False, True])
@pytest.mark.parametrize("convention", ["theory", "official"])
def test_degenerate_data_give_numbers_in_range_or_none(name, center, convention):
    problem = degenerate(name)
    options = {"permutations": 3} if convention == "theory" else {}
    if convention == "theory" and name not in ("one text", "fewer texts than features"):
        options["intervals"] = True
    options["probes"] = convention == "theory" and not center  # they depend on neither
    result = score(representations_of(problem), center=center, convention=convention, **options)
    scored = result.layers[0]
    for value in (scored.ntps_whitened, scored.explained, scored.ceiling, scored.retained):
        assert math.isnan(value) or 0 <= value <= 1
    assert math.isnan(scored.ntps) or -1e-6 <= scored.ntps <= 1 + 1e-5
    assert scored.excess_loss >= 0
    assert scored.rank_u <= min(scored.rank_m, problem.c)
    assert scored.rank_v <= problem.d
    low, high = scored.bounds["whitened"]
    assert low - 1e-9 <= scored.excess_loss <= high + 1e-9
    json.loads(result.to_json(), parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))
    assert len(str(result)) > 100
    assert result._repr_html_()
    assert (scored.explained_heldout is None) == (name == "one text")
    if scored.explained_heldout is not None:
        assert math.isnan(scored.explained_heldout) or scored.explained_heldout <= 1 + 1e-12
        assert math.isnan(scored.ceiling_heldout) == (name == "one class")
        assert 0 <= scored.accuracy_heldout <= 1
    assert (result.choice is None) == (name == "one text")
    if name in ("one text", "one class", "constant states", "all-zero states"):
        assert result.best is None


def test_what_degenerate_data_give():
    def one(name, **options):
        return score(representations_of(degenerate(name)), **options).layers[0]

    few = one("fewer texts than features")
    assert few.rank_m == 5
    assert few.ceiling == pytest.approx(1.0)  # any labels can be fitted: read the held-out share instead
    low = one("rank-deficient states")
    assert (low.rank_m, low.rank_v) == (3, 3)
    assert low.bounds["raw"][0] == 0.0
    full = one("rank-deficient states", k_v=3)
    assert (full.ntps, full.retained) == pytest.approx((1.0, 1.0))
    assert full.excess_loss == pytest.approx(0.0, abs=1e-12)
    for name in ("constant states", "all-zero states"):
        flat = one(name)
        assert flat.ceiling == 0.0
        assert math.isnan(flat.retained)
        assert flat.excess_loss == pytest.approx(0.0, abs=1e-15)
    zero = one("all-zero states")
    assert (zero.rank_m, zero.rank_u, zero.rank_v, zero.k_u, zero.k_v) == (0, 0, 0, 0, 0)
    assert math.isnan(zero.ntps)
    assert one("constant states", center=True).rank_u == 0
    line = one("one dimension")
    assert (line.k_u, line.k_v, line.ntps, line.chance) == (1, 1, 1.0, 1.0)
    assert math.isnan(line.above_chance)
    assert one("more classes than features").rank_u == 3
    assert one("one class").ceiling == 0.0
    everything = score(representations_of(make_problem(seed=6)), k_v=8).layers[0]
    assert (everything.ntps, everything.chance, everything.retained) == pytest.approx((1.0, 1.0, 1.0))
    with pytest.raises(NtpsError, match="two tokens"):
        score(representations_of(make_problem(longest=1)))


def test_float16_states_are_good_enough(problem, representations):
    half = dataclasses.replace(representations, states=representations.states.astype(np.float16))
    for one, other in zip(*(score(each).layers for each in (representations, half)), strict=True):
        assert other.ntps == pytest.approx(one.ntps, abs=5e-3)
        assert other.ceiling_heldout == pytest.approx(one.ceiling_heldout, abs=5e-3)
    assert torch.from_numpy(half.states).dtype == torch.float16
