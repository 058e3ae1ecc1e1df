"""Files that are either whole or not there: atomic writes, one checksummed tensor store, JSON."""

import hashlib
import json
import math
import os
import secrets
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ntps.errors import NtpsError

if TYPE_CHECKING:
    import torch

_BLOCK = 1 << 26  # bytes hashed or written at a time, so that a memory-mapped tensor never enters memory whole
_SAFETENSORS_NAMES = {
    "float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "int64": "I64", "int32": "I32",
    "int16": "I16", "int8": "I8", "uint8": "U8", "bool": "BOOL",
}  # fmt: skip


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
        candidate = path.with_name(f".{path.name}.{secrets.token_hex(6)}.part")
        os.close(os.open(candidate, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))  # the kernel applies the umask
        temporary = candidate
        yield temporary
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
            for block in _blocks(tensor):
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
    header = json.loads(strings["ntps"])
    if header.get("kind") != kind:
        raise NtpsError(f"{path} holds {header.get('kind')!r}, not {kind!r}.")
    return tensors, header


def _blocks(tensor: "torch.Tensor") -> Iterator[memoryview]:
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
        for block in _blocks(tensor):
            digest.update(block)
    return digest.hexdigest()


def sha256_files(paths: Iterable[str | Path]) -> str:
    """Return the SHA-256 hex digest over names and contents of `paths`, in the order given."""
    digest = hashlib.sha256()
    for path in map(Path, paths):
        digest.update(path.name.encode() + b"\0")
        with path.open("rb") as file:
            while block := file.read(1 << 22):
                digest.update(block)
    return digest.hexdigest()


def sha256_json(content: Mapping[str, Any], *, leave_out: str = "checksum") -> str:
    """Return the SHA-256 hex digest of a JSON object without the entry in which a file keeps this digest."""
    rest = {key: value for key, value in content.items() if key != leave_out}
    return hashlib.sha256(json.dumps(rest, sort_keys=True, ensure_ascii=False).encode("utf-8")).hexdigest()


def jsonable(value: Any) -> Any:
    """Return a value as JSON values: at any depth, non-finite numbers become `None`, tuples and arrays become lists."""
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
    """Read a JSON file.

    Raises:
        NtpsError: If it is missing, unreadable or not JSON.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise NtpsError(f"cannot read {path}: {error}.") from error
    except json.JSONDecodeError as error:
        raise NtpsError(f"{path}, line {error.lineno}: not valid JSON ({error.msg}).") from error


def check_output(folder: str | Path | None, file: str | Path | None = None) -> None:
    """Refuse an output folder or file that cannot be written, before the long work starts.

    Args:
        folder: Output folder; created if it does not exist.
        file: Output file; "-" is standard output.

    Raises:
        NtpsError: If the folder is a file or cannot be written to, or the file is a folder.
    """
    if folder is not None:
        folder = Path(folder)
        if folder.exists() and not folder.is_dir():
            raise NtpsError(f"output {folder} is a file; name a folder.")
        atomic_write(folder / f".ntps-write-test-{secrets.token_hex(6)}", "").unlink(missing_ok=True)
    if file is not None and Path(file).is_dir():
        raise NtpsError(f"{file} is a folder; name a file, or - for standard output.")
