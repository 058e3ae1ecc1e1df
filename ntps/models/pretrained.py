"""Read configurations, tokenizers and networks with transformers, and say in one sentence why one did not load."""

import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from ntps import _hub
from ntps._files import local_path
from ntps.errors import NtpsError, one_of
from ntps.models import checkpoints
from ntps.models.checkpoints import ModelLocation
from ntps.models.language_model import check_tokenizer
from ntps.models.merging import add_adapter

DTYPES = ("auto", "float32", "bfloat16", "float16", "float64")


@dataclass(frozen=True, kw_only=True)
class LoadOptions:
    """Options of `load_model` but the tokenizer."""

    revision: str | None = None
    dtype: str | None = None
    device: str | None = None
    device_map: Any = None
    trust_remote_code: bool = False
    gguf_file: str | None = None
    random_weights: bool = False
    seed: int | None = None
    head: bool = False
    bidirectional: bool = False

    def __post_init__(self) -> None:
        if self.dtype is not None:
            one_of(self.dtype, DTYPES, "dtype")
        if self.device is not None and self.device_map is not None:
            raise NtpsError(
                f"device is {self.device!r} and device_map is {self.device_map!r}; they exclude each other, give one."
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
        """Substitute for the weights in the fingerprint of a model with random ones."""
        return f"random weights, seed {self.seed or 0}"


def read_config(location: ModelLocation, options: LoadOptions) -> tuple[Any, str | None]:
    """Load and check a model's configuration.

    Returns:
        The configuration, and for a hub model the commit it was read at, at which everything else is read too.
    """
    from transformers import AutoConfig

    file = location.gguf_file or "config.json"
    keywords = {"revision": options.revision, "trust_remote_code": options.trust_remote_code}
    config = _read(location, "configuration", AutoConfig.from_pretrained, keywords, [file])
    checkpoints.check_kind(config, location.name, bidirectional=options.bidirectional)
    _drop_kernels(config)
    return config, None if location.local else _hub.cached_commit(location.path, file, options.revision)


def _drop_kernels(config: Any) -> None:
    """Let torch compute attention and experts, whatever kernel a configuration names.

    It may name a package that is not installed (FlashAttention), which would end in an error or in a download, or a
    repository of compiled code on the hub, which is not followed.
    """
    for part in [config, *(getattr(config, name, None) for name in getattr(config, "sub_configs", ()))]:
        for attribute in ("_attn_implementation", "_experts_implementation"):
            if getattr(part, attribute, None) not in (None, "eager", "sdpa"):
                setattr(part, attribute, None)


def read_tokenizer(location: ModelLocation, revision: str | None, trust_remote_code: bool) -> Any:
    """Load the tokenizer of a directory or repository, or the one its preset names, and check that it gives ids."""
    from transformers import AutoTokenizer

    if location.preset and location.preset.tokenizer:
        return resolve_tokenizer(location.preset.tokenizer, location.name, trust_remote_code)
    # Without these files transformers would make do with whatever an interrupted download has left in the cache.
    files = [location.gguf_file] if location.gguf_file else ["tokenizer_config.json", "tokenizer.json"]
    keywords = {"revision": revision, "trust_remote_code": trust_remote_code}
    tokenizer = _read(location, "tokenizer", AutoTokenizer.from_pretrained, keywords, files)
    return check_tokenizer(tokenizer, location.name, None if location.gguf_file else _rules(location, revision))


def _rules(location: ModelLocation, revision: str | None) -> Path | None:
    """Return the `tokenizer.json` that a tokenizer was read from, if there is one."""
    name = "tokenizer.json"
    path = Path(location.path) / name if location.local else _hub.cached_file(location.path, name, revision)
    return path if path is not None and path.is_file() else None


def resolve_tokenizer(tokenizer: Any, model_name: str, trust_remote_code: bool) -> Any:
    """Return a tokenizer that the user gave, an object or a name or directory, after checking that it gives ids."""
    if not isinstance(tokenizer, str | os.PathLike):
        return check_tokenizer(tokenizer, model_name)
    name = os.fspath(tokenizer)
    if not name.strip():
        raise NtpsError("the tokenizer's name is empty; give a bundled model, a directory or a hub name.")
    try:
        if not name.lower().endswith(".gguf") and local_path(name).is_file():
            raise NtpsError(f"{name} is a file; give the directory that it is in.")
        location = checkpoints.locate(name)
    except NtpsError as error:
        raise NtpsError(f"tokenizer {error}") from error
    return read_tokenizer(location, None, trust_remote_code)


def _factory(config: Any, head: bool) -> Any:
    """Return the class of transformers that builds a network from its configuration.

    A repository's own code may have a causal language model but no `AutoModel` (OpenELM).
    """
    from transformers import AutoModel, AutoModelForCausalLM

    classes = getattr(config, "auto_map", None) or {}
    no_base = "AutoModelForCausalLM" in classes and "AutoModel" not in classes
    return AutoModelForCausalLM if head or no_base else AutoModel


def random_network(
    config: Any, *, head: bool = False, seed: int = 0, dtype: str | None = None, trust_remote_code: bool = False
) -> Any:
    """Build an architecture with random weights; torch's random state is restored afterwards.

    Args:
        config: Its transformers configuration.
        head: Whether to build the language-model head too.
        seed: Seed of the weights.
        dtype: Name of the weights' type; None or "auto" is the configuration's, or float32 if it names none.
        trust_remote_code: Whether to run code from the model's repository.
    """
    import torch

    torch_dtype = config.dtype if dtype in {None, "auto"} else getattr(torch, dtype or "")
    with _hub.quiet(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _factory(config, head).from_config(
            config, dtype=torch_dtype or torch.float32, trust_remote_code=trust_remote_code
        )


def empty_network(config: Any, *, dtype: str | None = None, trust_remote_code: bool = False) -> Any:
    """Build an architecture without memory for its weights, on the meta device; options as for `random_network`."""
    import torch

    with torch.device("meta"):
        return random_network(config, dtype=dtype, trust_remote_code=trust_remote_code)


def read_network(
    location: ModelLocation, config: Any, options: LoadOptions, *, revision: str | None, dtype: str
) -> Any:
    """Load the weights and check that none is missing; revision and dtype are the resolved ones of the options.

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
    factory = _factory(config, options.head or (location.adapter is not None and has_head(config, location.gguf_file)))
    network, report = _read(location, "weights", factory.from_pretrained, keywords)
    if getattr(network, "_hf_peft_config_loaded", False):
        raise NtpsError(
            f"{location.name} holds a model and an adapter, which transformers has added to it; download both, and "
            "name them as BASE+ADAPTER."
        )
    # A pooler stands beside the blocks of an encoder, whose states do not pass through it.
    missing = sorted(key for key in report.get("missing_keys", ()) if not key.startswith("pooler."))
    if missing:
        raise NtpsError(
            f"{location.name}: the weights lack {len(missing)} of the model's parameters (first: {missing[0]}), "
            "which would stay random; the checkpoint belongs to another architecture or is incomplete."
        )
    if location.adapter is not None:
        add_adapter(network, location.adapter, location.name)
    return network


def has_head(config: Any, gguf_file: str | None = None) -> bool:
    """Return whether the checkpoint of a configuration has a language-model head, or shares the embedding's weights."""
    from transformers.models.auto import modeling_auto

    architectures = getattr(config, "architectures", None) or []
    if gguf_file or not architectures or getattr(config.get_text_config(), "tie_word_embeddings", False):
        return True
    auto_class = (getattr(config, "auto_map", None) or {}).get("AutoModelForCausalLM", "")
    known = {auto_class.rpartition(".")[2], *modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()}
    known |= set(modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES.values())
    return not known.isdisjoint(architectures)


def _read(
    location: ModelLocation,
    noun: str,
    from_pretrained: Callable[..., Any],
    keywords: dict[str, Any],
    files: Sequence[str] = (),
) -> Any:
    """Read something from disk, the local cache or the hub, quietly, and turn failures into sentences.

    The hub is asked only for what the cache lacks, or for a branch or tag, which may have moved.

    Args:
        location: Location of the model.
        noun: Noun for what is read, for messages.
        from_pretrained: The method of transformers that reads it.
        keywords: Its keyword arguments; those that are None are left out.
        files: Files without which the cached copy is incomplete.

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
            name = location.path if location.adapter else location.name
            raise NtpsError(
                f"{'tokenizer' if noun == 'tokenizer' else 'model'} {name!r} cannot be loaded: "
                f"{_hub.why_not_found('it')}; use a local directory or a bundled model (`ntps list` names them)."
                f"{checkpoints.did_you_mean(name)}"
            ) from error
        raise NtpsError(f"{location.name}: {_reason(error, noun)}") from error


def _reason(error: Exception, noun: str) -> str:
    """Return a sentence that says why transformers did not load something."""
    text = " ".join(str(error).split())
    lowered = text.lower()
    what = "tokenizer" if noun == "tokenizer" else "model"
    if "trust_remote_code" in text:
        return f"the {what} needs code from its own repository; read that code, then pass trust_remote_code=True."
    if "gated" in lowered:
        return f"the {what} is gated; request access on its page on the hub, then log in with `hf auth login`."
    if "not a valid model identifier" in lowered or "repository not found" in lowered:
        return f"no such {what} on the hub, or it is private; check the spelling, or log in with `hf auth login`."
    if "backend tokenizer" in lowered:
        return "there is no tokenizer in it, neither tokenizer.json nor other files from which one can be made."
    if "does not recognize this architecture" in lowered:
        return f"transformers does not know this architecture ({text[:160]}...)."
    if "gguf" in lowered and isinstance(error, ImportError):
        return "reading GGUF files needs the package gguf; install ntps[gguf]."
    return f"the {noun} cannot be loaded ({text[:300].rstrip('.') or type(error).__name__})."
