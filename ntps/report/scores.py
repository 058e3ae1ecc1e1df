"""The report of scores: a folder with one self-contained page, the numbers as JSON and CSV, pictures as PNG."""

import math
from collections.abc import Callable, Sequence
from operator import attrgetter, itemgetter
from pathlib import Path
from typing import Any

from markupsafe import Markup

from ntps._files import json_text
from ntps._names import clean, file_names, shareable_results, short_name
from ntps._text import Column, html_table, interval_text
from ntps.errors import NtpsError
from ntps.report.page import (
    draw_picture,
    render,
    settings_table,
    tables_csv,
    write_files,
)
from ntps.report.plots import plot_curve, plot_layers
from ntps.scoring.learning import LearningCurve
from ntps.scoring.results import LayerScore, ScoreResult, label_columns

QUANTITIES = {
    "ceiling_heldout": "R², all directions",
    "explained_heldout": "R² through V",
    "retained_heldout": "share through V",
    "accuracy_heldout": "accuracy",
    "ntps": "NTPS",
    "chance": "chance",
    "explained": "through V, in sample",
    "ceiling": "all directions, in sample",
}
_LAYER = Column("layer", attrgetter("layer"))
_EXCESS = Column("excess loss", attrgetter("excess_loss"), digits=4)
_BASELINES = [
    Column("read by", attrgetter("name"), words=True),
    Column("R²", attrgetter("r2")),
    Column("95 % interval", lambda row: interval_text(row.interval)),
    Column("accuracy", attrgetter("accuracy")),
    Column("balanced accuracy", attrgetter("balanced_accuracy")),
    Column("log loss (nats)", attrgetter("log_loss")),
]
_LEFT_OUT = ("settings", "classes", "class_sizes", "task_source")


def write_report(results: ScoreResult | Sequence[ScoreResult], folder: str | Path) -> list[Path]:
    """Write one page with tables and pictures of a score, or of the scores of several label columns of one task.

    Files for one result: report.html, scores.json, scores.csv, layers.png and curve.png. For several, the page has one
    section per label column, scores.json has them in a list `tasks`, scores.csv has a first column `labels`, and the
    pictures are called layers-NAME.png and curve-NAME.png. Each file is written atomically, and the files of two runs
    are not mixed.

    Args:
        results: One result, or several of one model and the same texts, with different label columns.
        folder: Destination folder; created if it does not exist.

    Returns:
        The paths written.

    Raises:
        NtpsError: If there is no result, several are not of one model and different label columns, or the folder cannot
            be written.
    """
    results = [results] if isinstance(results, ScoreResult) else list(results)
    names = _section_names(results)
    several = len(results) > 1
    slugs = file_names(names)
    sections = [
        _section(result, name, f"-{slug}" if several else "")
        for result, name, slug in zip(results, names, slugs, strict=True)
    ]
    task = results[0].task.removesuffix(f":{names[0]}") if several else results[0].task
    heading = f"{short_name(results[0].model)} on {short_name(task)}"
    page = render("score.html", title=heading, heading=heading, sections=sections, contents=_contents(sections))
    table = tables_csv([result.to_dataframe() for result in results], names)
    pictures = [section[kind] for section in sections for kind in ("layers", "curve")]
    numbers = json_text(shareable_results(results))
    return write_files(folder, pictures, {"scores.json": numbers, "scores.csv": table, "report.html": page})


def _section_names(results: Sequence[ScoreResult]) -> list[str]:
    if not results:
        raise NtpsError("results is empty; give at least one ScoreResult.")
    names = [clean(str(result.metadata.get("label_column", result.task))) for result in results]
    if len({result.model for result in results}) > 1 or len(set(names)) < len(names):
        listed = ", ".join(f"{short_name(result.model)}: {name}" for result, name in zip(results, names, strict=True))
        raise NtpsError(f"results are of {listed}; one page takes one model and different label columns.")
    return names


