"""Changes that are planted in one place are attributed to it."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from ntps.core import NextTokenMoments, autoregressive_encoder, perception_encoder, solve_layer
from ntps.errors import NtpsError
from ntps.finetune.changes import layer_change, split_change
from ntps.models import Representations
from ntps.scoring import ScoreSettings, labels_of, read_layer, score_layers
from ntps.scoring.scores import ScoredLayer

D, CLASSES = 12, 3


def scored(states, labels, folds=0):
    """One layer of texts, (n, T, d) states, solved and scored."""
    moments = NextTokenMoments(layers=[1], width=states.shape[2], dtype=torch.float64)
    pooled = moments.update(states[None], torch.ones(states.shape[:2], dtype=torch.int64))
    n = len(states)
    lengths = np.full(n, states.shape[1])
    representations = Representations(
        states=pooled.numpy(),
        layers=moments.layers,
        widths=moments.widths,
        next_token=moments,
        text_index=np.arange(n),
        text_group=np.arange(n),
        lengths=lengths,
    )
    return next(score_layers(representations, labels_of(representations, labels), ScoreSettings(folds=folds)))


def solved_again(layer, *, channels=None, C0=None, C1=None):
    """The same texts with pooled states in other channels, or with other next-token moments."""
    solved = layer.solved
    moments = solved.next_token
    states = solved.states if channels is None else solved.states @ channels
    moments = replace(moments, C0=moments.C0 if C0 is None else C0, C1=moments.C1 if C1 is None else C1)
    solved = solve_layer(states, solved.targets, moments)
    return ScoredLayer(solved=solved, score=read_layer(solved), held_out=None, readouts={}, null=None)


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def texts():
    """States of 90 texts in which labels shift the mean and each token depends on the one before."""
    generator = torch.Generator().manual_seed(0)
    draw = {"generator": generator, "dtype": torch.float64}
    mixing = 0.5 * torch.linalg.qr(torch.randn(D, D, **draw))[0] * torch.linspace(0.2, 1.5, D, dtype=torch.float64)
    shift = torch.randn(CLASSES, D, **draw)
    states, labels = [], [n % CLASSES for n in range(90)]
    for label in labels:
        rows = [torch.randn(D, **draw) + 0.8 * shift[label]]
        for _ in range(7):
            rows.append(rows[-1] @ mixing + 0.7 * torch.randn(D, **draw) + 0.3 * shift[label])
        states.append(torch.stack(rows))
    return torch.stack(states), labels


class TestSplit:
    def test_parts_add_up_and_each_is_found(self):
        values = dict(zip([(u, v, s) for u in (0, 1) for v in (0, 1) for s in (0, 1)],
                          np.random.default_rng(0).normal(size=8), strict=True))  # fmt: skip
        parts = split_change(lambda u, v, s: values[u, v, s])
        assert parts.u + parts.v + parts.both + parts.scale == pytest.approx(values[1, 1, 1] - values[0, 0, 0])
        additive = split_change(lambda u, v, s: 1 + 2 * u + 4 * v + 8 * u * v + 16 * s)
        assert (additive.u, additive.v, additive.both, additive.scale) == (2, 4, 8, 16)


class TestLayerChange:
    def test_no_change_is_zero(self, texts):
        layer = scored(*texts)
        change = layer_change(layer, layer)
        assert max(*change.angles_u, *change.angles_v) < 1e-12
        for parts in (change.ntps, change.explained):
            assert [parts.u, parts.v, parts.both, parts.scale] == pytest.approx([0, 0, 0, 0], abs=1e-12)
        assert change.ntps.before == pytest.approx(layer.score.ntps)
        assert change.explained.before == pytest.approx(layer.score.explained)

    def test_other_labels_change_u_alone(self, texts):
        states, labels = texts
        other = [(label + index // 45) % CLASSES for index, label in enumerate(labels)]
        change = layer_change(scored(states, labels), scored(states, other))
        assert max(change.angles_v) < 1e-9
        assert max(change.angles_u) > 0.05
        assert abs(change.ntps.u) > 1e-4
        for parts in (change.ntps, change.explained):
            assert parts.u == pytest.approx(parts.change, abs=1e-9)
            assert [parts.v, parts.both, parts.scale] == pytest.approx([0, 0, 0], abs=1e-9)

    def test_other_dynamics_change_v_alone(self, texts):
        before = scored(*texts)
        turn = torch.linalg.qr(torch.randn(D, D, dtype=torch.float64, generator=torch.Generator().manual_seed(1)))[0]
        moments = before.solved.next_token
        after = solved_again(before, C0=turn @ moments.C0 @ turn.T, C1=turn @ moments.C1 @ turn.T)
        change = layer_change(before, after)
        assert max(change.angles_u) < 1e-9
        assert max(change.angles_v) > 0.3
        for parts in (change.ntps, change.explained):
            assert abs(parts.change) > 1e-3
            assert parts.v == pytest.approx(parts.change, abs=1e-9)
            assert [parts.u, parts.both, parts.scale] == pytest.approx([0, 0, 0], abs=1e-9)

    def test_louder_channels_are_scale_as_far_as_directions_keep(self, texts):
        """U follows a rescaling of channels exactly; V does so where what is predicted is not rescaled with it."""
        before = scored(*texts)
        loud = torch.linspace(0.2, 5.0, D, dtype=torch.float64).diag()
        moments = before.solved.next_token
        after = solved_again(before, channels=loud, C0=loud @ moments.C0 @ loud, C1=loud @ moments.C1)
        change = layer_change(before, after)
        assert max(change.angles_u) > 0.05
        assert abs(change.ntps.change) > 0.01
        assert change.ntps.scale == pytest.approx(change.ntps.change, abs=1e-8)
        assert [change.ntps.u, change.ntps.v, change.ntps.both] == pytest.approx([0, 0, 0], abs=1e-8)
        assert change.explained.change == pytest.approx(0, abs=1e-8)

    def test_parts_against_the_definition(self, texts):
        """NTPS of new U and old V, by the paper's formula, in channels of the old and of the new scale."""
        states, labels = texts
        wide = torch.linspace(0.5, 2, D, dtype=torch.float64)
        tuned = states * wide + 0.4 * states.roll(1, dims=-1)
        before, after = scored(states, labels), scored(tuned, labels)
        change = layer_change(before, after)
        pooled = [side.solved.pooled for side in (before, after)]
        moments = [side.solved.next_token for side in (before, after)]
        s = [p.M.diagonal().sqrt() for p in pooled]
        U = [perception_encoder(p.M, p.X).vectors[:, : change.k_u] for p in pooled]
        V = [autoregressive_encoder(m.C0, m.C1).vectors[:, : change.k_v] for m in moments]

        def formula(u, v, at):
            left, right = (s[u] / s[at])[:, None] * U[u], (s[v] / s[at])[:, None] * V[v]
            projected = right @ torch.linalg.pinv(right) @ left
            return float(projected.square().sum() / left.square().sum())

        expected = sum(formula(1, 0, at) - formula(0, 0, at) for at in (0, 1)) / 2
        assert change.ntps.u == pytest.approx(expected, rel=1e-6)
        expected = (formula(0, 0, 1) - formula(0, 0, 0) + formula(1, 1, 1) - formula(1, 1, 0)) / 2
        assert change.ntps.scale == pytest.approx(expected, rel=1e-6)

        def share(u, v):
            """R^2 of least squares on the pooled states seen through V', each channel in units of its own scale."""
            means = (states, tuned)[u].mean(1) / s[u]
            seen = means @ (s[v][:, None] * V[v])
            one_hot = torch.eye(CLASSES, dtype=torch.float64)[labels]
            seen, one_hot = seen - seen.mean(0), one_hot - one_hot.mean(0)
            residual = one_hot - seen @ torch.linalg.lstsq(seen, one_hot).solution
            return float(1 - residual.square().sum() / one_hot.square().sum())

        assert change.explained.v == pytest.approx(share(0, 1) - share(0, 0), rel=1e-6)
        assert change.explained.u == pytest.approx(share(1, 0) - share(0, 0), rel=1e-6)
        for parts in (change.ntps, change.explained):
            assert parts.u + parts.v + parts.both + parts.scale == pytest.approx(parts.change)
        assert change.explained.scale == 0

    def test_held_out_where_there_are_folds(self, texts):
        states, labels = texts
        before = scored(states, labels, folds=3)
        after = scored(states + 0.3 * states.roll(2, dims=-1), labels, folds=3)
        change = layer_change(before, after)
        assert change.held_out
        assert change.explained.before == pytest.approx(before.score.explained_heldout, abs=1e-9)
        assert change.explained.after == pytest.approx(after.score.explained_heldout, abs=1e-9)
        parts = change.explained
        assert parts.u + parts.v + parts.both == pytest.approx(parts.change)
        assert not layer_change(before, scored(states, labels)).held_out

    def test_louder_channels_leave_what_is_held_out_alone(self, texts):
        """Whatever the scale, a readout sees the same: also one of the other side's directions."""
        states, labels = texts
        before = scored(states, labels, folds=3)
        loud = torch.linspace(0.01, 50.0, D, dtype=torch.float64)
        moments, after = before.solved.next_token, scored(states * loud, labels, folds=3)
        moments = replace(moments, C0=moments.C0 * loud[:, None] * loud, C1=moments.C1 * loud[:, None])
        solved = solve_layer(after.solved.states, after.solved.targets, moments, fold_of=before.solved.fold_of)
        held_out = solved.held_out([before.score.k_v])
        after = ScoredLayer(solved=solved, score=before.score, held_out=held_out, readouts={}, null=None)
        change = layer_change(before, after)
        assert change.held_out and change.explained.before > 0.1
        assert abs(change.ntps.change) > 0.01
        parts = change.explained
        assert [parts.change, parts.u, parts.v, parts.both, parts.scale] == pytest.approx([0] * 5, abs=1e-8)
        other = layer_change(before, scored(states + 0.3 * states.roll(2, dims=-1), labels, folds=3)).explained
        assert abs(other.u) > 1e-4 and abs(other.v) > 1e-4

    def test_json(self, texts):
        layer = scored(*texts)
        row = layer_change(layer, layer).to_dict()
        assert set(row) == {"layer", "k_u", "k_v", "angles_u", "angles_v", "ntps", "explained", "held_out"}
        assert set(row["ntps"]) == {"before", "after", "u", "v", "both", "scale", "change"}

    def test_another_model_or_task_is_refused(self, texts):
        states, labels = texts
        layer = scored(states, labels)
        with pytest.raises(NtpsError, match="width is 12 before and 4 after"):
            layer_change(layer, scored(states[..., :4], labels))
        with pytest.raises(NtpsError, match="classes is 3 before and 2 after"):
            layer_change(layer, scored(states, [label % 2 for label in labels]))
