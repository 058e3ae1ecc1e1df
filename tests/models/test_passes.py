"""One pass over texts: batches, padding, memory and processes change nothing but speed; a kept pass is used again."""

import dataclasses
import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import naive
from helpers.forks import torchrun
from helpers.models import WORDS, tiny_config, word_tokenizer
from helpers.problems import word_task
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaModel

import ntps
from ntps._files import load_tensors, save_tensors
from ntps.core import NextTokenMoments, NonFiniteError
from ntps.core.threads import NARROW_MODEL
from ntps.errors import NtpsError
from ntps.models import Representations, collect, load_model, representations, tokens, unfinished
from ntps.models.plan import PassSettings, layer_at, parse_layers, plan_batches
from ntps.models.processes import Processes
from ntps.models.states import StateReader
from ntps.models.tokens import Tokens
from ntps.tasks import Task


@pytest.fixture(scope="module")
def model(tiny_llama):
    return load_model(tiny_llama, device="cpu")


@pytest.fixture(scope="module")
def task():
    return word_task()


@pytest.fixture(scope="module")
def whole(model, task):
    return collect(model, task)


@pytest.fixture
def calls(model, monkeypatch):
    """The number of texts of every forward pass."""
    sizes, plain = [], StateReader.read

    def counted(self, ids, mask, take):
        sizes.append(len(ids))
        return plain(self, ids, mask, take)

    monkeypatch.setattr(StateReader, "read", counted)
    return sizes


def moments_close(one, other, tolerance):
    """Whether the sums of two passes agree, relative to each layer's largest entry."""
    pairs = ((one.next_token.past_gram, other.next_token.past_gram), (one.next_token.cross, other.next_token.cross))
    errors = [float(((a - b).abs().amax((1, 2)) / a.abs().amax((1, 2))).max()) for a, b in pairs]
    return torch.equal(one.next_token.counts, other.next_token.counts) and max(errors) <= tolerance


def same_bits(one, other):
    return moments_close(one, other, 0) and np.array_equal(one.states, other.states)


def states_by_hand(model, texts, max_length=64):
    """Hidden states of one text at a time, without padding: one list of arrays (L, d) per text."""
    stacks = []
    for text in texts:
        ids = model.tokenize([text], max_length).ids[0]
        states = model.hidden_states(torch.tensor([ids]), torch.ones(1, len(ids), dtype=torch.long))
        stacks.append([state[0].double().numpy() for state in states])
    return stacks


# One pass


@pytest.mark.parametrize("prefix", ["sum", "mean", "last"])
@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_representations_are_those_of_the_models_states(model, prefix, pooling):
    task = word_task(12, longest=6, blank=(0, 5))
    found = collect(model, task, prefix=prefix, pooling=pooling, batch_size=4)
    with_tokens = [index for index in range(12) if index not in (0, 5)]
    stacks = states_by_hand(model, [task.texts[index] for index in with_tokens])
    assert found.layers == tuple(range(model.n_layers)) == (0, 1, 2, 3)
    assert found.text_index.tolist() == with_tokens
    assert found.states.shape == (4, 10, 24)
    assert (found.n_texts, found.n_given, found.width) == (10, 12, 24)
    for layer in found.layers:
        texts = [states[layer] for states in stacks]
        expected = naive.moments(texts, np.zeros((10, 1)), prefix)
        ours = found.next_token.layer(layer)
        for name in ("C0", "C1"):
            assert np.abs(getattr(ours, name).numpy() - expected[name]).max() < 5e-6 * np.abs(expected[name]).max()
        assert np.allclose(found.layer(layer), naive.pooled(texts, pooling), atol=1e-5)
    with pytest.raises(NtpsError, match="layer is 7"):
        found.layer(7)
    assert repr(found).endswith("4 layers of 10 texts, width 24)")


def test_labels_go_along_unread(model, task, whole):
    bare = collect(model, list(task.texts))
    assert same_bits(bare, whole)
    assert (bare.task, whole.task) == (None, task)
    assert bare.metadata == whole.metadata


@pytest.mark.parametrize("batch_size", [1, 3, 7])
@pytest.mark.parametrize("kind", ["tiny_llama", "tiny_gpt2"])
def test_batch_size_changes_rounding_only(kind, batch_size, task, request):
    model = load_model(request.getfixturevalue(kind), device="cpu")
    reference, found = collect(model, task), collect(model, task, batch_size=batch_size)
    assert moments_close(reference, found, 1e-6)
    assert np.allclose(reference.states, found.states, atol=1e-5)
    assert reference.metadata["key"] == found.metadata["key"]


def test_padding_side_of_the_tokenizer_changes_nothing(model, tiny_llama_left, task, whole):
    assert same_bits(whole, collect(load_model(tiny_llama_left, device="cpu"), task))
    # The comparison is not idle: with the order of tokens turned round, C1 is another.
    turned = [" ".join(reversed(text.split())) for text in task.texts]
    assert not moments_close(whole, collect(model, turned), 1e-2)


def test_the_same_input_gives_the_same_bits(model, task, whole):
    again = collect(model, task)
    assert same_bits(whole, again)
    assert whole.metadata == again.metadata


def test_chosen_layers_are_those_of_all(model, task, whole):
    part = collect(model, task, layers="0,-1")
    assert part.layers == (0, 3)
    for layer in part.layers:
        assert torch.equal(whole.next_token.layer(layer).C1, part.next_token.layer(layer).C1)
        assert np.array_equal(whole.layer(layer), part.layer(layer))


