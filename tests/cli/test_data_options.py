"""Every command that reads tasks takes the same options for data and models, and messages name its own options."""

import json
import shutil
import sys

import pytest
import typer
from helpers.models import WORDS

from ntps.cli import app as cli
from ntps.cli.options import DATA, LOADING

COMMANDS = ("score", "rank", "study", "lora", "prescreen")


def call(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["ntps", *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        cli.main()
    return end.value.code, capsys.readouterr().err


def arguments(command, model, task, folder):
    """The words that start a command on one model and one task."""
    if command == "study":
        return [command, "--model", model, "--task", task, "--output", folder / "study", "--quiet"]
    if command == "rank":
        return [command, task, "--model", model, "--quiet"]
    return [command, model, *(["--task", task] if command == "prescreen" else [task]), "--quiet"]


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_share_the_options_and_their_defaults(command):
    options = {option.name: option for option in typer.main.get_command(cli.app).commands[command].params}
    for name, (_, default) in {**DATA, **LOADING}.items():
        assert options[name].default == default, name


@pytest.mark.parametrize("command", COMMANDS)
def test_threads_are_set_before_anything_is_computed(tiny_llama, tmp_path, monkeypatch, capsys, command):
    asked = []
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setattr("torch.set_num_threads", asked.append)
    monkeypatch.setattr("threadpoolctl.threadpool_limits", lambda limits: asked.append(limits))
    words = arguments(command, tiny_llama, tmp_path / "gone.csv", tmp_path)
    status, err = call(monkeypatch, capsys, *words)
    assert status == 2 and "gone.csv" in err and asked == []
    call(monkeypatch, capsys, *words, "--threads", "3")
    assert asked == [3, 3]


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    ("content", "options", "words"),
    [
        ("text,title,label\na,b,x\nc,d,y\n", [], ["ambiguous", "--text-column"]),
        ("text,stars\na,x\nc,y\n", [], ["no label column", "--label-column"]),
        ("text,stars\na,x\nc,y\n", ["--label-column", "star"], ["'star'", "text, stars"]),
        ("a b,x\nc d,y\n", [], ["first line", "--no-header", "--text-column"]),
        ("text,label\na,x\nb,\n", [], ["line 3", "missing", "--drop-missing"]),
        ("text,label\na,x\nb,y\n", ["--split", "train"], ["--split 'train'", "no meaning"]),
        ("text,label\n" + "".join(f"{n},id{n}\n" for n in range(30)), [], ["30 classes", "--label-column"]),
        ("text,label\na,0.5\nb,1.5\n", [], ["line 2", "'0.5'", "--regression"]),
        ("text,label\n" + "".join(f"{n},{n}\n" for n in range(30)), [], ["30 classes", "--regression"]),
    ],
)
def test_advice_names_options_of_the_command(
    tiny_llama, tmp_path, monkeypatch, capsys, command, content, options, words
):
    path = tmp_path / "t.csv"
    path.write_text(content)
    status, err = call(monkeypatch, capsys, *arguments(command, tiny_llama, path, tmp_path), *options)
    last = err.splitlines()[-1]
    assert status == 2 and last.startswith("ntps: ")
    assert all(word in last for word in words), last
    assert "_column" not in err and "header=" not in err and "=True" not in err


@pytest.mark.slow
@pytest.mark.parametrize("command", ["study", "prescreen"])
def test_reasons_within_a_result_name_options_too(tiny_llama, tmp_path, monkeypatch, capsys, command):
    """One task fails, the other does not: the reason is part of the table and of the JSON."""
    rows = [f"{WORDS[n]} {WORDS[n + 1]} a film,{'yes' if n % 2 else 'no'}" for n in range(40)]
    (tmp_path / "good.csv").write_text("text,label\n" + "\n".join(rows) + "\n")
    (tmp_path / "bad.csv").write_text("text,stars\na,x\nc,y\n")
    words = arguments(command, tiny_llama, tmp_path / "good.csv", tmp_path)
    if command == "study":
        words += ["--no-control", "--permutations", "1"]
    status, err = call(monkeypatch, capsys, *words, "--task", tmp_path / "bad.csv", "--json", tmp_path / "out.json")
    assert status in (None, 0), err
    written = [
        path.read_text() for path in tmp_path.rglob("*") if path.name in ("out.json", "study.json", "report.html")
    ]
    assert all("--label-column" in text and "label_column (known" not in text for text in written)


@pytest.mark.slow
def test_reasons_of_models_that_fail_name_options_too(tiny_llama, tmp_path, monkeypatch, capsys):
    config = json.loads((tiny_llama / "config.json").read_text())
    own = shutil.copytree(tiny_llama, tmp_path / "own")
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.Config", "AutoModel": "own.Model"}}
    (own / "config.json").write_text(json.dumps(config))
    (own / "own.py").write_text("")
    rows = [f"{WORDS[n]} {WORDS[n + 1]} a film,{'yes' if n % 2 else 'no'}" for n in range(40)]
    (tmp_path / "good.csv").write_text("text,label\n" + "\n".join(rows) + "\n")
    words = ["rank", tmp_path / "good.csv", "--model", tiny_llama, "--model", own, "--no-control", "--quiet"]
    status, _ = call(monkeypatch, capsys, *words, "--json", tmp_path / "out.json")
    (failed,) = json.loads((tmp_path / "out.json").read_text())["failed"]
    assert status in (None, 0)
    assert failed["name"] == "own" and "--trust-remote-code" in failed["reason"] and "=True" not in failed["reason"]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_task_s_own_options_are_read(tiny_llama, tmp_path, monkeypatch, capsys, command):
    path = tmp_path / "t.csv"
    path.write_text("a b,x\nc d,x\n")
    given = f"mine={path}:no-header,text=1,label=2"
    status, err = call(monkeypatch, capsys, *arguments(command, tiny_llama, given, tmp_path))
    assert status == 2 and "mine has one class ('x')" in err
