"""Studies: cells that survive anything, and correlations that say how they were chosen."""

import json
import math
import os
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers.forks import torchrun
from helpers.kill_study import SETTINGS, make_tasks, other_labels
from helpers.results import make_study
from markupsafe import escape
from matplotlib.figure import Figure

import ntps.study.cells
import ntps.study.grid
from ntps._files import atomic_path, from_json, sha256_json
from ntps._names import clean
from ntps.errors import NtpsError
from ntps.models import collect, load_model
from ntps.models.plan import layer_at
from ntps.report.study import write_study
from ntps.report.study_plots import NAMES, option_map, plot_against
from ntps.scoring import assign_folds, labels_of, score
from ntps.study.cells import CellStore, run_cells
from ntps.study.correlations import spearman
from ntps.study.grid import Cell, make_grid, name_tasks
from ntps.study.measure import StudySettings, split_halves
from ntps.study.records import SHARES, CellResult, LayerRecord
from ntps.study.study import OPTION_DEPTHS, TARGETS, run_study
from ntps.tasks import load_task

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("sketches")]

FAST = SETTINGS
PLAIN = replace(SETTINGS, control=False)
ENV = {
    **os.environ,
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]),
}
HOLD = """
import os, sys, filelock
os.makedirs(sys.argv[1], exist_ok=True)
lock = filelock.FileLock(f"{sys.argv[1]}/{sys.argv[2]}.lock")
lock.acquire()
print("held", flush=True)
sys.stdin.read()
"""


def run_script(*arguments):
    """Run a command of `helpers/kill_study.py` and return what it reports."""
    script = Path(__file__).parents[1] / "helpers" / "kill_study.py"
    command = [sys.executable, str(script), *map(str, arguments)]
    return json.loads(subprocess.run(command, env=ENV, stdout=subprocess.PIPE, timeout=900, check=True).stdout)


@pytest.fixture(scope="module")
def finished(common, tiny_llama, tiny_gpt2):
    """A study of two tiny models on five tasks with controls, in a folder that workers share."""
    folder = common / "study"
    models = [str(tiny_llama), str(tiny_gpt2)]
    return run_study(models, make_tasks(), output=folder, settings=FAST, progress=False), folder, models


@pytest.fixture(scope="module")
def official(common, tiny_llama, tiny_gpt2):
    """A study by the released code's procedure."""
    settings = replace(PLAIN, convention="official")
    return run(common / "official", [str(tiny_llama), str(tiny_gpt2)], settings=settings)


@pytest.fixture
def counted(monkeypatch):
    """Count what is loaded, passed over and computed."""
    counts = {"load": [], "pass": [], "cells": []}
    module = ntps.study.cells
    load, collect, measure = module.load_model, module.collect, module.measure

    def counting_load(name, **options):
        counts["load"].append((Path(name).name, options["random_weights"]))
        return load(name, **options)

    def counting_collect(model, task, **options):
        counts["pass"].append(task.name)
        return collect(model, task, **options)

    def counting_measure(representations, *rest, **options):
        counts["cells"].append((representations.task.name, options["control"]))
        return measure(representations, *rest, **options)

    monkeypatch.setattr(module, "load_model", counting_load)
    monkeypatch.setattr(module, "collect", counting_collect)
    monkeypatch.setattr(module, "measure", counting_measure)
    return counts


@pytest.fixture
def said(caplog):
    """Messages of `ntps.study`, from the level of warnings."""
    caplog.set_level("WARNING", logger="ntps.study")

    def messages():
        return [record.getMessage() for record in caplog.records if record.name.startswith("ntps.study")]

    messages.clear = caplog.clear
    return messages


def run(folder, models, tasks=None, **options):
    options = {"settings": FAST, "progress": False, **options}
    return run_study(models, make_tasks() if tasks is None else tasks, output=folder, **options)