def test_metadata_says_what_made_them(model, task):
    metadata = collect(model, task, batch_size=5, prefix="mean", max_length=9).metadata
    assert (metadata["model"], metadata["model_fingerprint"]) == (model.name, model.fingerprint)
    assert metadata["texts_fingerprint"] == task.texts_fingerprint
    assert (metadata["dtype"], metadata["version"]) == ("float32", ntps.__version__)
    assert metadata["settings"] == {
        "layers": [0, 1, 2, 3], "max_length": 9, "pooling": "mean", "prefix": "mean", "matmul_precision": "auto",
        "state_dtype": "float32", "dtype": "float32", "batch_size": 5, "device": "cpu",
        "threads": 1,
    }  # fmt: skip
    assert json.loads(json.dumps(metadata)) == metadata


@pytest.mark.parametrize(("width", "threads"), [(NARROW_MODEL - 8, 1), (NARROW_MODEL, 2)])
def test_only_a_narrow_model_is_read_by_one_thread(width, threads, monkeypatch):
    seen, plain, before = set(), StateReader.read, torch.get_num_threads()

    def noted(*args):
        seen.add(torch.get_num_threads())
        return plain(*args)

    monkeypatch.setattr(StateReader, "read", noted)
    network = LlamaModel(tiny_config("llama", width=width)).eval()
    torch.set_num_threads(2)
    try:
        found = collect(load_model(network, tokenizer=word_tokenizer(), device="cpu"), WORDS)
        assert (seen, found.metadata["settings"]["threads"], torch.get_num_threads()) == ({threads}, threads, 2)
    finally:
        torch.set_num_threads(before)


# Texts


def test_texts_without_tokens_are_left_out_and_counted(model, caplog):
    task = word_task(15, blank=(2, 7, 14))
    with caplog.at_level(logging.WARNING, "ntps"):
        found = collect(model, task)
    assert (found.n_texts, found.metadata["n_skipped"]) == (12, 3)
    assert "3 of 15 texts" in caplog.text
    assert (found.lengths == 0).nonzero()[0].tolist() == [2, 7, 14]
    rest = collect(model, [text for text in task.texts if text.strip()])
    assert moments_close(found, rest, 1e-6)
    assert np.allclose(found.states, rest.states, atol=1e-5)


@pytest.mark.parametrize(("given", "word"), [(word_task(3, blank=(0, 1, 2)), "words"), (["", " "], "the texts"),
                                             ([], "the texts")])  # fmt: skip
def test_no_text_with_a_token_is_an_error(model, given, word):
    with pytest.raises(NtpsError, match=rf"{word}.*{len(given)} texts"):
        collect(model, given)


@pytest.mark.parametrize("given", ["one text", [1, 2], ["a", None]])
def test_what_is_not_texts_is_refused(model, given):
    with pytest.raises(NtpsError, match="texts must be"):
        collect(model, given)


@pytest.mark.parametrize("max_length", [3, 5, None, 500])
def test_long_texts_are_cut_and_counted(model, max_length, caplog):
    texts = (*word_task(20, longest=9).texts, "good " * 100)
    with caplog.at_level(logging.WARNING, "ntps"):
        found = collect(model, texts, max_length=max_length)
    lengths = [len(text.split()) + 1 for text in texts]  # and "<s>"
    limit = min(max_length or 512, 64)  # the model's positions
    n_truncated = sum(length > limit for length in lengths)
    assert found.lengths.tolist() == [min(length, limit) for length in lengths]
    assert found.n_tokens == sum(found.lengths)
    assert found.metadata["n_truncated"] == n_truncated >= 1
    assert f"{n_truncated} of 21 texts are longer than {limit} tokens" in caplog.text
    assert found.metadata["max_length"] == found.metadata["settings"]["max_length"] == limit


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_non_finite_state_names_layer_and_text(model, task, monkeypatch, bad, pooling):
    plain, index = StateReader.read, 17
    wanted = model.tokenize([task.texts[index]], 64).ids[0]

    def spoiled(self, ids, mask, take):
        def spoil(place, states):
            states = states.clone()
            for row, row_ids in enumerate(ids.tolist()):
                if self.layers[place] == 2 and row_ids[: int(mask[row].sum())] == wanted:
                    states[row, 0, 3] = bad
            take(place, states)

        plain(self, ids, mask, spoil)

    monkeypatch.setattr(StateReader, "read", spoiled)
    for batch_size in (1, 8):
        with pytest.raises(NonFiniteError, match=f"layer 2.*text 17.*{task.texts[index][:20]}") as caught:
            collect(model, task, batch_size=batch_size, pooling=pooling)
        assert (caught.value.layer, caught.value.text) == (2, index)
    collect(model, task, layers=[0, 1, 3])  # a layer that is not asked for does not matter


# Memory


def limit_memory(monkeypatch, owner, name, most, count=len):
    """Let a method fail for more than `most` texts; return the sizes that were tried."""
    plain, tried = getattr(owner, name), []

    def limited(self, *arguments):
        tried.append(count(arguments[0]))
        if tried[-1] > most:
            raise torch.cuda.OutOfMemoryError("simulated")
        return plain(self, *arguments)

    monkeypatch.setattr(owner, name, limited)
    return tried


