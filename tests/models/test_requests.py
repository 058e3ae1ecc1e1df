"""Requests that people make by mistake, or with what their configurations name: each is met or answered at once."""

import json
import shutil
import time
import tracemalloc
from pathlib import Path

import pytest
import torch
from helpers.models import save_tiny, word_tokenizer

from ntps import _hub
from ntps.errors import NtpsError
from ntps.models import checkpoints
from ntps.models.load import find_device, has_language_model_head, load_model, model_fingerprint


@pytest.fixture
def copied(tiny_llama, tmp_path):
    """A copy of the tiny Llama's directory, to be changed."""
    return shutil.copytree(tiny_llama, tmp_path / "copied")


def configure(path, **entries):
    content = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**content, **entries}))
    return path


# Kernels


@pytest.mark.long
@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation", "experts_implementation"])
@pytest.mark.parametrize(
    "kernel", ["flash_attention_2", "flash_attention_3", "kernels-community/flash-attn2", "someone/evil@main:run"]
)
@pytest.mark.parametrize("random_weights", [False, True])
def test_no_kernel_that_a_configuration_names_is_followed(copied, tiny_llama, monkeypatch, key, kernel, random_weights):
    def followed(*_args, **_options):
        raise AssertionError("a kernel was looked for")

    import transformers.integrations.hub_kernels as kernels

    for name in ("load_and_register_attn_kernel", "get_kernel"):
        monkeypatch.setattr(kernels, name, followed, raising=False)
    model = load_model(
        configure(copied, **{key: kernel}), random_weights=random_weights, seed=0 if random_weights else None
    )
    plain = load_model(tiny_llama, random_weights=random_weights, seed=0 if random_weights else None)
    ids = torch.arange(8)[None]
    for found, wanted in zip(model.hidden_states(ids, ids + 1), plain.hidden_states(ids, ids + 1), strict=True):
        assert torch.equal(found, wanted)
    assert model.config._attn_implementation in ("sdpa", "eager")


@pytest.mark.parametrize("kernel", ["eager", "sdpa"])
def test_what_torch_computes_is_followed(copied, kernel):
    assert load_model(configure(copied, attn_implementation=kernel)).config._attn_implementation == kernel


# Heads


def test_the_head_of_a_model_that_also_reads_images_is_known(copied):
    configure(copied, architectures=["Llama4ForConditionalGeneration"])
    assert has_language_model_head(copied)
    configure(copied, architectures=["LlamaModel"])
    assert not has_language_model_head(copied)


# Long texts


