"""Tables as people have them: separators, quotes, encodings, names of columns, what is read of them and what is not."""

import csv
import io
import json
import os

import pytest
from helpers.labelled import fails

from ntps.tasks import load_task
from ntps.tasks.tables import Columns

TEXTS = ("plain words", 'she said "no", twice', "one, two; three", "it's so")
LABELS = ("x", "y", "x", "y")
TABLE = [("text", "label"), *zip(TEXTS, LABELS, strict=True)]


def file(path, content):
    """Write bytes or text, with no line end changed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def lines(*rows):
    return "".join(f"{row}\n" for row in rows)


def read(path, **options):
    task = load_task(path, **options)
    return task.texts, tuple(task.classes[number] for number in task.labels)


# Separators, line ends, encodings


@pytest.mark.parametrize("extension", [".csv", ".tsv"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"], ids=["unix", "windows", "old mac"])
@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
def test_separators_and_line_ends_are_found(tmp_path, separator, end, extension):
    buffer = io.StringIO()
    csv.writer(buffer, delimiter=separator, lineterminator=end).writerows(TABLE)
    assert read(file(tmp_path / f"t{extension}", buffer.getvalue())) == (TEXTS, LABELS)


@pytest.mark.parametrize(
    "encoding",
    ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be"],
)
def test_encodings_are_found_with_and_without_a_mark(tmp_path, encoding):
    texts = ("Größe, 好", "naïve", "c", "d")
    table = lines("text;label", *map(";".join, zip(texts, LABELS, strict=True)))
    assert read(file(tmp_path / "t.csv", table.encode(encoding))) == (texts, LABELS)
    records = [{"text": text, "label": label} for text, label in zip(texts, LABELS, strict=True)]
    assert read(file(tmp_path / "t.json", json.dumps(records, ensure_ascii=False).encode(encoding))) == (texts, LABELS)


@pytest.mark.parametrize(
    ("content", "texts"),
    [
        ('text;label;"remarks, if any"\na, b;x;\nc;y;\n', ("a, b", "c")),
        ("text;label\nHello, you;x\nBye, now;y\n", ("Hello, you", "Bye, now")),
        ("text,label,kind|sort\na|b,x,1\nc,y,2\n", ("a|b", "c")),
        ('text\tlabel\n"one\n\ntwo"\tx\n"three\n\nfour"\ty\n', ("one\n\ntwo", "three\n\nfour")),
        ("sep=;\ntext;label\na;x\nb;y\n", ("a", "b")),
        ('"sep=,"\r\ntext,label\r\na,x\r\nb,y\r\n', ("a", "b")),
        ("SEP=~\ntext~label\na,b~x\nb~y\n", ("a,b", "b")),
        ("\n\ntext,label\n\na,x\n\nb,y\n\n", ("a", "b")),
    ],
)
def test_odd_tables_are_read(tmp_path, content, texts):
    assert read(file(tmp_path / "t.csv", content)) == (texts, ("x", "y"))


def test_a_sep_line_counts_as_a_line(tmp_path):
    fails("t.csv, line 4", name_or_path=file(tmp_path / "t.csv", "sep=;\ntext;label\na;x\nb\n"))


# Quotes


@pytest.mark.parametrize("separator", ["\t", "|"])
@pytest.mark.parametrize(
    "texts",
    [
        ('"opened here', "some", "more", 'closed there"'),  # would join four rows
        ('"never closed', "some", "more", "words"),
        ('5" of "rain"', '"no" was all', "a", '""'),
        ('"one" and', "b", '"', "d"),
    ],
)
def test_a_quote_between_tabs_or_bars_is_an_ordinary_character(tmp_path, texts, separator):
    rows = [f"{text}{separator}{label}" for text, label in zip(texts, LABELS, strict=True)]
    assert read(file(tmp_path / "t.tsv", lines(f"text{separator}label", *rows))) == (texts, LABELS)
    rows = [f"{label}{separator}{text}" for text, label in zip(texts, LABELS, strict=True)]
    assert read(file(tmp_path / "t.csv", lines(f"label{separator}text", *rows))) == (texts, LABELS)


def test_well_formed_quotes_between_tabs_are_read(tmp_path):
    content = 'id\ttext\tlabel\n0\t"""Good"", I\nsay"\tx\n1\t"a\tb"\ty\n2\tplain\tx\n'
    assert read(file(tmp_path / "t.tsv", content))[0] == ('"Good", I\nsay', "a\tb", "plain")


