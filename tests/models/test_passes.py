"""One pass over a task: batches, padding, folds, memory and processes change nothing but speed."""

import itertools
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ntps.core.accumulator import MomentAccumulator, NonFiniteError
from ntps.core.moments import Moments
from ntps.errors import NtpsError
from ntps.models import passes as extract
from ntps.models.load import load_model
from ntps.models.passes import collect, collect_moments
from ntps.models.plan import assign_folds, group_batches, make_request, parse_layers, plan_batches
from ntps.tasks.load import Task

WORDS = [
    "the",
    "film",
    "was",
    "good",
    "and",
    "bad",
    "we",
    "liked",
    "it",
    "story",
    "actor",
    "scene",
    "red",
    "blue",
    "dog",
    "cat",
    "rain",
    "sun",
    "she",
    "he",
]


def make_task(n=40, *, longest=12, seed=0, classes=3, blank=()):
    rng = np.random.default_rng(seed)
    texts = [" ".join(rng.choice(WORDS, size=rng.integers(1, longest + 1))) for _ in range(n)]
    for place in blank:
        texts[place] = "  "
    return Task.of("words", tuple(texts), rng.permutation(np.arange(n) % classes), tuple("abcdef"[:classes]))


@pytest.fixture(scope="module")
def model(tiny_llama):
    return load_model(str(tiny_llama), device="cpu")


@pytest.fixture(scope="module")
def task():
    return make_task()


def distance(one, other):
    """The largest difference of any sum, relative to that sum's largest entry in its layer."""
    worst = 0.0
    for name, value in one.sums.items():
        axes = tuple(range(value.ndim)) if name in ("y", "yy", "counts") else (-1,)
        scale = value.abs().amax(axes if value.ndim > 1 else 0, keepdim=True).amax(tuple(range(value.ndim)), True)
        worst = max(worst, float(((value - other.sums[name]).abs() / scale.clamp_min(1e-30)).max()))
    return worst


def by_hand(model, task, max_length=64):
    """Hidden states of one text at a time, without padding."""
    stacks = []
    for text in task.texts:
        ids = model.tokenize([text], max_length).ids[0]
        states = model.hidden_states(torch.tensor([ids]), torch.ones(1, len(ids), dtype=torch.long))
        stacks.append([state[0].double().numpy() for state in states])
    return stacks


# One pass


@pytest.mark.parametrize("prefix", ["sum", "mean", "last"])
def test_moments_are_those_of_the_models_states(model, prefix):
    from helpers import naive

    task = make_task(9, longest=6)
    moments = collect_moments(model, task, prefix=prefix, batch_size=4)
    stacks = by_hand(model, task)
    assert moments.layers == tuple(range(model.n_layers)) == (0, 1, 2, 3)
    for layer in moments.layers:
        expected = naive.moments([states[layer] for states in stacks], np.eye(3)[task.labels], prefix)
        view = moments.layer(layer)
        for name in ("M", "X", "C0", "C1", "mean_x", "mean_y", "yy"):
            scale = np.abs(expected[name]).max()
            assert np.abs(getattr(view, name).numpy() - expected[name]).max() < 5e-6 * scale, (layer, name)
    assert moments.identity_residual(2) < 1e-4 if prefix == "sum" else True


@pytest.mark.parametrize("batch_size", [1, 3, 32])
@pytest.mark.parametrize("kind", ["tiny_llama", "tiny_gpt2"])
def test_batch_size_changes_rounding_only(kind, batch_size, task, request):
    model = load_model(str(request.getfixturevalue(kind)), device="cpu")
    reference = collect_moments(model, task, batch_size=7, folds=3)
    found = collect_moments(model, task, batch_size=batch_size, folds=3)
    assert distance(reference, found) < 1e-6
    assert reference.metadata["key"] == found.metadata["key"]


def test_padding_side_of_the_tokenizer_changes_nothing(tiny_llama, tiny_llama_left, task):
    right = collect_moments(load_model(str(tiny_llama), device="cpu"), task)
    left = collect_moments(load_model(str(tiny_llama_left), device="cpu"), task)
    assert all(torch.equal(value, left.sums[name]) for name, value in right.sums.items())
    # The comparison is not idle: with the order of tokens turned round, C1 is another.
    turned = Task.of(task.name, tuple(" ".join(reversed(t.split())) for t in task.texts), task.labels, task.classes)
    assert distance(right, collect_moments(load_model(str(tiny_llama), device="cpu"), turned)) > 1e-2


