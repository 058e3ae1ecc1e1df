"""Panel B: the eigenvalue spectra of a model's layers, and its words in the planes of U and V."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ntps.core.moments import Moments
from ntps.core.solve import LayerSolution, solve_layer
from ntps.course.widgets.panel import COLORS, Choice, Panel, Slider, check_layers, labelled
from ntps.course.widgets.words import WordStates
from ntps.errors import NtpsError

# Seaborn's "colorblind" colours with markers of their own: shape says what colour says.
GROUP_COLORS = ("#0173b2", "#de8f05", "#029e73", "#d55e00", "#cc78bc", "#ca9161", "#949494", "#000000")
GROUP_MARKERS = ("o", "^", "s", "D", "v", "P", ".", "*")
OTHER = "0.8"


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
    title = "Spectra and words of a model's layers"

    def __init__(
        self,
        moments: Moments,
        words: WordStates,
        groupings: Mapping[str, Sequence[str | None]] | None = None,
        *,
        most: int = 32,
    ) -> None:
        """Solve every layer and place every word, once.

        Args:
            moments: Of all layers of a model on a task.
            words: From `word_states`, of the same model.
            groupings: Ways to colour the words: for each a group (or None) per word, at most eight groups. By default
                the words' kinds.
            most: Largest rank of the slider.

        Raises:
            NtpsError: If layers or lengths do not match.
        """
        layers = check_layers(moments.layers)
        if max(layers) >= len(words.means) or words.means.shape[2] != moments.width:
            raise NtpsError("words and moments are of different models; take both from one.")
        self.words = words
        self.groupings = dict(groupings or {"kind": words.kinds})
        for name, groups in self.groupings.items():
            if len(groups) != len(words.words):
                raise NtpsError(
                    f"grouping {name} has {len(groups)} groups for {len(words.words)} words; give one each."
                )
            if len({group for group in groups if group}) > len(GROUP_COLORS):
                raise NtpsError(f"grouping {name} has more than {len(GROUP_COLORS)} groups; merge some.")
        self.solutions: dict[int, LayerSolution] = {layer: solve_layer(moments.layer(layer)) for layer in layers}
        self.places = {
            (layer, side): plane_coordinates(words.means[layer], getattr(solution, side).vectors.numpy())
            for layer, solution in self.solutions.items()
            for side in "UV"
        }
        self.spectra = {
            (layer, side): getattr(solution, side).eigenvalues.numpy()
            / float(getattr(solution, side).eigenvalues.sum())
            for layer, solution in self.solutions.items()
            for side in "UV"
        }
        if min(len(spectrum) for spectrum in self.spectra.values()) < 2:
            raise NtpsError("a layer has fewer than two directions; a plane needs two.")
        most = min(most, *(len(self.spectra[layer, "V"]) for layer in layers))
        self._coloured = ""
        ways = tuple(self.groupings)
        super().__init__(
            (
                Slider("layer", "layer", layers[0], layers[-1], layers[0]),
                Slider("rank", "rank k", 2, most, min(3, most)),
                Choice("colour", "colour words by", ways, ways[0]),
            )
        )

    def build(self) -> None:
        """Draw the four axes."""
        self.planes, self.bars, self.kept, self.points, self.notes = {}, {}, {}, {}, {}
        longest = max(len(spectrum) for spectrum in self.spectra.values())
        for column, side in enumerate("UV"):
            left = 0.095 + 0.5 * column
            spectrum = self.figure.add_axes((left, 0.745, 0.38, 0.205))
            plane = self.figure.add_axes((left, 0.185, 0.38, 0.43))
            what = "label" if side == "U" else "next-token"
            spectrum.set(xscale="log", yscale="log", xlim=(0.9, max(140, 1.1 * longest)), ylim=(1e-5, 1.6))
            spectrum.set(xlabel="direction", title=f"{side}: share of the {what} gain", xticks=[2**i for i in range(8)])
            spectrum.set_xticklabels(["1", "2", "4", "8", "16", "32", "64", "128"])
            spectrum.minorticks_off()
            self.bars[side] = self.moving(spectrum.plot([], [], "o", color="0.75", ms=3)[0])
            self.kept[side] = self.moving(spectrum.plot([], [], "o", color=COLORS[side], ms=4)[0])
            plane.set(xlim=(-3.6, 3.6), ylim=(-3.6, 3.6), xticks=(-2, 0, 2), yticks=(-2, 0, 2))
            self.points[side] = [
                self.moving(plane.plot([], [], marker, color=color, ms=4, mew=0)[0])
                for marker, color in [(".", OTHER), *zip(GROUP_MARKERS, GROUP_COLORS, strict=True)]
            ]
            self.notes[side] = [self.moving(plane.text(0, 0, "", size=7.5)) for _ in range(len(GROUP_COLORS))]
            labels = [
                self.moving(plane.text(0.5, -0.115, "", transform=plane.transAxes, ha="center", va="top")),
                self.moving(
                    plane.text(-0.105, 0.5, "", transform=plane.transAxes, ha="center", va="center", rotation=90)
                ),
                self.moving(plane.text(0, 1.025, "", transform=plane.transAxes, size=9.5)),
            ]
            self.planes[side] = labels
        self.legend: Any = None

    def refresh(self) -> None:
        """Move the points to the chosen layer and rank."""
        layer, rank, way = self.state["layer"], self.state["rank"], self.state["colour"]
        groups = np.array([group or "" for group in self.groupings[way]])
        names = list(dict.fromkeys(group for group in self.groupings[way] if group))
        names.sort(key=lambda name: (-int((groups == name).sum()), name))
        self.between = {}
        for side in "UV":
            spectrum, places = self.spectra[layer, side], self.places[layer, side]
            count = min(rank, len(spectrum))
            order = np.arange(1, len(spectrum) + 1)
            self.bars[side].set_data(order, spectrum)
            self.kept[side].set_data(order[:count], spectrum[:count])
            x, y = places[:, count - 2], places[:, count - 1]
            for artist, name in zip(self.points[side], ["", *names], strict=False):
                artist.set_data(x[groups == name], y[groups == name])
            for artist in self.points[side][len(names) + 1 :]:
                artist.set_data([], [])
            for place, note in enumerate(self.notes[side]):
                note.set_text("")
                if place < len(names):
                    members = np.flatnonzero(groups == names[place])
                    word = members[self.words.counts[members].argmax()]
                    note.set(text=self.words.words[word], color=GROUP_COLORS[place])
                    note.set_position((min(x[word] + 0.12, 2.4), min(y[word] + 0.1, 3.3)))
            self.between[side] = float(between_groups(places[:, count - 2 : count], self.groupings[way]).mean())
            texts = (
                f"direction {count - 1} of {side}",
                f"direction {count} of {side}",
                f"Words in {side}-space, layer {layer}",
            )
            for label, text in zip(self.planes[side], texts, strict=True):
                label.set_text(text)
        if self._coloured != way:
            self._coloured = way
            if self.legend is not None:
                self.legend.remove()
            from matplotlib.lines import Line2D

            shown = list(zip(names, GROUP_MARKERS, GROUP_COLORS, strict=False))
            handles = [Line2D([], [], marker=m, color=c, ls="", ms=5, label=n) for n, m, c in shown]
            if (groups == "").any():
                handles.append(Line2D([], [], marker=".", color=OTHER, ls="", ms=6, label="other words"))
            self.legend = self.figure.legend(
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
        layer, rank = self.state["layer"], self.state["rank"]
        solution = self.solutions[layer]
        count = min(rank, len(self.spectra[layer, "U"]))
        kept = {"U": self.spectra[layer, "U"][:count].sum(), "V": self.spectra[layer, "V"][:rank].sum()}
        score = float(solution.table[rank - 1, count - 1])
        return (
            f"Layer {layer}: the first {count} directions of {labelled('#9a6200', 'U')} take "
            f"{100 * kept['U']:.0f} % of "
            f"what the labels can gain, the first {rank} of {labelled(COLORS['V'], 'V')} take "
            f"{100 * kept['V']:.0f} % of "
            f"what the next token can; NTPS {score:.2f}, chance {rank / solution.d:.2f}. Of the words' spread in these "
            f"planes, {100 * self.between['U']:.0f} % (U) and {100 * self.between['V']:.0f} % (V) lies between groups "
            f"of one {self.state['colour']} and another."
        )
