"""Panel D: choose rank and layer, and watch a correlation swing, beside what the best choice is worth."""

from typing import Any

import numpy as np
from matplotlib.patches import Rectangle

from ntps.course.widgets.panel import COLORS, Choice, Panel, Slider, labelled
from ntps.errors import NtpsError
from ntps.study.measure import SHARES
from ntps.study.ranks import centred_ranks, unit
from ntps.study.selection import select_and_correlate
from ntps.study.study import OPTION_DEPTHS, Study

NAMES = {"ntps": "NTPS", "explained_heldout": "explained (held out)"}
TASKS = ("as they are", "shuffled once", "shuffled again")
_MARKERS = "osD^vP"


class SelectionPanel(Panel):
    """Panel D: a correlation at every layer and rank, the points behind one of them, and the null of the best."""

    size = (6.4, 5.4)
    dpi = 120
    letter = "d"
    title = "Correlation with accuracy at every layer and rank"

    def __init__(self, study: Study) -> None:
        """Compute every correlation and the three nulls, about a second.

        Args:
            study: With at least four tasks that every model has finished.

        Raises:
            NtpsError: If it has fewer.
        """
        self.models, self.tasks = study.usable()
        self.accuracy = study.table("above_majority").loc[self.models, self.tasks].to_numpy(dtype=float)
        self.values = {NAMES[name]: study.options(name)[0] for name in NAMES}
        for name, values in self.values.items():
            if not np.isfinite(values).all():
                raise NtpsError(f"{name} is missing for some layer and rank; give the study more texts.")
        rng = np.random.default_rng(0)
        orders = [np.arange(len(self.tasks)), *(rng.permutation(len(self.tasks)) for _ in TASKS[1:])]
        self.orders = dict(zip(TASKS, orders, strict=True))
        self.found: dict[tuple[str, str], Any] = {}
        for name, values in self.values.items():
            for tasks, order in self.orders.items():
                wanted = self.accuracy[:, order]
                each = (unit(centred_ranks(values)) * unit(centred_ranks(wanted))).sum(-1).mean(-1)
                null = select_and_correlate(values, wanted, n_permutations=999)
                self.found[name, tasks] = each.reshape(len(OPTION_DEPTHS), len(SHARES)), null
        ranks = len(SHARES) - 1
        super().__init__(
            (
                Choice("quantity", "quantity", tuple(NAMES.values()), NAMES["ntps"]),
                Choice("tasks", "tasks", TASKS, TASKS[0]),
                Slider("layer", "layer (in quarters)", 0, len(OPTION_DEPTHS) - 1, len(OPTION_DEPTHS) // 2),
                Slider("rank", "rank (doublings)", 0, ranks, ranks // 2),
            )
        )

    @property
    def correlation(self) -> float:
        """The mean within-model Spearman correlation at the chosen layer and rank."""
        grid, _ = self.found[self.state["quantity"], self.state["tasks"]]
        return float(grid[self.state["layer"], self.state["rank"]])

    def build(self) -> None:
        """Draw the map's, the points' and the null's axes."""
        boxes = ((0.15, 0.61, 0.81, 0.33), (0.15, 0.17, 0.35, 0.31), (0.61, 0.17, 0.35, 0.31))
        heat, points, null = (self.figure.add_axes(box) for box in boxes)
        self.heat = self.moving(heat.imshow(np.zeros((5, 7)), cmap="RdBu_r", vmin=-1, vmax=1, aspect="auto"))
        heat.set(xticks=range(len(SHARES)), yticks=range(len(OPTION_DEPTHS)), xlabel="rank, as a share of the width")
        heat.set_xticklabels(["all" if share == 1 else f"1/{round(1 / share)}" for share in SHARES])
        heat.set_yticklabels(["embedding", "25 %", "50 %", "75 %", "last"])
        heat.set_title("Rank correlation with accuracy, layer by rank")
        self.numbers = [
            [self.moving(heat.text(c, r, "", ha="center", va="center", size=7.5)) for c in range(len(SHARES))]
            for r in range(len(OPTION_DEPTHS))
        ]
        self.best = self.moving(heat.add_patch(Rectangle((0, 0), 1, 1, fill=False, ec="0.2", lw=1.2, ls=":")))
        self.cell = self.moving(heat.add_patch(Rectangle((0, 0), 1, 1, fill=False, ec="black", lw=2.2)))
        points.set(xlabel="rank of the quantity", ylabel="rank of the accuracy", title="The tasks at this choice")
        n = len(self.tasks)
        points.set(xlim=(0.3, n + 0.7), ylim=(0.3, n + 0.7))
        self.points = [
            self.moving(points.plot([], [], _MARKERS[i % 6], ms=5, alpha=0.8, label=model.rsplit("/", 1)[-1])[0])
            for i, model in enumerate(self.models)
        ]
        self.figure.legend(handles=self.points, loc="lower center", ncols=4, handletextpad=0.2)
        null.set(xlim=(0, 1), ylim=(0, 1.15), yticks=[], xlabel="best |correlation|", title="The best of all choices")
        self.edges = np.linspace(0, 1, 31)
        self.bars = [
            self.moving(null.add_patch(Rectangle((low, 0), 1 / 30, 0, color=COLORS["chance"], alpha=0.5)))
            for low in self.edges[:-1]
        ]
        self.line = self.moving(null.axvline(0, color=COLORS["V"], lw=2))

    def refresh(self) -> None:
        """Put the state's correlations, points and null into the picture."""
        quantity, tasks = self.state["quantity"], self.state["tasks"]
        grid, null = self.found[quantity, tasks]
        row, column = self.state["layer"], self.state["rank"]
        self.heat.set_data(grid)
        for r, line in enumerate(self.numbers):
            for c, text in enumerate(line):
                text.set_text(f"{grid[r, c]:+.2f}")
                text.set_color("white" if abs(grid[r, c]) > 0.65 else "black")
        self.cell.set_bounds(column - 0.5, row - 0.5, 1, 1)
        best = np.unravel_index(np.abs(grid).argmax(), grid.shape)
        self.best.set_bounds(best[1] - 0.47, best[0] - 0.47, 0.94, 0.94)
        middle = (len(self.tasks) + 1) / 2
        values = self.values[quantity][row * len(SHARES) + column]
        for artist, x, y in zip(self.points, values, self.accuracy[:, self.orders[tasks]], strict=True):
            artist.set_data(centred_ranks(x) + middle, centred_ranks(y) + middle)
        counts = np.histogram(null.null, self.edges)[0]
        for bar, count in zip(self.bars, counts, strict=True):
            bar.set_height(count / max(counts.max(), 1))
        self.line.set_xdata([abs(grid).max()] * 2)

    def reading(self) -> str:
        """Return the chosen correlation, the best one, and how often chance does as well."""
        grid, null = self.found[self.state["quantity"], self.state["tasks"]]
        here = labelled("#333333", f"{self.correlation:+.2f}")
        best = labelled("#0173b2", f"{np.abs(grid).max():.2f}")
        low, high = grid.min(), grid.max()
        return (
            f"{self.state['quantity']}, tasks {self.state['tasks']}: correlation {here} here; over all choices "
            f"it goes from {low:+.2f} to {high:+.2f}. The best, {best} in size, is reached by the best on "
            f"{100 * null.p_value:.0f} % of shuffled task orders."
        )
