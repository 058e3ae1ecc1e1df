"""What the bundled world shows: every model, layer and task, measured: `python -m benchmarks.miniworld`.

Writes benchmarks/results/miniworld.csv, one row per model, seed, task and layer: NTPS, chance, explained, ceiling,
retained (in sample and held out), accuracy of a linear probe on the same states, and the task's Bayes accuracy. The
summary it prints, last layer and mean over seeds, is what docs/results.md and the lessons build on.

Whether the stories are the recipe's or one seed's: train the base model again, and measure start and end of each:

    python -m ntps.miniworld.train --size base --seed 1 --output DIR1
    python -m benchmarks.miniworld --trained DIR1 --trained DIR2      # writes benchmarks/results/miniworld_seeds.csv
"""

import argparse
from dataclasses import replace
from pathlib import Path

import pandas as pd
import torch

from ntps import collect, linear_probe, load_model, load_task, miniworld, score
from ntps._files import atomic_write
from ntps.scoring import assign_folds, labels_of

RESULTS = Path(__file__).parent / "results" / "miniworld.csv"
TRAINED = RESULTS.with_name("miniworld_seeds.csv")
STAGES = ("miniworld-base@step0", "miniworld-base")
COLUMNS = ["ntps", "chance", "explained", "explained_heldout", "ceiling", "ceiling_heldout", "retained", "k_v", "d"]


def measure(model_name: str, texts: int, seed: int) -> pd.DataFrame:
    """Return one row per task and layer; the tasks have the same texts, so the model runs once."""
    tasks = {name: load_task(f"miniworld/{name}", n=texts, seed=seed, split="test") for name in miniworld.task_names()}
    representations = collect(load_model(model_name), next(iter(tasks.values())), batch_size=64, progress=False)
    frames = []
    for name, task in tasks.items():
        assert task.texts == representations.task.texts
        scored = replace(representations, task=task)
        labels = labels_of(scored)
        folds = assign_folds(labels.values, 5)
        frame = score(scored, folds=5).to_dataframe()[["layer", *COLUMNS]]
        probes = {
            layer: linear_probe(scored.layer(layer), labels.values, folds=folds).accuracy for layer in frame.layer
        }
        frames.append(
            frame.assign(
                model=model_name,
                task=name,
                seed=seed,
                probe_accuracy=frame.layer.map(probes),
                majority=task.majority_rate,
                bayes=miniworld.describe_task(name)["bayes"],
            )
        )
    return pd.concat(frames)


def training_seeds(folders: list[Path], texts: int) -> None:
    """Measure the base model's start and end for the bundled training seed and those in the folders."""
    frames = []
    for number, folder in enumerate([None, *folders]):
        for stage in STAGES:
            model = stage if folder is None else str(folder / stage)
            frames.append(measure(model, texts, 0).assign(model=stage, training=number))
            print(f"{model}: done", flush=True)
    everything = pd.concat(frames)
    atomic_write(TRAINED, everything.to_csv(index=False, float_format="%.5f"))
    last = everything[everything.layer == everything.layer.max()]
    table = last.pivot_table(index="task", columns=["model", "training"], values="explained_heldout")
    print(f"\nexplained_heldout, last layer, by training seed\n{table.round(2).to_string()}")


def main() -> None:
    """Measure what was asked for and print the summary."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=int, default=1000)
    parser.add_argument("--seeds", type=int, default=3, help="data seeds; models other than base are measured with one")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--trained", type=Path, action="append", help="folder of another training of the base model")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.trained:
        training_seeds(options.trained, options.texts)
        return
    frames = []
    for model in miniworld.model_names():
        seeds = options.seeds if model in ("miniworld-base", "miniworld-base@step0") else 1
        for seed in range(seeds):
            frames.append(measure(model, options.texts, seed))
            atomic_write(RESULTS, pd.concat(frames).to_csv(index=False, float_format="%.5f"))
            print(f"{model}, seed {seed}: done", flush=True)
    everything = pd.concat(frames)
    last = everything[everything.layer == everything.groupby("model").layer.transform("max")]
    for quantity in ("explained_heldout", "ceiling_heldout", "ntps", "probe_accuracy"):
        print(f"\n{quantity}, last layer, mean over seeds")
        print(last.pivot_table(index="task", columns="model", values=quantity).round(2).to_string())
    spread = last[last.model == "miniworld-base"].groupby("task").explained_heldout.agg(["min", "max"])
    print(f"\nminiworld-base, explained_heldout over {options.seeds} seeds\n{spread.round(3).to_string()}")


if __name__ == "__main__":
    main()
