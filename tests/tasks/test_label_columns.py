"""Tasks with several label columns load from every source that can have them; a text may lack some of its labels."""

import json

import numpy as np
import pytest
from helpers.labelled import fails, hub_gives, write

from ntps.tasks import load_task

COLUMNS = ("text", "rating", "condition", "by")
ROWS = [
    ("helped at once", 10, "pain", "x"),
    ("did nothing", 2, None, "y"),
    ("slept badly", None, None, None),
    ("somewhat better", 9, "sleep", "x"),
    ("no words for it", None, "pain", "y"),
    ("as before", 9, None, None),
]
TEXTS = tuple(row[0] for row in ROWS)
NAMES = ["rating", "condition"]
RATING, CONDITION = [2, 0, -1, 1, -1, 1], [0, -1, -1, 1, 0, -1]
IN_MEMORY = {"rating": [row[1] for row in ROWS], "condition": [row[2] for row in ROWS]}


def check(task):
    """Texts, labels and classes of `ROWS`, whatever they came from."""
    assert task.texts == TEXTS
    assert [column.name for column in task.columns] == NAMES
    rating, condition = task.columns
    assert (rating.classes, rating.values.tolist()) == (("2", "9", "10"), RATING)
    assert (condition.classes, condition.values.tolist()) == (("pain", "sleep"), CONDITION)
    assert task.labels.tolist() == RATING
    assert task.source["label_column"] == NAMES
    assert json.loads(json.dumps(task.source)) == task.source
    return task


def made():
    """The rows as a `datasets.Dataset` with declared classes; -1 is a hidden label there, as on the hub."""
    import datasets

    features = datasets.Features(
        {
            "text": datasets.Value("string"),
            "rating": datasets.Value("int64"),
            "condition": datasets.ClassLabel(names=["pain", "never seen", "sleep"]),
        }
    )
    conditions = {"pain": 0, "sleep": 2, None: -1}
    columns = {
        "text": list(TEXTS),
        "rating": [row[1] for row in ROWS],
        "condition": [conditions[row[2]] for row in ROWS],
    }
    return datasets.Dataset.from_dict(columns, features=features)


@pytest.mark.parametrize("extension", [".csv", ".tsv", ".jsonl", ".ndjson", ".json", ".parquet"])
def test_files(tmp_path, extension):
    task = check(load_task(write(tmp_path / f"reviews{extension}", ROWS, COLUMNS), label_column=NAMES))
    assert task.fingerprint == load_task(texts=TEXTS, labels=IN_MEMORY).fingerprint


def test_records_without_a_key_and_fields_of_objects(tmp_path):
    path = tmp_path / "reviews.jsonl"
    records = [
        {"text": text, **{name: value for name, value in zip(NAMES, row, strict=True) if value is not None}}
        for text, *row, _ in ROWS
    ]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    check(load_task(path, label_column=NAMES))
    nested = [{"text": record.pop("text"), "about": record} for record in records]
    path.write_text("".join(json.dumps(record) + "\n" for record in nested))
    task = load_task(path, label_column=["about.rating", "about.condition"])
    assert [column.values.tolist() for column in task.columns] == [RATING, CONDITION]
    fails("line 3", "'about'", "'rating'", name_or_path=path, label_column="about.rating")
    fails("'about.nope'", name_or_path=path, label_column=["about.rating", "about.nope"])


