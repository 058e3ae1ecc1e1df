"""The paper's published figures as data frames, with what can and cannot be concluded from them.

Source: Cheng, Hu, Huang, Balestriero, *Next Token Perception Score*, arXiv 2505.17169 (2025): 8 models x 12 data sets,
the numbers behind its plots as the authors published them with their code (github.com/Yu-AngCheng/NTPS, commit 0f877f7,
folder `fig_plot`), unrounded and unchanged: `data/results.csv` (Figures 2 and 3) and `data/figure1.csv`.

What can be corrected, and what cannot. The three NTPS columns are scores at the (rank fraction, layer) that correlated
best with the target, chosen for each model on these same 12 data sets; scores at other ranks and layers were not
published. So the null that repeats the choice cannot be run, and no choice can be made on other data sets: every
p-value here is that of the chosen score as if it had been the only one, too small by an unknown amount. What can be
said is how much choice a correlation could bear: `correlations` gives `options_borne`, the number of unrelated options
among which the best could have been chosen with a p-value still below 5 % (Sidak). The procedure tries 19 fractions at
each layer: hundreds of options, though dependent ones.

Two more things a reader should know: probe accuracy and error are those of the training texts, `linear_accuracy` and
`lora_accuracy` those of test texts (`ntps.paper.audit` shows it from the numbers); and the 12 data sets are the same
for all models, so 8 correlations are not 8 independent findings.
"""

import math
from importlib import resources
from typing import TYPE_CHECKING, Any

import numpy as np

from ntps.errors import NtpsError, one_of
from ntps.study import adjust, grid_spearman, spearman, to_grid

if TYPE_CHECKING:
    import pandas as pd

SOURCE = "Cheng, Hu, Huang, Balestriero, Next Token Perception Score, arXiv:2505.17169 (2025)"
COLUMNS = {
    "model": "hub name of the model",
    "short": "model's short name",
    "family": "model family",
    "size": "parameters, in billions, as the model's name says",
    "dataset": "short name of the data set",
    "dataset_id": "the data set as the authors name it",
    "ntps_accuracy": "NTPS at the rank and layer chosen for its correlation with probe accuracy, in [0, 1]",
    "accuracy": "accuracy of the probe on the frozen model, on the texts it was fitted on, in [0, 1]",
    "ntps_error": "NTPS at the rank and layer chosen for its correlation with probe error",
    "error": "mean squared error of the probe, on the texts it was fitted on",
    "ntps_gain": "NTPS at the rank and layer chosen for its correlation with the gain",
    "linear_accuracy": "accuracy of the linear probe that LoRA is compared with",
    "lora_accuracy": "accuracy after LoRA fine-tuning",
    "gain": "lora_accuracy - linear_accuracy",
}
TARGETS = ("accuracy", "error", "gain")  # each with its own NTPS column, ntps_<target>
_MARKERS = "osD^vPX*<>dp"  # one for each data set: shape says what colour says
_TARGET_NAMES = {"accuracy": "probe accuracy", "error": "probe error", "gain": "gain of LoRA"}
_DATASETS = {
    "marksverdhei/clickbait_title_classification": "clickbait",
    "climatebert/climate_sentiment": "climate",
    "PriyaPatel/Bias_identification": "bias",
    "legacy-datasets/banking77": "banking77",
    "ucirvine/sms_spam": "sms_spam",
    "Bhuvaneshwari/intent_classification": "intent",
}
_SIZES = {"270M": 0.27, "450M": 0.45, "1_1B": 1.1}


