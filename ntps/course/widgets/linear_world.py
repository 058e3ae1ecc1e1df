"""A world of two or more dimensions in which both encoders can be seen, and the panel that turns its directions.

A text has a theme z ~ N(0, I) that stays the same from token to token, and noise that does not:

    h_t = A z + e_t,  e_t ~ N(0, N),  t = 1, ..., L;      x = mean of h_t;      y = B^T x + noise.

All moments are known exactly, with S = A A^T:

    C0 = sum_{t<L} (t^2 S + t N),   C1 = sum_{t<L} t S,   M = S + N / L,   X = M B.

So next-token prediction wants N^-1 A, the theme seen against the noise, and the label wants B.
"""

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from ntps.core import (
    Encoder,
    LayerMoments,
    PooledMoments,
    autoregressive_encoder,
    ntps_table,
    perception_encoder,
)
from ntps.course.widgets.panel import COLORS, TEXT_COLORS, Panel, Slider, labelled
from ntps.errors import NtpsError, in_range

_MANY = 10**9  # texts: more than any rank


@dataclass(frozen=True, eq=False, kw_only=True)
class LinearWorld:
    """Texts whose states, next states and labels are linear in each other.

    Attributes:
        A: (d, r) directions that persist from token to token; their lengths are their strengths.
        N: (d, d) covariance of what is fresh at every token.
        B: (d, c) what the labels read off the mean state.
        length: Tokens L of a text.
        label_noise: Variance of each label that no reader of x can know.
    """

    A: np.ndarray
    N: np.ndarray
    B: np.ndarray
    length: int = 8
    label_noise: float = 0.1

    def __post_init__(self) -> None:
        d = len(self.A)
        if self.N.shape != (d, d) or self.B.shape[:1] != (d,):
            raise NtpsError(f"A has {d} rows, so N must be ({d}, {d}) and B ({d}, c); they are "
                            f"{self.N.shape} and {self.B.shape}.")  # fmt: skip
        in_range(self.length, 2, None, "length")

    @property
    def next_token(self) -> LayerMoments:
        """The exact C0 and C1, of infinitely many texts."""
        S, steps = self.A @ self.A.T, np.arange(1, self.length)
        C0 = (steps**2).sum() * S + steps.sum() * self.N
        C1 = steps.sum() * S
        return LayerMoments(
            layer=0, C0=torch.from_numpy(C0), C1=torch.from_numpy(C1), n_texts=_MANY, n_pairs=_MANY * (self.length - 1)
        )

    @property
    def pooled(self) -> PooledMoments:
        """The exact M and X, of infinitely many texts."""
        d, c = self.B.shape
        M = self.A @ self.A.T + self.N / self.length
        yy = self.B.T @ M @ self.B + self.label_noise * np.eye(c)
        M, X, mean_x, mean_y, yy = (torch.from_numpy(part) for part in (M, M @ self.B, np.zeros(d), np.zeros(c), yy))
        return PooledMoments(n=_MANY, M=M, X=X, mean_x=mean_x, mean_y=mean_y, yy=yy)

    @property
    def next_energy(self) -> float:
        """E sum_t ||h_{t+1}||^2: the next-token loss of a reader who predicts zero."""
        return float((self.length - 1) * np.trace(self.A @ self.A.T + self.N))

    def sample(self, n: int, *, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """Draw texts: states (n, L, d) and labels (n, c)."""
        rng = np.random.default_rng(seed)
        d, r = self.A.shape
        theme = rng.standard_normal((n, 1, r)) @ self.A.T
        fresh = rng.standard_normal((n, self.length, d)) @ np.linalg.cholesky(self.N).T
        states = theme + fresh
        noise = math.sqrt(self.label_noise) * rng.standard_normal((n, self.B.shape[1]))
        return states, states.mean(axis=1) @ self.B + noise


def direction(degrees: float) -> np.ndarray:
    """Return the unit vector (2,) at an angle to the first axis."""
    angle = math.radians(degrees)
    return np.array([math.cos(angle), math.sin(angle)])


def plane_world(next_angle: float = 30, label_angle: float = 75, stretch: float = 1.0) -> LinearWorld:
    """Return a two-dimensional world.

    Args:
        next_angle: Degrees of the persistent direction.
        label_angle: Degrees of the direction the label reads.
        stretch: Variance of the fresh noise along the first axis; along the second it is 1 / stretch.
    """
    in_range(stretch, 0.01, 100, "stretch")
    B = direction(label_angle)[:, None]
    world = LinearWorld(A=direction(next_angle)[:, None], N=np.diag([stretch, 1 / stretch]), B=B)
    # The label has variance 1 in every world, so that losses compare while the student turns it.
    variance = (B.T @ world.pooled.M.numpy() @ B).item()
    return replace(world, B=B * math.sqrt((1 - world.label_noise) / variance))


@dataclass(frozen=True, eq=False, kw_only=True)
class WorldReading:
    """What a two-dimensional world gives with one direction each (k_U = k_V = 1).

    Attributes:
        U: Perception encoder.
        V: Next-token encoder.
        ntps: Score, in [0, 1].
        label_loss: Label loss at `U`, at `V` and with no feature at all.
        retained: Share of the label variance explained at U that is explained at V.
    """

    U: Encoder
    V: Encoder
    ntps: float
    label_loss: tuple[float, float, float]
    retained: float


def loss_along(directions: np.ndarray, B: np.ndarray, F: np.ndarray, energy: float) -> np.ndarray:
    """Return the least squared error (m,) of predicting through each single direction.

    Args:
        directions: (m, d).
        B: (d, d) Gram of the input, M or C0.
        F: (d, c) cross moment, X or C1.
        energy: Loss without any feature.
    """
    gain = np.square(directions @ F).sum(axis=1) / np.einsum("md,de,me->m", directions, B, directions)
    return energy - gain


def read_world(world: LinearWorld) -> WorldReading:
    """Solve a world with one direction for the labels and one for the next token."""
    pooled, next_token = world.pooled, world.next_token
    U = perception_encoder(pooled.M, pooled.X)
    V = autoregressive_encoder(next_token.C0, next_token.C1)
    energy = float(pooled.yy.trace())
    both = np.stack([U.vectors[:, 0].numpy(), V.vectors[:, 0].numpy()])
    at_u, at_v = loss_along(both, pooled.M.numpy(), pooled.X.numpy(), energy)
    return WorldReading(
        U=U,
        V=V,
        ntps=float(ntps_table(U.vectors[:, :1], V.vectors[:, :1])[0, 0]),
        label_loss=(float(at_u), float(at_v), energy),
        retained=float((energy - at_v) / (energy - at_u)),
    )


def ellipse(B: np.ndarray, points: int = 120) -> np.ndarray:
    """Return the outline (2, points) of x^T B^-1 x = 1, one standard deviation in every direction."""
    angles = np.linspace(0, 2 * math.pi, points)
    return np.linalg.cholesky(B) @ np.stack([np.cos(angles), np.sin(angles)])


_ANGLES = np.arange(181)
_NAME_WIDTH = 8  # degrees that the name of a direction takes above the losses
_DIRECTIONS = np.stack([direction(angle) for angle in _ANGLES.tolist()])


class LinearWorldPanel(Panel):
    """Panel A: turn what persists and what the label reads; watch both subspaces, both losses and the score."""

    size = (6.4, 4.5)
    letter = "a"

    def __init__(self) -> None:
        super().__init__(
            Slider(name="next_angle", label="next-token angle (°)", low=0, high=180, value=30),
            Slider(name="label_angle", label="label angle (°)", low=0, high=180, value=60),
            Slider(name="stretch", label="noise stretch", low=0.2, high=5, value=1, step=0.1),
        )

    def build(self, figure: Figure) -> None:
        """Draw the axes: the plane, the losses over the angle, the score."""
        plane, losses, bars = (
            figure.add_axes(box)
            for box in ((0.075, 0.34, 0.37, 0.5262), (0.54, 0.34, 0.425, 0.5262), (0.27, 0.075, 0.62, 0.125))
        )
        self._build_plane(plane)
        self._build_losses(losses)
        self._build_bars(bars)

    def _build_plane(self, ax: Any) -> None:
        ax.set(xlim=(-2.1, 2.1), ylim=(-2.1, 2.1), xticks=range(-2, 3), yticks=range(-2, 3), aspect="equal")
        ax.set_title("Moments and subspaces", pad=30)
        ax.axhline(0, color="0.9", lw=0.8, zorder=0)
        ax.axvline(0, color="0.9", lw=0.8, zorder=0)
        self.shape_m = self.moving(ax.plot([], [], color="0.45", lw=1.4, label="M: mean states")[0])
        self.shape_c = self.moving(ax.plot([], [], color="0.45", lw=1.2, ls=":", label="C0: the past")[0])
        self.line_v = self.moving(ax.plot([], [], color=COLORS["V"], lw=2.4, label="V")[0])
        self.line_u = self.moving(ax.plot([], [], color=COLORS["U"], lw=2.4, label="U")[0])
        self.tip_u = self.moving(ax.plot([], [], "o", color=COLORS["U"], ms=5)[0])
        self.drop = self.moving(ax.plot([], [], color="0.2", lw=1.1, ls="--")[0])
        self.foot = self.moving(ax.plot([], [], "s", color=COLORS["V"], ms=6)[0])
        ax.legend(loc="lower left", bbox_to_anchor=(-0.06, 0.985), ncols=2, columnspacing=1.0, handlelength=1.6)

    def _build_losses(self, ax: Any) -> None:
        ax.set(xlim=(0, 180), ylim=(0, 1.04), xticks=range(0, 181, 45), xlabel="angle of the one direction kept (°)")
        ax.set_title("Loss, 1 = no direction kept", pad=30)
        self.curve_v = self.moving(ax.plot([], [], color=COLORS["V"], lw=1.8, label="next-token loss")[0])
        self.curve_u = self.moving(ax.plot([], [], color=COLORS["U"], lw=1.8, label="label loss")[0])
        self.best_v = self.moving(ax.axvline(0, color=COLORS["V"], lw=1.0, ls="--"))
        self.best_u = self.moving(ax.axvline(0, color=COLORS["U"], lw=1.0, ls="--"))
        self.excess = self.moving(ax.plot([], [], color="0.15", lw=4, solid_capstyle="butt", label="excess")[0])
        self.names = [
            self.moving(ax.text(0, 1.05, name, color=color, ha="center", weight="bold"))
            for name, color in TEXT_COLORS.items()
            if name in "UV"
        ]
        ax.legend(
            loc="lower left",
            bbox_to_anchor=(-0.05, 1.04),
            ncols=3,
            columnspacing=0.9,
            handlelength=1.1,
            handletextpad=0.5,
        )

    def _build_bars(self, ax: Any) -> None:
        ax.set(xlim=(0, 1), ylim=(-0.6, 1.6), xticks=(0, 0.5, 1), yticks=(0, 1))
        ax.set_yticklabels(["label share retained", "NTPS (line: chance)"])
        bars = ax.barh([1, 0], [0, 0], height=0.5, color=[COLORS["ntps"], COLORS["V"]])
        self.bars = [self.moving(bar) for bar in bars]
        self.chance = self.moving(ax.plot([0.5, 0.5], [0.65, 1.35], color="black", lw=1.6)[0])
        self.values = [
            self.moving(ax.text(1.02, y, "", va="center", transform=ax.get_yaxis_transform())) for y in (1, 0)
        ]

    def _read(self) -> tuple[LinearWorld, WorldReading, float, float]:
        """Return the state's world, what it gives (a 2 by 2 problem), and the angles of U and V in degrees."""
        world = plane_world(**self.state)
        reading = read_world(world)
        first = (encoder.vectors[:, 0].tolist() for encoder in (reading.U, reading.V))
        angle_u, angle_v = (math.degrees(math.atan2(y, x)) % 180 for x, y in first)
        return world, reading, angle_u, angle_v

    def refresh(self) -> None:
        """Solve the world and move the artists."""
        world, reading, angle_u, angle_v = self._read()
        pooled, next_token = world.pooled, world.next_token
        M, C0 = pooled.M.numpy(), next_token.C0.numpy()
        self.shape_m.set_data(*ellipse(M))
        self.shape_c.set_data(*ellipse(C0 * np.trace(M) / np.trace(C0)))
        u, v = (encoder.vectors[:, 0].numpy() for encoder in (reading.U, reading.V))
        u, v = 1.6 * u / np.linalg.norm(u), v / np.linalg.norm(v)
        foot = v * (v @ u)
        self.line_v.set_data(*np.outer(v, (-2.9, 2.9)))
        self.line_u.set_data([0, u[0]], [0, u[1]])
        self.tip_u.set_data([u[0]], [u[1]])
        self.drop.set_data([u[0], foot[0]], [u[1], foot[1]])
        self.foot.set_data([foot[0]], [foot[1]])

        at_u, at_v, energy = reading.label_loss
        next_loss = loss_along(_DIRECTIONS, C0, next_token.C1.numpy(), world.next_energy)
        self.curve_v.set_data(_ANGLES, next_loss / world.next_energy)
        self.curve_u.set_data(_ANGLES, loss_along(_DIRECTIONS, M, pooled.X.numpy(), energy) / energy)
        self.best_u.set_xdata([angle_u] * 2)
        self.best_v.set_xdata([angle_v] * 2)
        sides = ("right", "left") if angle_u <= angle_v else ("left", "right")  # the names of near angles stand apart
        near = abs(angle_u - angle_v) < _NAME_WIDTH
        for name, angle, side in zip(self.names, (angle_u, angle_v), sides, strict=True):
            name.set_x(angle)
            name.set_ha(side if near else "center")
        self.excess.set_data([angle_v] * 2, [at_u / energy, at_v / energy])
        for bar, text, value in zip(self.bars, self.values, (reading.ntps, reading.retained), strict=True):
            bar.set_width(value)
            text.set_text(f"{value:.2f}")

    def reading(self) -> str:
        """Return the score and the loss in words."""
        _, reading, angle_u, angle_v = self._read()
        at_u, at_v, energy = reading.label_loss
        return (
            f"Next-token prediction keeps the direction at {labelled('V', f'{angle_v:.0f}°')}, the label wants "
            f"{labelled('U', f'{angle_u:.0f}°')}: NTPS {reading.ntps:.2f}, where chance is 0.50. Read through V, the "
            f"label loss is {at_v / energy:.2f} instead of {at_u / energy:.2f}: {100 * reading.retained:.0f} % of what "
            "one direction can explain is kept."
        )
