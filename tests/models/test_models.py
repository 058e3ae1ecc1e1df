"""Causal models from every source, and a clear sentence for everything else."""

import hashlib
import importlib.util
import inspect
import json
import os
import shutil
import time

import numpy as np
import pytest
import torch
from helpers.models import SPECIAL, WORDS, save_tiny, tiny_config, word_tokenizer

from ntps import _files, _hub
from ntps.errors import NtpsError
from ntps.models import checkpoints, presets
from ntps.models.language_model import gives_logits
from ntps.models.load import (
    has_language_model_head,
    list_models,
    load_model,
    max_positions,
    model_fingerprint,
)
from ntps.models.pretrained import DTYPES
from ntps.models.states import without_head

TEXTS = ["The film was good.", "a dull story, and worse", "we liked it", "the"]


def fails(*words, given, **options):
    """Load and return the message, which must be one line that holds every word."""
    with pytest.raises(NtpsError) as caught:
        load_model(given, **options)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert str(word) in message, message
    return message


@pytest.fixture
def copied(tiny_llama, tmp_path):
    """A copy of the tiny Llama's directory, to be damaged."""
    return shutil.copytree(tiny_llama, tmp_path / "copied")


def states_of(model, texts=TEXTS):
    """Hidden states as one array per text and layer, padding dropped."""
    ids = model.tokenize(texts).ids
    states = model.hidden_states(*model.pad(ids))
    return [[state[row, : len(ids[row])].float().numpy() for state in states] for row in range(len(texts))]


# Sources


@pytest.mark.parametrize("fixture", ["tiny_llama", "tiny_llama_left", "tiny_gpt2"])
def test_directories(request, fixture):
    path = request.getfixturevalue(fixture)
    model = load_model(path)
    config = json.loads((path / "config.json").read_text())
    blocks = config.get("num_hidden_layers", config.get("n_layer"))
    assert (model.n_layers, model.width, model.max_positions) == (blocks + 1, 24, 64)
    assert (model.dtype, model.revision, str(model.device)) == ("float32", None, "cpu")
    assert model.source["kind"] == "directory"
    assert not model.model.training
    assert model.tokenizer.padding_side == "right"
    assert not hasattr(model.model, "lm_head")
    assert json.loads(json.dumps(model.source)) == model.source
    assert "width 24" in repr(model)
    assert model.config is model.model.config


def test_hidden_states_are_those_of_transformers(tiny_llama):
    from transformers import AutoModelForCausalLM

    model = load_model(tiny_llama)
    reference = AutoModelForCausalLM.from_pretrained(tiny_llama).eval()
    ids = model.tokenize(["The film was good."]).ids
    with torch.no_grad():
        wanted = reference(torch.tensor(ids), output_hidden_states=True).hidden_states
    for got, want in zip(model.hidden_states(*model.pad(ids)), wanted, strict=True):
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize("fixture", ["tiny_llama", "tiny_llama_left", "tiny_gpt2"])
def test_padding_changes_nothing(request, fixture):
    model = load_model(request.getfixturevalue(fixture))
    together = states_of(model)
    for row, text in enumerate(TEXTS):
        for layer, alone in enumerate(states_of(model, [text])[0]):
            np.testing.assert_allclose(together[row][layer], alone, atol=1e-5)


def test_left_and_right_padding_tokenizers_agree(tiny_llama, tiny_llama_left):
    left, right = load_model(tiny_llama_left), load_model(tiny_llama)
    assert left.tokenize(TEXTS) == right.tokenize(TEXTS)
    for one, two in zip(states_of(left), states_of(right), strict=True):
        for a, b in zip(one, two, strict=True):
            np.testing.assert_array_equal(a, b)


def test_the_digest_of_a_network_does_not_depend_on_blocks(monkeypatch):
    network = torch.nn.Module()
    network.even = torch.nn.Parameter(torch.arange(12.0).reshape(3, 4).T)  # not contiguous
    network.low = torch.nn.Parameter(torch.arange(5).to(torch.bfloat16))
    network.register_buffer("none", torch.zeros(0, 3))
    network.register_buffer("one", torch.tensor(7))
    expected = hashlib.sha256()
    for name in ("even", "low", "none", "one"):
        tensor = network.state_dict()[name]
        expected.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\0".encode())
        expected.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b"")
    assert checkpoints.objects_digest(network) == expected.hexdigest()
    monkeypatch.setattr(_files, "_BLOCK", 8)
    assert checkpoints.objects_digest(network) == expected.hexdigest()


