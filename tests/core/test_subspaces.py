"""Bases that nest, the table of all ranks against plain algebra, explained curves, and angles of known subspaces."""

import math

import numpy as np
import pytest
import torch
from helpers import naive
from helpers.problems import make_problem

from ntps.core import PooledMoments, explained_curve, nested_basis, ntps_table, principal_angles
from ntps.core.encoders import whitening
from ntps.errors import NtpsError


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def random(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


# One basis for every k


def spans(Q, V, k):
    Q, V = Q[:, :k].numpy(), V[:, :k].numpy()
    return np.abs(Q @ np.linalg.pinv(Q) - V @ np.linalg.pinv(V)).max() < 1e-8


def test_nested_basis_spans_every_prefix():
    V = torch.randn(7, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    V = V * torch.tensor([1e-9, 1e6, 1.0, 1e3, 1e-5])  # lengths must not matter
    Q = nested_basis(V)
    assert torch.allclose(Q.T @ Q, torch.eye(5, dtype=torch.float64), atol=1e-12)
    assert all(spans(Q, V, k) for k in range(1, 6))


def test_nested_basis_adds_nothing_for_a_dependent_column():
    generator = torch.Generator().manual_seed(0)
    a, b, c = torch.randn(3, 6, dtype=torch.float64, generator=generator)
    V = torch.stack([a, 2 * a, b, a - 3 * b, torch.zeros_like(a), c], dim=1)
    Q = nested_basis(V)
    assert Q.norm(dim=0).round().tolist() == [1, 0, 1, 0, 0, 1]
    assert all(spans(Q, V, k) for k in range(1, 7))
    plain, _ = torch.linalg.qr(V)  # what a thin QR alone would do
    assert not all(spans(plain, V, k) for k in range(1, 7))


@pytest.mark.parametrize("shape", [(3, 5), (1, 4), (4, 0), (0, 3)])
def test_nested_basis_of_more_columns_than_rows(shape):
    V = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    Q = nested_basis(V)
    assert Q.shape == shape
    assert int((Q.norm(dim=0) > 0.5).sum()) == min(shape)


# The table


def test_table_equals_a_pseudo_inverse_for_every_pair():
    U, V = random(9, 4) * torch.tensor([1e3, 1.0, 1e-2, 5.0]), random(9, 9, seed=1)
    table = ntps_table(U, V)
    assert table.shape == (9, 4)
    for j in range(9):
        for i in range(4):
            expected = naive.score(U[:, : i + 1].numpy(), V[:, : j + 1].numpy())
            assert float(table[j, i]) == pytest.approx(expected, abs=1e-12)
    assert ((table >= 0) & (table <= 1)).all()
    assert (table.diff(dim=0) >= -1e-15).all()


def test_score_is_one_for_equal_and_nought_for_orthogonal_subspaces():
    V = random(10, 6)
    same = V[:, :3] @ random(3, 3, seed=1)
    assert torch.allclose(ntps_table(same, V)[2:], torch.ones(4, 3, dtype=torch.float64))
    assert (ntps_table(same, V)[0] < 0.999).all()
    Q, _ = torch.linalg.qr(random(10, 10, seed=2))
    assert ntps_table(Q[:, :4], Q[:, 4:]).max() < 1e-25
    assert torch.allclose(ntps_table(random(10, 3), Q)[-1], torch.ones(3, dtype=torch.float64))


def test_score_of_random_subspaces_is_chance():
    d, draws = 12, 400
    U = random(d, 3)
    tables = torch.stack([ntps_table(U, random(d, d, seed=seed + 1)) for seed in range(draws)])
    mean, error = tables.mean(0), tables.std(0) / draws**0.5
    chance = torch.arange(1, d + 1, dtype=torch.float64)[:, None] / d
    assert ((mean - chance).abs() <= 4.5 * error + 1e-12).all()
    assert ((mean - chance - 1 / d).abs()[:-1] > 4.5 * error[:-1]).all()  # one direction more would be noticed


def test_table_refuses_other_heights():
    with pytest.raises(NtpsError, match=r"\(4, 2\).*\(5, 2\)"):
        ntps_table(random(4, 2), random(5, 2))


def test_explained_curve_is_what_a_regression_explains():
    problem = make_problem(seed=2, n=150, d=8, c=4)
    x, y = naive.pooled(problem.texts), problem.targets
    moments, V = PooledMoments.of(torch.from_numpy(x), torch.from_numpy(y)), random(8, 5)
    curve = explained_curve(whitening(moments.M, rtol=1e-12), moments.X, V)
    for k in range(1, 6):
        expected = float((y**2).sum() / len(y)) - naive.loss(x @ V[:, :k].numpy(), y)
        assert float(curve[k - 1]) == pytest.approx(expected, abs=1e-10)


# Angles


class TestAngles:
    def test_known_ones(self):
        angles = torch.tensor([0.0, 1e-9, 0.3, math.pi / 4, 1.2, math.pi / 2], dtype=torch.float64)
        n = len(angles)
        first = torch.eye(2 * n, dtype=torch.float64)[:, :n]
        second = torch.cat([torch.diag(angles.cos()), torch.diag(angles.sin())])
        turn = torch.linalg.qr(torch.randn(2 * n, 2 * n, dtype=torch.float64))[0]
        mix = torch.randn(n, n, dtype=torch.float64) + 3 * torch.eye(n)
        angles_found = principal_angles(turn @ first @ mix, turn @ second * 1e5)
        np.testing.assert_allclose(angles_found, angles, atol=1e-13)

    def test_against_scipy_and_of_different_size(self):
        from scipy.linalg import subspace_angles

        rng = np.random.default_rng(1)
        for a, b in ((3, 5), (5, 3), (1, 7), (9, 8)):
            first, second = rng.normal(size=(10, a)), rng.normal(size=(10, b))
            expected = np.sort(subspace_angles(first, second))
            np.testing.assert_allclose(principal_angles(torch.tensor(first), torch.tensor(second)), expected, atol=1e-7)

    def test_dependent_columns_count_once_and_scales_do_not(self):
        line = torch.randn(6, 1, dtype=torch.float64)
        assert principal_angles(torch.cat([line, 2 * line, line * 1e-9], 1), line).tolist() == pytest.approx([0.0])

    def test_what_is_refused(self):
        with pytest.raises(NtpsError, match=r"\(3, 1\) and \(4, 1\)"):
            principal_angles(torch.ones(3, 1), torch.ones(4, 1))
        with pytest.raises(NtpsError, match="not finite"):
            principal_angles(torch.tensor([[1.0], [math.nan]]), torch.ones(2, 1))
