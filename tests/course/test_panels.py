"""What every panel keeps to, and that each shows the library's own numbers; all without a browser."""

import math
import re
import time
from dataclasses import replace

import numpy as np
import pytest

from ntps.course.widgets import (
    BoundsPanel,
    Choice,
    LinearWorldPanel,
    LoraPanel,
    SelectionPanel,
    SpectraPanel,
    between_groups,
    plane_coordinates,
)
from ntps.course.widgets.selection import NAMES, TASKS
from ntps.errors import NtpsError
from ntps.report.plots import setting_name
from ntps.scoring import read_layer
from ntps.study import grid_spearman

pytestmark = pytest.mark.slow

FRAME_SECONDS = 0.5  # ten times the 50 ms that a frame may take: the machine that runs this may be busy


def picture(panel) -> np.ndarray:
    return panel.pixels().copy()


def plain(text: str) -> str:
    return re.sub(r"<[^>]+>", "", text)


def range_of(panel, control) -> tuple[float, float]:
    return panel.limits().get(control.name, (control.low, control.high))


def another(panel, control):
    """Another value of a control, a step away."""
    old = panel.state[control.name]
    if isinstance(control, Choice):
        return next(option for option in control.options if option != old)
    return old + control.step if old + control.step <= range_of(panel, control)[1] else old - control.step


# The contract --------------------------------------------------------------------------------------------------------


def test_every_control_changes_the_picture_and_its_size_stays(panel):
    for name, control in panel.controls.items():
        before, old = picture(panel), panel.state[name]
        after = picture(panel.set(**{name: another(panel, control)}))
        assert after.shape == before.shape
        assert (after != before).any(), name
        panel.set(**{name: old})
        if not isinstance(control, Choice):  # a choice may have cut back a rank
            assert (picture(panel) == before).all(), f"{name}: the way back gives another picture"


def test_blitting_shows_what_a_full_drawing_shows(panel):
    panel.pixels()
    for name, control in panel.controls.items():
        panel.set(**{name: control.options[-1] if isinstance(control, Choice) else range_of(panel, control)[1]})
    blitted = picture(panel)
    panel.redraw_all()
    assert (picture(panel) == blitted).all()


def test_nothing_is_drawn_before_a_picture_is_asked_for_and_one_figure_is_reused(panel):
    assert "figure" not in vars(panel)
    panel.set(**{name: another(panel, control) for name, control in panel.controls.items()})
    assert panel.reading() and "figure" not in vars(panel)
    panel.pixels()
    figure, n_artists = panel.figure, len(panel.figure.findobj())
    for name, control in panel.controls.items():
        if not isinstance(control, Choice):
            for value in range_of(panel, control):
                panel.set(**{name: value}).pixels()
    assert panel.figure is figure
    assert len(figure.findobj()) == n_artists


def test_a_frame_is_fast(panel):
    slider = next(control for control in panel.controls.values() if not isinstance(control, Choice))
    seconds = []
    whole = float(slider.step).is_integer()
    for value in np.linspace(slider.low, slider.high, 5).round().astype(int if whole else float).tolist():
        start = time.process_time()  # neighbours do not count
        panel.set(**{slider.name: value}).png()
        seconds.append(time.process_time() - start)
    assert np.median(seconds) < FRAME_SECONDS


def test_bad_states_are_refused(panel):
    with pytest.raises(NtpsError, match=r"control.*volume"):
        panel.set(volume=11)
    for name, control in panel.controls.items():
        with pytest.raises(NtpsError, match=name):
            panel.set(**{name: "nowhere" if isinstance(control, Choice) else control.high + 1})


def test_ipywidgets_around_it(panel):
    pytest.importorskip("ipywidgets")
    box = panel.show()
    assert {"ntps-panel", f"ntps-panel-{panel.letter}"} <= set(box._dom_classes)
    assert [child for child in box.children if "ntps-picture" in child._dom_classes] == [box.picture]
    assert box.picture.value[:4] == b"\x89PNG"
    assert int(box.picture.width) <= 640
    for name, control in panel.controls.items():
        widget = box.inputs[name]
        kind = "choice" if isinstance(control, Choice) else "slider"
        assert f"ntps-{kind}-{name.replace('_', '-')}" in widget._dom_classes
        assert widget.description == control.label
        before, old = box.picture.value, widget.value
        widget.value = another(panel, control)
        assert box.picture.value != before, name
        widget.value = old
    assert plain(panel.reading()) == plain(box.text.value)
    assert 'role="status"' in box.text.value
    assert box.picture.tooltip is None, "JupyterLab shows an error instead of an Image that has a tooltip"


