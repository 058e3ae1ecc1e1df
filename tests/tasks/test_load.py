"""Tasks with one label column load from every source; everything else is refused with a clear sentence."""

import json
import subprocess
import sys
import time

import numpy as np
import pytest
from helpers.labelled import ROWS, fails, hub_gives, save, write

import ntps
from ntps import _hub
from ntps.tasks import list_tasks, load_task, presets
from ntps.tasks.load import paper_rows

# Sources


@pytest.mark.parametrize("extension", [".csv", ".tsv", ".jsonl", ".ndjson", ".json", ".parquet"])
def test_every_file_format_gives_the_same_task(tmp_path, extension):
    task = load_task(write(tmp_path / f"reviews{extension}"))
    assert task.texts == tuple(text for text, _ in ROWS)
    assert task.classes == ("neg", "pos")
    assert task.labels.tolist() == [1, 0, 1, 0]
    assert task.name == "reviews"
    assert task.fingerprint == load_task(texts=[row[0] for row in ROWS], labels=[row[1] for row in ROWS]).fingerprint
    assert json.loads(json.dumps(task.source)) == task.source


@pytest.mark.parametrize("splits", [None, ("train",), ("validation",), ("train", "test")])
def test_save_to_disk_folders(tmp_path, splits):
    task = load_task(save(tmp_path / "saved", splits=splits))
    assert task.classes == ("neg", "pos")
    assert len(task) == 4


