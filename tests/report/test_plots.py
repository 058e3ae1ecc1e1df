"""Pictures: what is drawn are the numbers; V and U have one colour each; the caller's figures are left alone."""

import warnings
from dataclasses import replace
from types import SimpleNamespace

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest
from helpers.results import make_study, score_result
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from ntps._names import clean
from ntps.errors import NtpsError
from ntps.report import (
    plot_against,
    plot_choice,
    plot_curve,
    plot_layers,
    plot_models,
    plot_options,
    plot_runs,
    plot_tasks,
)
from ntps.report.page import draw_picture
from ntps.report.plots import COLORS, PALETTE, setting_name
from ntps.report.study_plots import option_map
from ntps.study.records import SHARES
from ntps.study.study import OPTION_DEPTHS


@pytest.fixture
def ax():
    return Figure().add_subplot()


def lines_of(ax):
    return {line.get_label(): line for line in ax.get_lines()}


def test_layers(ax):
    result = score_result(evidence=True)
    assert plot_layers(result, ax) is ax
    lines = lines_of(ax)
    through_v = lines["R² through V (held out)"]
    assert through_v.get_ydata().tolist() == [scored.explained_heldout for scored in result.layers]
    assert to_hex(through_v.get_color()) == COLORS["V"]
    by_all = lines["R² of all 16 directions (held out)"]
    assert by_all.get_ydata().tolist() == [scored.ceiling_heldout for scored in result.layers]
    assert to_hex(by_all.get_color()) == COLORS["all"]
    assert lines["NTPS"].get_ydata().tolist() == [scored.ntps for scored in result.layers]
    for name, beside in (
        ("through V, random weights", "V"),
        ("all directions, random weights", "all"),
        ("NTPS of a random subspace", "ntps"),
    ):  # what a line is read against is dotted, in the line's colour
        assert (to_hex(lines[name].get_color()), lines[name].get_linestyle()) == (COLORS[beside], ":")
    assert any("shuffled" in text.get_text() for text in ax.get_legend().get_texts())


ODD = [
    "from_$5_to_$10",
    "$",
    "a$b^{$",
    "_hidden",
    r"\$x$ \alpha",
    "\udcff.csv",
    "\x1b[31mred",
    "x" * 3000,
    "中文 тест",
    "a\nb",
    "%s {0}",
]


@pytest.fixture
def strict_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@pytest.mark.slow
@pytest.mark.parametrize("name", ODD, ids=range(len(ODD)))
@pytest.mark.usefixtures("strict_warnings")
def test_any_name_is_drawn_as_it_is(name):
    """In titles: no formula begins, nothing is hidden, nothing warns."""
    draw_picture("x.png", "", lambda figure: plot_layers(score_result(model=name, task=name), figure.add_subplot()))


@pytest.mark.slow
@pytest.mark.usefixtures("strict_warnings")
def test_any_names_are_drawn_together_as_they_are():
    """In legends, ticks and beside points, all at once."""
    names = tuple(map(clean, ODD))  # as a study's names are
    study = make_study(models=names, n_tasks=len(names))
    tasks = dict(zip(study.tasks, names, strict=True))
    cells = tuple(replace(cell, task=tasks[cell.task]) for cell in study.cells)
    study = replace(study, tasks=names, cells=cells)
    rows = [{"task": name, "random": 0.1, "pretrained": 0.5, "ceiling": 0.6} for name in ODD]
    draw_picture("x.png", "", lambda figure: plot_tasks(rows, figure.add_subplot()))
    draw_picture("x.png", "", lambda figure: plot_models(study, figure=figure))
    draw_picture("x.png", "", lambda figure: plot_against(study, ax=figure.add_subplot()))
    ax = plot_against(study, ax=Figure().add_subplot())
    colors = {to_hex(bars.lines[0].get_color()) for bars in ax.containers}
    assert colors and not colors & {COLORS["V"], COLORS["U"]}
    assert len(ax.get_legend().get_texts()) == len(names)


