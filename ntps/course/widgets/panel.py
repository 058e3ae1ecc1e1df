"""What every panel shares: state in, picture out, and the ipywidgets around it.

One figure is drawn once. What moves is drawn over a copy of what does not (blitting), and the pixels are written as
PNG: 10 to 30 ms a frame, where clearing and drawing the axes anew takes 80 to 200.
"""

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import numpy as np
from matplotlib.artist import Artist
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ntps.errors import NtpsError, in_range, one_of

if TYPE_CHECKING:
    import ipywidgets

# Seaborn's "colorblind" palette, by the role a colour plays in every picture of the course.
COLORS = {
    "U": "#de8f05",
    "V": "#0173b2",
    "exact": "#029e73",
    "raw": "#949494",
    "whitened": "#cc78bc",
    "chance": "#555555",
}
STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.labelsize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "figure.facecolor": "white",
}


@dataclass(frozen=True)
class Slider:
    """A number the reader slides.

    Attributes:
        name: Name of the state it sets.
        label: What stands beside it.
        low: Smallest value.
        high: Largest value.
        value: Value at the start.
        step: Distance between two values; a whole number makes the values whole.
        live: Redraw while it moves. Set it to false where a picture takes more than 50 ms.
    """

    name: str
    label: str
    low: float
    high: float
    value: float
    step: float = 1
    live: bool = True


@dataclass(frozen=True)
class Choice:
    """One of several names the reader picks."""

    name: str
    label: str
    options: tuple[str, ...]
    value: str


