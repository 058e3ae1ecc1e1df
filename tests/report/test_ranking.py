"""The page of a ranking: whole, escaped, with every picture; pictures of one model and of many."""

import json
import math
from dataclasses import replace

import matplotlib.pyplot as plt
import pandas as pd
import pytest
from helpers.pages import check_page
from helpers.results import EVIL, make_ranking

from ntps.errors import NtpsError
from ntps.report import plot_depths, plot_learning, plot_ranking, write_ranking
from ntps.study.ranking_results import HardText


def test_one_ranking(tmp_path):
    ranking = make_ranking()
    paths = write_ranking(ranking, tmp_path)
    assert sorted(path.name for path in paths) == [
        "labels.png", "layers.png", "models.png", "ranking.csv", "ranking.json", "report.html",
    ]  # fmt: skip
    check_page(tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert EVIL not in page and "&lt;script&gt;" in page
    for words in ("Which model for task?", "behind the best", "Would more labels help?", "Texts that every model gets"):
        assert words in page, words
    assert page.count("<img") == 3
    assert json.loads((tmp_path / "ranking.json").read_text()) == ranking.to_dict()
    assert pd.read_csv(tmp_path / "ranking.csv").model.tolist() == [model.name for model in ranking.models]


@pytest.mark.slow
def test_several_label_columns(tmp_path):
    write_ranking([make_ranking(), make_ranking({"a": 0.5}, label_column="stars / five")], tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert "<h2>stars / five</h2>" in page
    assert len(list(tmp_path.glob("models-*.png"))) == 2
    assert pd.read_csv(tmp_path / "ranking.csv").labels.tolist() == ["label"] * 3 + ["stars / five"]
    with pytest.raises(NtpsError, match="rankings is empty"):
        write_ranking([], tmp_path)


def test_what_is_not_there_is_left_out(tmp_path):
    ranking = make_ranking({"one": 0.5})
    bare = replace(
        ranking,
        models=tuple(replace(model, learning=None) for model in ranking.models),
        fresh_weights=None,
        hard_texts=(),
    )
    write_ranking(bare, tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert "Would more labels" not in page and "gets wrong" not in page and page.count("<img") == 2


def test_texts_that_every_model_gets_wrong_are_shown_by_kind(sketches, tmp_path):
    one = HardText(index=2, label="rude: no", predicted="rude: yes", margin=-0.4, text="a text")
    ranking = replace(make_ranking(), kind="multilabel", hard_texts=(one,))
    write_ranking(ranking, tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert "<th>margin</th>" in page and ">rude: yes</td><td>-0.40</td>" in page and "off by" not in page
    one = replace(one, label=1234.5, predicted=1 / 3, margin=-2.51)
    write_ranking(replace(ranking, kind="regression", hard_texts=(one,)), tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert "<td>1234</td><td>0.3333</td><td>2.5</td>" in page and "<b>Off by</b>" in page and "Margin" not in page


def test_depth_is_a_share_of_the_model_whichever_layers_were_read(sketches):
    """Layers 0 to 2 of models of 13 and 5: the last one that was read is not the last one of the model."""
    ranking = make_ranking({"deep": 0.8, "shallow": 0.6})
    models = [
        replace(model, layers=model.layers[:3], n_layers=13 if model.name == "deep" else 5) for model in ranking.models
    ]
    ax = plot_depths(replace(ranking, models=tuple(models), fresh_weights=replace(models[0], name="fresh")))
    drawn = {line.get_label(): line.get_xdata() for line in ax.lines}
    assert list(drawn["shallow"]) == [0, 1 / 4, 2 / 4]
    assert list(drawn["deep"]) == list(drawn["fresh"]) == [0, 1 / 12, 2 / 12]
    assert "n_layers" in json.dumps(models[0].to_dict())


def test_low_values_are_drawn_larger_and_no_trend_is_promised_where_there_is_none(sketches, tmp_path):
    ranking = make_ranking({"one": 0.1, "two": 0.05})
    assert plot_depths(replace(ranking, fresh_weights=None)).get_ylim()[1] < 0.2
    assert plot_depths(make_ranking({"one": 0.8})).get_ylim()[1] > 1
    assert "expected" in plot_learning(ranking).get_xlabel()
    models = [replace(model, learning=replace(model.learning, twice=math.nan)) for model in ranking.models]
    flat = replace(ranking, models=tuple(models))
    ax = plot_learning(flat)
    assert "expected" not in ax.get_xlabel() and max(ax.get_xticks()) == models[0].learning.n[-1]
    for found, expected in ((ranking, True), (flat, False)):
        write_ranking(found, tmp_path)
        page = (tmp_path / "report.html").read_text()
        assert ("twice as many, expected" in page) == expected and ("give no trend" in page) != expected


@pytest.mark.slow
@pytest.mark.parametrize("plot", [plot_ranking, plot_depths, plot_learning])
@pytest.mark.parametrize("names", [("one",), tuple(f"$model_{number}$ " + "x" * 60 for number in range(12))])
def test_pictures_of_one_and_of_many_models(plot, names):
    ranking = make_ranking({name: 0.3 + 0.02 * number for number, name in enumerate(names)})
    ax = plot(ranking)
    ax.figure.canvas.draw()  # a name that were taken for a formula would fail here
    drawn = [
        text.get_text() for text in (ax.get_yticklabels() if plot is plot_ranking else ax.get_legend().get_texts())
    ]
    assert len(drawn) >= min(len(names), 8)
    plt.close(ax.figure)
