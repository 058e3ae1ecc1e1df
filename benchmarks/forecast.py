"""Does a short look at training forecast what LoRA gains? Runs, and errors on tasks and models left out.

    python -m benchmarks.forecast run --output runs.jsonl                 # the bundled grid: hours on two cores
    python -m benchmarks.forecast run --output runs.jsonl --model DIR --task set.jsonl ... --texts 200 600
    python -m benchmarks.forecast run ... --recipe paper --steps 1000     # the authors' LoRA
    python -m benchmarks.forecast table runs.jsonl ...                    # benchmarks/results/forecast.csv
    python -m benchmarks.forecast errors                                  # of the committed table
    python -m benchmarks.forecast calibrate                               # on it: ntps/study/data

A run takes n labelled texts as a user has them: frozen quantities are read from all n, training and the choice of the
step too, and the gain is judged on other texts. Cells are run in random order and written one line each, so a grid that
is stopped is a sample of the whole, and is continued by the same command; cells of the table are not run again.
`--device cuda` and `--workers N` put several runs on one card. The gain is over the converged probe of the frozen
model, also where training starts from a random head; forecasts and calibrations are of our recipe's runs alone.
"""

import argparse
import itertools
import json
import math
import multiprocessing
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
import torch
from sklearn.linear_model import QuantileRegressor

import ntps
from ntps import miniworld
from ntps._files import atomic_write, jsonable
from ntps.errors import NtpsError
from ntps.finetune import TrainSettings
from ntps.finetune.before_after import load_for_training
from ntps.finetune.changes import find_intruders
from ntps.finetune.head import Head, fit_head
from ntps.finetune.look import saved_losses
from ntps.finetune.loop import Trainer
from ntps.finetune.train import FineTuned
from ntps.models import LanguageModel
from ntps.models.forward import encode, pooled_features
from ntps.models.next_token import next_token_loss
from ntps.models.plan import layer_at
from ntps.models.states import without_head
from ntps.scoring import ScoreSettings, labels_of, score_layers
from ntps.scoring.headline import curve_of
from ntps.scoring.readouts import choose_layer
from ntps.scoring.scores import folds_of
from ntps.study.calibration import BUNDLED, BUNDLED_STEPS
from ntps.study.gain import mean_of_tasks
from ntps.study.measure import probe_record
from ntps.study.table import CHANGES
from ntps.tasks import Task

ROOT = Path(__file__).parents[1]
TABLE = ROOT / "benchmarks/results/forecast.csv"
MODELS = ["miniworld-small", "miniworld-base@step150", "miniworld-base@step1000", "miniworld-base", "miniworld-large"]
LOOKS = (5, 10, 20, 50)  # steps after which the validation loss is noted
STRENGTHS = (0.0, 0.4, 0.7)  # `noise` of the bundled world: the share of choices that ignore their factor
N_TEST = 1000
MAX_LENGTH = 128
FROZEN = ("room", "ntps", "explained_heldout", "slope", "held_back")
SETS = {  # inputs of linear forecasts
    "probe accuracy": ("room",),
    "NTPS": ("room", "ntps"),
    "share through V": ("room", "explained_heldout"),
    "learning curve": ("room", "slope"),
    "held back": ("room", "held_back"),
    "all of these": FROZEN,
    **{f"{step} steps": ("room", f"look_{step}", f"z_{step}") for step in LOOKS},
    "20 steps, held back": ("room", "held_back", "look_20", "z_20"),
    "20 steps, all of these": (*FROZEN, "look_20", "z_20"),
    **{
        f"... without {words}": (*(each for each in FROZEN if each != name), "look_20", "z_20")
        for name, words in zip(FROZEN[1:], ("NTPS", "share through V", "learning curve", "held back"), strict=True)
    },
}
MARGINS = (0.0, 1.0, 1.5, 2.0, 2.5)  # standard errors by which the validation loss must fall
SCORED = ("ntps", "explained_heldout", "ceiling_heldout")


@dataclass(frozen=True)
class Cell:
    """One run: a model, a task at one strength, a number of texts, a seed and a recipe, `"ours"` or `"paper"`."""

    model: str
    task: str
    noise: float
    n_texts: int
    seed: int
    recipe: str = "ours"

    @property
    def key(self) -> tuple[str, str, float, int, int, str]:
        """What its line in the file is known by."""
        return Path(self.model).name, Path(self.task).stem, self.noise, self.n_texts, self.seed, self.recipe

    def settings(self, steps: int) -> TrainSettings:
        """Return the options of its training."""
        if self.recipe == "ours":
            return TrainSettings(steps=steps, max_length=MAX_LENGTH)
        return TrainSettings.recipe(self.recipe, steps=steps, max_length=MAX_LENGTH)


