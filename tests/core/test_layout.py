"""Where tokens go: every pair has its column whatever the lengths, the side of the padding and the folds."""

import numpy as np
import pytest
import torch
from helpers import naive
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ntps.core import layout, products
from ntps.core.layout import COLUMNS, Batch, Layout, _cut
from ntps.core.products import Products

SIDES = ("right", "left", "holes")


@pytest.fixture(autouse=True)
def every_width_the_fast_way(monkeypatch):
    monkeypatch.setattr(products, "NARROW", 0)


def made(mask, fold_of, by_fold, dtype=torch.float32, d=3):
    return Batch(mask, fold_of, by_fold, Products(d, dtype, mask.device))


def batch_of(lengths, side, folds=1, d=3, seed=0):
    """Hidden states (B, T, d) with NaN where no token is, mask, folds, and each text's states (L, d)."""
    rng = np.random.default_rng(seed)
    texts = [rng.standard_normal((length, d)) for length in lengths]
    longest = max(lengths) + 2
    hidden, mask = np.full((len(lengths), longest, d), np.nan), np.zeros((len(lengths), longest), dtype=bool)
    for row, text in enumerate(texts):
        free = np.arange(longest)
        places = {"right": free[: len(text)], "left": free[longest - len(text) :]}.get(side)
        if places is None:
            places = np.sort(rng.choice(free, len(text), replace=False))
        hidden[row, places], mask[row, places] = text, True
    fold_of = torch.from_numpy(rng.integers(0, folds, len(lengths)))
    return torch.from_numpy(hidden), torch.from_numpy(mask), fold_of, texts


def filled(batches, hidden, prefix):
    """What each part's products read, the sum of each text, and the squares of all tokens."""
    states = [batch.align(some) for batch, some in zip(batches, hidden, strict=True)]
    sums = torch.full((sum(map(len, hidden)), hidden[0].shape[2]), float("nan"), dtype=hidden[0].dtype)
    found, squares = [], 0
    for part in Layout(batches, batches[0]._products).parts:
        past = torch.full((hidden[0].shape[2], part.n_columns), float("nan"), dtype=hidden[0].dtype)
        following = torch.full((part.n_columns, hidden[0].shape[2]), float("nan"), dtype=hidden[0].dtype)
        sums[part.places] = part.fill(states, past, following, prefix)
        squares = squares + part.token_squares(states, following, torch.empty_like(following))
        found.append((part.fold, past, following))
    return found, sums, squares


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.lists(st.integers(1, 30), min_size=1, max_size=15), min_size=1, max_size=3), st.sampled_from(SIDES),
    st.sampled_from([1, 3]), st.sampled_from(["sum", "mean", "last"]), st.sampled_from([torch.float32, torch.float64]),
    st.sampled_from([25, COLUMNS]),
)  # fmt: skip
def test_columns_hold_every_pair_once_and_nothing_else(lengths, side, folds, prefix, dtype, most):
    data = [batch_of(some, side, folds, seed=seed) for seed, some in enumerate(lengths)]
    batches = [made(mask, fold_of, folds > 1, dtype) for _, mask, fold_of, _ in data]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layout, "COLUMNS", most)
        found, sums, squares = filled(batches, [hidden.to(dtype) for hidden, *_ in data], prefix)
    tolerance = {"rtol": 1e-5, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 1e-12, "atol": 1e-12}
    for fold in {fold for fold, *_ in found}:
        own = [
            text
            for _, _, fold_of, texts in data
            for text, of in zip(texts, fold_of.tolist(), strict=True)
            if folds == 1 or of == fold
        ]
        before, after = (np.array(some).reshape(-1, 3) for some in naive.pairs(own, prefix)[:2])
        parts = [(past, following) for of, past, following in found if of == fold]
        assert all(following.isfinite().all() for _, following in parts)
        pairs = torch.cat([torch.cat([past.T, following], 1)[(past != 0).any(0)] for past, following in parts])
        expected = np.concatenate([before, after], 1)
        assert len(pairs) == len(expected)
        pairs = pairs.double().numpy()
        # Their order is free: sorted by the last value of the next state, which no two share.
        assert np.allclose(pairs[pairs[:, -1].argsort()], expected[expected[:, -1].argsort()], **tolerance)
    present = {fold for _, _, fold_of, _ in data for fold in fold_of.tolist()} if folds > 1 else {0}
    assert {fold for fold, *_ in found} == present
    assert np.allclose(sums.numpy(), np.array([text.sum(0) for *_, texts in data for text in texts]), **tolerance)
    assert np.allclose(squares.numpy(), sum((text**2).sum(0) for *_, texts in data for text in texts), **tolerance)


