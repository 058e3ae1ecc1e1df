"""Streaming equals plain loops, whatever the batches, order, padding, prefix, folds and dtypes."""

import numpy as np
import pytest
import torch
from helpers import naive
from helpers.problems import accumulate, make_problem, moments_of, pad_batch
from hypothesis import given, settings
from hypothesis import strategies as st

from ntps.core import accumulator as accumulator_module
from ntps.core import layout, products
from ntps.core.accumulator import MomentAccumulator, NonFiniteError
from ntps.errors import NtpsError


@pytest.fixture(autouse=True)
def every_width_the_fast_way(monkeypatch):
    """Problems here are narrow; they go through what wide states go through."""
    monkeypatch.setattr(products, "NARROW", 0)


FIELDS = ("M", "X", "C0", "C1", "mean_x", "mean_y", "yy")


def assert_equal(view, expected, tolerance):
    """Compare every field, relative to its own largest entry."""
    assert view.n == expected["n"]
    assert view.n_pairs == expected["n_pairs"]
    for name in FIELDS:
        ours, theirs = getattr(view, name).numpy(), expected[name]
        scale = max(np.abs(theirs).max(), 1e-30)
        assert np.abs(ours - theirs).max() <= tolerance * scale, name


@st.composite
def streams(draw):
    """A seed and everything that must not matter, or that both sides know."""
    return {
        "seed": draw(st.integers(0, 10**6)),
        "n": draw(st.integers(1, 14)),
        "d": draw(st.integers(1, 7)),
        "c": draw(st.integers(1, 4)),
        "layers": draw(st.integers(1, 3)),
        "longest": draw(st.integers(1, 7)),
        "prefix": draw(st.sampled_from(["sum", "mean", "last"])),
        "folds": draw(st.sampled_from([0, 0, 2, 3])),
        "fold_prefix": draw(st.booleans()),
        "cuts": draw(st.lists(st.integers(1, 6), min_size=1, max_size=4)),
        "parts": draw(st.integers(1, 3)),
        "filler": draw(st.sampled_from([0.0, 7.0, float("nan"), float("inf")])),
        "dtype": draw(st.sampled_from(["float64", "float32", "bfloat16", "float16"])),
        "accumulate": draw(st.sampled_from([torch.float32, torch.float64])),
        "real": draw(st.booleans()),
    }


@settings(max_examples=80, deadline=None, derandomize=True, database=None)
@given(streams())
def test_streaming_equals_plain_loops(stream):
    rng = np.random.default_rng(stream["seed"])
    n, d, c, n_layers = stream["n"], stream["d"], stream["c"], stream["layers"]
    lengths = rng.integers(1, stream["longest"] + 1, size=n)
    dtype = getattr(torch, stream["dtype"])
    # What the accumulator is given, and what the loops are given, are the same rounded numbers.
    stacks = [
        [torch.from_numpy(rng.normal(1.0, 2.0, size=(length, d))).to(dtype).double().numpy() for length in lengths]
        for _ in range(n_layers)
    ]
    labels = rng.integers(0, c, size=n)
    targets = rng.normal(size=(n, c)) if stream["real"] else np.eye(c)[labels]
    fold_of = rng.integers(0, max(stream["folds"], 1), size=n)
    order = rng.permutation(n)
    parts = [
        MomentAccumulator(
            layers=[2 * layer for layer in range(n_layers)],
            width=d,
            n_targets=c,
            prefix=stream["prefix"],
            folds=stream["folds"],
            fold_prefix=stream["fold_prefix"],
            accumulate_dtype=stream["accumulate"],
        )
        for _ in range(stream["parts"])
    ]
    start, turn, used = 0, 0, set()
    while start < n:
        chosen = order[start : start + stream["cuts"][turn % len(stream["cuts"])]]
        place = turn % len(parts)
        side = ["right", "left", "holes"][(turn + stream["seed"]) % 3]
        hidden, mask = [], None
        for stack in stacks:  # the same holes in every layer
            states, mask = pad_batch(
                [stack[i] for i in chosen], side, filler=stream["filler"], rng=np.random.default_rng(turn)
            )
            hidden.append(states.to(dtype))
        given_labels = torch.from_numpy(targets[chosen] if stream["real"] else labels[chosen])
        folds = torch.from_numpy(fold_of[chosen]) if stream["folds"] else None
        parts[place].update(torch.stack(hidden) if turn % 2 else hidden, mask, given_labels, folds)
        used.add(place)
        start, turn = start + len(chosen), turn + 1
    total = None
    for place in sorted(used):
        moments = parts[place].finalize()
        total = moments if total is None else total + moments
    tolerance = 1e-12 if stream["accumulate"] == torch.float64 else 3e-6
    assert total.n_tokens == lengths.sum()
    for layer, stack in enumerate(stacks):
        expected = naive.moments(stack, targets, stream["prefix"])
        assert_equal(total.layer(2 * layer), expected, tolerance)
        for fold in set(fold_of) if stream["folds"] else ():
            for inside, view in ((fold_of == fold, total.fold), (fold_of != fold, total.without_fold)):
                if not inside.any():
                    continue
                members = [h for h, belongs in zip(stack, inside, strict=True) if belongs]
                ours = view(2 * layer, int(fold))
                theirs = naive.moments(members, targets[inside], stream["prefix"])
                if not stream["fold_prefix"]:
                    assert ours.C0 is None
                    assert ours.C1 is None
                    theirs["C0"] = theirs["C1"] = None
                    for name in ("M", "X", "mean_x", "mean_y", "yy"):
                        assert np.allclose(getattr(ours, name), theirs[name], rtol=0, atol=tolerance * 50)
                    assert ours.n_pairs == theirs["n_pairs"]
                else:
                    assert_equal(ours, theirs, tolerance)


