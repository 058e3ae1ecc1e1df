"""Does a ranking on 200 labelled texts hold on others? Writes benchmarks/results/ranking.csv and prints a summary.

For each task, models are ranked on 200 texts drawn at random, several times, and judged by what a full probe reaches on
all the other texts: at its best layer and at the last one, beside TF-IDF with logistic regression, which reads whole
texts. The bundled models are ranked on real texts too, beside the models named.

    python -m benchmarks.ranking                                         # the bundled models and tasks
    python -m benchmarks.ranking --model DIR --model DIR --task a.jsonl --task b.jsonl --limit 2000 --max-length 32 \
        --passes DIR                                                     # real ones; passes are kept in DIR

Tasks that the table has already are replaced, the others stay.

Where the package transformer-ranker is installed, its own ranking of the first draw stands beside ours, with the time
that both took for it, loading included.
"""

import argparse
import itertools
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import kendalltau, t

from ntps import RankSettings, Representations, Task, collect, load_model, load_task, rank
from ntps._text import counted
from ntps.scoring import Labels, assign_folds, labels_of, linear_probe
from ntps.scoring.headline import layer_readouts
from ntps.scoring.predictors import tfidf
from ntps.scoring.readouts import LayerChoice, choose_layer, tied_groups

RESULT = Path(__file__).parent / "results" / "ranking.csv"
FEW = 200
POINT = 0.01  # of accuracy
BUNDLED = ["miniworld-small", "miniworld-base@step150", "miniworld-base@step1000", "miniworld-base", "miniworld-large"]
TASKS = ("topic", "tense", "person", "register", "sentiment", "intent", "length", "first_mentioned")


def some(labels: Labels, chosen: np.ndarray) -> Labels:
    """Return the labels of some of the texts."""
    return replace(
        labels, values=labels.values[chosen], rows=labels.rows[chosen], groups=labels.groups[chosen], n_missing=0
    )


def chosen_layer(representations: Representations, labels: Labels, seed: int) -> LayerChoice:
    """Return the best layer on labelled texts, as a ranking chooses it."""
    fold_of = assign_folds(labels.values, groups=labels.groups, seed=seed)
    assert fold_of is not None
    readouts = layer_readouts(representations, labels, fold_of, origin="")
    return choose_layer(representations.layers, readouts, fold_of)


def accuracy(representations: Representations, labels: Labels, layer: int) -> float:
    """Return the cross-validated accuracy of a full probe of one layer."""
    return linear_probe(labels.states(representations, layer), labels.values).accuracy


def rows(task: Task, passes: dict[str, Representations], draws: int) -> Iterator[dict[str, Any]]:
    """Yield one row per model and draw."""
    labels = {name: labels_of(found) for name, found in passes.items()}
    n = len(next(iter(labels.values())).values)
    for draw in range(draws):
        order = np.random.default_rng(draw).permutation(n)
        few, rest = np.sort(order[:FEW]), np.sort(order[FEW:])
        ranked = {name: chosen_layer(found, some(labels[name], few), draw) for name, found in passes.items()}
        groups = tied_groups([choice.readout for choice in ranked.values()])
        place = {index: number for number, group in enumerate(groups, 1) for index in group}
        for index, (name, found) in enumerate(passes.items()):
            row = {"task": task.name, "model": name, "draw": draw, "r2_few": ranked[name].readout.r2}
            row |= {"layer_few": ranked[name].layer, "group_few": place[index], "others": len(rest)}
            if draw == 0:  # what a full probe reaches hardly depends on which texts are left out
                others = some(labels[name], rest)
                choice = chosen_layer(found, others, 0)
                row |= {"r2": choice.readout.r2, "layer": choice.layer, "last": found.layers[-1]}
                row |= {"best_layer": accuracy(found, others, choice.layer)}
                row |= {"last_layer": accuracy(found, others, found.layers[-1])}
                fold_of = assign_folds(others.values, groups=others.groups)
                texts = [task.texts[i] for i in found.text_index[others.rows]]
                words = tfidf(texts, others.values, fold_of)
                row |= {"tfidf": float((words.argmax(1) == others.values).mean())}
            yield row


def theirs(task: Task, paths: dict[str, str], max_length: int | None) -> dict[str, Any]:
    """Return TransformerRanker's scores of the first draw, and its time and ours; nothing where it is not installed."""
    try:
        from datasets import Dataset, DatasetDict
        from transformer_ranker import TransformerRanker
    except ImportError:
        return {}
    few = np.sort(np.random.default_rng(0).permutation(len(task))[:FEW])
    texts = [task.texts[i] for i in few]
    train = Dataset.from_dict({"text": texts, "label": [task.classes[task.labels[i]] for i in few]})
    started = time.perf_counter()
    ranker = TransformerRanker(DatasetDict({"train": train.class_encode_column("label")}), dataset_downsample=1.0)
    scores = {name: next(iter(ranker.run([path], batch_size=32).scores.values())) for name, path in paths.items()}
    seconds = time.perf_counter() - started
    started = time.perf_counter()
    rank(task.subset(few), list(paths.values()), settings=RankSettings(max_length=max_length, control=False))
    return {"scores": scores, "their_seconds": seconds, "our_seconds": time.perf_counter() - started}


def in_order(left: Sequence[float], right: Sequence[float]) -> list[bool]:
    """Return for each pair of models whose right values differ whether the left ones are in the same order."""
    pairs = itertools.combinations(range(len(left)), 2)
    return [(left[i] - left[j]) * (right[i] - right[j]) > 0 for i, j in pairs if right[i] != right[j]]


