"""Panel C: the score for every pair of ranks, and what it bounds, on the moments of a model."""

from collections.abc import Mapping

import numpy as np
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from ntps.core import Solved, loss_bounds
from ntps.course.layers import solve
from ntps.course.widgets.panel import COLORS, Choice, Panel, Slider, labelled
from ntps.errors import NtpsError
from ntps.models import Representations


class BoundsPanel(Panel):
    """Panel C: choose task, layer and both ranks; see the table of scores, the bounds and the exact excess loss."""

    size = (6.4, 4.7)
    letter = "c"

    def __init__(self, representations: Mapping[str, Representations]) -> None:
        """Solve every layer of every task, about 20 ms each.

        Args:
            representations: By name of the task, of the same model and layers.

        Raises:
            NtpsError: If there are none, or layers differ.
        """
        if not representations:
            raise NtpsError("representations is empty; the panel needs those of at least one task.")
        tasks = tuple(representations)
        layers = representations[tasks[0]].layers
        for task in tasks:
            if representations[task].layers != layers:
                raise NtpsError(f"task {task} has layers {representations[task].layers}, but {tasks[0]} has {layers}.")
        self.solved = {(task, layer): solve(representations[task], layer) for task in tasks for layer in layers}
        self._curves: dict[tuple[str, int, int], dict[str, np.ndarray]] = {}
        self._shape: tuple[int, int] | None = None
        middle = layers[len(layers) // 2]
        first = self.solved[tasks[0], middle]
        most_u, most_v = (max(getattr(solved, side).rank for solved in self.solved.values()) for side in "UV")
        k_v = max(2, min(round(first.d / 8), first.V.rank))
        super().__init__(
            Choice(name="task", label="task", options=tasks),
            Slider(name="layer", label="layer", low=layers[0], high=layers[-1], value=middle),
            Slider(name="k_u", label="label rank k_U", low=1, high=most_u, value=first.U.rank),
            Slider(name="k_v", label="next-token rank k_V", low=1, high=most_v, value=k_v),
        )

    @property
    def current(self) -> Solved:
        """The solution of the chosen task and layer."""
        return self.solved[self.state["task"], self.state["layer"]]

    def limits(self) -> dict[str, tuple[float, float]]:
        """Return the ranks that the chosen task and layer have."""
        return {"k_u": (1, max(self.current.U.rank, 1)), "k_v": (1, max(self.current.V.rank, 1))}

    def curves(self) -> dict[str, np.ndarray]:
        """Return, over all k_V at the chosen k_U: `ntps`, `excess`, and `raw` and `whitened` bounds (2, rank_v)."""
        key = (self.state["task"], self.state["layer"], self.state["k_u"])
        if key not in self._curves:
            solved, k_u = self.current, self.state["k_u"]
            eigenvalues, M = solved.U.eigenvalues, solved.U.whitening
            lengths = float(solved.U.vectors[:, :k_u].square().sum())
            raw, whitened = (table[:, k_u - 1].tolist() for table in (solved.table, solved.whitened_table))
            wide = {"smallest": M.smallest, "largest": M.largest}
            bounds = {
                "raw": [
                    loss_bounds(eigenvalues, k_u, k_v, missing=lengths * (1 - share), **wide)
                    for k_v, share in enumerate(raw, 1)
                ],
                "whitened": [
                    loss_bounds(eigenvalues, k_u, k_v, missing=k_u * (1 - share))
                    for k_v, share in enumerate(whitened, 1)
                ],
            }
            self._curves[key] = {
                "ntps": np.array(raw),
                "excess": float(eigenvalues[:k_u].sum()) - solved.explained.numpy(),
                **{kind: np.array(pairs).T for kind, pairs in bounds.items()},
            }
        return self._curves[key]

    def build(self, figure: Figure) -> None:
        """Draw the heat map's axes and the bounds' axes."""
        import seaborn as sns

        heat, bar, loss = (
            figure.add_axes(box)
            for box in ((0.11, 0.73, 0.76, 0.2), (0.885, 0.73, 0.016, 0.2), (0.11, 0.1, 0.76, 0.48))
        )
        colors = ListedColormap(sns.color_palette("viridis", 256).as_hex())
        self.heat = self.moving(
            heat.imshow(np.zeros((1, 1)), cmap=colors, vmin=0, vmax=1, aspect="auto", origin="lower")
        )
        heat.spines[["top", "right"]].set_visible(True)
        heat.set_ylabel("label rank $k_U$", labelpad=10)
        heat.set(title="NTPS for every pair of ranks")
        figure.colorbar(self.heat, cax=bar, ticks=(0, 0.5, 1))
        self.heat.set_animated(True)
        self.heat_axes = heat
        self.cell_halo = self.moving(heat.add_patch(Rectangle((0, 0), 1, 1, fill=False, ec="white", lw=3.2)))
        self.cell = self.moving(heat.add_patch(Rectangle((0, 0), 1, 1, fill=False, ec="black", lw=1.4)))

        loss.set_yscale("symlog", linthresh=1e-3, linscale=0.5)
        loss.set(xlim=(0.5, self.current.d + 0.5), ylim=(-1, 1e6), xlabel="next-token rank $k_V$", ylabel="excess loss")
        loss.set_yticks([-1e-1, 0, 1e-3, 1e-1, 1e1, 1e3, 1e5])
        loss.axhline(0, color="0.85", lw=0.8, zorder=0)
        empty: tuple[list[float], list[float], list[float]] = ([1, 2], [0, 0], [0, 0])
        self.bands = {
            kind: self.moving(
                loss.fill_between(*empty, color=COLORS[kind], alpha=alpha, lw=width, label=f"{kind} bounds")
            )
            for kind, alpha, width in (("raw", 0.35, 0), ("whitened", 0.8, 3))
        }
        self.line = self.moving(loss.plot([], [], color=COLORS["exact"], lw=1.6, label="exact")[0])
        self.here = self.moving(loss.axvline(1, color="0.2", lw=1, ls="--"))
        self.dot = self.moving(loss.plot([], [], "o", color=COLORS["exact"], mec="white", ms=7)[0])
        loss.legend(loc="lower left", bbox_to_anchor=(-0.02, 0.985), ncols=3, columnspacing=1.4)
        # A title of its own above the legend.
        figure.text(0.11, 0.643, "Excess loss of reading the labels through V", size=9.5)

    def refresh(self) -> None:
        """Put the table, the bounds and the exact value of the state into the picture."""
        curves = self.curves()
        k_u, k_v = self.state["k_u"], self.state["k_v"]
        table = self.current.table.numpy().T
        rows, columns = table.shape
        self.heat.set_data(table)
        self.heat.set_extent((0.5, columns + 0.5, 0.5, rows + 0.5))
        if self._shape != (rows, columns):
            self._shape = (rows, columns)
            ticks = range(1, rows + 1, 1 + rows // 9)
            self.heat_axes.set(xlim=(0.5, self.current.d + 0.5), ylim=(0.5, rows + 0.5), xticks=[], yticks=ticks)
            self.redraw_all()
        for patch in (self.cell_halo, self.cell):
            patch.set_bounds(k_v - 0.5, k_u - 0.5, 1, 1)
        ranks = np.arange(1, columns + 1)
        for kind, band in self.bands.items():
            band.set_data(ranks, *curves[kind])
        self.line.set_data(ranks, curves["excess"])
        self.here.set_xdata([k_v, k_v])
        self.dot.set_data([k_v], [curves["excess"][k_v - 1]])

    def reading(self) -> str:
        """Return the score, the exact excess loss and both pairs of bounds at the chosen ranks."""
        curves, k_v = self.curves(), self.state["k_v"]
        ntps, excess = (curves[name][k_v - 1] for name in ("ntps", "excess"))
        spans = {kind: "[{}, {}]".format(*map(_number, curves[kind][:, k_v - 1])) for kind in ("raw", "whitened")}
        beyond = " With k_U below the rank of X, V may also explain more than U does: the excess can be negative."
        return (
            f"{self.state['task']}, layer {self.state['layer']}: NTPS {ntps:.3f}, chance {k_v / self.current.d:.3f}. "
            f"Excess loss {labelled('exact', _number(excess))}, exactly; whitened bounds "
            f"{labelled('whitened', spans['whitened'])}, raw bounds {labelled('raw', spans['raw'])}."
            + (beyond if self.state["k_u"] < self.current.U.rank else "")
        )


def _number(value: float) -> str:
    """Return a loss as a reader wants it: no power of ten, and what rounding left of a zero as zero."""
    return f"{value:z,.0f}" if abs(value) >= 100 else f"{round(value, 6):z.3g}"
