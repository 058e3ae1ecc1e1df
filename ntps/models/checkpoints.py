"""Find a model, check the files in its directory and fingerprint them, before any weight is loaded."""

import difflib
import hashlib
import os
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ntps import _hub
from ntps._files import local_path, read_json, sha256_files, tensor_blocks
from ntps.errors import NtpsError
from ntps.models import presets

_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
_TOKENIZER = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json",
    "vocab.txt", "merges.txt", "tokenizer.model", "spiece.model",
)  # fmt: skip


ADAPTER_CONFIG = "adapter_config.json"
_LONGEST = 96  # characters of a name on the hub
_ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")


@dataclass(frozen=True, kw_only=True)
class ModelLocation:
    """Location of a model.

    Attributes:
        kind: "bundled", "directory", "gguf", "hub" or "objects".
        name: Name given by the user.
        path: Directory, or name on the hub.
        gguf_file: Name of the GGUF file in it, or None.
        preset: Preset of a model of the paper, or None.
        adapter: Directory of the adapter that is added to it, or None.
    """

    kind: str
    name: str
    path: str
    gguf_file: str | None = None
    preset: presets.ModelPreset | None = None
    adapter: str | None = None

    @property
    def local(self) -> bool:
        """Whether it is a directory on this machine."""
        return self.kind != "hub" and Path(self.path).is_dir()


def locate(name: str, gguf_file: str | None = None) -> ModelLocation:
    """Find a model by bundled name, path, preset or hub name; nothing is loaded and the hub is not asked.

    `BASE+ADAPTER` is a model with an adapter (a directory), and so is the directory of an adapter alone, which names
    its base.

    Raises:
        NtpsError: If a path does not exist, the name can be none of these, or there is no GGUF file to choose.
    """
    if not name.strip():
        raise NtpsError("the model's name is empty; give a bundled name, a directory, a .gguf file or a hub name.")
    path = local_path(name)
    base, plus, adapter = name.rpartition("+")
    if plus and not adapter.strip() and not path.exists():
        raise NtpsError(f"{name}: after the + give the directory of an adapter.")
    if plus and not path.exists():
        return _locate_adapted(name, base, local_path(adapter), gguf_file)
    bundled = _is_bundled(name)
    if gguf_file is not None and (bundled or path.is_file()):
        raise NtpsError(f"gguf_file is {gguf_file!r}, which has no meaning for {name}: it is not a directory of files.")
    if bundled:
        from ntps import miniworld

        return ModelLocation(kind="bundled", name=name, path=str(miniworld.model_path(name)))
    if path.is_dir():
        if (path / ADAPTER_CONFIG).is_file() and not (path / "config.json").is_file() and gguf_file is None:
            return _locate_adapted(name, _base_of(path), path, None)
        kind = "gguf" if gguf_file else "directory"
        return ModelLocation(kind=kind, name=name, path=str(path), gguf_file=gguf_file)
    if path.is_file():
        if path.suffix.lower() != ".gguf":
            raise NtpsError(f"{name} is a file; a model is a directory with config.json and weights, or a .gguf file.")
        return ModelLocation(kind="gguf", name=name, path=str(path.parent), gguf_file=path.name)
    preset = presets.model_preset(name)
    if preset:
        return ModelLocation(kind="hub", name=name, path=preset.hub, gguf_file=gguf_file, preset=preset)
    looks_like_path = name.startswith((".", "~", os.sep)) or path.suffix in {".gguf", ".safetensors"}
    if looks_like_path or len(name) > _LONGEST or not _hub.is_name(name):
        raise NtpsError(
            f"{name[:80]}: no such directory or .gguf file, and not a valid name of a model on the hub."
            f"{did_you_mean(name)}"
        )
    return ModelLocation(kind="gguf" if gguf_file else "hub", name=name, path=name, gguf_file=gguf_file)


def place_of(name: str) -> tuple[str, ...]:
    """Return where a model is, equal for all spellings of its name; the name itself where no model can be."""
    try:
        found = locate(name)
    except NtpsError:  # whoever loads it says why
        return (name,)
    path = str(Path(found.path).resolve()) if found.local else found.path
    adapter = "" if found.adapter is None else str(Path(found.adapter).resolve())
    return path, found.gguf_file or "", adapter


def _is_bundled(name: str) -> bool:
    """Return whether a name is that of a bundled model, or was meant to be one."""
    from ntps import miniworld

    return name in miniworld.model_names() or (name.startswith("miniworld-") and not Path(name).is_dir())