def test_loaded_objects(tiny_llama):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    network = AutoModelForCausalLM.from_pretrained(tiny_llama)
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    model = load_model(network, tokenizer=tokenizer)
    assert model.source["kind"] == "objects"
    assert model.model is network.model
    assert load_model(network, tokenizer=tokenizer, head=True).model is network
    assert load_model(network, tokenizer=str(tiny_llama)).n_layers == model.n_layers
    same = load_model(AutoModelForCausalLM.from_pretrained(tiny_llama), tokenizer=tokenizer)
    assert same.fingerprint == model.fingerprint
    with torch.no_grad():
        network.model.norm.weight[0] += 1
    assert load_model(network, tokenizer=tokenizer).fingerprint != model.fingerprint
    fails("tokenizer", given=network)
    fails("dtype", given=network, tokenizer=tokenizer, dtype="float32")
    fails("revision", given=network, tokenizer=tokenizer, revision="main")
    fails("language-model head", given=network.model, tokenizer=tokenizer, head=True)
    fails("model", "Linear", given=torch.nn.Linear(2, 2), tokenizer=tokenizer)
    fails("model", "int", given=3, tokenizer=tokenizer)
    fails("tokenizer", "int", given=network, tokenizer=3)


def test_adapters_are_looked_through(tiny_llama):
    import peft

    model = load_model(tiny_llama, head=True)
    before = states_of(model)[0][-1]
    wrapped = peft.get_peft_model(model.model, peft.LoraConfig(r=2, lora_alpha=4, target_modules="all-linear"))
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.3)
    adapted = load_model(wrapped, tokenizer=model.tokenizer)
    assert np.abs(states_of(adapted)[0][-1] - before).max() > 1e-3


def test_the_head_is_kept_when_asked_for(tiny_llama):
    model = load_model(tiny_llama, head=True)
    ids, mask = model.pad(model.tokenize(TEXTS).ids)
    assert model.model(input_ids=ids, attention_mask=mask).logits.shape == (*ids.shape, 96)
    assert model.n_layers == 4
    assert model.source["head"]
    plain = load_model(tiny_llama)
    np.testing.assert_allclose(states_of(model)[1][-1], states_of(plain)[1][-1], atol=1e-6)
    assert plain.fingerprint == model.fingerprint


