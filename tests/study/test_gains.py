"""Studies with gains: cells of their own, columns that add up, errors on what was left out."""

import json
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from helpers.kill_study import SETTINGS, make_tasks

import ntps.finetune.before_after
from ntps._files import from_json
from ntps.errors import NtpsError
from ntps.finetune.before_after import fine_tune_gain
from ntps.finetune.settings import TrainSettings
from ntps.scoring import Readout
from ntps.study.calibration import calibrate, load_calibration
from ntps.study.gain import STUDY_INPUTS, gain_frame, gain_prediction, tuned_changes
from ntps.study.grid import make_grid
from ntps.study.measure import held_back
from ntps.study.records import GainRecord
from ntps.study.study import run_study
from ntps.study.table import CHANGES, GAINS, gain_row

pytestmark = [pytest.mark.long, pytest.mark.usefixtures("one_thread", "sketches")]

PLAIN = replace(SETTINGS, control=False)
LORA = TrainSettings(steps=4, rank=4, evaluate_every=2, learning_rate=5e-3, margin=0)


def run(folder, models, tasks, **options):
    options = {"settings": SETTINGS, "progress": False, "lora": LORA, **options}
    return run_study(models, tasks, output=folder, **options)


@pytest.fixture(scope="module")
def finished(common, tiny_llama, tiny_gpt2):
    """A study in a folder that workers share: each computes what the other has not."""
    return run(common / "gains", [str(tiny_llama), str(tiny_gpt2)], make_tasks(6), settings=PLAIN)


def test_gains_can_be_added_to_a_study_that_is_there(tmp_path, tiny_llama, monkeypatch):
    plain = run(tmp_path, [str(tiny_llama)], make_tasks(2), lora=None)
    assert "gain" not in plain.frame()
    assert plain.to_dict(n_permutations=9)["gain"] is None
    before = {path: path.read_bytes() for path in (tmp_path / "cells").iterdir()}
    study = run(tmp_path, [str(tiny_llama)], make_tasks(2))
    assert {path: path.read_bytes() for path in before} == before
    assert len(list((tmp_path / "cells").iterdir())) == len(before) + 2
    assert study.frame()["gain"].notna().all()
    monkeypatch.setattr(ntps.finetune.before_after, "fine_tune_gain", None)  # a second run trains nothing
    again = run(tmp_path, [str(tiny_llama)], make_tasks(2))
    assert again.to_json(n_permutations=9) == study.to_json(n_permutations=9)


def test_gains_are_judged_on_the_test_split_if_there_is_one(tmp_path, tiny_llama):
    task = make_tasks(1)[0]
    rest, own = task.split(0.3)
    for name, part in (("train", rest), ("test", own)):
        rows = [f"{text},{part.classes[label]}" for text, label in zip(part.texts, part.labels, strict=True)]
        (tmp_path / "films").mkdir(exist_ok=True)
        (tmp_path / "films" / f"{name}.csv").write_text("\n".join(["text,label", *rows]) + "\n")
    source = f"films={tmp_path / 'films'}"
    study = run(tmp_path / "out", [str(tiny_llama)], [source], settings=replace(PLAIN, test_split="test"))
    gain = next(cell.gain for cell in study.cells if cell.kind == "gain")
    assert gain.n_test == len(own)
    expected = fine_tune_gain(str(tiny_llama), rest, LORA, test=own, seed=0, folds=SETTINGS.folds)
    assert gain.accuracy_after == expected["accuracy_after"]
    plain = run(tmp_path / "out", [str(tiny_llama)], [source], settings=PLAIN)  # a cell of its own
    assert next(cell.gain for cell in plain.cells if cell.kind == "gain").n_test < len(own)
    missing = run(tmp_path / "gone", [str(tiny_llama)], [source], settings=replace(PLAIN, test_split="dev"))
    assert [cell.status for cell in missing.cells if cell.kind == "gain"] == ["failed"]
    assert "dev" in next(cell.reason for cell in missing.cells if cell.kind == "gain")
    loaded = run(tmp_path / "loaded", [str(tiny_llama)], [task], settings=replace(PLAIN, test_split="test"))
    assert "is loaded already" in next(cell.reason for cell in loaded.cells if cell.kind == "gain")


