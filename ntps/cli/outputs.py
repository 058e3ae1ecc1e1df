"""What a run will write, claimed before it works: it can be written, it is nobody else's, and no other run writes it.

Locks are files that end with the run; what killed runs left, half-written files and locks, goes when the next begins.
"""

import os
import shutil
import stat
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from ntps._files import SAVING, beside, held_lock, local_path, made_folder, sweep, writable
from ntps.errors import NtpsError

STDOUT = ("-", "/dev/stdout", "/dev/fd/1", "/proc/self/fd/1")
_LOCK = ".ntps.lock"
# One of these is in every folder that a command has written.
_OURS = {
    "scores.json", "representations.safetensors", "cells", "locks", "study.json", "state.safetensors", "training.json",
    "lora.json", "demo.json", "ranking.json", "passes", "correlations.csv", "figure1.png", "words.png",
    "unfinished-0.safetensors",
}  # fmt: skip


@contextmanager
def claim(
    folder: str | None, file: str | None = None, *, shared: bool = False, inputs: Iterable[str] = ()
) -> Iterator[tuple[Path | None, Path | None]]:
    """Hold an output folder and an output file for this run, and yield them as paths.

    Args:
        folder: Output folder. It is made, and removed at the end if it is empty then.
        file: Output file; one of `STDOUT` is not claimed.
        shared: Whether other runs may write the same at the same time.
        inputs: What the run reads: an output must be none of these.

    Raises:
        NtpsError: If one of them cannot be written, is an input, or is held by another run, if the folder is a file or
            the file a folder, or if the folder holds files but none that a command of this package has written.
    """
    inputs = list(inputs)
    with ExitStack() as held:
        paths = []
        for name, hold in ((folder, _claim_folder), (file, _claim_file)):
            try:
                paths.append(None if name is None else hold(name, shared, inputs, held))
            except OSError as error:
                raise NtpsError(f"cannot write {name}: {error.strerror or error}.") from error
        yield paths[0], paths[1]


def _claim_folder(folder: str, shared: bool, inputs: Iterable[str], held: ExitStack) -> Path:
    path = local_path(folder)
    if path.exists() and not path.is_dir():
        raise NtpsError(f"output {folder} is a file; name a folder.")
    _refuse_inputs(path, inputs)
    if path.is_dir():
        names = {entry.name for entry in path.iterdir() if not entry.name.startswith(".")}
        ours = names & _OURS or (path / _LOCK).exists() or any(name.startswith("seed-") for name in names)
        if names and not ours:
            raise NtpsError(f"output {folder} holds files that ntps has not written; name a new or an empty folder.")
    held.enter_context(made_folder(path))
    if shared:
        _try_to_write(path / "test")
        sweep(path)
        return path
    held.enter_context(held_lock(path / _LOCK, f"output {folder}"))
    for below in (path, *(entry for entry in path.iterdir() if entry.is_dir() and not entry.is_symlink())):
        sweep(below)
        for leftover in below.glob(f"{SAVING}*"):
            shutil.rmtree(leftover, ignore_errors=True)
    return path


def _claim_file(file: str, shared: bool, inputs: Iterable[str], held: ExitStack) -> Path:
    if file in STDOUT:
        return Path(file)
    path = local_path(file)
    if path.is_dir() or file.endswith(("/", os.sep)):
        raise NtpsError(f"{file} is a folder; name a file, or - for standard output.")
    _refuse_inputs(path, inputs)
    there = writable(path)
    if there is not None and not stat.S_ISREG(there.st_mode):  # a device or a FIFO
        return path
    target = Path(os.path.realpath(path))
    held.enter_context(made_folder(target.parent))
    sweep(target.parent, target.name)
    if shared:
        _try_to_write(target)
    else:
        held.enter_context(held_lock(beside(target, ".lock"), file))
    return path


def _refuse_inputs(path: Path, inputs: Iterable[str]) -> None:
    for given in inputs:
        after = given.partition("=")[2]  # of NAME=PATH
        places = [given, after, *(name.partition(":")[0] for name in (given, after)), *given.split("+")]
        for name in places:  # options follow a colon, an adapter follows a plus
            try:
                same = path.samefile(local_path(name))
            except (NtpsError, OSError):  # nothing is there, or it lies on the hub
                continue
            if same:
                raise NtpsError(f"{name} is also what is read; name another output.")


def _try_to_write(path: Path) -> None:
    """Write and remove an empty file beside a path."""
    trial = beside(path, f".{os.getpid()}.{os.urandom(6).hex()}.part")
    try:
        trial.touch()
    finally:
        trial.unlink(missing_ok=True)
