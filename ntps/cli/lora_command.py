"""`ntps lora`."""

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from ntps._files import atomic_write, check_output
from ntps.cli import options as shared
from ntps.errors import NtpsError, in_range

NAME = "lora"
EXAMPLES = (
    "Examples:  ntps lora miniworld-base miniworld/intent  |  ntps lora ./my-model reviews.csv "
    "--steps 300 --rank 16 --target paper --output tuned  |  the same again with --resume after a crash  |  "
    "ntps lora miniworld-base miniworld/intent --method full --seeds 3 --json -"
)


def run(
    model: shared.ModelArgument,
    task: shared.TaskArgument,
    steps: Annotated[int, typer.Option(help="Optimiser steps.")] = 100,
    rank: Annotated[int, typer.Option(help="Rank of the adapters.")] = 32,
    alpha: Annotated[
        float, typer.Option(help="Scale of the adapters: their output is multiplied by alpha / rank.")
    ] = 32,
    dropout: Annotated[float, typer.Option(help="Share of an adapter's inputs dropped in training.")] = 0.05,
    learning_rate: Annotated[float | None, typer.Option(help="Peak step size.  [default: the method's]")] = None,
    optimizer: Annotated[str, typer.Option(help="adamw, or adafactor (the paper's).")] = "adamw",
    target: Annotated[
        str, typer.Option(help="Modules with adapters: all-linear, paper (attention), or names separated by commas.")
    ] = "all-linear",
    method: Annotated[str, typer.Option(help="lora, full, probe (the head alone) or scratch.")] = "lora",
    batch_size: Annotated[int, typer.Option(help="Texts in a batch.")] = 16,
    accumulation: Annotated[int, typer.Option(help="Batches in a step.")] = 1,
    evaluate_every: Annotated[int, typer.Option(help="Steps between evaluations on the validation texts.")] = 25,
    patience: Annotated[int | None, typer.Option(help="Stop after this many evaluations without progress.")] = None,
    margin: Annotated[
        float, typer.Option(help="Standard errors by which the validation loss must fall for weights to be chosen.")
    ] = 2.5,
    text_column: shared.TextColumn = None,
    label_column: shared.LabelColumn = None,
    split: shared.Split = None,
    config: shared.Config = None,
    limit: shared.Limit = None,
    max_length: shared.MaxLength = None,
    layers: shared.Layers = "all",
    folds: shared.Folds = "auto",
    seed: Annotated[int, typer.Option(help="Seed of sample, split, training and folds.")] = 0,
    seeds: Annotated[int, typer.Option(help="Repeat under this many seeds, starting from --seed.")] = 1,
    dtype: shared.Dtype = None,
    device: shared.Device = None,
    revision: shared.Revision = None,
    trust_remote_code: shared.TrustRemoteCode = False,
    output: Annotated[Path | None, typer.Option(help="Folder for training state, adapter, head and lora.json.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue from the state in --output.")] = False,
    json_file: shared.JsonFile = None,
    quiet: shared.Quiet = False,
) -> None:
    """Fine-tune with LoRA, and compare accuracy and scores before and after."""
    from ntps.models.checkpoints import check_separate

    in_range(seed, 0, None, "seed")
    in_range(seeds, 1, None, "seeds")
    if limit is not None:
        in_range(limit, 1, None, "limit")
    requested_folds = shared.parse_folds(folds)
    if resume and output is None:
        raise NtpsError("--resume needs --output, the folder of the run to continue.")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise NtpsError("ntps lora trains in one process; start it without torchrun.")
    if output is not None:
        check_separate(model, output)
    check_output(output, json_file)
    if quiet:
        shared.hide_messages()

    from ntps.finetune import TrainSettings, before_and_after, repeat
    from ntps.finetune.before_after import load_for_training
    from ntps.tasks import load_task

    # Settings are checked when they are made, before anything is loaded.
    endings = tuple(name.strip() for name in target.split(","))
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
    labelled = load_task(
        task, config=config, split=split, limit=limit, seed=seed, text_column=text_column, label_column=label_column
    )
    loaded = load_for_training(
        model, dtype=dtype, device=device, revision=revision, trust_remote_code=trust_remote_code
    )
    options: dict[str, Any] = {
        "settings": settings,
        "folds": requested_folds,
        "layers": layers,
        "output": output,
        "resume": resume,
        "progress": False if quiet else None,
    }
    if seeds == 1:
        result: Any = before_and_after(loaded, labelled, seed=seed, **options)
    else:
        result = repeat(loaded, labelled, seeds=range(seed, seed + seeds), **options)
    json_text, text = result.to_json(), str(result)
    if output is not None:
        atomic_write(output / "lora.json", json_text + "\n")
        text += f"\n\nAdapter, head and lora.json: {output}"
    shared.emit(json_text, json_file, text, quiet)