def test_the_same_input_gives_the_same_bits(model, task):
    one, other = (collect_moments(model, task, folds=2, seed=4) for _ in range(2))
    assert all(torch.equal(value, other.sums[name]) for name, value in one.sums.items())
    assert one.metadata == other.metadata


def test_chosen_layers_are_those_of_all(model, task):
    whole, part = collect_moments(model, task), collect_moments(model, task, layers="0,-1")
    assert part.layers == (0, 3)
    for layer in part.layers:
        assert torch.equal(whole.layer(layer).C1, part.layer(layer).C1)
        assert torch.equal(whole.layer(layer).M, part.layer(layer).M)


def test_features_come_in_the_tasks_order(model):
    task = make_task(12, blank=(0, 5))
    moments, features = collect(model, task, layers=[1, 3], batch_size=4, folds=2)
    kept = [place for place in range(12) if place not in (0, 5)]
    assert features.kept.tolist() == kept
    assert features.labels.tolist() == task.labels[kept].tolist()
    assert features.folds.tolist() == assign_folds(task.labels, 2)[kept].tolist()
    assert features.values.shape == (2, 10, 24)
    stacks = by_hand(model, task.subset(kept))
    for place, layer in enumerate((1, 3)):
        expected = np.array([states[layer].mean(0) for states in stacks])
        assert np.allclose(features.values[place], expected, atol=1e-5)
        assert np.array_equal(features.layer(layer), features.values[place])
    x = features.layer(3).astype(np.float64)
    assert np.allclose(moments.layer(3).M, x.T @ x / 10, atol=1e-5)
    with pytest.raises(NtpsError, match="layer is 2"):
        features.layer(2)
    assert collect(model, task, keep_features=False)[1] is None


# Texts


def test_texts_without_tokens_are_skipped_and_counted(model):
    task = make_task(15, blank=(2, 7, 14))
    moments = collect_moments(model, task, folds=2)
    kept = [place for place in range(15) if place not in (2, 7, 14)]
    assert (moments.n_texts, moments.metadata["n_skipped"]) == (12, 3)
    rest = collect_moments(model, task.subset(kept))
    assert torch.allclose(rest.layer(2).C0, moments.layer(2).C0, rtol=1e-6)
    assert torch.allclose(rest.layer(2).mean_y, moments.layer(2).mean_y)


def test_no_text_with_a_token_is_an_error(model):
    with pytest.raises(NtpsError, match=r"words.*3 texts"):
        collect_moments(model, make_task(3, blank=(0, 1, 2)))


@pytest.mark.parametrize("max_length", [3, 5, None])
def test_long_texts_are_cut_and_counted(model, max_length):
    task = make_task(20, longest=9)
    moments = collect_moments(model, task, max_length=max_length)
    lengths = [len(text.split()) + 1 for text in task.texts]  # and "<s>"
    limit = max_length or 64
    assert moments.metadata["n_truncated"] == sum(length > limit for length in lengths)
    assert moments.n_tokens == sum(min(length, limit) for length in lengths)
    assert moments.metadata["max_length"] == limit  # 512, or the model's positions
    assert moments.metadata["settings"]["max_length"] == limit


def test_text_longer_than_the_models_positions(model):
    task = Task.of("long", ("good " * 100, "bad film"), np.array([0, 1]), ("a", "b"))
    moments = collect_moments(model, task, max_length=500)
    assert (moments.n_tokens, moments.metadata["n_truncated"]) == (64 + 3, 1)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_non_finite_state_names_layer_and_text(model, task, monkeypatch, bad):
    original, place = type(model).hidden_states, 17
    wanted = model.tokenize([task.texts[place]], 64).ids[0]

    def spoiled(self, ids, mask):
        states = [state.clone() for state in original(self, ids, mask)]
        for row, given_ids in enumerate(ids.tolist()):
            if given_ids[: int(mask[row].sum())] == wanted:
                states[2][row, 0, 3] = bad
        return tuple(states)

    monkeypatch.setattr(type(model), "hidden_states", spoiled)
    for batch_size in (1, 8):
        with pytest.raises(NonFiniteError) as caught:
            collect_moments(model, task, batch_size=batch_size)
        assert (caught.value.layer, caught.value.text) == (2, place)
        assert "layer 2" in str(caught.value)
        assert "text 17" in str(caught.value)
        assert task.texts[place][:20] in str(caught.value)
        assert isinstance(caught.value, NtpsError)
    collect_moments(model, task, layers=[0, 1, 3])  # a layer that is not asked for does not matter


