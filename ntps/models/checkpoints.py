"""What a model directory holds, checked and fingerprinted before any weight is loaded."""

import hashlib
from pathlib import Path
from typing import Any

from ntps import _hub
from ntps._files import read_json, sha256_files
from ntps.errors import NtpsError

_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
_CONFIG = ("config.json",)
_TOKENIZER = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json",
    "vocab.txt", "merges.txt", "tokenizer.model", "spiece.model",
)  # fmt: skip


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
                raise NtpsError(f"{index}: no weight_map, which an index of shards needs.")
            files = [path / shard for shard in sorted(set(map(str, shards["weight_map"].values())))]
            missing = [file.name for file in files if not file.is_file()]
            if missing:
                lacking = f"{missing[0]} is missing ({len(missing)} of {len(files)} shards)"
                raise NtpsError(f"{path} is no whole model: {lacking}.")
        for file in files:
            if file.suffix == ".safetensors":
                _check_safetensors(file)
        return files
    raise NtpsError(
        f"{path} is no model: config.json is there, but no weights ({' or '.join(_WEIGHTS)}); "
        "random_weights=True needs none."
    )


def _check_safetensors(file: Path) -> None:
    """Read the header, which also compares the file's length with what the header says."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt"):
            pass
    except (SafetensorError, OSError) as error:
        raise NtpsError(f"{file} is damaged: {_hub.first_line(error)}.") from error


def check_directory(path: Path, gguf_file: str | None, random_weights: bool) -> dict[str, Any]:
    """Return the configuration of a model directory after checking that it holds a whole model.

    Raises:
        NtpsError: If it does not; the message names the file and what is wrong.
    """
    if gguf_file is not None:
        file = path / gguf_file
        if not file.is_file():
            raise NtpsError(f"{file}: file not found.")
        with file.open("rb") as opened:
            if opened.read(4) != b"GGUF":
                raise NtpsError(f"{file} is no GGUF file: it does not begin with the letters GGUF.")
        return {}
    if not (path / "config.json").is_file():
        gguf = sorted(path.glob("*.gguf"))
        if (path / "adapter_config.json").is_file():
            raise NtpsError(f"{path} holds an adapter, not a model; merge it into its base model and save that.")
        if gguf:
            raise NtpsError(f"{path} has no config.json; for its GGUF file give {gguf[0]} itself.")
        raise NtpsError(f"{path} is no model: it has no config.json.")
    config = read_json(path / "config.json")
    if not isinstance(config, dict) or not (config.get("model_type") or config.get("auto_map")):
        raise NtpsError(f"{path / 'config.json'} is no model configuration: it names no model_type.")
    if not random_weights:
        weight_files(path)
    return config


def check_causal(config: Any, name: str) -> None:
    """Refuse models that do not predict the next token from the past alone, by their configuration.

    The score compares directions that help to predict the next token from the tokens before it; a model that
    sees the whole text at once has no such directions.

    Raises:
        NtpsError: If the model is an encoder-decoder, an encoder, or of a kind without a causal language model.
    """
    from transformers.models.auto import modeling_auto

    kind = getattr(config, "model_type", "") or type(config).__name__
    why = "; the score is about predicting the next token from the tokens before it, so a causal (decoder-only) model "
    why += "is needed, such as GPT-2, Llama, Qwen or Gemma."
    if getattr(config, "is_encoder_decoder", False):
        raise NtpsError(f"{name} ({kind}) is an encoder-decoder{why}")
    if getattr(config, "auto_map", None):
        return  # its own code decides; the test on real hidden states follows
    if kind in modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES and not getattr(config, "is_decoder", False):
        raise NtpsError(f"{name} ({kind}) is an encoder, which sees the tokens after a position too{why}")
    if kind not in modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise NtpsError(f"{name} ({kind}) is no causal language model that transformers knows{why}")


def directory_digest(path: Path, gguf_file: str | None, random_weights: bool) -> str:
    """Return the SHA-256 hex digest of the files that make the model: configuration, code, tokenizer, weights."""
    if gguf_file is not None:
        return sha256_files([path / gguf_file])
    files = [path / name for name in (*_CONFIG, *_TOKENIZER) if (path / name).is_file()]
    files += sorted(path.glob("*.py"))
    return sha256_files(files if random_weights else files + weight_files(path))


def objects_digest(model: Any) -> str:
    """Return the SHA-256 hex digest over a loaded model's configuration, parameters and buffers, by name."""
    import torch

    digest = hashlib.sha256()
    config = getattr(model, "config", None)
    if config is not None:
        digest.update(config.to_json_string(use_diff=False).encode())
    for name, tensor in sorted([*model.named_parameters(), *model.named_buffers()], key=lambda pair: pair[0]):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\0".encode())
        data = tensor.detach().to("cpu").contiguous()
        digest.update(data.reshape(-1).view(torch.uint8).numpy().tobytes() if data.numel() else b"")
    return digest.hexdigest()


def tokenizer_digest(tokenizer: Any) -> str:
    """Return the SHA-256 hex digest of what a tokenizer does: its rules where it is a fast one, else its vocabulary."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    what = backend.to_str() if backend is not None else repr(sorted(tokenizer.get_vocab().items()))
    return hashlib.sha256(what.encode("utf-8", "surrogatepass")).hexdigest()


def combine(*parts: str) -> str:
    """Return the SHA-256 hex digest over several."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()