def test_a_name_with_dollars_stands_in_the_title(ax):
    title = plot_layers(score_result(model="m", task="from_$5_to_$10"), ax).title
    assert title.get_text().replace("\\$", "$") == "m on from_$5_to_$10"
    assert not title._preprocess_math(title.get_text())[1]  # is it a formula?


def test_the_best_layer_and_those_that_tie_are_marked(ax):
    result = score_result()
    result = replace(result, best=replace(result.best, layer=2, tied=(3, 4)))

    def bands(result):
        axes = plot_layers(result, Figure().add_subplot())
        return {line.get_xdata()[0]: line.get_color() for line in axes.get_lines() if line.get_linewidth() == 8}

    assert bands(result) == {2: "0.85", 3: "0.95", 4: "0.95"}
    assert bands(replace(result, best=None)) == {}
    assert bands(score_result(held_out=False)) == {}


def test_intervals_are_drawn_where_they_have_ends(ax):
    result = score_result(evidence=True)
    plot_layers(result, ax)
    drawn = [segment.tolist() for lines in ax.collections if hasattr(lines, "get_segments")
             for segment in lines.get_segments()]  # fmt: skip
    for scored in result.layers:
        low, high = (scored.interval["explained_heldout"][end] for end in ("low", "high"))
        assert [[scored.layer, low], [scored.layer, high]] in drawn


def test_layers_without_folds(ax):
    result = score_result(held_out=False)
    plot_layers(result, ax)
    line = lines_of(ax)["R² of all 16 directions (in sample)"]
    assert line.get_ydata().tolist() == [scored.ceiling for scored in result.layers]


def test_a_result_draws_itself():
    ax = score_result().plot()
    assert "NTPS" in lines_of(ax)
    plt.close(ax.figure)


@pytest.mark.parametrize("curve", ["theory", "official"])
def test_curve(ax, curve):
    scored = score_result().shown
    if curve == "official":
        scored = SimpleNamespace(layer=3, d=10, curve={"fraction": [0.1, 0.9], "k_v": [1, 9], "ntps": [0.2, 0.95]})
    plot_curve(scored, ax)
    assert list(lines_of(ax)["NTPS"].get_ydata()) == scored.curve["ntps"]
    if curve == "theory":
        assert to_hex(lines_of(ax)["R² through V, held out"].get_color()) == COLORS["V"]


def test_legends_stay_off_the_data():
    for height in (2.0, 4.0, 8.0):
        figure = Figure(figsize=(6, height), layout="constrained")
        ax = plot_layers(score_result(evidence=True), figure.add_subplot())
        figure.draw_without_rendering()
        legend, label = ax.get_legend().get_window_extent(), ax.xaxis.label.get_window_extent()
        assert legend.y1 <= label.y0 + 1
        assert label.y1 <= min(tick.label1.get_window_extent().y0 for tick in ax.xaxis.get_major_ticks()) + 1
        assert figure.bbox.y0 <= legend.y0


def test_tasks(ax):
    rows = [
        {"task": "first", "random": 0.1, "pretrained": 0.8, "ceiling": 0.9},
        {"task": "second", "random": 0.2, "pretrained": 0.3, "ceiling": -0.2},
    ]
    plot_tasks(rows, ax)
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["first", "second"]
    drawn = {collection.get_label(): collection.get_offsets().tolist() for collection in ax.collections}
    assert drawn["pretrained, through V"] == [[0.8, 1], [0.3, 0]]
    assert drawn["pretrained, all directions"] == [[0.9, 1], [-0.2, 0]]
    colors = {collection.get_label(): to_hex(collection.get_facecolor()[0]) for collection in ax.collections[1:]}
    assert colors["pretrained, through V"] == COLORS["V"] and colors["pretrained, all directions"] == COLORS["all"]
    assert ax.get_xlim()[0] < -0.2


def run(rank=8, alpha=8, method="lora", **changes):
    curve = [{"step": step, "validation_accuracy": 0.5 + step / 100} for step in (0, 10, 20)]
    values = {"model": "m", "task": "t", "seed": 0, "n_train": 5, "n_test": 6, "gain": 0.1, "gain_standard_error": 0.02}
    side = SimpleNamespace(next_token_loss=2.0)
    settings = {"method": method, "rank": rank, "alpha": alpha}
    values |= {"settings": settings, "curve": curve, "before": side, "after": side, "intruders": [{"count": 3}]}
    return SimpleNamespace(**values | changes)


