"""Grading: right answers have their points, planted wrong ones have none, and no notebook stops the others."""

import csv
import json
import os
import re
import sys
import time
from pathlib import Path

import pytest

from ntps.course import grade
from ntps.errors import NtpsError

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform == "win32", reason="answers run where processes can be forked"),
]

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
if not NOTEBOOKS.exists():
    pytest.skip("the notebooks are not part of this installation", allow_module_level=True)
EXERCISES = {exercise.name: exercise for exercise in grade.load_exercises(NOTEBOOKS / "exercises")}
CHECKS = {check.name for exercise in EXERCISES.values() for check in exercise.checks}

# One wrong answer for each function, and a part of what is said about it.
WRONG = {
    "above_chance": ("def above_chance(score, k, d):\n    return score - k / d", "perfect score"),
    "smallest_rank": ("def smallest_rank(r, e, s):\n    return r[0]", "not reached yet"),
    "lucky_coin": ("def lucky_coin(score_of, n):\n    return np.arange(n) % 2", "reach 0.65"),
    "next_token_encoder": (
        "def next_token_encoder(C0, C1, k):\n    return np.linalg.svd(C1)[0][:, :k]",
        "C0 must enter",
    ),
    "perception_by_regression": (
        "def perception_by_regression(x, y, k):\n    return np.linalg.svd(x)[2][:k].T",
        "labels never entered",
    ),
    "misleading_world": ("def misleading_world():\n    return 30, 75, 1.0", "not low"),
    "projector": ("def projector(V):\n    return V @ V.T", "orthonormalise"),
    "score": ("def score(U, V):\n    return np.square(V.T @ U).sum() / np.square(U).sum()", "not orthonormal"),
    "chance_by_simulation": (
        "def chance_by_simulation(U, k, draws, seed):\n    return np.full(draws, k / len(U))",
        "all scores are the same",
    ),
    "excess_between_bounds": ("def excess_between_bounds(M, X, V):\n    return 0, 1, 2", "exact excess loss is"),
    "breaking_scale": ("def breaking_scale(M, X, C0, C1, k):\n    return np.ones((2, len(M)))", "all scales are equal"),
    "impressive_noise": (
        "def impressive_noise(n, seed):\n    rng = np.random.default_rng(seed)\n"
        "    return rng.normal(size=(n, 20)), rng.integers(0, 2, n)",
        "reach 0.9",
    ),
    "permutation_p": ("def permutation_p(observed, null):\n    return np.mean(null >= observed)", "divide the hits"),
    "choose_without": ("def choose_without(values, accuracy, task):\n    return 20", "row number"),
    "judged_on": ("def judged_on(accuracies, sizes):\n    return 'train'", "the answer is|so wide|by chance"),
    "joined_questions": (
        "def joined_questions(rows):\n    return [row['question_1'] + row['question_2'] for row in rows]",
        "space",
    ),
    "choice_from_noise": (
        "def choice_from_noise(n, seed):\n    return np.random.default_rng(seed).normal(size=(35, n))",
        "reach 0.85",
    ),
    "merged_weight": ("def merged_weight(W, B, A, alpha):\n    return W + alpha * B @ A", "divide by the rank"),
    "intruder_indices": ("def intruder_indices(before, after, k, epsilon):\n    return []", "You miss|are|intruder"),
    "unseen_change": ("def unseen_change(W):\n    return 1.5 * W", "moved by 50 %"),
    "gain_without_task": (
        "def gain_without_task(accuracy, gain, task):\n"
        "    return np.polyval(np.polyfit(accuracy.ravel(), gain.ravel(), 1), accuracy[:, task])",
        "leak|left out|among",
    ),
    "left_out_errors": ("def left_out_errors(accuracy, gain):\n    return 0.1, 0.2", "the errors are"),
    "hidden_label": (
        "def hidden_label(n, seed):\n    y = np.arange(n) % 2\n    return np.stack([y, y], 1) * 1.0, y",
        "a probe finds",
    ),
}


def notebook_of(exercise: str, answers: dict[str, str] | None = None, folder: str = "exercises") -> dict:
    """An exercise as a student hands it in, the answers named in place of what stands there."""
    notebook = json.loads((NOTEBOOKS / folder / f"{exercise}.ipynb").read_text(encoding="utf-8"))
    for cell in notebook["cells"]:
        names = re.findall(r"^def (\w+)", "".join(cell["source"]), re.MULTILINE)
        for name in names:
            if answers and name in answers:
                cell["source"] = answers[name]
    return notebook