# Memory


def limit_memory(monkeypatch, model, most):
    """Let forward passes fail for more than `most` texts; return the sizes that were tried."""
    original, tried = type(model).hidden_states, []

    def limited(self, ids, mask):
        tried.append(len(ids))
        if len(ids) > most:
            raise torch.cuda.OutOfMemoryError("simulated")
        return original(self, ids, mask)

    monkeypatch.setattr(type(model), "hidden_states", limited)
    return tried


@pytest.mark.parametrize("most", [1, 2, 3, 5])
@pytest.mark.parametrize("batch_size", [4, 7, 8, 16, 32])
def test_running_out_of_memory_halves_the_batch(model, task, monkeypatch, most, batch_size):
    reference, features = collect(model, task, folds=2)
    tried = limit_memory(monkeypatch, model, most)
    found, found_features = collect(model, task, folds=2, batch_size=batch_size)
    if batch_size > most:
        fitting = batch_size
        while fitting > most:
            fitting //= 2
        assert max(tried) == batch_size
        assert max(size for size in tried if size <= most) == fitting
    assert found.n_texts == len(task)  # no text twice, none left out
    assert distance(reference, found) < 1e-6
    assert np.allclose(features.values, found_features.values, atol=1e-5)
    failures = sum(size > most for size in tried)
    assert failures <= np.log2(batch_size) + 1  # what did not fit is not tried again


def test_one_text_that_does_not_fit_is_an_error(model, task, monkeypatch):
    limit_memory(monkeypatch, model, 0)
    with pytest.raises(NtpsError, match=r"one text of \d+ tokens.*max_length"):
        collect_moments(model, task)


def test_running_out_of_memory_in_the_sums(model, task, monkeypatch, may_run_out):
    from ntps.core.layout import Batch

    reference = collect_moments(model, task)
    align = Batch.align

    def limited(self, hidden):
        if len(hidden) > 2:
            raise torch.cuda.OutOfMemoryError("simulated")
        return align(self, hidden)

    monkeypatch.setattr(Batch, "align", limited)
    assert distance(reference, collect_moments(model, task)) < 1e-6
    monkeypatch.setattr(Batch, "align", lambda self, hidden: limited(self, torch.empty(3)))
    with pytest.raises(NtpsError, match=r"one text of \d+ tokens"):
        collect_moments(model, task)


# Planning


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(st.lists(st.integers(0, 50), max_size=40), st.integers(1, 9), st.integers(1, 120))
def test_batches_hold_every_text_with_tokens_once(lengths, batch_size, max_tokens):
    lengths = np.array(lengths, dtype=np.int64)
    batches = plan_batches(lengths, batch_size, max_tokens)
    places = [place for batch in batches for place in batch.tolist()]
    assert sorted(places) == np.flatnonzero(lengths).tolist()
    assert (np.diff(lengths[places]) <= 0).all()
    for batch in batches:
        assert 1 <= len(batch) <= batch_size
        assert len(batch) == 1 or len(batch) * lengths[batch].max() <= max_tokens


def test_batches_are_full_where_they_can_be():
    assert [len(batch) for batch in plan_batches(np.full(10, 5), 4, 1000)] == [4, 4, 2]
    assert [len(batch) for batch in plan_batches(np.full(10, 5), 4, 12)] == [2] * 5


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(st.lists(st.integers(0, 50), max_size=60), st.integers(1, 9), st.integers(0, 300))
def test_groups_hold_every_batch_in_order(lengths, batch_size, most):
    lengths = np.array(lengths, dtype=np.int64)
    batches = plan_batches(lengths, batch_size)
    groups = group_batches(batches, lengths, most)
    assert all(a is b for a, b in zip([batch for group in groups for batch in group], batches, strict=True))
    sizes = [[len(batch) * lengths[batch].max() for batch in group] for group in groups]
    assert all(len(group) == 1 or sum(group) <= most for group in sizes)
    assert all(sum(one) + two[0] > most for one, two in itertools.pairwise(sizes))


