"""docs/cluster.md: its files are what SLURM, Python and this package take, and the array divides a study."""

import ast
import inspect
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.kill_study import make_tasks

import ntps

PAGE = Path(__file__).parents[1] / "docs" / "cluster.md"
ARRAY, JOBQUEUE = PAGE.parent / "cluster" / "array.sbatch", PAGE.parent / "cluster" / "jobqueue.py"


def test_the_page_links_its_files():
    links = re.findall(r"\]\((cluster/[^)]*)\)", PAGE.read_text())
    assert {PAGE.parent / link for link in links} == set(ARRAY.parent.iterdir()) == {ARRAY, JOBQUEUE}


def test_slurm_reads_the_array():
    """Of a script's comments SLURM reads those before the first command."""
    assert subprocess.run(["bash", "-n", ARRAY], check=False).returncode == 0
    first, *lines = ARRAY.read_text().splitlines()
    assert first == "#!/bin/bash"
    commands = [number for number, line in enumerate(lines) if not line.startswith("#")]
    options = [number for number, line in enumerate(lines) if line.startswith("#SBATCH --")]
    assert len(options) >= 5 and max(options) < min(commands)


@pytest.mark.parametrize(
    "code", [JOBQUEUE.read_text(), *re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)]
)
def test_python_takes_the_code(code):
    tree = ast.parse(code)
    compile(tree, "code", "exec")
    calls = [
        node for node in ast.walk(tree) if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "run_study"
    ]
    assert calls and "__main__" in code
    for call in calls:
        inspect.signature(ntps.run_study).bind(*call.args, **{word.arg: word.value for word in call.keywords})


@pytest.mark.long
@pytest.mark.slow
def test_the_array_divides_a_study(tmp_path, tiny_llama):
    (tmp_path / "ntps").write_text(f'#!/bin/bash\nexec "{sys.executable}" -m ntps "$@"\n')
    (tmp_path / "ntps").chmod(0o755)
    words = ["--model", str(tiny_llama), "--permutations", "20", "--folds", "3", "--no-control"]
    for task in make_tasks(3):
        rows = [f"{text},{task.classes[label]}" for text, label in zip(task.texts, task.labels, strict=True)]
        (tmp_path / f"{task.name}.csv").write_text("text,label\n" + "\n".join(rows) + "\n")
        words += ["--task", f"{task.name}.csv"]
    path = {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join(part for part in sys.path if part),
    }
    elements = [
        subprocess.Popen(
            ["bash", ARRAY, *words], cwd=tmp_path, env={**os.environ, **path, "SLURM_ARRAY_TASK_ID": number},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )
        for number in "12"
    ]  # fmt: skip
    assert [(element.communicate(timeout=900)[0], element.returncode) for element in elements] == [(b"", 0)] * 2
    cells = json.loads((tmp_path / "study" / "study.json").read_text())["cells"]
    assert [cell["status"] for cell in cells] == ["done"] * 3
    assert len(list((tmp_path / "study" / "cells").glob("*.json"))) == 3