def test_runs():
    figure = Figure(figsize=(9, 4), layout="constrained")
    axes = figure.subplots(1, 2)
    results = [run(), run(rank=2, alpha=2), run(alpha=16), run(method="full")]
    assert [setting_name(result) for result in results] == ["rank 8", "rank 2", "rank 8, α = 16", "all weights"]
    assert plot_runs(results, axes) is axes
    assert [line.get_ydata().tolist() for line in axes[0].get_lines()] == [[0.5, 0.6, 0.7]] * 4
    assert figure.legends[0].get_texts()[0].get_text() == "rank 8: 3 intruders"
    assert not {line.get_color() for line in axes[0].get_lines()} & {COLORS["V"], COLORS["U"]}


def test_the_palette_for_all_else_has_none_of_the_colours_of_v_u_and_all_directions():
    taken = {COLORS["V"], COLORS["U"], COLORS["all"]}
    assert len(taken) == 3 and len(set(PALETTE)) == len(PALETTE) and not set(PALETTE) & taken


@pytest.mark.parametrize("others", [[], [run()], [run(rank=2, task="u")], [run(rank=2, curve=[{"step": 5}])]])
def test_runs_that_cannot_be_compared_are_refused(others):
    with pytest.raises(NtpsError):
        plot_runs([run(), *others])


def test_study(ax):
    study = make_study()
    frame = study.frame()
    plot_against(study, "ntps", ax, models=["one"])
    (drawn,) = ax.containers
    rows = frame[(frame["model"] == "one") & (frame["status"] == "done")]
    assert drawn.lines[0].get_xdata().tolist() == rows["ntps"].tolist()
    assert drawn.lines[0].get_ydata().tolist() == rows["balanced_accuracy"].tolist()
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["one"]


def test_a_small_picture_for_each_model():
    study = make_study()
    correlations = study.correlations(n_permutations=99)
    figure = plot_models(study, "ntps", Figure(), correlations=correlations)
    rows = study.frame().set_index(["model", "task"])
    for ax, model in zip(figure.axes, study.models, strict=True):
        low, high = correlations["ntps"]["per_model"][model]["interval"]
        assert ax.get_title().startswith(model) and f"[{low:+z.2f}, {high:+z.2f}]" in ax.get_title()
        points = {text.get_text(): text.xy for text in ax.texts}
        row = rows.loc[(model, "miniworld/task0")]
        assert points["task0"] == (row["ntps"], row["balanced_accuracy"])
        assert all(len(name) <= 18 for name in points)
    assert "Spearman" not in plot_models(study, "ntps", Figure()).axes[0].get_title()


def test_options_and_choice(ax):
    study = make_study()
    correlations = option_map(study, "explained")
    assert correlations.shape == (len(OPTION_DEPTHS), len(SHARES))
    assert np.abs(correlations).max() <= 1 + 1e-12
    assert not np.array_equal(correlations, option_map(study, "explained", permute=0))
    plot_options(study, "explained", ax)
    assert [text.get_text() for text in ax.texts] == [f"{value:.2f}" for value in correlations.ravel()]
    plot_choice(study, "ntps", Figure().add_subplot())


def test_pictures_leave_the_caller_alone():
    before, figures = dict(matplotlib.rcParams), plt.get_fignums()  # other tests may leave figures open
    with plt.style.context("dark_background"):
        dark = draw_picture("a.png", "a", lambda figure: plot_layers(score_result(), figure.add_subplot()))
    light = draw_picture("a.png", "a", lambda figure: plot_layers(score_result(), figure.add_subplot()))
    assert dark == light and light.png.startswith(b"\x89PNG") and not light.wide
    assert light.source.startswith("data:image/png;base64,")
    assert plt.get_fignums() == figures and dict(matplotlib.rcParams) == before
