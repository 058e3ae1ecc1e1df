"""Panel E: fine-tuning runs of one task side by side: their course over the steps, and what was kept of each."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from ntps.course.widgets.panel import COLORS, Choice, Panel, Slider, labelled
from ntps.finetune import LoraResult
from ntps.report.plots import outcomes, runs_by_setting

_GREY = "#b8b8b8"
_KEYS = ("validation_accuracy", "validation_loss")
_OUTCOMES = ("gain, points", "next-token loss, nats", "intruders")


class LoraPanel(Panel):
    """Panel E: validation accuracy and loss of one setting at one step, and what the kept weights gained and cost."""

    size = (6.4, 5.0)
    dpi = 120
    letter = "e"

    def __init__(self, results: Sequence[LoraResult]) -> None:
        """Read the runs.

        Args:
            results: From `ntps.before_and_after`: runs of one task with different settings, with intruders.

        Raises:
            NtpsError: If there are fewer than two, or they differ in more than their settings.
        """
        self.runs = runs_by_setting(results)
        self.outcomes = {name: outcomes(run) for name, run in self.runs.items()}
        self.steps = np.array([row["step"] for row in results[0].curve])
        first, last = int(self.steps[0]), int(self.steps[-1])
        every = int(self.steps[1] - self.steps[0]) if len(self.steps) > 1 else 1
        super().__init__(
            Choice(name="setting", label="setting", options=tuple(self.runs)),
            Slider(name="step", label="step", low=first, high=max(last, 1), value=last, step=max(every, 1)),
        )

    @property
    def run(self) -> LoraResult:
        """The run of the chosen setting."""
        return self.runs[self.state["setting"]]

    @property
    def evaluation(self) -> dict[str, Any]:
        """The chosen run's evaluation on the validation texts nearest to the chosen step."""
        return self.run.curve[int(np.abs(self.steps - self.state["step"]).argmin())]

    def build(self, figure: Figure) -> None:
        """Draw every run's course in grey, the bars of all, and the artists that pick one out."""
        self.lines, self.dots, self.stars = [], [], []
        for box, key in zip(((0.11, 0.57, 0.37, 0.35), (0.6, 0.57, 0.37, 0.35)), _KEYS, strict=True):
            ax = figure.add_axes(box)
            for run in self.runs.values():
                ax.plot(self.steps, _values(run, key), color=_GREY, lw=1)
            ax.axhline(_values(self.run, key)[0], color=COLORS["chance"], ls=":", lw=1)
            ax.set(xlabel="step", title=key.replace("_", " ").capitalize() + " (dotted: the probe)")
            ax.margins(y=0.1)
            self.lines.append(self.moving(ax.plot([], [], color=COLORS["exact"], lw=2.2)[0]))
            self.stars.append(self.moving(ax.plot([], [], "*", color=COLORS["exact"], ms=13)[0]))
            self.dots.append(self.moving(ax.plot([], [], "o", color="black", ms=6)[0]))
        names = list(self.runs)
        self.heights = {name: height for height, name in enumerate(reversed(names))}  # the first on top
        self.bars = []
        for column, title in enumerate(_OUTCOMES):
            ax = figure.add_axes((0.24 + 0.255 * column, 0.1, 0.215, 0.29))
            values = np.nan_to_num([self.outcomes[name][column] for name in names])
            ax.barh([self.heights[name] for name in names], values, color=_GREY, height=0.6)
            ax.axvline(0, color="0.3", lw=0.8)
            low, high = min(values.min(), 0), max(values.max(), 0)
            room = 0.08 * (high - low) or 1.0
            ax.set(xlim=(low - (room if low < 0 else 0), high + room), ylim=(-0.6, len(names) - 0.4), title=title)
            ax.set_yticks(list(self.heights.values()), list(self.heights) if column == 0 else [])
            ax.locator_params(axis="x", nbins=3)
            self.bars.append(self.moving(ax.barh([0], [0], color=COLORS["exact"], height=0.6)[0]))
        figure.text(0.02, 0.452, "Kept weights, on test texts", fontsize=9.5)

    def refresh(self) -> None:
        """Put the chosen setting and step into the picture."""
        run, evaluation = self.run, self.evaluation
        for key, line, dot, star in zip(_KEYS, self.lines, self.dots, self.stars, strict=True):
            values = _values(run, key)
            line.set_data(self.steps, values)
            dot.set_data([evaluation["step"]], [evaluation[key]])
            star.set_data([run.best_step], values[self.steps == run.best_step])
        setting = self.state["setting"]
        for bar, value in zip(self.bars, self.outcomes[setting], strict=True):
            bar.set_y(self.heights[setting] - 0.3)
            bar.set_width(0.0 if math.isnan(value) else value)

    def reading(self) -> str:
        """Return what the chosen evaluation found, and what the kept weights gained and cost."""
        run, setting = self.run, self.state["setting"]
        (accuracy, loss), (probe_accuracy, probe_loss) = (
            [evaluation[key] for key in _KEYS] for evaluation in (self.evaluation, run.curve[0])
        )
        trained = run.provenance.get("n_trained")
        step = f"step {self.evaluation['step']}"
        text = labelled("exact", setting) + (f" ({trained:,} trained parameters)" if trained else "")
        text += (
            f" at {labelled('plain', step)}: validation accuracy {accuracy:.2f} (the probe {probe_accuracy:.2f}), loss "
            f"{loss:.2f} ({probe_loss:.2f}). "
        )
        if not run.best_step:
            text += (
                "At no evaluation step were the weights clearly better than the frozen probe, so the probe was kept: "
                "no gain, no cost."
            )
            return text
        gain, cost, intruders = self.outcomes[setting]
        text += (
            f"Kept ({labelled('exact', '★')}): step {run.best_step}, {gain:+z.1f} points on the test texts (standard "
            f"error {100 * run.gain_standard_error:.1f})"
        )
        if not math.isnan(cost):
            text += f", next-token loss {cost:+z.2f} nats"
        examined = sum(row["k"] for row in run.intruders)
        if examined:
            text += f", {intruders:.0f} of {examined} top singular vectors are intruders"
        return text + "."


def _values(run: LoraResult, key: str) -> np.ndarray:
    """Return one entry of a run's evaluations, in order of the steps."""
    return np.array([row[key] for row in run.curve], dtype=float)
