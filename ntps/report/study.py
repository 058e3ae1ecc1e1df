"""The report of a study: a folder with one self-contained page, the table as CSV, pictures as PNG."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from markupsafe import Markup

from ntps._files import json_text
from ntps._names import distinct, shareable, short_name
from ntps._text import Column, counted, html_table
from ntps.finetune.results import method_words
from ntps.report.page import Picture, csv_text, draw_picture, render, settings_table, write_files
from ntps.report.study_plots import NAMES, plot_against, plot_choice, plot_models, plot_options, small_multiples
from ntps.study.study import Study
from ntps.study.table import GAINS

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

PICTURED = ("explained_heldout", "ntps")
PICTURED_GAINS = ("accuracy", "held_back", "ntps")
SHOWN = ("ceiling_heldout", "ceiling_heldout_p", "explained_heldout", "explained_heldout_random", "ntps", "ntps_p",
         "retained", "logme", "hscore", "knn", "balanced_accuracy", "r2", "accuracy", "majority_rate")  # fmt: skip
ERROR_COLUMNS = ["mae", "low", "high", "margin", "margin_low", "margin_high", "margin_to_mean", "margin_to_accuracy"]
LEFT_OUT = {"task": "each task", "model": "each model", "both": "task and model"}


def write_study(study: Study, folder: str | Path, *, result: dict[str, Any] | None = None) -> list[Path]:
    """Write report.html, study.json, study.csv and pictures into the study's folder, each atomically.

    The files of two processes are not mixed.

    Args:
        study: From `ntps.run_study`.
        folder: Destination folder; created if it does not exist.
        result: `study.to_dict()`; computed if not given.

    Returns:
        The paths written.

    Raises:
        NtpsError: If the folder cannot be written.
    """
    study = without_paths(study)
    result = shareable(result or study.to_dict())
    pictures = list(_pictures(study, result["correlations"], result["target"]))
    frame = study.frame()
    page = render(
        "study.html",
        title="ntps study",
        heading=f"{counted(len(study.models), 'model')} on {counted(len(study.tasks), 'task')}",
        lead=lead(result),
        target=result["target"].replace("_", " "),
        correlations=_correlation_table(result["correlations"]) if result["correlations"] else None,
        refused=result["refused"],
        pictures=pictures,
        gain=_gain(study, result["gain"]) if result["gain"] else None,
        cells=_cell_table(frame[frame["status"] == "done"], [name for name in SHOWN if name in frame]),
        failed=_failed_table([cell for cell in result["cells"] if cell["status"] != "done"]),
        settings=settings_table(result["settings"]),
    )
    texts = {"study.json": json_text(result), "study.csv": csv_text(frame), "report.html": page}
    return write_files(folder, pictures, texts)


def without_paths(study: Study) -> Study:
    """Return the study as it may be shared: models and tasks by the last parts of their paths, reasons too."""
    names = distinct([*study.models, *study.tasks])
    cells = []
    for cell in study.cells:
        model, task = (names.get(name, name) for name in (cell.model, cell.task))
        cells.append(replace(cell, model=model, task=task, reason=shareable(cell.reason)))
    models, tasks = (tuple(names[name] for name in given) for given in (study.models, study.tasks))
    return replace(study, cells=tuple(cells), models=models, tasks=tasks)


def lead(result: Mapping[str, Any]) -> str:
    """Return the study's result in one or two sentences.

    Args:
        result: `Study.to_dict()`.
    """
    correlations = result["correlations"]
    if not correlations:
        return str(result["refused"])
    names = ("ceiling_heldout", "explained_heldout", "ntps", "logme", "knn")
    parts = [
        f"{NAMES.get(name, name)} {_with_interval(correlations[name])}" for name in names if _known(correlations, name)
    ]
    first = next(iter(correlations.values()))
    if not parts:
        return (
            f"No rank correlation with {NAMES[result['target']]} on other texts, over {independent(first)}, is "
            "defined: it is the same on all of them, or nothing that could predict it differs."
        )
    text = (
        f"Rank correlation with {NAMES[result['target']]} on other texts, over {independent(first)}, rank and layer "
        f"fixed: {'; '.join(parts)}."
    )
    if "ntps:same_tasks" in correlations and _known(correlations, "ntps:held_out_task"):
        same, held_out = correlations["ntps:same_tasks"], correlations["ntps:held_out_task"]
        text += (
            f" Choosing NTPS's rank and layer on these tasks makes it {same['spearman']:+z.2f} "
            f"(p = {same['p_value']:.2f} when the choice is counted); chosen on other tasks it is "
            f"{held_out['spearman']:+z.2f}."
        )
    return text


def independent(entry: Mapping[str, Any]) -> str:
    """Return how many independent points a correlation has, in words: tasks, however many models see them."""
    tasks, models = counted(entry["n"], "task"), entry["n_models"]
    return tasks if models == 1 else f"{tasks} within each of {models} models ({entry['n']} independent tasks)"


def gain_lead(study: Study, gain: Mapping[str, Any]) -> str:
    """Return in a few sentences what fine-tuning gained and how well that was predicted.

    Args:
        study: From `ntps.run_study`, with `lora`.
        gain: `study.to_dict()["gain"]`.
    """
    frame = study.frame().dropna(subset=["gain"])
    if frame.empty:
        return "No cell finished fine-tuning."
    changes, training = gain["changes"], gain["settings"]
    n_tuned = changes["n_tuned"]
    length = counted(training["steps"], "step") if training["epochs"] is None else f"{training['epochs']:g} epochs"
    text = f"{method_words(training)}, {length}: {n_tuned} of {counted(changes['n_cells'], 'cell')} tuned"
    text += "; in the others what training starts from was kept." if n_tuned < changes["n_cells"] else "."
    if n_tuned:
        below = int((frame["gain"] < 0).sum())
        text += (
            f" The tuned ones gain {_points(changes['gain'])} points of accuracy on average over "
            f"{counted(changes['n_tasks'], 'task')}; accuracy after is below before in {below}."
        )
    for name, words in (("ntps", "NTPS"), ("accuracy", "probe accuracy"), ("held_back", "held back")):
        if _known(gain["correlations"], name):
            text += f" Rank correlation of {words} with the gain: {_with_interval(gain['correlations'][name])}."
    errors = gain["errors"].get("task")
    if errors:
        inputs = {
            "zero": "predicting no gain",
            "mean": "the mean gain",
            "accuracy": "probe accuracy",
            "accuracy + ntps": "it and NTPS",
            "accuracy + held back": "it and what is held back",
        }
        parts = [f"{100 * errors[name]['mae']:.1f} from {words}" for name, words in inputs.items()]
        text += f" Error in points on tasks left out: {', '.join(parts)}."
        better = [words for name, words in inputs.items() if errors[name]["margin_low"] > 0]
        text += (
            f" Better than predicting no gain, with an interval above 0: {', '.join(better)}."
            if better
            else " None has been shown to be better than predicting no gain."
        )
    return text


def _points(change: Mapping[str, Any]) -> str:
    """Return a mean over tasks in points, with its interval if it has one."""
    if change["low"] is None or change["low"] != change["low"]:
        return f"{100 * change['mean']:+z.1f}"
    return f"{100 * change['mean']:+z.1f} [{100 * change['low']:+z.1f}, {100 * change['high']:+z.1f}]"


def _known(correlations: Mapping[str, Any], name: str) -> bool:
    return name in correlations and correlations[name]["spearman"] is not None


def _with_interval(correlation: Mapping[str, Any]) -> str:
    low, high = correlation["interval"]
    return f"{correlation['spearman']:+z.2f} [{low:+z.2f}, {high:+z.2f}]"


def _of_second(value: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Return the function that applies `value` to the entry of a row (name, entry)."""
    return lambda row: value(row[1])


