"""The demo: one pass of each model, the numbers of plain scores, a page that needs nothing but the full report."""

import json

import pandas as pd
import pytest
from helpers.pages import check_page

import ntps
from ntps import miniworld
from ntps.report import demo as demo_module
from ntps.report.demo import SHOWN, run_demo

pytestmark = pytest.mark.slow

N_TEXTS = 120


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    passes = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo_module, "N_TEXTS", N_TEXTS)
        collect = demo_module.collect
        patch.setattr(demo_module, "collect", lambda model, *given, **options: (
            passes.append(model.name), collect(model, *given, **options))[1])  # fmt: skip
        demo = run_demo(folder, progress=False)
        return demo, folder, passes, str(demo)


def test_each_model_runs_once(finished):
    assert finished[2] == ["miniworld-base", "miniworld-base@step0"]


def test_numbers_are_those_of_a_plain_score(finished):
    demo = finished[0]
    assert {row["task"] for row in demo.rows} == set(miniworld.task_names())
    assert [row["pretrained"] for row in demo.rows] == sorted((row["pretrained"] for row in demo.rows), reverse=True)
    for model, key in (("miniworld-base", "pretrained"), ("miniworld-base@step0", "random")):
        model = ntps.load_model(model)
        for name in ("noise", "tense"):
            row = next(row for row in demo.rows if row["task"] == name)
            task = ntps.load_task(f"miniworld/{name}", n=N_TEXTS, split="test")
            representations = ntps.collect(model, task, layers=-1, batch_size=64, progress=False)
            result = ntps.score(representations, folds=5, probes=False)
            assert row[key] == pytest.approx(result.layers[-1].explained_heldout, abs=1e-4)
            if key == "pretrained":
                assert row["ceiling"] == pytest.approx(result.layers[-1].ceiling_heldout, abs=1e-4)
                assert row["ntps"] == pytest.approx(result.layers[-1].ntps, abs=1e-4)


def test_files(finished):
    demo, folder, _, text = finished
    files = {"report.html", "demo.json", "demo.csv", "demo.txt", "tasks.png", SHOWN}
    assert {path.name for path in folder.iterdir()} == files
    assert json.loads((folder / "demo.json").read_text())["tasks"] == demo.rows
    assert pd.read_csv(folder / "demo.csv")["task"].tolist() == [row["task"] for row in demo.rows]
    assert (folder / "demo.txt").read_text() == text + "\n"
    page = check_page(folder / "report.html", beside=[f"{SHOWN}/report.html"])
    assert all(row["question"] in page.text for row in demo.rows)
    check_page(folder / SHOWN / "report.html")
    assert json.loads((folder / SHOWN / "scores.json").read_text())["task"] == f"miniworld/{SHOWN}"


def test_text_fits_a_terminal(finished):
    demo, folder, _, text = finished
    lines = text.replace(str(folder), "report").splitlines()
    assert max(map(len, lines)) <= 80
    rows = [line for line in lines if line.split(" ")[0] in miniworld.task_names()]
    assert len(rows) == len(demo.rows)
    assert all(
        f"{row['pretrained']:.2f}".replace("-0.00", "0.00") in line for row, line in zip(demo.rows, rows, strict=True)
    )
    assert "Learned most" in text


def test_bundled_tasks_share_their_texts():
    tasks = [ntps.load_task(f"miniworld/{name}", n=50, split="test") for name in miniworld.task_names()]
    assert len({task.texts_fingerprint for task in tasks}) == 1
