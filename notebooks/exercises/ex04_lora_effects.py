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
# # Exercises 04 · LoRA effects
#
# <!-- badges -->
# [![Open in Binder](../images/badge_binder.svg)](https://mybinder.org/v2/gh/OWNER/ntps/main?urlpath=lab/tree/notebooks/exercises/ex04_lora_effects.ipynb) [![Open in Colab](../images/badge_colab.svg)](https://colab.research.google.com/github/OWNER/ntps/blob/main/notebooks/exercises/ex04_lora_effects.ipynb)
# <!-- /badges -->
#
# **Time:** 30 minutes · **Prerequisites:** [lesson 04](../04_lora_effects.ipynb).
#
# Exercise 1 merges an adapter by hand and looks for intruder dimensions, exercise 2 hides a change from their count. After each function a check tries it and says what is wrong, if anything is. Symbols are explained in the [glossary](../glossary.md).
#
# <!-- made from ../solutions/ex04_lora_effects.py by `make exercises`: edit that file, not this one -->

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
# ## Exercise 1: an adapter by hand
#
# After training, an adapter can be added into the weight it belongs to. Write `merged_weight(W, B, A, alpha)`: the weight that computes what the given one, `W`, and the adapter compute together. The rank is not given; where does it show?
#
# <details><summary>Hint</summary>
#
# $B$ and $A$ share one side: that is $r$. The product enters times $\alpha / r$.
#
# </details>

# %%
def merged_weight(W, B, A, alpha):
    """Return the weight with the adapter added in.

    Args:
        W: (m, n) original weight.
        B: (m, r) factor.
        A: (r, n) factor.
        alpha: Scale of the adapter: the product enters times alpha / r.
    """
    raise NotImplementedError("your turn")


# %%
checks.merged_weight(merged_weight)


# %% [markdown]
# Now look for what is new in it. Write `intruder_indices(before, after, k, epsilon)`: of the tuned matrix's $k$ strongest left singular vectors, the indices, from 0, of those that resemble none of the original ones. Their order may have changed, and their sign means nothing.
#
# <details><summary>Hint</summary>
#
# `np.linalg.svd(W, full_matrices=False)[0]` has the left singular vectors as columns, strongest first. One matrix product gives the cosines of every old vector with every new one.
#
# </details>

# %%
def intruder_indices(before, after, k, epsilon):
    """Return the indices, from 0, of the top k left singular vectors of `after` that are new.

    Args:
        before: (m, n) original weight.
        after: (m, n) tuned weight.
        k: How many of the strongest vectors to look at.
        epsilon: A vector is new if its largest absolute cosine with any original one is below this.
    """
    raise NotImplementedError("your turn")


# %%
checks.intruder_indices(intruder_indices)

# %% [markdown]
# The cell below takes a weight of the bundled model and adds random adapters of rank 1 and of rank 16 to it, scaled to the **same size**, that is, the same Frobenius norm of the update. How large must it be before an intruder shows? Before you run it: gradually, or all at once? And which rank first?

# %%
model = ntps.load_model("miniworld-base", dtype="float32")
W = model.model.get_submodule("layers.2.self_attn.o_proj").weight.detach().double().numpy()
rng = np.random.default_rng(0)
sizes = np.linspace(0.02, 0.8, 40)
figure, ax = plt.subplots(figsize=(5.6, 2.8), layout="constrained")
for rank, marker in ((1, "o"), (16, "s")):
    B, A = rng.standard_normal((len(W), rank)), rng.standard_normal((rank, W.shape[1]))
    unit = np.linalg.norm(B @ A) / np.linalg.norm(W) / rank  # the size of the update at alpha = 1
    found = [len(intruder_indices(W, merged_weight(W, B, A, size / unit), 10, 0.6)) for size in sizes]
    ax.plot(sizes, found, marker, ms=4, ls="-", lw=1, label=f"rank {rank}")
ax.set(xlabel="size of the update, as a share of the weight's", ylabel="intruders among the top 10")
ax.legend(frameon=False)
sns.despine()
plt.show()


# %% [markdown]
# A change of one direction stays invisible among the strongest vectors until it is as loud as they are; then it is one of them, all at once. A change of the same size over many directions has to be larger before any single one stands out.
# This is why few directions used loudly leave intruders, and training all weights does not.
#
# ## Exercise 2: break the measure
#
# Intruders are counted to tell whether a tuned model is still the old one. Write `unseen_change(W)`: return a weight that lies at least as far from `W` as `W` lies from zero (the Frobenius norm of the change is that of `W`, or more), and in which the count sees nothing:
# none of its ten strongest left singular vectors is an intruder at 0.6.
#
# <details><summary>Hint</summary>
#
# A weight is made of left singular vectors, singular values and right singular vectors. The count looks at one of the three, and not at its sign.
#
# </details>

# %%
def unseen_change(W):
    """Return a weight far from W whose strongest left singular vectors are all old ones.

    Args:
        W: (m, n) original weight.
    """
    raise NotImplementedError("your turn")


# %%
checks.unseen_change(unseen_change)

# %% [markdown]
# Turned into its negative, a layer says the opposite of what it said, and no intruder tells. The same holds for other right singular vectors, which make the layer listen to something else, and for other singular values. A count of intruders says how a change was made; it does not say how
# much of the old model is left. The next-token loss does.
