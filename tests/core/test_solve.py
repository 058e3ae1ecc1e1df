"""The exact excess loss, its bounds and the shares of a solved layer, against the data and against plain algebra."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from helpers import naive
from helpers.problems import make_problem, pooled_tensor, solve, stream
from sklearn.linear_model import LinearRegression

import ntps.core.solve as solve_module
from ntps.core import LayerMoments, PooledMoments, explained_curve, loss_bounds, nested_basis, ntps_table, solve_layer
from ntps.core.encoders import layer_autoregressive_encoder, solve_encoder, whitening
from ntps.errors import NtpsError


@pytest.fixture(scope="module")
def problem():
    return make_problem(seed=2, n=150, d=8, c=4)


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "centred"])
def solved(problem, request):
    return solve(problem, center=request.param)


def both_bounds(solved, k_u, k_v):
    """Raw and whitened bounds on the excess loss."""
    U, M = solved.U, solved.U.whitening
    missing = float(U.vectors[:, :k_u].square().sum()) * (1 - solved.ntps_at(k_u, k_v))
    whitened = k_u * (1 - solved.whitened_ntps_at(k_u, k_v))
    return (
        loss_bounds(U.eigenvalues, k_u, k_v, missing=missing, smallest=M.smallest, largest=M.largest),
        loss_bounds(U.eigenvalues, k_u, k_v, missing=whitened),
    )


# On the data


def test_excess_loss_is_the_difference_of_two_regressions(problem, solved):
    x, y = naive.pooled(problem.texts), problem.targets
    if solved.center:
        x, y = x - x.mean(0), y - y.mean(0)
    U, V = solved.U.vectors.numpy(), solved.V.vectors.numpy()
    for k_v in range(1, 9):
        for k_u in range(1, solved.U.rank + 1):
            expected = naive.loss(x @ V[:, :k_v], y) - naive.loss(x @ U[:, :k_u], y)
            assert solved.excess_at(k_u, k_v) == pytest.approx(expected, abs=1e-9)
            assert solved.ntps_at(k_u, k_v) == pytest.approx(naive.score(U[:, :k_u], V[:, :k_v]), abs=1e-9)
    assert solved.U.rank == 4 - solved.center
    assert (solved.layer, solved.d) == (0, 8)


def test_shares_equal_linear_regression_with_intercept(problem, solved):
    """Also where U was solved from plain moments."""
    x, y = naive.pooled(problem.texts), problem.targets

    def r2(features, **options):
        residual = y - LinearRegression(**options).fit(features, y).predict(features)
        return 1 - (residual**2).sum() / ((y - y.mean(0)) ** 2).sum()

    for k in range(1, 9):
        assert solved.r2_at(k) == pytest.approx(r2(x @ solved.V.vectors[:, :k].numpy()), abs=1e-9)
        assert solved.retained_at(k) == pytest.approx(solved.r2_at(k) / solved.ceiling)
    assert solved.ceiling == pytest.approx(r2(x), abs=1e-9)
    assert abs(solved.ceiling - r2(x, fit_intercept=False)) > 1e-3  # the intercept matters
    assert (solved.r2.diff() >= -1e-12).all()
    assert float(solved.r2[-1]) == pytest.approx(solved.ceiling, abs=1e-9)


def test_real_targets():
    problem = make_problem(seed=4, n=90, d=6)
    x = naive.pooled(problem.texts)
    targets = x[:, :2] @ np.array([[1.0, 2.0], [0.5, -1.0]]) + np.random.default_rng(0).normal(2.0, 0.3, size=(90, 2))
    solved = solve(problem, targets=targets)
    residual = targets - LinearRegression().fit(x, targets).predict(x)
    expected = 1 - (residual**2).sum() / ((targets - targets.mean(0)) ** 2).sum()
    assert solved.ceiling == pytest.approx(expected, abs=1e-9)
    assert solved.U.rank == 2


def test_class_numbers_are_one_hot_labels(problem):
    layer = stream(problem.texts)[0].layer(0)
    by_number = solve_layer(pooled_tensor(problem), torch.from_numpy(problem.labels), layer)
    assert torch.equal(by_number.table, solve(problem).table)
    for labels in ([0.0, 1.0], [0, -1], []):
        with pytest.raises(NtpsError, match="class numbers from 0"):
            solve_layer(torch.ones(len(labels), 8), torch.tensor(labels), layer)
    with pytest.raises(NtpsError, match="target 1 is not finite"):
        solve_layer(torch.ones(2, 8), torch.tensor([[1.0], [math.nan]]), layer)
    with pytest.raises(NtpsError, match=r"states have shape \(2, 7\); expected \(n, 8\)"):
        solve_layer(torch.ones(2, 7), torch.tensor([0, 1]), layer)
    with pytest.raises(NtpsError, match="fold_of has 3 entries for 2 states"):
        solve_layer(torch.ones(2, 8), torch.tensor([0, 1]), layer, fold_of=torch.tensor([0, 1, 1]))
    with pytest.raises(NtpsError, match="two tokens"):
        solve(make_problem(longest=1))


# Folds


@pytest.mark.parametrize("center", [False, True])
@pytest.mark.parametrize("numbers", [(0, 1, 2, 3), (2, 5, 6, 9)])
def test_without_a_fold_is_the_rest_solved_with_v_fixed(problem, center, numbers, monkeypatch):
    """A fold is known by its index, whatever its number; V is not solved again."""
    x, y = pooled_tensor(problem), torch.from_numpy(problem.targets)
    layer, fold_of = stream(problem.texts)[0].layer(0), torch.tensor(numbers)[problem.folds]
    whole = solve_layer(x, y, layer, fold_of=fold_of, center=center)
    monkeypatch.setattr(solve_module, "layer_autoregressive_encoder", lambda *_: pytest.fail("V is held fixed"))
    assert [fold.n for fold in whole.folds] == np.bincount(problem.folds).tolist()
    for fold in range(4):
        rest = fold_of != numbers[fold]
        found = whole.without_fold(fold)
        assert found.V is whole.V
        assert torch.equal(found.states, x[rest])
        expected = solve_module._solve_labels(
            states=x[rest], targets=y[rest], fold_of=None, pooled=PooledMoments.of(x[rest], y[rest]),
            next_token=layer, V=whole.V, center=center, k_u=whole.U.vectors.shape[1], pooled_rtol=whole.pooled_rtol,
        )  # fmt: skip
        for name in ("table", "whitened_table", "explained", "r2"):
            assert torch.allclose(getattr(found, name), getattr(expected, name), atol=1e-9), name
        z = x[rest].numpy() @ whole.V.vectors[:, :3].numpy()
        residual = y[rest].numpy() - LinearRegression().fit(z, y[rest].numpy()).predict(z)
        centred = y[rest].numpy() - y[rest].numpy().mean(0)
        assert found.r2_at(3) == pytest.approx(1 - (residual**2).sum() / (centred**2).sum(), abs=1e-9)
    with pytest.raises(NtpsError, match="without folds"):
        found.without_fold(0)


# Bounds


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("center", [False, True])
def test_bounds_hold_for_every_pair_of_ranks(seed, center):
    problem = make_problem(seed=seed, n=60, d=4 + seed % 5, c=2 + seed % 4, longest=4)
    solved = solve(problem, center=center, k_u=problem.d if seed % 3 == 0 else None)
    for k_u in range(1, solved.U.vectors.shape[1] + 1):
        for k_v in range(1, solved.V.rank + 1):
            (raw_low, raw_high), (low, high) = both_bounds(solved, k_u, k_v)
            excess = solved.excess_at(k_u, k_v)
            assert raw_low - 1e-9 <= low + 2e-9
            assert low - 1e-9 <= excess <= high + 1e-9
            assert high <= raw_high + 1e-9 * (1 + raw_high)


def test_without_the_general_term_the_lower_bound_fails():
    """The paper's bound is for k_v = k_u or k_u = rank(X); elsewhere more directions of V can win back loss."""
    broken = 0
    for seed in range(12):
        solved = solve(make_problem(seed=seed, n=60, d=8, c=5))
        values = [*solved.U.eigenvalues.tolist(), 0.0]
        for k_u in range(1, solved.U.rank + 1):
            for k_v in range(1, 9):
                plain = (values[k_u - 1] - values[k_u]) * k_u * (1 - solved.whitened_ntps_at(k_u, k_v))
                if solved.excess_at(k_u, k_v) < plain - 1e-9:
                    assert k_u < solved.U.rank
                    assert k_v > k_u
                    broken += 1
    assert broken > 10


