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
# # 03 · Empirical correlations
#
# <!-- badges -->
# [![Open in Binder](images/badge_binder.svg)](https://mybinder.org/v2/gh/OWNER/ntps/main?urlpath=lab/tree/notebooks/03_empirical_correlations.ipynb) [![Open in Colab](images/badge_colab.svg)](https://colab.research.google.com/github/OWNER/ntps/blob/main/notebooks/03_empirical_correlations.ipynb)
# <!-- /badges -->
#
# **Time:** 60 minutes · **Prerequisites:** [lesson 02](02_score_and_bounds.ipynb); you know what a rank correlation is.
#
# **In this lesson** you will
# - see what the paper's figures say, with intervals and with the corrections that twelve points need;
# - set a score against shuffled labels and against a model that was never trained;
# - run a study of models by tasks, stop it, and start it again;
# - choose the layer and the rank on the very tasks you judge on, watch the correlation swing, and learn what that choice is worth;
# - put NTPS beside LogME, H-score, nearest neighbours and the exact [explained share](glossary.md#explained-share), and beside measures that read no label at all.
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
import tempfile

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns

import ntps
from ntps.course import measurements, outcome, predict, progress, say, show, solve, widgets
from ntps.course.widgets import COLORS, PALETTE
from ntps.paper import findings, published
from ntps.report import plot_against, plot_choice, plot_options
from ntps.scoring import spectrum

sns.set_theme(style="ticks", palette=PALETTE)
pd.options.display.float_format = "{:z.2f}".format
SHORT_P = "{:.2g}".format  # a p-value is never zero, so two digits of it are shown, however small it is
# torch uses every core; on a shared machine: import torch; torch.set_num_threads(2)

RERUN = True  # False: reads the study of an earlier run instead of computing it, for a slow machine

# %% [markdown]
# ## 1. The published figures
#
# The paper scores 8 models on 12 data sets and correlates the score with the accuracy of a trained [probe](glossary.md#probe), a small classifier on the frozen model's states. Here are the authors' own numbers.
# Their scores are not the quantity that lesson 02 defines: they come from the released code, which takes the *smallest* eigenvectors of both problems, as many of $U$ as of $V$
# ([lesson 01](01_linear_derivation.ipynb), part 4). This is why so many lie near 1.
#
# > **Predict.** With 12 points, how far from zero must a rank correlation be before you would rule out luck: 0.3, 0.6, 0.9?

# %%
predict("03.1 rank correlation of 12 points that rules out luck")

# %%
published.plot(target="accuracy")
show("03.1")
table = published.correlations(n_permutations=1999)
accuracy = table[(table.target == "accuracy") & (table["view"] == "model")]
accuracy = accuracy.assign(model=[name.split("/")[-1] for name in accuracy.model]).set_index("model")
rng = np.random.default_rng(0)
by_luck = [abs(np.corrcoef(np.arange(12), rng.permutation(12))[0, 1]) for _ in range(20_000)]
print(f"rank correlations of 12 unrelated points: 95 % lie within ±{np.quantile(by_luck, 0.95):.2f}")
outcome("03.1 rank correlation of 12 points that rules out luck", np.quantile(by_luck, 0.95))
shown = accuracy[["spearman", "low", "high", "p_value", "holm", "options_borne"]]
shown.assign(
    p_value=shown.p_value.map(SHORT_P), holm=shown.holm.map(SHORT_P), options_borne=shown.options_borne.astype(int)
)

