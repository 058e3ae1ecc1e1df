"""The report of a ranking: a folder with one self-contained page, the numbers as JSON and CSV, pictures as PNG."""

import math
from collections.abc import Sequence
from operator import attrgetter, itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from ntps._files import json_text
from ntps._names import file_names, shareable_results, short_name
from ntps._text import Column, fixed, html_table, interval_text
from ntps.errors import NtpsError
from ntps.report.page import (
    draw_picture,
    render,
    settings_table,
    tables_csv,
    write_files,
)
from ntps.report.plots import COLORS, MARKERS, PALETTE, as_label, legend_below, new_axes
from ntps.scoring.learning import LearningCurve
from ntps.scoring.predictors import Predictor
from ntps.scoring.results import label_columns
from ntps.study.ranking_results import RankedModel, Ranking, layer_in_words, points, short_count

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_DRAWN = 8  # models in a picture of curves: more lines cannot be told apart
# How texts are found that every model gets wrong, by kind of labels.
_HARD_WORDS = {
    "classification": Markup(
        "By the probe of each best layer, on texts that it was not fitted on; models that do not hold the labels are "
        "not asked. <b>Margin</b>: the probability of the given label minus the largest other one, mean over models. "
        "Look at these first: the label may be wrong."
    ),
    "multilabel": Markup(
        "By the linear readout of each best layer, on texts that it was not fitted on; models that do not hold a label "
        "are not asked for it. <b>Margin</b>: 0 where a readout is undecided, -1 where it says the opposite, mean over "
        "models. Look at these first: the label may be wrong."
    ),
    "regression": Markup(
        "By the linear readout of each best layer, on texts that it was not fitted on; models that do not hold the "
        "values are not asked. All others are off in the same direction, by more than twice their usual (root mean "
        "square) error. <b>Off by</b>: the error in units of the usual one, mean over models. Look at these first: the "
        "value may be wrong."
    ),
}


def write_ranking(rankings: Ranking | Sequence[Ranking], folder: str | Path) -> list[Path]:
    """Write one page with tables and pictures of a ranking, or of those of several label columns of one task.

    Files for one ranking: report.html, ranking.json, ranking.csv, models.png, layers.png and labels.png. For several,
    the page has one section per label column, ranking.json has them in a list `tasks`, ranking.csv has a first column
    `labels`, and the pictures are called models-NAME.png and so on. Each file is written atomically, and the files of
    two runs are not mixed.

    Args:
        rankings: From `ntps.rank`.
        folder: Destination folder; created if it does not exist.

    Returns:
        The paths written.

    Raises:
        NtpsError: If there is no ranking, or the folder cannot be written.
    """
    rankings = [rankings] if isinstance(rankings, Ranking) else list(rankings)
    if not rankings:
        raise NtpsError("rankings is empty; give at least one Ranking.")
    several = len(rankings) > 1
    names = [ranking.label_column for ranking in rankings]
    slugs = file_names(names)
    sections = [_section(ranking, f"-{slug}" if several else "") for ranking, slug in zip(rankings, slugs, strict=True)]
    heading = f"Which model for {short_name(rankings[0].task)}?"
    page = render("ranking.html", title=heading, heading=heading, sections=sections)
    table = tables_csv([ranking.to_dataframe() for ranking in rankings], names)
    pictures = [picture for section in sections for picture in section["pictures"]]
    numbers = json_text(shareable_results(rankings))
    return write_files(folder, pictures, {"ranking.json": numbers, "ranking.csv": table, "report.html": page})


def _section(ranking: Ranking, suffix: str) -> dict[str, Any]:
    """Return the variables of a page's section on one label column."""
    of = f" of {ranking.label_column}" if suffix else ""
    pictures = [
        draw_picture(
            f"models{suffix}.png",
            f"R²{of} by model, with intervals",
            lambda figure: plot_ranking(ranking, figure.add_subplot()),
            figsize=(6.4, 1.6 + 0.36 * len(ranking.table_rows)),
        ),
        draw_picture(
            f"layers{suffix}.png",
            f"R²{of} by depth, one line per model",
            lambda figure: plot_depths(ranking, figure.add_subplot()),
        ),
    ]
    if any(model.learning for model in ranking.models):
        pictures.append(
            draw_picture(
                f"labels{suffix}.png",
                f"R²{of} by number of labelled texts, one line per model",
                lambda figure: plot_learning(ranking, figure.add_subplot()),
            )
        )
    return {
        "id": f"labels{suffix}",
        "name": ranking.label_column,
        "ranking": ranking,
        "counts": f"{ranking.counts}.",
        "sentences": ranking.sentences(),
        "notes": ranking.notes(),
        "table": html_table(_columns(ranking), ranking.table_rows, best=ranking.best if ranking.holds else None),
        "labels": html_table(label_columns(), ranking.best.labels) if ranking.best.labels else "",
        "pictures": pictures,
        "learning": _learning(ranking),
        "trend": _has_trend(ranking),
        "hard": html_table(_hard_columns(ranking.kind), ranking.hard_texts) if ranking.hard_texts else "",
        "hard_words": _HARD_WORDS[ranking.kind],
        "settings": settings_table(ranking.settings),
    }


