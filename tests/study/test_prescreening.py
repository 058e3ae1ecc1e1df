"""Prescreening: the same inputs as a study's, looks, a ranking, verdicts, and failures that stop nothing."""

import json
from dataclasses import asdict, replace

import numpy as np
import pytest
from helpers.gains import cells, fixed
from helpers.kill_study import SETTINGS, make_tasks, other_labels

import ntps.study.prescreening
from ntps.errors import NtpsError
from ntps.finetune import TrainSettings, before_and_after, look_at_training
from ntps.study.calibration import BUNDLED_STEPS, calibrate, load_calibration
from ntps.study.prescreening import PrescreenSettings, prescreen
from ntps.study.study import run_study

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]


OPTIONS = {"settings": PrescreenSettings(limit=60, folds=3), "progress": False}


@pytest.fixture(scope="module")
def found(tiny_llama):
    return prescreen(str(tiny_llama), make_tasks(4), calibration=calibrate(cells()), **OPTIONS)


def test_inputs_are_those_of_a_study(found, tiny_llama, tmp_path):
    study = run_study([str(tiny_llama)], make_tasks(4), output=tmp_path, settings=SETTINGS, progress=False)
    frame = study.frame().set_index("task")
    for row in found.rows:
        for name in ("accuracy", "majority_rate", "ntps", "explained_heldout", "held_back", "n_texts", "n_classes"):
            assert row[name] == pytest.approx(frame.loc[row["task"], name], rel=1e-4, abs=1e-4), name
        (cell,) = [each for each in study.cells if each.task == row["task"] and not each.control]
        assert row["profile"] == pytest.approx([layer.ceiling_heldout for layer in cell.score.layers], abs=1e-4)


def test_which_layer_reads_best_and_what_more_texts_would_bring(found):
    rows = [{**found.rows[0], "profile": profile, "slope": slope} for profile, slope in (
        ((-0.1, 0.4, 0.3), 0.05), ((0.1, 0.2, 0.4), float("nan")), ((-0.2, -0.1, 0.0), 0.0),
    )]  # fmt: skip
    said = [" ".join(str(replace(found, rows=(row,))).split()) for row in rows]
    assert "layer 1 of 2 reads best: R2 0.40 (last 0.30); doubling the texts gave +0.05" in said[0]
    assert "layer 2 of 2 reads best: R2 0.40 next:" in said[1]
    assert "no layer reads the labels" in said[2]
    assert json.loads(replace(found, rows=(rows[1],)).to_json())["tasks"][0]["slope"] is None


def test_best_first_and_each_by_the_calibration(found):
    expected = [row["expected"] for row in found.rows]
    assert expected == sorted(expected, reverse=True)
    for row in found.rows:
        forecast = found.calibrations[0].forecast(row)
        assert (row["expected"], row["low"], row["high"]) == (forecast.expected, forecast.low, forecast.high)
        assert row["chosen"] is (row["verdict"] != "little")


def test_budget_takes_the_first_but_none_with_little_to_gain(tiny_llama):
    always = prescreen(str(tiny_llama), make_tasks(3), budget=2, calibration=fixed(), **OPTIONS)
    assert [row["chosen"] for row in always.rows] == [True, True, False]
    never = prescreen(str(tiny_llama), make_tasks(3), budget=2, calibration=fixed((0.0, 0, 0), (-0.01, 0.0)), **OPTIONS)
    assert not any(row["chosen"] for row in never.rows)
    assert "* within the budget of 2" in str(always)


TRAINING = TrainSettings(rank=4, steps=9, evaluate_every=3)
LONG = replace(TRAINING, steps=60, evaluate_every=60)
LOOKED = calibrate(cells(of_saved=0.5), steps=3, about={"training": asdict(TRAINING)})


@pytest.fixture(scope="module")
def looked(tiny_llama, tmp_path_factory):
    folder = tmp_path_factory.mktemp("looks")
    return prescreen(str(tiny_llama), make_tasks(2), calibration=LOOKED, output=folder, **OPTIONS), folder


