"""Checks for the exercises on nulls and on choosing: they take the learner's function and say what is wrong with it."""

from collections.abc import Callable
from typing import Any

import numpy as np

from ntps.course.checks.linear import _array, _call, _number, _passed, _require


def permutation_p(function: Callable[..., Any]) -> None:
    """Check `function(observed, null)`: the one-sided permutation p-value of a score, large scores being evidence.

    Raises:
        CheckFailed: With what is wrong.
    """
    null = np.random.default_rng(0).normal(size=99)
    for observed in (float(np.sort(null)[-10]), float(null.max()) + 1, float(null.min()) - 1):
        hits = int((null >= observed).sum())
        p = _number(_call(function, observed, null), "p")
        _require(0 <= p <= 1, f"p is {p:.3f}; a probability lies between 0 and 1. Did you return a count?")
        _require(
            p > 0,
            "p is 0, but 99 permutations cannot show that: count the observed value among them, (1 + hits) / (1 + 99).",
        )
        if abs(p - hits / 99) < 1e-9 and abs(p - (1 + hits) / 100) > 1e-9:
            _require(
                False,
                "you divide the hits by 99; the labels as they are are one more permutation: (1 + hits) / (1 + 99).",
            )
        _require(
            abs(p - (100 - hits) / 100) > 1e-9 or hits == 49,
            "you count the permutations below the observed score; evidence is a score that few reach: count those at "
            "least as large.",
        )  # fmt: skip
        _require(
            abs(p - (1 + hits) / 100) < 1e-9,
            f"p is {p:.3f} where {hits} of 99 permutations reach the score; it should be {(1 + hits) / 100:.2f}.",
        )
    tied = _number(_call(function, 1.0, np.ones(9)), "p")
    _require(
        abs(tied - 1.0) < 1e-9,
        f"all 9 permuted scores equal the observed one, and p is {tied:.2f}; ties count as hits (>=).",
    )
    _passed("permutation_p: counts the permutations that do as well, and itself; never zero.")


def choose_without(function: Callable[..., Any]) -> None:
    """Check `function(values, accuracy, task)`: the option with the largest |Spearman| on the tasks other than `task`.

    Raises:
        CheckFailed: With what is wrong.
    """
    rng = np.random.default_rng(1)
    ranks = lambda x: np.argsort(np.argsort(x))  # noqa: E731  no ties here
    for trial in range(12):
        values, accuracy = rng.normal(size=(20, 9)), rng.normal(size=9)
        task = trial % 9
        if trial < 3:
            values[7] = -accuracy  # a perfect option of negative sign
        others = np.arange(9) != task
        rho = np.array([np.corrcoef(ranks(v[others]), ranks(accuracy[others]))[0, 1] for v in values])
        all_rho = np.array([np.corrcoef(ranks(v), ranks(accuracy))[0, 1] for v in values])
        plain = np.array([np.corrcoef(v[others], accuracy[others])[0, 1] for v in values])
        got = _array(_call(function, values, accuracy, task), (), "the option")
        option = int(got)
        _require(float(got) == option and 0 <= option < 20, f"the option is {got}; return its row number, 0 to 19.")
        if np.isclose(abs(rho[option]), np.abs(rho).max()):
            continue
        _require(
            option != int(rho.argmax()),
            "you take the largest correlation; -0.9 predicts as well as +0.9: take the largest absolute value.",
        )
        _require(
            option != int(np.abs(all_rho).argmax()),
            "you choose with the left-out task among the others: it leaks. Remove it before correlating.",
        )
        _require(
            option != int(np.abs(plain).argmax()),
            "you correlate the values themselves (Pearson); Spearman correlates their ranks.",
        )
        size, best = abs(rho[option]), int(np.abs(rho).argmax())
        _require(False, f"option {option} has |Spearman| {size:.2f} on the other tasks, option {best} more.")
    changed = accuracy.copy()
    changed[task] = 1e6
    _require(
        int(_array(_call(function, values, changed, task), (), "the option")) == option,
        "your choice changes when only the left-out task's accuracy changes: it leaks.",
    )
    _passed("choose_without: the best option on the other tasks, blind to the one left out.")
