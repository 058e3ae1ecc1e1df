"""Files that are either whole or not there: atomic writes, one checksummed tensor store, JSON."""

import errno
import hashlib
import json
import math
import os
import re
import secrets
import shutil
import stat
import tempfile
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import fields, is_dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ntps._names import valid
from ntps.errors import NtpsError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

if TYPE_CHECKING:
    import torch
    from filelock import FileLock

_BLOCK = 1 << 26  # bytes hashed or written at a time, so that a memory-mapped tensor never enters memory whole
_SAFETENSORS_NAMES = {
    "float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "int64": "I64", "int32": "I32",
    "int16": "I16", "int8": "I8", "uint8": "U8", "bool": "BOOL",
}  # fmt: skip
SAVING = ".saving."  # begins the names of temporary folders for what other libraries save
_PART = re.compile(r"(\..*)\.[0-9a-f]{12}\.part", re.DOTALL)  # as `atomic_path` names them


def local_path(name: str | os.PathLike[str]) -> Path:
    """Return a name as a path, `~` expanded, that can be looked up; whether there is something is not asked.

    Raises:
        NtpsError: If the name is empty, too long or no name for a file, its user is unknown, or a folder on the way
            may not be read.
    """
    text = os.fspath(name)
    if not text.strip():
        raise NtpsError("the name of a file or folder is empty; give its path.")
    try:
        path = Path(text).expanduser()
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        pass
    except RuntimeError as error:
        raise NtpsError(f"{text}: there is no such user; write the path without ~.") from error
    except ValueError as error:  # a null character, or half a character
        raise NtpsError(f"{text!r} cannot be the name of a file ({error}).") from error
    except OSError as error:
        raise NtpsError(f"{text}: {error.strerror or error}.") from error
    return path


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`, renamed to `path` when the block succeeds and removed when it fails.

    A reader never sees half a file: the rename is atomic within one folder. A file that is replaced passes on its mode
    and owner; through a link, what it points to is replaced. Devices and FIFOs are written into when the block ends.

    Raises:
        NtpsError: If the folder cannot be made or written (no permission, disk full).
    """
    path = Path(path)
    temporary: Path | None = None
    descriptor: int | None = None
    try:
        there = writable(path)
        stream = there is not None and not stat.S_ISREG(there.st_mode)
        target = path if stream else Path(os.path.realpath(path))
        folder = Path(tempfile.gettempdir()) if stream else target.parent
        folder.mkdir(parents=True, exist_ok=True)
        temporary = beside(folder / target.name, f".{secrets.token_hex(6)}.part")  # known before a signal may come
        descriptor = _open_part(temporary)
        if there is not None and not stream:
            _pass_on(temporary, there)
        yield temporary
        if stream:
            with temporary.open("rb") as source, path.open("wb") as device:
                shutil.copyfileobj(source, device)
        else:
            os.replace(temporary, target)
    except OSError as error:
        raise NtpsError(f"cannot write {path}: {error.strerror or error}.") from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
        if descriptor is not None:
            os.close(descriptor)


def writable(path: Path) -> os.stat_result | None:
    """Return what the system says of a file that could be written or replaced, through links; `None` if there is none.

    Raises:
        OSError: If it is a folder or a socket, or may not be written.
    """
    try:
        there = path.stat()
    except FileNotFoundError:
        return None
    if stat.S_ISDIR(there.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if stat.S_ISSOCK(there.st_mode):
        raise OSError(errno.ENXIO, "it is a socket")
    if not os.access(path, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    return there


def _pass_on(temporary: Path, there: os.stat_result) -> None:
    """Give a new file the mode of the one that it will replace, and its owner as far as this user may."""
    if hasattr(os, "chown") and (there.st_uid, there.st_gid) != (temporary.stat().st_uid, temporary.stat().st_gid):
        with suppress(OSError):
            os.chown(temporary, there.st_uid, there.st_gid)
    temporary.chmod(stat.S_IMODE(there.st_mode))


def beside(path: Path, ending: str) -> Path:
    """Return a hidden path in the same folder whose name begins with that of `path`, cut to what a name may hold."""
    name = os.fsencode(path.name)[:200].decode(errors="ignore")
    return path.with_name(f".{name}{ending}")


def _open_part(path: Path) -> int:
    """Make a file for half-written content and return its descriptor, which holds a lock for `sweep`."""
    while True:
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o666)  # the kernel applies the umask
        if fcntl is None:  # pragma: no cover  Windows renames no file that is open
            os.close(descriptor)
            return os.open(os.devnull, os.O_RDONLY)
        with suppress(OSError):  # a file system without locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        if os.fstat(descriptor).st_nlink:  # a sweep may have come before the lock
            return descriptor
        os.close(descriptor)


def sweep(folder: str | Path, name: str | None = None) -> None:
    """Remove half-written files that killed processes left in a folder, and none that a process is writing.

    Args:
        folder: The folder; those below it are left alone.
        name: Only those of the file of this name.
    """
    wanted = None if name is None else beside(Path(folder) / name, "").name
    for path in Path(folder).glob(".*.part") if fcntl is not None else ():
        found = _PART.fullmatch(path.name)
        if found is None or wanted not in (None, found[1]):
            continue
        with suppress(OSError):  # held, gone, or on a file system without locks
            descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()
            finally:
                os.close(descriptor)


def atomic_write(path: str | Path, data: str | bytes) -> Path:
    """Write `data` (text as UTF-8, lone surrogates as U+FFFD) to `path` atomically and return the path.

    Raises:
        NtpsError: If the file cannot be written.
    """
    with atomic_path(path) as temporary:
        temporary.write_bytes(valid(data).encode("utf-8") if isinstance(data, str) else data)
    return Path(path)


def save_tensors(path: str | Path, tensors: "Mapping[str, torch.Tensor]", header: Mapping[str, Any]) -> Path:
    """Write tensors and a JSON header as one safetensors file, atomically, with a checksum of everything in it.

    Tensors are written block by block, so that memory-mapped ones never enter memory whole; safetensors' own writer
    copies each of them first.

    Args:
        path: Destination file.
        tensors: Tensors by name, on any device.
        header: JSON values, which `load_tensors` returns.

    Raises:
        NtpsError: If the file cannot be written.
    """
    strings = {"ntps": json.dumps(dict(header))}
    tensors = dict(sorted(tensors.items(), key=lambda item: -item[1].element_size()))  # each is aligned to its type
    entries: dict[str, Any] = {}
    offset = 0
    for name, tensor in tensors.items():
        end = offset + tensor.numel() * tensor.element_size()
        kind = _SAFETENSORS_NAMES[str(tensor.dtype).removeprefix("torch.")]
        entries[name] = {"dtype": kind, "shape": list(tensor.shape), "data_offsets": [offset, end]}
        offset = end
    strings["sha256"] = _tensor_digest(tensors, strings["ntps"])
    head = json.dumps({"__metadata__": strings, **entries}).encode("utf-8")
    head += b" " * (-len(head) % 8)
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        file.write(len(head).to_bytes(8, "little") + head)
        for tensor in tensors.values():
            for block in tensor_blocks(tensor):
                file.write(block)
    return Path(path)


def load_tensors(path: str | Path, kind: str) -> "tuple[dict[str, torch.Tensor], dict[str, Any]]":
    """Read what `save_tensors` wrote: tensors, memory-mapped, and the header.

    Args:
        path: The file.
        kind: The `kind` that the header must have.

    Raises:
        NtpsError: If the file is missing, damaged, or holds something else.
    """
    from safetensors import safe_open

    if not Path(path).is_file():
        raise NtpsError(f"{path}: no such file.")
    try:
        with safe_open(path, "pt") as file:
            strings = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in list(file.keys())}
    except Exception as error:  # safetensors raises a class of its own, or OSError
        raise NtpsError(f"{path} is damaged or is not a safetensors file ({error}).") from error
    if "ntps" not in strings:
        raise NtpsError(f"{path} is a safetensors file, but ntps did not write it.")
    if strings.get("sha256") != _tensor_digest(tensors, strings["ntps"]):
        raise NtpsError(f"{path} is damaged: its checksum does not match its content.")
    try:
        header = json.loads(strings["ntps"])
    except (RecursionError, ValueError) as error:
        raise NtpsError(f"{path} is damaged: its header is not JSON.") from error
    found = header.get("kind") if isinstance(header, dict) else header
    if found != kind:
        raise NtpsError(f"{path} holds {found!r}, not {kind!r}.")
    return tensors, header


def tensor_blocks(tensor: "torch.Tensor") -> Iterator[memoryview]:
    """Yield a tensor's bytes in its order, a block at a time."""
    import torch

    flat = tensor.detach().contiguous().reshape(-1)
    step = max(1, _BLOCK // max(flat.element_size(), 1))
    for start in range(0, flat.numel(), step):
        yield flat[start : start + step].cpu().view(torch.uint8).numpy().data


def _tensor_digest(tensors: "Mapping[str, torch.Tensor]", header: str) -> str:
    """Return a checksum of the header and of the tensors' names, types, shapes and bytes."""
    digest = hashlib.sha256(header.encode("utf-8"))
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\0".encode())
        for block in tensor_blocks(tensor):
            digest.update(block)
    return digest.hexdigest()


def sha256_files(paths: Iterable[str | Path]) -> str:
    """Return the SHA-256 hex digest over names and contents of `paths`, in the order given."""
    digest = hashlib.sha256()
    for path in map(Path, paths):
        digest.update(os.fsencode(path.name) + b"\0")
        with path.open("rb") as file:
            while block := file.read(1 << 22):
                digest.update(block)
    return digest.hexdigest()


def sha256_json(content: Mapping[str, Any], *, leave_out: str = "checksum") -> str:
    """Return the SHA-256 hex digest of a JSON object without the entry in which a file keeps this digest."""
    rest = {key: value for key, value in content.items() if key != leave_out}
    return hashlib.sha256(
        json.dumps(rest, sort_keys=True, ensure_ascii=False).encode("utf-8", "surrogatepass")
    ).hexdigest()


def jsonable(value: Any) -> Any:
    """Return a value as JSON values.

    At any depth, non-finite numbers become `None`, tuples and arrays become lists, and dataclasses become dictionaries
    of their fields, of a `Record` of those that it keeps.
    """
    if isinstance(value, Record):
        return value.to_dict()
    if is_dataclass(value):
        return jsonable(_fields(value))
    if isinstance(value, Mapping):
        return {key: jsonable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [jsonable(item) for item in value]
    if hasattr(value, "tolist"):  # arrays and scalars of NumPy
        return jsonable(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def read_json(path: str | Path) -> Any:
    """Read a JSON file, with or without a byte order mark.

    Raises:
        NtpsError: If it is missing, unreadable or not JSON, is nested too deeply, or holds a number of thousands of
            digits.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except json.JSONDecodeError as error:
        raise NtpsError(f"{path}, line {error.lineno}: not valid JSON ({error.msg}).") from error
    except RecursionError as error:
        raise NtpsError(f"{path} is nested too deeply to be read.") from error
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise NtpsError(f"cannot read {path}: {reason}.") from error
    except ValueError as error:
        raise NtpsError(f"cannot read {path}: it holds a number of too many digits.") from error


def from_json(kind: Any, value: Any, name: str = "the record") -> Any:
    """Return JSON values as the dataclass, or other annotated type, that they were made from.

    Args:
        kind: A dataclass, `tuple[X, ...]`, `list[X]`, `dict[str, X]`, `X | Y | None`, `float`, `int`, `str`, `bool` or
            `Any`.
        value: JSON values.
        name: Name of the values, for error messages.

    Raises:
        NtpsError: If they do not fit; the message names the field.
    """
    if kind is Any or type(value) is kind:
        return value
    if kind is float and value is None:
        return math.nan
    if kind is float and type(value) is int and abs(value) < 2**1023:
        return float(value)
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        members = [] if value is None else [each for each in inner if each is not types.NoneType]
        for member in members[:-1]:
            with suppress(NtpsError):
                return from_json(member, value, name)
        return from_json(members[-1], value, name) if members else None
    if is_dataclass(kind) and isinstance(value, Mapping):
        hints = _hints(typing.cast(type, kind))
        if differing := sorted(hints.keys() ^ value.keys()):
            problem = "lacks" if differing[0] in hints else "has an unknown"
            raise NtpsError(f"{name} {problem} field {differing[0]!r}.")
        return kind(**{key: from_json(hints[key], item, f"{name}.{key}") for key, item in value.items()})  # type: ignore[operator]
    if origin is dict and isinstance(value, Mapping):
        return {key: from_json(inner[1], item, f"{name}[{key!r}]") for key, item in value.items()}
    if origin in (tuple, list) and isinstance(value, list | tuple):
        kinds = inner if origin is tuple and inner[-1] is not ... else inner[:1] * len(value)
        if len(kinds) == len(value):
            pairs = enumerate(zip(kinds, value, strict=True))
            return origin(from_json(*pair, f"{name}[{i}]") for i, pair in pairs)
    raise NtpsError(f"{name} is {value!r}; {getattr(kind, '__name__', kind)} is needed.")


@lru_cache
def _hints(kind: type) -> dict[str, Any]:
    """Return the types of a dataclass's fields by name."""
    hints = typing.get_type_hints(kind)
    return {each.name: hints[each.name] for each in fields(kind)}


class Record:
    """What a result's dataclass inherits: its fields as JSON values, without those named in `left_out`."""

    left_out: typing.ClassVar[tuple[str, ...]] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values; numbers that are not finite become `None`."""
        content = _fields(self)
        return {name: jsonable(content[name]) for name in content if name not in self.left_out}

    def to_json(self) -> str:
        """Return `to_dict()` as JSON text."""
        return json_text(self.to_dict())


def picked(value: Any, *names: str) -> dict[str, Any]:
    """Return some attributes of an object, by name."""
    return {name: getattr(value, name) for name in names}


def _fields(value: Any) -> dict[str, Any]:
    return picked(value, *(each.name for each in fields(value)))


def json_text(content: Any) -> str:
    """Return JSON values as the text of a file."""
    return json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def file_lock(path: Path) -> "FileLock":
    """Return a lock on a file, which the operating system releases when its process dies.

    Raises:
        NtpsError: If the file is a link: locking it would empty what it points to.
    """
    from filelock import FileLock

    if path.is_symlink():
        raise NtpsError(f"{path} is a link, which cannot be a lock; remove it.")
    return FileLock(path)


@contextmanager
def held_lock(path: Path, what: str, *, seconds: float = 0) -> Iterator[None]:
    """Hold a lock file, which is removed at the end.

    Args:
        path: The file, in a folder that exists.
        what: What it stands for, for the message.
        seconds: How long to wait for another process, or another thread, that holds it.

    Raises:
        NtpsError: If another still holds it, or it is a link.
        OSError: If it cannot be made.
    """
    from filelock import Timeout

    lock = file_lock(path)
    try:
        try:
            lock.acquire(timeout=seconds)
            while not _is_there(lock, path):  # its last holder removed it between our opening and our locking it
                lock.release()
                lock.acquire(timeout=seconds)
        except Timeout:
            raise NtpsError(f"another run is writing {what}; wait for its end, or name another output.") from None
        yield
    finally:
        with suppress(OSError):  # another holds it; or Windows, which removes no file that is open
            if not lock.is_locked:  # a signal came while it was being taken: the file may be there, held by nobody
                lock = file_lock(path)
                lock.acquire(timeout=0)
            if _is_there(lock, path):
                path.unlink()
        lock.release()


def _is_there(lock: "FileLock", path: Path) -> bool:
    """Whether the file that is locked is the one at the path, which the next process will lock."""
    descriptor = lock._context.lock_file_fd  # filelock has no public name for it
    if fcntl is None or descriptor is None:  # pragma: no cover  Windows removes no file that is open
        return True
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


@contextmanager
def made_folder(folder: Path) -> Iterator[None]:
    """Make a folder, and at the end remove those that were made for it if they are empty."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    finally:
        with suppress(OSError):
            for path in missing:
                path.rmdir()


@contextmanager
def held_folder(folder: Path, *, seconds: float = 0) -> Iterator[None]:
    """Hold a folder for files that belong together, so that those of two runs are not mixed; make it if need be.

    Raises:
        NtpsError: If another run still holds it after so many seconds, or it cannot be written.
    """
    with ExitStack() as stack:
        try:
            stack.enter_context(made_folder(folder))
            stack.enter_context(held_lock(folder / ".writing.lock", f"output {folder}", seconds=seconds))
        except OSError as error:
            raise NtpsError(f"cannot write {folder}: {error.strerror or error}.") from error
        yield