def _correlation_table(correlations: Mapping[str, Any]) -> Markup:
    columns = [
        Column("predictor", itemgetter(0), words=True),
        Column("Spearman", _of_second(itemgetter("spearman"))),
        Column("low", _of_second(lambda entry: (entry["interval"] or (None, None))[0])),
        Column("high", _of_second(lambda entry: (entry["interval"] or (None, None))[1])),
        Column("p", _of_second(itemgetter("p_value"))),
        Column("with R²", _of_second(lambda entry: entry.get("spearman_r2"))),
        Column("tasks", _of_second(itemgetter("n"))),
        Column("models", _of_second(itemgetter("n_models"))),
        Column("chosen on", _of_second(itemgetter("selected_on")), words=True),
    ]
    return html_table(columns, correlations.items())


def _cell_table(frame: "pd.DataFrame", names: Sequence[str]) -> Markup:
    columns = [
        Column("model", lambda record: short_name(record["model"]), words=True),
        Column("task", itemgetter("task"), words=True),
        *(Column(name, itemgetter(name)) for name in names),
    ]
    return html_table(columns, frame.to_dict("records"))


def _failed_table(cells: list[dict[str, Any]]) -> Markup | None:
    columns = [
        Column("model", lambda cell: short_name(cell["model"]), words=True),
        Column("task", itemgetter("task"), words=True),
        Column("seed", itemgetter("seed")),
        Column("status", itemgetter("status"), words=True),
        Column("reason", itemgetter("reason"), words=True),
    ]
    return html_table(columns, cells) if cells else None


