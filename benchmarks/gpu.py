"""Measure a pass on a GPU: what moments cost beside the forward pass, how exact they are, memory, solving, training.

    python -m benchmarks.gpu --output gpu.json                          # at most 4 minutes on an H100
    python -m benchmarks.gpu --small --device cpu --output small.json   # the same code in little, in under a minute

It needs no network: the models are Llamas of 1B and 8B parameters with random weights, made on the device, and the
bundled ones. A part that fails or finds no time left says so in its place, and the others go on.
"""

import argparse
import gc
import json
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ntps import LanguageModel, Task, __version__, collect, load_model, load_task, score
from ntps._files import atomic_write
from ntps.core import LayerMoments, NextTokenMoments, TextBatch, autoregressive_encoder
from ntps.core.encoders import PREFIX_RTOL
from ntps.core.moments import _matmul_precision
from ntps.finetune import TrainSettings
from ntps.finetune.loop import Trainer
from ntps.models.plan import device_memory
from ntps.models.states import StateReader, hidden_states

PRECISIONS = ("highest", "high", "medium")  # float32, TF32 and bfloat16 inputs; sums of products are float32
RANKS = (16, 64, 256)


@dataclass(frozen=True)
class Shape:
    """Sizes of a Llama and of what it reads."""

    name: str
    width: int
    inner: int
    blocks: int
    heads: int
    key_heads: int
    vocabulary: int
    texts: int  # per batch
    tokens: int  # per text
    batches: int


@dataclass(frozen=True)
class Sizes:
    """What is measured: for a GPU, or in little for a test of the same code."""

    shapes: tuple[Shape, ...]
    overlap_layers: tuple[int, ...]  # of the first shape
    overlap_batches: int
    solves: tuple[int, int]
    bundled: str
    bundled_texts: int
    scored_texts: int
    steps: int
    rounds: int


LARGE = Sizes(
    shapes=(
        Shape("1B", 2048, 8192, 16, 32, 8, 128256, 32, 256, 32),
        Shape("8B", 4096, 14336, 32, 32, 8, 128256, 32, 256, 8),
    ),
    overlap_layers=(8, 16),
    overlap_batches=16,
    solves=(2048, 4096),
    bundled="miniworld-large",
    bundled_texts=3000,
    scored_texts=500,
    steps=8,
    rounds=2,
)
SMALL = Sizes(
    shapes=(Shape("1B", 32, 64, 2, 4, 2, 300, 4, 16, 3), Shape("8B", 48, 96, 3, 4, 2, 300, 4, 16, 2)),
    overlap_layers=(1, 2),
    overlap_batches=20,
    solves=(32, 48),
    bundled="miniworld-small",
    bundled_texts=60,
    scored_texts=60,
    steps=2,
    rounds=1,
)


class Machine:
    """The device, its clock and its memory; on a CPU memory is not measured."""

    def __init__(self, device: str) -> None:
        self.device = torch.device(device)
        self.cuda = self.device.type == "cuda"

    def wait(self) -> None:
        """Wait until the device has done what it was given."""
        if self.cuda:
            torch.cuda.synchronize()

    def seconds(self, call: Callable[[], Any], rounds: int) -> float:
        """Return the best time of a call after one warm-up."""
        times = []
        for _ in range(rounds + 1):
            self.wait()
            start = time.perf_counter()
            call()
            self.wait()
            times.append(time.perf_counter() - start)
        return min(times[1:])

    def peak(self, call: Callable[[], Any]) -> int | None:
        """Return the largest number of bytes allocated during a call."""
        self.free()
        if self.cuda:
            torch.cuda.reset_peak_memory_stats()
        call()
        self.wait()
        return torch.cuda.max_memory_allocated() if self.cuda else None

    def free(self) -> None:
        """Give memory back that nothing refers to."""
        gc.collect()
        if self.cuda:
            torch.cuda.empty_cache()

    def describe(self) -> dict[str, Any]:
        """Return the device's name and memory, and the versions of what runs on it."""
        memory = torch.cuda.get_device_properties(0).total_memory if self.cuda else None
        return {
            "device": torch.cuda.get_device_name() if self.cuda else platform.machine(),
            "memory": memory,
            "torch": torch.__version__,
            "cuda": torch.version.cuda,
            "python": platform.python_version(),
            "threads": torch.get_num_threads(),
            "ntps": __version__,
        }