def _locate_adapted(name: str, base: str, adapter: Path, gguf_file: str | None) -> ModelLocation:
    """Find a base model and put an adapter's directory beside it."""
    if not (adapter / ADAPTER_CONFIG).is_file():
        raise NtpsError(
            f"{name}: {adapter} is no directory with an {ADAPTER_CONFIG}; after the + give the directory of an adapter "
            "(one on the hub must be downloaded first)."
        )
    if gguf_file is not None or base.lower().endswith(".gguf"):
        raise NtpsError(f"{name}: an adapter cannot be added to a GGUF file; give the model that the file was made of.")
    location = locate(base)
    if location.adapter is not None:
        raise NtpsError(f"{name}: {base} is an adapter itself; give one base and one adapter, as BASE+ADAPTER.")
    return replace(location, name=name, adapter=str(adapter))


def _base_of(adapter: Path) -> str:
    """Return the base model that an adapter's configuration names.

    Raises:
        NtpsError: If it names none, or one that is not on this machine although it is a path.
    """
    config = read_json(adapter / ADAPTER_CONFIG)
    base = config.get("base_model_name_or_path") if isinstance(config, dict) else None
    if not isinstance(base, str) or not base.strip():
        raise NtpsError(f"{adapter / ADAPTER_CONFIG} names no base model; give both, as BASE+{adapter}.")
    beside = adapter / base  # a base that was given relative to the adapter
    if not local_path(base).exists() and local_path(beside).is_dir():
        return str(beside)
    if not local_path(base).exists() and (os.path.isabs(base) or base.startswith((".", "~"))):
        raise NtpsError(f"{adapter} is an adapter whose base model {base} is not there; give both, as BASE+{adapter}.")
    return base


def did_you_mean(name: str) -> str:
    """Return a sentence that offers the most similar known name, or an empty string."""
    from ntps import miniworld

    known = [*miniworld.model_names(), *presets.MODELS]
    close = [word for word in difflib.get_close_matches(name, known, n=1) if word.lower() != name.lower()]
    return f" Did you mean {close[0]!r}?" if close else ""


def weight_files(path: Path) -> list[Path]:
    """Return the weight files that transformers would load from a directory: safetensors first, shards in order.

    Raises:
        NtpsError: If there are none, or a shard is missing, or a safetensors file is damaged.
    """
    for name in _WEIGHTS:
        files = [path / name]
        if not files[0].is_file():
            index = path / f"{name}.index.json"
            if not index.is_file():
                continue
            shards = read_json(index)
            if not isinstance(shards, dict) or not isinstance(shards.get("weight_map"), dict):
                raise NtpsError(f"{index} is not an index of shards: weight_map is missing.")
            files = [path / shard for shard in sorted(set(map(str, shards["weight_map"].values())))]
            missing = [file.name for file in files if not file.is_file()]
            if missing:
                count = f"{len(missing)} of {len(files)} shards"
                raise NtpsError(f"{path} is incomplete: {missing[0]} is missing ({count}).")
        for file in files:
            if file.suffix == ".safetensors":
                _check_safetensors(file)
        return files
    raise NtpsError(
        f"{path} has a config.json but no weights ({' or '.join(_WEIGHTS)}); random_weights=True needs none."
    )


