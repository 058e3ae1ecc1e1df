"""A GPU with little memory, and a network that needs much of it."""

from contextlib import contextmanager

import torch

from helpers.models import word_tokenizer
from ntps.models import load_model


@contextmanager
def little_memory(extra):
    """Leave the GPU's allocator so many bytes beyond what it holds."""
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + extra) / total)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
        torch.cuda.empty_cache()


def hungry_model(device):
    """A small Llama whose blocks take much memory for a moment: 100 kB for each token."""
    from transformers import LlamaConfig, LlamaModel

    config = LlamaConfig(
        vocab_size=96, hidden_size=64, intermediate_size=8192, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=4, max_position_embeddings=256,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = LlamaModel(config).eval()
    return load_model(network, tokenizer=word_tokenizer(), device=device)


def long_texts(n):
    """Texts of 109 tokens."""
    return [" ".join(["the film was good and the cat saw it"] * 12 + [str(number)]) for number in range(n)]
