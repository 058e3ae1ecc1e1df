"""Correlations and selections: exact values, calibration under the null, coverage, and that leaving out leaves out."""

import itertools
import json
import math

import numpy as np
import pytest
from scipy import stats as scipy_stats

from ntps.errors import NtpsError
from ntps.scoring.pvalues import permutation_p
from ntps.study import selection
from ntps.study.correlations import (
    adjust,
    centered_ranks,
    correlation_interval,
    draw_permutations,
    grid_spearman,
    spearman,
)
from ntps.study.selection import leave_one_out_selection, select_and_correlate

pytestmark = pytest.mark.slow


def looks_uniform(p_values, points=(0.05, 0.1, 0.25, 0.5, 0.75)):
    """Share of p-values below each point is the point, within four standard errors (never above by more)."""
    p = np.asarray(p_values)
    return all(abs(np.mean(p <= q) - q) < 4 * math.sqrt(q * (1 - q) / len(p)) + 0.01 for q in points)


# ---- one correlation -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("n", [4, 7, 12, 60])
def test_values_are_scipys(n, ties):
    rng = np.random.default_rng(n)
    x, y = (rng.integers(0, 4, (2, n)) if ties else rng.random((2, n))).astype(float)
    y = y + x
    result = spearman(x, y, n_permutations=99)
    assert result.spearman == pytest.approx(scipy_stats.spearmanr(x, y).statistic)
    assert result.kendall == pytest.approx(scipy_stats.kendalltau(x, y).statistic)
    assert centered_ranks(x) == pytest.approx(scipy_stats.rankdata(x) - (n + 1) / 2)


@pytest.mark.parametrize("ties", [False, True])
def test_exact_p_is_the_enumeration(ties):
    rng = np.random.default_rng(3)
    x, y = (rng.integers(0, 4, (2, 6)) if ties else rng.random((2, 6))).astype(float)
    result = spearman(x, y)
    every = [scipy_stats.spearmanr(x, p).statistic for p in itertools.permutations(y)]
    tau = [scipy_stats.kendalltau(x, p).statistic for p in itertools.permutations(y)]
    assert result.exact and result.n_permutations == math.factorial(6)
    assert result.p_value == pytest.approx(np.mean(np.abs(every) >= abs(result.spearman) - 1e-9))
    assert result.kendall_p_value == pytest.approx(np.mean(np.abs(tau) >= abs(result.kendall) - 1e-9))


def test_random_permutations_agree_with_the_exact_distribution_and_repeat():
    rng = np.random.default_rng(0)
    x = rng.random(9)
    y = x + 0.5 * rng.random(9)
    result = spearman(x, y)
    null = scipy_stats.permutation_test(
        (x,), lambda p: scipy_stats.spearmanr(p, y).statistic, permutation_type="pairings", n_resamples=2000, rng=1
    )
    assert result.p_value == pytest.approx(null.pvalue, abs=0.01)
    assert result == spearman(x, y)
    assert spearman(x, x, n_permutations=99).p_value >= 0.01  # never zero: the observed order counts as one


def test_constant_input_is_nan_with_a_reason_and_json_has_null():
    result = spearman([1, 1, 1, 1, 1], [1, 2, 3, 4, 5])
    assert math.isnan(result.spearman) and "first variable is constant" in result.reason
    assert result.to_dict()["spearman"] is None and result.to_dict()["interval"] == [None, None]
    assert "second" in spearman([1, 2, 3, 4], [0, 0, 0, 0]).reason


@pytest.mark.parametrize(
    ("x", "y", "match"),
    [
        ([1, 2, 3], [1, 2, 3], "at least four"),
        ([1, 2, 3, 4], [1, 2, 3], "one length"),
        ([1, 2, 3, math.nan], [1, 2, 3, 4], "first variable is not finite at index 3"),
        ([1, 2, 3, 4], [1, math.inf, 3, 4], "second variable is not finite at index 1"),
    ],
)
def test_bad_vectors_are_refused(x, y, match):
    with pytest.raises(NtpsError, match=match):
        spearman(x, y)
    with pytest.raises(NtpsError):
        spearman([1, 2, 3, 4], [1, 2, 3, 4], confidence=2)


@pytest.mark.long
@pytest.mark.parametrize("n", [7, 12])
def test_p_values_are_uniform_under_the_null(n):
    rng = np.random.default_rng(n)
    results = [spearman(*rng.random((2, n)), n_permutations=199, random_state=i) for i in range(500)]
    assert looks_uniform([r.p_value for r in results])
    assert looks_uniform([r.kendall_p_value for r in results], (0.05, 0.1))


