"""`ntps study`."""

import logging
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from ntps._files import atomic_write, jsonable
from ntps._processes import is_main_process, use_threads, world
from ntps._text import counted, wrap
from ntps.cli import options as shared
from ntps.errors import NtpsError, one_of

NAME = "study"
EXAMPLES = (
    "Examples:  ntps study --model miniworld-base --model miniworld-base@step1000 --task miniworld/topic "
    "--task miniworld/tense --task miniworld/sentiment --task miniworld/intent  |  files: "
    "--task stars=reviews.tsv:text=review,label=rating --task notes.csv:no-header,text=1,label=2  |  "
    "several processes: --workers 4, or torchrun, or, on a cluster, --dask tcp://host:8786, or the same command "
    "started as often as you like on one shared --output; the processes divide the cells between them"
)

logger = logging.getLogger(__name__)


@shared.takes(data=shared.DATA, training=shared.LORA, loading=shared.LOADING)
def run(
    context: typer.Context,
    model: Annotated[list[str], typer.Option("--model", help="A model; repeat for several.")],
    task: shared.TaskList,
    *,
    data: dict[str, Any],
    limit: shared.TaskLimit = 1000,
    max_length: shared.MaxLength = None,
    folds: Annotated[int, typer.Option(help="Folds of held-out shares, intervals and probes.")] = 5,
    permutations: Annotated[int, typer.Option(help="Shuffles of the labels for the null.")] = 200,
    seeds: Annotated[int, typer.Option(help="Repetitions, each with its own samples and folds.")] = 1,
    control: Annotated[bool, typer.Option("--control/--no-control", help="Also random weights.")] = True,
    measure_layers: Annotated[
        str, typer.Option(help="Layers of LogME, H-score and neighbours: 'default' or 'all'.")
    ] = "default",
    prefix: shared.Prefix = "sum",
    pooling: shared.Pooling = "mean",
    center: shared.Center = False,
    convention: shared.Convention = "theory",
    lora: Annotated[
        bool, typer.Option("--lora", help="Also fine-tune each model on each task, for the gains.")
    ] = False,
    recipe: shared.Recipe = None,
    test_split: shared.TestSplit = None,
    training: dict[str, Any],
    target: Annotated[
        str, typer.Option(help="What to predict: balanced_accuracy, r2, accuracy, ... of the probe, or gain.")
    ] = "balanced_accuracy",
    batch_size: shared.BatchSize = 32,
    dtype: shared.Dtype = None,
    device: shared.Device = None,
    threads: shared.Threads = None,
    loading: dict[str, Any],
    workers: Annotated[int, typer.Option(help="Processes on this machine that divide the cells.")] = 1,
    dask: Annotated[
        str | None,
        typer.Option(help="Dask scheduler whose workers compute: its address, or local for --workers of it."),
    ] = None,
    dry_run: shared.DryRun = False,
    output: Annotated[str, typer.Option(help="Folder of cells and report; run again to resume.")] = "study",
    json_file: shared.JsonFile = None,
    quiet: shared.Quiet = False,
) -> None:
    """Score models on tasks, resumable, and say what predicts a probe's accuracy on other texts."""
    use_threads(threads)
    if world()[0] > 1 and not shared.was_typed(context, "output"):
        raise NtpsError("ntps study in several processes needs --output, a folder that all of them see.")
    folder, json_path = shared.claim_outputs(context, output, json_file, inputs=[*model, *task], shared=True)
    assert folder is not None
    if target == "gain" and not lora:
        raise NtpsError("--target gain needs --lora: gains come from fine-tuning.")
    if quiet or not is_main_process():
        shared.hide_messages()

    from ntps.report import write_study
    from ntps.report.study import gain_lead, without_paths
    from ntps.study import StudySettings, plan_study, run_study, study_executor
    from ntps.study.study import TARGETS
    from ntps.study.table import TRAINING
    from ntps.tasks import TaskSource

    one_of(target, TARGETS, "target")
    if target in TRAINING and convention != "official":
        raise NtpsError(f"--target {target} needs --convention official, which measures it.")
    if recipe is not None and not lora:
        raise NtpsError("--recipe needs --lora: it says how models are fine-tuned.")
    if test_split is not None and not lora:
        raise NtpsError("--test-split needs --lora: it says on which texts gains are judged.")
    tasks = [TaskSource.parse(given, **data) for given in task]
    settings = StudySettings(
        limit=limit,
        max_length=max_length,
        folds=folds,
        permutations=permutations,
        measure_layers=measure_layers,
        center=center,
        convention=convention,
        prefix=prefix,
        pooling=pooling,
        dtype=dtype,
        seeds=seeds,
        control=control,
        test_split=test_split,
        **loading,
    )
    tuning = shared.train_settings(context, recipe, training) if lora else None
    common: dict[str, Any] = {"settings": settings, "device": device, "batch_size": batch_size}
    if dry_run:
        plan = plan_study(model, tasks, output=folder, lora=tuning, **common)
        if is_main_process():
            shared.emit(plan.to_dict(), json_path, plan, quiet)
        return
    with study_executor(model, workers=workers, dask=dask, **common) as executor:
        study = run_study(
            model,
            tasks,
            output=folder,
            lora=tuning,
            executor=executor,
            progress=False if quiet else None,
            **common,
        )
    if not is_main_process():
        return
    cells = (replace(cell, reason=shared.in_options(context, cell.reason)) for cell in study.cells)
    study = without_paths(replace(study, cells=tuple(cells)))
    result = study.to_dict(target=target)
    write_study(study, folder, result=result)
    text = as_text(result)
    if lora:
        _write_calibration(study, folder, limit)
        text += "\n\n" + "\n".join(wrap(gain_lead(study, result["gain"])))
    shared.emit(result, json_path, f"{text}\n\nReport: {folder / 'report.html'}", quiet)


