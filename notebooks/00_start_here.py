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
# # 00 · Start here
#
# <!-- badges -->
# [![Open in Binder](images/badge_binder.svg)](https://mybinder.org/v2/gh/OWNER/ntps/main?urlpath=lab/tree/notebooks/00_start_here.ipynb) [![Open in Colab](images/badge_colab.svg)](https://colab.research.google.com/github/OWNER/ntps/blob/main/notebooks/00_start_here.ipynb)
# <!-- /badges -->
#
# **Time:** 20 minutes · **Prerequisites:** you can read a few lines of Python; nothing else.
#
# **In this lesson** you will
#
# - see which question the *Next Token Perception Score* answers;
# - score a small language model on a task that its pretraining taught it, and on one that it did not;
# - read the table and the pictures, and the trap they set;
# - learn which two lines to change for your own model and texts.
#
# Words and symbols are explained in the [glossary](glossary.md). Run the cells from the top with Shift+Enter.
# Where a lesson says **Predict**, the cell below it takes your guess; it is kept in `predictions.json` beside the notebook and shown again with the result. You may
# skip it.

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
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns

import ntps
from ntps.course import outcome, predict, say, show
from ntps.course.widgets import COLORS, PALETTE

sns.set_theme(style="ticks", palette=PALETTE)
# torch uses every core; on a shared machine add: import torch; torch.set_num_threads(2)

# %% [markdown]
# ## The question
#
# A language model was trained on one thing only: to guess the next [token](glossary.md#token). You have texts with labels (what is this
# mail about, is this review kind) and want a classifier. **Did guessing the next token teach the model what your
# labels need?** If it did, a simple [linear readout](glossary.md#linear-readout) of the model's states will do. If not, expect to train the model further.
#
# The score looks at the model's [hidden states](glossary.md#hidden-state), one vector of numbers per token, and compares two small sets of
# directions in that space:
#
# - **V**, the [next-token directions](glossary.md#next-token-directions): those which best predict the next state from the states before it;
# - **U**, the [label directions](glossary.md#label-directions): those which best predict your labels.
#
# The *Next Token Perception Score* ([NTPS](glossary.md#ntps)) is the share of U that lies inside V: 0 when the labels live elsewhere,
# 1 when V holds all that U needs. Both sets come from closed formulas: no training, one pass over the texts.
# [Lesson 01](01_linear_derivation.ipynb) derives them.
#
# ## A world that we know
#
# Real models learn from text that nobody has read in full. To see what the score does, we start in a small [made-up
# world](glossary.md#bundled-world): its documents hide known factors (a topic, a tense, a mood, ...), and a miniature model was [pretrained](glossary.md#pretraining) on them and on nothing else.

# %%
model = ntps.load_model("miniworld-base", dtype="float32")  # stored in 16 bits; a CPU is faster with 32
topic = ntps.load_task("miniworld/topic", n=1000)

say(model, topic, f"Topics: {', '.join(topic.classes)}")
for text, label in zip(topic.texts[:2], topic.labels[:2], strict=True):
    print()
    say(f"[{topic.classes[label]}]  {text[:230]} ...")

# %% [markdown]
# ## A task that pretraining taught
#
# The topic decides which nouns and verbs can follow, so whoever guesses next words well has to find out the topic.
#
# > **Predict.** The model's states have 128 directions. Keep only the 16 that next-token prediction uses most. How much of what
# > tells the eight topics apart survives: nearly nothing, about half, nearly all?

# %%
predict("00.1 of the topic survives", choices=("nearly nothing", "about half", "nearly all"))

# %%
representations = ntps.collect(model, topic, progress=False)  # one pass over the texts
result = ntps.score(representations)
kept = result.layers[-1].explained_heldout / result.layers[-1].ceiling_heldout
outcome("00.1 of the topic survives", ["nearly nothing", "about half", "nearly all"][int(3 * kept)])
result

