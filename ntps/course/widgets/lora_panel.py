"""Panel E: fine-tuning runs of one task side by side: their way along the steps, and what was kept of each."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ntps.course.widgets.panel import COLORS, Choice, Panel, Slider, labelled
from ntps.errors import NtpsError
from ntps.finetune.results import LoraResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_METHODS = {"full": "all weights", "probe": "head alone", "scratch": "random start"}
_GREY = "#b8b8b8"
_OUTCOMES = ("gain, points", "next-token loss, nats", "intruders")


def setting_name(result: LoraResult) -> str:
    """Return a run's setting in a few words: its rank, with alpha unless the two are equal, or the method."""
    method, rank, alpha = (result.settings[name] for name in ("method", "rank", "alpha"))
    if method != "lora":
        return _METHODS[method]
    return f"rank {rank}" if alpha == rank else f"rank {rank}, α = {alpha:g}"


def next_token_cost(result: LoraResult) -> float:
    """Return the next-token loss after minus before, in nats per token; NaN where the model has no such head."""
    before, after = result.before.next_token_loss, result.after.next_token_loss
    return math.nan if before is None or after is None else after - before


def intruder_count(result: LoraResult) -> int:
    """Return the number of intruder dimensions in all matrices."""
    return sum(row["count"] for row in result.intruders)


def outcomes(result: LoraResult) -> tuple[float, float, float]:
    """Return what the kept weights gained and cost: points of accuracy, nats per token, intruder dimensions."""
    return 100 * result.gain, next_token_cost(result), float(intruder_count(result))


def check_runs(results: Sequence[LoraResult]) -> dict[str, LoraResult]:
    """Return the runs by setting.

    Raises:
        NtpsError: If there are fewer than two, two of one setting, or they differ in model, task, texts or steps.
    """
    runs = {setting_name(result): result for result in results}
    if len(runs) < 2 or len(runs) < len(results):
        raise NtpsError(f"{len(results)} runs of {len(runs)} settings were given; give at least 2, each of another.")
    places = {(run.model, run.task, run.seed, run.n_train, run.n_test) for run in results}
    if len(places) > 1:
        raise NtpsError("the runs differ in model, task, seed or texts; give runs that differ in their settings only.")
    if len({tuple(row["step"] for row in run.curve) for run in results}) > 1:
        raise NtpsError("the runs looked at their validation texts at different steps; give them one evaluate_every.")
    return runs


def plot_runs(results: Sequence[LoraResult], axes: "Sequence[Axes] | None" = None) -> "Sequence[Axes]":
    """Draw the way of each run and what its kept weights gained and cost: the panel in one still picture.

    Args:
        results: Runs of one task that differ in their settings.
        axes: Two axes, for the validation accuracy by step and for the gain against the next-token loss; `None` makes
            a figure with a legend below.

    Raises:
        NtpsError: As `check_runs`.
    """
    import matplotlib.pyplot as plt
    import seaborn as sns

    runs = check_runs(results)
    if axes is None:
        _, axes = plt.subplots(1, 2, figsize=(9.0, 3.6), layout="constrained")
    way, price = axes
    for (name, run), colour, marker in zip(
        runs.items(), sns.color_palette(n_colors=len(runs)), "osD^vPX*<>", strict=False
    ):
        steps, accuracy = zip(*((row["step"], row["validation_accuracy"]) for row in run.curve), strict=True)
        way.plot(steps, accuracy, color=colour, lw=1.6, marker=marker, ms=4)
        gain, cost, intruders = outcomes(run)
        label = f"{name}: {intruders:.0f} intruders"
        error = 100 * run.gain_standard_error
        price.errorbar(cost, gain, yerr=error, color=colour, marker=marker, ms=7, ls="", label=label)
    way.set(xlabel="step", ylabel="validation accuracy", title="On the way")
    price.axhline(0, color="0.3", lw=0.8)
    price.set(xlabel="change of the next-token loss, nats per token", ylabel="gain, points of accuracy")
    price.set_title("Kept weights, test texts")
    if price.figure is not None and price.figure.get_layout_engine() is not None:
        price.figure.legend(loc="outside lower center", ncols=min(3, len(runs)), frameon=False, fontsize="small")
    else:
        price.legend(frameon=False, fontsize="small")
    return axes


