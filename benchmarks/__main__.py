"""Measure the ratios that README reports, all in one run on one machine.

    python -m benchmarks                                  # what `make bench` runs; at most eight minutes on two cores
    python -m benchmarks --model DIR --task reviews.csv   # end to end on a real model and real texts
    python -m benchmarks --only study,training            # what takes longer, by name

Ratios are other time over ours where more is better, and ours over the least possible where less is. Timings alternate
between the two sides, so that a shared machine disturbs both alike, and the best of each counts.
"""

import argparse
import json
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import batches_of, described, race, real_or_stand_in
from benchmarks.evidence import bench_neighbour, bench_permutations, bench_study, bench_training, bench_workers
from benchmarks.released import ReleasedMoments
from benchmarks.released import run as released_run
from ntps import RankSettings, __version__, collect, load_model, load_task, rank, score
from ntps._files import atomic_write
from ntps.core import (
    LayerMoments,
    NextTokenMoments,
    PooledMoments,
    autoregressive_encoder,
    ntps_table,
    official_curve,
    perception_encoder,
    solve_layer,
)
from ntps.core.moments import TextBatch
from ntps.core.threads import SEVERAL_LAYERS, several_at_once
from ntps.models.states import StateReader

RESULTS = Path(__file__).parent / "results" / "latest.json"
SLOW = ("study", "workers", "neighbour", "transformer_ranker")  # only by name


