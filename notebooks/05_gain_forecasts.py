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
# # 05 · Can the gain be known in advance?
#
# <!-- badges -->
# [![Open in Binder](images/badge_binder.svg)](https://mybinder.org/v2/gh/OWNER/ntps/main?urlpath=lab/tree/notebooks/05_gain_forecasts.ipynb) [![Open in Colab](images/badge_colab.svg)](https://colab.research.google.com/github/OWNER/ntps/blob/main/notebooks/05_gain_forecasts.ipynb)
# <!-- /badges -->
#
# **Time:** 45 minutes · **Prerequisites:** [lesson 03](03_empirical_correlations.ipynb) and [lesson 04](04_lora_effects.ipynb).
#
# **In this lesson** you will
# - predict the [gain](glossary.md#gain) of LoRA on the paper's figures, and compare with baselines that need no score;
# - rank tasks by expected gain without training, see where such a forecast says nothing, and what a short look at training adds;
# - test the forecast on a real model and on texts of another kind;
# - go through the whole course once more with a file of your own.
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
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from IPython.display import display

import ntps
from ntps.course import measurements, outcome, predict, progress, say, show
from ntps.course.widgets import COLORS, PALETTE
from ntps.paper import published
from ntps.study import gain_prediction

sns.set_theme(style="ticks", palette=PALETTE)
pd.options.display.float_format = "{:z.2f}".format
# torch uses every core; on a shared machine: import torch; torch.set_num_threads(2)

RERUN = True  # False: reads the forecasts of an earlier run instead of making them, for a slow machine

# %% [markdown]
# ## 1. A prediction, and what it must beat
#
# The paper reports that NTPS, before any fine-tuning, goes with the gain of LoRA over the probe: rank correlations from moderate to strong, negative, in 8 models. But gains also fall with the probe's accuracy, by arithmetic: whoever is right
# on 99 of 100 texts can gain one point at most. A score that predicts should beat that. (As in lesson 03, the published scores are those of the released code, with the smallest eigenvectors, not the quantity of lesson 02.)
#
# > **Predict.** Leave a data set out, fit a line on the others, predict the gain. Which comes closest: a line in NTPS, a line in the probe's accuracy, the mean gain, or "no gain at all"?

# %%
inputs = {"zero": "no gain", "mean": "mean gain", "accuracy": "probe accuracy", "ntps": "NTPS",
          "accuracy + ntps": "both"}  # fmt: skip
predict("05.1 comes closest, data sets left out", choices=tuple(inputs.values()))

# %%
figures = published.results()
figures["z"] = figures.groupby("model")["ntps_gain"].transform(lambda score: (score - score.mean()) / score.std(ddof=0))
errors = {over: gain_prediction(figures, over=over) for over in ("task", "model")}
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
for shift, over, color, marker in ((-0.12, "task", "C3", "o"), (0.12, "model", "0.3", "s")):
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
show("05.1")

# %%
margins = (
    pd.concat(errors, names=["left out"])[["mae", "margin", "margin_low", "margin_high", "margin_to_accuracy"]] * 100
)
display(margins.loc[(slice(None), list(inputs)), :].rename(index=inputs, level="inputs"))
by_set = figures.groupby("dataset")["gain"].mean().sort_values(ascending=False) * 100
two, rest = by_set.iloc[:2], by_set.iloc[2:]
print(f"mean gain of {' and '.join(two.index)}: {two.mean():.1f} points; of the other ten: {rest.mean():.1f}")
outcome("05.1 comes closest, data sets left out", inputs[errors["task"].mae.loc[list(inputs)].idxmin()])

