"""Which labels go with which states, whatever way they are given; folds are even, seeded, and within what there is."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
import torch
from helpers.problems import make_problem, representations_of
from hypothesis import given, settings
from hypothesis import strategies as st

from ntps.errors import NtpsError
from ntps.scoring import assign_folds, labels_of
from ntps.tasks import LabelColumn, Task


@pytest.fixture(scope="module")
def representations():
    """Six given texts, of which the third has no tokens, with two label columns; the fifth lacks the second label."""
    made = representations_of(make_problem(n=5))
    columns = (
        LabelColumn("topic", np.array([0, 1, 2, 0, 1, 2]), ("a", "b", "c")),
        LabelColumn("mood", np.array([1, 0, 0, 1, -1, 1]), ("glad", "sad")),
    )
    return dataclasses.replace(
        made,
        text_index=np.array([0, 1, 3, 4, 5]),
        text_group=np.arange(5),
        lengths=np.array([2, 3, 0, 1, 2, 2]),
        task=Task(name="two", texts=("t",) * 6, columns=columns),
    )


@pytest.mark.parametrize(
    ("labels", "name", "values", "rows", "missing"),
    [
        (None, "topic", [0, 1, 0, 1, 2], [0, 1, 2, 3, 4], 0),
        ("topic", "topic", [0, 1, 0, 1, 2], [0, 1, 2, 3, 4], 0),
        ("mood", "mood", [1, 0, 1, 1], [0, 1, 2, 4], 1),
        (LabelColumn("own", np.array([-1, 0, 0, 1, 1, 0]), ("x", "y")), "own", [0, 1, 1, 0], [1, 2, 3, 4], 1),
        (["no", "yes", "yes", None, "no", "yes"], "labels", [0, 1, 0, 1], [0, 1, 3, 4], 1),
        ([3, 1, 1, 3, None, 1], "labels", [1, 0, 1, 0], [0, 1, 2, 4], 1),
        (np.array([5, 7, 7, 5, 5, 7]), "labels", [0, 1, 0, 0, 1], [0, 1, 2, 3, 4], 0),
        (torch.tensor([0, 1, 0, 1, 0, 1]), "labels", [0, 1, 1, 0, 1], [0, 1, 2, 3, 4], 0),
        (pd.Series([True, None, False, False, True, True]), "labels", [1, 0, 1, 1], [0, 2, 3, 4], 1),
        ((word for word in "abaabb"), "labels", [0, 1, 0, 1, 1], [0, 1, 2, 3, 4], 0),
    ],
)
def test_labels_of(representations, labels, name, values, rows, missing):
    found = labels_of(representations, labels)
    assert (found.name, found.values.tolist(), found.rows.tolist()) == (name, values, rows)
    assert found.n_missing == missing
    assert found.n_classes == len(found.classes)
    assert found.targets.shape == (len(values), found.n_classes)
    assert found.targets.argmax(1).tolist() == values
    assert np.array_equal(found.states(representations, 0), representations.layer(0)[rows])


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ("genre", ["genre", "topic", "mood"]),
        ([0, 1], ["2 labels", "6 texts"]),
        ([0, 1, 0, 1, 0], ["5 labels", "6 texts"]),  # one per text with tokens is not one per given text
        ([None] * 6, ["labels", "missing"]),
        ([0, 1, "a", 1, 0, 1], ["integer and string"]),
        ([0.5, 1, 1, 0, 0, 1], ["label 1", "0.5"]),
        (7, ["labels is 7"]),
        (LabelColumn("own", np.array([-1, -1, 0, -1, -1, -1]), ("x",)), ["'own'", "no text"]),
    ],
)
def test_labels_that_do_not_fit(representations, labels, words):
    with pytest.raises(NtpsError) as caught:
        labels_of(representations, labels)
    assert all(word in str(caught.value) for word in words), caught.value


def test_texts_without_a_task_need_labels(representations):
    bare = dataclasses.replace(representations, task=None)
    for labels in (None, "topic"):
        with pytest.raises(NtpsError, match="without labels"):
            labels_of(bare, labels)
    assert labels_of(bare, list("abcabc")).values.tolist() == [0, 1, 0, 1, 2]


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(st.lists(st.integers(0, 4), min_size=2, max_size=60), st.integers(2, 7), st.integers(0, 100))
def test_folds_are_even_in_size_and_in_classes(labels, folds, seed):
    labels = np.array(labels)
    largest = np.bincount(labels).max()
    if folds > largest:
        with pytest.raises(NtpsError, match=f"folds is {folds}.*{largest}"):
            assign_folds(labels, folds, seed=seed)
        return
    assigned = assign_folds(labels, folds, seed=seed)
    assert np.ptp(np.bincount(assigned, minlength=folds)) <= 1
    assert len(np.bincount(assigned)) == folds
    for label in set(labels.tolist()):
        assert np.ptp(np.bincount(assigned[labels == label], minlength=folds)) <= 1
    assert np.array_equal(assigned, assign_folds(labels, folds, seed=seed))


def test_folds_depend_on_the_seed():
    labels = np.arange(60) % 3
    assert not np.array_equal(assign_folds(labels, 5, seed=0), assign_folds(labels, 5, seed=1))


@pytest.mark.parametrize(("sizes", "folds"), [([20, 3], 5), ([3, 2], 3), ([2, 2], 2), ([1, 1], None)])
def test_automatic_folds_are_five_or_what_the_largest_class_allows(sizes, folds):
    assigned = assign_folds(np.repeat(np.arange(len(sizes)), sizes), "auto")
    assert (None if assigned is None else assigned.max() + 1) == folds


@pytest.mark.parametrize("folds", [1, -2, 11, True, 2.0, "five", None])
def test_folds_out_of_range(folds):
    with pytest.raises(NtpsError, match="folds is"):
        assign_folds(np.arange(20) % 2, folds)
    assert assign_folds(np.arange(20) % 2, 0) is None


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(1, 4)), min_size=6, max_size=40), st.integers(0, 100))
def test_equal_texts_share_a_fold_and_classes_stay_even(texts, seed):
    """`texts` holds the class of each different text, and how often it occurs."""
    order = np.random.default_rng(seed).permutation(sum(count for _, count in texts))
    labels = np.repeat([label for label, _ in texts], [count for _, count in texts])[order]
    groups = np.repeat(7 * np.arange(len(texts)) + 3, [count for _, count in texts])[order]
    largest = np.bincount([label for label, _ in texts]).max()
    if largest < 3:
        with pytest.raises(NtpsError, match=f"between 2 and {largest}.*different texts"):
            assign_folds(labels, 3, groups=groups, seed=seed)
        return
    assigned = assign_folds(labels, 3, groups=groups, seed=seed)
    for group in set(groups.tolist()):
        assert len(set(assigned[groups == group].tolist())) == 1
    assert set(assigned.tolist()) == {0, 1, 2}
    for label in set(labels.tolist()):  # as even as texts of up to four copies allow
        assert np.ptp(np.bincount(assigned[labels == label], minlength=3)) <= 4


def test_texts_that_all_differ_have_the_folds_they_have_without_groups():
    labels = np.random.default_rng(0).integers(0, 3, 50)
    plain = assign_folds(labels, 4, seed=2)
    assert np.array_equal(assign_folds(labels, 4, groups=np.arange(50), seed=2), plain)
    repeated = np.arange(50) // 2 * 2
    assert not np.array_equal(assign_folds(labels, 4, groups=repeated, seed=2), plain)


def test_the_number_of_folds_is_limited_by_different_texts():
    labels, groups = np.repeat([0, 1], [12, 2]), np.repeat([0, 1, 2, 3, 4], [6, 3, 3, 1, 1])
    assert assign_folds(labels, "auto", groups=groups).max() + 1 == 3
    assert assign_folds(labels, "auto").max() + 1 == 5
    with pytest.raises(NtpsError, match=r"folds is 4.*3, the number of different texts"):
        assign_folds(labels, 4, groups=groups)
    alone = np.repeat([0, 1], [12, 2])
    assert assign_folds(labels, "auto", groups=alone) is None
    with pytest.raises(NtpsError, match=r"folds is 4; no class has more than 1 different text"):
        assign_folds(labels, 4, groups=alone)


def test_a_repeat_with_another_label_stays_with_its_text():
    labels, groups = np.arange(40) % 2, np.arange(40) // 2  # each text has both labels
    assigned = assign_folds(labels, 4, groups=groups)
    assert np.array_equal(assigned[::2], assigned[1::2])
    assert np.bincount(assigned).tolist() == [10] * 4


def test_labelled_texts_keep_their_groups(representations):
    grouped = dataclasses.replace(representations, text_group=np.array([4, 1, 4, 2, 9]))
    assert labels_of(grouped, "mood").groups.tolist() == [4, 1, 4, 9]
