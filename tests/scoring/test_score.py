"""The score, the exact excess loss, its bounds and the shares, against the data and against plain algebra."""

import math

import numpy as np
import pytest
import torch
from helpers import naive
from helpers.problems import make_problem, moments_of, pad_batch
from sklearn.linear_model import LinearRegression

from ntps.core.encoders import nested_basis, perception_encoder, solve_encoder, whitening
from ntps.core.moments import LayerMoments
from ntps.core.solve import default_ranks, explained_curve, loss_bounds, ntps_table, read_layer, score, solve_layer
from ntps.errors import NtpsError


@pytest.fixture(scope="module")
def problem():
    return make_problem(seed=2, n=150, d=8, c=4)


@pytest.fixture(scope="module")
def moments(problem):
    return moments_of(problem)


def random(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


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


def test_table_equals_a_pseudo_inverse_on_solved_encoders(moments):
    solution = solve_layer(moments.layer(0))
    U, V = solution.U.vectors.numpy(), solution.V.vectors.numpy()
    for j in range(V.shape[1]):
        for i in range(U.shape[1]):
            expected = naive.score(U[:, : i + 1], V[:, : j + 1])
            assert float(solution.table[j, i]) == pytest.approx(expected, abs=1e-9)


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


# Loss: exact, on the data


@pytest.mark.parametrize("center", [False, True])
def test_excess_loss_is_the_difference_of_two_regressions(problem, moments, center):
    x, y = naive.pooled(problem.texts), problem.targets
    if center:
        x, y = x - x.mean(0), y - y.mean(0)
    solution = solve_layer(moments.layer(0), center=center)
    U, V = solution.U.vectors.numpy(), solution.V.vectors.numpy()
    for k_v in range(1, 9):
        for k_u in range(1, solution.U.rank + 1):
            expected = naive.loss(x @ V[:, :k_v], y) - naive.loss(x @ U[:, :k_u], y)
            found = read_layer(solution, k_u=k_u, k_v=k_v).excess_loss
            assert found == pytest.approx(expected, abs=1e-9)
            if k_v <= k_u:
                assert found >= -1e-12
    assert solution.U.rank == 4 - center


def test_explained_curve_is_what_a_regression_explains(problem, moments):
    view = moments.layer(0)
    x, y = naive.pooled(problem.texts), problem.targets
    V = random(8, 5)
    curve = explained_curve(whitening(view.M, rtol=1e-12), view.X, V)
    for k in range(1, 6):
        expected = float((y**2).sum() / len(y)) - naive.loss(x @ V[:, :k].numpy(), y)
        assert float(curve[k - 1]) == pytest.approx(expected, abs=1e-10)


@pytest.mark.parametrize("center", [False, True])
def test_shares_equal_linear_regression_with_intercept(problem, moments, center):
    x, y = naive.pooled(problem.texts), problem.targets
    solution = solve_layer(moments.layer(0), center=center)

    def r2(features):
        residual = y - LinearRegression().fit(features, y).predict(features)
        return 1 - (residual**2).sum() / ((y - y.mean(0)) ** 2).sum()

    for k in range(1, 9):
        found = read_layer(solution, k_v=k)
        assert found.explained == pytest.approx(r2(x @ solution.V.vectors[:, :k].numpy()), abs=1e-9)
        assert found.ceiling == pytest.approx(r2(x), abs=1e-9)
        assert found.retained == pytest.approx(found.explained / found.ceiling)
        without = LinearRegression(fit_intercept=False).fit(x, y).predict(x)  # the intercept matters
        assert abs(found.ceiling - (1 - ((y - without) ** 2).sum() / ((y - y.mean(0)) ** 2).sum())) > 1e-3
    shares = solution.r2
    assert (shares.diff() >= -1e-12).all()
    assert float(shares[-1]) == pytest.approx(solution.ceiling, abs=1e-9)


def test_real_targets():
    problem = make_problem(seed=4, n=90, d=6)
    x = naive.pooled(problem.texts)
    targets = x[:, :2] @ np.array([[1.0, 2.0], [0.5, -1.0]]) + np.random.default_rng(0).normal(2.0, 0.3, size=(90, 2))
    scored = score(moments_of(problem, targets=targets)).layers[0]
    predicted = LinearRegression().fit(x, targets).predict(x)
    expected = 1 - ((targets - predicted) ** 2).sum() / ((targets - targets.mean(0)) ** 2).sum()
    assert scored.ceiling == pytest.approx(expected, abs=1e-9)
    assert (scored.rank_u, scored.k_u) == (2, 2)
    assert 0 < scored.retained <= 1


# Bounds


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("center", [False, True])
def test_bounds_hold_for_every_pair_of_ranks(seed, center):
    problem = make_problem(seed=seed, n=60, d=4 + seed % 5, c=2 + seed % 4, longest=4)
    solution = solve_layer(moments_of(problem).layer(0), center=center, complete=seed % 3 == 0)
    for k_u in range(1, solution.U.vectors.shape[1] + 1):
        for k_v in range(1, solution.V.vectors.shape[1] + 1):
            found = read_layer(solution, k_u=k_u, k_v=k_v)
            (raw_low, raw_high), (low, high) = found.bounds["raw"], found.bounds["whitened"]
            assert raw_low - 1e-9 <= low + 2e-9
            assert low - 1e-9 <= found.excess_loss <= high + 1e-9
            assert high <= raw_high + 1e-9 * (1 + raw_high)
            assert raw_low - 1e-9 <= found.excess_loss <= raw_high + 1e-9


def test_without_the_general_term_the_lower_bound_fails():
    """The paper's bound is for k_v = k_u or k_u = rank(X); elsewhere more directions of V can win back loss."""
    broken = 0
    for seed in range(12):
        solution = solve_layer(moments_of(make_problem(seed=seed, n=60, d=8, c=5)).layer(0))
        values = [*solution.U.eigenvalues.tolist(), 0.0]
        for k_u in range(1, solution.U.rank + 1):
            for k_v in range(1, 9):
                found = read_layer(solution, k_u=k_u, k_v=k_v)
                plain = (values[k_u - 1] - values[k_u]) * k_u * (1 - found.ntps_whitened)
                if found.excess_loss < plain - 1e-9:
                    assert k_u < solution.U.rank
                    assert k_v > k_u
                    broken += 1
    assert broken > 10


def axes_problem(order, eigenvalues=(5.0, 3.0, 2.0, 2.0), scale=None, d=6):
    """A layer whose u's and v's are axes: u_i is axis i, v_j is axis order[j]; M = diag(scale)."""
    scale = torch.ones(d, dtype=torch.float64) if scale is None else torch.tensor(scale, dtype=torch.float64)
    X = torch.zeros(d, len(eigenvalues), dtype=torch.float64)
    for place, value in enumerate(eigenvalues):
        X[place, place] = (value * scale[place]) ** 0.5
    C1 = torch.zeros(d, d, dtype=torch.float64)
    for place, axis in enumerate(order):
        C1[axis, place] = float(len(order) - place)
    c = len(eigenvalues)
    zeros = torch.zeros(d, dtype=torch.float64), torch.zeros(c, dtype=torch.float64)
    yy = 20.0 * torch.eye(c, dtype=torch.float64)
    identity = torch.eye(d, dtype=torch.float64)
    return LayerMoments(0, 10**6, 10**6, torch.diag(scale), X, *zeros, yy, identity, C1)


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
def test_bounds_are_attained_where_they_should_be(order, k_u, k_v, excess, attained):
    for scale in (None, [2.0] * 6):
        found = read_layer(solve_layer(axes_problem(order, scale=scale)), k_u=k_u, k_v=k_v)
        assert found.excess_loss == pytest.approx(excess, abs=1e-12)
        for lower, upper in found.bounds.values():
            assert (lower == pytest.approx(excess, abs=1e-12)) == (attained in ("lower", "both"))
            assert (upper == pytest.approx(excess, abs=1e-12)) == (attained in ("upper", "both"))


def test_raw_bounds_are_attained_at_the_ends_of_the_spectrum_of_m():
    upper = solve_layer(axes_problem((1, 2, 3, 4), scale=[9.0, 1.0, 1.0, 1.0, 1.0, 0.5]))
    found = read_layer(upper, k_u=4, k_v=4)
    assert found.bounds["raw"][1] == pytest.approx(5.0)
    assert found.bounds["raw"][0] == pytest.approx(2.0 * 0.5 / 9.0)
    lower = solve_layer(axes_problem((0, 2), scale=[9.0, 0.5, 1.0, 1.0, 1.0, 4.0]))
    found = read_layer(lower, k_u=2, k_v=2)
    assert found.bounds["raw"][0] == pytest.approx(found.excess_loss) == pytest.approx(1.0)
    assert found.bounds["raw"][1] == pytest.approx(5.0 * 9.0 / 0.5)


def test_bounds_of_nothing():
    assert loss_bounds(torch.zeros(0), 0, 3, missing=math.nan) == (0.0, 0.0)


# What changes the score, and what does not


@pytest.mark.parametrize("factor", [1e-2, 1e4])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_scale_of_the_features_changes_nothing(factor, dtype):
    kind = np.float64 if dtype == torch.float64 else np.float32
    plain, scaled = make_problem(seed=5, n=100, dtype=kind), make_problem(seed=5, n=100, dtype=kind)
    scaled.texts = [(h * factor).astype(kind) for h in plain.texts]
    one, other = (score(moments_of(p, folds=4, dtype=dtype)).to_dict()["layers"][0] for p in (plain, scaled))
    tolerance = 1e-8 if dtype == torch.float64 else 1e-3
    for key in ("rank_m", "rank_u", "rank_v", "k_u", "k_v"):
        assert one[key] == other[key]
    for key in ("ntps", "ntps_whitened", "excess_loss", "explained", "retained", "explained_heldout"):
        assert one[key] == pytest.approx(other[key], rel=tolerance, abs=tolerance), key
    for kind in ("raw", "whitened"):
        assert one["bounds"][kind] == pytest.approx(other["bounds"][kind], rel=tolerance * 10, abs=tolerance), kind


def test_rotation_of_the_features_changes_nothing(problem, moments):
    Q = np.linalg.qr(np.random.default_rng(0).normal(size=(8, 8)))[0]
    turned = make_problem(seed=2, n=150, d=8, c=4)
    turned.texts = [h @ Q for h in problem.texts]
    one, other = score(moments).layers[0], score(moments_of(turned)).layers[0]
    assert (one.ntps, one.ntps_whitened, one.excess_loss) == pytest.approx(
        (other.ntps, other.ntps_whitened, other.excess_loss), abs=1e-9
    )


def test_linear_change_of_features_moves_the_score_but_not_the_whitened_one(moments):
    """Encoders carried along are the same functions of the text, so only a score that depends on units changes."""
    view = moments.layer(0)
    solution = solve_layer(view)
    A = torch.diag(torch.tensor([50.0, 0.1, 3.0, 1.0, 20.0, 0.5, 1.0, 8.0], dtype=torch.float64)) @ (
        torch.eye(8, dtype=torch.float64) + 0.3 * random(8, 8)
    )
    M, X, V = A.T @ view.M @ A, A.T @ view.X, torch.linalg.inv(A) @ solution.V.vectors
    changed = whitening(M, rtol=1e-14)
    U = solve_encoder(changed, X)
    whitened = (nested_basis(changed.half @ V).T @ U.coordinates).square().cumsum(0).cumsum(1)
    whitened = whitened / torch.arange(1, 5)
    assert torch.allclose(whitened, solution.whitened_table, atol=1e-8)
    assert (ntps_table(U.vectors, V) - solution.table).abs().max() > 0.1
    assert torch.allclose(explained_curve(changed, X, V), solution.explained, atol=1e-8)


def test_order_of_classes_changes_nothing(problem, moments):
    turned = make_problem(seed=2, n=150, d=8, c=4)
    turned.labels = (problem.labels + 1) % 4
    one, other = score(moments).layers[0], score(moments_of(turned)).layers[0]
    assert one.ntps == pytest.approx(other.ntps, abs=1e-10)
    assert one.excess_loss == pytest.approx(other.excess_loss, abs=1e-12)


# Ranks and requests


@pytest.mark.parametrize(
    ("rank_u", "rank_v", "d", "expected"),
    [(3, 64, 64, (3, 8)), (20, 64, 64, (20, 20)), (3, 2, 64, (3, 2)), (0, 5, 8, (0, 1)), (1, 1, 1, (1, 1))],
)
def test_default_ranks(rank_u, rank_v, d, expected):
    assert default_ranks(rank_u, rank_v, d) == expected


def test_curve_holds_powers_of_two_and_reads_off_the_same_numbers(moments):
    scored = score(moments, k_v=5, k_u=2).layers[0]
    assert scored.curve["k_v"] == [1, 2, 4, 5, 8]
    for place, k in enumerate(scored.curve["k_v"]):
        alone = score(moments, k_v=k, k_u=2).layers[0]
        assert scored.curve["ntps"][place] == alone.ntps
        assert scored.curve["excess_loss"][place] == alone.excess_loss
        assert scored.curve["explained"][place] == alone.explained


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"k_u": 0}, ["k_u", "0", "8"]),
        ({"k_u": 9}, ["k_u", "9", "8"]),
        ({"k_v": 0}, ["k_v", "0", "8"]),
        ({"k_v": 9}, ["k_v", "9", "8"]),
        ({"layers": [0, 3]}, ["layer 3", "0"]),
        ({"layers": []}, ["layers"]),
        ({"convention": "paper"}, ["convention", "paper", "theory", "official"]),
        ({"rtol": 0.0}, ["rtol", "0"]),
        ({"rtol": 1.0}, ["rtol", "1"]),
    ],
)
@pytest.mark.parametrize("folds", [0, 4])
def test_requests_out_of_range(problem, options, words, folds):
    with pytest.raises(NtpsError) as caught:
        score(moments_of(problem, folds=folds), **options)
    assert all(word in str(caught.value) for word in words), caught.value


