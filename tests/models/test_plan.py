"""A pass takes what its plan says, by an account of every tensor and by resident memory; too large is refused."""

import dataclasses
import json
import logging
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.memory import Account
from helpers.models import WORDS, word_tokenizer

from ntps.errors import NtpsError
from ntps.models import collect, load_model, passes, plan, plan_pass
from ntps.models.plan import device_memory
from ntps.models.states import StateReader

TEXTS = [" ".join(WORDS[:length]) for length in (30, 4, 50, 12, 6, 3)] * 4


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
def test_memory_is_what_the_plan_says(width, inner, blocks, n_texts, n_words, dtype):
    from transformers import LlamaConfig, LlamaModel

    config = LlamaConfig(
        vocab_size=96, hidden_size=width, intermediate_size=inner, num_hidden_layers=blocks, num_attention_heads=4,
        max_position_embeddings=128,
    )  # fmt: skip
    model = load_model(LlamaModel(config).to(dtype).eval(), tokenizer=word_tokenizer())
    texts = [" ".join(WORDS[(7 * row + place) % len(WORDS)] for place in range(n_words)) for row in range(2 * n_texts)]
    with Account() as account:
        collect(model, texts, batch_size=n_texts, progress=False)
    plan = device_memory(
        weights=0, widths=model.widths, n_tokens=n_texts * n_words, n_texts=n_texts, itemsize=dtype.itemsize,
        inner=inner,
    )  # fmt: skip
    assert account.peak == pytest.approx(sum(plan.values()), rel=0.15), (account.peak, plan)
    assert account.now < account.peak


@pytest.fixture
def free(monkeypatch):
    """Set the bytes that are free in memory and on a stand-in of a GPU."""

    def leave(memory, gpu=None):
        monkeypatch.setattr(plan, "free_memory", lambda device=None: memory if device is None else gpu)

    return leave


@pytest.mark.parametrize("kind", ["tiny_llama", "tiny_gpt2"])
def test_a_plan_needs_no_weights_and_runs_no_model(kind, request, monkeypatch):
    path = str(request.getfixturevalue(kind))
    options = {"layers": "0,2", "max_length": 20, "batch_size": 5, "state_dtype": "float16"}
    with_weights = plan_pass(load_model(path), TEXTS, **options)
    monkeypatch.setattr("ntps.models.load.read_network", lambda *_, **__: pytest.fail("weights are read"))
    monkeypatch.setattr(torch.nn.Module, "__call__", lambda *_, **__: pytest.fail("a module runs"))
    found = plan_pass(path, TEXTS, device="cpu", **options)
    assert found.to_dict() == with_weights.to_dict()
    assert json.loads(json.dumps(found.to_dict())) == found.to_dict()
    extra = kind == "tiny_llama"  # the "<s>" before each text
    lengths = [min(length + extra, 20) for length in (30, 4, 50, 12, 6, 3)] * 4
    assert (found.n_texts, found.n_tokens, found.n_truncated) == (24, sum(lengths), 8)
    assert (found.layers, found.batch_size, found.batch_tokens) == ((0, 2), 5, 100)


def test_a_plan_is_that_of_the_pass(tiny_llama):
    model = load_model(tiny_llama)
    found, done = plan_pass(model, ["", *TEXTS], layers="1,3"), collect(model, ["", *TEXTS], layers="1,3")
    assert (found.n_texts, found.n_tokens, found.layers) == (done.n_texts, done.n_tokens, done.layers)
    assert found.device_bytes["sums"] == done.next_token.past_gram.nbytes + done.next_token.cross.nbytes
    assert found.host_bytes["states"] == done.states.nbytes
    assert found.device_bytes["weights"] == sum(
        tensor.nbytes for tensor in [*model.model.parameters(), *model.model.buffers()]
    )


