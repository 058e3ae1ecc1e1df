"""The closed forms solve what they say: residuals, orthonormality, and no other encoder does better."""

import numpy as np
import pytest
import torch
from helpers import naive
from helpers.problems import make_problem, pooled_tensor, solve, stream
from hypothesis import example, given, settings
from hypothesis import strategies as st

import ntps.core.solve
from ntps.core import PooledMoments, autoregressive_encoder, perception_encoder
from ntps.core.encoders import layer_autoregressive_encoder, row_whitening, solve_encoder, whitening
from ntps.errors import NtpsError


@pytest.fixture(scope="module")
def problem():
    return make_problem(seed=1, n=150, d=8, c=4)


def pooled_moments(problem):
    return PooledMoments.of(pooled_tensor(problem), torch.from_numpy(problem.targets))


def next_token(problem, **options):
    return stream(problem.texts, **options)[0].layer(0)


@pytest.fixture(scope="module")
def both(problem):
    """Each encoder with the two matrices it solves."""
    pooled, moments = pooled_moments(problem), next_token(problem)
    return [
        (perception_encoder(pooled.M, pooled.X), pooled.M, pooled.X),
        (autoregressive_encoder(moments.C0, moments.C1), moments.C0, moments.C1),
    ]


def test_eigen_residuals_and_orthonormality(both):
    for encoder, B, F in both:
        U, values = encoder.vectors, encoder.eigenvalues
        left, right = F @ F.T @ U, B @ U * values
        assert (left - right).norm() < 1e-9 * right.norm()
        assert torch.allclose(U.T @ B @ U, torch.eye(U.shape[1], dtype=torch.float64), rtol=0, atol=1e-9)
        assert (values[:-1] >= values[1:]).all()
        assert torch.allclose(
            encoder.coordinates.T @ encoder.coordinates, torch.eye(U.shape[1], dtype=torch.float64), rtol=0, atol=1e-12
        )
        wrong = U + 1e-3 * torch.roll(U, 1, 0)
        assert (F @ F.T @ wrong - B @ wrong * values).norm() > 1e-6 * right.norm()


def test_signs_are_fixed(both):
    for encoder, _, _ in both:
        largest = encoder.vectors.gather(0, encoder.vectors.abs().argmax(0, keepdim=True))
        assert (largest > 0).all()


def test_correlations(both):
    U, V = (encoder for encoder, _, _ in both)
    assert (U.rank, U.vectors.shape) == (4, (8, 4))
    assert (V.rank, V.vectors.shape) == (8, (8, 8))
    _, M, X = both[0]
    whole = perception_encoder(M, X, columns=8)
    assert (whole.rank, whole.vectors.shape) == (4, (8, 8))
    assert torch.allclose(whole.vectors[:, :4], U.vectors)
    assert (whole.eigenvalues[4:] == 0).all()
    assert torch.allclose(whole.vectors.T @ M @ whole.vectors, torch.eye(8, dtype=torch.float64), atol=1e-9)


@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_perception_loss_is_the_formula_and_the_minimum(problem, both, k):
    x, y, U = naive.pooled(problem.texts), problem.targets, both[0][0]
    best = naive.loss(x @ U.vectors[:, :k].numpy(), y)
    assert best == pytest.approx(float((y**2).sum() / len(y)) - float(U.eigenvalues[:k].sum()), abs=1e-10)
    rng = np.random.default_rng(0)
    others = [naive.loss(x @ rng.normal(size=(8, k)), y) for _ in range(300)]
    assert best < min(others)
    assert best == pytest.approx(optimised(x, y, k), rel=1e-5)
    rotated = U.vectors[:, :k].numpy() @ rng.normal(size=(k, k))  # the optimum is the subspace, not its basis
    assert naive.loss(x @ rotated, y) == pytest.approx(best, rel=1e-9)


