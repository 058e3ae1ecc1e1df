"""Write the measured blocks of README and of the pages in docs/ from the files they were measured into.

    python -m benchmarks.tables

`make demo` writes report/demo.txt, `make bench` benchmarks/results/latest.json, and the commands beside each table of
the pages the rest; this script copies them between the pages' markers, so no figure is typed by hand.
"""

import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pandas as pd

from benchmarks import forecast
from ntps._files import atomic_write
from ntps.study import grid_spearman
from ntps.study.calibration import BUNDLED_STEPS, load_calibration
from ntps.study.gain import tuned_changes
from ntps.study.table import CHANGES

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
# name in latest.json, what it is, what was aimed at, and the entry that says of which model and texts
RATIOS = (
    ("moments", "moments: 19 layers, 640 wide, 128 short texts", "", ""),
    ("solve_all_ranks_640", "solve: one layer, 640 wide, all ranks", "at least 20", ""),
    ("solve_all_ranks_2048", "solve: one layer, 2048 wide, all ranks", "at least 20", ""),
    ("solve_19_fractions_640", "solve: all ranks here, 19 fractions there, 640 wide", "", ""),
    ("solve_19_fractions_2048", "solve: all ranks here, 19 fractions there, 2048 wide", "", ""),
    ("layers_at_once_640", "two layers, 640 wide: one after the other over both at once", "", ""),
    ("end_to_end", "end to end: {model}, {texts} texts", "at least 4.5", "end_to_end"),
    ("forward_with_moments", "{model}: forward with moments over forward alone *", "at most 1.2", "forward"),
    ("transformer_ranker", "TransformerRanker, its defaults: {model}, {texts} texts", "", "transformer_ranker"),
    ("memory_10000_over_1000", "peak memory, 10,000 texts over 1,000 *", "at most 1.05", ""),
    ("permutations_200_over_forward", "{model}: 200 shuffled labels over the forward *", "at most 1", "permutations"),
    ("training_over_one_text_a_batch", "LoRA, base model: tokens a second over batches of one text", "at least 3", ""),
    ("study_two_workers", "study: one process over two workers, one thread each", "at least 1.7", ""),
    ("beside_a_neighbour", "`ntps score` beside a process that keeps a core busy, over alone *", "at most 1.8", ""),
    ("training_over_all_weights", "LoRA on the base model: tokens a second over training all weights", "", ""),
    (
        "training_over_all_weights_real",
        "LoRA on {model}: tokens a second over training all weights",
        "at least 0.8",
        "training_real",
    ),
)


def speed_table() -> str:
    """Return the ratios as a Markdown table."""
    measured = json.loads((RESULTS / "latest.json").read_text())
    rows = ["| what | ratio | aim |", "|---|---|---|"]
    for name, label, aim, entry in RATIOS:
        if name in measured["ratios"]:
            words = label.format(**measured.get(entry, {}))
            rows.append(f"| {words} | {measured['ratios'][name]:.2f} | {aim} |")
    machine = measured["machine"]
    where = f"{machine['threads']} threads of a {machine['processor']} processor"
    note = "\n\\* less is better. "
    note += f"Measured on {machine['gpu'] or where}, torch {machine['torch']}, ntps {machine['ntps']}."
    older = {name: made for name, made in measured["versions"].items() if made != machine["ntps"]}
    if older:
        note += f" Of an older version: {', '.join(f'{name} ({made})' for name, made in older.items())}."
    if "study" in measured:
        study, training = measured["study"], measured["training"]
        note += (
            f" A study of {study['models']} bundled models by {study['tasks']} tasks ({study['texts']} texts, with "
            f"controls, nulls and probes) took {study['seconds']:.0f} s (aim: 300), 100 steps of LoRA (base) "
            f"{training['seconds_100_steps']:.0f} s (aim: 40)."
        )
    ranker = measured.get("transformer_ranker")
    if isinstance(ranker, dict):
        note += (
            f" TransformerRanker {ranker['version']} took {ranker['seconds']:.0f} s for the same texts where ntps took "
            f"{ranker['our_seconds']:.0f} s, both from loading the model to the scores."
        )
    return "\n".join(rows) + "\n" + note


