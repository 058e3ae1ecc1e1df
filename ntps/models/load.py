"""Load causal language models: bundled ones, directories, GGUF files, hub names, loaded objects."""

import hashlib
import os
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import Any

from ntps import _hub
from ntps._files import sha256_files
from ntps._processes import local_rank, world
from ntps.errors import NtpsError
from ntps.models import checkpoints, presets
from ntps.models.checkpoints import ModelLocation
from ntps.models.language_model import PROBE, LanguageModel, gives_logits
from ntps.models.pretrained import (
    LoadOptions,
    empty_network,
    has_head,
    random_network,
    read_config,
    read_network,
    read_tokenizer,
    resolve_tokenizer,
)
from ntps.models.states import hidden_states, reads_later_tokens, without_head


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
    seed: int | None = None,
    head: bool = False,
    bidirectional: bool = False,
) -> LanguageModel:
    """Load a causal language model.

    Args:
        name_or_path_or_model: A bundled name (`miniworld-base`), a directory, a `.gguf` file, a hub name, one of the
            paper's models by name (`Qwen2-0.5B`), or a loaded model (then `tokenizer` is needed, and the model is put
            into evaluation mode). `BASE+ADAPTER` is one of these names and the directory of an adapter (LoRA or its
            kin, as PEFT writes them), which is added to the weights and changes the fingerprint; a directory of an
            adapter alone stands for the base that it names, with it. A `LanguageModel` is returned as it is, and takes
            no option.
        tokenizer: A tokenizer, or the name or directory of one; by default the model's own.
        revision: Branch, tag or commit of a hub model. By default the copy in the local cache, or the main branch if
            there is none; with "main" the hub is asked for a newer one.
        dtype: "float32", "bfloat16", "float16", "float64", or "auto" for the checkpoint's own; None is "auto", but
            float32 for float16 weights on a CPU.
        device: Device as torch names it, "cpu" or "cuda:1"; None is the first CUDA device, or else the CPU.
        device_map: How accelerate spreads the model over devices ("auto"), instead of `device`.
        trust_remote_code: Whether to run code from the model's repository. It can do anything: read it first.
        gguf_file: Name of the GGUF file in the directory or hub repository.
        random_weights: Whether to give the architecture random weights: the control for pretraining.
        seed: Seed of the random weights, 0 by default.
        head: Whether to keep the language-model head (`AutoModelForCausalLM`), for losses and fine-tuning.
        bidirectional: Whether a model that reads later tokens too (BERT and its kin) is welcome: it has pooled states,
            but no next-token moments, so it can be ranked and not scored. Encoder-decoders are refused.

    Weights come from safetensors where there are any. A `pytorch_model.bin` is read by torch's restricted unpickler
    (`weights_only=True`), which runs no code. Every option either takes effect or is refused.

    Raises:
        NtpsError: If there is no such model, it is damaged or (unless `bidirectional`) not causal, its tokenizer does
            not belong to it, or an option cannot be met; the message says which.
    """
    options = LoadOptions(
        revision=revision,
        dtype=dtype,
        device=device,
        device_map=device_map,
        trust_remote_code=trust_remote_code,
        gguf_file=gguf_file,
        random_weights=random_weights,
        seed=seed,
        head=head,
        bidirectional=bidirectional,
    )
    if isinstance(name_or_path_or_model, LanguageModel):
        what = f"{name_or_path_or_model.name}, which load_model has loaded already"
        options.refuse(tuple(option.name for option in fields(options)), what)
        if tokenizer is not None:
            raise NtpsError(f"tokenizer has no meaning for {what}.")
        return name_or_path_or_model
    if not isinstance(name_or_path_or_model, str | os.PathLike):
        return _from_objects(name_or_path_or_model, tokenizer, options)
    torch_device = None if device_map is not None else find_device(device)
    location = _locate(name_or_path_or_model, options)
    config, commit = read_config(location, options)
    dtype = _dtype_on(torch_device, config, dtype, location.name)
    own = tokenizer is None
    tokenizer = _tokenizer_of(tokenizer, location, commit, options)
    digest = _digest(location, commit, options, None if own else tokenizer)
    if random_weights:
        network = random_network(config, head=head, seed=seed or 0, dtype=dtype, trust_remote_code=trust_remote_code)
    else:
        network = read_network(location, config, options, revision=commit or revision, dtype=dtype or "auto")
    source = {
        "kind": location.kind,
        "path": location.path,
        "gguf_file": location.gguf_file,
        "adapter": location.adapter,
        "revision": revision,
        "commit": commit,
        "tokenizer": None if own else getattr(tokenizer, "name_or_path", "") or type(tokenizer).__name__,
        "trust_remote_code": trust_remote_code,
        "notes": [location.preset.note] if location.preset and location.preset.note else [],
    }
    return _language_model(
        network, tokenizer, name=location.name, device=torch_device, digest=digest, source=source, options=options
    )