@lru_cache(maxsize=len(MODELS))
def loaded_model(name: str, device: str, dtype: str | None) -> LanguageModel:
    return load_for_training(name, device=device, dtype=dtype)


@lru_cache(maxsize=4)
def read_task(name: str) -> Task:
    return ntps.load_task(name)


def texts_of(cell: Cell, n_test: int) -> tuple[Task, Task]:
    """Return the texts of a cell, and at most `n_test` other texts to judge it on."""
    if cell.task.startswith("miniworld/"):
        given = {"n": cell.n_texts, "noise": cell.noise, "seed": cell.seed}
        return ntps.load_task(cell.task, **given), ntps.load_task(cell.task, **given | {"n": n_test, "split": "test"})
    task = read_task(cell.task)
    n_test = min(n_test, len(task) - cell.n_texts)
    rest, test = task.split(n_test / len(task), seed=cell.seed)
    if len(rest) > cell.n_texts:
        rest = rest.split(1 - cell.n_texts / len(rest), seed=cell.seed)[0]
    return rest, test


def frozen_quantities(model: LanguageModel, task: Task, seed: int) -> dict[str, Any]:
    """Return what is known without training, each with the seconds of one pass and of reading it."""
    started = time.perf_counter()
    representations = ntps.collect(model, task, max_length=MAX_LENGTH, progress=False)
    seconds = time.perf_counter() - started
    labels, settings = labels_of(representations), ScoreSettings(seed=seed)
    fold_of = cast(np.ndarray, folds_of(labels, settings))
    rows = list(score_layers(representations, labels, settings))
    readouts = [row.readouts["all"] for row in rows]
    choice = choose_layer(representations.layers, readouts, fold_of)
    probe = probe_record(representations, labels, settings)
    curve = curve_of(representations, labels, fold_of, choice, seed=seed)
    middle, last = rows[layer_at(0.5, len(rows))].score, rows[-1].score
    return {
        "accuracy": probe["accuracy"],
        "majority_rate": probe["majority_rate"],
        "r2_last": readouts[-1].r2,
        "r2_best": choice.readout.r2,
        "held_back": choice.readout.r2 - readouts[-1].r2,
        "ntps": middle.ntps,
        "explained_heldout": middle.explained_heldout,
        "explained_last": last.explained_heldout,
        "slope": math.nan if curve is None else curve.r2[-1] - curve.r2[-2],
        "seconds_pass": seconds,
        "seconds_frozen": time.perf_counter() - started,
    }


def scores(model: LanguageModel, test: Task, side: str) -> dict[str, float]:
    """Return the scores of the layer at half the depth and the last one, on the test texts."""
    chosen = sorted({layer_at(depth, model.n_layers) for depth in (0.5, 1.0)})
    representations = ntps.collect(model, test, layers=chosen, max_length=MAX_LENGTH, progress=False)
    rows = score_layers(representations, labels_of(representations), ScoreSettings(), layers=chosen)
    named = zip(("middle", "last"), (row.score for row in rows), strict=True)
    return {f"{name}_{where}_{side}": getattr(score, name) for where, score in named for name in SCORED}


def evaluated(trainer: Trainer, step: int, gained: np.ndarray) -> dict[str, float]:
    """Return what the weights of a step save on validation texts and gain on the test texts."""
    saved, curve = saved_losses(trainer), trainer.progress.curve
    return {
        f"at_{step}_saved": float(saved.mean()),
        f"at_{step}_saved_se": float(saved.std(ddof=1) / math.sqrt(len(saved))),
        f"at_{step}_validation_gain": curve[-1].validation_accuracy - curve[0].validation_accuracy,
        f"at_{step}_gain": float(gained.mean()),
    }


def probe_of(trainer: Trainer, train: Task) -> Head:
    """Return the converged probe of the frozen features, from which our recipe starts."""
    if trainer.settings.head == "probe":
        return trainer.initial_head
    features = pooled_features(trainer.model, trainer.network, trainer.ids)
    return fit_head(features, train.labels, train.n_classes, seed=trainer.seed)


