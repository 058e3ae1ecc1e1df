"""Moments add, centre, show folds, keep the identity, and come back from a file whole or not at all."""

import functools
import json
import re
import struct
import subprocess
import sys

import numpy as np
import pytest
import torch
from helpers import naive
from helpers.problems import accumulate, make_problem, moments_of

from ntps.core import moments as moments_module
from ntps.core.moments import Moments
from ntps.errors import NtpsError

MADE = {
    "model": "m",
    "model_fingerprint": "f0",
    "dtype": "float32",
    "classes": ["a", "b", "c"],
    "max_length": 32,
    "task_fingerprint": "t0",
    "n_skipped": 1,
    "n_truncated": 2,
    "key": "k0",
}


def halves(**options):
    whole = make_problem(seed=3, n=30)
    first, second = make_problem(seed=3, n=30), make_problem(seed=3, n=30)
    for part, chosen in ((first, slice(0, 11)), (second, slice(11, 30))):
        part.texts, part.labels = whole.texts[chosen], whole.labels[chosen]
        part.targets, part.folds = whole.targets[chosen], whole.folds[chosen]
    return (
        accumulate(whole, **options).finalize(MADE),
        accumulate(first, **options).finalize(MADE),
        accumulate(second, **options).finalize(MADE),
    )


def close(one, other, tolerance=1e-12):
    return one.sums.keys() == other.sums.keys() and all(
        torch.allclose(value, other.sums[name], rtol=tolerance, atol=tolerance * float(value.abs().max()) + 1e-300)
        for name, value in one.sums.items()
    )


@pytest.mark.parametrize("options", [{}, {"folds": 4}, {"folds": 4, "fold_prefix": True}, {"token_gram": True}])
def test_addition_equals_one_pass(options):
    whole, first, second = halves(**options)
    assert close(first + second, whole)
    assert close(second + first, whole)
    assert not close(first + first, whole)
    assert (first + second).n_texts == 30
    assert functools.reduce(lambda a, b: a + b, [first, second]).n_tokens == whole.n_tokens


def test_addition_leaves_its_terms_alone():
    _, first, second = halves()
    before = {name: value.clone() for name, value in first.sums.items()}
    total = first + second
    total.sums["xx"].zero_()
    assert all(torch.equal(before[name], first.sums[name]) for name in before)


def test_metadata_of_a_sum_is_that_of_both():
    _, first, second = halves()
    second = Moments(
        second.sums, second.layers, metadata=second.metadata | {"task_fingerprint": "t1", "n_skipped": 4, "key": "k1"}
    )
    total = first + second
    assert total.metadata["task_fingerprint"] == "t0+t1"
    assert total.metadata["n_skipped"] == 5
    assert total.metadata["n_truncated"] == 4
    assert "key" not in total.metadata  # it names one pass over one task


def test_sum_of_precisions_has_the_coarser_one():
    fine, coarse = (moments_of(make_problem(n=9), dtype=kind) for kind in (torch.float64, torch.float32))
    for total in (fine + coarse, coarse + fine):
        assert total.layer(0).prefix_dtype == "float32"
    assert (fine + fine).layer(0).prefix_dtype == "float64"


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"layers": (4,)}, "layers"),
        ({"prefix": "mean"}, "prefix"),
        ({"metadata": MADE | {"model_fingerprint": "other"}}, "model_fingerprint"),
        ({"metadata": MADE | {"dtype": "bfloat16"}}, "dtype"),
        ({"metadata": MADE | {"classes": ["a", "b", "d"]}}, "classes"),
        ({"metadata": MADE | {"max_length": 16}}, "max_length"),
    ],
)
def test_what_does_not_match_is_not_added(change, word):
    first = halves()[1]
    other = Moments(
        **{"sums": first.sums, "layers": first.layers, "prefix": "sum", "metadata": first.metadata} | change
    )
    for pair in ((first, other), (other, first)):
        with pytest.raises(NtpsError, match=word):
            pair[0] + pair[1]


@pytest.mark.parametrize(
    ("mine", "theirs", "word"),
    [
        ({"folds": 4}, {}, "folds"),
        ({"folds": 4}, {"folds": 4, "fold_prefix": True}, "per fold"),
        ({"token_gram": True}, {}, "kept sums"),
        ({}, {"problem": make_problem(d=5)}, "width"),
        ({}, {"problem": make_problem(c=2)}, "targets"),
    ],
)
def test_different_shapes_are_not_added(mine, theirs, word):
    problem = theirs.pop("problem", make_problem()) if theirs else make_problem()
    first, second = moments_of(make_problem(), **mine), moments_of(problem, **theirs)
    for pair in ((first, second), (second, first)):
        with pytest.raises(NtpsError, match=word):
            pair[0] + pair[1]


