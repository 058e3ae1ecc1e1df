"""Low-rank adapters (PEFT): choose their modules, attach them, and write trained weights."""

import os
import shutil
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, cast

from safetensors import SafetensorError

from ntps import _hub
from ntps._files import SAVING, atomic_path
from ntps.errors import NtpsError
from ntps.finetune.settings import TrainSettings
from ntps.models.states import hidden_states

_MAMBA_TYPES = ("falcon_h1", "falcon_mamba", "mamba", "mamba2", "nemotron_h")  # where PEFT refuses these
_MAMBA_MAPS = ("out_proj", "conv1d")
_QUERY_KEY_VALUE = {
    "q_proj", "k_proj", "v_proj", "qkv_proj", "query", "key", "value", "query_key_value", "c_attn", "qkv", "wqkv",
    "q_lin", "k_lin", "v_lin", "in_proj_qkv",
}  # fmt: skip


def linear_modules(network: Any) -> dict[str, Any]:
    """Return the network's linear maps by module name, in order; GPT-2's transposed `Conv1D` is one too."""
    import torch
    from transformers.pytorch_utils import Conv1D

    return {name: module for name, module in network.named_modules() if isinstance(module, torch.nn.Linear | Conv1D)}


def adaptable_modules(network: Any) -> tuple[dict[str, Any], dict[str, list[str]]]:
    """Return the linear maps that can have an adapter which acts on texts, and the others by the reason why not.

    A pass over a short text tells what runs: not the vision tower of a model that also reads images, not a map whose
    weight another module reads (Mamba), and a router that returns more than a tensor cannot be wrapped. The names of
    experts that transformers fuses are taken by PEFT for the fused ones, which know no dropout, and some of Mamba's
    maps it refuses.

    Args:
        network: A transformers network.
    """
    import torch
    from transformers import PreTrainedModel

    linear = linear_modules(network)
    ran: set[str] = set()
    odd: set[str] = set()

    def watch(name: str) -> Any:
        def hook(_module: Any, _inputs: Any, output: Any) -> None:
            ran.add(name)
            if name in linear and not isinstance(output, torch.Tensor):
                odd.add(name)

        return hook

    hooks = [module.register_forward_hook(watch(name)) for name, module in network.named_modules()]
    try:
        ids = torch.zeros((1, 8), dtype=torch.int64, device=next(network.parameters()).device)
        with torch.inference_mode():
            hidden_states(network, ids, torch.ones_like(ids))
    finally:
        for hook in hooks:
            hook.remove()
    head = getattr(network, "get_output_embeddings", lambda: None)()
    taken = _renamed_by_peft(network, linear)
    refused = _MAMBA_MAPS if getattr(network.config, "model_type", None) in _MAMBA_TYPES else ()
    chosen: dict[str, Any] = {}
    others: dict[str, list[str]] = {}
    for name, module in linear.items():
        parent, _, ending = name.rpartition(".")
        if module is head:
            continue
        if name in odd:
            others.setdefault("they return more than a tensor", []).append(name)
        elif name not in ran and "expert" not in name:  # an expert may have got no token
            inside = parent in ran and not isinstance(network.get_submodule(parent), PreTrainedModel)
            reason = "another module reads their weights" if inside else "no text passes them"
            others.setdefault(reason, []).append(name)
        elif ending in taken:
            others.setdefault("PEFT takes their names for fused experts", []).append(name)
        elif ending in refused:
            others.setdefault("PEFT refuses them in Mamba layers", []).append(name)
        else:
            chosen[name] = module
    for name, module in network.named_modules():
        fused = any(weight.ndim == 3 for weight in module.parameters(recurse=False))
        if fused and name in ran and "expert" in name:
            others.setdefault("their weights are fused into one tensor", []).append(name)
    return chosen, others


def _renamed_by_peft(network: Any, names: Iterable[str]) -> set[str]:
    """Return the last parts of module names that PEFT takes for experts' maps from before transformers fused them."""
    from peft import LoraConfig
    from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers

    taken = set()
    for ending in {name.rpartition(".")[2] for name in names}:
        config = LoraConfig(target_modules=[ending])
        try:
            convert_peft_config_for_transformers(config, model=network, conversions=None)
        except ValueError:  # the others that are fused with it are missing
            taken.add(ending)
        if ending not in (config.target_modules or ()):
            taken.add(ending)
    return taken


def _block(name: str) -> int:
    """Return the number of the block that a module stands in, -1 if in none."""
    return next((int(part) for part in name.split(".") if part.isdigit()), -1)


