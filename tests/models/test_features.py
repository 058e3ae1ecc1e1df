"""Pooled features: saved and read as they were, never those of another pass, never damaged; float16 is enough."""

import json
import struct

import numpy as np
import pytest

import ntps
from ntps import Features, NtpsError
from ntps.models.passes import collect


def make(dtype="float16", folds=True):
    rng = np.random.default_rng(0)
    values = rng.standard_normal((2, 6, 3)).astype(dtype)
    assigned = np.arange(6) % 3 if folds else None
    return Features(values, np.array([0, 1, 0, 1, 1, 0]), (0, 4), np.array([0, 1, 2, 3, 5, 6]), assigned)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("folds", [True, False])
def test_saved_and_read_again(tmp_path, dtype, folds):
    features = make(dtype, folds)
    features.save(tmp_path / "f", key="one pass")
    found = Features.load(tmp_path / "f", key="one pass")
    assert found is not None
    assert found.layers == (0, 4)
    assert found.values.dtype == dtype
    for name in ("values", "labels", "kept", *(["folds"] if folds else [])):
        assert np.array_equal(getattr(found, name), getattr(features, name)), name
    assert (found.folds is None) == (not folds)
    assert Features.load(tmp_path / "f", key="another pass") is None
    assert Features.load(tmp_path / "nothing", key="one pass") is None


@pytest.mark.parametrize("place", [-1, 60])
def test_a_changed_byte_is_refused(tmp_path, place):
    make().save(tmp_path / "f", key="k")
    raw = bytearray((tmp_path / "f").read_bytes())
    size = struct.unpack("<Q", raw[:8])[0]
    index = place if place < 0 else raw.index(b'"key":"k"') + 7
    raw[index] ^= 1
    assert json.loads(raw[8 : 8 + size])
    (tmp_path / "f").write_bytes(raw)
    with pytest.raises(NtpsError, match="damaged"):
        Features.load(tmp_path / "f", key="k")


def test_an_unknown_layer_is_refused():
    with pytest.raises(NtpsError, match="layer is 1; choose"):
        make().layer(1)


@pytest.fixture
def pair(tiny_llama):
    texts = ["a good film", "the dog saw a cat", "she read the old book", "rain in the city"] * 5
    return ntps.load_model(tiny_llama), ntps.load_task(texts=texts, labels=[0, 1, 1, 0] * 5)


def test_half_precision_is_the_rounded_whole(pair):
    whole = collect(*pair, progress=False)[1]
    half = collect(*pair, feature_dtype="float16", progress=False)[1]
    assert half.values.dtype == np.float16
    assert np.array_equal(half.values, whole.values.astype(np.float16))
    with pytest.raises(NtpsError, match="feature_dtype is 'float8'; choose"):
        collect(*pair, feature_dtype="float8")


def test_states_beyond_half_precision_stay_whole(pair):
    """Outlier channels of real models do reach such sizes; infinity must not stand for them."""
    import torch

    model, task = pair
    with torch.no_grad():
        model.model.norm.weight.fill_(1e5)
    features = collect(model, task, feature_dtype="float16", progress=False)[1]
    assert features.values.dtype == np.float32
    assert np.isfinite(features.values).all()
    assert np.abs(features.values).max() > 65504
