"""Files are whole or not there; the tensor store is plain safetensors and notices damage anywhere; JSON is strict."""

import json
import os
import socket
import stat
import struct
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from filelock import Timeout

from ntps import _files
from ntps._files import (
    atomic_path,
    atomic_write,
    file_lock,
    from_json,
    held_lock,
    jsonable,
    load_tensors,
    local_path,
    read_json,
    save_tensors,
    sha256_files,
    sha256_json,
    sweep,
)
from ntps.errors import NtpsError

HEADER = {"kind": "numbers", "note": "naïve", "nested": {"none": None, "list": [1, 2.5]}}


def tensors():
    generator = torch.Generator().manual_seed(0)
    made = {"odd": torch.randn(3, generator=generator).half(), "big": torch.randn(4, 5, generator=generator).double()}
    for kind in ("float32", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool"):
        made[kind] = torch.arange(7).to(getattr(torch, kind))
    return made | {"scalar": torch.tensor(2.5), "empty": torch.zeros(0, 3), "turned": torch.arange(6.0).view(2, 3).T}


def equal(one, other):
    return one.keys() == other.keys() and all(
        a.dtype == other[name].dtype and a.shape == other[name].shape and torch.equal(a, other[name])
        for name, a in one.items()
    )


class TestTensors:
    @pytest.mark.parametrize("block", [_files._BLOCK, 8])
    def test_what_was_saved_comes_back(self, tmp_path, monkeypatch, block):
        monkeypatch.setattr(_files, "_BLOCK", block)
        path = save_tensors(tmp_path / "below" / "t.safetensors", tensors(), HEADER)
        found, header = load_tensors(path, "numbers")
        assert equal(found, tensors())
        assert header == HEADER
        assert [file.name for file in path.parent.iterdir()] == [path.name]

    def test_the_safetensors_library_reads_them(self, tmp_path):
        from safetensors.torch import load_file

        path = save_tensors(tmp_path / "t", tensors(), HEADER)
        assert equal(load_file(path), tensors())

    def test_each_tensor_is_aligned_to_its_type(self, tmp_path):
        path = save_tensors(tmp_path / "t", tensors(), HEADER)
        raw = path.read_bytes()
        size = struct.unpack("<Q", raw[:8])[0]
        entries = json.loads(raw[8 : 8 + size])
        entries.pop("__metadata__")
        made = tensors()
        assert size % 8 == 0
        assert all(entry["data_offsets"][0] % made[name].element_size() == 0 for name, entry in entries.items())

    def test_memory_mapped_tensors(self, tmp_path):
        rows = np.memmap(tmp_path / "rows", dtype=np.float16, mode="w+", shape=(5, 3))
        rows[:] = np.arange(15).reshape(5, 3)
        path = save_tensors(tmp_path / "t", {"rows": torch.from_numpy(rows)}, HEADER)
        assert np.array_equal(load_tensors(path, "numbers")[0]["rows"].numpy(), rows)

    def test_damage_anywhere_is_noticed(self, tmp_path):
        """Any byte of the header, metadata included, and of the numbers; any length."""
        path = save_tensors(tmp_path / "t", {"a": torch.arange(20.0), "b": torch.arange(5)}, HEADER)
        raw, rng, survived = path.read_bytes(), np.random.default_rng(0), []
        damaged = [raw[:keep] for keep in (0, 5, 8, 100, -1, -8)] + [raw + b"\0"]
        for index in range(len(raw)):
            changed = bytearray(raw)
            changed[index] ^= 1 << int(rng.integers(8))
            damaged.append(bytes(changed))
        damaged.append(raw.replace(b'"F32"', b'"I32"', 1))
        for index, content in enumerate(damaged):
            path.write_bytes(content)
            try:
                found = load_tensors(path, "numbers")
            except NtpsError as error:
                assert str(path) in str(error)
                assert "\n" not in str(error)
            else:
                survived.append((index, found[0].keys()))
        assert survived == []
        path.write_bytes(raw)
        load_tensors(path, "numbers")

    def test_other_files_are_refused(self, tmp_path):
        from safetensors.torch import save_file

        path = save_tensors(tmp_path / "t", tensors(), HEADER)
        save_file({"weight": torch.ones(2)}, tmp_path / "model")
        (tmp_path / "table").write_text("label,text\n")
        cases = {"absent": "no such file", ".": "no such file", "model": "ntps did not write", "table": "damaged"}
        for name, words in cases.items():
            with pytest.raises(NtpsError, match=words):
                load_tensors(tmp_path / name, "numbers")
        with pytest.raises(NtpsError, match="'numbers', not 'words'"):
            load_tensors(path, "words")

    def test_what_cannot_be_written_leaves_the_old_file(self, tmp_path):
        path = save_tensors(tmp_path / "t", tensors(), HEADER)
        before = path.read_bytes()
        with pytest.raises(TypeError):
            save_tensors(path, tensors(), {"kind": tmp_path})
        with pytest.raises(NtpsError, match="cannot write"):
            save_tensors(path / "below", tensors(), HEADER)
        assert path.read_bytes() == before
        assert [file.name for file in tmp_path.iterdir()] == ["t"]


class TestAtomic:
    @pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
    def test_mode_follows_the_umask(self, tmp_path, umask):
        before = os.umask(umask)
        try:
            path = atomic_write(tmp_path / "file", "text")
        finally:
            os.umask(before)
        assert path.stat().st_mode & 0o777 == 0o666 & ~umask

    def test_a_failure_leaves_the_old_file_and_nothing_else(self, tmp_path):
        path = atomic_write(tmp_path / "file", "old")
        with pytest.raises(RuntimeError), atomic_path(path) as temporary:
            temporary.write_text("new")
            raise RuntimeError
        assert path.read_text() == "old"
        assert list(tmp_path.iterdir()) == [path]
        assert atomic_write(path, b"n\xc3\xa9w").read_text(encoding="utf-8") == "néw"

    def test_a_killed_writer_leaves_no_target(self, tmp_path):
        code = (
            "import sys, time\nfrom ntps._files import atomic_path\n"
            "with atomic_path(sys.argv[1]) as path:\n"
            "    path.write_bytes(b'half'); print('half', flush=True); time.sleep(60)"
        )
        target = tmp_path / "file"
        with subprocess.Popen([sys.executable, "-c", code, str(target)], stdout=subprocess.PIPE) as writer:
            assert writer.stdout.readline() == b"half\n"
            writer.kill()
        assert not target.exists()
        assert atomic_write(target, "whole").read_text() == "whole"  # what it left is in nobody's way

    @pytest.mark.parametrize("target", ["file/below", "folder"])
    def test_what_cannot_be_written_is_named(self, tmp_path, target):
        (tmp_path / "file").write_text("")
        (tmp_path / "folder").mkdir()
        with pytest.raises(NtpsError, match=f"cannot write .*{target}"):
            atomic_write(tmp_path / target, "text")
        assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


class TestTargets:
    """What is no plain file is written into, never replaced."""

    def test_a_device(self, tmp_path):
        before = os.stat("/dev/null")
        atomic_write("/dev/null", "text")
        assert stat.S_ISCHR(os.stat("/dev/null").st_mode) and os.stat("/dev/null").st_ino == before.st_ino
        assert list(Path("/dev").glob(".null*")) == []
        link = tmp_path / "link"
        link.symlink_to("/dev/null")
        atomic_write(link, "text")
        assert link.is_symlink()

    def test_a_fifo(self, tmp_path):
        os.mkfifo(tmp_path / "pipe")
        read = []
        reader = threading.Thread(target=lambda: read.append((tmp_path / "pipe").read_text()))
        reader.start()
        atomic_write(tmp_path / "pipe", "whole")
        reader.join()
        assert read == ["whole"]
        assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)

    @pytest.mark.parametrize("there", [True, False])
    def test_through_a_link(self, tmp_path, there):
        (tmp_path / "far").mkdir()
        target, link = tmp_path / "far" / "target", tmp_path / "link"
        if there:
            target.write_text("old")
        link.symlink_to(target)
        atomic_write(link, "new")
        assert link.is_symlink() and target.read_text() == "new"
        assert [path.name for path in (tmp_path / "far").iterdir()] == ["target"]

    @pytest.mark.parametrize("mode", [0o600, 0o640, 0o664])
    def test_a_mode_is_kept_and_never_wider_on_the_way(self, tmp_path, mode):
        path = tmp_path / "file"
        path.write_text("old")
        path.chmod(mode)
        with atomic_path(path) as temporary:
            assert temporary.stat().st_mode & 0o777 == mode
            temporary.write_text("new")
        assert path.stat().st_mode & 0o777 == mode

    @pytest.mark.parametrize("kind", ["folder", "socket", "loop", "read-only"])
    def test_what_cannot_be_written_is_one_sentence(self, tmp_path, kind, monkeypatch):
        path = tmp_path / kind
        if kind == "folder":
            path.mkdir()
        elif kind == "loop":
            path.symlink_to(path)
        elif kind == "socket":
            monkeypatch.chdir(tmp_path)  # names of sockets are short
            socket.socket(socket.AF_UNIX).bind(kind)
        else:
            path.write_text("old")
            monkeypatch.setattr(_files.os, "access", lambda *_: False)  # root may write anything
        with pytest.raises(NtpsError, match=f"cannot write .*{kind}"):
            atomic_write(path, "text")
        assert [path.name for path in tmp_path.iterdir()] == [kind]

    @pytest.mark.parametrize("name", ["n" * 255, "é" * 127, "x" * 250 + ".json"])
    def test_a_name_as_long_as_names_may_be(self, tmp_path, name):
        assert atomic_write(tmp_path / name, "text").read_text() == "text"
        assert [path.name for path in tmp_path.iterdir()] == [name]

    def test_lone_surrogates_become_what_stands_for_them(self, tmp_path):
        assert atomic_write(tmp_path / "f", "a\udcffb").read_bytes() == "a\ufffdb".encode()