def test_short_batches_are_added_together_on_a_cpu(model, task, monkeypatch):
    calls = []
    plain = MomentAccumulator.update_many

    def watched(self, batches, **options):
        calls.append(len(batches))
        return plain(self, batches, **options)

    monkeypatch.setattr(MomentAccumulator, "update_many", watched)
    moments = collect_moments(model, task, batch_size=4)
    assert calls == [10]
    calls.clear()
    monkeypatch.setattr(extract, "COLUMNS", 0)
    alone = collect_moments(model, task, batch_size=4)
    assert calls == [1] * 10
    assert distance(moments, alone) < 1e-6


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(st.lists(st.integers(0, 4), min_size=2, max_size=60), st.integers(2, 7), st.integers(0, 100))
def test_folds_are_even_in_size_and_in_classes(labels, folds, seed):
    labels = np.array(labels)
    assigned = assign_folds(labels, folds, seed=seed)
    assert ((assigned >= 0) & (assigned < folds)).all()
    assert np.ptp(np.bincount(assigned, minlength=folds)) <= 1
    for label in set(labels.tolist()):
        assert np.ptp(np.bincount(assigned[labels == label], minlength=folds)) <= 1
    assert np.array_equal(assigned, assign_folds(labels, folds, seed=seed))


def test_folds_depend_on_the_seed():
    labels = np.arange(60) % 3
    assert not np.array_equal(assign_folds(labels, 5, seed=0), assign_folds(labels, 5, seed=1))


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        ("all", (0, 1, 2, 3, 4)),
        ("0,2,-1", (0, 2, 4)),
        ("3", (3,)),
        (" 1 , 0 ", (0, 1)),
        (2, (2,)),
        (-1, (4,)),
        ([4, 0, 4, -1], (0, 4)),
        (range(1, 3), (1, 2)),
        (np.array([1, 3]), (1, 3)),
        (np.int64(2), (2,)),
    ],
)
def test_layers(layers, expected):
    found = parse_layers(layers, 5)
    assert found == expected
    json.dumps(found)


@pytest.mark.parametrize(
    ("layers", "words"),
    [
        ("0,x", ["'0,x'", "0,6,-1"]),
        ("", ["''"]),
        ("first", ["'first'"]),
        ("0,9", ["layer 9", "0 to 4"]),
        (5, ["layer 5", "0 to 4"]),
        (-6, ["layer -6", "0 to 4"]),
        ([], ["layers is empty"]),
        (["a"], ["layers"]),
        ([1.5], ["layers", "1.5"]),
        (None, ["layers", "None"]),
    ],
)
def test_layers_that_are_none(layers, words):
    with pytest.raises(NtpsError) as caught:
        parse_layers(layers, 5)
    assert all(word in str(caught.value) for word in words), caught.value


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"prefix": "all"}, ["prefix", "'all'", "sum"]),
        ({"matmul_precision": "fast"}, ["matmul_precision", "fast"]),
        ({"max_length": 1}, ["max_length", "1", "2"]),
        ({"max_length": "long"}, ["max_length", "long"]),
        ({"folds": 1}, ["folds", "1", "14"]),
        ({"folds": -2}, ["folds", "-2"]),
        ({"folds": 15}, ["folds", "15", "14"]),
        ({"layers": "8"}, ["layer 8"]),
        ({"batch_size": 0}, ["batch_size", "0"]),
        ({"batch_size": -1}, ["batch_size", "-1"]),
    ],
)
def test_options_out_of_range(model, task, options, words, monkeypatch):
    monkeypatch.setattr(
        type(model), "hidden_states", lambda *_: pytest.fail("options are checked before the model runs")
    )
    with pytest.raises(NtpsError) as caught:
        collect_moments(model, task, **options)
    assert all(word in str(caught.value) for word in words), caught.value


def test_key_depends_on_all_that_shapes_the_moments(task):
    base = {"layers": "all", "max_length": 32, "prefix": "sum", "folds": 3, "seed": 0}

    def key(fingerprint="f", dtype="float32", given_task=task, **changes):
        return make_request(5, 64, given_task, **(base | changes)).key(fingerprint, dtype, given_task)

    same = key()
    assert key() == same
    assert key(max_length=32, layers=range(5)) == same
    others = [
        key("g"), key(dtype="bfloat16"), key(given_task=make_task(seed=1)), key(layers=[0]), key(max_length=31),
        key(prefix="mean"), key(folds=2), key(folds=0), key(seed=1), key(fold_prefix=True),
        key(matmul_precision="high"),
    ]  # fmt: skip
    assert len({same, *others}) == len(others) + 1


