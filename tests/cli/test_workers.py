"""`ntps study` in several processes: the same words as in one, and none is left behind."""

import json
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest
from helpers.forks import torchrun
from helpers.kill_study import make_tasks

pytestmark = [pytest.mark.slow, pytest.mark.long]


@pytest.fixture
def words(tmp_path, tiny_llama):
    """A study of two tasks that can be scored, and of one that has too few texts."""
    words = ["study", "--model", str(tiny_llama), "--permutations", "20", "--folds", "5", "--max-length", "3"]
    words += ["--no-control"]
    for task in [*make_tasks(2), make_tasks(3, n=12)[2]]:
        rows = [f"{text},{task.classes[label]}" for text, label in zip(task.texts, task.labels, strict=True)]
        (tmp_path / f"{task.name}.csv").write_text("text,label\n" + "\n".join(rows) + "\n")
        words += ["--task", f"{task.name}.csv"]
    return words


def start(folder, *words):
    command = [sys.executable, "-m", "ntps", *words]
    path = os.pathsep.join(part for part in sys.path if part)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": path}
    return subprocess.Popen(
        command, cwd=folder, env=environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # a shell's background ignores it
    )  # fmt: skip


def test_the_same_words_as_in_one_process(tmp_path, words):
    said = []
    for workers in ("1", "2"):
        process = start(tmp_path, *words, "--workers", workers, "--output", workers, "--json", f"{workers}.json")
        out, err = process.communicate(timeout=900)
        assert process.returncode == 0, err
        said.append((json.loads((tmp_path / f"{workers}.json").read_text()), out.replace(f"{workers}/report", ""), err))
    assert said[0][:2] == said[1][:2]
    lines = [err.splitlines() for *_, err in said]
    assert [cell["status"] for cell in said[0][0]["cells"]].count("failed") == 1
    assert len(lines[1]) == len(set(lines[1])) and set(lines[1]) == set(lines[0])
    assert any("60 of 60 texts" in line for line in lines[1]) and any("task2" in line for line in lines[1])


TORCHRUN = """
import os, sys
import torch
import ntps.report.study as pages
from ntps.cli import app
from ntps.report.page import Picture
from ntps.study import cells
torch.set_num_threads(1)
pages.draw_picture = lambda file, alt, *_, **__: Picture(file, alt, b"")
os.chdir({place!r})
plain = cells.measure

def measure(representations, *rest, **options):
    with open("{output}.log", "a") as log:
        print(os.getpid(), representations.task.name, options["control"], file=log)
    return plain(representations, *rest, **options)

cells.measure = measure
sys.argv = ["ntps", *{words!r}, "--output", "{output}", "--json", "{output}.json"]
app.main()
"""


def test_torchrun_s_processes_share_the_cells(tmp_path, words, forks):
    """The first one says and writes what one process would, the other nothing; no cell is computed twice."""
    words = [word for word in words if word != "--no-control"]
    said, contents, computed = [], [], []
    for output, several in (("several", torchrun(2)), ("one", [{}])):
        done = forks.run(TORCHRUN.format(place=str(tmp_path), words=words, output=output), *several)
        assert [each.returncode for each in done] == [0] * len(several), done[-1].stderr[-2000:]
        assert [(each.stdout, each.stderr) for each in done[1:]] == [("", "")] * (len(several) - 1)
        assert done[0].stderr.count("task2, seed 0 failed") == 1
        said.append(done[0].stdout.replace(f"{output}/", ""))
        contents.append(json.loads((tmp_path / f"{output}.json").read_text()))
        computed.append([line.split() for line in (tmp_path / f"{output}.log").read_text().splitlines()])
    assert said[0] == said[1] and "2 failed" in said[0]
    assert contents[0] == contents[1]
    cells = [sorted(cell for _, *cell in lines if cell[0] != "task2") for lines in computed]  # which may be tried again
    assert cells[0] == cells[1] == [[task, control] for task in ("task0", "task1") for control in ("False", "True")]
    assert len({process for process, *_ in computed[0]}) == 2
    names = [sorted(str(path.relative_to(tmp_path / name)) for path in (tmp_path / name).rglob("*")) for name in
             ("several", "one")]  # fmt: skip
    assert names[0] == names[1] and not [name for name in names[0] if "/." in name or name.startswith(".")]


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_the_workers_end_with_the_command(tmp_path, words, number, status):
    process = start(tmp_path, *words, "--workers", "2", "--output", "out", "--limit", "60", "--seeds", "50")
    while not list((tmp_path / "out" / "cells").glob("*.json")):
        time.sleep(0.1)
        assert process.poll() is None, process.stderr.read()
    others = psutil.Process(process.pid).children(recursive=True)
    assert len(others) >= 2
    if number == signal.SIGINT:  # as a terminal does
        os.killpg(process.pid, number)
    else:
        process.send_signal(number)
    _, err = process.communicate(timeout=300)
    assert process.returncode == status
    assert psutil.wait_procs(others, timeout=120)[1] == []
    if number != signal.SIGKILL:  # of which Python complains, as it leaves semaphores
        lines = [line for line in err.split("\n") if line and "60 texts" not in line and "failed" not in line]
        assert lines == ["ntps: interrupted; what was finished is kept."]
