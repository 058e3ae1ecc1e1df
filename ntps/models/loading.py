"""From a name to a loaded network and tokenizer: where it is, what transformers makes of it, what went wrong."""

import difflib
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ntps import _hub
from ntps.errors import NtpsError
from ntps.models import checkpoints, presets
from ntps.models.tokens import check_tokenizer


@dataclass(frozen=True)
class Place:
    """Where a model is.

    Attributes:
        kind: "bundled", "directory", "gguf" or "hub".
        name: What the reader called it.
        path: Directory, or name on the hub.
        gguf_file: GGUF file in it, or None.
        preset: The paper's entry for it, or None.
    """

    kind: str
    name: str
    path: str
    gguf_file: str | None = None
    preset: presets.ModelPreset | None = None

    @property
    def local(self) -> bool:
        """Whether it is a directory on this machine."""
        return self.kind != "hub" and not (self.kind == "gguf" and not Path(self.path).is_dir())


def locate(name: str, gguf_file: str | None = None) -> Place:
    """Find a model by bundled name, path, preset or hub name; nothing is loaded and the hub is not asked.

    Raises:
        NtpsError: If a path does not exist, or the name can be none of these.
    """
    if not name.strip():
        raise NtpsError("the model's name is empty; give a bundled name, a directory, a .gguf file or a hub name.")
    if name.startswith("miniworld-"):
        from ntps import miniworld

        return Place("bundled", name, str(miniworld.model_path(name)))
    path = Path(name).expanduser()
    if path.is_dir():
        return Place("gguf" if gguf_file else "directory", name, str(path), gguf_file)
    if path.is_file():
        if path.suffix.lower() != ".gguf":
            raise NtpsError(f"{name} is a file; a model is a directory with config.json and weights, or a .gguf file.")
        return Place("gguf", name, str(path.parent), path.name)
    preset = presets.model_preset(name)
    if preset:
        return Place("hub", name, preset.hub, gguf_file, preset)
    looks_like_path = name.startswith((".", "~", os.sep)) or path.suffix in {".gguf", ".safetensors"}
    if looks_like_path or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name):
        raise NtpsError(
            f"{name}: no such directory or .gguf file, and no model's name on the hub.{_did_you_mean(name)}"
        )
    return Place("gguf" if gguf_file else "hub", name, name, gguf_file)


def _did_you_mean(name: str) -> str:
    """Return a sentence with the known name that comes closest, if one does."""
    from ntps import miniworld

    known = [*miniworld.model_names(), *presets.MODELS]
    close = [word for word in difflib.get_close_matches(name, known, n=1) if word.lower() != name.lower()]
    return f" Did you mean {close[0]!r}?" if close else ""


@contextmanager
def _reading(place: Place, what: str) -> Iterator[dict[str, Any]]:
    """Read from disk or hub inside the block, quietly; yield the options for `from_pretrained`; translate failures."""
    online = place.local or _hub.reachable()
    try:
        with _hub.quiet(), nullcontext() if online else _hub.offline():
            yield {} if online else {"local_files_only": True}
    except (NtpsError, MemoryError):
        raise
    except Exception as error:
        if type(error).__name__ == "OutOfMemoryError":
            raise
        if not online:
            raise NtpsError(
                f"model {place.name!r} cannot be loaded: {_hub.why_not_found('it')}; "
                f"use a local directory or a bundled model (`ntps list` names them).{_did_you_mean(place.name)}"
            ) from error
        raise NtpsError(f"{place.name}: {_reason(error, what)}") from error


def _reason(error: Exception, what: str) -> str:
    """Say in one sentence why transformers did not load something."""
    text = " ".join(str(error).split())
    lowered = text.lower()
    if "trust_remote_code" in text:
        return "it needs code from its own repository; read that code, then pass trust_remote_code=True."
    if "gated" in lowered:
        return "access is to be asked for on its page on the hub, then log in with `hf auth login`."
    if "not a valid model identifier" in lowered or "repository not found" in lowered:
        return "no such model on the hub, or it is private; check the spelling, or log in with `hf auth login`."
    if "does not recognize this architecture" in lowered:
        return f"transformers does not know this architecture ({text[:160]}...)."
    if "gguf" in lowered and isinstance(error, ImportError):
        return "reading GGUF files needs the package gguf; install ntps[gguf]."
    return f"its {what} does not load ({text[:300].rstrip('.') or type(error).__name__})."


def read_config(
    place: Place, revision: str | None, trust_remote_code: bool, random_weights: bool
) -> tuple[Any, str | None]:
    """Load and check a model's configuration; the weights stay where they are.

    Returns:
        The configuration, and for a hub model the commit it was read at, so that the rest is read at the same.

    Raises:
        NtpsError: If it cannot be had, or belongs to no causal language model.
    """
    from transformers import AutoConfig

    options: dict[str, Any] = {"trust_remote_code": trust_remote_code}
    if place.local:
        checkpoints.check_directory(Path(place.path), place.gguf_file, random_weights)
    if place.gguf_file:
        options["gguf_file"] = place.gguf_file
    with _reading(place, "configuration") as found:
        config = AutoConfig.from_pretrained(place.path, revision=revision or "main", **options, **found)
        commit = None if place.local else _hub.commit_of(place.path, revision, place.gguf_file or "config.json")
    checkpoints.check_causal(config, place.name)
    return config, commit