# %% [markdown]
# **Answer.** With data sets left out, "no gain at all". `margin` is the error of predicting *no gain* minus that of the prediction, in points: positive is better than expecting nothing. **No interval (95 %, by data set) lies above zero**: no line, in NTPS, in the accuracy or in both, is shown to be better
# than expecting no gain, whichever is left out; where data sets are left out, NTPS alone is even worse. Beside the line in the probe's accuracy (`margin_to_accuracy`) it wins or loses a point or less. Two data sets hold nearly all of the gain, and
# two points fit no line.
#
# This is a statement about what these data can show. NTPS even had a head start here, since its layer and rank were chosen with all gains in sight ([lesson 03](03_empirical_correlations.ipynb)). A rank correlation of one model over 12 data sets and a
# prediction for the 13th are different things.
#
# ## 2. Prescreening a set of tasks
#
# In practice the question is: *I have ten tasks and can tune for two.* [`prescreen`](glossary.md#prescreening) takes one pass over the texts of each, reads the probe's accuracy and what is [held back](glossary.md#held-back), and lets a
# [calibration](glossary.md#calibration) turn them into an expected gain with an interval: a small regression, fitted on the gains of bundled models on bundled tasks.
#
# > **Predict.** With a budget of two: which of the eight [tasks](glossary.md#bundled-world) named below would you tune for? On which would you say "I cannot tell"?

# %%
NAMES = ["topic", "tense", "register", "intent", "sentiment", "first_mentioned", "watermark", "noise"]
predict("05.2 largest expected gain", choices=NAMES)

# %%
if RERUN:
    with progress():  # half a minute on a quiet core; probe_steps=0: nothing is trained yet
        tasks = ["miniworld/" + name for name in NAMES]
        screened = ntps.prescreen("miniworld-base", tasks, budget=2, probe_steps=0, progress=True)
else:
    screened = measurements.lesson_screens()["eight"]
print(screened)
(calibration,) = screened.calibrations
terms = zip(calibration.inputs, calibration.coefficients[1:], strict=True)
print("\nslopes of the calibration:", ", ".join(f"{slope:+z.2f} per 1.0 of {name}" for name, slope in terms))

# %%
forecasts = screened.to_dataframe()
outcome("05.2 largest expected gain", forecasts.task[forecasts.expected.idxmax()].removeprefix("miniworld/"))
runs = {name: measurements.lesson_runs()[name] for name in ("topic", "watermark")}  # those of lesson 04
places = np.arange(len(forecasts))
figure, ax = plt.subplots(figsize=(7.2, 3.4), layout="constrained")
ax.hlines(places, 100 * forecasts.low, 100 * forecasts.high, color="0.6", lw=3)
ax.plot(100 * forecasts.expected, places, "o", color=COLORS["exact"], label="forecast, with its interval")
for label, (name, run) in zip(("measured in lesson 04", None), runs.items(), strict=True):
    row = forecasts.index[forecasts.task == f"miniworld/{name}"][0]
    ax.plot(100 * run.gain, row, "X", color="0.15", ms=9, label=label)
    where = "inside" if forecasts.low[row] <= run.gain <= forecasts.high[row] else "outside"
    print(f"{name:9s}  measured {100 * run.gain:+z.0f} points, {where} its interval")
