"""The real model's figures that ship: complete, plausible, and without paths of the machine they come from."""

from importlib import resources

import pytest

from ntps.course.measurements import SETS, real_lora, real_study


@pytest.mark.parametrize("read", [real_study, real_lora])
def test_every_set_is_there_once_with_the_command_that_measured_it(read):
    frame = read()
    assert sorted(frame["task"]) == sorted(SETS)
    assert frame.attrs["command"].startswith("ntps ")
    assert "gemma" in frame.attrs["model"].lower()
    assert frame["gain"].between(-1, 1).all()


def test_gains_are_differences():
    frame = real_lora()
    assert (frame.gain - (frame.accuracy_after - frame.accuracy_before)).abs().max() < 1e-4
    assert (frame.n_test == 200).all()
    study = real_study()
    assert (study.accuracy > study.majority_rate).all()
    assert (study.above_majority - (study.accuracy - study.majority_rate)).abs().max() < 1e-4


@pytest.mark.parametrize("name", ["real_study.csv", "real_lora.csv"])
def test_no_path_of_the_machine_is_in_them(name):
    text = resources.files("ntps.course").joinpath("data", name).read_text(encoding="utf-8")
    assert "/home" not in text
    assert "/tmp" not in text
