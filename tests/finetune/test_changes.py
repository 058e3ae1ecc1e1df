"""Angles of known subspaces, and changes planted in one place attributed to it."""

import math

import numpy as np
import pytest
import torch

from ntps.core.accumulator import MomentAccumulator
from ntps.core.encoders import autoregressive_encoder, perception_encoder
from ntps.core.moments import Moments
from ntps.core.solve import score
from ntps.errors import NtpsError
from ntps.finetune.changes import layer_change, principal_angles, split_change

D, CLASSES = 12, 3


def collected(states, labels, folds=None, n_folds=0):
    """Moments of one layer's states: a list of (T, d) tensors."""
    accumulator = MomentAccumulator(layers=[1], width=D, n_targets=CLASSES, folds=n_folds,
                                    accumulate_dtype=torch.float64)  # fmt: skip
    for place, (text, label) in enumerate(zip(states, labels, strict=True)):
        mask = torch.ones(1, len(text), dtype=torch.int64)
        fold = None if folds is None else torch.tensor([folds[place]])
        accumulator.update([text[None]], mask, torch.tensor([label]), fold)
    return accumulator.finalize({"classes": list(range(CLASSES))})


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
    return states, labels


def replaced(moments, **sums):
    return Moments({**moments.sums, **sums}, moments.layers, moments.prefix, moments.n_folds, moments.metadata)


class TestAngles:
    def test_known_ones(self):
        angles = torch.tensor([0.0, 1e-9, 0.3, math.pi / 4, 1.2, math.pi / 2], dtype=torch.float64)
        n = len(angles)
        first = torch.eye(2 * n, dtype=torch.float64)[:, :n]
        second = torch.cat([torch.diag(angles.cos()), torch.diag(angles.sin())])
        turn = torch.linalg.qr(torch.randn(2 * n, 2 * n, dtype=torch.float64))[0]
        mix = torch.randn(n, n, dtype=torch.float64) + 3 * torch.eye(n)
        found = principal_angles(turn @ first @ mix, turn @ second * 1e5)
        np.testing.assert_allclose(found, angles, atol=1e-13)

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
        moments = collected(*texts)
        change = layer_change(moments, moments, 1)
        assert max(*change.angles_u, *change.angles_v) < 1e-12
        for parts in (change.ntps, change.explained):
            assert (parts.u, parts.v, parts.both, parts.scale) == (0, 0, 0, 0)
        scored = score(moments)[1]
        assert change.ntps.before == pytest.approx(scored.ntps)
        assert change.explained.before == pytest.approx(scored.explained)

    def test_other_labels_change_u_alone(self, texts):
        states, labels = texts
        other = [(label + place // 45) % CLASSES for place, label in enumerate(labels)]
        change = layer_change(collected(states, labels), collected(states, other), 1)
        assert max(change.angles_v) < 1e-9
        assert max(change.angles_u) > 0.05
        assert abs(change.ntps.u) > 1e-4
        for parts in (change.ntps, change.explained):
            assert parts.u == pytest.approx(parts.change, abs=1e-9)
            assert [parts.v, parts.both, parts.scale] == pytest.approx([0, 0, 0], abs=1e-9)

    def test_other_dynamics_change_v_alone(self, texts):
        before = collected(*texts)
        turn = torch.linalg.qr(torch.randn(D, D, dtype=torch.float64, generator=torch.Generator().manual_seed(1)))[0]
        after = replaced(before, ss=turn @ before.sums["ss"] @ turn.T, sh=turn @ before.sums["sh"] @ turn.T)
        change = layer_change(before, after, 1)
        assert max(change.angles_u) < 1e-9
        assert max(change.angles_v) > 0.3
        for parts in (change.ntps, change.explained):
            assert abs(parts.change) > 1e-3
            assert parts.v == pytest.approx(parts.change, abs=1e-9)
            assert [parts.u, parts.both, parts.scale] == pytest.approx([0, 0, 0], abs=1e-9)

    def test_louder_channels_are_scale_as_far_as_directions_keep(self, texts):
        """U follows a rescaling of channels exactly; V does so where what is predicted is not rescaled with it."""
        before = collected(*texts)
        loud = torch.linspace(0.2, 5.0, D, dtype=torch.float64).diag()
        sums = before.sums
        after = replaced(before, xx=loud @ sums["xx"] @ loud, x=sums["x"] @ loud, xy=loud @ sums["xy"],
                         ss=loud @ sums["ss"] @ loud, sh=loud @ sums["sh"])  # fmt: skip
        change = layer_change(before, after, 1)
        assert max(change.angles_u) > 0.05
        assert abs(change.ntps.change) > 0.01
        assert change.ntps.scale == pytest.approx(change.ntps.change, abs=1e-8)
        assert [change.ntps.u, change.ntps.v, change.ntps.both] == pytest.approx([0, 0, 0], abs=1e-8)
        assert change.explained.change == pytest.approx(0, abs=1e-8)

    def test_parts_against_the_definition(self, texts):
        """NTPS of new U and old V, by the paper's formula, in channels of the old and of the new scale."""
        states, labels = texts
        wide = torch.linspace(0.5, 2, D, dtype=torch.float64)
        tuned = [text * wide + 0.4 * text.roll(1, dims=-1) for text in states]
        before, after = collected(states, labels), collected(tuned, labels)
        change = layer_change(before, after, 1)
        views = before.layer(1), after.layer(1)
        s = [view.M.diagonal().sqrt() for view in views]
        U = [perception_encoder(view.M, view.X).vectors[:, : change.k_u] for view in views]
        V = [autoregressive_encoder(view.C0, view.C1).vectors[:, : change.k_v] for view in views]

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
            pooled = torch.stack([text.mean(0) for text in (states, tuned)[u]]) / s[u]
            seen = pooled @ (s[v][:, None] * V[v])
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
        folds = [place // CLASSES % 3 for place in range(len(labels))]
        before = collected(states, labels, folds, 3)
        after = collected([text + 0.3 * text.roll(2, dims=-1) for text in states], labels, folds, 3)
        change = layer_change(before, after, 1)
        assert change.held_out
        assert change.explained.before == pytest.approx(score(before)[1].explained_heldout, abs=1e-9)
        assert change.explained.after == pytest.approx(score(after)[1].explained_heldout, abs=1e-9)

    def test_json(self, texts):
        moments = collected(*texts)
        row = layer_change(moments, moments, 1).to_dict()
        assert set(row) == {"layer", "k_u", "k_v", "angles_u", "angles_v", "ntps", "explained", "held_out"}
        assert set(row["ntps"]) == {"before", "after", "u", "v", "both", "scale", "change"}

    def test_another_model_is_refused(self, texts):
        moments = collected(*texts)
        small = MomentAccumulator(layers=[1], width=4, n_targets=CLASSES)
        small.update([torch.randn(3, 5, 4)], torch.ones(3, 5, dtype=torch.int64), torch.tensor([0, 1, 2]))
        with pytest.raises(NtpsError, match="width is 12 before and 4 after"):
            layer_change(moments, small.finalize({}), 1)