def test_a_folder_of_data_files_reads_as_on_the_hub(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "cloned"
    folder.mkdir()
    write(folder / "train.csv")
    write(folder / "test.csv", ROWS[:2])
    assert len(load_task(folder)) == 4
    assert len(load_task(folder, split="test")) == 2


def test_datasets_and_frames_in_memory():
    import datasets
    import pandas as pd

    columns = {"sentence": [row[0] for row in ROWS], "sentiment": [row[1] for row in ROWS]}
    made = datasets.Dataset.from_dict(columns)
    prints = {
        load_task(source).fingerprint for source in (made, datasets.DatasetDict(train=made), pd.DataFrame(columns))
    }
    assert len(prints) == 1
    fails("DataFrame, row 2", "missing", name_or_path=pd.DataFrame({"text": ["a", None], "label": [0, 1]}))


def test_the_paper_s_data_sets_load_by_short_name(monkeypatch):
    import datasets

    asked = []

    def stand_in(name, config, revision):
        asked.append((name, config, revision))
        preset = next(preset for preset in presets.TASKS.values() if preset.hub == name)
        columns = {
            "question": ["why", "how"], "choices": [{"label": ["A", "B"], "text": ["so", "thus"]}] * 2,
            "question_1": ["one", "two"], "question_2": ["three", "four"],
        }  # fmt: skip
        for column in preset.text_column.split(","):
            if "." not in column:
                columns.setdefault(column, ["the film", "a story"])
        columns[preset.label_column] = ["B", "A"] if name == "tau/commonsense_qa" else [1, 0]
        return datasets.DatasetDict({split: datasets.Dataset.from_dict(columns) for split in preset.splits})

    hub_gives(monkeypatch, stand_in)
    assert len(presets.TASKS) == 12
    for short, preset in presets.TASKS.items():
        task = load_task(short)
        assert asked[-1] == (preset.hub, preset.config, preset.revision)
        assert (task.name, len(task), task.n_classes, task.source["path"]) == (short, 2, 2, preset.hub)
        assert task.labels.tolist() == [1, 0]
        assert bool(task.source["notes"]) == bool(preset.note)
        for hidden in preset.hidden:
            fails("hidden", hidden, "validation", name_or_path=short, split=hidden)
    assert load_task("commonsense_qa").texts == ("why (0) so (1) thus", "how (0) so (1) thus")
    assert load_task("medical_questions_pairs").texts == ("one three", "two four")


@pytest.mark.parametrize("short", list(presets.TASKS))
def test_the_paper_s_splits(monkeypatch, short):
    """Its own test split where there is one; else 30 % of the rows, shuffled by `datasets` with seed 42."""
    import datasets

    preset = presets.TASKS[short]

    def rows(split):
        texts = [f"{split} {row}" for row in range(40)]
        columns = dict.fromkeys(("question", "question_1", *preset.text_column.split(",")), texts)
        columns |= {"choices": [{"text": [""]}] * 40, "question_2": [""] * 40, preset.label_column: [0, 1] * 20}
        columns.pop("choices.text", None)
        return datasets.Dataset.from_dict(columns)

    whole = datasets.DatasetDict({split: rows(split) for split in ("train", "validation", "test")})
    hub_gives(monkeypatch, lambda *_: whole)
    parts = [
        [" ".join(text.split()[:2]) for text in load_task(short, split=f"paper-{part}").texts]
        for part in ("train", "test")
    ]
    if preset.test is None:
        cut = whole["train"].train_test_split(test_size=0.3, seed=42)
        column = preset.text_column.split(",")[0]
        assert parts == [list(cut["train"][column]), list(cut["test"][column])]
        assert [len(part) for part in parts] == [28, 12]
    else:
        expected = [whole[split][preset.text_column.split(",")[0]] for split in ("train", preset.test)]
        assert parts == [list(texts) for texts in expected]
    assert load_task(short, split="paper-test").source["split"] == "paper-test"


def test_paper_rows_have_the_sizes_of_the_published_figures():
    assert [len(paper_rows(3048, part)) for part in ("train", "test")] == [2133, 915]
    assert [len(paper_rows(5574, part)) for part in ("train", "test")] == [3901, 1673]
    assert sorted(paper_rows(10, "train") + paper_rows(10, "test")) == list(range(10))


def test_a_preset_s_renamed_column_is_found_by_convention(monkeypatch):
    import datasets

    made = datasets.Dataset.from_dict({"sentence": ["a", "b"], "sentiment": [0, 1]})
    hub_gives(monkeypatch, lambda *_: datasets.DatasetDict(train=made))
    assert load_task("imdb").source["text_column"] == "sentence"


def test_bundled_tasks_go_through_their_maker(fake_miniworld):
    task = load_task("miniworld/topic", n=30, seed=3, strength=2.0)
    assert (len(task), task.classes, task.source["knobs"]) == (30, ("a", "b"), {"strength": 2.0})
    fails("nothing", name_or_path="miniworld/nothing")
    fails("text_column", name_or_path="miniworld/topic", text_column="text")
    fails("strength", texts=["a", "b"], labels=[0, 1], strength=2.0)
    fails("'n'", texts=["a", "b"], labels=[0, 1], n=2)
    names = [row["name"] for row in list_tasks()]
    assert names == ["miniworld/topic", *presets.TASKS]


# Columns


@pytest.mark.parametrize(
    "columns", [("Sentence", "Class"), ("content", "category"), ("sms", "is_spam"), ("tweet", "y")]
)
def test_columns_are_found_by_convention(tmp_path, columns):
    assert load_task(write(tmp_path / "t.csv", columns=columns)).source["text_column"] == columns[0]


def test_missing_and_ambiguous_columns_list_what_there_is(tmp_path):
    plain = write(tmp_path / "t.csv", columns=("words", "label"))
    fails("t.csv", "no text column", "words, label", "text_column", name_or_path=plain)
    fails("no text column 'nope'", "words, label", name_or_path=plain, text_column="nope")
    fails("'words' cannot be both", name_or_path=plain, text_column="words", label_column="words")
    assert load_task(plain, text_column="words").n_classes == 2
    both = write(tmp_path / "b.csv", [(*row, "x") for row in ROWS], columns=("text", "label", "sentence"))
    fails("b.csv", "ambiguous", "text or sentence", "text_column", name_or_path=both)
    assert len(load_task(both, text_column="sentence")) == 4
    labels = write(tmp_path / "l.csv", [(*row, "x") for row in ROWS], columns=("text", "label", "target"))
    fails("l.csv", "ambiguous", "label or target", "label_column", name_or_path=labels)
    none = write(tmp_path / "n.csv", columns=("text", "points"))
    fails("n.csv", "no label column", "text, points", name_or_path=none)
    fails("no label column 'nope'", name_or_path=none, label_column="nope")


def test_pairs_are_joined_and_fields_looked_into(tmp_path):
    pairs = write(tmp_path / "p.csv", [("a b", "c", 0), ("d", "e f", 1)], columns=("question1", "question2", "label"))
    assert load_task(pairs, text_column="question1, question2").texts == ("a b c", "d e f")
    assert load_task(pairs, text_column="question2").texts == ("c", "e f")
    odd = write(tmp_path / "o.csv", [("x", 0), ("y", 1)], columns=("one,two", "label"))
    assert load_task(odd, text_column="one,two").texts == ("x", "y")
    nested = tmp_path / "n.jsonl"
    nested.write_text('{"q": {"s": "why"}, "label": 0}\n{"q": {"s": "how"}, "label": 1}\n')
    assert load_task(nested, text_column="q.s").texts == ("why", "how")
    fails("n.jsonl, line 1", "'q'", name_or_path=nested, text_column="q.z")


# Labels


@pytest.mark.parametrize(
    ("labels", "classes", "indices"),
    [
        ([10, 9, 2, 10], ("2", "9", "10"), [2, 1, 0, 2]),
        ([-1, 1, -1, 0], ("-1", "0", "1"), [0, 2, 0, 1]),
        ([1.0, 0.0, 2.0, 1.0], ("0", "1", "2"), [1, 0, 2, 1]),
        (["10", "9", "2", "9"], ("2", "9", "10"), [2, 1, 0, 1]),
        (["b", " a", "b ", "c"], ("a", "b", "c"), [1, 0, 1, 2]),
        ([True, False, False, True], ("false", "true"), [1, 0, 0, 1]),
        (np.array([3, 1, 3, 1]), ("1", "3"), [1, 0, 1, 0]),
        (np.array(["x", "y", "x", "y"]), ("x", "y"), [0, 1, 0, 1]),
    ],
)
def test_labels_of_every_kind_have_a_stable_order(labels, classes, indices):
    texts = ["a", "b", "c", "d"]
    task = load_task(texts=texts, labels=labels)
    assert task.classes == classes
    assert task.labels.tolist() == indices
    assert task.labels.dtype == np.int64
    assert load_task(texts=texts[::-1], labels=list(labels)[::-1]).classes == classes


def test_declared_class_names_keep_their_order(tmp_path):
    numbered = [(text, int(label == "pos")) for text, label in ROWS]
    names = ("zero", "a one", "never seen")
    assert load_task(save(tmp_path / "d", numbered, names)).classes == ("zero", "a one")
    import datasets

    datasets.load_from_disk(str(tmp_path / "d"))["train"].to_parquet(str(tmp_path / "d.parquet"))
    assert load_task(tmp_path / "d.parquet").classes == ("zero", "a one")


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ([0, None, 1, None], ["entry 2", "missing", "1 more row"]),
        ([0.0, float("nan"), 1.0, 0.0], ["entry 2", "missing"]),
        (["a", "", "b", "a"], ["entry 2", "missing"]),
        ([None] * 4, ["all 4", "labelled texts are needed"]),
        ([-1] * 4, ["hidden", "-1"]),
        ([0.5, 1.0, 0.0, 1.0], ["entry 1", "0.5", "not a class", "integers, strings or booleans"]),
        ([0, "a", 1, "b"], ["mixes integer and string"]),
        ([True, 1, False, 0], ["mixes boolean and integer"]),
        ([[0], [1], [0], [1]], ["entry 1", "[0]", "not a class"]),
        ([7, 7, 7, 7], ["one class", "'7'", "at least two"]),
    ],
)
def test_labels_that_name_no_classes(labels, words):
    fails(*words, texts=["a", "b", "c", "d"], labels=labels)


