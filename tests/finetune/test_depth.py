"""Adapters from where labels get lost: the layer profile decides, on the training texts alone."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.finetune import FAST
from helpers.problems import WORDS

from ntps.errors import NtpsError
from ntps.finetune.before_after import before_and_after
from ntps.finetune.depth import last_of_the_best, start_of_loss
from ntps.finetune.loop import Trainer
from ntps.finetune.settings import TrainSettings
from ntps.scoring.readouts import Readout
from ntps.tasks.load import load_task


def readouts(*levels, n=400, spread=0.1):
    """One readout per layer whose errors lie around a level, with texts' own difficulty in all of them."""
    rng = np.random.default_rng(0)
    own = rng.normal(size=n)
    return [
        Readout(
            name=f"layer {layer}",
            errors=level + 0.2 * own + spread * rng.normal(size=n),
            baseline=np.full(n, 1.0),
            groups=np.arange(n),
        )
        for layer, level in enumerate(levels)
    ]


@pytest.mark.parametrize(
    ("levels", "kept"),
    [
        ((0.9, 0.5, 0.3, 0.6), 2),
        ((0.9, 0.3, 0.3, 0.6), 2),  # layers 1 and 2 read as well
        ((0.2, 0.3, 0.6, 0.9), 0),  # from the first block on
        ((0.9, 0.6, 0.3, 0.3), 3),  # nothing is lost
        ((1.0, 1.0, 1.0, 1.0), 3),  # nothing is there to lose
    ],
)
def test_the_last_of_the_best_layers(levels, kept):
    assert last_of_the_best(readouts(*levels)) == kept


def test_few_texts_show_no_loss():
    levels = (0.9, 0.9, 0.85, 0.9)
    assert last_of_the_best(readouts(*levels, n=4000)) == 2
    assert last_of_the_best(readouts(*levels, n=12)) == 3


@pytest.fixture(scope="module")
def task():
    """Which of two words a text has: the first states read it."""
    rng = np.random.default_rng(0)
    rows = [" ".join(rng.permutation([("good", "bad")[i % 2], *rng.choice(WORDS[20:], 5)])) for i in range(120)]
    return load_task(texts=rows, labels=[("good", "bad")[i % 2] for i in range(120)], name="word")


@pytest.fixture(scope="module")
def drowning(llama):
    """A copy of the model whose first two blocks add nothing, and whose last one drowns a direction's neighbours."""
    modules = dict((network := copy.deepcopy(llama.model)).named_modules())
    with torch.no_grad():
        for block in (0, 1):
            modules[f"layers.{block}.self_attn.o_proj"].weight.zero_()
            modules[f"layers.{block}.mlp.down_proj"].weight.zero_()
        modules["layers.2.mlp.down_proj"].weight[1:] = 0
        modules["layers.2.mlp.down_proj"].weight.mul_(1e5)
    return replace(llama, model=network)


def test_labels_that_the_last_block_drowns(drowning, llama, task, caplog):
    caplog.set_level("INFO", "ntps")
    assert start_of_loss(drowning, task, max_length=None, seed=0) == 2
    assert "labels get lost after layer 2 of 3; adapters go to blocks from 2 on." in caplog.text
    assert start_of_loss(llama, task, max_length=None, seed=0) == 0  # its embeddings read them best
    assert "labels get lost after layer 0 of 3; adapters go to all blocks." in caplog.text
    noise = load_task(texts=task.texts, labels=np.random.default_rng(1).permutation(task.labels), name="noise")
    assert start_of_loss(drowning, noise, max_length=None, seed=0) == 0
    assert "no layer reads the labels better than layer 3; adapters go to all blocks." in caplog.text


def test_no_folds_no_profile(drowning):
    task = load_task(texts=["good film", "bad film"], labels=["a", "b"], name="two")
    assert start_of_loss(drowning, task, max_length=None, seed=0) == 0


@pytest.mark.slow
def test_a_run_with_auto_is_the_run_with_that_block(drowning, task, tmp_path):
    results = [
        before_and_after(
            drowning, task, settings=replace(FAST, start_layer=start), folds=3, analyses=(), progress=False,
            output=tmp_path / str(start),
        )
        for start in ("auto", 2)
    ]  # fmt: skip
    auto, two = (result.to_dict() for result in results)
    assert auto == two and auto["settings"]["start_layer"] == 2
    assert set(auto["provenance"]["adapted"]["modules"].values()) == {1}
    assert "The blocks before block 2 have no adapters." in results[0].sentence()
    again = before_and_after(
        drowning, task, settings=replace(FAST, start_layer="auto"), folds=3, analyses=(), progress=False,
        output=tmp_path / "auto", resume=True,
    )  # fmt: skip
    assert again.to_dict() == auto


def test_only_training_texts_decide(drowning, task, monkeypatch):
    train, validation = task.split(0.25)
    asked = []
    monkeypatch.setattr("ntps.finetune.loop.start_of_loss", lambda model, texts, **_: asked.append(texts) or 1)
    trainer = Trainer(drowning, train, validation, replace(FAST, start_layer="auto"))
    assert trainer.settings.start_layer == 1 and asked == [train]
    assert {name.split(".layers.")[1][0] for name in trainer.parameters if ".layers." in name} == {"1", "2"}
    Trainer(drowning, train, validation, replace(FAST, method="probe", start_layer="auto"))
    assert len(asked) == 1  # without adapters there is nothing to choose


def test_what_is_neither_a_number_nor_auto():
    with pytest.raises(NtpsError, match="start_layer is 'late'; it must be auto or a whole number of at least 0"):
        TrainSettings(start_layer="late")