# %% [markdown]
# **How to read the table.** One row per [layer](glossary.md#layer): 0 is the word embedding, the last row is what the model predicts from.
#
# | column | question it answers | range |
# |---|---|---|
# | R² | how much better than the label frequencies does a readout of all directions predict **texts it has not seen** ([held out](glossary.md#held-out-share))? | up to 1 |
# | through V | and a readout of the first $k_V$ directions of V? | up to 1 |
# | accuracy | for which share of those texts does the readout of all directions name the right label? | 0 to 1 |
# | NTPS | how much of U lies inside V? | 0 to 1 |
# | chance | what would a random V of that size get? | $k_V/d$ |
#
# Here $d$ is the number of directions (the width of the states) and $k_V$ the number of next-token directions that we keep.
# Trust the first two columns first: 1 is perfect, 0 is no better than knowing how frequent each label is, and a value a little
# below 0 means that the readout learned noise. *R²* says what the layer holds, *through V* what next-token prediction uses of it. A
# star marks the layer that holds most, `=` those that tie with it, within one standard error.
#
# The sentences below the table say the same in words, with a 95 % interval in brackets. They also name three accuracies to compare: that
# of a [logistic probe](glossary.md#probe) of the states, that of [TF-IDF](glossary.md#tf-idf), which counts the words of a text and needs no language model,
# and that of always naming the commonest label.
#
# **Answer.** About half: in every layer the first 16 directions of V read roughly half of what all 128 read, and all 128 read nearly
# everything. The layers differ so little in R² that it hardly matters here which one has the star. Below we therefore compare in the *last* layer,
# the one that the model predicts from. The picture shows four of the columns:

# %%
result.plot()
show("00.1")

# %% [markdown]
# ## A task that pretraining did not teach
#
# In the same documents, one sentence is stamped with "ah" or with "oh". Every reader sees which, yet it predicts no other word.
# This is the *watermark* task.
#
# > **Predict.** Will R² through V be higher or lower than for the topic? And the NTPS itself?

# %%
predict("00.2 NTPS of the watermark", choices=("lower than that of the topic", "higher than that of the topic"))

# %%
watermark = ntps.load_task("miniworld/watermark", n=1000)
stamped = ntps.score(ntps.collect(model, watermark, progress=False))
print(stamped)

# %%
last = model.n_layers - 1
print(f"In layer {last}, the last one:")
for name, scored in (("topic", result[last]), ("watermark", stamped[last])):
    print(
        f"{name:9s}  NTPS {scored.ntps:.2f}   R² through V {scored.explained_heldout:z5.2f}   "
        f"through all {scored.d} directions {scored.ceiling_heldout:z5.2f}"
    )
which = "higher" if stamped[last].ntps > result[last].ntps else "lower"
outcome("00.2 NTPS of the watermark", f"{which} than that of the topic")

# %% [markdown]
# **Answer.** R² says what we hoped: the next-token directions tell the topic, and nothing about the watermark.
# But look at NTPS alone: it is *larger* for the watermark. This is the trap. The last layer does not hold these labels, so U is
# fitted to noise; and both U and V point mostly in directions along which the states hardly vary, whatever the labels are, so they
# overlap ([lesson 02](02_score_and_bounds.ipynb), part 5, shows why). So:
#
# **The raw score says how two sets of directions overlap; whether those directions say anything about the labels, only held-out R²
# tells.**
#
# ## Two controls
#
# A number deserves trust when it falls where it must fall. *Labels*: a coin tossed for each text. *Model*: the same
# network with the random weights it started from.
#
# > **Predict.** Four bars for each task come next: R² before and after pretraining. What do you expect for the coin? Can
# > pretraining *lower* it?

# %%
predict("00.3 pretraining can lower R²", choices=("yes", "no"))

# %%
untrained = ntps.load_model("miniworld-base@step0", dtype="float32")
coin = ntps.load_task("miniworld/noise", n=1000)

rows = []
for name, task in (("topic", topic), ("watermark", watermark), ("coin", coin)):
    for when, network in (("random weights", untrained), ("pretrained", model)):
        scored = ntps.score(ntps.collect(network, task, layers=-1, progress=False), probes=False)[last]
        rows.append({"task": name, "model": when, "V": scored.explained_heldout, "all": scored.ceiling_heldout})

fig, axes = plt.subplots(1, 2, figsize=(8.4, 3.2), sharey=True, layout="constrained")
for ax, key, title in zip(
    axes, ("V", "all"), (f"through {scored.k_v} next-token directions", f"through all {scored.d}"), strict=True
):
    table = {column: [row[column] for row in rows] for column in ("task", "model", key)}
    sns.barplot(table, x="task", y=key, hue="model", palette=["0.7", COLORS[key]], saturation=1, ax=ax)
    ax.axhline(0, color="black", lw=0.8)
    ax.set(title=title, xlabel="", ylabel="R² on held-out texts")
    ax.legend(title=None, frameon=False)
sns.despine()
show("00.2")

for row in rows:
    print(f"{row['task']:9s}  {row['model']:14s}  through V {row['V']:z5.2f}   through all {row['all']:z5.2f}")
before, after = (row["all"] for row in rows if row["task"] == "watermark")
outcome("00.3 pretraining can lower R²", "yes" if after < before else "no")

