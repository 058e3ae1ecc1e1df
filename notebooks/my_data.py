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
# # Your own model, your own texts
#
# <!-- badges -->
# [![Open in Binder](images/badge_binder.svg)](https://mybinder.org/v2/gh/OWNER/ntps/main?urlpath=lab/tree/notebooks/my_data.ipynb) [![Open in Colab](images/badge_colab.svg)](https://colab.research.google.com/github/OWNER/ntps/blob/main/notebooks/my_data.ipynb)
# <!-- /badges -->
#
# A template. Change the lines of the cell **What is yours** and run all cells; as it stands it scores the bundled model on a small file that comes with the package. What the
# numbers mean is told in [lesson 00](00_start_here.ipynb), what a forecast is worth in [lesson 05](05_gain_forecasts.ipynb).

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
import ntps
from ntps.course import progress, say, show
from ntps.course.texts import example_file

# %% [markdown]
# **What is yours.** `MODEL` is a folder or a name on the Hugging Face hub. `TEXTS` is a .csv, .tsv, .jsonl or .parquet file with a column of texts and one of labels, or a data set on the hub. A few dozen texts of each class are the least; a
# thousand texts in all are better. `LIMIT` takes a random part of a long file.

# %%
MODEL = "miniworld-base"
TEXTS = example_file()  # "letters.csv"
COLUMNS = {"text_column": "text", "label_column": "label"}
LIMIT = None  # 1000

# %%
task = ntps.load_task(TEXTS, limit=LIMIT, **COLUMNS)
model = ntps.load_model(MODEL)
say(model, task, f"[{task.classes[task.labels[0]]}]  {task.texts[0][:200]} ...")

# %%
with progress():
    read = ntps.collect(model, task, progress=True)
    fresh = ntps.load_model(MODEL, random_weights=True)
    control = ntps.collect(fresh, task, progress=True)
result = ntps.score(read, control=control, permutations=100)
print(result)

# %%
result.plot()
show("my_data.1")

# %%
with progress():
    screened = ntps.prescreen(model, [task], progress=True)
print(screened)

# %% [markdown]
# **Before you report it**: the number of texts, R² on held-out texts of all directions and through V with their intervals, the same of fresh weights, and the probe beside them. NTPS alone says nothing; the forecast of the last cell was fitted on the bundled language and is only
# as good as your texts are like it. `ntps score MODEL TEXTS --output report` writes all of this as a page.
