"""Tables: aligned in a terminal, escaped in HTML, both from the same columns."""

import math
from operator import itemgetter

import pytest
from helpers.results import EVIL
from markupsafe import Markup

from ntps._text import Column, html_table, text_table, wrap

COLUMNS = [
    Column("a_name", itemgetter(0), words=True),
    Column("share", itemgetter(1), digits=2),
    Column("n", itemgetter(2)),
]
ROWS = [("long entry", 0.125, 3), (EVIL, None, 12), ("x", math.nan, 4)]


def test_columns_of_text_are_aligned():
    lines = text_table(COLUMNS, ROWS)
    width = len(EVIL)
    assert lines[0] == f"{'a_name':{width}}  share   n"
    assert lines[1] == f"{'long entry':{width}}   0.12   3"
    assert lines[2] == f"{EVIL}      -  12"
    assert text_table(COLUMNS, [], gap=1) == ["a_name share n"]


@pytest.mark.parametrize(("mark", "indent"), [("* ", "  "), ("✓ ", "  "), ("✗ ", "  "), ("", ""), ("*", "")])
def test_only_the_text_of_a_marked_paragraph_is_indented(mark, indent):
    first, *others = wrap(f"{mark}word --with-an-option " + "word " * 30, 40)
    assert first.startswith(f"{mark}word") and others and max(map(len, [first, *others])) <= 40
    assert {line[: len(line) - len(line.lstrip())] for line in others} == {indent}


def test_neither_options_nor_percentages_are_broken():
    assert wrap("a b c d e f --max-length 3", 18) == ["a b c d e f", "--max-length 3"]
    assert wrap("more than 80 % of it", 12) == ["more than", "80 % of it"]


def test_html_escapes_everything_but_markup():
    table = html_table([*COLUMNS, Column(EVIL, lambda row: Markup("<a>") + str(row[0]))], ROWS, best=ROWS[1])
    assert EVIL not in table and table.count(str(Markup.escape(EVIL))) == 3  # heading, cell, cell beside markup
    assert table.count("<a>") == 3
    assert "a_<wbr>name" in table
    assert table.count('<tr class="best"') == 1 and table.index('class="best"') > table.index("long entry")
    assert table.count("–") == 2


@pytest.mark.parametrize(
    ("value", "text"), [(0.12345, "0.123"), (-0.00001, "0.000"), (7, "7"), ("7", "7"), (None, "-")]
)
def test_numbers_as_text(value, text):
    assert Column("value", itemgetter(0)).text((value,)) == text
