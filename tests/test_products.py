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


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("n", "d"), [(1, 1), (5, 3), (40, 64), (300, 130), (2, 700)])
def test_sums_equal_float64(way, n, d, dtype):
    past, following, total = values(n + 3, d, dtype=dtype), values(n, d, seed=1, dtype=dtype), values(d, d).double()
    rows = torch.arange(n) + 2
    gathered = products.gathered_columns(past, rows, torch.empty(n, d, dtype=dtype))
    assert torch.equal(gathered, past[rows].T)
    scratch = torch.empty(d * d, dtype=dtype)
    found, gram = total.clone(), total.clone()
    products.add_product(found, gathered, following.T, scratch)
    products.add_gram(gram, gathered, scratch)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-13
    exact = past[rows].double()
    assert torch.allclose(found, total + exact.T @ following.double(), rtol=tolerance, atol=tolerance * n**0.5)
    assert torch.allclose(gram.tril(), (total + exact.T @ exact).tril(), rtol=tolerance, atol=tolerance * n**0.5)


@settings(max_examples=25, deadline=None)
@given(n=st.integers(1, 60), d=st.integers(1, 200), seed=st.integers(0, 99))
def test_both_ways_agree_to_rounding(n, d, seed):
    past, following = values(n, d, seed=seed), values(n, d, seed=seed + 1)
    found = []
    for way in (products._onednn, lambda: None):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(products, "_onednn", way)
            total = torch.zeros(d, d, dtype=torch.float64)
            columns = products.gathered_columns(past, torch.arange(n), torch.empty(n, d))
            products.add_product(total, columns, following.T, torch.empty(d * d))
        found.append(total)
    assert torch.allclose(*found, rtol=1e-5, atol=1e-5)


def test_no_token_with_a_next_one_adds_nothing(way):
    total = torch.ones(4, 4, dtype=torch.float64)
    empty = products.gathered_columns(values(3, 4), torch.arange(0), torch.empty(0, 4))
    products.add_product(total, empty, torch.empty(0, 4).T, torch.empty(16))
    assert torch.equal(total, torch.ones(4, 4, dtype=torch.float64))


def test_without_the_faster_product_torch_is_used(monkeypatch):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "DEFAULT")
    products._onednn.cache_clear()
    try:
        assert products._onednn() is None
    finally:
        products._onednn.cache_clear()
