"""Load causal language models: bundled, a directory, a GGUF file, a hub name, or loaded objects."""

import hashlib
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from ntps import _hub
from ntps.errors import NtpsError, one_of
from ntps.models import checkpoints, presets
from ntps.models.checkpoints import ModelLocation
from ntps.models.language_model import PROBE, LanguageModel, check_tokenizer, gives_logits, hidden_states, without_head

DTYPES = ("auto", "float32", "bfloat16", "float16", "float64")


@dataclass(frozen=True, kw_only=True)
class _Options:
    """Options of `load_model`, without the tokenizer."""

    revision: str | None = None
    dtype: str | None = None
    device: str | None = None
    device_map: Any = None
    trust_remote_code: bool = False
    gguf_file: str | None = None
    random_weights: bool = False
    seed: int | None = None
    head: bool = False

    def __post_init__(self) -> None:
        if self.dtype is not None:
            one_of(self.dtype, DTYPES, "dtype")
        if self.device is not None and self.device_map is not None:
            raise NtpsError(
                f"device ({self.device!r}) and device_map ({self.device_map!r}) exclude each other; give one."
            )
        if self.random_weights and self.device_map is not None:
            raise NtpsError("random_weights cannot be spread with device_map; give device.")
        if self.seed is not None and not self.random_weights:
            raise NtpsError(f"seed is {self.seed!r}, which has no meaning without random_weights=True.")

    def refuse(self, names: tuple[str, ...], what: str) -> None:
        """Refuse those of the named options that differ from their defaults."""
        for option in fields(self):
            value = getattr(self, option.name)
            if option.name in names and value != option.default:
                raise NtpsError(f"{option.name} is {value!r}, which has no meaning for {what}.")

    @property
    def seed_note(self) -> str:
        """What stands for the weights in a fingerprint when they are random."""
        return f"random weights, seed {self.seed or 0}"


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
) -> LanguageModel:
    """Load a causal language model.

    Args:
        name_or_path_or_model: A bundled name (`miniworld-base`), a directory, a `.gguf` file, a hub name, one of the
            paper's models by name (`Qwen2-0.5B`), or a loaded model (then `tokenizer` is needed, and the model is put
            into evaluation mode). A `LanguageModel` is returned as it is, and takes no option.
        tokenizer: A tokenizer, or the name or directory of one; by default the model's own.
        revision: Branch, tag or commit of a hub model. By default the copy in the local cache, or the main branch if
            there is none; "main" asks the hub whether the copy is still the newest.
        dtype: "float32", "bfloat16", "float16", "float64"; "auto" for the checkpoint's own; None for that too,
            but float32 for float16 weights on a CPU.
        device: As in torch, "cpu" or "cuda:1"; None for the first CUDA device, or else the CPU.
        device_map: Instead of `device`, spread the model as accelerate does ("auto").
        trust_remote_code: Run model code from the model's repository. It can do anything: read it first.
        gguf_file: Name of the GGUF file in the directory or hub repository.
        random_weights: Same architecture and tokenizer, random weights: the control for pretraining.
        seed: Seed of the random weights, 0 by default.
        head: Keep the language-model head (`AutoModelForCausalLM`), for losses and fine-tuning.

    Weights come from safetensors where there are any. A `pytorch_model.bin` is read by torch's restricted unpickler
    (`weights_only=True`), which runs no code. Every option either takes effect or is refused.

    Raises:
        NtpsError: If there is no such model, it is damaged or not causal, its tokenizer does not fit, or an option
            cannot be met; the message says which.
    """
    given = name_or_path_or_model
    options = _Options(
        revision=revision,
        dtype=dtype,
        device=device,
        device_map=device_map,
        trust_remote_code=trust_remote_code,
        gguf_file=gguf_file,
        random_weights=random_weights,
        seed=seed,
        head=head,
    )
    if isinstance(given, LanguageModel):
        what = f"{given.name}, which load_model has loaded already"
        options.refuse(tuple(option.name for option in fields(options)), what)
        if tokenizer is not None:
            raise NtpsError(f"tokenizer has no meaning for {what}.")
        return given
    if not isinstance(given, str | os.PathLike):
        return _from_objects(given, tokenizer, options)
    device_found = None if device_map is not None else find_device(device)
    location = _locate(given, options)
    config, commit = _read_config(location, options)
    if dtype is None and str(config.dtype) == "torch.float16" and device_found and device_found.type == "cpu":
        dtype = "float32"  # float16 is how such weights are stored; CPUs are slow in it, and states may overflow
    digest = _digest(location, commit, options)
    tokenizer_name = None
    if tokenizer is None:
        tokenizer = _read_tokenizer(location, commit or revision, trust_remote_code)
    else:
        tokenizer = _given_tokenizer(location, tokenizer, trust_remote_code)
        tokenizer_name = getattr(tokenizer, "name_or_path", "") or type(tokenizer).__name__
        digest = checkpoints.combine(digest, checkpoints.tokenizer_digest(tokenizer))
    if random_weights:
        network = random_network(config, head=head, seed=seed or 0, dtype=dtype, trust_remote_code=trust_remote_code)
    else:
        network = _read_network(location, config, options, revision=commit or revision, dtype=dtype or "auto")
    source = {
        "kind": location.kind,
        "path": location.path,
        "gguf_file": location.gguf_file,
        "revision": revision,
        "commit": commit,
        "tokenizer": tokenizer_name,
        "trust_remote_code": trust_remote_code,
        "notes": [location.preset.note] if location.preset and location.preset.note else [],
    }
    return _language_model(
        network, tokenizer, name=location.name, device=device_found, digest=digest, source=source, options=options
    )


