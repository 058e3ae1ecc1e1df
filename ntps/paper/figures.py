"""The paper's figures, drawn from the published numbers, and Figure 1 for any model."""

from collections.abc import Sequence
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ntps._files import atomic_path, atomic_write
from ntps.core import PooledMoments
from ntps.core.official import ascending_eigenvectors
from ntps.errors import NtpsError
from ntps.models import collect
from ntps.paper.published import TARGETS, correlations, plot, words
from ntps.report.plots import MARKERS, PALETTE
from ntps.scoring import labels_of

if TYPE_CHECKING:
    import pandas as pd

    from ntps.models import LanguageModel
    from ntps.tasks import Task

COLUMNS = ("target", "view", "model", "n", "spearman", "low", "high", "p_value", "options_borne")


def write_figures(output: str | Path) -> list[Path]:
    """Draw Figures 1, 2 and 3 from the published numbers into a folder; return the files.

    `figure1.png`; `figure2-accuracy.png` and `figure2-error.png`; `figure3.png`; and `correlations.csv`, the rank
    correlation of each model as in the paper's titles, with interval, p-value and the number of options it could bear.

    Args:
        output: Folder; created if it does not exist.

    Raises:
        NtpsError: If a file cannot be written.
    """
    import matplotlib.pyplot as plt

    folder = Path(output)
    table = correlations(n_permutations=1999)
    names = {"accuracy": "figure2-accuracy", "error": "figure2-error", "gain": "figure3"}
    figures = {"figure1": plot_words(words())[0].figure}
    figures |= {names[target]: plot(target=target, ranks=True)[0, 0].figure for target in TARGETS}
    files = []
    for name, figure in figures.items():
        path = folder / f"{name}.png"
        folder.mkdir(parents=True, exist_ok=True)
        with atomic_path(path) as temporary:
            figure.savefig(temporary, format="png", dpi=150)
        plt.close(figure)
        files.append(path)
    atomic_write(folder / "correlations.csv", table[list(COLUMNS)].to_csv(index=False, float_format="%.6g"))
    return [*files, folder / "correlations.csv"]


def plot_words(frame: "pd.DataFrame") -> Any:
    """Draw words in the first two directions of U and of V, as Figure 1 does; return the two axes.

    Args:
        frame: From `words` or `project_words`.
    """
    import matplotlib.pyplot as plt
    import seaborn as sns

    _, axes = plt.subplots(1, 2, figsize=(10, 4.4), layout="constrained")
    categories = list(frame["category"].unique())
    for axis, space in zip(axes, ("U", "V"), strict=True):
        part = frame[frame["space"] == space]
        sns.scatterplot(
            data=part,
            x="direction_1",
            y="direction_2",
            hue="category",
            style="category",
            palette=dict(zip(categories, cycle(PALETTE), strict=False)),
            markers=dict(zip(categories, MARKERS, strict=False)),
            ax=axis,
            s=50,
            legend=axis is axes[0],
        )
        ordered = part.sort_values(["direction_2", "direction_1"])
        for height, (_, row) in zip(np.linspace(0.03, 0.97, len(ordered)), ordered.iterrows(), strict=True):
            axis.annotate(  # in a column beside the picture, as words stand closer than they are wide
                row["word"],
                (row["direction_1"], row["direction_2"]),
                xytext=(1.04, height),
                textcoords="axes fraction",
                va="center",
                fontsize=8,
                arrowprops={"arrowstyle": "-", "color": "0.75", "lw": 0.6, "shrinkB": 3, "relpos": (0, 0.5)},
            )
        axis.set(xlabel=f"first direction of {space}", ylabel=f"second direction of {space}", title=f"{space}-space")
        axis.margins(0.06)
    axes[0].legend(title=None, fontsize="small", loc="upper left")
    return axes


def project_words(
    model: "LanguageModel",
    task: "Task",
    vocabulary: Sequence[str] | None = None,
    *,
    layer: int = 0,
    max_length: int | None = None,
    progress: bool | None = None,
) -> "pd.DataFrame":
    """Project words on the first two directions that the released code takes of U and of V: Figure 1 for any model.

    Args:
        model: From `ntps.load_model`.
        task: From `ntps.load_task`.
        vocabulary: Words; by default the paper's 13.
        layer: Layer number; the paper's is 0.
        max_length: As in `ntps.collect`.
        progress: As in `ntps.collect`.

    Returns:
        A table like `words()`.

    Raises:
        NtpsError: If a word has no token, or the layer has fewer than two directions.
    """
    import pandas as pd
    import torch

    published = words()
    category = dict(zip(published["word"], published["category"], strict=True))
    vocabulary = list(category) if vocabulary is None else list(vocabulary)
    texts = collect(model, task, layers=[layer], max_length=max_length, progress=progress)
    labels = labels_of(texts)
    pooled = PooledMoments.of(
        torch.from_numpy(labels.states(texts, texts.layers[0])), torch.from_numpy(labels.targets.numpy())
    )
    next_token = texts.moments(texts.layers[0])
    spaces = {
        "U": ascending_eigenvectors(pooled.M, pooled.X),
        "V": ascending_eigenvectors(next_token.C0, next_token.C1),
    }
    if min(space.shape[1] for space in spaces.values()) < 2:
        raise NtpsError(f"layer {texts.layers[0]} has fewer than two directions; give more texts, or another layer.")
    states = collect(model, vocabulary, layers=[layer], progress=False)
    if states.n_texts < states.n_given:
        raise NtpsError("one of the words has no token in this model; leave it out.")
    x = np.asarray(states.layer(texts.layers[0]), dtype=np.float64)
    rows = [
        {
            "space": name,
            "category": category.get(word, "word"),
            "word": word,
            "direction_1": float(state @ vectors[:, 0]),
            "direction_2": float(state @ vectors[:, 1]),
        }
        for name, vectors in spaces.items()
        for word, state in zip(vocabulary, x, strict=True)
    ]
    return pd.DataFrame(rows)
