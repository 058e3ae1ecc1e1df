"""Shapes and training recipes of the three sizes, and what is trained: a word-level tokenizer and a small Llama."""

from dataclasses import dataclass
from typing import Any

from ntps.miniworld import words

SPECIAL = ("<pad>", "<unk>", "<bos>", "<eos>")
MAX_POSITIONS = 256


@dataclass(frozen=True)
class Recipe:
    """One size's architecture and training.

    Attributes:
        width: Hidden size; heads are 16 wide, and two heads share keys and values.
        blocks: Transformer blocks.
        inner: Width of the MLP.
        learning_rate: Peak of the AdamW learning rate, after a linear warm-up and before a cosine to zero.
        steps: Optimiser steps.
        batch: Documents in each.
        ladder: Steps at which a checkpoint is kept beside the final one.
    """

    width: int
    blocks: int
    inner: int
    learning_rate: float
    steps: int
    batch: int = 16
    ladder: tuple[int, ...] = ()


RECIPES = {
    "small": Recipe(64, 3, 128, 5e-3, 3000),
    "base": Recipe(128, 4, 256, 3e-3, 3000, ladder=(0, 50, 150, 400, 1000)),
    "large": Recipe(192, 5, 288, 2e-3, 2500),
}

# At the default of 0.02 such narrow models spend their first thousand steps on growing their weights.
INITIALIZER_RANGE = 0.06


def build_tokenizer() -> Any:
    """Return the world's word-level, lower-casing tokenizer; it puts `<bos>` before every text."""
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: index for index, word in enumerate((*SPECIAL, *words.all_words()))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split(Regex(r"[^\w\s]"), "isolated")]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", pair="<bos> $A $B", special_tokens=[("<bos>", vocabulary["<bos>"])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        **dict(zip(("pad_token", "unk_token", "bos_token", "eos_token"), SPECIAL, strict=True)),
        model_max_length=MAX_POSITIONS,
        padding_side="right",
        clean_up_tokenization_spaces=True,
    )


def build_model(recipe: Recipe, seed: int) -> Any:
    """Return a randomly initialised Llama of the recipe's shape, in float32."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    heads = recipe.width // 16
    config = LlamaConfig(
        vocab_size=len(SPECIAL) + len(words.all_words()),
        hidden_size=recipe.width,
        num_hidden_layers=recipe.blocks,
        intermediate_size=recipe.inner,
        num_attention_heads=heads,
        num_key_value_heads=heads // 2,
        max_position_embeddings=MAX_POSITIONS,
        tie_word_embeddings=True,
        initializer_range=INITIALIZER_RANGE,
        pad_token_id=0,
        bos_token_id=2,
        eos_token_id=3,
    )
    torch.manual_seed(seed)
    return LlamaForCausalLM(config)