@pytest.mark.parametrize("shift", ["label", "order", "neighbour"])
def test_comparison_notices_a_planted_error(shift):
    """The comparison above is worth something only if wrong data fail it."""
    problem = make_problem(n=10)
    expected = naive.moments(problem.texts, problem.targets)
    if shift == "label":
        problem.labels = np.roll(problem.labels, 1)
    elif shift == "order":
        problem.texts[int(np.argmax([len(h) for h in problem.texts]))] = max(problem.texts, key=len)[::-1]
    else:  # one text's last token taken for another's first
        longest = int(np.argmax([len(h) for h in problem.texts]))
        problem.texts[longest - 1] = np.concatenate([problem.texts[longest - 1], problem.texts[longest][:1]])
    with pytest.raises(AssertionError):
        assert_equal(moments_of(problem).layer(0), expected, 1e-6)


@pytest.mark.parametrize("width", [1, 3, 63, 64, 65, 130, 257])
def test_blocks_of_the_triangle_cover_every_width(width):
    rng = np.random.default_rng(width)
    texts = [rng.normal(size=(length, width)) for length in (3, 1, 2)]
    hidden, mask = pad_batch(texts)
    accumulator = MomentAccumulator(layers=[0], width=width, n_targets=2, accumulate_dtype=torch.float64)
    accumulator.update([hidden], mask, torch.tensor([0, 1, 1]))
    x = naive.pooled(texts)
    past = np.array([row for h in texts for row in naive.past_states(h, "sum")[:-1]])
    view = accumulator.finalize().layer(0)
    assert np.allclose(view.M, x.T @ x / 3, rtol=0, atol=1e-12)
    assert np.allclose(view.C0, past.T @ past / 3, rtol=0, atol=1e-11)
    assert torch.equal(view.C0, view.C0.T)


def test_more_texts_than_the_buffer_of_pooled_states(monkeypatch):
    problem = make_problem(n=60)
    whole = moments_of(problem, folds=4)
    monkeypatch.setattr(accumulator_module, "_POOL_ROWS", 7)
    early = moments_of(problem, folds=4, batch=5)
    for name, value in whole.sums.items():
        assert torch.allclose(value, early.sums[name], rtol=1e-12, atol=1e-9), name


def test_pooled_states_come_back_in_order():
    problem = make_problem(n=9)
    accumulator = MomentAccumulator(layers=[0, 1], width=problem.d, n_targets=problem.c, accumulate_dtype=torch.float64)
    hidden, mask = pad_batch(problem.texts, "left")
    labels = torch.from_numpy(problem.labels)
    returned = accumulator.update([hidden, 2 * hidden], mask, labels, return_pooled=True)
    assert np.allclose(returned[0], naive.pooled(problem.texts))
    assert np.allclose(returned[1], 2 * naive.pooled(problem.texts))
    assert accumulator.update([hidden, 2 * hidden], mask, labels) is None


