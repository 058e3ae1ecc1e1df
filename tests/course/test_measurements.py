"""The figures that ship: complete, consistent, and without paths of the machine they come from."""

import re
from importlib import resources

import pytest

from ntps.course.measurements import (
    LORA_COMMAND,
    SETS,
    STUDY_COMMAND,
    lesson_runs,
    lesson_screens,
    lesson_study,
    real_lora,
    real_study,
)


def test_every_set_is_there_once_with_the_command_that_measured_it():
    study, tuned = real_study(), real_lora()
    assert list(study.task) == list(SETS) * 2 and list(dict.fromkeys(study.model)) == ["gemma-3-270m", "smollm2-135m"]
    assert list(tuned.task) == sorted(SETS)
    assert (study.attrs["command"], tuned.attrs["command"]) == (STUDY_COMMAND, LORA_COMMAND)
    assert not study.isna().any(axis=None) and not tuned.isna().any(axis=None)


def test_figures_are_what_the_commands_measure():
    study = real_study()
    assert (study.n_scored + study.n_probed == option(STUDY_COMMAND, "limit")).all()
    assert {tuple(row) for row in study[["model", "layer", "d", "k_v"]].itertuples(index=False)} == {
        ("gemma-3-270m", 9, 640, 80), ("smollm2-135m", 15, 576, 72)
    }  # fmt: skip
    assert (study.ceiling_heldout_low < study.ceiling_heldout).all()
    assert (study.ceiling_heldout < study.ceiling_heldout_high).all()
    assert (study[["ntps_p", "ceiling_heldout_p"]] >= 1 / 201 - 1e-6).all(axis=None), "200 shuffles by default"


def test_gains_are_differences_and_nothing_changes_where_nothing_was_tuned():
    tuned = real_lora()
    assert (tuned.gain - (tuned.accuracy_after - tuned.accuracy_before)).abs().max() < 1e-4
    assert (tuned.n_test == option(LORA_COMMAND, "limit") / 4).all()
    assert tuned.best_step.between(0, option(LORA_COMMAND, "steps")).all()
    assert (tuned.best_step % option(LORA_COMMAND, "evaluate-every") == 0).all()
    same = tuned[tuned.best_step == 0]
    for name in ("accuracy", "ntps", "explained_heldout", "ceiling_heldout", "next_token_loss"):
        assert (same[f"{name}_before"] == same[f"{name}_after"]).all(), name


@pytest.mark.parametrize(
    "name", ["real_study.csv", "real_lora.csv", "lesson_runs.json", "lesson_study.json", "lesson_screens.json"]
)
def test_no_path_of_the_machine_is_in_them(name):
    text = resources.files("ntps.course").joinpath("data", name).read_text(encoding="utf-8")
    assert not re.search(r"(?<!\w)/\w|[A-Z]:\\", text)


def test_runs_of_the_lesson_are_read_as_they_were_made():
    runs = lesson_runs()
    assert list(runs) == ["topic", "watermark", "low", "loud", "whole"]
    assert [(run.settings["method"], run.settings["rank"], run.settings["alpha"]) for run in runs.values()] == [
        ("lora", 32, 32), ("lora", 32, 32), ("lora", 1, 1), ("lora", 1, 32), ("full", 32, 32)
    ]  # fmt: skip
    for name, run in runs.items():
        assert run.task == ("miniworld/topic" if name == "topic" else "miniworld/watermark")
        assert run.after.score.layers[-1].ceiling_heldout is not None and run.after.score.held_out
        assert [row["step"] for row in run.curve] == list(range(0, 81, 16))
        assert f"{100 * run.gain:+z.1f} points" in run.sentence()
    assert runs["watermark"].gain > 0.2 > abs(runs["topic"].gain)


def test_the_study_of_the_lesson_is_whole():
    study = lesson_study()
    assert all(cell.done for cell in study.cells) and len(study.cells) == 4 * len(study.tasks) == 40
    assert study.usable() == (list(study.models), list(study.tasks))
    for score in (cell.score for cell in study.cells):
        assert score is not None and score.n_scored + score.n_probed == score.n_texts == study.settings.limit
    topic = study.frame().query("task == 'miniworld/topic' and model == 'miniworld-base'")
    assert topic.explained_heldout.item() > topic.explained_heldout_random.item() + 0.2


def test_the_prescreenings_of_the_lesson_print_themselves():
    eight, own = lesson_screens().values()
    assert len(eight.rows) == 8 and eight.budget == 2 and {row["steps"] for row in eight.rows} == {0}
    assert sum(row["chosen"] for row in eight.rows) == 2 and "* within the budget of 2" in str(eight)
    (row,) = own.rows
    assert row["steps"] == 20 and row["n_texts"] == 400 and row["low"] < row["expected"] < row["high"]
    assert [each.steps for each in own.calibrations][-1] == 20 and row["sentence"].split(":")[0] in str(own)


def option(command: str, name: str) -> int:
    """Return the number that a command gives an option."""
    found = re.search(rf"--{name} (\d+)", command)
    assert found is not None
    return int(found[1])
