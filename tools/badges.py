"""Write what depends on owner and repository from `notebooks/course.toml`: badges, course map, Colab's install line.

    python -m tools.badges            write
    python -m tools.badges --check    only say what would change; exit 1 if anything would

In Markdown and in the first cell of a notebook, whatever stands between `<!-- badges -->` and `<!-- /badges -->`
(`<!-- course -->` and `<!-- /course -->`) is replaced; in a notebook, the content of the cell tagged `colab`.
"""

import argparse
import os
import re
import sys
from pathlib import Path

from tools.course import NOTEBOOKS, ROOT, SOLUTIONS, Course, Entry, load_course, relative
from tools.exercises import generate
from tools.pairs import Cell, EditedError, cells_of, read_script, sync, write

COLAB = """\
# On Colab this installs the package; anywhere else it does nothing.
import subprocess
import sys

if "google.colab" in sys.modules:
    address = "git+https://github.com/{repository}@{ref}"
    pip = subprocess.run([sys.executable, "-m", "pip", "install", "-q", address], capture_output=True, text=True)
    if pip.returncode:
        reasons = "; ".join(line for line in pip.stderr.splitlines() if line.startswith("ERROR"))
        print(f"Nothing below will run: {{address}} could not be installed. {{reasons}}")"""


def badges(course: Course, path: str, page: Path) -> str:
    """Return a notebook's two badges; their pictures are the repository's own and are seen without network.

    Args:
        course: What `course.toml` says.
        path: The notebook, from the root of the repository.
        page: The file that the badges stand in.
    """
    images = Path(os.path.relpath(NOTEBOOKS / "images", page.parent)).as_posix()
    return (
        f"[![Open in Binder]({images}/badge_binder.svg)]({course.binder(path)}) "
        f"[![Open in Colab]({images}/badge_colab.svg)]({course.colab(path)})"
    )


def _minutes(entry: Entry) -> str:
    return f"{entry.minutes} min"


def badge_table(course: Course, page: Path) -> str:
    """Return README's table: one row per lesson, with its badges."""
    rows = [f"| [{e.title}]({e.path}) | {_minutes(e)} | {badges(course, e.path, page)} |" for e in course.lessons]
    return "\n".join(["", "| Lesson | Time | Open |", "|---|---|---|", *rows, ""])


def course_map(course: Course, page: Path) -> str:
    """Return the course map for notebooks/README.md, links relative to notebooks/."""
    rows = []
    for entry in course.lessons:
        own = [e for e in course.exercises if e.lesson == entry.file]
        tasks = ", ".join(f"[{_minutes(e)}](exercises/{e.file}.ipynb)" for e in own) or "none"
        title = f"[{entry.file[:2]} {entry.title}]({entry.file}.ipynb)"
        rows.append(f"| {title} | {_minutes(entry)} | {entry.needs} | {tasks} | {badges(course, entry.path, page)} |")
    head = ["", "| Lesson | Time | Prerequisites | Exercises | Open |", "|---|---|---|---|---|"]
    return "\n".join([*head, *rows, ""])


def fill(text: str, name: str, content: str) -> str:
    """Replace what stands between `<!-- name -->` and `<!-- /name -->`."""
    return re.sub(
        rf"(<!-- {name} -->).*?(<!-- /{name} -->)", lambda m: f"{m[1]}\n{content}\n{m[2]}", text, flags=re.DOTALL
    )


def notebook_cells(cells: list[Cell], course: Course, path: str, page: Path) -> list[Cell]:
    """Return a notebook's cells with badges and install line written."""
    filled = [cells[0]._replace(source=fill(cells[0].source, "badges", badges(course, path, page)))]
    for cell in cells[1:]:
        colab = COLAB.format(repository=course.repository, ref=course.ref)
        filled.append(cell._replace(source=colab) if "colab" in cell.tags else cell)
    return filled


def _in_script(cell: Cell) -> str:
    """Return how a cell without magic commands stands in a script."""
    return cell.source if cell.kind == "code" else "\n".join(f"# {line}".rstrip() for line in cell.source.splitlines())


def fill_script(script: Path, course: Course, path: str) -> str:
    """Return the text of a script with badges and install line written, and everything else as it stands."""
    text = script.read_text(encoding="utf-8")
    cells = cells_of(read_script(script))
    for cell, filled in zip(cells, notebook_cells(cells, course, path, script), strict=True):
        if filled != cell:
            text = text.replace(_in_script(cell), _in_script(filled), 1)
    return text


def wanted(course: Course) -> dict[Path, str]:
    """Return the text that every file written by this tool should have; exercises follow from their solutions."""
    texts = {}
    readme, overview = ROOT / "README.md", NOTEBOOKS / "README.md"
    if readme.exists():
        texts[readme] = fill(readme.read_text(encoding="utf-8"), "badges", badge_table(course, readme))
    if overview.exists():
        texts[overview] = fill(overview.read_text(encoding="utf-8"), "course", course_map(course, overview))
    pairs = [(NOTEBOOKS / f"{e.file}.py", e) for e in course.lessons]
    pairs += [(NOTEBOOKS / f"{e.file}.py", e) for e in course.templates]
    pairs += [(SOLUTIONS / f"{e.file}.py", e) for e in course.exercises]
    for script, entry in pairs:
        if script.exists():
            texts[script] = fill_script(script, course, entry.path)
    return texts


def main(arguments: list[str] | None = None) -> int:
    """Write, or check, every file; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tools.badges", description=__doc__.partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 if something would change")
    options = parser.parse_args(arguments)
    texts = wanted(load_course())
    stale = [path for path, text in texts.items() if path.read_text(encoding="utf-8") != text]
    if options.check:
        for path in stale:
            print(f"{relative(path)} does not follow notebooks/course.toml: run `python -m tools.badges`")
        return 1 if stale else 0
    try:
        for path in stale:
            write(path, texts[path])
            print(f"wrote {relative(path)}")
            if path.suffix == ".py":
                sync(path)
            if path.parent == SOLUTIONS:
                generate(path)
    except EditedError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
