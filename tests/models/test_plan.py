"""The memory that a pass takes on its device is what the plan says, by an account of every tensor."""

import weakref

import pytest
import torch
from helpers.models import WORDS, word_tokenizer
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ntps.core import moments
from ntps.models import collect, load_model
from ntps.models.plan import device_memory


class Account(TorchDispatchMode):
    """Counts the bytes of the tensors that are made while it is on, and of those of them that live at the same time."""

    def __init__(self):
        super().__init__()
        self.live, self.foreign, self.now, self.peak = {}, set(), 0, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.foreign |= {key for key, _ in self.storages((args, kwargs)) if key not in self.live}
        result = function(*args, **(kwargs or {}))
        for key, storage in self.storages(result):
            if key not in self.live and key not in self.foreign:
                self.live[key] = storage.nbytes()
                self.now += storage.nbytes()
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self.gone, key)
        return result

    @staticmethod
    def storages(tree):
        tensors = [leaf.untyped_storage() for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]
        return [(storage._cdata, storage) for storage in tensors]

    def gone(self, key):
        self.now -= self.live.pop(key)


@pytest.mark.parametrize(
    ("width", "inner", "blocks", "n_texts", "n_words", "dtype"),
    [
        (128, 512, 2, 16, 64, torch.bfloat16),
        (256, 256, 3, 16, 32, torch.bfloat16),
        (64, 1024, 2, 32, 64, torch.float32),
        (192, 384, 6, 16, 60, torch.float32),
        (320, 640, 2, 4, 100, torch.bfloat16),
        (96, 256, 12, 32, 50, torch.float32),
    ],
)
def test_memory_is_what_the_plan_says(monkeypatch, width, inner, blocks, n_texts, n_words, dtype):
    from transformers import LlamaConfig, LlamaModel

    config = LlamaConfig(
        vocab_size=96, hidden_size=width, intermediate_size=inner, num_hidden_layers=blocks, num_attention_heads=4,
        max_position_embeddings=128,
    )  # fmt: skip
    model = load_model(LlamaModel(config).to(dtype).eval(), tokenizer=word_tokenizer())
    texts = [" ".join(WORDS[(7 * row + place) % len(WORDS)] for place in range(n_words)) for row in range(2 * n_texts)]
    monkeypatch.setattr(moments, "_gram", lambda rows: moments._product(rows, rows))  # as on a GPU
    with Account() as account:
        collect(model, texts, batch_size=n_texts, progress=False)
    plan = device_memory(
        weights=0, widths=model.widths, n_tokens=n_texts * n_words, n_texts=n_texts, itemsize=dtype.itemsize,
        inner=inner,
    )  # fmt: skip
    assert account.peak == pytest.approx(sum(plan.values()), rel=0.15), (account.peak, plan)
    assert account.now < account.peak
