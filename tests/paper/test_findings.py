"""The audit: each finding from the numbers, and what it would say of other numbers."""

import json

import numpy as np
import pytest

from ntps.paper import audit, datasets, results
from ntps.paper.findings import (
    broken_sets,
    choice,
    denominators,
    losses,
    mathematics,
    rounding,
    same_rows,
    smallest_denominator,
    twins,
)  # fmt: skip


@pytest.fixture(scope="module")
def found():
    return audit()


@pytest.fixture(scope="module")
def frame():
    return results()


def test_it_fits_a_terminal_and_strict_json(found):
    assert max(map(len, found.to_text().splitlines())) <= 80
    read = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert [finding["key"] for finding in read["findings"]] == [
        "mathematics", "denominators", "medical", "intent", "rounding", "choice", "correlations", "losses",
    ]  # fmt: skip
    assert found["losses"].numbers["cells"] == 96


def test_what_holds_is_said_first_and_would_be_missed(found, monkeypatch):
    numbers = found.findings[0].numbers
    assert numbers["encoder_difference"] < 1e-10 and numbers["excess_difference"] < 1e-10
    assert numbers["outside_bounds"] == 0
    import ntps.scoring

    real = ntps.scoring.read_layer

    def wrong(solved, **options):
        scored = real(solved, **options)
        scored.bounds["whitened"] = (0.0, 0.5 * scored.excess_loss)
        return scored

    monkeypatch.setattr(ntps.scoring, "read_layer", wrong)
    assert mathematics(np.random.default_rng(0), problems=5).numbers["outside_bounds"] == 5


class TestDenominators:
    @pytest.mark.parametrize("n", [7, 320, 1066, 67_349])
    def test_a_planted_number_is_found(self, n):
        rng = np.random.default_rng(n)
        shares = np.round(rng.integers(n // 2, n, 8) / n, 10)
        found = smallest_denominator(shares)
        assert n % found == 0 and (found == n or n < 20)

    def test_no_number_fits_other_shares(self):
        assert smallest_denominator(np.random.default_rng(0).random(8)) is None

    def test_all_twelve_sets(self, found):
        finding = found["denominators"]
        sizes = datasets().set_index("dataset")
        rows = {row["dataset"]: row for row in finding.rows}
        assert rows.keys() == set(sizes.index) and len(rows) == 12
        for name, row in rows.items():
            if row["n_train"] is not None:
                assert (row["n_accuracy"], row["n_gain"]) == (row["n_train"], row["n_test"]), name
        assert [rows[name]["n_accuracy"] for name in ("clickbait", "bias", "intent")] == [22400, 22364, 13808]
        assert finding.numbers == {"train": 9, "test": 0, "known": 9, "differing": 8, "gain": 9}

    def test_test_accuracies_would_be_told(self, frame):
        """The same figures with accuracies of test texts: the finding turns round."""
        other = frame.copy()
        other["accuracy"] = other["lora_accuracy"]
        numbers = denominators(other).numbers
        assert numbers["train"] == 1 and numbers["test"] >= 7  # imdb's sizes are equal


def test_the_medical_set_is_below_a_coin(found):
    numbers = found["medical"].numbers
    assert numbers["highest"] == pytest.approx(0.367, abs=1e-3)
    assert numbers["memory"] == pytest.approx(0.15, abs=0.02)  # half of the 30 % whose twin was not seen
    assert all(row["z"] < -7 for row in found["medical"].rows)


def test_the_intent_set(found, frame):
    assert found["intent"].numbers["train"] == found["intent"].numbers["test"] == 13_808
    other = frame.copy()
    other.loc[other["dataset"] == "intent", ["linear_accuracy", "lora_accuracy"]] = 123 / 1000
    assert same_rows(other).numbers["test"] == 1000


def test_rounding_moves_the_released_score_and_not_the_formula(found):
    numbers = found["rounding"].numbers
    assert numbers["largest"] > 0.02 and numbers["formula"] < 1e-4
    assert rounding(np.random.default_rng(5), draws=2).numbers["largest"] > 0.005


def test_the_best_of_many_options_correlates_with_anything(found, frame):
    rows = {row["options"]: row for row in found["choice"].rows}
    assert rows[1]["median"] == pytest.approx(0.22, abs=0.03) and rows[1]["high"] == pytest.approx(0.58, abs=0.03)
    assert rows[323]["median"] > 0.75
    spread = found["choice"].numbers["spearman"]
    assert [round(end, 2) for end in spread["gain"]] == [0.40, 0.90]
    assert {name: round(high, 2) for name, (_, high) in spread.items()}["accuracy"] == 0.82
    assert choice(frame, np.random.default_rng(1), draws=50).numbers["spearman"] == spread


def test_correlations_with_and_without_the_broken_sets(found, frame):
    rows = {row["target"]: row for row in broken_sets(frame).rows}
    rounded = {
        (target, view): [round(value, 2) for value in rows[target][view]]
        for target in rows
        for view in ("all", "without medical", "without intent", "without both")
    }
    assert rounded["accuracy", "all"] == [0.67, 0.52, 0.82]
    assert rounded["accuracy", "without medical"] == [0.63, 0.54, 0.77]
    assert rounded["accuracy", "without intent"] == [0.62, 0.45, 0.78]
    assert rounded["accuracy", "without both"] == [0.58, 0.50, 0.72]
    assert rounded["error", "all"] == [-0.58, -0.73, -0.42]
    assert rounded["error", "without both"] == [-0.68, -0.89, -0.50]
    assert rounded["gain", "all"] == [-0.70, -0.90, -0.40]
    assert rounded["gain", "without both"] == [-0.67, -0.85, -0.27]


def test_where_lora_loses(found, frame):
    numbers = found["losses"].numbers
    assert numbers["total"] == 35
    assert numbers["below"] == {
        "medical": 8, "climate": 7, "intent": 7, "sms_spam": 4, "clickbait": 3, "banking77": 3, "bias": 3,
    }  # fmt: skip
    assert losses(frame[frame["gain"] >= 0]).numbers["total"] == 0


def test_twins_of_other_figures(frame):
    other = frame.copy()
    other["linear_accuracy"] = 0.8
    assert twins(other, np.random.default_rng(0)).rows[0]["z"] > 10
