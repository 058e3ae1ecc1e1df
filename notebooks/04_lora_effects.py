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
# # 04 · LoRA effects
#
# <!-- badges -->
# [![Open in Binder](images/badge_binder.svg)](https://mybinder.org/v2/gh/OWNER/ntps/main?urlpath=lab/tree/notebooks/04_lora_effects.ipynb) [![Open in Colab](images/badge_colab.svg)](https://colab.research.google.com/github/OWNER/ntps/blob/main/notebooks/04_lora_effects.ipynb)
# <!-- /badges -->
#
# **Time:** 50 minutes · **Prerequisites:** [lesson 03](03_empirical_correlations.ipynb); you know what fine-tuning a model means.
#
# **In this lesson** you will
# - fine-tune a bundled model on two tasks, one that next-token prediction needs and one that it has no use for, in under a minute;
# - set accuracy, scores and subspaces before and after side by side, and see at which layer a label was lost and found again;
# - meet [intruder dimensions](glossary.md#intruder-dimension), and move rank and steps.
#
# Whether the gain can be known in advance is the subject of [lesson 05](05_gain_forecasts.ipynb).
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
from IPython.display import display

import ntps
from ntps import TrainSettings, before_and_after
from ntps.course import measurements, outcome, predict, progress, say, show, widgets
from ntps.course.widgets import COLORS, PALETTE
from ntps.report import intruder_count, plot_runs, setting_name

sns.set_theme(style="ticks", palette=PALETTE)
pd.options.display.float_format = "{:z.2f}".format
# torch uses every core; on a shared machine: import torch; torch.set_num_threads(2)

RERUN = True  # False: trains nothing and reads the results of an earlier run, for a slow machine

# %% [markdown]
# ## 1. Two tasks, tuned here and now
#
# A linear probe reads a model as it is. [Fine-tuning](glossary.md#fine-tuning) changes the model. *Low-rank adaptation* (LoRA) leaves every weight matrix $\Theta$ in place and adds a product of two thin matrices,
# $$\Theta' = \Theta + \frac{\alpha}{r}\, B A,$$
# where $A$ has $r$ rows and $B$ has $r$ columns. Only these [adapters](glossary.md#adapter) and a linear head are trained. $B$ starts at zero and the head starts as the frozen probe, so step 0 *is* the probe, and the [gain](glossary.md#gain) of LoRA is what comes on top.
#
# Two tasks on the same documents. The **topic** decides which words can follow: next-token prediction needs it. The **watermark** is one interjection, "ah" or "oh", at a random place: any reader sees it, and it predicts nothing.
#
# > **Predict.** Which of the two gains accuracy? And what does fine-tuning on each do to the model's original job, predicting the next token?

# %%
predict("04.1 gains accuracy", choices=("topic", "watermark", "both", "neither"))

# %%
network = ntps.load_model("miniworld-base", dtype="float32", head=True)  # with its language-model head
topic = ntps.load_task("miniworld/topic", limit=600)
watermark = ntps.load_task("miniworld/watermark", limit=600)

SHORT = {"steps": 80, "batch_size": 8, "evaluate_every": 16}
if RERUN:
    with progress():  # half a minute on a quiet core, several times that on a busy one
        runs = {
            "topic": before_and_after(network, topic, settings=TrainSettings(margin=0, **SHORT), progress=True),
            "watermark": before_and_after(network, watermark, settings=TrainSettings(**SHORT), progress=True),
        }
else:
    runs = {name: measurements.lesson_runs()[name] for name in ("topic", "watermark")}
for run in runs.values():
    say(f"{run.task}: {run.sentence()}", "")
gained = [name for name, run in runs.items() if run.gain > 2 * run.gain_standard_error]
outcome("04.1 gains accuracy", "both" if len(gained) == 2 else gained[0] if gained else "neither")

# %%
QUANTITIES = {
    "accuracy": lambda side: side.accuracy,
    "next-token loss, nats per token": lambda side: side.next_token_loss,
    "NTPS, last layer": lambda side: side.score.layers[-1].ntps,
    "R² through V, last layer": lambda side: side.score.layers[-1].explained_heldout,
    "R² of all directions, last layer": lambda side: side.score.layers[-1].ceiling_heldout,
}
sides = {(name, when): getattr(run, when) for name, run in runs.items() for when in ("before", "after")}
pd.DataFrame({place: {label: read(side) for label, read in QUANTITIES.items()} for place, side in sides.items()})

