"""What a result looks like: keys, types, JSON, the table in a terminal, HTML in a notebook."""

import dataclasses
import json
import math

import numpy as np
import pytest
from helpers.problems import make_problem, representations_of

from ntps._text import bar
from ntps.errors import NtpsError
from ntps.scoring import score

TOP = {
    "schema_version", "model", "task", "n_texts", "n_tokens", "n_classes", "d", "convention", "best", "baselines",
    "kind", "labels", "learning_curve", "settings", "provenance", "layers",
}  # fmt: skip
LAYER = {
    "layer", "d", "rank_m", "rank_u", "rank_v", "k_u", "k_v", "ntps", "chance", "ntps_whitened", "excess_loss",
    "bounds", "explained", "ceiling", "retained", "curve",
}  # fmt: skip
HELD_OUT = {"explained_heldout", "ceiling_heldout", "retained_heldout", "accuracy_heldout", "interval"}
MODEL, TASK = "base <b>&\"'", "<script>alert(1)</script>"


def make(layers=3, folds=4, signal=2.0, **options):
    problem = make_problem(seed=2, n=60, d=10, signal=signal)
    stacks = [[h + layer * np.sin(h) for h in problem.texts] for layer in range(layers)]
    made = {"model": MODEL, "settings": {"prefix": "sum", "seed": 9}, "version": "0"}
    representations = representations_of(problem, *stacks, metadata=made)
    task = dataclasses.replace(representations.task, name=TASK)
    return score(dataclasses.replace(representations, task=task), folds=folds, **options)


@pytest.mark.parametrize("folds", [0, 4])
@pytest.mark.parametrize("convention", ["theory", "official"])
def test_json_holds_every_key(folds, convention):
    result = make(folds=folds, convention=convention, fraction=0.5 if convention == "official" else None)
    text = result.to_json()
    assert text.endswith("\n}\n")  # the text of a file, as in scores.json
    read = json.loads(text, parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))
    assert read == json.loads(json.dumps(result.to_dict()))
    assert read.keys() == TOP
    assert (read["schema_version"], read["convention"], read["d"]) == (1, convention, 10)
    assert (read["n_texts"], read["n_classes"]) == (60, 3)
    assert (read["model"], read["task"]) == (MODEL, TASK)
    assert read["settings"] == {
        "prefix": "sum", "seed": 0, "folds": folds, "k_u": None, "k_v": None, "center": False,
        "fraction": 0.5 if convention == "official" else None, "rtol": None,
        "permutations": 0, "intervals": False, "probes": True,
    }  # fmt: skip
    if folds:
        assert read["best"] == dataclasses.asdict(result.best) | {
            "tied": list(result.best.tied), "interval": list(result.best.interval),
        }  # fmt: skip
        assert [row["name"] for row in read["baselines"]] == ["logistic probe", "TF-IDF", "label frequencies"]
        assert read["learning_curve"].keys() == {"n", "r2", "standard_error", "twice", "interval", "gain_interval"}
    else:
        assert (read["best"], read["baselines"], read["learning_curve"]) == (None, [], None)
    assert read["provenance"]["version"] == "0"
    assert [layer["layer"] for layer in read["layers"]] == [0, 1, 2]
    for layer in read["layers"]:
        assert layer.keys() == LAYER | (HELD_OUT if folds else set())
        for key in ("layer", "rank_u", "rank_v", "k_u", "k_v"):
            assert type(layer[key]) is int
        for key in ("ntps", "chance", "excess_loss", "explained", "ceiling", "retained"):
            assert type(layer[key]) is float
        assert layer["bounds"].keys() == {"raw", "whitened"}
        assert all(len(pair) == 2 for pair in layer["bounds"].values())
        curve = layer["curve"]
        if convention == "official":
            assert curve.keys() == {"fraction", "k_u", "k_v", "ntps"}
            assert curve["fraction"] == [round(0.05 * step, 2) for step in range(1, 20)]
            assert len(curve["ntps"]) == 19
        else:
            names = {"k_v", "ntps", "excess_loss", "explained"} | ({"explained_heldout"} if folds else set())
            assert curve.keys() == names
            assert {1, 2, 4, 8, 10} <= set(curve["k_v"])
            assert curve["k_v"] == sorted(curve["k_v"])
            assert {len(values) for values in curve.values()} == {len(curve["k_v"])}
            here = curve["k_v"].index(layer["k_v"])
            for key in ("ntps", "excess_loss", "explained", *(["explained_heldout"] if folds else [])):
                assert curve[key][here] == pytest.approx(layer[key], rel=1e-12)


