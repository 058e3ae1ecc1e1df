"""Grade the exercises of a class: one row per student, one column per check.

    python -m ntps.course.grade FOLDER --csv grades.csv

FOLDER holds a notebook, or a folder of notebooks, for each student. Which checks there are, what each is worth, and the
code that was given come from your own exercises (`--exercises`), never from what was handed in: an edited check changes
nothing. Answers are found by their names and run in other processes, one check at a time, within limits of time and
memory; here nothing of a student's runs. The limits are for accidents, such as a loop without end. They are no prison:
an answer runs as the user who grades, reads and writes that user's files, reaches the network, and, if it sets out to,
alters the checks in its own process. Grade strangers' notebooks in a container.
"""

import argparse
import csv
import io
import json
import os
import re
import subprocess
import sys
import threading
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ntps._files import atomic_write, local_path
from ntps._text import counted, progress
from ntps.errors import NtpsError

_MOST_BYTES = 50_000_000
_DEFINED = re.compile(r"^def (\w+)", re.MULTILINE)


@dataclass(frozen=True)
class Check:
    """One check of an exercise: nbgrader's id of its cell, the code that calls it, and its points."""

    id: str
    source: str
    points: float

    @property
    def name(self) -> str:
        """What it is called in the table."""
        return self.id.removeprefix("check-")


@dataclass(frozen=True)
class Exercise:
    """What the teacher's own notebook says.

    Attributes:
        name: Stem of its file.
        given: Sources of the code cells that are neither answers nor checks.
        checks: In the order of the notebook.
        answers: Names of the functions to be written.
    """

    name: str
    given: tuple[str, ...]
    checks: tuple[Check, ...]
    answers: frozenset[str]


@dataclass
class Row:
    """A student's result: points by (exercise, check), and why points are missing, first reason first."""

    student: str
    points: dict[tuple[str, str], float] = field(default_factory=dict)
    reasons: list[str] = field(default_factory=list)


# Notebooks, as JSON ------------------------------------------------------------------------------------------------


