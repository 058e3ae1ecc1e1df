"""`ntps lora`."""

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from ntps._files import check_output
from ntps.errors import NtpsError, in_range

NAME = "lora"
EXAMPLES = (
    "Examples:  ntps lora miniworld-base miniworld/intent  |  ntps lora ./my-model reviews.csv "
    "--steps 300 --rank 16 --target paper --output tuned  |  the same again with --resume after a crash  |  "
    "ntps lora miniworld-base miniworld/intent --method full --seeds 3 --json -"
)


def run(
    model: Annotated[str, typer.Argument(help="A bundled model, a directory or a hub name.")],
    task: Annotated[str, typer.Argument(help="A bundled task, a file, a folder, or a hub data set.")],
    steps: Annotated[int, typer.Option(help="Optimiser steps.")] = 100,
    rank: Annotated[int, typer.Option(help="Rank of the adapters.")] = 32,
    alpha: Annotated[float, typer.Option(help="Their scale: they enter times alpha / rank.")] = 32,
    dropout: Annotated[float, typer.Option(help="Share of an adapter's inputs dropped in training.")] = 0.05,
    learning_rate: Annotated[float | None, typer.Option(help="Peak step size.  [default: the method's]")] = None,
    optimizer: Annotated[str, typer.Option(help="adamw, or adafactor (the paper's).")] = "adamw",
    target: Annotated[
        str, typer.Option(help="Where adapters go: all-linear, paper (attention), or module names with commas.")
    ] = "all-linear",
    method: Annotated[str, typer.Option(help="lora, full, probe (the head alone) or scratch.")] = "lora",
    batch_size: Annotated[int, typer.Option(help="Texts in a batch.")] = 16,
    accumulation: Annotated[int, typer.Option(help="Batches in a step.")] = 1,
    evaluate_every: Annotated[int, typer.Option(help="Steps between looks at the validation texts.")] = 25,
    patience: Annotated[int | None, typer.Option(help="Stop after so many looks without progress.")] = None,
    margin: Annotated[
        float, typer.Option(help="Standard errors of validation loss by which weights must be better to be kept.")
    ] = 2.0,
    text_column: Annotated[str | None, typer.Option(help="Text column; several, joined, with commas.")] = None,
    label_column: Annotated[str | None, typer.Option(help="Label column.")] = None,
    split: Annotated[str | None, typer.Option(help="Split of the data set.")] = None,
    config: Annotated[str | None, typer.Option(help="Configuration of a hub data set.")] = None,
    limit: Annotated[int | None, typer.Option(help="Use a random sample of so many texts.")] = None,
    max_length: Annotated[int | None, typer.Option(help="Most tokens of a text.  [default: 512]")] = None,
    layers: Annotated[str, typer.Option(help="Layers to score: 'all', or numbers such as 0,6,-1.")] = "all",
    folds: Annotated[int, typer.Option(help="Folds of the test texts, for held-out shares; 0 for none.")] = 5,
    seed: Annotated[int, typer.Option(help="Seed of sample, split, training and folds.")] = 0,
    seeds: Annotated[int, typer.Option(help="Repeat under so many seeds, from --seed on.")] = 1,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16, float16 or float64.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, ...")] = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a hub model.")] = None,
    trust_remote_code: Annotated[bool, typer.Option("--trust-remote-code", help="Run the model's own code.")] = False,
    output: Annotated[Path | None, typer.Option(help="Folder for training state, adapter, head and lora.json.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the state in --output.")] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the result as JSON; - for stdout.")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress, no table.")] = False,
) -> None:
    """Fine-tune with LoRA, and compare accuracy and scores before and after."""
    from ntps.finetune.settings import TrainSettings

    # What can be refused before anything is loaded is refused here.
    endings = tuple(part.strip() for part in target.split(","))
    settings = TrainSettings(
        method=method,
        steps=steps,
        rank=rank,
        alpha=alpha,
        dropout=dropout,
        target=target if target in ("all-linear", "paper") else endings,
        learning_rate=learning_rate,
        optimizer=optimizer,
        batch_size=batch_size,
        accumulation=accumulation,
        max_length=max_length,
        evaluate_every=evaluate_every,
        patience=patience,
        margin=margin,
    )
    in_range(seed, 0, None, "--seed")
    in_range(seeds, 1, None, "--seeds")
    if limit is not None:
        in_range(limit, 1, None, "--limit")
    if folds < 0 or folds == 1:
        raise NtpsError(f"--folds is {folds}; it must be 0 (none) or at least 2.")
    if resume and output is None:
        raise NtpsError("--resume needs --output, the folder of the run to go on with.")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise NtpsError("ntps lora trains in one process; start it without torchrun.")
    check_output(output, json_file)

    from ntps._files import atomic_write
    from ntps.finetune.compare import before_and_after, load_for_training, repeat
    from ntps.finetune.results import LoraRepeats, LoraResult
    from ntps.tasks.load import load_task

    labelled = load_task(
        task, config=config, split=split, limit=limit, seed=seed, text_column=text_column, label_column=label_column
    )
    loaded = load_for_training(
        model, dtype=dtype, device=device, revision=revision, trust_remote_code=trust_remote_code
    )
    options: dict[str, Any] = {"settings": settings, "folds": folds, "layers": layers, "output": output}
    options |= {"resume": resume, "progress": False if quiet else None}
    result: LoraResult | LoraRepeats
    if seeds == 1:
        result = before_and_after(loaded, labelled, seed=seed, **options)
    else:
        result = repeat(loaded, labelled, seeds=range(seed, seed + seeds), **options)
    text = result.to_json() + "\n"
    if output is not None:
        atomic_write(output / "lora.json", text)
    to_stdout = str(json_file) == "-"
    if json_file is not None and not to_stdout:
        atomic_write(json_file, text)
    if to_stdout:
        print(text, end="")
    elif not quiet:
        print(result)
        if output is not None:
            print(f"\nAdapter, head and lora.json: {output}")