@pytest.mark.long
@pytest.mark.parametrize("rho", [0.0, 0.5, 0.8])
@pytest.mark.parametrize("n", [8, 12, 30])
def test_intervals_cover_at_the_stated_rate(n, rho):
    """Bivariate normal, where the population values are known: 6/pi asin(rho/2) and 2/pi asin(rho)."""
    rng, runs = np.random.default_rng(n), 2000
    x = rng.standard_normal((runs, n))
    y = rho * x + math.sqrt(1 - rho**2) * rng.standard_normal((runs, n))
    rx, ry = centered_ranks(x), centered_ranks(y)
    rhos = (rx * ry).sum(1) / np.sqrt((rx**2).sum(1) * (ry**2).sum(1))
    sx, sy = (np.sign(v[:, :, None] - v[:, None, :]) for v in (x, y))
    taus = (sx * sy).sum((1, 2)) / (n * (n - 1))
    for values, truth, kind in (
        (rhos, 6 / math.pi * math.asin(rho / 2), "spearman"),
        (taus, 2 / math.pi * math.asin(rho), "kendall"),
    ):
        inside = []
        for value in values:
            low, high = correlation_interval(float(value), n, kind=kind)
            inside.append(low <= truth <= high)
        assert 0.93 <= np.mean(inside) <= 0.998, (kind, np.mean(inside))


def test_a_perfect_correlation_has_an_interval_with_a_width():
    low, high = spearman(range(8), range(8)).interval
    assert 0.3 < low < 0.97 and high == 1
    low, high = spearman(range(8), range(0, -8, -1)).kendall_interval
    assert low == -1 and -0.95 < high < -0.2


# ---- grids -----------------------------------------------------------------------------------------------------------


def shared_tasks(rng, m=6, t=8, share=0.9, rho=0.0):
    """Models nearly copies of each other in both variables, as in a study of one family."""
    a, b = rng.standard_normal((2, 1, t)) * math.sqrt(share), rng.standard_normal((2, m, t)) * math.sqrt(1 - share)
    x = a[0] + b[0]
    return x, rho * x + math.sqrt(1 - rho**2) * (a[1] + b[1])


def test_grid_value_is_the_mean_of_the_models_and_the_null_permutes_tasks_jointly():
    rng = np.random.default_rng(0)
    x, y = rng.random((3, 5)), rng.random((3, 5))
    result = grid_spearman(x, y)

    def mean(b):
        return np.mean([scipy_stats.spearmanr(p, q).statistic for p, q in zip(x, b, strict=True)])

    every = [mean(y[:, list(p)]) for p in itertools.permutations(range(5))]
    assert result.spearman == pytest.approx(mean(y)) and result.exact
    assert result.p_value == pytest.approx(np.mean(np.abs(every) >= abs(mean(y)) - 1e-9))
    pooled = grid_spearman(x, y, view="pooled")
    assert pooled.spearman == pytest.approx(scipy_stats.spearmanr(x.ravel(), y.ravel()).statistic)
    one = grid_spearman(x[:1], y[:1])
    assert one.spearman == pytest.approx(spearman(x[0], y[0]).spearman)
    assert one.p_value == pytest.approx(spearman(x[0], y[0]).p_value)
    assert one.interval == pytest.approx(spearman(x[0], y[0]).interval)


def test_kendall_of_a_grid_is_the_mean_of_the_models_with_a_joint_null():
    rng = np.random.default_rng(5)
    y = rng.standard_normal((3, 8))
    x = 0.7 * y + rng.standard_normal((3, 8))
    found = grid_spearman(x, y, n_permutations=300, random_state=2)
    taus = [scipy_stats.kendalltau(a, b).statistic for a, b in zip(x, y, strict=True)]
    assert found.kendall == pytest.approx(np.mean(taus))
    order, exact = draw_permutations(8, 300, 2)
    null = [np.mean([scipy_stats.kendalltau(a, b[p]).statistic for a, b in zip(x, y, strict=True)]) for p in order]
    assert found.kendall_p_value == pytest.approx(
        permutation_p(found.kendall, np.array(null), two_sided=True, exact=exact)
    )
    low, high = found.kendall_interval
    assert low < found.kendall < high
    assert math.isnan(grid_spearman(x, y, view="pooled", n_permutations=10).kendall)
    one = grid_spearman(x[:1], y[:1], n_permutations=300, random_state=2)
    alone = spearman(x[0], y[0], n_permutations=300, random_state=2)
    assert (one.kendall, one.kendall_p_value) == pytest.approx((alone.kendall, alone.kendall_p_value))
    assert one.kendall_interval == pytest.approx(alone.kendall_interval)


