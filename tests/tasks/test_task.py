"""A task checks itself, never changes, and keeps all its label columns however it is cut."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ntps.errors import NtpsError
from ntps.tasks import LabelColumn, Task
from ntps.tasks.task import fingerprint_texts


def many(n=200, classes=3, seed=0):
    """A task with one label column."""
    labels = np.random.default_rng(seed).integers(0, classes, n)
    return Task.of("many", [f"text {i}" for i in range(n)], labels, map(str, range(classes)), source={"kind": "memory"})


def several(n=200, seed=0):
    """A task with three label columns; a quarter of the labels are missing in two of them."""
    rng = np.random.default_rng(seed)
    columns = []
    for name, classes, missing in (("rating", "abc", 0.25), ("condition", "xy", 0.25), ("length", "sl", 0.0)):
        values = np.where(rng.random(n) < missing, -1, rng.integers(0, len(classes), n))
        columns.append(LabelColumn(name, values, tuple(classes)))
    return Task(name="several", texts=[f"text {i}" for i in range(n)], columns=columns)


def rows(task):
    """Every text with its values in all columns."""
    values = zip(*(column.values.tolist() for column in task.columns), strict=True)
    return dict(zip(task.texts, values, strict=True))


def test_a_task_never_changes():
    task = several()
    for owner, attribute in ((task, "name"), (task.columns[0], "values"), (task, "labels")):
        with pytest.raises(AttributeError):
            setattr(owner, attribute, "other")
    for column in task.columns:
        with pytest.raises(ValueError, match="read-only"):
            column.values[0] = 1
    values = np.array([0, 1])
    column = LabelColumn("label", values, ("a", "b"))
    values[0] = 1
    assert column.values.tolist() == [0, 1]


def test_what_a_task_says_of_itself():
    assert "200 texts, 3 classes" not in repr(several())
    assert "200 texts; 3 classes" in repr(many())
    text = repr(several())
    assert "rating: 3 classes" in text
    assert f"{(several().labels < 0).sum()} without a label" in text


def test_the_first_column_is_the_task_s_own():
    task = several()
    first = task.columns[0]
    assert task.labels is first.values
    assert (task.classes, task.n_classes) == (("a", "b", "c"), 3)
    labelled = task.labels[task.labels >= 0]
    assert task.majority_rate == pytest.approx(np.bincount(labelled).max() / len(labelled))
    assert np.isnan(LabelColumn("label", np.array([-1, -1]), ("a", "b")).majority_rate)
    assert np.isnan(task.subset([]).majority_rate)


def test_tasks_are_made_by_keyword():
    column = LabelColumn("label", np.array([0, 1]), ("a", "b"))
    with pytest.raises(TypeError):
        Task("t", ("x", "y"), (column,))
    task = Task(name="t", texts=("x", "y"), columns=(column,))
    assert task.fingerprint == Task.of("t", ["x", "y"], [0, 1], "ab").fingerprint
    assert Task.of("t", ["x", "y"], [0, 1], "ab", label_column="rating").columns[0].name == "rating"


@pytest.mark.parametrize(
    ("labels", "classes", "words"),
    [
        ([0], "a", ["2 texts", "1 labels", "'label'"]),
        ([0, 2], "ab", ["'label'", "2 classes"]),
        ([-2, 0], "ab", ["'label'", "-2"]),
        ([0.5, 1.0], "ab", ["'label'", "float64"]),
        ([[0], [1]], "ab", ["'label'", "(2, 1)"]),
        ([0, -1], "ab", ["text 1", "'label'"]),
    ],
)
def test_labels_that_do_not_fit(labels, classes, words):
    with pytest.raises(NtpsError) as caught:
        Task.of("t", ("x", "y"), labels, classes)
    assert all(word in str(caught.value) for word in words), caught.value


def test_columns_that_do_not_fit():
    column = LabelColumn("rating", np.array([0, 1]), ("a", "b"))
    with pytest.raises(NtpsError, match="no label column"):
        Task(name="t", texts=("x", "y"), columns=())
    with pytest.raises(NtpsError, match="'rating'"):
        Task(name="t", texts=("x", "y"), columns=(column, column))
    with pytest.raises(NtpsError, match=r"3 texts.*2 labels.*'rating'"):
        Task(name="t", texts=("x", "y", "z"), columns=(column,))


def test_columns_by_name():
    task = several()
    assert task.column("condition") is task.columns[1]
    with pytest.raises(NtpsError, match=r"'nope'.*'rating', 'condition', 'length'"):
        task.column("nope")
    with pytest.raises(NtpsError, match="'nope'"):
        task.with_column("nope")


def test_a_task_of_one_of_its_columns():
    task = several()
    one = task.with_column("condition")
    labelled = task.column("condition").labelled
    assert [column.name for column in one.columns] == ["condition"]
    assert one.texts == tuple(np.array(task.texts)[labelled])
    assert one.labels.tolist() == task.column("condition").values[labelled].tolist()
    assert (one.classes, one.source["label_column"]) == (("x", "y"), "condition")
    assert task.with_column("length").texts == task.texts
    assert one.with_column("condition") is one


def test_fingerprints_are_of_the_content():
    task = many()
    assert replace(task, name="other", source={}).fingerprint == task.fingerprint
    assert task.subset(range(199)).fingerprint != task.fingerprint
    assert task.subset(range(199, -1, -1)).fingerprint != task.fingerprint
    other = Task.of("many", task.texts, np.roll(task.labels, 1), task.classes)
    assert other.fingerprint != task.fingerprint
    assert other.texts_fingerprint == task.texts_fingerprint == fingerprint_texts(list(task.texts))
    assert task.subset(range(199)).texts_fingerprint != task.texts_fingerprint
    one, two = (Task.of("t", texts, [0, 1], "ab") for texts in (["ab", "c"], ["a", "bc"]))
    assert one.fingerprint != two.fingerprint
    assert one.texts_fingerprint != two.texts_fingerprint


def test_fingerprints_know_every_column():
    task = several()
    rating, condition, length = task.columns
    changed = [
        (rating, condition),
        (condition, rating, length),
        (rating, condition, replace(length, name="size")),
        (rating, condition, replace(length, classes=("s", "long"))),
        (rating, condition, replace(length, values=np.roll(length.values, 1))),
    ]
    others = [replace(task, columns=columns) for columns in changed]
    assert len({task.fingerprint, *(other.fingerprint for other in others)}) == 6
    assert {other.texts_fingerprint for other in others} == {task.texts_fingerprint}


def test_subsets_and_samples_keep_every_column():
    task = several()
    expected = rows(task)
    subset, sample = task.subset([5, 3, -1]), task.sample(50, seed=2)
    assert subset.texts == ("text 5", "text 3", "text 199")
    for smaller in (subset, sample):
        assert rows(smaller) == {text: expected[text] for text in smaller.texts}
        assert [(column.name, column.classes) for column in smaller.columns] == [
            (column.name, column.classes) for column in task.columns
        ]
    assert task.sample(20, seed=2).texts == sample.texts[:20]
    for n in (0, 201, 2.0, None):
        with pytest.raises(NtpsError, match="n is"):
            task.sample(n)
    for index in (200, -201):
        with pytest.raises(NtpsError, match=rf"index {index} in a task of 200 texts"):
            task.subset([3, index, -1])


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    counts=st.lists(st.integers(1, 30), min_size=2, max_size=6),
    n_unlabelled=st.integers(0, 20),
    fraction=st.floats(0.05, 0.95),
    seed=st.integers(0, 5),
)
def test_splits_are_stratified_partitions(counts, n_unlabelled, fraction, seed):
    """By the first column; texts without a label there are divided like one more class."""
    labels = np.repeat([*range(len(counts)), -1], [*counts, n_unlabelled])
    other = LabelColumn("other", np.arange(len(labels)) % 2, ("even", "odd"))
    first = LabelColumn("first", labels, tuple(map(str, range(len(counts)))))
    task = Task(name="t", texts=[f"text {i}" for i in range(len(labels))], columns=(first, other))
    if max(counts) < 2:
        with pytest.raises(NtpsError, match="two texts"):
            task.split(fraction, seed=seed)
        return
    train, test = task.split(fraction, seed=seed)
    assert len(train) + len(test) == len(task)
    assert {**rows(train), **rows(test)} == rows(task)
    assert train.classes == test.classes == task.classes
    for number, count in [*enumerate(counts), (-1, n_unlabelled)]:
        n_test = int((test.labels == number).sum())
        assert abs(n_test - count * fraction) <= 1
        assert count < 2 or 1 <= n_test <= count - 1
    assert task.split(fraction, seed=seed)[1].texts == test.texts
    assert (train.name, train.source["part"], test.source["split_fraction"]) == ("t:train", "train", fraction)


def test_labels_of_other_columns_do_not_steer_a_split():
    task = several()
    alone = replace(task, columns=(task.columns[0], LabelColumn("other", np.zeros(200, int), ("a",))))
    assert [side.texts for side in task.split()] == [side.texts for side in alone.split()]


@pytest.mark.parametrize("fraction", [0, 1, -0.5, 2, "half", True, None])
def test_split_fractions_out_of_range(fraction):
    with pytest.raises(NtpsError, match="fraction"):
        many().split(fraction)