def test_folders(tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    made().save_to_disk(str(tmp_path / "one"))
    datasets.DatasetDict(train=made(), test=made()).save_to_disk(str(tmp_path / "dict"))
    (tmp_path / "files").mkdir()
    write(tmp_path / "files" / "train.parquet", ROWS, COLUMNS)
    prints = {
        check(load_task(tmp_path / folder, label_column=NAMES)).fingerprint for folder in ("one", "dict", "files")
    }
    assert len(prints) == 1
    made().to_parquet(str(tmp_path / "declared.parquet"))
    check(load_task(tmp_path / "declared.parquet", label_column=NAMES))


def test_a_hub_data_set(monkeypatch):
    import datasets

    hub_gives(monkeypatch, lambda *_: datasets.DatasetDict(train=made()))
    check(load_task("somebody/reviews", label_column=NAMES))


@pytest.mark.parametrize("kind", ["Dataset", "DatasetDict", "DataFrame", "nullable DataFrame"])
def test_objects_in_memory(kind):
    import datasets
    import pandas as pd

    frame = pd.DataFrame(ROWS, columns=list(COLUMNS))
    loaded = {
        "Dataset": made(),
        "DatasetDict": datasets.DatasetDict(train=made()),
        "DataFrame": frame,
        "nullable DataFrame": frame.convert_dtypes(),
    }[kind]
    check(load_task(loaded, label_column=NAMES))


def test_lists_in_memory():
    task = check(load_task(texts=TEXTS, labels=IN_MEMORY, name="reviews"))
    assert task.name == "reviews"
    check(load_task(texts=TEXTS, labels={**IN_MEMORY, "title": ["x"] * 6}, label_column=NAMES))
    arrays = {"rating": np.array([10, 2, np.nan, 9, np.nan, 9]), "condition": np.array(IN_MEMORY["condition"])}
    check(load_task(texts=np.array(TEXTS), labels=arrays))
    reordered = load_task(texts=TEXTS, labels=IN_MEMORY, label_column=NAMES[::-1])
    assert reordered.labels.tolist() == CONDITION


def test_one_of_the_columns_in_memory():
    complete = {**IN_MEMORY, "by": list("xyxyxy")}
    for label_column in ("by", ["by"]):
        task = load_task(texts=TEXTS, labels=complete, label_column=label_column)
        assert [column.name for column in task.columns] == ["by"]
        assert task.classes == ("x", "y")
        assert task.source["label_column"] == label_column
    assert load_task(texts=TEXTS, labels={"by": complete["by"]}).columns[0].name == "by"
    fails("entry 3", "'rating'", "missing", texts=TEXTS, labels=complete, label_column="rating")
    fails("'nope'", "text, rating, condition", texts=TEXTS, labels=IN_MEMORY, label_column="nope")


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ({}, ["labels"]),
        ({3: [0] * 6}, ["labels", "3"]),
        ({"": [0] * 6}, ["labels", "''"]),
        ({"text": [0] * 6}, ["labels", "'text'"]),
        ({"rating": [1, 2, 3]}, ["6 texts", "3 labels", "'rating'"]),
        ({"rating": "abcdef"}, ["'rating'", "single string"]),
        ({"rating": None}, ["'rating'", "NoneType"]),
    ],
)
def test_mappings_that_are_not_label_columns(labels, words):
    fails(*words, texts=TEXTS, labels=labels)


def test_with_one_column_a_missing_label_is_refused(tmp_path):
    path = write(tmp_path / "reviews.csv", ROWS, COLUMNS)
    for label_column in ("rating", ["rating"]):
        fails("reviews.csv, line 4", "'rating'", "1 more row", name_or_path=path, label_column=label_column)


def test_columns_that_cannot_be_label_columns(tmp_path):
    path = write(tmp_path / "reviews.csv", [(*row, "same", None, 0.5) for row in ROWS], (*COLUMNS, "one", "none", "f"))
    fails("'one'", "one class ('same')", "at least two", name_or_path=path, label_column=["rating", "one"])
    fails("'none'", "all 6", name_or_path=path, label_column=["rating", "none"])
    fails("'nope'", "text, rating, condition", name_or_path=path, label_column=["rating", "nope"])
    fails("'text'", "both", name_or_path=path, label_column=["rating", "text"], text_column="text")
    halves = write(tmp_path / "halves.jsonl", [("a", 1, None), ("b", 2, 1.5)], ("text", "rating", "score"))
    fails("line 2", "'score'", "1.5", name_or_path=halves, label_column=["rating", "score"])


def test_a_text_column_is_not_looked_for_among_label_columns():
    import pandas as pd

    frame = pd.DataFrame({"text": ["a", "b"], "title": ["x", "y"], "topic": [0, 1]})
    assert load_task(frame, label_column=["title", "topic"]).source["text_column"] == "text"
    fails("ambiguous", "text or title", name_or_path=frame, label_column="topic")


def test_known_tasks_take_no_list(fake_miniworld):
    for name in ("imdb", "miniworld/topic"):
        fails(name, "label_column", "['label']", name_or_path=name, label_column=["label"])


def test_a_limit_judges_every_column(tmp_path):
    n = 60
    rating, rare = [index % 3 for index in range(n)], ["b" if index == 7 else "a" for index in range(n)]
    labels = {"rating": rating, "rare": rare}
    texts = [f"text {index}" for index in range(n)]
    task = load_task(texts=texts, labels=labels)
    assert task.column("rare").n_classes == 2
    seed = next(seed for seed in range(20) if "text 7" not in task.sample(10, seed=seed).texts)
    fails("'rare'", "one class ('a')", "limit", texts=texts, labels=labels, limit=10, seed=seed)
    sample = load_task(texts=texts, labels={"rating": rating, "other": rating[::-1]}, limit=10)
    assert [int(text.split()[1]) % 3 for text in sample.texts] == sample.labels.tolist()
    assert (sample.source["limit"], len(sample.column("other"))) == (10, 10)
