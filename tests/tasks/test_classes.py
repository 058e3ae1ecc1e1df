"""Which labels name classes, which are the same class, and which are refused, whatever they come from."""

import json

import numpy as np
import pytest
from helpers.labelled import fails

from ntps.tasks import load_task


def csv_file(path, labels):
    path.write_text("text,label\n" + "".join(f'text {n},"{label}"\n' for n, label in enumerate(labels)))
    return {"name_or_path": path}


def json_file(path, labels):
    path.write_text("".join(json.dumps({"text": f"text {n}", "label": label}) + "\n" for n, label in enumerate(labels)))
    return {"name_or_path": path}


def lists(_, labels):
    return {"texts": [f"text {n}" for n in range(len(labels))], "labels": labels}


def frame(_, labels):
    import pandas as pd

    texts = [f"text {n}" for n in range(len(labels))]
    return {"name_or_path": pd.DataFrame({"text": texts, "label": pd.Series(labels, dtype=object)})}


def folder(path, labels):
    path.mkdir()
    return {"name_or_path": csv_file(path / "train.csv", labels)["name_or_path"].parent}


@pytest.fixture(params=[lists, json_file, frame, csv_file, folder], ids=lambda maker: maker.__name__)
def source(request, tmp_path):
    """Function from labels to the options of `load_task` that read them from a source of one kind."""
    suffix = {"json_file": "t.jsonl", "folder": "t"}.get(request.param.__name__, "t.csv")
    return lambda labels: request.param(tmp_path / suffix, labels)


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        ([1, 1.0, "1", "1.0", 0], "1 1 1 1 0"),
        (["01", "1", "1.0", 2], "01 1 1 2"),
        (["007", "7", "8"], "007 7 8"),
        (["-0", "0", "1"], "0 0 1"),
        (["1e3", "1000", "+1", "1"], "1e3 1000 +1 1"),
        ([True, "false", "True", False, "TRUE"], "true false true false true"),
        (["v1.5", "1.5", "2"], "v1.5 1.5 2"),
        (["NA", "None", "null"], "NA None null"),
        (["pos", " pos ", "pos\u200b", "\ufeffneg"], "pos pos pos neg"),
    ],
)
def test_labels_are_the_same_class_from_every_source(source, labels, names):
    task = load_task(**source(labels))
    assert [task.classes[number] for number in task.labels] == names.split()


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ([0.25, 0.5, 0.75], ["0.25", "not a class", "fractions"]),
        (["1", "2", "2.5"], ["2.5", "not a class", "fractions"]),
        (["1.5", 2, 3.0], ["1.5", "fractions"]),
        ([f"name {n}" for n in range(30)], ["30 classes for 30 texts", "label_column"]),
        (["a", "a", *(f"name {n}" for n in range(40))], ["41 classes for 42 texts"]),
        (list(range(1000, 1012)), ["12 classes for 12 texts"]),
    ],
)
def test_labels_that_name_no_classes_are_refused_from_every_source(source, labels, words):
    fails("'label'", *words, **source(labels))


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ([True, "yes", False], ["mixes boolean and string"]),
        ([1, "a", 2], ["mixes integer and string"]),
        ([{"name": "x"}, 1, 2], ["not a class", "'label.name'"]),
        ([[0, 1], [1, 0]], ["not a class", "one-hot"]),
        ([float("inf"), 1.0], ["inf", "not a class"]),
        ([10**5000, 1], ["digits", "not a class"]),
        (["a\ud83d", "a\ud83e", "b"], ["entry 2", "broken character"]),
    ],
)
def test_labels_that_do_not_go_together(labels, words):
    fails(*words, texts=[f"text {n}" for n in range(len(labels))], labels=labels)


def test_few_texts_and_rare_classes_pass():
    assert load_task(**lists(None, list("abcd"))).n_classes == 4
    assert load_task(**lists(None, [n // 2 for n in range(30)])).n_classes == 15


def test_half_characters_in_labels_are_replaced(tmp_path):
    task = load_task(**json_file(tmp_path / "t.jsonl", ["\ud83d", "ok", "\ud83d", "\U0001f600"]))
    assert sorted(task.classes) == ["ok", "\ufffd", "\U0001f600"]


@pytest.mark.parametrize("kind", ["tensor", "floats", "scalars", "tensors", "series", "categorical"])
def test_arrays_and_tensors_of_labels(kind):
    import pandas as pd
    import torch

    labels = {
        "tensor": torch.tensor([1, 0, 1]),
        "floats": torch.tensor([1.0, 0.0, 1.0]),
        "scalars": [np.int64(1), np.array(0), np.float32(1)],
        "tensors": [torch.tensor(value) for value in (1, 0, 1)],
        "series": pd.Series([1, 0, 1], dtype="Int64"),
        "categorical": pd.Categorical([1, 0, 1]),
    }[kind]
    task = load_task(texts=["a", "b", "c"], labels=labels)
    assert (task.classes, task.labels.tolist()) == (("0", "1"), [1, 0, 1])
    for hot in (torch.eye(3), np.eye(3)):
        fails("one-hot", texts=["a", "b", "c"], labels=hot)


# Missing texts and labels


ROWS = [("a", "x"), ("", "y"), ("b", ""), (" ", ""), ("c", "y")]


def test_rows_without_a_text_or_a_label_are_dropped_and_counted(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("text,label,other\n" + "".join(f"{text},{label},{label}\n" for text, label in ROWS))
    fails("line 4", "missing", "drop_missing=True", name_or_path=path, label_column="label")
    task = load_task(path, label_column="label", drop_missing=True)
    assert (task.texts, task.labels.tolist(), task.classes) == (("a", "c"), [0, 1], ("x", "y"))
    assert task.source["dropped"] == {"without_text": 2, "without_label": 1}
    assert json.loads(json.dumps(task.source)) == task.source
    both = load_task(path, label_column=["label", "other"], drop_missing=True)
    assert both.texts == ("a", "c")
    labels = [label or None for _, label in ROWS]
    assert load_task(texts=[text or None for text, _ in ROWS], labels=labels, drop_missing=True).texts == ("a", "c")
    records = [{"text": text or None, **({"label": label} if label else {})} for text, label in ROWS]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    assert load_task(tmp_path / "t.jsonl", drop_missing=True).texts == ("a", "c")


def test_with_several_columns_a_row_goes_when_it_has_no_label_at_all():
    labels = {"one": ["x", None, None, "y"], "two": [None, "u", None, "v"]}
    task = load_task(texts=list("abcd"), labels=labels, drop_missing=True)
    assert task.texts == ("a", "b", "d")
    assert task.source["dropped"] == {"without_text": 0, "without_label": 1}


def test_lines_are_named_as_in_the_file_after_rows_were_dropped(tmp_path):
    path = tmp_path / "t.jsonl"
    path.write_text('{"text": null, "label": 1}\n{"text": "a", "label": 1}\n{"text": 5, "label": 2}\n')
    fails("t.jsonl, line 3", "holds 5", name_or_path=path, drop_missing=True)


def test_nothing_left_and_nothing_to_drop(fake_miniworld):
    fails("none of its 2 rows", texts=["", "b"], labels=["x", None], drop_missing=True)
    fails("all 2 are empty", texts=["a", "b"], labels=[None, None], drop_missing=True)
    fails("drop_missing=True", "no meaning", name_or_path="miniworld/topic", drop_missing=True)