class LoraPanel(Panel):
    """Panel E: validation accuracy and loss of one setting at one step, and what the kept weights gained and cost."""

    size = (6.4, 5.0)
    dpi = 120
    letter = "e"
    title = "Fine-tuning by setting and step"

    def __init__(self, results: Sequence[LoraResult]) -> None:
        """Read the runs.

        Args:
            results: From `ntps.finetune.compare.before_and_after`, of one task, in settings that differ, with intruders.

        Raises:
            NtpsError: If there are fewer than two, or they differ in more than their settings.
        """
        self.runs = check_runs(results)
        self.steps = np.array([row["step"] for row in results[0].curve])
        names = tuple(self.runs)
        every = max(1, int(self.steps[1] - self.steps[0])) if len(self.steps) > 1 else 1
        last = int(self.steps[-1])
        super().__init__(
            (
                Choice("setting", "setting", names, names[0]),
                Slider("step", "step", int(self.steps[0]), max(last, 1), last, every),
            )
        )

    @property
    def run(self) -> LoraResult:
        """The run of the chosen setting."""
        return self.runs[self.state["setting"]]

    @property
    def look(self) -> dict[str, Any]:
        """The chosen run's look at the validation texts nearest to the chosen step."""
        return self.run.curve[int(np.abs(self.steps - self.state["step"]).argmin())]

    def _way(self, run: LoraResult, key: str) -> np.ndarray:
        return np.array([row[key] for row in run.curve], dtype=float)

    def build(self) -> None:
        """Draw every run's way in grey, the bars of all, and the artists that pick one out."""
        self.lines, self.dots, self.kept = [], [], []
        keys = ("validation_accuracy", "validation_loss")
        for box, key in zip(((0.11, 0.57, 0.37, 0.35), (0.6, 0.57, 0.37, 0.35)), keys, strict=True):
            ax = self.figure.add_axes(box)
            for run in self.runs.values():
                ax.plot(self.steps, self._way(run, key), color=_GREY, lw=1)
            start = self._way(self.run, key)[0]
            ax.axhline(start, color=COLORS["chance"], ls=":", lw=1)
            ax.set(xlabel="step", title=key.replace("_", " ").capitalize() + " (dotted: the probe)")
            ax.margins(y=0.1)
            self.lines.append(self.moving(ax.plot([], [], color=COLORS["V"], lw=2.2)[0]))
            self.kept.append(self.moving(ax.plot([], [], "*", color=COLORS["exact"], ms=13)[0]))
            self.dots.append(self.moving(ax.plot([], [], "o", color=COLORS["U"], ms=7)[0]))
        names = list(self.runs)
        self.places = dict(zip(names, range(len(names) - 1, -1, -1), strict=True))  # the first on top
        self.bars, self.values = [], {name: outcomes(run) for name, run in self.runs.items()}
        for column, title in enumerate(_OUTCOMES):
            ax = self.figure.add_axes((0.24 + 0.255 * column, 0.1, 0.215, 0.29))
            values = np.nan_to_num([self.values[name][column] for name in names])
            ax.barh([self.places[name] for name in names], values, color=_GREY, height=0.6)
            ax.axvline(0, color="0.3", lw=0.8)
            low, high = min(values.min(), 0), max(values.max(), 0)
            room = 0.08 * (high - low) or 1.0
            ax.set(xlim=(low - (room if low < 0 else 0), high + room), ylim=(-0.6, len(names) - 0.4), title=title)
            ax.set_yticks(list(self.places.values()), list(self.places) if column == 0 else [])
            ax.locator_params(axis="x", nbins=4)
            self.bars.append(self.moving(ax.barh([0], [0], color=COLORS["V"], height=0.6)[0]))
        self.figure.text(0.02, 0.452, "Kept weights, on test texts", fontsize=9.5)

    def refresh(self) -> None:
        """Put the chosen setting and step into the picture."""
        run, look = self.run, self.look
        for key, line, dot, star in zip(
            ("validation_accuracy", "validation_loss"), self.lines, self.dots, self.kept, strict=True
        ):
            way = self._way(run, key)
            line.set_data(self.steps, way)
            dot.set_data([look["step"]], [look[key]])
            star.set_data([run.best_step], way[self.steps == run.best_step])
        place, values = self.places[self.state["setting"]], self.values[self.state["setting"]]
        for bar, value in zip(self.bars, values, strict=True):
            bar.set_y(place - 0.3)
            bar.set_width(0.0 if math.isnan(value) else value)

    def reading(self) -> str:
        """Return what the chosen look saw, and what the kept weights gained and cost."""
        run, look, start = self.run, self.look, self.run.curve[0]
        trained = run.provenance.get("n_trained")
        said = labelled("#0173b2", self.state["setting"])
        said += f" ({trained:,} trained numbers)" if trained else ""
        said += (
            f" at {labelled('#a56a00', 'step ' + str(look['step']))}: validation accuracy "
            f"{look['validation_accuracy']:.2f} (the probe {start['validation_accuracy']:.2f}), loss "
            f"{look['validation_loss']:.2f} ({start['validation_loss']:.2f}). "
        )
        if not run.best_step:
            return said + "No look was clearly better than the frozen probe, so the probe was kept: no gain, no cost."
        gain, cost, intruders = self.values[self.state["setting"]]
        said += (
            f"Kept ({labelled('#01674b', '★')}): step {run.best_step}, {gain:+.1f} points on the test texts (standard "
            f"error {100 * run.gain_standard_error:.1f})"
        )
        if not math.isnan(cost):
            said += f", next-token loss {cost:+.2f} nats"
        looked = sum(row["k"] for row in run.intruders)
        if looked:
            said += f", {intruders:.0f} of {looked} top singular vectors are intruders"
        return said + "."