def run(cell: Cell, steps: int, device: str, n_test: int) -> dict[str, Any]:
    """Run one cell; a dictionary of JSON values, `error` alone where it could not be run."""
    started = time.perf_counter()
    try:
        settings = cell.settings(steps)
        model = loaded_model(cell.model, device, settings.dtype)
        task, test = texts_of(cell, n_test)
        frozen = replace(model, model=without_head(model.model))
        row = frozen_quantities(frozen, task, cell.seed)
        train, validation = task.split(settings.validation, seed=cell.seed)
        trainer = Trainer(frozen, train, validation, settings, seed=cell.seed)
        ids = encode(frozen, test.texts, MAX_LENGTH)

        def correct(head: Head) -> np.ndarray:
            features = pooled_features(frozen, trainer.network, ids)
            return head.predict(features.numpy()) == test.labels

        before = correct(probe_of(trainer, train))
        seconds = 0.0
        mark = time.perf_counter()
        for step in trainer.run():
            if step in LOOKS:
                seconds += time.perf_counter() - mark
                saved = saved_losses(trainer)
                row[f"saved_{step}"] = float(saved.mean())
                row[f"saved_{step}_se"] = float(saved.std(ddof=1) / math.sqrt(len(saved)))
                row[f"seconds_{step}"] = seconds
                mark = time.perf_counter()
            if (
                cell.recipe == "ours" and step % settings.evaluate_every == 0
            ):  # what another rule of keeping would have kept
                seconds += time.perf_counter() - mark
                row |= evaluated(trainer, step, correct(trainer.head) - before.astype(float))
                mark = time.perf_counter()
        row["validation_loss"] = trainer.progress.curve[0].validation_loss
        row["seconds_training"] = seconds + time.perf_counter() - mark
        after = correct(trainer.head)
        tuned = FineTuned(
            base=frozen, network=trainer.network.eval(), adapter=trainer.adapter, head=trainer.head,
            initial_head=trainer.initial_head, settings=trainer.settings, seed=cell.seed, curve=[],
            best_step=trainer.progress.best_step, n_trained=0,
        )  # fmt: skip
        merged = tuned.merge()
        gained = after.astype(float) - before
        row |= {
            "n_test": len(test), "n_classes": task.n_classes, "n_layers": model.n_layers, "width": model.width,
            "accuracy_before": before.mean(), "accuracy_after": after.mean(), "gain": gained.mean(),
            "gain_se": gained.std(ddof=1) / math.sqrt(len(test)), "best_step": tuned.best_step,
            **scores(frozen, test, "before"), **scores(merged, test, "after"),
        }  # fmt: skip
        changed = find_intruders(frozen.model, merged.model) if tuned.best_step else ()
        row["intruders"] = sum(matrix.count for matrix in changed)
        row["intruders_of"] = sum(matrix.k for matrix in changed)
        if model.has_head:
            row["next_token_before"] = next_token_loss(model, ids)
            row["next_token_after"] = next_token_loss(model, ids, network=merged.model)
    except NtpsError as error:
        row = {"error": str(error)}
    name, task_name, *_ = cell.key
    about = asdict(cell) | {"model": name, "task": task_name, "steps": steps, "device": device}
    return jsonable(about | row | {"seconds": time.perf_counter() - started})


def start_worker() -> None:
    torch.set_num_threads(1)


def run_all(cells: list[Cell], workers: int, *, steps: int, device: str, n_test: int) -> Iterator[dict[str, Any]]:
    if workers == 1:
        yield from (run(cell, steps, device, n_test) for cell in cells)
        return
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=start_worker)
    try:
        for done in as_completed([pool.submit(run, cell, steps, device, n_test) for cell in cells]):
            yield done.result()
    finally:
        pool.shutdown(cancel_futures=True)


def make_runs(given: argparse.Namespace) -> None:
    """Run the cells that are neither in the table nor in the file yet, in random order, until the time is over."""
    bundled = not given.task
    noises = STRENGTHS if bundled else (0.0,)
    tasks = given.task or [f"miniworld/{name}" for name in miniworld.task_names()]
    texts = given.texts or ([200, 600, 2000] if bundled else [200, 600])
    grid = itertools.product(given.model or MODELS, tasks, noises, texts, range(given.seeds), [given.recipe])
    cells = [Cell(*each) for each in grid]
    lines = given.output.read_text().splitlines() if given.output.exists() else []
    table = pd.read_csv(TABLE)[list(Cell.__dataclass_fields__)].to_dict("records") if TABLE.exists() else []
    known = {tuple(row[name] for name in Cell.__dataclass_fields__) for row in [*table, *map(json.loads, lines)]}
    cells = [cell for cell in cells if cell.key not in known]
    order = np.random.default_rng(0).permutation(len(cells))
    started = time.perf_counter()
    options = {"steps": given.steps, "device": given.device, "n_test": given.test}
    with given.output.open("a") as file:
        for row in run_all([cells[index] for index in order], given.workers, **options):
            file.write(json.dumps(row, allow_nan=False) + "\n")
            file.flush()
            if given.seconds and time.perf_counter() - started > given.seconds:
                break