def test_directions_beyond_the_rank_of_x_are_given_when_asked_for():
    """Whether the rank stops short of the number of classes must not matter."""
    problem = make_problem(n=60, c=3)
    problem.labels = problem.labels % 2  # the third class never occurs
    moments = moments_of(problem)
    assert score(moments).layers[0].k_u == 2
    for k_u in (3, 4, 8):
        scored = score(moments, k_u=k_u, k_v=4).layers[0]
        assert (scored.k_u, scored.rank_u) == (k_u, 2)
        assert scored.excess_loss == pytest.approx(score(moments, k_v=4).layers[0].excess_loss, abs=1e-12)


def test_layers_are_scored_one_by_one(problem):
    from ntps.core.accumulator import MomentAccumulator

    hidden, mask = pad_batch(problem.texts)
    accumulator = MomentAccumulator(layers=[0, 2, 5], width=8, n_targets=4, accumulate_dtype=torch.float64)
    accumulator.update([hidden, hidden * 2, hidden.sin()], mask, torch.from_numpy(problem.labels))
    result = score(accumulator.finalize(), layers=[5, 0])
    assert [scored.layer for scored in result.layers] == [5, 0]
    assert result[0].ntps == pytest.approx(score(moments_of(problem)).layers[0].ntps)
    assert result[5].ntps != result[0].ntps