def axes_layer(order, eigenvalues=(5.0, 3.0, 2.0, 2.0), scale=None, d=6):
    """A layer whose u's and v's are axes: u_i is axis i, v_j is axis order[j]; M = diag(scale)."""
    scale = torch.ones(d, dtype=torch.float64) if scale is None else torch.tensor(scale, dtype=torch.float64)
    c, zeros = len(eigenvalues), torch.zeros(d, dtype=torch.float64)
    X, C1 = torch.zeros(d, c, dtype=torch.float64), torch.zeros(d, d, dtype=torch.float64)
    for index, value in enumerate(eigenvalues):
        X[index, index] = (value * scale[index]) ** 0.5
    for index, axis in enumerate(order):
        C1[axis, index] = float(len(order) - index)
    n, identity = 10**6, torch.eye(d, dtype=torch.float64)
    pooled = PooledMoments(
        n=n, M=torch.diag(scale), X=X, mean_x=zeros, mean_y=zeros[:c], yy=20.0 * torch.eye(c, dtype=torch.float64)
    )
    next_token = LayerMoments(layer=0, C0=identity, C1=C1, n_texts=n, n_pairs=n)
    return solve_module._solve_labels(
        states=zeros[None], targets=zeros[None, :c], fold_of=None, pooled=pooled, next_token=next_token,
        V=layer_autoregressive_encoder(next_token), center=False, k_u=0, pooled_rtol=1e-12,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("order", "k_u", "k_v", "excess", "attained"),
    [
        ((0, 1, 2, 3), 4, 4, 0.0, "both"),  # nothing missing
        ((1, 2, 3, 4), 4, 4, 5.0, "upper"),  # exactly u_1 is missing
        ((1, 2, 3), 4, 3, 5.0, "upper"),
        ((0, 2), 2, 2, 1.0, "lower"),  # u_2 replaced by u_3
        ((0, 1, 4), 3, 3, 2.0, "neither"),
        ((0, 2, 3), 2, 3, -1.0, "lower"),  # one more: u_2 replaced by u_3 and u_4, which are equal
        ((0,), 2, 1, 3.0, "lower"),  # one fewer
        ((4, 5), 1, 2, 5.0, "upper"),
    ],
)
@pytest.mark.parametrize("scale", [None, [2.0] * 6])
def test_bounds_are_attained_where_they_should_be(order, k_u, k_v, excess, attained, scale):
    solved = axes_layer(order, scale=scale)
    assert solved.excess_at(k_u, k_v) == pytest.approx(excess, abs=1e-12)
    for lower, upper in both_bounds(solved, k_u, k_v):
        assert (lower == pytest.approx(excess, abs=1e-12)) == (attained in ("lower", "both"))
        assert (upper == pytest.approx(excess, abs=1e-12)) == (attained in ("upper", "both"))