def test_a_look_is_the_start_of_the_run_that_would_follow(looked, tiny_llama):
    found, folder = looked
    model, task = ntps.load_model(tiny_llama), make_tasks(1)[0]
    row = next(row for row in found.rows if row["task"] == "task0")
    look = look_at_training(model, task, steps=3, settings=TRAINING)
    assert (row["steps"], row["saved"]) == (3, look.kept)
    forecast = LOOKED.forecast(row)
    assert (row["expected"], row["low"], row["high"]) == (forecast.expected, forecast.low, forecast.high)
    assert row["seconds"] > 0 and row["seconds_left"] > 0
    assert row["gain_per_minute"] == pytest.approx(row["expected"] / row["seconds_left"] * 60)
    assert row["room"] == 1 - row["accuracy"]
    if row["next"].startswith("train"):
        assert f"{100 * row['gain_per_minute']:+z.1f} points a minute" in row["next"]
    options = {"settings": TRAINING, "folds": 3, "analyses": (), "progress": False}
    whole = before_and_after(model, task, **options)
    continued = before_and_after(model, task, output=folder / "task0", resume=True, **options)
    assert continued.curve == whole.curve and continued.after.accuracy == whole.after.accuracy


def test_a_run_may_be_looked_at_whole(tiny_llama):
    whole = replace(LOOKED, steps=TRAINING.steps)
    (row,) = prescreen(str(tiny_llama), make_tasks(1), calibration=whole, **OPTIONS).rows
    assert (row["steps"], row["seconds_left"], row["gain_per_minute"]) == (TRAINING.steps, 0, None)
    assert row["next"] in ("", "train")


def test_the_pace_is_that_of_the_steps_that_epochs_make(tiny_llama):
    by_epochs = replace(TRAINING, steps=LOOKED.steps, epochs=4)  # more steps than `steps`, which epochs overrule
    (row,) = prescreen(str(tiny_llama), make_tasks(1), calibration=LOOKED, **OPTIONS | {"training": by_epochs}).rows
    look = look_at_training(ntps.load_model(tiny_llama), make_tasks(1)[0], steps=LOOKED.steps, settings=by_epochs)
    assert look.all_steps > look.steps == LOOKED.steps
    assert row["seconds_left"] > 0 and row["gain_per_minute"] is not None


def test_seeds_are_averaged(looked, tiny_llama, tmp_path):
    settings = replace(OPTIONS["settings"], seeds=2)
    options = OPTIONS | {"settings": settings, "calibration": LOOKED}
    (both,) = prescreen(str(tiny_llama), make_tasks(1), output=tmp_path, **options).rows
    second = prescreen(str(tiny_llama), make_tasks(1), **options | {"settings": replace(OPTIONS["settings"], seed=1)})
    first = next(row for row in looked[0].rows if row["task"] == "task0")
    for name in ("accuracy", "held_back", "saved"):
        assert both[name] == pytest.approx((first[name] + second.rows[0][name]) / 2), name
    assert both["n_texts"] == 60
    assert sorted(path.name for path in (tmp_path / "task0").iterdir()) == ["seed-0", "seed-1"]


def bundled(monkeypatch, errors):
    """Stand in for the bundled calibrations; `errors` of each number of steps. Return the looks that are taken."""

    def load(*_, steps):
        known = load_calibration(steps=steps)
        return replace(known, coefficients=(0.0,) * len(known.coefficients), errors=fixed(errors=errors[steps]).errors)

    taken, real = [], ntps.study.prescreening.look_at_training

    def counting(model, task, *, steps, resume, **options):
        taken.append((task.name, steps, resume))
        return real(model, task, steps=steps, resume=resume, **options)

    monkeypatch.setattr(ntps.study.prescreening, "load_calibration", load)
    monkeypatch.setattr(ntps.study.prescreening, "look_at_training", counting)
    return taken


OPEN, DECIDED = (-0.2, 0.2), (-0.01, 0.0)


