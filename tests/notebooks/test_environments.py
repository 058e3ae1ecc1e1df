"""The conda environments and Binder's files say the same as pyproject.toml, and are read as meant."""

import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import time
import tomllib
import urllib.request
from pathlib import Path

import pytest
import yaml

from tools import pairs
from tools import run as lessons

ROOT = Path(__file__).resolve().parents[2]
FILES = ["environment.yml", "binder/environment.yml"]
CONDA_NAMES = {"pytorch": "torch", "pytorch-cpu": "torch", "matplotlib-base": "matplotlib", "seaborn-base": "seaborn"}
ONLY_CONDA = {"python", "pip"}
SPEC = re.compile(
    r"^([a-z0-9][a-z0-9._-]*)((?:>=|<=|==|=|<|>|!=)[0-9][0-9a-z.*]*(?:,(?:>=|<=|==|<|>|!=)[0-9][0-9a-z.*]*)*)?$"
)


def environment(file: str) -> list[str]:
    """Specs of an environment file."""
    return yaml.safe_load((ROOT / file).read_text())["dependencies"]


def split(spec: str) -> tuple[str, str]:
    """Name and version range of a spec."""
    found = SPEC.match(spec)
    assert found, f"{spec!r} is no package with an optional version range"
    return found[1], found[2] or ""