# %% [markdown]
# Everything in this table is judged on test texts which neither training nor the choice of the step has seen. (The intruders in the printed sentences are the subject of part 4.)
#
# **Answer.** The task that pretraining had solved gains nothing, and the one that pretraining ignored gains a lot. Both pay for it: the weights now serve the label, and the next token is predicted [worse than before](glossary.md#next-token-loss). For the topic that is
# a cost without a benefit. (By default weights are kept only if their validation loss is lower than the probe's by 2.5 standard errors, else the probe itself. We took that guard away for the topic, `margin=0`, to see
# what training does where nothing is left to gain.)
#
# Look at NTPS, too: would you have guessed from it which task gained? The [ceiling](glossary.md#ceiling), R² of all directions, tells the two stories apart: one label could be read all along, the other only after.
#
# ## 2. What the last layer had dropped
#
# The probe reads the *last* layer. Pretraining shaped that layer for guessing the next word, so it may have dropped what an earlier layer still knows. The held-out [ceiling](glossary.md#ceiling) shows that, layer by layer:
# the share of label variance that all directions explain on texts which the readout has not seen.
#
# > **Predict.** At which layer of the frozen model can the watermark be read best? And the topic?

# %%
predict("04.2 layer at which the watermark is read best, 0 to 4")

# %%
frozen = {
    task.name.removeprefix("miniworld/"): ntps.score(ntps.collect(network, task, progress=False), probes=False)
    for task in (topic, watermark)
}


def ceilings(result):
    return np.array([layer.ceiling_heldout for layer in result.layers])


figure, axes = plt.subplots(1, 2, figsize=(8.4, 3.2), sharey=True, layout="constrained")
for ax, (name, run) in zip(axes, runs.items(), strict=True):
    layers = [layer.layer for layer in frozen[name].layers]
    ax.plot(layers, ceilings(run.before.score), color="0.6", ls=":", marker="o", label="before, the test texts")
    ax.plot(layers, ceilings(frozen[name]), color="0.35", marker="s", label="before, all texts")
    ax.plot(layers, ceilings(run.after.score), color=COLORS["exact"], marker="^", label="after, the test texts")
    ax.axhline(0, color="0.3", lw=0.8)
    ax.set(title=name, xlabel="layer (0 is the word embedding)", xticks=layers)
axes[0].set_ylabel("ceiling, held out")
figure.legend(
    *axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False, fontsize="small"
)
sns.despine()
show("04.1")
outcome("04.2 layer at which the watermark is read best, 0 to 4", ceilings(frozen["watermark"]).argmax())

for name, run in runs.items():
    last = frozen[name].readouts["all"][-1].r2
    held_back = frozen[name].choice.readout.r2 - last
    print(f"{name:9s}  held back {held_back:+z.2f}   gain of LoRA {run.gain:+z.2f}")

# %% [markdown]
# **Answer.** The word embedding shows the watermark, since "ah" and "oh" are two different words. The layers above it let go of it, because nothing that follows depends on it. We call the difference
# [held back](glossary.md#held-back): the best layer's R² minus the last one's, the layer chosen on other folds than it is judged on (the largest of several equal numbers is always too large, so a plain maximum would find
# something held back everywhere). An adapter sits in every matrix of every layer above the embedding, so training can keep what was let go, and after fine-tuning the upper layers hold the watermark better than
# the embedding ever showed it: a mean over many words hides a single one, and attention can pick it out. The topic was never held back.
#
# With few texts a ceiling is judged too low (the dotted line): 128 directions are fitted on the texts of four folds. So the triangle at layer 0 of the watermark is no loss: no adapter touches the embedding, and the dotted line, from the same test texts, begins
# at the same place. Compare ceilings of the same number of texts only.
#
# Two tasks are an illustration, not evidence. And held back is not all: a ceiling is linear, and training can also build a feature that no layer showed in a linear way.
#
# ## 3. What became of the subspaces
#
# The states live in the same coordinates before and after, so the two spans can be compared by their [principal angles](glossary.md#principal-angle): 0° for a direction that stayed, 90° for one that is new.
#
# > **Predict.** How far was a weight matrix moved, in relation to its own size: 1 %, 10 %, 100 %? And how far does that turn $V$, by a few degrees or by right angles?