def make_table(given: argparse.Namespace) -> None:
    """Add the finished runs of several files to the table."""
    rows = [json.loads(line) for file in given.runs for line in file.read_text().splitlines()]
    failed = [row for row in rows if "error" in row]
    for row in failed:
        print(f"left out: {row['model']} on {row['task']}, {row['n_texts']} texts: {row['error']}")
    frame = pd.DataFrame([row for row in rows if "error" not in row])
    frame = pd.concat([pd.read_csv(TABLE), frame]) if TABLE.exists() else frame
    keys = list(Cell.__dataclass_fields__)
    frame = frame.drop_duplicates(keys, keep="last").sort_values(keys)
    atomic_write(TABLE, frame.to_csv(index=False, float_format="%.5g"))
    print(f"{len(frame)} runs, {len(failed)} left out")


def read_table(recipe: str = "ours") -> pd.DataFrame:
    """Return the committed runs of a recipe, with the inputs that are made of the table's columns."""
    frame = pd.read_csv(TABLE)
    frame = frame[frame["recipe"] == recipe].reset_index(drop=True)
    frame["bundled"] = frame["model"].str.startswith("miniworld")
    frame["tuned"] = frame["best_step"] > 0
    frame["room"] = 1 - frame["accuracy"]
    for name, score in zip(CHANGES, (*SCORED, None), strict=True):  # scores at half the depth
        before, after = (f"{score}_middle_{side}" if score else f"next_token_{side}" for side in ("before", "after"))
        frame[name] = frame[after] - frame[before]
    frame["intruder_share"] = frame["intruders"] / frame["intruders_of"] if "intruders" in frame else math.nan
    for step in LOOKS:
        frame[f"look_{step}"] = frame[f"saved_{step}"].clip(lower=0)
        frame[f"z_{step}"] = frame[f"saved_{step}"] / frame[f"saved_{step}_se"]
    return frame


def left_out(frame: pd.DataFrame, inputs: Sequence[str], over: str) -> np.ndarray:
    """Return the predicted gain of each run, from the runs that do not share its task, its model, or either.

    A linear median regression, since absolute errors are counted and most gains are 0; every task weighs the same.
    """
    design, gain = frame[list(inputs)].to_numpy(float), frame["gain"].to_numpy(float)
    tasks, models = frame["task"].to_numpy(), frame["model"].to_numpy()
    predicted = np.full(len(frame), np.nan)
    for task, model in set(zip(tasks, models, strict=True)):
        out_task, out_model = tasks == task, models == model
        apart = {"task": ~out_task, "model": ~out_model, "both": ~(out_task | out_model)}[over]
        weight = 1 / pd.Series(tasks[apart]).map(pd.Series(tasks[apart]).value_counts()).to_numpy()
        fitted = QuantileRegressor(alpha=0).fit(design[apart], gain[apart], sample_weight=weight)
        here = out_task & out_model
        # More than the room cannot be gained, and less than the frozen probe is not kept.
        predicted[here] = fitted.predict(design[here]).clip(0, 1 - frame["accuracy"].to_numpy()[here])
    return predicted


def margin_table(frame: pd.DataFrame) -> pd.DataFrame:
    """Return what each margin of keeping would have kept, over the runs that noted what every look gained.

    Columns, each task counted once: the share of runs whose training is kept, also on labels that are noise alone, the
    gain in points, and how many runs lose more than a point.
    """
    looks = range(25, 101, 25)
    noted = frame.dropna(subset=[f"at_{step}_gain" for step in looks])
    saved, se, gain = (
        noted[[f"at_{step}_{name}" for step in looks]].to_numpy() for name in ("saved", "saved_se", "gain")
    )
    rows = {}
    for margin in MARGINS:
        allowed = np.where(saved > margin * se, saved, -np.inf)  # of these, the lowest loss
        kept = np.isfinite(allowed).any(1)
        gained = np.where(kept, gain[np.arange(len(noted)), allowed.argmax(1)], 0.0)
        found = pd.DataFrame({"kept": kept, "gain": 100 * gained}).groupby(noted["task"].to_numpy()).mean()
        rows[margin] = {"kept": found["kept"].mean(), "kept on noise": found["kept"].get("noise", math.nan),
                        "gain": found["gain"].mean(), "lose a point": int((gained < -0.01).sum())}  # fmt: skip
    return pd.DataFrame.from_dict(rows, orient="index")