def outline_model(name_or_path: str | os.PathLike[str], *, tokenizer: Any = None, **given: Any) -> LanguageModel:
    """Return a model without its weights, which are neither read nor downloaded: enough to plan a pass.

    Its hidden states are as many and as wide as its configuration says.

    Args:
        name_or_path: As for `load_model`.
        tokenizer: As for `load_model`.
        **given: Options of `load_model`.

    Raises:
        NtpsError: As for `load_model`, or if `device_map` is given.
    """
    options = LoadOptions(**given)
    if options.device_map is not None:
        raise NtpsError(f"device_map is {options.device_map!r}; a pass is planned for one device, leave it out.")
    device, location = find_device(options.device), _locate(name_or_path, options)
    config, commit = read_config(location, options)
    dtype = _dtype_on(device, config, options.dtype, location.name)
    tokenizer = _tokenizer_of(tokenizer, location, commit, options)
    network = without_head(empty_network(config, dtype=dtype, trust_remote_code=options.trust_remote_code))
    sizes = config.get_text_config()
    return LanguageModel(
        name=location.name,
        model=network,
        tokenizer=tokenizer,
        revision=commit,
        dtype=str(next(network.parameters()).dtype).removeprefix("torch."),
        source={"kind": location.kind, "path": location.path},
        n_layers=sizes.num_hidden_layers + 1,
        widths=(sizes.hidden_size,) * (sizes.num_hidden_layers + 1),
        max_positions=_positions(network),
        device=device,
        vocabulary=int(_embedding(network, location.name).shape[0]),
        causal=_is_of_causal_kind(config, location.name),
    )


def _dtype_on(device: Any, config: Any, dtype: str | None, name: str) -> str | None:
    """Return the name of the type in which weights are loaded on a device; `None` is the checkpoint's own.

    Raises:
        NtpsError: If the device does not have it.
    """
    if dtype is None and str(config.dtype) == "torch.float16" and device and device.type == "cpu":
        return "float32"  # float16 is how such weights are stored; CPUs are slow in it, and states may overflow
    if device and device.type == "mps" and (dtype or str(config.dtype)).endswith("float64"):
        raise NtpsError(f"{name}: dtype is 'float64', which mps does not have; give dtype float32.")
    return dtype


def model_fingerprint(name_or_path: str | os.PathLike[str], *, tokenizer: Any = None, **given: Any) -> str:
    """Return the `fingerprint` that `load_model` gives under the same options, without loading weights.

    Raises:
        NtpsError: If the model's files or configuration are missing, damaged, or not those of a causal model.
    """
    options = LoadOptions(**given)
    location = _locate(name_or_path, options)
    commit = None if location.local else read_config(location, options)[1]
    if tokenizer is not None:
        tokenizer = resolve_tokenizer(tokenizer, location.name, options.trust_remote_code)
    return _digest(location, commit, options, tokenizer)


def weight_bytes(name_or_path: str | os.PathLike[str]) -> int | None:
    """Return the size of a model's weights on this machine's disk, in bytes; `None` if they are not all there.

    Raises:
        NtpsError: If the name is malformed, or a directory is not that of a model.
    """
    location = checkpoints.locate(os.fspath(name_or_path), None)
    if not location.local:
        return None
    if location.gguf_file is not None:
        return (Path(location.path) / location.gguf_file).stat().st_size
    return sum(path.stat().st_size for path in checkpoints.weight_files(Path(location.path)))


