"""Make what a class is given: lessons and exercises without solutions, scripts and history.

    python -m tools.handout FOLDER --wheel WHEEL

FOLDER/course/        for students: notebooks, glossary, the package as a wheel, how to start
FOLDER/course.zip     the same; the same content gives the same bytes
FOLDER/nbgrader/      for the teacher: an nbgrader course with one assignment for each exercise
"""

import argparse
import re
import shutil
import sys
import zipfile
from pathlib import Path

from tools.badges import fill
from tools.course import EXERCISES, NOTEBOOKS, ROOT, Course, load_course
from tools.pairs import cells_of, read_notebook, write, write_notebook
from tools.rules import link_problems, prose

_MADE_FROM = re.compile(r"\n*<!-- made from .*? -->")
_BADGES = re.compile(r"<!-- badges -->\s*<!-- /badges -->\n*")
_FIRST_TIME = (1980, 1, 1, 0, 0, 0)  # a zip knows none before

README = """\
# {title}

{lessons}

Open a lesson in JupyterLab and run it from top to bottom. After a lesson come its exercises: each function that you
write is tried by the check below it, which says what is wrong, if anything is. Symbols and terms are explained in the
[glossary](notebooks/glossary.md).

## Start

You need Python 3.11 or later and about 2 GB of disk; several more on Linux, where PyTorch brings CUDA. In this folder,
once:

```
python -m venv .venv
.venv/bin/python -m pip install --constraint constraints.txt "./{wheel}[notebooks]"
```

In a room without network, with the folder `wheelhouse` that your teacher gives you beside this file:

```
.venv/bin/python -m pip install --no-index --find-links wheelhouse --constraint constraints.txt "./{wheel}[notebooks]"
```

Then, each time (one thread is faster than several for models as small as these):

```
OMP_NUM_THREADS=1 .venv/bin/jupyter lab notebooks/{first}.ipynb
```

On Windows, in the Command Prompt, write `.venv\\Scripts\\python` and `.venv\\Scripts\\jupyter`, and put
`set OMP_NUM_THREADS=1` on a line of its own.

Hand in your exercise notebooks under the names that they have. Your guesses are in `predictions.json`, beside
the lessons.
"""

NBGRADER = """\
from nbgrader.preprocessors import CheckCellMetadata, ClearOutput, ComputeChecksums, LockCells, SaveCells

c = get_config()
c.CourseDirectory.course_id = "ntps"
# The exercises hold prompts, no solutions: if nbgrader cleared them, signatures and docstrings would go, too.
c.GenerateAssignment.preprocessors = [LockCells, ClearOutput, CheckCellMetadata, ComputeChecksums, SaveCells]
c.Execute.timeout = 300  # seconds for a cell
"""


def course_folder(folder: Path, wheel: Path, course: Course) -> None:
    """Write what students get.

    Args:
        folder: Made anew.
        wheel: The package.
        course: What `course.toml` says.
    """
    shutil.rmtree(folder, ignore_errors=True)
    for script in (*NOTEBOOKS.glob("*.py"), *EXERCISES.glob("*.py")):
        pair = script.with_suffix(".ipynb")
        notebook = read_notebook(pair)
        first = notebook.cells[0]
        first.source = _MADE_FROM.sub("", _BADGES.sub("", fill(first.source, "badges", "")))
        write_notebook(folder / pair.relative_to(ROOT), notebook)
    shutil.copy(NOTEBOOKS / "glossary.md", folder / "notebooks")
    if (NOTEBOOKS / "data").exists():
        shutil.copytree(NOTEBOOKS / "data", folder / "notebooks/data")
    for file in (ROOT / "LICENSE", ROOT / "constraints.txt", wheel):
        shutil.copy(file, folder)
    write(folder / "README.md", _readme(course, wheel.name))


def _readme(course: Course, wheel: str) -> str:
    """Return the page that students read first."""
    rows = ["| Lesson | Time | You need | Exercises |", "|---|---|---|---|"]
    for entry in course.lessons:
        own = [each for each in course.exercises if each.lesson == entry.file]
        tasks = ", ".join(f"[{each.minutes} min]({each.path})" for each in own)
        rows.append(
            f"| [{entry.file[:2]} {entry.title}]({entry.path}) | {entry.minutes} min | {entry.needs} | {tasks} |"
        )
    rows += ["", *(f"[{each.title}]({each.path}): {each.minutes} min." for each in course.templates)]
    return README.format(title="The course", lessons="\n".join(rows), wheel=wheel, first=course.lessons[0].file)


def link_faults(folder: Path) -> list[str]:
    """Return the links in a folder's pages that lead out of it or nowhere."""
    found = []
    for path in sorted((*folder.rglob("*.md"), *folder.rglob("*.ipynb"))):
        text = prose(cells_of(read_notebook(path))) if path.suffix == ".ipynb" else path.read_text(encoding="utf-8")
        found += link_problems(path, text, root=folder)
    return found


def write_zip(folder: Path, file: Path) -> None:
    """Write a folder's files into a zip whose bytes depend on their names and content alone."""
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            entry = zipfile.ZipInfo(path.relative_to(folder.parent).as_posix(), _FIRST_TIME)
            entry.compress_type, entry.create_system, entry.external_attr = zipfile.ZIP_DEFLATED, 3, 0o100644 << 16
            archive.writestr(entry, path.read_bytes())


def nbgrader_folder(folder: Path, students: Path, course: Course) -> None:
    """Write an nbgrader course: its settings, and each exercise of the hand-out as an assignment.

    Args:
        folder: Where nbgrader is to be started; what it made there itself stays.
        students: The hand-out.
        course: What `course.toml` says.
    """
    write(folder / "nbgrader_config.py", NBGRADER)
    for entry in course.exercises:
        place = folder / "source" / entry.file
        place.mkdir(parents=True, exist_ok=True)
        shutil.copy(students / entry.path, place)


def main(arguments: list[str] | None = None) -> int:
    """Write folder, zip and nbgrader's course; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.handout", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    parser.add_argument("--wheel", type=Path, required=True, metavar="WHEEL", help="the package, from `pip wheel`")
    options = parser.parse_args(arguments)
    course = load_course()
    students = options.folder / "course"
    course_folder(students, options.wheel, course)
    write_zip(students, options.folder / "course.zip")
    nbgrader_folder(options.folder / "nbgrader", students, course)
    faults = link_faults(students)
    for fault in faults:
        print(fault, file=sys.stderr)
    if not faults:
        size = (options.folder / "course.zip").stat().st_size / 1e6
        print(f"{students}/, course.zip ({size:.0f} MB) and nbgrader/ beside it")
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main())