def test_input_is_left_alone():
    problem = make_problem(n=6)
    for side in ("right", "left"):
        for texts in (problem.texts, [problem.texts[0]]):  # without padding nothing forces a copy
            for prefix in ("sum", "mean", "last"):
                hidden, mask = pad_batch(texts, side)
                before, mask_before = hidden.clone(), mask.clone()
                accumulator = MomentAccumulator(
                    layers=[0], width=problem.d, n_targets=problem.c, prefix=prefix, accumulate_dtype=torch.float64
                )
                accumulator.update([hidden], mask, torch.from_numpy(problem.labels[: len(texts)]))
                assert torch.equal(hidden, before)
                assert torch.equal(mask, mask_before)


@pytest.mark.parametrize("kind", [torch.bool, torch.int32, torch.float32, torch.uint8])
def test_masks_of_any_type(kind):
    problem = make_problem(n=7)
    hidden, mask = pad_batch(problem.texts)
    totals = []
    for given_mask in (mask, mask.to(kind)):
        accumulator = MomentAccumulator(layers=[0], width=problem.d, n_targets=problem.c)
        accumulator.update([hidden], given_mask, torch.from_numpy(problem.labels))
        totals.append(accumulator.finalize().sums)
    assert all(torch.equal(totals[0][name], totals[1][name]) for name in totals[0])


@pytest.mark.parametrize("precision", ["highest", "high", "medium"])
def test_matmul_precision_is_set_only_inside(precision, monkeypatch):
    seen = []
    plain = products.Products.add_gram

    def watched(*arguments):
        seen.append(torch.get_float32_matmul_precision())
        plain(*arguments)

    monkeypatch.setattr(products.Products, "add_gram", watched)
    before = torch.get_float32_matmul_precision()
    accumulate(make_problem(n=4), matmul_precision=precision)
    assert seen[0] == precision
    assert torch.get_float32_matmul_precision() == before
    accumulator = MomentAccumulator(layers=[0], width=2, n_targets=2, matmul_precision=precision)
    with pytest.raises(NonFiniteError):
        accumulator.update([torch.full((1, 2, 2), float("nan"))], torch.ones(1, 2), torch.tensor([0]))
    assert torch.get_float32_matmul_precision() == before


# Several batches at once


@pytest.mark.parametrize("options", [{}, {"folds": 4, "fold_prefix": True}, {"token_gram": True}, {"prefix": "mean"}])
def test_several_batches_at_once_are_the_same_sums(options):
    problem = make_problem(n=23)
    expected = moments_of(problem, batch=23, **options)
    accumulator = MomentAccumulator(layers=[0], width=problem.d, n_targets=problem.c, **options)
    parts = [slice(0, 9), slice(9, 10), slice(10, 23)]
    batches = []
    for part, side in zip(parts, ("left", "right", "right"), strict=True):
        hidden, mask = pad_batch(problem.texts[part], side, filler=np.nan)
        folds = torch.from_numpy(problem.folds[part]) if "folds" in options else None
        batches.append(([hidden], mask, torch.from_numpy(problem.labels[part]), folds))
    pooled = accumulator.update_many(batches, return_pooled=True)
    found = accumulator.finalize()
    for name, value in expected.sums.items():
        assert torch.allclose(value, found.sums[name], rtol=1e-5, atol=1e-4), name
    assert np.allclose(pooled[0], naive.pooled(problem.texts), rtol=1e-5, atol=1e-5)


def test_what_is_wrong_is_counted_through_the_batches():
    def batch(*values):
        hidden = torch.ones(len(values), 2, 2) * torch.tensor(values)[:, None, None]
        return [hidden], torch.ones(len(values), 2), torch.zeros(len(values), dtype=torch.long), None

    accumulator = MomentAccumulator(layers=[7], width=2, n_targets=1)
    with pytest.raises(NonFiniteError) as caught:
        accumulator.update_many([batch(1.0, 2.0), batch(1.0, float("inf"))])
    assert (caught.value.layer, caught.value.text) == (7, 3)
    accumulator = MomentAccumulator(layers=[7], width=2, n_targets=1)
    hidden, mask, labels, _ = batch(1.0, 2.0)
    with pytest.raises(NtpsError, match="text 1 of batch 1 has no token"):
        accumulator.update_many([batch(1.0), (hidden, mask * torch.tensor([[1], [0]]), labels, None)])
    assert not any(sums.any() for sums in accumulator.sums().values())


# Memory runs out


