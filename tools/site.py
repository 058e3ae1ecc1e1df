"""What the site needs beyond Sphinx, MyST-NB and the theme; `docs/conf.py` loads it as an extension.

Formulas become MathML, which browsers draw and read out by themselves; notebooks lose the cell that is for Colab, and a
panel drawn beforehand takes the place of the note that stands for it; nothing is fetched from another server.
"""

import json
from pathlib import Path
from typing import Any

from docutils import nodes
from latex2mathml.converter import convert
from sphinx import addnodes
from sphinx.application import Sphinx

from tools.course import ROOT, load_course
from tools.panels import draw_all, panel_of, player
from tools.run import PANEL_NOTE

PANELS = ROOT / "build/static/panels"
_ELSEWHERE = (
    "<p><em>Interactive panel: it needs a running lesson, on Binder, on Colab or with <code>make lab</code>.</em></p>"
)


def _math(translator: Any, node: nodes.math) -> None:
    translator.body.append(convert(node.astext()))
    raise nodes.SkipNode


def _display_math(translator: Any, node: nodes.math_block) -> None:
    translator.body.append(f'<div class="ntps-formula">{convert(node.astext(), display="block")}</div>')
    raise nodes.SkipNode


def _read_notebook(app: Sphinx, docname: str, source: list[str]) -> None:
    """Change a notebook before it is parsed: only outputs and tags, which are what differs on a page."""
    if Path(app.env.doc2path(docname)).suffix != ".ipynb":
        return
    notebook = json.loads(source[0])
    panels = json.loads((PANELS / "panels.json").read_text(encoding="utf-8"))
    static = "../" * docname.count("/") + "_static/panels"
    for cell in notebook["cells"]:
        if "colab" in cell["metadata"].get("tags", []):
            cell["metadata"]["tags"].append("remove-cell")
        for output in cell.get("outputs", []):
            if "".join(output.get("data", {}).get("text/markdown", "")) == PANEL_NOTE:
                panel = panels.get(panel_of("".join(cell["source"])))
                output["data"] = {"text/html": player(panel, static) if panel else _ELSEWHERE}
    source[0] = json.dumps(notebook)


def _settle_links(app: Sphinx, document: nodes.document) -> None:
    """Send links to folders to the repository."""
    course, page = load_course(), Path(app.env.doc2path(app.env.docname))
    for link in list(document.findall(addnodes.pending_xref)):
        folder = (page.parent / link["reftarget"]).resolve()
        if link["reftype"] == "myst" and folder.is_dir() and folder.is_relative_to(ROOT):
            there = f"https://github.com/{course.repository}/tree/{course.ref}/{folder.relative_to(ROOT).as_posix()}"
            link.replace_self(nodes.reference("", "", *link.children, refuri=there))


def _docstring(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Put what `ntps` exports below its docstring, each name a link to its room; keep a property's words together."""
    if name == "ntps":
        rooms = {room: [f":py:obj:`~ntps.{room}.{each}`" for each in names] for room, names in obj._ROOMS.items()}
        lines += ["", "Its names, by room:", "", *(f"- {room}: {', '.join(links)}" for room, links in rooms.items())]
    if what == "property":
        lines.insert(0, "")  # napoleon takes what stands before a colon in the first line for a type


def setup(app: Sphinx) -> dict[str, Any]:
    """Connect all of it."""
    app.add_html_math_renderer("mathml", (_math, None), (_display_math, None))
    app.connect("config-inited", lambda *_: draw_all(PANELS))
    app.connect("source-read", _read_notebook)
    app.connect("doctree-read", _settle_links, priority=100)
    app.connect("autodoc-process-docstring", _docstring, priority=400)  # before napoleon
    app.add_css_file("site.css")
    app.add_js_file("panels.js", loading_method="defer")
    return {"parallel_read_safe": True, "parallel_write_safe": True}