class TestCells:
    def test_one_loading_a_model_and_nothing_twice(self, tmp_path, tiny_llama, counted):
        first = run(tmp_path, [str(tiny_llama)], make_tasks(2))
        assert [random for _, random in counted["load"]] == [False, True]
        assert len(counted["cells"]) == 4
        for calls in counted.values():
            calls.clear()
        assert run(tmp_path, [str(tiny_llama)], make_tasks(2)).to_json() == first.to_json()
        assert counted == {"load": [], "pass": [], "cells": []}
        run(tmp_path, [str(tiny_llama)], make_tasks(3))
        assert counted["cells"] == [("task2", False), ("task2", True)]

    def test_a_cell_is_the_score(self, finished):
        from ntps import collect, linear_probe, load_model, score
        from ntps.scoring import labels_of

        study, _, models = finished
        kept = study.cells[0].score
        task = make_tasks()[0]
        representations = collect(load_model(models[0]), task, progress=False)
        labels = labels_of(representations)
        first, second = split_halves(labels.values, labels.groups, 0)
        wanted = [int(label) if place in set(first) else None for place, label in enumerate(labels.values)]
        result = score(representations, labels=wanted, folds=3, permutations=20)
        assert (kept.n_texts, kept.n_scored, kept.n_probed) == (60, result.n_texts, len(second))
        assert (kept.n_tokens, kept.n_classes) == (representations.n_tokens, result.n_classes)
        folds = assign_folds(labels.values[second], 3, groups=labels.groups[second])
        probe = linear_probe(representations.layer(3)[second], labels.values[second], folds=folds)
        assert kept.probe["balanced_accuracy"] == pytest.approx(probe.balanced_accuracy)
        assert kept.probe["r2"] == pytest.approx(probe.r2)
        for record, scored in zip(kept.layers, result.layers, strict=True):
            for name in ("ntps", "explained", "retained", "explained_heldout", "ceiling_heldout", "chance"):
                assert getattr(record, name) == pytest.approx(getattr(scored, name), rel=1e-6), name
            assert (record.k_u, record.k_v, record.d) == (scored.k_u, scored.k_v, scored.d)
            for name in ("ntps", "ceiling_heldout"):
                null = scored.null[name]
                assert (getattr(record, f"{name}_z"), getattr(record, f"{name}_p")) == (null["z"], null["p_value"])
            assert set(record.intervals) == set(scored.interval)
            for name, ends in record.intervals.items():
                assert ends == (scored.interval[name]["low"], scored.interval[name]["high"])
            profile, curve = record.profile, scored.curve
            assert profile.share == SHARES
            for k, *values in zip(profile.k_v, profile.ntps, profile.explained, profile.explained_heldout, strict=True):
                if k in curve["k_v"]:
                    place = curve["k_v"].index(k)
                    expected = [curve[name][place] for name in ("ntps", "explained", "explained_heldout")]
                    assert values == pytest.approx(expected, rel=1e-6, abs=1e-9)
        assert [record.measures is not None for record in kept.layers] == [False, False, True, True]

    def test_a_record_is_what_its_json_says(self, finished):
        for result in finished[0].cells:
            again = CellResult.from_dict(json.loads(json.dumps(result.to_dict(), allow_nan=False)))
            assert again.to_dict() == result.to_dict()
        layer = finished[0].cells[0].score.layers[0]
        content = result.to_dict()["score"]["layers"][0]
        for change, words in (
            ({"ntps": "much"}, "ntps is 'much'"),
            ({"layer": 1.5}, "layer is 1.5"),
            ({"more": 1}, "unknown field 'more'"),
            ({"intervals": {"ceiling_heldout": [0.1]}}, "intervals"),
        ):
            with pytest.raises(NtpsError, match=words):
                from_json(LayerRecord, content | change)
        with pytest.raises(NtpsError, match="lacks field 'd'"):
            from_json(LayerRecord, {name: value for name, value in content.items() if name != "d"})
        assert math.isnan(from_json(LayerRecord, content | {"ntps": None}).ntps)
        with pytest.raises(NtpsError, match="every layer"):
            replace(finished[0].cells[0].score, layers=(layer, layer))

    @pytest.mark.long
    def test_equal_texts_run_once_for_each_network(self, tmp_path, tiny_llama, counted):
        tasks = make_tasks(2)
        tasks.append(other_labels(tasks[0], "other"))
        together = run(tmp_path / "together", [str(tiny_llama)], tasks, settings=replace(FAST, seeds=2))
        # Pretrained: once for each of two sets of texts, whatever the seed; random weights: for each of two seeds.
        assert sorted(counted["pass"]) == ["task0"] * 3 + ["task1"] * 3
        assert len(counted["cells"]) == 12
        alone = run(tmp_path / "alone", [str(tiny_llama)], tasks[2:], settings=replace(FAST, seeds=2))
        frame = together.frame().set_index("task").loc["other"].reset_index()
        assert frame.equals(alone.frame()[list(frame.columns)])

    def test_other_samples_are_other_texts(self, tmp_path, tiny_llama, counted):
        run(tmp_path, [str(tiny_llama)], make_tasks(1), settings=replace(PLAIN, seeds=2, limit=50))
        assert len(counted["pass"]) == 2

    @pytest.mark.long
    @pytest.mark.parametrize("change", ["truncate", "flip", "empty", "binary"])
    def test_a_damaged_cell_is_computed_again_and_said_so(self, tmp_path, tiny_llama, counted, said, change):
        tasks = make_tasks(2)
        whole = run(tmp_path, [str(tiny_llama)], tasks, settings=PLAIN)
        path = sorted((tmp_path / "cells").glob("task1*.json"))[0]
        data = path.read_bytes()
        broken = {"truncate": data[: len(data) // 2], "flip": data.replace(b'"n_texts": 60', b'"n_texts": 61'),
                  "empty": b"", "binary": bytes(range(256))}[change]  # fmt: skip
        assert broken != data
        path.write_bytes(broken)
        counted["cells"].clear()
        assert run(tmp_path, [str(tiny_llama)], tasks, settings=PLAIN).to_json() == whole.to_json()
        assert counted["cells"] == [("task1", False)]
        (message,) = said()
        assert "damaged" in message
        assert path.name in message

    def test_a_cell_of_another_version_is_computed_again_and_said_so(self, tmp_path, tiny_llama, counted, said):
        tasks = make_tasks(1)
        run(tmp_path, [str(tiny_llama)], tasks, settings=PLAIN)
        (path,) = (tmp_path / "cells").glob("*.json")
        content = json.loads(path.read_text())
        content["version"] = "0.0.1"
        content["checksum"] = sha256_json(content)
        for name in (path.name, "task0-" + "a" * 24 + ".json"):  # under this key, or under that version's own
            path.unlink(missing_ok=True)
            (path.parent / name).write_text(json.dumps(content))
            said.clear()
            run(tmp_path, [str(tiny_llama)], tasks, settings=PLAIN)
            (message,) = said()
            assert "0.0.1" in message
        assert len(counted["cells"]) == 3

    def test_failing_cells_do_not_stop_the_others(self, tmp_path, tiny_llama, tiny_bert, counted, said):
        models = [str(tiny_bert), str(tiny_llama), str(tmp_path / "nowhere")]
        tasks = [*make_tasks(1), f"gone={tmp_path / 'gone.csv'}"]
        study = run(tmp_path / "out", models, tasks, settings=PLAIN)
        assert [c.status for c in study.cells] == ["failed", "failed", "done", "failed", "failed", "failed"]
        assert "causal" in study.cells[0].reason
        assert "gone.csv" in study.cells[3].reason
        assert all(c.traceback is None for c in study.cells)
        assert len(said()) == len(set(said())) == 3  # each reason once
        frame = study.frame()
        assert list(frame["status"]) == [c.status for c in study.cells]
        assert len(counted["cells"]) == 1

    def test_a_bug_is_logged_with_its_traceback_and_stored(self, tmp_path, tiny_llama, monkeypatch, caplog):
        real = ntps.study.cells.measure

        def measure(representations, *rest, **options):
            if representations.task.name == "task1":
                raise TypeError("a bug of ours")
            return real(representations, *rest, **options)

        monkeypatch.setattr(ntps.study.cells, "measure", measure)
        study = run(tmp_path, [str(tiny_llama)], make_tasks(2), settings=PLAIN)
        done, failed = study.cells
        assert (done.status, failed.status) == ("done", "failed")
        assert failed.reason == "TypeError: a bug of ours"
        assert 'raise TypeError("a bug of ours")' in failed.traceback
        (record,) = [record for record in caplog.records if record.levelname == "ERROR"]
        assert 'raise TypeError("a bug of ours")' in record.getMessage()

    def test_a_failed_cell_is_tried_again(self, tmp_path, tiny_llama, monkeypatch):
        real, broken = ntps.study.cells.measure, [True]

        def measure(*given, **options):
            if broken[0]:
                raise RuntimeError("no luck\ntoday")
            return real(*given, **options)

        monkeypatch.setattr(ntps.study.cells, "measure", measure)
        with pytest.raises(NtpsError, match=r"every cell failed.*RuntimeError: no luck today"):
            run(tmp_path, [str(tiny_llama)], make_tasks(1), settings=PLAIN)
        broken[0] = False
        assert run(tmp_path, [str(tiny_llama)], make_tasks(1), settings=PLAIN).cells[0].done

    def test_ctrl_c_keeps_what_is_done(self, tmp_path, tiny_llama, monkeypatch):
        real, calls = ntps.study.cells.measure, []

        def measure(*given, **options):
            calls.append(1)
            if len(calls) == 2:
                raise KeyboardInterrupt
            return real(*given, **options)

        monkeypatch.setattr(ntps.study.cells, "measure", measure)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, [str(tiny_llama)], make_tasks(3), settings=PLAIN)
        assert len(list((tmp_path / "cells").glob("*.json"))) == 1
        run(tmp_path, [str(tiny_llama)], make_tasks(3), settings=PLAIN)
        assert len(calls) == 4

    def test_models_of_one_architecture_share_their_control(self, tmp_path, tiny_llama, counted):
        twin = tmp_path / "twin"
        shutil.copytree(tiny_llama, twin)
        from safetensors.torch import load_file, save_file

        weights = load_file(twin / "model.safetensors")
        save_file({k: v * 1.1 for k, v in weights.items()}, twin / "model.safetensors", {"format": "pt"})
        study = run(tmp_path / "out", [str(tiny_llama), str(twin)], make_tasks(1))
        assert len(counted["cells"]) == 3
        assert [c.status for c in study.cells] == ["done"] * 4
        assert study.frame()["ntps_random"].nunique() == 1


