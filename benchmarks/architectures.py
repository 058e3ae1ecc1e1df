"""Which architectures of transformers can be scored and fine-tuned: tiny ones with random weights, built in code.

    python -m benchmarks.architectures                 # writes results/architectures.csv; about 2 minutes, one core
    python -m benchmarks.architectures mamba gemma3    # prints these alone

Each is scored on a few texts and trained for two steps with LoRA; what cannot be done is refused in one sentence.
"""

import csv
import io
import itertools
import sys
import warnings
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Any

import torch

from ntps import _hub, collect, load_model, load_task, score
from ntps._files import atomic_write
from ntps.errors import NtpsError
from ntps.finetune import TrainSettings
from ntps.finetune.adapters import describe_targets
from ntps.finetune.loop import Trainer
from ntps.models.next_token import next_token_loss
from ntps.models.states import without_head

RESULTS = Path(__file__).parent / "results" / "architectures.csv"
VOCABULARY = 96
_WORDS = ["".join(letters) for letters in itertools.product("bdfgk", "aeiou", "lmnr")][: VOCABULARY - 1]
SETTINGS = TrainSettings(steps=2, rank=2, alpha=4, batch_size=8, evaluate_every=2, dropout=0.1, margin=0)

# Sizes, for whatever a configuration calls them.
_SIZES: dict[str, int] = {
    name: size
    for size, names in {
        VOCABULARY: "vocab_size vocab_size_per_layer_input",
        64: (
            "intermediate_size n_inner ffn_dim ffn_hidden_size moe_intermediate_size shared_expert_intermediate_size "
            "shared_intermediate_size expert_ffn_hidden_size intermediate_size_mlp max_position_embeddings n_positions "
            "n_ctx max_seq_len decoder_ffn_dim encoder_ffn_dim"
        ),
        32: "hidden_size n_embd d_model dim embedding_size embedding_dim model_dim attention_hidden_size lru_width",
        16: "q_lora_rank kv_lora_rank sliding_window attention_window_size",
        8: (
            "head_dim qk_nope_head_dim qk_rope_head_dim v_head_dim attention_head_dim linear_key_head_dim "
            "linear_value_head_dim ssm_state_size state_size mamba_d_state mamba_state_size "
            "hidden_size_per_layer_input index_head_dim chunk_size mamba_chunk_size"
        ),
        4: (
            "num_attention_heads n_head num_heads n_heads num_experts num_local_experts n_routed_experts "
            "moe_num_experts decoder_attention_heads encoder_attention_heads rotary_dim index_n_heads"
        ),
        2: (
            "num_hidden_layers n_layer num_layers n_layers decoder_layers encoder_layers num_decoder_layers "
            "num_encoder_layers num_key_value_heads num_kv_heads num_experts_per_tok moe_k moe_topk "
            "linear_num_key_heads linear_num_value_heads"
        ),
        1: (
            "n_group topk_group n_shared_experts num_shared_experts first_k_dense_replace moe_num_shared_experts "
            "pad_token_id bos_token_id eos_token_id"
        ),
    }.items()
    for name in names.split()
}
_MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_expand": 2, "mamba_d_ssm": 64, "mamba_n_groups": 1}
_MAMBA2 = {"num_heads": 8, "head_dim": 8, "n_groups": 1, "mamba_num_heads": 8, "mamba_head_dim": 8}
# What some need beside their sizes.
_MORE: dict[str, dict[str, Any]] = {
    "bamba": _MAMBA,
    "cohere_compass_text": {"layer_types": ["full_attention"] * 2},
    "falcon_h1": _MAMBA,
    "gemma3n_text": {"num_hidden_layers": 2, "num_kv_shared_layers": 0, "activation_sparsity_pattern": [0.0, 0.0]},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "granitemoehybrid": {**_MAMBA, "layer_types": ["mamba", "attention"]},
    "lfm2_moe": {"layer_types": ["full_attention", "conv"]},
    "mamba2": _MAMBA2,
    "nemotron_h": {**_MAMBA2, "layers_block_type": ["mamba", "attention"], "mtp_layers_block_type": []},
    "opt": {"word_embed_proj_dim": 16},
    "reformer": {"is_decoder": True},
    "zamba": {"layers_block_type": ["mamba", "hybrid"], "n_mamba_heads": 2, "attention_head_dim": 16},
    "zamba2": {
        **_MAMBA2,
        "layers_block_type": ["mamba", "hybrid"],
        "n_mamba_heads": 8,
        "attention_hidden_size": 64,
        "attention_head_dim": 16,
    },
    "zaya": {"num_experts_per_tok": 1},
}
# What is checked: each way of building a language model, without variants that differ in numbers alone.
NAMES = [
    "afmoe", "apertus", "arcee", "aria_text", "axk1", "bailing_hybrid", "bamba", "bart", "bert", "biogpt",
    "bitnet", "blenderbot", "bloom", "codegen", "cohere", "cohere2", "cohere2_moe", "cpmant", "ctrl", "cwm",
    "deepseek_v2", "deepseek_v3", "deepseek_v4", "diffllama", "doge", "dots1", "emu3", "ernie4_5", "ernie4_5_moe",
    "exaone4", "exaone_moe", "falcon", "falcon_h1", "falcon_mamba", "flex_olmo", "fuyu", "gemma", "gemma2",
    "gemma3", "gemma3_text", "gemma3n_text", "git", "glm", "glm4", "glm4_moe", "glm4_moe_lite", "got_ocr2",
    "gpt2", "gpt_bigcode", "gpt_neo", "gpt_neox", "gpt_oss", "gptj", "granite", "granitemoe", "granitemoehybrid",
    "granitemoeshared", "helium", "hunyuan_v1_dense", "hunyuan_v1_moe", "internlm3", "jamba", "jetmoe", "lfm2",
    "lfm2_moe", "llama", "llama4", "llama4_text", "longcat_flash", "mamba", "mamba2", "marian", "minicpm3",
    "minimax", "minimax_m2", "ministral", "mistral", "mixtral", "mllama", "modernbert-decoder", "moshi", "mpt",
    "nanochat", "nemotron", "nemotron_h", "olmo", "olmo2", "olmo3", "olmo_hybrid", "olmoe", "openai-gpt", "opt",
    "persimmon", "phi", "phi3", "phi4_multimodal", "phimoe", "prophetnet", "qwen2", "qwen2_moe", "qwen3",
    "qwen3_5", "qwen3_moe", "qwen3_next", "recurrent_gemma", "roberta", "rwkv", "seed_oss", "smollm3",
    "solar_open", "stablelm", "starcoder2", "trocr", "vaultgemma", "whisper", "xglm", "xlm", "xlnet", "xlstm",
    "youtu", "zamba2", "zaya",
]  # fmt: skip


