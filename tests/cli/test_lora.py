"""`ntps lora`: table, JSON, files, and bad input as one sentence."""

import json

import pytest
from helpers.forks import torchrun
from helpers.problems import order_task

from ntps.cli import app as cli

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]


@pytest.fixture
def run(monkeypatch, capsys):
    """Call `ntps lora` in this process; return (status, stdout, stderr)."""

    def call(*arguments):
        monkeypatch.setattr("sys.argv", ["ntps", "lora", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        out, err = capsys.readouterr()
        return stopped.value.code, out, err

    return call


@pytest.fixture(scope="module")
def reviews(tmp_path_factory):
    task = order_task(96)
    rows = [f"{text},{task.classes[label]}" for text, label in zip(task.texts, task.labels, strict=True)]
    path = tmp_path_factory.mktemp("texts") / "reviews.csv"
    path.write_text("\n".join(["review,stars", *rows]) + "\n")
    return path


FAST = ("--text-column", "review", "--label-column", "stars", "--steps", 4, "--rank", 4, "--folds", 2)


def test_table_json_and_files(run, tiny_llama, reviews, tmp_path):
    status, out, err = run(tiny_llama, reviews, *FAST, "--output", tmp_path / "out", "--json", tmp_path / "r.json")
    assert status == 0
    assert "Traceback" not in err
    assert max(map(len, out.splitlines()[:-1])) <= 80
    assert "accuracy" in out
    assert "points over the frozen linear probe" in " ".join(out.split())
    row = json.loads((tmp_path / "r.json").read_text())
    assert row["kind"] == "ntps-lora"
    assert row["settings"]["steps"] == 4
    assert row["settings"]["rank"] == 4
    assert row["gain"] == row["after"]["accuracy"] - row["before"]["accuracy"]
    assert json.loads((tmp_path / "out" / "lora.json").read_text()) == row
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"adapter_config.json", "adapter_model.safetensors", "head.safetensors", "training.json",
                     "state.safetensors", "lora.json"}  # fmt: skip
    status, out, err = run(tiny_llama, reviews, *FAST, "--output", tmp_path / "out", "--resume", "--json", "-")
    assert status == 0
    assert json.loads(out) == row


def test_options_reach_the_training(run, tiny_llama, reviews):
    status, out, _ = run(
        tiny_llama, reviews, *FAST, "--method", "full", "--learning-rate", 1e-4, "--batch-size", 8, "--limit", 60,
        "--max-length", 5, "--optimizer", "adafactor", "--dtype", "float32", "--device", "cpu", "--seed", 3,
        "--layers", "0,-1", "--margin", 0.5, "--quiet", "--json", "-",
    )  # fmt: skip
    assert status == 0
    row = json.loads(out)
    assert row["n_train"] + row["n_validation"] + row["n_test"] == 60
    assert row["seed"] == 3
    expected = {"method": "full", "learning_rate": 1e-4, "batch_size": 8, "max_length": 5, "optimizer": "adafactor"}
    assert row["settings"]["margin"] == 0.5
    assert {name: row["settings"][name] for name in expected} == expected
    assert [layer["layer"] for layer in row["after"]["layers"]] == [0, 3]


def test_seeds(run, tiny_llama, reviews, tmp_path):
    status, out, _ = run(tiny_llama, reviews, *FAST, "--seeds", 2, "--output", tmp_path, "--target", "q_proj,v_proj")
    assert status == 0
    assert "mean of 2 seeds" in " ".join(out.split())
    row = json.loads((tmp_path / "lora.json").read_text())
    assert [run["seed"] for run in row["seeds"]] == [0, 1]
    config = json.loads((tmp_path / "seed-1" / "adapter_config.json").read_text())
    assert all(name.endswith(("q_proj", "v_proj")) for name in config["target_modules"])


@pytest.mark.parametrize(
    "options, culprit",
    [
        (["--rank", "0"], "rank is 0"),
        (["--margin", "-1"], "margin"),
        (["--learning-rate", "0"], "--learning-rate is 0.0"),
        (["--learning-rate", "nan"], "--learning-rate"),
        (["--method", "dora"], "choose one of: lora, probe, full, scratch"),
        (["--steps", "-1"], "steps is -1"),
        (["--folds", "1"], "--folds is 1"),
        (["--limit", "0"], "--limit is 0"),
        (["--seeds", "0"], "--seeds is 0"),
        (["--resume"], "--resume needs --output"),
        (["--optimizer", "sgd"], "adafactor"),
        (["--steps", "many"], "'--steps'"),
        (["--output", __file__], "is a file; name a folder"),
    ],
)
def test_options_are_refused_before_anything_is_loaded(run, options, culprit):
    status, out, err = run("no-such-model", "no-such-task.csv", *options)
    assert (status, out) == (2, "")
    assert culprit in err
    assert len(err.strip().splitlines()) == 1


def test_an_output_in_the_model_s_own_directory_is_refused_before_anything_is_loaded(run, tiny_llama, tmp_path):
    before = sorted(path.name for path in tiny_llama.iterdir())
    (tmp_path / "link").symlink_to(tiny_llama)
    for output in (tiny_llama, tiny_llama / "tuned", tmp_path / "link"):
        status, out, err = run(tiny_llama, "no-such-task.csv", "--output", output)
        assert (status, out) == (2, "")
        assert "--output is" in err
        assert "in the directory of" in err
    assert sorted(path.name for path in tiny_llama.iterdir()) == before


def test_bad_input_is_one_sentence(run, tiny_llama, reviews, tmp_path):
    for arguments, culprit in (
        ((tiny_llama, tmp_path / "none.csv"), "file not found"),
        ((tmp_path / "none", reviews, *FAST), "no such directory"),
        ((tiny_llama, reviews, *FAST, "--rank", 25), "above the model's width; choose between 1 and 24"),
        ((tiny_llama, reviews, *FAST, "--target", "query"), "q_proj, k_proj, v_proj, o_proj"),
        ((tiny_llama, reviews, *FAST, "--limit", 3), "class"),
        ((tiny_llama, reviews, *FAST, "--learning-rate", 1e30, "--steps", 9), "--learning-rate below"),
    ):
        status, out, err = run(*arguments, "--quiet")
        assert (status, out) == (2, ""), err
        assert culprit in err, err
        assert len(err.strip().splitlines()) == 1


PROCESSES = """
import sys
import torch
from ntps.cli import app
torch.set_num_threads(1)
sys.argv = ["ntps", "lora", *{arguments!r}, "--output", "{output}"]
app.main()
"""


@pytest.mark.long
def test_two_processes_write_and_say_once_what_one_does(tiny_llama, reviews, tmp_path, forks):
    arguments = [str(tiny_llama), str(reviews), *map(str, FAST), "--dropout", "0"]
    found = []
    for name, several in (("two", torchrun(2)), ("one", [{}])):
        folder = tmp_path / name
        done = forks.run(PROCESSES.format(arguments=arguments, output=folder), *several)
        assert [each.returncode for each in done] == [0] * len(several), done[-1].stderr[-2000:]
        assert [(each.stdout, each.stderr) for each in done[1:]] == [("", "")] * (len(several) - 1)
        found.append((json.loads((folder / "lora.json").read_text()), sorted(path.name for path in folder.iterdir())))
    (two, files), (one, same_files) = found
    assert files == same_files
    assert two["gain"] == pytest.approx(one["gain"]) and two["best_step"] == one["best_step"]
    assert two["curve"][-1] == pytest.approx(one["curve"][-1], rel=1e-3)