@pytest.mark.parametrize("most", [1, 2, 3, 5])
@pytest.mark.parametrize("options", [{}, {"folds": 4, "fold_prefix": True}, {"token_gram": True}, {"prefix": "last"}])
def test_running_out_of_memory_in_the_update_changes_nothing(monkeypatch, may_run_out, most, options):
    problem = make_problem(n=33)
    expected = moments_of(problem, batch=11, **options)
    align, failures = layout.Batch.align, []

    def limited(self, hidden):
        if len(hidden) > most:
            failures.append(len(hidden))
            raise torch.cuda.OutOfMemoryError("simulated")
        return align(self, hidden)

    monkeypatch.setattr(layout.Batch, "align", limited)
    found = moments_of(problem, batch=11, **options)
    assert failures
    for name, value in expected.sums.items():
        assert torch.allclose(value, found.sums[name], rtol=1e-13, atol=1e-10), name


def test_running_out_of_memory_with_several_batches_halves_those_first(monkeypatch, may_run_out):
    problem = make_problem(n=9)
    expected = moments_of(problem, batch=9)
    parts, sizes = layout.Layout.parts.func, []

    def limited(self):
        sizes.append([len(batch.lengths) for batch in self.batches])
        if sum(sizes[-1]) > 3:
            raise torch.cuda.OutOfMemoryError("simulated")
        return parts(self)

    monkeypatch.setattr(layout.Layout, "parts", property(limited))
    accumulator = MomentAccumulator(layers=[0], width=problem.d, n_targets=problem.c)
    batches = []
    for part in (slice(0, 3), slice(3, 4), slice(4, 9)):
        hidden, mask = pad_batch(problem.texts[part])
        batches.append(([hidden], mask, torch.from_numpy(problem.labels[part]), None))
    accumulator.update_many(batches)
    assert sizes == [[3, 1, 5], [3], [1, 5], [1], [5], [2], [3]]
    found = accumulator.finalize()
    assert all(torch.allclose(value, found.sums[name], rtol=1e-5, atol=1e-4) for name, value in expected.sums.items())


def test_running_out_of_memory_late_in_the_update_adds_nothing_twice(monkeypatch, may_run_out):
    """The last allocation before the sums change is the scratch: it fails here, at the first try of each layer."""
    problem = make_problem(n=12)
    expected = moments_of(problem, batch=12)
    reserve, calls = products.Products.reserve, []

    def limited(self):
        calls.append(self)
        if len(calls) == 1:
            raise torch.cuda.OutOfMemoryError("simulated")
        return reserve(self)

    monkeypatch.setattr(products.Products, "reserve", limited)
    found = moments_of(problem, batch=12)
    for name, value in expected.sums.items():
        assert torch.allclose(value, found.sums[name], rtol=1e-13, atol=1e-10), name


def test_failed_try_is_released_before_the_halves(monkeypatch, may_run_out):
    """Otherwise the halves must fit beside what the whole batch took."""
    import gc
    import weakref

    problem = make_problem(n=8)
    room, held, alive = MomentAccumulator._room, [], []

    def watched(self, name, shape):
        memory = room(self, name, shape)
        if name == "past":
            alive.append([reference() is not None for reference in held])
            held.append(weakref.ref(memory))
        return memory

    reserve, calls = products.Products.reserve, []

    def limited(self):
        calls.append(self)
        if len(calls) == 1:
            raise torch.cuda.OutOfMemoryError("simulated")
        return reserve(self)

    gc.disable()
    try:
        monkeypatch.setattr(MomentAccumulator, "_room", watched)
        monkeypatch.setattr(products.Products, "reserve", limited)
        moments_of(problem, batch=8)
    finally:
        gc.enable()
    assert len(alive) == 3
    assert alive[1] == [False]


def test_one_text_that_does_not_fit_is_an_error(monkeypatch, may_run_out):
    def full(self, hidden):
        raise torch.cuda.OutOfMemoryError("simulated")

    monkeypatch.setattr(layout.Batch, "align", full)
    with pytest.raises(torch.cuda.OutOfMemoryError):
        moments_of(make_problem(n=4))


# What cannot be added


def build(**options):
    return MomentAccumulator(**({"layers": [0, 3], "width": 4, "n_targets": 2} | options))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"prefix": "all"}, ["prefix", "'all'", "sum", "mean", "last"]),
        ({"accumulate_dtype": torch.bfloat16}, ["accumulate_dtype", "bfloat16", "float32"]),
        ({"matmul_precision": "fast"}, ["matmul_precision", "fast", "highest"]),
        ({"width": 0}, ["width", "0"]),
        ({"n_targets": 0}, ["n_targets", "0"]),
        ({"folds": 1}, ["folds", "1", "2"]),
        ({"folds": -3}, ["folds", "-3"]),
        ({"layers": []}, ["layers"]),
        ({"layers": [1, 1]}, ["layers", "1", "twice"]),
    ],
)
def test_options_out_of_range(options, words):
    with pytest.raises(NtpsError) as caught:
        build(**options)
    assert all(word in str(caught.value) for word in words), caught.value


