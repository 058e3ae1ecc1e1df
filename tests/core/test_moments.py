"""Streaming equals plain loops, whatever the batches, order, padding and dtypes; sums add; memory may run out."""

import gc
import weakref

import numpy as np
import pytest
import torch
from helpers import naive
from helpers.problems import make_problem, pad_batch, stream
from hypothesis import given, settings
from hypothesis import strategies as st

from ntps.core import NextTokenMoments, NonFiniteError, TextBatch
from ntps.errors import NtpsError

ON_GPU = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
EVERY_DEVICE = [
    pytest.param({"states": "cpu", "sums": "cpu"}, id="cpu"),
    pytest.param({"states": "cuda", "sums": "cuda"}, id="cuda", marks=ON_GPU),
    pytest.param({"states": "cuda", "sums": "cpu"}, id="sums-on-cpu", marks=ON_GPU),
]


def assert_equal(ours, texts, *, prefix="sum", tolerance=1e-12):
    """Compare one layer's moments with plain loops, relative to the largest entry of each."""
    expected = naive.moments(texts, np.zeros((len(texts), 1)), prefix)
    assert (ours.n_texts, ours.n_pairs) == (expected["n"], expected["n_pairs"])
    for name in ("C0", "C1"):
        error = np.abs(getattr(ours, name).numpy() - expected[name]).max()
        assert error <= tolerance * max(np.abs(expected[name]).max(), 1e-30), name


def same(one, other, tolerance=1e-13):
    """Whether two sets of moments hold the same sums."""
    pairs = [(one.layer(layer), other.layer(layer)) for layer in one.layers]
    near = (torch.allclose(a.C0, b.C0, tolerance, 1e-10) and torch.allclose(a.C1, b.C1, tolerance, 1e-10)
            for a, b in pairs)  # fmt: skip
    return torch.equal(one.counts, other.counts) and all(near)


@st.composite
def streams(draw):
    """A seed and everything that must not matter, or that both sides know."""
    return {
        "seed": draw(st.integers(0, 10**6)),
        "n": draw(st.integers(1, 14)),
        "d": draw(st.integers(1, 7)),
        "layers": draw(st.integers(1, 3)),
        "longest": draw(st.integers(1, 7)),
        "prefix": draw(st.sampled_from(["sum", "mean", "last"])),
        "pooling": draw(st.sampled_from(["mean", "last"])),
        "cuts": draw(st.lists(st.integers(1, 6), min_size=1, max_size=4)),
        "parts": draw(st.integers(1, 3)),
        "filler": draw(st.sampled_from([0.0, 7.0, float("nan"), float("inf")])),
        "states": draw(st.sampled_from(["float64", "float32", "bfloat16", "float16"])),
        "dtype": draw(st.sampled_from([torch.float32, torch.float64])),
    }


@pytest.mark.parametrize("devices", EVERY_DEVICE)
def test_streaming_equals_plain_loops(devices):
    @settings(max_examples=80, deadline=None, derandomize=True, database=None)
    @given(streams())
    def check(stream_options):
        compare_stream(devices=devices, **stream_options)

    check()


def compare_stream(*, seed, n, d, layers, longest, prefix, pooling, cuts, parts, filler, states, dtype, devices):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, longest + 1, size=n)
    kind = getattr(torch, states)
    # What is streamed and what the loops read are the same rounded numbers.
    stacks = [
        [torch.from_numpy(rng.normal(1.0, 2.0, size=(length, d))).to(kind).double().numpy() for length in lengths]
        for _ in range(layers)
    ]
    order = rng.permutation(n)
    numbers = [2 * layer for layer in range(layers)]
    options = {"prefix": prefix, "dtype": dtype, "device": devices["sums"], "matmul_precision": "highest"}
    moments = [NextTokenMoments(layers=numbers, width=d, **options) for _ in range(parts)]
    pooled = np.zeros((layers, n, d))
    start = turn = 0
    while start < n:
        chosen = order[start : start + cuts[turn % len(cuts)]]
        side = ["right", "left", "holes"][(turn + seed) % 3]
        padded = [  # the same holes in every layer
            pad_batch([texts[i] for i in chosen], side, filler=filler, rng=np.random.default_rng(turn))
            for texts in stacks
        ]
        hidden, mask = [batch.to(kind).to(devices["states"]) for batch, _ in padded], padded[0][1]
        before = [batch.clone() for batch in hidden]
        given_hidden = torch.stack(hidden) if turn % 2 else hidden
        returned = moments[turn % parts].update(given_hidden, mask, pooling=pooling)
        assert all(torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip(hidden, before, strict=True))
        assert returned.dtype == dtype
        pooled[:, chosen] = returned.cpu().numpy()
        start, turn = start + len(chosen), turn + 1
    total = sum(moments[1:], moments[0])
    tolerance = 1e-12 if dtype == torch.float64 else 1e-6
    assert (total.n_texts, total.n_tokens, total.n_pairs) == (n, lengths.sum(), lengths.sum() - n)
    for index, texts in enumerate(stacks):
        assert_equal(total.layer(2 * index), texts, prefix=prefix, tolerance=tolerance)
        expected = naive.pooled(texts, pooling)
        assert np.abs(pooled[index] - expected).max() <= tolerance * np.abs(expected).max()