def test_hidden_labels_say_which_split_to_use(tmp_path):
    import datasets

    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["a", "b"])})
    known = datasets.Dataset.from_dict({"text": ["x", "y"], "label": [0, 1]}, features=features)
    hidden = datasets.Dataset.from_dict({"text": ["x", "y"], "label": [-1, -1]}, features=features)
    some = datasets.Dataset.from_dict({"text": ["x", "y"], "label": [-1, 1]}, features=features)
    data = datasets.DatasetDict(train=known, validation=known, test=hidden, some=some)
    fails("'test'", "hidden", "'train' or 'validation'", name_or_path=data, split="test")
    fails("split some, row 1", "missing", name_or_path=data, split="some")
    fails("'nope'", "train, validation, test, some", name_or_path=data, split="nope")


# Bad input


def test_null_texts_and_blank_texts(tmp_path):
    path = tmp_path / "t.jsonl"
    path.write_text('{"text": "a", "label": 0}\n\n{"text": null, "label": 1}\n{"label": 1}\n')
    fails("t.jsonl, line 3", "'text'", "1 more row", name_or_path=path)
    path.write_text('{"text": 5, "label": 0}\n{"text": "b", "label": 1}\n')
    fails("t.jsonl, line 1", "holds 5", name_or_path=path)
    assert load_task(texts=["", "a", " "], labels=[0, 1, 0]).texts == ("", "a", " ")
    fails("all 2 texts are blank", texts=["", " \n"], labels=[0, 1])


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("e.csv", b"", ["is empty"]),
        ("e.jsonl", b"\n \n", ["is empty"]),
        ("e.parquet", b"", ["is empty"]),
        ("h.csv", b"text,label\n", ["no rows"]),
        ("h.json", b"[]", ["no rows"]),
        ("b.csv", b"\x00\x01\xff\xfe" * 20, ["binary"]),
        ("b.jsonl", b"PK\x03\x04\x00\x00\x00\x00\xff", ["binary"]),
        ("z.csv", b"text,label\na\x00b,1\n", ["binary"]),
        ("l.csv", b"text,label\ncaf\xe9,1\n", ["line 2", "UTF-8", "0xe9"]),
        ("b.parquet", b"no parquet at all", ["Parquet"]),
        ("j.jsonl", b'{"text": "a", "label": 0}\n{"text": "b", \n', ["line 2", "not valid JSON"]),
        ("a.jsonl", b"[1, 2]\n", ["line 1", "list", "object"]),
        ("j.json", b'[{"text": "a"},\n{"text": ]', ["line 2", "not valid JSON"]),
        ("o.json", b'{"text": ["a"]}', ["object", "list of objects"]),
        ("i.json", b'[{"text": "a"}, 3]', ["item 2", "number"]),
        ("d.json", b"[" * 100_000, ["not valid JSON"]),
        ("f.csv", b"text,label\na,b,c\n", ["line 2", "3 fields", "line 1 has 2", "comma"]),
        ("m.csv", b'text,label\n"two\nlines",a\nx\n', ["line 4", "1 field"]),
        ("q.csv", b'text,label\n"open,a\n', ["line 2", "not valid CSV"]),
        ("t.csv", b"text,text,label\na,b,c\n", ["two columns", "'text'"]),
        ("n.csv", b"text,label\na,0\nb,\nc,1\n", ["line 3", "label", "missing"]),
        ("u.xlsx", b"anything", ["unknown kind", ".csv", ".parquet"]),
    ],
)
def test_damaged_files_name_file_and_line(tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content)
    fails(name, *words, name_or_path=tmp_path / name)


