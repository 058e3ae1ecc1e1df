"""The state of an unfinished training run, in one safetensors file: written atomically, read by the same run only."""

import json
from pathlib import Path
from typing import Any

import torch

from ntps._files import atomic_path
from ntps.errors import NtpsError

STATE_FILE = "state.safetensors"
FORMAT = "ntps-train-state-1"


def write_state(
    folder: Path,
    run: dict[str, Any],
    progress: dict[str, Any],
    parameters: dict[str, torch.Tensor],
    best: dict[str, torch.Tensor],
    optimizer: Any | None,
) -> Path:
    """Write all that a run needs to go on.

    Args:
        folder: Folder of the run.
        run: What the run is of: fingerprints of model and texts, settings, seed; JSON values.
        progress: Step, curve and the like; JSON values.
        parameters: The trained tensors as they are now.
        best: The same at the best validation loss so far.
        optimizer: Its moments are kept; `None` for a finished run, of which only `best` is.

    Raises:
        NtpsError: If the file cannot be written.
    """
    from safetensors.torch import save_file

    tensors = {f"best|{name}": value for name, value in best.items()}
    numbers: dict[str, dict[str, Any]] = {}
    if optimizer is not None:
        tensors |= {f"now|{name}": value.detach() for name, value in parameters.items()}
        for index, entries in optimizer.state_dict()["state"].items():
            for key, value in entries.items():
                if isinstance(value, torch.Tensor):
                    tensors[f"optimizer|{index}|{key}"] = value
                else:
                    numbers.setdefault(str(index), {})[key] = value
    record = {"format": FORMAT, "run": run, "progress": progress, "numbers": numbers}
    # clone: a tensor must own its memory, and two names must not share it
    whole = {name: value.detach().cpu().clone().contiguous() for name, value in tensors.items()}
    with atomic_path(folder / STATE_FILE) as temporary:
        try:
            save_file(whole, temporary, metadata={"record": json.dumps(record)})
        except Exception as error:  # safetensors wraps a full disk in an error of its own
            raise NtpsError(f"cannot write {folder / STATE_FILE}: {error}.") from error
    return folder / STATE_FILE


def read_state(
    folder: Path, run: dict[str, Any], parameters: dict[str, torch.Tensor], optimizer: Any
) -> tuple[dict[str, Any], dict[str, torch.Tensor]] | None:
    """Read a state into parameters and optimiser; return its progress and best tensors, or `None` if there is no file.

    Raises:
        NtpsError: If it is damaged, or belongs to another model, other texts, other settings or another seed; the
            message says which.
    """
    from safetensors import SafetensorError, safe_open

    path = folder / STATE_FILE
    if not path.is_file():
        return None
    try:
        with safe_open(path, "pt") as file:
            record = json.loads((file.metadata() or {}).get("record", "{}"))
            tensors = {name: file.get_tensor(name) for name in list(file.keys())}
    except (SafetensorError, OSError, json.JSONDecodeError) as error:
        raise NtpsError(f"{path} is damaged ({error}); delete it, or train without resume.") from error
    if record.get("format") != FORMAT:
        raise NtpsError(f"{path} holds no training state of this version; delete it, or train without resume.")
    _same_run(path, record["run"], run)
    best = {name.removeprefix("best|"): value for name, value in tensors.items() if name.startswith("best|")}
    state: dict[int, dict[str, Any]] = {}
    for name, value in tensors.items():
        kind, _, rest = name.partition("|")
        if kind == "now":
            parameters[rest].data.copy_(value)
        elif kind == "optimizer":
            index, _, key = rest.partition("|")
            state.setdefault(int(index), {})[key] = value
    for index, entries in record["numbers"].items():
        state.setdefault(int(index), {}).update(entries)
    if state:
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return record["progress"], best


def _same_run(path: Path, theirs: dict[str, Any], ours: dict[str, Any]) -> None:
    """Refuse a state of another run, and say what differs."""
    advice = "name another output, delete it, or train without resume"
    for part, what in (("model", "another model"), ("train", "other training texts"),
                       ("validation", "other validation texts")):  # fmt: skip
        if theirs.get(part) != ours[part]:
            raise NtpsError(f"{path} is the state of a run on {what}; {advice}.")
    for name, value in ours.items():
        if theirs.get(name) != value:
            raise NtpsError(f"{path} is of a run with {name} {theirs.get(name)!r}, not {value!r}; {advice}.")