def results() -> "pd.DataFrame":
    """Return the published figures, 96 rows: `COLUMNS` says what each column is, `SOURCE` where they come from."""
    import pandas as pd

    with _data("results.csv") as file:
        frame = pd.read_csv(file)
    frame = frame.rename(
        columns={
            "dataset": "dataset_id",
            "ntps_for_accuracy": "ntps_accuracy",
            "probe_accuracy": "accuracy",
            "ntps_for_mse": "ntps_error",
            "probe_mse": "error",
            "ntps_for_lora": "ntps_gain",
        }
    )
    frame["dataset"] = frame["dataset_id"].map(lambda name: _DATASETS.get(name, name))
    frame["short"] = frame["model"].map(lambda name: name.split("/")[-1].replace("1_1B", "1.1B"))
    frame["family"] = frame["short"].map(lambda name: "Llama 3" if "Llama" in name else name.split("-")[0])
    sizes = frame["model"].map(lambda name: name.rsplit("-", 1)[-1])
    frame["size"] = sizes.map(lambda size: _SIZES[size] if size in _SIZES else float(size.rstrip("B")))
    frame["gain"] = frame["lora_accuracy"] - frame["linear_accuracy"]
    frame = frame[list(COLUMNS)]
    frame.attrs["source"] = SOURCE
    return frame


def datasets() -> "pd.DataFrame":
    """Return the paper's 12 data sets as its code splits them, one row per set, by the names of `results`.

    Columns: `n_train` and `n_test`, numbers of texts by the cards of the data sets (missing where no card says it);
    `split`, `"own"` or `"70/30"` (one split, shuffled with seed 42 and cut); `n_classes`; `assumed_tokens`, a rough
    mean number of tokens a text for the costs of `ntps paper commands`.
    """
    import pandas as pd

    with _data("datasets.csv") as file:
        return pd.read_csv(file)


def words() -> "pd.DataFrame":
    """Return Figure 1: 13 words in the first two directions that the authors' code takes of U and of V.

    OpenELM-450M, emotion, layer 0. Columns: `space` (`"U"` or `"V"`), `category`, `word`, `direction_1`, `direction_2`.
    """
    import pandas as pd

    with _data("figure1.csv") as file:
        frame = pd.read_csv(file)
    frame.attrs["source"] = SOURCE
    return frame


def _data(name: str) -> Any:
    return resources.files("ntps.paper").joinpath(f"data/{name}").open("r", encoding="utf-8")


def correlations(
    frame: "pd.DataFrame | None" = None, *, n_permutations: int = 9999, alpha: float = 0.05, random_state: int = 0
) -> "pd.DataFrame":
    """Return rank correlations of NTPS with accuracy, error and LoRA gain, as in the paper, with what it leaves out.

    Views, in the column `view`:

    - `model`: one model over the 12 data sets: the paper's numbers, with interval and permutation p-value (`spearman`).
    - `within`: mean of those over models; the null permutes data sets jointly over models, the interval is a jackknife
      over data sets (`grid_spearman`). The one number to quote.
    - `pooled`: all 96 points ranked together, with the joint null: mixes differences among models in.
    - `pooled, naive`: the same taken as 96 independent points: shown because it is tempting, and wrong.

    Args:
        frame: A table like `results()`, which is the default.
        n_permutations: Number of random permutations for each p-value, at least 1 / (n_permutations + 1).
        alpha: Level for `options_borne`.
        random_state: Seed.

    Returns:
        A frame with `target`, `view`, `model`, `n`, `spearman`, `low`, `high`, `p_value`, `kendall`, `holm` and `bh`
        (p-values adjusted over the 24 single-model correlations, else `nan`), `holm_in_target` and `bh_in_target`
        (over the 8 of one target), `options_borne` (see the module's text; computed from the unadjusted p-value).

    Raises:
        NtpsError: If the frame lacks columns or cells.
    """
    import pandas as pd

    frame = results() if frame is None else frame
    models, rows = list(frame["model"].unique()), []
    options: dict[str, Any] = {"n_permutations": n_permutations, "random_state": random_state}
    for target in TARGETS:
        x, y = to_grid(frame, f"ntps_{target}"), to_grid(frame, target)
        views = [("model", model, spearman(x[i], y[i], **options)) for i, model in enumerate(models)]
        views += [(view, "all", grid_spearman(x, y, view=view, **options)) for view in ("within", "pooled")]
        views.append(("pooled, naive", "all", spearman(x.ravel(), y.ravel(), **options)))
        rows += [
            {
                "target": target,
                "view": view,
                "model": model,
                "n": correlation.n,
                "spearman": correlation.spearman,
                "low": correlation.interval[0],
                "high": correlation.interval[1],
                "p_value": correlation.p_value,
                "kendall": correlation.kendall,
                "options_borne": _options_borne(correlation.p_value, alpha),
            }
            for view, model, correlation in views
        ]
    table = pd.DataFrame(rows)
    single = table["view"] == "model"
    for method in ("holm", "bh"):
        table.loc[single, method] = adjust(table.loc[single, "p_value"], method=method)
        for target in TARGETS:
            of_target = single & (table["target"] == target)
            table.loc[of_target, f"{method}_in_target"] = adjust(table.loc[of_target, "p_value"], method=method)
    table.attrs["source"] = frame.attrs.get("source", "")
    return table


