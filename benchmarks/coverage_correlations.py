"""How often the interval of a rank correlation over a grid of models by tasks holds the population's correlation.

python -m benchmarks.coverage_correlations        # prints the table; about half a minute
"""

import math
from typing import Any

import numpy as np

from ntps.study.correlations import grid_spearman

TASKS = (5, 8, 12)
MODELS = ((1, 0.0), (4, 0.95), (4, 0.0))  # number of models, and the share of variance that they have in common
CORRELATIONS = (0.0, 0.6, 0.95)  # of the bivariate normal distribution


def draw(
    rng: np.random.Generator, tasks: int, models: int, shared: float, correlation: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return a predictor and a target (models, tasks) that correlate within each model."""
    common = rng.standard_normal((2, 1, tasks)) * math.sqrt(shared)
    own = rng.standard_normal((2, models, tasks)) * math.sqrt(1 - shared)
    x, noise = common + own
    return x, correlation * x + math.sqrt(1 - correlation**2) * noise


def rows(replications: int = 400, seed: int = 0) -> list[dict[str, Any]]:
    """Return the coverage of 95 % intervals, one row for each number of tasks, kind of models and correlation."""
    found = []
    for tasks in TASKS:
        for models, shared in MODELS:
            for correlation in CORRELATIONS:
                rng = np.random.default_rng(seed)
                truth = 6 / math.pi * math.asin(correlation / 2)
                inside = 0
                for _ in range(replications):
                    x, y = draw(rng, tasks, models, shared, correlation)
                    low, high = grid_spearman(x, y, n_permutations=1).interval
                    inside += low <= truth <= high
                coverage = inside / replications
                found.append(
                    {
                        "tasks": tasks,
                        "models": models,
                        "shared": shared,
                        "spearman": round(truth, 3),
                        "coverage": coverage,
                        "standard_error": math.sqrt(coverage * (1 - coverage) / replications),
                    }
                )
    return found


if __name__ == "__main__":
    for row in rows():
        print(row)