def required() -> dict[str, str]:
    """What pyproject.toml asks for: the library's needs and the lessons'."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return dict(split(spec) for spec in project["dependencies"] + project["optional-dependencies"]["notebooks"])


@pytest.mark.parametrize("file", FILES)
def test_dependencies_agree_with_pyproject(file):
    specs = environment(file)
    assert all(isinstance(spec, str) for spec in specs), "a pip section keeps Binder from caching the image"
    listed = {CONDA_NAMES.get(name, name): version for name, version in map(split, specs) if name not in ONLY_CONDA}
    assert listed == required()
    assert len(listed) == len(specs) - len(ONLY_CONDA), "a package is listed twice"


def test_the_lowest_versions_are_those_that_are_declared():
    """`make test-lowest` installs them; torch and pyarrow are what fits beside them."""
    lines = (ROOT / "constraints-lowest.txt").read_text().splitlines()
    tested = dict(line.split("==") for line in lines if not line.startswith("#"))
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    least = {name: version.removeprefix(">=") for name, version in map(split, declared)}
    assert tested.keys() == least.keys() | {"pyarrow"}
    for name in least.keys() - {"torch"}:
        assert f"{tested[name]}.".startswith(f"{least[name]}."), name


def test_the_two_environments_differ_in_torch_only():
    root, binder = (set(environment(file)) for file in FILES)
    assert {split(spec)[0] for spec in root ^ binder} == {"pytorch", "pytorch-cpu"}


@pytest.mark.parametrize("file", FILES)
def test_channels_and_python(file):
    data = yaml.safe_load((ROOT / file).read_text())
    assert data["name"] == "ntps" and data["channels"] == ["conda-forge", "nodefaults"]
    pinned = [spec for spec in data["dependencies"] if split(spec)[0] == "python"]
    assert pinned == ["python=3.11"], "repo2docker does not recognise a range"
    oldest = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"]
    assert oldest == ">=3.11"


@pytest.mark.parametrize("file", FILES)
def test_specs_are_conda_specs(file):
    for spec in environment(file):
        split(spec)
    rattler = pytest.importorskip(
        "rattler", reason="py-rattler is not installed: conda specs were read by a plain parser only"
    )
    for spec in environment(file):
        assert rattler.MatchSpec(spec, strict=True).name is not None
    with pytest.raises(Exception, match="not valid"):
        rattler.MatchSpec("numpy>=1.26 <", strict=True)


def test_binder_files_are_real_and_executable():
    for name in ("environment.yml", "postBuild", "start"):
        assert (ROOT / "binder" / name).is_file() and not (ROOT / "binder" / name).is_symlink()
    for name in ("postBuild", "start"):
        path = ROOT / "binder" / name
        assert os.access(path, os.X_OK)
        assert path.read_text().startswith("#!/bin/bash\n")
        assert subprocess.run(["bash", "-n", path], check=False).returncode == 0
    assert "set -euo pipefail" in (ROOT / "binder/postBuild").read_text()
    assert "pip install --no-deps" in (ROOT / "binder/postBuild").read_text()


def test_start_caps_threads_and_hands_over():
    command = [ROOT / "binder/start", "bash", "-c", "echo $OMP_NUM_THREADS $MKL_NUM_THREADS $0 $1", "lab", "a b"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env={"PATH": os.environ["PATH"]})
    assert done.stdout.split("\n")[0] == "1 1 lab a b"


@pytest.mark.parametrize(("given", "policy"), [({}, "PASSIVE"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE")])
def test_threads_wait_passively_unless_the_user_says_otherwise(given, policy, monkeypatch):
    beside = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"} | given
    echo = ["bash", "-c", "echo $OMP_WAIT_POLICY"]
    binder = subprocess.run([ROOT / "binder/start", *echo], capture_output=True, text=True, check=True, env=beside)
    assert binder.stdout.split() == [policy]
    rule = "include Makefile\nshow:\n\t@echo $$OMP_WAIT_POLICY\n"
    command = ["make", "--no-print-directory", "-f", "-", "show"]
    make = subprocess.run(command, cwd=ROOT, input=rule, capture_output=True, text=True, check=True, env=beside)
    assert make.stdout.split() == [policy]
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    assert lessons.environment("folder")["OMP_WAIT_POLICY"] == policy


def test_repo2docker_reads_binder_as_meant(tmp_path):
    beside = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    program = shutil.which("jupyter-repo2docker", path=beside)
    if program is None:
        pytest.skip("jupyter-repo2docker is not installed")
    shutil.copytree(ROOT / "binder", tmp_path / "binder")
    shutil.copy(ROOT / "environment.yml", tmp_path)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    done = subprocess.run(
        [program, "--debug", "--no-build", "."], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120
    )
    said = done.stdout + done.stderr
    assert done.returncode == 0, said[-2000:]
    assert "Building conda environment for python=3.11" in said
    assert '--file "binder/environment.yml"' in said
    assert "RUN ./binder/postBuild" in said
    assert 'R2D_ENTRYPOINT="${REPO_DIR}/binder/start"' in said


@pytest.mark.long
def test_a_notebook_saved_in_make_lab_reaches_its_script(tmp_path):
    """Started as `make lab` starts it: from another root, jupytext would not find its settings.

    What was saved there survives `make notebooks`, and so do the marks by which an exercise is graded.
    """
    pytest.importorskip("jupyterlab", reason="the notebooks extra is not installed")
    makefile = (ROOT / "Makefile").read_text().replace("\\\n", " ")
    (recipe,) = re.findall(r"^\t(.*jupyter lab.*)$", makefile, re.MULTILINE)
    (tmp_path / "notebooks").mkdir()
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for kind in ("py", "ipynb"):
        for name in ("00_start_here", "exercises/ex00_start_here"):
            shutil.copy(ROOT / f"notebooks/{name}.{kind}", tmp_path / "notebooks")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    home = {
        name: str(tmp_path / name.lower())
        for name in ("HOME", "IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR")
    }
    options = shlex.split(recipe.partition("jupyter lab")[2])
    given = ["--no-browser", "--ip=127.0.0.1", f"--port={port}", "--allow-root", "--IdentityProvider.token=test"]
    command = [sys.executable, "-m", "jupyterlab", *options, *given]
    server = subprocess.Popen(
        command, cwd=tmp_path, env={**os.environ, **home}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    lesson, exercise = (tmp_path / f"notebooks/{name}.py" for name in ("00_start_here", "ex00_start_here"))
    try:
        deadline = time.monotonic() + 90
        for script in (lesson, exercise):
            address = f"http://127.0.0.1:{port}/api/contents/notebooks/{script.stem}.ipynb?token=test"
            while True:
                try:
                    with urllib.request.urlopen(address, timeout=30) as answer:
                        notebook = json.load(answer)
                    break
                except OSError:
                    assert server.poll() is None and time.monotonic() < deadline, "JupyterLab did not start"
                    time.sleep(0.3)
            notebook["content"]["cells"][0]["source"] += "\n\nSaved in the browser."
            body = json.dumps({key: notebook[key] for key in ("type", "format", "content")}).encode()
            urllib.request.urlopen(urllib.request.Request(address, body, method="PUT"), timeout=60).close()
    finally:
        server.terminate()
        server.wait(20)
    marks = [
        [cell.metadata.get("nbgrader") for cell in pairs.read_notebook(path).cells]
        for path in (ROOT / "notebooks/exercises/ex00_start_here.ipynb", exercise.with_suffix(".ipynb"))
    ]
    assert marks[0] == marks[1]
    lesson.write_text(lesson.read_text().replace("## Take-away", "## Taken away"))  # another edit, in the script
    assert pairs.sync(lesson)
    for file in (lesson, lesson.with_suffix(".ipynb")):
        assert "Saved in the browser." in file.read_text() and "## Taken away" in file.read_text()
