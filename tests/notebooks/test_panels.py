"""Panels that are drawn beforehand: they are those of the lessons, and a page can move them."""

import re
from collections import Counter

import pytest

from ntps.course.widgets import Choice, LinearWorldPanel, Panel, Slider

pytest.importorskip("jupytext", reason="jupytext is not installed (the notebooks extra)")

from tools import panels
from tools.course import NOTEBOOKS, load_course
from tools.pairs import cells_of, read_script

CODE = [
    "import numpy as np\nfrom ntps.course import widgets",
    "def twice(x):\n    return 2 * x\nunused = np.ones(3)",
    "low = twice(1)\nhigh = {}\nhigh['a'] = low",
    "panel_x = widgets.OtherPanel(high)\npanel_x.show()",
    "high = None",
]


def test_only_what_the_panel_needs_is_run():
    made = [panels.ast.unparse(statement) for statement in panels.statements(CODE, "OtherPanel")]
    assert [line.partition("\n")[0] for line in made] == [
        "from ntps.course import widgets", "def twice(x):", "low = twice(1)", "high = {}", "high['a'] = low",
        "panel = widgets.OtherPanel(high)",
    ]  # fmt: skip


def test_each_drawn_panel_is_shown_by_one_lesson():
    shown = Counter()
    for entry in load_course().lessons:
        cells = cells_of(read_script(NOTEBOOKS / f"{entry.file}.py"))
        shown.update(panels.panel_of(cell.source) for cell in cells if cell.kind == "code")
    assert {name: shown[name] for name in panels.GRIDS} == dict.fromkeys(panels.GRIDS, 1)


def test_a_lesson_makes_its_panel():
    lesson = next(entry for entry in load_course().lessons if "linear" in entry.file)
    assert isinstance(panels.make_panel(NOTEBOOKS / f"{lesson.file}.py", "LinearWorldPanel"), LinearWorldPanel)


class CutPanel(Panel):
    """Two tasks, the second of which has one rank only."""

    size = (1.0, 0.5)
    letter = "z"

    def __init__(self):
        super().__init__(
            Choice(name="task", label="task", options=("many", "one")),
            Slider(name="rank", label="rank k_U", low=1, high=3, value=3),
        )

    def limits(self):
        return {"rank": (1, 3 if self.state["task"] == "many" else 1)}

    def build(self, figure):
        self.line = self.moving(figure.add_axes((0, 0, 1, 1)).axvline(0))

    def refresh(self):
        self.line.set_xdata([self.state["rank"] / 10 + (self.state["task"] == "one")] * 2)

    def reading(self):
        return f"{self.state['task']} at <b>{self.state['rank']}</b> & no more"


@pytest.fixture
def drawn(tmp_path, monkeypatch):
    monkeypatch.setitem(panels.GRIDS, "CutPanel", {})
    return panels.draw(CutPanel(), tmp_path), tmp_path


def test_a_state_beyond_the_limits_has_the_picture_of_the_nearest(drawn):
    panel, folder = drawn
    assert panel["states"] == {"0,0": 0, "0,1": 1, "0,2": 2, "1,0": 3, "1,1": 3, "1,2": 3}
    assert [picture["at"] for picture in panel["pictures"]] == [[0, 0], [0, 1], [0, 2], [1, 0]]
    assert len({(folder / f"{number}.webp").read_bytes() for number in range(4)}) == 4
    assert panel["pictures"][3]["text"] == "one at <b>1</b> & no more"


def test_controls_start_where_the_panel_does(drawn):
    task, rank = drawn[0]["controls"]
    assert (task["kind"], task["shown"], task["start"]) == ("choice", ["many", "one"], 0)
    assert (rank["kind"], rank["shown"], rank["start"]) == ("slider", ["1", "2", "3"], 2)


def test_a_page_names_every_control_and_the_picture(drawn):
    page = panels.player({**drawn[0], "letter": "z", "first": 2, "text": "many at <b>3</b> & no more"}, "../static")
    controls = set(re.findall(r'<(?:input type="range"|select) id="([^"]+)"', page))
    assert set(re.findall(r'<label for="([^"]+)"', page)) == controls == {"ntps-z-task", "ntps-z-rank"}
    assert 'aria-valuetext="3"' in page
    assert 'src="../static/z/2.webp" alt="many at 3 &amp; no more" width="100" height="50"' in page