def test_raw_bounds_are_attained_at_the_ends_of_the_spectrum_of_m():
    upper = both_bounds(axes_layer((1, 2, 3, 4), scale=[9.0, 1.0, 1.0, 1.0, 1.0, 0.5]), 4, 4)[0]
    assert upper == pytest.approx((2.0 * 0.5 / 9.0, 5.0))
    solved = axes_layer((0, 2), scale=[9.0, 0.5, 1.0, 1.0, 1.0, 4.0])
    assert both_bounds(solved, 2, 2)[0] == pytest.approx((1.0, 5.0 * 9.0 / 0.5))
    assert solved.excess_at(2, 2) == pytest.approx(1.0)


def test_bounds_of_nothing():
    assert loss_bounds(torch.zeros(0), 0, 3, missing=math.nan) == (0.0, 0.0)


# What changes a solution, and what does not


@pytest.mark.parametrize("factor", [1e-2, 1e4])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_scale_of_states_changes_nothing(factor, dtype):
    kind = np.float64 if dtype == torch.float64 else np.float32
    plain = make_problem(seed=5, n=100, dtype=kind)
    scaled = dataclasses.replace(plain, texts=[(h * factor).astype(kind) for h in plain.texts])
    one, other = (solve(p, folds=True, dtype=dtype) for p in (plain, scaled))
    tolerance = 1e-8 if dtype == torch.float64 else 1e-3
    assert (one.U.rank, one.V.rank, one.plain.rank) == (other.U.rank, other.V.rank, other.plain.rank)
    for name in ("table", "whitened_table", "explained", "r2"):
        assert torch.allclose(getattr(one, name), getattr(other, name), rtol=tolerance, atol=tolerance), name
    assert one.held_out([3]).explained == pytest.approx(other.held_out([3]).explained, abs=tolerance)
    for a, b in zip(both_bounds(one, 3, 3), both_bounds(other, 3, 3), strict=True):
        assert a == pytest.approx(b, rel=10 * tolerance, abs=tolerance)