def _columns(ranking: Ranking) -> list[Column]:
    def of_model(value: Any) -> Any:
        return lambda row: value(row) if isinstance(row, RankedModel) else None

    def place(row: Any) -> Any:
        return ranking.group_of(row) if row in ranking.models else ""

    def behind(row: Any) -> Any:
        found = ranking.behind.get(row.name)
        if found is None:
            return None
        low, high = found.interval
        return "ties" if row.name in ranking.groups[0] else points(low, high)

    def probe_interval(row: RankedModel | Predictor) -> str | None:
        probe = row.probe if isinstance(row, RankedModel) else row
        return None if ranking.kind != "classification" or probe is None else interval_text(probe.accuracy_interval, 2)

    return [
        Column("group", place),
        Column("model", attrgetter("name"), words=True),
        Column("layer (ties)", of_model(layer_in_words)),
        Column("R²", attrgetter("r2")),
        Column("95 % interval", lambda row: interval_text(row.interval, 2)),
        Column("behind the best", behind, words=True),
        Column("accuracy", attrgetter("accuracy"), digits=2),
        Column("95 % interval", probe_interval),
        Column("R² through V", of_model(lambda row: row.through_v.r2 if row.through_v else None)),
        Column("NTPS (chance)", of_model(_ntps)),
        Column("size", of_model(lambda row: short_count(row.n_parameters))),
        Column("seconds", of_model(attrgetter("seconds")), digits=1),
        Column("GB", of_model(attrgetter("gigabytes")), digits=1),
    ]


def _hard_columns(kind: str) -> list[Column]:
    if kind == "regression":
        found = [
            Column("its value", lambda row: f"{row.label:.4g}"),
            Column("predicted", lambda row: f"{row.predicted:.4g}"),
            Column("off by", lambda row: -row.margin, digits=1),
        ]
    else:
        found = [
            Column("its label", attrgetter("label"), words=True),
            Column("predicted", attrgetter("predicted"), words=True),
            Column("margin", attrgetter("margin"), digits=2),
        ]
    return [Column("row", attrgetter("index")), *found, Column("text", attrgetter("text"), words=True)]


def _ntps(row: RankedModel) -> str | None:
    v = row.through_v
    return None if v is None else f"{fixed(v.ntps, 2)} ({fixed(v.chance, 2)})"


def _learning(ranking: Ranking) -> Markup | str:
    """Return a table of learning curves, one row per model."""
    rows = [(model.name, model.learning) for model in ranking.models if model.learning is not None]
    if not rows:
        return ""

    def at(index: int) -> Any:
        return lambda row: row[1].r2[index]

    def twice(row: tuple[str, LearningCurve]) -> str | None:
        curve = row[1]
        return None if math.isnan(curve.twice) else f"{fixed(curve.twice)} {interval_text(curve.interval)}"

    columns = [Column("model", itemgetter(0), words=True)]
    columns += [Column(f"{number:,} texts", at(index)) for index, number in enumerate(rows[0][1].n)]
    if _has_trend(ranking):
        columns.append(Column("twice as many, expected", twice))
    return html_table(columns, rows)