def test_what_is_not_there(tmp_path):
    fails("nope.csv", "file not found", name_or_path=tmp_path / "nope.csv")
    fails("nope.csv", "file not found", name_or_path="nope.csv")
    fails("./nope", "file not found", name_or_path="./nope")
    fails("a/b/c", "file not found", name_or_path="a/b/c")
    fails("file not found", "not a valid name", name_or_path="what is this?")
    (tmp_path / "bare").mkdir()
    fails("bare", "folder without data", name_or_path=tmp_path / "bare")
    (tmp_path / "bare" / "state.json").write_text("{")
    fails("bare", "does not load", name_or_path=tmp_path / "bare")


def test_calls_that_make_no_sense(tmp_path):
    path = write(tmp_path / "t.csv")
    fails("either name_or_path or texts")
    fails("either name_or_path or texts", name_or_path=path, texts=["a"], labels=[0])
    fails("without labels", texts=["a", "b"])
    fails("2 texts", "3 labels", texts=["a", "b"], labels=[0, 1, 1])
    fails("single string", texts="ab", labels=[0, 1])
    fails("empty", texts=[], labels=[])
    fails("cannot be made from 'int'", name_or_path=3)
    fails("split='train'", "no meaning", name_or_path=path, split="train")
    fails("label_column", name_or_path=path, labels=[0, 1])
    for label_column in (3, [], [""], ["label", 3], {"label"}, ["label", "label"]):
        fails("label_column", name_or_path=path, label_column=label_column)
    for limit in (0, -3, 2.5, True, "ten"):
        fails("limit", repr(limit), name_or_path=path, limit=limit)
    fails("seed", name_or_path=path, seed="x")
    fails("one class", "limit", name_or_path=path, limit=1)


def test_an_unknown_hub_name_without_network_fails_at_once(monkeypatch):
    monkeypatch.setattr(_hub, "reachable", lambda: False)
    start = time.perf_counter()
    fails("'nobody/nothing-here'", "cache", "local file", name_or_path="nobody/nothing-here")
    assert time.perf_counter() - start < 3
    fails("Did you mean 'rotten_tomatoes'?", name_or_path="rotten_tomatos")
    fails("stanfordnlp/imdb", "cache", name_or_path="imdb")


