"""On a GPU a pass gives what it gives on a CPU, and goes on in smaller batches where memory runs out."""

import numpy as np
import pytest
import torch
from helpers.gpu import hungry_model, little_memory, long_texts
from helpers.models import tiny_config
from helpers.problems import word_task

from ntps.core import NextTokenMoments
from ntps.models import collect, load_model
from ntps.models.states import StateReader, hidden_states
from ntps.scoring import score
from ntps.tasks import load_task

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


def close(one, other, tolerance):
    """Whether two passes agree in what they count, in sums (of each layer's largest) and in pooled states."""
    assert torch.equal(one.next_token.counts, other.next_token.counts)
    for name in ("past_gram", "cross"):
        a, b = (getattr(found.next_token, name).cpu() for found in (one, other))
        error = ((a - b).abs().amax((1, 2)) / a.abs().amax((1, 2))).max()
        assert float(error) <= tolerance, name
    np.testing.assert_allclose(other.states, one.states, atol=tolerance * np.abs(one.states).max())


@pytest.mark.parametrize("pooling", ["mean", "last"])
@pytest.mark.parametrize("prefix", ["sum", "mean", "last"])
def test_a_pass_is_that_of_a_cpu(tiny_llama, prefix, pooling):
    task = word_task(50, blank=(3,))
    options = {"prefix": prefix, "pooling": pooling, "batch_size": 7, "progress": False}
    expected = collect(load_model(tiny_llama, device="cpu"), task, **options)
    found = collect(load_model(tiny_llama, device="cuda"), task, matmul_precision="highest", **options)
    assert found.next_token.past_gram.is_cuda
    close(expected, found, 1e-4)


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "float16"])
def test_sums_are_those_of_float64_products_of_the_same_states(tiny_llama, dtype):
    model, task = load_model(tiny_llama, device="cuda", dtype=dtype), word_task(50)
    found = collect(model, task, matmul_precision="highest", batch_size=50, progress=False)
    ids, mask = model.pad(model.tokenize(task.texts).ids)
    exact = NextTokenMoments(layers=range(4), width=24, dtype=torch.float64)
    exact.update([state.cpu() for state in model.hidden_states(ids, mask)], mask.cpu())
    for layer in range(4):
        one, other = exact.layer(layer), found.next_token.layer(layer)
        # A batch of another order may choose other kernels for the network itself, which round otherwise.
        limit = {"float64": 1e-12, "float32": 1e-5, "bfloat16": 2e-2, "float16": 2e-3}[dtype]
        for name in ("C0", "C1"):
            a, b = getattr(one, name), getattr(other, name)
            assert float((a - b).abs().max()) <= limit * float(a.abs().max()), (layer, name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_states_read_layer_by_layer_are_those_of_the_network_bit_for_bit(kind, dtype):
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    network = AutoModelForCausalLM.from_config(tiny_config(kind)).to("cuda", dtype).eval()
    ids = torch.arange(60, device="cuda").reshape(3, 20) % 96
    mask = torch.ones_like(ids)
    mask[1, 7:] = 0
    with torch.inference_mode():
        wanted = hidden_states(network, ids, mask)
    reader, found = StateReader(network, range(len(wanted)), 96, "cuda"), []
    assert reader.places is not None
    reader.read(ids, mask, lambda _index, state: found.append(state.clone()))
    assert len(found) == len(wanted)
    assert all(map(torch.equal, found, wanted))


@pytest.mark.parametrize(("precision", "ntps", "explained"), [("highest", 5e-3, 1e-3), ("auto", 1e-2, 3e-3)])
def test_scores_of_a_bundled_model_are_those_of_a_cpu(precision, ntps, explained):
    """NTPS, and the held-out share of the labels' variance that V explains, at every layer."""
    task = load_task("miniworld/topic", n=400)
    expected = score(collect(load_model("miniworld-base", device="cpu"), task, progress=False), probes=False)
    model = load_model("miniworld-base", device="cuda")
    found = score(collect(model, task, matmul_precision=precision, progress=False), probes=False)
    differences = {
        name: max(abs(getattr(a, name) - getattr(b, name)) for a, b in zip(expected.layers, found.layers, strict=True))
        for name in ("ntps", "explained_heldout")
    }
    assert differences["ntps"] <= ntps, differences
    assert differences["explained_heldout"] <= explained, differences
    assert [layer.rank_v for layer in expected.layers] == [layer.rank_v for layer in found.layers]


def test_a_batch_that_runs_out_of_memory_is_halved(monkeypatch):
    """It fails in the first block, when layer 0 has been added already."""
    model, texts = hungry_model("cuda"), long_texts(64)
    options = {"batch_size": 64, "matmul_precision": "highest", "progress": False}
    expected = collect(model, texts, **options)  # and what cuBLAS keeps for itself is allocated
    plain, sizes = StateReader.read, []

    def counted(self, ids, mask, take):
        sizes.append(len(ids))
        return plain(self, ids, mask, take)

    monkeypatch.setattr(StateReader, "read", counted)
    with little_memory(150 * 2**20):  # a whole batch takes more than 600 MiB
        found = collect(model, texts, **options)
    assert sizes[0] == 64
    assert min(sizes) < 64
    close(expected, found, 1e-4)