def test_a_gain_cell_is_what_fine_tune_gain_returns(finished, tiny_llama):
    study = finished
    task = make_tasks(1)[0]
    expected = fine_tune_gain(str(tiny_llama), task, LORA, seed=0, folds=SETTINGS.folds)
    row = study.frame().iloc[0]
    assert row.gain == expected["gain"] == row.accuracy_after - row.accuracy_before
    middle = expected["layers"][str(int(row.layer))]
    assert row.tuned == (expected["best_step"] > 0)
    change = middle["after"]["ntps"] - middle["before"]["ntps"]
    loss_change = expected["next_token_loss_after"] - expected["next_token_loss_before"]
    assert [row.ntps_change, row.next_token_change] == pytest.approx(
        [change, loss_change] if row.tuned else [np.nan] * 2, nan_ok=True
    )


def test_training_settings_and_not_scoring_ones_decide_a_gain_cell(tiny_llama):
    def keys(**changes):
        options = {"settings": PLAIN, "lora": LORA} | changes
        grid = make_grid([str(tiny_llama)], make_tasks(1), options.pop("settings"), **options)
        return [cell.key for cell in grid.cells]

    score, gain = keys()
    assert keys(lora=replace(LORA, steps=5))[0] == score
    assert keys(lora=replace(LORA, steps=5))[1] != gain
    assert keys(settings=replace(PLAIN, permutations=21))[0] != score
    assert keys(settings=replace(PLAIN, permutations=21))[1] == gain
    assert keys(settings=replace(PLAIN, limit=50))[1] != gain


def test_a_failing_training_is_recorded_and_the_rest_goes_on(tmp_path, tiny_llama, monkeypatch):
    real = ntps.finetune.before_after.fine_tune_gain

    def failing(model, task, *rest, **options):
        if task.name == "task1":
            raise NtpsError("the loss is not finite at step 3")
        return real(model, task, *rest, **options)

    monkeypatch.setattr(ntps.finetune.before_after, "fine_tune_gain", failing)
    study = run(tmp_path, [str(tiny_llama)], make_tasks(3), settings=PLAIN)
    frame = study.frame().set_index("task")
    assert np.isnan(frame.loc["task1", "gain"])
    assert np.isfinite(frame.loc["task1", "ntps"])
    assert np.isfinite(frame.loc[["task0", "task2"], "gain"]).all()
    failed = [cell for cell in study.to_dict(n_permutations=9)["cells"] if cell["status"] == "failed"]
    assert [(cell["task"], cell["kind"]) for cell in failed] == [("task1", "gain")]
    assert "step 3" in failed[0]["reason"]


def test_correlations_and_errors_of_the_gain(finished):
    study = finished
    found = study.to_dict(n_permutations=99)["gain"]
    assert found["refused"] is None
    assert found["correlations"]["accuracy"]["target"] == "gain"
    assert {"ntps", "accuracy", "held_back"} <= set(found["correlations"])
    assert set(found["errors"]) == {"task", "model", "both"}
    assert set(STUDY_INPUTS) <= set(found["errors"]["task"])
    assert "accuracy" not in study.correlations(n_permutations=9)  # it is the target of the plain ones


def test_no_gains_no_target(tmp_path, tiny_llama):
    study = run(tmp_path, [str(tiny_llama)], make_tasks(5), lora=None, settings=PLAIN)
    for call in (lambda: study.correlations(target="gain"), study.gain_errors):
        with pytest.raises(NtpsError, match="lora"):
            call()


