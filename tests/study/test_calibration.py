"""Forecasts of the gain: the regression is least squares, its intervals cover, and a planted leak is no help."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from helpers.gains import cells, fixed
from scipy import stats

from ntps._files import sha256_json
from ntps.errors import NtpsError
from ntps.study.calibration import calibrate, error_interval, load_calibration

pytestmark = pytest.mark.slow


def test_coefficients_are_those_of_least_squares():
    frame = cells()
    fitted = calibrate(frame)
    design = np.column_stack([np.ones(len(frame)), frame.accuracy, frame.held_back])
    expected = np.linalg.solve(design.T @ design, design.T @ frame.gain)
    assert np.allclose(fitted.coefficients, expected)
    assert fitted.forecast({"accuracy": 0.7, "held_back": 0.2}).expected == pytest.approx(expected @ [1, 0.7, 0.2])


def test_errors_are_of_tasks_left_out():
    frame = cells(n_tasks=7)
    expected = []
    for task in frame.task.unique():
        rest, out = frame[frame.task != task], frame[frame.task == task]
        design = np.column_stack([np.ones(len(rest)), rest.accuracy, rest.held_back])
        found = np.linalg.lstsq(design, rest.gain, rcond=None)[0]
        error = out.gain - (found[0] + found[1] * out.accuracy + found[2] * out.held_back).clip(0, 1 - out.accuracy)
        assert np.allclose(calibrate(frame).errors[task], error / (1 - out.accuracy))
        expected += list(error)
    about = calibrate(frame).about
    assert about["mean_absolute_error"] == pytest.approx(np.abs(expected).mean())
    assert about["mean_absolute_error_of_no_gain"] == pytest.approx(np.abs(frame.gain).mean())
    difference = np.abs(frame.gain) - np.abs(expected)
    by_task = difference.groupby(frame.task).mean()
    assert about["margin"]["mean"] == pytest.approx(by_task.mean())
    low, high = stats.ttest_1samp(by_task, 0).confidence_interval(0.95)
    assert (about["margin"]["low"], about["margin"]["high"]) == pytest.approx((low, high))


def test_runs_of_several_seeds_count_one_by_one_and_cells_without_gain_are_left_out():
    frame = cells(n_tasks=8, n_models=2)
    twice = pd.concat([frame.assign(seed=0, gain=frame.gain + 0.01), frame.assign(seed=1, gain=frame.gain - 0.01)])
    assert np.allclose(calibrate(twice).coefficients, calibrate(frame).coefficients)
    assert calibrate(twice).about["runs"] == 2 * len(frame)
    assert np.ptp(calibrate(twice).errors["t0"]) >= 0.02, "a forecast is of one run, so its error is that of one"
    lacking = pd.concat([frame, frame.iloc[:1].assign(task="failed", status="failed", gain=np.nan)])
    assert calibrate(lacking).coefficients == calibrate(frame).coefficients


def test_what_a_look_saves_is_read_where_it_says_something():
    told, noise = (calibrate(cells(noise=0.01, slope=(0, 0), of_saved=slope), steps=7) for slope in (0.5, 0.0))
    assert told.inputs == ("accuracy", "held_back", "saved") and told.steps == 7
    assert told.coefficients[3] == pytest.approx(0.5, abs=0.03) and abs(noise.coefficients[3]) < 0.03
    assert told.about["mean_absolute_error"] < 0.5 * told.about["mean_absolute_error_of_the_mean_gain"]
    assert noise.about["mean_absolute_error"] > 0.97 * noise.about["mean_absolute_error_of_the_mean_gain"]
    blind = calibrate(cells(noise=0.01, slope=(0, 0), of_saved=0.5), inputs=("accuracy", "held_back"))
    assert blind.steps == 0 and blind.about["mean_absolute_error"] > 2 * told.about["mean_absolute_error"]


def test_no_loss_is_expected_since_the_frozen_probe_is_kept_then():
    forecast = fixed((-0.1, 0, 0)).forecast({"accuracy": 0.7, "held_back": 0.2})
    assert (forecast.expected, forecast.low, forecast.high) == pytest.approx((0, -0.02, 0.02))


@pytest.mark.long
def test_intervals_cover_new_tasks_at_the_stated_rate():
    """200 worlds, one new cell of each: not below it by three binomial standard errors; few tasks make them wide."""
    inside = {0.5: [], 0.8: []}
    for seed in range(200):
        frame = cells(n_tasks=14, n_models=2, seed=seed, noise=0.03, task_noise=0.03)
        out = frame.task == "t13"
        fitted = calibrate(frame[~out])
        row = frame[out].iloc[0]
        for confidence, covered in inside.items():  # the errors that are kept have ends at any level
            level = replace(fitted, confidence=confidence)
            forecast = level.forecast({"accuracy": row.accuracy, "held_back": row.held_back})
            covered.append(forecast.low <= row.gain <= forecast.high)
    for confidence, covered in inside.items():
        spread = 3 * np.sqrt(confidence * (1 - confidence) / 200)
        assert confidence - spread < np.mean(covered) < min(confidence + 0.25, 0.98)


def test_coverage_in_the_file_is_measured_with_tasks_left_out():
    calm = calibrate(cells(n_tasks=30, noise=0.03), confidence=0.8)
    assert 0.7 < calm.coverage < 0.95


def test_an_input_that_means_nothing_does_not_beat_the_mean_gain():
    """The negative control: labels of the tasks' own numbers would help in the fit, not on tasks left out."""
    frame = cells(slope=(0.0, 0.0), noise=0.05)
    about = calibrate(frame).about
    assert about["mean_absolute_error"] > 0.97 * about["mean_absolute_error_of_the_mean_gain"]
    real = calibrate(cells(noise=0.01)).about
    assert real["mean_absolute_error"] < 0.5 * real["mean_absolute_error_of_the_mean_gain"]


