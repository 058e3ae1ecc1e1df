"""Panel E and the checks of lesson 04: the panel's numbers, its still picture, planted wrong answers for each check."""

import math
import re
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pytest
from helpers.problems import order_task

from ntps.course import checks as checks_lora
from ntps.course.checks.linear import CheckFailed
from ntps.course.widgets.lora_panel import LoraPanel, intruder_count, next_token_cost, plot_runs, setting_name
from ntps.errors import NtpsError
from ntps.finetune.compare import before_and_after
from ntps.finetune.settings import TrainSettings

SHORT = {"steps": 6, "evaluate_every": 2, "batch_size": 8, "learning_rate": 1e-2, "margin": 0}
QUICK = {"folds": 0, "layers": -1, "changes": False, "progress": False}


@pytest.fixture(scope="module")
def runs(tiny_llama):
    settings = [TrainSettings(rank=2, alpha=2, **SHORT), TrainSettings(rank=2, alpha=64, **SHORT),
                TrainSettings(method="full", **SHORT)]  # fmt: skip
    return [before_and_after(str(tiny_llama), order_task(80), settings=each, **QUICK) for each in settings]


class TestPanel:
    def test_every_control_changes_the_picture(self, runs):
        panel = LoraPanel(runs)
        before = panel.png()
        assert panel.state == {"setting": "rank 2", "step": 6}
        for name, value in (("step", 2), ("setting", "rank 2, α = 64"), ("step", 0), ("setting", "all weights")):
            panel.set(**{name: value})
            after = panel.png()
            assert after != before, (name, value)
            before = after

    def test_blitting_shows_what_a_full_drawing_shows(self, runs):
        panel = LoraPanel(runs).set(setting="all weights", step=4)
        quick = panel.png()
        panel.redraw_all()
        assert panel.png() == quick

    def test_the_reading_says_what_the_runs_say(self, runs):
        panel = LoraPanel(runs)
        for run in runs:
            for look in run.curve:
                panel.set(setting=setting_name(run), step=look["step"])
                said = re.sub("<[^>]+>", "", panel.reading())
                assert panel.look == look
                assert f"step {look['step']}: validation accuracy {look['validation_accuracy']:.2f}" in said
                if run.best_step:
                    assert f"step {run.best_step}, {100 * run.gain:+.1f} points" in said
                    assert f"{sum(row['count'] for row in run.intruders)} of " in said
                else:
                    assert "the probe was kept" in said
        assert any(run.best_step for run in runs), "no run kept a step: the test says nothing"

    def test_a_step_between_two_looks_is_the_nearest_one(self, runs):
        assert LoraPanel(runs).set(step=3.4).look["step"] == 4

    def test_a_run_that_kept_the_probe(self, runs):
        still = replace(runs[0], best_step=0, after=runs[0].before)
        panel = LoraPanel([still, *runs[1:]])
        assert "the probe was kept" in panel.reading()

    def test_bars_are_the_outcomes(self, runs):
        panel = LoraPanel(runs).set(setting="all weights")
        widths = [bar.get_width() for bar in panel.bars]
        run = runs[2]
        wanted = [100 * run.gain, run.after.next_token_loss - run.before.next_token_loss, intruder_count(run)]
        assert widths == pytest.approx(wanted)

    def test_without_a_language_model_head(self, runs):
        bare = [replace(run, before=replace(run.before, next_token_loss=None)) for run in runs]
        assert math.isnan(next_token_cost(bare[0]))
        panel = LoraPanel(bare).set(setting="all weights")
        assert panel.png()
        assert "nats" not in panel.reading()

    def test_ipywidgets_around_it(self, runs):
        pytest.importorskip("ipywidgets")
        box = LoraPanel(runs).show()
        assert {"ntps-panel", "ntps-panel-e"} <= set(box._dom_classes)
        assert int(box.picture.width) <= 640
        before = box.picture.value
        box.inputs["step"].value = 2
        assert box.picture.value != before
        before = box.picture.value
        box.inputs["setting"].value = "all weights"
        assert box.picture.value != before
        assert 'role="status"' in box.text.value

    def test_what_does_not_fit_is_refused(self, runs):
        with pytest.raises(NtpsError, match="at least 2"):
            LoraPanel(runs[:1])
        with pytest.raises(NtpsError, match="3 runs of 2 settings"):
            LoraPanel([*runs[:2], runs[0]])
        with pytest.raises(NtpsError, match="differ in model, task"):
            LoraPanel([runs[0], replace(runs[1], task="another")])
        with pytest.raises(NtpsError, match="different steps"):
            LoraPanel([runs[0], replace(runs[1], curve=runs[1].curve[:-1])])
        with pytest.raises(NtpsError, match="setting is"):
            LoraPanel(runs).set(setting="rank 7")


