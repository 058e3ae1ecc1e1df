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
# # Exercises 01 · The linear derivation
#
# <!-- badges -->
# [![Open in Binder](../images/badge_binder.svg)](https://mybinder.org/v2/gh/OWNER/ntps/main?urlpath=lab/tree/notebooks/exercises/ex01_linear_derivation.ipynb) [![Open in Colab](../images/badge_colab.svg)](https://colab.research.google.com/github/OWNER/ntps/blob/main/notebooks/exercises/ex01_linear_derivation.ipynb)
# <!-- /badges -->
#
# **Time:** 40 minutes · **Prerequisites:** [lesson 01](../01_linear_derivation.ipynb).
#
# Two functions to write, in NumPy, and a world to build in which the score misleads. After each one a check tries it and says what is wrong, if anything is. Symbols are explained in the [glossary](../glossary.md).
#
# <!-- made from ../solutions/ex01_linear_derivation.py by `make exercises`: edit that file, not this one -->

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
import torch

import ntps
from ntps.course import checks, widgets


# %% [markdown]
# ## Exercise 1: $V$ in closed form
#
# Write `next_token_encoder(C0, C1, k)`: the top $k$ generalized eigenvectors of $(C_1 C_1^\top, C_0)$, best first, as the columns of $V$ with $V^\top C_0 V = I$. NumPy has no generalized eigenvalue solver: whiten.
#
# <details><summary>Hint</summary>
#
# `w, Q = np.linalg.eigh(C0)` gives $C_0 = Q \mathrm{diag}(w) Q^\top$. With $T = Q \mathrm{diag}(w)^{-1/2}$, the left singular vectors of $T^\top C_1$ are the whitened directions. Map them back.
#
# </details>

# %%
def next_token_encoder(C0, C1, k):
    """Return V, (d, k): the k best directions for predicting the next state.

    Args:
        C0: (d, d) prefix Gram, E[sum s_t s_t^T].
        C1: (d, d) prefix-next moment, E[sum s_t h_{t+1}^T].
        k: Number of directions.
    """
    raise NotImplementedError("your turn")


# %%
checks.next_token_encoder(next_token_encoder)


# %% [markdown]
# Now use it on a real layer. The library's $V$ spans the same space, so the score of one against the other is 1.

# %%
# Collect the moments of miniworld-base on 300 documents of miniworld/topic, take layer 2, and compare your V_8 with the library's:
# print the mean squared cosine of the principal angles between the two spans.
# your turn

# %% [markdown]
# ## Exercise 2: $U$ by regression
#
# Reduced-rank regression can be done without a word about eigenvectors of moments: regress the labels on the features as usual, and replace the *fitted values* by their best rank-$k$ approximation. Write
# `perception_by_regression(x, y, k)`, which returns $k$ directions that span $U_k$. Do not centre.
#
# <details><summary>Hint</summary>
#
# The best rank-$k$ approximation of a matrix comes from its SVD: multiply it by the projector onto its top $k$ right singular vectors. The fitted values are features times coefficients; which $k$ combinations of the features are left?
#
# </details>

# %%
def perception_by_regression(x, y, k):
    """Return directions (d, k) that span U_k.

    Args:
        x: (n, d) features of n texts.
        y: (n, c) labels, one-hot or real.
        k: Number of directions, at most c.
    """
    raise NotImplementedError("your turn")


# %%
checks.perception_by_regression(perception_by_regression)

# %% [markdown]
# In the linear world both roads lead to the same subspace, and to the direction that the label was made of.

# %%
world = widgets.plane_world(next_angle=30, label_angle=75, stretch=2.0)
states, y = world.sample(20_000, seed=0)
x = states.mean(axis=1)
n = len(x)
closed = ntps.perception_encoder(torch.from_numpy(x.T @ x / n), torch.from_numpy(x.T @ y / n)).vectors[:, 0].numpy()


# %%
# Print the angle, 0 to 180 degrees, of `closed` and of your own direction.
# your turn

# %% [markdown]
# What you have shown: both encoders are ordinary regressions through a bottleneck. Nothing in them is particular to language models except the moments.
#
# ## Exercise 3: break the measure
#
# In panel A of the lesson, find a world in which the score says "hardly any overlap" and the label does not mind. Write `misleading_world()`: return the next-token angle, the label angle (both 0 to 180 degrees) and the noise stretch (0.2 to 5), such that NTPS is below 0.05 and yet at least 80 % of the
# label's explained variance is kept.
#
# <details><summary>Hint</summary>
#
# $V$ follows $N^{-1} D$, and the score is low where $u$ is at right angles to it. The label survives if the two coordinates of $x$ are strongly correlated *in the directions of $u$ and $v$*. Play with the panel, or try all angles in a loop with `widgets.read_world(widgets.plane_world(...))`.
#
# </details>

# %%
def misleading_world():
    """Return (next_angle, label_angle, stretch): NTPS below 0.05, and 80 % or more of the label kept."""
    raise NotImplementedError("your turn")


# %%
checks.misleading_world(misleading_world)

# %% [markdown]
# The score compares arrows, the loss what can be read. Lesson 02 says how far apart the two can be, and gives the number that cannot be fooled in this way.
