"""Labels that are not classes, real values or several of 0 and 1: what is read, and what is refused in one sentence."""

from decimal import Decimal

import numpy as np
import pytest
from helpers.labelled import fails, save

from ntps.errors import NtpsError
from ntps.tasks import LabelColumn, Task, TaskSource, load_task

TEXTS = ["a", "b", "c", "d"]


def load(values, **options):
    texts = [f"text {n}" for n in range(len(values))]
    return load_task(texts=texts, labels=values, regression=True, **options)


@pytest.mark.parametrize(
    ("values", "read"),
    [
        ([1.5, 2, -0.25], [1.5, 2, -0.25]),
        (["1.5", " 2 ", "-2.5e-1", "+.5"], [1.5, 2, -0.25, 0.5]),
        ([Decimal("0.1"), np.float32(0.5), np.int64(7)], [0.1, 0.5, 7]),
        ([-1, -1, 0], [-1, -1, 0]),  # no hidden labels: a number like others
        (list(range(1000, 1020)), range(1000, 1020)),  # each once, which names no classes
    ],
)
def test_numbers_are_read_as_they_are(values, read):
    task = load(values)
    (column,) = task.columns
    assert column.kind == "regression" and column.values.dtype == np.float64 and column.values.tolist() == list(read)
    assert (column.classes, column.n_classes, task.classes) == ((), 0, ())
    assert np.isnan(column.majority_rate)
    assert "real values" in repr(task)


def test_a_table_of_numbers_is_read_alike(tmp_path):
    (tmp_path / "t.csv").write_text("text,score\na,0.5\nb,1\nc,-2e1\n")
    task = load_task(tmp_path / "t.csv", label_column="score", regression=True)
    assert task.labels.tolist() == [0.5, 1, -20]
    given = TaskSource.parse(f"mine={tmp_path / 't.csv'}:label=score,regression").load()
    assert given.fingerprint == task.fingerprint
    assert load_task(texts=["a", "b", "c"], labels={"score": [0.5, 1, -20]}, regression=True).fingerprint == (
        task.fingerprint
    )


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ([0.5, "good", 1], ["entry 2", "'good'", "not a finite number", "regression=True"]),
        ([0.5, True, 1], ["entry 2", "True"]),
        ([0.5, float("inf"), 1], ["entry 2", "inf"]),
        (["0.5", "inf", "1"], ["entry 2", "'inf'"]),
        (["0.5", "nan", "1"], ["entry 2", "'nan'"]),
        (["0,5", "1,5"], ["entry 1", "'0,5'"]),
        (["1e400", "1"], ["entry 1", "'1e400'"]),
        ([10**400, 1], ["entry 1", "not a finite number"]),
        ([0.5, None, 1, ""], ["entry 2", "missing", "1 more row", "drop_missing=True"]),
        ([None, None], ["all 2 are empty"]),
        ([3.5, 3.5, 3.5], ["one value (3.5)", "at least two values"]),
        ([[0.5], [1.5]], ["entry 1", "not a finite number"]),
    ],
)
def test_what_is_no_target_of_a_regression(values, words):
    fails(*words, texts=[f"text {n}" for n in range(len(values))], labels=values, regression=True)


def test_numbers_of_classes_are_no_values(tmp_path):
    folder = save(tmp_path / "saved", [("a", 0), ("b", 1), ("c", 1)], names=["good", "bad"])
    fails("'label'", "good, bad", "not real values", name_or_path=folder, regression=True)
    fails("regression=True", "bundled", name_or_path="miniworld/topic", regression=True)


def test_missing_values_are_dropped_or_left_open():
    assert load([0.5, None, 1, float("nan"), ""], drop_missing=True).labels.tolist() == [0.5, 1]
    task = load_task(texts=TEXTS, labels={"x": [0.5, None, 1, 2], "y": [1, 2, "", 4]}, regression=True)
    assert [column.labelled.tolist() for column in task.columns] == [
        [True, False, True, True],
        [True, True, False, True],
    ]
    assert "1 without a label" in repr(task)
    assert task.with_column("y").labels.tolist() == [1, 2, 4]
    fails("'y'", "entry 2", texts=TEXTS, labels={"x": [1, 2, 3, 4], "y": [1, "b", 3, 4]}, regression=True)


def test_classes_are_refused_with_the_way_to_read_values():
    for values in ([0.5, 1.5, 2.5], list(range(30))):
        fails("regression=True", texts=[f"text {n}" for n in range(len(values))], labels=values)
    message = fails("30 classes", texts=[f"text {n}" for n in range(30)], labels=[f"name {n}" for n in range(30)])
    assert "regression" not in message