def test_random_weights_are_the_same_architecture_afresh(tiny_llama):
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    trained = load_model(tiny_llama)
    control, again, other = (load_model(tiny_llama, random_weights=True, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(before, torch.random.get_rng_state())
    assert control.n_parameters == trained.n_parameters
    names = dict(trained.model.named_parameters())
    assert any(not torch.equal(names[name], value) for name, value in control.model.named_parameters())
    for (name, value), (_, same) in zip(control.model.named_parameters(), again.model.named_parameters(), strict=True):
        assert torch.equal(value, same), name
    prints = {model.fingerprint for model in (trained, control, other)}
    assert len(prints) == 3
    assert control.fingerprint == again.fingerprint
    for model, options in ((trained, {}), (control, {"random_weights": True, "seed": 1})):
        assert model_fingerprint(tiny_llama, **options) == model.fingerprint
    assert control.source["random_weights"]
    assert control.source["seed"] == 1
    objects = load_model(trained.model, tokenizer=trained.tokenizer, random_weights=True, seed=1)
    assert not torch.equal(objects.model.embed_tokens.weight, trained.model.embed_tokens.weight)


def test_random_weights_need_no_weights(copied):
    (copied / "model.safetensors").unlink()
    assert load_model(copied, random_weights=True).n_layers == 4
    fails("copied", "no weights", "random_weights", given=copied)


def test_bundled_models_go_through_their_checksums(fake_miniworld, tiny_llama):
    model = load_model("miniworld-base")
    assert (model.name, model.source["kind"]) == ("miniworld-base", "bundled")
    assert model.fingerprint == load_model(tiny_llama).fingerprint
    fails("miniworld-nothing", given="miniworld-nothing")
    rows = list_models()
    assert [row["kind"] for row in rows] == ["bundled"] + ["paper"] * 8
    assert rows[0]["path"] == str(tiny_llama)
    assert [row["path"] for row in rows[1:]] == list(presets.MODELS)


@pytest.mark.skipif(importlib.util.find_spec("gguf") is None, reason="gguf is not installed")
def test_gguf_files(tiny_gguf):
    model = load_model(tiny_gguf)
    assert (model.n_layers, model.width, model.source["kind"]) == (3, 32, "gguf")
    assert model.tokenize(["the film"]).ids[0]
    assert model.causal
    same = load_model(tiny_gguf.parent, gguf_file=tiny_gguf.name)
    assert same.fingerprint == model.fingerprint == model_fingerprint(tiny_gguf)
    fails(tiny_gguf.parent.name, "config.json", tiny_gguf.name, given=tiny_gguf.parent)
    fails("gguf_file", "nope.gguf", given=tiny_gguf.parent, gguf_file="nope.gguf")
    broken = tiny_gguf.parent / "broken.gguf"
    broken.write_bytes(tiny_gguf.read_bytes()[:400])
    fails("broken.gguf", given=broken)
    broken.write_bytes(b"no gguf")
    fails("broken.gguf", "not a GGUF file", given=broken)
    fails("gguf_file", "other.gguf", given=tiny_gguf, gguf_file="other.gguf")
    assert has_language_model_head(tiny_gguf)
    broken.unlink()


@pytest.fixture(scope="module")
def tiny_gguf(tmp_path_factory):
    """A 2-block Llama in one GGUF file, with a byte-level vocabulary of a few merges."""
    import gguf
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    letters = list(bytes_to_unicode().values())
    merges = ["t h", "th e", "Ġ f", "i l", "il m"]
    tokens = ["<s>", "</s>", *letters, *("".join(merge.split(" ")) for merge in merges)]
    width, heads, blocks, inner = 32, 4, 2, 64
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(width)
    writer.add_block_count(blocks)
    writer.add_feed_forward_length(inner)
    writer.add_head_count(heads)
    writer.add_head_count_kv(heads)
    writer.add_rope_dimension_count(width // heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3] + [1] * (len(tokens) - 2))
    writer.add_token_merges(merges)
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    rng = np.random.default_rng(0)

    def add(name, *shape):
        writer.add_tensor(name, rng.normal(0, 0.2, shape).astype(np.float32))

    add("token_embd.weight", len(tokens), width)
    add("output.weight", len(tokens), width)
    writer.add_tensor("output_norm.weight", np.ones(width, dtype=np.float32))
    for block in range(blocks):
        for name in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"blk.{block}.{name}.weight", np.ones(width, dtype=np.float32))
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            add(f"blk.{block}.{name}.weight", width, width)
        add(f"blk.{block}.ffn_gate.weight", inner, width)
        add(f"blk.{block}.ffn_up.weight", inner, width)
        add(f"blk.{block}.ffn_down.weight", width, inner)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


# Causality


@pytest.mark.parametrize(("fixture", "words"), [("tiny_bert", "encoder"), ("tiny_t5", "encoder-decoder")])
def test_models_that_see_the_future_are_refused_with_the_reason(request, fixture, words):
    path = request.getfixturevalue(fixture)
    message = fails(path.name, words, "causal", given=path)
    assert "GPT-2" in message


def test_encoders_are_welcome_where_they_are_asked_for(tiny_bert, tiny_llama, tiny_t5, tmp_path):
    assert load_model(tiny_bert, bidirectional=True).causal is False
    assert load_model(tiny_llama, bidirectional=True).causal is True
    fails(tiny_t5.name, "encoder-decoder", given=tiny_t5, bidirectional=True)
    flagged = shutil.copytree(tiny_llama, tmp_path / "flagged")
    config = json.loads((flagged / "config.json").read_text())
    (flagged / "config.json").write_text(json.dumps({**config, "is_causal": False}))
    assert load_model(flagged, bidirectional=True).causal is False


def test_a_decoder_that_attends_both_ways_is_found_out_by_its_states(tiny_llama, monkeypatch):
    model = load_model(tiny_llama)
    assert model.causal
    forward = model.model.forward

    def leaking(input_ids=None, **options):
        output = forward(input_ids=input_ids, **options)
        shift = input_ids[:, -1].float()[:, None, None] * 1e-3
        output.hidden_states = tuple(state + shift for state in output.hidden_states)
        return output

    monkeypatch.setattr(model.model, "forward", leaking)
    fails("not causal", "changing later tokens", given=model.model, tokenizer=model.tokenizer)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
@pytest.mark.parametrize("fixture", ["tiny_llama", "tiny_gpt2"])
def test_dtypes(request, fixture, dtype):
    model = load_model(request.getfixturevalue(fixture), dtype=dtype)
    assert model.dtype == dtype
    assert model.causal
    assert model.fingerprint == load_model(request.getfixturevalue(fixture)).fingerprint
    assert load_model(request.getfixturevalue(fixture), dtype=dtype, random_weights=True).dtype == dtype


def test_the_checkpoint_s_dtype_is_kept(tiny_llama, tmp_path):
    from transformers import AutoModelForCausalLM

    shutil.copytree(tiny_llama, tmp_path / "half", ignore=shutil.ignore_patterns("*.safetensors"))
    AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.bfloat16).save_pretrained(tmp_path / "half")
    assert load_model(tmp_path / "half").dtype == load_model(tmp_path / "half", dtype="auto").dtype == "bfloat16"
    assert load_model(tmp_path / "half", random_weights=True).dtype == "bfloat16"


# Options

SOURCES = {"bundled", "directory", "objects", "LanguageModel"}
OPTIONS = {  # a value per keyword, what shows that it took effect, and the sources that refuse it
    "tokenizer": (word_tokenizer(), lambda model, value: model.tokenizer is value, {"LanguageModel"}),
    "revision": ("main", None, SOURCES),
    "dtype": ("bfloat16", lambda model, _: model.dtype == "bfloat16", {"objects", "LanguageModel"}),
    "device": ("cpu", lambda model, _: model.device.type == "cpu", {"LanguageModel"}),
    "device_map": ("sideways", None, SOURCES),  # test_device_and_device_map has maps that exist
    "trust_remote_code": (True, lambda model, _: model.source["trust_remote_code"], {"objects", "LanguageModel"}),
    "gguf_file": ("a.gguf", None, SOURCES),  # here there is none; test_gguf_files has one
    "random_weights": (True, lambda model, _: model.source["random_weights"], {"LanguageModel"}),
    "seed": (1, None, SOURCES),  # alone
    "head": (True, lambda model, _: model.has_head, {"LanguageModel"}),
    "bidirectional": (True, lambda model, _: model.causal, {"LanguageModel"}),  # welcome: test_encoders_are_welcome
}


@pytest.mark.slow
@pytest.mark.parametrize("source", sorted(SOURCES))
@pytest.mark.parametrize("keyword", list(inspect.signature(load_model).parameters)[1:])
def test_every_keyword_takes_effect_or_is_refused(keyword, source, tiny_llama, fake_miniworld):
    from transformers import AutoModelForCausalLM

    value, took_effect, refused_by = OPTIONS[keyword]
    given, more = tiny_llama, {}
    if source == "bundled":
        given = "miniworld-base"
    elif source == "LanguageModel":
        given = load_model(tiny_llama)
        assert load_model(given) is given
    elif source == "objects":
        given = AutoModelForCausalLM.from_pretrained(tiny_llama)
        more = {"tokenizer": word_tokenizer()}
    if source in refused_by:
        fails(keyword, given=given, **more, **{keyword: value})
    else:
        assert took_effect(load_model(given, **{**more, keyword: value}), value)
        assert load_model(given, **more).n_layers == 4


@pytest.mark.parametrize("source", ["directory", "objects"])
def test_the_seed_takes_effect_with_random_weights(source, tiny_llama):
    trained = load_model(tiny_llama, head=True)
    given, more = (tiny_llama, {}) if source == "directory" else (trained.model, {"tokenizer": trained.tokenizer})
    models = [load_model(given, random_weights=True, seed=seed, **more) for seed in (None, 0, 1)]
    weights = [model.model.embed_tokens.weight for model in models]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[1], weights[2])
    assert models[0].fingerprint == models[1].fingerprint != models[2].fingerprint
    assert [model.source["seed"] for model in models] == [0, 0, 1]


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("bare", [False, True])
def test_whether_a_head_will_load_is_known_beforehand(kind, bare, request, tmp_path):
    from transformers import AutoModelForCausalLM

    path = request.getfixturevalue(f"tiny_{kind}")
    if bare:
        network = AutoModelForCausalLM.from_pretrained(path)
        path = shutil.copytree(path, tmp_path / "bare", ignore=shutil.ignore_patterns("*.safetensors"))
        without_head(network).save_pretrained(path)
    expected = not bare or kind == "gpt2"  # GPT-2's head shares the embedding's weights
    assert has_language_model_head(path) is expected
    assert load_model(path, random_weights=True, head=True).has_head
    assert not load_model(path).has_head
    if expected:
        assert load_model(path, head=True).has_head
    else:
        fails("lm_head", given=path, head=True)


