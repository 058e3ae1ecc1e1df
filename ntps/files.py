"""Files that are either whole or not there: atomic writes, checksums, JSON."""

import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ntps.errors import NtpsError


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`, renamed to `path` when the block succeeds and removed when it fails.

    A reader never sees half a file: the rename is atomic within one folder.

    Raises:
        NtpsError: If the folder cannot be made or written (no permission, disk full).
    """
    path = Path(path)
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        yield temporary
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)  # mkstemp makes 0600, which surprises whoever shares the folder
        os.replace(temporary, path)
    except OSError as error:
        raise NtpsError(f"cannot write {path}: {error.strerror or error}.") from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def atomic_write(path: str | Path, data: str | bytes) -> Path:
    """Write `data` (text as UTF-8) to `path` atomically and return the path.

    Raises:
        NtpsError: If the file cannot be written.
    """
    with atomic_path(path) as temporary:
        temporary.write_bytes(data.encode("utf-8") if isinstance(data, str) else data)
    return Path(path)


def sha256_files(paths: Iterable[str | Path]) -> str:
    """Return the SHA-256 hex digest over names and contents of `paths`, in the order given."""
    digest = hashlib.sha256()
    for path in map(Path, paths):
        digest.update(path.name.encode() + b"\0")
        with path.open("rb") as file:
            while block := file.read(1 << 22):
                digest.update(block)
    return digest.hexdigest()


def json_checksum(content: Mapping[str, Any]) -> str:
    """Return the SHA-256 over everything in a JSON object but the entry `checksum` itself."""
    rest = {key: value for key, value in content.items() if key != "checksum"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def read_json(path: str | Path) -> Any:
    """Read a JSON file.

    Raises:
        NtpsError: If it is missing, unreadable or no JSON.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise NtpsError(f"cannot read {path}: {error}.") from error
    except json.JSONDecodeError as error:
        raise NtpsError(f"{path}, line {error.lineno}: not valid JSON ({error.msg}).") from error


def check_writable(output: Path | None, json_file: Path | None) -> None:
    """Refuse an output folder or JSON file that cannot be written, before the long work starts.

    Raises:
        NtpsError: If the folder is a file or cannot be written to, or the file is a folder.
    """
    if output is not None:
        if output.exists() and not output.is_dir():
            raise NtpsError(f"--output {output} is a file; name a folder.")
        atomic_write(output / ".ntps-write-test", "").unlink()
    if json_file is not None and json_file.is_dir():
        raise NtpsError(f"--json {json_file} is a folder; name a file, or - for stdout.")
