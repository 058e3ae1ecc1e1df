"""The released procedure equals a literal transcription of it at every fraction; its order of operations matters."""

import numpy as np
import pytest
import torch
from helpers import naive
from helpers.problems import make_problem, pooled_tensor, stream

import ntps
from ntps.core import LayerMoments, PooledMoments, official_curve
from ntps.core.official import FRACTIONS, ascending_eigenvectors
from ntps.scoring import ScoreSettings, labels_of, score_layers


def moments(problem, targets=None):
    targets = torch.from_numpy(problem.targets if targets is None else targets)
    return PooledMoments.of(pooled_tensor(problem), targets), stream(problem.texts)[0].layer(0)


def two_programs(pooled, next_token):
    theirs = naive.released_procedure(pooled.M, pooled.X, next_token.C0, next_token.C1)
    return np.array(official_curve(pooled, next_token)["ntps"]), np.array(theirs)


@pytest.mark.parametrize("seed", range(6))
def test_every_fraction_equals_the_transcription(seed):
    """Three classes: all but three U come from a null space, where rounding decides."""
    ours, theirs = two_programs(*moments(make_problem(seed=seed, n=300, d=40, c=3)))
    assert ((ours > -1e-5) & (ours < 1 + 1e-4)).all()
    assert np.abs(ours - theirs).max() < 1e-3
    assert np.abs(ours - theirs[::-1]).max() > 0.05


@pytest.mark.long
@pytest.mark.parametrize("task", ["miniworld/topic", "miniworld/tense"])
@pytest.mark.parametrize("model", ["miniworld-small", "miniworld-base"])
def test_every_fraction_of_bundled_models_equals_the_transcription(model, task):
    """Eighteen pairs of layer and task, with moments of real states."""
    representations = ntps.collect(ntps.load_model(model), ntps.load_task(task, limit=300), progress=False)
    for row in score_layers(representations, labels_of(representations), ScoreSettings(folds=0)):
        solved = row.solved
        ours, theirs = two_programs(solved.pooled, solved.next_token)
        assert np.isfinite(ours).all() and np.abs(ours - theirs).max() < 1e-3, solved.layer


def test_the_place_of_rounding_is_part_of_the_procedure():
    """Whitening before the product, which is the same in exact arithmetic, gives other scores."""
    largest = 0.0
    for seed in range(3):
        pooled, next_token = moments(make_problem(seed=seed, n=300, d=40, c=3))
        ours = np.array(official_curve(pooled, next_token)["ntps"])

        def whitened_first(gram, cross):
            values, vectors = np.linalg.eigh(gram.numpy().astype(np.float32))
            whiten = vectors / np.sqrt(values)
            half = whiten.T @ cross.numpy().astype(np.float32)
            return whiten @ np.linalg.eigh(half @ half.T)[1]

        U, V = whitened_first(pooled.M, pooled.X), whitened_first(next_token.C0, next_token.C1)
        other = [naive.score(U[:, : int(f * 40)], V[:, : int(f * 40)]) for f in np.arange(0.05, 1, 0.05)]
        largest = max(largest, np.abs(ours - other).max())
    assert largest > 0.01


@pytest.mark.parametrize("seed", range(2))
def test_other_order_of_sums_moves_it_as_little_as_noise_does(seed):
    """Moments from plain loops, in another order: the difference is that of relative noise of 1e-7 in the moments."""
    problem = make_problem(seed=seed, n=300, d=40, c=3)
    pooled, next_token = moments(problem)
    ours = np.array(official_curve(pooled, next_token)["ntps"])
    loops = naive.moments(problem.texts, problem.targets)
    theirs = np.array(naive.released_procedure(loops["M"], loops["X"], loops["C0"], loops["C1"]))
    rng = np.random.default_rng(0)
    noise = []
    for _ in range(5):
        noisy = {name: loops[name] * (1 + 1e-7 * rng.normal(size=loops[name].shape)) for name in ("X", "C1")}
        moved = np.array(naive.released_procedure(loops["M"], noisy["X"], loops["C0"], noisy["C1"]))
        noise.append(np.abs(moved - theirs).mean())
    assert np.abs(ours - theirs).mean() < 3 * np.mean(noise)
    assert np.mean(noise) > 1e-4  # which is not nothing


@pytest.mark.parametrize("seed", range(4))
def test_without_a_null_space_rounding_decides_nothing(seed):
    """As many targets as features: every eigenvalue differs from zero, and moments in another order are as good."""
    problem = make_problem(seed=seed, n=300, d=20, c=3)
    rng = np.random.default_rng(seed)
    targets = naive.pooled(problem.texts) @ rng.normal(size=(20, 20)) + rng.normal(size=(300, 20))
    ours = np.array(official_curve(*moments(problem, targets))["ntps"])
    loops = naive.moments(problem.texts, targets)
    theirs = np.array(naive.released_procedure(loops["M"], loops["X"], loops["C0"], loops["C1"]))
    assert np.abs(ours - theirs).max() < 0.01
    assert np.abs(ours - theirs[::-1]).max() > 0.1


def test_eigenvectors_come_smallest_first():
    problem = make_problem(seed=0, n=200, d=10, c=10, longest=8)
    view = stream(problem.texts)[0].layer(0)
    V = torch.from_numpy(ascending_eigenvectors(view.C0, view.C1)).double()
    values = torch.linalg.vecdot(V.T, (view.C1 @ view.C1.T @ V).T)
    assert (values.diff() > -1e-3 * values.max()).all()
    assert values[0] < 0.2 * values[-1]
    assert torch.allclose(V.T @ view.C0 @ V, torch.eye(10, dtype=torch.float64), atol=1e-2)


def test_fractions():
    assert len(FRACTIONS) == 19
    assert pytest.approx([0.05 * step for step in range(1, 20)]) == FRACTIONS


@pytest.mark.parametrize("kept", [0, 1, 5, 20, 33, 40])
def test_fractions_are_taken_of_each_kept_rank(kept):
    """Whole parts, those of U and of V each of its own rank; no direction gives NaN, never 0 or 1."""
    d = 40
    gram = torch.diag(torch.cat([torch.ones(kept), torch.zeros(d - kept)]).double())
    pooled = PooledMoments.of(torch.eye(d), torch.eye(d))
    pooled = type(pooled)(**{**vars(pooled), "M": gram})
    next_token = LayerMoments(layer=0, C0=torch.eye(d), C1=torch.eye(d), n_texts=9, n_pairs=9)
    curve = official_curve(pooled, next_token)
    assert curve["fraction"] == list(FRACTIONS)
    assert curve["k_u"] == [int(share * kept) for share in np.arange(0.05, 1, 0.05)]
    assert curve["k_v"] == [2 * step for step in range(1, 20)]
    assert [np.isnan(value) for value in curve["ntps"]] == [k == 0 for k in curve["k_u"]]


def test_deterministic_and_absolute():
    problem = make_problem(seed=1, n=100, d=12)
    np.testing.assert_equal(official_curve(*moments(problem)), official_curve(*moments(problem)))
    problem.texts = [h * 1e-6 for h in problem.texts]
    assert all(np.isnan(official_curve(*moments(problem))["ntps"]))  # an absolute 1e-8 keeps nothing
