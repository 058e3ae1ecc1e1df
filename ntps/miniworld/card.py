"""Model cards and training records: every number in them comes from the run."""

import json
from pathlib import Path
from typing import Any

from ntps._files import atomic_write


def _excess(facts: dict[str, Any]) -> float:
    return facts["loss"] / facts["entropy_rate"] - 1


def _verdict(facts: dict[str, Any]) -> str:
    excess = f"{_excess(facts):.1%} above the entropy rate"
    if facts["step"] == 0:
        return f"random weights: {excess}; a uniform guess over the vocabulary would cost about as much."
    if facts["step"] < facts["steps"]:
        return f"stopped on purpose after {facts['step']} of {facts['steps']} steps: {excess}."
    if _excess(facts) <= 0.1:
        return f"{excess}: within the 10 % that the recipe aims at."
    return f"{excess}: more than the 10 % that the recipe aims at, because the run was short or the model narrow."


def describe(name: str, facts: dict[str, Any]) -> str:
    """Return one line about a model."""
    shape = f"{facts['recipe']['width']} wide, {facts['recipe']['blocks']} blocks"
    when = "random weights" if facts["step"] == 0 else f"{facts['step']} of {facts['steps']} steps"
    return f"miniature Llama of the bundled world, {shape}, {when}, loss {_excess(facts):.0%} above the entropy rate"


def write_card(path: Path, name: str, facts: dict[str, Any]) -> None:
    """Write `README.md` and `training.json` into a checkpoint's directory.

    Args:
        path: The directory.
        name: The model's name.
        facts: The training record: run, recipe, counts, `loss` and `entropy_rate` in nats per token, and so on.
    """
    recipe, knobs = facts["recipe"], facts["knobs"]
    command = f"python -m ntps.miniworld.train --size {facts['size']} --seed {facts['seed']} --steps {facts['steps']}"
    command += "".join(f" --knob {key}={value}" for key, value in knobs.items()) + " --output DIR"
    world = ", ".join(f"{key} = {value}" for key, value in knobs.items()) or "as they are by default"
    table = {
        "shape": f"{recipe['width']} wide, {recipe['blocks']} blocks, MLP {recipe['inner']} wide, "
        f"{facts['n_parameters']:,} parameters, tied embeddings",
        "stored as": "float16 safetensors; word-level, lower-casing `tokenizer.json`",
        "data": f"{facts['documents']:,} documents, {facts['tokens']:,} tokens, each seen once "
        f"(stream `pretrain`, seed {facts['seed']}; knobs {world})",
        "training": f"step {facts['step']} of {facts['steps']}, {recipe['batch']} documents a step, AdamW, "
        f"peak learning rate {recipe['learning_rate']}, cosine to zero",
        "loss": f"{facts['loss']:.4f} nats per token on {facts['validation_documents']:,} held-out documents "
        "(stream `validation`, seed 0)",
        "entropy rate": f"{facts['entropy_rate']:.4f} nats per token, exact for the same documents",
        "verdict": _verdict(facts),
        "made in": f"{facts['seconds']:.0f} s on {facts['device']}, {facts['threads']} thread(s)",
    }
    rows = "\n".join(f"| {key} | {value} |" for key, value in table.items())
    card = f"""---
license: mit
language: en
library_name: transformers
pipeline_tag: text-generation
tags: [ntps, miniworld]
---
# {name}

A miniature Llama, pretrained by next-token prediction on the language of `ntps.miniworld` and on nothing else.
It is there to be looked into: the language's hidden factors and its entropy are known exactly.

| | |
|---|---|
{rows}

To make it again: `{command}`

Known limits. It knows {facts["vocabulary"]:,} words; any other word is `<unk>`. It has never seen a document of more
than 8 sentences, nor the language with other knobs than those above. It has no knowledge of the world outside this
language and must not be used for anything but learning and testing. Losses repeat on the same machine with the same
number of threads.
"""
    atomic_write(path / "README.md", card)
    record = {"description": describe(name, facts), **facts}
    atomic_write(path / "training.json", json.dumps(record, indent=1) + "\n")