# What is read


def random_llama(shape: Shape, machine: Machine) -> LanguageModel:
    """Return a Llama with random bfloat16 weights, made on the device, and a tokenizer of one id per word."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import AutoModel, LlamaConfig, PreTrainedTokenizerFast

    config = LlamaConfig(
        vocab_size=shape.vocabulary, hidden_size=shape.width, intermediate_size=shape.inner,
        num_hidden_layers=shape.blocks, num_attention_heads=shape.heads, num_key_value_heads=shape.key_heads,
        max_position_embeddings=2048,
    )  # fmt: skip
    torch.manual_seed(0)
    with machine.device:
        network = AutoModel.from_config(config, dtype=torch.bfloat16)
    words = {"<unk>": 0, **{f"w{number}": number for number in range(1, shape.vocabulary)}}
    core = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>")
    model = load_model(network.eval(), tokenizer=tokenizer, device=str(machine.device))
    model.digest = f"random {shape.name}"  # stands for the weights, which are not read for a fingerprint
    return model


def token_ids(shape: Shape, n_texts: int, seed: int = 0) -> np.ndarray:
    """Return token ids (n_texts, tokens): words as frequent as in texts, half of them foretold by the word before.

    Random words alone would leave nothing to predict: directions without an order cannot be compared.
    """
    rng = np.random.default_rng(seed)
    frequency = 1 / np.arange(10, shape.vocabulary + 9)
    shape_of_all = (n_texts, shape.tokens)
    ids = 1 + rng.choice(shape.vocabulary - 1, size=shape_of_all, p=frequency / frequency.sum())
    foretold = rng.random(shape_of_all) < 0.5
    for place in range(1, shape.tokens):
        after = 1 + ids[:, place - 1] * 7 % (shape.vocabulary - 1)
        ids[:, place] = np.where(foretold[:, place], after, ids[:, place])
    return ids


def texts_of(ids: np.ndarray) -> list[str]:
    return [" ".join(f"w{number}" for number in row) for row in ids]


def batches_of(shape: Shape, machine: Machine, n_batches: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Return batches of ids and masks on the device."""
    ids = torch.from_numpy(token_ids(shape, shape.texts * n_batches)).to(machine.device)
    return [(part, torch.ones_like(part)) for part in ids.split(shape.texts)]


def fresh_moments(
    layers: Any, width: int, machine: Machine, precision: str = "high", **options: Any
) -> NextTokenMoments:
    return NextTokenMoments(layers=layers, width=width, device=machine.device, matmul_precision=precision, **options)


# What is measured