def test_short_batches_share_a_part_and_long_ones_are_cut():
    def parts(*lengths):
        batches = [made(batch_of(some, "right", d=1)[1], torch.zeros(len(some)), False) for some in lengths]
        return [
            sum(piece.n_columns for _, piece in part.pieces) for part in Layout(batches, batches[0]._products).parts
        ]

    assert parts([40] * 9, [30] * 9, [20, 10]) == [39 * 9 + 29 * 9 + 19 + 9]
    assert parts([1025] * 9) == [4096, 4096, 1024]
    assert parts([5001, 5001]) == [5000, 5000]
    assert parts([2049] * 2, [2]) == [4096, 1]


def test_texts_in_order_of_length_are_used_where_they_are():
    hidden, mask, fold_of, _ = batch_of([9, 9, 7, 2, 1], "right")
    batch = made(mask, fold_of, False)
    assert batch.align(hidden) is hidden
    turned = made(mask.flip(0), fold_of, False)
    assert torch.equal(turned.align(hidden.flip(0))[mask], hidden[torch.tensor([1, 0, 2, 3, 4])][mask])


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.integers(1, 2000), min_size=1, max_size=200))
def test_segments_are_few_and_hold_every_text(lengths):
    lengths = sorted(lengths, reverse=True)
    for most in (4, 16):
        segments = _cut(lengths, most)
        assert len(segments) <= max(most, 1 + np.log2(2000))
        assert [place for start, stop in segments for place in range(start, stop)] == list(range(len(lengths)))
        if len(set(lengths)) <= most:
            assert all(len(set(lengths[start:stop])) == 1 for start, stop in segments)
        columns = sum((stop - start) * (lengths[start] - 1) for start, stop in segments)
        assert columns <= 2 * sum(length - 1 for length in lengths)


def test_texts_nearly_of_a_length_waste_little():
    lengths = sorted((40 + place % 25 for place in range(500)), reverse=True)
    columns = sum((stop - start) * (lengths[start] - 1) for start, stop in _cut(lengths, 16))
    assert 1 < columns / sum(length - 1 for length in lengths) < 1.04


def test_texts_of_one_token_have_no_column():
    hidden, mask, fold_of, texts = batch_of([1, 1], "right")
    found, sums, squares = filled([made(mask, fold_of, False)], [hidden.float()], "sum")
    assert found[0][1].shape == (3, 0)
    assert np.allclose(sums, np.array(texts)[:, 0])
    assert np.allclose(squares, (np.array(texts) ** 2).sum((0, 1)))


def test_halves_hold_each_text_once():
    _, mask, fold_of, _ = batch_of([4, 2, 7, 1, 3], "left", folds=2)
    first, second = made(mask, fold_of, True).halves()
    assert sorted([*first.lengths.tolist(), *second.lengths.tolist()]) == [1, 2, 3, 4, 7]
    assert len(first.lengths) == 2


def test_halves_of_several_batches_are_batches():
    data = [batch_of([3, 2], "right", seed=seed) for seed in range(3)]
    batches = [made(mask, fold_of, False) for _, mask, fold_of, _ in data]
    hidden = [some for some, *_ in data]
    (first, one), (rest, two) = Layout(batches, batches[0]._products).halves(hidden)
    assert [*one.batches, *two.batches] == batches
    assert all(a is b for a, b in zip([*first, *rest], hidden, strict=True))
    assert len(one.batches) == 1
