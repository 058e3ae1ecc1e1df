"""The commands that make the paper's tables and figures anew, with hub access, and what they would cost.

The costs are rough: arithmetic from the shapes below, the sizes of the data sets and assumed lengths, at assumed rates.
"""

from collections.abc import Callable
from dataclasses import dataclass

from ntps._text import Column, text_table, wrap
from ntps.paper.findings import denominators
from ntps.paper.published import datasets, results

CARD = "one 80 GB card of the H100 class"
FLOAT32, BFLOAT16 = 25e12, 300e12  # operations a second that a pass and a training reach on it
PROCESSOR = 2e11  # operations a second of the processor, which solves
BLOCK_SECONDS = 0.004  # a training step of a single text, for each block: it waits for the card's launches
SOLVE = 160  # operations of the released procedure for one layer, in units of the width cubed
MAX_LENGTH = 8192  # tokens; above a model's own limit, that counts


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A model of the paper: billions of parameters, width, number of blocks, longest text in tokens."""

    parameters: float
    width: int
    blocks: int
    positions: int


# By the models' configurations on the hub.
MODELS = {
    "Qwen/Qwen2-0.5B": Shape(parameters=0.49, width=896, blocks=24, positions=32768),
    "Qwen/Qwen2-1.5B": Shape(parameters=1.54, width=1536, blocks=28, positions=32768),
    "Qwen/Qwen2-7B": Shape(parameters=7.62, width=3584, blocks=28, positions=32768),
    "apple/OpenELM-270M": Shape(parameters=0.27, width=1280, blocks=16, positions=2048),
    "apple/OpenELM-450M": Shape(parameters=0.46, width=1536, blocks=20, positions=2048),
    "apple/OpenELM-1_1B": Shape(parameters=1.08, width=2048, blocks=28, positions=2048),
    "apple/OpenELM-3B": Shape(parameters=3.04, width=3072, blocks=36, positions=2048),
    "meta-llama/Meta-Llama-3-8B": Shape(parameters=8.03, width=4096, blocks=32, positions=8192),
}
# Names for `load_task` of the sets in the published table.
TASKS = {
    "rotten_tomatoes": "rotten_tomatoes",
    "sst2": "sst2",
    "imdb": "imdb",
    "emotion": "emotion",
    "medical": "medical_questions_pairs",
    "clickbait": "clickbait",
    "climate": "climate_sentiment",
    "bias": "bias_identification",
    "banking77": "banking77",
    "sms_spam": "sms_spam",
    "intent": "intent_classification",
    "common_sense": "commonsense_qa",
}


@dataclass(frozen=True, kw_only=True)
class Command:
    """How to make one table or figure anew.

    Attributes:
        item: The table or figure.
        command: A command for a shell.
        tokens: Tokens that go through a model.
        hours: Hours on `CARD`, its processor's time included.
        disk: Gigabytes of weights and of the largest pass.
    """

    item: str
    command: str
    tokens: float
    hours: float
    disk: float


def commands() -> list[Command]:
    """Return the commands for Figures 1 to 3 and Table 1, in the paper's order."""
    everywhere = f"--split paper-train --max-length {MAX_LENGTH}"
    grid = f"{_each('model', MODELS)} {_each('task', TASKS.values())}"
    both = f"for m in {' '.join(MODELS)}; do for t in {' '.join(TASKS.values())}; do"
    one = f'ntps lora "$m" "$t" {everywhere} --test-split paper-test --trust-remote-code'
    small = {"apple/OpenELM-450M": MODELS["apple/OpenELM-450M"]}
    official = "--convention official --dtype float32"
    return [
        _command(
            "Figure 1",
            f"ntps paper words apple/OpenELM-450M emotion {everywhere} --dtype float32 --trust-remote-code "
            "--output figure1",
            small,
            ["emotion"],
            _pass_hours,
        ),
        _command(
            "Table 1, linear head",
            f'{both} {one} --recipe paper-probe --output "table1/probe/$m/$t"; done; done',
            MODELS,
            list(TASKS),
            lambda shape, rows, tokens: 2e9 * shape.parameters * tokens / BFLOAT16 / 3600,
        ),
        _command(
            "Table 1, from scratch",
            f'{both} {one} --recipe paper-scratch --output "table1/scratch/$m/$t"; done; done',
            MODELS,
            list(TASKS),
            lambda shape, rows, tokens: 10_000 * _step_seconds(shape, tokens / rows, 6) / 3600,
            tokens=lambda rows, length: 10_000 * length,
        ),
        _command(
            "Figure 2",
            f"ntps study {grid} {everywhere} --limit 1000000 {official} --target training_accuracy --no-control "
            "--trust-remote-code --output figure2",
            MODELS,
            list(TASKS),
            _pass_hours,
        ),
        _command(
            "Figure 3, and NTPS before and after",
            f'{both} {one} --recipe paper --convention official --output "figure3/$m/$t"; done; done',
            MODELS,
            list(TASKS),
            lambda shape, rows, tokens: (
                5_000 * _step_seconds(shape, tokens / rows, 4) / 3600 + 2 * _pass_hours(shape, rows, tokens)
            ),
            tokens=lambda rows, length: 5_000 * length,
        ),
    ]