def hand_in(path: Path, notebook: dict | str) -> None:
    """Write what a student hands in."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(notebook if isinstance(notebook, str) else json.dumps(notebook), encoding="utf-8")


OWN = {
    "above_chance": "%matplotlib inline\nfrom math import *\nimport operator as op\nTHIRD = op.sub(1, 0)\n"
    "rest = lambda score, part: (score - part) / (THIRD - part)\n"
    "def above_chance(score, k, d):\n    model = floor(k) / d\n    return rest(score, model)",
    "smallest_rank": "def smallest_rank(ranks, explained, share):\n    return undefined_name",
    "lucky_coin": "def lucky_coin(score_of, n:\n    return 1",
}
NAME = "ex00_start_here"


@pytest.fixture(scope="module")
def graded(tmp_path_factory) -> list[grade.Row]:
    """A class that is graded once."""
    folder = tmp_path_factory.mktemp("grading") / ".this term"
    for name in EXERCISES:
        solved = notebook_of(name, {"misleading_world": "def misleading_world():\n    return 5, 155, 4"}, "solutions")
        hand_in(folder / f"class/right/{name}.ipynb", solved)
        wrong = {function: source for function, (source, _) in WRONG.items()}
        hand_in(folder / f"class/wrong {name}.ipynb", notebook_of(name, wrong))
    fine, cheat, own = notebook_of(NAME, folder="solutions"), notebook_of(NAME), notebook_of(NAME, OWN)
    cheat["cells"] += [
        {"cell_type": "code", "metadata": {}, "source": "checks = lambda f: None\nchecks.above_chance = print"},
        {"cell_type": "code", "metadata": {}, "source": "1 / 0"},
    ]
    for cell in cheat["cells"]:
        if "".join(cell["source"]).startswith("checks."):
            cell["source"] = "print('passed')"
    for cell in own["cells"]:  # as a tool that knows no nbgrader saves it
        cell["metadata"] = {}
    own["cells"] += [{"cell_type": "code", "metadata": {}, "source": "above_chance = above_chance(0.5, 1, 4)"}]
    hand_in(folder / "class/fine.ipynb", fine)
    hand_in(folder / f"class/cheat/{NAME}.ipynb", cheat)
    hand_in(folder / "class/own/my homework (2).ipynb", own)
    hand_in(folder / f"class/twice/b/{NAME}.ipynb", fine)
    hand_in(folder / "class/twice.ipynb", notebook_of(NAME))
    hand_in(folder / f"class/broken/{NAME}.ipynb", '{"cells": [')
    hand_in(folder / "class/deep.ipynb", "[" * 200_000)
    hand_in(folder / "class/old.ipynb", '{"worksheets": [], "nbformat": 3}')
    hand_in(folder / "class/empty.ipynb", "")
    hand_in(folder / "class/=other.ipynb", {"cells": [{"cell_type": "code", "source": "x = 1", "metadata": {}}]})
    (folder / "class/nothing").mkdir()
    hand_in(folder / "class/nothing/.ipynb_checkpoints/ex00_start_here-checkpoint.ipynb", fine)
    os.symlink(folder / "class/fine.ipynb", folder / f"class/nothing/{NAME}.ipynb")
    return grade.grade(folder / "class", list(EXERCISES.values()), jobs=1)


@pytest.fixture(scope="module")
def rows(graded) -> dict[str, dict[str, str]]:
    """The table of that class, by student."""
    lines = grade.csv_text(graded, list(EXERCISES.values())).splitlines()
    return {row["student"]: row for row in csv.DictReader(lines)}


def points(row: dict[str, str], exercise: str) -> dict[str, str]:
    """A student's points in an exercise, by check."""
    return {name.split("/")[1]: value for name, value in row.items() if name.startswith(f"{exercise}/")}


def test_right_answers_have_all_points(rows):
    assert rows["right"]["total"] == rows["right"]["of"] == str(sum(len(e.checks) for e in EXERCISES.values()))
    assert rows["right"]["reason"] == ""


