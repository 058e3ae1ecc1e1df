"""The results of scoring, frozen: as numbers, as tables for a terminal or a notebook, as JSON."""

import html
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from ntps._files import jsonable
from ntps._text import BAR_WIDTH, bar, fixed, percent, short_name, wrap

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

SCHEMA_VERSION = 1
_LEAST_BAR = 6
_NESTED = ("bounds", "curve", "null", "interval", "control")
_OPTIONAL = ("explained_heldout", "ceiling_heldout", "null", "interval", "control")


@dataclass(frozen=True, kw_only=True)
class LayerScore:
    """The score of one layer at one pair of ranks.

    Attributes:
        layer: 0 is the embedding output, the last one the state after the final norm.
        d: Width of a hidden state.
        rank_m: Numerical rank of M (the centred one when centred).
        rank_u: Number of perception directions with a non-zero eigenvalue, at most the number of classes.
        rank_v: Number of next-token directions.
        k_u: Perception rank of this reading.
        k_v: Next-token rank of this reading.
        ntps: ||P U||_F^2 / ||U||_F^2, in [0, 1]; NaN when there is no direction.
        chance: The mean of `ntps` for a uniformly random V of rank k_v: k_v / d.
        ntps_whitened: The same share after whitening by M, in [0, 1].
        excess_loss: Loss(V_{k_v}) - Loss(U_{k_u}): squared error per text, in units of one-hot labels.
        bounds: `raw` and `whitened`, each (lower, upper) bounds on `excess_loss`.
        explained: Share of label variance that a linear readout (with intercept) of V's first k_v directions explains
            on the texts it was fitted on, in [0, 1].
        ceiling: The same for all d directions.
        retained: explained / ceiling, in [0, 1]; NaN when the ceiling is 0.
        explained_heldout: `explained` on folds that the readout was not fitted on, at most 1, below 0 when the
            readout is worse than the label frequencies; `None` without folds.
        ceiling_heldout: `ceiling` on held-out folds.
        null: `ntps` and `explained` under shuffled labels, each a mapping as `Null.to_dict`.
        interval: By quantity (`ntps`, `explained`, `retained`, `explained_heldout`, `ceiling_heldout`), a mapping with
            `low`, `high` and `standard_error`: 95 % intervals; those of held-out shares come with folds.
        control: The same quantities for the architecture with random weights.
        curve: Lists over `k_v`: `ntps`, `excess_loss`, `explained` and, with folds, `explained_heldout`. With the
            official convention `fraction` and `ntps`.
    """

    layer: int
    d: int
    rank_m: int
    rank_u: int
    rank_v: int
    k_u: int
    k_v: int
    ntps: float
    chance: float
    ntps_whitened: float
    excess_loss: float
    bounds: dict[str, tuple[float, float]]
    explained: float
    ceiling: float
    retained: float
    curve: dict[str, list[Any]]
    explained_heldout: float | None = None
    ceiling_heldout: float | None = None
    null: dict[str, Any] | None = None
    interval: dict[str, Any] | None = None
    control: dict[str, Any] | None = None

    @property
    def above_chance(self) -> float:
        """(NTPS - k_v/d) / (1 - k_v/d): 0 at chance, 1 when U lies inside V; NaN when k_v = d."""
        return (self.ntps - self.chance) / (1 - self.chance) if self.chance < 1 else math.nan

    @property
    def through_v(self) -> float:
        """The share of label variance explained through V, on held-out folds if there are any."""
        return self.explained if self.explained_heldout is None else self.explained_heldout

    @property
    def through_all(self) -> float:
        """The share of label variance explained by all d directions, on held-out folds if there are any."""
        return self.ceiling if self.ceiling_heldout is None else self.ceiling_heldout

    @property
    def headline(self) -> float:
        """The number to quote: the share explained by all d directions on held-out folds; without folds, through V.

        Of the quantities tried, it correlates best with a linear probe's accuracy on tasks and models that it was not
        tuned on (`python -m benchmarks.default_quantity`). In sample it would be near 1 for any labels of fewer texts
        than directions, so without folds the share through the few directions of V takes its place.
        """
        return self.explained if self.ceiling_heldout is None else self.ceiling_heldout


