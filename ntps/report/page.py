"""A folder that shows a result: one self-contained page, the numbers as JSON and CSV, the pictures as PNG."""

import base64
import html
import io
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ntps._version import __version__
from ntps._files import atomic_write
from ntps.report.plots import plot_curve, plot_layers
from ntps.scoring.results import ScoreResult
from ntps._text import fixed, short_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

STYLE = """
body{font:16px/1.5 system-ui,sans-serif;color:#222;max-width:56rem;margin:2rem auto;padding:0 1rem}
h1{font-size:1.5rem;line-height:1.25}h2{font-size:1.15rem;margin-top:2rem}
table{border-collapse:collapse;font-variant-numeric:tabular-nums}.wide{overflow-x:auto}
th,td{padding:.2rem .7rem;text-align:right;border-bottom:1px solid #ddd}th{font-weight:600;white-space:nowrap}
th:has(wbr){white-space:normal}td.word,th.word{text-align:left}td.word+td.word{overflow-wrap:anywhere;min-width:8rem}
tr.best{background:#fff3e0;font-weight:600}
img{max-width:100%;height:auto}.lead{background:#f4f6f8;padding:.8rem 1rem;border-radius:.4rem}
details{margin:1rem 0}footer{color:#666;margin-top:2rem;font-size:.85rem}
"""

READING = """
<dl>
<dt><b>NTPS</b></dt><dd>the share of the labels' directions U that lies inside the k<sub>V</sub> directions V that
next-token prediction uses most. <b>Chance</b>, k<sub>V</sub>/d, is what a random subspace of that size would have.
It is not invariant to the scale of features: do not compare it between layers or models.</dd>
<dt><b>explained</b></dt><dd>the share of label variance that a linear readout of those directions explains, with
an intercept; <b>ceiling</b>: the same for all directions; <b>retained</b>: their ratio.
<b>Held out</b>: judged on texts that the readout was not fitted on.</dd>
<dt><b>excess loss</b></dt><dd>what is lost, in squared error, by reading V instead of U: exact, between
its bounds.</dd>
</dl>
"""


def picture(draw: Callable[["Axes"], Any], *, figsize: tuple[float, float] = (6.4, 4.6)) -> bytes:
    """Return the PNG of what `draw` puts on fresh axes."""
    return figure_png(lambda figure: draw(figure.add_subplot()), figsize=figsize)


def figure_png(draw: Callable[["Figure"], Any], *, figsize: tuple[float, float]) -> bytes:
    """Return the PNG of what `draw` puts on a fresh figure; the reader's own matplotlib state is left alone."""
    from matplotlib import style
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    buffer = io.BytesIO()
    with style.context("default"):  # legends and labels are laid out for its sizes
        figure = Figure(figsize=figsize, layout="constrained")
        FigureCanvasAgg(figure)
        draw(figure)
        figure.savefig(buffer, format="png", dpi=120)
    return buffer.getvalue()


def image_tag(png: bytes, alt: str) -> str:
    """Return an <img> that carries its own data."""
    return f'<img alt="{html.escape(alt)}" src="data:image/png;base64,{base64.b64encode(png).decode()}">'


def table_html(heads: list[str], rows: list[list[Any]], *, best: int | None = None, words: tuple[int, ...] = ()) -> str:
    """Return a table; numbers get three decimals, missing ones a dash, `best` is the row to mark."""

    def cell(column: int, value: Any, tag: str = "td") -> str:
        if isinstance(value, float):
            value = fixed(value, missing="–")
        kind = ' class="word"' if column in words else ""
        text = html.escape("–" if value is None else str(value))
        if tag == "th":  # a column's name may be broken where its words end
            text = text.replace("_", "_<wbr>")
        return f"<{tag}{kind}>{text}</{tag}>"

    head = "".join(cell(column, value, "th") for column, value in enumerate(heads))
    body = [
        f"<tr{' class=best' if place == best else ''}>{''.join(cell(c, v) for c, v in enumerate(row))}</tr>"
        for place, row in enumerate(rows)
    ]
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{"".join(body)}</tbody></table></div>'


def page(title: str, body: str) -> str:
    """Return a whole HTML page that needs nothing beside it."""
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width,initial-scale=1"><style>{STYLE}</style></head>'
        f"<body>{body}<footer>ntps {__version__}. Method: Cheng, Hu, Huang, Balestriero, Next Token Perception Score, "
        "arXiv 2505.17169 (2025).</footer></body></html>"
    )


def settings_html(settings: Mapping[str, Any]) -> str:
    """Return a two-column table of settings."""
    rows = [[key, value if isinstance(value, str) else json.dumps(value)] for key, value in settings.items()]
    return table_html(["setting", "value"], rows, words=(0, 1))