@pytest.mark.parametrize("k", [1, 3, 6])
@pytest.mark.parametrize("prefix", ["sum", "mean", "last"])
def test_next_token_loss_is_the_formula_and_the_minimum(problem, prefix, k):
    moments = next_token(problem, prefix=prefix)
    V = autoregressive_encoder(moments.C0, moments.C1)
    past, following = naive.pairs(problem.texts, prefix)
    best = naive.loss(past @ V.vectors[:, :k].numpy(), following)
    explained = float(V.eigenvalues[:k].sum()) * len(problem.texts) / len(past)  # per pair instead of per text
    assert best == pytest.approx(float((following**2).sum() / len(past)) - explained, rel=1e-9)
    rng = np.random.default_rng(0)
    assert best < min(naive.loss(past @ rng.normal(size=(8, k)), following) for _ in range(300))
    assert best == pytest.approx(optimised(past, following, k), rel=1e-5)


def test_smallest_directions_are_not_the_minimum(problem, both):
    """Taken from the wrong end, as an ascending solver returns them, the encoder loses to random ones."""
    x, y = naive.pooled(problem.texts), problem.targets
    U = perception_encoder(*both[0][1:], columns=8)
    worst = naive.loss(x @ U.vectors[:, -2:].numpy(), y)
    rng = np.random.default_rng(0)
    assert worst > max(naive.loss(x @ rng.normal(size=(8, 2)), y) for _ in range(300))


def optimised(x, y, k):
    """The loss that alternating least squares on E and W reaches, from several starts."""
    q = np.linalg.qr(x)[0]  # an invertible change of x changes no minimum
    inside, best = q.T @ y, np.inf
    for seed in range(2):
        W = np.random.default_rng(seed).normal(size=(k, y.shape[1]))
        for _ in range(1000):
            E = inside @ np.linalg.pinv(W)
            W = np.linalg.pinv(E) @ inside
        best = min(best, float(((y - q @ E @ W) ** 2).sum() / len(y)))
    return best


@pytest.mark.parametrize("factor", [1e-2, 1e4, 1e-30])
def test_tolerances_are_relative(both, factor):
    for (encoder, B, F), labels in zip(both, (True, False), strict=True):
        scaled = solve_encoder(whitening(B * factor**2, rtol=1e-12), F * (factor if labels else factor**2))
        assert scaled.rank == encoder.rank
        assert torch.allclose(scaled.vectors * factor, encoder.vectors, rtol=1e-7, atol=1e-9)
        # Pooled labels do not scale with the features; next tokens do.
        expected = encoder.eigenvalues * (1 if labels else factor**2)
        assert torch.allclose(scaled.eigenvalues, expected, rtol=1e-9, atol=0)


def test_an_ill_conditioned_gram_keeps_its_small_directions():
    """One channel 1e4 times the others, as outlier channels of real models are: condition 1e8, nothing dropped."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 6)) * np.array([1e4, 1, 1, 1, 1, 1])
    y = np.stack([x[:, 3] > 0, x[:, 3] <= 0], axis=1).astype(float)
    U = perception_encoder(torch.from_numpy(x.T @ x / 400), torch.from_numpy(x.T @ y / 400))
    best = naive.loss(x @ U.vectors.numpy(), y)
    assert U.whitening.rank == 6
    assert best == pytest.approx(naive.loss(x, y), rel=1e-9)


def test_rank_deficient_gram():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 3)) @ rng.normal(size=(3, 9))
    y = np.eye(4)[rng.integers(0, 4, size=60)]
    U = perception_encoder(torch.from_numpy(x.T @ x / 60), torch.from_numpy(x.T @ y / 60))
    assert (U.whitening.rank, U.rank) == (3, 3)
    assert U.whitening.smallest == 0.0
    assert naive.loss(x @ U.vectors.numpy(), y) == pytest.approx(naive.loss(x, y), rel=1e-9)


def test_negative_eigenvalues_measure_the_rounding():
    """A Gram has none: where one appears, directions of its size are noise, whatever the tolerance says."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 3)) @ rng.normal(size=(3, 12))
    noise = rng.normal(size=(12, 12))
    noisy = torch.from_numpy(x.T @ x / 60 + 1e-8 * (noise + noise.T))
    assert whitening(noisy, rtol=1e-12).rank == 3
    assert (torch.linalg.eigvalsh(noisy) > 1e-10).sum() > 3  # what a tolerance alone would keep
    small = torch.diag(torch.tensor([1.0, 1e-3, 1e-11], dtype=torch.float64))
    assert whitening(small, rtol=1e-12).rank == 3  # nothing is negative: nothing more is cut