def test_many_states_are_on_disk(tiny_llama, monkeypatch):
    before = plan_pass(str(tiny_llama), TEXTS)
    monkeypatch.setattr(plan.representations, "IN_MEMORY", before.host_bytes["states"] - 1)
    after = plan_pass(str(tiny_llama), TEXTS)
    assert (after.disk_bytes, after.host_bytes["states"]) == (before.host_bytes["states"], 0)


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"max_length": 2}, {"layers": 0}])
def test_a_plan_is_at_most_12_lines_of_80_columns(tiny_llama, options):
    lines = str(plan_pass(str(tiny_llama), TEXTS * 1000, **options)).split("\n")
    assert len(lines) <= 12
    assert max(map(len, lines[1:])) <= 80


@pytest.mark.slow
def test_what_is_too_large_is_refused_with_the_smallest_change_that_fits(tiny_llama, free, monkeypatch):
    path = str(tiny_llama)
    whole = plan_pass(path, TEXTS, device="cpu").needs["memory"]
    least = plan_pass(path, TEXTS, device="cpu", batch_size=1, layers=0).needs["memory"]
    seen = set()
    for memory in np.linspace(whole - 1, least, 40).astype(int):
        free(int(memory))
        with pytest.raises(NtpsError, match=r"takes .* MB in memory, and .* MB are free; it would fit with") as refused:
            plan_pass(path, TEXTS, device="cpu")
        words = str(refused.value).partition(" fit with ")[2].rstrip(".")
        options = dict(re.findall(r"(\w+)=([\w,]+)", words))
        seen |= options.keys()
        options |= {"batch_size": int(options.get("batch_size", 32))}
        assert plan_pass(path, TEXTS, device="cpu", **options).needs["memory"] <= memory
        if words.startswith("batch_size=") and options["batch_size"] > 1:  # twice that does not fit
            monkeypatch.setattr(plan, "_changes", lambda *_: iter(()))
            with pytest.raises(NtpsError, match="smaller model"):
                plan_pass(path, TEXTS, device="cpu", batch_size=2 * options["batch_size"])
            monkeypatch.undo()
            free(int(memory))
    assert {"batch_size", "layers"} <= seen


def test_bfloat16_is_named_where_weights_are_too_large(tiny_llama, free):
    found = plan_pass(str(tiny_llama), TEXTS, device="cpu")
    free(found.needs["memory"] - found.device_bytes["weights"] // 3)
    options = {"layers": 0, "batch_size": 1}
    free(plan_pass(str(tiny_llama), ["the film"], device="cpu", dtype="bfloat16", **options).needs["memory"])
    with pytest.raises(NtpsError, match=r"fit with dtype=bfloat16\."):
        plan_pass(str(tiny_llama), ["the film"], device="cpu", **options)


def test_nothing_helps_without_memory(tiny_llama, free):
    free(1000)
    with pytest.raises(NtpsError, match="smaller model"):
        plan_pass(str(tiny_llama), TEXTS, device="cpu")


def test_a_pass_that_does_not_fit_is_refused_before_the_model_runs(tiny_llama, free, monkeypatch):
    model = load_model(tiny_llama, device="cpu")
    monkeypatch.setattr(StateReader, "__init__", lambda *_: pytest.fail("the model runs"))
    free(plan_pass(model, TEXTS).beside_model - 1)
    with pytest.raises(NtpsError, match="it would fit with batch_size="):
        collect(model, TEXTS)


def test_on_a_gpu_sums_move_and_batches_shrink_before_anything_is_refused(tiny_llama, free):
    outline = dataclasses.replace(load_model(tiny_llama, device="cpu"), device=torch.device("cuda:0"))
    outline.model.to("meta")
    free(10**9, 10**9)
    roomy = plan_pass(outline, TEXTS)
    whole, sums = roomy.needs["cuda:0"], roomy.device_bytes["sums"]
    assert (roomy.sums_on, roomy.batch_size) == ("cuda:0", 24)
    free(10**9, whole - 1)
    moved = plan_pass(outline, TEXTS)
    assert (moved.sums_on, moved.batch_size, moved.needs["cuda:0"]) == ("cpu", 24, whole - sums)
    assert moved.needs["memory"] == roomy.needs["memory"] + sums
    free(roomy.needs["memory"], whole - 1)  # nor is there memory for the sums
    half = plan_pass(outline, TEXTS)
    assert (half.sums_on, half.batch_size) == ("cuda:0", 12)
    free(10**9, roomy.device_bytes["weights"])
    with pytest.raises(NtpsError, match=r"on cuda:0, and .* fit with dtype=bfloat16\."):
        plan_pass(outline, TEXTS)


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        ([1.0, 0.5], None),
        ([0.5, 1.0], "2 minutes"),
        ([0.5, 0.6], "1 minute"),
        ([9.0, 0.1], "18 minutes"),
        ([0.2], None),
        ([0.1, 0.1, 99], None),
    ],
)
def test_a_long_pass_says_how_long(tiny_llama, monkeypatch, caplog, seconds, said):
    clock = [0.0]
    monkeypatch.setattr(passes.time, "monotonic", lambda: clock[0])
    foresight = passes._Foresight(plan_pass(str(tiny_llama), TEXTS), 12_000)
    with caplog.at_level(logging.INFO, "ntps"):
        for took in seconds:
            clock[0] += took
            foresight.add(100)
    expected = [] if said is None else [f"about {said}: 24 texts, 444 tokens, 4 layers; 1.2 MB beside the model."]
    assert [record.getMessage() for record in caplog.records] == expected


