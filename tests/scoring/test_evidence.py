"""What a score is read against stands in table, JSON, pictures and page; what does not belong to it is refused."""

import json
from dataclasses import replace

import pytest

import ntps
from ntps import NtpsError
from ntps.models.passes import collect
from ntps.report.page import write_report
from ntps.scoring.evidence import add_evidence
from ntps.scoring.intervals import jackknife
from ntps.scoring.nulls import permutation_null

TEXTS = ["a good film", "a bad film it was", "the dog saw a cat", "she read the old book", "rain in the city ."] * 12
LABELS = ["yes", "no", "no", "yes", "no"] * 12


@pytest.fixture
def parts(tiny_llama):
    task = ntps.load_task(texts=TEXTS, labels=LABELS)
    moments, features = collect(ntps.load_model(tiny_llama), task, folds=4, fold_prefix=True, progress=False)
    fresh = ntps.collect_moments(ntps.load_model(tiny_llama, random_weights=True), task, folds=4, progress=False)
    return moments, features, ntps.score(moments), ntps.score(fresh)


def test_everything_is_there_and_is_what_was_computed(parts, tmp_path):
    moments, features, result, fresh = parts
    nulls = permutation_null(moments, features, n_permutations=20)
    intervals = jackknife(moments)
    found = add_evidence(result, nulls=nulls, intervals=intervals, control=fresh)
    row = json.loads(found.to_json())["layers"][-1]
    assert row["null"]["ntps"]["z"] == pytest.approx(nulls[-1].ntps.z)
    assert row["null"]["explained"]["p_value"] == pytest.approx(nulls[-1].explained.p_value)
    assert row["interval"]["ntps"]["low"] == pytest.approx(intervals[row["layer"]]["ntps"].low)
    assert row["interval"]["explained_heldout"]["low"] <= row["explained_heldout"]
    assert row["control"]["explained_heldout"] == pytest.approx(fresh.layers[-1].explained_heldout)
    assert result.layers[-1].control is None  # results are frozen: the one given is as before
    frame = found.to_dataframe()
    assert {"ntps_z", "ntps_p", "explained_low", "explained_heldout_high", "ceiling_random"} <= set(frame.columns)
    lines = str(found).splitlines()
    assert max(map(len, lines)) <= 80
    assert "shuffled" in lines[2] and "random" in lines[2]
    assert "Fresh weights explain" in " ".join(lines)
    assert "shuffled" in found._repr_html_()
    write_report(found, tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert "What to read it against" in page and "fresh weights" in page.lower()
    figure = found.plot()
    assert any("shuffled" in text.get_text() for text in figure.get_legend().get_texts())


def test_without_evidence_nothing_speaks_of_it(parts, tmp_path):
    result = parts[2]
    assert "shuffled" not in str(result)
    assert {"null", "control"}.isdisjoint(json.loads(result.to_json())["layers"][0])
    write_report(replace(result, layers=tuple(replace(s, interval=None) for s in result.layers)), tmp_path)
    assert "What to read it against" not in (tmp_path / "report.html").read_text()


def test_evidence_of_something_else_is_refused(parts, tiny_llama):
    moments, features, result, _ = parts
    with pytest.raises(NtpsError, match=r"null of layer 0 is of ranks 2, 7; ask for it at ranks 2, 3"):
        add_evidence(result, nulls=permutation_null(moments, features, k_v=7, n_permutations=2))
    with pytest.raises(NtpsError, match="null of layer 0 is missing"):
        add_evidence(result, nulls=permutation_null(moments, features, layers=[1], n_permutations=2))
    with pytest.raises(NtpsError, match="no interval for layer 0"):
        add_evidence(result, intervals=jackknife(moments, layers=[1]))
    other = ntps.load_task(texts=TEXTS, labels=LABELS[::-1])
    fresh = ntps.score(ntps.collect_moments(ntps.load_model(tiny_llama), other, folds=4, progress=False))
    with pytest.raises(NtpsError, match="score both on one task"):
        add_evidence(result, control=fresh)