@pytest.mark.slow
@pytest.mark.parametrize("most", [1, 3, 5])
@pytest.mark.parametrize("batch_size", [4, 7, 32])
def test_running_out_of_memory_halves_the_batch(model, task, whole, monkeypatch, most, batch_size):
    tried = limit_memory(monkeypatch, StateReader, "read", most)
    found = collect(model, task, batch_size=batch_size)
    assert max(tried) == batch_size
    assert sum(size for size in tried if size <= most) == len(task)  # no text twice, none left out
    assert moments_close(whole, found, 1e-6)
    assert np.allclose(whole.states, found.states, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("most", [1, 3, 8])
@pytest.mark.parametrize("last", [0, 2, 3])
def test_running_out_of_memory_between_layers_adds_no_layer_twice(model, task, whole, monkeypatch, most, last):
    """A batch fails once some of its layers have been added; its halves fail later, or not at all."""
    plain, reached = StateReader.read, []

    def limited(self, ids, mask, take):
        def stop(index, states):
            take(index, states)
            reached.append(index)
            if index == min(last + (len(ids) < 8), 3) and len(ids) > most:
                raise torch.cuda.OutOfMemoryError("simulated")

        plain(self, ids, mask, stop)

    monkeypatch.setattr(StateReader, "read", limited)
    found = collect(model, task)
    assert len(reached) > 4 * len(task) // most
    assert moments_close(whole, found, 1e-6)
    assert np.allclose(whole.states, found.states, atol=1e-5)


def test_running_out_of_memory_in_the_sums_halves_the_batch(model, task, whole, monkeypatch, calls):
    tried = limit_memory(monkeypatch, NextTokenMoments, "_products", 2)
    found = collect(model, task)
    assert max(tried) == max(calls) == 32
    assert sum(calls) == len(task)  # the model runs once all the same
    assert moments_close(whole, found, 1e-6)


@pytest.mark.parametrize("name", ["read", "_products"])
def test_one_text_that_does_not_fit_is_an_error(model, task, monkeypatch, name):
    limit_memory(monkeypatch, StateReader if name == "read" else NextTokenMoments, name, 0)
    with pytest.raises(NtpsError, match=r"too little memory.*max_length"):
        collect(model, task)


def test_states_beyond_a_limit_are_memory_mapped(model, task, whole, monkeypatch, tmp_path):
    monkeypatch.setattr(representations, "IN_MEMORY", 100)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    found = collect(model, task)
    assert isinstance(found.states, np.memmap)
    assert same_bits(whole, found)
    assert list(tmp_path.iterdir()) == []  # the file has no name: it goes with the array
    assert same_bits(whole, Representations.load(found.save(tmp_path / "kept")))


def test_float16_states_are_rounded_float32_states(model, task, whole, tmp_path):
    half = collect(model, task, state_dtype="float16")
    assert half.states.dtype == np.float16
    assert moments_close(whole, half, 0)
    for layer in whole.layers:
        exact, rounded = whole.layer(layer), half.layer(layer)
        assert rounded.dtype == np.float32
        assert (np.abs(rounded - exact) <= 2**-11 * np.ptp(exact, axis=0) + 1e-6 * np.abs(exact)).all()
        assert np.array_equal(rounded, Representations.load(half.save(tmp_path / "half")).layer(layer))


@pytest.mark.parametrize("mean", [0, 100, 1000, 5000])
@pytest.mark.parametrize("unit", [1e-8, 1, 1e8])
def test_float16_keeps_labels_behind_any_mean_and_size(mean, unit, whole):
    """A label read from one of five channels, beside one that never varies."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 400)
    states = rng.normal(size=(1, 400, 6)) + 1.4 * labels[:, None] * np.eye(6)[1] + mean
    states[:, :, 5] = 3
    states = (states * unit).astype(np.float32)
    r2 = []
    for dtype in ("float32", "float16"):
        moments = NextTokenMoments(layers=[0], width=6)
        found = dataclasses.replace(whole, next_token=moments, **representations.kept_states(states, dtype))
        assert found.layer(0).dtype == np.float32
        assert (found.layer(0)[:, 5] == states[0, :, 5]).all()
        x = found.layer(0).astype(np.float64)
        x = (x - x.mean(0)) / unit
        fitted = x @ np.linalg.lstsq(x, labels - labels.mean(), rcond=None)[0]
        r2.append(fitted.var() / labels.var())
    assert r2[0] > 0.3
    assert r2[1] == pytest.approx(r2[0], abs=0.01)


def test_states_beyond_float16_are_kept(tiny_llama, task):
    """Outlier channels of real models do reach such sizes; infinity must not stand for them."""
    model = load_model(tiny_llama, device="cpu")
    with torch.no_grad():
        model.model.norm.weight.fill_(1e5)
    exact, rounded = collect(model, task), collect(model, task, state_dtype="float16")
    last, found = (kept.layer(kept.layers[-1]) for kept in (exact, rounded))
    assert np.abs(last).max() > 65504
    assert np.allclose(found, last, rtol=0, atol=2**-11 * np.abs(last).max())


# Kept passes


def test_saved_and_loaded(whole, task, tmp_path):
    path = whole.save(tmp_path / "below" / "kept.safetensors")
    found = Representations.load(path, task=task)
    assert same_bits(whole, found)
    for name in ("text_index", "lengths"):
        assert np.array_equal(getattr(found, name), getattr(whole, name))
    assert (found.layers, found.metadata, found.task) == (whole.layers, whole.metadata, task)
    assert (found.next_token.prefix, found.next_token.dtype) == ("sum", torch.float32)
    assert Representations.load(path).task is None
    assert same_bits(found, Representations.load(found.save(path)))  # onto the file that it is mapped from
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    with pytest.raises(NtpsError, match="other texts than those of words"):
        Representations.load(path, task=word_task(seed=1))
    for name, words in (("absent", "no such file"), ("other", "holds 'recipe', not 'ntps-representations-2'")):
        save_tensors(tmp_path / "other", {}, {"kind": "recipe"})
        with pytest.raises(NtpsError, match=words):
            Representations.load(tmp_path / name)


def test_a_kept_pass_is_used_again(model, task, whole, tmp_path, calls, caplog):
    with caplog.at_level(logging.INFO, "ntps"):
        first = collect(model, task, folder=tmp_path)
        assert sum(calls) == len(task)
        assert [file.name for file in tmp_path.iterdir()] == ["representations.safetensors"]
        relabelled = Task.of("other", task.texts, np.arange(40) % 2, "ab")
        for given in (task, relabelled, list(task.texts)):
            calls.clear()
            caplog.clear()
            again = collect(model, given, folder=tmp_path, batch_size=3)
            assert calls == []
            assert "using the representations" in caplog.text
            assert same_bits(first, again)
            assert same_bits(whole, again)
            assert again.task is (given if isinstance(given, Task) else None)


FORGED = {
    "layers of words": lambda t, h: h.update(layers="all"),
    "layers twice": lambda t, h: h.update(layers=[0] * len(h["layers"])),
    "a layer less": lambda t, h: h["layers"].pop(),
    "no layers": lambda t, h: h.pop("layers"),
    "a type": lambda t, h: h.update(dtype="object"),
    "a type of words": lambda t, h: h.update(dtype=3),
    "a prefix": lambda t, h: h.update(prefix="sun"),
    "no sums": lambda t, h: t.pop("past_gram"),
    "flat sums": lambda t, h: t.update(cross=t["cross"][0]),
    "infinite sums": lambda t, h: t["cross"].fill_(float("inf")),
    "states of fewer texts": lambda t, h: t.update(states=t["states"][:, :-1]),
    "flat states": lambda t, h: t.update(states=t["states"][0]),
    "states that are no numbers": lambda t, h: t["states"].fill_(float("nan")),
    "counts": lambda t, h: t["counts"].fill_(-1),
    "texts that are not there": lambda t, h: t["text_index"].add_(1000),
    "groups": lambda t, h: t.update(text_group=t["text_group"][:1]),
    "negative lengths": lambda t, h: t["lengths"].fill_(-1),
}


@pytest.mark.parametrize("forge", FORGED.values(), ids=FORGED)
def test_a_forged_pass_whose_checksum_fits_runs_again(model, task, whole, tmp_path, calls, caplog, forge):
    collect(model, task, folder=tmp_path)
    path = tmp_path / "representations.safetensors"
    tensors, header = load_tensors(path, "ntps-representations-2")
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    forge(tensors, header)
    save_tensors(path, tensors, header)
    calls.clear()
    again = collect(model, task, folder=tmp_path)
    assert sum(calls) == len(task)
    assert "The model runs again" in caplog.text
    assert same_bits(whole, again)


@pytest.mark.parametrize("damage", ["a byte", "half", "nothing", "text", "another kind", "another tool"])
def test_a_damaged_or_foreign_file_is_not_used(model, task, whole, tmp_path, calls, caplog, damage):
    collect(model, task, folder=tmp_path)
    calls.clear()
    path = tmp_path / "representations.safetensors"
    raw = bytearray(path.read_bytes())
    if damage == "a byte":
        raw[-20] ^= 1
        path.write_bytes(raw)
    elif damage == "another kind":
        save_tensors(path, {"states": torch.ones(2)}, {"kind": "weights"})
    elif damage == "another tool":
        from safetensors.torch import save_file

        save_file({"states": torch.ones(2)}, path)
    else:
        path.write_bytes({"half": raw[: len(raw) // 2], "nothing": b"", "text": b"label,text\n"}[damage])
    with caplog.at_level(logging.WARNING, "ntps"):
        found = collect(model, task, folder=tmp_path)
    assert str(path) in caplog.text
    assert "runs again" in caplog.text
    assert sum(calls) == len(task)
    assert same_bits(whole, found)
    assert same_bits(whole, Representations.load(path))  # and was replaced


@pytest.mark.parametrize(
    "options",
    [{"layers": [0]}, {"max_length": 5}, {"pooling": "last"}, {"prefix": "mean"}, {"matmul_precision": "high"},
     {"state_dtype": "float16"}],
)  # fmt: skip
def test_another_setting_runs_again_without_a_warning(model, task, tmp_path, calls, caplog, options):
    first = collect(model, task, folder=tmp_path)
    calls.clear()
    found = collect(model, task, folder=tmp_path, **options)
    assert sum(calls) == len(task)
    assert "runs again" not in caplog.text
    assert found.metadata["key"] != first.metadata["key"]
    assert Representations.load(tmp_path / "representations.safetensors").metadata["key"] == found.metadata["key"]


def test_key_depends_on_all_that_shapes_the_representations(monkeypatch):
    base = PassSettings(layers=(0, 1), max_length=32)
    keys = [base.key("model", "float32", "texts")]
    assert base.key("model", "float32", "texts") == keys[0]
    changes = {"layers": (0,), "max_length": 31, "pooling": "last", "prefix": "mean", "matmul_precision": "high",
               "state_dtype": "float16"}  # fmt: skip
    assert changes.keys() == {field.name for field in dataclasses.fields(PassSettings)}
    for name, value in changes.items():
        keys.append(dataclasses.replace(base, **{name: value}).key("model", "float32", "texts"))
    for parts in (("other", "float32", "texts"), ("model", "bfloat16", "texts"), ("model", "float32", "other")):
        keys.append(base.key(*parts))
    monkeypatch.setattr("ntps.models.plan.__version__", "99")
    keys.append(base.key("model", "float32", "texts"))
    assert len(set(keys)) == len(keys)


# Passes that are cut off


class Cut(Exception):
    """Stands for the end of the process."""


@pytest.fixture
def chunks(monkeypatch):
    """Keep what is done after every batch."""
    monkeypatch.setattr(unfinished, "CHUNK_SECONDS", 0.0)
    monkeypatch.setattr(unfinished, "_SHARE", 0)


def cut_off(monkeypatch, after, *arguments, **options):
    """Run a pass and stop it in a batch; return how many texts it read before."""
    plain, sizes = StateReader.read, []

    def read(self, ids, mask, take):
        if len(sizes) == after:
            raise Cut
        plain(self, ids, mask, take)
        sizes.append(len(ids))

    with monkeypatch.context() as patch:
        patch.setattr(StateReader, "read", read)
        with pytest.raises(Cut):
            collect(*arguments, **options)
    return sum(sizes)


@pytest.mark.parametrize("on_disk", [False, True])
@pytest.mark.parametrize("kind", ["tiny_llama", "tiny_bert"])
def test_a_pass_that_is_cut_off_goes_on_bit_for_bit(
    kind, on_disk, task, request, tmp_path, chunks, monkeypatch, caplog
):
    if on_disk:
        monkeypatch.setattr(representations, "IN_MEMORY", 0)
    model = load_model(request.getfixturevalue(kind), device="cpu", bidirectional=True)
    whole = collect(model, task, batch_size=7)
    for after in (1, 3, 0):  # a second run is cut off as well, and a third before it reads anything
        cut_off(monkeypatch, after, model, task, batch_size=7, folder=tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["unfinished-0.safetensors", "unfinished-0.states"]
    read, plain = [], StateReader.read
    monkeypatch.setattr(
        StateReader, "read", lambda self, ids, mask, take: read.append(len(ids)) or plain(self, ids, mask, take)
    )
    with caplog.at_level(logging.INFO, "ntps"):
        found = collect(model, task, batch_size=7, folder=tmp_path)
    assert sum(read) == len(task) - 28 and "28 of 40 texts were read before" in caplog.text
    assert np.array_equal(whole.states, found.states)
    if kind == "tiny_llama":
        assert same_bits(whole, found)
    assert [path.name for path in tmp_path.iterdir()] == ["representations.safetensors"]


def test_other_batches_go_on_with_a_pass_that_was_cut_off(model, task, whole, tmp_path, chunks, monkeypatch, calls):
    read = cut_off(monkeypatch, 2, model, task, batch_size=7, folder=tmp_path)
    calls.clear()
    found = collect(model, task, batch_size=5, folder=tmp_path)
    assert sum(calls) == len(task) - read
    assert moments_close(whole, found, 1e-6) and np.allclose(whole.states, found.states, atol=1e-5)


@pytest.mark.parametrize("options", [{"layers": [0]}, {"max_length": 5}, {"prefix": "mean"}])
def test_another_pass_does_not_go_on(model, task, tmp_path, chunks, monkeypatch, calls, caplog, options):
    cut_off(monkeypatch, 2, model, task, batch_size=7, folder=tmp_path)
    calls.clear()
    found = collect(model, task, batch_size=7, folder=tmp_path, **options)
    assert sum(calls) == len(task) and "anew" not in caplog.text
    assert same_bits(collect(model, task, batch_size=7, **options), found)


@pytest.mark.parametrize("damage", ["a state", "fewer states", "no states", "sums", "forged sums", "forged chunks"])
def test_a_damaged_chunk_begins_anew(model, task, tmp_path, chunks, monkeypatch, calls, caplog, damage):
    cut_off(monkeypatch, 3, model, task, batch_size=7, folder=tmp_path)
    sums, states = tmp_path / "unfinished-0.safetensors", tmp_path / "unfinished-0.states"
    raw = bytearray((sums if damage == "sums" else states).read_bytes())
    if damage in ("a state", "sums"):
        raw[len(raw) // 2] ^= 1
        (sums if damage == "sums" else states).write_bytes(raw)
    elif damage == "fewer states":
        states.write_bytes(raw[:-4])
    elif damage == "no states":
        states.unlink()
    else:
        tensors, header = load_tensors(sums, unfinished.KIND)
        tensors = {name: tensor.clone() for name, tensor in tensors.items()}
        tensors["cross"] = tensors["cross"][:1] if damage == "forged sums" else tensors["cross"]
        header["chunks"] = "many" if damage == "forged chunks" else header["chunks"]
        save_tensors(sums, tensors, header)
    calls.clear()
    found = collect(model, task, batch_size=7, folder=tmp_path)
    assert sum(calls) == len(task)
    assert "is damaged" in caplog.text and "begins anew" in caplog.text
    assert same_bits(collect(model, task, batch_size=7), found)


@pytest.mark.parametrize("most", [1, 3])
def test_no_layer_is_kept_before_the_others(model, task, whole, tmp_path, chunks, monkeypatch, most):
    """Where a batch ran out of memory after some layers were added, nothing is kept before its halves are done."""
    plain, done = StateReader.read, []

    def limited(self, ids, mask, take):
        def stop(index, states):
            take(index, states)
            if index == 1 and len(ids) > most:
                raise torch.cuda.OutOfMemoryError("simulated")

        plain(self, ids, mask, stop)
        done.append(len(ids))
        if sum(done) > 20:
            raise Cut

    with monkeypatch.context() as patch:
        patch.setattr(StateReader, "read", limited)
        with pytest.raises(Cut):
            collect(model, task, batch_size=6, folder=tmp_path)
    found = collect(model, task, batch_size=6, folder=tmp_path)
    assert moments_close(whole, found, 1e-6) and np.allclose(whole.states, found.states, atol=1e-5)


def test_a_chunk_is_kept_each_minute_and_takes_a_twentieth_of_the_time(tmp_path, monkeypatch, model, task):
    clock, kept = [0.0], []
    monkeypatch.setattr(unfinished.time, "monotonic", lambda: clock[0])
    plain = StateReader.read

    def slow(self, ids, mask, take):
        plain(self, ids, mask, take)
        clock[0] += 25

    def save(path, *rest):
        if "unfinished" in str(path):
            kept.append(clock[0])
            clock[0] += 5
        return save_tensors(path, *rest)

    monkeypatch.setattr(StateReader, "read", slow)
    monkeypatch.setattr(unfinished, "save_tensors", save)
    collect(model, task, batch_size=4, folder=tmp_path)
    assert kept == [75, 180]  # 25 s each of ten batches: after a minute, then after 20 times 5 s


def test_a_full_disk_keeps_what_was_kept(model, task, whole, tmp_path, chunks, monkeypatch, calls):
    def full(path, *_):
        raise NtpsError(f"cannot write {path}: No space left on device.")

    read = cut_off(monkeypatch, 2, model, task, batch_size=7, folder=tmp_path)
    with monkeypatch.context() as patch, pytest.raises(NtpsError, match="No space left"):
        patch.setattr(unfinished, "save_tensors", full)
        collect(model, task, batch_size=7, folder=tmp_path)
    calls.clear()
    found = collect(model, task, batch_size=7, folder=tmp_path)
    assert sum(calls) == len(task) - read
    assert same_bits(collect(model, task, batch_size=7), found)


def test_many_texts_are_tokenized_in_blocks(model, task, monkeypatch):
    texts, sizes = [*task.texts, " ", task.texts[3]], []
    plain = type(model).tokenize
    monkeypatch.setattr(tokens, "_BLOCK", 16)
    monkeypatch.setattr(type(model), "tokenize", lambda self, t, m: sizes.append(len(t)) or plain(self, t, m))
    made, expected = Tokens.of(model, texts, 6), plain(model, texts, 6)
    assert sizes == [16, 16, 10]
    assert [row.tolist() for row in made.rows(np.arange(42))] == expected.ids
    assert made.lengths.tolist() == [len(row) for row in expected.ids] and made.n_truncated == expected.n_truncated
    rows = [tuple(row) for row in expected.ids if row]
    assert made.groups().tolist() == [rows.index(row) for row in rows]


KILLED = """
import os, signal, sys
import torch
torch.set_num_threads(1)
sys.path.insert(0, {tests!r})
from helpers.problems import word_task
from ntps import _files
from ntps.models import collect, load_model, unfinished
from ntps.models.states import StateReader
unfinished.CHUNK_SECONDS, unfinished._SHARE, unfinished._BLOCK = 0.0, 0, 1000
where, left = os.environ["WHERE"], int(os.environ["LEFT"])

def counted(plain, *arguments):
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return plain(*arguments)

if where == "batch":  # in the middle of a batch, between two layers
    plain_add = unfinished.NextTokenMoments._add_layer
    unfinished.NextTokenMoments._add_layer = lambda *a: counted(plain_add, *a)
elif where == "states":  # half of a chunk is written
    plain_blocks = unfinished._blocks
    unfinished._blocks = lambda *a: (counted(lambda rows: rows, rows) for rows in plain_blocks(*a))
elif where == "sums":  # before the sums take the place of the last ones
    plain_replace = os.replace
    os.replace = lambda *a: counted(plain_replace, *a)
model, task = load_model({model!r}, device="cpu"), word_task(60, blank=(3,))
read, plain_read = [], StateReader.read
StateReader.read = lambda self, ids, mask, take: plain_read(self, ids, mask, take) or read.append(len(ids))
made = collect(model, task, batch_size=7, folder=os.environ["FOLDER"], progress=False)
print(sum(read))
"""


@pytest.mark.long
@pytest.mark.parametrize("where", ["batch", "states", "sums"])
def test_a_killed_pass_goes_on_bit_for_bit(where, tiny_llama, tmp_path, forks):
    """Killed again and again in later places; each run reads what is left, but for a chunk at most."""
    program = KILLED.format(tests=str(Path(__file__).parents[1]), model=str(tiny_llama))

    def run(folder, left):
        return forks.run(program, {"WHERE": where, "LEFT": str(left), "FOLDER": str(tmp_path / folder)})[0]

    kills = {"batch": (14, 10, 3), "states": (6, 10, 14), "sums": (3, 2, 1)}[where]
    for left in kills:
        done = run("killed", left)
        assert (done.returncode, done.stdout) == (-9, ""), done.stderr
    last, whole = run("killed", 0), run("whole", 0)
    assert (last.returncode, whole.returncode) == (0, 0), last.stderr + whole.stderr
    assert int(whole.stdout) == 59 and 0 < int(last.stdout) <= 59 - 7 * 3
    made = [Representations.load(tmp_path / name / "representations.safetensors") for name in ("killed", "whole")]
    assert same_bits(*made)
    assert [path.name for path in (tmp_path / "killed").iterdir()] == ["representations.safetensors"]


# Options


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"prefix": "all"}, ["prefix", "'all'", "sum"]),
        ({"pooling": "first"}, ["pooling", "'first'", "mean"]),
        ({"matmul_precision": "fast"}, ["matmul_precision", "fast"]),
        ({"state_dtype": "float8"}, ["state_dtype", "float8", "float16"]),
        ({"max_length": 1}, ["max_length", "1", "2"]),
        ({"max_length": "long"}, ["max_length", "long"]),
        ({"layers": "8"}, ["layer 8"]),
        ({"batch_size": 0}, ["batch_size", "0"]),
        ({"batch_size": "many"}, ["batch_size", "many"]),
    ],
)
def test_options_out_of_range(model, task, options, words, calls):
    with pytest.raises(NtpsError) as caught:
        collect(model, task, **options)
    assert all(word in str(caught.value) for word in words), caught.value
    assert calls == []


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        ("all", (0, 1, 2, 3, 4)),
        ("0,2,-1", (0, 2, 4)),
        ("3", (3,)),
        (" 1 , 0 ", (0, 1)),
        (2, (2,)),
        (-1, (4,)),
        ([4, 0, 4, -1], (0, 4)),
        (range(1, 3), (1, 2)),
        (np.array([1, 3]), (1, 3)),
        (np.int64(2), (2,)),
    ],
)
def test_layers(layers, expected):
    assert parse_layers(layers, 5) == expected
    json.dumps(parse_layers(layers, 5))


@pytest.mark.parametrize(
    ("layers", "words"),
    [
        ("0,x", ["'0,x'", "0,6,-1"]),
        ("", ["''"]),
        ("0,9", ["layer 9", "0 to 4"]),
        (5, ["layer 5", "0 to 4"]),
        (-6, ["layer -6", "0 to 4"]),
        ([], ["layers is empty"]),
        ([1.5], ["layers", "1.5"]),
        (None, ["layers", "None"]),
    ],
)
def test_layers_that_do_not_exist(layers, words):
    with pytest.raises(NtpsError) as caught:
        parse_layers(layers, 5)
    assert all(word in str(caught.value) for word in words), caught.value


def test_layer_at_a_share_of_the_depth():
    assert [layer_at(depth, 7) for depth in (0, 0.25, 0.5, 0.7, 1)] == [0, 2, 3, 4, 6]


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(st.lists(st.integers(0, 50), max_size=40), st.integers(1, 9), st.integers(1, 120))
def test_batches_hold_every_text_with_tokens_once(lengths, batch_size, max_tokens):
    lengths = np.array(lengths, dtype=np.int64)
    batches = plan_batches(lengths, batch_size, max_tokens)
    order = [index for batch in batches for index in batch.tolist()]
    assert sorted(order) == np.flatnonzero(lengths).tolist()
    assert (np.diff(lengths[order]) <= 0).all()
    for batch in batches:
        assert 1 <= len(batch) <= batch_size
        assert len(batch) == 1 or len(batch) * lengths[batch].max() <= max_tokens


def test_batches_are_full_where_they_can_be():
    assert [len(batch) for batch in plan_batches(np.full(10, 5), 4, 1000)] == [4, 4, 2]
    assert [len(batch) for batch in plan_batches(np.full(10, 5), 4, 12)] == [2] * 5


def test_progress_bar_fits_a_terminal_and_is_silent_without_one(model, task, capfd):
    for progress in (None, False):
        collect(model, task, progress=progress)
        assert capfd.readouterr() == ("", "")
    collect(model, task, progress=True)
    out, err = capfd.readouterr()
    assert out == ""
    assert "100%" in err
    assert "tokens" in err
    assert max(len(line) for line in err.replace("\r", "\n").splitlines()) <= 80


# Processes


def test_processes_share_every_batch_once():
    shares = []
    for rank in range(3):
        processes = Processes(torch.device("cpu"))
        processes.count, processes.rank = 3, rank
        shares.append(processes.share(range(7)))
    assert sorted(index for share in shares for index in share) == list(range(7))


SCRIPT = """
import os, sys
from datetime import timedelta
from pathlib import Path
import numpy as np
import torch
torch.set_num_threads(1)
sys.path.insert(0, {tests!r})
from helpers.problems import word_task
from ntps.models import Representations, collect, load_model, processes as module
from ntps.models.processes import Processes
from ntps.models.states import StateReader
module._LONGEST_WAIT = timedelta(minutes=2)  # a process that is waited for in vain fails the test
rank, out = os.environ.get("RANK", "alone"), Path({out!r})
model = load_model({model!r}, device="cpu")
plain, read = StateReader.read, []
StateReader.read = lambda self, ids, mask, take: read.append(len(ids)) or plain(self, ids, mask, take)
task = word_task(50, blank=(3,))

def run(name, folder, **options):
    read.clear()
    collect(model, task, batch_size=4, folder=folder, **options).save(out / f"{{name}}-{{rank}}.safetensors")
    (out / f"{{name}}-{{rank}}.txt").write_text(str(sum(read)))

run("plain", None)
run("half", None, state_dtype="float16")
collect(model, ["a good film"]).save(out / f"one text-{{rank}}.safetensors")
if rank != "alone":
    run("kept", out / "folder")
    torch.distributed.barrier()
    run("again", out / "folder")
    run("torn", out / "folder" if rank == "0" else out / "not there")
    processes = Processes(torch.device("cpu"))
    values = [processes.all_agree(lambda: value) for value in
              ("both", None, "main" if rank == "0" else None, "other" if rank == "1" else None)]
    (out / f"agreed-{{rank}}.txt").write_text(repr(values))
    said = [processes.of_main(lambda: rank)]

    def failing(name, where, number):
        # In one process the second call of a method fails; note what each process is told.
        plain, calls = getattr(where, name), []
        def fail(*arguments):
            calls.append(1)
            if rank == number and len(calls) == 2:
                raise RuntimeError("no more of " + name)
            return plain(*arguments)
        setattr(where, name, fail)
        try:
            for turn in range(3):
                try:
                    collect(model, task, batch_size=4, folder=out / "failing", layers=[turn])
                except Exception as error:
                    said.append(f"{{turn}} {{type(error).__name__}}: {{error}}")
        finally:
            setattr(where, name, plain)

    for number in "01":
        failing("read", StateReader, number)
    failing("save", Representations, "0")
    (out / f"said-{{rank}}.txt").write_text("\\n".join(said))
"""


@pytest.mark.slow
def test_two_processes_equal_one(tiny_llama, tmp_path, forks):
    script = SCRIPT.format(tests=str(Path(__file__).parents[1]), model=str(tiny_llama), out=str(tmp_path))
    for processes in (torchrun(2), [{}]):  # one process has as many threads: another number rounds float32 differently
        for finished in forks.run(script, *processes):
            assert finished.returncode == 0, finished.stderr[-3000:]

    def texts_read(name):
        return [int((tmp_path / f"{name}-{rank}.txt").read_text()) for rank in (0, 1)]

    for name, count in (("plain", 49), ("half", 49), ("one text", 1)):
        alone = Representations.load(tmp_path / f"{name}-alone.safetensors")
        assert alone.n_texts == count
        for rank in (0, 1):
            found = Representations.load(tmp_path / f"{name}-{rank}.safetensors")
            assert moments_close(alone, found, 1e-10)
            assert np.allclose(alone.layer(1), found.layer(1), atol=1e-3 if name == "half" else 1e-6)
            assert found.states.dtype == alone.states.dtype
            assert found.metadata["key"] == alone.metadata["key"]
    for name in ("plain", "kept", "torn"):  # where one process cannot read the folder, all of them run
        assert sum(texts_read(name)) == 49
        assert min(texts_read(name)) >= 15
    assert texts_read("again") == [0, 0]
    for rank in (0, 1):
        assert (tmp_path / f"agreed-{rank}.txt").read_text() == "['both', None, None, None]"
        # What fails in one process fails in the other, which then goes on to the next pass.
        assert (tmp_path / f"said-{rank}.txt").read_text().splitlines() == ["0"] + [
            f"{turn} RuntimeError: no more of {name}" if rank == number
            else f"{turn} NtpsError: RuntimeError: no more of {name}"
            for name, number, turn in (("read", 0, 0), ("read", 1, 0), ("save", 0, 1))
        ]  # fmt: skip


@pytest.mark.parametrize("name", ["batch_size", "max_length"])
def test_numbers_are_whole(tiny_llama, name):
    with pytest.raises(NtpsError, match=f"{name} is 2.5"):
        collect(load_model(str(tiny_llama)), ["a good film"], **{name: 2.5})


@pytest.mark.long
def test_two_runs_into_one_folder(tmp_path, tiny_llama, task, forks):
    """Each has its own result, and what is kept is that of one of them, whole."""
    program = f"""
import os, sys
sys.path[:0] = [{str(Path(__file__).parents[1])!r}, {str(Path(__file__).parents[2])!r}]
from helpers.problems import word_task
from ntps.models import Representations, collect, load_model
model, task = load_model({str(tiny_llama)!r}, device="cpu"), word_task()
for turn in range(8):
    made = collect(model, task, prefix=os.environ["PREFIX"], folder={str(tmp_path)!r}, progress=False)
    assert made.metadata["settings"]["prefix"] == os.environ["PREFIX"]
    assert Representations.load({str(tmp_path / "representations.safetensors")!r}).states.shape[1] == len(task)
"""
    for done in forks.run(program, {"PREFIX": "sum"}, {"PREFIX": "mean"}):
        assert done.returncode == 0, done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["representations.safetensors"]
    made = Representations.load(tmp_path / "representations.safetensors")
    fresh = collect(load_model(tiny_llama, device="cpu"), task, prefix=made.metadata["settings"]["prefix"])
    np.testing.assert_array_equal(made.next_token.cross, fresh.next_token.cross)


@pytest.mark.parametrize(("words", "unknown", "said"), [("good film", 0, False), ("good zyx film", 10, True)])
def test_words_that_the_tokenizer_does_not_know(tiny_llama, caplog, words, unknown, said):
    model = load_model(str(tiny_llama))
    found = collect(model, [words] * 10, progress=False)
    assert found.metadata["n_unknown"] == unknown
    assert (f"{unknown} of {found.n_tokens} tokens stand for words that" in caplog.text) == said


def test_an_unknown_token_that_has_another_meaning_is_not_counted(tiny_llama):
    model = load_model(str(tiny_llama))
    model.tokenizer.unk_token = model.tokenizer.bos_token
    assert collect(model, ["good zyx film"], progress=False).metadata["n_unknown"] == 0