def short_batch(
    n_layers: int, width: int, texts: int, seed: int = 0
) -> tuple[list[torch.Tensor], torch.Tensor, torch.Tensor]:
    """Return random hidden states of short texts (8 to 40 tokens, like review sentences), longest first."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(8, 41, (texts,), generator=generator).sort(descending=True).values
    mask = torch.arange(int(lengths[0]))[None] < lengths[:, None]
    hidden = [torch.randn(texts, int(lengths[0]), width, generator=generator) for _ in range(n_layers)]
    return hidden, mask, torch.randint(0, 2, (texts,), generator=generator)


def bench_moments() -> dict[str, Any]:
    """Accumulate 19 layers of 128 short texts, 640 wide."""
    hidden, mask, labels = short_batch(19, 640, 128)
    batches = []
    for start in range(0, 128, 32):
        rows = slice(start, start + 32)
        longest = int(mask[start].sum())
        batches.append(([states[rows, :longest].contiguous() for states in hidden], mask[rows, :longest], labels[rows]))
    moments = NextTokenMoments(layers=range(19), width=640)
    reference = ReleasedMoments(19, 640, 2)

    def ours() -> None:
        for states, present, classes in batches:
            pooled = moments.update(states, present)
            for layer_states in pooled:
                PooledMoments.of(layer_states, torch.nn.functional.one_hot(classes, 2))

    def theirs() -> None:
        for states, present, classes in batches:
            reference.update(tuple(states), present, classes)

    mine, other = race(ours, theirs, 8)
    return {"ratios": {"moments": other / mine}, "moments": {"seconds": mine, "released_seconds": other}}


def random_moments(width: int, classes: int = 2, texts: int = 2000) -> tuple[PooledMoments, LayerMoments]:
    """Return moments of one layer of random states with a decaying spectrum and some signal."""
    generator = torch.Generator().manual_seed(width)
    scales = torch.logspace(0, -2, width)
    h = torch.randn(8, texts, width, generator=generator) * scales
    h[1:] += 0.5 * h[:-1]
    s = h.cumsum(0)[:-1].flatten(0, 1).double()
    x = h.mean(0)
    y = torch.nn.functional.one_hot((x[:, :classes]).argmax(1), classes)
    following = h[1:].flatten(0, 1).double()
    next_token = LayerMoments(
        layer=0, C0=s.T @ s / texts, C1=s.T @ following / texts, n_texts=texts, n_pairs=len(s), dtype="float32"
    )
    return PooledMoments.of(x, y), next_token


def bench_solve() -> dict[str, Any]:
    """Solve one layer: all ranks here, 19 fractions there; and all ranks there, by as many pseudo-inverses."""
    result: dict[str, Any] = {"ratios": {}, "solve": {}}
    for width in (640, 2048):
        pooled, next_token = random_moments(width)

        def ours(pooled: PooledMoments = pooled, next_token: LayerMoments = next_token) -> torch.Tensor:
            U = perception_encoder(pooled.M, pooled.X)
            return ntps_table(U.vectors, autoregressive_encoder(next_token.C0, next_token.C1).vectors)

        mine, other = race(ours, lambda p=pooled, n=next_token: official_curve(p, n), 3 if width < 1000 else 1)
        # All ranks as the released code would have to: a pseudo-inverse for each; a tenth of them, times ten.
        V = autoregressive_encoder(next_token.C0, next_token.C1).vectors.float()
        start = time.perf_counter()
        sample = range(width // 20, width, 10 if width < 1000 else 200)
        for k in sample:
            torch.linalg.pinv(V[:, :k])
        every = other + (time.perf_counter() - start) / len(sample) * width
        result["ratios"][f"solve_19_fractions_{width}"] = other / mine
        result["ratios"][f"solve_all_ranks_{width}"] = every / mine
        result["solve"][str(width)] = {"seconds": mine, "released_19": other, "released_all_ranks_estimated": every}
    return result


def random_layer(width: int, texts: int = 500) -> Callable[[int], float]:
    """Return a call that solves a layer of random states and judges its readouts; its argument is not read."""
    _, next_token = random_moments(width)
    states = torch.randn(texts, width, generator=torch.Generator().manual_seed(0))
    classes, fold_of = (states[:, 0] > 0).long(), torch.arange(texts) % 5
    return lambda _: solve_layer(states, classes, next_token, fold_of=fold_of).held_out([8, 64]).ceiling


def bench_layers() -> dict[str, Any]:
    """Solve two layers and judge their readouts, one after the other and both at once."""
    layer = random_layer(640)

    def two(bytes_each: int) -> list[float]:
        return list(several_at_once(layer, range(2), bytes_each=bytes_each))

    at_once, one_by_one = race(lambda: two(1), lambda: two(SEVERAL_LAYERS))
    return {"ratios": {"layers_at_once_640": one_by_one / at_once}}


def bench_end_to_end(model_name: str | None, task_name: str | None, texts: int) -> dict[str, Any]:
    """Score all layers of a 270M model on texts."""
    model, with_head, task = real_or_stand_in(model_name, task_name, texts)
    ids = model.tokenize(task.texts, 512).ids
    labels = torch.from_numpy(task.labels.copy())

    def ours() -> None:
        score(collect(model, task, progress=False), folds=0)

    def theirs() -> None:
        released_run(with_head.model, ids, labels, task.n_classes)

    mine, other = race(ours, theirs, 1)
    tokens = sum(map(len, ids))
    return {
        "ratios": {"end_to_end": other / mine},
        "end_to_end": {
            "model": described(model_name),
            "texts": len(task),
            "tokens": tokens,
            "seconds": mine,
            "released_seconds": other,
            "tokens_per_second": tokens / mine,
        },
    }


def bench_forward(model_name: str | None, task_name: str | None) -> dict[str, Any]:
    """Time a pass with moments of every layer over the forward pass alone, 256 texts.

    Each batch is a race of its own: on a busy machine the best of four times of a second says more than that of ten.
    """
    model, _, task = real_or_stand_in(model_name, task_name, 256)
    layers, mine, alone = range(model.n_layers), 0.0, 0.0
    reader = StateReader(model.model, layers, model.vocabulary, model.device)
    moments = NextTokenMoments(layers=layers, width=model.widths)

    def with_moments(ids: torch.Tensor, mask: torch.Tensor) -> None:
        reader.read(ids, mask, TextBatch(mask.bool(), model.widths, moments=moments).add)

    for batch in batches_of(model, task):
        times = race(partial(with_moments, *batch), partial(model.hidden_states, *batch), 4)
        mine, alone = mine + times[0], alone + times[1]
    return {
        "ratios": {"forward_with_moments": mine / alone},
        "forward": {"model": described(model_name), "texts": len(task), "seconds": mine, "alone_seconds": alone},
    }


def bench_memory() -> dict[str, Any]:
    """Peak memory of a process that reads 1,000 and one that reads 10,000 texts."""
    peaks = {}
    for texts in (1000, 10000):
        command = [sys.executable, "-m", "benchmarks", "--memory-of", str(texts)]
        peaks[texts] = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])
    return {"ratios": {"memory_10000_over_1000": peaks[10000] / peaks[1000]}, "memory_kib": peaks}


def bench_ranker(task_name: str | None, model_name: str | None, texts: int) -> dict[str, Any]:
    """TransformerRanker's time for the same texts over ours, loading included on both sides, where it is installed."""
    try:
        import transformer_ranker
    except ImportError:
        return {"ratios": {}, "transformer_ranker": "not installed"}
    if not (model_name and task_name):
        return {"ratios": {}, "transformer_ranker": "needs --model and --task"}
    from datasets import Dataset, DatasetDict

    task = load_task(task_name, limit=texts)
    train = Dataset.from_dict({"text": list(task.texts), "label": task.labels.tolist()}).class_encode_column("label")
    start = time.perf_counter()
    ranker = transformer_ranker.TransformerRanker(DatasetDict({"train": train}), dataset_downsample=1.0)
    ranker.run([model_name], batch_size=32)
    theirs = time.perf_counter() - start
    start = time.perf_counter()
    rank(load_task(task_name, limit=texts), [model_name], settings=RankSettings(control=False), progress=False)
    mine = time.perf_counter() - start
    return {
        "ratios": {"transformer_ranker": theirs / mine},
        "transformer_ranker": {
            "model": described(model_name),
            "texts": texts,
            "version": version("transformer-ranker"),
            "seconds": theirs,
            "our_seconds": mine,
        },
    }