def summary(table: pd.DataFrame) -> list[str]:
    """Return what the table says, one paragraph for each world, and one for the real models among all on real texts."""
    real = table[table.world.eq("real")]
    named = real[~real.model.isin(BUNDLED)]
    parts = {
        "Real texts, real models": named,
        "Real texts, the bundled models beside them": real,
        "Bundled texts and models": table[table.world.eq("bundled")],
    }
    return [_paragraph(name, part) for name, part in parts.items() if len(part)]


def _paragraph(name: str, part: pd.DataFrame) -> str:
    full = part[part.draw.eq(0)].set_index(["task", "model"])
    agree: list[bool] = []
    apart: list[float] = []  # by how much the model that is told to be better is so
    pairs = 0
    for (task, _), draw in part.groupby(["task", "draw"], sort=False):
        truth = full.loc[task].best_layer.reindex(draw.model)
        agree += in_order(draw.r2_few.tolist(), truth.tolist())
        for i, j in itertools.combinations(range(len(truth)), 2):
            pairs += 1
            ahead = draw.group_few.iloc[j] - draw.group_few.iloc[i]
            if ahead:
                apart.append(math.copysign(1, ahead) * (truth.iloc[i] - truth.iloc[j]))
    gain = full.best_layer - full.last_layer
    by_task = full.groupby("task", sort=False)
    words = int((by_task.tfidf.first() > by_task.best_layer.max()).sum())
    leads = np.array(apart)
    others = sorted(set(full.others.astype(int)))
    said = (
        f"{name}: {counted(len(by_task), 'task')}, {full.index.get_level_values('model').nunique()} models, probes on "
        f"{' or '.join(f'{number:,}' for number in others)} other texts. Pairs in order on {FEW} texts: "
        f"{np.mean(agree):.2f}; told apart: {len(apart) / pairs:.2f} of pairs"
    )
    if apart:
        said += (
            f", and of these the probes' accuracies are in order in {np.mean(leads > 0):.2f}, equal within a point in "
            f"{np.mean(np.abs(leads) < POINT):.2f}, and reversed by more in {np.mean(leads <= -POINT):.2f}; the better "
            f"one is {100 * leads.mean():.1f} points ahead on average"
        )
    said += (
        f". A probe of the best layer beats the last layer's in {(gain > 0).mean():.2f} of cases, by "
        f"{100 * gain.mean():+.1f} points on average. TF-IDF is better than every model on {counted(words, 'task')}."
    )
    if "their_score" in full and full.their_score.notna().any():
        ours, theirs_ = (
            np.array([kendalltau(group[score], group.best_layer).statistic for _, group in by_task])
            for score in ("r2_few", "their_score")
        )
        times = by_task.first()
        ratio = (times.our_seconds / times.their_seconds).median()
        said += (
            f" Kendall's tau of the first draw with the full probe, mean and 95 % interval over tasks: "
            f"{_with_interval(ours)}, and {_with_interval(theirs_)} for TransformerRanker with its defaults, "
            f"difference {_with_interval(ours - theirs_)}; our time over its: {ratio:.2f}."
        )
    return said


def _with_interval(values: np.ndarray) -> str:
    """Return the mean of one value per task with its 95 % t interval."""
    known = values[np.isfinite(values)]
    half = t.ppf(0.975, len(known) - 1) * known.std(ddof=1) / math.sqrt(len(known))
    return f"{known.mean():z.2f} [{known.mean() - half:z.2f}, {known.mean() + half:z.2f}]"


def main() -> None:
    """Compute, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", action="append", default=[], help="beside the bundled models")
    parser.add_argument("--task", action="append", help="a file; default: bundled tasks")
    parser.add_argument("--limit", type=int, default=2000)
    parser.add_argument("--max-length", type=int)
    parser.add_argument("--draws", type=int, default=5)
    parser.add_argument("--passes", type=Path, help="folder that keeps the passes")
    given = parser.parse_args()
    world = "real" if given.task else "bundled"
    models = {Path(name).name: load_model(name) for name in [*given.model, *BUNDLED]}
    found: list[dict[str, Any]] = []
    last: dict[str, Representations] = {}
    for task_name in given.task or [f"miniworld/{name}" for name in TASKS]:
        bundled = task_name.startswith("miniworld/")
        task = load_task(task_name, **({"n": given.limit} if bundled else {"limit": given.limit}))
        for short, model in models.items():
            earlier = last.get(short)
            if earlier is not None and earlier.metadata["texts_fingerprint"] == task.texts_fingerprint:
                last[short] = replace(earlier, task=task)
                continue
            folder = None if given.passes is None else given.passes / short / Path(task_name).stem
            last[short] = collect(model, task, max_length=given.max_length, folder=folder, progress=False)
        rival = theirs(task, {short: str(model.source["path"]) for short, model in models.items()}, given.max_length)
        for row in rows(task, last, given.draws):
            if rival and row["draw"] == 0:
                row |= {name: rival[name] for name in ("their_seconds", "our_seconds")}
                row["their_score"] = rival["scores"][row["model"]]
            found.append({"world": world, **row})
        of_task = [row for row in found if row["task"] == task.name and row["draw"] == 0]
        print(pd.DataFrame(of_task).round(3).to_string(), flush=True)
    table = pd.DataFrame(found)
    if RESULT.exists():
        kept = pd.read_csv(RESULT)
        table = pd.concat([kept[~kept.task.isin(table.task)], table])
        table = table.sort_values("world", ascending=False, kind="stable")  # real ones first
    table.round(4).to_csv(RESULT, index=False)
    print("\n".join(summary(table)))


if __name__ == "__main__":
    main()