def test_an_endpoint_that_refuses_is_found_out_quickly(monkeypatch):
    monkeypatch.setattr(_hub, "offline_requested", lambda: False)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    start = time.perf_counter()
    assert not _hub.reachable()
    assert time.perf_counter() - start < 3


def test_the_hub_s_own_words_reach_the_reader(monkeypatch):
    def broken(*_):
        raise RuntimeError("Dataset scripts are no longer supported, but found x.py")

    hub_gives(monkeypatch, broken)
    fails("'nobody/script'", "refs/convert/parquet", name_or_path="nobody/script")


# Reading details


def test_delimited_files_are_taken_as_they_are(tmp_path):
    path = tmp_path / "t.csv"
    path.write_bytes('\ufefftext;label\r\n"one\r\ntwo; ""three""";NA\r\nNone;x\r\n'.encode())
    task = load_task(path)
    assert task.texts == ('one\r\ntwo; "three"', "None")
    assert task.classes == ("NA", "x")
    long = tmp_path / "long.csv"
    long.write_text("text,label\n" + "word " * 100_000 + ",0\nb,1\n")
    assert len(load_task(long).texts[0]) == 500_000


def test_json_lines_under_the_name_json(tmp_path):
    path = tmp_path / "t.json"
    path.write_text('{"text": "a\u2028b", "label": 0}\n{"text": "b", "label": 1}\n')
    assert load_task(path).texts == ("a\u2028b", "b")


def test_half_characters_are_replaced_and_noted(tmp_path):
    path = tmp_path / "t.jsonl"
    path.write_text('{"text": "a\\ud83d", "label": 0}\n{"text": "\\ud83d\\ude00", "label": 1}\n')
    task = load_task(path)
    assert task.texts == ("a\ufffd", "\U0001f600")
    assert "1 text " in task.source["notes"][0]


def test_split_slices():
    import datasets

    made = datasets.Dataset.from_dict({"text": list("abcdefghij"), "label": [0, 1] * 5})
    data = datasets.DatasetDict(train=made)
    assert load_task(data, split="train[2:4]").texts == ("c", "d")
    assert load_task(data, split="train[:50%]").texts == tuple("abcde")
    fails("slice", name_or_path=data, split="train[x]")


@pytest.mark.parametrize("bounds", ["20:80%", "20%:80", "-30%:", ":-3", "2:50%", "33%:66%"])
def test_split_slices_are_read_as_datasets_reads_them(bounds):
    """One percent sign stands for both ends there, too."""
    import datasets

    rows = datasets.Dataset.from_dict({"text": [f"text {i}" for i in range(200)], "label": [0, 1] * 100})
    read = datasets.ReadInstruction.from_spec(f"train[{bounds}]").to_absolute({"train": 200})[0]
    assert load_task(datasets.DatasetDict(train=rows), split=f"train[{bounds}]").texts == tuple(
        f"text {i}" for i in range(200)[read.from_ : read.to]
    )


def test_a_limit_takes_a_seeded_sample(tmp_path):
    rng = np.random.default_rng(0)
    rows = [(f"text {index}", int(label)) for index, label in enumerate(rng.integers(0, 3, 200))]
    path = write(tmp_path / "t.jsonl", rows)
    task, small, large = load_task(path), load_task(path, limit=20), load_task(path, limit=50)
    assert large.texts[:20] == small.texts == task.sample(20).texts
    assert (small.source["limit"], small.source["seed"]) == (20, 0)
    assert load_task(path, limit=20, seed=1).texts != small.texts
    assert load_task(path, limit=500).texts == task.texts
    assert len(set(large.texts)) == 50


def test_importing_tasks_loads_no_heavy_package():
    """The room alone: a bare package stands in for ntps, whose own exports are not at stake here."""
    code = f"""
import sys, types
ntps = types.ModuleType("ntps")
ntps.__path__ = {list(ntps.__path__)!r}
sys.modules["ntps"] = ntps
from ntps.tasks import LabelColumn, Task, list_tasks, load_task
load_task(texts=["a", "b"], labels=[0, 1])
print(sorted({{"torch", "transformers", "datasets", "pandas", "pyarrow", "sklearn"}} & set(sys.modules)))
"""
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert finished.stdout.strip() == "[]"