def degenerate():
    problem = make_problem(n=20)
    problem.texts = [0 * h for h in problem.texts]
    return score(representations_of(problem), folds=4)


def test_numbers_that_json_has_no_word_for_become_null():
    result = degenerate()
    read = json.loads(result.to_json(), parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))
    assert read["layers"][0]["ntps"] is None
    assert read["layers"][0]["retained"] is None
    assert math.isnan(result.layers[0].ntps)
    result.settings["odd"] = {"deep": [float("inf"), (1.0, float("nan"))]}
    assert json.loads(result.to_json())["settings"]["odd"] == {"deep": [None, [1.0, None]]}


@pytest.mark.parametrize("convention", ["theory", "official"])
@pytest.mark.parametrize("folds", [0, 4])
def test_table_fits_a_terminal(folds, convention):
    result = make(folds=folds, convention=convention, fraction=0.5 if convention == "official" else None)
    lines = result.to_text().splitlines()
    assert max(map(len, lines)) <= 80
    heads = ["R²", "through", "V", "accuracy"] if folds else ["in", "sample", "through", "V"]
    assert lines[0].split() == ["layer", *heads, "NTPS", "chance"]
    for line, scored in zip(lines[1:4], result.layers, strict=True):
        assert line[0] == result.mark(scored.layer)
        shown = [scored.ceiling, scored.explained]
        if folds:
            shown = [scored.ceiling_heldout, scored.explained_heldout, scored.accuracy_heldout]
        shown = [f"{value:.3f}" for value in (*shown, scored.ntps, scored.chance)]
        assert line[1:].split()[: len(shown) + 1] == [str(scored.layer), *shown]
    assert "".join(line[0] for line in lines[1:4]).strip(" =") == ("*" if folds else "")
    assert str(result).startswith(f"{MODEL} on ")


def words(result):
    return " ".join(" ".join(result.sentences()).split())


def test_what_is_said_where_labels_are_held():
    result = make()
    best, scored, text = result.best, result.shown, words(result)
    assert scored.layer == best.layer
    low, high = best.interval
    assert f"* Layer {best.layer} holds" in text and f"{best.r2:.3f} [{low:.3f}, {high:.3f}]" in text
    assert f"{100 * best.r2:.0f}%" in text
    assert f"{scored.k_v} directions" in text and f"{scored.explained_heldout:.3f}" in text
    assert f"{100 * scored.retained_heldout:.0f}% of what all 10" in text
    assert f"60 texts and 10 directions, NTPS is {scored.ntps:.3f}" in text and f"{scored.chance:.3f}" in text
    for row in result.baselines:
        assert f"{row.accuracy:.2f} ({row.name})" in text
    ends = ", ".join(f"{end:.2f}" for end in result.learning.interval)
    assert f"{result.learning.twice:.2f} [{ends}]" in text
    tied = dataclasses.replace(result, best=dataclasses.replace(best, layer=1, tied=(2, 0), p_value=0.012))
    assert "and layers 0 and 2 (=) tie with it: " in words(tied) and "p = 0.012" in words(tied)
    assert [tied.mark(layer) for layer in (0, 1, 2)] == ["=", "*", "="]
    one = dataclasses.replace(tied, best=dataclasses.replace(tied.best, tied=(2,)))
    assert "and layer 2 (=) ties with it: " in words(one)
    alone = dataclasses.replace(tied, best=dataclasses.replace(tied.best, tied=()))
    assert "=:" not in words(alone) and [alone.mark(layer) for layer in (0, 1, 2)] == [" ", "*", " "]
    assert "Accuracy" not in words(make(probes=False)) and "Twice" not in words(make(probes=False))