def error_table(frame: pd.DataFrame, over: str) -> pd.DataFrame:
    """Return the mean absolute error of each set of inputs in points, each task counted once, and its margins.

    Margins are to no gain, with 95 % t intervals over tasks.
    """
    gain = frame["gain"]
    means = frame.groupby("task")["gain"].transform(lambda rows: rows.mean())
    of_others = np.array([means[frame["task"] != task].groupby(frame["task"]).first().mean() for task in frame["task"]])
    errors = {"no gain": gain.abs(), "mean gain of other tasks": np.abs(gain - of_others)}
    errors |= {name: np.abs(gain - left_out(frame, inputs, over)) for name, inputs in SETS.items()}
    by_task = pd.DataFrame(errors).groupby(frame["task"].to_numpy()).mean() * 100
    rows = {}
    for name in by_task:
        margin = mean_of_tasks((by_task["no gain"] - by_task[name]).to_numpy())
        rows[name] = {"error": by_task[name].mean(), "margin": margin.pop("mean"), **margin}
    return pd.DataFrame.from_dict(rows, orient="index")


def print_errors(given: argparse.Namespace) -> None:
    """Print the errors of the committed table: all runs, and the bundled and the real ones alone.

    Real runs whose texts were not at hand when the choice of a layer changed lack what is held back, and are left out.
    """
    frame = read_table().dropna(subset=list(FROZEN))
    bundled = frame["bundled"]
    for what, part in {"all runs": frame, "bundled models": frame[bundled], "real models": frame[~bundled]}.items():
        if not len(part):
            continue
        mean = part.groupby("task")["gain"].mean().mean()
        tuned = part["tuned"].mean()
        print(f"\n{what}: {len(part)} runs, {part['model'].nunique()} models, {part['task'].nunique()} tasks; "
              f"mean gain {100 * mean:+.1f} points, {100 * tuned:.0f} % tuned")  # fmt: skip
        for over in ("task", "model", "both"):
            if part["model"].nunique() < 3 and over != "task":
                continue
            print(f"\nmean absolute error in points, {over} left out")
            print(error_table(part, over).round(2).to_string())


def write_calibrations(given: argparse.Namespace) -> None:
    """Fit the calibrations that ship with the package, on the bundled models' runs, and print what they are worth."""
    frame = read_table()
    frame = frame[frame["bundled"]]
    about = {
        "world": "the bundled world, 200 to 2,000 texts",
        "training": TrainSettings(max_length=MAX_LENGTH).to_dict(),
    }
    for steps in BUNDLED_STEPS:
        runs = frame.assign(saved=frame[f"look_{steps}"]) if steps else frame
        fitted = ntps.calibrate(runs, steps=steps, halves=False, about=about)
        atomic_write(ROOT / "ntps/study/data" / BUNDLED.format(steps=steps), fitted.to_json())
        print(steps, dict(zip(("1", *fitted.inputs), fitted.coefficients, strict=True)), fitted.coverage, fitted.about)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("run")
    command.add_argument("--output", type=Path, required=True)
    command.add_argument("--model", nargs="+")
    command.add_argument("--task", nargs="+")
    command.add_argument("--texts", type=int, nargs="+")
    command.add_argument("--seeds", type=int, default=3)
    command.add_argument("--recipe", choices=("ours", "paper"), default="ours")
    command.add_argument("--steps", type=int, default=100)
    command.add_argument("--test", type=int, default=N_TEST, help="number of texts that judge the gain, at most")
    command.add_argument("--device", default="cpu")
    command.add_argument("--workers", type=int, default=1)
    command.add_argument("--seconds", type=float, help="start no run after this time")
    command.set_defaults(do=make_runs)
    command = commands.add_parser("table")
    command.add_argument("runs", type=Path, nargs="+")
    command.set_defaults(do=make_table)
    for name, do in (("errors", print_errors), ("calibrate", write_calibrations)):
        commands.add_parser(name).set_defaults(do=do)
    given = parser.parse_args()
    given.do(given)


if __name__ == "__main__":
    main()