def test_a_head_is_asked_for_only_of_causal_models(tiny_bert, tmp_path):
    with pytest.raises(NtpsError, match="encoder"):
        has_language_model_head(tiny_bert)
    with pytest.raises(NtpsError, match="nope"):
        has_language_model_head(tmp_path / "nope")
    with pytest.raises(NtpsError, match="revision"):
        has_language_model_head(tmp_path, revision="main")
    assert not gives_logits(torch.nn.Linear(2, 2))


def test_options_that_cannot_be_met(tiny_llama):
    fails("dtype", "'int8'", *DTYPES, given=tiny_llama, dtype="int8")
    for device in ("cuda:99", "gpu", "tpu:0", "meta"):
        fails("device", repr(device), "cpu", given=tiny_llama, device=device)
    fails("device", "device_map", given=tiny_llama, device="cpu", device_map="auto")
    fails("seed", "random_weights", given=tiny_llama, seed=0)
    fails("random_weights", "device_map", given=tiny_llama, device_map="auto", random_weights=True)
    fails("device_map", given=tiny_llama, device_map="sideways")
    with pytest.raises(NtpsError, match="max_length"):
        load_model(tiny_llama).tokenize(TEXTS, 0)


def test_device_and_device_map(tiny_llama):
    assert load_model(tiny_llama, device="cpu").device.type == "cpu"
    model = load_model(tiny_llama, device_map={"": "cpu"})
    assert model.device == torch.device("cpu")
    assert states_of(model)[0][-1].shape == (6, 24)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda(tiny_llama):
    model = load_model(tiny_llama)
    assert model.device.type == "cuda"
    assert load_model(tiny_llama, device="cuda:0").causal
    assert load_model(tiny_llama, device_map="auto").device.type == "cuda"


