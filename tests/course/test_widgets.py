"""Panels, driven without a browser: their mathematics, their pictures, their controls."""

import io
import re
import time

import numpy as np
import pytest
import torch
from PIL import Image

from ntps.core.accumulator import MomentAccumulator
from ntps.core.encoders import layer_autoregressive_encoder, perception_encoder
from ntps.core.solve import read_layer
from ntps.course.widgets import (
    KINDS,
    BoundsPanel,
    LinearWorld,
    LinearWorldPanel,
    SpectraPanel,
    WordStates,
    between_groups,
    plane_coordinates,
    plane_world,
    read_world,
    word_kinds,
    word_states,
    word_topics,
)
from ntps.errors import NtpsError

LAYERS, WIDTH, CLASSES = 3, 12, 3
FRAME_SECONDS = 0.5  # ten times the 50 ms a frame may take: the machine that runs this may be busy


def make_moments(seed: int, classes: int = CLASSES):
    rng = np.random.default_rng(seed)
    accumulator = MomentAccumulator(
        layers=tuple(range(LAYERS)), width=WIDTH, n_targets=classes, accumulate_dtype=torch.float64
    )
    mixing = rng.standard_normal((LAYERS, WIDTH, WIDTH)) * np.geomspace(3, 0.1, WIDTH)
    labels = np.arange(120) % classes
    theme = rng.standard_normal((classes, WIDTH))[labels][:, None]
    states = rng.standard_normal((120, 7, WIDTH)) + 0.7 * theme
    hidden = torch.from_numpy(np.stack([states @ m for m in mixing])).float()
    accumulator.update(hidden, torch.ones(120, 7, dtype=torch.int64), torch.from_numpy(labels))
    return accumulator.finalize({})


@pytest.fixture(scope="module")
def moments():
    return {"three": make_moments(0), "two": make_moments(1, classes=2)}


@pytest.fixture(scope="module")
def words():
    rng = np.random.default_rng(3)
    names = tuple(f"word{i}" for i in range(40))
    kinds = tuple(KINDS[i % len(KINDS)] for i in range(40))
    return WordStates(names, np.arange(1, 41), rng.standard_normal((LAYERS, 40, WIDTH)), kinds)


@pytest.fixture(params=["a", "b", "c"])
def panel(request, moments, words):
    if request.param == "a":
        return LinearWorldPanel()
    if request.param == "b":
        groups = {"kind": words.kinds, "half": [None if i % 2 else "even" for i in range(40)]}
        return SpectraPanel(moments["three"], words, groups)
    return BoundsPanel(moments)


def picture(panel) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(panel.png())))


# The linear world ------------------------------------------------------------------------------------------------


def test_exact_moments_are_those_of_samples():
    rng = np.random.default_rng(0)
    world = LinearWorld(rng.standard_normal((3, 2)), np.diag([2.0, 1.0, 0.3]), rng.standard_normal((3, 2)), length=5)
    states, y = world.sample(200_000, seed=1)
    s, x, n = states.cumsum(1), states.mean(1), len(states)
    exact = world.moments()
    sampled = {
        "C0": np.einsum("ntd,nte->de", s[:, :-1], s[:, :-1]) / n,
        "C1": np.einsum("ntd,nte->de", s[:, :-1], states[:, 1:]) / n,
        "M": x.T @ x / n,
        "X": x.T @ y / n,
        "yy": y.T @ y / n,
    }
    for name, value in sampled.items():
        theory = getattr(exact, name).numpy()
        assert np.abs(value - theory).max() < 0.02 * np.abs(theory).max(), name
    assert np.square(states[:, 1:]).sum() / n == pytest.approx(world.next_energy, rel=0.01)


@pytest.mark.parametrize(("a", "b"), [(30, 30), (0, 45), (20, 110), (170, 50)])
def test_round_noise_scores_the_squared_cosine(a, b):
    result = read_world(plane_world(a, b, 1.0))
    assert result.ntps == pytest.approx(np.cos(np.radians(a - b)) ** 2, abs=1e-9)


def test_next_token_direction_is_seen_against_the_noise():
    world = plane_world(40, 10, 3.0)
    v = layer_autoregressive_encoder(world.moments()).vectors[:, 0].numpy()
    wanted = np.linalg.solve(world.N, world.A)[:, 0]
    assert abs(v @ wanted) == pytest.approx(np.linalg.norm(v) * np.linalg.norm(wanted))