MEASURE = """
import gc, json, os
import numpy as np, torch
from transformers import LlamaConfig, LlamaModel
from helpers.models import WORDS, word_tokenizer
from ntps.models import collect, load_model, plan_pass

def memory(name):
    return next(1024 * int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(name))

width, inner, blocks, n, words, dtype, batch_size, state_dtype = json.loads(os.environ["SHAPE"])
config = LlamaConfig(
    vocab_size=96, hidden_size=width, intermediate_size=inner, num_hidden_layers=blocks, num_attention_heads=4,
    max_position_embeddings=512,
)
model = load_model(LlamaModel(config).to(getattr(torch, dtype)).eval(), tokenizer=word_tokenizer())
rng = np.random.default_rng(0)
texts = [" ".join(rng.choice(WORDS, size=size)) for size in rng.integers(words // 2, words + 1, n)]
options = {"batch_size": batch_size, "state_dtype": state_dtype}
collect(model, texts[:2], progress=False)  # loads what the first pass loads
gc.collect()
before = memory("VmRSS")
with open("/proc/self/clear_refs", "w") as file:
    file.write("5")  # the peak begins anew
collect(model, texts, progress=False, **options)
print(json.dumps([memory("VmHWM") - before, plan_pass(model, texts, **options).beside_model]))
"""


@pytest.mark.long
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="no peak of resident memory to be reset")
@pytest.mark.parametrize(
    "shape",
    [
        (512, 2048, 2, 32, 96, "float32", 32, "float32"),
        (512, 1024, 4, 40, 96, "float32", 32, "float32"),
        (1024, 2048, 2, 32, 40, "bfloat16", 32, "float32"),
        (256, 512, 2, 64, 256, "float32", 64, "float32"),
        (128, 256, 3, 40000, 2, "float32", 256, "float32"),
        (128, 256, 6, 10000, 8, "float32", 128, "float16"),
    ],
)
def test_resident_memory_is_what_the_plan_says(forks, shape):
    path, ratios = str(Path(__file__).parents[1]), []
    for _ in range(3):  # now and then an arena of the allocator is one block larger
        done = forks.run(f"import sys; sys.path.insert(0, {path!r})\n{MEASURE}", {"SHAPE": json.dumps(shape)})[0]
        assert done.returncode == 0, done.stderr
        measured, planned = json.loads(done.stdout)
        ratios.append(planned / measured)
        if ratios[-1] == pytest.approx(1, rel=0.15):
            return
    pytest.fail(f"planned over measured: {ratios}")
