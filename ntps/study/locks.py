"""One run a folder: a lock that the system frees on any death of its holder."""

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from ntps.errors import NtpsError

_LOCK = ".lock"


@contextlib.contextmanager
def lock_folder(folder: Path, share: tuple[int, int] | None = None) -> Iterator[None]:
    """Hold a folder: for a whole run alone, for a share together with other shares. The system frees it on any death.

    Raises:
        NtpsError: If another run holds it.
    """
    import fcntl  # not there on Windows, where only studies need it

    names = [(_LOCK, fcntl.LOCK_SH if share else fcntl.LOCK_EX)]
    if share:
        names.append((f"{_LOCK}-{share[0]}-of-{share[1]}", fcntl.LOCK_EX))
    with contextlib.ExitStack() as stack:
        for name, kind in names:
            try:
                folder.mkdir(parents=True, exist_ok=True)
                file = stack.enter_context((folder / name).open("a+", encoding="utf-8"))
            except OSError as error:
                raise NtpsError(f"cannot write {folder}: {error.strerror}.") from error
            try:
                fcntl.flock(file, kind | fcntl.LOCK_NB)
            except OSError:
                file.seek(0)
                holder = file.read().strip() or "another run"
                raise NtpsError(f"{folder} is in use by {holder}; wait for it, or give another --output.") from None
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}")
            file.flush()
        if share is None:  # nobody else is here: what a killed run left half-written can go
            for part in (folder / "cells").glob(".*.part"):
                part.unlink(missing_ok=True)
        yield
