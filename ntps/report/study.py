"""A study as a folder to look at: one self-contained page, the table as CSV, the result as JSON, pictures as PNG."""

import html
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ntps.errors import NtpsError
from ntps._files import atomic_write
from ntps.report.page import figure_png, image_tag, page, picture, settings_html, table_html
from ntps._text import counted, short_name
from ntps.study.study import Study
from ntps.report.study_plots import NAMES, plot_against, plot_choice, plot_models, plot_options, small_multiples
from ntps.study.table import GAINS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CORRELATION_HEADS = ["predictor", "Spearman", "low", "high", "p", "chosen on"]
ERROR_HEADS = ["mae", "low", "high", "margin", "margin_low", "margin_high"]
OVER_WORDS = {"task": "each task", "model": "each model", "both": "task and model"}
ERRORS = """
<p><b>mae</b>: mean absolute error, with an interval from a bootstrap over tasks. <b>margin</b>: by how much it is below
that of probe accuracy alone; inputs whose interval reaches below zero have not been shown to add anything.</p>
"""
DRAWN = ("explained_heldout", "ntps")
GAIN_DRAWN = ("accuracy", "held_back", "ntps")

READING = """
<p>Every correlation is over tasks within a model, averaged over models; all models see the same tasks, so p-values
permute tasks in all models alike. <b>fixed</b>: rank and layer were set before looking. <b>same_tasks</b>: the best of
all ranks and layers, chosen per model on the tasks it is judged on; its p-value repeats that choice on permuted tasks,
its interval does not know of it. <b>held_out</b>: chosen without the task, or the model, it is judged on. Read the
first and the last; the middle one shows what choosing is worth.</p>
"""


def write_study(study: Study, directory: str | Path, *, result: dict[str, Any] | None = None) -> list[Path]:
    """Write report.html, study.csv and pictures into the study's folder, each atomically.

    Args:
        study: From `ntps.study.study.run_study`.
        directory: Made if it is not there.
        result: `study.to_dict()`, when it is there already.

    Returns:
        The paths written.

    Raises:
        NtpsError: If the folder cannot be written.
    """
    directory = Path(directory)
    result = result or study.to_dict()
    pictures = _pictures(study, result["correlations"])
    names = ["ntps", "ntps_p", "explained", "explained_heldout", "explained_heldout_random", "retained"]
    names += ["logme", "hscore", "knn", "accuracy", "majority_rate", "above_majority"]
    frame = study.frame()
    there = [name for name in names if name in frame]
    rows = [[short_name(r["model"]), r["task"], *(r[name] for name in there)] for r in frame.to_dict("records")
            if r["status"] == "done"]  # fmt: skip
    correlations = _correlation_rows(result["correlations"])
    failed = [c for c in result["cells"] if c["status"] != "done"]
    body = (
        f"<h1>{counted(len(study.models), 'model')} on {counted(len(study.tasks), 'task')}</h1>"
        f"<p class='lead'>{html.escape(lead(result))}"
        "</p><h2>What predicts accuracy</h2>"
    )
    if correlations:
        body += table_html(CORRELATION_HEADS, correlations, words=(0, 5)) + READING
    else:
        body += f"<p>{html.escape(str(result['refused']))}</p>"
    body += "".join(f"<p>{image_tag(png, alt)}</p>" for alt, png in pictures.items())
    if result["gain"]:
        body += _gain_html(study, result["gain"])
    body += f"<h2>Every cell</h2>{table_html(['model', 'task', *there], rows, words=(0, 1))}"
    if failed:
        lines = [[c["model"], c["task"], c["seed"], c["status"], c["reason"]] for c in failed]
        heads = ["model", "task", "seed", "", "why"]
        body += f"<h2>Cells without a result</h2>{table_html(heads, lines, words=(0, 1, 3, 4))}"
    body += f"<details><summary>What made these numbers</summary>{settings_html(result['settings'])}</details>"
    files = {f"{alt.split(':')[0]}.png": png for alt, png in pictures.items()}
    return [
        *(atomic_write(directory / name, png) for name, png in files.items()),
        atomic_write(directory / "study.csv", frame.to_csv(index=False)),
        atomic_write(directory / "report.html", page("ntps study", body)),
    ]


def _correlation_rows(entries: dict[str, Any]) -> list[list[Any]]:
    return [
        [name, entry["spearman"], *(entry["interval"] or (None, None)), entry["p_value"], entry["selected_on"]]
        for name, entry in entries.items()
    ]