def test_without_a_time_every_task_is_looked_at_once(tiny_llama, monkeypatch):
    taken = bundled(monkeypatch, {0: DECIDED, 20: OPEN, 50: OPEN})
    found = prescreen(str(tiny_llama), make_tasks(2), training=LONG, **OPTIONS)
    assert sorted(taken) == [("task0", 20, False), ("task1", 20, False)]
    assert [each.steps for each in found.calibrations] == [0, 20]
    assert all(row["next"].startswith("a look of 50 steps, about ") for row in found.rows)
    taken.clear()
    assert [row["steps"] for row in prescreen(str(tiny_llama), make_tasks(2), probe_steps=0, **OPTIONS).rows] == [0, 0]
    assert taken == []


def test_with_a_time_looks_stop_where_the_forecast_is_decided_or_the_time_is_over(tiny_llama, monkeypatch):
    options = {"probe_steps": 50, "training": LONG, **OPTIONS}
    taken = bundled(monkeypatch, {0: OPEN, 20: DECIDED, 50: OPEN})
    found = prescreen(str(tiny_llama), make_tasks(1), budget_seconds=1000, **options)
    assert taken == [("task0", 20, False)] and found.rows[0]["verdict"] == "little" and found.rows[0]["next"] == ""
    taken = bundled(monkeypatch, {0: OPEN, 20: OPEN, 50: OPEN})
    found = prescreen(str(tiny_llama), make_tasks(1), budget_seconds=1000, **options)
    assert taken == [("task0", 20, False), ("task0", 50, True)] and found.rows[0]["steps"] == 50
    assert found.rows[0]["next"].startswith("train, about ")
    taken = bundled(monkeypatch, {0: DECIDED, 20: OPEN, 50: OPEN})
    assert prescreen(str(tiny_llama), make_tasks(1), budget_seconds=1000, **options).rows[0]["steps"] == 0
    found = prescreen(str(tiny_llama), make_tasks(1), budget_seconds=0, **options)
    assert taken == [] and found.rows[0]["seconds_left"] is None
    with pytest.raises(NtpsError, match="budget_seconds is 0: no time was left"):
        prescreen(str(tiny_llama), make_tasks(1), budget_seconds=0, calibration=LOOKED, **OPTIONS)


def test_all_texts_are_read_for_the_bundled_calibrations(tiny_llama, monkeypatch):
    """As the runs that they are fitted on did; a study's read halves."""
    bundled(monkeypatch, {0: OPEN})
    rows = [
        prescreen(str(tiny_llama), make_tasks(1), settings=replace(OPTIONS["settings"], seed=seed), probe_steps=0).rows[
            0
        ]
        for seed in (0, 1)
    ]
    assert rows[0]["majority_rate"] == rows[1]["majority_rate"] == np.mean(make_tasks(1)[0].labels == 1)
    assert rows[0]["n_texts"] == 60
    assert not any(load_calibration(steps=steps).halves for steps in BUNDLED_STEPS) and LOOKED.halves


def test_a_look_that_fails_leaves_the_forecast_of_the_frozen_model(tiny_llama, monkeypatch, caplog):
    bundled(monkeypatch, {0: OPEN, 20: OPEN})
    monkeypatch.setattr(ntps.study.prescreening, "look_at_training", lambda *_, **__: 1 / 0)
    (row,) = prescreen(str(tiny_llama), make_tasks(1), **OPTIONS).rows
    assert (row["status"], row["steps"], row["saved"]) == ("done", 0, None)
    assert "task0: no look of 20 steps" in caplog.text and "ZeroDivisionError" in caplog.text


def test_a_gain_that_rounds_to_zero_has_no_minus(found):
    rows = [{**row, "expected": -0.001} for row in found.rows]
    assert " +0 " in (text := str(replace(found, rows=rows))) and " -0 " not in text


def test_table_fits_a_terminal_and_json_is_whole(found):
    text = str(found)
    assert max(map(len, text.splitlines())) <= 80
    assert "task0" in text
    words = " ".join(text.split())
    assert "On tasks left out their mean error" in words
    assert "On average over tasks" in words
    row = json.loads(found.to_json())
    assert row["kind"] == "ntps-prescreening"
    assert [each["kind"] for each in row["calibrations"]] == ["ntps-calibration"]
    assert [task["task"] for task in row["tasks"]] == [r["task"] for r in found.rows]
    assert list(found.to_dataframe()["rank"]) == [1, 2, 3, 4]
    assert "<table" in found._repr_html_()


