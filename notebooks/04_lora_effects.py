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
# [![Open in Binder](https://mybinder.org/badge_logo.svg)](https://mybinder.org/v2/gh/OWNER/ntps/main?urlpath=lab/tree/notebooks/04_lora_effects.ipynb) [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/OWNER/ntps/blob/main/notebooks/04_lora_effects.ipynb)
# <!-- /badges -->
#
# **Time:** 85 minutes · **Prerequisites:** [lesson 03](03_empirical_correlations.ipynb); you know what fine-tuning a model means.
#
# **In this lesson** you will
# - fine-tune a bundled model on two tasks, one that next-token prediction needs and one that it has no use for, in under a minute;
# - set accuracy, scores and subspaces before and after side by side, and see at which layer a label was lost and found again;
# - meet [intruder dimensions](glossary.md#intruder-dimension), and move rank and steps;
# - predict the gain of LoRA on the paper's figures, and compare with baselines that need no score;
# - rank tasks by expected gain without training, and score a file of your own.
#
# A good place for a break is after part 5: until then you tune and look, after it you forecast.
#
# Symbols are explained in the [glossary](glossary.md).

# %% tags=["colab"]
# On Colab this installs the package; anywhere else it does nothing.
import subprocess
import sys

if "google.colab" in sys.modules:
    address = "git+https://github.com/OWNER/ntps@main"
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", address], check=True)

# %%
# %matplotlib inline
import tempfile
import textwrap
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from IPython.display import Image, display

import ntps
from ntps import TrainSettings, before_and_after
from ntps.course import measurements, widgets
from ntps.paper import published
from ntps.course.widgets import COLORS
from ntps.report import intruder_count, plot_runs, setting_name
from ntps.study import gain_prediction

sns.set_theme(style="ticks", palette="colorblind")
pd.options.display.float_format = "{:z.2f}".format
# torch uses every core; on a shared machine: import torch; torch.set_num_threads(2)

# %% [markdown]
# ## 1. Two tasks, tuned here and now
#
# A linear probe reads a model as it is. [Fine-tuning](glossary.md#fine-tuning) changes the model. *Low-rank adaptation* (LoRA) leaves every weight matrix $W$ in place and adds a product of two thin matrices,
# $$W' = W + \frac{\alpha}{r}\, B A,$$
# where $A$ has $r$ rows and $B$ has $r$ columns. Only these [adapters](glossary.md#adapter) and a linear head are trained. $B$ starts at zero and the head starts as the frozen probe, so step 0 *is* the probe, and the [gain](glossary.md#gain) of LoRA is what comes on top.
#
# Two tasks on the same documents. The **topic** decides which words can follow: next-token prediction needs it. The **watermark** is one interjection, "ah" or "oh", at a random place: any reader sees it, and it predicts nothing.
#
# > **Predict.** Which of the two gains accuracy? And what does fine-tuning on each do to the model's original job, predicting the next token?

# %%
network = ntps.load_model("miniworld-base", dtype="float32", head=True)  # with its language-model head
topic = ntps.load_task("miniworld/topic", limit=600)
watermark = ntps.load_task("miniworld/watermark", limit=600)

SHORT = {"steps": 80, "batch_size": 8, "evaluate_every": 16}
# Half a minute on a quiet core, several times that on a busy one; nothing is shown until both are done.
runs = {
    "topic": before_and_after(network, topic, settings=TrainSettings(margin=0, **SHORT), progress=False),
    "watermark": before_and_after(network, watermark, settings=TrainSettings(**SHORT), progress=False),
}
for run in runs.values():
    print(textwrap.fill(f"{run.task}: {run.sentence()}", 100), end="\n\n")

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
# Everything in this table is judged on test texts which neither training nor the choice of the step has seen.
#
# **Answer.** The task that pretraining had solved gains nothing, and the one that pretraining ignored gains a lot. Both pay for it: the weights now serve the label, and the next token is predicted [worse than before](glossary.md#next-token-loss). For the topic that is
# a cost without a benefit. (By default weights are kept only if their validation loss is lower than the probe's by 2.5 standard errors, else the probe itself. We took that guard away for the topic, `margin=0`, to see
# what training does where nothing is left to gain.)
#
# Look at NTPS, too: would you have guessed from it which task gained? The ceiling tells the two stories apart: one label could be read all along, the other only after.
#
# ## 2. What the last layer had dropped
#
# The probe reads the *last* layer. Pretraining shaped that layer for guessing the next word, so it may have dropped what an earlier layer still knows. The held-out [ceiling](glossary.md#ceiling) shows that, layer by layer:
# the share of label variance that all directions explain on texts which the readout has not seen.
#
# > **Predict.** At which layer of the frozen model can the watermark be read best? And the topic?

