"""The page of a score: it escapes, needs nothing beside it, has stable files, and takes several label columns."""

import json
import math
import re
import threading
import time
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from helpers.pages import check_page
from helpers.problems import make_problem, representations_of
from helpers.results import EVIL, make_ranking, make_study, score_result

from ntps.errors import NtpsError
from ntps.report import page as pages
from ntps.report import write_ranking, write_report, write_study
from ntps.scoring import score

pytestmark = pytest.mark.slow
sketched = pytest.mark.usefixtures("sketches")

FILES = {"report.html", "scores.json", "scores.csv", "layers.png", "curve.png"}


def test_one_result(tmp_path):
    result = score_result(evidence=True)
    assert {path.name for path in write_report(result, tmp_path / "new" / "folder")} == FILES
    folder = tmp_path / "new" / "folder"
    assert {path.name for path in folder.iterdir()} == FILES
    assert json.loads((folder / "scores.json").read_text()) == result.to_dict()
    pd.testing.assert_frame_equal(pd.read_csv(folder / "scores.csv"), result.to_dataframe(), check_dtype=False)
    page = check_page(folder / "report.html")
    assert page.tags.count("img") == 2
    assert "1,234 texts, 3 classes, 56,789 tokens" in page.text
    assert_says(page, result)
    assert "Label columns" not in page.text


def assert_says(page, result):
    text = " ".join(page.text.split())
    for sentence in (*result.sentences(), *result.notes()):
        assert sentence.removeprefix("* ").replace(" (=)", "") in text


@sketched
def test_a_score_of_a_model(tmp_path):
    """Nothing made by hand: what is computed fits what is shown."""
    problem = make_problem(seed=2, n=60, d=10, signal=2.0)
    stacks = problem.texts, [np.sin(h) for h in problem.texts]
    representations = representations_of(problem, *stacks)
    for options in ({}, {"folds": 0}, {"permutations": 9, "intervals": True, "control": representations},
                    {"convention": "official"}, {"probes": False}):  # fmt: skip
        result = score(representations, **options)
        write_report(result, tmp_path)
        assert_says(check_page(tmp_path / "report.html"), result)


@sketched
def test_baselines_and_learning_curve_stand_beside_the_layers(tmp_path):
    result = score_result()
    write_report(result, tmp_path)
    page = (tmp_path / "report.html").read_text()
    for row in result.baselines:
        ends = f"[{row.interval[0]:.3f}, {row.interval[1]:.3f}]"
        cells = (row.name, f"{row.r2:.3f}", ends, "0.712", "0.654", "0.543")
        assert "".join(f"<td>{cell}</td>" for cell in cells) in re.sub(r"<td[^>]*>", "<td>", page)
    for n, value in zip(result.learning.n, result.learning.r2, strict=True):
        assert f"<td>{n}</td><td>{value:.3f}</td>" in page
    assert "0.568" in page and "[0.543, 0.592]" in page
    without = replace(result, learning=replace(result.learning, twice=math.nan, interval=(math.nan, math.nan)))
    write_report(without, tmp_path)
    text = check_page(tmp_path / "report.html").text
    assert "0.457" in text and "0.568" not in text and "nan" not in text
    write_report(replace(result, learning=None, baselines=()), tmp_path)
    text = check_page(tmp_path / "report.html").text
    assert "More labelled texts" not in text and "needs no model" not in text


@sketched
def test_bounds_stand_where_losses_say_something_of_other_texts(tmp_path):
    for n, there in ((160, True), (159, False)):  # 16 directions
        write_report(replace(score_result(), n_texts=n), tmp_path)
        assert ("0.1235" in check_page(tmp_path / "report.html").text) == there