def test_label_loss_agrees_with_the_score_module():
    world = plane_world(40, 100, 2.0)
    result, held = read_world(world), world.moments()
    U = perception_encoder(held.M, held.X)
    at_u, at_v, energy = result.label_loss
    assert energy == pytest.approx(1.0)
    assert energy - at_u == pytest.approx(float(U.eigenvalues[0]))
    v = result.V.vectors[:, :1]
    explained = torch.trace(torch.linalg.solve(v.T @ held.M @ v, v.T @ held.X @ held.X.T @ v))
    assert energy - at_v == pytest.approx(float(explained))


def test_a_world_of_wrong_shapes_is_refused():
    with pytest.raises(NtpsError, match=r"N must be \(2, 2\)"):
        LinearWorld(np.ones((2, 1)), np.eye(3), np.ones((2, 1)))
    with pytest.raises(NtpsError, match="stretch"):
        plane_world(stretch=0)


# Every panel -----------------------------------------------------------------------------------------------------


def test_every_control_changes_the_picture_and_its_size_stays(panel):
    for name, control in panel.controls.items():
        before, old = picture(panel), panel.state[name]
        if hasattr(control, "options"):
            new = next(option for option in control.options if option != old)
        else:
            low, high = panel.limits().get(name, (control.low, control.high))
            new = old + control.step if old + control.step <= high else old - control.step
            assert low <= new <= high
        panel.set(**{name: new})
        after = picture(panel)
        assert after.shape == before.shape
        assert (after != before).any(), name
        panel.set(**{name: old})
        if not hasattr(control, "options"):  # a choice may have cut back a rank
            assert (picture(panel) == before).all(), f"{name}: the way back gives another picture"


def test_blitting_shows_what_a_full_drawing_shows(panel):
    for name, control in panel.controls.items():
        if not hasattr(control, "options"):
            panel.set(**{name: panel.limits().get(name, (control.low, control.high))[1]})
    quick = picture(panel)
    panel.redraw_all()
    assert (picture(panel) == quick).all()


def test_one_figure_is_reused(panel):
    figure = panel.figure
    artists = len(figure.findobj())
    for name, control in panel.controls.items():
        if not hasattr(control, "options"):
            for value in (control.low, panel.limits().get(name, (control.low, control.high))[1]):
                panel.set(**{name: value}).png()
    assert panel.figure is figure
    assert len(figure.findobj()) == artists


def test_a_frame_is_fast(panel):
    name = next(name for name, control in panel.controls.items() if hasattr(control, "low"))
    control = panel.controls[name]
    values = np.linspace(control.low, control.high, 8).round().tolist()
    times = []
    for value in values:
        start = time.perf_counter()
        panel.set(**{name: value}).png()
        times.append(time.perf_counter() - start)
    assert np.median(times) < FRAME_SECONDS


def test_bad_states_are_refused(panel):
    with pytest.raises(NtpsError, match="control is 'volume'"):
        panel.set(volume=11)
    for name, control in panel.controls.items():
        with pytest.raises(NtpsError, match=name):
            panel.set(**{name: "nowhere" if hasattr(control, "options") else control.high + 1})


def test_ipywidgets_around_it(panel):
    pytest.importorskip("ipywidgets")
    box = panel.show()
    assert {"ntps-panel", f"ntps-panel-{panel.letter}"} <= set(box._dom_classes)
    images = [child for child in box.children if "ntps-picture" in child._dom_classes]
    assert len(images) == 1
    assert images[0].value[:4] == b"\x89PNG"
    assert int(images[0].width) <= 640
    for name, control in panel.controls.items():
        given = box.inputs[name]
        kind = "choice" if hasattr(control, "options") else "slider"
        assert f"ntps-{kind}-{name.replace('_', '-')}" in given._dom_classes
        assert given.description
        before = images[0].value
        old = given.value
        if kind == "choice":
            given.value = next(option for option in control.options if option != old)
        else:
            given.value = old + control.step if old + control.step <= given.max else old - control.step
        assert images[0].value != before, name
        given.value = old
    plain = re.sub(r"<[^>]+>", "", box.text.value)
    assert re.sub(r"<[^>]+>", "", panel.reading()) == plain
    assert 'role="status"' in box.text.value
    assert images[0].tooltip is None, "JupyterLab shows an error instead of an Image that has a tooltip"


# Panel B ---------------------------------------------------------------------------------------------------------


def test_plane_coordinates_are_standardised():
    rng = np.random.default_rng(0)
    at = plane_coordinates(rng.standard_normal((50, 4)) + 3, rng.standard_normal((4, 2)))
    assert np.allclose(at.mean(0), 0)
    assert np.allclose(at.std(0), 1)


