"""`ntps prescreen`."""

from pathlib import Path
from typing import Annotated

import typer

from ntps.errors import in_range

NAME = "prescreen"
EXAMPLES = (
    "Examples:  ntps prescreen miniworld-base --task miniworld/topic --task miniworld/intent --budget 1  |  "
    "ntps prescreen ./my-model --task reviews.csv --task intents=logs/intents.tsv  |  with a calibration of your "
    "own: ntps study --lora --model ... --task ... --output mine, then --calibration mine/calibration.json"
)


def run(
    model: Annotated[str, typer.Argument(help="A bundled model, a directory or a hub name.")],
    task: Annotated[list[str], typer.Option("--task", help="A task, or NAME=PATH; give several.")],
    budget: Annotated[int | None, typer.Option(help="How many tasks may be fine-tuned.")] = None,
    calibration: Annotated[
        Path | None, typer.Option(help="calibration.json of a study with --lora.  [default: the bundled one]")
    ] = None,
    limit: Annotated[int, typer.Option(help="Most texts of a task, a random sample.")] = 1000,
    max_length: Annotated[int | None, typer.Option(help="Most tokens of a text.  [default: 512]")] = None,
    folds: Annotated[int, typer.Option(help="Folds of probe and held-out shares.")] = 5,
    seed: Annotated[int, typer.Option(help="Seed of sample and folds.")] = 0,
    batch_size: Annotated[int, typer.Option(help="Most texts in a batch.")] = 32,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16, float16 or float64.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, ...")] = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a hub model.")] = None,
    trust_remote_code: Annotated[bool, typer.Option("--trust-remote-code", help="Run the model's own code.")] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the result as JSON; - for stdout.")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress, no table.")] = False,
) -> None:
    """Rank tasks by what LoRA is expected to gain on them, without training."""
    from ntps._files import atomic_write, check_output
    from ntps.study.calibration import load_calibration
    from ntps.study.prescreening import prescreen

    in_range(limit, 10, None, "--limit")
    in_range(folds, 3, None, "--folds")
    in_range(seed, 0, None, "--seed")
    in_range(batch_size, 1, None, "--batch-size")
    if budget is not None:
        in_range(budget, 1, None, "--budget")
    check_output(None, json_file)
    fitted = load_calibration(calibration)
    result = prescreen(
        model,
        task,
        budget=budget,
        calibration=fitted,
        limit=limit,
        max_length=max_length,
        folds=folds,
        seed=seed,
        batch_size=batch_size,
        progress=False if quiet else None,
        dtype=dtype,
        device=device,
        revision=revision,
        trust_remote_code=trust_remote_code,
    )
    to_stdout = str(json_file) == "-"
    if json_file is not None and not to_stdout:
        atomic_write(json_file, result.to_json() + "\n")
    if to_stdout:
        print(result.to_json())
    elif not quiet:
        print(result)
