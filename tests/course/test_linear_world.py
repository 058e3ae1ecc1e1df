"""The two-dimensional world: its exact moments are those of samples, its reading is that of the library."""

import numpy as np
import pytest
import torch

from ntps.core import autoregressive_encoder, perception_encoder
from ntps.course.widgets import LinearWorld, plane_world, read_world
from ntps.errors import NtpsError


def test_exact_moments_are_those_of_samples():
    rng = np.random.default_rng(0)
    A, B = rng.standard_normal((2, 3, 2))
    world = LinearWorld(A=A, N=np.diag([2.0, 1.0, 0.3]), B=B, length=5)
    states, y = world.sample(200_000, seed=1)
    s, x, n = states.cumsum(1), states.mean(1), len(states)
    sampled = {
        "C0": np.einsum("ntd,nte->de", s[:, :-1], s[:, :-1]) / n,
        "C1": np.einsum("ntd,nte->de", s[:, :-1], states[:, 1:]) / n,
        "M": x.T @ x / n,
        "X": x.T @ y / n,
        "yy": y.T @ y / n,
    }
    exact = vars(world.next_token) | vars(world.pooled)
    for name, value in sampled.items():
        theory = exact[name].numpy()
        assert np.abs(value - theory).max() < 0.02 * np.abs(theory).max(), name
    assert np.square(states[:, 1:]).sum() / n == pytest.approx(world.next_energy, rel=0.01)


@pytest.mark.parametrize(("a", "b"), [(30, 30), (0, 45), (20, 110), (170, 50)])
def test_round_noise_scores_the_squared_cosine(a, b):
    assert read_world(plane_world(a, b, 1.0)).ntps == pytest.approx(np.cos(np.radians(a - b)) ** 2, abs=1e-9)


def test_next_token_direction_is_seen_against_the_noise():
    world = plane_world(40, 10, 3.0)
    v = autoregressive_encoder(world.next_token.C0, world.next_token.C1).vectors[:, 0].numpy()
    expected = np.linalg.solve(world.N, world.A)[:, 0]
    assert abs(v @ expected) == pytest.approx(np.linalg.norm(v) * np.linalg.norm(expected))


def test_label_loss_agrees_with_the_encoders():
    world = plane_world(40, 100, 2.0)
    M, X = world.pooled.M, world.pooled.X
    reading = read_world(world)
    at_u, at_v, energy = reading.label_loss
    assert energy == pytest.approx(1.0)
    assert energy - at_u == pytest.approx(float(perception_encoder(M, X).eigenvalues[0]))
    v = reading.V.vectors[:, :1]
    explained = float(torch.trace(torch.linalg.solve(v.T @ M @ v, v.T @ X @ X.T @ v)))
    assert energy - at_v == pytest.approx(explained)
    assert reading.retained == pytest.approx(explained / (energy - at_u))


def test_a_world_of_wrong_shapes_is_refused():
    with pytest.raises(NtpsError, match=r"N must be \(2, 2\)"):
        LinearWorld(A=np.ones((2, 1)), N=np.eye(3), B=np.ones((2, 1)))
    with pytest.raises(NtpsError, match="stretch"):
        plane_world(stretch=0)