class TestStill:
    def test_it_shows_the_curves_and_the_outcomes(self, runs):
        way, price = plot_runs(runs)
        for line, run in zip(way.lines, runs, strict=True):
            assert line.get_xydata().tolist() == [[row["step"], row["validation_accuracy"]] for row in run.curve]
        points = [container.lines[0].get_xydata()[0].tolist() for container in price.containers]
        assert points == [[next_token_cost(run), 100 * run.gain] for run in runs]
        legend = [text.get_text() for text in price.figure.legends[0].get_texts()]
        assert [text.partition(":")[0] for text in legend] == [setting_name(run) for run in runs]
        plt.close(price.figure)

    def test_on_axes_that_are_given(self, runs):
        figure, axes = plt.subplots(1, 2)
        assert plot_runs(runs, axes) is axes
        assert axes[1].get_legend() is not None
        plt.close(figure)

    def test_names_of_settings(self, runs):
        assert [setting_name(run) for run in runs] == ["rank 2", "rank 2, α = 64", "all weights"]


# The checks: right answers, and slips --------------------------------------------------------------------------------


def merged(W, B, A, alpha):
    return W + alpha / A.shape[0] * B @ A


def cosines(before, after, k):
    left = [np.linalg.svd(part, full_matrices=False)[0] for part in (before, after)]
    return left[0].T @ left[1][:, :k]


def intruders(before, after, k, epsilon):
    return [int(i) for i in np.flatnonzero(np.abs(cosines(before, after, k)).max(0) < epsilon)]


def where(mask):
    return np.flatnonzero(mask)


def predicted(accuracy, gain, task):
    x, y = np.delete(accuracy, task, 1).ravel(), np.delete(gain, task, 1).ravel()
    return np.polyval(np.polyfit(x, y, 1), accuracy[:, task])


def leaking(accuracy, gain, task):
    return np.polyval(np.polyfit(accuracy.ravel(), gain.ravel(), 1), accuracy[:, task])


def cell_by_cell(accuracy, gain, task):
    found = []
    for model in range(len(gain)):
        keep = np.ones(gain.shape, dtype=bool)
        keep[model, task] = False
        found.append(np.polyval(np.polyfit(accuracy[keep], gain[keep], 1), accuracy[model, task]))
    return np.array(found)


def model_by_model(accuracy, gain, task):
    rows = zip(np.delete(accuracy, task, 1), np.delete(gain, task, 1), accuracy[:, task], strict=True)
    return np.array([np.polyval(np.polyfit(x, y, 1), at) for x, y, at in rows])


def errors(accuracy, gain, *, line=predicted, leak=False, size=np.abs, rival=None):
    tasks = range(gain.shape[1])
    first = np.stack([line(accuracy, gain, task) for task in tasks], 1)
    means = [gain.mean() if leak else np.delete(gain, task, 1).mean() for task in tasks]
    second = np.broadcast_to(means if rival is None else rival, gain.shape)
    return size(first - gain).mean(), size(second - gain).mean()


