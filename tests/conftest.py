"""Tiny models built in code, so that no test downloads anything."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest


@pytest.fixture(scope="module")
def one_thread():
    """Tiny networks train faster without threads, and in the same order of additions everywhere."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


_LINE = (
    "the a of and it was is film part music book story actor scene second first good bad fine dull even better worse "
    "very not so but then she he they we saw read heard liked hated left came went home city river winter summer "
    "red blue green old new long short cat dog bird tree house car train rain sun"
)
WORDS = _LINE.split()
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

    from ntps import hub

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        factory = AutoModelForCausalLM if kind in {"llama", "gpt2"} else AutoModel
        model = factory.from_config(tiny_config(kind, vocabulary, width))
    with hub.quiet():
        model.save_pretrained(path)
    word_tokenizer(**tokenizer_options).save_pretrained(path)
    settings = json.loads((path / "tokenizer_config.json").read_text())
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    (path / "tokenizer_config.json").write_text(json.dumps(settings))
    return path


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory) -> Path:
    """Directory of a 3-block, 24-wide Llama with a right-padding word tokenizer that begins texts with "<s>"."""
    return save_tiny(tmp_path_factory.mktemp("models") / "tiny-llama", "llama", begin=True)


@pytest.fixture(scope="session")
def tiny_llama_left(tmp_path_factory) -> Path:
    """The same Llama, its tokenizer set to pad on the left."""
    return save_tiny(tmp_path_factory.mktemp("models") / "tiny-llama-left", "llama", begin=True, padding_side="left")


@pytest.fixture(scope="session")
def tiny_gpt2(tmp_path_factory) -> Path:
    """Directory of a 2-block, 24-wide GPT-2 whose tokenizer has no padding token and adds nothing to a text."""
    return save_tiny(tmp_path_factory.mktemp("models") / "tiny-gpt2", "gpt2", pad=False)


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory) -> Path:
    """Directory of an encoder, to be refused."""
    return save_tiny(tmp_path_factory.mktemp("models") / "tiny-bert", "bert")


@pytest.fixture(scope="session")
def tiny_t5(tmp_path_factory) -> Path:
    """Directory of an encoder-decoder, to be refused."""
    return save_tiny(tmp_path_factory.mktemp("models") / "tiny-t5", "t5")


@pytest.fixture
def fake_miniworld(monkeypatch, tiny_llama):
    """Stand in for the bundled language: one task "topic", one model "miniworld-base"."""
    import sys

    import numpy as np

    import ntps
    from ntps.errors import NtpsError

    def make_task(name, *, n=2000, seed=0, split="train", **knobs):
        if name != "topic":
            raise NtpsError(f"no bundled task {name!r}; choose one of: topic.")
        rng = np.random.default_rng(seed)
        texts = [" ".join(rng.choice(WORDS, size=6)) for _ in range(n)]
        return {"texts": texts, "labels": np.arange(n) % 2, "classes": ("a", "b"), "description": f"{split} {knobs}"}

    def model_path(name):
        if name != "miniworld-base":
            raise NtpsError(f"no bundled model {name!r}; choose one of: miniworld-base.")
        return tiny_llama

    fake = SimpleNamespace(
        make_task=make_task,
        task_names=lambda: ("topic",),
        describe_task=lambda name: {"name": name, "n_classes": 2, "description": "what it is about"},
        model_names=lambda: ("miniworld-base",),
        model_path=model_path,
        describe_model=lambda name: {"name": name, "path": str(tiny_llama), "description": "a tiny model"},
    )
    monkeypatch.setitem(sys.modules, "ntps.miniworld", fake)
    monkeypatch.setattr(ntps, "miniworld", fake, raising=False)
    return fake


@pytest.fixture
def may_run_out(monkeypatch):
    """As on a GPU, where everything is made before the first sum changes."""
    from ntps.accumulator import MomentAccumulator

    plain = MomentAccumulator.__init__

    def on_a_gpu(self, **options):
        plain(self, **options)
        self._may_run_out = True

    monkeypatch.setattr(MomentAccumulator, "__init__", on_a_gpu)