# %% [markdown]
# **Answer.** Three tasks, three stories. Pretraining **gathered** the topic into the next-token directions. It **threw the watermark away**, so yes,
# it can lower R²: random weights still pass on every word a little, while the trained model's last layer keeps what helps to guess the next
# word. The **coin** stays at zero, as it must. What you see is the effect of pretraining, not of the network's shape alone.
#
# Why then do random weights show the watermark and not the topic? Every text has an "ah" or an "oh": one difference between two
# words is all there is to find. A topic is told by dozens of words, each of which stands in few of the texts, and what random layers pass on of
# each single word is too little to learn them all.
#
# ## Your own texts
#
# A file with a column of texts and a column of labels is enough. Here we write one on the spot; put your own path in its place.

# %%
with tempfile.TemporaryDirectory() as folder:
    path = Path(folder) / "notes.csv"
    notes = ntps.load_task("miniworld/tense", n=400)
    labels = [notes.classes[label] for label in notes.labels]
    pd.DataFrame({"text": notes.texts, "label": labels}).to_csv(path, index=False)

    mine = ntps.load_task(path)  # columns with other names: text_column="...", label_column="..."

print(mine)
own = ntps.score(ntps.collect(model, mine, progress=False))
say(*own.sentences())

# %% [markdown]
# ## Your own model
#
# Any causal language model from the Hugging Face hub, or a folder that holds one, takes the place of `miniworld-base`; a hub data set takes the
# place of the file. The next cell needs the network. It fetches a model of 135 million parameters (about 270 MB) and 300 film reviews.

# %%
try:
    reviews = ntps.load_task("cornell-movie-review-data/rotten_tomatoes", limit=300)
except ntps.NtpsError:
    say("Skipped: the model hub cannot be reached from here. With a network, run this cell again.")
else:
    real = ntps.load_model("HuggingFaceTB/SmolLM2-135M")
    films = ntps.score(ntps.collect(real, reviews, layers=[0, 10, 20, -1], progress=False))
    print(films)

# %% [markdown]
# With few texts and a wide model, R² is low and its interval wide: a readout through *all* directions has more numbers to fit than texts to
# fit them on. The last sentence under the table says what twice as many would bring.
#
# ## Take-away
#
# - The score asks how much of a labelled task lives in the directions that next-token prediction uses.
# - One pass over the texts, closed formulas, no training: seconds for a small model.
# - Read **held-out R²** first, of all directions and through V. The raw NTPS compares directions, and means little where the
#   labels are not held at all.
# - Controls belong to every result: labels by coin, a model with random weights.
#
# ## Quiz
#
# **1.** NTPS is 0.5 for your task. Is the model good at it?
#
# <details><summary>Answer</summary>
#
# You cannot tell. Half of the label directions lie inside the next-token directions, but if those label directions are fitted to noise, that
# says nothing. Look at held-out R², and at the same numbers for a coin.
#
# </details>
#
# **2.** R² through V is 0.02, through all directions 0.75. What does that suggest?
#
# <details><summary>Answer</summary>
#
# The states hold the labels, but not in the directions which next-token prediction uses most. A readout of all directions works; squeezing the
# states through V loses nearly everything. (`miniworld/first_mentioned` is such a task: try it.)
#
# </details>
#
# **3.** A readout of 128 directions can fit accidents of the coin, and would then do *worse* than the label frequencies on new texts. Why is
# its R² about zero all the same?
#
# <details><summary>Answer</summary>
#
# The readout is penalised, and its penalty is chosen by the error on other texts. For a coin the largest penalty wins, and so penalised a
# readout says no more than the label frequencies, which is R² = 0.
#
# </details>
#
# **4.** The watermark was readable from the network with random weights and not from the trained one. Is the trained model worse?
#
# <details><summary>Answer</summary>
#
# For this readout, yes; as a language model, no. Its last layer spends its directions on what helps to guess the next word. The word is still in the text,
# and a model trained further on the watermark can use it.
#
# </details>
#
# **5.** A random V of 16 directions in a space of 128 would get an NTPS of 16/128 on average. Why is this too low a bar?
#
# <details><summary>Answer</summary>
#
# Neither U nor V is random in the model's space: both point mostly where the states hardly vary, so even a coin's U overlaps with V by more than that.
# The fairer bar is the same computation with shuffled labels.
#
# </details>
#
# ## References
#
# - Y. Cheng, L. Hu, H. Huang, R. Balestriero, *Next Token Perception Score*, [arXiv 2505.17169](https://arxiv.org/abs/2505.17169) (2025): the score
#   and its definition. Lessons 01 and 02 derive each formula.
# - The bundled world, its tasks and models: `ntps.miniworld`; the [glossary](glossary.md#bundled-world) says what each task asks, and `ntps list` names tasks and models.
# - Practise: [exercises 00](exercises/ex00_start_here.ipynb). Next: [01 The linear derivation](01_linear_derivation.ipynb).