# %%
predict("04.3 weights moved by, in % of their size")

# %%
figure, axes = plt.subplots(1, 2, figsize=(8.8, 3.2), sharey=True, layout="constrained")
for ax, (name, run) in zip(axes, runs.items(), strict=True):
    for side, which in ((-0.14, "V"), (0.14, "U")):
        for change in run.changes:
            angles = np.degrees(change[f"angles_{which.lower()}"])
            place = np.full(len(angles), change["layer"] + side)
            label = f"span({which})" if change["layer"] == 0 else None
            ax.plot(place, angles, "o", color=COLORS[which], alpha=0.6, ms=5, label=label)
    ax.set(title=name, xlabel="layer", yticks=[0, 30, 60, 90])
axes[0].set_ylabel("turned by, °")
figure.legend(
    *axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False, fontsize="small"
)
sns.despine()
show("04.2")

for name, run in runs.items():
    moved = np.mean([row["relative_change"] for row in run.intruders])
    median = np.median(np.degrees(np.concatenate([change["angles_v"] for change in run.changes[1:]])))
    print(f"{name:9s}  weights moved by {moved:.0%} of their size on average; median angle of V {median:.0f}°")
outcome("04.3 weights moved by, in % of their size", 100 * moved)

# %% [markdown]
# **Answer.** The weights about a tenth, and $V$ by anything from small angles to nearly right ones. Layer 0 is the embedding, which has no adapter. Above it, small moves of the weights turn the spans far: their first directions stay near, their last ones end up nearly at right angles. Directions that are nearly tied change places
# easily, and for the watermark $U$ was fitted to noise before, so there was nothing to stay near to.
#
# What does that do to the score? Its change splits exactly into what the turn of $U$ alone would do, the turn of $V$ alone, what the two do together, and the part that comes from single entries of the state (*channels*) becoming louder or quieter:

# %%
parts = {
    (name, change["layer"]): change["ntps"] | {"share through V, change": change["explained"]["change"]}
    for name, run in runs.items()
    for change in run.changes[1:]
}
columns = {"before": "NTPS before", "after": "after", "change": "change", "u": "by U", "v": "by V", "both": "by both",
           "scale": "by scale", "share through V, change": "share through V, change"}  # fmt: skip
table = pd.DataFrame(parts).T[list(columns)].rename(columns=columns).rename_axis(["task", "layer"])
display(table)
for name, rows in table.groupby("task", sort=False):
    up, share = int((rows["change"] > 0).sum()), int((rows["share through V, change"] > 0).sum())
    print(f"{name:9s}  NTPS rose at {up} of {len(rows)} layers, the held-out share through V at {share} of {len(rows)}")

# %% [markdown]
# It is tempting to expect that fine-tuning pulls the label directions into the next-token directions, so that NTPS rises. **Here NTPS fell at most layers**: count the signs. The parts
# are of either sign and partly cancel: a turn of one span alone mostly leads away from its old partner, turning together mostly leads back, and what is left may go either way. How much more of the labels $V$ lets through now,
# the last column says.
#
# ## 4. Intruder dimensions
#
# So far one setting. Now four, all on the watermark, for as many steps: adapters of [rank](glossary.md#lora-rank) 1 and 32 with $\alpha = r$, so that the product enters as it is; rank 1 with $\alpha = 32$, so that it enters times 32;
# and no adapters at all, all weights trained.
#
# Take a tuned matrix apart into its [singular vectors](glossary.md#singular-value-decomposition). Most of its strongest ones have a counterpart among the original ones, turned a little. One that resembles none of them
# (no cosine of 0.6 or more) is called an *intruder dimension* (Shuttleworth et al. 2024).
#
# > **Predict.** Which setting has the most intruders: the one that trains all weights, the one of rank 32, or one of rank 1?

