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
    context: typer.Context,
    model: shared.ModelArgument,
    task: shared.TaskArgument,
    recipe: shared.Recipe = None,
    steps: Annotated[int, typer.Option(help="Optimiser steps.")] = 100,
    epochs: Annotated[int | None, typer.Option(help="Read every text this often, instead of --steps.")] = None,
    rank: Annotated[int, typer.Option(help="Rank of the adapters.")] = 32,
    alpha: Annotated[
        float, typer.Option(help="Scale of the adapters: their output is multiplied by alpha / rank.")
    ] = 32,
    dropout: Annotated[float, typer.Option(help="Share of an adapter's inputs dropped in training.")] = 0.05,
    learning_rate: Annotated[float | None, typer.Option(help="Peak step size.  [default: the method's]")] = None,
    weight_decay: Annotated[float, typer.Option(help="Decoupled weight decay of matrices.")] = 0.01,
    warmup: Annotated[float, typer.Option(help="Share of the steps over which the rate rises.")] = 0.06,
    schedule: Annotated[str, typer.Option(help="The rate then: cosine, or constant.")] = "cosine",
    clip_norm: Annotated[float, typer.Option(help="Largest norm of the gradient; 0 for any.")] = 1.0,
    optimizer: Annotated[str, typer.Option(help="adamw, or adafactor (the paper's).")] = "adamw",
    target: Annotated[
        str, typer.Option(help="Modules with adapters: all-linear, paper (q, k, v), or names separated by commas.")
    ] = "all-linear",
    start_layer: Annotated[int, typer.Option(help="First block with adapters, from 0.")] = 0,
    head: Annotated[str, typer.Option(help="Start of the head: probe (converged), or random.")] = "probe",
    head_dropout: Annotated[float, typer.Option(help="Share of the head's inputs dropped in training.")] = 0.0,
    method: Annotated[str, typer.Option(help="lora, full, probe (the head alone) or scratch.")] = "lora",
    batch_size: Annotated[int, typer.Option(help="Texts in a batch.")] = 16,
    accumulation: Annotated[int, typer.Option(help="Batches in a step.")] = 1,
    evaluate_every: Annotated[int, typer.Option(help="Steps between evaluations on the validation texts.")] = 25,
    patience: Annotated[int | None, typer.Option(help="Stop after this many evaluations without progress.")] = None,
    validation: Annotated[
        float, typer.Option(help="Share of the texts that are not tested, set aside for evaluations.")
    ] = 0.2,
    keep: Annotated[str, typer.Option(help="Weights of the best evaluation (by --margin), or the last.")] = "best",
    margin: Annotated[
        float, typer.Option(help="Standard errors by which the validation loss must fall for weights to be chosen.")
    ] = 2.5,
    text_column: shared.TextColumn = None,
    label_column: shared.LabelColumn = None,
    split: shared.Split = None,
    test_split: shared.TestSplit = None,
    config: shared.Config = None,
    limit: shared.Limit = None,
    max_length: shared.MaxLength = None,
    layers: shared.Layers = "all",
    folds: shared.Folds = "auto",
    convention: shared.Convention = "theory",
    fraction: shared.Fraction = None,
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
    in_range(seed, 0, None, "seed")
    in_range(seeds, 1, None, "seeds")
    if limit is not None:
        in_range(limit, 1, None, "limit")
    requested_folds = shared.parse_folds(folds)
    if resume and output is None:
        raise NtpsError("--resume needs --output, the folder of the run to continue.")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise NtpsError("ntps lora trains in one process; start it without torchrun.")
    check_output(output, json_file)
    if quiet:
        shared.hide_messages()

    from ntps.finetune import before_and_after, repeat
    from ntps.finetune.before_after import load_for_training
    from ntps.finetune.settings import RECIPE_DTYPES
    from ntps.tasks import load_task

    # Settings are checked when they are made, before anything is loaded.
    endings = tuple(name.strip() for name in target.split(","))
    values: dict[str, Any] = {
        "method": method,
        "steps": steps,
        "epochs": epochs,
        "rank": rank,
        "alpha": alpha,
        "dropout": dropout,
        "target": target if target in ("all-linear", "paper") else endings,
        "start_layer": start_layer,
        "head": head,
        "head_dropout": head_dropout,
        "learning_rate": learning_rate,
        "weight_decay": weight_decay,
        "warmup": warmup,
        "schedule": schedule,
        "clip_norm": clip_norm or None,
        "optimizer": optimizer,
        "batch_size": batch_size,
        "accumulation": accumulation,
        "max_length": max_length,
        "evaluate_every": evaluate_every,
        "validation": validation,
        "keep": keep,
        "patience": patience,
        "margin": margin,
    }
    settings = shared.train_settings(context, recipe, values)
    if recipe is not None and dtype is None:
        dtype = RECIPE_DTYPES[recipe]
    reading: dict[str, Any] = {
        "config": config,
        "limit": limit,
        "seed": seed,
        "text_column": text_column,
        "label_column": label_column,
    }
    labelled = load_task(task, split=split, **reading)
    test = None if test_split is None else load_task(task, split=test_split, **reading)
    loaded = load_for_training(
        model, dtype=dtype, device=device, revision=revision, trust_remote_code=trust_remote_code
    )
    options: dict[str, Any] = {
        "test": test,
        "settings": settings,
        "folds": requested_folds,
        "convention": convention,
        "fraction": fraction,
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