# Panel B: spectra ----------------------------------------------------------------------------------------------------


def test_plane_coordinates_are_standardised():
    rng = np.random.default_rng(0)
    at = plane_coordinates(rng.standard_normal((50, 4)) + 3, rng.standard_normal((4, 2)))
    assert np.allclose(at.mean(0), 0)
    assert np.allclose(at.std(0), 1)


def test_between_groups_is_a_share_of_variance():
    groups = ["a"] * 100 + ["b"] * 100 + [None] * 50
    rng = np.random.default_rng(0)
    apart = np.concatenate([np.full(100, -1.0), np.full(100, 1.0), rng.standard_normal(50) * 99])
    shares = between_groups(np.stack([apart, rng.standard_normal(250)], axis=1), groups)
    assert shares[0] == pytest.approx(1)
    assert shares[1] < 0.05


def test_spectra_panel_reads_the_score_and_names_the_most_frequent_word(representations, words):
    panel = SpectraPanel(representations["three"], words).set(layer=2, rank=5)
    panel.pixels()
    scored = read_layer(panel.solved[2], k_u=3, k_v=5)
    assert f"NTPS {scored.ntps:.2f}" in panel.reading()
    most_frequent = {kind: max(np.flatnonzero(np.array(words.kinds) == kind)) for kind in words.kinds}
    assert {note.get_text() for note in panel.notes["V"]} == {f"word{index}" for index in most_frequent.values()}


def test_spectra_panel_refuses_what_does_not_fit(representations, words):
    with pytest.raises(NtpsError, match="different models"):
        SpectraPanel(representations["three"], replace(words, means=words.means[:, :, :5]))
    with pytest.raises(NtpsError, match=r"kind has 3 groups for 40"):
        SpectraPanel(representations["three"], words, {"kind": words.kinds[:3]})
    with pytest.raises(NtpsError, match="more than 8"):
        SpectraPanel(representations["three"], words, {"word": words.words})


@pytest.mark.parametrize(
    ("label_angle", "sides"),
    [(27, ["right", "left"]), (33, ["left", "right"]), (60, ["center", "center"])],
)
def test_names_of_near_directions_stand_apart(label_angle, sides):
    panel = LinearWorldPanel().set(next_angle=30, label_angle=label_angle)
    panel.png()
    assert [name.get_ha() for name in panel.names] == sides
    panel.set(label_angle=30).png()
    assert {name.get_ha() for name in panel.names} == {"left", "right"}


# Panel C: bounds -----------------------------------------------------------------------------------------------------


def test_bounds_panel_shows_what_the_score_says(representations):
    panel = BoundsPanel(representations)
    for (task, layer), solved in panel.solved.items():
        for k_u in (1, solved.U.rank):
            for k_v in (k_u, 7):
                panel.set(task=task, layer=layer, k_u=k_u, k_v=k_v)
                scored, curves = read_layer(solved, k_u=k_u, k_v=k_v), panel.curves()
                assert curves["ntps"][k_v - 1] == pytest.approx(scored.ntps)
                assert curves["excess"][k_v - 1] == pytest.approx(scored.excess_loss, abs=1e-9)
                for kind in ("raw", "whitened"):
                    low, high = curves[kind][:, k_v - 1]
                    assert (low, high) == pytest.approx(scored.bounds[kind], abs=1e-9)
                    assert low - 1e-9 <= curves["excess"][k_v - 1] <= high + 1e-9
                assert f"{scored.ntps:.3f}" in panel.reading()


def test_bounds_panel_writes_what_rounding_left_of_zero_as_zero(representations):
    panel = BoundsPanel(representations)
    panel.set(k_u=panel.current.U.rank, k_v=panel.current.V.rank)
    assert "Excess loss 0, exactly; whitened bounds [0, 0], raw bounds [0, 0]" in plain(panel.reading())
    panel.set(k_v=1)
    assert "e+" not in panel.reading() and "e-" not in panel.reading()


def test_correlations_follow_the_task(representations):
    pytest.importorskip("ipywidgets")
    panel = BoundsPanel(representations)
    box = panel.show()
    box.inputs["k_u"].value = 3
    box.inputs["task"].value = "two"
    assert (box.inputs["k_u"].value, box.inputs["k_u"].max, panel.state["k_u"]) == (2, 2, 2)
    box.inputs["task"].value = "three"
    assert box.inputs["k_u"].max == 3