def measure_shape(shape: Shape, machine: Machine, sizes: Sizes) -> dict[str, Any]:
    """Time and memory of passes over forward passes alone."""
    start = time.perf_counter()
    model = random_llama(shape, machine)
    batches = batches_of(shape, machine, shape.batches)
    n_tokens = sum(ids.numel() for ids, _ in batches)
    layers, widths = range(model.n_layers), model.widths
    reader = StateReader(model.model, layers, model.vocabulary, machine.device)
    result: dict[str, Any] = {
        "parameters": model.n_parameters,
        "layer_by_layer": reader.places is not None,
        "tokens": n_tokens,
        "seconds_to_build": time.perf_counter() - start,
    }

    @torch.inference_mode()
    def alone() -> None:
        for ids, mask in batches:
            model.model(input_ids=ids, attention_mask=mask, use_cache=False)

    @torch.inference_mode()
    def at_once() -> None:
        """Hold all states, and do nothing with them."""
        for ids, mask in batches:
            hidden_states(model.model, ids, mask)

    result["alone_seconds"] = base = machine.seconds(alone, sizes.rounds)
    result["forward_tokens_per_second"] = n_tokens / base
    result["alone_peak"], result["states_at_once_peak"] = machine.peak(alone), machine.peak(at_once)

    def update_at_once(sums: NextTokenMoments) -> None:
        """Add to the moments from all states of a batch."""
        for ids, mask in batches:
            sums.update(model.hidden_states(ids, mask), mask)

    def layer_by_layer(sums: NextTokenMoments) -> None:
        for ids, mask in batches:
            batch = TextBatch(present, widths, device=machine.device, moments=sums)
            reader.read(ids, mask, batch.add)

    present = torch.ones(shape.texts, shape.tokens, dtype=torch.bool)
    sums = fresh_moments(layers, shape.width, machine)
    result["update_at_once_over_alone"] = machine.seconds(partial(update_at_once, sums), sizes.rounds) / base
    result["with_moments_over_alone"] = {}
    for precision in PRECISIONS:
        sums.matmul_precision = precision
        result["with_moments_over_alone"][precision] = (
            machine.seconds(partial(layer_by_layer, sums), sizes.rounds) / base
        )
    del sums
    texts = texts_of(token_ids(shape, shape.texts * shape.batches))
    start = time.perf_counter()
    model.tokenize(texts)
    result["tokenize_seconds"] = time.perf_counter() - start
    weights = sum(tensor.nbytes for tensor in [*model.model.parameters(), *model.model.buffers()])
    plan = device_memory(
        weights=weights, widths=widths, n_tokens=shape.texts * shape.tokens, n_texts=shape.texts,
        itemsize=2, inner=shape.inner,
    )  # fmt: skip
    result["plan"], result["planned_peak"] = plan, sum(plan.values())
    result["peak"] = machine.peak(lambda: collect(model, texts, progress=False))
    if result["peak"] is not None:
        result["peak_over_plan"] = result["peak"] / result["planned_peak"]
    collected = machine.seconds(lambda: collect(model, texts, progress=False), 1)
    result["collect_over_alone"], result["collect_tokens_per_second"] = collected / base, n_tokens / collected
    return result


def measure_products(shape: Shape, machine: Machine, sizes: Sizes) -> dict[str, Any]:
    """Milliseconds for one layer of one batch: prefix sums, all that is added, one of its two products, and sums."""
    tokens, width = shape.texts * shape.tokens, shape.width
    with machine.device:
        states = torch.randn(shape.texts, shape.tokens, width, dtype=torch.bfloat16)
        mask = torch.ones(shape.texts, shape.tokens, dtype=torch.bool)
        rows, others = torch.randn(tokens, width), torch.randn(tokens, width)
        double, single = torch.zeros(width, width, dtype=torch.float64), torch.zeros(width, width)

    def repeated(call: Callable[[], Any]) -> float:
        def ten() -> None:
            for _ in range(10):
                call()

        return 100 * machine.seconds(ten, sizes.rounds)

    result: dict[str, Any] = {"prefix sums": repeated(lambda: states.cumsum(1, dtype=torch.float32))}
    for precision in PRECISIONS:
        moments = fresh_moments([0], width, machine, precision)
        with torch.inference_mode():
            batch = TextBatch(mask, [width], device=machine.device, moments=moments)
            result[f"layer, {precision}"] = repeated(lambda part=batch: part.add(0, states))
    for precision in ("highest", "high"):
        with _matmul_precision(precision, machine.device), torch.inference_mode():
            result[f"square product, {precision}"] = repeated(lambda: rows.T @ others)
    with torch.inference_mode():
        half, other_half = rows.bfloat16(), others.bfloat16()
        if machine.cuda:
            result["square product, medium"] = repeated(lambda: torch.mm(half.T, other_half, out_dtype=torch.float32))
        result["two sums, float64 on the device"] = 2 * repeated(lambda: double.add_(single))
        result["two sums, float32 on the device"] = 2 * repeated(lambda: single.add_(single))
        host = double.cpu()
        result["two sums, float64 on the host"] = 2 * repeated(lambda: host.add_(single.cpu()))
    return result


def overlap(one: torch.Tensor, other: torch.Tensor, k: int) -> float:
    """Return the mean squared cosine between the first k directions of two encoders, 1 where they span the same."""
    first, second = (torch.linalg.qr(vectors[:, :k])[0] for vectors in (one, other))
    return float((first.T @ second).square().sum() / k)


