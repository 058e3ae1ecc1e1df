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
# # Exercises 03 · Empirical correlations
#
# <!-- badges -->
# [![Open in Binder](../images/badge_binder.svg)](https://mybinder.org/v2/gh/OWNER/ntps/main?urlpath=lab/tree/notebooks/exercises/ex03_empirical_correlations.ipynb) [![Open in Colab](../images/badge_colab.svg)](https://colab.research.google.com/github/OWNER/ntps/blob/main/notebooks/exercises/ex03_empirical_correlations.ipynb)
# <!-- /badges -->
#
# **Time:** 45 minutes · **Prerequisites:** [lesson 03](../03_empirical_correlations.ipynb).
#
# Exercise 1 builds the null of a score, exercise 2 a choice that does not peek, exercises 3 and 4 read a paper, and exercise 5 makes a discovery out of noise. After each function a check tries it and says what is wrong, if anything is. Symbols are explained in the [glossary](../glossary.md).
#
# <!-- made from ../solutions/ex03_empirical_correlations.py by `make exercises`: edit that file, not this one -->

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
# %matplotlib inline
import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns

import ntps
from ntps.course import checks
from ntps.course.widgets import PALETTE

sns.set_theme(style="ticks", palette=PALETTE)


# %% [markdown]
# ## Exercise 1: how often does chance do as well?
#
# You have an observed score and its values under shuffled labels. Write `permutation_p(observed, null)`: the one-sided p-value, large scores being evidence. Can it ever be zero?
#
# <details><summary>Hint</summary>
#
# The true labels are one possible order, too: count them among the draws, above and below the fraction bar.
#
# </details>

# %%
def permutation_p(observed, null):
    """Return the share of label orders, the observed one included, whose score is at least the observed one.

    Args:
        observed: The score of the labels as they are.
        null: (B,) scores of shuffled labels.
    """
    raise NotImplementedError("your turn")


# %%
checks.permutation_p(permutation_p)

# %% [markdown]
# For labels without meaning, all p-values between 0 and 1 should be equally likely. The cell below tosses a coin for the texts of a task, many times over, and draws your p-values: the picture must be flat.

# %%
model = ntps.load_model("miniworld-base", dtype="float32")
task = ntps.load_task("miniworld/noise", limit=200)
representations = ntps.collect(model, task, layers=[-1], progress=False)
(null,) = ntps.permutation_null(representations, permutations=999)
values = null.explained.values
ps = [permutation_p(values[i], np.delete(values, i)) for i in range(len(values))]
figure, ax = plt.subplots(figsize=(5.0, 2.4), layout="constrained")
sns.histplot(ps, bins=20, ax=ax)
ax.set(xlabel="p-value of shuffled labels", xlim=(0, 1))
sns.despine()
plt.show()


# %% [markdown]
# ## Exercise 2: choose without peeking
#
# `values` holds a score at many layers and ranks (one row each) for several tasks, `accuracy` the accuracy of a probe on those tasks. Write `choose_without(values, accuracy, task)`: the row with the largest absolute Spearman correlation **on the other
# tasks**. It must not change, whatever the accuracy of the task that is left out.
#
# <details><summary>Hint</summary>
#
# Spearman's correlation is Pearson's correlation of ranks: `x.argsort().argsort()` ranks values without ties. Delete the task's column before you rank.
#
# </details>

# %%
def choose_without(values, accuracy, task):
    """Return the row of `values` that correlates best with `accuracy`, the task left out.

    Args:
        values: (options, tasks) scores.
        accuracy: (tasks,) accuracies.
        task: Index of the task that is left out.
    """
    raise NotImplementedError("your turn")


# %%
checks.choose_without(choose_without)

# %%
rng = np.random.default_rng(0)
values, accuracy = rng.normal(size=(35, 10)), rng.normal(size=10)  # scores of pure noise: 35 options, 10 tasks


# %%
# Choose without each of the 10 tasks in turn, and print which rows come out.
# your turn