@pytest.mark.long
@pytest.mark.parametrize("view", ["within", "pooled"])
def test_grid_p_is_uniform_when_models_are_nearly_copies_and_the_naive_one_is_not(view):
    rng = np.random.default_rng(1)
    joint, naive = [], []
    for i in range(300):
        x, y = shared_tasks(rng)
        joint.append(grid_spearman(x, y, view=view, n_permutations=199, random_state=i).p_value)
        naive.append(scipy_stats.spearmanr(x.ravel(), y.ravel()).pvalue)
    assert looks_uniform(joint, (0.05, 0.1, 0.25, 0.5))
    assert np.mean(np.array(naive) <= 0.05) > 0.3  # what treating cells as independent does


@pytest.mark.long
@pytest.mark.parametrize("n", [5, 12])
@pytest.mark.parametrize(("m", "share"), [(1, 0.0), (4, 0.95), (5, 0.0)])
def test_grid_intervals_cover(n, m, share):
    """Nearly identical models are one model, however strong the correlation: 0.80 before the floor, at five tasks."""
    for rho in (0.6, 0.95):
        rng, inside = np.random.default_rng(2), []
        truth = 6 / math.pi * math.asin(rho / 2)
        for _ in range(250):
            result = grid_spearman(*shared_tasks(rng, m=m, t=n, share=share, rho=rho), n_permutations=1)
            inside.append(result.interval[0] <= truth <= result.interval[1])
        assert np.mean(inside) >= 0.89, rho


def test_grid_leaves_constant_models_out_and_says_so():
    rng = np.random.default_rng(0)
    x, y = rng.random((3, 6)), rng.random((3, 6))
    whole = grid_spearman(np.vstack([x, np.ones(6)]), np.vstack([y, y[0]]))
    assert whole.spearman == pytest.approx(grid_spearman(x, y).spearman) and "[3]" in whole.reason
    assert whole.interval == pytest.approx(grid_spearman(x, y).interval)
    assert math.isnan(grid_spearman(np.ones((2, 5)), np.ones((2, 5))).spearman)
    with pytest.raises(NtpsError, match="shapes"):
        grid_spearman(x, y[:2])
    with pytest.raises(NtpsError, match=r"not finite at index \(1, 2\)"):
        grid_spearman(x, np.where(np.arange(18).reshape(3, 6) == 8, math.nan, y))
    with pytest.raises(NtpsError, match="at least 4"):
        grid_spearman(x[:, :3], y[:, :3])


def test_adjusted_p_values():
    p = [0.01, 0.04, 0.03, 0.005, math.nan]
    assert adjust(p) == pytest.approx([0.03, 0.06, 0.06, 0.02, math.nan], nan_ok=True)
    assert adjust(p, method="bh") == pytest.approx([0.02, 0.04, 0.04, 0.02, math.nan], nan_ok=True)
    q = np.random.default_rng(0).random(30)
    assert adjust(q, method="bh") == pytest.approx(scipy_stats.false_discovery_control(q))
    with pytest.raises(NtpsError):
        adjust([1.2])
    with pytest.raises(NtpsError, match="holm, bh"):
        adjust([0.2], method="bonferroni")


# ---- selection -------------------------------------------------------------------------------------------------------


@pytest.mark.long
@pytest.mark.parametrize("per_model", [False, True])
def test_selection_aware_p_is_uniform_and_the_naive_one_is_not(per_model):
    rng, aware, naive = np.random.default_rng(4), [], []
    for i in range(300):
        values = rng.standard_normal((40, 2, 10)).cumsum(0)  # neighbouring options are alike, as layers are
        result = select_and_correlate(
            values, rng.random((2, 10)), per_model=per_model, n_permutations=199, random_state=i
        )
        aware.append(result.p_value)
        naive.append(result.naive_p_value)
    assert looks_uniform(aware)
    assert np.mean(np.array(naive) <= 0.05) > 0.2


def test_selection_finds_a_planted_option_with_either_sign():
    rng = np.random.default_rng(5)
    values, target = rng.standard_normal((30, 12)), rng.random(12)
    values[17] = -target
    result = select_and_correlate(values, target)
    assert result.options == (17,) and result.spearman == pytest.approx(-1) and result.p_value < 0.01
    assert result.correlations[17] == pytest.approx(-1) and len(result.null) == 1999
    assert "null" not in result.to_dict()


def test_one_option_needs_no_correction():
    rng = np.random.default_rng(6)
    x, y = rng.random((1, 7)), rng.random(7)
    result = select_and_correlate(x, y)
    assert result.p_value == pytest.approx(result.naive_p_value) == pytest.approx(spearman(x[0], y).p_value)


# ---- leaving out -----------------------------------------------------------------------------------------------------


def leaks(run, over):
    """Whether anything about a left-out task or model changes when its target does. True for a selection that peeks."""
    rng = np.random.default_rng(7)
    values, targets = rng.standard_normal((60, 3, 9)), rng.random((3, 9))
    before = run(values, targets, over)
    for i in range(9 if over == "task" else 3):
        changed = targets.copy()
        where = (slice(None), i) if over == "task" else i
        for shift in (-5, 5):
            changed[where] = shift * rng.random(changed[where].shape) + shift
            after = run(values, changed, over)
            same = np.array_equal(after.positions[where], before.positions[where])
            if not same or after.options[i] != before.options[i] or after.signs[i] != before.signs[i]:
                return True
    return False