class TestLocks:
    def test_a_cell_that_another_process_computes_is_left_to_it(self, tmp_path, tiny_llama, counted):
        """Another process holds a cell, computes it meanwhile, and lets go: it is read, not computed."""
        models, tasks = [str(tiny_llama)], make_tasks(3)
        elsewhere = run(tmp_path / "elsewhere", models, tasks, settings=PLAIN)
        for calls in counted.values():
            calls.clear()
        grid, store = make_grid(models, tasks, PLAIN), CellStore(tmp_path / "here")
        cell, result = grid.cells[0], elsewhere.cells[0]
        locked, release = threading.Event(), threading.Event()

        def other():
            with store.lock(cell) as held:
                assert held
                locked.set()
                release.wait(60)
                store.write(cell, replace(result, reason="from elsewhere"))

        thread = threading.Thread(target=other)
        thread.start()
        locked.wait(60)
        real = ntps.study.cells.measure

        def measure(representations, *rest, **options):
            if representations.task.name == "task2":
                release.set()
            return real(representations, *rest, **options)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ntps.study.cells, "measure", measure)
            results = run_cells(grid, store, PLAIN, show=False)
        thread.join()
        assert counted["cells"] == [("task1", False), ("task2", False)]
        assert results[0].reason == "from elsewhere"
        assert [r.done for r in results] == [True] * 3

    def test_a_lock_whose_holder_died_is_free(self, tmp_path, tiny_llama, counted):
        models, tasks = [str(tiny_llama)], make_tasks(1)
        grid, store = make_grid(models, tasks, PLAIN), CellStore(tmp_path)
        process = subprocess.Popen(
            [sys.executable, "-c", HOLD, str(store.folder / "locks"), store.path(grid.cells[0]).stem],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert process.stdout.readline() == "held\n"
        with store.lock(grid.cells[0]) as held:
            assert not held
        process.kill()
        process.wait()
        run(tmp_path, models, tasks, settings=PLAIN)
        assert len(counted["cells"]) == 1

    @pytest.mark.long
    def test_processes_share_a_folder(self, tmp_path, tiny_llama):
        """Two at once: every cell is computed by one of them, and both return the whole study."""
        report = run_script("share", tmp_path, tiny_llama, 2)
        assert report["cells"] == sorted([task.name, control] for task in make_tasks() for control in (False, True))
        assert report["busy"] == 2
        assert report["cells_equal"]
        assert report["results_equal"]

    def test_half_written_files_of_the_dead_are_swept_and_of_the_living_are_not(self, tmp_path, tiny_llama):
        grid, store = make_grid([str(tiny_llama)], make_tasks(2), PLAIN), CellStore(tmp_path)
        (tmp_path / "cells").mkdir()
        first, second = (store.path(cell) for cell in grid.cells)
        dead = first.with_name(f".{first.name}.0123456789ab.part")
        dead.write_text("{")
        with atomic_path(second) as living:
            store.sweep()
            assert [dead.exists(), living.exists()] == [False, True]
            living.write_text("{}")
        assert second.read_text() == "{}"

    def test_a_folder_that_cannot_be_written(self, tmp_path, tiny_llama):
        (tmp_path / "locks").write_text("")
        with pytest.raises(NtpsError, match="cannot write"):
            run(tmp_path, [str(tiny_llama)], make_tasks(1))


class TestRequests:
    def test_names(self):
        assert list(name_tasks(["a/reviews.csv", "other=b/reviews.csv", "miniworld/topic"])) == [
            "reviews", "other", "miniworld/topic",
        ]  # fmt: skip
        with pytest.raises(NtpsError, match=r"two tasks are named 'reviews'.*NAME=PATH"):
            name_tasks(["a/reviews.csv", "b/reviews.csv"])

    def test_a_model_twice(self):
        with pytest.raises(NtpsError, match="given twice"):
            make_grid(["a", "a"], make_tasks(1), FAST)

    def test_a_model_under_two_spellings(self, tiny_llama):
        with pytest.raises(NtpsError, match="given twice"):
            make_grid([str(tiny_llama), f"{tiny_llama}/"], make_tasks(1), FAST)

    @pytest.mark.parametrize(
        ("option", "value"),
        [
            ("folds", 2),
            ("limit", 0),
            ("permutations", 0),
            ("seeds", 0),
            ("measure_layers", "some"),
            ("prefix", "all"),
            ("pooling", "max"),
        ],
    )
    def test_bad_settings(self, option, value):
        with pytest.raises(NtpsError, match=option):
            StudySettings(**{option: value})

    def test_a_model_is_fingerprinted_once(self, tiny_llama, monkeypatch):
        calls = []
        monkeypatch.setattr(
            ntps.study.grid, "model_fingerprint", lambda name, random_weights, **_: calls.append(random_weights) or "x"
        )
        grid = make_grid([str(tiny_llama)], make_tasks(3), replace(FAST, seeds=3))
        assert sorted(calls) == [False, True]
        assert len({cell.key for cell in grid.cells}) == 18

    def test_when_nothing_can_be_read_it_is_said_once(self, tmp_path, tiny_llama, said):
        with pytest.raises(NtpsError, match=r"gone\.csv"):
            run(tmp_path / "out", [str(tiny_llama)], [str(tmp_path / "gone.csv")])
        assert said() == []

    def test_torchrun_and_an_executor_exclude_each_other(self, tmp_path, tiny_llama, monkeypatch):
        for name, value in torchrun(2)[1].items():
            monkeypatch.setenv(name, value)
        with ThreadPoolExecutor(1) as executor, pytest.raises(NtpsError, match=r"executor.*torchrun"):
            run(tmp_path, [str(tiny_llama)], executor=executor)

    def test_output_is_a_file(self, tmp_path):
        (tmp_path / "x").write_text("")
        with pytest.raises(NtpsError, match="is a file"):
            run(tmp_path / "x", ["m"])

    def test_layer_at(self):
        assert [layer_at(depth, 5) for depth in OPTION_DEPTHS] == [0, 1, 2, 3, 4]
        assert [layer_at(depth, 4) for depth in OPTION_DEPTHS] == [0, 1, 2, 2, 3]


class TestHalves:
    def test_halves_are_stratified_and_equal_texts_stay_together(self):
        rng = np.random.default_rng(0)
        labels, groups = rng.choice(3, 200, p=[0.7, 0.2, 0.1]), rng.integers(0, 150, 200)
        labels = labels[groups]  # equal texts have one label
        first, second = split_halves(labels, groups, 1)
        assert sorted([*first, *second]) == list(range(200))
        assert set(groups[first]).isdisjoint(groups[second])
        counts = np.array([np.bincount(labels[half], minlength=3) for half in (first, second)])
        assert np.abs(counts[0] - counts[1]).max() <= 3
        assert not np.array_equal(first, split_halves(labels, groups, 2)[0])

    def test_noise_tasks_do_not_correlate_where_texts_are_not_shared(self):
        """24 tasks of random labels: R^2 of one layer against a ridge readout of a noisy copy of it."""
        apart, together = [], []
        for seed in range(12):
            rng = np.random.default_rng(seed)
            scores, targets = [], {"apart": [], "together": []}
            for _ in range(24):
                x, y = rng.standard_normal((160, 8)), rng.integers(0, 2, 160)
                copy = x + 0.5 * rng.standard_normal(x.shape)
                first, second = split_halves(y, np.arange(160), seed)
                scores.append(fitted_r2(x[first], y[first]))
                targets["apart"].append(fitted_r2(copy[second], y[second]))
                targets["together"].append(fitted_r2(copy[first], y[first]))
            apart.append(spearman(scores, targets["apart"], n_permutations=1).spearman)
            together.append(spearman(scores, targets["together"], n_permutations=1).spearman)
        assert abs(np.mean(apart)) < 0.15
        assert np.mean(together) > 0.5


def fitted_r2(x, y):
    """Share of the labels' variance that least squares explain."""
    x, y = x - x.mean(0), y - y.mean()
    return 1 - np.square(y - x @ np.linalg.lstsq(x, y, rcond=None)[0]).sum() / np.square(y).sum()


class TestCorrelations:
    def test_every_entry_says_what_it_is(self, finished):
        found = finished[0].correlations(n_permutations=200)
        for name in ("ntps", "explained", "retained", "explained_heldout", "logme", "hscore", "knn"):
            assert found[name]["selected_on"] == "fixed", name
        for name, entry in found.items():
            assert {"spearman", "interval", "p_value", "selected_on", "target"} <= set(entry), name
            assert entry["target"] == "balanced_accuracy"
            assert (entry["n"], entry["n_models"]) == (5, 2)
        assert -1 <= found["ntps"]["spearman_r2"] <= 1
        assert found["ntps:same_tasks"]["selected_on"] == "same_tasks"
        assert found["ntps:held_out_task"]["selected_on"] == "held_out"
        assert found["ntps:held_out_model"]["selected_on"] == "held_out"
        assert found["ntps:same_tasks"]["naive_p_value"] <= found["ntps:same_tasks"]["p_value"] + 0.05
        assert all("kendall" in row for row in found["ntps"]["per_model"].values())

    def test_fewer_than_four_tasks_are_refused_and_kept(self, tmp_path, tiny_llama):
        study = run(tmp_path, [str(tiny_llama)], make_tasks(3), settings=PLAIN)
        with pytest.raises(NtpsError, match="at least 4"):
            study.correlations()
        result = study.to_dict()
        assert result["correlations"] == {}
        assert "at least 4" in result["refused"]
        assert len(result["rows"]) == 3
        assert write_study(study, tmp_path)

    def test_a_planted_leak_is_caught(self, finished):
        """Noise in place of scores: the best of 35 options shines on the tasks it was chosen on, and nowhere else."""
        study, _, _ = finished
        rng = np.random.default_rng(3)
        cells = []
        for cell in study.cells:
            layers = [
                replace(layer, profile=replace(layer.profile, ntps=tuple(rng.normal(size=7))))
                for layer in cell.score.layers
            ]
            cells.append(replace(cell, score=replace(cell.score, layers=tuple(layers))))
        noise = replace(study, cells=tuple(cells))
        found = noise.correlations(n_permutations=499)
        same, held = found["ntps:same_tasks"], found["ntps:held_out_task"]
        assert abs(same["spearman"]) > 0.8
        assert same["p_value"] > 0.05
        assert held["p_value"] > 0.05
        assert held["spearman"] < abs(same["spearman"])

    def test_held_out_positions_know_nothing_of_the_task_left_out(self, finished):
        """Changing a task's target must not change what is collected for that task."""
        from ntps.study.selection import leave_one_out_selection

        study, _, _ = finished
        values, _ = study.options("ntps")
        models, tasks = study.usable()
        wanted = study.table("balanced_accuracy").loc[models, tasks].to_numpy()
        before = leave_one_out_selection(values, wanted, n_permutations=1)
        leaked = wanted.copy()
        leaked[:, 2] = 99.0
        after = leave_one_out_selection(values, leaked, n_permutations=1)
        assert np.array_equal(before.positions[:, 2], after.positions[:, 2])

    def test_a_model_without_results_is_left_out(self, finished):
        study, _, models = finished
        cells = [
            replace(c, status="failed", reason="x", score=None) if c.model == models[1] else c for c in study.cells
        ]
        assert replace(study, cells=tuple(cells)).usable()[0] == [models[0]]

    def test_frame(self, finished):
        frame = finished[0].frame()
        assert len(frame) == 10
        frame["ntps"] = 0.0  # a copy: the study's own table stays
        frame = finished[0].frame()
        assert (frame["ntps"] > 0).all()
        for name in (
            "ceiling_heldout_low",
            "ceiling_heldout_high",
            "ntps_p",
            "explained_heldout_random",
            "balanced_accuracy_random",
            "n_scored",
            "n_probed",
        ):
            assert name in frame
        first = frame.iloc[0]
        assert first["above_majority"] == pytest.approx(first["accuracy"] - first["majority_rate"])
        assert math.isclose(first["explained_gain"], first["explained_heldout"] - first["explained_heldout_random"])


class TestOfficial:
    """`convention="official"`: the released code's scores and probes beside everything else."""

    def test_all_scores_of_every_layer_are_kept(self, official, tiny_llama):
        kept = official.cells[0].score
        representations = collect(load_model(str(tiny_llama)), make_tasks(1)[0], progress=False)
        first = split_halves(make_tasks(1)[0].labels, labels_of(representations).groups, 0)[0]
        labels = [int(label) if i in set(first) else None for i, label in enumerate(make_tasks(1)[0].labels)]
        result = score(representations, labels=labels, convention="official")
        for record, scored in zip(kept.layers, result.layers, strict=True):
            np.testing.assert_allclose(record.official, scored.curve["ntps"])
            assert len(record.official) == 19
            assert math.isfinite(record.ntps)  # theory's stays beside it

    def test_layer_and_fraction_are_chosen_as_in_the_paper_and_on_other_tasks(self, official):
        values, options = official.options("ntps_official")
        assert np.isfinite(values).all() and options[-1] == {"depth": 1.0, "fraction": 0.95}
        assert 0 < len(options) <= 5 * 19
        entries = official.correlations(target="training_accuracy", n_permutations=20)
        chosen = entries["ntps_official:same_tasks"]
        assert chosen["selected_on"] == "same_tasks"
        assert all(option in options for option in chosen["options"])
        assert {"ntps_official:held_out_task", "ntps_official:held_out_model"} <= entries.keys()
        json.dumps(official.to_dict(target="training_error", n_permutations=20), allow_nan=False)

    @pytest.mark.long
    @pytest.mark.parametrize("target", [target for target in TARGETS if target != "gain"])
    def test_every_target_has_a_report(self, official, target, tmp_path):
        write_study(official, tmp_path, result=official.to_dict(target=target, n_permutations=20))
        page = (tmp_path / "report.html").read_text()
        assert str(escape(NAMES[target])) in page and f"<h2>What predicts {target.replace('_', ' ')}</h2>" in page
        assert f'alt="ntps against {target.replace("_", " ")}, by model"' in page

    def test_maps_and_points_are_of_the_target(self, official):
        ax = plot_against(official, "ntps", Figure().add_subplot(), target="training_error")
        values = official.table("training_error").to_numpy()[0]
        assert ax.containers[0].lines[0].get_ydata().tolist() == pytest.approx(values.tolist())
        default, other = (option_map(official, "ntps", target=name) for name in ("balanced_accuracy", "training_error"))
        assert not np.allclose(default, other)

    def test_they_are_there_if_asked_for(self, finished):
        assert all(record.official is None for record in finished[0].cells[0].score.layers)
        with pytest.raises(NtpsError, match="quantity is 'ntps_official'"):
            finished[0].options("ntps_official")
        with pytest.raises(NtpsError, match=r"target 'training_accuracy' .* convention='official'"):
            finished[0].correlations(target="training_accuracy")


class TestJson:
    def test_json_is_strict(self, finished):
        text = finished[0].to_json(n_permutations=99)
        assert json.loads(text, parse_constant=lambda name: pytest.fail(name))["kind"] == "ntps-study"


class TestCommand:
    def command(self, *arguments, monkeypatch):
        from ntps.cli import app as cli

        monkeypatch.setattr(sys, "argv", ["ntps", "study", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        return stopped.value.code

    def test_whole_and_again(self, tmp_path, tiny_llama, monkeypatch, capsys):
        arguments = ["--model", tiny_llama, "--output", tmp_path / "out", "--json", tmp_path / "a.json"]
        for task in make_tasks(4):
            path = tmp_path / f"{task.name}.csv"
            rows = [f"{text},{task.classes[label]}" for text, label in zip(task.texts, task.labels, strict=True)]
            path.write_text("text,label\n" + "\n".join(rows))
            arguments += ["--task", path]
        arguments += ["--folds", 3, "--permutations", 20, "--limit", 50, "--quiet"]
        assert self.command(*arguments, monkeypatch=monkeypatch) == 0
        assert capsys.readouterr().out == ""
        first = (tmp_path / "a.json").read_text()
        assert json.loads(first)["correlations"]["ntps"]["selected_on"] == "fixed"
        assert self.command(*arguments[:-1], monkeypatch=monkeypatch) == 0
        assert (tmp_path / "a.json").read_text() == first
        out = capsys.readouterr().out
        assert "explained_heldout" in out
        assert max(map(len, out.splitlines()[:-1])) <= 80

    def test_bad_input(self, tmp_path, tiny_llama, monkeypatch, capsys):
        for arguments in (["--limit", "1"], ["--target", "luck"], ["--folds", "1"], ["--model", tiny_llama]):
            given = ["--model", tiny_llama, "--task", "x.csv", "--output", tmp_path / "o", *arguments]
            assert self.command(*given, monkeypatch=monkeypatch) == 2
            message = capsys.readouterr().err
            assert message.startswith("ntps: ")
            assert message.count("\n") == 1


@pytest.mark.long
def test_killed_at_random_moments_it_computes_at_most_one_cell_twice(tmp_path, tiny_llama):
    report = run_script("kill", tmp_path, tiny_llama, 6, 0)
    assert report["killed"] >= 6
    assert report["most_wasted"] <= 1
    assert report["cells_equal"]
    assert report["results_equal"]
    assert report["warnings"] == []
    assert report["half_written"] == []


def test_paths_and_keys(tmp_path):
    store, grid = CellStore(tmp_path), make_grid(["nowhere"], make_tasks(2), PLAIN)
    assert len({cell.key for cell in grid.cells}) == 2
    assert store.path(grid.cells[0]).parent == tmp_path / "cells"
    assert store.read(grid.cells[0]) == (None, "")
    other = make_grid(["nowhere"], make_tasks(2), replace(PLAIN, folds=4))
    assert {cell.key for cell in grid.cells}.isdisjoint(cell.key for cell in other.cells)
    more = make_grid(["nowhere"], make_tasks(2), replace(PLAIN, seeds=2))
    assert {cell.key for cell in grid.cells} < {cell.key for cell in more.cells}  # what is there stays of use
    assert load_task(texts=["a", "b"], labels=[0, 1], name="t").name == "t"


FORGED = {
    "no probe": lambda r: r["score"]["probe"].pop("accuracy"),
    "a share of 9": lambda r: r["score"]["layers"][1].update(ntps=9.0),
    "an infinite share": lambda r: r["score"]["layers"][1].update(explained=float("inf")),
    "a short profile": lambda r: r["score"]["layers"][1]["profile"].update(ntps=[0.1]),
    "a layer twice": lambda r: r["score"]["layers"].append(r["score"]["layers"][0]),
    "no layer": lambda r: r["score"].update(layers=[]),
    "layers of words": lambda r: r["score"].update(layers="x"),
    "a negative count": lambda r: r["score"].update(n_texts=-1),
    "a count of words": lambda r: r["score"].update(n_texts="many"),
    "no score": lambda r: r.update(score=None),
    "another kind": lambda r: r.update(kind="magic"),
    "another field": lambda r: r.update(more=1),
    "another key": lambda r: r.update(key="0"),
    "a status": lambda r: r.update(status="perhaps"),
    "half a character": lambda r: r.update(reason="\udcff", status="?"),
}


class TestForgedCells:
    """Cells that were written by hand, with a checksum that fits, are computed again."""

    @pytest.fixture
    def kept(self, tmp_path):
        study = make_study()
        result = study.cells[0]
        cell = Cell(**result.position, key=result.key)
        store = CellStore(tmp_path)
        store.write(cell, result)
        return store, cell

    @pytest.mark.parametrize("forge", FORGED.values(), ids=FORGED)
    def test_a_checksum_that_fits_is_not_enough(self, kept, forge):
        store, cell = kept
        assert store.read(cell)[0] is not None
        content = json.loads(store.path(cell).read_text())
        forge(content["result"])
        content["checksum"] = sha256_json(content)
        store.path(cell).write_text(json.dumps(content))
        result, problem = store.read(cell)
        assert result is None and store.path(cell).name in problem

    @pytest.mark.parametrize(
        "text", ["[" * 100_000, "1" * 5000, "null", "[]", '"x"', '{"version": [], "result": 3}', "\ufeff{}", "{}"]
    )
    def test_what_is_no_cell(self, kept, text):
        store, cell = kept
        store.path(cell).write_text(text)
        assert store.read(cell)[0] is None
        (store.folder / "cells" / "other.json").write_text(text)
        store.outdated([cell])

    @pytest.mark.parametrize("forge", [
        lambda r: r["gain"].update(accuracy_after=7.0),
        lambda r: r["gain"].update(gain=-3.0),
        lambda r: r["gain"].update(n_test=-1),
        lambda r: r["gain"].update(layers={"first": r["gain"]["layers"]["0"]}),
        lambda r: r["gain"].pop("layers"),
    ])  # fmt: skip
    def test_gains(self, forge):
        cell = next(cell for cell in make_study(gains=True).cells if cell.kind == "gain" and cell.done)
        content = cell.to_dict()
        assert CellResult.from_dict(content) == cell
        forge(content)
        with pytest.raises(NtpsError):
            CellResult.from_dict(content)

    @pytest.mark.parametrize(
        "task", ["half \udcff", "中" * 400, "𠀀" * 400, "$a$", "../../x", "a/b\\c", "\x1b[31m", "x\0y"]
    )
    def test_any_name_has_a_file(self, tmp_path, task):
        store, result = (
            CellStore(tmp_path),
            replace(make_study().cells[0], task=clean(task)),
        )  # as `name_tasks` makes them
        cell = Cell(**result.position, key=result.key)
        store.write(cell, result)
        assert store.path(cell).parent == tmp_path / "cells"
        assert len(os.fsencode(store.path(cell).name)) < 120
        assert store.read(cell)[0].score == result.score


@pytest.mark.parametrize("error", [TypeError("odd"), RecursionError("deep"), KeyError(0)])
@pytest.mark.parametrize("place", ["task", "model"])
def test_a_fault_in_one_place_is_one_row_of_failed_cells(tmp_path, tiny_llama, monkeypatch, error, place):
    name = {"task": "load_named", "model": "model_fingerprint"}[place]
    real = getattr(ntps.study.grid, name)

    def fail_once(first, *rest, **options):
        if getattr(first, "name", first) in ("task1", "bad-model"):
            raise error
        return real(first, *rest, **options)

    monkeypatch.setattr(ntps.study.grid, name, fail_once)
    models = [str(tiny_llama), "bad-model"] if place == "model" else [str(tiny_llama)]
    study = run(tmp_path / "out", models, make_tasks(2), settings=PLAIN)
    failed = [cell for cell in study.cells if not cell.done]
    assert len(failed) == (2 if place == "model" else 1)
    assert all(type(error).__name__ in cell.reason for cell in failed)


def test_a_lock_that_is_a_link_is_not_followed(tmp_path, tiny_llama):
    (tmp_path / "precious").write_text("x")
    store, cell = CellStore(tmp_path), make_grid(["nowhere"], make_tasks(1), PLAIN).cells[0]
    (tmp_path / "locks").mkdir()
    (tmp_path / "locks" / f"{store.path(cell).stem}.lock").symlink_to(tmp_path / "precious")
    with pytest.raises(NtpsError, match="is a link"), store.lock(cell):
        pass
    assert (tmp_path / "precious").read_text() == "x"
