"""Benchmarks: that for GPUs runs on a CPU in little, by the same code; forecasts are judged on others' gains."""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import ntps  # noqa: E402
from benchmarks import costs, forecast, gpu, large, tables  # noqa: E402
from ntps.study.prescreening import frozen_inputs  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.long
@pytest.mark.slow
def test_the_benchmark_for_gpus_measures_every_part(tmp_path, capsys):
    gpu.main(["--small", "--device", "cpu", "--output", str(tmp_path / "small.json")])
    result = json.loads((tmp_path / "small.json").read_text())
    parts = result["parts"]
    assert not [name for name, part in parts.items() if "failed" in part or "skipped" in part], parts
    assert result["machine"]["torch"]
    for name in ("pass 1B", "pass 8B"):
        assert parts[name]["layer_by_layer"]
        assert set(parts[name]["with_moments_over_alone"]) == set(gpu.PRECISIONS)
        assert parts[name]["collect_tokens_per_second"] > 0
    for name in ("overlap 1B", "overlap bundled"):
        for precision, least in parts[name]["least"].items():
            assert all((0.99 if precision == "medium" else 0.9999) <= value <= 1 + 1e-9 for value in least.values())
    assert parts["scores bundled"]["highest"]["ntps"] < 5e-3 < 0.1 > parts["scores bundled"]["medium"]["ntps"]
    assert parts["training 1B"]["training_tokens_per_second"] > 0
    printed = capsys.readouterr().out
    assert printed.splitlines()[len(parts)].endswith("seconds")
    assert "forward with moments over alone" in printed
    assert "solve 48 on the CPU: seconds a layer" in printed


def test_overlaps_notice_another_space():
    import torch

    one = torch.linalg.qr(torch.randn(20, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))[0]
    assert gpu.overlap(one, one[:, [1, 0, *range(2, 20)]], 2) == pytest.approx(1)
    assert gpu.overlap(one, one[:, 10:], 5) == pytest.approx(0)
    assert gpu.overlap(one, one[:, [0, 5]], 2) == pytest.approx(0.5)


def test_a_part_that_fails_or_comes_too_late_stands_in_the_table(tmp_path):
    run = gpu.Run(gpu.Machine("cpu"), 100, tmp_path / "out.json")
    run.part("solve 1", lambda: 1 / 0, 1)
    run.part("solve 2", lambda: {"seconds": 2.0}, 1000)
    run.part("solve 3", lambda: {"seconds": 3.0}, 1)
    assert json.loads((tmp_path / "out.json").read_text()) == run.result
    lines = gpu.table(run.result).splitlines()[1:]
    assert [line.split("  ")[0] for line in lines] == ["solve 1", "solve 2", "solve 3: seconds a layer"]
    assert all(word in line for line, word in zip(lines, ("division", "of 100 seconds", "3.00"), strict=True))


@pytest.mark.long
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="no peak of resident memory to be reset")
def test_many_texts_are_measured():
    made = large.measure(300, on_disk=False)
    lengths = [len(row) for row in ntps.load_model(large.MODEL).tokenize(large.make_task(300).texts).ids]
    assert made["tokens"] == sum(lengths) and 3 < np.mean(lengths) < 40
    assert made["disk"] > made["states"] == 4 * 300 * 4 * 64  # four layers, 64 wide
    for part in ("collect", "score"):
        assert made[part]["peak"] > made[part]["peak_without_files"] > made["states"]
        assert made[part]["seconds"] > 0 < made[part]["cpu_seconds"]


def test_the_memory_of_the_grid_is_that_of_the_measured_pass():
    measured = json.loads((costs.RESULTS / "gpu.json").read_text())["parts"]["pass 8B"]
    planned = costs.memory_of(measured["parameters"], 4096, 32, 14336)
    assert sum(planned.values()) == pytest.approx(measured["peak"], rel=0.01)
    half = costs.memory_of(measured["parameters"], 4096, 32, 14336, layers=16)
    assert half["sums"] == 16 * 16 * 4096**2 and half["weights"] == planned["weights"]


def test_solving_grows_with_the_cube_of_the_width_and_the_square_for_a_text():
    solving = {"width": 512, "v": 1.0, "others": 3.0, "text": 0.0}
    hours = [costs.solve_hours(width, 10, 100, solving, v_seconds=64.0) for width in (2048, 4096)]
    assert hours == pytest.approx([10 * 4 * 64 / 3600, 10 * 4 * 8 * 64 / 3600])
    texts = costs.solve_hours(2048, 1, 100, {**solving, "others": -1.0, "text": 0.5}, v_seconds=64.0)
    assert texts == pytest.approx(16 * 100 * 0.5 / 3600)