@dataclass(frozen=True)
class Row:
    """What became of an architecture.

    Attributes:
        architecture: Its `model_type`.
        score: "yes", or "refused".
        lora: "yes", "refused", or empty where it is not even scored.
        adapted: Modules with adapters, by ending and number.
        left_out: Modules without one, by reason.
        sentence: The sentence with which it was refused.
    """

    architecture: str
    score: str
    lora: str = ""
    adapted: str = ""
    left_out: str = ""
    sentence: str = ""


def tiny_config(name: str) -> Any:
    """Return a configuration of a few thousand parameters."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    return _shrunk(CONFIG_MAPPING[name], _MORE.get(name, {}))


def _shrunk(kind: type, more: dict[str, Any]) -> Any:
    default = kind()  # type: ignore[call-arg]
    values: dict[str, Any] = {}
    for key, size in _SIZES.items():
        if hasattr(default, key) and not isinstance(getattr(kind, key, None), property):
            values[key] = size
    if "kv_lora_rank" in values and "num_key_value_heads" in values:  # every head has a key of its own
        values["num_key_value_heads"] = values["num_attention_heads"]
    if "layer_types" in vars(default) and not isinstance(getattr(kind, "layer_types", None), property):
        values["layer_types"] = None  # made anew for two layers
    for key in getattr(kind, "sub_configs", None) or {}:
        part = getattr(default, key, None)
        if part is not None:
            values[key] = _shrunk(type(part), {}).to_dict()
    return kind(**{**values, **more})  # type: ignore[call-arg]


def tokenizer() -> Any:
    """Return a tokenizer with one id per word."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.WordLevel({"<unk>": 0, **{word: 1 + at for at, word in enumerate(_WORDS)}}, "<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>")


def tiny_task() -> Any:
    """Return 32 short texts of two classes."""
    texts = [" ".join(_WORDS[(7 * row + 3 * place) % len(_WORDS)] for place in range(6 + row % 5)) for row in range(32)]
    return load_task(texts=texts, labels=[row % 2 for row in range(32)], name="words")


def check(name: str, dtype: torch.dtype = torch.float32, device: str | None = None) -> Row:
    """Build, score and fine-tune a tiny model of an architecture; anything but an `NtpsError` passes through."""
    from transformers import AutoModelForCausalLM

    task = tiny_task()
    train, validation = task.split(0.25)
    with warnings.catch_warnings(), _hub.quiet(), torch.random.fork_rng():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        network = AutoModelForCausalLM.from_config(tiny_config(name), dtype=dtype)
        try:
            model = load_model(network, tokenizer=tokenizer(), head=True, device=device)
            score(collect(model, task, progress=False), folds=2, probes=False)
        except NtpsError as error:
            return Row(name, "refused", sentence=str(error))
        try:
            found = describe_targets(without_head(model.model), SETTINGS)
            ids = model.tokenize(train.texts).ids
            before = next_token_loss(model, ids)
            trainer = Trainer(model, train, validation, SETTINGS)
            moved = 0
            for _ in trainer.run():  # before the best weights, perhaps those of the start, are put in place
                moved = sum(bool(p.any()) for key, p in trainer.network.named_parameters() if "lora_B" in key)
            merged = load_model(trainer.adapter.merge_and_unload(), tokenizer=model.tokenizer)
            after = next_token_loss(model, ids, network=merged.model)
        except NtpsError as error:
            return Row(name, "yes", "refused", sentence=str(error))
    n_adapters = sum(found["modules"].values())
    if 2 * moved < n_adapters or abs(after - before) > 1:
        raise AssertionError(f"{name}: {moved} of {n_adapters} adapters moved, next-token loss {before} to {after}")
    left_out = "; ".join(f"{_counts(names)}: {reason}" for reason, names in found["left_out"].items())
    return Row(name, "yes", "yes", _counts(found["modules"]), left_out)


def _counts(modules: dict[str, int]) -> str:
    return ", ".join(f"{number} {name}" for name, number in modules.items())


def main() -> None:
    """Check the architectures that are named, or all, and write the table."""
    names = sys.argv[1:] or NAMES
    torch.set_num_threads(1)
    rows = []
    for name in names:
        rows.append(check(name))
        print(*filter(None, astuple(rows[-1])), sep="  |  ", flush=True)
    if not sys.argv[1:]:
        text = io.StringIO()
        table = csv.writer(text, lineterminator="\n")
        table.writerow(field.name for field in fields(Row))
        table.writerows(map(astuple, rows))
        atomic_write(RESULTS, text.getvalue())


if __name__ == "__main__":
    main()