def _write_calibration(study: Any, output: Path, limit: int) -> None:
    """Write calibration.json for `ntps prescreen`, or say why there is none."""
    from ntps.finetune.settings import LOOK_STEPS
    from ntps.study import calibrate

    about = {"world": "a study of your own", "limit": limit, "training": jsonable(asdict(study.lora))}
    steps = min(LOOK_STEPS, study.lora.steps)
    try:
        atomic_write(output / "calibration.json", calibrate(study.frame(), steps=steps, about=about).to_json())
    except NtpsError as error:
        logger.warning("no calibration.json: %s", error)


def as_text(result: dict[str, Any]) -> str:
    """Return a table of at most 80 columns and its summary."""
    from ntps.report.study import independent, lead

    cells = result["cells"]
    counts = {status: sum(cell["status"] == status for cell in cells) for status in ("done", "failed")}
    lines = [
        f"{counted(len(result['models']), 'model')}, {counted(len(result['tasks']), 'task')}: "
        f"{counts['done']} of {len(cells)} cells done" + (f", {counts['failed']} failed" if counts["failed"] else "")
    ]
    if result["correlations"]:
        first = next(iter(result["correlations"].values()))
        lines += ["", *wrap(f"{result['target'].replace('_', ' ')} over {independent(first)}")]
        lines += ["", f"  {'predictor':30} {'Spearman':>8}  {'95 % interval':>16}  {'p':>6}  chosen on"]
        for name, entry in result["correlations"].items():
            if entry["spearman"] is None:
                continue
            low, high = entry["interval"]
            interval = f"[{low:+z.2f}, {high:+z.2f}]"
            numbers = f"{entry['spearman']:+z8.2f}  {interval:>16}  {entry['p_value']:6.3f}"
            lines.append(f"  {name:30} {numbers}  {entry['selected_on']}")
    return "\n".join([*lines, "", *wrap(lead(result))])
