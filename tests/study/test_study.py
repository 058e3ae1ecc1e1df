"""Studies: cells that survive anything, and correlations that say how they were chosen."""

import json
import math
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers.kill_study import SETTINGS, make_tasks

import ntps.study.cells
from ntps._files import sha256_json
from ntps.errors import NtpsError
from ntps.report.study import write_study
from ntps.report.study_plots import option_map, plot_models
from ntps.study.cells import cell_path, make_grid, name_tasks, parse_share, read_cell
from ntps.study.locks import lock_folder
from ntps.study.measure import SHARES, StudySettings, layer_at
from ntps.study.study import OPTION_DEPTHS, run_study
from ntps.tasks.load import load_task

FAST = SETTINGS


@pytest.fixture(scope="module")
def finished(tmp_path_factory, tiny_llama, tiny_gpt2):
    """A study of two tiny models on five tasks with controls."""
    folder = tmp_path_factory.mktemp("study")
    models = [str(tiny_llama), str(tiny_gpt2)]
    return run_study(models, make_tasks(), output=folder, settings=FAST, progress=False), folder, models


@pytest.fixture
def counted(monkeypatch):
    """Count what is loaded and computed."""
    counts = {"load": [], "cells": []}
    load, measure = ntps.study.cells.load_model, ntps.study.cells.measure

    def counting_load(name, **options):
        counts["load"].append((Path(name).name, options["random_weights"]))
        return load(name, **options)

    def counting_measure(model, task, *rest, **options):
        counts["cells"].append((task.name, options["control"]))
        return measure(model, task, *rest, **options)

    monkeypatch.setattr(ntps.study.cells, "load_model", counting_load)
    monkeypatch.setattr(ntps.study.cells, "measure", counting_measure)
    return counts


def run(folder, models, tasks=None, said=None, **options):
    say = (lambda message: None) if said is None else said.append
    options = {"settings": FAST, "progress": False, "say": say, **options}
    return run_study(models, make_tasks() if tasks is None else tasks, output=folder, **options)