RIGHT = {
    checks_lora.merged_weight: merged,
    checks_lora.intruder_places: intruders,
    checks_lora.gain_without_task: predicted,
    checks_lora.left_out_errors: errors,
}
WRONG = [
    (checks_lora.merged_weight, lambda W, B, A, alpha: W + B @ A, "as it is"),
    (checks_lora.merged_weight, lambda W, B, A, alpha: W + alpha * B @ A, "divide by the rank"),
    (checks_lora.merged_weight, lambda W, B, A, alpha: W + len(A) / alpha * B @ A, "r / alpha"),
    (checks_lora.merged_weight, lambda W, B, A, alpha: W + alpha / np.sqrt(len(A)) * B @ A, "sqrt"),
    (checks_lora.merged_weight, lambda W, B, A, alpha: W + alpha / A.shape[1] * B @ A, "a side of W"),
    (checks_lora.merged_weight, lambda W, B, A, alpha: alpha / len(A) * B @ A, "the update alone"),
    (checks_lora.merged_weight, lambda W, B, A, alpha: W, "as it was"),
    (checks_lora.merged_weight, lambda W, B, A, alpha: W + alpha / len(A) * A @ B, "raised ValueError"),
    (
        checks_lora.merged_weight,
        lambda W, B, A, alpha: W + alpha / len(A) * ((B @ A).T if W.shape[0] == W.shape[1] else B @ A),
        "transposed",
    ),
    (checks_lora.merged_weight, lambda W, B, A, alpha: W - alpha / len(A) * B @ A, "is not W"),
    (checks_lora.merged_weight, lambda W, B, A, alpha: None, "return"),
    (checks_lora.intruder_places, lambda b, a, k, e: where(np.abs(cosines(b, a, k)).max(0) >= e), "HAVE a counterpart"),
    (checks_lora.intruder_places, lambda b, a, k, e: where(cosines(b, a, k).max(0) < e), "sign"),
    (
        checks_lora.intruder_places,
        lambda b, a, k, e: where(np.abs(np.diag(cosines(b, a, k)[:k])) < e),
        "compare the i-th",
    ),
    (checks_lora.intruder_places, lambda b, a, k, e: where(np.abs(cosines(b, a, k)[:k]).max(0) < e), "top k only"),
    (checks_lora.intruder_places, lambda b, a, k, e: where(np.abs(cosines(b, a, k)).min(0) < e), "LARGEST"),
    (checks_lora.intruder_places, lambda b, a, k, e: intruders(b.T, a.T, k, e), "right singular vectors"),
    (
        checks_lora.intruder_places,
        lambda b, a, k, e: where(np.abs(cosines(b, a, len(b))[:, -k:]).max(0) < e),
        "weakest",
    ),
    (checks_lora.intruder_places, lambda b, a, k, e: where((cosines(b, a, k) ** 2).max(0) < e), "squared"),
    (checks_lora.intruder_places, lambda b, a, k, e: intruders(b, a - b, k, e), "took apart the update"),
    (checks_lora.intruder_places, lambda b, a, k, e: intruders(b, a, len(b), e), "strongest vectors only"),
    (checks_lora.intruder_places, lambda b, a, k, e: np.abs(cosines(b, a, k)).max(0) < e, "places"),
    (checks_lora.intruder_places, lambda b, a, k, e: np.abs(cosines(b, a, k)).max(0), "no places"),
    (checks_lora.intruder_places, lambda b, a, k, e: len(intruders(b, a, k, e)), "places"),
    (checks_lora.intruder_places, lambda b, a, k, e: [*intruders(b, a, k, e)[:-1], 4], "the intruders among"),
    (
        checks_lora.intruder_places,
        lambda b, a, k, e: [0] if np.array_equal(a, b) else intruders(b, a, k, e),
        "has not changed",
    ),
    (checks_lora.intruder_places, lambda b, a, k, e: [], "you find none"),
    (checks_lora.gain_without_task, leaking, "has seen the answer"),
    (checks_lora.gain_without_task, cell_by_cell, "in ALL models"),
    (checks_lora.gain_without_task, model_by_model, "ONE"),
    (
        checks_lora.gain_without_task,
        lambda a, g, t: np.full(len(g), np.delete(g, t, 1).mean()),
        "mean gain of the other",
    ),
    (
        checks_lora.gain_without_task,
        lambda a, g, t: a[:, t] * (np.delete(a * g, t, 1).sum() / np.delete(a * a, t, 1).sum()),
        "origin",
    ),
    (checks_lora.gain_without_task, lambda a, g, t: g[:, t], "that were to be predicted"),
    (checks_lora.gain_without_task, lambda a, g, t: predicted(a, g, (t + 1) % g.shape[1]), "should be"),
    (checks_lora.gain_without_task, lambda a, g, t: predicted(a, g, t)[0], "shape"),
    (checks_lora.left_out_errors, lambda a, g: errors(a, g)[::-1], "swapped"),
    (checks_lora.left_out_errors, lambda a, g: errors(a, g, size=np.square), "squared errors"),
    (checks_lora.left_out_errors, lambda a, g: np.sqrt(errors(a, g, size=np.square)), "squared errors"),
    (checks_lora.left_out_errors, lambda a, g: np.abs(errors(a, g, size=np.asarray)), "cancel"),
    (checks_lora.left_out_errors, lambda a, g: errors(a, g, leak=True), "includes the task"),
    (checks_lora.left_out_errors, lambda a, g: errors(a, g, line=leaking), "is its fit"),
    (checks_lora.left_out_errors, lambda a, g: errors(a, g, rival=0.0), "no gain"),
    (checks_lora.left_out_errors, lambda a, g: (0.1, 0.2), "the errors are"),
]


class TestChecks:
    def test_right_answers_pass(self, capsys):
        for check, right in RIGHT.items():
            check(right)
        assert capsys.readouterr().out.count("✓") == len(RIGHT)

    def test_other_right_answers_pass(self, capsys):
        checks_lora.intruder_places(lambda b, a, k, e: set(intruders(b, a, k, e)))
        checks_lora.intruder_places(lambda b, a, k, e: where(np.abs(cosines(b, a, k)).max(0) < e))
        checks_lora.left_out_errors(lambda a, g: list(errors(a, g)))
        assert capsys.readouterr().out.count("✓") == 3

    def test_the_library_agrees(self):
        from ntps.finetune.changes import intruder_dimensions

        torch = pytest.importorskip("torch")

        def places(before, after, k, epsilon):
            return intruder_dimensions(torch.from_numpy(before), torch.from_numpy(after), k=k, epsilon=epsilon)[0]

        checks_lora.intruder_places(places)

    @pytest.mark.parametrize(("check", "wrong", "says"), WRONG, ids=[f"{c.__name__}-{s[:20]}" for c, _, s in WRONG])
    def test_wrong_answers_are_diagnosed(self, check, wrong, says):
        with pytest.raises(CheckFailed, match=says):
            check(wrong)

    def test_every_check_has_two_planted_wrong_answers(self):
        module = checks_lora.__name__
        public = {f for n, f in vars(checks_lora).items() if getattr(f, "__module__", "") == module and n[0] != "_"}
        assert public == set(RIGHT)
        for check in public:
            assert sum(entry[0] is check for entry in WRONG) >= 2, check.__name__
