"""`ntps prescreen`."""

from dataclasses import replace
from typing import Annotated, Any

import typer

from ntps._names import shareable
from ntps._processes import refuse_processes, use_threads
from ntps.cli import options as shared
from ntps.errors import whole

NAME = "prescreen"
EXAMPLES = (
    "Examples:  ntps prescreen miniworld-base --task miniworld/topic --task miniworld/intent --budget 1  |  "
    "ntps prescreen ./my-model --task reviews.csv --task intents=logs/intents.tsv  |  with a calibration of your "
    "own: ntps study --lora --model ... --task ... --output mine, then --calibration mine/calibration.json"
)


@shared.takes(data=shared.DATA, loading=shared.LOADING)
def run(
    context: typer.Context,
    model: shared.ModelArgument,
    task: shared.TaskList,
    *,
    data: dict[str, Any],
    budget: Annotated[int | None, typer.Option(help="Number of tasks that may be fine-tuned.")] = None,
    probe_steps: Annotated[
        int | None,
        typer.Option(help="First training steps to look at: 0 (frozen model alone), 20 or 50.  [default: 20]"),
    ] = None,
    budget_seconds: Annotated[
        float | None,
        typer.Option(help="Look only where the forecast is open, the best first, and begin no look after this time."),
    ] = None,
    calibration: Annotated[
        str | None, typer.Option(help="calibration.json of a study with --lora.  [default: the bundled ones]")
    ] = None,
    limit: shared.TaskLimit = 1000,
    max_length: shared.MaxLength = None,
    folds: Annotated[int, typer.Option(help="Folds of probe and held-out shares.")] = 5,
    seed: Annotated[int, typer.Option(help="Seed of sample, folds and training.")] = 0,
    seeds: Annotated[int, typer.Option(help="Average folds and looks over this many seeds, from --seed on.")] = 1,
    batch_size: shared.BatchSize = 32,
    dtype: shared.Dtype = None,
    device: shared.Device = None,
    threads: shared.Threads = None,
    loading: dict[str, Any],
    output: Annotated[
        str | None, typer.Option(help="Folder for the states of the looks; ntps lora --resume goes on from them.")
    ] = None,
    json_file: shared.JsonFile = None,
    quiet: shared.Quiet = False,
) -> None:
    """Rank tasks by what LoRA is expected to gain on them, from a pass and a short look at training."""
    use_threads(threads)
    whole(batch_size, 1, None, "batch_size")
    if budget is not None:
        whole(budget, 1, None, "budget")
    refuse_processes("ntps prescreen")
    inputs = [model, *task, *([] if calibration is None else [calibration])]
    folder, json_path = shared.claim_outputs(context, output, json_file, inputs=inputs)
    if quiet:
        shared.hide_messages()

    from ntps.finetune.before_after import load_for_training
    from ntps.study import PrescreenSettings, load_calibration, prescreen
    from ntps.tasks import TaskSource
    from ntps.tasks.given import need_classes

    settings = PrescreenSettings(limit=limit, max_length=max_length, folds=folds, seed=seed, seeds=seeds)
    fitted = None if calibration is None else load_calibration(calibration)
    tasks = [TaskSource.parse(given, **data) for given in task]
    need_classes(tasks, "a prescreening")  # refused now, not after the model is loaded
    loaded = load_for_training(model, dtype=dtype, device=device, **loading)
    result = prescreen(
        loaded,
        tasks,
        budget=budget,
        probe_steps=probe_steps,
        budget_seconds=budget_seconds,
        calibration=fitted,
        settings=settings,
        output=folder,
        batch_size=batch_size,
        progress=False if quiet else None,
    )
    rows = tuple({**row, "reason": shared.in_options(context, row["reason"])} for row in result.rows)
    result = replace(result, rows=rows)
    shared.emit(shareable(result.to_dict()), json_path, result, quiet)
