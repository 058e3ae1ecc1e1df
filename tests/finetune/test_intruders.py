"""A planted intruder is found, a small change plants none."""

import numpy as np
import pytest
import torch

from ntps.errors import NtpsError
from ntps.finetune.changes import find_intruders, intruder_dimensions


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def matrix(m=40, n=24, seed=0):
    """A matrix with well separated singular values."""
    generator = torch.Generator().manual_seed(seed)
    left = torch.linalg.qr(torch.randn(m, n, generator=generator, dtype=torch.float64))[0]
    right = torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.float64))[0]
    return left @ torch.diag(torch.linspace(3, 1, n, dtype=torch.float64)) @ right.T, left, right


def test_a_planted_intruder_is_found_at_its_place():
    W, left, right = matrix()
    new = torch.linalg.qr(torch.cat([left, torch.randn(40, 1, dtype=torch.float64)], 1))[0][:, -1:]
    found, cosines = intruder_dimensions(W, W + 20 * new @ right[:, :1].T)
    assert found == [0]
    assert cosines[0] < 0.2
    assert (cosines[1:] > 0.9).all()


def test_a_sum_of_old_directions_is_one_too():
    """No outside direction is needed: an even mixture of 16 old vectors has cosine 1/4 with each."""
    W, left, right = matrix()
    mixed = left[:, :16].sum(1, keepdim=True) / 4
    found, cosines = intruder_dimensions(W, W + 50 * mixed @ right[:, -1:].T)
    assert found[0] == 0
    assert cosines[0] == pytest.approx(0.25, abs=0.03)
    assert intruder_dimensions(W, W + 50 * mixed @ right[:, -1:].T, epsilon=0.2)[0] == []


def test_a_small_full_rank_change_and_another_length_plant_none():
    W, _, _ = matrix()
    noise = torch.randn(W.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    assert intruder_dimensions(W, W + 0.002 * noise)[0] == []
    assert intruder_dimensions(W, 7 * W)[0] == []
    found, cosines = intruder_dimensions(W, 0 * W + noise, k=100)
    assert len(cosines) == 24
    assert len(found) > 15


def test_against_a_loop():
    W, _, _ = matrix(seed=3)
    changed = W + 2.5 * torch.randn(40, 2, dtype=torch.float64) @ torch.randn(2, 24, dtype=torch.float64) / 10
    old, new = np.linalg.svd(W.numpy())[0][:, :24], np.linalg.svd(changed.numpy())[0]
    expected = [max(abs(float(old[:, j] @ new[:, i])) for j in range(24)) for i in range(10)]
    np.testing.assert_allclose(intruder_dimensions(W, changed)[1], expected, atol=1e-9)


def test_every_linear_map_is_looked_at(tiny_llama, tiny_gpt2):
    import copy

    from ntps.models.load import load_model

    for path, name, count in ((tiny_llama, "layers.1.mlp.down_proj", 21), (tiny_gpt2, "h.1.mlp.c_proj", 8)):
        before = load_model(str(path)).model
        after = copy.deepcopy(before)
        weight = after.get_submodule(name).weight
        with torch.no_grad():
            old = weight.T if path is tiny_gpt2 else weight
            left, _, right = torch.linalg.svd(old)
            # Outputs: a mixture of all old directions in equal parts. Inputs: an old direction.
            old += 50 * left.sum(1, keepdim=True) @ right[:1]
        rows = {row.module: row for row in find_intruders(before, after)}
        assert len(rows) == count
        assert rows[name].count >= 1
        assert rows[name].ranks[0] == 0
        assert rows[name].block == 1
        assert rows[name].relative_change > 1
        others = [row for row in rows.values() if row.module != name]
        assert all(row.count == 0 and row.relative_change == 0 for row in others)
        assert rows[name].to_dict()["ranks"] == list(rows[name].ranks)


def test_what_is_refused(tiny_llama, tiny_gpt2):
    from ntps.models.load import load_model

    with pytest.raises(NtpsError, match=r"\(2, 3\) and \(3, 2\)"):
        intruder_dimensions(torch.ones(2, 3), torch.ones(3, 2))
    with pytest.raises(NtpsError, match="k is 0"):
        intruder_dimensions(torch.ones(2, 2), torch.ones(2, 2), k=0)
    with pytest.raises(NtpsError, match=r"epsilon is 1\.5"):
        intruder_dimensions(torch.ones(2, 2), torch.ones(2, 2), epsilon=1.5)
    with pytest.raises(NtpsError, match="not finite"):
        intruder_dimensions(torch.ones(2, 2), torch.full((2, 2), torch.nan))
    with pytest.raises(NtpsError, match="is not in the tuned network"):
        find_intruders(load_model(str(tiny_llama)).model, load_model(str(tiny_gpt2)).model)