def _gain(study: Study, gain: Mapping[str, Any]) -> dict[str, Any]:
    """Return the variables of a page's section on gains: their table, correlations and errors of prediction."""
    frame = study.frame().dropna(subset=["gain"])
    error_columns = [
        Column("inputs", itemgetter(0), words=True),
        *(Column(name, _of_second(itemgetter(name))) for name in ERROR_COLUMNS),
    ]
    return {
        "lead": gain_lead(study, gain),
        "table": _cell_table(frame, list(GAINS)),
        "refused": gain["refused"],
        "correlations": _correlation_table(gain["correlations"]),
        "errors": [(LEFT_OUT[over], html_table(error_columns, rows.items())) for over, rows in gain["errors"].items()],
    }


def _pictures(study: Study, correlations: Mapping[str, Any], target: str) -> Iterator[Picture]:
    """Draw predictors against the target and gains, and the maps of layers and ranks where there are correlations."""
    words = target.replace("_", " ")

    def on_axes(file: str, alt: str, plot: Callable[..., Any], name: str, **options: Any) -> Picture:
        return draw_picture(file, alt, lambda figure: plot(study, name, figure.add_subplot(), **options))

    def by_model(name: str) -> Picture:
        def draw(figure: "Figure") -> None:
            plot_models(study, name, figure, target=target, correlations=correlations)

        size = small_multiples(len(study.models))
        return draw_picture(f"{name}_by_model.png", f"{name} against {words}, by model", draw, figsize=size)

    if not study.frame()["status"].eq("done").any():
        return
    for name in PICTURED:
        yield on_axes(f"{name}.png", f"{name} against {words}", plot_against, name, target=target)
    for name in PICTURED:
        yield by_model(name)
    if study.lora is not None and target != "gain" and study.frame()["gain"].notna().any():
        for name in PICTURED_GAINS:
            yield on_axes(f"gain_{name}.png", f"{name} against the gain", plot_against, name, target="gain")
    for name in PICTURED if correlations else ():
        values, _ = study.options(name, target=target)
        if not np.isfinite(values).all():  # a cell lacks this quantity
            continue
        alt = f"Correlation of {name} with {words} by layer and rank"
        yield on_axes(f"{name}_options.png", alt, plot_options, name, target=target)
        yield on_axes(f"{name}_permuted.png", f"{alt}, tasks permuted", plot_options, name, target=target, permute=0)
        yield on_axes(f"{name}_choice.png", f"Null of the best choice for {name}", plot_choice, name, target=target)
