"""Tasks in a list: names, paths and how each is to be read."""

import pytest

from ntps.errors import NtpsError
from ntps.tasks import TaskSource


@pytest.mark.parametrize(
    ("given", "name", "path", "options"),
    [
        ("reviews.csv", "reviews", "reviews.csv", {}),
        ("a/b.x.tsv", "b.x", "a/b.x.tsv", {}),
        ("miniworld/topic", "miniworld/topic", "miniworld/topic", {}),
        ("stars=a/reviews.csv", "stars", "a/reviews.csv", {}),
        ("a b=c d.csv:label=e f", "a b", "c d.csv", {"label_column": "e f"}),
        ("r.csv:text=title,body,label=y", "r", "r.csv", {"text_column": "title,body", "label_column": "y"}),
        ("r.csv:label=a=b,c", "r", "r.csv", {"label_column": "a=b,c"}),
        (
            "x=some/data:split=train[:50],config=en,revision=main",
            "x", "some/data", {"split": "train[:50]", "config": "en", "revision": "main"},
        ),
        ("r.csv:no-header,text=1,label=2", "r", "r.csv", {"header": False, "text_column": "1", "label_column": "2"}),
        ("r.csv:text=a,drop-missing", "r", "r.csv", {"text_column": "a", "drop_missing": True}),
        ("reviews:rating=r.csv:label=rating", "reviews:rating", "r.csv", {"label_column": "rating"}),
    ],
)  # fmt: skip
def test_words_are_read(given, name, path, options):
    source = TaskSource.parse(given)
    assert (source.name, source.path, source.options) == (name, path, options)


def test_what_a_task_says_itself_goes_before_what_is_said_for_all():
    source = TaskSource.parse("r.csv:label=a", text_column="t", label_column="b", header=True)
    assert source.options == {"text_column": "t", "label_column": "a", "header": True}


@pytest.mark.parametrize("name", ["a=b.csv", "r.csv:label=x", "a=b:text=c"])
def test_a_file_of_the_whole_name_is_that_file(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).write_text("text,label\na,x\nb,y\n")
    source = TaskSource.parse(name)
    assert (source.path, source.options) == (name, {})


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("", ["''", "NAME=PATH"]),
        ("=r.csv", ["'=r.csv'"]),
        ("name=", ["'name='"]),
        ("r.csv:label=", ["label", "no value"]),
        ("r.csv:label=a,text=", ["text", "no value"]),
        ("r.csv:columns=a", ["'r.csv:columns=a'", "unknown option", "label", "no-header"]),
        ("x=r.TSV:header", ["unknown option"]),
    ],
)
def test_words_that_name_no_task(given, words):
    with pytest.raises(NtpsError) as caught:
        TaskSource.parse(given)
    assert all(word in str(caught.value) for word in words), caught.value


def test_a_source_loads_its_task_under_its_name(tmp_path):
    path = tmp_path / "r.csv"
    path.write_text("body,stars\n" + "".join(f"text {n},{n % 2}\n" for n in range(20)))
    task = TaskSource.parse(f"mine={path}:text=body,label=stars").load(limit=10, seed=1)
    assert (task.name, len(task), task.source["label_column"]) == ("mine", 10, "stars")
