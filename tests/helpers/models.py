"""Tiny models built in code, so that no test downloads anything."""

import json
from pathlib import Path

_LINE = (
    "the a of and it was is film part music book story actor scene second first good bad fine dull even better worse "
    "very not so but then she he they we saw read heard liked hated left came went home city river winter summer "
    "red blue green old new long short cat dog bird tree house car train rain sun"
)
WORDS = _LINE.split()
FILMS = [f"a good film {WORDS[40 + n % 7]} tree{' the' * (n // 7)}" for n in range(60)]  # all different
SPECIAL = ["<unk>", "<s>", "</s>", "<pad>"]


def word_tokenizer(*, padding_side: str = "right", pad: bool = True, begin: bool = False):
    """A word-level fast tokenizer: lower case, one id a word or mark, "<unk>" for what it does not know."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: index for index, word in enumerate([*SPECIAL, *WORDS, ".", ",", "?", "!"])}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    core.normalizer = normalizers.Lowercase()
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    if begin:
        core.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", vocabulary["<s>"])]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>" if pad else None,
        padding_side=padding_side,
        model_max_length=64,
    )


def tiny_config(kind: str, vocabulary: int = 96, width: int = 24):
    """A configuration of a few thousand parameters."""
    from transformers import BertConfig, GPT2Config, LlamaConfig, T5Config

    if kind == "llama":
        return LlamaConfig(
            vocab_size=vocabulary, hidden_size=width, intermediate_size=2 * width, num_hidden_layers=3,
            num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64, initializer_range=0.2,
        )  # fmt: skip
    if kind == "gpt2":
        return GPT2Config(
            vocab_size=vocabulary, n_embd=width, n_layer=2, n_head=4, n_positions=64, initializer_range=0.2,
            bos_token_id=1, eos_token_id=2,
        )  # fmt: skip
    if kind == "bert":
        return BertConfig(
            vocab_size=vocabulary, hidden_size=width, intermediate_size=2 * width, num_hidden_layers=2,
            num_attention_heads=4, max_position_embeddings=64,
        )  # fmt: skip
    return T5Config(
        vocab_size=vocabulary,
        d_model=width,
        d_kv=6,
        d_ff=2 * width,
        num_layers=2,
        num_heads=4,
        decoder_start_token_id=0,
    )


def save_tiny(
    path: Path, kind: str, *, seed: int = 0, width: int = 24, vocabulary: int = 96, **tokenizer_options
) -> Path:
    """Build a tiny seeded model and write it with a word tokenizer to `path`."""
    import torch
    from transformers import AutoModel, AutoModelForCausalLM

    from ntps import _hub

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        factory = AutoModelForCausalLM if kind in {"llama", "gpt2"} else AutoModel
        model = factory.from_config(tiny_config(kind, vocabulary, width))
    with _hub.quiet():
        model.save_pretrained(path)
    word_tokenizer(**tokenizer_options).save_pretrained(path)
    settings = json.loads((path / "tokenizer_config.json").read_text())
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    (path / "tokenizer_config.json").write_text(json.dumps(settings))
    return path
