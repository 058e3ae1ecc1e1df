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
# # 02 · The score and its bounds
#
# <!-- badges -->
# [![Open in Binder](images/badge_binder.svg)](https://mybinder.org/v2/gh/OWNER/ntps/main?urlpath=lab/tree/notebooks/02_score_and_bounds.ipynb) [![Open in Colab](images/badge_colab.svg)](https://colab.research.google.com/github/OWNER/ntps/blob/main/notebooks/02_score_and_bounds.ipynb)
# <!-- /badges -->
#
# **Time:** 60 minutes · **Prerequisites:** [lesson 01](01_linear_derivation.ipynb).
#
# **In this lesson** you will
# - build the score from a projection, and read it through principal angles and against chance;
# - derive, step by step, how the score bounds the loss, and put raw bounds, whitened bounds and the exact excess loss side by side;
# - see why the raw bounds are so wide, and what the score is and is not invariant to;
# - see why everything is solved in float64.
#
# Symbols are explained in the [glossary](glossary.md).

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
import dataclasses

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
import torch

import ntps
from ntps.course import outcome, predict, say, show, solve, widgets
from ntps.course.widgets import COLORS, PALETTE
from ntps.scoring import read_layer

sns.set_theme(style="ticks", palette=PALETTE)
torch.manual_seed(0)  # torch uses every core; on a shared machine: torch.set_num_threads(2)
rng = np.random.default_rng(0)

# %% [markdown]
# ## 1. From two subspaces to one number
#
# Lesson 01 gave two lists of directions in the same $d$-dimensional space: $U$, what the labels want, and $V$, what next-token prediction wants. How much of the first $k_U$ columns of $U$ lies
# inside the span of the first $k_V$ columns of $V$?
#
# The [projector](glossary.md#projector) $P$ on that span takes every vector to its nearest point in it. With an orthonormal basis $Q$ of the span, from a
# [QR factorisation](glossary.md#qr-factorisation) of $V$, it is $P = Q Q^\top$; the paper writes $V V^+$ with the pseudo-inverse, which is the same matrix. The score is
#
# $$ \mathrm{NTPS}(k_U, k_V) = \frac{\lVert P U \rVert_F^2}{\lVert U \rVert_F^2} = \frac{\lVert Q^\top U \rVert_F^2}{\lVert U \rVert_F^2} \in [0, 1]. $$
#
# Two remarks. $P$ knows only the *span* of $V$, but $U$ enters with the lengths of its columns: a long $u_i$ weighs more. And if the columns of $U$ were orthonormal, the score would be the mean of
# $\cos^2 \theta_i$ over the [principal angles](glossary.md#principal-angle) $\theta_i$ between the two spans.

# %%
d, k_u, k_v = 20, 3, 6
U = rng.standard_normal((d, k_u)) * np.array([3.0, 1.0, 0.5])  # columns of different lengths
V = rng.standard_normal((d, k_v))
Q, _ = np.linalg.qr(V)
P = Q @ Q.T
by_projector = np.square(P @ U).sum() / np.square(U).sum()
by_library = ntps.ntps_table(torch.from_numpy(U), torch.from_numpy(V))[k_v - 1, k_u - 1].item()

Q_U, _ = np.linalg.qr(U)
cosines = np.linalg.svd(Q_U.T @ Q)[1]
angles = np.degrees(np.arccos(cosines))
print(f"score by projection {by_projector:.6f}, by ntps.ntps_table {by_library:.6f}")
print(f"principal angles {', '.join(f'{angle:.0f}°' for angle in angles)}: mean cos² {np.mean(cosines**2):.6f}")

# %% [markdown]
# The two differ because the columns of $U$ have different lengths. `ntps_table` gives [all pairs](glossary.md#two-way-table) $(k_U, k_V)$ at once: the squares of $Q^\top U$, summed up along both axes.
#
# ## 2. What is a high score? Chance
#
# > **Predict.** $V$ above was random, so the score cannot mean anything. What is its mean over many random $V$ of $k_V$ directions in $d$ dimensions? Does it depend on $U$?

# %%
predict("02.1 mean score of a random V, for k_V = 6 of 20")

# %%
rows = []
for rank in (1, 3, 6, 10, 15):
    for _ in range(300):
        Q, _ = np.linalg.qr(rng.standard_normal((d, rank)))
        rows.append({"k_V": rank, "score": np.square(Q.T @ U).sum() / np.square(U).sum()})
