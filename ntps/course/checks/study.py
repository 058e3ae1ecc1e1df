"""Checks of the exercises on nulls, on choosing and on reading a paper (lesson 03)."""

from collections.abc import Callable
from typing import Any

import numpy as np

from ntps.course.checks.runner import as_number, call, close, diagnose, passed, require


def permutation_p(function: Callable[..., Any]) -> None:
    """Check `function(observed, null)`: the one-sided permutation p-value of a score, large scores being evidence."""
    null = np.random.default_rng(0).normal(size=99)
    for observed in (float(np.sort(null)[-10]), float(null.max()) + 1, float(null.min()) - 1):
        hits = int((null >= observed).sum())
        right = (1 + hits) / 100
        p = as_number(call(function, observed, null), "p")
        if not close(p, right):
            diagnose(
                (not 0 <= p <= 1, f"p is {p:.3f}; a probability lies between 0 and 1. Did you return a count?"),
                (
                    p == 0,
                    "p is 0, but 99 permutations cannot show that: count the observed value among them, (1 + hits) / "
                    "(1 + 99).",
                ),
                (
                    close(p, hits / 99),
                    "you divide the hits by 99; the observed labels are one more permutation: (1 + hits) / (1 + 99).",
                ),
                (
                    close(p, min(2 * min(right, (100 - hits + 1) / 100), 1)) or close(p, right / 2),
                    "you count both sides; only large scores are evidence here: count those at least as large, once.",
                ),
                (
                    close(p, (100 - hits) / 100),
                    "you count the permutations below the observed score; evidence is a score that few reach: count "
                    "those at least as large.",
                ),
                otherwise=f"p is {p:.3f} where {hits} of 99 permutations reach the score; it should be {right:.2f}.",
            )
    tied = as_number(call(function, 1.0, np.ones(9)), "p")
    require(
        close(tied, 1.0),
        f"all 9 permuted scores equal the observed one, and p is {tied:.2f}; ties count as hits (>=).",
    )
    passed("permutation_p: counts the permutations that do as well, and itself; never zero.")


def choose_without(function: Callable[..., Any]) -> None:
    """Check `function(values, accuracy, task)`: the option of largest |Spearman| on the tasks other than `task`."""
    rng = np.random.default_rng(1)
    n_options, n_tasks = 20, 9
    for trial in range(12):
        values, accuracy = rng.normal(size=(n_options, n_tasks)), rng.normal(size=n_tasks)
        task = trial % n_tasks
        if trial < 3:
            values[7] = -accuracy  # a perfect option of negative sign
        option = _as_option(call(function, values, accuracy, task), n_options)
        others = np.arange(n_tasks) != task
        spearman = _correlations(_ranks(values[:, others]), _ranks(accuracy[others]))
        with_task = _correlations(_ranks(values), _ranks(accuracy))
        pearson = _correlations(values[:, others], accuracy[others])
        best = int(np.abs(spearman).argmax())
        if not np.isclose(abs(spearman[option]), abs(spearman[best])):
            zeros, zeroed = values.copy(), accuracy.copy()
            zeros[:, task], zeroed[task] = 0, 0
            filled = _correlations(_ranks(zeros), _ranks(zeroed))
            kendall = [_kendall(row, accuracy[others]) for row in values[:, others]]
            diagnose(
                (
                    np.abs(kendall).argmax() == option or np.isclose(abs(kendall[option]), np.abs(kendall).max()),
                    "you use Kendall's correlation; here Spearman's is asked for, Pearson's correlation of ranks.",
                ),
                (
                    option in (np.abs(filled).argmax(), filled.argmax()),
                    "you put a zero where the left-out task was; it still has a rank. Delete the task.",
                ),
                (
                    option == spearman.argmax(),
                    "you take the largest correlation; -0.9 predicts as well as +0.9: take the largest absolute value.",
                ),
                (
                    option == np.abs(with_task).argmax(),
                    "you choose with the left-out task among the others: it leaks. Remove it before correlating.",
                ),
                (
                    option == np.abs(pearson).argmax(),
                    "you correlate the values themselves (Pearson); Spearman correlates their ranks.",
                ),
                otherwise=f"option {option} has |Spearman| {abs(spearman[option]):.2f} on the other tasks; option "
                f"{best} has {abs(spearman[best]):.2f}.",
            )
    changed = accuracy.copy()
    changed[task] = 1e6
    again = _as_option(call(function, values, changed, task), n_options)
    require(again == option, "your choice changes when only the left-out task's accuracy changes: it leaks.")
    passed("choose_without: the best option on the other tasks, blind to the one left out.")