def target_names(network: Any, target: str | Iterable[str], start_layer: int = 0) -> list[str]:
    """Return the full names of the modules that adapters go to.

    Args:
        network: The network without its language-model head.
        target: `"all-linear"`; `"paper"`: query, key and value, joint or separate, whatever the architecture calls
            them; or endings of module names, such as `("q_proj", "v_proj")`.
        start_layer: First block whose modules are chosen, counted from 0; what stands in no block is left out if above
            0.

    Raises:
        NtpsError: If the network has no such module, or none that can be adapted; the message lists the endings of
            those that can.
    """
    modules, others = adaptable_modules(network)
    names = [name for name in modules if start_layer == 0 or _block(name) >= start_layer]
    if modules and not names:
        raise NtpsError(
            f"start_layer is {start_layer}; the last block with linear modules is {max(map(_block, modules))}."
        )
    endings = ", ".join(dict.fromkeys(name.rsplit(".", 1)[-1] for name in names)) or "none"
    if target == "all-linear":
        chosen, missing = names, "linear module"
    elif target == "paper":
        chosen = [name for name in names if name.rsplit(".", 1)[-1].lower() in _QUERY_KEY_VALUE]
        missing = "query, key or value module"
    else:
        chosen = []
        for ending in [target] if isinstance(target, str) else target:
            matching = [name for name in names if name == ending or name.endswith(f".{ending}")]
            for reason, left_out in others.items():
                if not matching and any(name == ending or name.endswith(f".{ending}") for name in left_out):
                    raise NtpsError(f"target {ending!r} cannot be adapted ({reason}); choose among: {endings}.")
            if not matching:
                raise NtpsError(f"target {ending!r} is not a linear module of this model, which has: {endings}.")
            chosen += matching
        return list(dict.fromkeys(chosen))
    if not chosen:
        raise NtpsError(f"this model has no {missing}, which target {target!r} needs; its linear modules: {endings}.")
    return chosen


def describe_targets(network: Any, settings: TrainSettings) -> dict[str, Any]:
    """Return what adapters go to, as JSON values: numbers of modules by ending, and those left out by reason.

    Raises:
        NtpsError: As `target_names`.
    """
    chosen = target_names(network, settings.target, cast(int, settings.start_layer))
    left_out = {reason: _by_ending(names) for reason, names in adaptable_modules(network)[1].items()}
    return {"modules": _by_ending(chosen), "left_out": left_out}


def _by_ending(names: Iterable[str]) -> dict[str, int]:
    return dict(Counter(name.rpartition(".")[2] for name in names))


def attach(network: Any, settings: TrainSettings) -> Any:
    """Put new adapters into a network, in place, and return PEFT's wrapper around it; all else is frozen.

    The product of an adapter's two factors starts at zero, so the network's output does not change yet. The factors
    are drawn from torch's global generator.

    Raises:
        NtpsError: If the network lacks a target, or PEFT cannot adapt one.
    """
    from peft import LoraConfig, get_peft_model

    names = target_names(network, settings.target, cast(int, settings.start_layer))  # "auto" has become one
    linear = linear_modules(network)
    config = LoraConfig(
        task_type="FEATURE_EXTRACTION",
        r=settings.rank,
        lora_alpha=settings.alpha,  # type: ignore[arg-type]  # PEFT divides it by r: any number will do
        lora_dropout=settings.dropout,
        target_modules=names,
        fan_in_fan_out=any(type(linear[name]).__name__ == "Conv1D" for name in names),
    )
    try:
        with warnings.catch_warnings(), _hub.quiet():
            warnings.simplefilter("ignore")  # about fan_in_fan_out in a mixture of kinds: PEFT corrects it by itself
            return get_peft_model(network, config)
    except (ValueError, TypeError, NotImplementedError) as error:
        reason = " ".join(str(error).split())[:200].rstrip(".")
        raise NtpsError(
            f"PEFT cannot adapt {type(network).__name__} ({reason}); name other modules as target."
        ) from error


def write_adapter(adapter: Any, folder: Path, base: str) -> None:
    """Write `adapter_model.safetensors` and `adapter_config.json`, which `PeftModel.from_pretrained` reads.

    Args:
        adapter: From `attach`.
        folder: Destination folder; created if it does not exist.
        base: Path or hub name of the base model, for the configuration.

    Raises:
        NtpsError: If the files cannot be written.
    """
    adapter.peft_config["default"].base_model_name_or_path = base
    names = ("adapter_model.safetensors", "adapter_config.json")
    # By default PEFT asks the hub whether the vocabulary has grown; it has not.
    _install(folder, lambda path: adapter.save_pretrained(path, save_embedding_layers=False), names)


def write_network(network: Any, tokenizer: Any, folder: Path) -> None:
    """Write a whole network with its tokenizer, as a directory that `load_model` reads.

    Raises:
        NtpsError: If the files cannot be written.
    """

    def save(path: str) -> None:
        network.save_pretrained(path)
        tokenizer.save_pretrained(path)

    _install(folder, save)


def _install(folder: Path, save: Callable[[str], None], names: tuple[str, ...] | None = None) -> None:
    """Let a library save into a temporary folder, then move file by file: none is ever there in part."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for leftover in folder.glob(f"{SAVING}*"):  # of a process that was killed while it saved
            shutil.rmtree(leftover, ignore_errors=True)
        with tempfile.TemporaryDirectory(prefix=SAVING, dir=folder) as temporary:
            with _hub.quiet():
                save(temporary)
            for path in sorted(Path(temporary).iterdir()):
                if names is None or path.name in names:
                    with atomic_path(folder / path.name) as placeholder:
                        path.chmod(placeholder.stat().st_mode)  # safetensors makes 0600: unreadable for colleagues
                        os.replace(path, placeholder)
    except OSError as error:
        raise NtpsError(f"cannot write {folder}: {error.strerror or error}.") from error
    except SafetensorError as error:  # a full disk, for example
        raise NtpsError(f"cannot write {folder}: {error}.") from error
