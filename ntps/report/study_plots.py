"""Pictures of a study: a predictor against accuracy or gain, and the effect of choosing a rank and a layer."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ntps._names import short_name, shortened
from ntps.report.plots import COLORS, MARKERS, PALETTE, as_label, legend_below, new_axes
from ntps.study.correlations import centered_ranks, unit
from ntps.study.records import SHARES
from ntps.study.selection import select_and_correlate
from ntps.study.study import OPTION_DEPTHS, TARGET, Study
from ntps.study.table import GAIN_PREDICTORS

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NAMES = {
    "ntps": "NTPS",
    "explained": "explained through V (in sample)",
    "explained_heldout": "R² through V",
    "ceiling_heldout": "R² of all directions",
    "retained": "retained share",
    "logme": "LogME",
    "knn": "5 nearest neighbours",
    "balanced_accuracy": "the probe's balanced accuracy",
    "r2": "the probe's R²",
    "macro_f1": "the probe's macro F1",
    "above_majority": "probe accuracy above majority",
    "accuracy": "accuracy of the frozen linear probe",
    "training_accuracy": "training accuracy of the released code's probe",
    "training_error": "training error of the released code's probe",
    "ntps_official": "NTPS by the released code",
    "held_back": "held back: R² of the best layer minus the last's",
    "gain": "gain of LoRA (accuracy)",
}
_STANDARD_ERRORS = {
    "balanced_accuracy": "balanced_accuracy_se",
    "r2": "r2_se",
    "above_majority": "accuracy_se",
    "accuracy": "accuracy_se",
    "gain": "gain_se",
}


def plot_against(
    study: Study,
    predictor: str = "explained_heldout",
    ax: "Axes | None" = None,
    *,
    target: str = TARGET,
    models: Sequence[str] | None = None,
) -> "Axes":
    """Draw a predictor against the probe's result, one colour per model, with intervals where there are any.

    Args:
        study: From `ntps.run_study`.
        predictor: A column of `Study.frame()`.
        ax: Axes to draw on; new ones by default.
        target: Another column of `Study.frame()`.
        models: Names of the models to draw; all by default.
    """
    ax = new_axes(ax)
    frame = study.frame()
    frame = frame[frame["status"] == "done"]
    for index, model in enumerate(study.models):
        if models is not None and model not in models:
            continue
        rows = frame[frame["model"] == model]
        x, y = rows[predictor].to_numpy(dtype=float), rows[target].to_numpy(dtype=float)
        bars: dict[str, Any] = {}
        if f"{predictor}_low" in rows:
            ends = rows[[f"{predictor}_low", f"{predictor}_high"]].to_numpy(dtype=float)
            bars["xerr"] = np.nan_to_num(np.maximum((ends.T - x) * [[-1], [1]], 0))
        if target in _STANDARD_ERRORS:
            bars["yerr"] = 1.96 * np.nan_to_num(rows[_STANDARD_ERRORS[target]].to_numpy(dtype=float))
        look: dict[str, Any] = {
            "fmt": MARKERS[index % len(MARKERS)],
            "color": PALETTE[index % len(PALETTE)],
            "ms": 5,
            "lw": 0.8,
        }
        ax.errorbar(x, y, alpha=0.85, label=as_label(short_name(model)), **look, **bars)
    ax.set(xlabel=NAMES.get(predictor, GAIN_PREDICTORS.get(predictor, predictor)), ylabel=NAMES.get(target, target))
    legend_below(ax, columns=4 if len(ax.get_legend_handles_labels()[1]) == 4 else 3)
    return ax


def plot_models(
    study: Study,
    predictor: str = "explained_heldout",
    figure: "Figure | None" = None,
    *,
    target: str = TARGET,
    correlations: Mapping[str, Any] | None = None,
) -> "Figure":
    """Draw one small picture per model, with points named by task and the rank correlation in its title.

    Args:
        study: From `ntps.run_study`.
        predictor: A column of `Study.frame()`.
        figure: Figure to draw on; a new one by default.
        target: Another column of `Study.frame()`.
        correlations: `study.correlations(target=target)`; without it, no correlations are shown.
    """
    frame = study.frame()
    frame = frame[frame["status"] == "done"]
    models = [model for model in study.models if (frame["model"] == model).any()]
    n_columns = min(3, len(models))
    if figure is None:
        import matplotlib.pyplot as plt

        figure = plt.figure(figsize=small_multiples(len(models)), layout="constrained")
    grid = figure.subplots(-(-len(models) // n_columns), n_columns, squeeze=False, sharex=True, sharey=True)
    per_model = (correlations or {}).get(predictor, {}).get("per_model", {})
    for index, ax in enumerate(grid.flat):
        if index >= len(models):
            ax.remove()
            continue
        model = models[index]
        plot_against(study, predictor, ax, target=target, models=[model])
        ax.get_legend().remove()
        _name_points(ax, frame[frame["model"] == model], predictor, target)
        title = as_label(short_name(model))
        if model in per_model and per_model[model]["spearman"] is not None:
            low, high = per_model[model]["interval"]
            title += f"\nSpearman {per_model[model]['spearman']:+z.2f} [{low:+z.2f}, {high:+z.2f}]"
        ax.set_title(title, fontsize="small")
        in_last_row = index + n_columns >= len(models)
        ax.set(xlabel="", ylabel="")
        ax.tick_params(labelbottom=in_last_row, labelsize="small")
    figure.supxlabel(NAMES.get(predictor, GAIN_PREDICTORS.get(predictor, predictor)), fontsize="small")
    figure.supylabel(NAMES.get(target, target), fontsize="small")
    return figure


def _name_points(ax: "Axes", rows: "pd.DataFrame", predictor: str, target: str) -> None:
    """Write the task beside each point, on the side where there is more room."""
    middle = sum(ax.get_xlim()) / 2
    for task, x, y in rows[["task", predictor, target]].itertuples(index=False):
        name = as_label(shortened(str(task).removeprefix("miniworld/"), 18))
        offset, side = ((3, 3), "left") if x < middle else ((-3, 3), "right")
        text = ax.annotate(name, (x, y), xytext=offset, textcoords="offset points", ha=side, fontsize=5.5)
        text.set_in_layout(False)


def small_multiples(count: int) -> tuple[float, float]:
    """Return the width and height, in inches, of a figure of `count` small pictures in rows of three."""
    n_columns = min(3, count)
    return 3.0 * n_columns + 0.4, 2.6 * -(-count // n_columns) + 0.4


def option_map(study: Study, quantity: str = "ntps", *, target: str = TARGET, permute: int | None = None) -> np.ndarray:
    """Return the mean within-model correlation with the target at every layer and rank.

    Args:
        study: From `ntps.run_study`.
        quantity: A quantity that has a rank and a layer to choose, such as `"ntps"`.
        target: As in `Study.correlations`.
        permute: Seed of a permutation of the tasks; `None` leaves them as they are.

    Returns:
        Spearman correlations, (depths, ranks).
    """
    values, _ = study.options(quantity, target=target)
    targets = _targets(study, target)
    if permute is not None:
        targets = targets[:, np.random.default_rng(permute).permutation(targets.shape[1])]
    product = unit(centered_ranks(values)) * unit(centered_ranks(targets))
    return product.sum(-1).mean(-1).reshape(len(OPTION_DEPTHS), len(SHARES))


def plot_options(
    study: Study,
    quantity: str = "ntps",
    ax: "Axes | None" = None,
    *,
    target: str = TARGET,
    permute: int | None = None,
) -> "Axes":
    """Draw the correlations of `option_map`, the strongest one framed.

    Args:
        study: From `ntps.run_study`.
        quantity: As for `option_map`.
        ax: Axes to draw on; new ones by default.
        target: As for `option_map`.
        permute: As for `option_map`.
    """
    import seaborn as sns
    from matplotlib.patches import Rectangle

    ax = new_axes(ax)
    correlations = option_map(study, quantity, target=target, permute=permute)
    sns.heatmap(
        correlations,
        ax=ax,
        vmin=-1,
        vmax=1,
        cmap="RdBu_r",
        annot=True,
        fmt=".2f",
        annot_kws={"size": 9},
        xticklabels=["all" if share == 1 else f"1/{round(1 / share)}" for share in SHARES],
        yticklabels=["embedding", *(f"{100 * depth:.0f} %" for depth in OPTION_DEPTHS[1:-1]), "last"],
        cbar=False,
    )
    row, column = np.unravel_index(np.abs(correlations).argmax(), correlations.shape)
    ax.add_patch(Rectangle((float(column), float(row)), 1, 1, fill=False, lw=2, color="black"))
    tasks = "the tasks as they are" if permute is None else "tasks permuted"
    ax.set(
        xlabel="rank, as a share of the width",
        ylabel="layer",
        title=f"Spearman of {NAMES.get(quantity, quantity)}\nwith {target.replace('_', ' ')}, {tasks}",
    )
    ax.tick_params(axis="y", rotation=0)
    return ax


def plot_choice(study: Study, quantity: str = "ntps", ax: "Axes | None" = None, *, target: str = TARGET) -> "Axes":
    """Draw the best correlation over ranks and layers beside the best ones on permuted tasks.

    Args:
        study: From `ntps.run_study`.
        quantity: As for `option_map`.
        ax: Axes to draw on; new ones by default.
        target: As for `option_map`.
    """
    ax = new_axes(ax)
    values, _ = study.options(quantity, target=target)
    selected = select_and_correlate(values, _targets(study, target), per_model=True)
    ax.hist(selected.null, bins=30, color=COLORS["chance"], alpha=0.7, density=True, label="best on permuted tasks")
    label = f"best on the tasks (p = {selected.p_value:.3f})"
    ax.axvline(abs(selected.spearman), color="black", lw=2, label=label)
    ax.set(xlabel="best |Spearman|, mean over models", ylabel="density", yticks=[], xlim=(0, 1.02))
    ax.set_title(f"{NAMES.get(quantity, quantity)}: what choosing is worth")
    legend_below(ax, columns=1)
    return ax


def _targets(study: Study, target: str) -> np.ndarray:
    """Return the target, (models, tasks), of the complete part of the grid."""
    models, tasks = study.usable(target=target)
    return study.table(target).loc[models, tasks].to_numpy(dtype=float)