def test_a_stray_quote_that_joins_rows_between_commas_is_refused(tmp_path):
    rows = ["a,x", '"b,x', "c,y", "d,x", 'e",y', "f,x"]
    fails("t.csv, line 3", "4 lines", "quote", name_or_path=file(tmp_path / "t.csv", lines("text,label", *rows)))
    poem = 'text,label\n"one,\ntwo,\nthree,\nfour",x\n"a, b",y\n'  # a text of four lines, as spreadsheets write it
    assert read(file(tmp_path / "t.csv", poem))[0] == ("one,\ntwo,\nthree,\nfour", "a, b")


@pytest.mark.parametrize(
    ("content", "texts"),
    [
        ('text, label\n"a, b", "x"\n"c", "y"\n', ("a, b", "c")),
        ('text, label\n"a",  "x"\nc, "y"\n', ("a", "c")),
        ('label, text\n"x", "a, b"\n"y", "c"\n', ("a, b", "c")),
        ('label,text\nx, a\ny," ""b"" "\n', (" a", ' "b" ')),  # no quote after a blank: blanks are the text's
        ('label,text\nx," c, ""d"""\ny, e\n', (' c, "d"', " e")),
    ],
)
def test_a_blank_before_a_quote_is_no_part_of_the_field(tmp_path, content, texts):
    assert read(file(tmp_path / "t.csv", content)) == (texts, ("x", "y"))


# Names of columns


@pytest.mark.parametrize(
    "header",
    [
        "text,label,,",
        ",,text,label",
        "\ufeff\ufefftext,label",
        "text\xa0,\u200blabel",
        " te\u00adxt , label\u2060",
        '"text","\ufefflabel"',
    ],
)
def test_names_are_what_is_seen_of_them_and_columns_without_one_are_none(tmp_path, header):
    before, after = len(header) - len(header.lstrip(",")), len(header) - len(header.rstrip(","))
    rows = [f"{',' * before}{text},{label}{',' * after}" for text, label in (("a", "x"), ("b", "y"))]
    path = file(tmp_path / "t.csv", lines(header, *rows))
    assert read(path) == (("a", "b"), ("x", "y"))
    assert read(path, text_column=" text\u200b", label_column="label") == (("a", "b"), ("x", "y"))


@pytest.mark.parametrize("extension", [".csv", ".jsonl", ".parquet"])
def test_two_columns_of_one_name_are_refused_when_it_is_wanted(tmp_path, extension):
    path = tmp_path / f"t{extension}"
    if extension == ".csv":
        file(path, "note,text,label,note\n1,a,x,2\n3,b,y,4\n")
    elif extension == ".jsonl":
        file(path, lines(*(f'{{"note": 1, "note ": 2, "text": "{a}", "label": "{b}"}}' for a, b in ("ax", "by"))))
    else:
        import pyarrow
        import pyarrow.parquet

        arrays = [pyarrow.array(values) for values in ([1, 3], ["a", "b"], ["x", "y"], [2, 4])]
        pyarrow.parquet.write_table(pyarrow.Table.from_arrays(arrays, ["note", "text", "label", "note"]), path)
    assert read(path) == (("a", "b"), ("x", "y"))
    fails(path.name, "two columns", "'note'", name_or_path=path, label_column="note")
    fails(path.name, "two columns", "'note'", name_or_path=path, text_column="note")