@pytest.fixture(scope="module")
def byte_level(tmp_path_factory):
    """A model with a byte-level tokenizer of a few merges: every character and blank counts."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("t", "h"), ("th", "e"), ("Ġ", "f"), ("Ġ", "Ġ"), ("ĠĠ", "ĠĠ"), ("a", "a"), ("aa", "aa"), ("Ġ", "the")]
    tokens = [*letters, *("".join(pair) for pair in merges)]
    core = Tokenizer(models.BPE({token: at for at, token in enumerate(tokens)}, merges))
    core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    base = load_model(save_tiny(tmp_path_factory.mktemp("byte") / "model", "llama", vocabulary=300))
    return load_model(base.model, tokenizer=PreTrainedTokenizerFast(tokenizer_object=core))


@pytest.mark.parametrize("length", [7, 40])
@pytest.mark.parametrize(
    "text",
    ["the film " * 9000, "a" * 70000, " " * 30000 + "the end" + " the" * 9000, "the\n\n" * 9000, "é ñ\u3000" * 9000,
     "good" + " " * 60000 + "film", "x" + "\t" * 50000],
    ids=["words", "letters", "blanks first", "lines", "not ascii", "blanks between", "tabs"],
)  # fmt: skip
def test_of_a_long_text_the_beginning_is_read_and_gives_the_same_tokens(byte_level, text, length):
    whole = byte_level.tokenizer(text, add_special_tokens=False)["input_ids"]
    made = byte_level.tokenize([text, "the"], length)
    assert made.ids[0] == whole[:length]
    assert made.n_truncated == 1
    assert byte_level.tokenize([" " * 90000], length).ids == [[]]


def test_a_text_of_many_megabytes_takes_neither_time_nor_memory(byte_level, monkeypatch):
    seen = []
    call = type(byte_level.tokenizer).__call__
    monkeypatch.setattr(
        type(byte_level.tokenizer),
        "__call__",
        lambda self, texts, **options: seen.extend(texts) or call(self, texts, **options),
    )
    text = "the film was good and then " * 1_000_000
    tracemalloc.start()
    start = time.perf_counter()
    assert len(byte_level.tokenize([text], 64).ids[0]) == 64
    seconds, peak = time.perf_counter() - start, tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert max(map(len, seen)) < 10_000
    assert peak < 5e6
    assert seconds < 2


# Tokenizers


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("./nope", r"^tokenizer \./nope: no such directory"),
        ("a/b/c", r"^tokenizer a/b/c: no such directory"),
        ("miniworld-bse", r"^tokenizer .*miniworld-bse"),
        ("nobody/nothing", r"^tokenizer 'nobody/nothing' cannot be loaded"),
        ("miniworld-base@step9", r"^tokenizer .*miniworld-base@step9"),
        ("~nosuchuser/x", r"^tokenizer ~nosuchuser/x: there is no such user"),
        ("", r"^the tokenizer's name is empty"),
        (" ", r"^the tokenizer's name is empty"),
        ("é", r"^tokenizer é: no such directory"),
        ("EMPTY", r"EMPTY: there is no tokenizer in it"),
        ("CONFIG", r"CONFIG: there is no tokenizer in it"),
        ("BROKEN", r"BROKEN: the tokenizer cannot be loaded"),
        ("notes.txt", r"^tokenizer .*notes\.txt is a file; give the directory"),
        ("BROKEN/tokenizer.json", r"^tokenizer .*tokenizer\.json is a file; give the directory"),
    ],
)
def test_a_tokenizer_that_is_not_there_is_the_culprit(tiny_llama, tmp_path, monkeypatch, given, words):
    monkeypatch.setattr(_hub, "reachable", lambda: False)
    monkeypatch.chdir(tmp_path)
    files = {"CONFIG/config.json": '{"model_type": "llama"}', "BROKEN/tokenizer.json": "[", "notes.txt": "a"}
    for name, content in files.items():
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text(content)
    Path("EMPTY").mkdir()
    with pytest.raises(NtpsError, match=words):
        load_model(tiny_llama, tokenizer=given)


def test_a_bundled_name_is_a_tokenizer(tiny_llama, fake_miniworld):
    model = load_model(tiny_llama, tokenizer="miniworld-base")
    assert model.tokenize(["the film"]).ids == load_model(tiny_llama).tokenize(["the film"]).ids


def test_a_tokenizer_that_does_not_follow_its_rules_is_refused(tmp_path):
    """The class that a configuration asks for may put rules of its own in the place of those of tokenizer.json."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    path = save_tiny(tmp_path / "model", "llama")
    letters = [*"abcdefghijklmnopqrstuvwxyz.,", "▁"]
    core = Tokenizer(models.BPE({token: at for at, token in enumerate(letters)}, []))
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    core.save(str(path / "tokenizer.json"))
    settings = path / "tokenizer_config.json"
    settings.write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
    assert len(load_model(path).tokenize(["a film"]).ids[0]) == 6
    settings.write_text(json.dumps({"tokenizer_class": "Qwen2Tokenizer"}))  # its blank is another letter
    with pytest.raises(NtpsError, match=r"tokenizer \(Qwen2Tokenizer\) .*tokenizer.json.*PreTrainedTokenizerFast"):
        load_model(path)


