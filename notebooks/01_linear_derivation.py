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
# # 01 · The linear derivation
#
# <!-- badges -->
# [![Open in Binder](images/badge_binder.svg)](https://mybinder.org/v2/gh/OWNER/ntps/main?urlpath=lab/tree/notebooks/01_linear_derivation.ipynb) [![Open in Colab](images/badge_colab.svg)](https://colab.research.google.com/github/OWNER/ntps/blob/main/notebooks/01_linear_derivation.ipynb)
# <!-- /badges -->
#
# **Time:** 65 minutes · **Prerequisites:** [lesson 00](00_start_here.ipynb); matrices, eigenvectors, projections; no more.
#
# **In this lesson** you will
# - derive which linear directions next-token prediction wants, $V$, and which ones the labels want, $U$;
# - race the closed form against gradient descent;
# - see why the *top* eigenvectors are the ones to keep;
# - turn a small world by hand, and then look at the words of a pretrained model in $U$-space and $V$-space.
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
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
import torch

import ntps
from ntps.course import outcome, predict, say, show, solve, vocabulary, widgets
from ntps.course.widgets import COLORS, PALETTE

sns.set_theme(style="ticks", palette=PALETTE)
torch.manual_seed(0)  # torch uses every core; on a shared machine: torch.set_num_threads(2)
rng = np.random.default_rng(0)

# %% [markdown]
# ## 1. Next-token prediction in a linear world
#
# A language model turns the tokens of a text into vectors: the [hidden state](glossary.md#hidden-state)
# $h_t \in \mathbb{R}^d$ of token $t$, for $t = 1, \dots, L$. What has been read so far is summed up by the
# [prefix sum](glossary.md#prefix-sum)
#
# $$ s_t = h_1 + \dots + h_t . $$
#
# In the paper a linear model sees only $k$ directions of $s_t$, and is to predict the *next* state from them. With an [encoder](glossary.md#encoder-and-readout)
# $E$ of shape $(d, k)$ and a readout $W$ of shape $(k, d)$ the loss is
#
# $$ \mathcal{L}(E, W) = \mathbb{E} \sum_{t<L} \lVert h_{t+1} - W^\top E^\top s_t \rVert^2 , $$
#
# where $\mathbb{E}$ is the mean over texts. Expand the square, with the trace $\mathrm{tr}$, the sum of a matrix's diagonal. The data enter
# through two matrices and a constant:
#
# $$ C_0 = \mathbb{E} \sum_{t<L} s_t s_t^\top, \qquad C_1 = \mathbb{E} \sum_{t<L} s_t h_{t+1}^\top, $$
#
# $$ \mathcal{L}(E, W) = \mathbb{E} \sum_{t<L} \lVert h_{t+1} \rVert^2 - 2 \mathrm{tr}(W^\top E^\top C_1)
#    + \mathrm{tr}(W^\top E^\top C_0 E W). $$
#
# So $C_0$ (the [prefix Gram](glossary.md#prefix-gram)) and $C_1$ (the [prefix-next moment](glossary.md#prefix-next-moment))
# are all we ever need of the texts. Both are sums over texts: one pass is enough, in any order.
#
# We start in a world where everything is known. A text has a theme $z$ that persists and noise $e_t$ that is fresh at
# every token: $h_t = D z + e_t$, with $D$ of shape $(d, 3)$ and $e_t$ of covariance $N$. There are two labels; each reads the text's mean
# state along a direction of its own, plus noise.

# %%
d, k = 6, 2
D = rng.standard_normal((d, 3)) * np.array([1.2, 0.8, 0.8])  # three directions that persist
axes = np.linalg.qr(rng.standard_normal((d, d)))[0]
loud = axes * np.array([16, 12, 0.5, 0.5, 0.5, 0.5])  # noise, very loud along two axes
reads = rng.standard_normal((d, 2))  # what the two labels read
world = widgets.LinearWorld(A=D, N=loud @ loud.T, B=reads, length=8)

states, y = world.sample(20_000, seed=1)  # (texts, tokens, d) and (texts, labels)
s = states.cumsum(axis=1)  # prefix sums
C0 = np.einsum("ntd,nte->de", s[:, :-1], s[:, :-1]) / len(states)
C1 = np.einsum("ntd,nte->de", s[:, :-1], states[:, 1:]) / len(states)