def batch(**changes):
    given_batch = {
        "hidden": torch.ones(2, 3, 5, 4),
        "mask": torch.ones(3, 5),
        "labels": torch.tensor([0, 1, 1]),
        "folds": torch.tensor([0, 1, 1]),
    }
    return given_batch | changes


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"hidden": torch.ones(1, 3, 5, 4)}, ["1 layers", "2"]),
        ({"hidden": torch.ones(2, 3, 4, 4)}, ["layer 0", "(3, 4, 4)", "(3, 5, 4)"]),
        ({"hidden": [torch.ones(3, 5, 4), torch.ones(3, 5, 5)]}, ["layer 3", "(3, 5, 5)"]),
        ({"mask": torch.tensor([[1.0] * 5, [0.0] * 5, [1.0] * 5])}, ["text 1", "no token"]),
        ({"labels": torch.tensor([0, 2, 1])}, ["labels", "2"]),
        ({"labels": torch.tensor([0, -1, 1])}, ["labels", "-1"]),
        ({"labels": torch.tensor([0, 1])}, ["labels", "(2,)"]),
        ({"labels": torch.tensor([0.0, 1.0, 1.0])}, ["labels", "float32"]),
        ({"labels": torch.ones(3, 5)}, ["labels", "(3, 5)", "(3, 2)"]),
        ({"labels": torch.tensor([[0.0, 1.0], [float("nan"), 1.0], [0.0, 1.0]])}, ["target", "finite", "text 1"]),
        ({"folds": None}, ["folds", "3"]),
        ({"folds": torch.tensor([0, 1])}, ["folds", "3"]),
        ({"folds": torch.tensor([0, 1, 5])}, ["folds", "5"]),
        ({"folds": torch.tensor([0, 1, -1])}, ["folds", "-1"]),
    ],
)
def test_bad_batches_are_refused_and_nothing_is_added(changes, words):
    accumulator = build(folds=2)
    with pytest.raises(NtpsError) as caught:
        accumulator.update(**batch(**changes))
    assert all(word in str(caught.value) for word in words), caught.value
    assert all(not value.any() for value in accumulator.sums().values())
    accumulator.update(**batch())
    assert accumulator.finalize().n_texts == 3


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("side", ["right", "left"])
def test_non_finite_state_names_layer_and_text(bad, side):
    problem = make_problem(n=5, d=4, c=2, longest=4)
    problem.texts[3][-1, 2] = bad
    hidden, mask = pad_batch(problem.texts, side)
    clean = torch.nan_to_num(hidden, nan=0.0, posinf=0.0, neginf=0.0)
    with pytest.raises(NonFiniteError, match="layer 3") as caught:
        build().update([clean, hidden], mask, torch.from_numpy(problem.labels))
    assert (caught.value.layer, caught.value.text) == (3, 3)
    assert "text 3" in str(caught.value)


def test_nothing_accumulated_is_an_error():
    with pytest.raises(NtpsError, match="no text"):
        build().finalize()


def test_finalize_may_be_called_on_the_way():
    problem = make_problem(n=10)
    accumulator = MomentAccumulator(layers=[0], width=problem.d, n_targets=problem.c, accumulate_dtype=torch.float64)
    views = []
    for part in (slice(0, 4), slice(4, 10)):
        hidden, mask = pad_batch(problem.texts[part])
        accumulator.update([hidden], mask, torch.from_numpy(problem.labels[part]))
        views.append(accumulator.finalize())
    assert_equal(views[0].layer(0), naive.moments(problem.texts[:4], problem.targets[:4]), 1e-12)
    assert_equal(views[1].layer(0), naive.moments(problem.texts, problem.targets), 1e-12)


def test_memory_does_not_grow_with_texts():
    accumulator = MomentAccumulator(layers=[0], width=4, n_targets=2)
    size = {name: value.shape for name, value in accumulator.sums().items()}
    for _ in range(30):
        accumulator.update([torch.randn(64, 2, 4)], torch.ones(64, 2), torch.zeros(64, dtype=torch.long))
        assert accumulator._pending_rows < accumulator_module._POOL_ROWS
    assert {name: value.shape for name, value in accumulator.sums().items()} == size
