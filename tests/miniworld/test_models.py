"""The bundled models: they load as any other, they are as good as their cards say, and the recipe repeats itself."""

import json
import re
import shutil

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from ntps.errors import NtpsError
from ntps.miniworld import checkpoints as shelf
from ntps.miniworld import (
    describe_model,
    log_likelihood,
    make_task,
    model_names,
    model_path,
    sample_documents,
)
from ntps.miniworld import train as recipe
from ntps.miniworld import words as lexicon

pytestmark = pytest.mark.slow

FINISHED = ("miniworld-small", "miniworld-base", "miniworld-large")


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def load(name, head=False):
    from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

    path = model_path(name)
    model = (AutoModelForCausalLM if head else AutoModel).from_pretrained(path, dtype=torch.float32)
    return model.eval(), AutoTokenizer.from_pretrained(path)


# What is there --------------------------------------------------------------------------------------------------------


def test_names_and_size():
    names = model_names()
    assert names[:2] == ("miniworld-small", "miniworld-base")
    assert set(FINISHED) <= set(names)
    ladder = [name for name in names if "@" in name]
    assert ladder[0] == "miniworld-base@step0"
    assert len(ladder) >= 5
    size = sum(path.stat().st_size for path in shelf.FOLDER.rglob("*") if path.is_file())
    assert size <= 12e6
    assert {path.name for path in shelf.FOLDER.iterdir() if path.is_dir()} == set(names)


@pytest.mark.parametrize("name", model_names())
def test_loads_as_any_checkpoint(name):
    from transformers import AutoModel

    path = model_path(name)
    assert AutoModel.from_pretrained(path).dtype == torch.float16
    model, tokenizer = load(name)
    assert (tokenizer.pad_token_id, tokenizer.unk_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id) == (
        0,
        1,
        2,
        3,
    )
    assert tokenizer.padding_side == "right"
    sample = sample_documents(200, seed=17)
    ids = tokenizer(list(sample.texts))["input_ids"]
    assert all(tokenizer.unk_token_id not in row and row[0] == tokenizer.bos_token_id for row in ids)
    # Begin instead of end of text, one for the other: the language counts what the tokenizer makes.
    np.testing.assert_array_equal([len(row) for row in ids], sample.n_tokens)
    assert tokenizer.decode(ids[0], skip_special_tokens=True) == sample.texts[0].lower()
    assert len(tokenizer) == model.config.vocab_size == 4 + len(lexicon.all_words())
    assert tokenizer("the zebra.")["input_ids"][2] == tokenizer.unk_token_id
    info = describe_model(name)
    states = model(**tokenizer(["We stir the soup."], return_tensors="pt"), output_hidden_states=True).hidden_states
    assert len(states) == info["recipe"]["blocks"] + 1
    assert states[-1].shape == (1, 6, info["recipe"]["width"])
    assert torch.isfinite(states[-1]).all()


@pytest.mark.long
@pytest.mark.parametrize("name", model_names())
def test_loss_is_as_the_card_says(name):
    info = describe_model(name)
    model, tokenizer = load(name, head=True)
    sample = sample_documents(300, split="validation")  # the first of those that the card speaks of
    loss = recipe.evaluate(model, tokenizer, sample)
    entropy = -log_likelihood(sample).sum() / sample.n_tokens.sum()
    assert loss > entropy
    assert loss - entropy == pytest.approx(info["loss"] - info["entropy_rate"], rel=0.05, abs=0.01)
    card = (model_path(name) / "README.md").read_text()
    assert f"{info['loss']:.4f} nats per token" in card
    assert f"{info['entropy_rate']:.4f} nats per token" in card
    assert f"{info['n_parameters']:,} parameters" in card
    assert sum(p.numel() for p in model.parameters()) == info["n_parameters"]


def test_the_finished_models_are_near_the_entropy_rate():
    excess = {name: describe_model(name)["loss"] / describe_model(name)["entropy_rate"] - 1 for name in FINISHED}
    assert excess["miniworld-base"] < 0.10
    assert excess["miniworld-large"] < excess["miniworld-base"] < excess["miniworld-small"]


def test_the_ladder_descends():
    ladder = [name for name in model_names() if name.startswith("miniworld-base@")]
    losses = [describe_model(name)["loss"] for name in (*ladder, "miniworld-base")]
    assert losses == sorted(losses, reverse=True)
    assert losses[0] > 0.9 * np.log(4 + len(lexicon.all_words()))  # random weights know nothing