def test_noise_is_said_to_be_held_by_no_layer():
    problem = make_problem(seed=2, n=60, d=10)
    problem.labels = np.random.default_rng(3).permutation(problem.labels)
    result = score(
        representations_of(problem, problem.texts, [np.sin(h) for h in problem.texts]), permutations=9, probes=False
    )
    assert result.best is None and result.to_dict()["best"] is None
    text = words(result)
    assert "No layer holds these labels" in text and "best" not in text.replace("The best layer of random", "")
    assert f"{result.choice.readout.r2:.3f}" in text
    why = "where the layer is chosen without the texts it is judged on"  # choice flatters the table's largest
    flattered = dataclasses.replace(result.layers[0], ceiling_heldout=result.choice.readout.r2 + 0.01)
    assert why not in text and why in words(dataclasses.replace(result, layers=[flattered, *result.layers[1:]]))
    assert "Twice as many" not in text
    assert not any("*" in line or line.startswith("=") for line in result.to_text().splitlines())
    assert "best none" in repr(result) and "font-weight" not in result._repr_html_()
    assert result.shown is result[result.choice.layer]


def test_a_v_of_all_directions_is_said_to_say_nothing():
    text = words(make(k_v=10))
    assert "NTPS says nothing here: with 10 directions V is the whole space" in text
    assert "random subspace" not in text and "says nothing here" not in words(make(k_v=9))


def test_without_folds_no_layer_is_the_best():
    result = make(folds=0)
    assert (result.best, result.choice, result.readouts, result.learning) == (None, None, {}, None)
    assert "Nothing is held out without folds" in words(result)
    assert result.shown is result.layers[-1]
    with pytest.raises(NtpsError, match="without folds"):
        result.readout()


def test_notes_name_what_limits_the_numbers():
    result = dataclasses.replace(make(), n_texts=200)
    assert result.notes() == []
    assert "fewer than 200" in dataclasses.replace(result, n_texts=199).notes()[0]
    assert dataclasses.replace(make(folds=0), n_texts=199).notes() == []
    result.metadata.update(class_sizes=[54, 3, 3], classes=["a", "b", "c"], n_repeated=1234, n_unlabelled=7)
    rare, repeated, unlabelled = result.notes()
    assert "'b' (3) and 'c' (3)" in rare and "'a'" not in rare
    assert "1,234 of 200" in repeated and unlabelled.startswith("7 texts")
    result.metadata.update(class_sizes=[2] * 9, classes=list("abcdefghi"))
    assert "'d' (2), 'e' (2) and 4 more;" in result.notes()[0]
    assert max(map(len, result.to_text().splitlines())) <= 80
    result.metadata.update(class_sizes=[0, 4, 5])  # a class without texts, one of as many texts as folds
    assert len(result.notes()) == 2
    assert "2 of 3 classes" in str(result)
    result.metadata["task_source"] = {"dropped": {"without_text": 0, "without_label": 0}}
    assert len(result.notes()) == 2
    result.metadata["task_source"] = {"dropped": {"without_text": 1, "without_label": 2000}}
    assert "1 without a text, 2,000 without a label" in result.notes()[-1]


def test_readouts_are_those_of_the_layers():
    result = make()
    for scored in result.layers:
        for through, value in (("all", scored.ceiling_heldout), ("v", scored.explained_heldout)):
            readout = result.readout(scored.layer, through=through)
            assert readout.r2 == value
            assert readout.name.endswith(f"layer {scored.layer}" + (" through V" if through == "v" else ""))
    assert (result.readout().r2, result.readout().interval()) == (result.best.r2, result.best.interval)
    assert result.readout(through="v").r2 == result.shown.explained_heldout
    with pytest.raises(NtpsError, match=r"layer is 7.*0.*2"):
        result.readout(7)
    with pytest.raises(NtpsError, match=r"through is 'u'.*all, v"):
        result.readout(through="u")


