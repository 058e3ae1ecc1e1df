"""Figures with a description, and progress that is gone when the cell is done."""

import sys

import matplotlib.pyplot as plt
import pytest

from ntps import NtpsError
from ntps.course import progress, say, show

pytest.importorskip("IPython")


@pytest.fixture
def shown(monkeypatch):
    """What is displayed, as (data or object, options)."""
    displayed = []
    monkeypatch.setattr("IPython.display.display", lambda what, **options: displayed.append((what, options)))
    return displayed


def test_a_figure_is_shown_with_its_description_and_closed(shown, monkeypatch):
    figure, ax = plt.subplots()
    ax.plot([1, 2])
    monkeypatch.setattr("ntps.course.figures.descriptions", lambda: {"01.1": "A line that rises; a < b."})
    show("01.1")
    (picture, options), (hidden, _) = shown
    assert picture["image/png"].startswith("iVBOR") and options["metadata"]["image/png"]["alt"].startswith("A line")
    assert "a &lt; b" in hidden.data and 'class="ntps-alt"' in hidden.data
    assert not plt.fignum_exists(figure.number)


def test_a_picture_that_nobody_described_is_refused():
    plt.figure()
    with pytest.raises(NtpsError, match=r"picture .*'99\.1'"):
        show("99.1")
    plt.close("all")


def test_what_is_said_fits_80_columns_and_leaves_options_whole(capsys):
    command = "ntps study --model a " + "--task some_text_set.jsonl " * 5 + "--max-length 64"
    say("Short.", "", command, 3)
    lines = capsys.readouterr().out.splitlines()
    assert (lines[:2], lines[-1]) == (["Short.", ""], "3")
    assert max(map(len, lines)) <= 80 and " ".join(lines[2:-1]) == command


class Shell:
    """A notebook's output area, as far as progress needs it."""

    def __init__(self):
        self.lines, self.cleared = [], False

    def update(self, data, raw):
        self.lines.append(data["text/plain"])

    def clear(self):
        self.cleared = True


@pytest.fixture
def shell(monkeypatch):
    shell = Shell()
    monkeypatch.setattr("IPython.core.getipython.get_ipython", lambda: shell)
    monkeypatch.setattr("IPython.display.display", lambda *what, **options: shell)
    monkeypatch.setattr("IPython.display.clear_output", shell.clear)
    return shell


def test_bars_become_one_line_that_is_cleared_and_warnings_pass(shell, capsys):
    from ntps._text import progress as bar

    with progress():
        with bar(3, "steps", True) as running:
            running.update(3)
        print("careful", file=sys.stderr)
    assert shell.lines and "steps" in shell.lines[-1] and shell.cleared
    assert capsys.readouterr().err == "careful"


def test_what_fails_inside_is_not_hidden(shell):
    before = sys.stderr
    with pytest.raises(ZeroDivisionError), progress():
        raise ZeroDivisionError
    assert sys.stderr is before and not shell.cleared


def test_outside_a_notebook_bars_go_to_stderr(capsys):
    from ntps._text import progress as bar

    with progress(), bar(3, "steps", True) as running:
        running.update(3)
    assert "steps" in capsys.readouterr().err