@dataclass(frozen=True, repr=False, kw_only=True)
class ScoreResult:
    """The scores of a model's layers on one task, with their settings and origin.

    Attributes:
        layers: One `LayerScore` per layer.
        convention: `"theory"` or `"official"`.
        n_texts: Number of texts scored.
        n_tokens: Number of their tokens.
        n_classes: Number of classes.
        settings: Every option that shaped the numbers.
        metadata: Model, revision, dtype, task fingerprint, package version.
    """

    layers: tuple[LayerScore, ...]
    convention: str
    n_texts: int
    n_tokens: int
    n_classes: int
    settings: dict[str, Any] = field(default_factory=dict)
    metadata: dict[str, Any] = field(default_factory=dict)

    @property
    def model(self) -> str:
        """The model's name."""
        return str(self.metadata.get("model", "unnamed model"))

    @property
    def task(self) -> str:
        """The task's name."""
        return str(self.metadata.get("task", "unnamed task"))

    @property
    def held_out(self) -> bool:
        """Whether explained shares were also computed on held-out folds."""
        return self.layers[0].explained_heldout is not None

    @cached_property
    def best(self) -> LayerScore:
        """The layer with the largest `headline`.

        It is chosen on the data that it is reported on, which flatters it when texts are few.
        """
        return max(self.layers, key=lambda layer: (not math.isnan(layer.headline), layer.headline))

    def __repr__(self) -> str:
        return f"ScoreResult({self._title()}; {len(self.layers)} layers, best {self.best.layer})"

    def __getitem__(self, layer: int) -> LayerScore:
        for scored in self.layers:
            if scored.layer == layer:
                return scored
        raise KeyError(f"layer {layer} was not scored; there are {', '.join(str(s.layer) for s in self.layers)}")

    def to_dataframe(self) -> "pd.DataFrame":
        """Return one row per layer; bounds, nulls, intervals and control are spread over columns, curves left out."""
        import pandas as pd

        rows = []
        for scored in self.layers:
            row = {key: value for key, value in asdict(scored).items() if key not in _NESTED}
            for kind, (lower, upper) in scored.bounds.items():
                row[f"bound_{kind}_lower"], row[f"bound_{kind}_upper"] = lower, upper
            for name, null in (scored.null or {}).items():
                row |= {f"{name}_shuffled": null["mean"], f"{name}_z": null["z"], f"{name}_p": null["p_value"]}
            for name, interval in (scored.interval or {}).items():
                row[f"{name}_low"], row[f"{name}_high"] = interval["low"], interval["high"]
            for name, value in (scored.control or {}).items():
                row[f"{name}_random"] = value
            rows.append(row)
        return pd.DataFrame(rows)

    def to_dict(self) -> dict[str, Any]:
        """Return the result as JSON-able values; numbers that are not finite become `None`."""
        layers = []
        for scored in self.layers:
            row = asdict(scored)
            layers.append({key: value for key, value in row.items() if value is not None or key not in _OPTIONAL})
        provenance = {k: v for k, v in self.metadata.items() if k not in ("model", "task", "settings")}
        return jsonable(
            {
                "schema_version": SCHEMA_VERSION,
                "model": self.model,
                "task": self.task,
                "n_texts": self.n_texts,
                "n_tokens": self.n_tokens,
                "n_classes": self.n_classes,
                "d": self.layers[0].d,
                "convention": self.convention,
                "best_layer": self.best.layer,
                "settings": self.settings,
                "provenance": provenance,
                "layers": layers,
            }
        )

    def to_json(self, *, indent: int | None = 2) -> str:
        """Return `to_dict()` as JSON text."""
        return json.dumps(self.to_dict(), indent=indent, allow_nan=False, ensure_ascii=False)

    def to_text(self) -> str:
        """Return a table of at most 80 columns and sentences that explain it."""
        columns = self._columns()
        lines = ["  layer" + "".join(f"{name:>{width}}" for name, width, _ in columns)]
        room = min(80 - len(lines[0]) - 2, BAR_WIDTH)
        for scored in self.layers:
            mark = "*" if scored is self.best else " "
            numbers = "".join(f"{value(scored):>{width}}" for _, width, value in columns)
            drawn = bar(scored.headline, room) if room >= _LEAST_BAR else ""
            lines.append(f"{mark} {scored.layer:5d}{numbers}  {drawn}".rstrip())
        return "\n".join([*lines, "", *wrap(self.sentence())])

    def _columns(self) -> list[tuple[str, int, Callable[[LayerScore], str]]]:
        """Return heading, width and text of each column after the layer."""
        columns: list[tuple[str, int, Callable[[LayerScore], str]]] = [
            ("NTPS", 8, lambda scored: fixed(scored.ntps)),
            ("chance", 8, lambda scored: fixed(scored.chance)),
            ("retained", 10, lambda scored: fixed(scored.retained)),
        ]
        if self.held_out:
            columns += [
                ("excess", 9, lambda scored: fixed(scored.excess_loss, 4)),
                ("V held out", 12, lambda scored: fixed(scored.through_v)),
                ("all", 8, lambda scored: fixed(scored.headline)),
            ]
        else:
            columns += [
                ("excess loss", 13, lambda scored: fixed(scored.excess_loss, 4)),
                ("explained", 11, lambda scored: fixed(scored.headline)),
            ]
        if self.best.null is not None:
            columns.insert(2, ("shuffled", 10, lambda scored: fixed((scored.null or {})["ntps"]["mean"])))
        if self.best.control is not None:
            columns.append(("random", 8, lambda scored: fixed((scored.control or {})[self._headline])))
        return columns

    @property
    def _headline(self) -> str:
        return "ceiling_heldout" if self.held_out else "explained"

    def sentence(self) -> str:
        """Return what the best layer's numbers mean, in words."""
        best = self.best
        if self.convention == "official":
            score = f"NTPS by the released code's procedure averages {fixed(best.ntps)} over its 19 fractions"
        else:
            score = f"NTPS is {fixed(best.ntps)}, where a random subspace of that size would have {best.chance:.3f}"
        ends = (best.interval or {}).get(self._headline, {})
        share = percent(best.headline)
        if _known(ends):
            share += f" [{percent(ends['low'])}, {percent(ends['high'])}]"
        used = f"{best.k_v} directions that next-token prediction uses most"
        if self.held_out:
            text = (
                f"* Layer {best.layer} is best: a linear readout of all {best.d} directions explains {share} of the "
                f"label variance on held-out texts; a readout of only the {used} explains "
                f"{percent(best.through_v)}. {score}"
            )
        else:
            text = (
                f"* Layer {best.layer} is best: a linear readout of the {used} explains {share} of the label variance "
                f"in sample; a readout of all {best.d} explains {percent(best.ceiling)}. {score}"
            )
        if best.null is not None:
            ntps, explained = best.null["ntps"], best.null["explained"]
            text += (
                f" and shuffled labels have {fixed(ntps['mean'])} (p = {fixed(ntps['p_value'])} for NTPS, "
                f"{fixed(explained['p_value'])} for the share explained in sample)"
            )
        text += "."
        if best.control is not None:
            text += f" Random weights explain {percent(best.control[self._headline])}."
        return text

    def _title(self) -> str:
        return (
            f"{short_name(self.model)} on {self.task}: {self.n_texts:,} texts, {self.n_classes} classes, "
            f"{self.n_tokens:,} tokens"
        )

    def __str__(self) -> str:
        return f"{self._title()}\n\n{self.to_text()}"

    def _repr_html_(self) -> str:
        columns = self._columns()
        heads = ["layer", *(name for name, _, _ in columns)]
        rows = []
        for s in self.layers:
            cells = "".join(f"<td>{value(s)}</td>" for _, _, value in columns)
            weight = ' style="font-weight:bold"' if s is self.best else ""
            rows.append(f"<tr{weight}><td>{s.layer}</td>{cells}</tr>")
        head = "".join(f"<th>{name}</th>" for name in heads)
        return (
            f"<p><b>{html.escape(self._title())}</b></p><table><thead><tr>{head}</tr></thead>"
            f"<tbody>{''.join(rows)}</tbody></table><p>{html.escape(self.sentence())}</p>"
        )

    def plot(self, ax: "Axes | None" = None) -> "Axes":
        """Draw NTPS against chance, and explained shares, by layer; return the axes."""
        from ntps.report.plots import plot_layers

        return plot_layers(self, ax=ax)


def _known(interval: Mapping[str, Any]) -> bool:
    return bool(interval) and all(interval[end] is not None and math.isfinite(interval[end]) for end in ("low", "high"))
