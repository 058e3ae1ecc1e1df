"""Draw the lessons' panels beforehand, for readers without a kernel, and put them on a page.

A panel is made by the statements of its lesson, and draws itself in every state of a grid.
"""

import ast
import html
import itertools
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ntps.course import widgets
from tools.course import NOTEBOOKS, load_course
from tools.pairs import cells_of, read_script

# By class of panel, the values of its controls that are drawn; a control that is not named has all of its values. A
# panel that is not named takes too long to make or to draw: its page says where it can be used.
GRIDS: dict[str, dict[str, Sequence[float]]] = {
    "LinearWorldPanel": {"next_angle": range(0, 180, 30), "label_angle": range(0, 180, 15), "stretch": (1, 3)},
    "BoundsPanel": {"k_u": (1, 2, 8), "k_v": (1, 2, 4, 8, 16, 32, 64, 128)},
}
PALETTE = 32  # colours of a picture: half the bytes of all of them, and no difference to the eye
DPI = 120  # shown at 100 pixels an inch


def panel_of(code: str) -> str | None:
    """Return the name of the class whose panel a cell shows, or None."""
    found = re.search(r"widgets\.(\w+Panel)\(", code)
    return found[1] if found else None


def statements(code: Sequence[str], panel: str) -> list[ast.stmt]:
    """Return the statements of a notebook that make a panel, in order, the last one being the panel itself.

    They are those that assign, import or define a name that a later one of them reads.

    Args:
        code: The notebook's code cells.
        panel: Name of the panel's class.
    """
    shown = next(i for i, cell in enumerate(code) if panel_of(cell) == panel)
    before = [statement for cell in code[:shown] for statement in ast.parse(cell).body]
    made = next(
        node for node in ast.walk(ast.parse(code[shown])) if isinstance(node, ast.Call) and panel in ast.dump(node.func)
    )
    chosen = [ast.parse(f"panel = {ast.unparse(made)}").body[0]]
    needed = _names(chosen[0], ast.Load)
    for statement in reversed(before):
        if _bound(statement) & needed:
            chosen.insert(0, statement)
            needed |= _names(statement, ast.Load)
    return chosen


def _names(tree: ast.AST, context: type[ast.expr_context]) -> set[str]:
    return {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, context)}


def _bound(statement: ast.stmt) -> set[str]:
    if isinstance(statement, ast.Import | ast.ImportFrom):
        return {(alias.asname or alias.name).partition(".")[0] for alias in statement.names}
    if isinstance(statement, ast.FunctionDef | ast.ClassDef):
        return {statement.name}
    found = _names(statement, ast.Store)
    for node in ast.walk(statement):
        if isinstance(node, ast.Attribute | ast.Subscript) and isinstance(node.ctx, ast.Store):
            found |= _names(node.value, ast.Load)  # table["column"] = ... changes table
    return found


def make_panel(script: Path, panel: str) -> widgets.Panel:
    """Return a panel as its lesson makes it.

    Args:
        script: The lesson.
        panel: Name of the panel's class.
    """
    cells = [cell.source for cell in cells_of(read_script(script)) if cell.kind == "code"]
    code = [re.sub("^%.*", "", cell, flags=re.MULTILINE) for cell in cells]  # magics are no Python
    names: dict[str, Any] = {}
    exec(compile(ast.Module(statements(code, panel), []), script.name, "exec"), names)
    return names["panel"]


def grid_of(panel: widgets.Panel) -> dict[str, list[Any]]:
    """Return the values of every control that are drawn."""
    drawn = GRIDS[type(panel).__name__]
    grid: dict[str, list[Any]] = {}
    for name, control in panel.controls.items():
        if isinstance(control, widgets.Choice):
            grid[name] = list(control.options)
        else:
            every = range(int(control.low), int(control.high) + 1)
            grid[name] = [value for value in drawn.get(name, every) if control.low <= value <= control.high]
    return grid