def plot(
    frame: "pd.DataFrame | None" = None, *, target: str = "accuracy", ranks: bool = False, axes: Any = None
) -> Any:
    """Draw NTPS against one target, one picture per model, titled with its rank correlation and interval.

    Args:
        frame: A table like `results()`, which is the default.
        target: `"accuracy"`, `"error"` or `"gain"`.
        ranks: Whether to draw ranks over the data sets, as the paper does, instead of values.
        axes: Array of at least as many axes as models; by default those of a new figure.

    Returns:
        The array of axes.

    Raises:
        NtpsError: If the target is unknown, or there are too few axes.
    """
    import matplotlib.pyplot as plt
    import seaborn as sns
    from scipy.stats import rankdata

    one_of(target, TARGETS, "target")
    frame = results() if frame is None else frame
    models, datasets = list(frame["model"].unique()), list(frame["dataset"].unique())
    x, y = to_grid(frame, f"ntps_{target}"), to_grid(frame, target)
    if axes is None:
        rows = math.ceil(len(models) / 4)
        _, axes = plt.subplots(rows, 4, figsize=(13, 3.2 * rows), layout="constrained", squeeze=False)
    flat = np.asarray(axes).ravel()
    if len(flat) < len(models):
        raise NtpsError(f"axes has {len(flat)} axes for {len(models)} models; give one for each.")
    colors = sns.color_palette("husl", len(datasets))
    markers = [_MARKERS[i % len(_MARKERS)] for i in range(len(datasets))]
    looks: dict[str, Any] = {"palette": colors, "markers": markers, "legend": False, "s": 45}
    shown_x, shown_y = (rankdata(values, axis=1) if ranks else values for values in (x, y))
    of = "rank of " if ranks else ""
    for i, (axis, model) in enumerate(zip(flat, models, strict=False)):
        correlation = spearman(x[i], y[i], n_permutations=999)
        low, high = correlation.interval
        sns.regplot(x=shown_x[i], y=shown_y[i], ax=axis, scatter=False, ci=None, color="0.6", line_kws={"linewidth": 1})
        sns.scatterplot(x=shown_x[i], y=shown_y[i], hue=datasets, style=datasets, ax=axis, **looks)
        if ranks:
            axis.set(xticks=range(1, len(datasets) + 1, 3), yticks=range(1, len(datasets) + 1, 3))
        axis.set_title(
            f"{model.split('/')[-1]}\nρ = {correlation.spearman:+z.2f} [{low:+z.2f}, {high:+z.2f}]", fontsize=10
        )
        axis.set(xlabel=f"{of}NTPS", ylabel=f"{of}{_TARGET_NAMES[target]}")
    for axis in flat[len(models) :]:
        axis.set_visible(False)
    handles = [
        plt.Line2D([], [], marker=marker, linestyle="", color=color, label=name)
        for marker, color, name in zip(markers, colors, datasets, strict=True)
    ]
    flat[0].figure.legend(handles=handles, loc="outside lower center", ncols=6, frameon=False, fontsize=9)
    return axes


def _options_borne(p: float, alpha: float) -> float:
    """Return the largest number m of unrelated options with 1 - (1 - p)^m <= alpha: the best of m still has that p."""
    return math.nan if math.isnan(p) or p >= 1 else float(math.floor(math.log1p(-alpha) / math.log1p(-p)))