class TestSweep:
    def test_what_the_dead_left_goes_and_what_the_living_write_stays(self, tmp_path):
        for name in (".file.0123456789ab.part", ".other.ba9876543210.part", ".mine.part", "file.0123456789ab.part"):
            (tmp_path / name).write_text("half")
        with atomic_path(tmp_path / "file") as living:
            sweep(tmp_path, "file")
            assert not (tmp_path / ".file.0123456789ab.part").exists()
            assert (tmp_path / ".other.ba9876543210.part").exists()
            sweep(tmp_path)
            assert living.exists()
        assert sorted(path.name for path in tmp_path.iterdir()) == [".mine.part", "file", "file.0123456789ab.part"]

    def test_a_link_is_not_followed(self, tmp_path):
        (tmp_path / "precious").write_text("x")
        (tmp_path / ".f.0123456789ab.part").symlink_to(tmp_path / "precious")
        sweep(tmp_path)
        assert (tmp_path / "precious").read_text() == "x"

    def test_nothing_is_lost_when_writers_and_sweepers_race(self, tmp_path):
        code = (
            "import sys\nfrom ntps._files import atomic_write, sweep\n"
            "for turn in range(400): sweep(sys.argv[1]); atomic_write(f'{sys.argv[1]}/{sys.argv[2]}', 'x')"
        )
        running = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path), name]) for name in "abc"]
        assert [process.wait(timeout=60) for process in running] == [0, 0, 0]
        assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "c"]