def test_rotation_of_states_and_order_of_classes_change_nothing(problem):
    Q = np.linalg.qr(np.random.default_rng(0).normal(size=(8, 8)))[0]
    turned = dataclasses.replace(problem, texts=[h @ Q for h in problem.texts], labels=(problem.labels + 1) % 4)
    one, other = solve(problem), solve(turned)
    for name in ("table", "whitened_table", "explained"):
        assert torch.allclose(getattr(one, name), getattr(other, name), atol=1e-9), name


def test_linear_change_of_states_moves_the_score_but_not_the_whitened_one(problem):
    """Encoders carried along are the same functions of the text, so only a score that depends on units changes."""
    solved = solve(problem)
    generator = torch.Generator().manual_seed(0)
    A = torch.diag(torch.tensor([50.0, 0.1, 3.0, 1.0, 20.0, 0.5, 1.0, 8.0], dtype=torch.float64)) @ (
        torch.eye(8, dtype=torch.float64) + 0.3 * torch.randn(8, 8, dtype=torch.float64, generator=generator)
    )
    M, X = A.T @ solved.pooled.M @ A, A.T @ solved.pooled.X
    V = torch.linalg.inv(A) @ solved.V.vectors
    changed = whitening(M, rtol=1e-14)
    U = solve_encoder(changed, X)
    whitened = (nested_basis(changed.half @ V).T @ U.coordinates).square().cumsum(0).cumsum(1)
    assert torch.allclose(whitened / torch.arange(1, 5), solved.whitened_table, atol=1e-8)
    assert (ntps_table(U.vectors, V) - solved.table).abs().max() > 0.1
    assert torch.allclose(explained_curve(changed, X, V), solved.explained, atol=1e-8)


def test_directions_beyond_the_rank_of_x_are_given_when_asked_for():
    """Whether the rank stops short of the number of classes must not matter."""
    problem = make_problem(n=60, c=3)
    problem.labels = problem.labels % 2  # the third class never occurs
    plain = solve(problem)
    assert (plain.U.rank, plain.U.vectors.shape) == (2, (8, 2))
    for k_u in (3, 4, 8):
        more = solve(problem, k_u=k_u)
        assert (more.U.rank, more.U.vectors.shape) == (2, (8, k_u))
        assert more.excess_at(k_u, 4) == pytest.approx(plain.excess_at(2, 4), abs=1e-12)
        assert torch.allclose(more.table[:, :2], plain.table)


@pytest.mark.parametrize("seed", range(5))
def test_rank_deficient_states_in_float32_score_as_in_float64(seed):
    """V spans what U lives in, so the score is 1; directions made of rounding would take it to 0.6."""
    problem = make_problem(seed=seed, n=200, d=12)
    mix = np.random.default_rng(seed).normal(size=(3, 12))
    problem.texts = [(h[:, :3] @ mix).astype(np.float32) for h in problem.texts]
    for dtype in (torch.float32, torch.float64):
        solved = solve(problem, dtype=dtype)
        assert (solved.plain.rank, solved.V.rank) == (3, 3)
        assert solved.ntps_at(3, 3) == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("d", [1, 8])
def test_what_centring_cancels_is_not_a_direction(d):
    """A large constant leaves rounding on its own scale: that is not a feature, however large in absolute terms."""
    for constant in 1e5 * np.random.default_rng(0).uniform(1, 9, size=8):
        problem = make_problem(n=50, d=d)
        problem.texts = [np.full_like(h, constant) for h in problem.texts]
        solved = solve(problem, center=True)
        assert (solved.U.whitening.rank, solved.ceiling) == (0, 0.0)


def test_constant_targets_have_no_share():
    solved = solve(make_problem(n=30), targets=np.full((30, 1), 0.1))
    assert (solved.r2_at(3), solved.ceiling) == (0.0, 0.0)
    assert math.isnan(solved.retained_at(3))


def test_rtol_is_the_tolerance_of_both_decompositions():
    wide, narrow = (solve(make_problem(seed=1), rtol=rtol) for rtol in (None, 0.3))
    assert wide.V.whitening.rank == wide.plain.rank == 8
    assert narrow.V.whitening.rank < 8
    assert narrow.plain.rank < 8