def test_held_back_is_chosen_out_of_fold():
    """Twelve layers that read the labels equally well hold nothing back; the best of them on all texts seems to."""
    chosen, seeming = [], []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        shared, n = rng.normal(0, 0.1, 300), 300
        baseline, groups = np.ones(n), np.arange(n)
        errors, left_out = (np.clip(0.7 + shared + rng.normal(0, 0.4, (12, n)), 0, None) for _ in range(2))
        loo_errors = [torch.tensor([row[np.arange(n) % 5 != fold].sum() for fold in range(5)]) for row in left_out]
        common = {"baseline": baseline, "groups": groups}
        readouts = [
            Readout(name=str(i), errors=row, loo_errors=loo_errors[i], **common) for i, row in enumerate(errors)
        ]
        chosen.append(held_back(range(12), readouts, np.arange(n) % 5))
        seeming.append(max(readout.r2 for readout in readouts) - readouts[-1].r2)
    assert abs(np.mean(chosen)) < 0.015
    assert min(chosen) < 0
    assert np.mean(seeming) > 0.03


def test_changes_are_of_the_layer_read_and_of_no_other():
    side = {"ntps": 0.25, "explained_heldout": None, "ceiling_heldout": 0.5}
    layers = {
        "2": {"before": side, "after": side | {"ntps": 0.5}},
        "10": {"before": side, "after": side | {"ntps": 0.75}},
    }
    losses = {"next_token_loss_before": None, "next_token_loss_after": None}
    numbers = {"gain": 0.1, "standard_error": None, "accuracy_before": 0.5, "accuracy_after": 0.6}
    gain = from_json(GainRecord, {**numbers, **losses, "n_test": 20, "best_step": 4, "saved": 0.1, "layers": layers})
    assert gain_row(gain, 2)["ntps_change"] == 0.25
    assert gain_row(gain, 10)["ntps_change"] == 0.5
    with pytest.raises(NtpsError, match=r"layer 7 was not scored .* 2, 10"):
        gain_row(gain, 7)
    assert np.isnan(gain_row(gain, None)["ntps_change"])
    assert gain_row(gain, None)["gain"] == 0.1
    assert np.isnan(gain_row(gain, 2)["explained_change"])
    assert np.isnan(gain_row(gain, 2)["next_token_change"])
    assert set(gain_row(None, 2)) == set(GAINS)


def test_cells_that_are_not_tuned_are_counted_and_never_averaged():
    import pandas as pd

    side = {"ntps": 0.25, "explained_heldout": 0.5, "ceiling_heldout": 0.5}
    numbers = {"gain": 0.0, "standard_error": 0.0, "accuracy_before": 0.5, "accuracy_after": 0.5, "n_test": 20,
               "saved": 0.0, "next_token_loss_before": 2.0, "next_token_loss_after": 2.0}  # fmt: skip
    layers = {"2": {"before": side, "after": side}}
    kept = gain_row(from_json(GainRecord, numbers | {"best_step": 0, "layers": layers}), 2)
    assert kept["gain"] == 0 == kept["tuned"]
    assert all(np.isnan(kept[name]) for name in CHANGES)
    after = {"2": {"before": side, "after": side | {"ntps": 0.15}}}
    tuned = gain_row(from_json(GainRecord, numbers | {"gain": 0.2, "best_step": 4, "layers": after}), 2)
    rows = [{"task": f"t{task}", **(tuned if task < 2 else kept)} for task in range(6) for _ in range(2)]
    found = tuned_changes(pd.DataFrame([*rows, {"task": "failed", **gain_row(None, 2)}]))
    assert (found["n_cells"], found["n_tuned"], found["n_tasks"]) == (12, 4, 2)
    assert found["gain"]["mean"] == pytest.approx(0.2)
    assert found["ntps_change"]["mean"] == pytest.approx(-0.1)
    assert np.isnan(tuned_changes(pd.DataFrame(rows[-2:]))["gain"]["mean"])


def test_a_table_at_a_depth_without_gains_is_refused(finished):
    study = finished
    frame = study.frame(depth=1.0)
    assert frame["ntps_change"].notna().tolist() == (frame["tuned"] == 1).tolist()
    with pytest.raises(NtpsError, match="layer 0 was not scored"):
        study.frame(depth=0.0)