class TestWithoutLocks:
    """Where Python has no `fcntl` (Windows) files are written all the same, and half-written ones are left alone."""

    def test_files_are_written_and_nothing_is_swept(self, tmp_path, monkeypatch):
        monkeypatch.setattr(_files, "fcntl", None)
        (tmp_path / ".a.json.0123456789ab.part").write_text("half")
        _files.atomic_write(tmp_path / "a.json", "{}")
        _files.sweep(tmp_path)
        assert sorted(path.name for path in tmp_path.iterdir()) == [".a.json.0123456789ab.part", "a.json"]
        assert (tmp_path / "a.json").read_text() == "{}"


class TestLocalPath:
    @pytest.mark.parametrize(
        ("name", "words"),
        [
            ("", "is empty"),
            ("  ", "is empty"),
            ("~nosuchuser/x", "no such user"),
            ("a\0b", "cannot be the name"),
            ("n" * 300, "File name too long"),
            ("d/" * 3000 + "x", "File name too long"),
            ("\ud800", "cannot be the name"),
        ],
    )
    def test_what_can_be_no_path_is_one_short_sentence(self, name, words):
        with pytest.raises(NtpsError, match=words) as refused:
            local_path(name)
        assert len(str(refused.value)) < 500 and "\n" not in str(refused.value)

    def test_a_folder_without_permission(self, monkeypatch):
        def denied(*_, **__):
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(Path, "stat", denied)  # root may read anything
        with pytest.raises(NtpsError, match="closed/x: Permission denied"):
            local_path("closed/x")

    def test_home_and_names_that_are_not_utf_8(self, tmp_path, monkeypatch):
        monkeypatch.setenv("HOME", str(tmp_path))
        assert local_path("~/new") == tmp_path / "new"
        name = os.fsdecode(b"caf\xe9.csv")
        assert local_path(name) == Path(name)