# Tokens


def test_special_tokens_blank_texts_and_truncation(tiny_llama, tiny_gpt2):
    model = load_model(tiny_llama)
    first = SPECIAL.index("<s>")
    made = model.tokenize(["the film", "", "  \n", "the " * 100, "the " * 63], None)
    assert made.ids[0] == [first, 4, 4 + WORDS.index("film")]
    assert made.ids[1] == made.ids[2] == []
    assert [len(ids) for ids in made.ids[3:]] == [64, 64]
    assert made.n_truncated == 1
    short = model.tokenize(["the film was good", "the"], 2)
    assert short.ids == [[first, 4], [first, 4]]
    assert short.n_truncated == 1
    assert load_model(tiny_gpt2).tokenize(["the film", ""]).ids == [[4, 4 + WORDS.index("film")], []]
    assert model.tokenize([]).ids == []


def test_a_closing_special_token_survives_truncation(tiny_llama):
    from tokenizers import processors

    tokenizer = word_tokenizer()
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", SPECIAL.index("</s>"))]
    )
    model = load_model(tiny_llama, tokenizer=tokenizer)
    made = model.tokenize(["the film was good", "the"], 3)
    assert made.ids[0] == [4, 4 + WORDS.index("film"), SPECIAL.index("</s>")]
    assert made.n_truncated == 1
    assert model.tokenize(["the film"], 1).ids == [[SPECIAL.index("</s>")]]