def test_a_blank_before_the_first_word_is_a_setting(tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers

    path = save_tiny(tmp_path / "model", "gpt2", vocabulary=300)
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE({token: at for at, token in enumerate(letters)}, []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.save(str(path / "tokenizer.json"))
    (path / "tokenizer_config.json").write_text('{"tokenizer_class": "GPT2Tokenizer", "add_prefix_space": true}')
    assert len(load_model(path).tokenize(["a film"]).ids[0]) in (6, 7)


# Directories and names


def test_a_folder_of_checkpoints_names_them(tiny_llama, tmp_path):
    for step in (2, 10, 100):
        shutil.copytree(tiny_llama, tmp_path / "run" / f"checkpoint-{step}")
    for call in (load_model, model_fingerprint):
        with pytest.raises(
            NtpsError, match=r"checkpoint-2, checkpoint-10, checkpoint-100\); name one.*checkpoint-100\."
        ):
            call(tmp_path / "run")


def test_a_folder_may_be_called_like_the_bundled_models(fake_miniworld, tiny_gpt2, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("miniworld-mine", "miniworld/mine"):
        shutil.copytree(tiny_gpt2, tmp_path / name)
        assert load_model(name).fingerprint == model_fingerprint(tiny_gpt2)
    shutil.copytree(tiny_gpt2, tmp_path / "miniworld-base")
    assert load_model("miniworld-base").fingerprint != model_fingerprint(tiny_gpt2)
    assert load_model("./miniworld-base").fingerprint == model_fingerprint(tiny_gpt2)


@pytest.mark.parametrize("name", ["~nosuchuser/model", "x" * 300, "a/" + "x" * 300, "a\0b", " ", ""])
def test_names_that_no_file_can_have(name):
    with pytest.raises(NtpsError) as caught:
        load_model(name)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize("below", ["", "inside", "inside/deeper"])
def test_an_output_in_the_model_s_directory_is_refused(tiny_llama, tmp_path, below):
    link = tmp_path / "link"
    link.symlink_to(tiny_llama)
    for output in (tiny_llama / below, link / below):
        with pytest.raises(NtpsError, match="in the directory of"):
            checkpoints.check_separate(tiny_llama, output)
    with pytest.raises(NtpsError, match="in the directory of"):
        checkpoints.check_separate(link, tiny_llama / below)
    for output in (tmp_path, tiny_llama.parent, tiny_llama.parent / "tiny-llama-2"):
        checkpoints.check_separate(tiny_llama, output)


# Devices


def test_float64_is_refused_where_the_device_has_none(tiny_llama, monkeypatch):
    real = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *size, device=None, **more: real(*size, **more))
    assert find_device("mps").type == "mps"
    with pytest.raises(NtpsError, match=r"dtype is 'float64', which mps does not have"):
        load_model(tiny_llama, device="mps", dtype="float64")


@pytest.mark.parametrize("named", [None, "cuda"])
def test_each_process_of_a_machine_has_a_gpu_of_its_own(monkeypatch, named):
    monkeypatch.setattr(torch, "empty", lambda *size, device=None: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert str(find_device(named)) == "cuda"
    started = {"WORLD_SIZE": "4", "RANK": "3", "LOCAL_RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
    for name, value in started.items():
        monkeypatch.setenv(name, value)
    assert str(find_device(named)) == "cuda:1"
    assert str(find_device("cuda:0")) == "cuda:0" and str(find_device("cpu")) == "cpu"


def test_random_weights_of_a_loaded_model_are_fresh_or_refused(tiny_llama):
    loaded = load_model(tiny_llama)
    fresh = load_model(loaded.model, tokenizer=word_tokenizer(), random_weights=True, seed=7)
    assert not torch.equal(fresh.model.embed_tokens.weight, loaded.model.embed_tokens.weight)
    with pytest.raises(NtpsError, match=r"random_weights is True, which has no meaning for .*loaded already"):
        load_model(loaded, random_weights=True)
