"""The product of moments: the faster one equals torch's, for any shape and layout; sums below the blocks stay."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ntps.core import products
from ntps.core.products import Products


@pytest.fixture(params=["as here", "torch's own"])
def way(request, monkeypatch):
    """Both ways, whatever this machine prefers, also for narrow states."""
    monkeypatch.setattr(products, "NARROW", 0)
    if request.param == "torch's own":
        monkeypatch.setattr(products, "_onednn", lambda: None)
    return request.param


def values(*shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("n", "d"), [(1, 1), (5, 3), (40, 64), (64, 7), (300, 130), (2, 700)])
def test_sums_equal_float64(way, n, d, dtype):
    a, b, total = values(d, n, dtype=dtype), values(n, d, seed=1, dtype=dtype), values(d, d, seed=2).double()
    made = Products(d, dtype, a.device)
    found, gram, rows = total.clone(), total.clone(), total.clone()
    made.add(found, a, b.T)
    made.add_gram(gram, a)
    made.add_gram(rows, b.T)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-13
    near = {"rtol": tolerance, "atol": tolerance * n**0.5}
    assert torch.allclose(found, total + a.double() @ b.double(), **near)
    assert torch.allclose(gram.tril(), (total + a.double() @ a.double().T).tril(), **near)
    assert torch.allclose(rows.tril(), (total + b.double().T @ b.double()).tril(), **near)


@settings(max_examples=25, deadline=None)
@given(n=st.integers(1, 140), d=st.integers(1, 200), seed=st.integers(0, 99))
def test_both_ways_agree_to_rounding(n, d, seed):
    a, b = values(d, n, seed=seed), values(n, d, seed=seed + 1)
    found = []
    for way in (products._onednn, lambda: None):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(products, "_onednn", way)
            patch.setattr(products, "NARROW", 0)
            total = torch.zeros(d, d, dtype=torch.float64)
            Products(d, torch.float32, a.device).add(total, a, b.T)
        found.append(total)
    assert torch.allclose(*found, rtol=1e-5, atol=1e-5)


def test_float64_states_are_added_where_the_sums_are(way):
    """As pooled states are, beside products in float32."""
    x, total = values(40, 9, dtype=torch.float64), values(9, 9, dtype=torch.float64)
    found = total.clone()
    Products(9, torch.float32, x.device).add_gram(found, x.T)
    assert torch.allclose(found.tril(), (total + x.T @ x).tril(), rtol=1e-14)


def columns(width, dtype=torch.float32):
    return [Products(width, dtype, torch.device("cpu")).padded(n) for n in range(16385)]


def test_batches_of_many_sizes_give_few_shapes():
    """oneDNN keeps code for each."""
    if products._onednn() is None:
        pytest.skip("torch's own product is used here")
    found = columns(640)
    assert all(n <= padded <= max(n + 31, n * 17 / 16) for n, padded in enumerate(found))
    assert len(set(found)) == 97


def test_nothing_is_rounded_up_where_torch_makes_the_product(monkeypatch):
    assert columns(640, torch.float64) == columns(32) == list(range(16385))
    monkeypatch.setattr(products, "_onednn", lambda: None)
    assert columns(640) == list(range(16385))


def test_without_the_faster_product_torch_is_used(monkeypatch):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "DEFAULT")
    products._onednn.cache_clear()
    try:
        assert products._onednn() is None
    finally:
        products._onednn.cache_clear()