class TestCells:
    def test_one_loading_a_model_and_nothing_twice(self, tmp_path, tiny_llama, counted):
        first = run(tmp_path, [str(tiny_llama)], make_tasks(2))
        assert [random for _, random in counted["load"]] == [False, True]
        assert len(counted["cells"]) == 4
        counted["cells"].clear(), counted["load"].clear()
        assert run(tmp_path, [str(tiny_llama)], make_tasks(2)).to_json() == first.to_json()
        assert counted == {"load": [], "cells": []}
        run(tmp_path, [str(tiny_llama)], make_tasks(3))
        assert counted["cells"] == [("task2", False), ("task2", True)]

    def test_a_cell_is_the_score(self, finished):
        from ntps import collect_moments, load_model, score

        study, _, models = finished
        content = study.contents[0]
        moments = collect_moments(load_model(models[0]), make_tasks()[0], folds=3, fold_prefix=True, progress=False)
        assert content["score"]["layers"] != []
        for row, scored in zip(content["score"]["layers"], score(moments).to_dict()["layers"], strict=True):
            for name in ("ntps", "explained", "retained", "explained_heldout", "excess_loss", "k_v"):
                assert row[name] == pytest.approx(scored[name], rel=1e-6), name
            for name, values in row["curve"].items():
                assert values == pytest.approx(scored["curve"][name], rel=1e-6, abs=1e-9), name
            assert {"ntps", "explained"} == set(row["null"])
            assert {"ntps", "explained", "retained", "explained_heldout", "ceiling_heldout"} == set(row["interval"])
            assert row["grid"]["share"] == list(SHARES)

    @pytest.mark.parametrize("change", ["truncate", "flip", "empty", "binary"])
    def test_a_damaged_cell_is_computed_again_and_said_so(self, tmp_path, tiny_llama, counted, change):
        tasks = make_tasks(2)
        whole = run(tmp_path, [str(tiny_llama)], tasks, control=False)
        path = sorted((tmp_path / "cells").glob("task1*.json"))[0]
        data = path.read_bytes()
        broken = {"truncate": data[: len(data) // 2], "flip": data.replace(b'"n_texts": 60', b'"n_texts": 61'),
                  "empty": b"", "binary": bytes(range(256))}[change]  # fmt: skip
        assert broken != data
        path.write_bytes(broken)
        counted["cells"].clear()
        said = []
        assert run(tmp_path, [str(tiny_llama)], tasks, said, control=False).to_json() == whole.to_json()
        assert counted["cells"] == [("task1", False)]
        assert len(said) == 1
        assert "damaged" in said[0]
        assert path.name in said[0]

    def test_a_cell_of_another_version_is_computed_again_and_said_so(self, tmp_path, tiny_llama, counted):
        tasks = make_tasks(1)
        run(tmp_path, [str(tiny_llama)], tasks, control=False)
        (path,) = (tmp_path / "cells").glob("*.json")
        content = json.loads(path.read_text())
        content["version"] = "0.0.1"
        content["checksum"] = sha256_json(content)
        for name in (path.name, "task0-" + "a" * 24 + ".json"):  # under this key, or under that version's own
            path.unlink(missing_ok=True)
            (path.parent / name).write_text(json.dumps(content))
            said = []
            run(tmp_path, [str(tiny_llama)], tasks, said, control=False)
            assert len(said) == 1
            assert "0.0.1" in said[0]
        assert len(counted["cells"]) == 3

    def test_failing_cells_do_not_stop_the_others(self, tmp_path, tiny_llama, tiny_bert, counted):
        said = []
        models = [str(tiny_bert), str(tiny_llama), str(tmp_path / "nowhere")]
        tasks = [*make_tasks(1), f"gone={tmp_path / 'gone.csv'}"]
        study = run(tmp_path / "out", models, tasks, said, control=False)
        assert [c["status"] for c in study.contents] == ["failed", "failed", "done", "failed", "failed", "failed"]
        assert "causal" in study.contents[0]["reason"]
        assert "gone.csv" in study.contents[3]["reason"]
        assert len(said) == len(set(said)) == 3  # each reason once
        assert study.complete
        frame = study.frame()
        assert list(frame["status"]) == [c["status"] for c in study.contents]
        assert len(counted["cells"]) == 1

    def test_a_failed_cell_is_tried_again(self, tmp_path, tiny_llama, monkeypatch):
        real, broken = ntps.study.cells.measure, [True]

        def measure(*given, **options):
            if broken[0]:
                raise RuntimeError("no luck\ntoday")
            return real(*given, **options)

        monkeypatch.setattr(ntps.study.cells, "measure", measure)
        with pytest.raises(NtpsError, match=r"every cell failed.*RuntimeError: no luck today"):
            run(tmp_path, [str(tiny_llama)], make_tasks(1), control=False)
        broken[0] = False
        assert run(tmp_path, [str(tiny_llama)], make_tasks(1), control=False).contents[0]["status"] == "done"

    def test_ctrl_c_keeps_what_is_done(self, tmp_path, tiny_llama, monkeypatch):
        real, calls = ntps.study.cells.measure, []

        def measure(*given, **options):
            calls.append(1)
            if len(calls) == 2:
                raise KeyboardInterrupt
            return real(*given, **options)

        monkeypatch.setattr(ntps.study.cells, "measure", measure)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, [str(tiny_llama)], make_tasks(3), control=False)
        assert len(list((tmp_path / "cells").glob("*.json"))) == 1
        run(tmp_path, [str(tiny_llama)], make_tasks(3), control=False)
        assert len(calls) == 4

    def test_shares_make_the_whole(self, tmp_path, tiny_llama, counted, finished):
        models = [str(tiny_llama)]
        for index in (3, 1, 2):
            part = run(tmp_path, models, share=(index, 3))
            assert part.complete == (index == 2)
        assert len(counted["cells"]) == len(set(counted["cells"])) == 10
        whole, _, _ = finished
        mine = part.to_dict()["correlations"]["ntps"]["per_model"]
        assert mine[models[0]] == whole.to_dict()["correlations"]["ntps"]["per_model"][models[0]]

    def test_models_of_one_architecture_share_their_control(self, tmp_path, tiny_llama, counted):
        twin = tmp_path / "twin"
        shutil.copytree(tiny_llama, twin)
        from safetensors.torch import load_file, save_file

        weights = load_file(twin / "model.safetensors")
        save_file({k: v * 1.1 for k, v in weights.items()}, twin / "model.safetensors", {"format": "pt"})
        study = run(tmp_path / "out", [str(tiny_llama), str(twin)], make_tasks(1))
        assert len(counted["cells"]) == 3
        assert [c["status"] for c in study.contents] == ["done"] * 4
        assert study.frame()["ntps_random"].nunique() == 1