def model_fingerprint(
    name_or_path: str | os.PathLike[str],
    *,
    revision: str | None = None,
    trust_remote_code: bool = False,
    gguf_file: str | None = None,
    random_weights: bool = False,
    seed: int | None = None,
) -> str:
    """Return the `fingerprint` that `load_model` gives under the same options, without loading weights.

    Raises:
        NtpsError: If the model's files or configuration are missing, damaged, or not those of a causal model.
    """
    options = _Options(
        revision=revision,
        trust_remote_code=trust_remote_code,
        gguf_file=gguf_file,
        random_weights=random_weights,
        seed=seed,
    )
    location = _locate(name_or_path, options)
    commit = None if location.local else _read_config(location, options)[1]
    return _digest(location, commit, options)


def has_language_model_head(
    name_or_path: str | os.PathLike[str],
    *,
    revision: str | None = None,
    trust_remote_code: bool = False,
    gguf_file: str | None = None,
    random_weights: bool = False,
) -> bool:
    """Return whether a model can be loaded with `head=True`, from its configuration alone.

    A checkpoint of a bare network (`AutoModel`) has no weights for a head, unless the head shares the embedding's
    (`tie_word_embeddings`). Random weights need none, GGUF files always have them, and a configuration that names no
    architecture is taken to be that of a causal language model.

    Raises:
        NtpsError: If the model's files or configuration are missing, damaged, or not those of a causal model.
    """
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    options = _Options(
        revision=revision, trust_remote_code=trust_remote_code, gguf_file=gguf_file, random_weights=random_weights
    )
    location = _locate(name_or_path, options)
    config, _ = _read_config(location, options)
    architectures = getattr(config, "architectures", None) or []
    if random_weights or location.gguf_file or not architectures or config.get_text_config().tie_word_embeddings:
        return True
    own_code = (getattr(config, "auto_map", None) or {}).get("AutoModelForCausalLM", "")
    known = {*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values(), own_code.rpartition(".")[2]}
    return not known.isdisjoint(architectures)


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
    """Return a torch device of this machine; by default the first CUDA device, or else the CPU.

    Raises:
        NtpsError: If it is unknown or not on this machine.
    """
    import torch

    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        requested = torch.device(device)
        if requested.type == "meta":
            raise ValueError("no memory behind it")
        torch.empty(1, device=requested)
    except Exception as error:
        available = ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
        available += ["mps"] if torch.backends.mps.is_available() else []
        raise NtpsError(f"device is {str(device)!r}; this machine has: {', '.join(available)}.") from error
    return requested