def test_columns_of_values():
    column = LabelColumn("score", np.array([0.5, np.nan, 2], dtype=np.float32))
    assert column.values.dtype == np.float64 and column.labelled.tolist() == [True, False, True]
    with pytest.raises(NtpsError, match="'score' is infinite at text 1"):
        LabelColumn("score", np.array([0.5, np.inf]))
    with pytest.raises(NtpsError, match="floats without classes"):
        LabelColumn("score", np.array([0.0, 1.0]), ("a", "b"))
    with pytest.raises(NtpsError, match=r"text 1 has no label"):
        Task.of("t", ["a", "b"], [0.5, np.nan])
    prints = {
        Task.of("t", ["a", "b"], labels, classes).fingerprint for labels, classes in (([0, 1], "ab"), ([0.0, 1.0], ()))
    }
    prints |= {Task.of("t", ["a", "b"], [0.0, 1.5]).fingerprint}
    assert len(prints) == 3


def test_values_are_split_at_random_and_texts_without_one_too():
    values = np.random.default_rng(0).normal(size=40)
    values[:8] = np.nan
    other = LabelColumn("other", np.zeros(40, dtype=np.int64), ("a",))
    task = Task(name="t", texts=[f"text {n}" for n in range(40)], columns=[LabelColumn("score", values), other])
    train, test = task.split(0.25)
    assert (len(train), len(test)) == (30, 10)
    assert sorted([*train.texts, *test.texts]) == sorted(task.texts)
    assert np.isnan(test.labels).sum() == 2
    found = dict(zip([*train.texts, *test.texts], [*train.labels, *test.labels], strict=True))
    np.testing.assert_equal([found[text] for text in task.texts], values)
    with pytest.raises(NtpsError, match="fewer than two texts"):
        Task.of("t", ["a"], [0.5]).split()


# Several labels


def several(**columns):
    n = len(next(iter(columns.values())))
    return {"texts": [f"text {i}" for i in range(n)], "labels": columns, "multilabel": True}


def test_columns_of_two_classes_are_joined():
    task = load_task(**several(rude=[1, "0", 1.0], spam=["Yes", "no", "NO"], long=[True, "false", "True"]))
    (column,) = task.columns
    assert (column.name, column.kind, column.classes) == ("3 labels", "multilabel", ("rude", "spam", "long"))
    assert column.values.tolist() == [[1, 1, 1], [0, 0, 0], [1, 0, 1]]
    assert "3 labels" in repr(task) and "majority" not in repr(task) and np.isnan(column.majority_rate)
    assert column.labelled.tolist() == [True] * 3
    assert task.source["label_column"] == ["rude", "spam", "long"]
    part = task.subset([2, 0])
    assert part.labels.tolist() == [[1, 0, 1], [1, 1, 1]]
    other = Task.of("t", task.texts, column.values, ("rude", "spam", "other"), label_column="3 labels")
    assert other.fingerprint != task.fingerprint


def test_columns_of_a_table_are_joined_and_split(tmp_path):
    rows = "".join(f"text {n},{n % 2},{'yes' if n % 5 == 0 else 'no'}\n" for n in range(40))
    (tmp_path / "t.csv").write_text("text,odd,fifth\n" + rows)
    task = load_task(tmp_path / "t.csv", label_column=["fifth", "odd"], multilabel=True)
    assert task.labels.sum(0).tolist() == [8, 20]
    train, test = task.split(0.25)
    assert (len(train), len(test)) == (30, 10) and np.array_equal(train.labels.sum(0) + test.labels.sum(0), [8, 20])


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"a": [0, 1, 1]}, ["multilabel=True", "several label columns", "label_column"]),
        ({"a": [0, 1, 1], "b": ["x", "y", "y"]}, ["'b'", "'x', 'y'", "0 and 1"]),
        ({"a": [0, 1, 1], "b": [1, 2, 3]}, ["'b'", "'1', '2', '3'"]),
        ({"a": [0, 1, 1], "b": [1, "", 0]}, ["'b'", "entry 2", "missing", "drop_missing=True"]),
        ({"a": [0, 1, 1], "b": [1, 1, 1]}, ["label column 'b'", "one class ('1')"]),
        ({"a": [0, 0, 0], "b": [1, 1, 0]}, ["label column 'a'", "one class ('0')"]),
        ({"a": [0, 1, 1], "b": ["no", "0", "1"]}, ["'b'", "no"]),
    ],
)
def test_columns_that_are_no_labels(columns, words):
    fails(*words, **several(**columns))


def test_a_text_without_one_of_the_labels_is_dropped():
    given = several(a=[0, 1, None, 1, 0], b=[1, "", 0, 0, 1])
    task = load_task(**given, drop_missing=True)
    assert task.texts == ("text 0", "text 3", "text 4") and task.labels.tolist() == [[0, 1], [1, 0], [0, 1]]
    assert task.source["dropped"] == {"without_text": 0, "without_label": 2}
    fails("'b'", "all 5", **{**given, "labels": {"a": [0, 1, None, 1, 0], "b": [None] * 5}}, drop_missing=True)
    fails("none of its 2 rows", **several(a=[None, 1], b=[0, None]), drop_missing=True)
    fails("exclude each other", **given, regression=True)
    fails("multilabel=True", "bundled", name_or_path="miniworld/topic", multilabel=True)
