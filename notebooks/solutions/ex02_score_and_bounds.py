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
# # Exercises 02 · The score and its bounds
#
# <!-- badges -->
# [![Open in Binder](../images/badge_binder.svg)](https://mybinder.org/v2/gh/OWNER/ntps/main?urlpath=lab/tree/notebooks/exercises/ex02_score_and_bounds.ipynb) [![Open in Colab](../images/badge_colab.svg)](https://colab.research.google.com/github/OWNER/ntps/blob/main/notebooks/exercises/ex02_score_and_bounds.ipynb)
# <!-- /badges -->
#
# **Time:** 45 minutes · **Prerequisites:** [lesson 02](../02_score_and_bounds.ipynb).
#
# Exercise 1 builds the score and its chance level, exercise 2 checks its bounds, exercise 3 breaks it and exercise 4 breaks R². After each function a check tries it and says what is wrong, if anything is. Symbols are explained in the [glossary](../glossary.md).

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

from ntps.course import checks


# %% [markdown]
# ## Exercise 1: the score without a pseudo-inverse
#
# The paper's projector is $P = V V^+$. Write `projector(V)` without `pinv` and without inverting $V^\top V$, then `score(U, V)`, the share of $\lVert U \rVert_F^2$ inside the span of $V$, and do not form a $(d, d)$ matrix in the latter.
#
# <details><summary>Hint</summary>
#
# `np.linalg.qr(V)` returns an orthonormal basis $Q$ of the span. $\lVert Q Q^\top U \rVert_F = \lVert Q^\top U \rVert_F$: why?
#
# </details>


# %% tags=["solution"]
def projector(V):
    """Return the orthogonal projector (d, d) on the span of V's columns.

    Args:
        V: (d, k), independent columns.
    """
    Q, _ = np.linalg.qr(V)
    return Q @ Q.T


# %%
checks.projector(projector)


# %% tags=["solution"]
def score(U, V):
    """Return NTPS: the share of U's squared length inside the span of V, in [0, 1].

    Args:
        U: (d, a) label directions.
        V: (d, b) next-token directions.
    """
    Q, _ = np.linalg.qr(V)
    return np.square(Q.T @ U).sum() / np.square(U).sum()


# %%
checks.ntps(score)


# %% [markdown]
# What does it give for a $V$ that knows nothing? Write `chance_by_simulation(U, k, draws, seed)`: the scores of $U$ against `draws` random subspaces of dimension $k$, each spanned by $k$ random normal vectors.


# %% tags=["solution"]
def chance_by_simulation(U, k, draws, seed):
    """Return the scores (draws,) of U against uniformly random subspaces of dimension k.

    Args:
        U: (d, a) label directions.
        k: Dimension of the random subspaces.
        draws: How many.
        seed: Seed of the random numbers: the same seed gives the same scores.
    """
    rng = np.random.default_rng(seed)
    return np.array([score(U, rng.standard_normal((len(U), k))) for _ in range(draws)])


# %%
checks.chance_by_simulation(chance_by_simulation)


# %% [markdown]
# The score needs one QR; its chance level is $k_V/d$ for every $U$.
#
# ## Exercise 2: a bound that holds
#
# Write `excess_between_bounds(M, X, V)`, which returns `(lower, exact, upper)`: the excess loss of reading the labels through $V$ instead of through all of $U$, between its whitened bounds $\lambda_k m$ and $\lambda_1 m$, with $k$ the rank of $X$ (all
# its columns are independent here) and $m = k - \lVert \Pi \tilde U \rVert_F^2$.
#
# <details><summary>Hint</summary>
#
# Work in whitened coordinates: with $M^{1/2}$ from `eigh`, the singular values of $M^{-1/2} X$ squared are the $\lambda_i$, and its left singular vectors are $\tilde U$.
#
# </details>