def test_a_wide_header_costs_no_more_than_its_width():
    """The check for doubled names was quadratic: minutes for this many."""
    columns = Columns((f"column {number}" for number in range(200_000)), lambda place: [place])
    assert columns["column 199999"] == [199_999]


def test_a_message_lists_few_names_and_short_ones(tmp_path):
    header = ",".join(f"{'long ' * 30}{number}" for number in range(100))
    message = fails("and 80 more", name_or_path=file(tmp_path / "t.csv", lines(header, "," * 99)))
    assert len(message) < 2000


# Without a header


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_a_table_without_header_says_so_and_is_read(tmp_path, separator):
    rows = [f"{text}{separator}{label}" for text, label in (("a b", "x"), ("c d", "y"), ("e f", "x"))]
    path = file(tmp_path / "t.csv", lines(*rows))
    fails("t.csv", "no text column", "a b, x", "first line must name", "header=False", name_or_path=path)
    fails("no text column", "1, 2", "text_column", name_or_path=path, header=False)
    texts, labels = read(path, header=False, text_column="1", label_column="2")
    assert (texts, labels) == (("a b", "c d", "e f"), ("x", "y", "x"))
    fails("line 4", name_or_path=file(path, lines(*rows, "g")), header=False, text_column="1", label_column="2")


def test_a_header_is_not_doubted_when_one_of_its_names_is_known(tmp_path):
    message = fails("no label column", name_or_path=file(tmp_path / "t.csv", "text,stars\na,1\nb,2\n"))
    assert "first line" not in message


def test_what_has_no_header_takes_no_header_option(tmp_path):
    records = file(tmp_path / "t.jsonl", '{"text": "a", "label": 1}\n')
    for options in ({"name_or_path": records}, {"name_or_path": "imdb"}, {"texts": ["a", "b"], "labels": [0, 1]}):
        fails("header=False", "no meaning", header=False, **options)


# Lines that are no rows


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("# exported\ntext,label\na,x\n", ["line 1", "'# exported'", "line 2 has 2", "first line must name"]),
        ("Results of May\n\ntext,label\na,x\n", ["line 1", "'Results of May'", "line 3 has 2"]),
        ("text,label\na,x\n# a note\nb,y\n", ["line 3", "'# a note'", "comment"]),
        ("text,label\na,x\nb\x00,y\n", ["line 3", "NUL"]),
        ("text,label\na,x\nb, c,y\n", ["line 3", "3 fields where line 1 has 2", "comma", "quotes"]),
        ("text;label\na;x\nb;c;y\n", ["line 3", "semicolon"]),
        ("text\tlabel\na\tx\nb\tc\ty\n", ["line 3", "tab"]),
    ],
)
def test_a_line_that_is_no_row_is_named(tmp_path, content, words):
    fails("t.csv", *words, name_or_path=file(tmp_path / "t.csv", content))


# JSON


@pytest.mark.parametrize("extension", [".jsonl", ".json"])
def test_what_json_can_spell_is_read_or_refused_in_a_sentence(tmp_path, extension):
    def path(first):
        records = [f'{{"text": "a", {first}}}', '{"text": "b", "label": "y"}', '{"text": "c", "label": "x"}']
        content = "\n".join(records) if extension == ".jsonl" else f"[{','.join(records)}]"
        return file(tmp_path / f"t{extension}", content)

    digits = "9" * 5000
    assert load_task(path(f'"label": "x", "id": {digits}')).n_classes == 2
    assert load_task(path(f'"label": {digits}')).n_classes == 3
    for depth, words in ((500, ["not a class"]), (50_000, ["not valid JSON", "deep"])):
        for opening, closing in (("[", "]"), ('{"a":', "}")):
            nested = opening * depth + "1" + closing * depth
            assert len(fails(f"t{extension}", *words, name_or_path=path(f'"label": {nested}'))) < 400


