"""Do intervals cover as they say? Simulated texts with known answers; writes benchmarks/results/coverage.csv.

Each replication draws n labelled texts with features of width d, takes the intervals that `ntps.score` prints, and then
draws 4,000 further texts with the same label frequencies, on which the same readouts (one per fold) reach the value
that the interval is meant to hold. Labels without meaning: how often a best of six layers is named.
Correlations over tasks and models are simulated in `benchmarks.coverage_correlations`.

    python -m benchmarks.coverage [--replications 200]      # stop and start as you like
"""

import argparse
import math
from collections.abc import Container, Iterator
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from sklearn.linear_model import RidgeClassifier

from benchmarks import coverage_correlations
from ntps.core import Keep, held_out_errors
from ntps.core.heldout import RIDGES, Split, choose_elsewhere, splits
from ntps.scoring.labels import assign_folds
from ntps.scoring.learning import learning_curve
from ntps.scoring.readouts import Readout, choose_layer, compare_readouts, share_interval

RESULT = Path(__file__).parent / "results" / "coverage.csv"
FRESH = 4_000
LAYERS = 6
MANY_LAYERS = 12
REAL = "real values"
NAMED, NOISE_LABELS = "a best layer is named", "labels without meaning"
Key = tuple[str, int, int, int, str]  # interval, n, d, classes, what
CELLS: list[dict[str, Any]] = [
    *({"n": n, "d": d, "classes": c} for n in (100, 300, 1000) for d in (64, 200) for c in (2, 5, 20)),
    {"n": 200, "d": 64, "classes": 3, "rare": 2, "what": "a class of two texts"},
    {"n": 300, "d": 64, "classes": 2, "repeats": 0.3, "what": "30 % of texts are repeats"},
    {"n": 300, "d": 64, "classes": 2, "signal": 0.7, "what": "weak labels"},
    *({"n": n, "d": d, "classes": 0, "signal": 1.0, "what": REAL} for n, d in ((100, 64), (300, 64), (300, 200))),
    {"n": 300, "d": 64, "classes": 0, "signal": 1.0, "repeats": 0.3, "what": f"{REAL}, 30 % of texts are repeats"},
    *(
        {"n": n, "d": 64, "classes": 0, "signal": 0.5, "skewed": True, "what": f"{REAL}, log-normal"}
        for n in (100, 300)
    ),
    *({"n": n, "d": 64, "classes": 2, "labels": 8, "signal": 2.0, "what": "mean over 8 labels"} for n in (100, 300)),
]
ACCURACY, GAIN = "accuracy of a probe", "what twice the texts add"
ACCURACIES = [
    *({"n": n, "d": 64, "classes": c} for n in (100, 300, 1000) for c in (2, 5)),
    {"n": 300, "d": 64, "classes": 2, "signal": 8.0, "what": "nearly all right"},
    {"n": 300, "d": 64, "classes": 2, "repeats": 0.3, "what": "30 % of texts are repeats"},
]
GAINS = [{"n": n, "d": d, "classes": c} for n, d, c in ((200, 64, 2), (300, 64, 5), (1000, 64, 2), (1000, 200, 5))]
BEST = f"R2 of the best of {MANY_LAYERS} layers"
BESTS = [
    {"n": n, "d": d, "classes": c, "signal": signal, "what": what}
    for n, d, c in ((100, 64, 2), (300, 64, 2), (1000, 64, 2))
    for signal, what in ((3.0, ""), (1.0, "weak labels"))
]
NOISE = [{"n": n, "d": d, "classes": c} for n, d, c in ((100, 64, 2), (300, 64, 5), (300, 200, 2))]


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One row of the table: number of texts, width, classes (0: real values; 2: of several labels), what is special."""

    n: int
    d: int
    classes: int
    signal: float = 3.0
    labels: int = 1
    rare: int = 0
    repeats: float = 0.0
    skewed: bool = False
    what: str = ""


class World:
    """Gaussian features around class means; around real values, or several labels, times a direction of each."""

    def __init__(self, rng: np.random.Generator, cell: Cell):
        self.rng, self.cell = rng, cell
        count = cell.classes if self.in_classes else cell.labels
        self.means = rng.standard_normal((count, cell.d)) * cell.signal / math.sqrt(cell.d)

    @property
    def in_classes(self) -> bool:
        """Whether a text has one of several classes."""
        return self.cell.classes > 0 and self.cell.labels == 1

    def features(self, labels: np.ndarray) -> torch.Tensor:
        """Return features (n, d) of texts with these labels."""
        means = self.means[labels] if self.in_classes else labels.reshape(len(labels), -1) @ self.means
        x = self.rng.standard_normal((len(labels), self.cell.d)) + means
        return torch.from_numpy(x.astype(np.float32))

    def texts(self) -> tuple[torch.Tensor, np.ndarray, np.ndarray]:
        """Return features (n, d), classes (n,), real values (n,) or labels (n, L), and groups of equal texts (n,)."""
        cell, groups = self.cell, np.arange(self.cell.n)
        if self.in_classes:
            labels = self.rng.integers(0, cell.classes - (cell.rare > 0), cell.n)
            labels[: cell.rare] = cell.classes - 1
        elif cell.classes:
            frequencies = np.linspace(0.1, 0.6, cell.labels)
            labels = (self.rng.random((cell.n, cell.labels)) < frequencies).astype(np.int64)
        else:
            labels = self.rng.standard_normal(cell.n)
            labels = np.exp(labels) if cell.skewed else labels
        x, repeats = self.features(labels), round(cell.n * cell.repeats)
        if repeats:
            source = self.rng.integers(0, cell.n - repeats, repeats)
            x[-repeats:], labels[-repeats:], groups[-repeats:] = x[source], labels[source], source
        return x, labels, groups


def readout_and_truth(
    states: torch.Tensor, labels: np.ndarray, groups: np.ndarray, fresh: tuple[torch.Tensor, np.ndarray], seed: int
) -> tuple[Readout, np.ndarray, np.ndarray]:
    """Return the readout of all directions, its and the baseline's errors on fresh texts (folds, 2), and the folds.

    Errors are weighted by the texts of each fold; see `reached`.
    """
    targets, fresh_targets = (_targets(each, labels) for each in (labels, fresh[1]))
    fold_of = assign_folds(labels, groups=groups, seed=seed)
    assert fold_of is not None
    folds = torch.from_numpy(fold_of)
    each = targets.shape[1] if labels.ndim == 2 else 1  # several labels: each has its own penalty
    errors = torch.zeros(len(RIDGES), len(labels), each, dtype=torch.float64)
    baseline = torch.zeros(len(labels), dtype=torch.float64)
    beyond_folds, loo_errors = [], []
    both = torch.cat([states, fresh[0]])
    for split in splits(states, folds):
        mean = targets[split.train].mean(0)
        baseline[split.test] = (targets[split.test] - mean).square().sum(1)
        beyond = Split(
            states=both, train=split.train, test=torch.cat([split.test, torch.arange(len(labels), len(both))])
        )
        truth = torch.cat([targets[split.test], fresh_targets]) - mean
        cross = beyond.cross(targets[split.train] - mean)
        left_out = beyond.loo_errors(cross, targets[split.train] - mean, torch.from_numpy(groups)[split.train])
        loo_errors.append((left_out if each > 1 else left_out.sum(1, keepdim=True)).amin(0).sum())
        residuals = torch.zeros(len(RIDGES), len(truth), each, dtype=torch.float64)
        for rows, fitted in beyond.ridge(cross):
            squared = (truth[rows] - fitted).square()
            residuals[:, rows] = squared if each > 1 else squared.sum(2, keepdim=True)
        errors[:, split.test] = residuals[:, : len(split.test)]
        fresh_baseline = float(truth[len(split.test) :].square().sum())
        beyond_folds.append((split.test, residuals[:, len(split.test) :].sum(1), fresh_baseline))
    chosen = choose_elsewhere(errors, folds)
    picked = errors.gather(0, chosen[None])[0].sum(1)
    on_fresh = [
        (len(test) * float(sums.gather(0, chosen[test[0]][None]).sum()), len(test) * total)
        for test, sums, total in beyond_folds
    ]
    readout = Readout(
        name="",
        errors=picked.numpy(),
        baseline=baseline.numpy(),
        groups=groups,
        loo_errors=torch.stack(loo_errors),
    )
    return readout, np.array(on_fresh), fold_of


def reached(on_fresh: np.ndarray) -> float:
    """Return the R^2 on fresh texts of a readout's folds (folds, 2)."""
    errors, baseline = on_fresh.sum(0)
    return float(1 - errors / baseline)