def test_only_moments_are_added():
    with pytest.raises(TypeError):
        moments_of(make_problem()) + 1


# Views


def test_centred_view_is_the_moments_of_centred_data():
    problem = make_problem(n=25)
    x, y = naive.pooled(problem.texts), problem.targets
    plain = moments_of(problem).layer(0)
    view = plain.centered()
    x0, y0 = x - x.mean(0), y - y.mean(0)
    assert np.allclose(view.M, x0.T @ x0 / 25)
    assert np.allclose(view.X, x0.T @ y0 / 25)
    assert np.allclose(view.yy, y0.T @ y0 / 25)
    assert view.mean_x.abs().max() < 1e-12
    assert torch.equal(view.C0, plain.C0)
    assert torch.equal(view.C1, plain.C1)
    a, b = np.arange(problem.d, dtype=float), np.array([0.5, -1.0, 2.0])
    view = plain.centered(torch.from_numpy(a), torch.from_numpy(b))
    assert np.allclose(view.M, (x - a).T @ (x - a) / 25)
    assert np.allclose(view.X, (x - a).T @ (y - b) / 25)
    assert np.allclose(view.yy, (y - b).T @ (y - b) / 25)
    assert np.allclose(view.mean_x, (x - a).mean(0))


def test_folds_partition_the_texts():
    moments = moments_of(make_problem(n=30), folds=4, fold_prefix=True)
    whole = moments.layer(0)
    for name in ("M", "X", "C0", "C1", "mean_x", "yy"):
        total = sum(moments.fold(0, f).n * getattr(moments.fold(0, f), name) for f in range(4))
        assert torch.allclose(total / 30, getattr(whole, name)), name
        rest = moments.without_fold(0, 1).n * getattr(moments.without_fold(0, 1), name)
        assert torch.allclose(rest + moments.fold(0, 1).n * getattr(moments.fold(0, 1), name), total), name


def test_views_out_of_range():
    plain, folded = moments_of(make_problem()), moments_of(make_problem(), folds=4)
    with pytest.raises(NtpsError, match=r"layer 7.*there are 0"):
        plain.layer(7)
    with pytest.raises(NtpsError, match="no folds"):
        plain.fold(0, 0)
    for fold in (4, -1):
        with pytest.raises(NtpsError, match="fold is"):
            folded.fold(0, fold)
        with pytest.raises(NtpsError, match="fold is"):
            folded.without_fold(0, fold)
    problem = make_problem()
    problem.folds[:] = 0
    empty = moments_of(problem, folds=2)
    with pytest.raises(NtpsError, match="no text lies in these folds"):
        empty.fold(0, 1)
    assert empty.layer(0).n == 80


# The identity C1 + C1^T = E[s_L s_L^T] - E[sum_t h_t h_t^T]


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_identity_holds_and_notices_a_planted_error(whole, dtype):
    moments = moments_of(make_problem(n=50), token_gram=whole, dtype=dtype)
    bound = 1e-13 if dtype == torch.float64 else 1e-5
    assert moments.identity_residual(0) < bound
    for name, place in {"sh": (0, 0, 2, 2), "last_squares": (0, 1), "token_squares": (0, 1)}.items():
        if whole and name != "sh":
            continue
        sums = {key: value.clone() for key, value in moments.sums.items()}
        sums[name][place] *= 1.01
        sums[name][place] += 0.01 * float(moments.sums["sh"].abs().max())
        assert Moments(sums, (0,), metadata=moments.metadata).identity_residual(0) > 100 * bound
    if whole:  # off the diagonal only the whole matrices see it
        sums = {key: value.clone() for key, value in moments.sums.items()}
        sums["sh"][0, 0, 1, 4] += 0.01 * float(sums["sh"].abs().max())
        assert Moments(sums, (0,)).identity_residual(0) > 100 * bound
        del sums["token_gram"]
        assert Moments(sums, (0,)).identity_residual(0) < bound


def test_identity_against_plain_loops():
    problem = make_problem(n=20)
    loops = naive.moments(problem.texts, problem.targets)
    assert np.allclose(loops["C1"] + loops["C1"].T, loops["last_gram"] - loops["token_gram"])
    moments = moments_of(problem, token_gram=True)
    assert np.allclose(moments.sums["token_gram"][0] / 20, loops["token_gram"])
    assert np.allclose(moments.sums["last_gram"][0] / 20, loops["last_gram"])
    assert np.allclose(moments.sums["token_squares"][0] / 20, loops["token_gram"].diagonal())
    assert np.allclose(moments.sums["last_squares"][0] / 20, loops["last_gram"].diagonal())