ax.axvline(0, color="0.3", lw=0.8)
ax.set_yticks(places, [name.removeprefix("miniworld/") for name in forecasts.task])
ax.invert_yaxis()
ax.set(xlabel="gain of LoRA, points of accuracy")
ax.legend(frameon=False, fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
sns.despine()
show("05.2")

# %% [markdown]
# **Answer.** The budget goes to the watermark and to `first_mentioned`; on four of the eight, the watermark and the coin among them, the interval is more than thirty points wide. Read the last lines of the printed output first. These very tasks, on this very model, are among those that the calibration was fitted on, so this is no test of it. The honest number is the error on *tasks left out*, beside that of always
# expecting no gain. And the interval is the message. Where it holds gains worth having (a point or more) as well as none, the verdict is "no evidence either way". It is an
# interval of 80 %, which may miss one time in five; the printed lines say how often it held on tasks left out. See where the two measured gains lie.
#
# A probe that fails can mean two things: labels that cannot be learned (the coin, `noise`) and labels that training will find. Accuracy does not tell the watermark from the coin; what earlier layers know does, and the calibration's slopes say
# that it asks hardly anything else: **the forecast is a little more than half of what is held back**, cut off at what the probe leaves to gain, and the accuracy of the probe hardly enters. So the forecast is blind to what no layer shows in a linear way and training may find all the same.
#
# ### A look at training
#
# The next cheapest thing is a [look](glossary.md#look): take the first steps of the very training that would follow, and see by how much they lower the loss of the [validation texts](glossary.md#fine-tuning). That training takes a hundred steps, so a look of 20 is a fifth of it.
# It need not be wasted: given a folder as `output`, `prescreen` leaves the state of each look there, and `ntps lora --resume` goes on from it.
#
# `prescreen` takes a look of 20 steps unless it is told otherwise, and brings a calibration for 0, 20 and 50 steps, 0 being the frozen model alone. What each is worth was measured on 305 runs of five models on twelve tasks, the gains on each task predicted from those on the others.
#
# > **Predict.** Always forecasting the mean gain of other tasks errs by five points. After how many of the hundred steps is the error less than half of that?

# %%
predict("05.2 steps that halve the error of the mean gain", choices=(0, 20, 50))

# %%
abouts = {steps: ntps.load_calibration(steps=steps).about for steps in (0, 20, 50)}
worth = pd.DataFrame({
    "error": {steps: 100 * about["mean_absolute_error"] for steps, about in abouts.items()},
    "error of the mean gain": {steps: 100 * about["mean_absolute_error_of_the_mean_gain"] for steps, about in abouts.items()},
    "error of no gain": {steps: 100 * about["mean_absolute_error_of_no_gain"] for steps, about in abouts.items()},
    "better than no gain by": {steps: 100 * about["margin"]["mean"] for steps, about in abouts.items()},
    "low": {steps: 100 * about["margin"]["low"] for steps, about in abouts.items()},
    "high": {steps: 100 * about["margin"]["high"] for steps, about in abouts.items()},
}).rename_axis("steps")  # fmt: skip
display(worth)
halved = worth.index[worth["error"] < worth["error of the mean gain"] / 2][0]
outcome("05.2 steps that halve the error of the mean gain", int(halved))

# %% [markdown]
# **Answer.** After 50. Errors are in points of accuracy, on tasks left out; `low` and `high` are a 95 % interval, over tasks, of the column before them. The longer the look, the smaller the error. But the mean gain is the easier bar: always expecting *no* gain errs by less, and none of the three
# is shown to beat that. In all three rows the interval holds zero. Most of these runs gained nothing, so whoever always says so is seldom far off, and twelve tasks are few. A look narrows the question; it does not answer it.
#
# For models and texts of your own kind, fit your own: `ntps study --lora --model ... --task ... --output mine` runs the gains and writes `mine/calibration.json`, and `ntps prescreen ... --calibration mine/calibration.json` reads it.
# It takes six tasks at least; a dozen are better.
#
# ## 3. The same on a real model
#
# Gemma 3 270M on the five text sets of [lesson 03](03_empirical_correlations.ipynb), part 7. It was tuned beforehand, with the command printed below: 60 steps on a CPU, few for such a model. The figures come with the package. The forecasts are those of the
# bundled calibration without a look, read from the study of lesson 03. Nothing says that a calibration fitted on a made-up language works for film reviews; here it is put to the test.
#
# > **Predict.** On how many of the five sets does NTPS at the last layer rise?

# %%
predict("05.3 sets of five on which NTPS rises")

# %%
tuned = measurements.real_lora()
say(tuned.attrs["command"])
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
outcome("05.3 sets of five on which NTPS rises", int((shown["NTPS"] > 0).sum()))
inside = ((shown["low"] <= shown["gain"]) & (shown["gain"] <= shown["high"])).sum()
sure = (shown["gain"] > 2 * shown["standard error"]).sum()
say(
    f"A gain of more than two standard errors on {sure} of {len(shown)} sets; {inside} gains inside their 80 % interval. "
    f"NTPS rose on {(shown['NTPS'] > 0).sum()} of them, the held-out share through V on {(shown['through V'] > 0).sum()}."
)

# %% [markdown]
# **Answer.** On one, by next to nothing. Accuracies, gains and forecasts are in points; the last four columns are after minus before. Where they are all zero, at no evaluation step were the weights better than at the start, and the frozen probe was kept. Five sets and one seed are little. But the
# pattern is that of the bundled world: where training found something, held-out shares rose, raw NTPS hardly moved, and the next token costs more.
#
# Four of the five gains lie inside their intervals, as many as 80 % promises. But most intervals say little. Where nothing is held back, on news topics, they rightly promise next to nothing; those of film reviews and subject lines hold several points and no gain as well. On the two other sets an earlier layer reads the labels
# clearly better than the last one, so the calibration is sure that LoRA pays. On the tweets it did, by about as much as was promised; telling reviews from plots gained nothing. With more steps it might have; these runs cannot say. Where the forecast was sure, it was right once in two times: fit a calibration on texts of your own kind, or train.
#
# ## 4. Your own model, your own data
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
# **Step 2: the score, with all it is read against.** Folds give held-out R² with an interval, shuffled labels a null, fresh weights a control; a probe, [TF-IDF](glossary.md#tf-idf) of the words and the label frequencies stand beside it.
#
# > **Predict.** The label says which of two people is named first. No bag of words shows that. Fresh weights?

# %%
predict("05.4 fresh weights tell who is named first", choices=("hardly", "in part", "as well as the trained ones"))

# %%
model = ntps.load_model("miniworld-base", dtype="float32")  # ← your model
fresh = ntps.load_model("miniworld-base", dtype="float32", random_weights=True)
control = ntps.collect(fresh, own, progress=False)
representations = ntps.collect(model, own, progress=False)
result = ntps.score(representations, control=control, permutations=200)
with plt.style.context("default"):
    report = ntps.write_report(result, Path(folder.name) / "report")  # ← a folder of your own, so that it stays
say(f"written to the folder report: {', '.join(file.name for file in report)}", "", *result.sentences())

# %% [markdown]
# **Step 3: the report.** `report/report.html` is one page that needs nothing beside it: you can open it in a browser or mail it. (Here it lies in a temporary folder, which the cell of step 4 removes; to keep it, change the line above that says so.) The tables are also there as `scores.csv` and `scores.json`, the pictures as PNG.

# %%
scores = pd.read_csv(Path(folder.name) / "report" / "scores.csv").set_index("layer")
shown = ["ntps", "ntps_shuffled", "ntps_p", "explained_heldout", "explained_heldout_low", "explained_heldout_high",
         "ceiling_heldout", "ceiling_heldout_random"]  # fmt: skip
display(scores[shown].T)
share = scores.ceiling_heldout_random.max() / scores.ceiling_heldout.max()
told = "hardly" if share < 0.25 else "in part" if share < 0.75 else "as well as the trained ones"
outcome("05.4 fresh weights tell who is named first", told)
with plt.style.context("default"):
    result.plot()
show("05.3")

# %% [markdown]
# **Answer.** Hardly. Read the table from the bottom up. The ceiling says that the model knows who was named first, fresh weights hardly do, so this is pretraining's work. The share through $V$ is near zero: next-token prediction does not keep the order among its
# strongest directions. And the last layer's ceiling is lower than the one below it: something is held back.
#
# **Step 4: worth tuning?**

# %%
if RERUN:
    with progress():  # a pass and twenty steps
        (verdict,) = ntps.prescreen(model, [own], progress=True).rows
else:
    (verdict,) = measurements.lesson_screens()["own"].rows
before = forecasts.set_index("task").loc["miniworld/first_mentioned"]
for name, row in (("part 2", before), ("here, with a look", verdict)):
    ends = " to ".join(f"{100 * row[end]:+z.0f}" for end in ("low", "high"))
    print(
        f"{name:18s} probe {row['accuracy']:.3f}, held back {row['held_back']:.2f}, gain {ends} points: {row['verdict']}"
    )
print(
    f"loss saved by the first {verdict['steps']} steps: {verdict['saved']:.3f} nats; next: {verdict['next'].split(',')[0]}"
)
folder.cleanup()

# %% [markdown]
# Two forecasts for one task and one model: these are the labels of `first_mentioned`, judged in part 2 on a thousand other texts. The first steps save nothing here, yet LoRA is still said to pay, since an earlier layer knows more than the last one. Both intervals reach as far as the probe leaves room: at the upper end every text is right. Neither knows how
# uncertain *held back* itself is, a difference of two R² from few texts, so they are too narrow, and "likely pays" is a reason to try, no promise.
#
# **Step 5: tune, and look again.** `ntps lora miniworld-base letters.csv` with your own file (the one written above was temporary and is gone), or `before_and_after(network, own)` as in [lesson 04](04_lora_effects.ipynb), part 1. Run it: is the measured gain inside the interval? Its probe learns
# from 60 % of the texts only, so first compare its accuracy *before* with that of the probe above. Whatever comes out, report it with the number of test texts, the seeds, what the probe alone reached, and what the next token costs now.
#
# ## 5. What holds, and what does not
#
# | claim | what we saw |
# |---|---|
# | NTPS before fine-tuning predicts the gain | not shown to beat *no gain*, and within a point of the probe's accuracy, on the published figures |
# | what earlier layers know and the last one dropped tells the gain | as a forecast for new tasks it is not shown to beat *no gain* |
# | the first steps of training tell the gain | after 20 of 100 the error is a little more than half that of the mean gain, after 50 less; *no gain*, which errs less than the mean gain does, is not shown to be beaten |
# | a calibration carries over to another model and other texts | not reliably: of three sets on which it was sure of a gain, one gained |
#
# This is the end of the course. You have derived two encoders, compared their spans, turned the score into a loss, learned what a null is for, and tuned a model with both eyes open. What to keep is short: the score is a question
# about directions; held-out R² and controls give it an answer.
#
# ## Take-away
#
# - A forecast of the gain must beat "no gain" and "gains fall with the probe's accuracy" on tasks left out, and should say when it does not know.
# - On the published figures no line, in NTPS or in the probe's accuracy, is shown to beat "no gain"; two data sets hold nearly all of it.
# - From the frozen model our forecast is a little more than half of what is held back. After fifty of a hundred steps of training its error is less than half that of the mean gain, and "no gain" is still not shown to be beaten.
# - A calibration speaks for tasks and texts of the kind it was fitted on.
# - Report a gain with the number of test texts, the seeds, what the probe alone reached, and what the next token costs afterwards.
#
# ## Quiz
#
# **1.** A probe reaches 0.97. What is the most that LoRA can gain, and which prediction of part 1 knows that?
# <details><summary>Answer</summary>
#
# Three points. The line in the probe's accuracy learns it from other tasks: where accuracy is high, gains are small. NTPS has to beat that before it adds anything.
#
# </details>
#
# **2.** With data sets left out, the error of a prediction is 0.8 points smaller than that of "no gain", with an interval from -0.6 to 2.1. Is the prediction better?
# <details><summary>Answer</summary>
#
# It is not shown to be. The interval holds zero and negative values, so on other data sets it may as well be worse. More data sets would tell, more texts in these would not: the sets are what was drawn.
#
# </details>
#
# **3.** Nothing is held back: the last layer's ceiling is the best of all. Can LoRA still gain?
# <details><summary>Answer</summary>
#
# Yes. A ceiling is that of a linear readout of mean states. Training can build a feature that no layer shows linearly, or weigh words that a mean drowns. It is a reason to expect less, not a bound.
#
# </details>
#
# **4.** The forecast for your task is "no evidence either way: -5 to +25 points". What do you do with it?
# <details><summary>Answer</summary>
#
# Take it as it is: what was looked at does not tell. Look at more steps, run a short fine-tuning with several seeds, or a study of your own tasks with `--lora` for a calibration that knows your kind of text. Do not report the middle of the interval.
#
# </details>
#
# **5.** A calibration is tested on the tasks that it was fitted on, and nine of ten gains lie inside its intervals. How often will it hold on new tasks?
# <details><summary>Answer</summary>
#
# That cannot be read from it: the line has seen these gains. The honest count comes from tasks left out, and it still speaks for tasks drawn from the same kind. On another model and other texts, part 3 counted three of five.
#
# </details>
#
# ## References
#
# - Cheng, Hu, Huang, Balestriero, *Next Token Perception Score*, [arXiv 2505.17169](https://arxiv.org/abs/2505.17169) (2025): the section on LoRA, and the figures of part 1.
# - Vovk, Gammerman, Shafer, *Algorithmic Learning in a Random World*, 2005: intervals from errors on cases left out.
# - Practise: [exercises 05](exercises/ex05_gain_forecasts.ipynb).
