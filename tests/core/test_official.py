"""The released procedure equals a transcription of it, in the mean over fractions, and is not the default."""

import numpy as np
import pytest
import torch
from helpers import naive
from helpers.problems import make_problem, pooled_tensor, stream

from ntps.core import LayerMoments, PooledMoments, official_curve
from ntps.core.official import FRACTIONS, ascending_eigenvectors


def two_programs(problem, targets=None):
    """Our 19 scores, and the transcription's on moments from plain loops."""
    loops = naive.moments(problem.texts, problem.targets if targets is None else targets)
    theirs = naive.released_procedure(loops["M"], loops["X"], loops["C0"], loops["C1"])
    return np.array(curve(problem, targets)), np.array(theirs)


def curve(problem, targets=None):
    targets = torch.from_numpy(problem.targets if targets is None else targets)
    return official_curve(PooledMoments.of(pooled_tensor(problem), targets), stream(problem.texts)[0].layer(0))


def test_mean_equals_a_transcription():
    """Digit by digit no two programs agree: most U come from a null space, where rounding decides."""
    differences = []
    for seed in range(6):
        ours, theirs = two_programs(make_problem(seed=seed, n=300, d=40, c=3))
        assert len(ours) == len(theirs) == 19
        assert ((ours > -1e-5) & (ours < 1 + 1e-4)).all()
        differences.append(ours.mean() - theirs.mean())
    assert np.abs(differences).max() < 0.15
    assert abs(np.mean(differences)) < 0.05


@pytest.mark.parametrize("seed", range(4))
def test_every_fraction_equals_a_transcription_without_a_null_space(seed):
    """As many targets as features: every eigenvalue differs from zero, and rounding decides nothing."""
    problem = make_problem(seed=seed, n=300, d=20, c=3)
    rng = np.random.default_rng(seed)
    targets = naive.pooled(problem.texts) @ rng.normal(size=(20, 20)) + rng.normal(size=(300, 20))
    ours, theirs = two_programs(problem, targets)
    assert np.abs(ours - theirs).max() < 0.01
    assert np.abs(ours - theirs[::-1]).max() > 0.1


def test_eigenvectors_come_smallest_first():
    problem = make_problem(seed=0, n=200, d=10, c=10, longest=8)
    view = stream(problem.texts)[0].layer(0)
    V = ascending_eigenvectors(view.C0, view.C1).double()
    values = torch.linalg.vecdot(V.T, (view.C1 @ view.C1.T @ V).T)
    assert (values.diff() > -1e-3 * values.max()).all()
    assert values[0] < 0.2 * values[-1]
    assert torch.allclose(V.T @ view.C0 @ V, torch.eye(10, dtype=torch.float64), atol=1e-2)


def test_fractions():
    assert len(FRACTIONS) == 19
    assert pytest.approx([0.05 * step for step in range(1, 20)]) == FRACTIONS


@pytest.mark.parametrize("d", [1, 5, 20, 33, 40, 60, 100])
def test_number_of_directions_is_the_whole_part(d):
    counts = [max(1, d * step // 20) for step in range(1, 20)]
    seen, original, identity = [], torch.linalg.pinv, torch.eye(d)
    pooled = PooledMoments.of(identity, identity)
    next_token = LayerMoments(layer=0, C0=identity, C1=identity, n_texts=9, n_pairs=9)

    def pinv(matrix):
        seen.append(matrix.shape[1])
        return original(matrix)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.linalg, "pinv", pinv)
        official_curve(pooled, next_token)
    assert seen == counts


def test_deterministic_and_absolute():
    problem = make_problem(seed=1, n=100, d=12)
    assert curve(problem) == curve(problem)
    problem.texts = [h * 1e-6 for h in problem.texts]
    assert all(np.isnan(curve(problem)))  # an absolute 1e-8 keeps nothing
