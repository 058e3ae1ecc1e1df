"""The paper's figures: what is drawn is what was published; Figure 1 for any model."""

import re

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from helpers import naive
from scipy.stats import rankdata, spearmanr

import ntps
import ntps.paper.figures
from ntps.core import PooledMoments
from ntps.errors import NtpsError
from ntps.paper import plot, plot_words, project_words, results, words, write_figures
from ntps.paper.published import TARGETS
from ntps.scoring import labels_of


@pytest.fixture(autouse=True)
def _closed():
    yield
    plt.close("all")


@pytest.mark.parametrize("target", TARGETS)
def test_figures_2_and_3_are_ranks_with_the_published_correlation(target):
    frame = results()
    axes = plot(frame, target=target, ranks=True).ravel()
    for axis, (_, part) in zip(axes, frame.groupby("model", sort=False), strict=True):
        expected = spearmanr(part[f"ntps_{target}"], part[target]).statistic
        shown = float(re.search(r"ρ = ([+-]\d\.\d\d)", axis.get_title()).group(1))
        assert shown == pytest.approx(expected, abs=0.005)
        points = np.asarray(axis.collections[0].get_offsets())
        assert points[:, 0].tolist() == rankdata(part[f"ntps_{target}"]).tolist()
        assert points[:, 1].tolist() == rankdata(part[target]).tolist()


def test_figure_1_is_the_published_words():
    frame = words()
    assert (len(frame), frame["word"].nunique(), set(frame["space"])) == (26, 13, {"U", "V"})
    first = frame[(frame["space"] == "U") & (frame["word"] == "lovely")].iloc[0]
    assert (first["direction_1"], first["direction_2"]) == (1.6258733, 1.7615137)
    axes = plot_words(frame)
    for axis, space in zip(axes, "UV", strict=True):
        assert [text.get_text() for text in axis.texts].sort() == frame["word"][frame["space"] == space].tolist().sort()
        points = np.concatenate([np.asarray(collection.get_offsets()) for collection in axis.collections])
        expected = frame.loc[frame["space"] == space, ["direction_1", "direction_2"]].to_numpy()
        assert sorted(map(tuple, points)) == sorted(map(tuple, expected))


@pytest.mark.long
def test_files(tmp_path):
    files = write_figures(tmp_path / "new" / "folder")
    assert [path.name for path in files] == [
        "figure1.png", "figure2-accuracy.png", "figure2-error.png", "figure3.png", "correlations.csv",
    ]  # fmt: skip
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in files[:4])
    assert sorted(path.name for path in files[0].parent.iterdir()) == sorted(path.name for path in files)
    table = pd.read_csv(files[4])
    assert len(table[table["view"] == "model"]) == 24


def test_words_of_a_model_are_projected_as_the_released_code_does():
    task, model = ntps.load_task("miniworld/topic", limit=200), ntps.load_model("miniworld-small")
    frame = project_words(model, task, ["the", "said"], layer=1, progress=False)
    assert set(frame["category"]) == {"word"} and len(frame) == 4
    texts = ntps.collect(model, task, layers=[1], progress=False)
    labels, next_token = labels_of(texts), texts.next_token.layer(1)
    pooled = PooledMoments.of(torch.from_numpy(labels.states(texts, 1)), labels.targets)
    state = model.hidden_states(*model.pad(model.tokenize(["said"]).ids))[1][0].double().mean(0).detach().numpy()
    for space, pair in (("U", (pooled.X, pooled.M)), ("V", (next_token.C1, next_token.C0))):
        row = frame[(frame["word"] == "said") & (frame["space"] == space)].iloc[0]
        expected = state @ naive.released_directions(*pair)[:, :2]
        np.testing.assert_allclose([row["direction_1"], row["direction_2"]], expected, rtol=1e-3, atol=1e-5)


def test_words_without_tokens_and_layers_without_directions(tiny_llama, monkeypatch):
    model = ntps.load_model(str(tiny_llama))
    task = ntps.load_task(texts=["good film", "bad film"] * 10, labels=[1, 0] * 10, name="films")
    with pytest.raises(NtpsError, match="layer 9 is out of range"):
        project_words(model, task, ["good"], layer=9, progress=False)
    monkeypatch.setattr(ntps.paper.figures, "ascending_eigenvectors", lambda B, F: np.ones((24, 1)))
    with pytest.raises(NtpsError, match="two directions"):
        project_words(model, task, ["good"], progress=False)