exact = world.next_token  # the same matrices in theory, for infinitely many texts
for name, ours, theirs in (("C0", C0, exact.C0.numpy()), ("C1", C1, exact.C1.numpy())):
    error = np.linalg.norm(ours - theirs) / np.linalg.norm(theirs)
    print(f"{name} from {len(states):,} sampled texts: {100 * error:.1f} % away from the exact one")


# %% [markdown]
# ## 2. The best $k$ directions, in closed form
#
# **Step 1: the best readout.** For a fixed $E$ the loss is quadratic in $W$, with its minimum at $W = (E^\top C_0 E)^{-1} E^\top C_1$. Put it back:
#
# $$ \min_W \mathcal{L}(E, W) = \mathbb{E} \sum_{t<L} \lVert h_{t+1} \rVert^2
#    - \mathrm{tr}\!\big( (E^\top C_0 E)^{-1} E^\top C_1 C_1^\top E \big). $$
#
# The second term is the *gain*: what the encoder takes off the loss. It does not change when $E$ is replaced by $E R$ with an
# invertible $R$: only the [*span*](glossary.md#span) of $E$ matters.
#
# **Step 2: [whiten](glossary.md#whitening).** Because only the span matters we may choose $E$ with $E^\top C_0 E = I$, that is $E = C_0^{-1/2} \tilde E$ with $\tilde E^\top \tilde E = I$. Then the gain is
#
# $$ \mathrm{tr}\!\big( \tilde E^\top \tilde C_1 \tilde C_1^\top \tilde E \big), \qquad \tilde C_1 = C_0^{-1/2} C_1 . $$
#
# **Step 3: take the top.** For orthonormal $\tilde E$ this trace is largest when $\tilde E$ holds the top $k$ left singular vectors of $\tilde C_1$ (Ky Fan's theorem: no $k$ orthonormal directions catch more of the trace of a symmetric matrix
# than its top $k$ eigenvectors); the gain is then $\sigma_1^2 + \dots + \sigma_k^2$, the sum of the largest squared singular values.
#
# Back in the original coordinates, $V_k = C_0^{-1/2} \tilde E$ holds the top $k$ [generalized eigenvectors](glossary.md#generalized-eigenvector):
#
# $$ C_1 C_1^\top v = \lambda \, C_0 \, v, \qquad V^\top C_0 V = I, \qquad \lambda_i = \sigma_i^2 . $$
#
# In code any matrix that whitens $C_0$ does; with $C_0 = Q \mathrm{diag}(w) Q^\top$ we take $Q \mathrm{diag}(w)^{-1/2}$ and never form $C_0^{-1/2}$.
#
# Statisticians have known this problem as **[reduced-rank regression](glossary.md#reduced-rank-regression)** since Izenman (1975): regress everything on everything,
# but through a bottleneck of width $k$. The paper calls $V_k$ the autoregressive encoder; here its columns are the [next-token directions](glossary.md#next-token-directions).


# %%
def closed_form(gram, cross, k):
    """Top k generalized eigenvectors of (cross cross^T, gram), and all eigenvalues."""
    w, Q = np.linalg.eigh(gram)
    whiten = Q / np.sqrt(w)
    directions, sigma, _ = np.linalg.svd(whiten.T @ cross)
    return whiten @ directions[:, :k], sigma**2


V, eigenvalues = closed_form(C0, C1, k)
ours, library = V, ntps.autoregressive_encoder(torch.from_numpy(C0), torch.from_numpy(C1)).vectors[:, :k].numpy()
difference = np.abs(np.abs(ours) - np.abs(library)).max()  # the sign of an eigenvector is free
print(f"eigenvalues: {', '.join(f'{value:.3g}' for value in eigenvalues)}")
print(f"largest difference from ntps.autoregressive_encoder: {difference:.0e}")
assert difference < 1e-8

# %% [markdown]
# The world has three persistent directions; the eigenvalues beyond them are kept from zero by sampling noise alone. Further directions do not help. Note how unequal the first three are: what counts
# is how strong a direction is *against the noise* that lies along it.
#
# ## 3. Against gradient descent
#
# A network does not solve eigenvalue problems; it descends. Let us train $E$ and $W$ with Adam, from five random starts.
#
# > **Predict.** The loss is not convex in $(E, W)$. Will some starts get stuck above the loss of the closed form? Will one get below it?