def test_json_is_strict(finished):
    result = finished.to_dict(n_permutations=99)
    assert json.loads(json.dumps(result, allow_nan=False)) == result


def test_equal_gains_leave_nothing_to_predict(finished):
    study = finished
    cells = [replace(c, gain=replace(c.gain, gain=0.0)) if c.kind == "gain" else c for c in study.cells]
    found = replace(study, cells=tuple(cells))
    evidence = found.to_dict(n_permutations=9)["gain"]
    assert "nothing to predict" in evidence["refused"]
    assert evidence["correlations"] == {} == evidence["errors"]
    with pytest.raises(NtpsError, match="gains that differ"):
        calibrate(found.frame())


def test_extra_inputs_are_regressions_on_their_columns():
    """Against a plain leave-one-task-out loop."""
    import pandas as pd

    rng = np.random.default_rng(0)
    rows = [{"model": f"m{m}", "task": f"t{t}", "seed": s, "status": "done", "reason": None,
             "accuracy": rng.uniform(), "ntps": rng.uniform(), "explained_heldout": rng.uniform(),
             "ceiling_heldout": rng.uniform(), "held_back": rng.uniform(), "saved": rng.uniform(),
             "gain": rng.uniform()}
            for m in range(3) for t in range(6) for s in range(2)]  # fmt: skip
    frame = gain_frame(pd.DataFrame(rows))
    assert len(frame) == 18
    table = gain_prediction(frame, score="ntps", accuracy="accuracy", inputs=STUDY_INPUTS, n_bootstrap=20)
    for name, columns in STUDY_INPUTS.items():
        errors = []
        for task in frame.dataset.unique():
            rest, out = frame[frame.dataset != task], frame[frame.dataset == task]
            design = np.column_stack([np.ones(len(rest)), rest[list(columns)]])
            found = np.linalg.lstsq(design, rest.gain, rcond=None)[0]
            errors += list(np.abs(out.gain - found[0] - out[list(columns)] @ found[1:]))
        assert table.loc[name, "mae"] == pytest.approx(np.mean(errors), rel=1e-6)


def test_command_writes_a_calibration_that_prescreening_reads(tmp_path, tiny_llama, monkeypatch, capsys):
    from ntps.cli import app as cli

    paths = []
    for task in make_tasks(6):
        rows = [f"{text},{task.classes[label]}" for text, label in zip(task.texts, task.labels, strict=True)]
        paths.append(tmp_path / f"{task.name}.csv")
        paths[-1].write_text("\n".join(["text,label", *rows]) + "\n")
    real, out = ntps.finetune.before_after.fine_tune_gain, tmp_path / "out"

    @cache
    def trained():
        return real(str(tiny_llama), make_tasks(1)[0], replace(LORA, steps=2, rank=2), seed=0, folds=3)

    def differing(model, task, *rest, **options):  # two steps change nothing for sure
        return {**trained(), "gain": int(task.name[-1]) / 100}

    monkeypatch.setattr(ntps.finetune.before_after, "fine_tune_gain", differing)
    tasks = [part for path in paths for part in ("--task", str(path))]
    arguments = ["study", "--model", str(tiny_llama), *tasks, "--limit", "60", "--folds", "3", "--permutations", "9",
                 "--no-control", "--lora", "--lora-steps", "2", "--lora-rank", "2", "--output", str(out)]  # fmt: skip
    monkeypatch.setattr("sys.argv", ["ntps", *arguments])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    text, errors = capsys.readouterr()
    assert stopped.value.code == 0, errors
    assert "LoRA of rank 2, 2 steps: " in text
    assert max(map(len, text.splitlines()[:-1])) <= 80
    fitted = load_calibration(out / "calibration.json")
    assert fitted.about["tasks"] == [f"task{n}" for n in range(6)]
    assert fitted.about["training"]["steps"] == 2

    monkeypatch.setattr("sys.argv", ["ntps", "study", "--model", "x", "--task", "y", "--target", "gain"])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 2
    assert "--lora" in capsys.readouterr().err