def test_ends_weigh_each_task_once():
    alone = {f"t{number}": [float(number)] for number in range(9)}  # 9 + 1: of 80 % the first and the ninth
    assert error_interval(alone, 0.8) == (0, 8)
    assert error_interval(alone, 0.6) == (1, 7)
    assert error_interval({"a": [1.0], "b": [2.0]}, 0.8) == (-np.inf, np.inf)
    crowded = alone | {"t4": [4.0] * 100}  # many cells of one task are not many tasks
    assert error_interval(crowded, 0.8) == (0, 8)
    assert error_interval({"a": [1.0] * 50, "b": [2.0] * 50}, 0.8) == (-np.inf, np.inf)


@pytest.mark.long
def test_cells_of_a_task_that_share_its_error_are_covered_as_said():
    """Five models that fail together on a task: counting cells would cover the same, but only by its luck."""
    inside = []
    for seed in range(120):
        frame = cells(n_tasks=13, n_models=5, seed=seed, noise=0.005, task_noise=0.05)
        out = frame.task == "t12"
        fitted = calibrate(frame[~out])
        shares = [
            forecast.low <= row.gain <= forecast.high
            for _, row in frame[out].iterrows()
            for forecast in [fitted.forecast({"accuracy": row.accuracy, "held_back": row.held_back})]
        ]
        inside.append(np.mean(shares))
    assert 0.7 < np.mean(inside) < 0.95


def test_the_error_is_a_share_of_the_room():
    fitted = fixed()
    width = {}
    for accuracy in (0.5, 0.7, 0.9):
        forecast = fitted.forecast({"accuracy": accuracy, "held_back": 0.2})
        width[accuracy] = forecast.expected - forecast.low
    assert width[0.5] == pytest.approx(5 / 3 * width[0.7])
    assert width[0.9] == pytest.approx(width[0.7] / 3)


def test_verdicts_and_their_words():
    inside = {"accuracy": 0.7, "held_back": 0.2}
    assert fixed().forecast(inside).sentence == "LoRA likely pays: +8 to +12 points"
    assert fixed((0.0, 0, 0), (-0.01, 0.005)).forecast(inside).verdict == "little"
    doubt = fixed((0.02, 0, 0)).forecast(inside)
    assert doubt.verdict == "unknown"
    assert doubt.sentence == "no evidence either way: +0 to +4 points"
    assert doubt.outside == ()


def test_a_gain_cannot_lift_accuracy_above_one():
    forecast = fixed().forecast({"accuracy": 0.97, "held_back": 0.0})
    assert forecast.low == pytest.approx(0.028)  # below what can be by the error, not squeezed against it
    assert forecast.high == pytest.approx(0.03)
    assert forecast.expected == pytest.approx(0.03)
    assert forecast.outside == ("accuracy",)


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [(0.006, 0.04, "pays"), (0.004, 0.04, "unknown"), (-0.02, 0.014, "little"), (0.006, 0.01, "little")],
)
def test_a_verdict_agrees_with_the_points_that_are_printed(low, high, verdict):
    forecast = fixed((0.0, 0, 0), (low, high)).forecast({"accuracy": 0.7, "held_back": 0.2})
    assert forecast.verdict == verdict