# %%
model = ntps.load_model("miniworld-base", dtype="float32")
frozen = {
    task.name.removeprefix("miniworld/"): ntps.score(ntps.collect(model, task, progress=False), probes=False)
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
plt.show()

for name, run in runs.items():
    last = frozen[name].readouts["all"][-1].r2
    held_back = frozen[name].choice.readout.r2 - last
    print(f"{name:9s}  held back {held_back:+.2f}   gain of LoRA {run.gain:+.2f}")

# %% [markdown]
# **Answer.** The word embedding shows the watermark, since "ah" and "oh" are two different words. The layers above it let go of it, because nothing that follows depends on it. We call the difference
# [held back](glossary.md#held-back): the best layer's R² minus the last one's, the layer chosen on other folds than it is judged on (the largest of several equal numbers is always too large, so a plain maximum would find
# something held back everywhere). An adapter sits in every matrix of every layer, so it can keep what was let go, and after fine-tuning the upper layers hold the watermark better than
# the embedding ever showed it: a mean over many words hides a single one, and attention can pick it out. The topic was never held back.
#
# With few texts a ceiling is judged too low (the dotted line): 128 directions are fitted on the texts of four folds. Compare ceilings of the same number of texts only.
#
# Two tasks are an illustration, not evidence. And held back is not all: a ceiling is linear, and training can also build a feature that no layer showed in a linear way.
#
# ## 3. What became of the subspaces
#
# The states live in the same coordinates before and after, so the two spans can be compared by their [principal angles](glossary.md#principal-angle): 0° for a direction that stayed, 90° for one that is new.
#
# > **Predict.** How far was a weight matrix moved, in relation to its own size: 1 %, 10 %, 100 %? And how far does that turn $V$, by a few degrees or by right angles?

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
plt.show()

for name, run in runs.items():
    moved = np.mean([row["relative_change"] for row in run.intruders])
    median = np.median(np.degrees(np.concatenate([change["angles_v"] for change in run.changes[1:]])))
    print(f"{name:9s}  weights moved by {moved:.0%} of their size on average; median angle of V {median:.0f}°")

# %% [markdown]
# **Answer.** About a tenth, and by nearly anything. Layer 0 is the embedding, which has no adapter. Above it, small moves of the weights turn the spans far: their first directions stay near, their last ones end up nearly at right angles. Directions that are nearly tied change places
# easily, and for the watermark $U$ was fitted to noise before, so there was nothing to stay near to.
#
# What does that do to the score? Its change splits exactly into what the turn of $U$ alone would do, the turn of $V$ alone, what the two do together, and the part of channels that became louder or quieter:

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
# It is tempting to expect that fine-tuning pulls the label directions into the next-token directions, so that NTPS rises. **It does not do so everywhere**: count the signs. The parts
# are of either sign and partly cancel: a turn of one span alone mostly leads away from its old partner, turning together mostly leads back, and what is left may go either way. How much of the labels $V$ lets through now,
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
settings = [
    TrainSettings(rank=1, alpha=1, **SHORT),
    TrainSettings(rank=1, alpha=32, **SHORT),
    TrainSettings(method="full", **SHORT),
]
# Three trainings, about as long together as the two of part 1.
quick = {"layers": -1, "analyses": ["intruders"], "progress": False}
low, loud, whole = (before_and_after(network, watermark, settings=each, **quick) for each in settings)
tried = [low, runs["watermark"], loud, whole]

# %%
figure, ax = plt.subplots(figsize=(7.6, 3.2), layout="constrained")
rng = np.random.default_rng(0)
for place, run in enumerate(tried):
    cosines = np.concatenate([row["cosines"] for row in run.intruders])
    color = np.where(cosines < 0.6, COLORS["U"], "0.65")
    ax.scatter(cosines, place + rng.uniform(-0.28, 0.28, len(cosines)), s=9, c=color)
ax.axvline(0.6, color="0.3", ls=":")
ax.set_yticks(range(len(tried)), [setting_name(run) for run in tried])
ax.set(xlabel="largest cosine with an original singular vector (10 strongest of each matrix)", xlim=(0, 1.02))
ax.invert_yaxis()
sns.despine()
plt.show()

for run in tried:
    moved = np.mean([row["relative_change"] for row in run.intruders])
    print(f"{setting_name(run):14s}  trained {run.provenance['n_trained']:7,}   gain {run.gain:+.2f}   "
          f"weights moved by {moved:4.0%}   intruders {intruder_count(run)}")  # fmt: skip

# %% [markdown]
# **Answer.** The loud rank 1. Training all weights gains as LoRA does, and turns the old directions instead of adding any. An adapter of rank 1 has a single direction for all it has to say: if it says it loudly, that direction rises above the matrix's own.
# So intruders are a mark of *how* a change was made, in many directions a little or in few a lot; they are not what makes it work. Two things differ at once here, though: the loud adapter also moved the weights furthest. The exercises
# hold the size of the change fixed.
#
# ## 5. Rank and steps
#
# > **Predict.** Rank 1 with $\alpha = 1$ and rank 1 with $\alpha = 32$ train equally many parameters for equally many steps. Will they end at the same accuracy?
#
# Pick a setting and slide the step. Above: accuracy and loss on the validation texts, on the way. Below: what the kept weights gained and cost.

# %%
widgets.LoraPanel([runs["watermark"], low, loud, whole]).show()

# %%
plot_runs(tried)
sns.despine()
plt.show()

# %% [markdown]
# **Answer.** No. Training sits on a plateau first: one word of the text has to be found before anything can be gained by it. How soon that happens depends on the size of the steps in the space of *weights*, and there $\alpha/r$ counts as much as the
# learning rate does. So "rank 1 is too small" would be the wrong conclusion from the first curve: with a larger $\alpha$ the same rank learns the task. A comparison of ranks is one of capacity only if every rank had
# the learning rate that suits it and enough steps.
#
# Gain and price do not go together either. The settings that learned the watermark paid about the same; the topic of part 1 paid several times as much, for nothing. And all of this is one seed: with another one a run may leave its plateau earlier, later, or not in time.
# `ntps lora ... --seeds 3` gives the gain with an interval.
#
# ## 6. Can the gain be known in advance?
#
# The paper reports that NTPS, before any fine-tuning, goes with the gain of LoRA over the probe: rank correlations from moderate to strong, negative, in 8 models. But gains also fall with the probe's accuracy, by arithmetic: whoever is right
# on 99 of 100 texts can gain one point at most. A score that predicts should beat that. (As in lesson 03, the published scores are those of the released code, with the smallest eigenvectors, not the quantity of lesson 02.)
#
# > **Predict.** Leave a data set out, fit a line on the others, predict the gain. Which comes closest: a line in NTPS, a line in the probe's accuracy, the mean gain, or "no gain at all"?

# %%
figures = published.results()
figures["z"] = figures.groupby("model")["ntps_gain"].transform(lambda score: (score - score.mean()) / score.std(ddof=0))
errors = {over: gain_prediction(figures, over=over) for over in ("task", "model")}
inputs = {"zero": "no gain", "mean": "mean gain", "accuracy": "probe accuracy", "ntps": "NTPS",
          "accuracy + ntps": "both"}  # fmt: skip
largest = figures.groupby("dataset")["gain"].mean().abs().nlargest(3).index
figures["shown"] = figures["dataset"].where(figures["dataset"].isin(largest), "the other nine")

figure, axes = plt.subplots(1, 3, figsize=(11.5, 3.9), layout="constrained", width_ratios=(1, 1, 1.1))
shown = ["the other nine", *largest]
looks = {
    "hue_order": shown,
    "style_order": shown,
    "palette": ["0.65", "C0", "C1", "C2"],
    "markers": ["o", "X", "s", "^"],
}
titles = {"linear_accuracy": "accuracy of the probe", "z": "NTPS, standardised within models"}
for ax, (column, label) in zip(axes, titles.items(), strict=False):
    sns.scatterplot(figures, x=column, y="gain", hue="shown", style="shown", ax=ax, s=40, **looks)
    ax.axhline(0, color="0.3", lw=0.8)
    ax.set(xlabel=label, ylabel="gain of LoRA")
    ax.get_legend().remove()
for shift, over, color, marker in ((-0.12, "task", "C3", "o"), (0.12, "model", "C4", "s")):
    rows = errors[over].loc[list(inputs)] * 100
    axes[2].hlines(np.arange(len(rows)) + shift, rows.low, rows.high, color=color, lw=2, alpha=0.5)
    left_out = {"task": "data sets left out", "model": "models left out"}[over]
    axes[2].plot(rows.mae, np.arange(len(rows)) + shift, marker, color=color, label=left_out)
axes[2].set_yticks(range(len(inputs)), inputs.values())
axes[2].invert_yaxis()
axes[2].set(xlabel="mean error of the predicted gain, points", xlim=(0, None))
figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower left", ncols=4, frameon=False, fontsize="small")
figure.legend(*axes[2].get_legend_handles_labels(), loc="outside lower right", ncols=2, frameon=False, fontsize="small")
sns.despine()
plt.show()

# %%
margins = (
    pd.concat(errors, names=["left out"])[["mae", "margin", "margin_low", "margin_high", "margin_to_accuracy"]] * 100
)
display(margins.loc[(slice(None), list(inputs)), :].drop("zero", level="inputs"))
by_set = figures.groupby("dataset")["gain"].mean().sort_values(ascending=False) * 100
two, rest = by_set.iloc[:2], by_set.iloc[2:]
print(f"mean gain of {' and '.join(two.index)}: {two.mean():.1f} points; of the other ten: {rest.mean():.1f}")

# %% [markdown]
# **Answer.** With data sets left out, "no gain at all". `margin` is the error of predicting *no gain* minus that of the prediction, in points: positive is better than expecting nothing. **No interval (95 %, by data set) lies above zero**: no line, in NTPS, in the accuracy or in both, is shown to be better
# than expecting no gain, whichever is left out; where data sets are left out, NTPS alone is even worse. Beside the line in the probe's accuracy (`margin_to_accuracy`) it wins or loses a point or less. Two data sets hold nearly all of the gain, and
# two points fit no line.
#
# This is a statement about what these data can show. NTPS even had a head start here, since its layer and rank were chosen with all gains in sight ([lesson 03](03_empirical_correlations.ipynb)). A rank correlation of one model over 12 data sets and a
# prediction for the 13th are different things.
#
# ## 7. Prescreening a set of tasks
#
# In practice the question is: *I have ten tasks and can tune for two.* [`prescreen`](glossary.md#prescreening) takes one pass over the texts of each, reads the probe's accuracy and what is [held back](glossary.md#held-back), and lets a
# [calibration](glossary.md#calibration) turn them into an expected gain with an interval: a small regression, fitted on the gains of bundled models on bundled tasks.
#
# > **Predict.** With a budget of two: which of these eight would you tune for? On which would you say "I cannot tell"?

# %%
NAMES = ["topic", "tense", "register", "intent", "sentiment", "first_mentioned", "watermark", "noise"]
screened = ntps.prescreen("miniworld-base", ["miniworld/" + name for name in NAMES], budget=2)
print(screened)
terms = zip(screened.calibration.inputs, screened.calibration.coefficients[1:], strict=True)
print("\nslopes of the calibration:", ", ".join(f"{slope:+.2f} per 1.0 of {name}" for name, slope in terms))

# %%
forecasts = screened.to_dataframe()
places = np.arange(len(forecasts))
figure, ax = plt.subplots(figsize=(7.2, 3.4), layout="constrained")
ax.hlines(places, 100 * forecasts.low, 100 * forecasts.high, color="0.6", lw=3)
ax.plot(100 * forecasts.expected, places, "o", color=COLORS["V"], label="forecast, with its interval")
for label, (name, run) in zip(("measured in part 1", None), runs.items(), strict=True):
    row = forecasts.index[forecasts.task == f"miniworld/{name}"][0]
    ax.plot(100 * run.gain, row, "X", color=COLORS["U"], ms=9, label=label)
    where = "inside" if forecasts.low[row] <= run.gain <= forecasts.high[row] else "outside"
    print(f"{name:9s}  measured {100 * run.gain:+.0f} points, {where} its interval")
ax.axvline(0, color="0.3", lw=0.8)
ax.set_yticks(places, [name.removeprefix("miniworld/") for name in forecasts.task])
ax.invert_yaxis()
ax.set(xlabel="gain of LoRA, points of accuracy")
ax.legend(frameon=False, fontsize="small", loc="lower right")
sns.despine()
plt.show()

# %% [markdown]
# **Answer.** The budget goes to the watermark and to `first_mentioned`; on four of the eight, the watermark and the coin among them, the interval allows for nearly anything. Read the last lines of the printed output first. These very tasks, on this very model, are among those that the calibration was fitted on, so this is no test of it. The honest number is the error on *tasks left out*, beside that of always
# expecting no gain. And the interval is the message. Where it holds gains worth having (a point or more) as well as none, the verdict is "no evidence either way", and a short run will tell you more than any score. It is an
# interval of 80 %, made to miss one time in five; see where the two measured gains lie.
#
# A probe that fails can mean two things that no frozen quantity tells apart: labels that cannot be learned (the coin, `noise`) and labels that training will find. That is why the calibration asks what earlier layers know, too. Its slopes say
# that it asks hardly anything else: **the forecast is about four fifths of what is held back**, cut off at what the probe leaves to gain, and the accuracy of the probe enters next to nothing. So it is blind to everything that no layer shows in a linear way and training may find.
#
# For models and texts of your own kind, fit your own: `ntps study --lora --model ... --task ... --output mine` runs the gains and writes `mine/calibration.json`, and `ntps prescreen ... --calibration mine/calibration.json` reads it.
# It takes six tasks at least; a dozen are better.
#
# ### The same on a real model
#
# Gemma 3 270M on the five text sets of [lesson 03](03_empirical_correlations.ipynb), part 7. It was tuned before, with the command below: 60 steps on a processor, few for such a model. The figures come with the package. The forecasts are those of the
# bundled calibration, from the study of lesson 03; a calibration fitted on a made-up language cannot be expected to work for film reviews, so this is a test of it.
#
# > **Predict.** On how many of the five sets does NTPS at the last layer rise?

# %%
tuned = measurements.real_lora()
print(*textwrap.wrap(tuned.attrs["command"], 100, break_on_hyphens=False), sep="\n")
real = measurements.real_study().query("model == 'gemma-3-270m'").set_index("task").loc[tuned.task]
foretold = [ntps.load_calibration().forecast(row) for row in real.to_dict("records")]
shown = pd.DataFrame({
    "before": 100 * tuned.accuracy_before, "after": 100 * tuned.accuracy_after, "gain": 100 * tuned.gain,
    "standard error": 100 * tuned.gain_se, "forecast": [100 * each.expected for each in foretold],
    "low": [100 * each.low for each in foretold], "high": [100 * each.high for each in foretold],
    "NTPS": tuned.ntps_after - tuned.ntps_before, "through V": tuned.explained_heldout_after - tuned.explained_heldout_before,
    "ceiling": tuned.ceiling_heldout_after - tuned.ceiling_heldout_before,
    "next-token loss": tuned.next_token_loss_after - tuned.next_token_loss_before,
}).set_index(tuned.task)  # fmt: skip
display(shown)
inside = ((shown["low"] <= shown["gain"]) & (shown["gain"] <= shown["high"])).sum()
sure = (shown["gain"] > 2 * shown["standard error"]).sum()
print(
    f"a gain of more than two standard errors on {sure} of {len(shown)} sets; {inside} gains inside their 80 % interval;"
)
print(
    f"NTPS rose on {(shown['NTPS'] > 0).sum()} of them, the held-out share through V on {(shown['through V'] > 0).sum()}."
)

# %% [markdown]
# **Answer.** On one, by next to nothing. Accuracies, gains and forecasts are in points; the last four columns are after minus before. Where they are all zero, at no evaluation step were the weights better than at the start, and the frozen probe was kept. Five sets and one seed are little. But the
# pattern is that of the bundled world: where training found something, held-out shares rose, raw NTPS hardly moved, and the next token costs more.
#
# The forecasts fail their test. Where nothing is held back, on news topics, they rightly promise nothing, and the one clear gain lies inside its interval, which holds no gain as well. But on the three other sets an earlier layer reads the labels better than the
# last one, so the calibration is sure that LoRA pays, and these sets gained nothing or next to nothing. With more steps some of them might have; these runs cannot say. Intervals of 80 % that hold two gains of five are of no use: fit a calibration on texts of your own kind, or train.
#
# ## 8. What holds, and what does not
#
# | claim | what we saw |
# |---|---|
# | fine-tuning gains where pretraining had no use for the label, not where it had solved it | held on our two tasks; the second half is arithmetic |
# | LoRA lets through what earlier layers know and the last one dropped | held on the watermark, seen layer by layer; as a forecast for new tasks it is not shown to beat *no gain* |
# | fine-tuning aligns the label directions with the next-token directions: NTPS rises | no: it fell at most layers, whether the task gained or not |
# | held-out R² through $V$ at the last layer rises with the gain | held here; it can also rise without any gain, as for the topic, since R² is about squared error and accuracy about the largest class |
# | LoRA leaves intruder dimensions | depends on rank and scale; they were not needed for the gain |
# | NTPS before fine-tuning predicts the gain | not better than the probe's accuracy, on the published figures |
# | gains are free | no: the next token is predicted worse, and how much worse does not follow the gain |
#
# ## 9. Your own model, your own data
#
# The whole course in five commands. `MODEL` is a folder or a hub name, `letters.csv` has a column of texts and one of labels.
#
# ```bash
# # 1. What is there, and what is it read against?
# ntps score MODEL letters.csv --permutations 200 --control --output report
# # 2. Does it go with accuracy, on tasks it was not chosen on?
# ntps study --model MODEL --model OTHER --task letters.csv --task ... --output study
# # 3. Is tuning worth it?
# ntps prescreen MODEL --task letters.csv --task ... --budget 2
# # 4. Tune, and look before and after.
# ntps lora MODEL letters.csv --seeds 3 --output tuned
# # 5. Against all weights.
# ntps lora MODEL letters.csv --method full --seeds 3 --output all
# ```
#
# Now in miniature, in Python, with a file that we write on the spot. Put your own path and model in the places marked with ←.
#
# **Step 1: the data.** A thousand texts are better than the four hundred here, and every class needs a few dozen.

# %%
folder = tempfile.TemporaryDirectory()
path = Path(folder.name) / "letters.csv"  # ← your file
written = ntps.load_task("miniworld/first_mentioned", n=400, seed=5)
labels = [written.classes[label] for label in written.labels]
pd.DataFrame({"text": written.texts, "label": labels}).to_csv(path, index=False)

own = ntps.load_task(path)  # other column names: text_column="...", label_column="..."
print(own)

# %% [markdown]
# **Step 2: the score, with all it is read against.** Folds give held-out R² with an interval, shuffled labels a null, fresh weights a control; a probe, TF-IDF of the words and the label frequencies stand beside it.
#
# > **Predict.** The label says which of two people is named first. No bag of words shows that. Fresh weights?

# %%
fresh = ntps.load_model("miniworld-base", dtype="float32", random_weights=True)
control = ntps.collect(fresh, own, progress=False)
representations = ntps.collect(model, own, progress=False)  # ← your model
result = ntps.score(representations, control=control, permutations=200)
with plt.style.context("default"):
    report = ntps.write_report(result, Path(folder.name) / "report")  # ← a folder of your own, so that it stays
print("written to the folder report:", ", ".join(file.name for file in report), end="\n\n")
for sentence in result.sentences():
    print(textwrap.fill(sentence, 100))

# %% [markdown]
# **Step 3: the report.** `report/report.html` is one page that needs nothing beside it: open it in a browser, mail it. The tables are also there as `scores.csv` and `scores.json`, the pictures as PNG.

# %%
scores = pd.read_csv(Path(folder.name) / "report" / "scores.csv").set_index("layer")
shown = ["ntps", "ntps_shuffled", "ntps_p", "explained_heldout", "explained_heldout_low", "explained_heldout_high",
         "ceiling_heldout", "ceiling_heldout_random"]  # fmt: skip
display(scores[shown].T)
display(Image(filename=str(Path(folder.name) / "report" / "layers.png"), width=520))

# %% [markdown]
# **Answer.** Hardly. Read the table from the bottom up. The ceiling says that the model knows who was named first, fresh weights hardly do, so this is pretraining's work. The share through $V$ is near zero: next-token prediction does not keep the order among its
# strongest directions. And the last layer's ceiling is lower than the one below it: something is held back.
#
# **Step 4: worth tuning?**

# %%
verdict = ntps.prescreen(model, [own]).rows[0]
before = forecasts.set_index("task").loc["miniworld/first_mentioned"]
for name, row in (("part 7", before), ("here, 400 texts", verdict)):
    ends = " to ".join(f"{100 * row[end]:+z.0f}" for end in ("low", "high"))
    print(
        f"{name:16s} probe {row['accuracy']:.3f}, held back {row['held_back']:.2f}, gain {ends} points: {row['verdict']}"
    )
folder.cleanup()

# %% [markdown]
# Two verdicts for one task and one model: these are the labels of `first_mentioned`, judged in part 7 on other texts. Less than a tenth was held back there, more than twice that here. Both intervals reach as far as the probe leaves room: at the upper end every text is right. Neither knows how
# uncertain *held back* itself is, a difference of two R² from few texts, so they are too narrow, and "likely pays" is a reason to try, no promise.
#
# **Step 5: tune, and look again.** `ntps lora miniworld-base letters.csv` with your own file (the one written above was temporary and is gone), or `before_and_after(network, own)` as in part 1. Run it: is the measured gain inside the interval? Its probe learns
# from 60 % of the texts only, so first compare the accuracies *before*. Whatever comes out, report it with the number of test texts, the seeds, what the probe alone reached, and what the next token costs now.
#
# This is the end of the course. You have derived two encoders, compared their spans, turned the score into a loss, learned what a null is for, and tuned a model with both eyes open. What to keep is short: the score is a question
# about directions; held-out R² and controls give it an answer.
#
# ## Take-away
#
# - LoRA adds $\frac{\alpha}{r} B A$ to each matrix and starts as the frozen probe: its gain is what training adds to a readout.
# - It hardly gains where the probe is right already; where earlier layers know what the last one has dropped, it may. The language model pays.
# - NTPS may rise or fall under fine-tuning. Held-out R², through V and of all directions, says whether labels came into reach.
# - Rank, $\alpha$, learning rate and steps act together; intruder dimensions come from few directions used loudly.
# - A forecast of the gain must beat "no gain" and "gains fall with the probe's accuracy" on tasks left out, and should say when it does not know. Ours is about four fifths of what is held back, and is not shown to beat "no gain".
#
# ## Quiz
#
# **1.** A probe reaches 0.97. What is the most that LoRA can gain, and which prediction of part 6 knows that?
# <details><summary>Answer</summary>
#
# Three points. The line in the probe's accuracy learns it from other tasks: where accuracy is high, gains are small. NTPS has to beat that before it adds anything.
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
# **4.** Nothing is held back: the last layer's ceiling is the best of all. Can LoRA still gain?
# <details><summary>Answer</summary>
#
# Yes. A ceiling is that of a linear readout of mean states. Training can build a feature that no layer shows linearly, or weigh words that a mean drowns. It is a reason to expect less, not a bound.
#
# </details>
#
# **5.** The forecast for your task is "no evidence either way: -5 to +25 points". What do you do with it?
# <details><summary>Answer</summary>
#
# Take it as it is: the frozen model does not tell. Run a short fine-tuning with several seeds, or a study of your own tasks with `--lora` for a calibration that knows your kind of text. Do not report the middle of the interval.
#
# </details>
#
# ## References
#
# - Cheng, Hu, Huang, Balestriero, *Next Token Perception Score*, [arXiv 2505.17169](https://arxiv.org/abs/2505.17169) (2025): the section on LoRA, and the figures of part 6.
# - Hu, Shen, Wallis, Allen-Zhu, Li, Wang, Wang, Chen, *LoRA: Low-Rank Adaptation of Large Language Models*, [arXiv 2106.09685](https://arxiv.org/abs/2106.09685) (2021).
# - Shuttleworth, Andreas, Torralba, Sharma, *LoRA vs Full Fine-tuning: An Illusion of Equivalence*, [arXiv 2410.21228](https://arxiv.org/abs/2410.21228) (2024): intruder dimensions.
# - Björck and Golub, *Numerical Methods for Computing Angles between Linear Subspaces*, Mathematics of Computation 27, 1973.
# - Vovk, Gammerman, Shafer, *Algorithmic Learning in a Random World*, 2005: intervals from errors on cases left out.
# - Practise: [exercises 04](exercises/ex04_lora_effects.ipynb).
