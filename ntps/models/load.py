"""Causal language models and their tokenizers: bundled, a directory, a GGUF file, a hub name, or loaded objects."""

import hashlib
import os
from pathlib import Path
from typing import Any

from ntps.errors import NtpsError, one_of
from ntps.models import checkpoints, loading, presets
from ntps.models.language_model import LanguageModel, Tokenized
from ntps.models.tokens import PROBE

__all__ = ["DTYPES", "LanguageModel", "Tokenized", "list_models", "load_model", "model_fingerprint"]

DTYPES = ("auto", "float32", "bfloat16", "float16", "float64")


def load_model(
    name_or_path_or_model: Any,
    *,
    tokenizer: Any = None,
    revision: str | None = None,
    dtype: str | None = None,
    device: str | None = None,
    device_map: Any = None,
    trust_remote_code: bool = False,
    gguf_file: str | None = None,
    random_weights: bool = False,
    seed: int = 0,
    head: bool = False,
) -> LanguageModel:
    """Load a causal language model.

    Args:
        name_or_path_or_model: A bundled name (`miniworld-base`), a directory, a `.gguf` file, a hub name, one of the
            paper's models by name (`Qwen2-0.5B`), or a loaded model (then `tokenizer` is needed, and the model is put
            into evaluation mode). A `LanguageModel` is returned as it is.
        tokenizer: A tokenizer, or the name or directory of one; by default the model's own.
        revision: Branch, tag or commit of a hub model.
        dtype: "float32", "bfloat16", "float16", "float64"; "auto" for the checkpoint's own; None for that too,
            but float32 for float16 weights on a CPU.
        device: As in torch, "cpu" or "cuda:1"; None for the first CUDA device, or else the CPU.
        device_map: Instead of `device`, spread the model as accelerate does ("auto").
        trust_remote_code: Run model code from the model's repository. It can do anything: read it first.
        gguf_file: Name of the GGUF file in the directory or hub repository.
        random_weights: Same architecture and tokenizer, fresh weights: the control for pretraining.
        seed: Seed of the random weights.
        head: Keep the language-model head (`AutoModelForCausalLM`), for losses and fine-tuning.

    Weights come from safetensors where there are any. A `pytorch_model.bin` is read by torch's restricted unpickler
    (`weights_only=True`), which runs no code.

    Raises:
        NtpsError: If there is no such model, it is damaged or not causal, its tokenizer does not fit, or an option
            cannot be met; the message says which.
    """
    given = name_or_path_or_model
    if dtype is not None:
        one_of(dtype, DTYPES, "dtype")
    if device is not None and device_map is not None:
        raise NtpsError(f"device ({device!r}) and device_map ({device_map!r}) exclude each other; give one.")
    if random_weights and device_map is not None:
        raise NtpsError("random_weights cannot be spread with device_map; give device.")
    if isinstance(given, LanguageModel):
        return given
    if not isinstance(given, str | os.PathLike):
        refused = {"revision": revision, "device_map": device_map, "gguf_file": gguf_file, "dtype": dtype}
        for option, value in refused.items():
            if value is not None:
                raise NtpsError(f"option {option!r} ({value!r}) has no meaning for a loaded model.")
        return _from_objects(given, tokenizer, device, random_weights, seed, head)

    target = None if device_map is not None else loading.find_device(device)
    place = loading.locate(os.fspath(given), gguf_file)
    if place.local and revision is not None:
        raise NtpsError(f"option 'revision' ({revision!r}) has no meaning for {place.name}, which is not on the hub.")
    config, commit = loading.read_config(place, revision, trust_remote_code, random_weights)
    if dtype is None and target is not None and target.type == "cpu" and str(config.dtype) == "torch.float16":
        dtype = "float32"  # float16 is how such weights are stored; CPUs are slow in it, and states may overflow
    at = commit or revision
    tokens = loading.read_tokenizer(place, tokenizer, at, trust_remote_code)
    digest = _digest(place, commit, random_weights, seed)
    if tokenizer is not None:
        digest = checkpoints.combine(digest, checkpoints.tokenizer_digest(tokens))
    if random_weights:
        model = loading.fresh_network(config, head, seed, dtype, trust_remote_code)
    else:
        model = loading.read_network(
            place,
            config,
            head,
            revision=at,
            dtype=dtype or "auto",
            device_map=device_map,
            trust_remote_code=trust_remote_code,
        )
    source = {
        "kind": place.kind,
        "path": place.path,
        "gguf_file": place.gguf_file,
        "revision": revision,
        "commit": commit,
        "tokenizer": None if tokenizer is None else getattr(tokens, "name_or_path", "") or type(tokens).__name__,
        "trust_remote_code": trust_remote_code,
        "notes": [place.preset.note] if place.preset and place.preset.note else [],
    }
    return _wrap(place.name, model, tokens, target, digest, commit, source, random_weights, seed, head)