# %%
predict("01.1 against the closed form", choices=("all starts reach it", "some get stuck above", "one gets below"))

# %%
gram, cross = torch.from_numpy(C0), torch.from_numpy(C1)
energy = float(np.square(states[:, 1:]).sum() / len(states))  # the loss of predicting zero
best = energy - eigenvalues[:k].sum()

histories = []
for start in range(5):
    generator = torch.Generator().manual_seed(start)
    E, W = (
        torch.randn(shape, generator=generator, dtype=torch.float64).mul_(0.3).requires_grad_()
        for shape in ((d, k), (k, d))
    )
    adam = torch.optim.Adam([E, W], lr=0.05)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, 1500)
    for step in range(1500):
        loss = energy - 2 * torch.trace(W.T @ E.T @ cross) + torch.trace(W.T @ E.T @ gram @ E @ W)
        adam.zero_grad()
        loss.backward()
        adam.step()
        schedule.step()
        if step % 10 == 0:
            excess = (loss.item() - best) / eigenvalues[:k].sum()
            histories.append({"step": step, "start": str(start), "excess": excess})

figure, ax = plt.subplots(figsize=(6.4, 3.2), layout="constrained")
sns.lineplot(pd.DataFrame(histories), x="step", y="excess", hue="start", ax=ax)
ax.set(yscale="log", xlabel="step of gradient descent (Adam)", ylabel="gain still missing (share)")
ax.legend(title="start", frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
sns.despine()
show("01.1")
missing = pd.DataFrame(histories).groupby("start").excess.agg(["last", "min"])
print(
    f"after descent, the share of the gain still missing is between {missing['last'].min():.0e} and {missing['last'].max():.0e}"
)
print(f"the smallest on the way is {missing['min'].min():+.0e}: the closed form is never passed")
came_out = (
    "one gets below" if missing["min"].min() < 0 else "all starts reach it" if missing["last"].max() < 0.01 else ""
)
outcome("01.1 against the closed form", came_out or "some get stuck above")

# %% [markdown]
# **Answer.** None gets below, and all end a tiny share of the gain above it. (The curves end flat because the learning rate falls to zero there; the loud
# axes make the valley narrow, and more steps would come closer.) The problem is not convex, but it has no bad local minima: every minimum is global, all other critical
# points are saddles (Baldi and Hornik, 1989), and the slow stretches of the curves are where descent passes one. The closed form
# gets there at once, and it needs the data only through $C_0$ and $C_1$.
#
# ## 4. Why the top eigenvectors
#
# > **Predict.** Keep two of the six generalized eigenvectors. How much worse is the pair with the *smallest* eigenvalues than the pair with the
# > largest? And where would the two top principal components of the past, the eigenvectors of $C_0$, come out?

# %%
predict("01.2 share of the gain, two top principal components")


# %%
def share_of_gain(directions):
    """Gain of a reader of these directions, relative to a reader of all of them."""
    inner = np.linalg.solve(directions.T @ C0 @ directions, directions.T @ C1 @ C1.T @ directions)
    return np.trace(inner) / eigenvalues.sum()


every = closed_form(C0, C1, d)[0]
random_pairs = [share_of_gain(rng.standard_normal((d, k))) for _ in range(200)]
gains = {
    "top two": share_of_gain(every[:, :2]),
    "two in the middle": share_of_gain(every[:, 2:4]),
    "bottom two": share_of_gain(every[:, -2:]),
    "principal components": share_of_gain(np.linalg.eigh(C0)[1][:, -2:]),
    "random pairs (mean)": np.mean(random_pairs),
}
figure, ax = plt.subplots(figsize=(6.4, 2.6), layout="constrained")
sns.barplot(x=list(gains.values()), y=list(gains), color="0.5", ax=ax)
ax.set(xlabel="share of the possible gain", xlim=(0, 1))
sns.despine()
show("01.2")
for name, value in gains.items():
    print(f"{name:20s}  {100 * value:5.1f} %")
outcome("01.2 share of the gain, two top principal components", gains["principal components"])

# %% [markdown]
# **Answer.** The smallest pair gains nothing, and the top principal components less than two directions drawn at random. Each eigenvalue is the gain of its direction, so the bottom of the list is where prediction has nothing to find. Principal components follow
# what is *loud*, eigenvectors of the pair $(C_1 C_1^\top, C_0)$ follow what *predicts*.
#
# This matters in practice: numerical solvers return eigenvalues in ascending order. The paper's text takes the top; the authors' released code
# (`K_sweep.py` in [github.com/Yu-AngCheng/NTPS](https://github.com/Yu-AngCheng/NTPS), commit 0f877f7) takes the
# *first* columns of an ascending solver, hence the smallest; the published figures come from it. `ntps.score(..., convention="official")` repeats that procedure, for comparison with published
# numbers only. It gives 19 scores a layer, one for each fraction of the directions that is kept. The next cell shows for three of them how far it is from the paper's text, on a bundled model.

# %%
texts = ntps.collect(
    ntps.load_model("miniworld-small"), ntps.load_task("miniworld/topic", limit=300), layers=[1], progress=False
)
conventions = {}
for fraction in (0.1, 0.25, 0.5):
    theory = ntps.score(texts, k_v=round(fraction * texts.width), folds=0).layers[0].ntps
    official = ntps.score(texts, convention="official", fraction=fraction, folds=0).layers[0].ntps
    conventions[f"{fraction:.0%} of the directions"] = {"paper's text": theory, "released code": official}
pd.DataFrame(conventions).T.round(2)

# %% [markdown]
# ## 5. What the labels want
#
# The second half is the same problem with another target. A text is represented by its [mean state](glossary.md#pooled-state) $x = s_L / L$; its [label](glossary.md#label-vector) $y \in \mathbb{R}^c$ is
# one-hot, or any real targets. Reading $y$ through $k$ directions:
#
# $$ \min_{E, W} \mathbb{E} \lVert y - W^\top E^\top x \rVert^2, \qquad M = \mathbb{E}\, x x^\top, \qquad X = \mathbb{E}\, x y^\top . $$
#
# Replace $C_0$ by the [pooled Gram](glossary.md#pooled-gram) $M$ and $C_1$ by the [cross moment](glossary.md#cross-moment) $X$, and all three steps go through: again a reduced-rank regression. $U_k$, the
# paper's perception encoder or our [label directions](glossary.md#label-directions), holds the top $k$ solutions of
#
# $$ X X^\top u = \lambda M u, \qquad U^\top M U = I, \qquad \min_W \mathcal{L}(U_k, W) = \mathrm{tr} \mathbb{E}\, y y^\top - (\lambda_1 + \dots + \lambda_k). $$
#
# > **Predict.** There are $d = 6$ directions and $c = 2$ labels. How many of the six $\lambda$ are different from zero?

# %%
predict("01.3 how many of the six are not zero")

# %%
x = states.mean(axis=1)
M, X = x.T @ x / len(x), x.T @ y / len(x)
U, label_eigenvalues = closed_form(M, X, d)
six = np.pad(label_eigenvalues, (0, d - len(label_eigenvalues)))  # the others are zero: X has two columns
print("label eigenvalues:", ", ".join(f"{value:.3g}" for value in six))
outcome("01.3 how many of the six are not zero", int((six > 1e-9).sum()))

coefficients, *_ = np.linalg.lstsq(x, y, rcond=None)  # the ordinary regression of the labels on the mean state
residual = np.square(y - x @ coefficients).sum() / len(y)
claimed = np.square(y).sum() / len(y) - label_eigenvalues[:2].sum()
print(f"least squares leaves a loss of {residual:.6f}; the formula says {claimed:.6f}")

# %% [markdown]
# **Answer.** Two: $X$ has $c$ columns, so at most $c$ eigenvalues differ from zero. Beyond that the choice of $u$ is arbitrary, and any score computed with
# such directions would be about nothing. `ntps` therefore never takes more label directions than the [rank](glossary.md#rank) of $X$, unless you ask for more.
#
# ## 6. Panel A: turn the world
#
# Now $d = 2$, and each encoder keeps one direction: $u$ for the label, $v$ for the next state. You turn the persistent direction (*next-token angle*) and the direction the label reads (*label angle*), and stretch the
# fresh noise: its variance is multiplied by the *stretch* along the horizontal axis and divided by it along the vertical one. On the left, ellipses show $M$ and $C_0$ (the latter rescaled), one standard deviation in every direction; the dashed line drops $u$ onto the
# span of $V$. The [score](glossary.md#ntps) is the share of the squared length of $u$ that survives this projection:
#
# $$ \mathrm{NTPS} = \frac{\lVert P u \rVert^2}{\lVert u \rVert^2} = \cos^2 \angle(u, v), \qquad P = \text{projector on the span of } V . $$
#
# Beside it stands the [*label share retained*](glossary.md#retained-share): what a linear reader of $v$ can explain of the label, relative to a reader of both coordinates.
#
# > **Predict.** With no stretch (1.0), what must the two angles be for a score of 0, of 1/2, of 1? Then set the stretch to 3: does $V$ still point along the persistent
# > direction? Can the score be near 0 although most of the label can still be read through $v$?

# %%
predict("01.4 angle between the two for a score of 1/2, in degrees")

# %%
panel_a = widgets.LinearWorldPanel()
panel_a.show()

# %% [markdown]
# Without sliders: the label angle runs, the persistent direction stays at 30°.

# %%
rows = []
for stretch in (1.0, 3.0):
    for angle in range(0, 181, 3):
        reading = widgets.read_world(widgets.plane_world(30, angle, stretch))
        for what, value in (("NTPS", reading.ntps), ("label share retained", reading.retained)):
            rows.append({"label angle (°)": angle, "noise": f"noise stretch {stretch:g}", "what": what, "share": value})
frame = pd.DataFrame(rows)
grid = sns.relplot(
    frame, x="label angle (°)", y="share", hue="what", style="what", col="noise", kind="line", height=2.8, aspect=1.05,
    palette={"NTPS": COLORS["ntps"], "label share retained": COLORS["V"]},
)  # fmt: skip
grid.set_titles("{col_name}")
for ax in grid.axes.flat:
    ax.axhline(0.5, color="0.6", lw=1, ls=":")
    ax.set_xticks(range(0, 181, 45))
sns.move_legend(grid, "lower center", bbox_to_anchor=(0.45, 1.0), ncol=2, title=None)
show("01.3")
gap = frame.pivot(index=["noise", "label angle (°)"], columns="what", values="share").eval(
    "`label share retained` - NTPS"
)
place = gap.abs().idxmax()
say(f"largest gap between score and retained share: {gap[place]:+z.2f}, at {place[0]}, label angle {place[1]}°")
plain = frame[(frame.noise == "noise stretch 1") & (frame.what == "NTPS")]
half = plain.loc[(plain.share - 0.5).abs().idxmin(), "label angle (°)"]
outcome("01.4 angle between the two for a score of 1/2, in degrees", abs(half - 30) % 90)

# %% [markdown]
# **Answer.** With round noise, $V$ is the persistent direction, and the score is $\cos^2$ of the angle between the two that you set: 1 when they agree, 1/2 at 45°, 0 at a
# right angle. With stretched noise $V$ turns: in this world $C_0 = a D D^\top + b N$ and $C_1 = b D D^\top$ with two numbers $a$ and $b$, so $V$ is along $C_0^{-1} D$, and
#
# $$ C_0 \, N^{-1} D = a D (D^\top N^{-1} D) + b D = (a D^\top N^{-1} D + b) D \quad\Longrightarrow\quad V \propto C_0^{-1} D \propto N^{-1} D . $$
#
# Prediction prefers what is persistent *relative to the noise*, and $V$ turns away from the noisy axis.
#
# And yes, the two curves come apart: with a score near 0 most of the label can still be read. The score compares *directions* $u$ and $v$ as arrows; the loss asks what can be *read* through $v$, and correlated features let one direction
# speak for another. How far they can differ is the subject of [lesson 02](02_score_and_bounds.ipynb).
#
# ## 7. A pretrained model: three ways to summarise the past
#
# Now $h_t$ comes from a real, if miniature, language model, trained on the bundled language. `ntps.collect` runs it once, adds up $C_0$ and $C_1$ for every layer, and keeps the mean states, from which $M$ and $X$ follow. Layer 0 is the
# embedding, the last layer is the state after the final norm.
#
# The prefix *sum* is the paper's choice. It weighs late tokens more, because $s_t$ grows. Two alternatives: the prefix *mean* $s_t / t$, and the *last* state $h_t$ alone,
# a Markov view of the text.
#
# > **Predict.** The task is the topic of a document. In layer 0 a state knows nothing but its own word. Which of the three prefixes keeps least of the topic there, and will that still hold in
# > deeper layers, where a state has read the words before it?

# %%
predict("01.5 keeps least of the topic in layer 0", choices=("sum", "mean", "last state"))

# %%
model = ntps.load_model("miniworld-base", dtype="float32")
task = ntps.load_task("miniworld/topic", n=600)
collected = {prefix: ntps.collect(model, task, prefix=prefix, progress=False) for prefix in ("sum", "mean", "last")}
representations = collected["sum"]
scores = pd.concat(ntps.score(read, folds=0).to_dataframe().assign(prefix=prefix) for prefix, read in collected.items())

figure, ax = plt.subplots(figsize=(6.4, 2.9), layout="constrained")
sns.lineplot(scores, x="layer", y="retained", hue="prefix", style="prefix", markers=True, ax=ax)
ax.set(ylim=(0, 1), xticks=range(model.n_layers), ylabel="label share retained")
ax.legend(title="prefix", frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
sns.despine()
show("01.4")
kept = scores.pivot(index="layer", columns="prefix", values="retained")
outcome("01.5 keeps least of the topic in layer 0", kept.loc[0].idxmin().replace("last", "last state"))
kept.round(2)

# %% [markdown]
# **Answer.** The last state. (The [share retained](glossary.md#retained-share) is now that of a linear reader of $V_k$, relative to a reader of all $d$ directions; $k$ is the library's default, $d/8$ or the number of classes, whichever is more.) From
# the last state alone, prediction uses grammar most (which kind of word comes next), so at the embedding little of the topic is kept; once states have read what came before, more is, though still less than through a sum or a mean.
# The mean does best up to layer 3, and as well as the sum in the last one: it removes the weight that the sum gives to long prefixes. Lesson 02 stays with the sum, as the paper does.
#
# ## 8. Words in $U$-space and $V$-space
#
# The paper's first figure asks what the two encoders look at. We repeat the idea where the answer can be checked: every word of the bundled language has a known kind (topic noun, verb, function word, ...), and many
# belong to one topic. A word's coordinates are $u_i^\top \bar h$ and $v_i^\top \bar h$, with $\bar h$ the mean hidden state of its tokens; the pictures show them
# centred, in standard deviations over the words.
# We begin with layer 0, where a state knows nothing but its own word. $V$'s first direction follows the mean state, which all texts share (the moments are not [centred](glossary.md#centring)), so the picture shows directions 2 and 3.
#
# > **Predict.** $U$ was fitted to topics. By what will it group words: by topic, by kind, or both? And $V$, whose aim is to predict which state comes next? Will it be the same in the
# > last layer, where states describe what comes *next*, not the word itself?

# %%
predict("01.6 in layer 0, U groups words", choices=("by topic", "by kind", "by both"))

# %%
kinds, topics = vocabulary.word_kinds(), vocabulary.word_topics()
words = vocabulary.word_states(model, task.texts, kinds=kinds)
groupings = {"kind": words.kinds, "topic": [topics.get(word) for word in words.words]}

solution = solve(representations, layer=0)  # U, V and what follows from them
planes = {side: widgets.plane_coordinates(words.means[0], getattr(solution, side).vectors.numpy()) for side in "UV"}
figure, axes = plt.subplots(2, 2, figsize=(7.2, 7.4), layout="constrained")
for row, (way, groups) in zip(axes, groupings.items(), strict=True):
    shown = [place for place, group in enumerate(groups) if group]
    for ax, side in zip(row, "UV", strict=True):
        ax.set(title=f"{side}-space, by {way}", xlabel=f"direction 2 of {side}", ylabel=f"direction 3 of {side}")
        sns.scatterplot(
            x=planes[side][shown, 1], y=planes[side][shown, 2], hue=[groups[i] for i in shown],
            style=[groups[i] for i in shown], s=28, linewidth=0, legend=side == "V", ax=ax,
        )  # fmt: skip
    sns.move_legend(row[1], "center left", bbox_to_anchor=(1.0, 0.5), title=None)
sns.despine()
show("01.5")

# %% [markdown]
# To put a number on it: the share of the words' variance along a direction that lies *between* groups, averaged over the first eight directions, in every layer. Words placed without regard to
# their groups would give, on average, the number of groups less one over the number of words less one.

# %%
grouped = {}
for layer in representations.layers:
    solution = solve(representations, layer)
    for name, side, first in (("U", "U", 0), ("V", "V", 0), ("V, directions 9 to 16", "V", 8)):
        places = widgets.plane_coordinates(
            words.means[layer], getattr(solution, side).vectors[:, first : first + 8].numpy()
        )
        for way, groups in groupings.items():
            grouped.setdefault((name, f"by {way}"), []).append(widgets.between_groups(places, groups).mean())
by_layer = pd.DataFrame(grouped, index=pd.Index(representations.layers, name="layer"))
for way, groups in groupings.items():
    known = [group for group in groups if group]
    print(f"by {way}, without structure: {(len(set(known)) - 1) / (len(known) - 1):.2f}")
first = by_layer["U"].loc[0]
by_both = first.min() > first.max() / 2
outcome("01.6 in layer 0, U groups words", "by both" if by_both else first.idxmax())
by_layer.round(2)

# %% [markdown]
# **Answer.** In layer 0 the two encoders have two views of the *same* states. $U$ lines words up by topic and is nearly blind to their kind; $V$ does the opposite, since the next word's
# grammar is the first thing a predictor must get right. Topic comes later in $V$'s list. That is the tension the score measures.
#
# From layer 1 on, $U$ groups words by kind, as $V$ does, and hardly by topic, although the topic can be read from every layer. This is no contradiction. $U$ is made for *mean* states, and all texts
# mix the kinds of words in about the same way, so in a mean the kinds cancel, and what all states of a text share, its topic, remains. A single word's state need not show it: from layer 1 on a state says
# above all what comes next, and the kind of a word decides that. So look at words to learn what $U$ sees in *them*, and at held-out R² to learn what it sees in texts.
#
# ## 9. Panel B: layers and ranks
#
# In the panel, the spectra show how much each direction gains, and the planes the words along the last two of the $k$ directions kept. Colour words by kind or by topic.
#
# > **Predict.** How does $V$'s spectrum fall, compared with $U$'s? Slide the rank: is there a layer in which words group clearly by topic along some direction of $V$?

# %%
predict("01.7 along V, words group clearly by topic in some layer", choices=("yes", "no"))

# %%
panel_b = widgets.SpectraPanel(representations, words, groupings)
panel_b.show()

# %%
spectra = []
for layer in representations.layers:
    solved = solve(representations, layer)
    for side, encoder in (("U", solved.U), ("V", solved.V)):
        shares = encoder.eigenvalues / encoder.eigenvalues.sum()
        spectra += [
            {"direction": i + 1, "share of the gain": float(v), "encoder": side, "layer": str(layer)}
            for i, v in enumerate(shares)
        ]
grid = sns.relplot(
    pd.DataFrame(spectra), x="direction", y="share of the gain", hue="layer", col="encoder", kind="line",
    marker="o", markersize=4, height=2.9, aspect=1.0,
)  # fmt: skip
grid.set(xscale="log", yscale="log", ylim=(1e-5, 1))
show("01.6")
by_topic = max(
    widgets.between_groups(panel_b.coordinates[layer, "V"][:, :32], groupings["topic"]).max()
    for layer in representations.layers
)
print(f"of the words' spread along a direction of V, at most {by_topic:.2f} lies between topics")
outcome("01.7 along V, words group clearly by topic in some layer", "yes" if by_topic > 0.5 else "no")

# %% [markdown]
# **Answer.** $U$'s spectrum is flat and ends at the number of classes: eight topics, all equally hard. $V$'s falls steeply: few directions do most of the predicting, and a long tail does the rest. By topic, words
# group clearly along none of the 32 directions of $V$ that you can choose, whatever the layer: less than a quarter of their spread lies between topics.
#
# **On request: a real model.** Set `real_model` to a hub name or a directory. The texts stay those of the bundled language, so kinds and topics are known; words that the model's tokenizer splits are left out.

# %%
real_model = ""  # for instance "HuggingFaceTB/SmolLM2-135M" (online), or a directory

if real_model:
    other = ntps.load_model(real_model)
    other_words = vocabulary.word_states(other, task.texts, kinds=kinds)
    other_groupings = {"kind": other_words.kinds, "topic": [topics.get(word) for word in other_words.words]}
    other_panel = widgets.SpectraPanel(ntps.collect(other, task, progress=False), other_words, other_groupings)
    display(other_panel.show())  # noqa: F821 - a notebook provides it
else:
    print("Skipped: no real model was asked for.")

# %% [markdown]
# ## Take-away
#
# - Linear next-token prediction through $k$ directions has a closed form: the top $k$ generalized eigenvectors $V_k$ of $(C_1 C_1^\top, C_0)$. Linear classification through $k$ directions has the same one, $U_k$, with $(X X^\top, M)$.
# - Both are reduced-rank regressions. An eigenvalue is the loss its direction takes away: that is why the top ones are kept.
# - Gradient descent finds the same subspace: there are saddles on the way, but no bad minima.
# - At most $c$ directions matter to the labels of $c$ classes. How many matter to the next token, the spectrum says.
# - Pretraining and task may look at the same states differently, as in layer 0 of the bundled model. The score asks how much of $U$ lies inside $V$.
#
# ## Quiz
#
# **1.** Why may we assume $E^\top C_0 E = I$ in step 2 without losing anything?
#
# <details><summary>Answer</summary>
#
# The best loss depends on the span of $E$ only: $E R$ with any invertible $R$ gives the same predictions, because the readout undoes $R$. As long as $C_0$ is invertible on that span, one basis of it satisfies the condition.
#
# </details>
#
# **2.** A task has two classes, one-hot encoded. How many label directions are there at most, and what does one of them do when the moments are not centred?
#
# <details><summary>Answer</summary>
#
# At most two. One of them follows the mean state: it explains the frequencies of the classes, which need no features at all. Centring removes it.
#
# </details>
#
# **3.** Why does $C_1$ differ from its transpose on real text, and which of the two sides is the input of the prediction?
#
# <details><summary>Answer</summary>
#
# $C_1 = \mathbb{E} \sum s_t h_{t+1}^\top$: the past stands on the left, the next state on the right. Text has a direction in time, so exchanging past and future gives another matrix. The input is the left side, hence $C_1 C_1^\top$ and not $C_1^\top C_1$.
#
# </details>
#
# **4.** Multiply all hidden states by 10. What happens to the eigenvalues of the next-token problem, to those of the label problem, and to the span of $V_k$?
#
# <details><summary>Answer</summary>
#
# The next-token eigenvalues are gains in squared units of the state: they grow by 100. The label eigenvalues are in units of the label: they stay. The spans stay too.
#
# </details>
#
# **5.** In panel A with a strong noise stretch, the score can be near 0 while most of the label's variance is still explained. How?
#
# <details><summary>Answer</summary>
#
# The two coordinates of $x$ are correlated, so reading along $v$ also tells a good deal about the value along $u$, though the two arrows are nearly at right angles. The score measures arrows, the loss measures what can be read.
#
# </details>
#
# ## References
#
# - Cheng, Hu, Huang, Balestriero, *Next Token Perception Score*, [arXiv 2505.17169](https://arxiv.org/abs/2505.17169) (2025): the two linear problems, their closed forms, and the figure of words in the two subspaces.
# - Izenman, *Reduced-rank regression for the multivariate linear model*, Journal of Multivariate Analysis 5 (1975): the closed form.
# - Baldi and Hornik, *Neural networks and principal component analysis: learning from examples without local minima*, Neural Networks 2 (1989): why descent does not get stuck.
# - Fan, *On a theorem of Weyl concerning eigenvalues of linear transformations I*, PNAS 35 (1949): the largest trace.
# - Practise: [exercises 01](exercises/ex01_linear_derivation.ipynb). Next: [02 The score and its bounds](02_score_and_bounds.ipynb).
