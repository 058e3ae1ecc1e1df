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
# [![Open in Binder](https://mybinder.org/badge_logo.svg)](https://mybinder.org/v2/gh/OWNER/ntps/main?urlpath=lab/tree/notebooks/exercises/ex00_start_here.ipynb) [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/OWNER/ntps/blob/main/notebooks/exercises/ex00_start_here.ipynb)
# <!-- /badges -->
#
# **Time:** 15 minutes · **Prerequisites:** [lesson 00](../00_start_here.ipynb).
#
# Two small functions for reading a score. After each one a check tries it and says what is wrong, if anything is. Symbols are explained in the [glossary](../glossary.md).

# %% tags=["colab"]
# On Colab this installs the package; anywhere else it does nothing.
import subprocess
import sys

if "google.colab" in sys.modules:
    address = "git+https://github.com/OWNER/ntps@main"
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", address], check=True)

# %%
# %matplotlib inline
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
# Use both on two tasks of the bundled model.

# %%
model = ntps.load_model("miniworld-base", dtype="float32")
best = {
    name: ntps.score(
        ntps.collect(model, ntps.load_task(f"miniworld/{name}", n=1000), progress=False), probes=False
    ).shown
    for name in ("topic", "watermark")
}

# %% tags=["solution-only"]
for name, layer in best.items():
    rank = smallest_rank(layer.curve["k_v"], layer.curve["explained_heldout"], 0.8)
    room = above_chance(layer.ntps, layer.k_v, layer.d)
    print(f"{name}: {room:+.2f} above chance; k_V = {rank} keeps 80 % of the R² of all directions")

# %% [markdown]
# A task that pretraining had to learn needs few next-token directions; one that it had no use for is spread over many.