def random_network(
    config: Any, *, head: bool = False, seed: int = 0, dtype: str | None = None, trust_remote_code: bool = False
) -> Any:
    """Build an architecture with random weights; torch's random state is as before afterwards.

    Args:
        config: Its transformers configuration.
        head: Whether to build the language-model head too.
        seed: Seed of the weights.
        dtype: Name of the weights' type; None or "auto" for the configuration's, or float32 if it names none.
        trust_remote_code: Run model code from the model's repository.
    """
    import torch

    torch_dtype = config.dtype if dtype in {None, "auto"} else getattr(torch, dtype or "")
    with _hub.quiet(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _factory(config, head).from_config(
            config, dtype=torch_dtype or torch.float32, trust_remote_code=trust_remote_code
        )


def max_positions(config: Any) -> int | None:
    """Return the longest text in tokens that a configuration allows, or None."""
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    for name in ("max_position_embeddings", "n_positions", "max_context_length", "max_seq_len", "n_ctx"):
        value = getattr(text, name, None)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
    return None


def _from_objects(model: Any, tokenizer: Any, options: _Options) -> LanguageModel:
    """Put a loaded network and its tokenizer together."""
    import torch

    if not isinstance(model, torch.nn.Module) or not hasattr(model, "config"):
        raise NtpsError(f"model has type {type(model).__name__}; give a name, a directory or a transformers model.")
    options.refuse(("revision", "dtype", "device_map", "gguf_file"), "a loaded model")
    if tokenizer is None:
        raise NtpsError("a loaded model needs its tokenizer: an object, a directory or a hub name.")
    if not (options.random_weights or isinstance(tokenizer, str | os.PathLike)):
        options.refuse(("trust_remote_code",), "a loaded model with a loaded tokenizer")
    name = getattr(model, "name_or_path", "") or type(model).__name__
    checkpoints.check_causal(model.config, name)
    location = ModelLocation(kind="objects", name=name, path=name)
    tokenizer = _given_tokenizer(location, tokenizer, options.trust_remote_code)
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
    options: _Options,
) -> LanguageModel:
    """Put network and tokenizer together, measure the hidden states, and check that the network is causal."""
    import torch

    network = (network if options.head else without_head(network)).eval()
    if device is not None:
        network.to(device)
    dtype = str(next(network.parameters()).dtype).removeprefix("torch.")
    input_device = _input_device(network)
    ids = torch.zeros((1, 2), dtype=torch.int64, device=input_device)
    states = hidden_states(network, ids, torch.ones_like(ids))
    embedding: Any = network.get_input_embeddings()
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
        width=int(states[-1].shape[-1]),
        max_positions=max_positions(network.config),
        device=input_device,
        vocabulary=int(embedding.weight.shape[0]),
        digest=digest,
    )
    model.tokenize([PROBE])
    if not model.is_causal():
        raise NtpsError(
            f"{name} is not causal: changing the last token changes hidden states before it; the score is about "
            "predicting the next token from the tokens before it, so a causal (decoder-only) model is needed."
        )
    return model


def _input_device(network: Any) -> Any:
    """Return the device of the embedding; for parts that are offloaded, the first device of the map."""
    import torch

    weight = network.get_input_embeddings().weight
    if weight.device.type != "meta":
        return weight.device
    devices = getattr(network, "hf_device_map", {}).values()
    return torch.device(next((device for device in devices if device not in {"disk", "cpu"}), "cpu"))


def _digest(location: ModelLocation, commit: str | None, options: _Options) -> str:
    """Return the fingerprint of a directory or of a hub model at a commit."""
    if location.local:
        base = checkpoints.directory_digest(Path(location.path), location.gguf_file, options.random_weights)
    else:
        base = checkpoints.combine(location.path, commit or options.revision or "", location.gguf_file or "")
    return checkpoints.combine(base, options.seed_note) if options.random_weights else base


def _locate(name_or_path: str | os.PathLike[str], options: _Options) -> ModelLocation:
    """Find a model by name or path, and check the files of one on this machine."""
    location = checkpoints.locate(os.fspath(name_or_path), options.gguf_file)
    if location.local:
        options.refuse(("revision",), f"{location.name}, which is not on the hub")
        checkpoints.check_directory(Path(location.path), location.gguf_file, options.random_weights)
    return location


def _read_config(location: ModelLocation, options: _Options) -> tuple[Any, str | None]:
    """Load and check a model's configuration.

    Returns:
        The configuration, and for a hub model the commit it was read at, so that the rest is read at the same.
    """
    from transformers import AutoConfig

    file = location.gguf_file or "config.json"
    keywords = {"revision": options.revision, "trust_remote_code": options.trust_remote_code}
    config = _read(location, "configuration", AutoConfig.from_pretrained, keywords, [file])
    checkpoints.check_causal(config, location.name)
    return config, None if location.local else _hub.cached_commit(location.path, file, options.revision)


def _read_tokenizer(location: ModelLocation, revision: str | None, trust_remote_code: bool) -> Any:
    """Load the tokenizer in a directory or repository, or the one that belongs to it, and check that it gives ids."""
    from transformers import AutoTokenizer

    if location.preset and location.preset.tokenizer:
        return _given_tokenizer(location, location.preset.tokenizer, trust_remote_code)
    # Without the hub, transformers makes do with the tokenizer files that an interrupted download has left.
    files = [location.gguf_file] if location.gguf_file else ["tokenizer_config.json", "tokenizer.json"]
    keywords = {"revision": revision, "trust_remote_code": trust_remote_code}
    return check_tokenizer(_read(location, "tokenizer", AutoTokenizer.from_pretrained, keywords, files), location.name)


