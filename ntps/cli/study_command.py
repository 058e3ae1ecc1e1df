"""`ntps study`."""

import json
import textwrap
from pathlib import Path
from typing import Annotated, Any

import typer

from ntps.errors import NtpsError, one_of

NAME = "study"
EXAMPLES = (
    "Examples:  ntps study --model miniworld-base --model miniworld-base@step100 --task miniworld/topic "
    "--task miniworld/tense --task miniworld/sentiment --task miniworld/intent  |  on a cluster: start the same command as "
    "often as you like on one shared --output; processes share the cells"
)


def run(
    model: Annotated[list[str], typer.Option("--model", help="A model; give several, once each.")],
    task: Annotated[list[str], typer.Option("--task", help="A task, or NAME=PATH; give several.")],
    limit: Annotated[int, typer.Option(help="Most texts of a task, a random sample.")] = 1000,
    max_length: Annotated[int | None, typer.Option(help="Most tokens of a text.  [default: 512]")] = None,
    folds: Annotated[int, typer.Option(help="Folds of held-out shares, intervals and probes.")] = 5,
    permutations: Annotated[int, typer.Option(help="Shuffled labels of the null.")] = 200,
    seeds: Annotated[int, typer.Option(help="Repeat with so many samples and folds.")] = 1,
    control: Annotated[bool, typer.Option("--control/--no-control", help="Also fresh weights.")] = True,
    measure_layers: Annotated[str, typer.Option(help="Probes and measures at 'default' layers, or 'all'.")] = "default",
    prefix: Annotated[str, typer.Option(help="Past of a token: sum, mean or last.")] = "sum",
    center: Annotated[bool, typer.Option("--center/--no-center", help="Solve U from centred moments.")] = False,
    lora: Annotated[bool, typer.Option("--lora", help="Also fine-tune each model on each task: the gain.")] = False,
    lora_steps: Annotated[int, typer.Option(help="Optimiser steps of --lora.")] = 100,
    lora_rank: Annotated[int, typer.Option(help="Rank of its adapters.")] = 32,
    lora_target: Annotated[str, typer.Option(help="Where they go: all-linear, or paper (attention).")] = "all-linear",
    target: Annotated[str, typer.Option(help="What is predicted, of the last layer's probe.")] = "above_majority",
    batch_size: Annotated[int, typer.Option(help="Most texts in a batch.")] = 32,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16, float16 or float64.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, ...")] = None,
    cell: Annotated[str | None, typer.Option(help="Compute only share I of N: I/N, from 1.")] = None,
    output: Annotated[Path, typer.Option(help="Folder of cells and report; start again to go on.")] = Path("study"),
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the result as JSON; - for stdout.")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress, no table.")] = False,
) -> None:
    """Score models on tasks, resumable, and say what predicts a probe's accuracy."""
    from ntps._files import atomic_write
    from ntps.finetune.settings import TrainSettings
    from ntps.report.study import gain_lead, write_study
    from ntps.study.cells import parse_share
    from ntps.study.measure import StudySettings
    from ntps.study.study import TARGETS, run_study

    one_of(prefix, ("sum", "mean", "last"), "--prefix")
    one_of(target, TARGETS, "--target")
    share = None if cell is None else parse_share(cell)
    if json_file is not None and json_file.is_dir():
        raise NtpsError(f"--json {json_file} is a folder; name a file, or - for stdout.")
    training = TrainSettings(steps=lora_steps, rank=lora_rank, target=lora_target) if lora else None
    if target == "gain" and not lora:
        raise NtpsError("--target gain needs --lora: gains come from fine-tuning.")
    settings = StudySettings(limit, max_length, folds, permutations, measure_layers, center, prefix, dtype)
    study = run_study(
        model,
        task,
        output=output,
        settings=settings,
        seeds=seeds,
        control=control,
        lora=training,
        share=share,
        device=device,
        batch_size=batch_size,
        progress=False if quiet else None,
    )
    result = study.to_dict(target=target)
    text = json.dumps(result, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    if study.complete:
        atomic_write(output / "study.json", text)
        write_study(study, output, result=result)
        if lora:
            _write_calibration(study, output, limit)
    to_stdout = str(json_file) == "-"
    if json_file is not None and not to_stdout:
        atomic_write(json_file, text)
    if to_stdout:
        print(text, end="")
    elif not quiet:
        print(as_text(result))
        if lora:
            print("\n" + "\n".join(textwrap.wrap(gain_lead(study, result["gain"]), 80)))
        if study.complete:
            print(f"\nReport: {output / 'report.html'}")


def _write_calibration(study: Any, output: Path, limit: int) -> None:
    """Write calibration.json for `ntps prescreen`, or say why there is none."""
    import sys

    from ntps._files import atomic_write
    from ntps.study.calibration import calibrate

    about = {"world": "a study of your own", "seeds": study.seeds, "limit": limit, "training": study.lora.to_dict()}
    try:
        atomic_write(output / "calibration.json", calibrate(study.frame(), about=about).to_json())
    except NtpsError as error:
        print(f"ntps: no calibration.json: {error}", file=sys.stderr)


def as_text(result: dict[str, Any]) -> str:
    """Return a table of at most 80 columns and what it says."""
    from ntps._text import counted
    from ntps.report.study import lead

    cells = result["cells"]
    counts = {status: sum(c["status"] == status for c in cells) for status in ("done", "failed", "missing")}
    lines = [
        f"{counted(len(result['models']), 'model')}, {counted(len(result['tasks']), 'task')}: "
        f"{counts['done']} of {len(cells)} cells done"
        + (f", {counts['failed']} failed" if counts["failed"] else "")
        + (f", {counts['missing']} to come" if counts["missing"] else "")
    ]
    if result["correlations"]:
        lines += ["", f"  {'predictor':30} {'Spearman':>8}  {'95 % interval':>16}  {'p':>6}  chosen on"]
        for name, found in result["correlations"].items():
            if found["spearman"] is None:
                continue
            low, high = found["interval"]
            interval = f"[{low:+.2f}, {high:+.2f}]"
            numbers = f"{found['spearman']:+8.2f}  {interval:>16}  {found['p_value']:6.3f}"
            lines.append(f"  {name:30} {numbers}  {found['selected_on']}")
    return "\n".join([*lines, "", *textwrap.wrap(lead(result), 80)])