@pytest.mark.parametrize("plant", ["order", "neighbour"])
def test_comparison_notices_wrong_data(plant):
    """The comparison above is worth something only if wrong data, and (below) wrong code, fail it."""
    texts = make_problem(n=10).texts
    wrong, longest = list(texts), int(np.argmax([len(h) for h in texts]))
    if plant == "order":
        wrong[longest] = wrong[longest][::-1]
    else:  # one text's first token taken for another's last
        wrong[longest - 1] = np.concatenate([wrong[longest - 1], wrong[longest][:1]])
    assert_equal(stream(texts)[0].layer(0), texts)
    with pytest.raises(AssertionError):
        assert_equal(stream(wrong)[0].layer(0), texts, tolerance=1e-6)


PRODUCTS = NextTokenMoments._products


@pytest.mark.parametrize(
    "wrong",
    [
        pytest.param(
            lambda self, h, n, at, how: PRODUCTS(self, h, n, torch.arange(h[:, 1:, 0].numel()), how), id="all"
        ),
        pytest.param(lambda self, h, n, at, how: PRODUCTS(self, h, n, at[:-1], how), id="last pair lost"),
        pytest.param(lambda self, h, n, at, how: PRODUCTS(self, h, (n - 1).clamp(1), at, how), id="last token lost"),
        pytest.param(lambda self, h, n, at, how: (*PRODUCTS(self, h, n, at, how)[:2], h[:, 0]), id="wrong pooling"),
        pytest.param(lambda self, h, n, at, how: PRODUCTS(self, h, n, at, "last"), id="other pooling"),
    ],
)
def test_comparison_notices_wrong_code(wrong, monkeypatch):
    options = {
        "devices": {"states": "cpu", "sums": "cpu"}, "seed": 3, "n": 9, "d": 4, "layers": 1, "longest": 5,
        "prefix": "sum", "pooling": "mean", "cuts": [4], "parts": 1, "filler": 7.0, "states": "float64",
        "dtype": torch.float64,
    }  # fmt: skip
    compare_stream(**options)
    monkeypatch.setattr(NextTokenMoments, "_products", wrong)
    with pytest.raises(AssertionError):
        compare_stream(**options)


@pytest.mark.parametrize("n", [1, 37])
def test_float32_is_within_a_millionth_of_float64(n):
    """Also where texts are long and states far from zero, so that prefix sums grow."""
    rng = np.random.default_rng(n)
    texts = [(5 + rng.normal(size=(200, 16))).astype(np.float32) for _ in range(n)]
    coarse, _ = stream(texts, dtype=torch.float32, batch=8)
    assert_equal(coarse.layer(0), texts, tolerance=1e-6)
    assert coarse.layer(0).dtype == "float32"


@pytest.mark.parametrize("prefix", ["sum", "mean", "last"])
def test_identity_of_the_cross_moment(prefix):
    """C1 + C1^T = E[s_L s_L^T] - E[sum_t h_t h_t^T] for prefix sums, and for no other past."""
    problem = make_problem(n=20)
    loops = naive.moments(problem.texts, problem.targets)
    C1 = stream(problem.texts, prefix=prefix)[0].layer(0).C1.numpy()
    right = loops["last_gram"] - loops["token_gram"]
    assert np.allclose(C1 + C1.T, right, atol=1e-12 * np.abs(right).max()) == (prefix == "sum")