# %% tags=["solution"]
def excess_between_bounds(M, X, V):
    """Return (lower, exact, upper) for the excess loss of V over U.

    Args:
        M: (d, d) pooled Gram, invertible.
        X: (d, c) cross moment, independent columns.
        V: (d, k) next-token directions.
    """
    w, Q = np.linalg.eigh(M)
    half, inverse = (Q * np.sqrt(w)) @ Q.T, (Q / np.sqrt(w)) @ Q.T
    left, sigma, _ = np.linalg.svd(inverse @ X, full_matrices=False)
    basis, _ = np.linalg.qr(half @ V)
    held = np.square(basis.T @ left).sum(axis=0)  # p_i, the part of each label direction inside V
    missing = (1 - held).sum()
    return sigma[-1] ** 2 * missing, (sigma**2 * (1 - held)).sum(), sigma[0] ** 2 * missing


# %%
checks.excess_between_bounds(excess_between_bounds)


# %% [markdown]
# ## Exercise 3: break the measure
#
# A reader sees the features multiplied by positive scales $a_1, \dots, a_d$; what is predicted, next state and label, stays in its old units. With $T = \mathrm{diag}(a)$ the moments become $T M T$, $T X$, $T C_0 T$, $T C_1$, the
# directions $T^{-1} U$ and $T^{-1} V$, and the loss does not change at all. The raw score does.
#
# Write `breaking_scale(M, X, C0, C1, k)`: return **two** sets of scales, in each of which the largest is at most a million times the smallest. With the first the raw score of $U$ (one label) against $V_k$ is at least 0.95, with the second at most 0.05.
#
# <details><summary>Hint</summary>
#
# Directions shrink where features grow. *Up*: make one feature tiny; what will all columns of $T^{-1} U$ and $T^{-1} V$ point along? *Down*: $T^{-1} u$ is at right angles to each column of $T^{-1} V$ if $\sum_i b_i u_i v_i = 0$ for the weights $b_i = 1/a_i^2 > 0$: one linear equation for each column of $V$.
# Start from $b = 1$ and lower the sum of squares of these sums by gradient descent in $\log b$; or try very many random scales and keep the best.
#
# </details>


# %% tags=["solution"]
def breaking_scale(M, X, C0, C1, k):
    """Return two sets of positive scales, (2, d): for a raw score of 0.95 or more, and of 0.05 or less.

    Args:
        M: (d, d) pooled Gram.
        X: (d, 1) cross moment of one label.
        C0: (d, d) prefix Gram.
        C1: (d, d) prefix-next moment.
        k: Next-token rank.
    """
    u = np.linalg.solve(M, X)  # spans the same as U
    w, Q = np.linalg.eigh(C0)
    T = Q / np.sqrt(w)
    V = T @ np.linalg.svd(T.T @ C1)[0][:, :k]
    up = np.ones(len(M))
    up[0] = 1e-5  # both now point along the first axis
    products = u * V / np.linalg.norm(u) / np.linalg.norm(V, axis=0)  # (d, k): u_i v_i for each column of V
    log_weights = np.zeros(len(M))
    for _ in range(5000):
        weights = np.exp(log_weights)
        weights /= weights.sum()
        slope = weights * (products @ (products.T @ weights))
        log_weights -= 50 * slope
    return up, np.exp(-(log_weights - log_weights.mean()) / 2)


# %%
checks.breaking_scale(breaking_scale)


# %% [markdown]
# What you have shown: the excess loss and its whitened bounds say something about the labels. The raw score also says something about the units of the features, so compare it only where these are the same.
#
# ## Exercise 4: R² breaks, too
#
# An R² judged on the texts that a readout was fitted on can be as large as you like. Write `impressive_noise(n, seed)`: features of shape `(n, d)`, with $d < n - 1$, and a coin for each text, such that the features know nothing of the coin and R² in sample is at least 0.9.
#
# <details><summary>Hint</summary>
#
# With $d$ random features and an intercept, R² in sample of pure noise is $d/(n-1)$ on average.
#
# </details>


# %% tags=["solution"]
def impressive_noise(n, seed):
    """Return features (n, d) and labels (n,) of 0 and 1 that have nothing to do with each other; R² in sample is 0.9.

    Args:
        n: Number of texts.
        seed: Seed of the random numbers.
    """
    rng = np.random.default_rng(seed)
    return rng.standard_normal((n, round(0.97 * n) - 1)), rng.integers(0, 2, n)


# %%
checks.impressive_noise(impressive_noise)

# %% [markdown]
# This is why every R² of this course is judged on held-out texts, and why the explained share of a coin was not zero in panel C.
