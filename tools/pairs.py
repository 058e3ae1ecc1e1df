"""Pairs: the .py (percent format) is the source, the .ipynb beside it holds the same cells and their outputs.

Files are compared by the content of their cells, never by time.
"""

import hashlib
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

import jupytext
import nbformat
from nbformat import NotebookNode

from tools.course import relative

HEADER = """\
# ---
# jupyter:
#   jupytext:
#     cell_metadata_filter: tags,-all
#     notebook_metadata_filter: kernelspec,jupytext,-jupytext.text_representation.jupytext_version,-widgets
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

"""
METADATA = {
    "kernelspec": {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"},
    "language_info": {
        "codemirror_mode": {"name": "ipython", "version": 3},
        "file_extension": ".py",
        "mimetype": "text/x-python",
        "name": "python",
        "nbconvert_exporter": "python",
        "pygments_lexer": "ipython3",
    },
}


HIDDEN = "hide-input"  # tag of a cell that only draws: JupyterLab shows its picture, and its code on a click


class EditedError(Exception):
    """A notebook holds what its source lacks, and would be overwritten."""


class Cell(NamedTuple):
    """What a pair must agree on."""

    kind: str
    source: str
    tags: tuple[str, ...]


def cells_of(notebook: NotebookNode) -> list[Cell]:
    """Return the cells of a notebook, without outputs."""
    return [Cell(cell.cell_type, cell.source.rstrip(), tuple(cell.metadata.get("tags", []))) for cell in notebook.cells]


def read_script(path: Path) -> NotebookNode:
    """Read a .py in percent format as a notebook without outputs."""
    return jupytext.reads(path.read_text(encoding="utf-8"), fmt="py:percent")


def read_notebook(path: Path) -> NotebookNode:
    """Read an .ipynb."""
    return nbformat.read(path, as_version=4)


def with_header(text: str) -> str:
    """Return a script with the header that all scripts share."""
    body = text
    if text.startswith("# ---\n"):
        body = text.partition("\n# ---\n")[2]
    return HEADER + body.lstrip("\n")


def script_text(cells: list[Cell]) -> str:
    """Return cells as a script in percent format."""
    notebook = _notebook(cells)
    notebook.metadata = {}
    return with_header(jupytext.writes(notebook, fmt="py:percent"))


def code_digest(cells: list[Cell]) -> str:
    """Return a digest of the code: outputs made by other code are stale."""
    code = "\0".join(cell.source for cell in cells if cell.kind == "code")
    return hashlib.sha256(code.encode()).hexdigest()[:16]


def _digest(kind: str, source: str) -> str:
    """Return what a cell's id begins with, as we write it."""
    return hashlib.sha256(f"{kind}\0{source}".encode()).hexdigest()[:8]


def refuse_edited(pair: Path, cells: list[Cell], remedy: str = "") -> None:
    """Refuse to write cells over an .ipynb in which somebody wrote what they lack.

    An edited cell keeps the id that was made of its former content, and a new one has an id of another kind; a cell
    that was taken out leaves no trace, and is written again.

    Args:
        pair: The .ipynb; it need not exist.
        cells: What is to be written.
        remedy: How to keep the edit, as a sentence; by default, how to take it into the script of the pair.

    Raises:
        EditedError: If something would be lost; the message names the first such cell.
    """
    if not pair.exists():
        return
    remedy = remedy or f"To keep it: `jupytext --to py:percent {relative(pair)}`."
    kept = {(cell.kind, cell.source) for cell in cells}
    for number, cell in enumerate(read_notebook(pair).cells, 1):
        kind, source = cell.cell_type, cell.source.rstrip()
        ours = cell.get("id", "").startswith(_digest(kind, source))
        if source and not ours and (kind, source) not in kept:
            line = source.partition("\n")[0]
            raise EditedError(
                f"{relative(pair)}: cell {number} ({line[:40]!r}) was edited there, and nowhere else. {remedy} To drop "
                "the edit, delete that file."
            )


def _notebook(cells: list[Cell]) -> NotebookNode:
    """Build a notebook whose cell ids depend on the cells' content only, so that the same cells give the same file."""
    notebook = nbformat.v4.new_notebook()
    seen: dict[str, int] = defaultdict(int)
    for cell in cells:
        make = nbformat.v4.new_code_cell if cell.kind == "code" else nbformat.v4.new_markdown_cell
        digest = _digest(cell.kind, cell.source)
        seen[digest] += 1
        made = make(cell.source, id=digest if seen[digest] == 1 else f"{digest}-{seen[digest]}")
        if cell.tags:
            made.metadata["tags"] = list(cell.tags)
        if HIDDEN in cell.tags:
            made.metadata["jupyter"] = {"source_hidden": True}
        notebook.cells.append(made)
    return notebook


def build(cells: list[Cell], old: NotebookNode | None = None) -> NotebookNode:
    """Return a notebook of these cells, with the outputs that `old` holds for code that has not changed.

    Args:
        cells: The cells of the script.
        old: The .ipynb so far.
    """
    notebook = _notebook(cells)
    notebook.metadata.update(METADATA)
    if old is None:
        return notebook
    outputs: dict[str, list[NotebookNode]] = defaultdict(list)
    for cell in old.cells:
        if cell.cell_type == "code":
            outputs[cell.source.rstrip()].append(cell)
    for cell in notebook.cells:
        if cell.cell_type == "code" and outputs[cell.source]:
            kept = outputs[cell.source].pop(0)
            cell.outputs, cell.execution_count = kept.outputs, kept.execution_count
    if "ntps" in old.metadata:
        notebook.metadata["ntps"] = old.metadata["ntps"]
    return notebook


def write(path: Path, text: str) -> bool:
    """Write a text file if that changes it; return whether it did."""
    if path.exists() and path.read_text(encoding="utf-8") == text:
        return False
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return True


def write_notebook(path: Path, notebook: NotebookNode) -> bool:
    """Write an .ipynb if that changes it; return whether it did."""
    nbformat.validate(notebook)
    return write(path, nbformat.writes(notebook) + "\n")


def sync(script: Path) -> bool:
    """Bring the .ipynb of a script up to date, keeping outputs of unchanged code; return whether a file changed.

    Raises:
        EditedError: If the .ipynb was edited, and its script was not.
    """
    pair, cells = script.with_suffix(".ipynb"), cells_of(read_script(script))
    refuse_edited(pair, cells)
    changed = write(script, with_header(script.read_text(encoding="utf-8")))
    old = read_notebook(pair) if pair.exists() else None
    return write_notebook(pair, build(cells, old)) or changed