def _gain_html(study: Study, gain: dict[str, Any]) -> str:
    """Return what fine-tuning gained, what goes with it, and how well it is predicted."""
    frame = study.frame().dropna(subset=["gain"])
    rows = [[short_name(r["model"]), r["task"], *(r[name] for name in GAINS)] for r in frame.to_dict("records")]
    body = f"<h2>What LoRA gains</h2><p>{html.escape(gain_lead(study, gain))}</p>"
    body += table_html(["model", "task", *GAINS], rows, words=(0, 1))
    if gain["refused"]:
        return body + f"<p>{html.escape(gain['refused'])}</p>"
    body += table_html(CORRELATION_HEADS, _correlation_rows(gain["correlations"]), words=(0, 5))
    for over, errors in gain["errors"].items():
        lines = [[name, *(row[key] for key in ERROR_HEADS)] for name, row in errors.items()]
        body += f"<h3>Mean absolute error of the predicted gain, {OVER_WORDS[over]} left out</h3>"
        body += table_html(["inputs", *ERROR_HEADS], lines, words=(0,))
    return body + ERRORS


def lead(result: dict[str, Any]) -> str:
    """Say in one or two sentences what the study found."""
    found = result["correlations"]
    if not found:
        return str(result["refused"])
    parts = []
    for name in ("ceiling_heldout", "explained_heldout", "ntps", "logme", "knn"):
        if name in found and found[name]["spearman"] is not None:
            low, high = found[name]["interval"]
            parts.append(f"{NAMES.get(name, name)} {found[name]['spearman']:+.2f} [{low:+.2f}, {high:+.2f}]")
    text = f"Rank correlation with probe accuracy above the majority rate, rank and layer fixed: {'; '.join(parts)}."
    same, held = found.get("ntps:same_tasks"), found.get("ntps:held_out_task")
    if same and held and held["spearman"] is not None:
        text += (
            f" Choosing NTPS's rank and layer on these tasks makes it {same['spearman']:+.2f} "
            f"(p = {same['p_value']:.2f} when the choice is counted); chosen on other tasks it is "
            f"{held['spearman']:+.2f}."
        )
    return text


def gain_lead(study: Study, gain: dict[str, Any]) -> str:
    """Say in a few sentences what fine-tuning gained and whether that could be foretold."""
    frame = study.frame().dropna(subset=["gain"])
    if frame.empty:
        return "No cell was fine-tuned to the end."
    below = int((frame["gain"] < 0).sum())
    text = (
        f"LoRA ({gain['settings']['steps']} steps) gains {100 * frame['gain'].mean():+.1f} points of accuracy on "
        f"average over {len(frame)} cells; accuracy after is below before in {below}."
    )
    found = gain["correlations"]
    for name, words in (("ntps", "NTPS"), ("accuracy", "probe accuracy"), ("held_back", "held back")):
        if name in found and found[name]["spearman"] is not None:
            low, high = found[name]["interval"]
            text += (
                f" Rank correlation of {words} with the gain: {found[name]['spearman']:+.2f} [{low:+.2f}, {high:+.2f}]."
            )
    errors = gain["errors"].get("task")
    if errors:
        parts = [f"{100 * errors[name]['mae']:.1f} from {words}" for name, words in
                 (("mean", "the mean gain"), ("accuracy", "probe accuracy"), ("accuracy + ntps", "it and NTPS"),
                  ("accuracy + held back", "it and what is held back"))]  # fmt: skip
        text += f" Error in points on tasks left out: {', '.join(parts)}."
    return text


def _pictures(study: Study, correlations: Mapping[str, Any]) -> dict[str, bytes]:
    if not study.frame()["status"].eq("done").any():
        return {}
    drawn = {f"{name}: against accuracy": picture(partial(_against, study, name, "above_majority")) for name in DRAWN}
    size = small_multiples(len(study.models))
    for name in DRAWN:
        draw = partial(_models, study, name, correlations)
        drawn[f"{name}_by_model: against accuracy, a picture a model"] = figure_png(draw, figsize=size)
    if study.lora is not None and study.frame()["gain"].notna().any():
        drawn |= {
            f"gain_{name}: against the gain": picture(partial(_against, study, name, "gain")) for name in GAIN_DRAWN
        }
    if not correlations:
        return drawn
    for name in DRAWN:
        try:
            drawn |= {
                f"{name}_options: correlation by layer and rank": picture(partial(_options, study, name, None)),
                f"{name}_permuted: the same on permuted tasks": picture(partial(_options, study, name, 0)),
                f"{name}_choice: the null of the best choice": picture(partial(_choice, study, name)),
            }
        except NtpsError:  # some cell lacks this quantity
            continue
    return drawn


def _against(study: Study, name: str, target: str, ax: "Axes") -> None:
    plot_against(study, name, ax, target=target)


def _models(study: Study, name: str, correlations: Mapping[str, Any], figure: "Figure") -> None:
    plot_models(study, name, figure, correlations=correlations)


def _options(study: Study, name: str, permute: int | None, ax: "Axes") -> None:
    plot_options(study, name, ax, permute=permute)


def _choice(study: Study, name: str, ax: "Axes") -> None:
    plot_choice(study, name, ax)