@pytest.mark.long
@pytest.mark.parametrize("name", FINISHED)
def test_noise_is_at_chance(name):
    model, tokenizer = load(name)
    n = 250
    pooled = []
    train, test = make_task("noise", n=n), make_task("noise", n=n, split="test")
    with torch.inference_mode():
        texts = train["texts"] + test["texts"]
        for start in range(0, 2 * n, 50):
            batch = tokenizer(texts[start : start + 50], padding=True, return_tensors="pt")
            states = torch.stack(model(**batch, output_hidden_states=True).hidden_states)
            mask = batch["attention_mask"][None, :, :, None]
            pooled.append(((states * mask).sum(2) / mask.sum(2)).numpy())
    features = np.concatenate(pooled, axis=1)
    for layer in (0, -1):
        x = features[layer] / features[layer, :n].std()
        probe = LogisticRegression(C=0.1, max_iter=200).fit(x[:n], train["labels"])
        assert abs(probe.score(x[n:], test["labels"]) - 0.5) < 4 * 0.5 / np.sqrt(n), layer


# Damage ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def copy(tmp_path, monkeypatch):
    shutil.copytree(shelf.FOLDER, tmp_path / "models")
    monkeypatch.setattr(shelf, "FOLDER", tmp_path / "models")
    return tmp_path / "models"


@pytest.mark.parametrize("file", ["model.safetensors", "tokenizer.json", "config.json"])
def test_a_damaged_file_is_named(copy, file):
    path = copy / "miniworld-small" / file
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(NtpsError, match=re.escape(f"{path} is missing or damaged")) as caught:
        model_path("miniworld-small")
    assert "git checkout" in str(caught.value)
    assert "python -m ntps.miniworld.train --size small" in str(caught.value)
    path.unlink()
    with pytest.raises(NtpsError, match=re.escape(str(path))):
        describe_model("miniworld-small")
    assert model_path("miniworld-base") == copy / "miniworld-base"


def test_an_unknown_model_lists_the_names():
    with pytest.raises(NtpsError, match=r"'miniworld-huge'; choose one of: miniworld-small, miniworld-base, .*@step0"):
        model_path("miniworld-huge")


# The recipe -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(recipe, "VALIDATION", 50)
    monkeypatch.setattr(recipe, "LOG_EVERY", 3)


def run(folder, **options):
    options = {"steps": 10, "progress": False, "seed": 5, **options}
    facts = recipe.train("small", folder, **options)
    return facts["losses"], facts["loss"], (folder / "miniworld-small" / "model.safetensors").read_bytes()


@pytest.mark.long
def test_same_seed_same_curve(tmp_path, quick):
    first, second, other = run(tmp_path / "a"), run(tmp_path / "b"), run(tmp_path / "c", seed=6)
    assert first == second
    assert first[0] != other[0]
    assert [step for step, _ in first[0]] == [3, 6, 9, 10]


@pytest.mark.long
def test_resume_is_as_if_nothing_had_happened(tmp_path, quick, monkeypatch):
    whole = run(tmp_path / "whole")
    monkeypatch.setattr(recipe, "STATE_EVERY", 4)
    for step in recipe.Pretraining("small", tmp_path / "cut", steps=10, seed=5).run():
        if step == 6:
            break
    state = tmp_path / "cut" / ".miniworld-small.state.safetensors"
    assert state.is_file()
    with pytest.raises(NtpsError, match="another run"):
        run(tmp_path / "cut", seed=6, resume=True)
    damaged = tmp_path / "damaged" / state.name
    damaged.parent.mkdir()
    damaged.write_bytes(state.read_bytes()[:1000])
    with pytest.raises(NtpsError, match="is damaged"):
        run(tmp_path / "damaged", resume=True)
    assert next(recipe.Pretraining("small", tmp_path / "cut", steps=10, seed=5, resume=True).run()) == 5
    assert run(tmp_path / "cut", resume=True) == whole
    assert not state.exists()


def test_another_world_can_be_trained_on(tmp_path, quick, monkeypatch, capsys):
    monkeypatch.setattr(torch, "set_num_threads", lambda n: None)
    options = "--size small --steps 3 --quiet --threads 1 --device cpu --knob topic=0.2 --knob vocabulary=3 --output"
    assert recipe.main([*options.split(), str(tmp_path)]) == 0
    assert "entropy rate" in capsys.readouterr().out
    record = json.loads((tmp_path / "miniworld-small" / "training.json").read_text())
    assert record["knobs"] == {"topic": 0.2, "vocabulary": 3}
    assert "knobs topic = 0.2, vocabulary = 3" in (tmp_path / "miniworld-small" / "README.md").read_text()
    sums = json.loads((tmp_path / "checksums.json").read_text())
    assert sums == shelf.compute_checksums(tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--knob", "topic=2"], "knob topic is 2.0; it must be between 0 and 1"),
        (["--knob", "topic"], "--knob topic: it must be NAME=NUMBER"),
        (["--knob", "colour=1"], "knob is 'colour'"),
        (["--steps", "0"], "steps is 0"),
    ],
)
def test_bad_options_end_with_status_two(tmp_path, options, message, capsys):
    assert recipe.main(["--size", "small", "--quiet", "--output", str(tmp_path), *options]) == 2
    assert message in capsys.readouterr().err