# %% [markdown]
# **Answer.** About 0.6. Each row is one model over the 12 data sets: the [rank correlation](glossary.md#rank-correlation) $\rho$ (Spearman), a 95 % interval (Bonett and Wright: $\mathrm{artanh}\,\rho \pm 1.96 \sqrt{(1 + \rho^2/2)/(n - 3)}$ with $n = 12$, taken back by
# $\tanh$), the p-value from shuffling the data sets, and that p-value corrected for having looked at 24 correlations (Holm: the smallest is multiplied by 24, the next by 23, and so on, and none may fall below the one before). After the
# correction one model of eight is left below 5 %.
#
# The intervals are wide: twelve points cannot tell a weak from a strong relation. And the last column matters more. The layer and the rank behind each score were *chosen, for each model, because they gave the largest
# correlation on these same 12 data sets*. `options_borne` says from how many unrelated options one could choose before the p-value passes 5 % (0 where it lies above that without any choice). The procedure tries 19 fractions at each layer, hundreds of options (related ones,
# so the true number is smaller, and not published). Hence the question of this lesson: **how much of such a correlation is choice?** To answer it we need scores at *all* layers and ranks: a study of our own.
#
# ### Reading a paper: whose accuracies are these?
#
# First a look at what the correlations are *with*. An accuracy over $n$ texts is a whole number of $n$-ths, so eight published accuracies with ten digits tell on how many texts they were judged: the smallest $n$ that makes all eight
# whole. The same goes for the accuracies of the figure on fine-tuning (LoRA, and the linear head that it is compared with).
#
# > **Predict.** rotten_tomatoes has 8,530 training and 1,066 test texts. On which were the probes of the picture above judged?

# %%
predict("03.2 the probes were judged on", choices=("training texts", "test texts"))

# %%
whose = findings.denominators(published.results())
whose_table = pd.DataFrame(whose.rows).set_index("dataset").astype("Int64")
films = whose_table.loc["rotten_tomatoes"]
outcome("03.2 the probes were judged on", "training texts" if films.n_accuracy == films.n_train else "test texts")
whose_table.rename(
    columns={"n_accuracy": "probe", "n_gain": "LoRA", "n_train": "training texts", "n_test": "test texts"}
)

# %% [markdown]
# **Answer.** On the texts they were fitted on, in every set whose sizes are known and differ (imdb has as many test texts as training texts): the picture above shows *training* accuracies, the figure on fine-tuning *test* accuracies. The intent set has one size in both columns: its two files look identical. And one
# set tells more than the authors can have wanted:

# %%
medical = published.results().query("dataset == 'medical'")
figure, ax = plt.subplots(figsize=(6.4, 3.4), layout="constrained")
bars = medical.melt("short", ["linear_accuracy", "lora_accuracy"], var_name="method", value_name="test accuracy")
sns.barplot(
    bars.replace({"linear_accuracy": "linear head", "lora_accuracy": "LoRA"}),
    y="short",
    x="test accuracy",
    hue="method",
    ax=ax,
)
ax.axvline(0.5, color="0.3", ls=":", label="a coin")
ax.set(ylabel="", title="medical: do two questions mean the same?")
ax.legend(frameon=False, fontsize="small", loc="upper left", bbox_to_anchor=(1, 1))
sns.despine()
show("03.2")

# %% [markdown]
# Two balanced classes, and every model is below a coin. The [exercise](exercises/ex03_empirical_correlations.ipynb) finds out why: a slip in the loader leaves one question of each pair, and each of these stands in two rows, with
# opposite labels. What holds in the paper, what does not, and the numbers for it: `ntps paper audit`.
#
# ## 2. One score, and what it is set against
#
# First one model and one task. The bundled model reads off the topic of a text almost without error, so a score of its topic directions should beat any control. [Shuffle the labels](glossary.md#permutation-null) among the texts: now they mean nothing, yet $U$ is
# still computed from them, and gets a score. 200 shuffles cost one matrix product, because of all [moments](glossary.md#moment) only $X$ changes.
#
# > **Predict.** In the middle layer, where does NTPS of the true topics lie among the scores of shuffled labels: above all of them, among them, below? And the explained share?

# %%
predict("03.3 NTPS of the true topics lies", choices=("above all shuffled ones", "among them", "below all of them"))

# %%
model = ntps.load_model("miniworld-base", dtype="float32")
topic = ntps.load_task("miniworld/topic", limit=400)
representations = ntps.collect(model, topic, progress=False)
nulls = ntps.permutation_null(representations, permutations=200)