def _given_tokenizer(location: ModelLocation, tokenizer: Any, trust_remote_code: bool) -> Any:
    """Return a model's tokenizer, given as an object or by name or directory, after checking that it gives ids."""
    if not isinstance(tokenizer, str | os.PathLike):
        return check_tokenizer(tokenizer, location.name)
    name, path = os.fspath(tokenizer), Path(tokenizer).expanduser()
    kind = "directory" if path.is_dir() else "hub"
    own = ModelLocation(kind=kind, name=name, path=str(path) if path.is_dir() else name)
    return _read_tokenizer(own, None, trust_remote_code)


def _factory(config: Any, head: bool) -> Any:
    """Return the class of transformers that builds a network from its configuration.

    A repository's own code may have a causal language model but no `AutoModel` (OpenELM).
    """
    from transformers import AutoModel, AutoModelForCausalLM

    classes = getattr(config, "auto_map", None) or {}
    no_base = "AutoModelForCausalLM" in classes and "AutoModel" not in classes
    return AutoModelForCausalLM if head or no_base else AutoModel


def _read_network(location: ModelLocation, config: Any, options: _Options, *, revision: str | None, dtype: str) -> Any:
    """Load the weights, at a revision and in a type that may differ from the options', and check that none is missing.

    Raises:
        NtpsError: If they are damaged, do not fit the configuration, or lack parameters.
    """
    keywords: dict[str, Any] = {
        "revision": revision,
        "dtype": dtype,
        "device_map": options.device_map,
        "trust_remote_code": options.trust_remote_code,
        "config": None if location.gguf_file else config,
        "output_loading_info": True,
    }
    network, report = _read(location, "weights", _factory(config, options.head).from_pretrained, keywords)
    missing = sorted(report.get("missing_keys", ()))
    if missing:
        raise NtpsError(
            f"{location.name}: the weights lack {len(missing)} of the model's parameters (first: {missing[0]}), "
            "which would stay random; the checkpoint belongs to another architecture or is incomplete."
        )
    return network


def _read(
    location: ModelLocation,
    noun: str,
    from_pretrained: Callable[..., Any],
    keywords: dict[str, Any],
    files: Sequence[str] = (),
) -> Any:
    """Read from disk, or from the hub's local cache, or from the hub, quietly, and translate failures.

    The hub is asked only for what the cache lacks, or where a branch or tag is given, which may have moved.

    Args:
        location: Where the model is.
        noun: What is read, for messages.
        from_pretrained: The method of transformers that reads it.
        keywords: Its keyword arguments; those that are None are left out.
        files: Files without which the cache's copy is not complete.

    Raises:
        NtpsError: If it cannot be loaded.
    """
    keywords = {key: value for key, value in keywords.items() if value is not None}
    if location.gguf_file:
        keywords["gguf_file"] = location.gguf_file
    answers = None
    try:
        with _hub.quiet():
            if location.local:
                return from_pretrained(location.path, **keywords)
            if _hub.is_cached(location.path, files, keywords.get("revision")):
                with suppress(OSError):
                    return from_pretrained(location.path, local_files_only=True, **keywords)
            answers = _hub.reachable()
            return from_pretrained(location.path, local_files_only=not answers, **keywords)
    except (NtpsError, MemoryError):
        raise
    except Exception as error:
        if type(error).__name__ == "OutOfMemoryError":
            raise
        if answers is False and isinstance(error, OSError):
            raise NtpsError(
                f"model {location.name!r} cannot be loaded: {_hub.why_not_found('it')}; use a local directory or a "
                f"bundled model (`ntps list` names them).{checkpoints.did_you_mean(location.name)}"
            ) from error
        raise NtpsError(f"{location.name}: {_reason(error, noun)}") from error


def _reason(error: Exception, noun: str) -> str:
    """Say in one sentence why transformers did not load something."""
    text = " ".join(str(error).split())
    lowered = text.lower()
    if "trust_remote_code" in text:
        return "the model needs code from its own repository; read that code, then pass trust_remote_code=True."
    if "gated" in lowered:
        return "the model is gated; request access on its page on the hub, then log in with `hf auth login`."
    if "not a valid model identifier" in lowered or "repository not found" in lowered:
        return "no such model on the hub, or it is private; check the spelling, or log in with `hf auth login`."
    if "does not recognize this architecture" in lowered:
        return f"transformers does not know this architecture ({text[:160]}...)."
    if "gguf" in lowered and isinstance(error, ImportError):
        return "reading GGUF files needs the package gguf; install ntps[gguf]."
    return f"the {noun} cannot be loaded ({text[:300].rstrip('.') or type(error).__name__})."