def read_cells(path: Path) -> list[dict[str, Any]]:
    """Return the cells of a notebook, each with its `source` as one text and its nbgrader id as `id`.

    Raises:
        NtpsError: If the file cannot be read, or is no notebook.
    """
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise NtpsError(f"{path.name} is larger than {_MOST_BYTES // 1_000_000} MB; clear its outputs.")
        text = path.read_text(encoding="utf-8-sig")
        if not text.strip():
            raise NtpsError(f"{path.name} is empty.")
        cells = json.loads(text)["cells"]
        return [
            {
                "code": cell["cell_type"] == "code",
                "source": "".join(cell["source"]).rstrip(),
                "tags": cell.get("metadata", {}).get("tags", []),
                "marks": (marks := cell.get("metadata", {}).get("nbgrader", {})),
                "id": str(marks.get("grade_id", "")),
            }
            for cell in cells
        ]
    except OSError as error:
        raise NtpsError(f"{path.name} cannot be read: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise NtpsError(f"{path.name} is no notebook: it is not JSON ({error}).") from error
    except (KeyError, TypeError, AttributeError) as error:
        raise NtpsError(f"{path.name} is no notebook of today's format; save it anew in JupyterLab.") from error


def load_exercises(folder: Path) -> list[Exercise]:
    """Read the exercises that hold checks.

    Raises:
        NtpsError: If there is none.
    """
    found = []
    for path in sorted(folder.glob("*.ipynb")):
        code = [cell for cell in read_cells(path) if cell["code"]]
        answers = [cell for cell in code if cell["marks"].get("solution")]
        graded = [cell for cell in code if cell["marks"].get("grade") and cell not in answers]
        given = [cell for cell in code if not cell["id"] and "colab" not in cell["tags"]]
        if graded:
            found.append(
                Exercise(
                    path.stem,
                    tuple(cell["source"] for cell in given),
                    tuple(Check(cell["id"], cell["source"], float(cell["marks"]["points"])) for cell in graded),
                    frozenset(name for cell in answers for name in _DEFINED.findall(cell["source"])),
                )
            )
    if not found:
        raise NtpsError(f"{folder} holds no exercise with checks; give your copy of notebooks/exercises.")
    return found


def exercise_of(path: Path, cells: list[dict[str, Any]], exercises: Sequence[Exercise]) -> Exercise | None:
    """Return the exercise that a notebook answers, whatever its file is called, or `None`."""
    ids = {cell["id"] for cell in cells if cell["id"]}
    defined = {name for cell in cells if cell["code"] for name in _DEFINED.findall(cell["source"])}

    def likeness(exercise: Exercise) -> tuple[int, int, bool]:
        return (
            len(ids & {check.id for check in exercise.checks}),
            len(defined & exercise.answers),
            exercise.name in path.stem,
        )

    best = max(exercises, key=likeness)
    return best if any(likeness(best)) else None


def handed_in(folder: Path) -> dict[str, list[Path]]:
    """Return each student's notebooks: a file, or all in a folder; links and JupyterLab's checkpoints are left out.

    Raises:
        NtpsError: If there is no such folder, or nothing in it.
    """
    if not folder.is_dir():
        raise NtpsError(f"{folder} is no folder; give one that holds a notebook or a folder for each student.")
    found: dict[str, list[Path]] = {}
    for entry in sorted(folder.iterdir()):
        if entry.name.startswith((".", "__")) or entry.is_symlink():
            continue
        if entry.is_dir():
            own = found.setdefault(entry.name, [])
            for path in sorted(entry.rglob("*.ipynb")):
                hidden = any(part.startswith((".", "__")) for part in path.relative_to(entry).parts)
                if path.is_file() and not path.is_symlink() and not hidden:
                    own.append(path)
        elif entry.suffix == ".ipynb":
            found.setdefault(entry.stem, []).append(entry)
    if not found:
        raise NtpsError(f"{folder} holds no notebook and no folder of a student.")
    return found


# Judging -----------------------------------------------------------------------------------------------------------


class Worker:
    """The process in which answers run; it is started anew when an answer takes it down."""

    def __init__(self, seconds: int, megabytes: int):
        self.seconds, self.megabytes = seconds, megabytes
        self.process: subprocess.Popen[str] | None = None

    def close(self) -> None:
        """End the process."""
        if self.process is not None:
            self.process.kill()
            self.process.communicate()

    def _start(self) -> "subprocess.Popen[str]":
        one_thread = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        environment = {**os.environ, **one_thread, "MPLBACKEND": "Agg", "HF_HUB_OFFLINE": "1"}
        command = [sys.executable, "-m", "ntps.course.grade_worker", str(self.seconds), str(self.megabytes)]
        process = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, encoding="utf-8"
        )
        assert process.stdout is not None
        if process.stdout.readline() != "ready\n":
            raise NtpsError("the process that runs answers does not start; it needs Linux or macOS (on Windows: WSL).")
        return process

    def judge(self, request: dict[str, Any]) -> tuple[bool, str]:
        """Return whether an answer passes a check, and what is wrong with it.

        Args:
            request: As `ntps.course.grade_worker.judge` takes it.

        Raises:
            NtpsError: If the process does not start.
        """
        if self.process is None or self.process.poll() is not None:
            self.process = self._start()
        process = self.process
        assert process.stdin is not None and process.stdout is not None
        alarm = threading.Timer(10 * self.seconds + 60, process.kill)
        alarm.start()
        try:
            process.stdin.write(json.dumps(request) + "\n")
            process.stdin.flush()
            passed, reason = json.loads(process.stdout.readline())
        except (OSError, ValueError):
            process.kill()
            process.wait()
            return False, "the answer took down the process that ran it."
        finally:
            alarm.cancel()
        return passed, reason


def judge_notebook(worker: Worker, exercise: Exercise, cells: list[dict[str, Any]]) -> dict[str, tuple[float, str]]:
    """Run the exercise's checks on a notebook's answers.

    Returns:
        Points by check, and what is wrong, which is empty where the points are full.
    """
    ours = {source.rstrip() for source in exercise.given} | {check.source for check in exercise.checks}
    answers = [
        (number, f"cell {number}", cell["source"])
        for number, cell in enumerate(cells, 1)
        if cell["code"] and cell["source"] not in ours
    ]
    results = {}
    for check in exercise.checks:
        own = [
            number for number, cell in enumerate(cells, 1) if check.id == cell["id"] or check.source == cell["source"]
        ]
        request = {
            "given": exercise.given,
            "cells": [part[1:] for part in answers],
            "before": sum(number < own[0] for number, *_ in answers) if own else None,
            "check": check.source,
        }
        passed, reason = worker.judge(request)
        results[check.name] = (check.points, "") if passed else (0.0, reason)
    return results