def model_fingerprint(
    name_or_path: str | os.PathLike[str],
    *,
    revision: str | None = None,
    trust_remote_code: bool = False,
    gguf_file: str | None = None,
    random_weights: bool = False,
    seed: int = 0,
) -> str:
    """Return the `fingerprint` that `load_model` gives under the same options, without loading weights.

    Raises:
        NtpsError: As `load_model`, as far as files and configuration are concerned.
    """
    place = loading.locate(os.fspath(name_or_path), gguf_file)
    commit = None
    if place.local:
        checkpoints.check_directory(Path(place.path), place.gguf_file, random_weights)
    else:
        _, commit = loading.read_config(place, revision, trust_remote_code, random_weights)
    return _digest(place, commit, random_weights, seed)


def list_models() -> list[dict[str, Any]]:
    """Return name, path, kind ("bundled" or "paper") and description of every model known by name, bundled first.

    The path is a directory for bundled models and the hub name for the paper's.
    """
    from ntps import miniworld

    rows: list[dict[str, Any]] = []
    for name in miniworld.model_names():
        about = miniworld.describe_model(name)
        rows.append({"name": name, "path": about["path"], "kind": "bundled", "description": about["description"]})
    for preset in presets.MODELS.values():
        text = f"{preset.description}; {preset.note}" if preset.note else preset.description
        rows.append({"name": preset.hub.rsplit("/", 1)[1], "path": preset.hub, "kind": "paper", "description": text})
    return rows


def _from_objects(
    model: Any, tokenizer: Any, device: Any, random_weights: bool, seed: int, head: bool
) -> LanguageModel:
    """Wrap a loaded network."""
    import torch

    if not isinstance(model, torch.nn.Module) or not hasattr(model, "config"):
        raise NtpsError(f"a {type(model).__name__} is no model; give a name, a directory or a transformers model.")
    if tokenizer is None:
        raise NtpsError("a loaded model needs its tokenizer; pass tokenizer=, an object, a directory or a hub name.")
    name = getattr(model, "name_or_path", "") or type(model).__name__
    checkpoints.check_causal(model.config, name)
    place = loading.Place("objects", name, name)
    tokens = loading.read_tokenizer(place, tokenizer, None, False)
    digest = None
    if random_weights:
        model = loading.fresh_network(model.config, head, seed, None)
        base = hashlib.sha256(model.config.to_json_string(use_diff=False).encode()).hexdigest()
        digest = checkpoints.combine(base, checkpoints.tokenizer_digest(tokens), f"random weights, seed {seed}")
    elif head and not _has_head(model):
        raise NtpsError(f"{name} was loaded without a language-model head, which head=True asks for.")
    target = None if device is None else loading.find_device(device)
    source: dict[str, Any] = {"kind": "objects", "path": name, "class": type(model).__name__, "notes": []}
    return _wrap(name, model, tokens, target, digest, None, source, random_weights, seed, head)


def _has_head(model: Any) -> bool:
    """Return whether a loaded network gives logits over its vocabulary."""
    return model.get_output_embeddings() is not None


def _wrap(
    name: str,
    model: Any,
    tokenizer: Any,
    device: Any,
    digest: str | None,
    commit: str | None,
    source: dict[str, Any],
    random_weights: bool,
    seed: int,
    head: bool,
) -> LanguageModel:
    """Put network and tokenizer together, measure the hidden states, and see that the network is causal."""
    import torch

    model = (model if head else loading.without_head(model)).eval()
    if device is not None:
        model.to(device)
    dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
    source = {
        **source,
        "model_type": getattr(model.config, "model_type", None),
        "dtype": dtype,
        "random_weights": random_weights,
        "seed": seed if random_weights else None,
        "head": head,
    }
    embedding: Any = model.get_input_embeddings()
    vocabulary = int(embedding.weight.shape[0])
    where = loading.input_device(model)
    made = LanguageModel(
        name,
        model,
        tokenizer,
        commit,
        dtype,
        source,
        0,
        0,
        loading.max_positions(model.config),
        where,
        vocabulary,
        digest,
    )
    made.tokenize([PROBE])
    ids = torch.zeros((1, 2), dtype=torch.int64, device=where)
    states = made.hidden_states(ids, torch.ones_like(ids))
    made.n_layers, made.width = len(states), int(states[-1].shape[-1])
    if not made.is_causal():
        raise NtpsError(
            f"{name} is not causal: changing the last token changes hidden states before it; the score is about "
            "predicting the next token from the tokens before it, so a causal (decoder-only) model is needed."
        )
    return made


def _digest(place: loading.Place, commit: str | None, random_weights: bool, seed: int) -> str:
    """Return the fingerprint of a directory or of a hub model at a commit."""
    if place.local:
        base = checkpoints.directory_digest(Path(place.path), place.gguf_file, random_weights)
    else:
        base = checkpoints.combine(place.path, commit or "", place.gguf_file or "")
    return checkpoints.combine(base, f"random weights, seed {seed}") if random_weights else base
