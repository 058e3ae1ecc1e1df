"""Which weights are trained, and how the trained ones are written: low-rank adapters (PEFT), all weights, or none."""

import os
import tempfile
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from ntps import _hub
from ntps.errors import NtpsError
from ntps.finetune.settings import TrainSettings


def linear_modules(network: Any) -> dict[str, Any]:
    """Return the network's linear maps by module name, in order; GPT-2's `Conv1D`, which is one transposed, counts."""
    import torch
    from transformers.pytorch_utils import Conv1D

    return {name: module for name, module in network.named_modules() if isinstance(module, torch.nn.Linear | Conv1D)}


def target_names(network: Any, target: str | Iterable[str]) -> list[str]:
    """Return the full names of the modules that adapters go to.

    Args:
        network: The network without its language-model head.
        target: `"all-linear"`; `"paper"`: the linear maps inside attention (query, key, value and output, joint or
            apart, whatever the architecture calls them); or endings of module names, such as `("q_proj", "v_proj")`.

    Raises:
        NtpsError: If the network has no such module; the message lists the endings it has.
    """
    names = list(linear_modules(network))
    endings = ", ".join(dict.fromkeys(name.rsplit(".", 1)[-1] for name in names)) or "none"
    if target == "all-linear":
        chosen, wanted = names, "a linear module"
    elif target == "paper":
        chosen, wanted = [name for name in names if "attn" in name.lower() or "attention" in name.lower()], "attention"
    else:
        chosen = []
        for ending in [target] if isinstance(target, str) else target:
            found = [name for name in names if name == ending or name.endswith(f".{ending}")]
            if not found:
                raise NtpsError(f"target {ending!r} is no linear module of this model; it has: {endings}.")
            chosen += found
        return list(dict.fromkeys(chosen))
    if not chosen:
        raise NtpsError(
            f"this model has no {wanted} that target {target!r} could go to; its linear modules: {endings}."
        )
    return chosen


def attach(network: Any, settings: TrainSettings) -> Any:
    """Put fresh adapters into a network, in place, and return PEFT's wrapper around it; the rest is frozen.

    The product of an adapter's two factors starts at zero, so nothing changes yet. The factors are drawn from torch's
    global generator.

    Raises:
        NtpsError: If the network lacks a target.
    """
    from peft import LoraConfig, get_peft_model

    names = target_names(network, settings.target)
    linear = linear_modules(network)
    config = LoraConfig(
        task_type="FEATURE_EXTRACTION",
        r=settings.rank,
        lora_alpha=settings.alpha,  # type: ignore[arg-type]  # PEFT divides by r: any number will do
        lora_dropout=settings.dropout,
        target_modules=names,
        fan_in_fan_out=any(type(linear[name]).__name__ == "Conv1D" for name in names),
    )
    with warnings.catch_warnings(), _hub.quiet():
        warnings.simplefilter("ignore")  # about fan_in_fan_out where kinds are mixed: PEFT sets it right by itself
        return get_peft_model(network, config)


def write_adapter(adapter: Any, folder: Path, base: str) -> None:
    """Write `adapter_model.safetensors` and `adapter_config.json`, which `PeftModel.from_pretrained` reads.

    Args:
        adapter: From `attach`.
        folder: Where to.
        base: Path or hub name of the base model, kept in the configuration.

    Raises:
        NtpsError: If the files cannot be written.
    """
    adapter.peft_config["default"].base_model_name_or_path = base
    names = ("adapter_model.safetensors", "adapter_config.json")
    # False: whether the vocabulary grew, which PEFT would ask the hub about, it did not.
    _install(folder, names, lambda path: adapter.save_pretrained(path, save_embedding_layers=False))


def write_network(network: Any, tokenizer: Any, folder: Path) -> None:
    """Write a whole network with its tokenizer, as a directory that `load_model` reads.

    Raises:
        NtpsError: If the files cannot be written.
    """

    def save(path: str) -> None:
        network.save_pretrained(path)
        tokenizer.save_pretrained(path)

    _install(folder, None, save)


def _install(folder: Path, names: tuple[str, ...] | None, save: Callable[[str], None]) -> None:
    """Let a library save into a folder of its own, then rename file by file: each is whole or not there."""
    umask = os.umask(0)
    os.umask(umask)
    mode = 0o666 & ~umask
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".saving.", dir=folder) as temporary:
            with _hub.quiet():
                save(temporary)
            for path in sorted(Path(temporary).iterdir()):
                if names is None or path.name in names:
                    path.chmod(mode)  # safetensors makes 0600, which surprises whoever shares the folder
                    os.replace(path, folder / path.name)
    except OSError as error:
        raise NtpsError(f"cannot write {folder}: {error.strerror or error}.") from error
    except Exception as error:  # safetensors wraps a full disk in an error of its own
        if type(error).__name__ != "SafetensorError":
            raise
        raise NtpsError(f"cannot write {folder}: {error}.") from error