class Panel:
    """A picture of a state, with controls.

    Subclasses create `controls`, and write `build` (draw what stays, register with `moving` what moves), `refresh` (put
    the state into the moving artists) and `reading` (the picture in words).

    Attributes:
        state: The value of every control.
        figure: The one figure, reused for every picture.
    """

    size = (6.4, 4.4)  # inches; shown 100 CSS pixels to the inch, whatever the dpi
    dpi = 140
    title = "Panel"
    letter = ""

    def __init__(self, controls: tuple[Slider | Choice, ...]) -> None:
        self.controls = {control.name: control for control in controls}
        self.state: dict[str, Any] = {control.name: control.value for control in controls}
        self._moving: list[Artist] = []
        self._background: Any = None
        with mpl.rc_context(STYLE):
            self.figure = Figure(figsize=self.size, dpi=self.dpi)
            self.canvas = FigureCanvasAgg(self.figure)
            self.build()
        self.set()

    def build(self) -> None:
        """Draw the axes and create the artists, once."""
        raise NotImplementedError

    def refresh(self) -> None:
        """Put the state into the artists."""
        raise NotImplementedError

    def reading(self) -> str:
        """Return what the picture shows, in one or two sentences."""
        raise NotImplementedError

    def limits(self) -> dict[str, tuple[float, float]]:
        """Return the (low, high) of sliders whose range depends on the state."""
        return {}

    def moving(self, artist: Any) -> Any:
        """Register an artist that changes with the state; later ones are drawn on top."""
        artist.set_animated(True)
        self._moving.append(artist)
        return artist

    def redraw_all(self) -> None:
        """Also draw what stays again in the next picture: axes limits or ticks have changed."""
        self._background = None

    def set(self, **state: Any) -> "Panel":
        """Change some of the state; return the panel.

        Raises:
            NtpsError: If there is no such control, or the value is not among its values.
        """
        for name, value in state.items():
            control = self.controls[one_of(name, self.controls, "control")]
            if isinstance(control, Choice):
                one_of(value, control.options, name)
            else:
                in_range(value, control.low, control.high, name)
        self.state.update(state)
        for name, (low, high) in self.limits().items():
            self.state[name] = min(max(self.state[name], low), high)
        with mpl.rc_context(STYLE):
            self.refresh()
        return self

    def pixels(self) -> Any:
        """Draw the state; return the canvas's (height, width, 4) uint8 array, valid until the next picture."""
        with mpl.rc_context(STYLE):
            if self._background is None:
                self.canvas.draw()
                self._background = self.canvas.copy_from_bbox(self.figure.bbox)
            else:
                self.canvas.restore_region(self._background)
            for artist in self._moving:
                self.figure.draw_artist(artist)
        return np.asarray(self.canvas.buffer_rgba())

    def png(self) -> bytes:
        """Return the picture of the state."""
        from PIL import Image

        buffer = io.BytesIO()
        Image.fromarray(self.pixels()).convert("RGB").save(buffer, "PNG", compress_level=1)
        return buffer.getvalue()

    def _repr_png_(self) -> bytes:
        return self.png()

    def show(self) -> "ipywidgets.VBox":
        """Return sliders, picture and reading as one ipywidget. Each slider moves with the arrow keys."""
        import ipywidgets

        wide = {"description_width": "initial"}
        inputs: dict[str, Any] = {}
        for control in self.controls.values():
            layout = ipywidgets.Layout(width="23em", max_width="100%")
            if isinstance(control, Choice):
                inputs[control.name] = ipywidgets.Dropdown(
                    options=control.options,
                    value=self.state[control.name],
                    description=control.label,
                    style=wide,
                    layout=layout,
                )
            else:
                whole = float(control.step).is_integer()
                kind = ipywidgets.IntSlider if whole else ipywidgets.FloatSlider
                inputs[control.name] = kind(
                    value=self.state[control.name],
                    min=control.low,
                    max=control.high,
                    step=control.step,
                    description=control.label,
                    continuous_update=control.live,
                    style=wide,
                    layout=layout,
                )
            kind_name = "choice" if isinstance(control, Choice) else "slider"
            inputs[control.name].add_class(f"ntps-{kind_name}-{control.name.replace('_', '-')}")
        width, height = (round(side * 100) for side in self.size)
        picture = ipywidgets.Image(value=self.png(), format="png", width=width, height=height)
        picture.layout = ipywidgets.Layout(width=f"{width}px", max_width="100%", height="auto", object_fit="contain")
        picture.add_class("ntps-picture")
        text = ipywidgets.HTML(layout=ipywidgets.Layout(max_width=f"{width}px", min_height="4.5em"))
        text.add_class("ntps-reading")
        following = False

        def show() -> None:
            picture.value = self.png()
            reading = self.reading()
            # A screen reader is told what changed: JupyterLab cannot show an Image that has a tooltip.
            text.value = f'<div role="status" aria-live="polite">{reading}</div>'

        def follow(_: Any) -> None:
            nonlocal following
            if following:  # a range that was cut back moved another slider: one picture is enough
                return
            following = True
            try:
                self.set(**{name: box.value for name, box in inputs.items()})
                for name, (low, high) in self.limits().items():
                    inputs[name].max, inputs[name].min = high, low
                    inputs[name].value = self.state[name]
                show()
            finally:
                following = False

        for name, (low, high) in self.limits().items():
            inputs[name].max, inputs[name].min = high, low
        for box in inputs.values():
            box.observe(follow, names="value")
        show()
        rows = ipywidgets.Box(
            list(inputs.values()), layout=ipywidgets.Layout(flex_flow="row wrap", max_width=f"{width}px")
        )
        whole_panel = ipywidgets.VBox([rows, picture, text])
        whole_panel.add_class("ntps-panel")
        whole_panel.add_class(f"ntps-panel-{self.letter}")
        whole_panel.inputs, whole_panel.picture, whole_panel.text = inputs, picture, text
        return whole_panel


def labelled(color: str, text: str) -> str:
    """Return text in a colour, for readings; the colour only repeats what the words say."""
    return f'<b style="color:{color}">{text}</b>'


def check_layers(layers: Any) -> tuple[int, ...]:
    """Return layers as a tuple.

    Raises:
        NtpsError: If there is none.
    """
    chosen = tuple(layers)
    if not chosen:
        raise NtpsError("no layer was given; a panel needs at least one.")
    return chosen