def draw(panel: widgets.Panel, folder: Path) -> dict[str, Any]:
    """Draw a panel in every state of its grid.

    Args:
        panel: The panel.
        folder: Where the pictures go.

    Returns:
        controls: name, label, what the reader sees for each value, index of the value at the start, kind.
        states: number of the picture by the controls' indices, such as "0,3,1"; a state out of the panel's limits has
            the picture of the nearest within.
        pictures: for each the panel's sentence and the controls' indices.
        size: width and height in CSS pixels.
    """
    from PIL import Image

    panel.dpi = DPI
    grid, start = grid_of(panel), dict(panel.state)
    numbers: dict[tuple[Any, ...], int] = {}
    states, pictures = {}, []
    folder.mkdir(parents=True, exist_ok=True)
    for place in itertools.product(*(range(len(values)) for values in grid.values())):
        wanted = {name: values[index] for (name, values), index in zip(grid.items(), place, strict=True)}
        state = tuple(panel.set(**wanted).state.values())
        if state not in numbers:
            number = numbers[state] = len(numbers)
            image = Image.fromarray(panel.pixels()).convert("RGB").quantize(PALETTE, Image.Quantize.FASTOCTREE)
            image.save(folder / f"{number}.webp", lossless=True, method=2)
            pictures.append({"text": panel.reading(), "at": list(place)})
        states[",".join(map(str, place))] = numbers[state]
    controls = [
        {
            "name": name,
            "label": control.label,
            "shown": [_shown(control, value) for value in grid[name]],
            "start": min(range(len(grid[name])), key=lambda i: _distance(grid[name][i], start[name])),
            "kind": "choice" if isinstance(control, widgets.Choice) else "slider",
        }
        for name, control in panel.controls.items()
    ]
    return {"controls": controls, "states": states, "pictures": pictures, "size": [round(100 * s) for s in panel.size]}


def _shown(control: widgets.Slider | widgets.Choice, value: Any) -> str:
    if isinstance(control, widgets.Slider) and control.names:
        return control.names[int(value - control.low)]
    return value if isinstance(value, str) else f"{value:g}"


def _distance(value: Any, other: Any) -> float:
    return float(value != other) if isinstance(value, str) else abs(value - other)


def player(panel: dict[str, Any], static: str) -> str:
    """Return the HTML of a panel that was drawn beforehand; `docs/_static/panels.js` moves it.

    Args:
        panel: An entry of panels.json.
        static: Address of the folder with its pictures, from the page.
    """
    letter, (width, height) = panel["letter"], panel["size"]
    controls = "".join(_control(letter, control) for control in panel["controls"])
    plain = html.unescape(re.sub("<[^>]+>", "", panel["text"]))
    return (
        f'<div class="ntps-panel" data-panel="{letter}" data-pictures="{static}/{letter}">'
        f'<div class="ntps-controls">{controls}</div>'
        f'<img class="ntps-picture" src="{static}/{letter}/{panel["first"]}.webp" alt="{html.escape(plain)}" '
        f'width="{width}" height="{height}">'
        f'<p class="ntps-reading" role="status" aria-live="polite">{panel["text"]}</p>'
        f'<script src="{static}/{letter}.js"></script></div>'
    )


def _control(letter: str, control: dict[str, Any]) -> str:
    name, label, shown, start = (control[key] for key in ("name", "label", "shown", "start"))
    own = f"ntps-{letter}-{name.replace('_', '-')}"
    if control["kind"] == "choice":
        options = "".join(
            f'<option value="{place}"{" selected" if place == start else ""}>{html.escape(text)}</option>'
            for place, text in enumerate(shown)
        )
        made = f'<select id="{own}" autocomplete="off">{options}</select>'
    else:
        made = (
            f'<input type="range" id="{own}" min="0" max="{len(shown) - 1}" value="{start}" autocomplete="off" '
            f'aria-valuetext="{html.escape(shown[start])}" data-shown="{html.escape(json.dumps(shown))}">'
            f'<output for="{own}">{html.escape(shown[start])}</output>'
        )
    return f'<div><label for="{own}">{html.escape(label)}</label>{made}</div>'


def draw_all(folder: Path) -> None:
    """Draw every panel that has a grid.

    Args:
        folder: Gets the pictures in LETTER/, what `docs/_static/panels.js` shows in LETTER.js, and in panels.json what
            `player` takes.
    """
    pages = {}
    for entry in load_course().lessons:
        script = NOTEBOOKS / f"{entry.file}.py"
        for cell in cells_of(read_script(script)):
            name = panel_of(cell.source) if cell.kind == "code" else None
            if name not in GRIDS or name in pages:
                continue
            panel = make_panel(script, name)
            drawn = draw(panel, folder / panel.letter)
            states, pictures = drawn.pop("states"), drawn.pop("pictures")
            moves = json.dumps({"states": states, "pictures": pictures}, ensure_ascii=False)
            text = f'window.ntpsPanels = {{...window.ntpsPanels, "{panel.letter}": {moves}}};\n'
            (folder / f"{panel.letter}.js").write_text(text, encoding="utf-8")
            first = states[",".join(str(control["start"]) for control in drawn["controls"])]
            pages[name] = {**drawn, "letter": panel.letter, "first": first, "text": pictures[first]["text"]}
    (folder / "panels.json").write_text(json.dumps(pages, ensure_ascii=False), encoding="utf-8")