def test_table_fits_a_terminal_at_extremes():
    result = make()
    scored = dataclasses.replace(
        result.layers[0], layer=12345, ntps=1.0, ceiling_heldout=-123.4567, explained_heldout=-123.4567
    )
    full = dataclasses.replace(scored, explained_heldout=1.0, ceiling_heldout=1.0)
    text = dataclasses.replace(result, layers=(scored, full, *result.layers)).to_text()
    assert max(map(len, text.splitlines())) <= 80
    assert max(map(len, degenerate().to_text().splitlines())) <= 80


def test_html_escapes_names():
    shown = make()._repr_html_()
    assert "<script>" not in shown
    assert "&lt;script&gt;" in shown
    assert "base &lt;b&gt;&amp;" in shown
    assert shown.count("<tr") == 4
    assert shown.count("font-weight:bold") == 1


def test_what_a_score_is_read_against_stands_in_table_frame_and_picture():
    plain = make()
    full = make(permutations=9, intervals=True, control=control())
    frame = full.to_dataframe()
    wanted = {"ntps_z", "ntps_p", "ntps_shuffled", "explained_low", "explained_heldout_high", "ceiling_random"}
    assert wanted | {"ceiling_heldout_p", "ceiling_heldout_low", "retained_heldout", "accuracy_heldout"} <= {*frame}
    assert frame["ntps_standard_error"][1] == full.layers[1].interval["ntps"]["standard_error"]
    assert "ntps_low" not in frame and not make(folds=0).to_dataframe().dtypes.eq(object).any()
    assert frame["ntps_shuffled"][1] == full.layers[1].null["ntps"]["mean"]
    assert frame["ceiling_random"][1] == full.layers[1].control["ceiling"]
    for result, there in ((plain, False), (full, True)):
        text, legend = str(result), result.plot().get_legend().get_texts()
        assert max(map(len, text.splitlines())) <= 80
        assert ("shuffled" in text.splitlines()[2], "random" in text.splitlines()[2]) == (there, there)
        assert ("random weights reads R²" in words(result)) == there
        assert ("under shuffled labels" in words(result)) == there
        assert any("shuffled" in entry.get_text() for entry in legend) == there
        assert ("shuffled" in result._repr_html_()) == there
        assert ({"null", "control"} <= result.to_dict()["layers"][0].keys()) == there


def control():
    problem = make_problem(seed=2, n=60, d=10)
    mix = np.random.default_rng(1).normal(size=(10, 10))
    return representations_of(problem, *([np.tanh(h @ mix) + k for h in problem.texts] for k in range(3)))


def test_data_frame_has_a_row_per_layer():
    result = make()
    frame = result.to_dataframe()
    assert len(frame) == 3
    assert frame["ntps"].tolist() == [scored.ntps for scored in result.layers]
    assert frame["bound_raw_upper"][1] == result.layers[1].bounds["raw"][1]
    assert frame["bound_whitened_lower"][2] == result.layers[2].bounds["whitened"][0]
    assert "curve" not in frame


def test_a_layer_is_looked_up_by_its_number():
    result = make()
    assert result[2] is result.layers[2]
    with pytest.raises(KeyError, match="0, 1, 2"):
        result[7]


def test_results_are_frozen():
    result = make()
    with pytest.raises(dataclasses.FrozenInstanceError):
        result.n_texts = 3
    with pytest.raises(dataclasses.FrozenInstanceError):
        result.layers[0].ntps = 1.0


def test_above_chance():
    base = make().layers[0]
    assert dataclasses.replace(base, ntps=0.25, chance=0.25).above_chance == 0.0
    assert dataclasses.replace(base, ntps=1.0, chance=0.25).above_chance == 1.0
    assert math.isnan(dataclasses.replace(base, chance=1.0).above_chance)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, ""), (-0.4, ""), (None, ""), (math.nan, ""), (1.0, "████"), (2.0, "████"), (0.5, "██"), (0.53125, "██▏")],
)
def test_bar(value, text):
    assert bar(value, width=4) == text