def test_marks_and_line_ends_between_json_lines(tmp_path):
    path = file(
        tmp_path / "t.jsonl", '\ufeff\ufeff{"text": "a", "label": 1}\r\ufeff{"text": "b", "label": 2}\r\n\ufeff'
    )
    assert load_task(path).texts == ("a", "b")


# What is read, and what is not


def damaged_parquet(path):
    """Rows 2 and 4 of `text` are not UTF-8; neither is the unused column `note`."""
    import pyarrow
    import pyarrow.parquet

    def strings(values):
        binary = pyarrow.array(values, pyarrow.binary())
        return pyarrow.Array.from_buffers(pyarrow.string(), len(values), binary.buffers())

    columns = {
        "bad": strings([b"a", b"caf\xe9", b"c", b"\xff"]),
        "note": strings([b"\xff"] * 4),
        "text": pyarrow.array(list("abcd")),
        "label": pyarrow.array(list("xyxy")),
    }
    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    return path


def test_a_string_that_is_not_utf8_names_its_row_if_its_column_is_wanted(tmp_path):
    path = damaged_parquet(tmp_path / "t.parquet")
    assert read(path)[0] == tuple("abcd")
    fails("t.parquet, row 2", "'bad'", "UTF-8", "0xe9", name_or_path=path, text_column="bad")


def test_only_wanted_columns_are_read(tmp_path, monkeypatch):
    import datasets
    import pyarrow.parquet

    seen = []
    read_columns = pyarrow.parquet.ParquetFile.read
    monkeypatch.setattr(
        pyarrow.parquet.ParquetFile, "read", lambda self, columns: seen.extend(columns) or read_columns(self, columns)
    )
    load_task(damaged_parquet(tmp_path / "t.parquet"))
    assert sorted(seen) == ["label", "text"]
    chosen, select = [], datasets.Dataset.select_columns
    monkeypatch.setattr(
        datasets.Dataset, "select_columns", lambda self, names: chosen.extend(names) or select(self, names)
    )
    made = datasets.Dataset.from_dict({"text": list("ab"), "label": [0, 1], "embedding": [[0.5] * 3] * 2})
    load_task(datasets.DatasetDict(train=made), split="train[:2]")
    assert sorted(chosen) == ["label", "text"]


@pytest.mark.parametrize(
    "content",
    [
        "text,label\nnull,01\nNA,1\nNone,007\nnan,7\n",
        "text;label\na;x\nb, c;y\n",
        '\ufefftext\tlabel\n"a\tx\nb\ty\n',
    ],
)
def test_a_folder_is_read_as_its_file_is(tmp_path, content):
    path = file(tmp_path / "folder" / "train.csv", content)
    assert load_task(tmp_path / "folder").fingerprint == load_task(path).fingerprint


def test_a_folder_s_file_that_changes_under_its_time_stamp_is_read_anew(tmp_path):
    path = file(tmp_path / "folder" / "train.csv", "text,label\na,x\nb,y\n")
    assert read(path.parent)[1] == ("x", "y")
    before = path.stat()
    file(path, "text,label\na,y\nb,x\n")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert read(path.parent)[1] == ("y", "x")


def test_files_of_a_split_are_joined_by_name_of_column(tmp_path):
    file(tmp_path / "f" / "a.csv", "text,label\na,x\nb,y\n")
    file(tmp_path / "f" / "b.tsv", "label\ttext\nz\td\n")
    with_tsv = file(tmp_path / "f" / "c.csv", "id,label,text\n1,x,e\n2,,f\n")
    fails("c.csv, line 3", "label", "missing", name_or_path=tmp_path / "f")
    file(with_tsv, "id,label,text\n1,x,e\n")
    texts, labels = read(tmp_path / "f")
    assert (texts, labels) in (
        (("a", "b", "d", "e"), ("x", "y", "z", "x")),
        (("a", "b", "e"), ("x", "y", "x")),  # older versions of datasets take files of one extension
    )
    file(with_tsv, "id,kind,text\n1,x,e\n")
    fails("c.csv", "no column 'label'", "id, kind, text", name_or_path=tmp_path / "f")


