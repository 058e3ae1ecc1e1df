"""Make an exercise notebook from its solution: the solution is the source, the exercise is never edited.

Tags on the solution's cells:

* `solution`, code with functions: each keeps its decorators, signature and docstring; its body becomes a prompt.
* `solution`, code without functions: its leading comment lines stay and a prompt follows.
* `solution`, Markdown: becomes a place to write.
* `solution-only`: left out.

In the .ipynb, places to answer and cells that call `checks.NAME(...)` carry nbgrader's metadata, a check with one
point: `ntps.course.grade` and nbgrader find both by them.
"""

import ast
from pathlib import Path
from typing import Any

from nbformat import NotebookNode

from tools.course import EXERCISES, relative
from tools.pairs import Cell, build, cells_of, read_script, refuse_edited, script_text, write, write_notebook

PROMPT = 'raise NotImplementedError("your turn")'
MARK = "<!-- made from ../solutions/{name} by `make exercises`: edit that file, not this one -->"


def exercise_cells(solution: Path) -> list[Cell]:
    """Return the cells of the exercise.

    Raises:
        ValueError: If a solution cell holds more than functions and imports; the message names it.
    """
    return [cell for cell, _ in _made(solution)]


def exercise_notebook(solution: Path) -> NotebookNode:
    """Return the exercise as a notebook, with nbgrader's metadata.

    Raises:
        ValueError: If a solution cell holds more than functions and imports; the message names it.
    """
    made = _made(solution)
    notebook = build([cell for cell, _ in made])
    for cell, (_, marks) in zip(notebook.cells, made, strict=True):
        if marks:
            cell.metadata["nbgrader"] = marks
    return notebook


def _made(solution: Path) -> list[tuple[Cell, dict[str, Any]]]:
    """Return the cells of the exercise, each with its nbgrader metadata (schema 3), empty for most."""
    made = []
    for number, cell in enumerate(cells_of(read_script(solution)), 1):
        if "solution-only" in cell.tags:
            continue
        source, marks = cell.source, {}
        if "solution" in cell.tags:
            where = f"{relative(solution)}, cell {number}"
            source = "*Your answer:*" if cell.kind == "markdown" else _prompt(source, where)
            marks = _marks(f"answer-{len(made)}", graded=cell.kind == "markdown", answer=True)
        elif checked := _checked(cell):
            marks = _marks(f"check-{checked}", graded=True, answer=False)
        tags = tuple(tag for tag in cell.tags if tag != "solution")
        made.append((Cell(cell.kind, source, tags), marks))
    first, marks = made[0]
    made[0] = first._replace(source=f"{first.source}\n\n{MARK.format(name=solution.name)}"), marks
    return made


def _checked(cell: Cell) -> str:
    """Return NAME of a cell that calls `checks.NAME(...)`, or nothing."""
    statements = ast.parse(cell.source).body if cell.kind == "code" and cell.source.startswith("checks.") else []
    for statement in statements:
        match statement:
            case ast.Expr(ast.Call(ast.Attribute(ast.Name("checks"), name))):
                return name
    return ""


def _marks(grade_id: str, *, graded: bool, answer: bool) -> dict[str, Any]:
    """Return a cell's nbgrader metadata; what is graded has one point, what is no answer is locked."""
    marks = {"grade": graded, "grade_id": grade_id, "locked": not answer, "schema_version": 3, "solution": answer}
    return {**marks, "task": False, **({"points": 1} if graded else {})}


def _prompt(source: str, where: str) -> str:
    """Return a solution cell's code with the answers taken out."""
    tree = ast.parse(source)
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    if not functions:
        lines = source.splitlines()
        comments = [line for line in lines[: _first_code(lines)] if line.strip()]
        return "\n".join([*comments, "# your turn"])
    for node in tree.body:
        if not isinstance(node, ast.FunctionDef | ast.Import | ast.ImportFrom):
            raise ValueError(f"{where}: line {node.lineno} stands beside a function; put it in a cell of its own.")
    lines = source.splitlines()
    for function in reversed(functions):
        body = function.body
        documented = ast.get_docstring(function) is not None
        last = (body[0].end_lineno or 0) if documented else body[0].lineno - 1
        while not documented and lines[last - 1].lstrip().startswith("#"):
            last -= 1  # a comment above the first statement is part of the answer
        indent = " " * body[0].col_offset
        lines[last : function.end_lineno] = [indent + PROMPT]
    return "\n".join(lines)


def _first_code(lines: list[str]) -> int:
    for index, line in enumerate(lines):
        if line.strip() and not line.lstrip().startswith("#"):
            return index
    return len(lines)


def generate(solution: Path, folder: Path = EXERCISES) -> bool:
    """Write the exercise's .py and .ipynb; return whether a file changed.

    Raises:
        EditedError: If somebody wrote answers into the .ipynb.
    """
    cells, pair = exercise_cells(solution), folder / solution.with_suffix(".ipynb").name
    refuse_edited(pair, cells, "To keep it, copy that file to another name.")
    script = write(folder / solution.name, script_text(cells))
    return write_notebook(pair, exercise_notebook(solution)) or script