def test_file_there_and_back(tmp_path):
    fitted = calibrate(cells(), about={"world": "made up"})
    path = tmp_path / "calibration.json"
    path.write_text(fitted.to_json())
    assert load_calibration(path) == fitted


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda c: c | {"coefficients": [9, 9, 9]}, "damaged"),
        (lambda c: c | {"schema": 99}, "schema"),
        (lambda c: {"kind": "ntps-study"}, "not a calibration"),
        (lambda c: [1], "not a calibration"),
    ],
)
def test_what_is_no_calibration_is_refused(tmp_path, damage, words):
    path = tmp_path / "calibration.json"
    path.write_text(json.dumps(damage(calibrate(cells()).to_dict())))
    with pytest.raises(NtpsError, match=words):
        load_calibration(path)


FORGED = {
    "confidence": lambda c: c | {"confidence": 9.0},
    "confidence of words": lambda c: c | {"confidence": "high"},
    "infinite": lambda c: c | {"coefficients": [0.1, float("inf"), 0.0]},
    "not a number": lambda c: c | {"coefficients": [0.1, float("nan"), 0.0]},
    "coefficients of words": lambda c: c | {"coefficients": ["a", "b", "c"]},
    "too few": lambda c: c | {"coefficients": [0.1]},
    "ranges": lambda c: c | {"ranges": [[0.9, 0.5], [0.0, 0.4]]},
    "no errors": lambda c: c | {"errors": {}},
    "empty errors": lambda c: c | {"errors": c["errors"] | {"t0": []}},
    "errors of words": lambda c: c | {"errors": {"t0": ["a"]}},
    "coverage": lambda c: c | {"coverage": -1.0},
    "no about": lambda c: c | {"about": {}},
    "about a list": lambda c: c | {"about": []},
    "margin": lambda c: c | {"about": c["about"] | {"margin": None}},
    "margin of words": lambda c: c | {"about": c["about"] | {"margin": {"mean": "x", "low": 0, "high": 0}}},
    "models": lambda c: c | {"about": c["about"] | {"models": 3}},
    "mean error": lambda c: c | {"about": {k: v for k, v in c["about"].items() if k != "mean_absolute_error"}},
    "limit": lambda c: c | {"about": c["about"] | {"limit": "all"}},
    "steps of a look that is no input": lambda c: c | {"steps": 20},
    "a look of no steps": lambda c: c | {"inputs": ["accuracy", "saved"]},
    "runs": lambda c: c | {"about": c["about"] | {"runs": "many"}},
    "lacking": lambda c: {k: v for k, v in c.items() if k != "inputs"},
    "further": lambda c: c | {"more": 1},
}


@pytest.mark.parametrize("forge", FORGED.values(), ids=FORGED)
def test_a_forged_one_whose_checksum_fits_is_refused(tmp_path, forge):
    content = forge(fixed().to_dict())
    content["checksum"] = sha256_json(content)
    path = tmp_path / "calibration.json"
    path.write_text(json.dumps(content))
    with pytest.raises(NtpsError, match=r"calibration\.json cannot be used: "):
        load_calibration(path)


def test_a_byte_order_mark_is_no_fault(tmp_path):
    path = tmp_path / "calibration.json"
    path.write_text(fixed().to_json(), encoding="utf-8-sig")
    assert load_calibration(path) == fixed()


@pytest.mark.parametrize("name", ["", "~nosuchuser/c.json", "n" * 300, ".", "gone.json"])
def test_what_cannot_be_read_is_one_sentence(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(NtpsError):
        load_calibration(name)


def test_bad_input():
    with pytest.raises(NtpsError, match="at least 6 tasks"):
        calibrate(cells(n_tasks=5))
    with pytest.raises(NtpsError, match="'gain'"):
        calibrate(cells().drop(columns="gain"))
    with pytest.raises(NtpsError, match="no column 'nothing'"):
        calibrate(cells(), inputs=["nothing"])
    with pytest.raises(NtpsError, match="'held_back'"):
        fixed().forecast({"accuracy": 0.7})
    with pytest.raises(NtpsError, match="confidence"):
        calibrate(cells(), confidence=1.5)
    with pytest.raises(NtpsError, match="steps is 7"):
        load_calibration(steps=7)