frame = pd.DataFrame(rows)

# %% tags=["hide-input"] jupyter={"source_hidden": true}
figure, ax = plt.subplots(figsize=(6.4, 3.0), layout="constrained")
sns.stripplot(frame, x="k_V", y="score", alpha=0.3, size=3, native_scale=True, ax=ax)
ax.plot([0, d], [0, 1], color="0.2", lw=1.2, label="$k_V / d$")
ax.set(xlim=(0, 16), ylim=(0, 1), xlabel="$k_V$")
ax.legend(frameon=False)
sns.despine()
show("02.1")
means = frame.groupby("k_V").score.agg(["mean", "std"]).assign(chance=lambda table: table.index / d)
outcome("02.1 mean score of a random V, for k_V = 6 of 20", means["mean"][6])
means.round(3)

# %% [markdown]
# **Answer.** The mean is $k_V / d$, whatever $U$ is: a uniformly random $P$ treats every direction alike, and its trace is $k_V$. So a score is read against its
# [chance level](glossary.md#chance-level), for instance as $(\mathrm{NTPS} - k_V/d) / (1 - k_V/d)$. The spread around the mean is another matter: with few label directions single draws lie far from it.
#
# Now real moments: the bundled model on three tasks with the same texts. *Topic* is what next-token prediction must learn; the *watermark* is a word that is plain to see and predicts nothing; *noise* is the toss of a
# coin, the [control](glossary.md#control) that nothing can predict.
#
# > **Predict.** Order the three tasks by their score in a middle layer. Where will the coin be: at chance, or elsewhere?

# %%
predict("02.2 the coin's score in a middle layer", choices=("at chance", "well above chance", "below chance"))

# %%
model = ntps.load_model("miniworld-base", dtype="float32")
names = ("topic", "watermark", "noise")
tasks = {name: ntps.load_task(f"miniworld/{name}", n=800) for name in names}
read = ntps.collect(model, tasks["topic"], progress=False)  # one pass: the texts are the same, and it reads no label
representations = {name: dataclasses.replace(read, task=task) for name, task in tasks.items()}
results = {name: ntps.score(representations[name], folds=0) for name in names}
table = pd.concat(results[name].to_dataframe().assign(task=name) for name in names)
shown = table.melt(["layer", "task"], ["ntps", "retained"], var_name="quantity", value_name="share")
shown["quantity"] = shown.quantity.map({"ntps": "NTPS", "retained": "label share retained"})

# %% tags=["hide-input"] jupyter={"source_hidden": true}
grid = sns.relplot(
    shown,
    x="layer",
    y="share",
    hue="task",
    style="task",
    col="quantity",
    kind="line",
    markers=True,
    height=2.8,
    aspect=1.05,
)
for ax in grid.axes.flat:
    ax.set(ylim=(0, 1), xticks=range(model.n_layers))
grid.axes.flat[0].axhline(table.chance.iloc[0], color="0.4", ls=":", lw=1.2)
grid.set_titles("{col_name}")
show("02.2")
over = results["noise"][2].ntps / results["noise"][2].chance
where = "well above chance" if over > 1.5 else "at chance" if over > 2 / 3 else "below chance"
outcome("02.2 the coin's score in a middle layer", where)
print(f"chance {table.chance.iloc[0]:.3f}; mean NTPS over layers: " + ", ".join(
    f"{name} {value:.2f}" for name, value in table.groupby("task", sort=False).ntps.mean().items()
))  # fmt: skip