def test_past_gram_is_symmetric_at_every_width():
    for width in (1, 3, 64, 130):
        rng = np.random.default_rng(width)
        texts = [rng.normal(size=(length, width)) for length in (3, 1, 2)]
        layer = stream(texts)[0].layer(0)
        assert torch.equal(layer.C0, layer.C0.T)
        assert_equal(layer, texts)


@pytest.mark.parametrize("kind", [torch.bool, torch.int32, torch.float32, torch.uint8])
def test_masks_of_any_type(kind):
    hidden, mask = pad_batch(make_problem(n=7).texts)
    one, other = (NextTokenMoments(layers=[0], width=8, dtype=torch.float64) for _ in range(2))
    one.update([hidden], mask)
    other.update([hidden], mask.to(kind))
    assert same(one, other, 0)


@pytest.mark.parametrize(("precision", "inside"), [("highest", "highest"), ("high", "high"), ("auto", "highest")])
def test_matmul_precision_is_set_only_inside(precision, inside, monkeypatch):
    seen = []

    def watched(*arguments):
        seen.append(torch.get_float32_matmul_precision())
        return PRODUCTS(*arguments)

    monkeypatch.setattr(NextTokenMoments, "_products", watched)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        moments = NextTokenMoments(layers=[0], width=2, matmul_precision=precision)
        moments.update([torch.ones(1, 2, 2)], torch.ones(1, 2))
        assert (seen, torch.get_float32_matmul_precision()) == ([inside], "medium")
        with pytest.raises(NonFiniteError):
            moments.update([torch.full((1, 2, 2), torch.nan)], torch.ones(1, 2))
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)


def long_texts(n=24):
    """Texts far from zero, so that prefix sums grow, in numbers that bfloat16 holds."""
    rng = np.random.default_rng(n)
    drawn = [torch.from_numpy(2 + rng.normal(size=(int(rng.integers(40, 90)), 32))) for _ in range(n)]
    return [states.bfloat16().double().numpy() for states in drawn]


def moments_of(texts, device, precision, dtype=torch.float32):
    moments = NextTokenMoments(layers=[0], width=32, device=device, matmul_precision=precision, dtype=dtype)
    for start in range(0, len(texts), 8):
        hidden, mask = pad_batch(texts[start : start + 8])
        moments.update([hidden.to(device=device, dtype=torch.bfloat16)], mask)
    return moments.layer(0)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=ON_GPU)])
def test_medium_precision_rounds_what_is_multiplied_and_not_the_sums(device):
    """Products of bfloat16 numbers, added in float32: equal to float64 products of the same rounded prefix sums."""
    texts = long_texts()
    C0, C1 = np.zeros((32, 32)), np.zeros((32, 32))
    for states in texts:
        past = torch.from_numpy(states).float().cumsum(0)[:-1].bfloat16().double().numpy()
        C0 += past.T @ past / len(texts)
        C1 += past.T @ states[1:] / len(texts)
    found = moments_of(texts, device, "medium")
    assert np.abs(found.C0.numpy() - C0).max() <= 1e-5 * np.abs(C0).max()
    assert np.abs(found.C1.numpy() - C1).max() <= 1e-5 * np.abs(C1).max()
    with pytest.raises(AssertionError):
        assert_equal(found, texts, tolerance=1e-6)
    assert_equal(found, texts, tolerance=1e-2)
    assert_equal(moments_of(texts, device, "medium", torch.float64), texts)


@pytest.mark.parametrize("device", [pytest.param("cuda", marks=ON_GPU)])
@pytest.mark.parametrize(("precision", "tolerance"), [("highest", 1e-6), ("high", 1e-3), ("auto", 1e-3)])
def test_products_on_a_gpu_are_as_exact_as_their_precision(device, precision, tolerance):
    texts = long_texts()
    assert_equal(moments_of(texts, device, precision), texts, tolerance=tolerance)


# Layer by layer