@pytest.mark.parametrize("seed", range(6))
def test_rank_deficient_features_summed_in_float32(seed):
    """Few distinct words under a wide model: layer 0 spans no more than there are words."""
    rng = np.random.default_rng(seed)
    words = (rng.normal(size=(7, 24)) + rng.normal(size=24)).astype(np.float32)
    problem = make_problem(seed=seed, n=100, d=24)
    problem.texts = [words[rng.integers(0, 7, size=len(h))] for h in problem.texts]
    V = layer_autoregressive_encoder(next_token(problem, dtype=torch.float32))
    assert V.whitening.rank == 7
    past, following = naive.pairs(problem.texts)
    assert naive.loss(past @ V.vectors.numpy(), following) == pytest.approx(naive.loss(past, following), rel=1e-5)


def changed(problem, change):
    """The problem with every state changed."""
    problem.texts = [change(h) for h in problem.texts]
    return problem


@pytest.mark.slow
@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 5),
    channel=st.integers(0, 15),
    power=st.floats(-3, 4),
    mean=st.sampled_from([0.0, 5.0]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    center=st.booleans(),
)
def test_no_channel_hides_the_others(seed, channel, power, mean, dtype, center):
    """One channel times 1e-3 to 1e4: what does not depend on the scale of the next token stays as it was."""
    offset, factor = mean * np.eye(16)[channel], 1 + (10**power - 1) * np.eye(16)[channel]
    plain, scaled = (
        solve(changed(make_problem(seed=seed, n=200, d=16), lambda h: (h + offset) * f), dtype=dtype, center=center)  # noqa: B023
        for f in (1.0, factor)
    )
    for solved in (plain, scaled):
        assert (solved.plain.rank, solved.centered.rank, solved.V.whitening.rank, solved.V.rank) == (16,) * 4
        assert solved.whitened_ntps_at(2, 16) == pytest.approx(1, rel=1e-6)
        assert solved.excess_at(solved.U.rank, 16) == pytest.approx(0, abs=1e-6)
    assert scaled.U.rank == plain.U.rank
    assert scaled.ceiling == pytest.approx(plain.ceiling, rel=1e-6)
    assert scaled.r2_at(16) == pytest.approx(plain.r2_at(16), rel=1e-6)
    assert torch.allclose(scaled.U.eigenvalues, plain.U.eigenvalues, rtol=1e-6, atol=1e-9)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 5), powers=st.lists(st.floats(-5, 5), min_size=8, max_size=8), few=st.booleans())
@example(seed=4, powers=[-5.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 4.0], few=True)
@example(seed=4, powers=[-5.0, -5.0, -4.0, 0.0, 5.0, 0.0, -4.0, 5.0], few=True)
def test_an_encoder_does_not_depend_on_the_scales_of_its_inputs(seed, powers, few):
    """V of scaled prefix states predicts the same next states, so its directions are the same with other units.

    With fewer pairs than channels, W is projected in the channels' own units, which costs digits where those differ.
    """
    moments, factor = next_token(make_problem(seed=seed, n=4 if few else 100)), 10.0 ** torch.tensor(powers).double()
    n_pairs = moments.n_pairs
    plain = solve_encoder(whitening(moments.C0, rtol=1e-12, max_rank=n_pairs), moments.C1)
    B = moments.C0 * torch.outer(factor, factor)
    scaled = solve_encoder(whitening(B, rtol=1e-12, max_rank=n_pairs), moments.C1 * factor[:, None])
    assert (scaled.rank, scaled.whitening.rank) == (plain.rank, plain.whitening.rank)
    rtol = max(1e-6, 1e-13 * float(factor.max() / factor.min())) if few else 1e-6
    assert torch.allclose(scaled.eigenvalues, plain.eigenvalues, rtol=rtol, atol=1e-9 * float(plain.eigenvalues[0]))