class TestLock:
    def test_one_run_at_a_time(self, tmp_path, tiny_llama):
        with lock_folder(tmp_path), pytest.raises(NtpsError, match="is in use by process"):
            run(tmp_path, [str(tiny_llama)])

    def test_shares_run_side_by_side_but_not_the_same_one(self, tmp_path):
        with lock_folder(tmp_path, (1, 2)), lock_folder(tmp_path, (2, 2)):
            with pytest.raises(NtpsError, match="in use"), lock_folder(tmp_path, (1, 2)):
                pass
            with pytest.raises(NtpsError, match="in use"), lock_folder(tmp_path):
                pass

    def test_half_written_files_are_swept(self, tmp_path):
        (tmp_path / "cells").mkdir()
        (tmp_path / "cells" / ".a.json.xyz.part").write_text("{")
        with lock_folder(tmp_path):
            assert not list((tmp_path / "cells").iterdir())


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

    @pytest.mark.parametrize("text", ["0/3", "4/3", "1", "a/b", "-1/3", "1/0"])
    def test_bad_shares(self, text):
        with pytest.raises(NtpsError, match="I/N"):
            parse_share(text)

    @pytest.mark.parametrize(
        ("option", "value"), [("folds", 2), ("limit", 0), ("n_permutations", 0), ("measure_layers", "some")]
    )
    def test_bad_settings(self, option, value):
        with pytest.raises(NtpsError, match=option):
            replace(StudySettings(), **{option: value}).check()

    def test_when_nothing_can_be_read_it_is_said_once(self, tmp_path, tiny_llama):
        said = []
        with pytest.raises(NtpsError, match=r"gone\.csv"):
            run(tmp_path / "out", [str(tiny_llama)], [str(tmp_path / "gone.csv")], said)
        assert said == []

    def test_output_is_a_file(self, tmp_path):
        (tmp_path / "x").write_text("")
        with pytest.raises(NtpsError, match="is a file"):
            run(tmp_path / "x", ["m"])

    def test_layer_at(self):
        assert [layer_at(depth, 5) for depth in OPTION_DEPTHS] == [0, 1, 2, 3, 4]
        assert [layer_at(depth, 4) for depth in OPTION_DEPTHS] == [0, 1, 2, 2, 3]


class TestCorrelations:
    def test_every_entry_says_what_it_is(self, finished):
        found = finished[0].correlations(n_permutations=200)
        for name in ("ntps", "explained", "retained", "explained_heldout", "logme", "hscore", "knn"):
            assert found[name]["selected_on"] == "fixed", name
        for name, entry in found.items():
            assert {"spearman", "interval", "p_value", "selected_on", "target"} <= set(entry), name
            assert entry["target"] == "above_majority"
        assert found["ntps:same_tasks"]["selected_on"] == "same_tasks"
        assert found["ntps:held_out_task"]["selected_on"] == "held_out"
        assert found["ntps:held_out_model"]["selected_on"] == "held_out"
        assert found["ntps:same_tasks"]["naive_p_value"] <= found["ntps:same_tasks"]["p_value"] + 0.05
        assert all("kendall" in row for row in found["ntps"]["per_model"].values())

    def test_fewer_than_four_tasks_are_refused_and_kept(self, tmp_path, tiny_llama):
        study = run(tmp_path, [str(tiny_llama)], make_tasks(3), control=False)
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
        contents = []
        for content in study.contents:
            layers = [{**layer, "grid": {**layer["grid"], "ntps": rng.normal(size=7).tolist()}}
                      for layer in content["score"]["layers"]]  # fmt: skip
            contents.append({**content, "score": {**content["score"], "layers": layers}})
        noise = replace(study, contents=tuple(contents))
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
        wanted = study.table("above_majority").loc[models, tasks].to_numpy()
        before = leave_one_out_selection(values, wanted, n_permutations=1)
        leaked = wanted.copy()
        leaked[:, 2] = 99.0
        after = leave_one_out_selection(values, leaked, n_permutations=1)
        assert np.array_equal(before.positions[:, 2], after.positions[:, 2])

    def test_a_model_without_results_is_left_out(self, finished):
        study, _, models = finished
        contents = tuple(
            {**c, "status": "failed", "reason": "x"} if c["model"] == models[1] else c for c in study.contents
        )
        assert replace(study, contents=contents).usable()[0] == [models[0]]

    def test_option_map_has_the_fixed_correlations(self, finished):
        study, _, _ = finished
        found = option_map(study, "explained")
        assert found.shape == (len(OPTION_DEPTHS), len(SHARES))
        assert np.abs(found).max() <= 1 + 1e-12

    def test_frame(self, finished):
        frame = finished[0].frame()
        assert len(frame) == 10
        for name in ("ntps_low", "ntps_high", "ntps_p", "explained_heldout_random", "above_majority_random"):
            assert name in frame
        first = frame.iloc[0]
        assert first["above_majority"] == pytest.approx(first["accuracy"] - first["majority_rate"])
        assert math.isclose(first["explained_gain"], first["explained_heldout"] - first["explained_heldout_random"])