@pytest.mark.parametrize("pooling", ["mean", "last"])
@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=ON_GPU)])
def test_layers_may_come_one_by_one_in_any_order(device, side, pooling):
    texts = make_problem(n=9, d=4).texts
    hidden, mask = pad_batch(texts, side)
    hidden = [hidden.to(device), hidden.sin().to(device)]
    whole, parts = (build(dtype=torch.float64, device=device) for _ in range(2))
    expected = whole.update(hidden, mask, pooling=pooling)
    batch = TextBatch(mask.bool(), (4, 4), pooling=pooling, device=device, moments=parts)
    batch.add(1, hidden[1])
    batch.add(0, hidden[0])
    parts.counts += batch.counts
    assert torch.equal(batch.pooled, expected)
    assert same(whole, parts, 0)
    alone = TextBatch(mask.bool(), (4, 4), pooling=pooling, device=device)
    again = TextBatch(mask.bool(), (4, 4), pooling=pooling, device=device, moments=parts)
    for index, states in enumerate(hidden):
        alone.add(index, states)
        again.add(index, states, sums=False)
    torch.testing.assert_close(alone.pooled, expected.float())
    torch.testing.assert_close(again.pooled, expected)
    assert same(whole, parts, 0)


# Memory runs out


def fail_above(monkeypatch, most):
    """Let the products of more than `most` texts run out of memory; return the batch sizes that were tried."""
    tried = []

    def limited(self, states, lengths, *rest):
        tried.append(len(lengths))
        if len(lengths) > most:
            raise torch.cuda.OutOfMemoryError("simulated")
        return PRODUCTS(self, states, lengths, *rest)

    monkeypatch.setattr(NextTokenMoments, "_products", limited)
    return tried


@pytest.mark.parametrize("most", [1, 2, 3, 5])
@pytest.mark.parametrize("prefix", ["sum", "mean", "last"])
def test_a_batch_that_does_not_fit_is_added_in_halves(monkeypatch, most, prefix):
    first = make_problem(n=33).texts
    second = [np.sin(h) for h in first]
    expected, expected_pooled = stream(first, second, batch=11, prefix=prefix)
    tried = fail_above(monkeypatch, most)
    found, pooled = stream(first, second, batch=11, prefix=prefix)
    assert same(expected, found)
    assert torch.allclose(expected_pooled, pooled, rtol=1e-14)
    assert sum(size for size in tried if size <= most) == 2 * 33  # every text of both layers once
    assert max(tried) == 11


def test_halves_that_do_not_fit_either_add_nothing(monkeypatch):
    """So the whole batch can be tried again."""
    texts, tried = make_problem(n=4).texts, []

    def fails_at_last(self, states, lengths, *rest):
        tried.append(len(lengths))
        if len(lengths) > 1 or len(tried) > 5:
            raise torch.cuda.OutOfMemoryError("simulated")
        return PRODUCTS(self, states, lengths, *rest)

    hidden, mask = pad_batch(texts)
    moments = NextTokenMoments(layers=[0], width=8, dtype=torch.float64)
    with monkeypatch.context() as patch, pytest.raises(torch.cuda.OutOfMemoryError):
        patch.setattr(NextTokenMoments, "_products", fails_at_last)
        moments.update([hidden], mask)
    assert tried == [4, 2, 1, 1, 2, 1]
    assert not any(sums.any() for sums in (moments.past_gram, moments.cross, moments.counts))
    moments.update([hidden], mask)
    assert_equal(moments.layer(0), texts)


def test_one_text_that_does_not_fit_is_an_error(monkeypatch):
    fail_above(monkeypatch, 0)
    with pytest.raises(torch.cuda.OutOfMemoryError):
        stream(make_problem(n=4).texts)


def test_failed_attempt_is_released_before_the_halves(monkeypatch):
    """Otherwise the halves must fit beside what the whole batch took."""
    alive, held = [], []

    def fails_late(self, states, lengths, *rest):
        alive.append([reference() is not None for reference in held])
        result = PRODUCTS(self, states, lengths, *rest)
        if len(lengths) == 8:
            held.extend(weakref.ref(tensor) for tensor in result)
            raise torch.cuda.OutOfMemoryError("simulated")
        return result

    monkeypatch.setattr(NextTokenMoments, "_products", fails_late)
    gc.disable()
    try:
        stream(make_problem(n=8).texts)
    finally:
        gc.enable()
    assert alive == [[], [False] * 3, [False] * 3]


# What cannot be added