@pytest.mark.slow
def test_neither_warnings_about_long_texts_and_padding_nor_an_import_of_datasets(tiny_gpt2, forks):
    (done,) = forks.run(
        f"import sys; from ntps.models.load import load_model; m = load_model({str(tiny_gpt2)!r}); "
        "t = m.tokenize(['the film ' * 90, 'the']); m.hidden_states(*m.pad(t.ids)); "
        "print(t.n_truncated, 'datasets' in sys.modules)"
    )
    assert (done.stdout.strip(), done.stderr) == ("1 False", "")


def test_loading_leaves_the_libraries_settings_alone(tiny_llama):
    import datasets
    from huggingface_hub import constants
    from huggingface_hub.utils import are_progress_bars_disabled
    from transformers.utils import logging

    def settings():
        return (
            logging.get_verbosity(), logging.is_progress_bar_enabled(), datasets.logging.get_verbosity(),
            datasets.are_progress_bars_disabled(), are_progress_bars_disabled(), constants.HF_HUB_OFFLINE,
            datasets.config.HF_HUB_OFFLINE, os.environ.get("DISABLE_SAFETENSORS_CONVERSION"),
        )  # fmt: skip

    before = settings()
    load_model(tiny_llama)
    with pytest.raises(NtpsError), _hub.quiet(), _hub.offline():
        assert settings() != before
        raise NtpsError("x")
    assert settings() == before


def test_a_replaced_tokenizer_is_found_out(tmp_path):
    from transformers import AutoModelForCausalLM, Qwen2Config

    config = Qwen2Config(
        vocab_size=96, hidden_size=24, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "qwen")
    word_tokenizer().save_pretrained(tmp_path / "qwen")
    fails("qwen", "tokenizer", "no ids", "PreTrainedTokenizerFast", given=tmp_path / "qwen")
    model = load_model(tmp_path / "qwen", tokenizer=word_tokenizer())
    assert model.tokenize(["the film"]).ids == [[4, 4 + WORDS.index("film")]]
    assert model.fingerprint != model_fingerprint(tmp_path / "qwen")


def test_a_tokenizer_of_another_model_is_found_out(tmp_path):
    fails("id 66", "20 rows", "does not belong", given=save_tiny(tmp_path / "small", "llama", vocabulary=20))


def test_no_tokenizer(copied):
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        (copied / name).unlink(missing_ok=True)
    fails("copied", "tokenizer", given=copied)
    assert load_model(copied, tokenizer=word_tokenizer()).n_layers == 4


# Fingerprints


