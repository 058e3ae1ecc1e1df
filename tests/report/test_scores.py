"""The page of a score: it escapes, needs nothing beside it, has stable files, and takes several label columns."""

import json
import re
from dataclasses import replace

import pandas as pd
import pytest
from helpers.pages import check_page
from helpers.results import EVIL, score_result

from ntps.errors import NtpsError
from ntps.report import write_report

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
    assert result.sentence().removeprefix("* ") in page.text
    assert "Label columns" not in page.text


def test_names_are_escaped(tmp_path):
    write_report(score_result(model=EVIL, task=EVIL, label_column=EVIL), tmp_path)
    page = check_page(tmp_path / "report.html")
    assert f"{EVIL} on {EVIL}" in page.text
    assert EVIL not in (tmp_path / "report.html").read_text()


def test_the_best_layer_is_marked_in_every_table(tmp_path):
    result = score_result(evidence=True)
    write_report(result, tmp_path)
    page = (tmp_path / "report.html").read_text()
    marked = re.findall(r'<tr class="best".*?<td>(\d+)</td><td>', page)
    assert (
        marked == [str(result.best.layer)] * 6
    )  # layers, bounds, and four quantities beside what they are read against
    for number in (result.best.ceiling_heldout, result.best.explained_heldout, result.best.retained):
        assert f"<td>{number:.3f}</td>" in re.search(r'<tr class="best".*?</tr>', page)[0]


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


def test_without_folds_nothing_is_called_held_out(tmp_path):
    write_report(score_result(held_out=False), tmp_path)
    page = (tmp_path / "report.html").read_text()
    headings = re.search(r"<thead>.*?</thead>", page, re.DOTALL)[0]
    assert "held out" not in headings and headings.count("<th>") == 7


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
        assert result.sentence().removeprefix("* ") in page.text
    assert json.loads((tmp_path / "scores.json").read_text()) == [result.to_dict() for result in results]
    frame = pd.read_csv(tmp_path / "scores.csv")
    assert frame["labels"].tolist() == [name for name in names for _ in range(5)]
    assert frame["ntps"].tolist() == [scored.ntps for result in results for scored in result.layers]


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