# %% [markdown]
# Choosing without the task gives a choice for every task. Choices that differ from task to task are a warning, not a proof: several options may be nearly equally good. And choices that agree prove nothing either, as the noise above shows: all tasks but one are the same in every choice. What counts
# is how the choices do on the tasks left out.

# %% [markdown]
# ## Exercise 3: whose accuracies are these?
#
# An accuracy over $n$ texts is a whole number of $n$-ths. A paper gives eight accuracies with ten digits, and the sizes of the training and the test part. Write `judged_on(accuracies, sizes)`: return `"train"` or `"test"`, the part
# of which all accuracies are whole fractions, or `"none"`.
#
# <details><summary>Hint</summary>
#
# Multiply by the size and compare with the nearest whole number. The digits that were cut leave an error of up to 1e-5.
#
# </details>

# %%
def judged_on(accuracies, sizes):
    """Return the name of the part on which accuracies were judged.

    Args:
        accuracies: (m,) accuracies, rounded to ten digits.
        sizes: Number of texts of each part, by name.
    """
    raise NotImplementedError("your turn")


# %%
checks.judged_on(judged_on)

# %%
import pandas as pd

from ntps.paper import published

figures, parts = published.results(), published.datasets().dropna().set_index("dataset")
answers = {
    column: {
        name: judged_on(figures[column][figures.dataset == name].to_numpy(), {"train": row.n_train, "test": row.n_test})
        for name, row in parts.iterrows()
    }
    for column in ("accuracy", "lora_accuracy")
}
pd.DataFrame(answers)


# %% [markdown]
# The probe accuracies are training accuracies, those after LoRA test accuracies. Where both fit, the first name is given: the two parts of imdb have the same size, and emotion has 16,000 training and 2,000 test texts, so that every
# 2,000th is a 16,000th, too. Lesson 03 asks for the *smallest* number, which tells them apart.
#
# ## Exercise 4: a loop that ends too soon
#
# A data set of pairs of medical questions asks whether both mean the same. The loader below is meant to join them. Look at what it gives, find the slip, and write `joined_questions(rows)` without it.

# %%
def loader(rows):
    """Return the text of each row."""
    texts = [row["question_1"] for row in rows]
    for number, row in enumerate(rows):
        texts[number] = f"{row['question_1']} {row['question_2']}"
        return texts


questions = [{"question_1": f"Is it {name}?", "question_2": f"Could it be {name}?"} for name in ("flu", "gout", "lice")]
loader(questions)


# %%
def joined_questions(rows):
    """Return the text of each row: both questions, with a space between.

    Args:
        rows: Mappings with `question_1` and `question_2`.
    """
    raise NotImplementedError("your turn")


# %%
checks.joined_questions(joined_questions)


# %% [markdown]
# In the paper's released code a `return` stands inside such a loop, so that of 3,048 texts all but 4 are the first question alone; and each first question occurs twice, once with either label. Who remembers the training texts then
# gives a test text the label of its twin, which is the wrong one: all eight published models are below a coin on this set.
#
# ## Exercise 5: break the measure
#
# Make a discovery out of noise. Write `choice_from_noise(n_tasks, seed)`: scores of pure noise, one row for each "layer and rank", one column for each task, at most 10,000 rows, so many that the best row has a rank correlation of 0.85 or more in size with *any* accuracies of ten tasks. The check draws the accuracies after you have
# returned your scores.
#
# <details><summary>Hint</summary>
#
# One row reaches 0.85 about once in five hundred. How many rows do you need to be nearly sure?
#
# </details>

# %%
def choice_from_noise(n_tasks, seed):
    """Return scores (options, n_tasks) of noise, the best of which correlates with whatever accuracies come.

    Args:
        n_tasks: Number of tasks.
        seed: Seed of the random numbers.
    """
    raise NotImplementedError("your turn")


# %%
checks.choice_from_noise(choice_from_noise)

# %% [markdown]
# The check also says what the same scores are worth when layer and rank are chosen without the task. A correlation that was chosen on the tasks it is quoted for needs a null that chooses as well.