def judged_on(function: Callable[..., Any]) -> None:
    """Check `function(accuracies, sizes)`: the part of which all accuracies are whole fractions, or "none"."""
    rng = np.random.default_rng(2)
    for trial in range(12):
        train, test = int(rng.integers(1000, 60_000)), int(rng.integers(100, 900))
        sizes = {"train": train, "test": test}
        right = ("train", "test", "none")[trial % 3]
        n = {**sizes, "none": train + 1}[right]
        accuracies = np.round(rng.integers(n // 2, n, 8) / n, 10)
        if right == "none":
            accuracies[0] = round(train // 2 / train, 10)  # one that fits by chance
        result = call(function, accuracies, dict(sizes))
        require(isinstance(result, str), f"return 'train', 'test' or 'none'; yours is {result!r}.")
        if result != right:
            exact = [name for name, size in sizes.items() if all(float(a * size).is_integer() for a in accuracies)]
            loose = [name for name, size in sizes.items() if (_off_whole(accuracies * size) < 0.5).all()]
            first = [name for name, size in sizes.items() if _off_whole(accuracies[0] * size) < 1e-4]
            diagnose(
                (
                    right != "none" and result == "none" and not exact,
                    "you ask for products that are whole to the last bit; the accuracies are rounded to ten digits, so "
                    "allow for about 1e-5.",
                ),
                (
                    right == "none" and first and result == first[0],
                    "you look at one accuracy; by chance one may fit: all eight must.",
                ),
                (
                    result in loose,
                    "your tolerance is so wide that any number of texts fits; the products of the right one are whole "
                    "to about 1e-5.",
                ),
                otherwise=f"with {train:,} training and {test:,} test texts the answer is {right!r}; yours is "
                f"{result!r}.",
            )
    passed("judged_on: the accuracies themselves tell which texts they were judged on.")


def joined_questions(function: Callable[..., Any]) -> None:
    """Check `function(rows)`: the text of every row is its first question, a space, and its second."""
    for n in (1, 2, 5):
        rows = [{"question_1": f"why {i}?", "question_2": f"how {i}?"} for i in range(n)]
        result = call(function, [dict(row) for row in rows])
        require(isinstance(result, list), f"return the list of texts; yours is {type(result).__name__}.")
        texts = [f"why {i}? how {i}?" for i in range(n)]
        if result != texts:
            diagnose(
                (result == texts[:1], f"of {n} rows you return the first; the loop ends with its first `return`."),
                (
                    result == [texts[0], *(f"why {i}?" for i in range(1, n))],
                    f"only the first of {n} texts has its second question; does the loop end too soon?",
                ),
                (len(result) != n, f"of {n} rows you return {len(result)} texts."),
                (result == [text.replace("? how", "?how") for text in texts], "a space is missing between the two."),
                otherwise=f"the text of the last row is {result[-1]!r}; it should be {texts[-1]!r}.",
            )
    passed("joined_questions: every text has both of its questions.")


def _off_whole(values: np.ndarray) -> np.ndarray:
    """Return how far numbers are from whole ones."""
    return np.abs(values - np.round(values))


def _as_option(result: Any, n_options: int) -> int:
    """Return the learner's choice as a row number."""
    value = as_number(result, "the option")
    valid = value == int(value) and 0 <= value < n_options
    require(valid, f"the option is {value:g}; return its row number, 0 to {n_options - 1}.")
    return int(value)


def _kendall(x: np.ndarray, y: np.ndarray) -> float:
    """Return Kendall's correlation of two lists without ties."""
    first, second = (np.sign(np.subtract.outer(values, values)) for values in (x, y))
    return float((first * second).sum() / (len(x) * (len(x) - 1)))


def _ranks(values: np.ndarray) -> np.ndarray:
    """Return ranks along the last axis of values without ties."""
    return values.argsort(-1).argsort(-1)


def _correlations(rows: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Return Pearson's correlation of each row with the target."""
    return np.array([np.corrcoef(row, target)[0, 1] for row in rows])
