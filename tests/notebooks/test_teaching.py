"""TEACHING.md has the whole course: every lesson and exercise in the plan, every part of a lesson with its minutes."""

import re
import sys
from pathlib import Path

import pytest

pytest.importorskip("jupytext", reason="the notebooks extra is not installed")
ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tools.course import NOTEBOOKS, SOLUTIONS, load_course  # noqa: E402
from tools.pairs import cells_of, read_script  # noqa: E402
from tools.rules import prose  # noqa: E402

COURSE = load_course()
TEXT = (NOTEBOOKS / "TEACHING.md").read_text(encoding="utf-8")
FRAME = ["Take-away", "Quiz", "References"]


def section(heading: str) -> str:
    """What stands under a heading, up to the next one."""
    found = re.search(rf"^#+ {re.escape(heading)}\n(.*?)(?=^#|\Z)", TEXT, re.DOTALL | re.MULTILINE)
    assert found, f"TEACHING.md has no heading {heading!r}"
    return found[1]


def rows(text: str) -> list[list[str]]:
    """The rows of the one table in a text, without its head; a blank line within would end the table."""
    (table,) = re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    assert set("".join(lines[1])) == {"-"} and len({len(line) for line in lines}) == 1
    return lines[2:]


def test_the_plan_has_every_lesson_and_exercise_in_sessions_of_90_minutes():
    plan = rows(section("Plan"))
    minutes = {}
    end = 90
    for session, span, _, link in plan:
        first, last = map(int, span.split("-"))
        assert (first, bool(session)) == ((0, True) if end == 90 else (end, False)), span
        end = last
        for target in re.findall(r"\]\(([^)]+)\)", link):
            minutes[f"notebooks/{target}"] = last - first
    assert end == 90
    assert minutes.keys() == {entry.path for entry in (*COURSE.lessons, *COURSE.exercises)}
    for lesson in COURSE.lessons:
        assert minutes[lesson.path] >= lesson.minutes, lesson.file


@pytest.mark.parametrize("lesson", COURSE.lessons, ids=lambda lesson: lesson.file)
def test_every_part_has_its_row_and_the_minutes_add_up(lesson):
    parts = rows(section(f"{lesson.file[:2]} {lesson.title}"))
    text = prose(cells_of(read_script(NOTEBOOKS / f"{lesson.file}.py")))
    headings = [heading for heading in re.findall(r"^## (.+?)\s*$", text, re.MULTILINE) if heading not in FRAME]
    assert [part[0] for part in parts] == [*headings, "Take-away, quiz"]
    assert sum(int(part[1]) for part in parts) == lesson.minutes
    asked = re.split(r"^## ", text, flags=re.MULTILINE)[1:]
    for part, body in zip(parts, asked, strict=False):
        assert bool(part[2]) == ("> **Predict.**" in body), f"{part[0]}: the answer to its Predict"
    assert any("**project" in part[4] for part in parts), "a picture to project"


def test_the_points_are_those_of_the_checks():
    found = re.search(r"one point: ([\d, ]+) and (\d+) for exercises", section("Hand out and grade"))
    assert found
    told = [int(points) for points in (*found[1].split(","), found[2])]
    sources = [[cell.source for cell in cells_of(read_script(SOLUTIONS / f"{e.file}.py"))] for e in COURSE.exercises]
    assert told == [sum(source.startswith("checks.") for source in each) for each in sources]


def test_panels_are_called_what_the_lessons_call_them():
    lessons = "".join(prose(cells_of(read_script(NOTEBOOKS / f"{lesson.file}.py"))) for lesson in COURSE.lessons)
    named = set(re.findall(r"\b[Pp]anel ([A-Z])\b", TEXT))
    assert named and named <= set(re.findall(r"\bPanel ([A-Z])\b", lessons))