def test_the_grid_has_the_papers_models_and_its_table_all_of_them():
    assert costs.NETWORKS.keys() == costs.MODELS.keys() and len(costs.grid_of_texts()) == 12
    rows = [line for line in tables.costs_table().splitlines() if line.startswith("| ")][1:]
    assert [row.split(" | ")[0].strip("| ") for row in rows] == [name.split("/")[1] for name in costs.MODELS]


@pytest.mark.long
class TestForecast:
    """Forecasts of gains on tasks and models left out, on tables whose truth is known."""

    @staticmethod
    def table(known, seed=0):
        """Runs of three models on eight tasks whose gain is half of what 20 steps save, or has to do with nothing."""
        rng = np.random.default_rng(seed)
        keys = [(f"m{m}", f"t{t}") for m in range(3) for t in range(8) for _ in range(4)]
        frame = pd.DataFrame(keys, columns=["model", "task"]).assign(room=rng.uniform(0.4, 0.6, len(keys)))
        frame["accuracy"] = 1 - frame["room"]
        for name in {name for inputs in forecast.SETS.values() for name in inputs} - {"room"}:
            frame[name] = rng.uniform(0, 0.5, len(keys))
        return frame.assign(gain=0.5 * frame["look_20"] if known else rng.exponential(0.1, len(keys)).clip(max=0.4))

    @pytest.fixture(autouse=True)
    def few_sets(self, monkeypatch):
        names = ("probe accuracy", "all of these", "20 steps", "50 steps")
        monkeypatch.setattr(forecast, "SETS", {name: forecast.SETS[name] for name in names})

    def test_what_calibrations_are_fitted_on_is_what_a_prescreening_measures(self):
        model, task = ntps.load_model("miniworld-small"), ntps.load_task("miniworld/topic", n=100, seed=3)
        row = forecast.frozen_quantities(model, task, 1)
        found = frozen_inputs(ntps.collect(model, task, max_length=forecast.MAX_LENGTH, progress=False), seed=1)
        for name in ("accuracy", "majority_rate", "held_back", "ntps", "explained_heldout", "slope"):
            assert row[name] == found[name], name

    def test_the_papers_recipe_is_held_against_the_probe_and_kept_out_of_forecasts(self, tmp_path, monkeypatch):
        """From a random head and with the last weights, three steps end far below the frozen model's probe."""
        monkeypatch.setattr(forecast, "LOOKS", (2,))
        cells = [
            forecast.Cell("miniworld-small", "miniworld/topic", 0.0, 100, 3, recipe) for recipe in ("ours", "paper")
        ]
        rows = [forecast.run(cell, 3, "cpu", 60) for cell in cells]
        assert rows[1]["best_step"] == 3 and [row["n_test"] for row in rows] == [60, 60]
        assert all(row["accuracy_before"] > 0.5 for row in rows) and rows[1]["accuracy_after"] < 0.4
        assert rows[0]["gain"] >= 0 and rows[1]["gain"] < -0.2
        lines = tmp_path / "runs.jsonl"
        lines.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
        monkeypatch.setattr(forecast, "TABLE", tmp_path / "forecast.csv")
        forecast.make_table(argparse.Namespace(runs=[lines]))
        assert [*forecast.read_table().recipe, *forecast.read_table("paper").recipe] == ["ours", "paper"]

    @pytest.mark.parametrize("over", ["task", "model", "both"])
    def test_what_can_be_known_is_found(self, over):
        errors = forecast.error_table(self.table(known=True), over)
        assert errors.error["20 steps"] == pytest.approx(0, abs=1e-6)
        assert errors.low["20 steps"] > 5
        assert errors.error["50 steps"] > 3

    def test_what_cannot_be_known_is_not(self):
        errors = forecast.error_table(self.table(known=False), "both")
        typical = np.abs(self.table(known=False)["gain"] - self.table(known=False)["gain"].median()).mean() * 100
        assert (errors.error[list(forecast.SETS)] > 0.95 * typical).all()

    @pytest.mark.parametrize("over", ["task", "both"])
    def test_a_task_does_not_forecast_itself(self, over):
        frame = self.table(known=False)
        other = frame.assign(gain=frame["gain"].where(frame["task"] != "t3", 0.4))
        here = (frame["task"] == "t3").to_numpy()
        before, after = (forecast.left_out(each, ("room", "look_20"), over) for each in (frame, other))
        assert np.array_equal(before[here], after[here])
        leaked = forecast.left_out(other, ("room", "look_20"), "model")  # the task's own runs of other models
        assert not np.allclose(leaked[here], before[here])
