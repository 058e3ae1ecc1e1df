"""Panel B: the eigenvalue spectra of a model's layers, and its words in the planes of U and V."""

from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke

from ntps.course.layers import solve
from ntps.course.vocabulary import WordStates
from ntps.course.widgets.panel import COLORS, Choice, Panel, Slider, labelled
from ntps.errors import NtpsError
from ntps.models import Representations

# Paul Tol's "muted" colours, safe for the colour-blind, none of them that of U or V; shape says what colour says.
GROUP_COLORS = ("#332288", "#117733", "#88ccee", "#882255", "#999933", "#44aa99", "#cc6677", "#aa4499")
GROUP_MARKERS = ("o", "^", "s", "D", "v", "P", ".", "*")
OTHER = "0.8"
HALO = [withStroke(linewidth=2.5, foreground="white")]  # words stay readable on the cloud of points


def plane_coordinates(states: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """Return the words' coordinates (W, k) along directions, centred and in standard deviations over the words.

    Args:
        states: (W, d) mean states.
        vectors: (d, k) directions.
    """
    along = states @ vectors
    along = along - along.mean(axis=0)
    spread = along.std(axis=0)
    return along / np.where(spread > 0, spread, 1)


def between_groups(coordinates: np.ndarray, groups: Sequence[str | None]) -> np.ndarray:
    """Return, per column of (W, k), the share of variance that lies between groups, in [0, 1].

    Words whose group is None are left out. With G groups of W words that have nothing to do with the coordinates, the
    mean is (G - 1) / (W - 1).
    """
    names = np.array([name or "" for name in groups])
    inside = coordinates[names != ""]
    names = names[names != ""]
    centred = inside - inside.mean(axis=0)
    between = np.zeros(coordinates.shape[1])
    for name in np.unique(names):
        members = centred[names == name]
        between += len(members) * members.mean(axis=0) ** 2
    total = (centred**2).sum(axis=0)
    return between / np.where(total > 0, total, 1)


class SpectraPanel(Panel):
    """Panel B: choose layer and rank; see both spectra, and the words along the last two directions kept."""

    size = (6.4, 5.9)
    dpi = 110
    letter = "b"

    def __init__(
        self,
        representations: Representations,
        words: WordStates,
        groupings: Mapping[str, Sequence[str | None]] | None = None,
        *,
        most: int = 32,
    ) -> None:
        """Solve every layer and place every word, once.

        Args:
            representations: All layers of a model on a task.
            words: From `ntps.course.vocabulary.word_states`, of the same model.
            groupings: Ways to colour the words: for each a group (or None) per word, at most eight groups. By default
                the words' kinds.
            most: Largest rank of the slider.

        Raises:
            NtpsError: If layers or lengths do not match.
        """
        layers = representations.layers
        if max(layers) >= len(words.means) or words.means.shape[2] != representations.width:
            raise NtpsError("words and representations are of different models; take both from one.")
        self.words = words
        self.groupings = dict(groupings or {"kind": words.kinds})
        for name, groups in self.groupings.items():
            if len(groups) != len(words.words):
                raise NtpsError(
                    f"grouping {name} has {len(groups)} groups for {len(words.words)} words; give one for each."
                )
            if len({group for group in groups if group}) > len(GROUP_COLORS):
                raise NtpsError(f"grouping {name} has more than {len(GROUP_COLORS)} groups; merge some.")
        self.solved = {layer: solve(representations, layer) for layer in layers}
        encoders = {(layer, side): getattr(solved, side) for layer, solved in self.solved.items() for side in "UV"}
        self.spectra = {
            key: (encoder.eigenvalues / encoder.eigenvalues.sum()).numpy() for key, encoder in encoders.items()
        }
        if min(len(spectrum) for spectrum in self.spectra.values()) < 2:
            raise NtpsError("a layer has fewer than two directions; a plane needs two.")
        self.coordinates = {
            (layer, side): plane_coordinates(words.means[layer], encoder.vectors.numpy())
            for (layer, side), encoder in encoders.items()
        }
        self._colored_by = ""
        self._legend: Any = None
        most = min(most, *(len(self.spectra[layer, "V"]) for layer in layers))
        super().__init__(
            Slider(name="layer", label="layer", low=layers[0], high=layers[-1], value=layers[0]),
            Slider(name="rank", label="rank k", low=2, high=most, value=min(3, most)),
            Choice(name="grouping", label="colour words by", options=tuple(self.groupings)),
        )

    def _rank(self, side: str) -> int:
        """Return the chosen rank, within what U or V has."""
        return min(self.state["rank"], len(self.spectra[self.state["layer"], side]))

    def _plane(self, side: str) -> np.ndarray:
        """Return the words' coordinates (W, 2) along the last two directions kept."""
        rank = self._rank(side)
        return self.coordinates[self.state["layer"], side][:, rank - 2 : rank]

    def build(self, figure: Figure) -> None:
        """Draw the four axes."""
        self.bars, self.kept = {}, {}
        self.points: dict[str, list[Any]] = {}
        self.notes: dict[str, list[Any]] = {}
        self.labels: dict[str, list[Any]] = {}
        longest = max(len(spectrum) for spectrum in self.spectra.values())
        ticks = [2**power for power in range(8)]
        for left, side, purpose in ((0.095, "U", "label"), (0.595, "V", "next-token")):
            spectrum = figure.add_axes((left, 0.745, 0.38, 0.205))
            plane = figure.add_axes((left, 0.185, 0.38, 0.43))
            spectrum.set(xscale="log", yscale="log", xlim=(0.9, max(140, 1.1 * longest)), ylim=(1e-5, 1.6))
            spectrum.set(xlabel="direction", title=f"{side}: share of the {purpose} gain", xticks=ticks)
            spectrum.set_xticklabels([str(tick) for tick in ticks])
            spectrum.minorticks_off()
            self.bars[side] = self.moving(spectrum.plot([], [], "o", color="0.75", ms=3)[0])
            self.kept[side] = self.moving(spectrum.plot([], [], "o", color=COLORS[side], ms=4)[0])
            plane.set(xlim=(-3.6, 3.6), ylim=(-3.6, 3.6), xticks=(-2, 0, 2), yticks=(-2, 2))
            self.points[side] = [
                self.moving(plane.plot([], [], marker, color=color, ms=4, mew=0)[0])
                for marker, color in [(".", OTHER), *zip(GROUP_MARKERS, GROUP_COLORS, strict=True)]
            ]
            self.notes[side] = [
                self.moving(plane.text(0, 0, "", size=8, color=color, weight="bold", path_effects=HALO))
                for color in GROUP_COLORS
            ]
            beside: dict[str, Any] = {"transform": plane.transAxes, "ha": "center"}
            self.labels[side] = [
                self.moving(plane.text(0.5, -0.115, "", va="top", **beside)),
                self.moving(plane.text(-0.105, 0.5, "", va="center", rotation=90, **beside)),
                self.moving(plane.text(0, 1.025, "", transform=plane.transAxes, size=9.5)),
            ]

    def refresh(self) -> None:
        """Move the points to the chosen layer and rank."""
        layer, grouping = self.state["layer"], self.state["grouping"]
        groups = np.array([group or "" for group in self.groupings[grouping]])
        unique, sizes = np.unique(groups[groups != ""], return_counts=True)
        names: list[str] = unique[np.argsort(-sizes, kind="stable")].tolist()
        for side in "UV":
            spectrum, rank = self.spectra[layer, side], self._rank(side)
            order = np.arange(1, len(spectrum) + 1)
            self.bars[side].set_data(order, spectrum)
            self.kept[side].set_data(order[:rank], spectrum[:rank])
            x, y = self._plane(side).T
            for artist, name in zip_longest(self.points[side], ["", *names]):
                artist.set_data(x[groups == name], y[groups == name])
            for note, name in zip_longest(self.notes[side], names):
                note.set_text("")
                if name is not None:
                    members = np.flatnonzero(groups == name)
                    word = members[self.words.counts[members].argmax()]
                    note.set_text(self.words.words[word])
                    note.set_position((min(x[word] + 0.12, 2.4), min(y[word] + 0.1, 3.3)))
            below, beside, above = self.labels[side]
            below.set_text(f"direction {rank - 1} of {side}")
            beside.set_text(f"direction {rank} of {side}")
            above.set_text(f"Words in {side}-space, layer {layer}")
        if self._colored_by != grouping:
            self._colored_by = grouping
            self._draw_legend(names, others=bool((groups == "").any()))

    def _draw_legend(self, names: Sequence[str], *, others: bool) -> None:
        """Replace the legend by that of these groups."""
        if self._legend is not None:
            self._legend.remove()
        looks = zip(names, GROUP_MARKERS, GROUP_COLORS, strict=False)
        handles = [Line2D([], [], marker=marker, color=color, ls="", ms=5, label=name) for name, marker, color in looks]
        if others:
            handles.append(Line2D([], [], marker=".", color=OTHER, ls="", ms=6, label="other words"))
        self._legend = self.figure.legend(
            handles=handles,
            loc="lower center",
            ncols=5,
            bbox_to_anchor=(0.5, 0.0),
            handletextpad=0.2,
            columnspacing=1.2,
        )
        self.redraw_all()

    def reading(self) -> str:
        """Return how much of each spectrum is kept, the score, and how well the planes separate the groups."""
        layer, grouping = self.state["layer"], self.state["grouping"]
        solved = self.solved[layer]
        rank_u, rank_v = self._rank("U"), self._rank("V")
        kept_u, kept_v = (_percent(self.spectra[layer, side][: self._rank(side)].sum()) for side in "UV")
        between_u, between_v = (
            _percent(between_groups(self._plane(side), self.groupings[grouping]).mean()) for side in "UV"
        )
        return (
            f"Layer {layer}: the first {rank_u} directions of {labelled('U', 'U')} take {kept_u} of what the labels "
            f"can gain, the first {rank_v} of {labelled('V', 'V')} take {kept_v} of what the next token can; NTPS "
            f"{solved.ntps_at(rank_u, rank_v):.2f}, chance {rank_v / solved.d:.2f}. Of the words' spread in these "
            f"planes, {between_u} (U) and {between_v} (V) lies between groups of one {grouping} and another."
        )


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"