def measure_overlap(shape: Shape, machine: Machine, sizes: Sizes) -> dict[str, Any]:
    """Overlap of V with that of float64 products of the same states, by precision, layer and k: random weights."""
    model = random_llama(shape, machine)
    batches = batches_of(shape, machine, sizes.overlap_batches)
    return overlaps(model, batches, sizes.overlap_layers, machine)


def measure_overlap_bundled(machine: Machine, sizes: Sizes) -> dict[str, Any]:
    """The same for a bundled model, which is trained."""
    model = load_model(sizes.bundled, device=str(machine.device))
    task = load_task("miniworld/topic", n=sizes.bundled_texts)
    ids = model.tokenize(task.texts).ids
    batches = [model.pad(ids[start : start + 64]) for start in range(0, len(ids), 64)]
    result = overlaps(model, batches, tuple(range(model.n_layers)), machine)
    seconds = machine.seconds(lambda: collect(model, task, progress=False), 1)
    return {**result, "collect_tokens_per_second": sum(map(len, ids)) / seconds}


def overlaps(
    model: LanguageModel, batches: list[tuple[torch.Tensor, torch.Tensor]], layers: tuple[int, ...], machine: Machine
) -> dict[str, Any]:
    """Return for each precision and k the least overlap over layers, and the overlap of every layer."""
    sums = {name: fresh_moments(layers, model.width, machine, name) for name in PRECISIONS}
    sums["float64"] = fresh_moments(layers, model.width, machine, dtype=torch.float64)
    reader = StateReader(model.model, layers, model.vocabulary, machine.device)
    widths = [model.widths[layer] for layer in layers]
    for ids, mask in batches:
        parts = [TextBatch(mask.bool(), widths, device=machine.device, moments=m) for m in sums.values()]
        reader.read(ids, mask, lambda index, states, parts=parts: [part.add(index, states) for part in parts])
        for part, moments in zip(parts, sums.values(), strict=True):
            moments.counts += part.counts
    ranks = [k for k in RANKS if k < model.width] or [model.width // 2]
    by_layer: dict[str, dict[str, list[float]]] = {name: {str(k): [] for k in ranks} for name in PRECISIONS}
    rank_of: dict[str, list[int]] = {name: [] for name in sums}
    for layer in layers:
        V = {name: encoder_of(moments.layer(layer), machine) for name, moments in sums.items()}
        for name, vectors in V.items():
            rank_of[name].append(vectors.shape[1])
        for name in PRECISIONS:
            for k in ranks:
                by_layer[name][str(k)].append(overlap(V[name], V["float64"], k))
    least = {name: {k: min(values) for k, values in rows.items()} for name, rows in by_layer.items()}
    return {"layers": list(layers), "least": least, "by_layer": by_layer, "rank": rank_of, "tokens": moments.n_tokens}


def encoder_of(moments: LayerMoments, machine: Machine) -> torch.Tensor:
    """Solve V on the device, with the tolerance of its sums."""
    encoder = autoregressive_encoder(
        moments.C0.to(machine.device), moments.C1.to(machine.device), rtol=PREFIX_RTOL[moments.dtype]
    )
    return encoder.vectors


def measure_scores(machine: Machine, sizes: Sizes) -> dict[str, Any]:
    """How far a bundled model's scores lie from those of float64 products on the CPU, by precision: the largest."""
    task = load_task("miniworld/topic", n=sizes.scored_texts)
    model = load_model(sizes.bundled, device=str(machine.device))
    exact = scores(load_model(sizes.bundled, device="cpu", dtype="float64"), task, "highest")
    result: dict[str, Any] = {}
    for precision in PRECISIONS:
        found = scores(model, task, precision)
        result[precision] = {name: float(np.abs(found[name] - exact[name]).max()) for name in exact}
    return result


def scores(model: LanguageModel, task: Task, precision: str) -> dict[str, np.ndarray]:
    """Return NTPS, explained variance and the ranks of V by layer."""
    layers = score(collect(model, task, matmul_precision=precision, progress=False), probes=False).layers
    return {
        "ntps": np.array([layer.ntps for layer in layers]),
        "explained_heldout": np.array([layer.explained_heldout for layer in layers]),
        "rank_v": np.array([layer.rank_v for layer in layers]),
    }


def measure_training(shape: Shape, machine: Machine, sizes: Sizes) -> dict[str, Any]:
    """Training tokens a second: LoRA on all linear layers, batches of 16 texts."""
    model = random_llama(shape, machine)
    size = min(16, shape.texts)
    texts = texts_of(token_ids(shape, 3 * size))
    task = load_task(texts=texts, labels=np.arange(len(texts)) % 2, name="random words")
    train, validation = task.split(1 / 3)
    settings = TrainSettings(
        steps=sizes.steps + 3, batch_size=size, head="random", rank=min(32, shape.width // 2),
        evaluate_every=sizes.steps + 3,
    )  # fmt: skip
    if machine.cuda:
        torch.cuda.reset_peak_memory_stats()
    trainer = Trainer(model, train, validation, settings)
    steps = trainer.run()
    for _ in range(2):
        next(steps)
    machine.wait()
    start = time.perf_counter()
    for _ in range(sizes.steps):  # one more is left, which evaluates
        next(steps)
    machine.wait()
    seconds = time.perf_counter() - start
    per_step = np.mean([len(trainer.ids[index]) for index in range(len(train))]) * size
    return {
        "step_seconds": seconds / sizes.steps,
        "training_tokens_per_second": float(per_step * sizes.steps / seconds),
        "micro_batch": trainer.progress.micro_batch,
        "peak": torch.cuda.max_memory_allocated() if machine.cuda else None,
    }


def measure_solve(width: int, machine: Machine, device: str) -> dict[str, Any]:
    """Seconds to solve V of one layer of this width, on the device or the CPU."""
    generator = torch.Generator(machine.device).manual_seed(width)
    scales = torch.logspace(0, -2, width, dtype=torch.float64, device=machine.device)
    past, following = (
        torch.randn(2 * width, width, generator=generator, dtype=torch.float64, device=machine.device) * scales
        for _ in range(2)
    )
    following += 0.5 * past
    C0, C1 = ((past.T @ other / len(past)).to(device) for other in (past, following))
    del past, following
    start = time.perf_counter()
    if machine.cuda and device != "cpu":  # the first call loads its libraries
        torch.linalg.eigh(torch.eye(8, device=device))
        torch.linalg.svd(torch.eye(8, device=device))
        machine.wait()
        start = time.perf_counter()
    autoregressive_encoder(C0, C1)
    machine.wait()
    return {"seconds": time.perf_counter() - start}


class Run:
    """Parts measured one after another, until the time is over."""

    def __init__(self, machine: Machine, seconds: float, output: Path) -> None:
        self.machine, self.output = machine, output
        self.start, self.seconds = time.perf_counter(), seconds
        self.result: dict[str, Any] = {"machine": machine.describe(), "parts": {}}

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return time.perf_counter() - self.start

    @contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        before = self.elapsed
        yield
        self.result["parts"][name]["part_seconds"] = round(self.elapsed - before, 2)
        self.result["seconds"] = round(self.elapsed, 2)
        atomic_write(self.output, json.dumps(self.result, indent=2) + "\n")
        print(f"{name}: {self.elapsed - before:.1f} s", flush=True)

    def part(self, name: str, measure: Callable[[], dict[str, Any]], needs: float) -> None:
        """Measure a part if `needs` seconds are left; a failure stands in its place."""
        with self._timed(name):
            if self.elapsed + needs > self.seconds:
                self.result["parts"][name] = {"skipped": f"{self.elapsed:.0f} of {self.seconds:.0f} seconds are over"}
                return
            try:
                self.result["parts"][name] = measure()
            except Exception as error:
                self.result["parts"][name] = {"failed": f"{type(error).__name__}: {error}"[:2000]}
            self.machine.free()


def measure_all(machine: Machine, sizes: Sizes, seconds: float, output: Path) -> dict[str, Any]:
    """Measure everything, what matters most first; the file is written after every part."""
    run = Run(machine, seconds, output)
    for shape in sizes.shapes:
        run.part(f"pass {shape.name}", lambda s=shape: measure_shape(s, machine, sizes), 30)
    first = sizes.shapes[0]
    run.part(f"training {first.name}", lambda: measure_training(first, machine, sizes), 15)
    for shape in sizes.shapes:
        run.part(f"products {shape.name}", lambda s=shape: measure_products(s, machine, sizes), 5)
    run.part("overlap bundled", lambda: measure_overlap_bundled(machine, sizes), 10)
    small, large = sizes.solves
    run.part(f"solve {small}", lambda: measure_solve(small, machine, str(machine.device)), 10)
    run.part(f"overlap {first.name}", lambda: measure_overlap(first, machine, sizes), 30)
    run.part("scores bundled", lambda: measure_scores(machine, sizes), 30)
    run.part(f"solve {large}", lambda: measure_solve(large, machine, str(machine.device)), 20)
    run.part(f"solve {small} on the CPU", lambda: measure_solve(small, machine, "cpu"), 10)
    run.part(f"solve {large} on the CPU", lambda: measure_solve(large, machine, "cpu"), 40)
    return run.result


def table(result: dict[str, Any]) -> str:
    """Return a short table of what was measured."""
    rows: list[tuple[str, str]] = []
    for name, part in result["parts"].items():
        wrong = part.get("failed") or part.get("skipped")
        if wrong:
            rows.append((name, wrong.splitlines()[0][:100]))
        elif name.startswith("pass"):
            ratios = ", ".join(f"{key} {value:.2f}" for key, value in part["with_moments_over_alone"].items())
            rows += [
                (f"{name}: forward with moments over alone", ratios),
                (f"{name}: all states at once, high, over alone", f"{part['update_at_once_over_alone']:.2f}"),
                (f"{name}: collect (with tokenizing) over forward alone", f"{part['collect_over_alone']:.2f}"),
                (f"{name}: tokenizing over forward alone", f"{part['tokenize_seconds'] / part['alone_seconds']:.2f}"),
                (f"{name}: tokens a second, alone, collect",
                 f"{part['forward_tokens_per_second']:,.0f}, {part['collect_tokens_per_second']:,.0f}"),
            ]  # fmt: skip
            if part["peak"] is not None:
                peaks = [part[key] / 1e9 for key in ("peak", "planned_peak", "alone_peak", "states_at_once_peak")]
                words = "{:.2f}, {:.2f}, {:.2f}, {:.2f}".format(*peaks)
                rows.append((f"{name}: GB of a pass, planned, forward alone, with all states", words))
        elif name.startswith("overlap"):
            for precision, values in part["least"].items():
                words = ", ".join(f"k={k} {value:.5f}" for k, value in values.items())
                rows.append((f"{name}: V against float64, {precision}", words))
        elif name.startswith("products"):
            rows += [(f"{name}: {key}", f"{value:.3f} ms") for key, value in part.items() if key != "part_seconds"]
        elif name.startswith("scores"):
            for precision in PRECISIONS:
                words = ", ".join(f"{key} {value:.1e}" for key, value in part[precision].items())
                rows.append((f"{name}: largest change, {precision}", words))
        elif name.startswith("training"):
            words = f"{part['training_tokens_per_second']:,.0f} ({1000 * part['step_seconds']:.0f} ms a step)"
            rows.append((f"{name}: training tokens a second", words))
        else:
            rows.append((f"{name}: seconds a layer", f"{part['seconds']:.2f}"))
    width = max(len(left) for left, _ in rows)
    machine = result["machine"]
    head = f"{machine['device']}, torch {machine['torch']}, {result['seconds']:.0f} seconds"
    return "\n".join([head, *(f"{left:{width}s}  {right}" for left, right in rows)])


def main(arguments: list[str] | None = None) -> None:
    """Measure, write the file and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cuda or cpu")
    parser.add_argument("--seconds", type=float, default=240, help="no part begins that would end after these")
    parser.add_argument("--small", action="store_true", help="tiny shapes, to test the code")
    parser.add_argument("--output", type=Path, required=True, help="JSON file to write")
    options = parser.parse_args(arguments)
    result = measure_all(Machine(options.device), SMALL if options.small else LARGE, options.seconds, options.output)
    print(table(result))


if __name__ == "__main__":
    main()
