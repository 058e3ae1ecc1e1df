"""Does the learning curve tell what twice the labelled texts bring? Writes benchmarks/results/learning_curves.csv.

For each task, layer and number of texts n, the curve of the first n texts forecasts the held-out R^2 of 2 n texts,
which is then computed. A row holds forecast, interval and truth, and what the curve took beside the pass of the model
over these n texts.

    python -m benchmarks.learning_curves [--model DIR --task FILE ... --limit N --max-length 128]
"""

import argparse
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from ntps import collect, load_model, load_task, miniworld
from ntps.core import held_out_errors
from ntps.models import Representations
from ntps.scoring import assign_folds, labels_of
from ntps.scoring.learning import learning_curve

RESULT = Path(__file__).parent / "results" / "learning_curves.csv"
CLOSE = 0.03
BUNDLED = ("miniworld-base", "miniworld-small")


def rows(representations: Representations, name: str, seconds_per_text: float) -> Iterator[dict[str, Any]]:
    """Yield one row per layer (first, middle, last) and number of texts."""
    labels = labels_of(representations)
    layers = representations.layers
    sizes = [n for n in (200, 500, 1000) if 2 * n <= len(labels.values)]
    for layer in (layers[0], layers[len(layers) // 2], layers[-1]):
        states = torch.from_numpy(np.array(labels.states(representations, layer)))
        for n in sizes:
            started = time.perf_counter()
            curve = learning_curve(states[:n], labels.targets[:n], folds(labels.values[:n]), labels.groups[:n])
            seconds = time.perf_counter() - started
            truth = held_out_errors(states[: 2 * n], labels.targets[: 2 * n], folds(labels.values[: 2 * n])).ceiling
            if curve is None:
                continue
            yield {
                "model": representations.metadata["model"].rsplit("/", 1)[-1],
                "task": name,
                "layer": layer,
                "texts": n,
                "r2": curve.r2[-1],
                "forecast": curve.twice,
                "low": curve.interval[0],
                "high": curve.interval[1],
                "truth": truth,
                "share_of_pass": seconds / (n * seconds_per_text),
            }


def folds(labels: np.ndarray) -> torch.Tensor:
    """Return five folds."""
    return torch.from_numpy(assign_folds(labels, 5))


def main() -> None:
    """Compute, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", action="append")
    parser.add_argument("--task", action="append")
    parser.add_argument("--limit", type=int, default=2000)
    parser.add_argument("--max-length", type=int, default=128)
    parser.add_argument("--folder", type=Path, help="Keeps the passes.")
    arguments = parser.parse_args()
    tasks = arguments.task or [f"miniworld/{name}" for name in miniworld.task_names()]
    found = []
    for model_name in arguments.model or BUNDLED:
        model = load_model(model_name)
        for task_name in tasks:
            bundled = task_name.startswith("miniworld/")
            task = load_task(task_name, **({"n": arguments.limit} if bundled else {"limit": arguments.limit}))
            folder = arguments.folder and arguments.folder / Path(model_name).name / Path(task_name).stem
            started = time.perf_counter()
            representations = collect(model, task, max_length=arguments.max_length, folder=folder, progress=False)
            seconds = (time.perf_counter() - started) / len(task.texts)
            for row in rows(representations, Path(task_name).stem, seconds):
                print(row, flush=True)
                found.append(row)
    table = pd.DataFrame(found)
    if RESULT.exists():
        kept = pd.read_csv(RESULT)
        table = pd.concat([kept[~kept.model.isin(set(table.model))], table])
    table.round(4).to_csv(RESULT, index=False)
    error = (table.forecast - table.truth).abs()
    inside = (table.low <= table.truth) & (table.truth <= table.high)
    forecast = table.forecast.notna()
    close, holds = (error <= CLOSE)[forecast].mean(), inside[forecast].mean()
    print(f"{forecast.sum()} forecasts of {len(table)}; within {CLOSE}: {close:.3f}; interval holds {holds:.3f}")


if __name__ == "__main__":
    main()
