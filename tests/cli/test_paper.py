"""`ntps paper`, as typed."""

import json
import sys

import pytest

from ntps.cli import app

pytestmark = pytest.mark.slow


@pytest.fixture
def run(capsys, monkeypatch):
    def run(*words):
        monkeypatch.setattr(sys, "argv", ["ntps", "paper", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            app.main()
        output = capsys.readouterr()
        return ended.value.code, output.out, output.err

    return run


def test_audit(run, tmp_path):
    status, out, _ = run("audit", "--json", tmp_path / "audit.json")
    assert status == 0 and max(map(len, out.splitlines())) <= 80
    assert "training accuracies" in out and "22,400" in out
    assert len(json.loads((tmp_path / "audit.json").read_text())["findings"]) == 8


def test_figures(run, tmp_path, monkeypatch):
    names = ["figure1.png", "correlations.csv"]
    monkeypatch.setattr("ntps.paper.write_figures", lambda folder: [folder / name for name in names])  # dear
    status, out, _ = run("figures", "--output", tmp_path / "figures")
    assert status == 0 and [line.split("/")[-1] for line in out.splitlines()] == names


def test_words(run, tmp_path):
    words = ["words", "miniworld-small", "miniworld/topic", "--limit", 60, "--word", "the", "--word", "said"]
    status, out, _ = run(*words, "--output", tmp_path, "--quiet")
    assert (status, out) == (0, "")
    assert {"words.png", "words.csv"} <= {path.name for path in tmp_path.iterdir()}
    status, _, err = run("words", "miniworld-small", "miniworld/topic", "--layer", 99, "--output", tmp_path)
    assert status == 2 and "99" in err and err.count("\n") == 1


def test_commands(run):
    status, out, _ = run("commands", "--json", "-")
    assert status == 0 and len(json.loads(out)["commands"]) == 5


def test_a_word_that_is_no_command(run):
    status, _, err = run("audits")
    assert status == 2 and "audits" in err
