"""The page of a study: every part is there when its numbers are, and nothing runs away with names."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from helpers.pages import check_page
from helpers.results import EVIL, make_study

from ntps.finetune.settings import TrainSettings
from ntps.report import write_study
from ntps.report.study import gain_lead, lead

pytestmark = pytest.mark.slow
sketched = pytest.mark.usefixtures("sketches")

MAPS = {f"{name}_{kind}.png" for name in ("ntps", "explained_heldout") for kind in ("options", "permuted", "choice")}
POINTS = {f"{name}{kind}.png" for name in ("ntps", "explained_heldout") for kind in ("", "_by_model")}
GAINS = {"gain_accuracy.png", "gain_held_back.png", "gain_ntps.png"}
ALWAYS = {"report.html", "study.json", "study.csv"}


def test_a_whole_study(tmp_path):
    study = make_study(gains=True)
    result = study.to_dict(n_permutations=99)
    written = {path.name for path in write_study(study, tmp_path / "folder", result=result)}
    assert written == ALWAYS | POINTS | MAPS | GAINS == {path.name for path in (tmp_path / "folder").iterdir()}
    page = check_page(tmp_path / "folder" / "report.html")
    assert page.tags.count("img") == len(POINTS | MAPS | GAINS)
    for part in (
        "2 models on 6 tasks",
        "held_out",
        "What LoRA gains",
        "task and model left out",
        "Cells without a result",
    ):
        assert part in page.text
    assert lead(result) in page.text and gain_lead(study, result["gain"]) in page.text
    frame = pd.read_csv(tmp_path / "folder" / "study.csv")
    assert frame["gain"].tolist() == pytest.approx(study.frame()["gain"].tolist(), nan_ok=True)


@sketched
def test_names_and_reasons_are_escaped(tmp_path):
    study = make_study(models=(EVIL, "b"), n_tasks=4)
    write_study(study, tmp_path)
    page = check_page(tmp_path / "report.html")
    assert EVIL not in (tmp_path / "report.html").read_text()
    assert f"no {EVIL}" in page.text  # why a cell failed


@sketched
def test_too_few_tasks_are_said_so(tmp_path):
    study = make_study(n_tasks=3)
    result = study.to_dict(n_permutations=9)
    written = {path.name for path in write_study(study, tmp_path, result=result)}
    assert written == ALWAYS | POINTS
    assert result["refused"] and lead(result) == result["refused"]
    text = check_page(tmp_path / "report.html").text
    assert text.count(result["refused"]) == 2 and "What LoRA gains" not in text


def test_sentences(tmp_path):
    study = make_study(gains=True)
    result = study.to_dict(n_permutations=99)
    spearman = result["correlations"]["ntps"]["spearman"]
    assert f"NTPS {spearman:+z.2f} [" in lead(result)
    text = gain_lead(study, result["gain"])
    gain = study.frame().groupby("task")["gain"].mean().dropna()
    assert "LoRA of rank 32, 4 steps: 11 of 11 cells tuned." in text
    assert f"The tuned ones gain {100 * gain.mean():+z.1f} [" in text
    assert f"on average over {len(gain)} tasks" in text
    assert f"{100 * result['gain']['errors']['task']['accuracy']['mae']:.1f} from probe accuracy" in text


def test_a_study_without_any_gain_says_so():
    study = make_study(gains=True)
    failed = tuple(
        replace(cell, status="failed", reason="x", gain=None) if cell.kind == "gain" else cell for cell in study.cells
    )
    study = replace(study, cells=failed)
    assert "No cell finished fine-tuning" in gain_lead(study, study.to_dict(n_permutations=9)["gain"])


@sketched
def test_equal_gains_leave_nothing_to_predict(tmp_path):
    study = make_study(gains=True)
    cells = [
        replace(cell, gain=replace(cell.gain, gain=0.0)) if cell.gain is not None else cell for cell in study.cells
    ]
    study = replace(study, cells=tuple(cells))
    result = study.to_dict(n_permutations=9)
    write_study(study, tmp_path, result=result)
    text = check_page(tmp_path / "report.html").text
    assert result["gain"]["refused"] in text and "gain +0.0 [+0.0, +0.0] points" in text
    assert "Mean absolute error" not in text


@sketched
@pytest.mark.parametrize("gains", [False, True])
def test_a_result_is_computed_if_not_given(tmp_path, gains):
    study = make_study(n_tasks=3, gains=gains)
    assert write_study(study, tmp_path)


@sketched
def test_shared_files_tell_neither_paths_nor_formulas(tmp_path):
    study = make_study(models=("/home/bob/a/llama", "/home/bob/b/llama"), gains=True)
    names = dict(zip(study.tasks, ("=cmd", "/home/bob/x", "~/bob/y", "+1", "$a$b", *study.tasks[5:]), strict=True))
    cells = [
        replace(cell, task=names[cell.task], reason=cell.reason and "/home/bob/x.csv: bad") for cell in study.cells
    ]
    study = replace(study, tasks=tuple(names.values()), cells=tuple(cells))
    for path in write_study(study, tmp_path):
        if path.suffix != ".png":
            assert "bob" not in path.read_text(), path
    table = pd.read_csv(tmp_path / "study.csv")
    assert set(table["model"]) == {"a/llama", "b/llama"}
    assert {"'=cmd", "'+1", "x", "y", "$a$b"} < set(table["task"])
    assert "x.csv: bad" in (tmp_path / "report.html").read_text()


def test_a_target_that_is_the_same_for_every_task_is_said_to_be_so(sketches, tmp_path):
    from ntps.cli.study_command import as_text

    study = make_study(models=("one",), n_tasks=6)
    right = {**study.cells[0].score.probe, "balanced_accuracy": 1.0}
    cells = [replace(cell, score=cell.score and replace(cell.score, probe=right)) for cell in study.cells]
    result = replace(study, cells=tuple(cells)).to_dict(n_permutations=20)
    assert result["correlations"] and {entry["spearman"] for entry in result["correlations"].values()} == {None}
    assert "is the same on all of them" in as_text(result).replace("\n", " ") and ": ." not in lead(result)
    assert write_study(replace(study, cells=tuple(cells)), tmp_path, result=result)


def test_a_gain_without_a_score_is_left_out_of_what_is_predicted(sketches, tmp_path):
    study = make_study(n_tasks=8, gains=True)
    failed = {"status": "failed", "reason": "too few texts for the folds", "score": None, "gain": None}
    cells = [replace(cell, **failed) if cell.kind == "score" and cell.task.endswith("task2") else cell
             for cell in study.cells]  # fmt: skip
    partial = replace(study, cells=tuple(cells))
    values, _ = partial.options("ntps", target="gain")
    tasks = partial.usable(target="gain")[1]
    assert tasks != partial.usable()[1] and len(tasks) == len(partial.usable()[1])
    assert np.isnan(values[:, :, tasks.index("miniworld/task2")]).all()
    assert np.isfinite(np.delete(values, tasks.index("miniworld/task2"), axis=2)).all()
    result = partial.to_dict(target="gain", n_permutations=20)
    assert "ntps:same_tasks" not in result["correlations"], "no value of one task against the gain of another"
    errors = partial.gain_errors()
    assert errors["mae"].notna().all()
    assert "Error in points on tasks left out" in gain_lead(partial, result["gain"])
    assert write_study(partial, tmp_path, result=result)


def test_training_by_epochs_is_said_in_epochs():
    study = make_study(gains=True)
    by_epochs = replace(study, lora=TrainSettings(method="probe", epochs=50))
    text = gain_lead(by_epochs, by_epochs.to_dict(n_permutations=20)["gain"])
    assert text.startswith("Training the head alone, 50 epochs: ")