def test_a_cloned_data_set_keeps_its_splits_and_declared_classes(tmp_path):
    names = "        names:\n          '0': neg\n          '1': pos\n"
    features = (
        f"  features:\n  - name: text\n    dtype: string\n  - name: label\n    dtype:\n      class_label:\n{names}"
    )
    file(tmp_path / "README.md", f"---\ndataset_info:\n{features}---\nText.\n")
    file(tmp_path / "data" / "train.csv", "text,label\na,0\nb,1\nc,0\n")
    file(tmp_path / "data" / "test.csv", "text,label\nd,1\ne,-1\n")
    assert load_task(tmp_path).classes == ("neg", "pos")
    assert load_task(tmp_path, split="train[1:]").texts == ("b", "c")
    fails("test.csv, line 3", "missing", name_or_path=tmp_path, split="test")
    fails("'dev'", "train, test", name_or_path=tmp_path, split="dev")
    fails("no rows", name_or_path=tmp_path, split="train[3:]")


def test_a_cloned_data_set_that_names_its_columns_elsewhere(tmp_path):
    card = "---\nconfigs:\n- config_name: default\n  data_files: {}\n  {}\n---\nText.\n"
    table = file(tmp_path / "train.csv", "text,label\na,x\nb,y\n")
    file(tmp_path / "README.md", card.format("train.csv", "header: null\n  names: [text, label]"))
    fails("README.md sets header and names", "name one of its files", name_or_path=tmp_path)
    assert read(tmp_path, header=False, text_column="1", label_column="2")[0] == ("text", "a", "b")
    file(tmp_path / "README.md", card.format("train.csv", "encoding: latin-1"))
    fails("README.md sets encoding", name_or_path=tmp_path)
    file(table, "text\tlabel\na, b\tx\nb\ty\n")
    file(tmp_path / "README.md", card.format("train.csv", 'sep: "\\t"'))
    assert read(tmp_path) == (("a, b", "b"), ("x", "y"))


def test_a_folder_of_tables_without_header(tmp_path):
    file(tmp_path / "train.csv", "a,x\nb,y\n")
    assert read(tmp_path, header=False, text_column="1", label_column="2") == (("a", "b"), ("x", "y"))


# Objects in memory


def test_frames_with_doubled_or_numbered_columns():
    import pandas as pd

    rows = [["a", "b", 0], ["c", "d", 1]]
    fails("two columns", "'text'", name_or_path=pd.DataFrame(rows, columns=["text", "text", "label"]))
    assert load_task(pd.DataFrame(rows, columns=["note", "text", "label"])).texts == ("b", "d")
    assert load_task(pd.DataFrame(rows), text_column="1", label_column="2").texts == ("b", "d")
    fails("text_column", "1", name_or_path=pd.DataFrame(rows), text_column=1)


@pytest.mark.parametrize("kind", ["torch", "numpy", "pandas", "transform"])
def test_formatted_data_sets_are_read_as_plain_ones(kind):
    import datasets

    made = datasets.Dataset.from_dict({"text": list("abc"), "label": [0, 1, 0], "hot": [[0, 1], [1, 0], [0, 1]]})
    formatted = made.with_transform(lambda batch: {"nothing": 1 / 0}) if kind == "transform" else made.with_format(kind)
    assert load_task(formatted).fingerprint == load_task(made).fingerprint
    fails("row 1", "[0, 1]", "one-hot", name_or_path=formatted, label_column="hot")


def test_what_has_no_order_or_has_names_is_no_list():
    import pandas as pd

    for values in (pd.DataFrame({"a": [0, 1]}), {0, 1}, b"ab", 3):
        fails("labels", "list", texts=["a", "b"], labels=values)
    for values in (pd.DataFrame({"a": ["x", "y"]}), {"a": 0, "b": 1}, {"a", "b"}):
        fails("texts", "list", texts=values, labels=[0, 1])
