"""What a result looks like: keys, types, JSON, the table in a terminal, HTML in a notebook."""

import dataclasses
import json
import math

import numpy as np
import pytest
from helpers.problems import make_problem, representations_of

from ntps._text import bar
from ntps.scoring import ScoreResult, score

TOP = {
    "schema_version", "model", "task", "n_texts", "n_tokens", "n_classes", "d", "convention", "best_layer", "settings",
    "provenance", "layers",
}  # fmt: skip
LAYER = {
    "layer", "d", "rank_m", "rank_u", "rank_v", "k_u", "k_v", "ntps", "chance", "ntps_whitened", "excess_loss",
    "bounds", "explained", "ceiling", "retained", "curve",
}  # fmt: skip
MODEL, TASK = "base <b>&\"'", "<script>alert(1)</script>"


def make(layers=3, folds=4, **options):
    problem = make_problem(seed=2, n=60, d=10)
    stacks = [[h + layer * np.sin(h) for h in problem.texts] for layer in range(layers)]
    made = {"model": MODEL, "settings": {"prefix": "sum", "seed": 9}, "version": "0"}
    representations = representations_of(problem, *stacks, metadata=made)
    task = dataclasses.replace(representations.task, name=TASK)
    return score(dataclasses.replace(representations, task=task), folds=folds, **options)


def result_of(*layers):
    return ScoreResult(layers=layers, convention="theory", n_texts=1, n_tokens=1, n_classes=2)


@pytest.mark.parametrize("folds", [0, 4])
@pytest.mark.parametrize("convention", ["theory", "official"])
def test_json_holds_every_key(folds, convention):
    result = make(folds=folds, convention=convention)
    text = result.to_json()
    read = json.loads(text, parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))
    assert read == json.loads(json.dumps(result.to_dict()))
    assert read.keys() == TOP
    assert (read["schema_version"], read["convention"], read["d"]) == (1, convention, 10)
    assert (read["n_texts"], read["n_classes"]) == (60, 3)
    assert (read["model"], read["task"]) == (MODEL, TASK)
    assert read["settings"] == {
        "prefix": "sum", "seed": 0, "folds": folds, "k_u": None, "k_v": None, "center": False, "rtol": None,
        "permutations": 0, "intervals": False,
    }  # fmt: skip
    assert read["provenance"]["version"] == "0"
    assert [layer["layer"] for layer in read["layers"]] == [0, 1, 2]
    for layer in read["layers"]:
        assert layer.keys() == LAYER | ({"explained_heldout", "ceiling_heldout", "interval"} if folds else set())
        for key in ("layer", "rank_u", "rank_v", "k_u", "k_v"):
            assert type(layer[key]) is int
        for key in ("ntps", "chance", "excess_loss", "explained", "ceiling", "retained"):
            assert type(layer[key]) is float
        assert layer["bounds"].keys() == {"raw", "whitened"}
        assert all(len(pair) == 2 for pair in layer["bounds"].values())
        curve = layer["curve"]
        if convention == "official":
            assert curve.keys() == {"fraction", "ntps"}
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
                assert curve[key][here] == layer[key]


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
    result = make(folds=folds, convention=convention)
    lines = result.to_text().splitlines()
    assert max(map(len, lines)) <= 80
    assert ("V held out" in lines[0]) == bool(folds)
    assert ("explained" in lines[0]) == (not folds)
    assert [line[0] for line in lines[1:4]].count("*") == 1
    best = lines[1 + result.layers.index(result.best)]
    assert best.startswith("*")
    assert f"{result.best.ntps:.3f}" in best
    assert f"Layer {result.best.layer} is best" in result.to_text()
    assert str(result).startswith(f"{MODEL} on ")


def test_table_fits_a_terminal_at_extremes():
    result = make()
    scored = dataclasses.replace(
        result.layers[0], layer=12345, ntps=1.0, excess_loss=123456.7891, retained=1.0, explained_heldout=-123.4567
    )
    full = dataclasses.replace(scored, explained_heldout=1.0)
    text = result_of(scored, full, *result.layers).to_text()
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
    assert {"ntps_z", "ntps_p", "ntps_shuffled", "explained_low", "explained_heldout_high", "ceiling_random"} <= {
        *frame
    }
    assert frame["ntps_shuffled"][1] == full.layers[1].null["ntps"]["mean"]
    assert frame["ceiling_random"][1] == full.layers[1].control["ceiling"]
    for result, there in ((plain, False), (full, True)):
        text, legend = str(result), result.plot().get_legend().get_texts()
        assert max(map(len, text.splitlines())) <= 80
        assert ("shuffled" in text, "random" in text.splitlines()[2]) == (there, there)
        assert ("Random weights explain" in " ".join(text.split())) == there
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


def test_best_layer_is_judged_held_out_where_there_are_folds():
    result = make()
    base = result.layers[0]
    inside = dataclasses.replace(base, layer=0, explained=0.9, explained_heldout=0.3, ceiling_heldout=0.4)
    outside = dataclasses.replace(base, layer=1, explained=0.2, explained_heldout=0.15, ceiling_heldout=0.5)
    unknown = dataclasses.replace(base, layer=2, ceiling_heldout=math.nan)
    assert result_of(unknown, inside, outside).best.layer == 1
    plain = [dataclasses.replace(s, explained_heldout=None, ceiling_heldout=None) for s in (inside, outside)]
    assert result_of(*plain).best.layer == 0


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
