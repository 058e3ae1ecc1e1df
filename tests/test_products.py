"""The product of moments: the faster one equals torch's, for any shape and layout; sums below the blocks stay."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ntps import products


@pytest.fixture(params=["as here", "torch's own"])
def way(request, monkeypatch):
    """Both ways, whatever this machine prefers."""
    if request.param == "torch's own":
        monkeypatch.setattr(products, "_onednn", lambda: None)
    return request.param


def values(*shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def rooms(n, d, like):
    size = products.padded(n, like)
    return tuple(torch.full((size, d), float("nan"), dtype=like.dtype) for _ in range(2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("n", "d"), [(1, 1), (5, 3), (40, 64), (64, 7), (300, 130), (2, 700)])
def test_sums_equal_float64(way, n, d, dtype):
    past, states, total = values(n + 3, d, dtype=dtype), values(n + 3, d, seed=1, dtype=dtype), values(d, d).double()
    rows = torch.arange(n) + 2
    a, b = products.gather_pairs(past, states, rows - 1, rooms(n, d, past))
    assert torch.equal(a[:, :n], past[rows - 1].T)
    assert torch.equal(b[:n], states[rows])
    assert not a[:, n:].any()
    scratch = torch.empty(d * d, dtype=dtype)
    found, gram = total.clone(), total.clone()
    products.add_product(found, a, b.T, scratch)
    products.add_gram(gram, a, scratch)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-13
    exact, following = past[rows - 1].double(), states[rows].double()
    assert torch.allclose(found, total + exact.T @ following, rtol=tolerance, atol=tolerance * n**0.5)
    assert torch.allclose(gram.tril(), (total + exact.T @ exact).tril(), rtol=tolerance, atol=tolerance * n**0.5)


@settings(max_examples=25, deadline=None)
@given(n=st.integers(1, 140), d=st.integers(1, 200), seed=st.integers(0, 99))
def test_both_ways_agree_to_rounding(n, d, seed):
    past, states = values(n, d, seed=seed), values(n + 1, d, seed=seed + 1)
    found = []
    for way in (products._onednn, lambda: None):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(products, "_onednn", way)
            total = torch.zeros(d, d, dtype=torch.float64)
            a, b = products.gather_pairs(past, states, torch.arange(n), rooms(n, d, past))
            products.add_product(total, a, b.T, torch.empty(d * d))
        found.append(total)
    assert torch.allclose(*found, rtol=1e-5, atol=1e-5)


def test_no_token_with_a_next_one_adds_nothing(way):
    total = torch.ones(4, 4, dtype=torch.float64)
    past = values(3, 4)
    a, b = products.gather_pairs(past, past, torch.arange(0), rooms(0, 4, past))
    products.add_product(total, a, b.T, torch.empty(16))
    products.add_gram(total, a, torch.empty(16))
    assert torch.equal(total, torch.ones(4, 4, dtype=torch.float64))


def test_batches_of_many_sizes_give_few_shapes():
    """oneDNN keeps code for each."""
    if products._onednn() is None:
        pytest.skip("torch's own product is used here")
    assert len({products.padded(n, values(1, 4)) for n in range(1, 1025)}) == 8


def test_without_the_faster_product_torch_is_used(monkeypatch):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "DEFAULT")
    products._onednn.cache_clear()
    try:
        assert products._onednn() is None
    finally:
        products._onednn.cache_clear()
