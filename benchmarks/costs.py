"""What the paper's grid of 8 models by 12 sets would cost: hours, memory and disk of passes that were not run.

    python -m benchmarks.costs       # writes benchmarks/results/costs.json

Memory is that of `ntps.models.plan`, by the models' shapes. Rates are those of benchmarks/results/gpu.json, scaled to a
card by its peak. What solving a layer takes beside V is measured here, in processor time, and scaled by the time of V
there.
"""

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.gpu import Machine, Shape, random_llama, texts_of, token_ids
from ntps import Task, collect, score
from ntps._files import atomic_write
from ntps.core.encoders import layer_autoregressive_encoder
from ntps.models.plan import MAX_BATCH_TOKENS, device_memory
from ntps.paper.findings import denominators
from ntps.paper.published import datasets, results
from ntps.paper.rerun import MODELS, TASKS

RESULTS = Path(__file__).parent / "results"
TEXTS = 32  # of a batch
STATES = 2  # bytes of a number of a hidden state: bfloat16
RESERVE = 1e9  # bytes of a card that its driver and the allocator's gaps take


@dataclass(frozen=True)
class Card:
    """A card, by its maker's figures: bytes, and peak operations a second over those of the card of gpu.json."""

    name: str
    memory: float
    share: float


# Dense bfloat16 with float32 sums: 989 Tflop/s for an H100 SXM, 125 for an A10.
CARDS = {"24 GB": Card("A10", 24e9, 125 / 989), "80 GB": Card("H100", 80e9, 1.0)}
# Width of the widest feed-forward layer, and rows of the embedding, by the configurations on the hub. Where a model has
# a head of its own (the third entry), it is not loaded for a pass.
NETWORKS = {
    "Qwen/Qwen2-0.5B": (4864, 151936, False),
    "Qwen/Qwen2-1.5B": (8960, 151936, False),
    "Qwen/Qwen2-7B": (18944, 152064, True),
    "apple/OpenELM-270M": (5120, 32000, False),
    "apple/OpenELM-450M": (6144, 32000, False),
    "apple/OpenELM-1_1B": (8192, 32000, False),
    "apple/OpenELM-3B": (12288, 32000, False),
    "meta-llama/Meta-Llama-3-8B": (14336, 128256, True),
}
# Beyond the paper: billions of parameters without a head, width, blocks, widest feed-forward layer, rows of embedding.
LARGEST = ("Llama 3.1 405B", 403.8, 16384, 126, 53248, 128256)


def grid_of_texts() -> dict[str, tuple[int, float]]:
    """Return for each set its number of texts and of tokens, as `ntps paper rerun` assumes them."""
    table = datasets().set_index("dataset")
    sizes = {row["dataset"]: int(row["n_accuracy"]) for row in denominators(results()).rows}
    return {name: (sizes[name], sizes[name] * float(table.loc[name, "assumed_tokens"])) for name in TASKS}


def operations(parameters: float, width: int, blocks: int, rows: int) -> float:
    """Return operations for a token: a forward pass without the embedding, and two products of each layer."""
    return 2 * (parameters - rows * width) + 4 * (blocks + 1) * width**2


def memory_of(parameters: float, width: int, blocks: int, inner: int, layers: int | None = None) -> dict[str, int]:
    """Return the plan's bytes on the device, by what takes them."""
    return device_memory(
        weights=int(STATES * parameters), widths=[width] * (layers or blocks + 1), n_tokens=MAX_BATCH_TOKENS,
        n_texts=TEXTS, itemsize=STATES, inner=inner,
    )  # fmt: skip


def rates(gpu: dict[str, Any]) -> tuple[float, float]:
    """Return operations a second of `collect` on the measured shapes of 1B and 8B."""
    shapes = {"1B": (2048, 16), "8B": (4096, 32)}
    parts = {name: gpu["parts"][f"pass {name}"] for name in shapes}
    first, second = (
        operations(parts[name]["parameters"], *shapes[name], 128256) * parts[name]["collect_tokens_per_second"]
        for name in shapes
    )
    return first, second


def measure_solving(width: int = 512, few: int = 800, many: int = 2400) -> dict[str, float]:
    """Return processor seconds of V of one layer, of the other decompositions, and of what grows with every text.

    The last two are told apart by scoring few and many texts, without probes.
    """
    shape = Shape("small", width, width, 1, 4, 4, 2000, TEXTS, 12, 1)
    model, scored = random_llama(shape, Machine("cpu")), {}
    model.model.float()  # processors are slow in bfloat16
    for n in (few, many):
        task = Task.of("random", texts_of(token_ids(shape, n)), np.arange(n) % 2, "ab")
        made = collect(model, task, layers=[1], progress=False)
        if n == few:  # the first one loads what scoring needs
            score(made, probes=False)
        began = time.process_time()
        score(made, probes=False)
        scored[n] = time.process_time() - began
    began = time.process_time()
    layer_autoregressive_encoder(made.moments(1))
    v_seconds = time.process_time() - began
    text = (scored[many] - scored[few]) / (many - few)
    return {"width": width, "v": v_seconds, "others": scored[few] - few * text - v_seconds, "text": text}


