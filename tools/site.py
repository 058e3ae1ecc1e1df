"""What the site needs beyond Sphinx, MyST-NB and the theme; `docs/conf.py` loads it as an extension.

Formulas become MathML, which browsers draw and read out by themselves; notebooks lose the cell that is for Colab, and a
panel drawn beforehand takes the place of the note that stands for it; nothing is fetched from another server.
"""

import html
import json
import re
from pathlib import Path
from typing import Any

from docutils import nodes
from latex2mathml.converter import convert
from sphinx import addnodes
from sphinx.application import Sphinx

from tools.course import ROOT, load_course
from tools.panels import panel_of
from tools.run import PANEL_NOTE

PANELS = ROOT / "build/static/panels"  # where `make site` draws them
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


def _settle_links(app: Sphinx, document: nodes.document) -> None:
    """Send links to folders to the repository, and put words in place of pictures of other servers."""
    course, page = load_course(), Path(app.env.doc2path(app.env.docname))
    for link in list(document.findall(addnodes.pending_xref)):
        folder = (page.parent / link["reftarget"]).resolve()
        if link["reftype"] == "myst" and folder.is_dir() and folder.is_relative_to(ROOT):
            there = f"https://github.com/{course.repository}/tree/{course.ref}/{folder.relative_to(ROOT).as_posix()}"
            link.replace_self(nodes.reference("", "", *link.children, refuri=there))
    for image in list(document.findall(nodes.image)):
        if image["uri"].startswith("https://"):
            image.replace_self(nodes.Text(image.get("alt", "")))


def _skip(app: Sphinx, what: str, name: str, obj: Any, skip: bool, options: Any) -> bool | None:
    """Document what `ntps` exports on its own page only."""
    import ntps

    return True if what == "module" and app.env.docname != "docs/reference/ntps" and name in ntps.__all__ else None


def setup(app: Sphinx) -> dict[str, Any]:
    """Connect all of it."""
    app.add_html_math_renderer("mathml", (_math, None), (_display_math, None))
    app.connect("source-read", _read_notebook)
    app.connect("doctree-read", _settle_links, priority=100)
    app.connect("autodoc-skip-member", _skip)
    app.add_css_file("site.css")
    app.add_js_file("panels.js", loading_method="defer")
    return {"parallel_read_safe": True, "parallel_write_safe": True}