class TestReport:
    def test_folder(self, finished):
        study, folder, _ = finished
        names = {path.name for path in write_study(study, folder)}
        assert {
            "report.html",
            "study.csv",
            "ntps.png",
            "ntps_by_model.png",
            "ntps_options.png",
            "ntps_permuted.png",
        } <= names
        text = (folder / "report.html").read_text()
        assert "held_out" in text
        assert "http" not in text.replace("http-equiv", "")

    def test_a_small_picture_for_each_model(self, finished):
        from matplotlib.figure import Figure

        study, _, models = finished
        found = study.correlations(n_permutations=99)
        figure = plot_models(study, "ntps", Figure(), correlations=found)
        assert len(figure.axes) == len(models)
        for ax, model in zip(figure.axes, models, strict=True):
            low, high = found["ntps"]["per_model"][model]["interval"]
            assert ax.get_title().startswith(Path(model).name)
            assert f"[{low:+.2f}, {high:+.2f}]" in ax.get_title()
            named = {text.get_text(): text.xy for text in ax.texts}
            rows = study.frame().set_index(["model", "task"])
            assert named == {
                t: (rows.loc[(model, t), "ntps"], rows.loc[(model, t), "above_majority"]) for t in study.tasks
            }
        assert not plot_models(study, "ntps", Figure()).axes[0].get_title().count("Spearman")

    def test_json_is_strict(self, finished):
        text = finished[0].to_json(n_permutations=99)
        assert json.loads(text, parse_constant=lambda name: pytest.fail(name))["complete"] is True


class TestCommand:
    def command(self, *arguments, monkeypatch):
        from ntps.cli import app as cli
        from ntps.cli.study import register

        if not any(command.name == "study" for command in cli.app.registered_commands):
            register(cli.app)
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
        for arguments in (["--cell", "0/2"], ["--target", "luck"], ["--folds", "1"], ["--model", tiny_llama]):
            given = ["--model", tiny_llama, "--task", "x.csv", "--output", tmp_path / "o", *arguments]
            assert self.command(*given, monkeypatch=monkeypatch) == 2
            message = capsys.readouterr().err
            assert message.startswith("ntps: ")
            assert message.count("\n") == 1


@pytest.mark.slow
def test_killed_at_random_moments_it_finishes_the_same(tmp_path, tiny_llama):
    script = Path(__file__).parents[1] / "helpers" / "kill_study.py"
    found = subprocess.run(
        [sys.executable, str(script), str(tmp_path), str(tiny_llama), "20", "0"],
        env={**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=900, check=True,
    )  # fmt: skip
    report = json.loads(found.stdout)
    assert report["killed"] >= 20
    assert report["most_wasted"] <= 1
    assert report["cells_equal"]
    assert report["results_equal"]
    assert report["complaints"] == []
    assert report["half_written"] == []


def test_paths_and_keys(tmp_path):
    grid = make_grid(["nowhere"], make_tasks(2), FAST, control=False)
    assert len({cell.key for cell in grid.cells}) == 2
    assert cell_path(tmp_path, grid.cells[0]).parent == tmp_path / "cells"
    assert read_cell(tmp_path, grid.cells[0]) == (None, "")
    other = make_grid(["nowhere"], make_tasks(2), replace(FAST, folds=4), control=False)
    assert {cell.key for cell in grid.cells}.isdisjoint(cell.key for cell in other.cells)
    assert load_task(texts=["a", "b"], labels=[0, 1], name="t").name == "t"