def grade(
    folder: Path, exercises: Sequence[Exercise], *, jobs: int = 2, seconds: int = 30, megabytes: int = 1000
) -> list[Row]:
    """Grade what a class has handed in.

    Args:
        folder: A notebook, or a folder of notebooks, for each student.
        exercises: The teacher's own.
        jobs: How many answers run at the same time.
        seconds: Of the processor for each check.
        megabytes: Of memory for each check.

    Returns:
        A row for each student. Where a student has several notebooks of an exercise, the one with most points counts.

    Raises:
        NtpsError: If there is nothing to grade.
    """
    students = handed_in(folder)
    notes: dict[str, list[str]] = defaultdict(list)
    work: list[tuple[str, Path, Exercise, list[dict[str, Any]]]] = []
    for student, paths in students.items():
        for path in paths:
            try:
                cells = read_cells(path)
            except NtpsError as error:
                notes[student].append(str(error))
                continue
            exercise = exercise_of(path, cells, exercises)
            if exercise is None:
                notes[student].append(f"{path.name} answers none of the exercises.")
            else:
                work.append((student, path, exercise, cells))
    seen = {exercise.name for _, _, exercise, _ in work}
    graded = [exercise for exercise in exercises if exercise.name in seen or not seen]

    local = threading.local()
    workers: list[Worker] = []

    def judged(part: tuple[str, Path, Exercise, list[dict[str, Any]]]) -> dict[str, tuple[float, str]]:
        if not hasattr(local, "worker"):
            local.worker = Worker(seconds, megabytes)
            workers.append(local.worker)
        return judge_notebook(local.worker, part[2], part[3])

    try:
        with progress(len(work), "notebooks") as bar, ThreadPoolExecutor(jobs) as pool:
            results = []
            for result in pool.map(judged, work):
                results.append(result)
                bar.update()
    finally:
        for worker in workers:
            worker.close()
    rows = []
    for student in students:
        row = Row(student)
        for exercise in graded:
            own = [
                result
                for (name, _, its, _), result in zip(work, results, strict=True)
                if name == student and its is exercise
            ]
            best = max(own, key=lambda result: sum(points for points, _ in result.values()), default={})
            if not best:
                row.reasons.append(" ".join([f"{exercise.name}: no notebook.", *notes[student]]))
            for check in exercise.checks:
                points, reason = best.get(check.name, (0.0, ""))
                row.points[exercise.name, check.name] = points
                if reason:
                    row.reasons.append(f"{exercise.name}, {check.name}: {reason}")
        rows.append(row)
    return rows


# The table ---------------------------------------------------------------------------------------------------------


def csv_text(rows: Sequence[Row], exercises: Sequence[Exercise]) -> str:
    """Return rows as CSV: student, points of each check, total, the most there is, and the first reason."""
    columns = list(rows[0].points)
    most = sum(
        check.points for exercise in exercises for check in exercise.checks if (exercise.name, check.name) in columns
    )
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["student", *("/".join(column) for column in columns), "total", "of", "reason"])
    for row in rows:
        points = [row.points[column] for column in columns]
        reason = " ".join(row.reasons[0].split()) if row.reasons else ""
        # A spreadsheet would run a name that begins like a formula.
        student = f"'{row.student}" if row.student.startswith(("=", "+", "-", "@")) else row.student
        numbers = [f"{number:g}" for number in (*points, sum(points), most)]
        table.writerow([student, *numbers, reason])
    return text.getvalue().encode("utf-8", "replace").decode("utf-8")


def main(arguments: list[str] | None = None) -> int:
    """Grade a folder; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m ntps.course.grade", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", metavar="FOLDER", help="a notebook, or a folder of notebooks, for each student")
    parser.add_argument("--csv", required=True, metavar="FILE", help="where the grades go")
    parser.add_argument(
        "--exercises", default="notebooks/exercises", metavar="FOLDER", help="your own exercises (notebooks/exercises)"
    )
    parser.add_argument("--jobs", type=int, default=2, help="answers that run at the same time (2)")
    parser.add_argument("--seconds", type=int, default=30, help="of the processor for each check (30)")
    parser.add_argument("--megabytes", type=int, default=1000, help="of memory for each check (1000)")
    options = parser.parse_args(arguments)
    if min(options.jobs, options.seconds, options.megabytes) < 1:
        parser.error("--jobs, --seconds and --megabytes are 1 or more.")
    try:
        exercises = load_exercises(local_path(options.exercises))
        rows = grade(
            local_path(options.folder),
            exercises,
            jobs=options.jobs,
            seconds=options.seconds,
            megabytes=options.megabytes,
        )
        atomic_write(options.csv, csv_text(rows, exercises))
    except NtpsError as error:
        print(error, file=sys.stderr)
        return 2
    print(f"{counted(len(rows), 'student')}: {options.csv}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
