"""Pictures of scores and of fine-tuning runs: functions that take axes, or make them, and return them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ntps._names import one_line, short_name, shortened
from ntps.errors import NtpsError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from ntps.finetune.results import LoraResult
    from ntps.scoring.results import LayerScore, ScoreResult

# Colours of seaborn's "colorblind" palette. They mean the same in every picture of the package and of the course: V is
# blue, U orange, and all directions together, which are neither, dark grey.
COLORS = {
    "V": "#0173b2",
    "U": "#de8f05",
    "all": "#404040",
    "ntps": "#029e73",
    "chance": "#7f7f7f",
    "random": "#949494",
}
# The palette's other colours, for whatever else is told apart: a model, a task, a setting.
PALETTE = ("#029e73", "#d55e00", "#cc78bc", "#ca9161", "#949494", "#fbafe4", "#ece133", "#56b4e9")
LONGEST_LABEL, LONGEST_TITLE = 40, 56  # characters of a name in a picture
MARKERS = "osD^vPX*<>"
_METHODS = {"full": "all weights", "probe": "head alone", "scratch": "random start"}


def new_axes(ax: Axes | None = None, *, figsize: tuple[float, float] = (6.4, 4.0)) -> Axes:
    """Return `ax`, or the axes of a new figure."""
    if ax is not None:
        return ax
    import matplotlib.pyplot as plt

    return plt.subplots(figsize=figsize, layout="constrained")[1]


def as_label(name: str, longest: int = LONGEST_LABEL) -> str:
    """Return a name as matplotlib shows it as it is: `$` begins no formula, `_` hides nothing from the legend."""
    text = shortened(one_line(name), longest).replace("$", r"\$")
    return f"\u200b{text}" if text.startswith("_") else text


def legend_below(ax: Axes, *, columns: int = 2) -> None:
    """Put the legend below the axis label, where it covers no data."""
    from matplotlib.transforms import ScaledTranslation

    # In points, so that the gap to the axis label does not depend on the height of the axes.
    below = ax.transAxes + ScaledTranslation(0, -32 / 72, ax.figure.dpi_scale_trans)
    ax.legend(
        frameon=False,
        fontsize="small",
        loc="upper center",
        bbox_to_anchor=(0.5, 0),
        bbox_transform=below,
        ncols=columns,
        borderaxespad=0.3,
    )


def plot_layers(result: ScoreResult, ax: Axes | None = None) -> Axes:
    """Draw NTPS with its chance level, and R^2 through V and through all directions, against the layer.

    With nulls, intervals and a control, these are drawn too. A grey band marks the best layer, a lighter one each layer
    that ties with it; there is none where no layer holds the labels.

    Args:
        result: From `ntps.score`.
        ax: Axes to draw on; new ones by default.
    """
    ax = new_axes(ax)
    scores = result.layers
    layers = [scored.layer for scored in scores]
    held = "held out" if result.held_out else "in sample"
    through_v, by_all = ("explained_heldout", "ceiling_heldout") if result.held_out else ("explained", "ceiling")
    lines: list[tuple[str, list[float], str, dict[str, Any]]] = [
        (
            f"R² of all {scores[0].d} directions ({held})",
            _values(scores, by_all),
            "all",
            {"marker": "^"},
        ),
        (f"R² through V ({held})", _values(scores, through_v), "V", {"marker": "o"}),
    ]
    if result.chosen_score:
        lines += [
            ("NTPS", _values(scores, "ntps"), "ntps", {"marker": "s"}),
            ("NTPS of a random subspace", _values(scores, "chance"), "ntps", {"ls": ":"}),
        ]
    if scores[0].control is not None:
        controls = [scored.control or {} for scored in scores]
        for words, name, color in (("through V", through_v, "V"), ("all directions", by_all, "all")):
            values = [_number(control.get(name)) for control in controls]
            lines.append((f"{words}, random weights", values, color, {"ls": ":", "lw": 1}))
    for label, values, color, style in lines:
        ax.plot(layers, values, label=label, color=COLORS[color], **{"ms": 4, **style})
    if scores[0].null is not None:
        quantiles = [(scored.null or {})["ntps"]["quantiles"] or (None, None, None) for scored in scores]
        low, high = ([_number(ends[end]) for ends in quantiles] for end in (0, 2))
        ax.fill_between(layers, low, high, color=COLORS["ntps"], alpha=0.2, lw=0, label="NTPS, shuffled labels (90 %)")
    for name, color in ((by_all, "all"), (through_v, "V"), ("ntps", "ntps")):
        ends = [(scored.interval or {}).get(name) or {} for scored in scores]
        if any(ends):
            low, high = ([_number(each.get(end)) for each in ends] for end in ("low", "high"))
            ax.vlines(layers, low, high, color=COLORS[color], lw=1, alpha=0.6)
    if result.best is not None:
        ax.axvline(result.best.layer, color="0.85", lw=8, zorder=0)
        for layer in result.best.tied:
            ax.axvline(layer, color="0.95", lw=8, zorder=0)
    _share_axis(ax, (value for _, values, _, _ in lines for value in values))
    if len(layers) > 1:
        ax.locator_params(axis="x", integer=True)
    else:
        ax.set_xticks(layers)
    title = as_label(f"{short_name(result.model)} on {short_name(result.task)}", LONGEST_TITLE)
    ax.set(xlabel="layer (0 is the embedding)", ylabel="R², or share", title=title)
    legend_below(ax)
    return ax


def plot_curve(scored: LayerScore, ax: Axes | None = None) -> Axes:
    """Draw NTPS and explained share of one layer against the number of next-token directions.

    Args:
        scored: One layer of a `ScoreResult`.
        ax: Axes to draw on; new ones by default.
    """
    ax = new_axes(ax)
    curve = scored.curve
    if "fraction" in curve:
        ax.plot(curve["fraction"], curve["ntps"], "s-", color=COLORS["ntps"], ms=4, label="NTPS")
        chance = [k / scored.d for k in curve["k_v"]]
        ax.plot(curve["fraction"], chance, ":", color=COLORS["ntps"], label="NTPS of a random subspace")
        ax.set(xlabel="fraction of directions (U and V)", title=f"layer {scored.layer}, the released code's procedure")
    else:
        ks = curve["k_v"]
        held_out = curve.get("explained_heldout")
        if held_out is not None:
            ax.plot(ks, held_out, "o-", color=COLORS["V"], ms=4, label="R² through V, held out")
        ax.plot(ks, curve["explained"], "--", color=COLORS["V"], alpha=0.6, label="R² through V, in sample")
        ax.plot(ks, curve["ntps"], "s-", color=COLORS["ntps"], ms=4, label="NTPS")
        ax.plot(ks, [k / scored.d for k in ks], ":", color=COLORS["ntps"], label="NTPS of a random subspace")
        ax.axvline(scored.k_v, color="0.9", lw=8, zorder=0)
        ax.set_xscale("log", base=2)
        ax.xaxis.set_major_formatter("{x:.0f}")
        ax.set(xlabel="next-token directions, $k_V$", title=f"layer {scored.layer}")
        _share_axis(ax, held_out or [])
    ax.set_ylabel("share")
    legend_below(ax)
    return ax


def plot_tasks(rows: Sequence[Mapping[str, Any]], ax: Axes | None = None) -> Axes:
    """Draw one line per task from its R^2 at random weights to that of the pretrained model.

    Args:
        rows: One mapping per task: `task`, `random`, `pretrained`, `ceiling` (R^2 on held-out texts).
        ax: Axes to draw on; new ones by default.
    """
    ax = new_axes(ax, figsize=(6.4, 0.34 * len(rows) + 1.6))
    heights = list(range(len(rows)))[::-1]  # the first task on top
    ax.hlines(
        heights, [row["random"] for row in rows], [row["pretrained"] for row in rows], color="0.8", lw=3, zorder=1
    )
    for key, label, color, style in (
        ("random", "random weights, through V", "random", {"s": 44}),
        ("pretrained", "pretrained, through V", "V", {"s": 44}),
        ("ceiling", "pretrained, all directions", "all", {"marker": "|", "s": 140, "lw": 2.5}),
    ):
        ax.scatter([row[key] for row in rows], heights, color=COLORS[color], label=label, zorder=2, **style)
    ax.set_yticks(heights, [as_label(row["task"]) for row in rows])
    ax.set(xlabel="R² on held-out texts")
    ax.axvline(0, color="0.85", lw=1, zorder=0)
    lowest = min((row[key] for row in rows for key in ("random", "pretrained", "ceiling")), default=0.0)
    ax.set_xlim(min(-0.05, lowest) - 0.03, 1.03)
    legend_below(ax, columns=3)
    return ax


def plot_runs(results: Sequence[LoraResult], axes: Sequence[Axes] | None = None) -> Sequence[Axes]:
    """Draw the validation accuracy of each run by step, and the gain and cost of its chosen weights.

    Args:
        results: At least two runs on one task that differ in their settings.
        axes: Two axes, for the accuracy by step and for the gain against the next-token loss; by default those of a
            new figure, with a legend below both.

    Raises:
        NtpsError: If there are fewer than two runs, two have the same setting, or they differ in more than settings.
    """
    import matplotlib.pyplot as plt

    runs = runs_by_setting(results)
    if axes is None:
        _, axes = plt.subplots(1, 2, figsize=(9.0, 3.6), layout="constrained")
    training, outcome = axes
    for index, (name, run) in enumerate(runs.items()):
        color, marker = PALETTE[index % len(PALETTE)], MARKERS[index % len(MARKERS)]
        steps = [row["step"] for row in run.curve]
        accuracy = [row["validation_accuracy"] for row in run.curve]
        training.plot(steps, accuracy, color=color, lw=1.6, marker=marker, ms=4)
        gain, cost, intruders = outcomes(run)
        label = f"{name}: {intruders:.0f} intruders"
        error = 100 * run.gain_standard_error
        outcome.errorbar(cost, gain, yerr=error, color=color, marker=marker, ms=7, ls="", label=label)
    training.set(xlabel="step", ylabel="validation accuracy", title="During training")
    training.locator_params(axis="x", integer=True)
    outcome.axhline(0, color="0.3", lw=0.8)
    outcome.set(xlabel="change of the next-token loss, nats per token", ylabel="gain, points of accuracy")
    outcome.set_title("Kept weights, test texts")
    figure = outcome.figure
    if figure is not None and figure.get_layout_engine() is not None:
        figure.legend(loc="outside lower center", ncols=min(4, len(runs)), frameon=False, fontsize="small")
    else:
        outcome.legend(frameon=False, fontsize="small")
    return axes


def runs_by_setting(results: Sequence[LoraResult]) -> dict[str, LoraResult]:
    """Return runs by `setting_name`.

    Raises:
        NtpsError: If there are fewer than two runs, two have the same setting, or they differ in model, task, texts or
            evaluation steps.
    """
    runs = {setting_name(result): result for result in results}
    if len(runs) < 2 or len(runs) < len(results):
        raise NtpsError(
            f"results holds {len(results)} runs of {len(runs)} settings; give at least 2 runs with different settings."
        )
    if len({(run.model, run.task, run.seed, run.n_train, run.n_test) for run in results}) > 1:
        raise NtpsError("the runs differ in model, task, seed or texts; give runs that differ in their settings only.")
    if len({tuple(row["step"] for row in run.curve) for run in results}) > 1:
        raise NtpsError("the runs were evaluated at different steps; give them the same evaluate_every.")
    return runs


def setting_name(result: LoraResult) -> str:
    """Return a run's setting in a few words: its rank, with alpha unless the two are equal, or the method."""
    method, rank, alpha = (result.settings[name] for name in ("method", "rank", "alpha"))
    if method != "lora":
        return _METHODS[method]
    return f"rank {rank}" if alpha == rank else f"rank {rank}, α = {alpha:g}"


def outcomes(result: LoraResult) -> tuple[float, float, float]:
    """Return gain and cost of the chosen weights: points of accuracy, nats per token, intruder dimensions."""
    return 100 * result.gain, next_token_cost(result), float(intruder_count(result))


def next_token_cost(result: LoraResult) -> float:
    """Return the next-token loss after minus before, in nats per token; NaN if the model has no language-model head."""
    before, after = result.before.next_token_loss, result.after.next_token_loss
    return math.nan if before is None or after is None else after - before


def intruder_count(result: LoraResult) -> int:
    """Return the number of intruder dimensions in all matrices."""
    return sum(row["count"] for row in result.intruders)


def _values(scores: Sequence[LayerScore], name: str) -> list[float]:
    return [_number(getattr(scored, name)) for scored in scores]


def _number(value: float | None) -> float:
    return math.nan if value is None else value


def _share_axis(ax: Axes, values: Iterable[float]) -> None:
    """Show shares from 0 to 1, and negative ones down to -0.5: a held-out share has no lower bound."""
    lowest = min((value for value in values if not math.isnan(value)), default=0.0)
    ax.set_ylim(max(min(-0.03, lowest - 0.03), -0.5), 1.03)