# %%
LARGEST = "rank 32", "rank 1", "rank 1, α = 32", "all weights"
predict("04.4 most intruders", choices=LARGEST)

# %%
if RERUN:
    settings = [
        TrainSettings(rank=1, alpha=1, **SHORT),
        TrainSettings(rank=1, alpha=32, **SHORT),
        TrainSettings(method="full", **SHORT),
    ]
    quick = {"layers": -1, "analyses": ["intruders"], "progress": True}
    with progress():  # three trainings, about as long together as the two of part 1
        low, loud, whole = (before_and_after(network, watermark, settings=each, **quick) for each in settings)
else:
    low, loud, whole = (measurements.lesson_runs()[name] for name in ("low", "loud", "whole"))
tried = [low, runs["watermark"], loud, whole]

# %%
figure, ax = plt.subplots(figsize=(7.6, 3.2), layout="constrained")
rng = np.random.default_rng(0)
for place, run in enumerate(tried):
    cosines = np.concatenate([row["cosines"] for row in run.intruders])
    color = np.where(cosines < 0.6, PALETTE[1], "0.65")
    ax.scatter(cosines, place + rng.uniform(-0.28, 0.28, len(cosines)), s=9, c=color)
ax.axvline(0.6, color="0.3", ls=":")
ax.set_yticks(range(len(tried)), [setting_name(run) for run in tried])
ax.set(xlabel="largest cosine with an original singular vector (10 strongest of each matrix)", xlim=(0, 1.02))
ax.invert_yaxis()
sns.despine()
show("04.3")

for run in tried:
    moved = np.mean([row["relative_change"] for row in run.intruders])
    print(f"{setting_name(run):14s}  trained {run.provenance['n_trained']:7,}  gain {run.gain:+z.2f}  "
          f"weights moved by {moved:4.0%}  intruders {intruder_count(run)}")  # fmt: skip
outcome("04.4 most intruders", setting_name(max(tried, key=intruder_count)))

# %% [markdown]
# **Answer.** Rank 1 with $\alpha = 32$, the *loud* one. Training all weights gains as LoRA does, and turns the old directions instead of adding any. An adapter of rank 1 has a single direction for all it has to say: if it says it loudly, that direction rises above the matrix's own.
# So intruders are a mark of *how* a change was made, in many directions a little or in few a lot; they are not what makes it work. Two things differ at once here, though: the loud adapter also moved the weights furthest. The exercises
# hold the size of the change fixed.
#
# ## 5. Rank and steps
#
# > **Predict.** Rank 1 with $\alpha = 1$ and rank 1 with $\alpha = 32$ train equally many parameters for equally many steps. Will they end at the same accuracy?
#
# In the panel, pick a setting and slide the step. Its upper part shows accuracy and loss on the [validation texts](glossary.md#fine-tuning), on the way; its lower part what the kept weights gained and cost.

# %%
predict("04.5 the two of rank 1 end at the same accuracy", choices=("yes", "no"))

# %%
widgets.LoraPanel([runs["watermark"], low, loud, whole]).show()

# %%
plot_runs(tried)
sns.despine()
show("04.4")
same = abs(low.after.accuracy - loud.after.accuracy) < 2 * max(low.gain_standard_error, loud.gain_standard_error)
outcome("04.5 the two of rank 1 end at the same accuracy", "yes" if same else "no")