def _section(result: ScoreResult, name: str, suffix: str) -> dict[str, Any]:
    """Return the variables of a page's section on one result."""
    shown, of = result.shown, f" of {name}" if suffix else ""
    origin = {key: value for key, value in result.metadata.items() if key not in _LEFT_OUT} | dict(result.settings)
    bounds = [_LAYER, _EXCESS, Column("whitened bounds", _bounds("whitened")), Column("raw bounds", _bounds("raw"))]
    return {
        "id": f"labels{suffix}",
        "name": name,
        "result": result,
        "shown": shown,
        "counts": f"{result.n_texts:,} texts, {result.classes_in_words}, {result.n_tokens:,} tokens.",
        "sentences": [sentence.removeprefix("* ").replace(" (=)", "") for sentence in result.sentences()],
        "notes": result.notes(),
        "layers": draw_picture(
            f"layers{suffix}.png",
            f"R² and NTPS{of} by layer",
            lambda figure: plot_layers(result, figure.add_subplot()),
        ),
        "curve": draw_picture(
            f"curve{suffix}.png",
            f"R² and NTPS{of} by number of directions",
            lambda figure: plot_curve(shown, figure.add_subplot()),
        ),
        "table": html_table(_layer_columns(result), result.layers, best=_best_row(result)),
        "labels": html_table(label_columns(), result.labels) if result.labels else "",
        "baselines": html_table(_BASELINES, result.baselines) if result.baselines else "",
        "learning": _learning(result.learning) if result.learning else "",
        "bounds": html_table(bounds, result.layers, best=_best_row(result)) if result.losses_mean_something else "",
        "evidence": _evidence(result),
        "settings": settings_table(origin),
    }


def _contents(sections: Sequence[dict[str, Any]]) -> Markup:
    """Return a table of the sections with their best layers, each linked to its section."""

    def link(section: dict[str, Any]) -> Markup:
        return Markup('<a href="#{}">{}</a>').format(section["id"], section["name"])

    def of_shown(name: str) -> Callable[[dict[str, Any]], Any]:
        return lambda section: getattr(section["shown"], name)

    def best(section: dict[str, Any]) -> Any:
        found = section["result"].best
        return "none" if found is None else ", ".join(map(str, (found.layer, *found.tied)))

    columns = [
        Column("labels", link, words=True),
        Column("classes", lambda section: section["result"].n_classes or None),
        Column("texts", lambda section: f"{section['result'].n_texts:,}"),
        Column("best layers", best),
        Column("R²", of_shown("through_all")),
        Column("through V", of_shown("through_v")),
        Column("NTPS", of_shown("ntps")),
        Column("chance", of_shown("chance")),
    ]
    return html_table(columns, sections)


def _best_row(result: ScoreResult) -> LayerScore | None:
    return None if result.best is None else result[result.best.layer]


def _layer_columns(result: ScoreResult) -> list[Column]:
    in_sample = ("explained", "ceiling")
    names = (
        in_sample
        if not result.held_out
        else [name for name in QUANTITIES if name not in (*in_sample, "ntps", "chance")]
    )
    tie = Column("", lambda scored: {"*": "best", "=": "ties", " ": ""}[result.mark(scored.layer)], words=True)
    return [_LAYER, *(Column(QUANTITIES[name], attrgetter(name)) for name in (*names, "ntps", "chance")), tie]


def _learning(curve: LearningCurve) -> Markup:
    """Return the learning curve as a table."""
    rows: list[tuple[Any, float]] = list(zip(curve.n, curve.r2, strict=True))
    if not math.isnan(curve.twice):
        rows.append((f"twice as many, expected {interval_text(curve.interval)}", curve.twice))
    return html_table([Column("training texts", itemgetter(0)), Column("R² on held-out texts", itemgetter(1))], rows)


def _bounds(kind: str) -> Callable[[LayerScore], str]:
    return lambda scored: " to ".join(f"{value:.3g}" for value in scored.bounds[kind])


def _evidence(result: ScoreResult) -> list[tuple[str, Markup]]:
    """Return one table per quantity that has a null, an interval or a control, with its values beside them."""

    def entry(field: str, name: str, key: str | None = None) -> Callable[[LayerScore], Any]:
        def value(scored: LayerScore) -> Any:
            content = (getattr(scored, field) or {}).get(name)
            return content if key is None or content is None else content[key]

        return value

    tables = []
    for name, quantity in QUANTITIES.items():
        beside = []
        if name in (result.shown.null or {}):
            beside.append(Column("shuffled", entry("null", name, "mean")))
            beside.append(Column("z", entry("null", name, "z"), digits=2))
            beside.append(Column("p", entry("null", name, "p_value")))
        if name in (result.shown.interval or {}):
            beside += [Column(end, entry("interval", name, end)) for end in ("low", "high")]
        if (result.shown.control or {}).get(name) is not None:
            beside.append(Column("random weights", entry("control", name)))
        if beside:
            columns = [_LAYER, Column("value", attrgetter(name)), *beside]
            tables.append((quantity, html_table(columns, result.layers, best=_best_row(result))))
    return tables