# %% [markdown]
# **Answer.** Surprised? From layer 1 on, labels that are pure noise score well above chance, on a par with the topic. A random *subspace* would score $k_V/d$, but $U$ is not fitted in a random space: both encoders live in a state whose directions differ
# enormously in size, and the lengths and directions of $u_i$ follow that geometry. The raw score alone does not tell a learned task from a coin here. The [*label share retained*](glossary.md#retained-share) on the right does. Why the two part ways is what the rest of
# the lesson is about.
#
# ## 3. What the score bounds, step by step
#
# What do we lose when we read the labels through $V$ instead of through $U$? The [excess loss](glossary.md#excess-loss), for $k = k_U$:
#
# $$ \Delta_k = \mathrm{Loss}(V_{k_V}) - \mathrm{Loss}(U_k), \qquad \mathrm{Loss}(U_k) = \mathrm{tr} \mathbb{E}\, y y^\top - \sum_{i \le k} \lambda_i . $$
#
# **Step 1: exact.** The best linear readout of $V^\top x$ takes $\mathrm{tr}\big( (V^\top M V)^{-1} V^\top X X^\top V \big)$ off the loss (step 1 of lesson 01, with $M, X$ in the place of $C_0, C_1$). So
#
# $$ \Delta_k = \sum_{i \le k} \lambda_i - \mathrm{tr}\big( (V^\top M V)^{-1} V^\top X X^\top V \big) . $$
#
# **Step 2: whiten.** Put $\tilde U = M^{1/2} U$, which is orthonormal because $U^\top M U = I$, and let $\Pi$ be the projector on the span of $M^{1/2} V$. In these coordinates $X$ becomes $\tilde X = M^{-1/2} X$, with
# $\tilde X \tilde X^\top = \sum_i \lambda_i \tilde u_i \tilde u_i^\top$, and the trace in step 1 is $\mathrm{tr}(\Pi \tilde X \tilde X^\top)$. With $p_i = \lVert \Pi \tilde u_i \rVert^2 \in [0, 1]$, the part of the $i$-th label direction that $V$ holds,
#
# $$ \Delta_k = \sum_{i \le k} \lambda_i (1 - p_i) - \sum_{i > k} \lambda_i p_i . $$
#
# **Step 3: above.** Drop the second sum, replace every $\lambda_i$ by $\lambda_1$, and write $m = \sum_{i \le k} (1 - p_i)$ for the missing part: $\Delta_k \le \lambda_1 m$.
#
# **Step 4: below.** In the first sum $\lambda_i \ge \lambda_k$; in the second $\lambda_i \le \lambda_{k+1}$. The $p_i$ of a full orthonormal basis sum to the dimension $k_V$, so $\sum_{i > k} p_i = k_V - k + m$, and
#
# $$ \Delta_k \ge (\lambda_k - \lambda_{k+1})\, m - \lambda_{k+1} (k_V - k) . $$
#
# When $k$ is the rank of $X$, as it is by default, $\lambda_{k+1} = 0$ and this is simply $\lambda_k m \le \Delta_k \le \lambda_1 m$. (The paper takes $k_U = k_V$, and the last term is zero as well.)
#
# **Step 5: [whitened bounds](glossary.md#whitened-bounds).** $m = k (1 - \widetilde{\mathrm{NTPS}})$ with the *whitened score* $\widetilde{\mathrm{NTPS}} = \lVert \Pi \tilde U \rVert_F^2 / k$: the same score, in coordinates in which the state has no loud directions.
#
# **Step 6: [raw bounds](glossary.md#raw-bounds).** The plain score measures the missing part *before* whitening: $\sum_i \min_a \lVert u_i - V a \rVert^2 = \nu (1 - \mathrm{NTPS})$ with $\nu = \lVert U \rVert_F^2$ ([Frobenius norm](glossary.md#frobenius-norm)). After whitening it is
# $m = \sum_i \min_a \lVert M^{1/2} (u_i - V a) \rVert^2$. Since $M^{1/2}$ stretches no squared length by less than the smallest eigenvalue of $M$ and none by more than the largest, each term of the second sum lies between
# $\mu_{\min}$ and $\mu_{\max}$ times its term of the first:
#
# $$ \mu_{\min}\, \nu\, (1 - \mathrm{NTPS}) \;\le\; m \;\le\; \mu_{\max}\, \nu\, (1 - \mathrm{NTPS}) . $$
#
# Steps 3, 4 and 6 together are the paper's Theorem 2, with its constants written out.
#
# **By hand.** Take $d = 2$, $M = \mathrm{diag}(4, 1)$, one label direction $u = (\tfrac12, 1)/\sqrt 2$ (check: $u^\top M u = 1$) and $v = (1, 0)$. Then $\nu = \tfrac58$ and $\mathrm{NTPS} = \tfrac18 / \tfrac58 = 0.2$. Whitened,
# $\tilde u = (1, 1)/\sqrt 2$ and $M^{1/2} v = (2, 0)$, so $p_1 = \tfrac12$, $m = \tfrac12$ and $\Delta = \lambda/2$: with a single label direction the whitened bounds meet. The raw ones are $\lambda \cdot 1 \cdot \tfrac58 \cdot \tfrac45 = \lambda/2$ and four times that,
# twice the loss that there is to lose.