def test_metadata_says_what_made_the_moments(model, task, tmp_path):
    import ntps

    moments = collect_moments(model, task, batch_size=5, folds=3, seed=2)
    metadata = moments.metadata
    assert (metadata["model"], metadata["model_fingerprint"]) == (model.name, model.fingerprint)
    assert (metadata["task"], metadata["task_fingerprint"]) == ("words", task.fingerprint)
    assert (metadata["dtype"], metadata["version"], metadata["classes"]) == (
        "float32",
        ntps.__version__,
        ["a", "b", "c"],
    )
    wanted = {"layers": [0, 1, 2, 3], "prefix": "sum", "folds": 3, "seed": 2, "batch_size": 5, "device": "cpu"}
    assert wanted.items() <= metadata["settings"].items()
    assert Moments.load(moments.save(tmp_path / "m.safetensors")).metadata == metadata


# Progress


def test_progress_bar_is_silent_without_a_terminal(model, task, capfd):
    collect_moments(model, task)
    assert capfd.readouterr() == ("", "")
    collect_moments(model, task, progress=False)
    assert capfd.readouterr() == ("", "")
    collect_moments(model, task, progress=True)
    out, err = capfd.readouterr()
    assert out == ""
    assert "40 texts" in err
    assert "100%" in err
    assert "tokens" in err
    assert max(len(line) for line in err.replace("\r", "\n").splitlines()) <= 80


# Processes

SCRIPT = """
import sys
from pathlib import Path
import numpy as np
import torch
torch.set_num_threads(1)
sys.path[:0] = [{tests!r}, str(Path({tests!r}).parent)]
from test_passes import make_task
from ntps.models import passes as extract
from ntps.models.passes import collect
from ntps.models.load import load_model
import os
extract.COLUMNS = 60  # several groups of several batches
read = []
plain = extract._Run.read
extract._Run.read = lambda self, batch: read.extend(batch.tolist()) or plain(self, batch)
model = load_model({model!r}, device="cpu")
moments, features = collect(model, make_task(50, blank=(3,)), batch_size=4, folds=3)
rank = os.environ.get("RANK", "alone")
moments.save(Path({out!r}) / f"{{rank}}.safetensors")
np.save(Path({out!r}) / f"{{rank}}.npy", features.values)
np.save(Path({out!r}) / f"{{rank}}_read.npy", read)
"""


@pytest.mark.slow
def test_two_processes_equal_one(tiny_llama, tmp_path):
    script = tmp_path / "script.py"
    tests = os.path.dirname(os.path.abspath(__file__))
    script.write_text(SCRIPT.format(tests=tests, model=str(tiny_llama), out=str(tmp_path)))
    environment = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    environment |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [sys.executable, *torchrun, str(script)], env=environment, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr[-3000:]
    # One process, with as many threads: another number of threads rounds float32 differently.
    subprocess.run([sys.executable, str(script)], env=environment, check=True, capture_output=True, timeout=240)
    alone = Moments.load(tmp_path / "alone.safetensors")
    shares = [np.load(tmp_path / f"{rank}_read.npy").tolist() for rank in ("0", "1")]
    assert min(map(len, shares)) >= 15
    assert sorted([*shares[0], *shares[1]]) == sorted(np.load(tmp_path / "alone_read.npy").tolist())
    for rank in ("0", "1"):
        found = Moments.load(tmp_path / f"{rank}.safetensors")
        assert distance(alone, found) < 1e-10
        assert found.n_texts == 49
        assert np.allclose(np.load(tmp_path / f"{rank}.npy"), np.load(tmp_path / "alone.npy"), atol=1e-6)


def test_processes_share_every_batch_once():
    batches = [np.array([i]) for i in range(7)]
    shares = []
    for rank in range(3):
        processes = extract._Processes(torch.device("cpu"))
        processes.count, processes.rank = 3, rank
        shares.append([int(batch[0]) for batch in processes.share(batches)])
    assert sorted(place for share in shares for place in share) == list(range(7))