def test_between_groups_is_a_share_of_variance():
    groups = ["a"] * 100 + ["b"] * 100 + [None] * 50
    rng = np.random.default_rng(0)
    apart = np.concatenate([np.full(100, -1.0), np.full(100, 1.0), rng.standard_normal(50) * 99])
    unrelated = rng.standard_normal(250)
    shares = between_groups(np.stack([apart, unrelated], axis=1), groups)
    assert shares[0] == pytest.approx(1)
    assert shares[1] < 0.05


def test_spectra_panel_refuses_what_does_not_fit(moments, words):
    with pytest.raises(NtpsError, match="different models"):
        SpectraPanel(moments["three"], WordStates(words.words, words.counts, words.means[:, :, :5], words.kinds))
    with pytest.raises(NtpsError, match="one each"):
        SpectraPanel(moments["three"], words, {"kind": words.kinds[:3]})
    with pytest.raises(NtpsError, match="more than 8"):
        SpectraPanel(moments["three"], words, {"word": words.words})


def test_word_states_are_means_of_hidden_states(tiny_llama):
    from ntps.models.load import load_model

    model = load_model(str(tiny_llama))
    texts = ["the film was good", "a good film", "the the zebra"]
    kinds = {"the": "function word", "film": "topic noun", "good": "mood", "dull": "mood"}
    found = word_states(model, texts, kinds=kinds, min_count=1, batch_size=2)
    assert found.words == ("film", "good", "the")
    assert found.counts.tolist() == [2, 2, 3]
    assert found.kinds == ("topic noun", "mood", "function word")
    each = []
    for text in texts:
        ids = model.tokenize([text]).ids
        states = torch.stack(model.hidden_states(*model.pad(ids)))[:, 0].double()
        tokens = model.tokenizer.convert_ids_to_tokens(ids[0])
        each += [states[:, place] for place, token in enumerate(tokens) if token == "the"]
    assert np.allclose(found.means[:, 2], torch.stack(each).mean(0).numpy(), atol=1e-5)
    assert word_states(model, texts, kinds=kinds, min_count=3).words == ("the",)
    with pytest.raises(NtpsError, match="no word occurs 9 times"):
        word_states(model, texts, kinds=kinds, min_count=9)


def test_every_bundled_word_has_a_kind():
    from ntps.miniworld.words import all_words

    kinds = word_kinds()
    assert {word for word in all_words() if word not in kinds and word.isalpha()} == set()
    assert set(kinds.values()) == set(KINDS)
    assert kinds["the"] == "function word"
    assert kinds["oh"] == "watermark"
    topics = word_topics()
    assert topics["telescope"] == "astronomy"
    assert "the" not in topics


# Panel C ---------------------------------------------------------------------------------------------------------


def test_bounds_panel_shows_what_the_score_says(moments):
    panel = BoundsPanel(moments)
    for task in moments:
        for layer in range(LAYERS):
            for k_u in (1, panel.solutions[task, layer].U.rank):
                for k_v in (k_u, 7):
                    panel.set(task=task, layer=layer, k_u=k_u, k_v=k_v)
                    scored = read_layer(panel.solution, k_u=k_u, k_v=k_v)
                    curves = panel.curves()
                    assert curves["ntps"][k_v - 1] == pytest.approx(scored.ntps)
                    assert curves["excess"][k_v - 1] == pytest.approx(scored.excess_loss, abs=1e-9)
                    for kind in ("raw", "whitened"):
                        assert curves[kind][:, k_v - 1] == pytest.approx(scored.bounds[kind], abs=1e-9)
                        low, high = curves[kind][:, k_v - 1]
                        assert low - 1e-9 <= curves["excess"][k_v - 1] <= high + 1e-9
                    assert f"{scored.ntps:.3f}" in panel.reading()


def test_ranks_follow_the_task(moments):
    pytest.importorskip("ipywidgets")
    panel = BoundsPanel(moments)
    box = panel.show()
    box.inputs["k_u"].value = 3
    box.inputs["task"].value = "two"
    assert (box.inputs["k_u"].value, box.inputs["k_u"].max, panel.state["k_u"]) == (2, 2, 2)
    box.inputs["task"].value = "three"
    assert box.inputs["k_u"].max == 3


def test_bounds_panel_refuses_what_does_not_fit(moments):
    with pytest.raises(NtpsError, match="no moments"):
        BoundsPanel({})