# Degenerate data


def degenerate(name):
    problem = make_problem(seed=6, n=40, d=6, c=3)
    if name == "fewer texts than features":
        problem = make_problem(seed=6, n=5, d=20, c=2)
    elif name == "one text":
        problem = make_problem(seed=6, n=1, d=4, c=2)
        problem.texts[0] = np.random.default_rng(0).normal(size=(5, 4))
    elif name == "rank-deficient features":
        mix = np.random.default_rng(0).normal(size=(3, 6))
        problem.texts = [h[:, :3] @ mix for h in problem.texts]
    elif name == "a constant channel":
        for h in problem.texts:
            h[:, 0] = 3.0
    elif name == "constant features":
        problem.texts = [np.ones_like(h) for h in problem.texts]
    elif name == "a dead channel":
        for h in problem.texts:
            h[:, 2] = 0.0
    elif name == "all-zero features":
        problem.texts = [np.zeros_like(h) for h in problem.texts]
    elif name == "one dimension":
        problem = make_problem(seed=6, n=40, d=1, c=2)
    elif name == "more classes than features":
        problem = make_problem(seed=6, n=60, d=3, c=7)
    elif name == "one class":
        problem.labels = np.zeros_like(problem.labels)
    elif name == "mostly one-token texts":
        problem.texts = [h[:1] for h in problem.texts]
        problem.texts[0] = np.random.default_rng(0).normal(size=(3, 6))
    return problem


