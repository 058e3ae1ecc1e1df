"""Tables of gains that follow a rule, and a calibration made by hand."""

from dataclasses import replace

import numpy as np
import pandas as pd

from ntps.study.calibration import Calibration


def cells(n_tasks=20, n_models=3, seed=0, noise=0.02, slope=(-0.3, 0.5), task_noise=0.0, of_saved=None):
    """A study's table whose gain is linear in two inputs, with noise of the cell and of the task.

    With `of_saved` there is a column `saved`, and the gain has that slope in it.
    """
    rng = np.random.default_rng(seed)
    rows = []
    for task in range(n_tasks):
        shared = rng.normal(0, task_noise)
        for model in range(n_models):
            accuracy, held = rng.uniform(0.3, 0.6), rng.uniform(0, 0.4)
            gain = 0.2 + slope[0] * accuracy + slope[1] * held + shared + rng.normal(0, noise)
            saved = {} if of_saved is None else {"saved": rng.uniform(0, 0.3)}
            gain += (of_saved or 0) * saved.get("saved", 0)
            rows.append({**saved, "model": f"m{model}", "task": f"t{task}", "seed": 0, "status": "done", "reason": None,
                         "accuracy": accuracy, "held_back": held, "gain": gain})  # fmt: skip
    return pd.DataFrame(rows)


def fixed(coefficients=(0.1, 0.0, 0.0), errors=(-0.02, 0.02), **changes):
    base = Calibration(
        inputs=("accuracy", "held_back"),
        steps=0,
        halves=True,
        coefficients=coefficients,
        errors={f"t{number}": tuple(error / 0.3 for error in errors) for number in range(20)},  # room of 0.3
        ranges=((0.5, 0.9), (0.0, 0.4)),
        confidence=0.8,
        coverage=0.8,
        about={
            "models": ["m"],
            "tasks": ["t"],
            "runs": 20,
            "mean_absolute_error": 0.01,
            "mean_absolute_error_of_no_gain": 0.03,
            "margin": {"mean": 0.02, "low": 0.01, "high": 0.03},
            "mean_absolute_error_of_the_mean_gain": 0.02,
        },
    )
    return replace(base, **changes)