def has_language_model_head(
    name_or_path: str | os.PathLike[str],
    *,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> bool:
    """Return whether a model can be loaded with `head=True`, from its configuration alone.

    A checkpoint of a bare network (`AutoModel`) has no weights for a head, unless the head shares the embedding's
    (`tie_word_embeddings`). GGUF files always have them, and a configuration that names no architecture is taken to be
    that of a causal language model.

    Raises:
        NtpsError: If the model's files or configuration are missing, damaged, or not those of a causal model.
    """
    options = LoadOptions(revision=revision, trust_remote_code=trust_remote_code)
    location = _locate(name_or_path, options)
    config, _ = read_config(location, options)
    return has_head(config, location.gguf_file)


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


def find_device(device: Any = None) -> Any:
    """Return a torch device of this machine; by default a CUDA device, or else the CPU.

    Without a number, CUDA is the first device, and under torchrun each process's own.

    Raises:
        NtpsError: If it is unknown or not on this machine.
    """
    import torch

    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        requested = torch.device(device)
        if requested.type == "cuda" and requested.index is None and world()[0] > 1:
            requested = torch.device("cuda", local_rank())
        if requested.type == "meta":
            raise ValueError("no memory behind it")
        torch.empty(1, device=requested)
    except Exception as error:
        available = ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
        available += ["mps"] if torch.backends.mps.is_available() else []
        raise NtpsError(f"device is {str(device)!r}; this machine has: {', '.join(available)}.") from error
    return requested


def max_positions(config: Any) -> int | None:
    """Return the longest text in tokens that a configuration allows, or None."""
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    for name in ("max_position_embeddings", "n_positions", "max_context_length", "max_seq_len", "n_ctx"):
        value = getattr(text, name, None)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
    return None


def _positions(network: Any) -> int | None:
    """Return the longest text in tokens that a network allows, or None.

    RoBERTa and its kin count positions from the one after the padding's, so that the first of the table go unused.
    """
    limit = max_positions(network.config)
    for name, module in network.named_modules() if limit else ():
        if name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None:
            return int(limit - module.padding_idx - 1)
    return limit


def _from_objects(model: Any, tokenizer: Any, options: LoadOptions) -> LanguageModel:
    """Combine a loaded network and its tokenizer."""
    import torch

    if not isinstance(model, torch.nn.Module) or not hasattr(model, "config"):
        raise NtpsError(f"model has type {type(model).__name__}; give a name, a directory or a transformers model.")
    options.refuse(("revision", "dtype", "device_map", "gguf_file"), "a loaded model")
    if tokenizer is None:
        raise NtpsError("a loaded model needs its tokenizer: an object, a directory or a hub name.")
    if not (options.random_weights or isinstance(tokenizer, str | os.PathLike)):
        options.refuse(("trust_remote_code",), "a loaded model with a loaded tokenizer")
    name = getattr(model, "name_or_path", "") or type(model).__name__
    checkpoints.check_kind(model.config, name, loaded=True, bidirectional=options.bidirectional)
    tokenizer = resolve_tokenizer(tokenizer, name, options.trust_remote_code)
    digest = None
    if options.random_weights:
        model = random_network(
            model.config, head=options.head, seed=options.seed or 0, trust_remote_code=options.trust_remote_code
        )
        base = hashlib.sha256(model.config.to_json_string(use_diff=False).encode()).hexdigest()
        digest = checkpoints.combine(base, checkpoints.tokenizer_digest(tokenizer), options.seed_note)
    elif options.head and not gives_logits(model):
        raise NtpsError(f"{name} was loaded without a language-model head, which head=True needs.")
    device = None if options.device is None else find_device(options.device)
    source: dict[str, Any] = {"kind": "objects", "path": name, "class": type(model).__name__, "notes": []}
    return _language_model(model, tokenizer, name=name, device=device, digest=digest, source=source, options=options)


def _language_model(
    network: Any,
    tokenizer: Any,
    *,
    name: str,
    device: Any,
    digest: str | None,
    source: dict[str, Any],
    options: LoadOptions,
) -> LanguageModel:
    """Combine network and tokenizer, measure the hidden states, and check that the network is causal."""
    import torch

    network = (network if options.head else without_head(network)).eval()
    if device is not None:
        network.to(device)
    dtype = str(next(network.parameters()).dtype).removeprefix("torch.")
    embedding = _embedding(network, name)
    input_device = _input_device(network, embedding)
    ids = torch.zeros((1, 2), dtype=torch.int64, device=input_device)
    states = _try_states(network, ids, name)
    vocabulary = int(embedding.shape[0])
    model = LanguageModel(
        name=name,
        model=network,
        tokenizer=tokenizer,
        revision=source.get("commit"),
        dtype=dtype,
        source={
            **source,
            "model_type": getattr(network.config, "model_type", None),
            "dtype": dtype,
            "random_weights": options.random_weights,
            "seed": (options.seed or 0) if options.random_weights else None,
            "head": options.head,
        },
        n_layers=len(states),
        widths=tuple(int(state.shape[-1]) for state in states),
        max_positions=_positions(network),
        device=input_device,
        vocabulary=vocabulary,
        causal=_is_of_causal_kind(network.config, name) and not reads_later_tokens(network, vocabulary, input_device),
        digest=digest,
    )
    model.tokenize([PROBE])
    if not (model.causal or options.bidirectional):
        raise NtpsError(
            f"{name} is not causal: changing later tokens changes hidden states before them; the score is about "
            "predicting the next token from the tokens before it, so a causal (decoder-only) model is needed."
        )
    return model


def _is_of_causal_kind(config: Any, name: str) -> bool:
    """Return whether a configuration is that of a causal model."""
    try:
        checkpoints.check_kind(config, name, loaded=True)
    except NtpsError:
        return False
    return True


def _embedding(network: Any, name: str) -> Any:
    """Return the weight of a network's input embedding, (vocabulary, width)."""
    import torch

    with suppress(AttributeError, NotImplementedError, TypeError):
        weight = network.get_input_embeddings().weight
        if weight.ndim == 2:
            return weight
    for module in network.modules():
        if isinstance(module, torch.nn.Embedding):
            return module.weight
    raise NtpsError(
        f"{name}: {type(network).__name__} has no embedding of tokens, neither by get_input_embeddings() nor as a "
        "torch.nn.Embedding, so that its vocabulary is not known; a transformers network is needed."
    )


def _try_states(network: Any, ids: Any, name: str) -> Any:
    """Return the hidden states of token ids, and turn whatever goes wrong in a network's own code into a sentence."""
    import torch

    try:
        with torch.inference_mode():
            states = hidden_states(network, ids, torch.ones_like(ids))
    except NtpsError as error:
        raise NtpsError(f"{name}: {error}") from error
    except (MemoryError, torch.cuda.OutOfMemoryError):
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {_hub.first_line(error)}"
        raise NtpsError(f"{name}: the network fails on a text of two tokens ({reason}).") from error
    if len(states) == getattr(network.config.get_text_config(), "num_hidden_layers", None):
        raise NtpsError(
            f"{name}: {type(network).__name__} returns {len(states)} hidden states for as many blocks; the embedding "
            "output or a block's state is missing, and layers would be named wrongly."
        )
    return states


def _input_device(network: Any, embedding: Any) -> Any:
    """Return the device of the embedding, or the first of the device map if the embedding is offloaded."""
    import torch

    if embedding.device.type != "meta":
        return embedding.device
    devices = getattr(network, "hf_device_map", {}).values()
    return torch.device(next((device for device in devices if device not in {"disk", "cpu"}), "cpu"))


def _tokenizer_of(tokenizer: Any, location: ModelLocation, commit: str | None, options: LoadOptions) -> Any:
    """Return the tokenizer that was given, or the model's own."""
    if tokenizer is None:
        return read_tokenizer(location, commit or options.revision, options.trust_remote_code)
    return resolve_tokenizer(tokenizer, location.name, options.trust_remote_code)


def _digest(location: ModelLocation, commit: str | None, options: LoadOptions, tokenizer: Any) -> str:
    """Return the fingerprint of a directory or of a hub model at a commit, with a tokenizer that is not its own."""
    if location.local:
        base = checkpoints.directory_digest(Path(location.path), location.gguf_file, options.random_weights)
    else:
        base = checkpoints.combine(location.path, commit or options.revision or "", location.gguf_file or "")
    if options.random_weights:  # of the architecture: an adapter has no part in them
        base = checkpoints.combine(base, options.seed_note)
    elif location.adapter is not None:
        base = checkpoints.combine(base, sha256_files(checkpoints.adapter_files(Path(location.adapter))))
    return base if tokenizer is None else checkpoints.combine(base, checkpoints.tokenizer_digest(tokenizer))


def _locate(name_or_path: str | os.PathLike[str], options: LoadOptions) -> ModelLocation:
    """Find a model by name or path, and check its files if it is on this machine."""
    location = checkpoints.locate(os.fspath(name_or_path), options.gguf_file)
    if location.adapter is not None and not options.random_weights:
        checkpoints.adapter_files(Path(location.adapter))
    if location.local:
        options.refuse(("revision",), f"{location.name}, which is not on the hub")
        checkpoints.check_directory(Path(location.path), location.gguf_file, options.random_weights)
    return location