def gpu_table() -> str:
    """Return what a pass costs on a GPU beside the forward pass alone, and how exact its products are."""
    measured = json.loads((RESULTS / "gpu.json").read_text())
    parts, machine = measured["parts"], measured["machine"]
    shapes = {name.removeprefix("pass "): part for name, part in parts.items() if name.startswith("pass")}
    rows = [f"| random weights in bfloat16 | {' | '.join(shapes)} |", "|---" * (len(shapes) + 1) + "|"]
    inputs = {"highest": "float32", "high": "TF32, the default", "medium": "bfloat16"}

    def add(what: str, values: Iterable[str]) -> None:
        rows.append(f"| {what} | {' | '.join(values)} |")

    for precision, words in inputs.items():
        ratios = (f"{part['with_moments_over_alone'][precision]:.2f}" for part in shapes.values())
        add(f"forward with moments over forward alone, products of {words}", ratios)
    add("the same with the states of all layers at once, TF32", (
        f"{part['update_at_once_over_alone']:.2f}" for part in shapes.values()
    ))  # fmt: skip
    add(
        "`collect` with tokenizing over forward alone",
        (f"{part['collect_over_alone']:.2f}" for part in shapes.values()),
    )
    add("tokens a second of `collect`", (f"{part['collect_tokens_per_second']:,.0f}" for part in shapes.values()))
    add("GB of device memory, planned", (f"{part['planned_peak'] / 1e9:.2f}" for part in shapes.values()))
    add("GB of device memory, measured", (f"{part['peak'] / 1e9:.2f}" for part in shapes.values()))
    add("seconds to solve a layer of that width", (
        f"{parts[f'solve {width}']['seconds']:.2f} ({width})" for width in (2048, 4096)
    ))  # fmt: skip
    rows += [
        "",
        "| least overlap of V with float64, least over layers | k = 16 | k = 64 | k = 256 |",
        "|---|---|---|---|",
    ]
    for name, label in (("overlap bundled", "miniworld-large"), ("overlap 1B", "1B")):
        for precision, words in inputs.items():
            least = parts[name]["least"][precision]
            rows.append(
                f"| {label}, products of {words} | {' | '.join(_overlap(least.get(k)) for k in ('16', '64', '256'))} |"
            )
    training = parts["training 1B"]["training_tokens_per_second"]
    changes = ", ".join(
        f"{parts['scores bundled'][precision]['ntps']:.4f} ({words})" for precision, words in inputs.items()
    )
    return "\n".join(rows) + (
        f"\n\nMeasured on one {machine['device']}, torch {machine['torch']}. LoRA on the 1B shape reads "
        f"{training:,.0f} tokens a second. NTPS of a bundled model differs from that of a CPU by at most {changes}."
    )


def large_table() -> str:
    """Return what many short texts take beside the model, and how fast they are read."""
    measured = json.loads((RESULTS / "large.json").read_text())
    rows = [
        "| texts | tokens | MB beside the model while reading, resident | without mapped files | while scoring "
        "| million tokens a minute of one core | MB on disk |",
        "|---" * 7 + "|",
    ]
    for row in measured["rows"]:
        sizes = [row["collect"]["above_model"], _without_files(row, "collect"), _without_files(row, "score")]
        speed = 60e-6 * row["tokens"] / row["collect"]["cpu_seconds"]
        cells = [f"{row['texts']:,}", f"{row['tokens']:,}", *(f"{size / 1e6:,.0f}" for size in sizes), f"{speed:.1f}"]
        rows.append(f"| {' | '.join(cells)} | {row['disk'] / 1e6:,.0f} |")
    first, *more = measured["rows"]
    least = first["collect"]["peak_without_files"]
    ratios = [f"{row['texts']:,} texts take {row['collect']['peak_without_files'] / least:.2f}" for row in more]
    machine = measured["machine"]
    return "\n".join(rows) + (
        f"\n\nTo read, {' and '.join(ratios)} times the memory of {first['texts']:,}, process and model included and "
        f"without mapped files (aim: 1.2 for 100,000). Measured with one thread of a busy machine, torch "
        f"{machine['torch']}, ntps {machine['ntps']}; the rate is by processor time."
    )


def _without_files(row: dict[str, Any], part: str) -> float:
    return row[part]["peak_without_files"] - row["model_without_files"]