middle = nulls[len(nulls) // 2]
figure, axes = plt.subplots(1, 2, figsize=(8.0, 2.8), layout="constrained")
for ax, name, null in zip(axes, ("NTPS", "explained share (in sample)"), (middle.ntps, middle.explained), strict=True):
    sns.histplot(null.values, bins=25, element="step", color="0.5", lw=1.5, ax=ax, label="shuffled labels")
    ax.axvline(null.observed, lw=2, color="black", label="true labels")
    ax.set(xlabel=name, ylabel="", title=f"z = {null.z:.1f}, p = {null.p_value:.3f}")
ax.axvline(0, alpha=0)
axes[0].axvline(middle.k_v / representations.width, color="0.3", ls=":", label="$k_V / d$")
figure.legend(
    *axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False, fontsize="small"
)
sns.despine()
show("03.3")
shuffled, true = middle.ntps.values, middle.ntps.observed
where = "below all of them" if true < shuffled.min() else "above all shuffled ones" if true > shuffled.max() else ""
outcome("03.3 NTPS of the true topics lies", where or "among them")

# %% [markdown]
# **Answer.** Two lessons in one picture. The null of NTPS is **not** at $k_V/d$: shuffled labels still pick directions along which texts differ, and those are not random directions. And the true topics do not stand out from it, although the
# model knows the topic. The explained share does stand out, and its null is not quite zero either: that is what fitting noise reaches with this many texts, the reason to prefer [held-out](glossary.md#held-out-share) numbers. (*z* above each picture is the true value's distance from the mean of the
# shuffled ones, in their standard deviations; $p$ is the share of shuffles that reach it, the labels as they are counted among them.)
#
# How sure are the values themselves? Score the same layer with fewer of the texts, and look at NTPS and at held-out R² with its interval:

# %%
rows = []
for n in (50, 100, 200, 400):
    labels = [label if index < n else None for index, label in enumerate(topic.labels.tolist())]
    scored = ntps.score(representations, labels=labels, layers=[middle.layer], probes=False)[middle.layer]
    r2 = scored.interval["ceiling_heldout"]
    rows.append({"texts": n, "NTPS": scored.ntps, "R²": r2["estimate"], "low": r2["low"], "high": r2["high"]})
by_number = pd.DataFrame(rows).set_index("texts")
print(f"NTPS from {by_number.NTPS.min():.2f} to {by_number.NTPS.max():.2f}, for the same model, layer and task")
by_number

# %% [markdown]
# R² grows with the texts that a readout can learn from, and its interval says what such readouts reach on *other* texts of the kind. NTPS moves with their number, too, but not towards a value that an interval around it would hold: $U$
# is fitted to the texts, and with few of them it is fitted to their accidents. So NTPS is reported with its number of texts and its null, without an interval, and compared at equal numbers only.
#
# ## 3. A study
#
# Now a grid: two checkpoints of the bundled model (fully trained, and early in training) on ten [tasks](glossary.md#bundled-world), with a [control](glossary.md#control) of the same architecture with fresh weights. Each cell (a model on a task) is one pass over the texts; scores at every layer
# and rank, nulls, intervals, probes and the other measures all come from it. A finished cell is a file. Kill the study, start it again with the same line, and it goes on.
#
# On the command line:
#
# ```bash
# ntps study --model miniworld-base --model miniworld-base@step150 --task miniworld/topic --task miniworld/tense ... --limit 300 --output study
# ```

# %%
MODELS = ["miniworld-base", "miniworld-base@step150"]
NAMES = ["topic", "tense", "person", "register", "sentiment", "intent", "length", "parity", "agreement", "watermark"]
TASKS = ["miniworld/" + name for name in NAMES]
settings = ntps.StudySettings(limit=300, permutations=100)
if RERUN:
    with progress(), tempfile.TemporaryDirectory() as folder:  # half a minute to a minute on one quiet core
        study = ntps.run_study(MODELS, TASKS, output=folder, settings=settings, progress=True)
else:
    study = measurements.lesson_study()
study.table("balanced_accuracy").T

# %% [markdown]
# This is what we want to predict: the balanced accuracy of a cross-validated linear probe of the last layer, the mean over classes of the share of their texts that it gets right (plain accuracy would call a probe good that always
# names the largest class). For the trained model four tasks of two classes (sentiment, parity, agreement and the watermark) are near one half, which is guessing: their order among themselves is noise, and no score can go with it. (Intent has four classes; it is not far above a quarter.) Nothing in this table depends on where the score is read. The probe reads one half of the texts, every score the other half: on the same texts, probe and score would seem to go together even for labels without meaning, because
# both find the same accidents.
#
# ## 4. Is it pretraining at all?
#
# > **Predict.** For how many of the ten tasks does a network with *fresh* weights explain something, too?

# %%
predict("03.4 tasks of ten that fresh weights explain in part")

# %%
frame = study.frame()
trained = frame[frame.model == "miniworld-base"].set_index("task")
trained.index = [name.removeprefix("miniworld/") for name in trained.index]
columns = {"explained_heldout": "pretrained, through V", "explained_heldout_random": "fresh weights, through V",
           "ceiling_heldout_random": "fresh weights, all directions"}  # fmt: skip
figure, ax = plt.subplots(figsize=(7.0, 3.4), layout="constrained")
bars = trained[list(columns)].rename(columns=columns)
bars.plot.barh(ax=ax, width=0.75, color=[COLORS["V"], "0.5", "0.8"], legend=False)
ax.axvline(0, color="0.3", lw=0.8)
ax.invert_yaxis()
ax.set(xlabel="R² on held-out texts", ylabel="")
figure.legend(frameon=False, fontsize="small", loc="outside lower center", ncols=3)
sns.despine()
show("03.4")
some = trained.index[trained.explained_heldout_random > 0.05]
more, less = trained.index[trained.explained_gain > 0.05], trained.index[trained.explained_gain < -0.05]
say(f"fresh weights explain more than 5 % of: {', '.join(some)}")
outcome("03.4 tasks of ten that fresh weights explain in part", len(some))
say(f"through V, pretraining adds more than 5 % to: {', '.join(more)}")
say(f"through V, pretraining takes 5 % or more from: {', '.join(less)}")
values, options = study.options("explained_heldout")
depths = {
    option["depth"]: value for option, value in zip(options, values[:, 0], strict=True) if option["share"] == 1 / 8
}
tense = {depth: value[NAMES.index("tense")] for depth, value in depths.items()}
print("tense through V, by depth:")
print(", ".join(f"{100 * depth:.0f} %: {value:z.2f}" for depth, value in tense.items()))

# %% [markdown]
# **Answer.** For half of them. A random network is not blank: words enter as vectors, and the mean of a text's random vectors still depends on which words are in it, and how often: it is a *bag of words*, without their order. Whatever part of a label depends on *which* words occur shows here, too. Only the difference is pretraining's.
# And the difference can be negative: pretraining turns $V$ towards what predicts the next word, and away from what predicts nothing, such as the watermark.
#
# Where is *tense*, which decides the form of every verb to come? The last line tells: the study reads all models at half their depth, and there (as at a quarter) $V$ does not hold the tense, which it holds at the embedding and in the last two layers. Read one layer, and you
# conclude that pretraining cares little for tense. Choosing the layer is not innocent, and this brings us to the next part.
#
# ## 5. The trap: choosing on the points one judges on
#
# Seven ranks at five depths make 35 scores for each model and task, and 35 correlations with accuracy. (At the largest rank, all directions, NTPS is 1 for every task and goes with nothing; the maps show 0.00 there. So 30 of them count.) Each is honest alone.
#
# > **Predict.** If the score had nothing to do with accuracy, how large would the *best* of these correlations be (in absolute value), over ten tasks?
#
# Slide layer and rank; then let the tasks be shuffled, so that there is nothing to find, and look again. The panel takes **one** layer and rank for both models.

# %%
predict("03.5 typical best correlation of chance")

# %%
panel_d = widgets.SelectionPanel(study)
panel_d.show()

# %%
figure, axes = plt.subplots(1, 2, figsize=(10.0, 3.4), layout="constrained")
plot_options(study, "ntps", axes[0])
plot_options(study, "ntps", axes[1], permute=1)
show("03.5")
figure, ax = plt.subplots(figsize=(5.2, 3.4), layout="constrained")
plot_options(study, "explained_heldout", ax)
show("03.6")
figure, axes = plt.subplots(1, 2, figsize=(9.0, 3.2), layout="constrained")
plot_choice(study, "ntps", axes[0])
plot_choice(study, "explained_heldout", axes[1])
sns.despine()
show("03.7")
correlations = study.correlations(n_permutations=999)
one, own = panel_d.selections["NTPS", "as they are"], correlations["ntps:same_tasks"]
for whose_choice, best, typical, p in (
    ("one choice for both models", abs(one.spearman), np.median(one.null), one.p_value),
    ("a choice for each model", abs(own["spearman"]), own["null_quantiles"][1], own["p_value"]),
):
    print(f"{whose_choice}: best |Spearman| of NTPS {best:.2f};")
    print(f"  on shuffled tasks typically {typical:.2f}, p = {p:.2g}")
outcome("03.5 typical best correlation of chance", np.median(one.null))

# %% [markdown]
# **Answer.** About 0.5 with one choice for both models, as in the panel; about 0.7 if each model has a choice of its own, as in the paper and in the figure above: more freedom, a higher best. The grey histogram is the best correlation when the tasks are
# shuffled and the choice is repeated: what choosing is worth. A chosen correlation means something only if it lies to the right of it, and the p-value counts exactly that. NTPS does not; R² through $V$ does.
#
# The other cure is to choose elsewhere: take a task out, choose layer and rank on the others, and use the choice for the one left out.

# %%
names = {"fixed": "fixed", "same_tasks": "chosen on the same tasks", "held_out_task": "chosen without the task",
         "held_out_model": "chosen without the model"}  # fmt: skip
rows = []
for key, entry in correlations.items():
    name, _, how = key.partition(":")
    rows.append({"predictor": name, "layer and rank": names[how or "fixed"], "Spearman": entry["spearman"],
                 "low": entry["interval"][0], "high": entry["interval"][1], "p": entry["p_value"]})  # fmt: skip
found = pd.DataFrame(rows)
chosen = found[found.predictor.isin(["ntps", "explained_heldout"])]
chosen.assign(p=chosen.p.map(SHORT_P)).set_index(["predictor", "layer and rank"])

# %% [markdown]
# Chosen elsewhere, R² through $V$ still goes with accuracy; NTPS does in no row: each of its p-values is far above 5 %. In the rows *chosen on the same tasks* read the p-values,
# not the intervals, which do not account for the choice.
#
# ## 6. Beside other measures
#
# Others have asked the same question with other numbers, from the same features: **LogME** (the log evidence per text of a Bayesian linear readout, its two variances chosen to make it largest), the **H-score**, which is the variance between classes of
# whitened features,
#
# $$ \mathrm{H} = \mathrm{tr}\big( \mathrm{Cov}(x)^{-1} \, \mathrm{Cov}(\mathbb{E}[x \mid y]) \big), $$
#
# and the accuracy of **nearest neighbours**, less that of naming the largest class. In the picture both R² are of held-out texts, and the [explained](glossary.md#explained-share) and the [retained share](glossary.md#retained-share) are in sample;
# *above chance* is NTPS rescaled so that $k_V/d$ is 0, *in z* its distance from shuffled labels in their standard deviations; the *shrunk* H-score has a steadier estimate of $\mathrm{Cov}(x)$. All at one fixed layer and, where there is a rank, at $k_V = \max(k_U, d/8)$, set before looking.
#
# > **Predict.** NTPS looks at labels *and* next-token prediction, the others at labels alone. Which correlates best with the probe?

# %%
PREDICTORS = {
    "ntps": "NTPS",
    "logme": "LogME",
    "hscore": "H-score",
    "knn": "nearest neighbours",
    "ceiling_heldout": "R² of all directions",
}
predict("03.6 goes best with the probe", choices=tuple(PREDICTORS.values()))

# %%
MEASURES = PREDICTORS | {
    "explained": "explained share",
    "retained": "retained share",
    "explained_heldout": "R² through V",
    "explained_gain": "R² through V, less fresh weights'",
    "hscore_shrunk": "H-score, shrunk",
    "above_chance": "NTPS above chance",
    "ntps_z": "NTPS in z",
}
fixed = found[found["layer and rank"] == "fixed"].sort_values("Spearman").reset_index(drop=True)
figure, ax = plt.subplots(figsize=(7.6, 4.2), layout="constrained")
ax.hlines(fixed.index, fixed.low, fixed.high, color="0.6", lw=2)
ax.scatter(fixed.Spearman, fixed.index, zorder=3)
ax.set_yticks(fixed.index, [MEASURES[name] for name in fixed.predictor])
ax.axvline(0, color="0.3", lw=0.8)
ax.set(
    xlim=(-1, 1.02), xlabel="Spearman with the probe's balanced accuracy", title="Mean of two models, 95 % intervals"
)
sns.despine()
show("03.8")
outcome("03.6 goes best with the probe", MEASURES[fixed.predictor.iloc[-1]])
figure, axes = plt.subplots(1, 2, figsize=(9.4, 3.6), layout="constrained")
plot_against(study, "ntps", axes[0])
plot_against(study, "explained_heldout", axes[1])
sns.despine()
show("03.9")

# %% [markdown]
# **Answer.** R² of all directions and nearest neighbours: both are judged on texts that they have not seen, which is the probe's own question. Most intervals overlap: ten tasks do not rank a dozen measures. What they do show is a difference in kind: raw NTPS divides by
# $\lVert U \rVert_F^2$, asks only *where* the label directions point, and forgets how much there is to explain at all.
#
# ### Without any labels
#
# Some measures read the states alone, from their singular values or from the eigenvalues of their covariance: the **[effective rank](glossary.md#effective-rank)** (RankMe: how many directions the spread amounts to), the **decay** of the eigenvalues (how steeply they fall) and the share of the **loudest** direction. Cheap, and tempting: a model whose
# states spread over many directions must know more?
#
# > **Predict.** Which checkpoint has the largest effective rank: fresh weights, early in training, or the trained model? Which reads the topic best?

# %%
predict("03.7 largest effective rank", choices=("fresh weights", "early", "trained"))

# %%
checkpoints = {"fresh weights": "miniworld-base@step0", "early": "miniworld-base@step150", "trained": "miniworld-base"}
watermark = ntps.load_task("miniworld/watermark", limit=400)  # the same texts with other labels
rows = []
for when, name in checkpoints.items():
    read = ntps.collect(ntps.load_model(name, dtype="float32"), topic, progress=False)
    scored = {
        task.name.split("/")[1]: ntps.score(read, labels=task.labels, probes=False) for task in (topic, watermark)
    }
    for layer in read.layers:
        spread = spectrum(solve(read, layer).states.double().numpy()).to_dict()
        rows += [{"model": when, "layer": layer, "task": task, "R²": result[layer].ceiling_heldout, **spread}
                 for task, result in scored.items()]  # fmt: skip
label_free = pd.DataFrame(rows)
grid = sns.relplot(
    label_free, x="effective_rank", y="R²", hue="model", style="model", col="task", s=60, height=2.8, aspect=1.1,
    palette=["0.6", "C1", "C0"],
)  # fmt: skip
grid.set_titles("{col_name}")
grid.set_axis_labels("effective rank", "R², held out")
show("03.10")
spread = label_free.groupby("model").effective_rank.mean()
outcome("03.7 largest effective rank", spread.idxmax())
label_free.groupby("model", sort=False)[["effective_rank", "decay", "loudest"]].mean()

# %% [markdown]
# **Answer.** Fresh weights have the largest effective rank in every layer, and read the topic worst. Training *narrows* the states to what the next word needs. But narrower is not better either: the early checkpoint is the narrowest on average, and reads
# the topic far worse than the trained one. And a spectrum has one value for all tasks: among the trained model's layers the one of the largest effective
# rank reads the watermark, the others do not, while the topic is read from all alike. Without labels nobody can know which of the two you have.
#
# ## 7. The same on a real model
#
# A bundled model in a made-up world is a clean case. Here is the study of a real one, Gemma 3 270M, on five public sets of English texts, and of a second one in a line at the end. It takes more than an hour and models of a gigabyte, so it was run before, with the command
# printed below; its table comes with the package. As in part 3, scores read one half of the texts and the probe the other, so 250 texts meet 640 directions. In the table, *all* and *through V* are held-out R², *fresh* that of fresh weights, and each *p* comes from shuffled labels.
#
# > **Predict.** On how many of the five sets does NTPS of the true labels beat shuffled labels at $p < 0.05$? On how many does R² of all directions?

# %%
predict("03.8 sets of five on which NTPS beats shuffled labels")

# %%
both = measurements.real_study()
say(both.attrs["command"])
real, other = both[both.model == "gemma-3-270m"], both[both.model == "smollm2-135m"]
columns = {"accuracy": "probe", "majority_rate": "largest class", "balanced_accuracy": "balanced",
           "ceiling_heldout": "all", "ceiling_heldout_p": "p, all", "ceiling_heldout_random": "fresh, all",
           "explained_heldout": "through V", "explained_heldout_random": "fresh, through V",
           "ntps": "NTPS", "ntps_p": "p, NTPS", "chance": "chance"}  # fmt: skip
shown = real.assign(**{name: real[name].map(SHORT_P) for name in ("ceiling_heldout_p", "ntps_p")})
shown.set_index("task")[list(columns)].rename(columns=columns)

# %%
figure, ax = plt.subplots(figsize=(6.6, 3.0), layout="constrained")
places = range(len(real))
ax.barh(places, real.ceiling_heldout, color="0.85", label="all 640 directions, with 95 % interval")
ax.hlines(places, real.ceiling_heldout_low, real.ceiling_heldout_high, color="0.5", lw=1)
ax.barh(places, real.explained_heldout, height=0.5, color=COLORS["V"], label="through $V$, 80 directions")
ax.plot(real.ceiling_heldout_random, places, "|", color="0.5", ms=20, mew=2, label="all, fresh weights")
ax.plot(real.explained_heldout_random, places, "k|", ms=14, mew=2, label="through $V$, fresh weights")
ax.plot(real.ntps, places, "D", color=COLORS["ntps"], mec="white", ms=8, label="NTPS")
ax.axvline(real.chance[0], color=COLORS["ntps"], ls=":", lw=1)
ax.set_yticks(places, [f"{row.task}\nprobe {row.accuracy:.2f}" for row in real.itertuples()], fontsize="small")
ax.invert_yaxis()
ax.set(xlabel="R² on held-out texts; NTPS", xlim=(None, 1))
ax.legend(frameon=False, fontsize="small", loc="upper center", bbox_to_anchor=(0.45, -0.28), ncols=2)
sns.despine()
show("03.11")
outcome("03.8 sets of five on which NTPS beats shuffled labels", int((real.ntps_p < 0.05).sum()))
print(f"NTPS beats shuffled labels (p < 0.05) on {(real.ntps_p < 0.05).sum()} of {len(real)} sets, "
      f"R² of all directions on {(real.ceiling_heldout_p < 0.05).sum()}.")  # fmt: skip
for how, column in (("all directions", "ceiling_heldout_random"), ("V", "explained_heldout_random")):
    print(f"Fresh weights explain more than 5 % through {how} on {(real[column] > 0.05).sum()} of them.")
print(f"SmolLM2 135M: NTPS beats shuffled labels on {(other.ntps_p < 0.05).sum()} of {len(other)} sets, "
      f"R² of all directions on {(other.ceiling_heldout_p < 0.05).sum()}.")  # fmt: skip

# %% [markdown]
# **Answer.** On none, and on all five. The probe reads every set above its largest class, and R² of all directions lies above each of 200 shuffles, on all five. Raw NTPS does so on none: it lies where shuffled labels lie or below them, and far below $k_V/d$, because with 250 texts in 640 directions
# $U$ is fitted to the accidents of the texts (part 2). As in the bundled world, it does not know that there is something to explain. $V$, an eighth of the directions, reads between a third and two thirds of what all of them read.
# SmolLM2 135M, a model of another family, gives the same counts: none, and all five.
#
# Fresh weights read unwanted mail in part, since single words give it away, and of the other sets a tenth at most: the rest is pretraining's.
#
# Five sets carry no rank correlation worth printing: its 95 % interval would span most of the line from -1 to 1.
#
# ## 8. What we would tell a practitioner
#
# 1. Begin with **R² on held-out texts**, next to that of fresh weights: what the layer knows. It goes with a probe's accuracy on other texts, so `ntps score` marks the best layer by it, and the layers that cannot be told from it. Then read R² through $V$ at a
# fixed rank: if it is near that of all directions, next-token prediction kept what your labels need.
# 2. Never compare raw NTPS between layers or models, and never read it against $k_V/d$ alone: shuffle the labels.
# 3. Do not choose the layer on the tasks you report. If you must, choose on other tasks, or repeat the choice under a null.
# 4. If you only want to know how good a probe will be, stop at R² of all directions, or train the probe. R² through $V$ tells you *why*.
#
# ## Take-away
#
# - Twelve points give wide intervals; one model's rank correlation of 0.6 is compatible with almost none and with almost perfect.
# - A null must repeat what was done: shuffled labels for a score, shuffled tasks *and the choice* for a chosen correlation.
# - NTPS has a null of its own, far from $k_V/d$; a task that the model solves need not beat it.
# - Fresh weights explain part of several tasks that hang on single words; the difference is what pretraining adds, or takes.
# - Held-out R² goes with the probe's accuracy on other texts; the correlation of raw NTPS changes sign from layer to layer. A spectrum that reads no label cannot tell which task is meant.
#
# ## Quiz
#
# **1.** A score's permutation p-value is 0.005 with 200 shuffles. Could it be smaller with the same data?
# <details><summary>Answer</summary>
#
# Yes, with more shuffles: the smallest possible value is one over the number of shuffles plus one, because the labels as they are count as one of them. It is never zero.
#
# </details>
#
# **2.** Why are the *tasks* shuffled, in all models alike, and not all the cells of the table?
# <details><summary>Answer</summary>
#
# All models see the same tasks, and a task that is easy for one is easy for all. Shuffling cells freely would treat ten models as ten times the evidence and make p-values far too small.
#
# </details>
#
# **3.** You report the best of 35 correlations with its usual 95 % interval. What is wrong with the interval?
# <details><summary>Answer</summary>
#
# It describes one correlation fixed in advance. The best of many lies high by selection, so the interval is centred too far out and does not cover at the stated rate.
#
# </details>
#
# **4.** The explained share in sample is 0.10 with 16 directions and 300 texts, and its null has mean 0.05. What does a held-out share likely say?
# <details><summary>Answer</summary>
#
# About 0. Half of the value is what 16 directions explain of pure noise in 300 texts, and a held-out share does without it. It also pays for it: a readout that was fitted to noise adds errors of about the same size on
# new texts, so that the optimism counts twice, 0.10 - 2 x 0.05.
#
# </details>
#
# **5.** A task's explained share is the same for fresh and for pretrained weights. Is the score useless there?
# <details><summary>Answer</summary>
#
# It says that pretraining added nothing a linear readout of $V$ could use: the words alone carry the labels. That is an answer, and one that the score without its control would have hidden.
#
# </details>
#
# ## References
#
# - Cheng, Hu, Huang, Balestriero, *Next Token Perception Score*, [arXiv 2505.17169](https://arxiv.org/abs/2505.17169) (2025): the experiments section, and the figures read in part 1.
# - You, Liu, Wang, Long, *LogME: Practical Assessment of Pre-trained Models for Transfer Learning*, ICML 2021.
# - Bao et al., *An Information-Theoretic Approach to Transferability in Task Transfer Learning*, ICIP 2019 (H-score); Ibrahim et al., *Newer is not always better*, 2021 (its shrinkage).
# - Bonett and Wright, *Sample size requirements for estimating Pearson, Kendall and Spearman correlations*, Psychometrika 65, 2000: the intervals.
# - Garrido, Balestriero, Najman, LeCun, *RankMe: Assessing the Downstream Performance of Pretrained Self-Supervised Representations by Their Rank*, ICML 2023: the effective rank.
# - Practise: [exercises 03](exercises/ex03_empirical_correlations.ipynb). Next: [04 LoRA effects](04_lora_effects.ipynb).