def solve_hours(width: int, layers: int, texts: int, solving: dict[str, float], v_seconds: float) -> float:
    """Return hours of solving layers: decompositions grow with d^3, and what is done for each text with d^2.

    Args:
        width: d.
        layers: S.
        texts: n.
        solving: From `measure_solving`.
        v_seconds: Seconds of V at a width of 2048, on the machine that is asked about.
    """
    wider = width / solving["width"]
    seconds = wider**3 * (solving["v"] + solving["others"]) + wider**2 * texts * solving["text"]
    return layers * seconds * v_seconds / (solving["v"] * (2048 / solving["width"]) ** 3) / 3600


def main() -> None:
    """Compute everything and write it."""
    gpu = json.loads((RESULTS / "gpu.json").read_text())
    slow, fast = rates(gpu)
    solving = measure_solving()
    v_seconds = gpu["parts"]["solve 2048 on the CPU"]["seconds"]
    sizes = grid_of_texts()
    rows: dict[str, Any] = {}
    for name, shape in MODELS.items():
        inner, embedded, has_head = NETWORKS[name]
        parameters = 1e9 * shape.parameters - has_head * embedded * shape.width
        layers = shape.blocks + 1
        device = memory_of(parameters, shape.width, shape.blocks, inner)
        tokens = sum(texts * min(total / texts, shape.positions) for texts, total in sizes.values())
        rate = fast if parameters > 3e9 else slow
        per_token = operations(parameters, shape.width, shape.blocks, embedded)
        state = 4 * layers * shape.width
        rows[name] = {
            "parameters": parameters,
            "width": shape.width,
            "layers": layers,
            "tokens": tokens,
            "device_bytes": device,
            "layers_that_fit": {
                key: max(
                    (n for n in range(1, layers + 1)
                     if sum(memory_of(parameters, shape.width, shape.blocks, inner, n).values())
                     <= card.memory - RESERVE),
                    default=0,
                )
                for key, card in CARDS.items()
            },
            "pass_hours": {key: tokens * per_token / (rate * card.share) / 3600 for key, card in CARDS.items()},
            "solve_hours": sum(
                solve_hours(shape.width, layers, texts, solving, v_seconds)
                for texts, _ in sizes.values()
            ),
            "weights_on_disk": STATES * 1e9 * shape.parameters,
            "largest_pass_on_disk": state * max(texts for texts, _ in sizes.values()),
            "all_passes_on_disk": state * sum(texts for texts, _ in sizes.values()),
        }  # fmt: skip
    name, billions, width, blocks, inner, embedded = LARGEST
    largest = {
        "name": name,
        "device_bytes": memory_of(1e9 * billions, width, blocks, inner),
        "state_bytes_a_text": 4 * (blocks + 1) * width,
        "solve_hours_a_layer": solve_hours(width, 1, 10**5, solving, v_seconds),
        "tokens_a_second_on_16_cards": 16 * fast / operations(1e9 * billions, width, blocks, embedded),
    }  # fmt: skip
    longest = max(
        rows[name]["pass_hours"]["80 GB"] * tokens / sum(total for _, total in sizes.values())
        + solve_hours(shape.width, shape.blocks + 1, texts, solving, v_seconds)
        for name, shape in MODELS.items()
        for texts, tokens in sizes.values()
    )
    result = {
        "measured_on": gpu["machine"]["device"],
        "operations_a_second": {"1B": slow, "8B": fast},
        "solving": {**solving, "v_seconds_at_2048": v_seconds},
        "cards": {key: card.name for key, card in CARDS.items()},
        "texts": sum(texts for texts, _ in sizes.values()),
        "host_sums_seconds_a_batch": gpu["parts"]["products 8B"]["two sums, float64 on the host"] / 1000 * 33,
        "longest_cell_hours": longest,
        "v_seconds_at_4096": {
            "card": gpu["parts"]["solve 4096"]["seconds"],
            "processor": v_seconds * (4096 / 2048) ** 3,
        },
        "threads": gpu["machine"]["threads"],
        "models": rows,
        "largest": largest,
    }
    atomic_write(RESULTS / "costs.json", json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
