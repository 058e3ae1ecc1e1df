"""Pictures of results: axes-level functions, `ax=None` in, axes out."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ntps.scoring.results import LayerScore, ScoreResult
from ntps._text import short_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's palette, which people with any colour vision tell apart.
COLORS = {"score": "#0072B2", "chance": "#7F7F7F", "explained": "#D55E00", "ceiling": "#009E73", "loss": "#CC79A7"}


def new_axes(ax: "Axes | None" = None, *, figsize: tuple[float, float] = (6.4, 4.0)) -> "Axes":
    """Return `ax`, or the axes of a new figure."""
    if ax is not None:
        return ax
    import matplotlib.pyplot as plt

    return plt.subplots(figsize=figsize, layout="constrained")[1]


def plot_layers(result: ScoreResult, ax: "Axes | None" = None) -> "Axes":
    """Draw NTPS with its chance level, and explained share with its ceiling, against the layer."""
    ax = new_axes(ax)
    layers = [scored.layer for scored in result.layers]
    held = "held out" if result.held_out else "in sample"
    ceilings = [s.ceiling if s.ceiling_heldout is None else s.ceiling_heldout for s in result.layers]
    lines: list[tuple[str, Sequence[float], dict[str, Any]]] = [
        (f"explained by all {result.layers[0].d} directions ({held})", ceilings, {"color": "ceiling", "ls": "-."}),
        (f"explained through V ({held})", [s.through_v for s in result.layers], {"color": "explained", "marker": "o"}),
        ("NTPS", [s.ntps for s in result.layers], {"color": "score", "marker": "s"}),
        ("NTPS of a random subspace", [s.chance for s in result.layers], {"color": "chance", "ls": ":"}),
    ]
    if result.best.null is not None:
        shuffled = [(s.null or {})["ntps"]["quantiles"] for s in result.layers]
        low, high = ([math.nan if q is None or q[end] is None else q[end] for q in shuffled] for end in (0, 2))
        ax.fill_between(
            layers, low, high, color=COLORS["score"], alpha=0.15, lw=0, label="NTPS, shuffled labels (90 %)"
        )
    if result.best.control is not None:
        name = "explained_heldout" if result.held_out else "explained"
        fresh = [(s.control or {})[name] for s in result.layers]
        lines.append((f"through V, fresh weights ({held})", fresh, {"color": "explained", "ls": ":", "lw": 1}))
        if result.held_out:
            fresh = [(s.control or {})["ceiling_heldout"] for s in result.layers]
            lines.append((f"all directions, fresh weights ({held})", fresh, {"color": "ceiling", "ls": ":", "lw": 1}))
    for label, values, style in lines:
        ax.plot(layers, values, label=label, markersize=4, **{**style, "color": COLORS[style["color"]]})
    for name, color in (("ceiling_heldout", "ceiling"), ("explained_heldout", "explained"), ("ntps", "score")):
        ends = [(s.interval or {}).get(name) or {} for s in result.layers]
        if any(ends):
            low, high = ([e.get(end, math.nan) for e in ends] for end in ("low", "high"))
            ax.vlines(layers, low, high, color=COLORS[color], lw=1, alpha=0.6)
    ax.axvline(result.best.layer, color="0.85", lw=6, zorder=0)
    _share_axis(ax, min(value for _, values, _ in lines for value in values))
    ax.locator_params(axis="x", integer=True)
    ax.set(xlabel="layer (0 is the embedding)", ylabel="share", title=f"{short_name(result.model)} on {result.task}")
    ax.legend(frameon=False, fontsize="small", loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2)
    return ax


def plot_curve(scored: LayerScore, ax: "Axes | None" = None) -> "Axes":
    """Draw NTPS and explained share of one layer against the number of next-token directions."""
    ax = new_axes(ax)
    if "fraction" in scored.curve:
        ax.plot(scored.curve["fraction"], scored.curve["ntps"], "s-", color=COLORS["score"], ms=4, label="NTPS")
        ax.plot([0, 1], [0, 1], ":", color=COLORS["chance"], label="NTPS of a random subspace")
        ax.set(xlabel="fraction of directions (U and V)", title=f"layer {scored.layer}, the released code's procedure")
    else:
        ks = scored.curve["k_v"]
        held = scored.curve.get("explained_heldout")
        ax.plot(ks, scored.curve["explained"], "--", color=COLORS["explained"], label="explained, in sample", alpha=0.7)
        if held is not None:
            ax.plot(ks, held, "o-", color=COLORS["explained"], ms=4, label="explained, held out")
        ax.plot(ks, scored.curve["ntps"], "s-", color=COLORS["score"], ms=4, label="NTPS")
        ax.plot(ks, [k / scored.d for k in ks], ":", color=COLORS["chance"], label="NTPS of a random subspace")
        ax.axvline(scored.k_v, color="0.85", lw=6, zorder=0)
        ax.set_xscale("log", base=2)
        ax.xaxis.set_major_formatter("{x:.0f}")
        ax.set(xlabel="next-token directions, k_V", title=f"layer {scored.layer}")
        _share_axis(ax, min([0.0, *(value for value in held or [])]))
    ax.set_ylabel("share")
    ax.legend(frameon=False, fontsize="small", loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2)
    return ax


def plot_tasks(rows: Sequence[dict[str, Any]], ax: "Axes | None" = None) -> "Axes":
    """Draw one line a task from its explained share at random weights to that of the pretrained model.

    Args:
        rows: One mapping a task: `task`, `random`, `pretrained`, `ceiling` (held-out shares).
        ax: Axes to draw on; new ones by default.
    """
    ax = new_axes(ax, figsize=(6.4, 0.34 * len(rows) + 1.6))
    for place, row in enumerate(reversed(rows)):
        ax.plot([row["random"], row["pretrained"]], [place, place], "-", color="0.75", lw=3, zorder=1)
    places = list(range(len(rows)))[::-1]
    marks = (("random", "chance", "o"), ("pretrained", "explained", "o"), ("ceiling", "ceiling", "|"))
    labels = {"random": "random weights", "pretrained": "pretrained", "ceiling": "pretrained, all directions"}
    for key, color, marker in marks:
        size = 140 if marker == "|" else 44
        values = [row[key] for row in rows]
        ax.scatter(values, places, s=size, marker=marker, color=COLORS[color], label=labels[key], zorder=2)
    ax.set_yticks(places, [row["task"] for row in rows])
    ax.set(xlabel="share of label variance explained on held-out texts")
    ax.axvline(0, color="0.85", zorder=0)
    ax.set_xlim(min(-0.05, *(row["random"] for row in rows)) - 0.02, 1.02)
    ax.legend(frameon=False, fontsize="small", loc="upper center", bbox_to_anchor=(0.4, -0.14), ncols=3)
    return ax


def _share_axis(ax: "Axes", lowest: float) -> None:
    finite = 0.0 if math.isnan(lowest) else lowest
    ax.set_ylim(max(min(-0.03, finite - 0.03), -0.5), 1.03)