def costs_text() -> str:
    """Return all commands with their costs, and what was assumed."""
    found = commands()
    columns = (
        Column("", lambda row: row.item, words=True),
        Column("tokens (millions)", lambda row: f"{row.tokens / 1e6:,.0f}"),
        Column("hours", lambda row: f"{row.hours:,.1f}" if row.hours < 10 else f"{row.hours:,.0f}"),
        Column("disk (GB)", lambda row: f"{row.disk:,.0f}"),
    )
    assumed = (
        f"Hours on {CARD}, assumed to reach {FLOAT32 / 1e12:.0f} Tflop/s in float32 and {BFLOAT16 / 1e12:.0f} in "
        f"bfloat16, {PROCESSOR / 1e9:.0f} Gflop/s in solving, and {1000 * BLOCK_SECONDS:.0f} ms a block for a step of "
        "one text; lengths of texts are assumed, too. Nothing here was run."
    )
    lines = [f"# {row.item}\n{row.command}\n" for row in found]
    return "\n".join([*lines, *text_table(columns, found), "", *wrap(assumed)])


def _each(option: str, names: object) -> str:
    return " ".join(f"--{option} {name}" for name in names)  # type: ignore[attr-defined]


def _command(
    item: str,
    command: str,
    models: dict[str, Shape],
    tasks: list[str],
    hours: Callable[[Shape, float, float], float],
    *,
    tokens: Callable[[float, float], float] | None = None,
) -> Command:
    """Add up a command's cost over models and tasks; `hours` takes a shape, rows and tokens of a task."""
    table = datasets().set_index("dataset")
    sizes = {row["dataset"]: row["n_accuracy"] for row in denominators(results()).rows}  # the rows of training
    total = time = largest = 0.0
    for shape in models.values():
        for name in tasks:
            length = min(float(table.loc[name, "assumed_tokens"]), shape.positions)  # type: ignore[arg-type]
            rows = sizes[name]
            time += hours(shape, rows, rows * length)
            total += rows * length if tokens is None else tokens(rows, length)
            largest = max(largest, 4e-9 * rows * shape.width * (shape.blocks + 1))
    weights = sum(2 * shape.parameters for shape in models.values())
    return Command(item=item, command=command, tokens=total, hours=time, disk=weights + largest)


def _pass_hours(shape: Shape, rows: float, tokens: float) -> float:
    """Return hours of a pass with moments in float32, and of solving every layer."""
    layers = shape.blocks + 1
    operations = tokens * (2e9 * shape.parameters + 4 * shape.width**2 * layers)
    return (operations / FLOAT32 + layers * SOLVE * shape.width**3 / PROCESSOR) / 3600


def _step_seconds(shape: Shape, length: float, per_parameter: float) -> float:
    """Return seconds of a training step of one text: arithmetic, or waiting, whichever is longer."""
    return max(per_parameter * 1e9 * shape.parameters * length / BFLOAT16, BLOCK_SECONDS * shape.blocks)