@pytest.mark.parametrize("prefix", ["mean", "last"])
def test_identity_is_refused_for_other_prefixes(prefix):
    moments = moments_of(make_problem(), prefix=prefix)
    with pytest.raises(NtpsError, match=prefix):
        moments.identity_residual(0)
    pretended = Moments(moments.sums, (0,), "sum", 0, moments.metadata)
    assert pretended.identity_residual(0) > 1e-3


# Files


def write(tmp_path, **options):
    metadata = MADE | {"settings": {"seed": 0}, "note": "naïve", "nothing": None}
    moments = accumulate(make_problem(n=20, d=3), **options).finalize(metadata)
    return moments, moments.save(tmp_path / "moments.safetensors")


@pytest.mark.parametrize("options", [{}, {"folds": 4, "fold_prefix": True}, {"token_gram": True}, {"prefix": "mean"}])
def test_what_was_saved_comes_back(tmp_path, options):
    moments, path = write(tmp_path, **options)
    again = Moments.load(path)
    assert again.sums.keys() == moments.sums.keys()
    assert all(torch.equal(value, again.sums[name]) for name, value in moments.sums.items())
    assert (again.layers, again.prefix, again.n_folds) == (moments.layers, moments.prefix, moments.n_folds)
    assert again.metadata == moments.metadata
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    assert close(again + moments, moments + moments)


def header_of(path):
    raw = path.read_bytes()
    size = struct.unpack("<Q", raw[:8])[0]
    return raw, size, json.loads(raw[8 : 8 + size])


def test_every_flipped_byte_is_noticed(tmp_path):
    """Everywhere in the header, metadata included, and at many places of the numbers."""
    _, path = write(tmp_path)
    raw, size, _ = header_of(path)
    rng = np.random.default_rng(0)
    places = [*range(8 + size), *rng.integers(8 + size, len(raw), size=100).tolist()]
    survived = []
    for place in places:
        damaged = bytearray(raw)
        damaged[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged)
        try:
            Moments.load(path)
        except NtpsError as error:
            assert str(path) in str(error)
            assert "\n" not in str(error)
        else:
            survived.append(place)
    assert survived == []
    path.write_bytes(raw)
    Moments.load(path)


def test_another_number_type_of_the_same_size_is_noticed(tmp_path):
    _, path = write(tmp_path)
    path.write_bytes(path.read_bytes().replace(b'"F64"', b'"I64"', 1))
    with pytest.raises(NtpsError, match="checksum"):
        Moments.load(path)


@pytest.mark.parametrize("keep", [0, 5, 8, 100, -1, -8])
def test_truncated_files_are_refused(tmp_path, keep):
    _, path = write(tmp_path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(NtpsError, match="damaged"):
        Moments.load(path)


def test_other_format_version_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(moments_module, "FORMAT_VERSION", 999)
    _, path = write(tmp_path)
    monkeypatch.undo()
    with pytest.raises(NtpsError, match=r"format 999.*reads 1"):
        Moments.load(path)


def test_other_files_are_refused(tmp_path):
    from safetensors.torch import save_file

    with pytest.raises(NtpsError, match="no such file"):
        Moments.load(tmp_path / "absent.safetensors")
    with pytest.raises(NtpsError, match="no such file"):
        Moments.load(tmp_path)
    other = tmp_path / "model.safetensors"
    save_file({"weight": torch.ones(2)}, other)
    with pytest.raises(NtpsError, match="holds no ntps moments"):
        Moments.load(other)
    other.write_text("label,text\n")
    with pytest.raises(NtpsError, match="damaged or no safetensors"):
        Moments.load(other)


def test_what_cannot_be_written_leaves_nothing(tmp_path):
    moments, path = write(tmp_path)
    before = path.read_bytes()
    unfit = Moments(moments.sums, moments.layers, metadata={"path": tmp_path})
    with pytest.raises(NtpsError, match="cannot write"):
        unfit.save(path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    with pytest.raises(NtpsError, match="cannot write"):
        moments.save(path / "below" / "a" / "file")


def test_core_imports_torch_only():
    code = (
        "import sys, ntps.core.accumulator, ntps.core.moments, ntps.core.encoders, ntps.score\n"
        "print([m for m in ('transformers', 'datasets', 'peft', 'pandas', 'sklearn') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert re.fullmatch(r"\[\]\n", done.stdout), done.stdout
