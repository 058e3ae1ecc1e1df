"""Pictures of a study: a predictor against accuracy or gain, and what choosing a rank and a layer is worth."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ntps.study.measure import SHARES
from ntps.report.plots import COLORS, new_axes
from ntps._text import short_name
from ntps.study.selection import select_and_correlate
from ntps.study.ranks import centred_ranks, unit
from ntps.study.study import OPTION_DEPTHS, Study
from ntps.study.table import GAIN_PREDICTORS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MARKERS = "osD^vP*X<>"
NAMES = {
    "ntps": "NTPS",
    "explained": "explained through V (in sample)",
    "explained_heldout": "explained through V (held out)",
    "ceiling_heldout": "explained by all directions (held out)",
    "retained": "retained share",
    "above_majority": "probe accuracy above majority",
    "accuracy": "accuracy of the frozen linear probe",
    "held_back": "held back: best layer's ceiling minus the last's",
    "gain": "gain of LoRA (accuracy)",
}


def plot_against(
    study: Study,
    predictor: str = "explained_heldout",
    ax: "Axes | None" = None,
    *,
    target: str = "above_majority",
    models: Sequence[str] | None = None,
) -> "Axes":
    """Draw a predictor against the probe's result, a colour a model, with intervals where there are any.

    Args:
        study: From `ntps.run_study`.
        predictor: A column of `Study.frame()`.
        ax: Drawn on; by default on a figure of its own.
        target: Another column of it.
        models: Only these.
    """
    import seaborn as sns

    ax = new_axes(ax)
    frame = study.frame()
    frame = frame[frame["status"] == "done"]
    colours = sns.color_palette("colorblind", len(study.models))
    for place, model in enumerate(study.models):
        if models is not None and model not in models:
            continue
        rows = frame[frame["model"] == model]
        x, y = rows[predictor].to_numpy(dtype=float), rows[target].to_numpy(dtype=float)
        bars: dict[str, Any] = {}
        if f"{predictor}_low" in rows:
            ends = rows[[f"{predictor}_low", f"{predictor}_high"]].to_numpy(dtype=float)
            bars["xerr"] = np.nan_to_num(np.maximum((ends.T - x) * [[-1], [1]], 0))
        if target in ("above_majority", "accuracy"):
            bars["yerr"] = 1.96 * np.nan_to_num(rows["accuracy_se"].to_numpy(dtype=float))
        elif target == "gain":
            bars["yerr"] = 1.96 * np.nan_to_num(rows["gain_se"].to_numpy(dtype=float))
        marker = MARKERS[place % len(MARKERS)]
        ax.errorbar(x, y, fmt=marker, color=colours[place], ms=5, lw=0.8, alpha=0.85, label=short_name(model), **bars)
    ax.set(xlabel=NAMES.get(predictor, GAIN_PREDICTORS.get(predictor, predictor)), ylabel=NAMES.get(target, target))
    ax.legend(frameon=False, fontsize="small", loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=3)
    return ax


def plot_models(
    study: Study,
    predictor: str = "explained_heldout",
    figure: "Figure | None" = None,
    *,
    target: str = "above_majority",
    correlations: Mapping[str, Any] | None = None,
) -> "Figure":
    """Draw a small picture for each model, points named by task, its rank correlation with the interval above it.

    Args:
        study: From `ntps.run_study`.
        predictor: A column of `Study.frame()`.
        figure: Drawn on; by default a new one.
        target: Another column of it.
        correlations: `study.correlations(target=target)`, when they are there already.
    """
    frame = study.frame()
    frame = frame[frame["status"] == "done"]
    models = [model for model in study.models if (frame["model"] == model).any()]
    columns = min(3, len(models))
    rows = -(-len(models) // columns)
    if figure is None:
        import matplotlib.pyplot as plt

        figure = plt.figure(figsize=small_multiples(len(models)), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    each = (correlations or {}).get(predictor, {}).get("per_model", {})
    for place, ax in enumerate(grid.flat):
        if place >= len(models):
            ax.remove()
            continue
        model = models[place]
        plot_against(study, predictor, ax, target=target, models=[model])
        ax.get_legend().remove()
        for _, row in frame[frame["model"] == model].iterrows():
            name = str(row["task"]).removeprefix("miniworld/")
            ax.annotate(name, (row[predictor], row[target]), xytext=(3, 3), textcoords="offset points", fontsize=5.5)
        title = short_name(model)
        if model in each and each[model]["spearman"] is not None:
            low, high = each[model]["interval"]
            title += f"\nSpearman {each[model]['spearman']:+.2f} [{low:+.2f}, {high:+.2f}]"
        ax.set_title(title, fontsize="small")
        ax.set(xlabel=ax.get_xlabel() if place + columns >= len(models) else "", ylabel="")
        ax.tick_params(labelbottom=place + columns >= len(models))
        ax.xaxis.label.set_fontsize("small")
    figure.supylabel(NAMES.get(target, target), fontsize="small")
    return figure


def small_multiples(count: int) -> tuple[float, float]:
    """Return width and height, in inches, of a figure of so many small pictures in rows of three."""
    columns = min(3, count)
    return 3.0 * columns + 0.4, 2.6 * -(-count // columns) + 0.4


def option_map(study: Study, quantity: str = "ntps", *, permute: int | None = None) -> np.ndarray:
    """Return the mean within-model correlation at every (depth, rank), with tasks permuted when a seed is given."""
    values, _ = study.options(quantity)
    models, tasks = study.usable()
    wanted = study.table("above_majority").loc[models, tasks].to_numpy(dtype=float)
    if permute is not None:
        wanted = wanted[:, np.random.default_rng(permute).permutation(len(tasks))]
    product = unit(centred_ranks(values)) * unit(centred_ranks(wanted))
    return product.sum(-1).mean(-1).reshape(len(OPTION_DEPTHS), len(SHARES))


def plot_options(
    study: Study, quantity: str = "ntps", ax: "Axes | None" = None, *, permute: int | None = None
) -> "Axes":
    """Draw the correlation with accuracy at every layer and rank, its best one framed; see `option_map`."""
    import seaborn as sns
    from matplotlib.patches import Rectangle

    ax = new_axes(ax)
    found = option_map(study, quantity, permute=permute)
    ranks = ["all" if share == 1 else f"1/{round(1 / share)}" for share in SHARES]
    depths = ["embedding", *(f"{100 * depth:.0f} %" for depth in OPTION_DEPTHS[1:-1]), "last"]
    sns.heatmap(
        found, ax=ax, vmin=-1, vmax=1, cmap="RdBu_r", annot=True, fmt=".2f", annot_kws={"size": 7},
        xticklabels=ranks, yticklabels=depths, cbar=False,
    )  # fmt: skip
    row, column = np.unravel_index(np.abs(found).argmax(), found.shape)
    ax.add_patch(Rectangle((column, row), 1, 1, fill=False, lw=2, color="black"))
    tasks = "the tasks as they are" if permute is None else "tasks permuted"
    ax.set(
        xlabel="rank, as a share of the width",
        ylabel="layer",
        title=f"Spearman of {NAMES.get(quantity, quantity)}\nwith probe accuracy, {tasks}",
    )
    ax.tick_params(axis="y", rotation=0)
    return ax


def plot_choice(study: Study, quantity: str = "ntps", ax: "Axes | None" = None) -> "Axes":
    """Draw the best correlation over ranks and layers beside what the best is on permuted tasks."""
    ax = new_axes(ax)
    values, _ = study.options(quantity)
    models, tasks = study.usable()
    wanted = study.table("above_majority").loc[models, tasks].to_numpy(dtype=float)
    found = select_and_correlate(values, wanted, per_model=True)
    ax.hist(found.null, bins=30, color=COLORS["chance"], alpha=0.7, density=True, label="best on permuted tasks")
    ax.axvline(abs(found.spearman), color=COLORS["score"], lw=2, label=f"best on the tasks (p = {found.p_value:.3f})")
    ax.set(xlabel="best |Spearman|, mean over models", yticks=[], xlim=(0, 1.02))
    ax.set_title(f"{NAMES.get(quantity, quantity)}: what choosing is worth")
    ax.legend(frameon=False, fontsize="small", loc="upper center", bbox_to_anchor=(0.5, -0.18))
    return ax
