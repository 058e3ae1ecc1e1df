"""Panel C: the score for every pair of ranks, and what it bounds, on real moments."""

from collections.abc import Mapping

import numpy as np
from matplotlib.colors import ListedColormap
from matplotlib.patches import Rectangle

from ntps.core.moments import Moments
from ntps.core.solve import LayerSolution, loss_bounds, solve_layer
from ntps.course.widgets.panel import COLORS, Choice, Panel, Slider, check_layers, labelled
from ntps.errors import NtpsError


class BoundsPanel(Panel):
    """Panel C: choose task, layer and both ranks; see the table of scores, the bounds and the exact excess loss."""

    size = (6.4, 4.7)
    dpi = 140
    letter = "c"
    title = "Scores for all ranks, and bounds on the excess loss"

    def __init__(self, moments: Mapping[str, Moments]) -> None:
        """Solve every layer of every task, about 20 ms each.

        Args:
            moments: Moments by task name, of the same model and layers.

        Raises:
            NtpsError: If there is none, or layers differ.
        """
        if not moments:
            raise NtpsError("no moments were given; the panel needs those of one task at least.")
        tasks = tuple(moments)
        layers = check_layers(moments[tasks[0]].layers)
        for task in tasks:
            if tuple(moments[task].layers) != layers:
                raise NtpsError(f"task {task} has layers {moments[task].layers}, but {tasks[0]} has {layers}.")
        self.solutions: dict[tuple[str, int], LayerSolution] = {
            (task, layer): solve_layer(moments[task].layer(layer)) for task in tasks for layer in layers
        }
        self.d = self.solutions[tasks[0], layers[0]].d
        most_u = max(solution.U.rank for solution in self.solutions.values())
        most_v = max(solution.V.rank for solution in self.solutions.values())
        self._curves: dict[tuple[str, int, int], dict[str, np.ndarray]] = {}
        self._shape: tuple[int, int] | None = None
        super().__init__(
            (
                Choice("task", "task", tasks, tasks[0]),
                Slider("layer", "layer", layers[0], layers[-1], layers[len(layers) // 2]),
                Slider("k_u", "label rank k_U", 1, most_u, self.solutions[tasks[0], layers[0]].U.rank),
                Slider("k_v", "next-token rank k_V", 1, most_v, max(2, min(round(self.d / 8), most_v))),
            )
        )

    @property
    def solution(self) -> LayerSolution:
        """The chosen task's layer."""
        return self.solutions[self.state["task"], self.state["layer"]]

    def limits(self) -> dict[str, tuple[float, float]]:
        """Return the ranks that the chosen task and layer have."""
        return {"k_u": (1, max(self.solution.U.rank, 1)), "k_v": (1, max(self.solution.V.rank, 1))}

    def curves(self) -> dict[str, np.ndarray]:
        """Return, over all k_V at the chosen k_U: `excess`, and `raw` and `whitened` bounds of shape (2, rank_v)."""
        key = (self.state["task"], self.state["layer"], self.state["k_u"])
        if key not in self._curves:
            solution, k_u = self.solution, self.state["k_u"]
            eigenvalues, M = solution.U.eigenvalues, solution.U.whitening
            lengths = float(solution.U.vectors[:, :k_u].square().sum())
            raw, whitened = (table[:, k_u - 1].tolist() for table in (solution.table, solution.whitened_table))
            ranks = range(1, len(raw) + 1)
            bounds = [
                loss_bounds(
                    eigenvalues, k_u, k_v, missing=lengths * (1 - share), smallest=M.smallest, largest=M.largest
                )
                for k_v, share in zip(ranks, raw, strict=True)
            ]
            tight = [
                loss_bounds(eigenvalues, k_u, k_v, missing=k_u * (1 - share))
                for k_v, share in zip(ranks, whitened, strict=True)
            ]
            self._curves[key] = {
                "ntps": np.array(raw),
                "excess": float(eigenvalues[:k_u].sum()) - solution.explained.numpy(),
                "raw": np.array(bounds).T,
                "whitened": np.array(tight).T,
            }
        return self._curves[key]

    def build(self) -> None:
        """Draw the heat map's axes and the bounds' axes."""
        heat, bar, loss = (
            self.figure.add_axes(box)
            for box in ((0.11, 0.73, 0.76, 0.2), (0.885, 0.73, 0.016, 0.2), (0.11, 0.1, 0.76, 0.48))
        )
        import seaborn as sns

        colors = ListedColormap(sns.color_palette("viridis", 256).as_hex())
        self.heat = self.moving(
            heat.imshow(np.zeros((1, 1)), cmap=colors, vmin=0, vmax=1, aspect="auto", origin="lower")
        )
        heat.spines[["top", "right"]].set_visible(True)
        heat.set(ylabel="label rank k_U", title="NTPS for every pair of ranks")
        self.figure.colorbar(self.heat, cax=bar, ticks=(0, 0.5, 1))
        self.heat.set_animated(True)
        self.heat_axes, self.loss_axes = heat, loss
        self.cell_halo = self.moving(heat.add_patch(Rectangle((0, 0), 1, 1, fill=False, ec="white", lw=3.2)))
        self.cell = self.moving(heat.add_patch(Rectangle((0, 0), 1, 1, fill=False, ec="black", lw=1.4)))

        loss.set_yscale("symlog", linthresh=1e-3, linscale=0.5)
        loss.set(xlim=(0.5, self.d + 0.5), ylim=(-1, 1e6), xlabel="next-token rank k_V", ylabel="excess loss")
        loss.set_yticks([-1e-1, 0, 1e-3, 1e-1, 1e1, 1e3, 1e5])
        loss.axhline(0, color="0.85", lw=0.8, zorder=0)
        empty: tuple[list[float], list[float], list[float]] = ([1, 2], [0, 0], [0, 0])
        self.bands = {
            name: self.moving(
                loss.fill_between(*empty, color=COLORS[name], alpha=alpha, lw=width, label=f"{name} bounds")
            )
            for name, alpha, width in (("raw", 0.35, 0), ("whitened", 0.8, 3))
        }
        self.line = self.moving(loss.plot([], [], color=COLORS["exact"], lw=1.6, label="exact")[0])
        self.here = self.moving(loss.axvline(1, color="0.2", lw=1, ls="--"))
        self.dot = self.moving(loss.plot([], [], "o", color=COLORS["exact"], mec="white", ms=7)[0])
        loss.legend(loc="lower left", bbox_to_anchor=(-0.02, 0.985), ncols=3, columnspacing=1.4)
        # A title of its own above the legend.
        self.figure.text(0.11, 0.643, "Excess loss of reading the labels through V", size=9.5)

    def refresh(self) -> None:
        """Put the table, the bounds and the exact value of the state into the picture."""
        solution, curves = self.solution, self.curves()
        k_u, k_v = self.state["k_u"], self.state["k_v"]
        table = solution.table.numpy().T
        rows, columns = table.shape
        self.heat.set_data(table)
        self.heat.set_extent((0.5, columns + 0.5, 0.5, rows + 0.5))
        if self._shape != (rows, columns):
            self._shape = (rows, columns)
            self.heat_axes.set(
                xlim=(0.5, self.d + 0.5), ylim=(0.5, rows + 0.5), xticks=[], yticks=range(1, rows + 1, 1 + rows // 9)
            )
            self.redraw_all()
        for patch in (self.cell_halo, self.cell):
            patch.set_bounds(k_v - 0.5, k_u - 0.5, 1, 1)
        ranks = np.arange(1, columns + 1)
        for name, band in self.bands.items():
            low, high = curves[name]
            band.set_data(ranks, low, high)
        self.line.set_data(ranks, curves["excess"])
        self.here.set_xdata([k_v, k_v])
        self.dot.set_data([k_v], [curves["excess"][k_v - 1]])

    def reading(self) -> str:
        """Return the score, the exact excess loss and both pairs of bounds at the chosen ranks."""
        curves, place = self.curves(), self.state["k_v"] - 1
        exact = f"{curves['excess'][place]:.3g}"
        spans = {name: f"[{curves[name][0, place]:.3g}, {curves[name][1, place]:.3g}]" for name in ("raw", "whitened")}
        beyond = " With k_U below the rank of X, V may also explain more than U does: the excess can be negative."
        return (
            f"{self.state['task']}, layer {self.state['layer']}: NTPS {curves['ntps'][place]:.3f}, chance "
            f"{self.state['k_v'] / self.d:.3f}. Excess loss {labelled('#017351', exact)}, exactly; whitened bounds "
            f"{labelled('#8f4a7d', spans['whitened'])}, raw bounds {labelled('#666666', spans['raw'])}."
            + (beyond if self.state["k_u"] < self.solution.U.rank else "")
        )
