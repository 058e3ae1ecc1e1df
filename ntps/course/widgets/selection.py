"""Panel D: choose rank and layer, and watch a correlation swing, beside what the best choice is worth."""

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from ntps.course.widgets.panel import COLORS, Choice, Panel, Slider, labelled
from ntps.errors import NtpsError
from ntps.report.plots import MARKERS
from ntps.study import Study, select_and_correlate
from ntps.study.correlations import centered_ranks, unit
from ntps.study.records import SHARES
from ntps.study.selection import Selection
from ntps.study.study import OPTION_DEPTHS

NAMES = {"NTPS": "ntps", "explained (held out)": "explained_heldout"}
TASKS = ("as they are", "shuffled once", "shuffled again")
DEPTH_NAMES = ("embedding", *(f"{100 * depth:.0f} %" for depth in OPTION_DEPTHS[1:-1]), "last")
SHARE_NAMES = tuple("all" if share == 1 else f"1/{round(1 / share)}" for share in SHARES)
_GRID = (len(OPTION_DEPTHS), len(SHARES))


class SelectionPanel(Panel):
    """Panel D: a correlation at every layer and rank, the points behind one of them, and the null of the best."""

    size = (6.4, 5.4)
    dpi = 120
    letter = "d"

    def __init__(self, study: Study) -> None:
        """Compute every correlation and the null of the best one, about a second.

        Args:
            study: With at least four tasks that every model has finished.

        Raises:
            NtpsError: If it has fewer.
        """
        self.models, self.tasks = study.usable()
        accuracy = study.table("balanced_accuracy").loc[self.models, self.tasks].to_numpy(dtype=float)
        rng = np.random.default_rng(0)
        orders = [np.arange(len(self.tasks)), *(rng.permutation(len(self.tasks)) for _ in TASKS[1:])]
        self.accuracy = {tasks: accuracy[:, order] for tasks, order in zip(TASKS, orders, strict=True)}
        self.values = {quantity: study.options(name)[0] for quantity, name in NAMES.items()}
        self.correlations: dict[tuple[str, str], np.ndarray] = {}
        self.selections: dict[tuple[str, str], Selection] = {}
        for quantity, values in self.values.items():
            if not np.isfinite(values).all():
                raise NtpsError(f"{quantity} is missing for some layer and rank; give the study more texts.")
            for tasks, targets in self.accuracy.items():
                spearman = (unit(centered_ranks(values)) * unit(centered_ranks(targets))).sum(-1).mean(-1)
                self.correlations[quantity, tasks] = spearman.reshape(_GRID)
                self.selections[quantity, tasks] = select_and_correlate(values, targets, n_permutations=999)
        rows, columns = _GRID
        super().__init__(
            Choice(name="quantity", label="quantity", options=tuple(NAMES)),
            Choice(name="tasks", label="tasks", options=TASKS),
            Slider(name="layer", label="layer", low=0, high=rows - 1, value=rows // 2, names=DEPTH_NAMES),
            Slider(name="rank", label="rank", low=0, high=columns - 1, value=(columns - 1) // 2, names=SHARE_NAMES),
        )

    @property
    def _chosen(self) -> tuple[str, str]:
        return self.state["quantity"], self.state["tasks"]

    @property
    def correlation(self) -> float:
        """The mean within-model Spearman correlation at the chosen layer and rank."""
        return float(self.correlations[self._chosen][self.state["layer"], self.state["rank"]])

    def build(self, figure: Figure) -> None:
        """Draw the map's, the points' and the null's axes."""
        boxes = ((0.15, 0.61, 0.81, 0.33), (0.15, 0.17, 0.35, 0.31), (0.61, 0.17, 0.35, 0.31))
        heat, points, null = (figure.add_axes(box) for box in boxes)
        rows, columns = _GRID
        self.heat = self.moving(heat.imshow(np.zeros(_GRID), cmap="RdBu_r", vmin=-1, vmax=1, aspect="auto"))
        heat.set(xticks=range(columns), yticks=range(rows), xlabel="rank, as a share of the width")
        heat.set_xticklabels(SHARE_NAMES)
        heat.set_yticklabels(DEPTH_NAMES)
        heat.set_title("Rank correlation with accuracy, layer by rank")
        self.numbers = {
            (row, column): self.moving(heat.text(column, row, "", ha="center", va="center", size=9))
            for row in range(rows)
            for column in range(columns)
        }
        self.best = self.moving(heat.add_patch(Rectangle((0, 0), 1, 1, fill=False, ec="0.2", lw=1.2, ls=":")))
        self.cell = self.moving(heat.add_patch(Rectangle((0, 0), 1, 1, fill=False, ec="black", lw=2.2)))

        ends = (0.3, len(self.tasks) + 0.7)
        points.set(xlabel="rank of the quantity", ylabel="rank of the accuracy", title="The tasks at this choice")
        ticks = range(2, len(self.tasks) + 1, 2)
        points.set(xlim=ends, ylim=ends, xticks=ticks, yticks=ticks)
        self.points = [
            self.moving(
                points.plot([], [], MARKERS[index % len(MARKERS)], ms=5, alpha=0.8, label=model.split("/")[-1])[0]
            )
            for index, model in enumerate(self.models)
        ]
        figure.legend(handles=self.points, loc="lower center", ncols=4, handletextpad=0.2)

        null.set(xlim=(0, 1), ylim=(0, 1.15), yticks=[], xlabel="best |correlation|", title="The best of all choices")
        self.edges = np.linspace(0, 1, 31)
        self.bars = [
            self.moving(null.add_patch(Rectangle((low, 0), 1 / 30, 0, color=COLORS["chance"], alpha=0.5)))
            for low in self.edges[:-1]
        ]
        self.line = self.moving(null.axvline(0, color="black", lw=2))

    def refresh(self) -> None:
        """Put the state's correlations, points and null into the picture."""
        quantity, tasks = self._chosen
        grid = self.correlations[self._chosen]
        row, column = self.state["layer"], self.state["rank"]
        self.heat.set_data(grid)
        for cell, text in self.numbers.items():
            text.set_text(f"{grid[cell]:+z.2f}")
            text.set_color("white" if abs(grid[cell]) > 0.65 else "black")
        self.cell.set_bounds(column - 0.5, row - 0.5, 1, 1)
        best = np.unravel_index(np.abs(grid).argmax(), grid.shape)
        self.best.set_bounds(best[1] - 0.47, best[0] - 0.47, 0.94, 0.94)
        middle = (len(self.tasks) + 1) / 2
        values = self.values[quantity][row * len(SHARES) + column]
        for artist, x, y in zip(self.points, values, self.accuracy[tasks], strict=True):
            artist.set_data(centered_ranks(x) + middle, centered_ranks(y) + middle)
        counts = np.histogram(self.selections[self._chosen].null, self.edges)[0]
        for bar, count in zip(self.bars, counts, strict=True):
            bar.set_height(count / max(counts.max(), 1))
        self.line.set_xdata([abs(grid).max()] * 2)

    def reading(self) -> str:
        """Return the chosen correlation, the best one, and how often chance does as well."""
        grid = self.correlations[self._chosen]
        here = labelled("plain", f"{self.correlation:+z.2f}")
        best = labelled("plain", f"{np.abs(grid).max():.2f}")
        quantity, tasks = self._chosen
        return (
            f"{quantity}, tasks {tasks}: correlation {here} here; over all choices it goes from {grid.min():+z.2f} to "
            f"{grid.max():+z.2f}. The best, {best} in size (dotted frame, line), is reached by the best on "
            f"shuffled tasks with p = {self.selections[self._chosen].p_value:.3f}."
        )