def build(**options):
    return NextTokenMoments(**({"layers": [0, 3], "width": 4} | options))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"prefix": "all"}, ["prefix", "'all'", "sum", "mean", "last"]),
        ({"dtype": torch.bfloat16}, ["dtype", "bfloat16", "float32"]),
        ({"matmul_precision": "fast"}, ["matmul_precision", "fast", "highest"]),
        ({"width": 0}, ["width", "0"]),
        ({"layers": []}, ["layers"]),
        ({"layers": [1, 1]}, ["layers", "1"]),
    ],
)
def test_options_out_of_range(options, words):
    with pytest.raises(NtpsError) as caught:
        build(**options)
    assert all(word in str(caught.value) for word in words), caught.value


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"hidden": torch.ones(1, 3, 5, 4)}, ["1 layers", "2"]),
        ({"hidden": torch.ones(2, 3, 4, 4)}, ["layer 0", "(3, 4, 4)", "(3, 5, 4)"]),
        ({"hidden": [torch.ones(3, 5, 4), torch.ones(3, 5, 5)]}, ["layer 3", "(3, 5, 5)"]),
        ({"mask": torch.tensor([[1.0] * 5, [0.0] * 5, [1.0] * 5])}, ["text 1", "no token"]),
        ({"mask": torch.ones(5)}, ["(3, 5, 4)", "(5, 4)"]),
        ({"pooling": "first"}, ["pooling", "first", "mean", "last"]),
    ],
)
def test_bad_batches_are_refused_and_nothing_is_added(changes, words):
    moments = build()
    good = {"hidden": torch.ones(2, 3, 5, 4), "mask": torch.ones(3, 5)}
    with pytest.raises(NtpsError) as caught:
        moments.update(**(good | changes))
    assert all(word in str(caught.value) for word in words), caught.value
    assert not any(sums.any() for sums in (moments.past_gram, moments.cross, moments.counts))
    moments.update(**good)
    assert moments.n_texts == 3


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("pooling", ["mean", "last"])
@pytest.mark.parametrize("token", [0, -1])
def test_non_finite_state_names_layer_and_text(bad, side, pooling, token):
    texts = make_problem(n=5, d=4).texts
    texts[3] = np.ones((3, 4))
    texts[3][token, 2] = bad
    hidden, mask = pad_batch(texts, side)
    clean = torch.nan_to_num(hidden, nan=0.0, posinf=0.0, neginf=0.0)
    with pytest.raises(NonFiniteError, match="layer 3") as caught:
        build().update([clean, hidden], mask, pooling=pooling)
    assert (caught.value.layer, caught.value.text) == (3, 3)
    assert "text 3" in str(caught.value)


def test_views_out_of_range():
    with pytest.raises(NtpsError, match="no text"):
        build().layer(3)
    with pytest.raises(NtpsError, match=r"layer 1.*0, 3"):
        build().layer(1)


def test_moments_may_be_read_on_the_way():
    texts, moments = make_problem(n=10).texts, NextTokenMoments(layers=[0], width=8, dtype=torch.float64)
    for start, stop in ((0, 4), (4, 10)):
        hidden, mask = pad_batch(texts[start:stop])
        moments.update([hidden], mask)
        assert_equal(moments.layer(0), texts[:stop])


def test_addition_leaves_its_terms_alone_and_has_the_coarser_dtype():
    texts = make_problem(n=30).texts
    fine, coarse = stream(texts[:11])[0], stream(texts[11:], dtype=torch.float32)[0]
    total = fine + coarse
    assert_equal(total.layer(0), texts, tolerance=1e-6)
    assert same(total, coarse + fine)
    assert total.layer(0).dtype == (coarse + fine).layer(0).dtype == "float32"
    assert (fine + fine).layer(0).dtype == "float64"
    total.past_gram.zero_()
    total.counts.zero_()
    assert_equal(fine.layer(0), texts[:11])


@pytest.mark.parametrize(("change", "word"), [({"layers": [0, 4]}, "layers"), ({"width": 5}, "width"),
                                              ({"prefix": "mean"}, "prefix")])  # fmt: skip
def test_what_does_not_match_is_not_added(change, word):
    for one, other in ((build(), build(**change)), (build(**change), build())):
        with pytest.raises(NtpsError, match=word):
            one + other
    with pytest.raises(TypeError):
        build() + 1


def test_memory_does_not_grow_with_texts():
    moments = build()
    for _ in range(20):
        moments.update(torch.randn(2, 64, 2, 4), torch.ones(64, 2))
    assert {name: value.shape for name, value in vars(moments).items() if isinstance(value, torch.Tensor)} == {
        "past_gram": (2, 4, 4),
        "cross": (2, 4, 4),
        "counts": (3,),
    }