class TestJson:
    @pytest.mark.parametrize(
        ("value", "expected"),
        [
            (float("nan"), None),
            ((1, float("inf"), "a"), [1, None, "a"]),
            ({"a": {"b": [float("-inf"), 2.5]}}, {"a": {"b": [None, 2.5]}}),
            (np.array([[1.0, np.nan]]), [[1.0, None]]),
            (np.float32("nan"), None),
            (np.int64(3), 3),
            (np.bool_(True), True),
            (None, None),
            (torch.tensor([1.0, float("nan")]), [1.0, None]),
        ],
    )
    def test_what_json_has_no_word_for_becomes_null(self, value, expected):
        found = jsonable(value)
        assert found == expected
        assert type(found) is type(expected)
        json.dumps(found, allow_nan=False)

    def test_reading(self, tmp_path):
        path = atomic_write(tmp_path / "good", '{"a": "é"}')
        assert read_json(path) == {"a": "é"}
        atomic_write(tmp_path / "bad", '{\n"a": }')
        (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
        atomic_write(tmp_path / "deep", "[" * 100_000 + "]" * 100_000)
        atomic_write(tmp_path / "long", f'{{"a": {"9" * 5000}}}')
        atomic_write(tmp_path / "marked", "\ufeff[1]")
        assert read_json(tmp_path / "marked") == [1]
        for name, words in (
            ("bad", "bad, line 2: not valid JSON"),
            ("deep", "nested too deeply"),
            ("long", "too many digits"),
            ("absent", "cannot read"),
            ("binary", "cannot read"),
        ):
            with pytest.raises(NtpsError, match=words):
                read_json(tmp_path / name)

    @pytest.mark.parametrize(
        ("kind", "value", "words"),
        [
            (float, 10**400, "x is 1000"),
            (float, True, "x is True"),
            (int, 1.0, "x is 1.0"),
            (list[float], [1, "2"], r"x\[1\] is '2'"),
            (list[float], "12", "x is '12'"),
            (tuple[int, int], [1, 2, 3], r"x is \[1, 2, 3\]"),
            (dict[str, int], [], r"x is \[\]"),
        ],
    )
    def test_values_of_another_type_are_refused_by_name(self, kind, value, words):
        with pytest.raises(NtpsError, match=words):
            from_json(kind, value, "x")

    def test_values_become_the_type_they_were_made_from(self):
        assert from_json(list[float], [1, 2.5], "x") == [1.0, 2.5]
        assert from_json(tuple[int, ...], [1, 2], "x") == (1, 2)
        assert [from_json(str | tuple[str, ...] | None, value, "x") for value in ("a", ["a"], None)] == [
            "a",
            ("a",),
            None,
        ]
        assert from_json(dict[str, list[int]], {"a": []}, "x") == {"a": []}

    def test_digests(self, tmp_path):
        content = {"b": 1, "a": [None, "é"], "checksum": "x"}
        digest = sha256_json(content)
        assert (
            digest
            == sha256_json({"a": [None, "é"], "checksum": "y", "b": 1})
            == sha256_json({"a": [None, "é"], "b": 1})
        )
        assert digest != sha256_json(content | {"b": 2})
        assert digest != sha256_json(content, leave_out="b")
        one, other = atomic_write(tmp_path / "one", "1"), atomic_write(tmp_path / "other", "2")
        digests = {sha256_files(paths) for paths in ([one], [other], [one, other], [other, one])}
        assert len(digests) == 4
        assert sha256_files([one]) in digests


@pytest.mark.skipif(_files.fcntl is None, reason="Windows removes no file that is open")
@pytest.mark.parametrize("made_anew", [False, True])
def test_a_lock_on_a_file_that_its_last_holder_removed_is_no_lock(tmp_path, monkeypatch, made_anew):
    """Between opening the file and locking it, the holder may remove it; a third process locks the next one."""
    path = tmp_path / ".lock"
    lock, acquired = file_lock(path), []
    acquire = lock.acquire

    def overtaken(**options):
        acquire(**options)
        acquired.append(True)
        if len(acquired) == 1:
            path.unlink()
            if made_anew:
                path.touch()

    monkeypatch.setattr(lock, "acquire", overtaken)
    monkeypatch.setattr(_files, "file_lock", lambda _: lock)
    with held_lock(path, "output"):
        assert len(acquired) == 2
        with pytest.raises(Timeout):
            file_lock(path).acquire(timeout=0)
    assert not path.exists()


INTERRUPTED = """
import sys
from functools import partial
from pathlib import Path
import filelock
from ntps import _files

taken, folder = {taken}, Path({folder!r})
files = (_files.__file__, str(Path(filelock.__file__).parent))

def interrupted(after):
    # Whether it was interrupted, after so many lines of these files; where it has fewer, the block begins.
    lines = 0
    def count(frame, event, _):
        nonlocal lines
        if not frame.f_code.co_filename.startswith(files) or frame.f_code.co_name == "__del__":
            return None
        if event == "line" and lines >= 0:
            lines += 1
            if lines > after:
                lines = -1  # once
                raise KeyboardInterrupt
        return count
    sys.settrace(count)
    try:
        with taken(folder / "it"):
            sys.settrace(None)
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(None)
    return False

with taken(folder / "warm"):  # imports what it needs
    pass
before, lines = set(folder.iterdir()), 0
while interrupted(lines):
    assert set(folder.iterdir()) == before, lines
    lines += 1
assert lines >= 4
"""


@pytest.mark.skipif(_files.fcntl is None, reason="Windows removes no file that is open")
@pytest.mark.parametrize(
    "taken", ["partial(_files.held_lock, what='it')", "_files.held_folder", "_files.made_folder", "_files.atomic_path"]
)
def test_a_signal_while_something_is_taken_leaves_nothing(tmp_path, taken):
    """Ctrl-C before every line until the block begins: ours and filelock's, which cannot be used any more then."""
    program = INTERRUPTED.format(taken=taken, folder=str(tmp_path))
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
