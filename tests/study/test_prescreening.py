"""Prescreening: the same inputs as a study's, a ranking, verdicts, and failures that stop nothing."""

import json
from dataclasses import replace

import numpy as np
import pytest
from helpers.gains import cells, fixed
from helpers.kill_study import SETTINGS, make_tasks, other_labels

import ntps.study.prescreening
from ntps.errors import NtpsError
from ntps.study.calibration import calibrate, load_calibration
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


def test_best_first_and_each_by_the_calibration(found):
    expected = [row["expected"] for row in found.rows]
    assert expected == sorted(expected, reverse=True)
    for row in found.rows:
        forecast = found.calibration.forecast(row)
        assert (row["expected"], row["low"], row["high"]) == (forecast.expected, forecast.low, forecast.high)
        assert row["chosen"] is (row["verdict"] != "little")


def test_budget_takes_the_first_but_none_with_little_to_gain(tiny_llama):
    always = prescreen(str(tiny_llama), make_tasks(3), budget=2, calibration=fixed(), **OPTIONS)
    assert [row["chosen"] for row in always.rows] == [True, True, False]
    never = prescreen(str(tiny_llama), make_tasks(3), budget=2, calibration=fixed((0.0, 0, 0), (-0.01, 0.0)), **OPTIONS)
    assert not any(row["chosen"] for row in never.rows)
    assert "* within the budget of 2" in str(always)


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
    assert row["calibration"]["kind"] == "ntps-calibration"
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
    assert alone.rows[0] | {"chosen": True} in [row | {"chosen": True} for row in together.rows]


def test_bad_input(tiny_llama):
    for option, value in (("limit", 2), ("folds", 2), ("max_length", 1), ("seed", -1)):
        with pytest.raises(NtpsError, match=option):
            PrescreenSettings(**{option: value})
    with pytest.raises(NtpsError, match="budget"):
        prescreen(str(tiny_llama), make_tasks(1), calibration=fixed(), budget=0)
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


def test_the_bundled_calibration_says_what_it_was_fitted_on():
    bundled = load_calibration()
    assert len(bundled.about["models"]) >= 4
    assert len(bundled.about["tasks"]) == 12
    assert bundled.about["training"]["method"] == "lora"
    assert np.isfinite(bundled.coefficients).all()
    solved = bundled.forecast({"accuracy": 1.0, "held_back": 0.0})
    assert solved.high <= 0
