"""On a GPU training learns what it learns on a CPU, and goes on in smaller batches where memory runs out."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.finetune import FAST
from helpers.gpu import hungry_model, little_memory, long_texts

from ntps.finetune.loop import Trainer
from ntps.finetune.train import fine_tune
from ntps.models import load_model
from ntps.tasks import load_task

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_few_steps_lower_the_loss(tiny_llama, parts, method, dtype):
    settings = replace(FAST, method=method, steps=40, evaluate_every=10, dropout=0.0, head="random", keep="last")
    runs = [
        fine_tune(load_model(tiny_llama, device=device, dtype=dtype), *parts, settings=settings, progress=False)
        for device in ("cpu", "cuda")
    ]
    losses = np.array([[row["validation_loss"] for row in tuned.curve] for tuned in runs])
    assert losses[1, -1] < losses[1, 0]
    np.testing.assert_allclose(losses[1, 0], losses[0, 0], rtol=0.02)
    assert next(runs[1].network.parameters()).is_cuda
    assert runs[1].predict(parts[1].texts[:5]).shape == (5,)


def test_a_batch_that_runs_out_of_memory_is_halved():
    texts = long_texts(48)
    train, validation = load_task(texts=texts, labels=np.arange(48) % 2, name="long").split(1 / 3)
    settings = replace(FAST, steps=3, batch_size=32, dropout=0.0, head="random")
    model = hungry_model("cuda")

    def run():
        with torch.random.fork_rng(devices=[0]):
            trainer = Trainer(model, train, validation, settings)
            assert list(trainer.run()) == [1, 2, 3]
        return trainer.progress

    whole = run()
    assert whole.micro_batch == 32
    torch.cuda.empty_cache()
    with little_memory(400 * 2**20):  # a whole batch takes more than 1 GiB
        halved = run()
    assert halved.micro_batch < 32
    for one, other in zip(whole.curve, halved.curve, strict=True):
        assert other.validation_loss == pytest.approx(one.validation_loss, rel=0.02)