def test_planted_wrong_answers_have_none(graded):
    """Each for what is wrong with it."""
    said = {}
    for row in graded:
        if row.student.startswith("wrong "):
            exercise = row.student.removeprefix("wrong ")
            own = {check: points for (name, check), points in row.points.items() if name == exercise}
            assert own == {check.name: 0 for check in EXERCISES[exercise].checks}
            found = [reason for reason in row.reasons if reason.startswith(f"{exercise}, ")]
            said |= {reason.partition(":")[0].split(", ")[1]: reason for reason in found}
    assert said.keys() == CHECKS
    planted = {"ntps" if function == "score" else function: says for function, (_, says) in WRONG.items()}
    assert len(planted.keys() & CHECKS) >= 20
    for check, says in planted.items():
        assert re.search(says, said[check]), said[check]


def test_what_was_edited_renamed_broken_or_is_missing(rows):
    """Edited checks change nothing; a name, a helper, an import of the student's own and an odd file are no matter."""
    totals = {student: row["total"] for student, row in rows.items() if "wrong" not in student and student != "right"}
    assert totals == {
        "fine": "3", "cheat": "0", "own": "1", "twice": "3", "broken": "0", "deep": "0", "old": "0", "empty": "0",
        "'=other": "0", "nothing": "0",
    }  # fmt: skip
    assert set(points(rows["fine"], NAME).values()) == set(points(rows["twice"], NAME).values()) == {"1"}
    assert "not written yet" in rows["cheat"]["reason"]
    assert rows["own"][f"{NAME}/above_chance"] == "1"
    assert "NameError in line 2, `return undefined_name`" in rows["own"]["reason"]
    says = {"broken": "not JSON", "deep": "not JSON", "old": "today's format", "empty": "is empty"}
    says |= {"'=other": "none of the exercises", "nothing": "no notebook"}
    for student, words in says.items():
        assert words in rows[student]["reason"], rows[student]


STUCK = """
def projector(V):
    while True:
        pass
"""
EXPLODING = """
BLOCKS = []


def score(U, V):
    while True:
        BLOCKS.append(np.ones(10_000_000))
"""
LEAVING = """
import os


def chance_by_simulation(U, k, draws, seed):
    os.kill(os.getppid(), 9)
    os._exit(0)
"""
PRINTING = """
def impressive_noise(n, seed):
    print("[true, ''" + "]" * 200_000)
    rng = np.random.default_rng(seed)
    return rng.standard_normal((n, n - 4)), rng.integers(0, 2, n)
"""


@pytest.mark.long
def test_an_answer_that_gets_stuck_or_explodes_costs_its_own_check_only(tmp_path):
    notebook = notebook_of("ex02_score_and_bounds", folder="solutions")
    answers = {"projector": STUCK, "score": EXPLODING, "chance_by_simulation": LEAVING, "impressive_noise": PRINTING}
    for cell in notebook["cells"]:
        for name, source in answers.items():
            if f"def {name}(" in "".join(cell["source"]):
                cell["source"] = source
    hand_in(tmp_path / "class/a/anything.ipynb", notebook)
    began = time.monotonic()
    (row,) = grade.grade(tmp_path / "class", list(EXERCISES.values()), jobs=1, seconds=5, megabytes=500)
    assert time.monotonic() - began < 60
    points = {check: points for (_, check), points in row.points.items()}
    said = {reason.partition(":")[0].split(", ")[1]: reason for reason in row.reasons}
    assert {check for check, value in points.items() if value == 0} == {"projector", "ntps", "chance_by_simulation"}
    assert "more than 5 seconds" in said["projector"] and "Memory" in said["ntps"]
    assert "took down" in said["chance_by_simulation"]


def test_the_command_writes_the_table(tmp_path, capsys):
    hand_in(tmp_path / "class/empty.ipynb", "")
    file = tmp_path / "grades.csv"
    exercises = ["--exercises", str(NOTEBOOKS / "exercises")]
    assert grade.main([str(tmp_path / "class"), "--csv", str(file), *exercises]) == 0
    (row,) = csv.DictReader(file.read_text(encoding="utf-8").splitlines())
    assert row["student"] == "empty" and row["total"] == "0" and "empty.ipynb is empty." in row["reason"]
    assert f"1 student: {file}" in capsys.readouterr().out


def test_refusals(tmp_path, capsys):
    with pytest.raises(NtpsError, match="no folder"):
        grade.handed_in(tmp_path / "none")
    with pytest.raises(NtpsError, match="holds no notebook"):
        grade.handed_in(tmp_path)
    assert grade.main([str(tmp_path), "--csv", "x.csv", "--exercises", str(tmp_path)]) == 2
    assert "holds no exercise with checks" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        grade.main([str(tmp_path), "--csv", "x.csv", "--seconds", "0"])
    assert "1 or more" in capsys.readouterr().err