DEGENERATE = [
    "fewer texts than features",
    "one text",
    "rank-deficient features",
    "a constant channel",
    "constant features",
    "a dead channel",
    "all-zero features",
    "one dimension",
    "more classes than features",
    "one class",
    "mostly one-token texts",
]


@pytest.mark.parametrize("name", DEGENERATE)
@pytest.mark.parametrize("center", [False, True])
@pytest.mark.parametrize("convention", ["theory", "official"])
@pytest.mark.parametrize("folds", [0, 2])
def test_degenerate_data_give_numbers_in_range_or_none(name, center, convention, folds):
    problem = degenerate(name)
    problem.folds = np.arange(len(problem.texts)) % 2
    if folds and len(problem.texts) < 2:
        with pytest.raises(NtpsError, match="no text lies in these folds"):
            score(moments_of(problem, folds=folds), center=center, convention=convention)
        return
    result = score(moments_of(problem, folds=folds), center=center, convention=convention)
    scored = result.layers[0]
    for value in (scored.ntps_whitened, scored.explained, scored.ceiling, scored.retained):
        assert math.isnan(value) or 0 <= value <= 1
    assert math.isnan(scored.ntps) or -1e-6 <= scored.ntps <= 1 + 1e-5
    assert scored.excess_loss >= 0
    assert scored.rank_u <= min(scored.rank_m, problem.c)
    assert scored.rank_v <= problem.d
    low, high = scored.bounds["whitened"]
    assert low - 1e-9 <= scored.excess_loss <= high + 1e-9
    assert result.to_json()
    assert len(str(result)) > 100
    assert result._repr_html_()
    if folds:
        assert "explained_heldout" in result.to_dict()["layers"][0]
        assert scored.explained_heldout is not None
        assert math.isnan(scored.explained_heldout) or scored.explained_heldout <= 1 + 1e-12