@pytest.mark.parametrize(("n", "rows"), [(5, False), (12, False), (200, False), (1, True), (5, True), (11, True)])
def test_what_whitening_promises(n, rows):
    """W^T B W = I, H W = I, H^T H = B, W in the range of B; a channel that is always 0 takes no part."""
    x = np.random.default_rng(0).normal(size=(n, 12)) * 10.0 ** np.linspace(-2, 2, 12)
    x[:, 3] = 0
    B = torch.from_numpy(x.T @ x / n)
    if rows:
        made = row_whitening(torch.from_numpy(x) / n**0.5, B.diagonal(), rtol=1e-12)
    else:
        made = whitening(B, rtol=1e-12, max_rank=n)
    identity = torch.eye(made.rank, dtype=torch.float64)
    assert made.rank == min(n, 11)
    assert torch.allclose(made.half @ made.whiten, identity, rtol=0, atol=1e-9)
    assert torch.allclose(made.whiten.T @ B @ made.whiten, identity, rtol=0, atol=1e-9)
    units = B.diagonal().sqrt()
    assert ((made.half.T @ made.half - B).abs() <= 1e-12 * torch.outer(units, units)).all()
    assert (made.whiten[3] == 0).all()
    assert (made.half[:, 3] == 0).all()
    assert torch.allclose(made.whiten, torch.linalg.pinv(made.half), rtol=1e-6, atol=1e-7)
    assert made.largest == pytest.approx(float(torch.linalg.matrix_norm(B, 2)))
    assert made.smallest == 0.0


