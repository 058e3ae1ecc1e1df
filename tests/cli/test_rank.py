"""`ntps rank`: a table of 80 columns, JSON and a page with the same numbers, several label columns, kept passes."""

import json
import re
import sys

import pytest
from helpers.forks import torchrun
from helpers.models import save_tiny

from ntps.cli import app as cli
from ntps.models import passes, presets

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Two models and a table with two label columns: the first word, and how the text ends."""
    folder = tmp_path_factory.mktemp("rank")
    save_tiny(folder / "llama", "llama")
    save_tiny(folder / "bert", "bert")
    rows = []
    for n in range(60):
        first, last = ("film", "music")[n % 2], ("good", "bad")[n // 2 % 2]
        rows.append(f"{first} {'the ' * (n // 4)}{last}\t{'xy'[n % 2]}\t{'pq'[n // 2 % 2] if n > 3 else ''}")
    (folder / "two.tsv").write_text("text\tstart\tend\n" + "\n".join(rows) + "\n")
    return folder


def run(place, monkeypatch, capsys, *arguments):
    monkeypatch.chdir(place)
    monkeypatch.setattr(sys, "argv", ["ntps", "rank", *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        cli.main()
    return end.value.code or 0, *capsys.readouterr()


COLUMNS = ["--label-column", "start", "--label-column", "end"]


@pytest.fixture(scope="module")
def whole(place):
    """One run on both label columns, with a report."""
    import io
    from contextlib import redirect_stdout

    with pytest.MonkeyPatch.context() as patch, redirect_stdout(io.StringIO()) as out:
        patch.chdir(place)
        patch.setattr(sys, "argv", ["ntps", "rank", "two.tsv", "--model", "llama", "--model", "bert", "--model", "gone",
                                    *COLUMNS, "--output", "out", "--json", "out.json"])  # fmt: skip
        with pytest.raises(SystemExit) as end:
            cli.main()
    assert not end.value.code
    return out.getvalue()


def test_the_table_fits_a_terminal_and_names_every_model(whole):
    assert max(map(len, whole.splitlines())) <= 80
    assert "two, start: 60 texts, 2 classes, 2 models" in whole
    assert "two, end: 56 texts, 2 classes, 2 models" in whole
    for name in ("llama", "bert", "TF-IDF", "label frequencies", "Not ranked: gone"):
        assert whole.count(name) >= 2, name
    assert whole.rstrip().endswith("Report: out/report.html")


def test_json_page_and_table_have_the_same_numbers(whole, place):
    content = json.loads((place / "out.json").read_text())
    assert [task["label_column"] for task in content["tasks"]] == ["start", "end"]
    page = (place / "out/report.html").read_text()
    for task in content["tasks"]:
        assert {model["name"] for model in task["models"]} == {"llama", "bert"}
        assert [row["name"] for row in task["baselines"]] == ["TF-IDF", "label frequencies"]
        assert task["failed"][0]["name"] == "gone"
        for model in task["models"]:
            r2 = f"{model['r2'] + 0:.3f}"
            assert r2 in whole and r2 in page
            assert (model["through_v"] is None) == (model["name"] == "bert")
    assert json.loads((place / "out/ranking.json").read_text()) == content
    assert (place / "out/ranking.csv").read_text().startswith("labels,model,group,layer")
    assert sorted(path.name for path in (place / "out").glob("*.png")) == [
        f"{kind}-{column}.png" for kind in ("labels", "layers", "models") for column in ("end", "start")
    ]
    assert str(place) not in page + json.dumps(content)


def test_a_second_run_reads_no_text_again(whole, place, monkeypatch, capsys):
    monkeypatch.setattr(passes, "_run", None)
    status, out, _ = run(place, monkeypatch, capsys, "two.tsv", "--model", "llama", "--model", "bert", *COLUMNS,
                         "--no-control", "--output", "out")  # fmt: skip
    assert status == 0 and "two, end: 56 texts" in out and "Not ranked" not in out


def test_one_label_column_is_one_object(place, monkeypatch, capsys):
    status, out, err = run(place, monkeypatch, capsys, "two.tsv", "--model", "llama", "--label-column", "start",
                           "--no-control", "--quiet", "--json", "-")  # fmt: skip
    content = json.loads(out)
    assert (status, err) == (0, "")
    assert content["schema_version"] == 1 and content["label_column"] == "start"
    assert content["best"] == "llama" and content["summary"][0].startswith("llama reads these labels")


def test_real_values_are_ranked_without_an_accuracy(place, monkeypatch, capsys):
    rows = [line.split("\t")[0] for line in (place / "two.tsv").read_text().splitlines()[1:]]
    (place / "real.csv").write_text("text,size\n" + "".join(f"{text},{len(text) / 3}\n" for text in rows))
    status, out, _ = run(place, monkeypatch, capsys, "real.csv", "--model", "llama", "--model", "bert",
                         "--label-column", "size", "--regression", "--output", "real",
                         "--json", "real.json")  # fmt: skip
    assert status == 0 and max(map(len, out.splitlines())) <= 80
    assert "real, size: 60 texts, real values, 2 models" in out and "A dash for accuracy" in out
    content = json.loads((place / "real.json").read_text())
    assert (content["kind"], content["classes"]) == ("regression", None)
    assert all(model["probe"] is None and f"{model['r2']:.3f}" in out for model in content["models"])
    assert [row["name"] for row in content["baselines"]] == ["TF-IDF", "the mean"]
    assert "TF-IDF with ridge regression" in " ".join(out.split()) and "logistic" not in out
    page = (place / "real/report.html").read_text()
    assert "A dash for accuracy" in page and "[-, -]" not in page


def test_several_labels_are_ranked_together(place, monkeypatch, capsys):
    rows = [line.split("\t")[0] for line in (place / "two.tsv").read_text().splitlines()[1:]]
    table = "".join(f"{text},{int('film' in text)},{'yes' if 'good' in text else 'no'}\n" for text in rows)
    (place / "labels.csv").write_text("text,film,good\n" + table)
    status, out, _ = run(place, monkeypatch, capsys, "labels.csv", "--model", "llama", "--model", "bert",
                         "--label-column", "film", "--label-column", "good", "--multilabel", "--output", "labels",
                         "--json", "labels.json")  # fmt: skip
    assert status == 0 and max(map(len, out.splitlines())) <= 80
    assert "60 texts, 2 labels, 2 models" in out and "R² is the mean over labels." in out
    content = json.loads((place / "labels.json").read_text())
    assert (content["kind"], content["classes"]) == ("multilabel", ["film", "good"])
    for model in content["models"]:
        assert model["r2"] == pytest.approx(sum(label["r2"] for label in model["labels"]) / 2, abs=0.02)
    best = content["models"][0]
    assert f"Labels, by {best['name']}" in out
    for label in best["labels"]:
        assert re.search(rf"^{label['name']} +{label['r2'] + 0:.3f} .* {label['accuracy']:.2f} +0.50 +0.50$", out, re.M)
    page = (place / "labels/report.html").read_text()
    assert f"Label by label, by {best['name']}" in page and "best for all labels together" in page


def test_a_group_of_models_is_added_to_those_named(place, monkeypatch, capsys):
    monkeypatch.setattr(presets, "_SMALL", ("llama", "bert"))
    status, out, _ = run(place, monkeypatch, capsys, "two.tsv", "--models", "small", "--model", "./bert/",
                         "--label-column", "start", "--no-control")  # fmt: skip
    assert status == 0
    assert len(re.findall(r"^[12] +(llama|bert) ", out, re.M)) == 2


def test_every_group_names_models(place):
    for group in presets.GROUPS:
        names = presets.models_of(group)
        assert len(names) == len(set(names)) >= 4


PROCESSES = """
import os, sys
import torch
import ntps.report.ranking as pages
from ntps.cli import app
from ntps.report.page import Picture
torch.set_num_threads(1)
pages.draw_picture = lambda file, alt, *_, **__: Picture(file, alt, b"")
os.chdir({place!r})
sys.argv = ["ntps", "rank", *{arguments!r}, "--output", "{output}", "--json", "{output}.json"]
app.main()
"""


@pytest.mark.long
def test_two_processes_write_and_say_once_what_one_does(place, forks):
    arguments = ["two.tsv", "--model", "llama", "--model", "bert", "--model", "gone", "--dtype", "float64", *COLUMNS]
    contents, said = [], []
    for output, several in (("several", torchrun(2)), ("alone", [{}])):
        done = forks.run(PROCESSES.format(place=str(place), arguments=arguments, output=output), *several)
        assert [each.returncode for each in done] == [0] * len(several), done[-1].stderr[-2000:]
        assert [(each.stdout, each.stderr) for each in done[1:]] == [("", "")] * (len(several) - 1)
        assert done[0].stderr.count("gone is not ranked") == 1
        said.append(done[0].stdout.replace(output, "OUT").splitlines())
        text = (place / f"{output}.json").read_text()
        assert json.loads(text) == json.loads((place / output / "ranking.json").read_text())
        contents.append(json.loads(text, parse_float=lambda number: round(float(number), 6)))
        for task in contents[-1]["tasks"]:
            for model in [*task["models"], *filter(None, [task["fresh_weights"]])]:
                del model["seconds"]
    assert contents[0] == contents[1]
    assert len(said[0]) == len(said[1]) > 20
    names = [sorted(str(path.relative_to(place / name)) for path in (place / name).rglob("*")) for name in
             ("several", "alone")]  # fmt: skip
    assert names[0] == names[1] and not [name for name in names[0] if "/." in name or name.startswith(".")]
