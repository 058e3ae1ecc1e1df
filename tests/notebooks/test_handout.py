"""What `make class` writes: a hand-out without solutions, always the same bytes, and exercises that nbgrader grades."""

import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import jsonschema
import pytest

pytest.importorskip("jupytext", reason="the notebooks extra is not installed")
ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tools import handout, pairs  # noqa: E402
from tools.course import SOLUTIONS, load_course  # noqa: E402

pytestmark = pytest.mark.slow

COURSE = load_course()
# nbgrader's schema of a cell's metadata, version 3 (nbgrader 0.9, BSD licence), without its descriptions.
SCHEMA = {
    "type": "object",
    "properties": {
        "schema_version": {"type": "integer", "minimum": 3, "maximum": 3},
        "grade": {"type": "boolean"},
        "locked": {"type": "boolean"},
        "solution": {"type": "boolean"},
        "task": {"type": "boolean"},
        "grade_id": {"type": "string", "pattern": r"^[a-zA-Z0-9_\-]*$"},
        "points": {"type": "number", "minimum": 0},
        "checksum": {"type": "string", "minLength": 32, "maxLength": 32},
        "cell_type": {"type": "string", "enum": ["raw", "code", "markdown"]},
    },
    "required": ["schema_version", "grade", "locked", "solution"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """What `make class` writes, with a file in place of the wheel."""
    folder = tmp_path_factory.mktemp("class")
    wheel = folder / "ntps-0-py3-none-any.whl"
    wheel.write_bytes(b"wheel")
    assert handout.main([str(folder), "--wheel", str(wheel)]) == 0
    return folder


def test_the_hand_out_has_the_whole_course_and_no_solution(made):
    course = made / "course"
    for entry in (*COURSE.lessons, *COURSE.exercises, *COURSE.templates):
        assert (course / entry.path).is_file()
        assert entry.path in (course / "README.md").read_text()
    files = {path for path in course.rglob("*") if path.is_file()}
    assert {path.suffix for path in files} <= {".ipynb", ".md", ".txt", ".whl", ".csv", ""}
    text = "\n".join(path.read_text(encoding="utf-8") for path in files)
    assert "solutions/" not in text and "badge" not in text and "made from" not in text
    for solution in SOLUTIONS.glob("*.py"):
        exercise = course / "notebooks/exercises" / solution.with_suffix(".ipynb").name
        given = {cell.source for cell in pairs.cells_of(pairs.read_notebook(exercise))}
        answers = {cell.source for cell in pairs.cells_of(pairs.read_script(solution)) if "solution" in cell.tags}
        assert answers and not answers & given


def test_the_same_content_gives_the_same_zip(made, tmp_path):
    again = tmp_path / "again"
    handout.main([str(again), "--wheel", str(made / "ntps-0-py3-none-any.whl")])
    for path in (again / "course").rglob("*"):
        os.utime(path, (1_700_000_000, 1_700_000_000))
    handout.write_zip(again / "course", again / "course.zip")
    assert (again / "course.zip").read_bytes() == (made / "course.zip").read_bytes()
    with zipfile.ZipFile(made / "course.zip") as archive:
        files = {path.relative_to(made).as_posix() for path in (made / "course").rglob("*") if path.is_file()}
        assert set(archive.namelist()) == files
    (again / "course/README.md").write_text("other")
    handout.write_zip(again / "course", again / "course.zip")
    assert (again / "course.zip").read_bytes() != (made / "course.zip").read_bytes()


def test_a_link_out_of_the_hand_out_is_a_fault(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "course").mkdir()
    (tmp_path / "TEACHING.md").write_text("# T")
    (tmp_path / "course/a.md").write_text("[a](../TEACHING.md) [b](none.ipynb) [c](a.md) [d](#e)\n\n# E")
    faults = handout.link_faults(Path("course"))
    assert [re.findall(r"links to (\S+),", fault)[0] for fault in faults] == ["../TEACHING.md", "none.ipynb"]


@pytest.mark.parametrize("entry", COURSE.exercises, ids=lambda entry: entry.file)
def test_exercises_carry_nbgraders_metadata(made, entry):
    """Each check is locked and has points, each place to answer is open, and no id is there twice."""
    notebook = pairs.read_notebook(made / f"nbgrader/source/{entry.file}/{entry.file}.ipynb")
    marked = [(cell, cell.metadata.nbgrader) for cell in notebook.cells if "nbgrader" in cell.metadata]
    for _, marks in marked:
        jsonschema.validate(marks, SCHEMA)
        assert marks.grade_id and ("points" in marks) is marks.grade
    ids = [marks.grade_id for _, marks in marked]
    assert len(set(ids)) == len(ids)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            marks = cell.metadata.get("nbgrader", {})
            check = re.match(r"checks\.(\w+)\(", cell.source)
            assert bool(check) == bool(marks.get("grade")) == bool(marks.get("locked"))
            assert ("your turn" in cell.source) == bool(marks.get("solution"))
            assert not check or (marks["grade_id"], marks["points"]) == (f"check-{check[1]}", 1)


def test_nbgrader_autogrades_them(made, tmp_path):
    """A right answer, a wrong one, and one whose check was edited, as `nbgrader autograde` sees them."""
    pytest.importorskip("nbgrader", reason="the nbgrader extra is not installed")
    from nbgrader.api import Gradebook
    from nbgrader.nbgraderformat import read

    name = COURSE.exercises[0].file
    source = made / f"nbgrader/source/{name}/{name}.ipynb"
    read(source, as_version=4)  # nbgrader's own validation
    notebook = json.loads(source.read_text(encoding="utf-8"))
    solution = json.loads((SOLUTIONS / f"{name}.ipynb").read_text(encoding="utf-8"))
    right = {
        found[0]: cell["source"]
        for cell in solution["cells"]
        if (found := re.findall(r"^def (\w+)", "".join(cell["source"]), re.MULTILINE))
    }
    places = [cell for cell in notebook["cells"] if "".join(cell["source"]).startswith("def ")]
    checks = [cell for cell in notebook["cells"] if cell["metadata"].get("nbgrader", {}).get("grade")]
    places[0]["source"] = right[re.findall(r"def (\w+)", "".join(places[0]["source"]))[0]]
    checks[-1]["source"] = "print('passed')"
    keep = {id(cell) for cell in (*places, *checks)}
    notebook["cells"] = [  # what draws and loads models is left out: it takes long
        cell for cell in notebook["cells"] if id(cell) in keep or "%matplotlib" in "".join(cell["source"])
    ]
    course = made / "nbgrader"
    handed_in = course / f"submitted/somebody/{name}/{name}.ipynb"
    handed_in.parent.mkdir(parents=True)
    handed_in.write_text(json.dumps(notebook), encoding="utf-8")
    folders = {key: str(tmp_path / key) for key in ("HOME", "IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_RUNTIME_DIR")}
    folders["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    folders["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])  # as when it is activated
    for command in ("generate_assignment", "autograde"):
        done = subprocess.run(
            [sys.executable, "-m", "nbgrader", command, name],
            cwd=course,
            env={**os.environ, **folders, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-2000:]
    release = pairs.read_notebook(course / f"release/{name}/{name}.ipynb")
    assert any("Args:" in cell.source and "your turn" in cell.source for cell in release.cells), "signatures stay"
    with Gradebook(f"sqlite:///{course / 'gradebook.db'}", "ntps") as book:
        graded = book.find_submission(name, "somebody")
        assert (graded.score, graded.max_score) == (1, len(checks))
