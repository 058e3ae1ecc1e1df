"""What several benchmarks share: timing in turns, and the real model or a stand-in of its shape."""

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from ntps import LanguageModel, Task, load_model, load_task


def race(ours: Callable[[], Any], theirs: Callable[[], Any], rounds: int = 3) -> tuple[float, float]:
    """Return the best time of each side in seconds, taken in turns."""
    best = [float("inf"), float("inf")]
    for _ in range(rounds):
        for side, call in enumerate((ours, theirs)):
            start = time.perf_counter()
            call()
            best[side] = min(best[side], time.perf_counter() - start)
    return best[0], best[1]


def stand_in() -> LanguageModel:
    """Return a random model of Gemma 3 270M's shape with a word tokenizer, made on the spot."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig, PreTrainedTokenizerFast

    words = ["<unk>", "<pad>", *(f"w{number}" for number in range(2000))]
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", pad_token="<pad>")
    config = Gemma3TextConfig(
        vocab_size=262144, hidden_size=640, intermediate_size=2048, num_hidden_layers=18, num_attention_heads=4,
        num_key_value_heads=1, head_dim=256, max_position_embeddings=2048,
    )  # fmt: skip
    torch.manual_seed(0)
    return load_model(Gemma3ForCausalLM(config).eval(), tokenizer=fast, head=True)


def stand_in_task(texts: int) -> Task:
    """Return texts of 8 to 40 words under two labels."""
    generator = np.random.default_rng(0)
    lines = [
        " ".join(f"w{word}" for word in generator.integers(0, 2000, generator.integers(8, 41))) for _ in range(texts)
    ]
    return load_task(texts=lines, labels=generator.integers(0, 2, texts).tolist(), name="random words")


def real_or_stand_in(
    model_name: str | None, task_name: str | None, texts: int
) -> tuple[LanguageModel, LanguageModel, Task]:
    """Return the model without and with its head, and the texts: the real ones named, or stand-ins of that shape.

    Both models have read some texts, so that what is timed first does not wait for their weights.
    """
    if model_name and task_name:
        model, with_head = load_model(model_name), load_model(model_name, head=True)
        task = load_task(task_name, limit=texts)
    else:
        with_head = stand_in()
        model, task = load_model(with_head.model.model, tokenizer=with_head.tokenizer), stand_in_task(texts)
    for each in (model, with_head):
        each.hidden_states(*each.pad(each.tokenize(task.texts[:8], 512).ids))
    return model, with_head, task


def described(model_name: str | None) -> str:
    """Return what the table calls the model of `real_or_stand_in`."""
    return "real 270M model" if model_name else "random weights, the shape of Gemma 3 270M"


def batches_of(model: LanguageModel, task: Task) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Return token ids and masks of the texts, longest first in batches of 32, as `collect` reads them."""
    ids = model.tokenize(task.texts, 512).ids
    order = np.argsort([-len(row) for row in ids], kind="stable")
    return [model.pad([ids[place] for place in order[start : start + 32]]) for start in range(0, len(order), 32)]


def forward_only(model: LanguageModel, task: Task) -> Callable[[], None]:
    """Return a call that runs the model over `batches_of` the texts, and keeps nothing."""
    batches = batches_of(model, task)

    def call() -> None:
        for ids, mask in batches:
            model.hidden_states(ids, mask)

    return call
