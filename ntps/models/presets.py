"""The paper's eight models, by short name.

Source: Cheng, Hu, Huang, Balestriero, Next Token Perception Score, arXiv 2505.17169 (2025).
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class ModelPreset:
    """A model of the paper on the hub.

    Attributes:
        hub: Name on the hub.
        description: Family and size.
        tokenizer: Hub name of its tokenizer if its own repository has none, else None.
        note: What the user must do before it loads, or an empty string.
    """

    hub: str
    description: str
    tokenizer: str | None = None
    note: str = ""


_OPENELM = (
    "runs code from its own repository (trust_remote_code), and needs the Llama 2 tokenizer: accept its licence on the "
    "hub first, or pass a local copy as tokenizer"
)
_LLAMA2 = "meta-llama/Llama-2-7b-hf"

MODELS: dict[str, ModelPreset] = {
    preset.hub: preset
    for preset in (
        ModelPreset("Qwen/Qwen2-0.5B", "Qwen2, 0.5 billion parameters"),
        ModelPreset("Qwen/Qwen2-1.5B", "Qwen2, 1.5 billion parameters"),
        ModelPreset("Qwen/Qwen2-7B", "Qwen2, 7 billion parameters"),
        ModelPreset("apple/OpenELM-270M", "OpenELM, 0.27 billion parameters", _LLAMA2, _OPENELM),
        ModelPreset("apple/OpenELM-450M", "OpenELM, 0.45 billion parameters", _LLAMA2, _OPENELM),
        ModelPreset("apple/OpenELM-1_1B", "OpenELM, 1.1 billion parameters", _LLAMA2, _OPENELM),
        ModelPreset("apple/OpenELM-3B", "OpenELM, 3 billion parameters", _LLAMA2, _OPENELM),
        ModelPreset(
            "meta-llama/Meta-Llama-3-8B", "Llama 3, 8 billion parameters",
            note="accept its licence on the hub first",
        ),
    )
}  # fmt: skip


# Models of below 0.7 billion parameters that need neither a licence nor code of their own: a first look at a task.
_SMALL = (
    "HuggingFaceTB/SmolLM2-135M",
    "HuggingFaceTB/SmolLM2-360M",
    "EleutherAI/pythia-160m",
    "Qwen/Qwen2-0.5B",
    "Qwen/Qwen3-0.6B-Base",
)
GROUPS = ("bundled", "small", "paper")


def models_of(group: str) -> tuple[str, ...]:
    """Return the names of a group of models: one of `GROUPS`."""
    from ntps import miniworld

    return {"bundled": tuple(miniworld.model_names()), "small": _SMALL, "paper": tuple(MODELS)}[group]


def model_preset(name: str) -> ModelPreset | None:
    """Return the preset for a hub name or its last part (`Qwen2-0.5B`), in any case, or None."""
    lowered = name.lower()
    for hub, preset in MODELS.items():
        if lowered in {hub.lower(), hub.rsplit("/", 1)[1].lower()}:
            return preset
    return None