def _evidence_html(result: ScoreResult) -> str:
    """Return the table of nulls, intervals and fresh weights by layer, or nothing when there are none."""
    quantities = {
        "ntps": "NTPS",
        "explained": "explained",
        "retained": "retained",
        "explained_heldout": "explained, held out",
        "ceiling": "ceiling",
        "ceiling_heldout": "ceiling, held out",
    }
    best = result.best
    marked = [scored.layer for scored in result.layers].index(best.layer)
    tables = []
    for name, label in quantities.items():
        heads, picks = ["layer", "value"], []
        if name in (best.null or {}):
            heads += ["shuffled", "z", "p"]
            picks += [("null", key) for key in ("mean", "z", "p_value")]
        if name in (best.interval or {}):
            heads += ["low", "high"]
            picks += [("interval", key) for key in ("low", "high")]
        if (best.control or {}).get(name) is not None:
            heads += ["fresh weights"]
            picks += [("control", "")]
        if not picks:
            continue
        rows = []
        for scored in result.layers:
            parts = [((getattr(scored, what) or {}).get(name), key) for what, key in picks]
            values = [part[key] if key and part is not None else part for part, key in parts]
            rows.append([scored.layer, getattr(scored, name), *values])
        tables.append(f"<h3>{label}</h3>{table_html(heads, rows, best=marked)}")
    if not tables:
        return ""
    return (
        "<h2>What to read it against</h2><p><b>Shuffled</b>: the mean under labels shuffled among the texts, with z "
        "and one-sided p. <b>Low, high</b>: 95 % intervals; of held-out shares from the spread over folds, of the "
        "others by leaving out a fold at a time; those of explained and retained also take off the bias that this "
        "estimates, so that a value may lie at an end. <b>Fresh weights</b>: the same architecture, not trained.</p>"
        f"<details open><summary>Tables by quantity and layer</summary>{''.join(tables)}</details>"
    )


def write_report(result: ScoreResult, directory: str | Path) -> list[Path]:
    """Write report.html, scores.json, scores.csv, layers.png and curve.png, each atomically.

    Args:
        result: From `ntps.score`.
        directory: Made if it is not there.

    Returns:
        The paths written.

    Raises:
        NtpsError: If the folder cannot be written.
    """
    directory = Path(directory)
    best = result.best
    layers = picture(lambda ax: plot_layers(result, ax))
    curve = picture(lambda ax: plot_curve(best, ax))
    heads = ["layer", "NTPS", "chance", "explained", "ceiling", "retained", "excess loss"]
    rows: list[list[Any]] = []
    bounds: list[list[Any]] = []
    for scored in result.layers:
        limits = [" to ".join(f"{value:.3g}" for value in scored.bounds[kind]) for kind in ("whitened", "raw")]
        bounds.append([scored.layer, scored.excess_loss, *limits])
        rows.append(
            [
                scored.layer,
                scored.ntps,
                scored.chance,
                scored.explained,
                *([scored.explained_heldout] if result.held_out else []),
                scored.ceiling,
                *([scored.ceiling_heldout] if result.held_out else []),
                scored.retained,
                scored.excess_loss,
            ]
        )
    if result.held_out:
        heads[3:5] = ["explained", "held out", "ceiling", "held out"]
    beside = _evidence_html(result)
    marked = [scored.layer for scored in result.layers].index(best.layer)
    title = f"{short_name(result.model)} on {result.task}"
    made_by = {
        **{key: value for key, value in result.metadata.items() if key not in ("settings", "classes", "task_source")},
        **result.settings,
    }
    body = (
        f"<h1>{html.escape(title)}</h1><p>{result.n_texts:,} texts, {result.n_classes} classes, "
        f"{result.n_tokens:,} tokens.</p><p class='lead'>{html.escape(result.sentence().lstrip('* '))}</p>"
        f"<h2>By layer</h2>{image_tag(layers, 'score and explained share by layer')}"
        f"{table_html(heads, rows, best=marked)}"
        f"{beside}<p>k<sub>U</sub> = {best.k_u}, k<sub>V</sub> = {best.k_v} of d = {best.d} at layer {best.layer}.</p>"
        f"<h2>By number of directions, layer {best.layer}</h2>{image_tag(curve, 'score and share by rank')}"
        "<h2>Excess loss and its bounds</h2><p>The whitened bounds know nothing of the features' scale; the raw ones, "
        "the paper's, widen with the condition number of the features.</p>"
        f"{table_html(['layer', 'excess loss, exact', 'whitened bounds', 'raw bounds'], bounds, best=marked)}"
        f"<h2>How to read this</h2>{READING}"
        f"<details><summary>What made these numbers</summary>{settings_html(made_by)}</details>"
    )
    return [
        atomic_write(directory / "layers.png", layers),
        atomic_write(directory / "curve.png", curve),
        atomic_write(directory / "scores.json", result.to_json() + "\n"),
        atomic_write(directory / "scores.csv", result.to_dataframe().to_csv(index=False)),
        atomic_write(directory / "report.html", page(title, body)),
    ]
