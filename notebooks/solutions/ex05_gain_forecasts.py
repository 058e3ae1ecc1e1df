# ---
# jupyter:
#   jupytext:
#     cell_metadata_filter: tags,-all
#     notebook_metadata_filter: kernelspec,jupytext,-jupytext.text_representation.jupytext_version,-widgets
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Exercises 05 · Can the gain be known in advance?
#
# <!-- badges -->
# [![Open in Binder](../images/badge_binder.svg)](https://mybinder.org/v2/gh/OWNER/ntps/main?urlpath=lab/tree/notebooks/exercises/ex05_gain_forecasts.ipynb) [![Open in Colab](../images/badge_colab.svg)](https://colab.research.google.com/github/OWNER/ntps/blob/main/notebooks/exercises/ex05_gain_forecasts.ipynb)
# <!-- /badges -->
#
# **Time:** 30 minutes · **Prerequisites:** [lesson 05](../05_gain_forecasts.ipynb).
#
# Exercise 1 predicts the gain of LoRA on the paper's figures, each data set left out in turn; exercise 2 hides a label from a probe. After each function a check tries it and says what is wrong, if anything is. Symbols are explained in the [glossary](../glossary.md).

# %% tags=["colab"]
# On Colab this installs the package; anywhere else it does nothing.
import subprocess
import sys

if "google.colab" in sys.modules:
    address = "git+https://github.com/OWNER/ntps@main"
    pip = subprocess.run([sys.executable, "-m", "pip", "install", "-q", address], capture_output=True, text=True)
    if pip.returncode:
        reasons = "; ".join(line for line in pip.stderr.splitlines() if line.startswith("ERROR"))
        print(f"Nothing below will run: {address} could not be installed. {reasons}")

# %%
import numpy as np

from ntps.course import checks
from ntps.paper import published
from ntps.study import gain_prediction, to_grid


# %% [markdown]
# ## Exercise 1: predict the gain without peeking
#
# `accuracy` holds the accuracy of the probe and `gain` the gain of LoRA, with one row per model and one column per task. Write `gain_without_task(accuracy, gain, task)`: fit one line, gain against accuracy, on the cells of the **other** tasks, and return what it
# predicts for this task in every model.
#
# <details><summary>Hint</summary>
#
# `np.delete(..., task, axis=1)` takes the column out in all models. `np.polyfit(x, y, 1)` returns slope and intercept.
#
# </details>


# %% tags=["solution"]
def gain_without_task(accuracy, gain, task):
    """Return the predicted gains (models,) of a task, from a line fitted without it.

    Args:
        accuracy: (models, tasks) accuracy of the probe, before fine-tuning.
        gain: (models, tasks) gain of LoRA.
        task: Column of the task that is left out.
    """
    x, y = np.delete(accuracy, task, axis=1).ravel(), np.delete(gain, task, axis=1).ravel()
    slope, intercept = np.polyfit(x, y, 1)
    return intercept + slope * accuracy[:, task]


# %%
checks.gain_without_task(gain_without_task)


# %% [markdown]
# A prediction needs a rival. Write `left_out_errors(accuracy, gain)`: the mean absolute error of the line over all cells, every task left out in turn, and that of a rival that predicts the mean gain. What must be left out of that mean?


# %% tags=["solution"]
def left_out_errors(accuracy, gain):
    """Return two mean absolute errors: of the line, and of the mean gain, each fitted without the task it predicts.

    Args:
        accuracy: (models, tasks) accuracy of the probe, before fine-tuning.
        gain: (models, tasks) gain of LoRA.
    """
    line, mean = np.empty_like(gain), np.empty_like(gain)
    for task in range(gain.shape[1]):
        line[:, task] = gain_without_task(accuracy, gain, task)
        mean[:, task] = np.delete(gain, task, axis=1).mean()
    return np.abs(line - gain).mean(), np.abs(mean - gain).mean()


# %%
checks.left_out_errors(left_out_errors)

# %% [markdown]
# With these two functions you can judge the paper's figures yourself, and compare with what the library says in part 1 of the lesson.

# %%
figures = published.results()
accuracy, gain = (to_grid(figures, column) for column in ("linear_accuracy", "gain"))
line, mean = left_out_errors(accuracy, gain)
library = gain_prediction(figures, n_bootstrap=200)
print(f"line in accuracy: {100 * line:.2f} points; ntps.study says {100 * library.mae['accuracy']:.2f}")
print(f"mean gain:        {100 * mean:.2f} points; ntps.study says {100 * library.mae['mean']:.2f}")

datasets = list(figures["dataset"].unique())
without = [np.delete(np.arange(len(datasets)), place) for place in range(len(datasets))]
rows = sorted(
    (left_out_errors(accuracy[:, keep], gain[:, keep]), name) for keep, name in zip(without, datasets, strict=True)
)
print("\nerrors when a data set is not there at all, in points (line, mean):")
for (one, other), name in rows[:3]:
    print(f"  without {name:14s} {100 * one:5.2f} {100 * other:5.2f}")


# %% [markdown]
# Over all twelve data sets the line predicts no better than the mean. Take a single one away, `medical`, where the probe is poor and LoRA makes it worse, and the line is far better than the mean. With twelve tasks, one of them can decide
# what a comparison of predictors says: look at who decides before you quote the winner.
#
# ## Exercise 2: break the measure
#
# Held back, R² and the probe are all linear. Write `hidden_label(n, seed)`: states of shape `(n, d)` and labels 0 and 1, about half of each, such that a linear readout finds nothing on other texts (R² below 0.1), and yet the nearest neighbour of a text names its label in 95 of 100 cases.
#
# <details><summary>Hint</summary>
#
# Four clouds on the corners of a square. Which corners must share a label so that no line parts the two?
#
# </details>


# %% tags=["solution"]
def hidden_label(n, seed):
    """Return states (n, 2) and labels (n,) that neighbours know and no line parts.

    Args:
        n: Number of texts.
        seed: Seed of the random numbers.
    """
    rng = np.random.default_rng(seed)
    corners = rng.integers(0, 2, (n, 2))
    return 10 * corners + rng.standard_normal((n, 2)), corners[:, 0] ^ corners[:, 1]


# %%
checks.hidden_label(hidden_label)

# %% [markdown]
# The forecast of the lesson would say "nothing held back, nothing to gain" here, and a network with one hidden layer would gain everything. A probe that fails says that *it* finds nothing.
