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
# # Exercises 00 · Start here
#
# <!-- badges -->
# [![Open in Binder](../images/badge_binder.svg)](https://mybinder.org/v2/gh/OWNER/ntps/main?urlpath=lab/tree/notebooks/exercises/ex00_start_here.ipynb) [![Open in Colab](../images/badge_colab.svg)](https://colab.research.google.com/github/OWNER/ntps/blob/main/notebooks/exercises/ex00_start_here.ipynb)
# <!-- /badges -->
#
# **Time:** 25 minutes · **Prerequisites:** [lesson 00](../00_start_here.ipynb).
#
# Two small functions for reading a score, and one that breaks it. After each one a check tries it and says what is wrong, if anything is. Symbols are explained in the [glossary](../glossary.md).

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
import numpy as np

import ntps
from ntps.course import checks


# %% [markdown]
# ## Exercise 1: a score read against chance
#
# A random subspace of $k$ of $d$ directions scores $k/d$ on average. Write `above_chance(score, k, d)`: 0 at chance, 1 for a perfect score, negative below chance.
#
# <details><summary>Hint</summary>
#
# How much room is there between chance and 1, and how much of it does the score use?
#
# </details>


# %% tags=["solution"]
def above_chance(score, k, d):
    """Return the share of the room above chance that a score uses, at most 1.

    Args:
        score: NTPS, in [0, 1].
        k: Number of next-token directions.
        d: Width of the hidden states.
    """
    chance = k / d
    return (score - chance) / (1 - chance)


# %%
checks.above_chance(above_chance)


# %% [markdown]
# ## Exercise 2: how many directions are enough?
#
# `LayerScore.curve` lists, for growing $k_V$, what a linear readout of the first $k_V$ next-token directions explains of the labels. Write `smallest_rank(ranks, explained, share)`: the first of the ranks at which at least `share` of the last value is reached.
#
# <details><summary>Hint</summary>
#
# Compare with `share * explained[-1]`. The lists are in ascending order of rank.
#
# </details>


# %% tags=["solution"]
def smallest_rank(ranks, explained, share):
    """Return the smallest rank that keeps a share of what the largest rank explains.

    Args:
        ranks: Ranks, ascending.
        explained: What each of them explains, same length.
        share: Between 0 and 1.
    """
    return next(rank for rank, value in zip(ranks, explained, strict=True) if value >= share * explained[-1])


# %%
checks.smallest_rank(smallest_rank)

# %% [markdown]
# Use both on two tasks of the bundled model, and on a coin.

# %%
model = ntps.load_model("miniworld-base", dtype="float32")
best = {
    name: ntps.score(
        ntps.collect(model, ntps.load_task(f"miniworld/{name}", n=1000), progress=False), probes=False
    ).shown
    for name in ("topic", "watermark", "noise")
}

# %% tags=["solution"]
# For each task print how far its NTPS is above chance, R² of all directions (the last of layer.curve["explained_heldout"]),
# and the rank that keeps 80 % of it (layer.curve["k_v"] has the ranks).
for name, layer in best.items():
    curve = layer.curve["explained_heldout"]
    rank = smallest_rank(layer.curve["k_v"], curve, 0.8)
    room = above_chance(layer.ntps, layer.k_v, layer.d)
    print(f"{name:9s} {room:+z.2f} above chance; R² {curve[-1]:z.2f}; k_V = {rank} keeps 80 % of it")


# %% [markdown]
# A quarter of the directions keeps 80 % of what can be read of the topic; for the watermark it takes all of them. For the coin the rank means nothing, since there is no R² to keep 80 % of, although its NTPS is about as far above chance as the topic's. Look at R² first, and only then at the rank that reaches a share of it.
#
# ## Exercise 3: break the measure
#
# A raw NTPS can be high for labels without any meaning. Write `lucky_coin(score_of, n)`: toss a coin for each of `n` texts, so luckily that its NTPS is at least 0.65, where chance is 0.375. You do not see the texts; `score_of(labels)` tells the NTPS of your labels, as often as you ask.
#
# <details><summary>Hint</summary>
#
# `rng.integers(0, 2, n)` tosses once. Some tosses are luckier than others.
#
# </details>


# %% tags=["solution"]
def lucky_coin(score_of, n):
    """Return labels of 0 and 1, tossed without looking at any text, with an NTPS of at least 0.65.

    Args:
        score_of: Function that returns the NTPS of labels (n,).
        n: Number of texts.
    """
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, n)
    while score_of(labels) < 0.65:
        labels = rng.integers(0, 2, n)
    return labels


# %%
checks.lucky_coin(lucky_coin)

# %% [markdown]
# Nobody would publish such a coin, but whoever tries many tasks and quotes the one of the highest NTPS does the same. R² on held-out texts is not fooled: it needs a meaning that carries over to other texts.