@pytest.mark.parametrize("kind", ["plain", "loud", "repeated", "constant", "nothing"])
def test_rows_are_decomposed_like_their_gram(kind):
    x = np.random.default_rng(1).normal(size=(20, 60))
    x *= {"loud": 10.0 ** np.linspace(-3, 3, 60), "nothing": 0.0}.get(kind, 1.0)
    if kind == "repeated":
        x[10:] = x[:10]
    if kind == "constant":
        x[:, 7], x[:, 8] = 1e4, 1e-3
    states = torch.from_numpy(x)
    pooled = PooledMoments.of(states, torch.ones(20, 1))
    squares = pooled.M.diagonal()
    for B, rows, most in ((pooled.M, states, 20), (pooled.centered().M, states - states.mean(0), 19)):
        gram = whitening(B, rtol=1e-12, max_rank=most, diagonal=squares)
        made = row_whitening(rows / 20**0.5, squares, rtol=1e-12)
        assert made.rank == gram.rank == {"repeated": most // 2, "nothing": 0}.get(kind, most)
        varying = [channel for channel in range(60) if kind != "constant" or channel not in (7, 8)]
        for mine, theirs in ((made.half.T @ made.half, B), (made.whiten @ made.whiten.T, gram.whiten @ gram.whiten.T)):
            mine, theirs = mine[varying][:, varying], theirs[varying][:, varying]
            scale = theirs.diagonal().clamp_min(1e-12).sqrt()
            assert ((mine - theirs).abs() <= 1e-6 * torch.outer(scale, scale)).all()
        assert made.largest == pytest.approx(gram.largest) and made.smallest == gram.smallest == 0.0


def test_rows_with_a_number_that_is_not_finite():
    with pytest.raises(NtpsError, match="not finite"):
        row_whitening(torch.full((2, 5), float("inf")), torch.ones(5), rtol=1e-12)


@pytest.mark.parametrize("center", [False, True])
def test_few_texts_of_a_wide_model_are_solved_from_their_rows(center, monkeypatch):
    problem, asked = make_problem(n=12, d=30, folds=3), []
    own = ntps.core.solve.row_whitening
    monkeypatch.setattr(ntps.core.solve, "row_whitening", lambda *given, **more: asked.append(1) or own(*given, **more))
    mine = solve(problem, center=center, folds=True)
    folds = [mine.without_fold(fold) for fold in range(3)]
    assert len(asked) == 2 * 4

    def from_gram(rows, squares, *, rtol):
        return whitening(rows.T @ rows, rtol=rtol, diagonal=squares)

    monkeypatch.setattr(ntps.core.solve, "row_whitening", from_gram)
    theirs = solve(problem, center=center, folds=True)
    for one, other in zip((mine, *folds), (theirs, *(theirs.without_fold(fold) for fold in range(3))), strict=True):
        assert (one.U.rank, one.plain.rank, one.centered.rank) == (other.U.rank, other.plain.rank, other.centered.rank)
        for name in ("table", "whitened_table"):  # classes of one size, which few texts can tell apart, turn freely
            assert torch.allclose(getattr(one, name)[:, -1], getattr(other, name)[:, -1], atol=1e-7), name
        for name in ("explained", "r2"):
            assert torch.allclose(getattr(one, name), getattr(other, name), atol=1e-7), name
        assert one.ceiling == pytest.approx(other.ceiling, abs=1e-9)


def test_duplicated_features_do_not_raise_the_rank():
    plain, doubled = (
        solve(changed(make_problem(seed=2, n=150), lambda h: np.tile(h, (1, times))))  # noqa: B023
        for times in (1, 2)
    )
    assert (doubled.plain.rank, doubled.centered.rank, doubled.V.whitening.rank, doubled.V.rank) == (8,) * 4
    assert doubled.ceiling == pytest.approx(plain.ceiling, rel=1e-9)
    assert torch.allclose(doubled.table, plain.table, rtol=1e-7)
    assert torch.allclose(doubled.r2, plain.r2, rtol=1e-7)


def test_the_order_of_classes_does_not_matter():
    problem = make_problem(seed=2, n=150)
    plain, turned = solve(problem), solve(problem, targets=problem.targets[:, [2, 0, 1]])
    assert torch.allclose(turned.U.vectors, plain.U.vectors, rtol=1e-8)
    assert torch.allclose(turned.table, plain.table, rtol=1e-9)


def test_what_centring_cancels_is_judged_by_each_channel():
    """Constant channels, loud or not, are no direction, while one that varies beside a large mean is."""
    x = np.random.default_rng(0).normal(size=(300, 6)) + np.array([0, 0, 1e4, 0, 0, 0])
    x[:, 4], x[:, 5] = 1e6, 1e-3
    states = torch.from_numpy(x)
    pooled = PooledMoments.of(states, torch.ones(300, 1))
    made = whitening(pooled.centered().M, rtol=1e-12, diagonal=pooled.M.diagonal())
    assert made.rank == 4
    assert made.whiten[4:].abs().max() < 1e-3 * made.whiten[:4].abs().max()


def test_known_rank_cuts_rounding():
    problem = make_problem(n=5, d=12)
    moments = pooled_moments(problem)
    U = perception_encoder(moments.M, moments.X, rtol=1e-300, max_rank=moments.n)
    assert U.whitening.rank == 5
    assert naive.loss(naive.pooled(problem.texts) @ U.vectors.numpy(), problem.targets) < 1e-10


def test_zero_cross_moment_has_no_direction():
    encoder = perception_encoder(torch.eye(4), torch.zeros(4, 2))
    assert (encoder.rank, encoder.vectors.shape) == (0, (4, 0))
    assert perception_encoder(torch.zeros(4, 4), torch.zeros(4, 2)).vectors.shape == (4, 0)
    assert perception_encoder(torch.zeros(4, 4), torch.zeros(4, 2), columns=4).vectors.shape == (4, 0)
    assert autoregressive_encoder(torch.zeros(4, 4), torch.zeros(4, 4)).vectors.shape == (4, 0)


def test_one_dimension():
    problem = make_problem(n=20, d=1, c=2)
    moments = pooled_moments(problem)
    U, V = perception_encoder(moments.M, moments.X), layer_autoregressive_encoder(next_token(problem))
    assert U.vectors.shape == V.vectors.shape == (1, 1)
    assert float(U.vectors) == pytest.approx(float(moments.M) ** -0.5)


@pytest.mark.parametrize(
    ("call", "word"),
    [
        (lambda: whitening(torch.ones(2, 3), rtol=1e-12), r"\(2, 3\)"),
        (lambda: whitening(torch.full((2, 2), float("nan")), rtol=1e-12), "not finite"),
        (lambda: perception_encoder(torch.eye(3), torch.ones(4, 2)), r"\(4, 2\)"),
        (lambda: perception_encoder(torch.eye(3), torch.ones(3)), r"\(3,\)"),
        (lambda: perception_encoder(torch.eye(3), torch.full((3, 2), float("nan"))), "not finite"),
        (lambda: layer_autoregressive_encoder(next_token(make_problem(longest=1))), "two tokens"),
    ],
)
def test_what_cannot_be_solved(call, word):
    with pytest.raises(NtpsError, match=word):
        call()