def read_tokenizer(place: Place, given: Any, revision: str | None, trust_remote_code: bool) -> Any:
    """Load a model's tokenizer, or the one the reader gave, and see that ids come out of it.

    Raises:
        NtpsError: If there is none, or it yields no ids.
    """
    from transformers import AutoTokenizer

    if given is None and place.preset and place.preset.tokenizer:
        given = place.preset.tokenizer
    if given is not None and not isinstance(given, str | os.PathLike):
        return check_tokenizer(given, place.name)
    options: dict[str, Any] = {"trust_remote_code": trust_remote_code}
    if given is None:
        source, options["revision"] = place, revision or "main"
        if place.gguf_file:
            options["gguf_file"] = place.gguf_file
    else:
        folder = Path(given).expanduser()
        kind, where = ("directory", str(folder)) if folder.is_dir() else ("hub", os.fspath(given))
        source = Place(kind, os.fspath(given), where)
    with _reading(source, "tokenizer") as found:
        tokenizer = AutoTokenizer.from_pretrained(source.path, **options, **found)
    return check_tokenizer(tokenizer, source.name)


def read_network(place: Place, config: Any, head: bool, **options: Any) -> Any:
    """Load the weights.

    Args:
        place: Where they are.
        config: Their configuration.
        head: Whether to keep the language-model head.
        **options: For `from_pretrained`: revision, dtype, device_map, trust_remote_code.

    Raises:
        NtpsError: If they are damaged, do not fit the configuration, or lack parameters.
    """
    from transformers import AutoModel, AutoModelForCausalLM

    factory: Any = AutoModelForCausalLM if head else AutoModel
    options = {name: value for name, value in options.items() if value is not None}
    if place.gguf_file:
        options["gguf_file"] = place.gguf_file
    else:
        options["config"] = config
    if not head and _own_code_has_no_base(config):
        factory = AutoModelForCausalLM
    with _reading(place, "weights") as found:
        model, report = factory.from_pretrained(place.path, output_loading_info=True, **options, **found)
    lacking = sorted(report.get("missing_keys", ()))
    if lacking:
        raise NtpsError(
            f"{place.name}: the weights lack {len(lacking)} of the model's parameters (first: {lacking[0]}), "
            "which would stay random; the checkpoint belongs to another architecture or is not whole."
        )
    return model


def _own_code_has_no_base(config: Any) -> bool:
    """Return whether a repository's own code offers a causal language model but no `AutoModel` (OpenELM)."""
    offered = getattr(config, "auto_map", None) or {}
    return "AutoModelForCausalLM" in offered and "AutoModel" not in offered


def fresh_network(config: Any, head: bool, seed: int, dtype: str | None, trust_remote_code: bool = False) -> Any:
    """Build the architecture with fresh weights; torch's random state is as before afterwards."""
    import torch
    from transformers import AutoModel, AutoModelForCausalLM

    factory: Any = AutoModelForCausalLM if head or _own_code_has_no_base(config) else AutoModel
    wanted = config.dtype if dtype in {None, "auto"} else getattr(torch, dtype or "")
    with _hub.quiet(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return factory.from_config(config, dtype=wanted or torch.float32, trust_remote_code=trust_remote_code)


def find_device(device: Any) -> Any:
    """Return a torch device that is there; None is the first CUDA device, or else the CPU.

    Raises:
        NtpsError: If it is unknown or not on this machine.
    """
    import torch

    there = ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
    if torch.backends.mps.is_available():
        there.append("mps")
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        wanted = torch.device(device)
        if wanted.type == "meta":
            raise ValueError("no memory behind it")
        torch.empty(1, device=wanted)
    except Exception as error:
        raise NtpsError(f"device is {str(device)!r}; on this machine there are: {', '.join(there)}.") from error
    return wanted


def without_head(model: Any) -> Any:
    """Return the network under a language-model head, or under an adapter's wrapper; the weights are shared."""
    unwrap: Callable[[], Any] | None = getattr(model, "get_base_model", None)  # PEFT
    model = unwrap() if unwrap is not None else model
    return getattr(model, "base_model", model)


def input_device(model: Any) -> Any:
    """Return the device of the embedding; for parts that are offloaded, the first device of the map."""
    import torch

    weight = model.get_input_embeddings().weight
    if weight.device.type != "meta":
        return weight.device
    first = next(
        (place for place in getattr(model, "hf_device_map", {}).values() if place not in {"disk", "cpu"}), "cpu"
    )
    return torch.device(first)


def max_positions(config: Any) -> int | None:
    """Return the longest text in tokens that a configuration allows, or None."""
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    for name in ("max_position_embeddings", "n_positions", "max_context_length", "max_seq_len", "n_ctx"):
        value = getattr(text, name, None)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
    return None
