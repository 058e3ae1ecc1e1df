"""What all panels share: state in, picture out, and the ipywidgets around it.

The figure is drawn once. What moves is drawn over a copy of what does not (blitting), and the pixels are written as
PNG: 10 to 30 ms per frame, where clearing and drawing the axes anew takes 80 to 200.
"""

import io
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Self

import matplotlib as mpl
import numpy as np
from matplotlib.artist import Artist
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ntps.errors import in_range, one_of
from ntps.report.plots import COLORS as PLOT_COLORS

if TYPE_CHECKING:
    import ipywidgets

# Seaborn's "colorblind" palette, by the role a colour plays in every picture of the course.
COLORS = {
    **{name: PLOT_COLORS[name] for name in ("U", "V", "all", "ntps")},
    "exact": "#029e73",
    "raw": "#949494",
    "whitened": "#cc78bc",
    "chance": "#555555",
}
# The same hues, dark enough to be read as text on white.
TEXT_COLORS = {
    "U": "#9a6200",
    "V": COLORS["V"],
    "exact": "#01674b",
    "raw": "#666666",
    "whitened": "#8f4a7d",
    "plain": "#333333",
}
# Complete enough for a panel to look the same under any theme that a notebook has set.
STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.labelsize": 9,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "figure.facecolor": "white",
    **{f"{axis}tick.labelsize": 8.5 for axis in "xy"},
    **{f"{axis}tick.major.{size}": value for axis in "xy" for size, value in (("size", 3.5), ("width", 0.8))},
}

# ipywidgets gives the handle of a slider no name, and Python cannot reach it: a screen reader would say "slider, 30".
# A picture of no size, once it is loaded, names each handle after its label, and again whenever one is made anew.
_NAME_HANDLES = """<img alt="" src="data:image/gif;base64,R0lGODlhAQABAAAAACH5BAEKAAEALAAAAAABAAEAAAICTAEAOw==" onload="
(function name(image) {
  const panel = image.closest('.ntps-panel');
  if (!panel) return setTimeout(name, 200, image);
  const all = () => panel.querySelectorAll('[class*=ntps-slider]').forEach(slider => {
    const handle = slider.querySelector('[role=slider]'), label = slider.querySelector('label');
    if (handle && label) handle.setAttribute('aria-label', label.textContent);
  });
  all();
  new MutationObserver(all).observe(panel, {childList: true, subtree: true});
})(this)">"""


@dataclass(frozen=True, kw_only=True)
class Slider:
    """A number that the reader slides.

    Attributes:
        name: Name of the state it sets.
        label: Text beside it.
        low: Smallest value.
        high: Largest value.
        value: Value at the start.
        step: Distance between two values; a whole number makes the values whole.
        names: What the reader sees in place of the whole numbers from `low` to `high`; none shows the numbers.
    """

    name: str
    label: str
    low: float
    high: float
    value: float
    step: float = 1
    names: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Choice:
    """One of several names that the reader picks.

    Attributes:
        name: Name of the state it sets.
        label: Text beside it.
        options: The names; the first is the one at the start.
    """

    name: str
    label: str
    options: tuple[str, ...]

    @property
    def value(self) -> str:
        """The name at the start."""
        return self.options[0]