def _targets(values: np.ndarray, labels: np.ndarray) -> torch.Tensor:
    """Return `values` as targets (n, c), real values and several labels as they are standardised for `labels`."""
    if values.dtype.kind == "f" or values.ndim == 2:
        return torch.from_numpy(((values - labels.mean(0)) / labels.std(0)).reshape(len(values), -1))
    return torch.nn.functional.one_hot(torch.from_numpy(values), int(labels.max()) + 1).double()


def covers(interval: tuple[float, float], truth: float) -> bool:
    """Return whether an interval holds a value."""
    return interval[0] <= truth <= interval[1]


def coverage_rows(replications: int, done: Container[Key]) -> Iterator[dict[str, Any]]:
    """Yield, for each cell, how often the intervals of R^2 and of a paired difference hold the truth."""
    for number, options in enumerate(CELLS):
        cell = Cell(**options)
        if ("held-out R2", cell.n, cell.d, cell.classes, cell.what) in done:
            continue
        hits, pairs, values = 0, 0, []
        for replication in range(replications):
            world = World(np.random.default_rng([number, replication]), cell)
            x, labels, groups = world.texts()
            fresh_labels = world.rng.choice(labels, FRESH)
            fresh = world.features(fresh_labels)
            whole, truth, _ = readout_and_truth(x, labels, groups, (fresh, fresh_labels), replication)
            half, half_truth, _ = readout_and_truth(
                x[:, : cell.d // 2], labels, groups, (fresh[:, : cell.d // 2], fresh_labels), replication
            )
            hits += covers(whole.interval(), reached(truth))
            pairs += covers(compare_readouts(whole, half).interval, reached(truth) - reached(half_truth))
            values.append(whole.r2)
        common = {"n": cell.n, "d": cell.d, "classes": cell.classes, "what": cell.what, "nominal": 0.95}
        r2 = {"mean R2": round(float(np.mean(values)), 3), "replications": replications}
        yield {"interval": "held-out R2", **common, "reached": hits / replications, **r2}
        yield {"interval": "difference of two readouts", **common, "reached": pairs / replications, **r2}


def accuracy_rows(replications: int, done: Container[Key]) -> Iterator[dict[str, Any]]:
    """Yield how often the interval of an out-of-fold accuracy holds what the same classifiers reach on fresh texts."""
    for number, options in enumerate(ACCURACIES):
        cell = Cell(**options)
        if (ACCURACY, cell.n, cell.d, cell.classes, cell.what) in done:
            continue
        hits, values = 0, []
        for replication in range(replications):
            world = World(np.random.default_rng([7, number, replication]), cell)
            x, labels, groups = world.texts()
            fresh_labels = world.rng.choice(labels, FRESH)
            fresh = world.features(fresh_labels).numpy()
            fold_of = assign_folds(labels, groups=groups, seed=replication)
            assert fold_of is not None
            right, on_fresh = 0, 0.0
            for fold in np.unique(fold_of):
                train, test = fold_of != fold, fold_of == fold
                classifier = RidgeClassifier(alpha=float(cell.d)).fit(x[train].numpy(), labels[train])
                right += int((classifier.predict(x[test].numpy()) == labels[test]).sum())
                on_fresh += test.mean() * float((classifier.predict(fresh) == fresh_labels).mean())
            hits += covers(share_interval(right / cell.n, len(np.unique(groups))), on_fresh)
            values.append(right / cell.n)
        yield {
            "interval": ACCURACY, "n": cell.n, "d": cell.d, "classes": cell.classes, "what": cell.what,
            "nominal": 0.95, "reached": hits / replications, "replications": replications,
            "mean accuracy": round(float(np.mean(values)), 3),
        }  # fmt: skip


def gain_rows(replications: int, done: Container[Key]) -> Iterator[dict[str, Any]]:
    """Yield how often the interval of what twice the texts add holds what they add on average."""
    for number, options in enumerate(GAINS):
        cell = Cell(**options)
        if (GAIN, cell.n, cell.d, cell.classes, cell.what) in done:
            continue
        curves, twice = [], []
        for replication in range(replications):
            for times in (1, 2):
                world = World(np.random.default_rng([8, number, replication]), replace(cell, n=times * cell.n))
                x, labels, groups = world.texts()
                fold_of = torch.from_numpy(assign_folds(labels, seed=replication))
                targets = torch.nn.functional.one_hot(torch.from_numpy(labels)).double()
                if times == 1:
                    curves.append(learning_curve(x, targets, fold_of, groups))
                else:
                    twice.append(held_out_errors(x, targets, fold_of).ceiling)
        found = [curve for curve in curves if curve is not None]
        added = float(np.mean(twice) - np.mean([curve.r2[-1] for curve in found]))
        forecast = [curve for curve in found if not math.isnan(curve.twice)]
        hits = sum(covers(curve.gain_interval, added) for curve in forecast)
        yield {
            "interval": GAIN, "n": cell.n, "d": cell.d, "classes": cell.classes, "what": cell.what, "nominal": 0.95,
            "reached": hits / len(forecast), "replications": replications,
        }  # fmt: skip


def best_rows(replications: int, done: Container[Key]) -> Iterator[dict[str, Any]]:
    """Yield how often the interval of the layer that is chosen on the other folds' texts holds what it reaches."""
    for number, options in enumerate(BESTS):
        cell = Cell(**options)
        if (BEST, cell.n, cell.d, cell.classes, cell.what) in done:
            continue
        hits, values, above = 0, [], []
        for replication in range(replications):
            world = World(np.random.default_rng([9, number, replication]), cell)
            x, labels, groups = world.texts()
            fresh_labels = world.rng.choice(labels, FRESH)
            fresh = world.features(fresh_labels)

            def layer(states: torch.Tensor, rng: np.random.Generator = world.rng) -> torch.Tensor:
                return states + 0.5 * torch.from_numpy(rng.standard_normal(states.shape)).float()

            layers = [
                readout_and_truth(layer(x), labels, groups, (layer(fresh), fresh_labels), replication)
                for _ in range(MANY_LAYERS)
            ]
            fold_of = layers[0][2]
            choice = choose_layer(range(MANY_LAYERS), [readout for readout, *_ in layers], fold_of)
            by_fold = [int(choice.by_fold[fold_of == fold][0]) for fold in np.unique(fold_of)]
            truth = reached(np.stack([layers[best][1][fold] for fold, best in enumerate(by_fold)]))
            hits += covers(choice.readout.interval(), truth)
            values.append(choice.readout.r2)
            above.append(choice.readout.r2 - truth)
        yield {
            "interval": BEST, "n": cell.n, "d": cell.d, "classes": cell.classes, "what": cell.what, "nominal": 0.95,
            "reached": hits / replications, "replications": replications, "mean R2": round(float(np.mean(values)), 3),
            "above": round(float(np.mean(above)), 3),
        }  # fmt: skip


def noise_rows(replications: int, done: Container[Key]) -> Iterator[dict[str, Any]]:
    """Yield, for labels without meaning, how often a best of several layers is named."""
    for number, options in enumerate(NOISE):
        cell = Cell(signal=0.0, **options)
        if (NAMED, cell.n, cell.d, cell.classes, NOISE_LABELS) in done:
            continue
        named = 0
        for replication in range(replications):
            world = World(np.random.default_rng([99, number, replication]), cell)
            x, labels, groups = world.texts()
            fold_of = assign_folds(labels, seed=replication)
            assert fold_of is not None
            targets = torch.nn.functional.one_hot(torch.from_numpy(labels)).double()
            readouts = []
            for _ in range(LAYERS):  # layers of one model have much in common
                layer = (x + 0.5 * torch.from_numpy(world.rng.standard_normal(x.shape))).float()
                folds = torch.from_numpy(fold_of)
                held_out = held_out_errors(layer, targets, folds, keep=Keep(loo_groups=torch.from_numpy(groups)))
                errors, baseline = held_out.ceiling_errors.numpy(), held_out.baseline.numpy()
                common = {"baseline": baseline, "groups": groups, "loo_errors": held_out.loo_errors}
                readouts.append(Readout(name="", errors=errors, **common))
            named += choose_layer(range(LAYERS), readouts, fold_of).holds
        yield {
            "interval": NAMED,
            "n": cell.n,
            "d": cell.d,
            "classes": cell.classes,
            "what": NOISE_LABELS,
            "nominal": 0.025,
            "reached": named / replications,
            "replications": replications,
        }


def main() -> None:
    """Simulate, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--replications", type=int, default=200)
    arguments = parser.parse_args()
    count = arguments.replications
    earlier = pd.read_csv(RESULT).fillna({"what": ""}) if RESULT.exists() else pd.DataFrame({"replications": []})
    rows = earlier[earlier.replications.eq(count) & earlier.get("d", pd.Series()).notna()].to_dict("records")
    done = {(row["interval"], int(row["n"]), int(row["d"]), int(row["classes"]), row["what"]) for row in rows}
    every = (noise_rows, accuracy_rows, gain_rows, coverage_rows, best_rows)
    for row in chain.from_iterable(rows_of(count, done) for rows_of in every):
        print(row, flush=True)
        rows.append(row)
        pd.DataFrame(rows).to_csv(RESULT, index=False)
    rows += coverage_correlations.rows(count, 0)
    pd.DataFrame(rows).to_csv(RESULT, index=False)


if __name__ == "__main__":
    main()