def test_a_task_that_cannot_be_read_does_not_stop_the_others(tiny_llama, tmp_path, caplog):
    tasks = [*make_tasks(1), str(tmp_path / "gone.csv")]
    found = prescreen(str(tiny_llama), tasks, calibration=fixed(), **OPTIONS)
    assert [row["status"] for row in found.rows] == ["done", "failed"]
    assert "gone.csv" in caplog.text
    assert "gone failed" in str(found)
    with pytest.raises(NtpsError, match="every task failed"):
        prescreen(str(tiny_llama), tasks[1:], calibration=fixed(), **OPTIONS)


@pytest.mark.long
@pytest.mark.parametrize("place", ["load_named", "collect", "frozen_inputs"])
@pytest.mark.parametrize("error", [TypeError("odd"), RecursionError("deep"), KeyError(0), MemoryError()])
def test_a_fault_on_one_task_does_not_stop_the_others(tiny_llama, monkeypatch, caplog, place, error):
    real, bad = getattr(ntps.study.prescreening, place), "task1"

    def fail_once(*arguments, **options):
        names = [getattr(each, "name", getattr(getattr(each, "task", None), "name", each)) for each in arguments]
        if bad in [name for name in names if isinstance(name, str)]:
            raise error
        return real(*arguments, **options)

    monkeypatch.setattr(ntps.study.prescreening, place, fail_once)
    found = prescreen(str(tiny_llama), make_tasks(3), calibration=fixed(), **OPTIONS)
    assert {row["task"]: row["status"] for row in found.rows} == {"task0": "done", "task1": "failed", "task2": "done"}
    assert type(error).__name__ in found.rows[-1]["reason"] and "task1 failed" in str(found)
    json.loads(found.to_json())


@pytest.mark.parametrize(
    "task", ["~nosuchuser/x.csv", "n" * 5000, "x" * 300 + ".csv", "a=~nosuchuser/x", "half\udcff.csv"]
)
def test_a_name_that_can_be_no_file_fails_alone(tiny_llama, task):
    found = prescreen(str(tiny_llama), [*make_tasks(1), task], calibration=fixed(), **OPTIONS)
    assert [row["status"] for row in found.rows] == ["done", "failed"]
    assert len(found.rows[1]["reason"]) < 1200
    found.to_json().encode()


def test_a_calibration_on_what_is_not_measured_is_refused_before_the_model_is_loaded():
    with pytest.raises(NtpsError, match="'logme'"):
        prescreen("nowhere", make_tasks(1), calibration=fixed(inputs=("accuracy", "logme")))
    with pytest.raises(NtpsError, match="probe_steps is 20; the calibration reads a look of 3 steps"):
        prescreen("nowhere", make_tasks(1), calibration=LOOKED, probe_steps=20)
    with pytest.raises(NtpsError, match="probe_steps is 7"):
        prescreen("nowhere", make_tasks(1), probe_steps=7)


def test_equal_texts_run_once(tiny_llama, monkeypatch):
    tasks = [*make_tasks(2), other_labels(make_tasks(1)[0], "second")]
    passes = []
    real = ntps.study.prescreening.collect

    def counting(model, task, **options):
        passes.append(task.name)
        return real(model, task, **options)

    monkeypatch.setattr(ntps.study.prescreening, "collect", counting)
    together = prescreen(str(tiny_llama), tasks, calibration=fixed(), **OPTIONS)
    assert passes == ["task0", "task1"]
    alone = prescreen(str(tiny_llama), tasks[2:], calibration=fixed(), **OPTIONS)
    same = {"chosen": True, "seconds": 0}
    assert alone.rows[0] | same in [row | same for row in together.rows]