@sketched
def test_labels_that_no_layer_holds_have_no_best_row(tmp_path):
    write_report([replace(score_result(), best=None), score_result(label_column="mood")], tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert '<tr class="best"' not in page[page.index('id="labels-label"') : page.index('id="labels-mood"')]
    assert '<tr class="best"' in page[page.index('id="labels-mood"') :]
    assert "No layer holds these labels" in page
    contents = re.sub(r"<td[^>]*>", "<td>", page[: page.index('id="labels-label"')])
    assert "<td>none</td>" in contents


@sketched
def test_names_are_escaped(tmp_path):
    write_report(score_result(model=EVIL, task=EVIL, label_column=EVIL), tmp_path)
    page = check_page(tmp_path / "report.html")
    assert f"{EVIL} on {EVIL}" in page.text
    assert EVIL not in (tmp_path / "report.html").read_text()


@sketched
def test_the_best_layer_is_marked_in_every_table(tmp_path):
    result = score_result(evidence=True)
    write_report(result, tmp_path)
    page = (tmp_path / "report.html").read_text()
    marked = re.findall(r'<tr class="best".*?<td>(\d+)</td><td>', page)
    # layers, bounds, and the quantities beside what they are read against
    quantities = ("ceiling_heldout", "explained_heldout", "ntps", "explained")
    assert marked == [str(result.best.layer)] * (2 + len(quantities))
    row = re.search(r'<tr class="best".*?</tr>', page)[0]
    best = result.shown
    for number in (best.ceiling_heldout, best.explained_heldout, best.retained_heldout, best.accuracy_heldout):
        assert f"<td>{number:.3f}</td>" in row
    tied = replace(result, best=replace(result.best, layer=1, tied=(0, 3)))
    write_report(tied, tmp_path)
    table = re.search(r"By layer.*?</table>", (tmp_path / "report.html").read_text(), re.DOTALL)[0]
    last = [re.findall(r">([^<>]*)</td>", row)[-1] for row in re.findall(r"<tr.*?</tr>", table)[1:]]
    assert last == ["ties", "best", "", "ties", ""]


@sketched
def test_evidence_is_shown_where_there_is_any(tmp_path):
    write_report(score_result(), tmp_path)
    assert "What to read it against" not in check_page(tmp_path / "report.html").text
    result = score_result(evidence=True)
    write_report(result, tmp_path)
    text = check_page(tmp_path / "report.html").text
    assert "What to read it against" in text and "random weights" in text and "3.21" in text
    partly = replace(result, layers=tuple(replace(scored, null=None, interval=None) for scored in result.layers))
    write_report(partly, tmp_path)
    assert "3.21" not in check_page(tmp_path / "report.html").text


@sketched
@pytest.mark.parametrize(("field", "words"), [
    ("null", "Shuffled"), ("control", "Random weights"), ("interval", "Low, high"),
])  # fmt: skip
def test_only_the_columns_that_are_there_are_explained(tmp_path, field, words):
    result = score_result(evidence=True)
    for there in (True, False):
        layers = result.layers if there else [replace(scored, **{field: None}) for scored in result.layers]
        write_report(replace(result, layers=tuple(layers)), tmp_path)
        assert (words in check_page(tmp_path / "report.html").text) == there


@sketched
def test_without_folds_nothing_is_called_held_out(tmp_path):
    write_report(score_result(held_out=False), tmp_path)
    page = (tmp_path / "report.html").read_text()
    headings = re.search(r"<thead>.*?</thead>", page, re.DOTALL)[0]
    assert "in sample" in headings and "R²" not in headings and "accuracy" not in headings
    assert '<tr class="best"' not in page and "Nothing is held out" in page


@sketched
def test_several_label_columns_on_one_page(tmp_path):
    names = ["rating", "rating!", EVIL]
    results = [score_result(task=f"reviews:{name}", label_column=name, seed=seed) for seed, name in enumerate(names)]
    written = {path.name for path in write_report(results, tmp_path)}
    slugs = {"rating", "rating-2", "script-alert-x-script"}
    assert written == {"report.html", "scores.json", "scores.csv"} | {
        f"{kind}-{slug}.png" for kind in ("layers", "curve") for slug in slugs
    }
    page = check_page(tmp_path / "report.html")
    links = [link for link in page.links if link.startswith("#")]
    assert [link.removeprefix("#") for link in links] == page.ids  # a table of contents, in order
    assert len(page.ids) == 3 and page.tags.count("img") == 6
    assert "model on reviews\n" in page.text  # the task, not one of its columns
    assert page.text.count("How to read this") == 1
    for result in results:
        assert_says(page, result)
    assert json.loads((tmp_path / "scores.json").read_text())["tasks"] == [result.to_dict() for result in results]
    frame = pd.read_csv(tmp_path / "scores.csv")
    assert frame["labels"].tolist() == [name for name in names for _ in range(5)]
    assert frame["ntps"].tolist() == [scored.ntps for result in results for scored in result.layers]


@sketched
def test_a_list_of_one_is_one_result(tmp_path):
    assert {path.name for path in write_report([score_result()], tmp_path)} == FILES


def test_what_cannot_share_a_page_is_refused(tmp_path):
    with pytest.raises(NtpsError, match="results is empty"):
        write_report([], tmp_path)
    with pytest.raises(NtpsError, match="label"):
        write_report([score_result(), score_result()], tmp_path)
    with pytest.raises(NtpsError, match="one: rating, two: mood"):
        write_report(
            [score_result(model="one", label_column="rating"), score_result(model="two", label_column="mood")], tmp_path
        )
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(NtpsError, match="file"):
        write_report(score_result(), tmp_path / "file")


@sketched
def test_shared_files_tell_neither_paths_nor_formulas(tmp_path):
    """Where files lay stays at home; a spreadsheet computes nothing from a name."""
    results = [
        replace(
            result,
            metadata=result.metadata
            | {
                "model": "/home/bob/models/tiny",
                "task": "/home/bob/my data",
                "label_column": column,
                "model_source": {"kind": "directory", "path": "/home/bob/models/tiny"},
                "task_source": {"kind": "folder", "path": "/home/bob/my data"},
            },
        )
        for column, result in (("=1+1", score_result()), ("@x", score_result(seed=1)), ("-3", score_result(seed=2)))
    ]
    for given in (results, results[0]):
        for path in write_report(given, tmp_path):
            if path.suffix != ".png":
                assert "bob" not in path.read_text(), path
    write_report(results, tmp_path)
    table = pd.read_csv(tmp_path / "scores.csv")
    assert set(table["labels"]) == {"'=1+1", "'@x", "'-3"}
    assert (table["ntps"] > 0).all()
    assert json.loads((tmp_path / "scores.json").read_text())["tasks"][0]["model"] == "tiny"


def test_any_name_stands_on_the_page(tmp_path):
    name = "half \udcff \x1b[31mred\x1b[0m $5 to $10"
    write_report(score_result(model=name, task=name, label_column=name), tmp_path)
    page = (tmp_path / "report.html").read_bytes().decode("utf-8")
    assert "\x1b" not in page and "red $5 to $10" in page


@pytest.mark.long
@pytest.mark.parametrize("kind", ["scores", "ranking", "study"])
def test_reports_of_two_runs_are_not_mixed(tmp_path, monkeypatch, kind):
    """The second comes while the first is half-way, and waits: all files are its own."""
    if kind == "scores":
        write, contents = write_report, [score_result(task=name) for name in ("one", "two")]
    elif kind == "ranking":
        write, contents = write_ranking, [make_ranking(label_column=name) for name in ("one", "two")]
    else:
        contents = [make_study(models=(name, "b"), n_tasks=3) for name in ("one", "two")]

        def write(study, folder):
            write_study(study, folder, result=study.to_dict(n_permutations=9))

    for content, folder in zip(contents, ("one", "two"), strict=True):
        write(content, tmp_path / folder)
    half_way, at_the_door = threading.Event(), threading.Event()
    write_file, hold = pages.atomic_write, pages.held_folder

    def slow(path, data):
        if threading.current_thread() is first and path.suffix == ".csv":
            half_way.set()
            assert at_the_door.wait(60)
            time.sleep(0.5)  # the other would be done by now
        return write_file(path, data)

    def seen(folder, **options):
        if threading.current_thread() is not first:
            at_the_door.set()
        return hold(folder, **options)

    monkeypatch.setattr(pages, "atomic_write", slow)
    monkeypatch.setattr(pages, "held_folder", seen)
    first = threading.Thread(target=write, args=(contents[0], tmp_path / "both"))
    first.start()
    assert half_way.wait(60)
    write(contents[1], tmp_path / "both")
    first.join()
    files = {path.name: path.read_bytes() for path in (tmp_path / "both").iterdir()}
    assert files == {path.name: path.read_bytes() for path in (tmp_path / "two").iterdir()}
    assert files != {path.name: path.read_bytes() for path in (tmp_path / "one").iterdir()}
