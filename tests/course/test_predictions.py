"""Predictions: kept before the result, shown beside it, harmless when skipped, and collected from a class's files."""

import json

import pytest

from ntps import NtpsError
from ntps.course import guesses, outcome, predict
from ntps.course.guesses import FORMAT, Prediction, number, read_predictions
from ntps.course.predictions import collect, main


@pytest.fixture(autouse=True)
def file(tmp_path, monkeypatch):
    """The file in which guesses are kept: beside the notebook, which is the working directory."""
    monkeypatch.delenv(guesses.FILE_VARIABLE, raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path / guesses.FILE


def test_a_guess_in_code_is_kept_and_stands_beside_the_outcome(file, capsys):
    assert predict("share of U", 0.4) is None
    assert read_predictions(file) == {"share of U": Prediction(guess=0.4)}
    outcome("share of U", 0.5812)
    assert capsys.readouterr().out.splitlines() == [
        "share of U: your guess 0.4 is kept.",
        "share of U: you guessed 0.4, it is 0.581.",
    ]
    assert read_predictions(file) == {"share of U": Prediction(guess=0.4, outcome=0.5812)}


def test_a_choice_that_was_right_is_said_so(capsys):
    predict("coin", "heads", choices=("heads", "tails"))
    outcome("coin", "heads")
    assert capsys.readouterr().out.endswith("you guessed heads, and so it is.\n")


def test_without_a_guess_nothing_is_shown_and_nothing_written(file, capsys):
    outcome("share of U", 0.58)
    assert capsys.readouterr().out == "" and not file.exists()
    predict("another question", 1)
    outcome("share of U", 0.58)
    assert list(read_predictions(file)) == ["another question"]


def test_what_was_guessed_before_the_result_stays(file, capsys):
    predict("k", 3)
    predict("k", 4)  # a change of mind before the result
    outcome("k", 7)
    predict("k", 7)
    assert capsys.readouterr().out.splitlines()[-1] == "k: you guessed 4 before you saw the result; that guess stays."
    assert read_predictions(file)["k"] == Prediction(guess=4, outcome=7.0)


def test_the_variable_names_another_file(file, tmp_path, monkeypatch):
    monkeypatch.setenv(guesses.FILE_VARIABLE, str(tmp_path / "mine.json"))
    predict("k", 3)
    assert not file.exists() and list(read_predictions(tmp_path / "mine.json")) == ["k"]


@pytest.mark.parametrize(
    ("guess", "choices", "problem"),
    [
        ("edge", ("heads", "tails"), "choose one of: heads, tails"),
        (float("nan"), (), "finite"),
        ("many", (), "not a number"),
        (True, (), "a number or a text"),
    ],
)
def test_what_is_no_guess_is_refused(file, guess, choices, problem):
    with pytest.raises(NtpsError, match=problem):
        predict("k", guess, choices=choices)
    assert not file.exists()


@pytest.mark.parametrize(("typed", "value"), [("0.4", 0.4), (" 0,4 ", 0.4), ("40 %", 0.4), ("-3", -3), ("1e3", 1000)])
def test_numbers_are_read_as_people_type_them(typed, value):
    assert number(typed) == pytest.approx(value)


def test_the_widget_keeps_a_number_and_says_what_it_cannot_read(file):
    pytest.importorskip("ipywidgets")
    box = predict("share of U")
    box.field.value = "about half"
    assert "not a number" in box.line.value and not file.exists()
    box.field.value = "50 %"
    assert "your guess 0.5 is kept" in box.line.value
    assert read_predictions(file) == {"share of U": Prediction(guess=0.5)}


def test_the_widget_offers_the_choices_and_none_of_them_at_first(file):
    pytest.importorskip("ipywidgets")
    box = predict("<b>coin</b>", choices=("heads", "tails"))
    assert box.field.value is None and [label for label, _ in box.field.options] == ["choose ...", "heads", "tails"]
    box.field.value = "tails"
    assert "&lt;b&gt;coin" in box.line.value
    assert read_predictions(file)["<b>coin</b>"].guess == "tails"


def test_a_broken_file_stops_no_lesson_and_is_left_as_it_is(file, capsys):
    pytest.importorskip("ipywidgets")
    file.write_text("{")
    outcome("share of U", 0.58)
    assert "not valid JSON" in capsys.readouterr().out
    box = predict("share of U")
    box.field.value = "0.4"
    assert "not valid JSON" in box.line.value and file.read_text() == "{"


def hand_in(folder, name, **answers):
    """The file of one student."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = {question: {"guess": guess, "outcome": result} for question, (guess, result) in answers.items()}
    (folder / name).write_text(json.dumps({"format": FORMAT, "predictions": rows}))


def test_a_class_becomes_one_table(tmp_path, capsys):
    handed_in = tmp_path / "class"
    hand_in(handed_in, "ada.json", share=(0.2, 0.58), coin=("heads", "tails"))
    hand_in(handed_in / "bob", "predictions.json", share=(0.4, 0.58), coin=("heads", None))
    hand_in(handed_in / "eve", "predictions (1).json", share=(0.9, None), coin=("tails", "tails"), alone=(3, None))
    assert main([str(handed_in)]) == 0
    assert [line.split() for line in capsys.readouterr().out.splitlines()][1:] == [
        ["alone", "1", "3", "-"],
        ["coin", "3", "heads", "(2", "of", "3)", "tails"],
        ["share", "3", "0.4", "0.58"],
    ]


def test_copies_that_jupyterlab_keeps_do_not_count(tmp_path):
    hand_in(tmp_path / "ada", "predictions.json", share=(0.4, 0.5))
    hand_in(tmp_path / "ada/.ipynb_checkpoints", "predictions-checkpoint.json", share=(0.4, 0.5))
    questions, left_out = collect(tmp_path)
    assert [question.n for question in questions] == [1] and left_out == []


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        '{"format": "other", "predictions": {}}',
        json.dumps({"format": FORMAT, "predictions": {"k": 3}}),
        json.dumps({"format": FORMAT, "predictions": {"k": {"guess": [1], "outcome": None}}}),
        json.dumps({"format": FORMAT, "predictions": {"k": {"guess": None, "outcome": None}}}),
        json.dumps({"format": FORMAT, "predictions": {"k": {"guess": 1}}}),
        json.dumps({"format": FORMAT, "predictions": {"k": {"guess": float("nan"), "outcome": None}}}),
    ],
)
def test_a_broken_file_of_a_class_is_named_and_the_others_are_read(tmp_path, capsys, text):
    hand_in(tmp_path, "ada.json", share=(0.2, 0.58))
    (tmp_path / "bob.json").write_text(text)
    assert main([str(tmp_path)]) == 1
    printed = capsys.readouterr()
    assert "share" in printed.out and "left out: " in printed.err and "bob.json" in printed.err


def test_a_folder_without_predictions_has_no_table(tmp_path, capsys):
    with pytest.raises(NtpsError, match="not a folder"):
        collect(tmp_path / "none")
    assert main([str(tmp_path)]) == 2 and f"no predictions in {tmp_path}\n" in capsys.readouterr().out