# %%
def parts(solution, k_v):
    """Return lambda, the p_i, and the explained share computed directly from M, X and V."""
    M, X = solution.pooled.M, solution.pooled.X
    U, V = solution.U, solution.V.vectors[:, :k_v]
    values, vectors = torch.linalg.eigh(M)
    half = vectors * values.sqrt() @ vectors.T  # M^(1/2)
    basis = torch.linalg.qr(half @ V)[0]
    p = (basis.T @ (half @ U.vectors)).square().sum(0)
    explained = torch.trace(torch.linalg.solve(V.T @ M @ V, V.T @ X @ X.T @ V))
    return U.eigenvalues, p, explained


view = solve(representations["topic"], layer=4)
eigenvalues, p, explained = parts(view, 16)
exact = float(eigenvalues.sum() - explained)
through_p = float((eigenvalues * (1 - p)).sum())
missing = float((1 - p).sum())
print(f"excess loss, step 1: {exact:.6f}; step 2: {through_p:.6f}")
print(f"missing part m = {missing:.3f} of {len(p)} directions")
print(f"bounds: {eigenvalues[-1] * missing:.4f} <= {exact:.4f} <= {eigenvalues[0] * missing:.4f}")

# %% [markdown]
# The whitened bounds are as tight as the label eigenvalues are equal: their ratio is $\lambda_1 / \lambda_k$.
#
# ## 4. Side by side, on real moments
#
# > **Predict.** The raw bounds multiply by $\mu_{\min}$ below and by $\mu_{\max}$ above. How many orders of magnitude will lie between them in this small model? One, three, six?

# %%
predict("02.3 orders of magnitude between the raw bounds, at least")

# %%
sides = []
for name in names:
    for scored in results[name].layers:
        for kind, (low, high) in scored.bounds.items():
            sides.append({"task": name, "layer": scored.layer, "kind": kind, "lower": low, "upper": high})
        sides.append(
            {
                "task": name,
                "layer": scored.layer,
                "kind": "exact",
                "lower": scored.excess_loss,
                "upper": scored.excess_loss,
            }
        )
sides = pd.DataFrame(sides)

# %% tags=["hide-input"] jupyter={"source_hidden": true}
figure, axes = plt.subplots(1, 3, figsize=(7.2, 3.0), sharey=True, layout="constrained")
for ax, name in zip(axes, names, strict=True):
    for kind, shift in (("raw", -0.25), ("whitened", 0)):
        part = sides[(sides.task == name) & (sides.kind == kind)]
        ax.vlines(part.layer + shift, part.lower, part.upper, color=COLORS[kind], lw=6, label=f"{kind} bounds")
    part = sides[(sides.task == name) & (sides.kind == "exact")]
    ax.plot(part.layer + 0.25, part.lower, "o", color=COLORS["exact"], ms=4.5, label="exact")
    ax.set(yscale="log", title=name, xlabel="layer", xticks=range(model.n_layers))
axes[0].set_ylabel("excess loss")
figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
sns.despine()
show("02.3")
decades = np.log10(sides.upper / sides.lower).groupby(sides.kind).agg(["min", "max"])
for kind in ("raw", "whitened"):
    print(f"{kind} bounds: {decades.loc[kind, 'min']:.2f} to {decades.loc[kind, 'max']:.2f} orders of magnitude apart")
outcome("02.3 orders of magnitude between the raw bounds, at least", decades.loc["raw", "min"])

# %% [markdown]
# **Answer.** Four to more than six orders of magnitude. Both pairs of bounds hold: the exact value always lies between them. (For the topic the whitened ones are so close that their bar is hardly more than a stroke.) But an excess loss cannot exceed the loss without any features, which is 1 for one-hot labels, and the raw upper bound is far above
# that in every layer, for every task: it is true and says nothing.
#
# ## 5. Why the raw bounds are so wide
#
# Their ratio is $\lambda_1 / \lambda_k$ times the [condition number](glossary.md#condition-number) $\kappa = \mu_{\max} / \mu_{\min}$ of $M$. Where does that come from?

