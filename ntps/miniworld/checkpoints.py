"""The bundled models: their names, directories and checksums."""

import hashlib
from pathlib import Path
from typing import Any

from ntps._files import read_json
from ntps.errors import NtpsError, one_of

FOLDER = Path(__file__).parent / "models"
CHECKSUMS = "checksums.json"
SIZES = ("small", "base", "large")


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def compute_checksums(folder: Path) -> dict[str, dict[str, str]]:
    """Return `{model: {file: sha256}}` for every model directory in `folder`."""
    return {
        model.name: {path.name: _sha256(path) for path in sorted(model.iterdir()) if path.is_file()}
        for model in sorted(folder.iterdir())
        if (model / "config.json").is_file()
    }


def _order(name: str) -> tuple[int, bool, int]:
    """Sort by size; the finished model first, then its ladder by step."""
    size, _, step = name.removeprefix("miniworld-").partition("@step")
    return (SIZES.index(size) if size in SIZES else len(SIZES), bool(step), int(step or 0))


def model_names() -> tuple[str, ...]:
    """Return the bundled models' names: three sizes, and the checkpoints during pretraining (`@stepN`) of one."""
    return tuple(sorted(read_json(FOLDER / CHECKSUMS), key=_order))


def model_path(name: str) -> Path:
    """Return the directory of a bundled model, after checking every file's SHA-256.

    Args:
        name: One of `model_names()`, such as `miniworld-base` or `miniworld-base@step100`.

    Raises:
        NtpsError: If there is no such model, or a file is missing or damaged; the message says which, and how to
            restore it.
    """
    one_of(name, model_names(), "bundled model")
    path = FOLDER / name
    for file, expected in read_json(FOLDER / CHECKSUMS)[name].items():
        if not (path / file).is_file() or _sha256(path / file) != expected:
            size = name.removeprefix("miniworld-").partition("@")[0]
            raise NtpsError(
                f"{path / file} is missing or damaged: restore it with `git checkout -- ntps/miniworld/models`, "
                f"with `pip install --force-reinstall --no-deps ntps` without a clone, or train it again: "
                f"`python -m ntps.miniworld.train --size {size} --output {FOLDER}`."
            )
    return path


def describe_model(name: str) -> dict[str, Any]:
    """Return the training record of a bundled model.

    Returns:
        `name`, `path`, `description` (one line), `size`, `step`, `n_parameters`, `width`, `n_blocks`, `loss` and
        `entropy_rate` (nats per token on held-out documents) and the `losses` seen in training as `[step, loss]` pairs.

    Raises:
        NtpsError: As `model_path`.
    """
    path = model_path(name)
    return {"name": name, "path": str(path), **read_json(path / "training.json")}