def memory_of(texts: int) -> None:
    """Read `texts` bundled texts and print the peak memory of this process in KiB."""
    collect(load_model("miniworld-base"), load_task("miniworld/topic", n=texts), progress=False)
    # Not getrusage: its maximum is handed down from the process that started this one.
    status = Path("/proc/self/status").read_text()
    print(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="directory or name of a real model of 270M parameters")
    parser.add_argument("--task", help="real texts for it")
    parser.add_argument("--texts", type=int, default=150, help="texts end to end")
    parser.add_argument("--only", help="names of benchmarks, with commas; the others keep their last figures")
    parser.add_argument("--memory-of", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.memory_of:
        return memory_of(options.memory_of)
    benches: dict[str, Callable[[], dict[str, Any]]] = {
        "moments": bench_moments,
        "solve": bench_solve,
        "layers": bench_layers,
        "end_to_end": lambda: bench_end_to_end(options.model, options.task, options.texts),
        "forward": lambda: bench_forward(options.model, options.task),
        "memory": bench_memory,
        "permutations": lambda: bench_permutations(options.model, options.task),
        "training": lambda: bench_training(options.model, options.task),
        "study": bench_study,
        "workers": bench_workers,
        "neighbour": bench_neighbour,
        "transformer_ranker": lambda: bench_ranker(options.task, options.model, options.texts),
    }
    chosen = options.only.split(",") if options.only else [name for name in benches if name not in SLOW]
    result: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"ratios": {}}
    result["machine"] = {
        "processor": platform.machine(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "torch": torch.__version__.partition("+")[0],
        "ntps": __version__,
    }
    for name in chosen:
        started = time.perf_counter()
        measured = benches[name]()
        print(f"{name} measured in {time.perf_counter() - started:.0f} s", file=sys.stderr)
        result["ratios"].update(measured.pop("ratios"))
        result.update(measured)
        result.setdefault("versions", {})[name] = __version__
        atomic_write(RESULTS, json.dumps(result, indent=2) + "\n")
    for ratio, value in result["ratios"].items():
        print(f"{ratio:28s} {value:8.2f}")
    return None


if __name__ == "__main__":
    main()