# %%
spectra, conditions = [], []
for layer in representations["topic"].layers:
    pooled = solve(representations["topic"], layer).pooled
    values, vectors = torch.linalg.eigh(pooled.M)
    top = vectors[:, -1]
    spectra += [
        {"direction": i + 1, "eigenvalue of M": float(v), "layer": str(layer)} for i, v in enumerate(values.flip(0))
    ]
    centred = torch.linalg.eigvalsh(pooled.centered().M)
    conditions.append({
        "layer": layer,
        "condition number": float(values[-1] / values[0]),
        "share of the loudest direction": float(values[-1] / values.sum()),
        "of which the mean state": float((top @ pooled.mean_x) ** 2 / values[-1]),
        "condition number, centred": float(centred[-1] / centred[0]),
    })  # fmt: skip

# %% tags=["hide-input"] jupyter={"source_hidden": true}
figure, ax = plt.subplots(figsize=(6.4, 2.9), layout="constrained")
sns.lineplot(pd.DataFrame(spectra), x="direction", y="eigenvalue of M", hue="layer", ax=ax)
ax.set(yscale="log", xscale="log")
sns.move_legend(ax, "center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
sns.despine()
show("02.4")
conditions = pd.DataFrame(conditions).set_index("layer")
conditions.map("{:.2g}".format)

# %% [markdown]
# Two ends pull. At the top one [outlier direction](glossary.md#outlier-direction) holds about half of all squared length: it is almost exactly the mean state, common to all texts. At the bottom lie directions in which texts hardly differ at all. Centring takes away
# the first end and only part of the condition number. In large models single entries of the state (*channels*) can be louder still.
#
# The whitened score asks for no condition number, at the price that we compute $M^{1/2}$. And when we have $M$, $X$ and $V$ anyway, the *exact* value costs no more. That is why `ntps.score` reports it, and the
# shares explained beside it.
#
# **And the coin?** $U$ and $V$ are both divided by a Gram matrix, $M$ or $C_0$: their arrows are *long* where states hardly vary. If both mostly live in the quiet directions, they overlap whatever the labels are.
#
# > **Predict.** Take the 32 quietest of the 128 eigenvectors of $M$. What share of the squared length of the coin's $U$, and of the span of $V$, do they hold? And what score does a direction get that is drawn at random, but in *whitened* coordinates, as a coin's is?

# %%
predict("02.4 share of the coin's U in the quiet quarter, last layer")

# %%
rows = []
for layer in representations["noise"].layers:
    solution = solve(representations["noise"], layer)
    values, vectors = torch.linalg.eigh(solution.pooled.M)  # ascending: the quiet ones first
    quiet, coin = vectors[:, :32], solution.U.vectors
    basis = torch.linalg.qr(solution.V.vectors[:, :16])[0]
    generator = torch.Generator().manual_seed(0)
    drawn = (vectors / values.sqrt()) @ torch.randn(solution.d, 500, generator=generator, dtype=torch.float64)
    rows.append({
        "layer": layer,
        "U in the quiet quarter": (quiet.T @ coin).square().sum().item() / coin.square().sum().item(),
        "V in the quiet quarter": (quiet.T @ basis).square().sum().item() / 16,
        "score of the coin": solution.table[15, solution.U.rank - 1].item(),
        "score of random whitened directions": ((basis.T @ drawn).square().sum(0) / drawn.square().sum(0)).mean().item(),
    })  # fmt: skip
geometry = pd.DataFrame(rows).set_index("layer")
shown = geometry.reset_index().melt("layer", var_name="what", value_name="share")

# %% tags=["hide-input"] jupyter={"source_hidden": true}
figure, ax = plt.subplots(figsize=(6.4, 3.4), layout="constrained")
palette = [COLORS["U"], COLORS["V"], COLORS["exact"], "0.4"]
sns.lineplot(shown, x="layer", y="share", hue="what", style="what", markers=True, palette=palette, ax=ax)
ax.axhline(16 / view.d, color="0.4", ls=":", lw=1.2)
ax.set(ylim=(0, 1), xticks=range(model.n_layers))
sns.move_legend(ax, "lower center", bbox_to_anchor=(0.45, 1.0), ncol=2, title=None, frameon=False)
sns.despine()
show("02.5")
outcome("02.4 share of the coin's U in the quiet quarter, last layer", geometry["U in the quiet quarter"].iloc[-1])
print(f"a quarter of all directions holds {geometry.filter(like='quarter').min().min():.2f} or more of U and V")

# %% [markdown]
# **Answer.** About two thirds or more of both lie in the quiet quarter, so the coin's high score is geometry. $k_V/d$ (dotted) is the chance level of a random *subspace*; of random *labels* it is the last curve, more than twice as high. That curve is a mean: one coin
# is one draw, and such draws scatter about it by nearly a tenth. A score must be compared with such draws, by shuffling labels or tossing many coins.
#
# ## 6. What is invariant, and what is not
#
# Change the features that a reader sees: $x \to T x$, $s_t \to T s_t$ with an invertible $T$, while what is predicted (the next state and the label) stays in its old units. A linear reader can undo $T$, so nothing that can be *read* [changes](glossary.md#invariance).
# The moments become $T M T^\top$, $T X$, $T C_0 T^\top$, $T C_1$, and the directions $U \to T^{-\top} U$, $V \to T^{-\top} V$.
#
# > **Predict.** Take (a) a rotation, (b) random scales of the 128 features, mostly between 1/3 and 3, (c) ten times smaller values of the single loudest feature. Which of these move the raw score, the whitened score, the excess loss?

# %%
predict("02.5 the raw score is moved by", choices=("none", "(a) alone", "(b) alone", "(b) and (c)", "all three"))


# %%
def change(view, T):
    """The solution of a reader who sees T times the features."""
    C0, C1 = view.next_token.C0, view.next_token.C1
    next_token = dataclasses.replace(view.next_token, C0=T @ C0 @ T.T, C1=T @ C1)
    return ntps.solve_layer(view.states.double() @ T.T, view.targets, next_token)


width = view.d
generator = torch.Generator().manual_seed(0)
loudest = int(view.pooled.M.diagonal().argmax())
quiet = torch.ones(width, dtype=torch.float64)
quiet[loudest] = 0.1
changes = {
    "as it is": torch.eye(width, dtype=torch.float64),
    "(a) a\nrotation": torch.linalg.qr(torch.randn(width, width, generator=generator, dtype=torch.float64))[0],
    "(b) random\nscales": torch.randn(width, generator=generator, dtype=torch.float64).exp().diag(),
    "(c) one feature\nquieter": quiet.diag(),
}
rows = []
for name, T in changes.items():
    scored = read_layer(change(view, T))
    for what, value in (
        ("NTPS", scored.ntps), ("whitened NTPS", scored.ntps_whitened), ("excess loss", scored.excess_loss)
    ):  # fmt: skip
        rows.append({"change": name, "what": what, "value": value})
rows = pd.DataFrame(rows)
changed = rows.pivot(index="change", columns="what", values="value").loc[list(changes)]

# %% tags=["hide-input"] jupyter={"source_hidden": true}
figure, ax = plt.subplots(figsize=(6.6, 3.0), layout="constrained")
palette = [COLORS["ntps"], COLORS["whitened"], "0.4"]
sns.barplot(rows, x="change", y="value", hue="what", palette=palette, saturation=1, ax=ax)
ax.set(ylim=(0, 1), xlabel="", ylabel="")
sns.move_legend(ax, "lower center", bbox_to_anchor=(0.5, 1.0), ncol=3, title=None, frameon=False)
sns.despine()
show("02.6")
moved = [name[:3] for name in changed.index[1:] if abs(changed.NTPS[name] - changed.NTPS["as it is"]) > 1e-6]
outcome("02.5 the raw score is moved by", " and ".join(moved))
changed.rename(index=lambda name: name.replace("\n", " ")).round(4)

# %% [markdown]
# **Answer.** A rotation changes nothing. Random scales double the raw score, and one quiet feature moves it visibly, although no reader of the features could tell the difference; the whitened score and the excess loss stay. So raw scores of two models, or of two layers of one model, do not compare: their features
# come in different scales. A score's level, and its chance level, depend on them.
#
# (If the *predicted* states are rescaled too, next-token prediction really has another aim, because errors are weighed differently, and then $V$ itself changes a little. Exercise for the curious: put $T C_1 T^\top$ into `change`.)
#
# ## 7. Panel C: all ranks, all bounds
#
# Choose a task, a layer and both ranks in the panel. Its upper part is the table of scores for all pairs of ranks, its lower part shows raw bounds, whitened bounds and the exact excess loss over $k_V$, at the chosen $k_U$.
#
# > **Predict.** For the topic, at which $k_V$ will the score pass 0.9, and how much excess loss is left there? For the watermark, does a high score go with a small excess loss?

# %%
predict("02.6 k_V at which the topic's score passes 0.9, of 128")

# %%
panel_c = widgets.BoundsPanel(representations)
panel_c.show()

# %%
rows = []
for name in names:
    solution = solve(representations[name], layer=2)
    whole = solution.U.rank
    for k_v in range(1, solution.V.rank + 1):
        left = float(
            (solution.U.eigenvalues[:whole].sum() - solution.explained[k_v - 1]) / solution.U.eigenvalues[:whole].sum()
        )
        rows += [
            {"task": name, "k_V": k_v, "what": "NTPS", "share": float(solution.table[k_v - 1, whole - 1])},
            {"task": name, "k_V": k_v, "what": "excess loss / possible gain", "share": max(left, 0.0)},
        ]
by_rank = pd.DataFrame(rows)

# %% tags=["hide-input"] jupyter={"source_hidden": true}
grid = sns.relplot(
    by_rank, x="k_V", y="share", hue="what", style="what", col="task", kind="line", height=2.5, aspect=0.9,
    palette=[COLORS["ntps"], "0.4"],
)  # fmt: skip
grid.set_titles("{col_name}")
grid.set(ylim=(0, 1), xlabel="$k_V$")
sns.move_legend(grid, "lower center", bbox_to_anchor=(0.45, 1.0), ncol=2, title=None)
show("02.7")
passes = {}
for name in names:
    part = by_rank[by_rank.task == name].pivot(index="k_V", columns="what", values="share")
    first = int((part["NTPS"] >= 0.9).idxmax())
    left = part.loc[first, "excess loss / possible gain"]
    ceiling, passes[name] = results[name][2].ceiling, (first, left)
    say(
        f"{name}: NTPS passes 0.9 at k_V = {first}, where {100 * left:.0f} % of the possible gain is still missing; all "
        f"{view.d} directions explain {100 * ceiling:.0f} % of the label variance"
    )
outcome("02.6 k_V at which the topic's score passes 0.9, of 128", passes["topic"][0])

# %% [markdown]
# **Answer.** The score rises with $k_V$ for every task, also for the coin, which passes 0.9 first: a larger subspace holds more of anything. For the topic hardly any loss is left there; for the watermark, at as high a score, several times the share. The excess loss tells whether what that subspace holds is what the labels need, and the [ceiling](glossary.md#ceiling) how much there was to gain at all: for the coin, what so many
# features explain of so few texts by accident.
#
# ## 8. float32 against float64
#
# Moments may be added up in [single precision](glossary.md#float32); *solving* for $V$ in single precision is another matter. Whitening divides by the square roots of the eigenvalues of $C_0$, which span as many orders of magnitude as the condition number, while float32 carries about seven digits.
#
# > **Predict.** With the same moments, solved in float32 and in float64: at which $k_V$ will the scores differ, at small or at large ones?

# %%
predict("02.7 float32 moves the scores at", choices=("small and middle k_V", "large k_V", "all k_V alike"))


# %%
def solve_in(dtype, gram, cross):
    values, vectors = torch.linalg.eigh(gram.to(dtype))
    keep = values > 1e-12 * values[-1]
    whiten = vectors[:, keep] / values[keep].sqrt()
    return whiten @ torch.linalg.svd(whiten.T @ cross.to(dtype), full_matrices=False)[0]


rows = []
for layer in representations["topic"].layers:
    solution = solve(representations["topic"], layer)
    pooled, next_token = solution.pooled, solution.next_token
    by = {}
    for dtype in (torch.float32, torch.float64):
        U, V = solve_in(dtype, pooled.M, pooled.X), solve_in(dtype, next_token.C0, next_token.C1)
        by[dtype] = ntps.ntps_table(U, V)[:, -1]
    count = min(len(table) for table in by.values())
    gap = (by[torch.float32][:count] - by[torch.float64][:count]).abs()
    rows += [{"layer": str(layer), "k_V": k + 1, "difference": float(value)} for k, value in enumerate(gap)]
precision = pd.DataFrame(rows)

# %% tags=["hide-input"] jupyter={"source_hidden": true}
figure, ax = plt.subplots(figsize=(6.4, 2.8), layout="constrained")
sns.lineplot(precision, x="k_V", y="difference", hue="layer", ax=ax)
ax.set(xlabel="$k_V$", ylabel="absolute difference of scores")
ax.legend(title="layer", frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
sns.despine()
show("02.8")
low, high = (precision[side].difference.max() for side in (precision.k_V <= 64, precision.k_V > 64))
side = "small and middle k_V" if low > 1.5 * high else "large k_V" if high > 1.5 * low else "all k_V alike"
outcome("02.7 float32 moves the scores at", side)
worst = precision.loc[precision.difference.idxmax()]
print(f"largest difference {worst.difference:.3f}, in layer {worst.layer} at k_V = {int(worst.k_V)}")

# %% [markdown]
# **Answer.** At small and middle $k_V$; at the end, where $V$ spans nearly everything, not at all. Where the condition number is smallest, in layer 0, float32 would do; elsewhere it moves the score, by up to a hundredth here. Part 2 shows how small the differences
# between tasks can be. So `ntps` may *collect* in float32 and always *solves* in float64, with tolerances relative to the data.
#
# ## Take-away
#
# - NTPS is the share of the label directions' squared length inside the span of the next-token directions; chance is $k_V / d$.
# - The excess loss is known exactly. The score bounds it: tightly when whitened, hardly at all when raw, because the raw bounds carry the condition number of $M$.
# - Raw scores change with the scale of features, which no reader cares about. Do not compare them between models or layers. Differences between tasks in one layer need a control: even a coin scores above chance.
# - Report the share retained beside the score: it is between 0 and 1, invariant, and means something by itself.
# - Solve in float64.
#
# ## Quiz
#
# **1.** A score is 0.30 with $k_V = 32$ and $d = 128$. Is that high?
#
# <details><summary>Answer</summary>
#
# Chance is $32/128 = 0.25$, so it is $0.05/0.75$, about 7 % of the room above chance. Whether even that means something, a control (a coin, random weights) has to say.
#
# </details>
#
# **2.** Why does NTPS never fall when $k_V$ grows, and why does that not hold for $k_U$?
#
# <details><summary>Answer</summary>
#
# The spans of $V_1, V_2, \dots$ are nested, so each projects at least as much of $U$. A further column of $U$ adds to the numerator and to the denominator; if it lies outside the span, the ratio falls.
#
# </details>
#
# **3.** A layer has whitened bounds $[0.30, 0.31]$ and raw bounds $[0.0003, 900]$. Which of them may you use to say that the task suffers?
#
# <details><summary>Answer</summary>
#
# The whitened ones, or better the exact excess loss, which lies between. The raw ones are true but compatible with hardly any loss and with an impossible one.
#
# </details>
#
# **4.** Standardising features (dividing each by its standard deviation) is common before a linear probe. Does it change NTPS? Does it change what a least-squares probe can reach?
#
# <details><summary>Answer</summary>
#
# It changes NTPS, as any unequal rescaling may. Least squares without a penalty reaches the same loss, because the readout undoes the scales; a penalised probe does not, quite.
#
# </details>
#
# **5.** At $k_V = d$ the score is 1 for every task, the coin included. Is next-token prediction then perfect for every task?
#
# <details><summary>Answer</summary>
#
# The span of $V$ is then the whole space: nothing is lost relative to reading all features. It says nothing about how much the features know; for that there is the ceiling, the share that all $d$ directions explain.
#
# </details>
#
# ## References
#
# - Cheng, Hu, Huang, Balestriero, *Next Token Perception Score*, [arXiv 2505.17169](https://arxiv.org/abs/2505.17169) (2025): the definition of the score, and Theorem 2 for the bounds.
# - Izenman, *Reduced-rank regression for the multivariate linear model*, Journal of Multivariate Analysis 5 (1975).
# - Björck and Golub, *Numerical methods for computing angles between linear subspaces*, Mathematics of Computation 27 (1973): principal angles from a QR and an SVD.
# - Practise: [exercises 02](exercises/ex02_score_and_bounds.ipynb). Next: [03 Empirical correlations](03_empirical_correlations.ipynb).
