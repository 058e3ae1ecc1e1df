"""The published figures: the data, the paper's own correlations from it, and what prediction they allow."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats as scipy_stats
from sklearn.linear_model import LinearRegression

from ntps.errors import NtpsError
from ntps.paper import published
from ntps.study import gain_prediction, to_grid
from ntps.study.gain import INPUTS


@pytest.fixture(scope="module")
def frame():
    return published.results()


@pytest.fixture(scope="module")
def table(frame):
    return published.correlations(frame, n_permutations=1999)


def test_results_are_complete_described_and_in_range(frame):
    assert frame.shape == (96, len(published.COLUMNS)) and list(frame.columns) == list(published.COLUMNS)
    assert frame["model"].nunique() == 8 and frame["dataset"].nunique() == 12 and not frame.isna().any().any()
    assert not frame["dataset"].str.contains("/").any() and "2505.17169" in frame.attrs["source"]
    assert sorted(frame["size"].unique()) == [0.27, 0.45, 0.5, 1.1, 1.5, 3, 7, 8]
    assert set(frame["family"]) == {"Qwen2", "OpenELM", "Llama 3"}
    assert frame.loc[0, "gain"] == pytest.approx(0.8724202627 - 0.8189493433)
    shares = [c for c in frame if "accuracy" in c or c.startswith("ntps")]
    assert frame[shares].min().min() >= 0 and frame[shares].max().max() <= 1


@pytest.mark.parametrize(
    ("target", "low", "high"), [("accuracy", 0.52, 0.82), ("error", -0.73, -0.42), ("gain", -0.90, -0.40)]
)
def test_the_papers_correlations_come_out(frame, table, target, low, high):
    single = table[(table["target"] == target) & (table["view"] == "model")]
    assert round(single["spearman"].min(), 2) == low and round(single["spearman"].max(), 2) == high
    for _, row in single.iterrows():
        part = frame[frame["model"] == row["model"]]
        expected = scipy_stats.spearmanr(part[f"ntps_{target}"], part[target])
        assert row["spearman"] == pytest.approx(expected.statistic) and row["n"] == 12
        assert row["p_value"] == pytest.approx(expected.pvalue, abs=0.03)
        assert row["low"] < row["spearman"] < row["high"]
    within = table[(table["target"] == target) & (table["view"] == "within")].iloc[0]
    assert within["spearman"] == pytest.approx(single["spearman"].mean())


def test_corrections_count_the_tests_they_should(table):
    single = table[table["view"] == "model"]
    assert len(single) == 24
    assert table.loc[table["view"] != "model", ["holm", "bh"]].isna().all().all()
    of_target = [(rows, "_in_target") for _, rows in single.groupby("target")]
    for family, suffix in [(single, ""), *of_target]:
        holm, bh, p_values = family[f"holm{suffix}"], family[f"bh{suffix}"], family["p_value"]
        assert (p_values <= bh).all() and (bh <= holm).all()
        assert holm.min() == pytest.approx(min(1, len(family) * p_values.min()))
    first = single.iloc[0]
    p, m = first["p_value"], first["options_borne"]
    assert 1 - (1 - p) ** m <= 0.05 < 1 - (1 - p) ** (m + 1)


def test_a_grid_with_a_hole_a_repeat_or_no_column_is_refused(frame):
    for bad, match in (
        (frame.drop(index=3), "exactly once"),
        (pd.concat([frame, frame.iloc[:1]]), "exactly once"),
        (frame.drop(columns="gain"), "no column 'gain'"),
    ):
        with pytest.raises(NtpsError, match=match):
            to_grid(bad, "gain")
    shuffled = frame.sample(frac=1, random_state=0)
    first = shuffled.iloc[0]
    assert to_grid(shuffled, "gain")[0, 0] == first["gain"]


def by_hand(frame, over, columns):
    """Mean absolute error by one scikit-learn fit for every left-out cell."""
    z = frame.groupby("model")["ntps_gain"].transform(lambda v: (v - v.mean()) / v.std(ddof=0))
    inputs = {"accuracy": frame["linear_accuracy"], "ntps": z, "ntps_raw": frame["ntps_gain"]}
    x = np.stack([inputs[c] for c in columns], 1) if columns else np.zeros((96, 1))
    y, errors = frame["gain"].to_numpy(), []
    for i in range(96):
        same_task, same_model = (frame["dataset"] == frame["dataset"][i]), (frame["model"] == frame["model"][i])
        out = {"task": same_task, "model": same_model, "both": same_task | same_model}[over].to_numpy()
        errors.append(abs(LinearRegression().fit(x[~out], y[~out]).predict(x[i : i + 1])[0] - y[i]))
    return np.mean(errors)


@pytest.mark.long
@pytest.mark.parametrize("over", ["task", "model", "both"])
def test_gain_prediction_is_leaving_out_done_by_hand(frame, over):
    result = gain_prediction(frame, over=over, n_bootstrap=300)
    assert list(result.index) == list(INPUTS)
    for name, columns in {
        "mean": [],
        "accuracy": ["accuracy"],
        "ntps": ["ntps"],
        "accuracy + ntps": ["accuracy", "ntps"],
    }.items():
        assert result.loc[name, "mae"] == pytest.approx(by_hand(frame, over, columns), rel=1e-6)
    assert result.loc["zero", "mae"] == pytest.approx(frame["gain"].abs().mean())
    assert ((result["low"] < result["mae"]) & (result["mae"] < result["high"])).all()
    for margin, baseline in (("margin", "zero"), ("margin_to_mean", "mean"), ("margin_to_accuracy", "accuracy")):
        assert result.loc[baseline, margin] == 0
        assert result.loc["ntps", margin] == pytest.approx(result.loc[baseline, "mae"] - result.loc["ntps", "mae"])


def test_gain_prediction_sees_a_score_that_knows_and_none_in_noise(frame):
    known = frame.assign(ntps_gain=-frame["gain"])
    result = gain_prediction(known, over="both", n_bootstrap=300)
    assert result.loc["ntps_raw", "mae"] < 1e-6 and result.loc["ntps_raw", "margin_low"] > 0
    rng = np.random.default_rng(0)
    noise = gain_prediction(frame.assign(ntps_gain=rng.random(96)), over="both", n_bootstrap=300)
    assert noise.loc["ntps", "margin_to_mean_low"] < 0


def test_a_left_out_tasks_gain_enters_nowhere(frame):
    from ntps.study.gain import _predict

    rng = np.random.default_rng(0)
    design, target, weights = rng.random((4, 6, 2)), rng.random((4, 6)), np.ones((1, 6))
    for over, where in (("task", np.s_[:, :, 2]), ("model", np.s_[:, 2]), ("both", np.s_[:, 2, 2])):
        changed = target.copy()
        changed[where[1:]] = 1e3
        assert np.allclose(
            _predict(design, target, weights, over)[where], _predict(design, changed, weights, over)[where], atol=1e-6
        )


def test_gain_prediction_refuses_too_little(frame):
    with pytest.raises(NtpsError, match="too few"):
        gain_prediction(frame[frame["model"] == frame["model"][0]], over="model")
    with pytest.raises(NtpsError, match="task, model, both"):
        gain_prediction(frame, over="cell")
    few = frame[frame["dataset"].isin(frame["dataset"].unique()[:3])]
    with pytest.raises(NtpsError, match="too few"):
        gain_prediction(few)


@pytest.mark.parametrize("target", published.TARGETS)
def test_plot_draws_a_panel_for_each_model(frame, target):
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    axes = published.plot(frame, target=target)
    assert axes.size == 8 and all("ρ" in axis.get_title() for axis in axes.ravel())
    assert len(axes.ravel()[0].collections[0].get_offsets()) == 12
    plt.close("all")
    _, few = plt.subplots(1, 2)
    with pytest.raises(NtpsError, match="2 axes for 8 models"):
        published.plot(frame, axes=few)
    plt.close("all")