def test_what_degenerate_data_give():
    def one(name, **options):
        return score(moments_of(degenerate(name)), **options).layers[0]

    few = one("fewer texts than features")
    assert few.rank_m == 5
    assert few.ceiling == pytest.approx(1.0)  # any labels can be fitted: read the held-out share instead
    low = one("rank-deficient features")
    assert (low.rank_m, low.rank_v) == (3, 3)
    assert low.bounds["raw"][0] == 0.0
    full = one("rank-deficient features", k_v=3)
    assert (full.ntps, full.retained) == pytest.approx((1.0, 1.0))
    assert full.excess_loss == pytest.approx(0.0, abs=1e-12)
    for name in ("constant features", "all-zero features"):
        flat = one(name)
        assert flat.ceiling == 0.0
        assert math.isnan(flat.retained)
        assert flat.excess_loss == pytest.approx(0.0, abs=1e-15)
    zero = one("all-zero features")
    assert (zero.rank_m, zero.rank_u, zero.rank_v, zero.k_u, zero.k_v) == (0, 0, 0, 0, 0)
    assert math.isnan(zero.ntps)
    assert one("constant features", center=True).rank_u == 0
    line = one("one dimension")
    assert (line.k_u, line.k_v, line.ntps, line.chance) == (1, 1, 1.0, 1.0)
    assert math.isnan(line.above_chance)
    assert one("more classes than features").rank_u == 3
    assert one("one class").ceiling == 0.0
    everything = score(moments_of(make_problem(seed=6)), k_v=8).layers[0]
    assert (everything.ntps, everything.chance, everything.retained) == pytest.approx((1.0, 1.0, 1.0))
    with pytest.raises(NtpsError, match="two tokens"):
        score(moments_of(make_problem(longest=1)))


@pytest.mark.parametrize("seed", range(5))
def test_rank_deficient_features_in_float32_score_as_in_float64(seed):
    """V spans what U lives in, so the score is 1; directions made of rounding would take it to 0.6."""
    problem = make_problem(seed=seed, n=200, d=12)
    mix = np.random.default_rng(seed).normal(size=(3, 12))
    problem.texts = [(h[:, :3] @ mix).astype(np.float32) for h in problem.texts]
    for dtype in (torch.float32, torch.float64):
        scored = score(moments_of(problem, dtype=dtype), k_v=3).layers[0]
        assert (scored.rank_m, scored.rank_v) == (3, 3)
        assert scored.ntps == pytest.approx(1.0, abs=1e-6)


def test_what_centring_cancels_is_no_direction():
    """A large constant leaves rounding on its own scale: that is not a feature, however large in absolute terms."""
    for d in (1, 8):
        for constant in 1e5 * np.random.default_rng(0).uniform(1, 9, size=8):
            problem = make_problem(n=50, d=d)
            problem.texts = [np.full_like(h, constant) for h in problem.texts]
            solution = solve_layer(moments_of(problem).layer(0), center=True)
            assert (solution.U.whitening.rank, solution.ceiling) == (0, 0.0)


def test_constant_targets_have_no_share():
    problem = make_problem(n=30)
    scored = score(moments_of(problem, targets=np.full((30, 1), 0.1))).layers[0]
    assert (scored.explained, scored.ceiling) == (0.0, 0.0)
    assert math.isnan(scored.retained)


def test_perception_rank_is_that_of_the_labels():
    for c in (2, 3, 5):
        problem = make_problem(seed=c, n=100, d=8, c=c)
        view = moments_of(problem).layer(0)
        assert perception_encoder(view.M, view.X).rank == c
        assert solve_layer(view, center=True).U.rank == c - 1
