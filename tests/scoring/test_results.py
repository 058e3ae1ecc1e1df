"""What a result looks like: keys, types, JSON, the table in a terminal, HTML in a notebook."""

import dataclasses
import json
import math

import pytest
import torch
from helpers.problems import make_problem, moments_of, pad_batch

from ntps._text import bar
from ntps.core.accumulator import MomentAccumulator
from ntps.core.solve import score
from ntps.scoring.results import ScoreResult

TOP = {"schema_version", "model", "task", "n_texts", "n_tokens", "n_classes", "d", "convention", "settings", "layers"}
LAYER = {
    "layer", "rank_u", "rank_v", "k_u", "k_v", "ntps", "chance", "excess_loss", "bounds", "explained", "ceiling",
    "retained",
}  # fmt: skip
NAMES = {"model": "base <b>&\"'", "task": "<script>alert(1)</script>", "settings": {"seed": 3}, "version": "0"}


def make(layers=3, folds=4, convention="theory"):
    problem = make_problem(seed=2, n=60, d=10)
    accumulator = MomentAccumulator(layers=range(layers), width=10, n_targets=3, folds=folds)
    hidden, mask = pad_batch(problem.texts)
    stack = [hidden + layer * hidden.sin() for layer in range(layers)]
    accumulator.update(
        stack, mask, torch.from_numpy(problem.labels), torch.from_numpy(problem.folds) if folds else None
    )
    return score(accumulator.finalize(NAMES), convention=convention)


@pytest.mark.parametrize("folds", [0, 4])
@pytest.mark.parametrize("convention", ["theory", "official"])
def test_json_holds_every_key_and_no_others_by_halves(folds, convention):
    result = make(folds=folds, convention=convention)
    text = result.to_json()
    read = json.loads(text, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))
    assert read == json.loads(json.dumps(result.to_dict()))
    assert read.keys() >= TOP
    assert (read["schema_version"], read["convention"], read["d"]) == (1, convention, 10)
    assert (read["n_texts"], read["n_classes"]) == (60, 3)
    assert (read["model"], read["task"]) == (NAMES["model"], NAMES["task"])
    assert read["settings"] == {"seed": 3, "prefix": "sum", "folds": folds, "center": False, "rtol": None}
    assert read["provenance"]["version"] == "0"
    assert [layer["layer"] for layer in read["layers"]] == [0, 1, 2]
    for layer in read["layers"]:
        assert layer.keys() >= LAYER
        assert {"explained_heldout", "ceiling_heldout"} & layer.keys() == (
            {"explained_heldout", "ceiling_heldout"} if folds else set()
        )
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
    return score(moments_of(problem, folds=4))


def test_numbers_that_json_has_no_word_for_become_null():
    result = degenerate()
    read = json.loads(result.to_json(), parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))
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
    assert str(result).startswith(f"{NAMES['model']} on ")


def test_table_fits_a_terminal_at_extremes():
    result = make()
    scored = dataclasses.replace(
        result.layers[0], layer=12345, ntps=1.0, excess_loss=123456.7891, retained=1.0, explained_heldout=-123.4567
    )
    full = dataclasses.replace(scored, explained_heldout=1.0)
    text = ScoreResult((scored, full, *result.layers), "theory", 1, 1, 1, {}, {}).to_text()
    assert max(map(len, text.splitlines())) <= 80
    assert max(map(len, degenerate().to_text().splitlines())) <= 80


def test_html_escapes_names():
    shown = make()._repr_html_()
    assert "<script>" not in shown
    assert "&lt;script&gt;" in shown
    assert "base &lt;b&gt;&amp;" in shown
    assert shown.count("<tr") == 4
    assert shown.count("font-weight:bold") == 1


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
    made = ScoreResult((unknown, inside, outside), "theory", 1, 1, 2)
    assert made.best.layer == 1
    plain = [dataclasses.replace(s, explained_heldout=None, ceiling_heldout=None) for s in (inside, outside)]
    assert ScoreResult(tuple(plain), "theory", 1, 1, 2).best.layer == 0


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