def test_fingerprints_follow_what_makes_the_model(copied, tiny_llama, tmp_path):
    first = model_fingerprint(copied)
    assert first == model_fingerprint(tiny_llama) == load_model(copied).fingerprint
    (copied / "README.md").write_text("notes")
    (copied / "trainer_state.json").write_text("{}")
    assert model_fingerprint(copied) == first
    prints = {first}
    for name in ("config.json", "tokenizer_config.json"):
        content = json.loads((copied / name).read_text())
        (copied / name).write_text(json.dumps({**content, "extra": 1}))
        prints.add(model_fingerprint(copied))
    weights = bytearray((copied / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (copied / "model.safetensors").write_bytes(weights)
    prints.add(model_fingerprint(copied))
    prints.add(model_fingerprint(copied, random_weights=True))
    prints.add(model_fingerprint(copied, random_weights=True, seed=1))
    assert len(prints) == 6


# Bad input


def test_directories_that_are_not_models(tmp_path, copied, tiny_llama):
    empty = tmp_path / "empty"
    empty.mkdir()
    fails("empty", "config.json", given=empty)
    (empty / "adapter_config.json").write_text("{}")
    fails("adapter", "no base model", "BASE+", given=empty)
    (tmp_path / "a.bin").write_bytes(b"x")
    fails("a.bin", "config.json", ".gguf", given=tmp_path / "a.bin")
    config = (copied / "config.json").read_text()
    for content, words in (
        ("{", ["line 1", "not valid JSON"]),
        ("[]", ["config.json"]),
        ("{}", ["model_type"]),
        ('{"model_type": "nothing-known"}', ["architecture"]),
        (config.replace('"num_attention_heads": 4', '"num_attention_heads": 5'), ["copied"]),
        (config.replace('"hidden_size": 24', '"hidden_size": 48'), ["copied", "weights"]),
        (config.replace('"num_hidden_layers": 3', '"num_hidden_layers": 4'), ["lack", "layers.3"]),
    ):
        (copied / "config.json").write_text(content)
        fails("copied", *words, given=copied)


def test_damaged_and_missing_weights(copied):
    weights = (copied / "model.safetensors").read_bytes()
    for content in (weights[:-100], weights[:50], b"", b"\xff" * 200):
        (copied / "model.safetensors").write_bytes(content)
        fails("model.safetensors", "damaged", given=copied)
    (copied / "model.safetensors").unlink()
    (copied / "model.safetensors.index.json").write_text('{"weight_map": {"a": "model-1.safetensors"}}')
    fails("model-1.safetensors", "missing", "1 of 1", given=copied)
    (copied / "model.safetensors.index.json").write_text("{}")
    fails("index.json", "weight_map", given=copied)


def test_sharded_weights(tiny_llama, tmp_path):
    from transformers import AutoModelForCausalLM

    shutil.copytree(tiny_llama, tmp_path / "shards", ignore=shutil.ignore_patterns("*.safetensors"))
    AutoModelForCausalLM.from_pretrained(tiny_llama).save_pretrained(tmp_path / "shards", max_shard_size="30KB")
    assert len(checkpoints.weight_files(tmp_path / "shards")) > 1
    for a, b in zip(states_of(load_model(tmp_path / "shards"))[0], states_of(load_model(tiny_llama))[0], strict=True):
        np.testing.assert_array_equal(a, b)


def test_pickled_weights_run_no_code(copied):
    from safetensors.torch import load_file

    class Evil:
        def __reduce__(self):
            return (print, ("executed",))

    state = load_file(copied / "model.safetensors")
    (copied / "model.safetensors").unlink()
    torch.save(state, copied / "pytorch_model.bin")
    assert load_model(copied).n_layers == 4
    torch.save({**state, "evil": Evil()}, copied / "pytorch_model.bin")
    fails("copied", "weights", given=copied)


def test_repository_code_is_not_run_unasked(copied):
    (copied / "own.py").write_text("raise SystemExit('ran')")
    config = json.loads((copied / "config.json").read_text())
    config.update(model_type="own", auto_map={"AutoConfig": "own.Config", "AutoModel": "own.Model"})
    (copied / "config.json").write_text(json.dumps(config))
    fails("copied", "trust_remote_code=True", given=copied)


def test_names_that_are_nothing():
    fails("./nope", "directory", given="./nope")
    fails("a/b/c", "directory", given="a/b/c")
    fails("x.gguf", "directory", given="x.gguf")
    fails("what is this?", "directory", given="what is this?")
    fails("empty", given=" ")


def test_an_unknown_hub_name_without_network_fails_at_once(monkeypatch):
    monkeypatch.setattr(_hub, "reachable", lambda: False)
    start = time.perf_counter()
    fails("'nobody/nothing-here'", "cache", "bundled", given="nobody/nothing-here")
    fails("'Qwen2-0.5B'", "cache", given="Qwen2-0.5B")
    with pytest.raises(NtpsError, match="nothing-here"):
        model_fingerprint("nobody/nothing-here")
    assert time.perf_counter() - start < 3


def test_the_paper_s_models_are_found_by_name():
    assert len(presets.MODELS) == 8
    for name in presets.MODELS:
        for spelled in (name, name.rsplit("/", 1)[1], name.lower()):
            location = checkpoints.locate(spelled)
            assert (location.kind, location.path) == ("hub", name)
    assert "trust_remote_code" in presets.MODELS["apple/OpenELM-270M"].note
    assert presets.MODELS["apple/OpenELM-270M"].tokenizer


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_positions_are_read_from_the_configuration(kind):
    assert max_positions(tiny_config(kind)) == 64


def test_the_fingerprint_knows_another_tokenizer(tiny_gpt2, tiny_llama):
    other = model_fingerprint(tiny_gpt2, tokenizer=str(tiny_llama))
    assert other == load_model(tiny_gpt2, tokenizer=str(tiny_llama)).fingerprint != model_fingerprint(tiny_gpt2)