def test_bad_input(tiny_llama):
    for option, value in (("limit", 2), ("folds", 2), ("max_length", 1), ("seed", -1), ("seeds", 0)):
        with pytest.raises(NtpsError, match=option):
            PrescreenSettings(**{option: value})
    with pytest.raises(NtpsError, match="budget"):
        prescreen(str(tiny_llama), make_tasks(1), calibration=fixed(), budget=0)
    with pytest.raises(NtpsError, match="budget_seconds"):
        prescreen(str(tiny_llama), make_tasks(1), calibration=fixed(), budget_seconds=-1)
    with pytest.raises(NtpsError, match="at least one task"):
        prescreen(str(tiny_llama), [], calibration=fixed())
    with pytest.raises(NtpsError, match="two tasks"):
        prescreen(str(tiny_llama), make_tasks(1) * 2, calibration=fixed())


def call(monkeypatch, *arguments):
    from ntps.cli import app as cli

    monkeypatch.setattr("sys.argv", ["ntps", "prescreen", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    return stopped.value.code


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    paths = []
    for task in make_tasks(2):
        rows = [f"{text},{task.classes[label]}" for text, label in zip(task.texts, task.labels, strict=True)]
        paths.append(tmp_path_factory.mktemp("texts") / f"{task.name}.csv")
        paths[-1].write_text("\n".join(["text,label", *rows]) + "\n")
    return paths


def test_command(tiny_llama, texts, monkeypatch, capsys, tmp_path):
    mine = tmp_path / "calibration.json"
    mine.write_text(calibrate(cells()).to_json())
    arguments = (tiny_llama, "--task", texts[0], "--task", f"second={texts[1]}", "--limit", 60, "--folds", 3)
    assert call(monkeypatch, *arguments, "--calibration", mine, "--budget", 1, "--json", tmp_path / "r.json") == 0
    out, err = capsys.readouterr()
    assert "second" in out
    assert "within the budget of 1" in out
    assert "Traceback" not in err
    assert {row["task"] for row in json.loads((tmp_path / "r.json").read_text())["tasks"]} == {"task0", "second"}
    assert call(monkeypatch, *arguments, "--calibration", mine, "--json", "-") == 0
    assert json.loads(capsys.readouterr().out)["budget"] is None


def test_command_refuses_in_a_sentence(tiny_llama, texts, monkeypatch, capsys, tmp_path):
    broken = tmp_path / "broken.json"
    broken.write_text(calibrate(cells()).to_json().replace("0.8", "0.9"))
    for arguments, words in (
        ((tiny_llama, "--task", texts[0], "--budget", 0), "--budget"),
        ((tiny_llama, "--task", texts[0], "--folds", 1), "--folds"),
        ((tiny_llama, "--task", texts[0], "--calibration", tmp_path / "none.json"), "none.json"),
        ((tiny_llama, "--task", texts[0], "--calibration", broken), "damaged"),
        (("no-such-model", "--task", texts[0]), "no-such-model"),
        ((tiny_llama, "--task", tmp_path / "gone.csv"), "gone.csv"),
    ):
        assert call(monkeypatch, *arguments) == 2
        out, err = capsys.readouterr()
        assert words in err
        assert "Traceback" not in err + out


@pytest.mark.parametrize("steps", BUNDLED_STEPS)
def test_the_bundled_calibrations_say_what_they_were_fitted_on(steps):
    bundled = load_calibration(steps=steps)
    assert bundled.steps == steps and bundled.about["runs"] >= 300
    assert len(bundled.about["models"]) >= 4
    assert len(bundled.about["tasks"]) == 12
    assert bundled.about["training"]["method"] == "lora" and bundled.about["training"]["steps"] == 100
    assert np.isfinite(bundled.coefficients).all()
    solved = bundled.forecast({"accuracy": 1.0, "held_back": 0.0, "saved": 0.0})
    assert solved.high <= 0


def test_a_longer_look_says_more():
    errors = [load_calibration(steps=steps).about["mean_absolute_error"] for steps in BUNDLED_STEPS]
    assert errors == sorted(errors, reverse=True)
    about = load_calibration(steps=50).about
    assert about["mean_absolute_error"] < about["mean_absolute_error_of_the_mean_gain"] / 2