def costs_table() -> str:
    """Return what the paper's grid would cost on one card of 24 GB, one of 80 GB and eight, and where it ends."""
    found = json.loads((RESULTS / "costs.json").read_text())
    rows = [
        "| model | layers x width | GB on the card (C0 and C1) | layers on 24 GB | hours of passes, 24 GB | 80 GB "
        "| hours of solving | GB of weights | GB of the largest pass |",
        "|---" * 9 + "|",
    ]
    models = found["models"]
    for name, row in models.items():
        device = row["device_bytes"]
        cells = [
            name.rpartition("/")[2],
            f"{row['layers']} x {row['width']:,}",
            f"{sum(device.values()) / 1e9:.1f} ({device['sums'] / 1e9:.1f})",
            f"{row['layers_that_fit']['24 GB']} of {row['layers']}",
            *(f"{row['pass_hours'][card]:.2f}" for card in found["cards"]),
            f"{row['solve_hours']:.1f}",
            *(f"{row[key] / 1e9:.1f}" for key in ("weights_on_disk", "largest_pass_on_disk")),
        ]
        rows.append(f"| {' | '.join(cells)} |")

    def total(value: Callable[[dict[str, Any]], float]) -> float:
        return sum(value(row) for row in models.values())

    small, large = (total(lambda row, card=card: row["pass_hours"][card]) for card in found["cards"])
    solving, weights = total(lambda row: row["solve_hours"]), total(lambda row: row["weights_on_disk"])
    kept = total(lambda row: row["all_passes_on_disk"])
    passes = max(row["largest_pass_on_disk"] for row in models.values())
    end, cell, solved = found["largest"], found["longest_cell_hours"], found["v_seconds_at_4096"]
    device = {name: size / 1e9 for name, size in end["device_bytes"].items()}
    cards = -(-sum(device.values()) // 79)
    state, names = end["state_bytes_a_text"], found["cards"]
    sentences = (
        f"All 96 cells: {small + solving:.0f} hours with one card of 24 GB ({names['24 GB']}),",
        f"{large + solving:.0f} with one of 80 GB ({names['80 GB']}), {solving:.0f} of either in solving on the",
        f"processor ({found['threads']} threads); {(large + solving) / 8:.0f} with eight processes that have a card",
        f"and a processor of that kind each, since the longest cell takes {cell:.1f}. V of a layer of width 4,096",
        f"takes the processor {solved['processor']:.0f} s and the card {solved['card']:.0f}. Disk:",
        f"{weights / 1e9:.0f} GB of weights and {passes / 1e9:.0f} of the largest pass, {kept / 1e9:.0f} where all",
        "passes are kept, half of that in float16.",
        "The sums of a model that does not fit may lie in the machine's memory, but adding to them there",
        f"takes {found['host_sums_seconds_a_batch']:.1f} s a batch for the 8B model, on a busy processor: fewer layers",
        f"are better.\n\n{end['name']} has {device['weights']:.0f} GB of weights and {device['sums']:.0f} of C0 and",
        f"C1, and so takes {cards:.0f} cards of 80 GB; a layer takes {end['solve_hours_a_layer']:.0f} hours to solve.",
        f"Ten million texts take {1e7 * state / 1e12:.0f} TB of pooled states.",
    )
    return "\n".join(rows) + "\n\n" + " ".join(sentences)


def _overlap(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


def world_table() -> str:
    """Return what the bundled world shows: last layer, mean over data seeds, tasks by what pretraining gave them."""
    frame = pd.read_csv(RESULTS / "miniworld.csv")
    last = frame[frame.layer == frame.groupby("model").layer.transform("max")]
    mean = last.groupby(["task", "model"]).mean(numeric_only=True).round(2) + 0.0  # no "-0.0"
    base = mean.xs("miniworld-base", level="model").sort_values("explained_heldout", ascending=False)
    ladder = [name for name in last.model.unique() if "@" in name]
    steps = [name.rpartition("step")[2] for name in ladder]
    heads = ["task", "Bayes", *(f"step {step}" for step in steps), "base", "all directions", "probe", "NTPS"]
    rows = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for task, row in base.iterrows():
        shares = [mean.loc[(task, name), "explained_heldout"] for name in ladder]
        numbers = [row.bayes, *shares, row.explained_heldout, row.ceiling_heldout, row.probe_accuracy, row.ntps]
        rows.append(f"| {task} | {' | '.join(f'{number:.2f}' for number in numbers)} |")
    return "\n".join(rows)


def seeds_table() -> str:
    """Return, over training seeds, what the leading directions of the base model explain before and after training."""
    frame = pd.read_csv(RESULTS / "miniworld_seeds.csv")
    last = frame[frame.layer == frame.layer.max()]
    wide = last.pivot_table(index="task", columns=["model", "training"], values="explained_heldout")
    start, end = wide["miniworld-base@step0"], wide["miniworld-base"]
    order = end.mean(axis=1).sort_values(ascending=False).index
    order = [task for task in order if max(start.loc[task].max(), end.loc[task].max()) >= 0.05]
    rows = ["| task | random weights | pretrained |", "|---|---|---|"]
    for task in order:
        cells = [", ".join(f"{round(value, 2) + 0.0:.2f}" for value in side.loc[task]) for side in (start, end)]
        rows.append(f"| {task} | {cells[0]} | {cells[1]} |")
    return "\n".join(rows)


def looks_table() -> str:
    """Return how well a short look at training forecasts the gain on tasks and models left out."""
    frame = forecast.read_table()
    part, real = frame[frame.bundled], frame[~frame.bundled]
    task, both = (forecast.error_table(part, over) for over in ("task", "both"))
    rows = [
        "| known | error, task left out | error, both left out | less than no gain's, both left out |",
        "|---" * 4 + "|",
    ]
    for name, row in both.iterrows():
        margin = f"{row.margin:+.1f} [{row.low:+.1f}, {row.high:+.1f}]" if name != "no gain" else ""
        rows.append(f"| {name} | {task.error[name]:.1f} | {row.error:.1f} | {margin} |")
    pace = (part["seconds_20"] / part["seconds_training"]).median()
    tuned, kept = (int(rows["tuned"].sum()) for rows in (part, real))
    gain = 100 * part.groupby("task")["gain"].mean().mean()
    largest, sets = 100 * real["gain"].max(), real["task"].nunique()
    return "\n".join(rows) + (
        f"\n\n{len(part)} runs of the bundled models on {part['task'].nunique()} tasks, of which {tuned} kept their "
        f"training; the mean gain over tasks is {gain:+.1f} points. The first 20 of 100 steps take {100 * pace:.0f} % "
        f"of a training. Of {len(real)} runs on two real models (270M and 135M, 200 or 600 texts of {sets} sets) "
        f"{kept} kept its training, and the largest gain is {largest:+.1f} points.\n\n{_calibrations()}"
    )


def margins_table() -> str:
    """Return what each margin of keeping would have kept, over the bundled models' runs that noted every look."""
    frame = forecast.read_table()
    table = forecast.margin_table(frame[frame.bundled])
    rows = ["| margin | kept | kept on noise | gain, points | lose more than a point |", "|---" * 5 + "|"]
    for margin, row in table.iterrows():
        rows.append(
            f"| {margin:g} | {100 * row.kept:.0f} % | {100 * row['kept on noise']:.0f} % | {row.gain:+z.1f} "
            f"| {row['lose a point']:.0f} |"
        )
    return "\n".join(rows) + f"\n\n{int(frame.at_100_gain.notna().sum())} runs."


def _calibrations() -> str:
    """Return what the calibrations that ship are worth."""
    abouts = {steps: load_calibration(steps=steps).about for steps in BUNDLED_STEPS}
    errors = ", ".join(
        f"{100 * about['mean_absolute_error']:.1f} after {steps}" for steps, about in abouts.items() if steps
    )
    frozen = abouts[0]
    return (
        "`ntps prescreen` reads least squares in the probe's accuracy, what is held back, and the loss saved, fitted "
        f"on {frozen['runs']} of these runs: on tasks left out "
        f"{100 * frozen['mean_absolute_error']:.1f} points from the frozen model and {errors} steps, where "
        "the mean gain of other tasks, which least squares without inputs predict, errs by "
        f"{100 * frozen['mean_absolute_error_of_the_mean_gain']:.1f}."
    )


def _signed(value: float, digits: int = 2) -> str:
    return "–" if pd.isna(value) else f"{round(value, digits) + 0.0:+.{digits}f}"


def gains_table() -> str:
    """Return what LoRA gains where training was kept and what it changes there, by task, mean over runs."""
    frame = forecast.read_table()
    tuned, sizes = frame[frame.tuned], frame.groupby("task").size()
    mean = tuned.groupby("task").mean(numeric_only=True).sort_values("gain", ascending=False)
    ends = tuned.groupby("task").gain.agg(["min", "max", "size"])
    heads = ("task", "tuned", "probe before", "gain (least to most)", "NTPS", "through V", "all directions",
             "next-token loss", "intruders")  # fmt: skip
    rows = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for task, row in mean.iterrows():
        low, high = (_signed(value) for value in ends.loc[task, ["min", "max"]])
        changes = [_signed(row[name]) for name in CHANGES]
        count = f"{ends.loc[task, 'size']:.0f} of {sizes[task]}"
        new = "–" if pd.isna(row.intruder_share) else f"{100 * row.intruder_share:.0f} %"
        rows.append(
            f"| {task} | {count} | {row.accuracy_before:.2f} | {_signed(row.gain)} ({low} to {high}) "
            f"| {' | '.join(changes)} | {new} |"
        )
    bundled = frame[frame.bundled]
    found = _changes_of(bundled)
    changed = {name: "{mean:+z.3f} [{low:+z.3f}, {high:+z.3f}]".format(**found[name]) for name in ("gain", *CHANGES)}
    z = (bundled.gain / bundled.gain_se)[bundled.tuned]
    never = [str(task) for task in sizes.index if task not in mean.index]
    return "\n".join(rows) + (
        f"\n\nNever kept: {', '.join(never) or 'none'}. Over the {found['n_tuned']} of {found['n_cells']} runs of "
        f"bundled models that kept their training, on average over {found['n_tasks']} tasks with 95 % t intervals, "
        f"accuracy changes by {changed['gain']}, NTPS by {changed['ntps_change']}, R² through V by "
        f"{changed['explained_change']}, R² of all directions by {changed['ceiling_change']}, the next-token loss by "
        f"{changed['next_token_change']} nats. Accuracy after is below before in {(z < 0).sum()}, in {(z < -2).sum()} "
        f"by two standard errors. Intruders were counted in {int(tuned.intruder_share.notna().sum())} of the runs."
    )


def paper_recipe_table() -> str:
    """Return what the paper's recipe gains and changes on real models, one row per run."""
    frame = forecast.read_table("paper").sort_values(["model", "task", "n_texts"])
    heads = ("model", "task", "texts", "probe before", "LoRA", "NTPS", "through V", "all directions",
             "next-token loss", "intruders")  # fmt: skip
    rows = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for row in frame.itertuples():
        changes = [_signed(getattr(row, name)) for name in CHANGES]
        rows.append(
            f"| {row.model} | {row.task} | {row.n_texts} | {row.accuracy_before:.2f} | {row.accuracy_after:.2f} "
            f"| {' | '.join(changes)} | {100 * row.intruder_share:.0f} % |"
        )
    z = frame.gain / frame.gain_se
    return "\n".join(rows) + (
        f"\n\n{len(frame)} runs of {_range(frame.steps)} steps, judged on {_range(frame.n_test)} other texts: "
        f"{int((z > 2).sum())} above the probe by two standard errors, {int((z < -2).sum())} below it by as much. "
        f"A run takes {_range(frame.seconds / 60, '.0f')} minutes on one busy core."
    )


def _range(values: pd.Series, digits: str = ",.0f") -> str:
    low, high = (format(value, digits) for value in (values.min(), values.max()))
    return low if low == high else f"{low} to {high}"


def _changes_of(frame: pd.DataFrame) -> dict[str, Any]:
    return tuned_changes(frame.astype({"tuned": int}))


QUANTITIES = {
    "ceiling_heldout": "R² of all directions",
    "logme": "LogME",
    "knn": "5 nearest neighbours",
    "hscore_shrunk": "H-score, shrunk",
    "explained_heldout": "R² through V",
    "explained": "through V, in sample",
    "retained": "retained",
    "ntps_z": "NTPS against shuffled labels",
    "ntps": "NTPS",
}


def quantity_table() -> str:
    """Return which quantity goes with a probe's balanced accuracy on other texts, bundled and real."""
    files = {"bundled": RESULTS / "quantity.json", "real": RESULTS / "quantity_real.json"}
    found = {where: json.loads(path.read_text()) for where, path in files.items() if path.exists()}
    heads, columns, notes = ["quantity"], [], []
    for where, result in found.items():
        rows = {row["quantity"]: row for row in result["targets"]["balanced_accuracy"]}
        old = {row["quantity"]: row for row in result["targets"]["above_majority"]}
        columns.append((rows, old))
        names = ("half the depth", "last layer", "task left out", "model left out", "fresh weights", "above majority")
        heads += [f"{where}: {name}" for name in names]
        tasks, models = len(result["tasks"]), len(result["models"])
        notes.append(f"{where}: {tasks} tasks within each of {models} models, so {tasks} independent tasks")
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for name, label in QUANTITIES.items():
        cells = []
        for rows, old in columns:
            row = rows.get(name, {})
            cells.append(f"{row['half']:.2f} [{row['low']:.2f}, {row['high']:.2f}]" if row else "–")
            numbers = [row.get(key) for key in ("last", "left_out_task", "left_out_model", "fresh_weights")]
            numbers.append(old.get(name, {}).get("half"))
            cells += ["–" if number is None else f"{number:.2f}" for number in numbers]
        lines.append(f"| {label} | {' | '.join(cells)} |")
    return "\n".join(lines) + f"\n\n{'; '.join(notes).capitalize()}."


def real_table() -> str:
    """Return the study of real models: what the middle layer holds beside fresh weights, what a probe reaches."""
    frame = pd.read_csv(ROOT / "ntps/course/data/real_study.csv")
    heads = ["model", "texts", "largest class", "accuracy", "balanced accuracy", "R² of all directions", "p",
             "fresh weights", "R² through V", "fresh weights", "NTPS", "p"]  # fmt: skip
    rows = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for row in frame.itertuples():
        numbers = [row.majority_rate, row.accuracy, row.balanced_accuracy]
        held_out = f"{row.ceiling_heldout:.2f} [{row.ceiling_heldout_low:.2f}, {row.ceiling_heldout_high:.2f}]"
        cells = [row.model, row.task, *(f"{number:.2f}" for number in numbers), held_out]
        shares = (row.ceiling_heldout_random, row.explained_heldout, row.explained_heldout_random)
        cells += [f"{row.ceiling_heldout_p:.3f}", *(f"{round(share, 2) + 0.0:.2f}" for share in shares)]
        cells += [f"{row.ntps:.2f}", f"{row.ntps_p:.3f}"]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def tuned_table() -> str:
    """Return what fine-tuning the real model gained, and what changed where training was kept."""
    frame = pd.read_csv(ROOT / "ntps/course/data/real_lora.csv")
    heads = ["texts", "before", "after", "gain", "NTPS", "through V", "all directions", "next-token loss"]
    rows = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for _, row in frame.iterrows():
        if row.best_step == 0:
            rows.append(f"| {row.task} | {row.accuracy_before:.3f} | not tuned |{' – |' * 5}")
            continue
        changes = [
            _signed(row[f"{name}_after"] - row[f"{name}_before"], 3 if name == "ntps" else 2)
            for name in ("ntps", "explained_heldout", "ceiling_heldout", "next_token_loss")
        ]
        gain = f"{_signed(row.gain, 3)} ± {row.gain_se:.3f}"
        rows.append(
            f"| {row.task} | {row.accuracy_before:.3f} | {row.accuracy_after:.3f} | {gain} | {' | '.join(changes)} |"
        )
    return "\n".join(rows)


def _squared(name: str) -> str:
    return name.replace("R2", "R²")


def coverage_table() -> str:
    """Return how often intervals hold the truth, by what they are of, number of texts and width."""
    frame = pd.read_csv(RESULTS / "coverage.csv").fillna({"what": ""})
    plain = frame[frame.what.eq("") & frame.d.notna()]
    rows = ["| interval | texts | width | 2 classes | 5 classes | 20 classes |", "|---" * 6 + "|"]
    for (name, n, d), group in plain.groupby(["interval", "n", "d"], sort=False):
        reached = group.set_index("classes").reached
        cells = [f"{reached[c]:.2f}" if c in reached else "–" for c in (2, 5, 20)]
        rows.append(f"| {_squared(name)} | {n:.0f} | {d:.0f} | {' | '.join(cells)} |")
    rows += ["", "| interval | texts | width | classes | special | nominal | reached |", "|---" * 7 + "|"]
    for row in frame[frame.what.ne("") & frame.d.notna()].itertuples():
        rows.append(
            f"| {_squared(row.interval)} | {row.n:.0f} | {row.d:.0f} | {row.classes:.0f} | {row.what} | {row.nominal} "
            f"| {row.reached:.2f} |"
        )
    if "tasks" in frame:
        rows += ["", "| tasks | models | what models have in common | rank correlation | reached |", "|---" * 5 + "|"]
        for row in frame[frame.tasks.notna()].itertuples():
            rows.append(
                f"| {row.tasks:.0f} | {row.models:.0f} | {row.shared:.0%} | {row.spearman:.2f} | {row.coverage:.2f} |"
            )
    return "\n".join(rows) + f"\n\n{frame.replications.min():.0f} replications a row."


def learning_table() -> str:
    """Return how well learning curves tell the R² of twice the texts, by model and number of texts."""
    frame = pd.read_csv(RESULTS / "learning_curves.csv").dropna(subset="forecast")
    frame["error"] = (frame.forecast - frame.truth).abs()
    frame["inside"] = (frame.low <= frame.truth) & (frame.truth <= frame.high)
    heads = ["model", "texts", "task-layer pairs", "within 0.03", "mean error", "interval holds", "share of a pass"]
    rows = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]

    def line(name: str, texts: str, group: pd.DataFrame) -> str:
        return (
            f"| {name} | {texts} | {len(group)} | {(group.error <= 0.03).mean():.0%} | {group.error.mean():.3f} "
            f"| {group.inside.mean():.0%} | {group.share_of_pass.mean():.1%} |"
        )

    rows += [line(model, f"{n}", group) for (model, n), group in frame.groupby(["model", "texts"])]
    return "\n".join([*rows, line("all", "", frame)])


def audit_text() -> str:
    """Return the audit of the paper as it is printed."""
    from ntps.paper import audit

    return f"```text\n{audit()}\n```"


def official_table() -> str:
    """Return how far the official convention is from a transcription of the released code, by model."""
    frame = pd.concat(
        pd.read_csv(RESULTS / f"{name}.csv")
        for name in ("official", "official_real")
        if (RESULTS / f"{name}.csv").exists()
    )
    rows = [
        "| model | pairs of layer and task | largest difference | noise of 1e-7: mean | largest |",
        "|---" * 5 + "|",
    ]
    for model, part in frame.groupby("model", sort=False):
        rows.append(
            f"| {model} | {len(part)} | {part.largest_difference.max():.0e} | {part.noise_mean.mean():.3f} | "
            f"{part.noise_largest.max():.2f} |"
        )
    return "\n".join(rows)


def claims_table() -> str:
    """Return the paper's claims beside what its own numbers and our measurements say."""
    from ntps.paper import audit

    found = audit()
    holds, rows_of = found["mathematics"].numbers, {row["target"]: row for row in found["correlations"].rows}
    runs = forecast.read_table()
    runs = runs[runs.bundled]
    quantity = {
        where: next(
            row
            for row in json.loads((RESULTS / f"{name}.json").read_text())["targets"]["balanced_accuracy"]
            if row["quantity"] == "ntps"
        )
        for where, name in (("bundled models", "quantity"), ("two real models", "quantity_real"))
    }

    chosen = json.loads((RESULTS / "official_study.json").read_text())["correlations"]["ntps_official:same_tasks"]

    def span(target: str, view: str) -> str:
        return "{:+.2f} [{:+.2f}, {:+.2f}]".format(*rows_of[target][view])

    ours = "; ".join(f"{row['half']:+.2f} [{row['low']:+.2f}, {row['high']:+.2f}] ({w})" for w, row in quantity.items())
    wide = runs.pivot_table(index="model", columns="task", values=["ntps", "gain"])
    with_gain, change = grid_spearman(wide["ntps"], wide["gain"]), _changes_of(runs)["ntps_change"]
    errors = forecast.error_table(runs, "task")["error"]
    rows = [
        (
            "Both objectives have closed forms, and NTPS bounds the excess loss (Theorem 2)",
            "proofs",
            f"hold: {holds['outside_bounds']} of {2 * holds['problems']} cases outside the bounds",
            "lesson 02; the raw bounds are nearly empty on real models, the whitened ones are not",
            "`ntps paper audit`",
        ),
        (
            "NTPS goes with probe accuracy over 12 sets (Figure 2)",
            f"{span('accuracy', 'all')} over 8 models",
            "training accuracies; layer and fraction chosen on the same points; two broken sets, "
            f"{span('accuracy', 'without both')} without them",
            f"with balanced accuracy on other texts, layer and rank set before: {ours}; the paper's own way on bundled "
            f"models: {chosen['spearman']:+.2f}, p = {chosen['p_value']:.2f} when the choice is counted (below)",
            "`python -m benchmarks.default_quantity`",
        ),
        (
            "NTPS goes with probe error (Figure 2)",
            span("error", "all"),
            f"training errors; {span('error', 'without both')} without the broken sets",
            "not asked: R² is this error on other texts, over the labels' variance",
            "`ntps paper audit`",
        ),
        (
            "NTPS predicts what LoRA gains (Figure 3)",
            span("gain", "all"),
            f"{found['losses'].numbers['total']} of {found['losses'].numbers['cells']} gains are negative; "
            f"{span('gain', 'without both')} without the broken sets",
            "{:+.2f} [{:+.2f}, {:+.2f}]; ".format(with_gain.spearman, *with_gain.interval)
            + f"error of the forecast {errors['NTPS']:.1f} points, of no gain {errors['no gain']:.1f}",
            "`python -m benchmarks.forecast`",
        ),
        (
            "NTPS rises with LoRA",
            "in the first version's abstract; a later abstract of the authors lacks the sentence",
            "no figures of it were published",
            "after minus before, where training was kept: {mean:+.3f} [{low:+.3f}, {high:+.3f}]".format(**change),
            "`python -m benchmarks.forecast`",
        ),
        (
            "The score of the figures is the one of the text",
            "not said",
            "the released code takes the smallest eigenvectors; rounding of 1e-7 moves single scores by up to "
            f"{found['rounding'].numbers['largest']:.2f}",
            "`--convention official` repeats it (below)",
            "`python -m benchmarks.official`",
        ),
    ]
    heads = ("claim", "what they report", "what the audit finds", "what we measured", "command")
    return "\n".join([f"| {' | '.join(heads)} |", "|---" * 5 + "|", *(f"| {' | '.join(row)} |" for row in rows)])


def choice_table() -> str:
    """Return what choosing layer and fraction on the judged tasks is worth, on bundled models."""
    found = json.loads((RESULTS / "official_study.json").read_text())
    labels = {
        "ntps_official:same_tasks": "released score, layer and fraction chosen on the judged tasks, as the paper does",
        "ntps_official:held_out_task": "released score, chosen on the other tasks",
        "ntps:same_tasks": "NTPS by the text, layer and rank chosen on the tasks it is judged on",
        "ntps:held_out_task": "NTPS by the text, chosen on the other tasks",
        "ceiling_heldout": "held-out R² of all directions at half the depth, nothing chosen",
    }
    rows = ["| score | correlation | p | by chance, median and 95 % point |", "|---" * 4 + "|"]
    for name, label in labels.items():
        row = found["correlations"][name]
        low, high = row["interval"]
        chance = row["null_quantiles"]
        between = f"{chance[1]:+.2f}, {chance[2]:+.2f}" if chance else "–"
        rows.append(
            f"| {label} | {row['spearman']:+.2f} [{low:+.2f}, {high:+.2f}] | {row['p_value']:.3f} | {between} |"
        )
    models, tasks = len(found["models"]), len(found["tasks"])
    return "\n".join(rows) + f"\n\nWithin each of {models} bundled models, over {tasks} tasks; p repeats the choice."


def ranking_table() -> str:
    """Return what rankings on 200 texts say, beside what a full probe reaches on all the others."""
    from benchmarks.ranking import summary  # which loads the library; the other tables need none of it

    frame = pd.read_csv(RESULTS / "ranking.csv")
    first = frame[frame.draw.eq(0)]
    heads = ["texts", "others", "model", "R² on 200", "group", "probe, best layer", "probe, last layer", "TF-IDF"]
    rows = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for row in first.itertuples():
        numbers = [row.best_layer, row.last_layer, row.tfidf]
        rows.append(
            f"| {row.task.removeprefix('miniworld/')} | {row.others:,.0f} | {row.model} | {row.r2_few:.2f} | "
            f"{row.group_few} | "
            f"{row.best_layer:.3f} (layer {row.layer:.0f}) | {' | '.join(f'{number:.3f}' for number in numbers[1:])} |"
        )
    return "\n".join([*rows, "", "\n\n".join(summary(frame))])


def architectures_table() -> str:
    """Return which architectures of transformers can be scored and tuned, and what is left out of adapters."""
    frame = pd.read_csv(RESULTS / "architectures.csv").fillna("")
    rows = ["| architecture | score | LoRA | adapters on | left out, or why not |", "|---" * 5 + "|"]
    rows += [
        f"| {row.architecture} | {row.score} | {row.lora} | {row.adapted} | {row.left_out or row.sentence} |"
        for row in frame.itertuples()
    ]
    return "\n".join(rows)


TABLES = {  # block: what writes it, and the file it is made from
    "gpu": (gpu_table, RESULTS / "gpu.json"),
    "large": (large_table, RESULTS / "large.json"),
    "costs": (costs_table, RESULTS / "costs.json"),
    "speed": (speed_table, RESULTS / "latest.json"),
    "world": (world_table, RESULTS / "miniworld.csv"),
    "seeds": (seeds_table, RESULTS / "miniworld_seeds.csv"),
    "coverage": (coverage_table, RESULTS / "coverage.csv"),
    "learning": (learning_table, RESULTS / "learning_curves.csv"),
    "quantity": (quantity_table, RESULTS / "quantity.json"),
    "gains": (gains_table, forecast.TABLE),
    "paper_recipe": (paper_recipe_table, forecast.TABLE),
    "looks": (looks_table, forecast.TABLE),
    "margins": (margins_table, forecast.TABLE),
    "audit": (audit_text, forecast.TABLE),
    "claims": (claims_table, forecast.TABLE),
    "choice": (choice_table, RESULTS / "official_study.json"),
    "ranking": (ranking_table, RESULTS / "ranking.csv"),
    "official": (official_table, RESULTS / "official.csv"),
    "architectures": (architectures_table, RESULTS / "architectures.csv"),
    "real": (real_table, ROOT / "ntps/course/data/real_study.csv"),
    "tuned": (tuned_table, ROOT / "ntps/course/data/real_lora.csv"),
}


def block(name: str) -> str | None:
    """Return the text of a measured block, or `None` when it was not measured."""
    if name in TABLES:
        table, path = TABLES[name]
        return table() if path.exists() else None
    path = ROOT / "report" / "demo.txt" if name == "demo" else RESULTS / f"{name}.txt"
    return f"```text\n{path.read_text().rstrip()}\n```" if path.exists() else None


def main() -> None:
    """Fill every block that has been measured."""
    names = "|".join(["demo", *TABLES, r"real-\w+"])

    def fill(match: re.Match[str]) -> str:
        made = block(match[1])
        return match[0] if made is None else f"<!-- {match[1]} -->\n{made}\n<!-- /{match[1]} -->"

    for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        text = path.read_text(encoding="utf-8")
        atomic_write(path, re.sub(rf"<!-- ({names}) -->\n.*?<!-- /\1 -->", fill, text, flags=re.S))


if __name__ == "__main__":
    main()