def _check_safetensors(file: Path) -> None:
    """Read the header, which makes safetensors compare the file's length with it."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt"):
            pass
    except (SafetensorError, OSError) as error:
        raise NtpsError(f"{file} is damaged: {_hub.first_line(error)}.") from error


def check_directory(path: Path, gguf_file: str | None, random_weights: bool) -> None:
    """Check that the model in a directory is complete.

    Raises:
        NtpsError: If a file is missing or damaged; the message names it.
    """
    if gguf_file is not None:
        file = path / gguf_file
        if not file.is_file():
            raise NtpsError(f"gguf_file is {gguf_file!r}, but {path} has no such file.")
        with file.open("rb") as opened:
            if opened.read(4) != b"GGUF":
                raise NtpsError(f"{file} is not a GGUF file: it does not begin with the letters GGUF.")
        return
    if not (path / "config.json").is_file():
        gguf = sorted(path.glob("*.gguf"))
        inside = sorted(
            {file.parent.name for name in ("config.json", ADAPTER_CONFIG) for file in path.glob(f"*/{name}")},
            key=lambda name: [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)],
        )
        if inside:
            names = ", ".join(inside[:8]) + (", ..." if len(inside) > 8 else "")
            raise NtpsError(
                f"{path} is not a model directory, but has some in it ({names}); name one, such as {path / inside[-1]}."
            )
        if gguf:
            raise NtpsError(
                f"{path} is not a model directory: config.json is missing; for its GGUF file pass {gguf[0]}."
            )
        raise NtpsError(f"{path} is not a model directory: config.json is missing.")
    if (path / ADAPTER_CONFIG).is_file():
        raise NtpsError(
            f"{path} holds a model and an adapter ({ADAPTER_CONFIG}), which may be merged into it already; delete the "
            f"adapter's files if it is, or move them into a directory of their own and name both: {path}+ADAPTER."
        )
    config = read_json(path / "config.json")
    if not isinstance(config, dict) or not (config.get("model_type") or config.get("auto_map")):
        raise NtpsError(f"{path / 'config.json'} is not a model configuration: model_type is missing.")
    if not random_weights:
        weight_files(path)


def check_kind(config: Any, name: str, *, loaded: bool = False, bidirectional: bool = False) -> None:
    """Refuse models that do not predict the next token from the past alone, by their configuration.

    The score is about directions that help to predict the next token from the tokens before it; a model that sees the
    whole text at once has none.

    Args:
        config: The model's configuration.
        name: Its name, for messages.
        loaded: Whether there is a network already, whose states will tell: as a part of a larger one it may have a
            type that is not listed.
        bidirectional: Whether a model that reads later tokens is welcome.

    Raises:
        NtpsError: If the model is an encoder-decoder or, unless `bidirectional`, an encoder or a type without a causal
            language model.
    """
    from transformers.models.auto import modeling_auto

    kind = getattr(config, "model_type", "") or type(config).__name__
    why = "; the score is about predicting the next token from the tokens before it, so a causal (decoder-only) model "
    why += "is needed, such as GPT-2, Llama, Qwen or Gemma."
    if getattr(config, "is_encoder_decoder", False):
        raise NtpsError(f"{name} ({kind}) is an encoder-decoder{why}")
    if bidirectional:
        return
    text = config.get_text_config()
    both_ways = getattr(text, "use_bidirectional_attention", None) in (True, "all")
    if both_ways or getattr(text, "is_causal", True) is False:
        flag = "use_bidirectional_attention" if both_ways else "is_causal: false"
        raise NtpsError(f"{name} ({kind}) attends to later tokens too, as its configuration says ({flag}){why}")
    if getattr(config, "auto_map", None):
        return  # the repository's code decides; `LanguageModel.is_causal` tests the hidden states later
    if kind in modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES and not getattr(config, "is_decoder", False):
        raise NtpsError(f"{name} ({kind}) is an encoder, which sees the tokens after a position too{why}")
    if not loaded and kind not in modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise NtpsError(f"{name} ({kind}) is not a causal language model known to transformers{why}")


def directory_digest(path: Path, gguf_file: str | None, random_weights: bool) -> str:
    """Return the SHA-256 hex digest of the files that define the model: configuration, code, tokenizer, weights."""
    if gguf_file is not None:
        return sha256_files([path / gguf_file])
    files = [path / name for name in ("config.json", *_TOKENIZER) if (path / name).is_file()]
    files += sorted(path.glob("*.py"))
    return sha256_files(files if random_weights else files + weight_files(path))


def adapter_files(path: Path) -> list[Path]:
    """Return the files that define an adapter: its configuration and its weights.

    Raises:
        NtpsError: If there are no weights, or a safetensors file is damaged.
    """
    for name in _ADAPTER_WEIGHTS:
        if (path / name).is_file():
            if name.endswith(".safetensors"):
                _check_safetensors(path / name)
            return [path / ADAPTER_CONFIG, path / name]
    raise NtpsError(f"{path} has an {ADAPTER_CONFIG} but no weights ({' or '.join(_ADAPTER_WEIGHTS)}).")


def check_separate(name_or_path: str | os.PathLike[str], folder: str | os.PathLike[str]) -> None:
    """Refuse a folder for results that is a model's or an adapter's own, by whatever path, or lies in it.

    Raises:
        NtpsError: If it is; the message says why.
    """
    location = locate(os.fspath(name_or_path))
    output = local_path(folder).resolve()
    for path in (location.path if location.local else None, location.adapter):
        if path is not None and (output == Path(path).resolve() or Path(path).resolve() in output.parents):
            raise NtpsError(
                f"output is {folder}, in the directory of {location.name}; an adapter beside the model that it belongs "
                "to would be taken for a part of it: name another folder."
            )


def objects_digest(model: Any) -> str:
    """Return the SHA-256 hex digest over a loaded model's configuration, parameters and buffers, by name."""
    digest = hashlib.sha256()
    config = getattr(model, "config", None)
    if config is not None:
        digest.update(config.to_json_string(use_diff=False).encode())
    for name, tensor in sorted([*model.named_parameters(), *model.named_buffers()], key=lambda pair: pair[0]):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\0".encode())
        for block in tensor_blocks(tensor):
            digest.update(block)
    return digest.hexdigest()


def tokenizer_digest(tokenizer: Any) -> str:
    """Return the SHA-256 hex digest of a fast tokenizer's rules, or of a slow one's vocabulary."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    content = backend.to_str() if backend is not None else repr(sorted(tokenizer.get_vocab().items()))
    return hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()


def combine(*parts: str) -> str:
    """Return the SHA-256 hex digest over several strings."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()