def plot_ranking(ranking: Ranking, ax: "Axes | None" = None) -> "Axes":
    """Draw R² of each model and baseline with its 95 % interval, best on top; models of one group share a colour.

    Args:
        ranking: From `ntps.rank`.
        ax: Axes to draw on; new ones by default.
    """
    rows = ranking.table_rows
    ax = new_axes(ax, figsize=(6.4, 1.6 + 0.36 * len(rows)))
    for height, row in enumerate(reversed(rows)):
        place = ranking.group_of(row) if row in ranking.models else None
        color = COLORS["chance"] if place is None else PALETTE[(place - 1) % len(PALETTE)]
        low, high = row.interval
        ax.hlines(height, low, high, color=color, lw=2)
        ax.plot(row.r2, height, "o" if place else "D", color=color, ms=6 if place else 4)
        if isinstance(row, RankedModel) and row.through_v is not None:
            ax.plot(row.through_v.r2, height, "|", color=color, ms=11, mew=1.6)
    ax.plot([], [], "|", color="0.3", ms=11, mew=1.6, label="through V")
    ax.plot([], [], "o", color="0.3", label="all directions, 95 % interval")
    ax.set_yticks(range(len(rows)), [as_label(row.name) for row in reversed(rows)])
    ax.axvline(0, color="0.85", lw=1, zorder=0)
    ax.set_xlabel("R² on held-out texts")
    ax.margins(y=0.12 if len(rows) < 8 else 0.05)
    legend_below(ax)
    return ax


def plot_depths(ranking: Ranking, ax: "Axes | None" = None) -> "Axes":
    """Draw R² of every layer read against its share of the depth, one line per model; a dot marks each best layer.

    Args:
        ranking: From `ntps.rank`.
        ax: Axes to draw on; new ones by default.
    """
    ax = new_axes(ax)
    for model, style in _styles(ranking):
        depths, values = _by_depth(model)
        ax.plot(depths, values, lw=1.5, ms=3.5, label=as_label(model.name), **style)
        best = [value.layer for value in model.layers].index(model.layer)
        ax.plot(depths[best], values[best], "o", color=style["color"], ms=9, mfc="none", mew=1.6)
    if ranking.fresh_weights is not None:
        control = ranking.fresh_weights
        ax.plot(*_by_depth(control), ":", color=COLORS["random"], label=as_label(control.name))
    ax.set(xlabel="depth: 0 is the embedding, 1 the last layer", ylabel="R² on held-out texts", xlim=(-0.03, 1.03))
    values = [value.r2 for model in (*ranking.models, *filter(None, [ranking.fresh_weights])) for value in model.layers]
    highest = 1.03 if max(values) > 0.5 else 1.1 * max(*values, 0.1)  # low values are shown larger
    ax.set_ylim(max(-0.5, min(-0.03, min(values) - 0.03)), highest)
    legend_below(ax)
    return ax


def _by_depth(model: RankedModel) -> tuple[list[float], list[float]]:
    """Return the share of the depth and the R² of each layer."""
    last = max(model.n_layers - 1, 1)
    return [value.layer / last for value in model.layers], [value.r2 for value in model.layers]


def plot_learning(ranking: Ranking, ax: "Axes | None" = None) -> "Axes":
    """Draw R² of each model's best layer by number of labelled texts, with what twice as many are expected to bring.

    Args:
        ranking: From `ntps.rank`.
        ax: Axes to draw on; new ones by default.
    """
    ax = new_axes(ax)
    ticks: set[int] = set()
    for index, (model, style) in enumerate(_styles(ranking)):
        curve = model.learning
        if curve is None:
            continue
        ax.plot(curve.n, curve.r2, lw=1.5, ms=4, label=as_label(model.name), **style)
        ticks |= {*curve.n}
        if not math.isnan(curve.twice):
            ticks |= {2 * curve.n[-1]}
            twice = 2 * curve.n[-1] * (1 + 0.02 * index)  # side by side, so that no interval hides another
            ax.plot([curve.n[-1], twice], [curve.r2[-1], curve.twice], "--", lw=1, color=style["color"])
            ax.vlines(twice, *curve.interval, color=style["color"], lw=1.5)
    ax.set_xscale("log", base=2)
    ax.set_xticks(sorted(ticks), [f"{tick:,}" for tick in sorted(ticks)])
    ax.minorticks_off()
    dashed = "; dashed: expected" if _has_trend(ranking) else ""
    ax.set(xlabel=f"labelled texts to learn from{dashed}", ylabel="R² on held-out texts")
    legend_below(ax)
    return ax


def _has_trend(ranking: Ranking) -> bool:
    """Whether some learning curve says what twice as many texts would bring."""
    return any(model.learning is not None and not math.isnan(model.learning.twice) for model in ranking.models)


def _styles(ranking: Ranking) -> list[tuple[RankedModel, dict[str, Any]]]:
    """Return the models that are drawn as lines, with colour and marker."""
    drawn = zip(ranking.models[:_DRAWN], PALETTE, MARKERS, strict=False)
    return [(model, {"color": color, "marker": marker}) for model, color, marker in drawn]
