"""Make an exercise notebook from its solution: the solution is the source, the exercise is never edited.

Tags on the solution's cells:

* `solution`, code with functions: each keeps its decorators, signature and docstring; its body becomes a prompt.
* `solution`, code without functions: its leading comment lines stay and a prompt follows.
* `solution`, Markdown: becomes a place to write.
* `solution-only`: left out.
"""

import ast
from pathlib import Path

from tools.course import EXERCISES, relative
from tools.pairs import Cell, build, cells_of, read_script, script_text, write, write_notebook

PROMPT = 'raise NotImplementedError("your turn")'
MARK = "<!-- made from ../solutions/{name} by `make exercises`: edit that file, not this one -->"


def exercise_cells(solution: Path) -> list[Cell]:
    """Return the cells of the exercise.

    Raises:
        ValueError: If a solution cell holds more than functions and imports; the message names it.
    """
    made = []
    for number, cell in enumerate(cells_of(read_script(solution)), 1):
        if "solution-only" in cell.tags:
            continue
        source = cell.source
        if "solution" in cell.tags:
            where = f"{relative(solution)}, cell {number}"
            source = "*Your answer:*" if cell.kind == "markdown" else _prompt(source, where)
        tags = tuple(tag for tag in cell.tags if tag != "solution")
        made.append(Cell(cell.kind, source, tags))
    made[0] = made[0]._replace(source=f"{made[0].source}\n\n{MARK.format(name=solution.name)}")
    return made


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
    """Write the exercise's .py and .ipynb; return whether a file changed."""
    cells = exercise_cells(solution)
    script = write(folder / solution.name, script_text(cells))
    return write_notebook(folder / solution.with_suffix(".ipynb").name, build(cells)) or script