def test_bounds_panel_refuses_what_does_not_fit(representations):
    with pytest.raises(NtpsError, match="representations is empty"):
        BoundsPanel({})


# Panel D: selection --------------------------------------------------------------------------------------------------


def test_the_correlation_is_that_of_the_option(study):
    panel = SelectionPanel(study).set(layer=3, rank=2)
    values, options = study.options("ntps")
    targets = study.table("balanced_accuracy").to_numpy(dtype=float)
    chosen = options.index({"depth": 0.75, "share": 1 / 16})
    assert panel.correlation == pytest.approx(grid_spearman(values[chosen], targets, n_permutations=1).spearman)
    assert f"correlation {panel.correlation:+z.2f} here" in plain(panel.reading())


def test_layers_and_ranks_are_chosen_by_name(study):
    pytest.importorskip("ipywidgets")
    box = SelectionPanel(study).show()
    box.inputs["layer"].label, box.inputs["rank"].label = "last", "1/4"
    assert (box.inputs["layer"].value, box.inputs["rank"].value) == (4, 4)
    panel = SelectionPanel(study).set(layer=4, rank=4)
    assert f"correlation {panel.correlation:+z.2f} here" in plain(box.text.value)


def test_the_p_value_of_the_best_choice_is_never_shown_as_zero(study):
    panel = SelectionPanel(study)
    for quantity in NAMES:
        for tasks in TASKS:
            text = plain(panel.set(quantity=quantity, tasks=tasks).reading())
            assert float(text.partition("p = ")[2].rstrip(".")) >= 0.001


def test_every_quantity_of_the_selection_panel_is_one_of_the_study(study):
    panel = SelectionPanel(study)
    for quantity, name in NAMES.items():
        assert np.array_equal(panel.values[quantity], study.options(name)[0])


def test_too_few_tasks_are_refused(study):
    with pytest.raises(NtpsError, match="at least 4"):
        SelectionPanel(replace(study, tasks=study.tasks[:3]))


# Panel E: fine-tuning runs -------------------------------------------------------------------------------------------


def test_the_reading_says_what_the_runs_say(runs):
    panel = LoraPanel(runs)
    assert panel.state == {"setting": "rank 2", "step": 6}
    for run in runs:
        for evaluation in run.curve:
            panel.set(setting=setting_name(run), step=evaluation["step"])
            text = plain(panel.reading())
            assert panel.evaluation == evaluation
            accuracy = evaluation["validation_accuracy"]
            assert f"step {evaluation['step']}: validation accuracy {accuracy:.2f}" in text
            if run.best_step:
                assert f"step {run.best_step}, {100 * run.gain:+z.1f} points" in text
                assert f"{sum(row['count'] for row in run.intruders)} of " in text
            else:
                assert "the probe was kept" in text
    assert any(run.best_step for run in runs), "no run kept a step: the test says nothing"


def test_a_step_between_two_evaluations_is_the_nearest_one(runs):
    assert LoraPanel(runs).set(step=3.4).evaluation["step"] == 4


def test_a_run_that_kept_the_probe(runs):
    still = replace(runs[0], best_step=0, after=runs[0].before)
    assert "the probe was kept" in LoraPanel([still, *runs[1:]]).reading()


def test_bars_are_the_outcomes(runs):
    panel = LoraPanel(runs).set(setting="all weights")
    panel.pixels()
    run = runs[2]
    cost = run.after.next_token_loss - run.before.next_token_loss
    expected = [100 * run.gain, cost, sum(row["count"] for row in run.intruders)]
    assert [bar.get_width() for bar in panel.bars] == pytest.approx(expected)


def test_runs_without_a_language_model_head(runs):
    bare = [replace(run, before=replace(run.before, next_token_loss=None)) for run in runs]
    panel = LoraPanel(bare).set(setting="all weights")
    assert panel.png()
    assert math.isnan(panel.outcomes["all weights"][1])
    assert panel.bars[1].get_width() == 0
    assert "nats" not in panel.reading()


def test_runs_that_do_not_fit_are_refused(runs):
    with pytest.raises(NtpsError, match="at least 2"):
        LoraPanel(runs[:1])
    with pytest.raises(NtpsError, match="task"):
        LoraPanel([runs[0], replace(runs[1], task="another")])
