"""Outputs are claimed before the work: they can be written, are nobody else's, and no other run writes them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ntps._files import atomic_write
from ntps.cli.outputs import claim
from ntps.errors import NtpsError

HOLD = """
import sys
from ntps.cli.outputs import claim
with claim(*(name or None for name in sys.argv[1:])):
    print("held", flush=True)
    sys.stdin.read()
"""


def names(folder):
    return sorted(str(path.relative_to(folder)) for path in Path(folder).rglob("*"))


def hold(folder="", file=""):
    return subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder), str(file)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )


@pytest.mark.parametrize("shared", [False, True])
def test_what_a_run_does_not_use_is_not_left(tmp_path, shared):
    with claim(f"{tmp_path}/a/b", f"{tmp_path}/c/d.json", shared=shared) as (folder, file):
        assert folder.is_dir() and file.parent.is_dir()
    assert names(tmp_path) == []
    with pytest.raises(KeyError), claim(f"{tmp_path}/a/b", f"{tmp_path}/c/d.json", shared=shared):
        raise KeyError
    assert names(tmp_path) == []


def test_what_a_run_writes_stays(tmp_path):
    with claim(f"{tmp_path}/a", f"{tmp_path}/c/d.json") as (folder, file):
        atomic_write(folder / "scores.json", "{}")
        atomic_write(file, "{}")
    assert names(tmp_path) == ["a", "a/scores.json", "c", "c/d.json"]
    with claim(f"{tmp_path}/a", f"{tmp_path}/c/d.json"):  # what a command has written it may write again
        pass


@pytest.mark.parametrize("place", ["folder", "file"])
def test_two_runs_into_one_output(tmp_path, place):
    """The second is told so; it may have the place once the first has ended, however that ended."""
    arguments = {place: f"{tmp_path}/out"}
    with hold(**arguments) as first:
        assert first.stdout.readline() == b"held\n"
        with pytest.raises(NtpsError, match=r"another run is writing .*out"), claim(**{"folder": None, **arguments}):
            pass
        with pytest.raises(NtpsError, match="another run"), claim(**{"folder": None, **arguments}):
            pass  # the one who was refused has freed nothing
        first.kill()
    assert names(tmp_path) != []  # the lock of the dead
    with claim(**{"folder": None, **arguments}):
        pass
    assert names(tmp_path) == (["out"] if place == "folder" else [])


def test_shared_outputs_are_for_several(tmp_path):
    with (
        claim(f"{tmp_path}/out", f"{tmp_path}/x.json", shared=True),
        claim(f"{tmp_path}/out", f"{tmp_path}/x.json", shared=True),
    ):
        pass


def test_what_killed_runs_left_is_swept(tmp_path):
    left = tmp_path / "out" / "seed-0"
    part = "0123456789ab.part"
    for path in (left / f".head.safetensors.{part}", left / ".saving.xyz" / "model.bin",
                 tmp_path / "out" / f".lora.json.{part}", tmp_path / f".x.json.{part}"):  # fmt: skip
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("half")
    (tmp_path / ".y.json.0123456789ab.part").write_text("another's")
    with claim(f"{tmp_path}/out", f"{tmp_path}/x.json"):
        pass
    assert names(tmp_path) == [".y.json.0123456789ab.part", "out", "out/seed-0"]


@pytest.mark.parametrize("theirs", ["notes.txt", "config.json", "report.html"])
def test_a_foreign_folder_is_not_written_over(tmp_path, theirs):
    (tmp_path / theirs).write_text("precious")
    with pytest.raises(NtpsError, match="has not written"), claim(str(tmp_path)):
        pass
    assert names(tmp_path) == [theirs]
    (tmp_path / theirs).rename(tmp_path / ".hidden")  # what no one sees does not count
    with claim(str(tmp_path)):
        pass


@pytest.mark.parametrize("kind", ["file", "below a file", "dangling", "read-only disk", "/proc", "input"])
def test_folders_that_cannot_be_written(tmp_path, kind, monkeypatch):
    (tmp_path / "file").write_text("")
    (tmp_path / "dangling").symlink_to(tmp_path / "gone")
    folder = {"below a file": "file/below", "/proc": "/proc/ntps-test", "read-only disk": "new"}.get(kind, kind)
    options = {}
    if kind == "read-only disk":
        monkeypatch.setattr(Path, "mkdir", lambda *_, **__: (_ for _ in ()).throw(OSError(30, "Read-only file system")))
    if kind == "input":
        (tmp_path / kind).mkdir()
        options = {"inputs": ["model", f"name={tmp_path / kind}"]}
    before = names(tmp_path)
    with pytest.raises(NtpsError), claim(str(tmp_path / folder), **options):
        pass
    assert names(tmp_path) == before


@pytest.mark.parametrize("kind", ["folder", "new/", "file/below", "input", "read-only", "", "~nosuchuser/x", "n" * 300])
def test_files_that_cannot_be_written(tmp_path, kind, monkeypatch):
    (tmp_path / "folder").mkdir()
    for name in ("file", "input", "read-only"):
        (tmp_path / name).write_text("precious")
    if kind == "read-only":
        monkeypatch.setattr("ntps._files.os.access", lambda *_: False)
    before = names(tmp_path)
    file = kind if kind in ("", "~nosuchuser/x") else f"{tmp_path}/{kind}"
    with pytest.raises(NtpsError) as refused, claim(None, file, inputs=[str(tmp_path / "input")]):
        pass
    assert len(str(refused.value)) < 600
    assert names(tmp_path) == before
    assert (tmp_path / "input").read_text() == "precious"


@pytest.mark.parametrize("file", ["-", "/dev/stdout", "/dev/null"])
def test_streams_need_no_lock(file):
    with claim(None, file), claim(None, file) as (_, path):
        assert str(path) == file


def test_a_fifo_is_not_opened_before_there_is_something_to_say(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with claim(None, str(tmp_path / "pipe")):
        pass
    assert names(tmp_path) == ["pipe"]


@pytest.mark.parametrize("place", ["folder", "file"])
def test_a_lock_that_is_a_link_empties_nothing(tmp_path, place):
    (tmp_path / "precious").write_text("x")
    lock = tmp_path / "out" / ".ntps.lock" if place == "folder" else tmp_path / ".out.lock"
    lock.parent.mkdir(exist_ok=True)
    lock.symlink_to(tmp_path / "precious")
    with pytest.raises(NtpsError, match="is a link"), claim(**{"folder": None, place: f"{tmp_path}/out"}):
        pass
    assert (tmp_path / "precious").read_text() == "x"


def test_many_at_once(tmp_path):
    """Of many runs that start together one holds the folder at a time; none meets anything but the sentence."""
    code = (
        "import sys\nfrom ntps.cli.outputs import claim\nfrom ntps.errors import NtpsError\n"
        "for turn in range(60):\n"
        "    try:\n"
        "        with claim(sys.argv[1]) as (folder, _): (folder / 'scores.json').touch()\n"
        "    except NtpsError as error: assert 'another run' in str(error), error"
    )
    running = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "out")]) for _ in range(3)]
    assert [process.wait(timeout=60) for process in running] == [0, 0, 0]
    assert names(tmp_path) == ["out", "out/scores.json"]