# %% [markdown]
# **Answer.** No. With adapters, training sits on a plateau first: one word of the text has to be found before anything can be gained by it. How soon that happens depends on the size of the steps in the space of *weights*, and there $\alpha/r$ counts as much as the
# learning rate does. So "rank 1 is too small" would be the wrong conclusion from the first curve: with a larger $\alpha$ the same rank learns the task. A comparison of ranks is one of capacity only if every rank had
# the learning rate that suits it and enough steps.
#
# Gain and price do not go together either. The settings that learned the watermark paid about the same; the topic of part 1 paid several times as much, for nothing. And all of this is one seed: with another one a run may leave its plateau earlier, later, or not in time.
# `ntps lora ... --seeds 3` gives the gain with an interval.
#
# ## 6. What holds, and what does not
#
# | claim | what we saw |
# |---|---|
# | fine-tuning gains where pretraining had no use for the label, not where it had solved it | held on our two tasks; the second half is arithmetic |
# | LoRA lets through what earlier layers know and the last one dropped | held on the watermark, seen layer by layer |
# | fine-tuning aligns the label directions with the next-token directions: NTPS rises | no: it fell at most layers, whether the task gained or not |
# | held-out R² through $V$ at the last layer rises with the gain | held here; it can also rise without any gain, as for the topic, since R² is about squared error and accuracy about the largest class |
# | LoRA leaves intruder dimensions | depends on rank and scale; they were not needed for the gain |
# | gains are free | no: the next token is predicted worse, and how much worse does not follow the gain |
#
# For a task of your own, `ntps lora MODEL letters.csv --seeds 3 --output tuned` does what this lesson did, with an interval, and `--method full` trains all weights instead. Whether it is worth the time is asked next.
#
# ## Take-away
#
# - LoRA adds $\frac{\alpha}{r} B A$ to each matrix and starts as the frozen probe: its gain is what training adds to a readout.
# - It hardly gains where the probe is right already; where earlier layers know what the last one has dropped, it may. The language model pays.
# - NTPS may rise or fall under fine-tuning. Held-out R², through V and of all directions, says whether labels came into reach.
# - Rank, $\alpha$, learning rate and steps act together; intruder dimensions come from few directions used loudly.
#
# ## Quiz
#
# **1.** Before the first step of training, what does the model with its adapters and its new head predict?
# <details><summary>Answer</summary>
#
# What the frozen probe predicts. $B$ is zero, so every weight is what it was, and the head starts as the probe. Whatever comes on top is due to training.
#
# </details>
#
# **2.** Rank 4 with $\alpha = 32$ and rank 32 with $\alpha = 32$: by how much do their products differ in scale, and which is likelier to leave intruders?
# <details><summary>Answer</summary>
#
# The factor $\alpha/r$ is 8 for the first and 1 for the second. Rank 4 says all it has to say in four directions, each of them louder: it is likelier to push one above the matrix's own.
#
# </details>
#
# **3.** After fine-tuning accuracy has risen by 40 points and NTPS at the last layer has fallen. Is something wrong?
# <details><summary>Answer</summary>
#
# No. Before, $U$ was fitted to labels that the states hardly held, so its overlap with $V$ meant little; after, both spans have turned. NTPS compares directions at one moment, it does not measure how much of the labels can be read.
#
# </details>
#
# **4.** The topic gained nothing, and yet the next token is predicted worse than before. Why did training not leave the weights alone?
# <details><summary>Answer</summary>
#
# It lowers the loss of the labels, which falls even where accuracy has no room left, and nothing in that loss asks for the next token. By default such weights are kept only if the validation loss falls clearly; `margin=0` took that guard away.
#
# </details>
#
# **5.** Two runs gain 30 points each; one leaves a hundred intruder dimensions, the other none. Which one do you keep?
# <details><summary>Answer</summary>
#
# The gain does not say. Intruders tell how a change was made, in few loud directions or in many quiet ones. Compare what the runs cost: the next-token loss, and how far the weights moved; and look at more than one seed.
#
# </details>
#
# ## References
#
# - Cheng, Hu, Huang, Balestriero, *Next Token Perception Score*, [arXiv 2505.17169](https://arxiv.org/abs/2505.17169) (2025): the section on LoRA.
# - Hu, Shen, Wallis, Allen-Zhu, Li, Wang, Wang, Chen, *LoRA: Low-Rank Adaptation of Large Language Models*, [arXiv 2106.09685](https://arxiv.org/abs/2106.09685) (2021).
# - Shuttleworth, Andreas, Torralba, Sharma, *LoRA vs Full Fine-tuning: An Illusion of Equivalence*, [arXiv 2410.21228](https://arxiv.org/abs/2410.21228) (2024): intruder dimensions.
# - Björck and Golub, *Numerical Methods for Computing Angles between Linear Subspaces*, Mathematics of Computation 27, 1973.
# - Practise: [exercises 04](exercises/ex04_lora_effects.ipynb). Next: [05 Can the gain be known in advance?](05_gain_forecasts.ipynb).
