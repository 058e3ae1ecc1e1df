"""Names from anywhere: nothing steers a terminal, every encoding takes them, and shared pages tell no paths."""

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ntps._names import clean, distinct, file_names, one_line, shareable, short_name
from ntps.errors import NtpsError, whole


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("\x1b[31mred\x1b[0m", "red"),
        ("\x1b]0;title\x07x", "x"),
        ("\x1b]8;;http://evil\x1b\\link\x1b]8;;\x1b\\", "link"),
        ("\x1bP1$r\x1b\\x", "x"),
        ("\x1b(Bx\x1b7", "x"),
        ("\x9b31mx", "x"),
        ("a\x07b\x00c\x7fd\x85e", "abcde"),
        ("gpj\u202efdp", "gpjfdp"),
        ("\ufefftext", "text"),
        ("half \ud800 and \udcff", "half \ufffd and \ufffd"),
        ("two\nlines\tand tabs", "two\nlines\tand tabs"),
        ("שלום 中文 👩\u200d🔬 é", "שלום 中文 👩\u200d🔬 é"),
    ],
)
def test_clean(text, expected):
    assert clean(text) == expected
    clean(text).encode("utf-8")


@pytest.mark.parametrize(
    "message",
    [
        "x" * 70_000,
        "word " * 20_000,
        "a\nb\r\n c\x1b[2J",
        "\ud800" * 5000,
        f"no column {'c' * 9000!r}; choose a column.",
    ],
)
def test_a_message_is_one_line_that_can_be_read(message):
    said = str(NtpsError(message))
    assert len(said) <= 1000 and "\n" not in said and "\x1b" not in said
    said.encode("utf-8")
    assert said == one_line(said)


def test_a_message_keeps_both_ends():
    assert one_line(f"{'n' * 500}.csv, line 7: bad") == f"{'n' * 133}…{'n' * 61}.csv, line 7: bad"


@pytest.mark.parametrize("value", [2**63, 2**64, -(2**63) - 2, 10**5000], ids=range(4))
def test_a_number_beyond_64_bits_is_refused_by_its_name(value):
    with pytest.raises(NtpsError, match=r"^seed is a number of \d+ bits"):
        whole(value, None, None, "seed")


@pytest.mark.parametrize(
    ("name", "short"),
    [
        ("/home/bob/m", "m"),
        ("/home/bob/m/", "m"),
        ("./m", "m"),
        ("../x/m", "m"),
        ("~/m", "m"),
        ("C:\\Users\\bob\\m", "m"),
        ("org/model", "org/model"),
        ("miniworld/topic", "miniworld/topic"),
        ("/", "/"),
        ("..", ".."),
        ("/x/\x1b[1mm", "m"),
    ],
)
def test_short_name(name, short):
    assert short_name(name) == short


def test_names_that_end_alike_stay_apart():
    names = ["/home/bob/a/llama", "/home/bob/b/llama", "org/llama", "/home/bob/c/gpt", "/home/eve/b/llama"]
    found = distinct(names)
    assert len(set(found.values())) == len(names)
    assert found["/home/bob/c/gpt"] == "gpt" and found["org/llama"] == "org/llama"
    assert found["/home/bob/a/llama"] == "a/llama"
    assert not any(name.startswith("/") for name in found.values())


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["/x/m", "/y/m", "x/m"], ["x/m (1)", "y/m", "x/m"]),
        (["./m", "./m/", "m"], ["./m", "./m (2)", "m"]),
        (["/m", "m"], ["m (1)", "m"]),
        (["a", "a\x1b[1m"], ["a", "a (2)"]),
        (["/m", "m", "m (1)"], ["m (2)", "m", "m (1)"]),
    ],
)
def test_names_that_no_part_of_a_path_tells_apart_are_counted(names, expected):
    assert list(distinct(names).values()) == expected


@given(st.lists(st.text("ab/\\.~ (1)", max_size=5), max_size=8))
def test_short_names_of_different_models_differ(names):
    found = distinct(names)
    assert list(found) == list(dict.fromkeys(names)) and len(set(found.values())) == len(found)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"path": "/home/bob/x.csv"}, {"path": "x.csv"}),
        ({"path": "/home/bob/my data/x.csv"}, {"path": "x.csv"}),
        ({"a": [{"b": "~/models/m"}]}, {"a": [{"b": "m"}]}),
        ({"/home/bob/m": 1}, {"m": 1}),
        ({"reason": "/home/bob/x.csv, line 3: bad"}, {"reason": "x.csv, line 3: bad"}),
        ({"reason": "cannot read '/home/bob/x.csv'."}, {"reason": "cannot read 'x.csv'."}),
        ({"reason": "C:\\Users\\bob\\x.csv: bad"}, {"reason": "x.csv: bad"}),
        ({"note": "see https://arxiv.org/abs/1, 3/4 and and/or, 5 m/s"}, None),
        ({"classes": ["/m/0dgw9r", "/people/person"]}, None),
        ({"task": "miniworld/topic", "model": "org/model", "n": 3, "x": None, "y": [1.5, True]}, None),
    ],
)
def test_what_is_shared_tells_no_paths(content, expected):
    assert shareable(content) == (content if expected is None else expected)
    assert "bob" not in json.dumps(shareable(content))


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["label", "a b", "A/B"], ["label", "a-b", "a-b-3"]),
        (["a", "a-3", "A"], ["a", "a-3", "a-4"]),
        (["A", "a"], ["a-1", "a"]),
        (["?", "!", "2"], ["1", "3", "2"]),
        (["x", "x", "x-2"], ["x", "x-3", "x-2"]),
        (["İ é", "a", "Σ"], ["i-é", "a", "σ"]),
    ],
)
def test_names_of_files(names, expected):
    assert file_names(names) == expected


@given(st.lists(st.text("aA12-?", max_size=4), max_size=8))
def test_names_of_files_differ_and_stay_where_they_are_fine(names):
    found = file_names(names)
    assert len(set(found)) == len(names)
    assert all(re.fullmatch(r"\w+(-\w+)*", name) for name in found)
    assert all(slug == name for slug, name in zip(found, names, strict=True) if names.count(name) == 1 and fine(name))
    assert file_names(found) == found


def fine(name):
    return name == name.lower() and re.fullmatch(r"\w+(-\w+)*", name)