class Panel:
    """A picture of a state, with controls.

    Subclasses pass their controls on and write `build` (draw what stays, register with `moving` what moves), `refresh`
    (put the state into the moving artists) and `reading` (the picture in words). Nothing is drawn before the first
    picture is asked for.

    Attributes:
        controls: The controls by name.
        state: The value of every control.
    """

    size = (6.4, 4.4)  # inches; shown at 100 CSS pixels per inch, whatever the dpi
    dpi = 140
    letter = ""

    def __init__(self, *controls: Slider | Choice) -> None:
        self.controls = {control.name: control for control in controls}
        self.state: dict[str, Any] = {control.name: control.value for control in controls}
        self._moving: list[Artist] = []
        self._background: Any = None
        self._outdated = True

    @cached_property
    def figure(self) -> Figure:
        """The one figure, reused for every picture."""
        figure = Figure(figsize=self.size, dpi=self.dpi)
        FigureCanvasAgg(figure)
        with mpl.rc_context(STYLE):
            self.build(figure)
        return figure

    def build(self, figure: Figure) -> None:
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
        """Draw what stays again in the next picture, too: axis limits or ticks have changed."""
        self._background = None

    def set(self, **state: Any) -> Self:
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
        self._outdated = True
        return self

    def pixels(self) -> np.ndarray:
        """Draw the state; return the canvas's (height, width, 4) uint8 array, valid until the next picture."""
        canvas: Any = self.figure.canvas
        with mpl.rc_context(STYLE):
            if self._outdated:
                self.refresh()
                self._outdated = False
            if self._background is None:
                canvas.draw()
                self._background = canvas.copy_from_bbox(self.figure.bbox)
            else:
                canvas.restore_region(self._background)
            for artist in self._moving:
                self.figure.draw_artist(artist)
        return np.asarray(canvas.buffer_rgba())

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

        width, height = (round(side * 100) for side in self.size)
        inputs = {name: _input(control, self.state[name]) for name, control in self.controls.items()}
        row = ipywidgets.Layout(flex_flow="row wrap", max_width=f"{width}px")
        picture = ipywidgets.Image(format="png", width=width, height=height)
        picture.layout = ipywidgets.Layout(width=f"{width}px", max_width="100%", height="auto", object_fit="contain")
        picture.add_class("ntps-picture")
        text = ipywidgets.HTML(layout=ipywidgets.Layout(max_width=f"{width}px", min_height="4.5em"))
        text.add_class("ntps-reading")
        names = ipywidgets.HTML(_NAME_HANDLES, layout=ipywidgets.Layout(display="none"))
        box = ipywidgets.VBox([ipywidgets.Box(list(inputs.values()), layout=row), picture, text, names])
        box.add_class("ntps-panel")
        box.add_class(f"ntps-panel-{self.letter}")
        box.inputs, box.picture, box.text = inputs, picture, text
        following = False

        def show() -> None:
            for name, (low, high) in self.limits().items():
                inputs[name].max, inputs[name].min = high, low
                inputs[name].value = self.state[name]
            picture.value = self.png()
            # A screen reader is told what changed: JupyterLab cannot show an Image that has a tooltip.
            text.value = f'<div role="status" aria-live="polite">{self.reading()}</div>'

        def follow(_: Any) -> None:
            nonlocal following
            if following:  # a range that was cut back moved another slider: one picture is enough
                return
            following = True
            try:
                self.set(**{name: control.value for name, control in inputs.items()})
                show()
            finally:
                following = False

        show()
        for control in inputs.values():
            control.observe(follow, names="value")
        return box


def _input(control: Slider | Choice, value: Any) -> Any:
    """Return the ipywidget of a control."""
    import ipywidgets

    common = {
        "value": value,
        "description": control.label,
        "style": {"description_width": "initial"},
        "layout": ipywidgets.Layout(width="23em", max_width="100%"),
    }
    if isinstance(control, Choice):
        made = ipywidgets.Dropdown(options=control.options, **common)
    elif control.names:
        values = range(int(control.low), int(control.high) + 1)
        made = ipywidgets.SelectionSlider(options=list(zip(control.names, values, strict=True)), **common)
    else:
        slider = ipywidgets.IntSlider if float(control.step).is_integer() else ipywidgets.FloatSlider
        made = slider(min=control.low, max=control.high, step=control.step, **common)
    kind = "choice" if isinstance(control, Choice) else "slider"
    made.add_class(f"ntps-{kind}-{control.name.replace('_', '-')}")
    return made


def labelled(role: str, text: str) -> str:
    """Return text in the colour of a role, for readings; the colour only repeats what the words say."""
    return f'<b style="color:{TEXT_COLORS[role]}">{text}</b>'