@pytest.mark.parametrize("over", ["task", "model"])
def test_leaving_out_leaves_out_and_a_planted_leak_is_caught(over, monkeypatch):
    def run(values, targets, how):
        return leave_one_out_selection(values, targets, over=how, n_permutations=1)

    assert not leaks(run, over)

    def peek(grid, targets):  # chooses once, on everything, and then pretends
        mean = selection._correlations(
            selection.unit(centered_ranks(grid)), selection.unit(centered_ranks(targets))
        ).mean(2)
        chosen = np.repeat(np.abs(mean).argmax(1)[:, None], grid.shape[2 if over == "task" else 1], 1)
        signs = np.ones_like(chosen)
        return centered_ranks(grid)[chosen[:, 0]], chosen, signs

    monkeypatch.setattr(selection, f"_leave_{over}_out", peek)
    assert leaks(run, over)


@pytest.mark.long
def test_held_out_choice_of_noise_is_worth_nothing_where_the_same_choice_looked_good():
    rng, held, same, p = np.random.default_rng(8), [], [], []
    for i in range(150):
        values, targets = rng.standard_normal((50, 1, 10)), rng.random((1, 10))
        result = leave_one_out_selection(values, targets, n_permutations=99, random_state=i)
        held.append(result.spearman)
        p.append(result.p_value)
        same.append(abs(select_and_correlate(values, targets, n_permutations=1).spearman))
    assert np.mean(same) > 0.65 and np.mean(held) < 0.1
    assert looks_uniform(p, (0.05, 0.1, 0.25, 0.5))


@pytest.mark.long
def test_the_null_of_leaving_out_is_near_zero_and_holds_the_quantiles_it_reports():
    rng = np.random.default_rng(9)
    results = [
        leave_one_out_selection(rng.standard_normal((5, 10)), rng.random(10), n_permutations=99) for _ in range(200)
    ]
    assert abs(np.mean([r.null_mean for r in results])) < 0.06
    above = np.mean([r.spearman > r.null_quantiles[2] for r in results])
    assert 0.0 < above < 0.12


@pytest.mark.parametrize("over", ["task", "model"])
def test_one_option_gives_its_fixed_correlation_whatever_its_scale(over):
    rng = np.random.default_rng(10)
    targets = rng.random((4, 9))
    values = np.exp(3 * targets + 2 * rng.random((4, 9)))[None]
    result = leave_one_out_selection(values, targets, over=over, n_permutations=99)
    assert result.spearman == pytest.approx(grid_spearman(values[0], targets).spearman)
    # options on other levels, all equally good: positions compare where raw values would not
    many = np.stack([1000.0 * k + (k + 1) * values[0] for k in range(5)])
    assert leave_one_out_selection(many, targets, over=over, n_permutations=9).spearman == pytest.approx(
        result.spearman
    )


@pytest.mark.parametrize("over", ["task", "model"])
def test_a_real_option_is_found_and_holds(over):
    rng = np.random.default_rng(11)
    targets = rng.random((3, 10))
    values = rng.standard_normal((20, 3, 10))
    values[6] = -targets + 0.02 * rng.standard_normal((3, 10))
    result = leave_one_out_selection(values, targets, over=over, n_permutations=199)
    assert set(result.options) == {6} and set(result.signs) == {-1}
    assert result.spearman > 0.9 and result.p_value <= 0.01
    assert result.to_dict()["options"] == list(result.options)
    assert result.interval[0] < result.spearman < result.interval[1]
    json.dumps(result.to_dict())
    json.dumps(select_and_correlate(values, targets, per_model=True).to_dict())


def test_undefined_and_bad_input_of_the_selections():
    rng = np.random.default_rng(12)
    flat = leave_one_out_selection(np.ones((3, 2, 6)), rng.random((2, 6)))
    assert math.isnan(flat.spearman) and flat.to_dict()["p_value"] is None
    for bad in (
        lambda: leave_one_out_selection(rng.random((3, 4)), rng.random(4)),
        lambda: leave_one_out_selection(rng.random((3, 6)), rng.random(6), over="model"),
        lambda: leave_one_out_selection(rng.random((3, 6)), rng.random(6), over="both"),
        lambda: select_and_correlate(rng.random((3, 6)), rng.random(5)),
        lambda: select_and_correlate(np.full((3, 6), math.nan), rng.random(6)),
        lambda: select_and_correlate(rng.random((3, 6)), rng.random(6), n_permutations=0),
    ):
        with pytest.raises(NtpsError):
            bad()
