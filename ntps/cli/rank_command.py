"""`ntps rank`."""

from dataclasses import replace
from typing import Annotated, Any

import typer

from ntps._processes import is_main_process, use_threads
from ntps.cli import options as shared
from ntps.errors import NtpsError, one_of, whole

NAME = "rank"
EXAMPLES = (
    "Examples:  ntps rank reviews.csv --model ./gemma --model ./bert --output ranking  |  "
    "ntps rank miniworld/topic --models bundled  |  "
    "ntps rank reviews.tsv --label-column rating --label-column condition --models small --limit 2000  |  "
    "ntps rank essays.csv --label-column score --regression --models bundled  |  "
    "ntps rank posts.csv --label-column rude --label-column spam --multilabel --models bundled"
)


@shared.takes(data=shared.COLUMNS, loading=shared.LOADING)
def run(
    context: typer.Context,
    task: shared.TaskArgument,
    *,
    model: Annotated[
        list[str] | None,
        typer.Option("--model", help="A model, causal or an encoder; repeat for several."),
    ] = None,
    models: Annotated[
        str | None, typer.Option(help="Also a group of models: bundled, small (below 0.7 billion) or paper.")
    ] = None,
    data: dict[str, Any],
    limit: shared.Limit = None,
    layers: shared.Layers = "all",
    max_length: shared.MaxLength = None,
    pooling: shared.Pooling = "mean",
    folds: Annotated[str, typer.Option(help="Held-out folds, at least 2; auto is 5, or what fits.")] = "auto",
    k_v: shared.KV = None,
    spectrum: Annotated[
        bool, typer.Option("--spectrum", help="Also label-free measures: effective rank, decay, loudest direction.")
    ] = False,
    control: Annotated[
        bool, typer.Option("--control/--no-control", help="Also random weights of the best architecture.")
    ] = True,
    batch_size: shared.BatchSize = 32,
    dtype: shared.Dtype = None,
    device: shared.Device = None,
    threads: shared.Threads = None,
    loading: dict[str, Any],
    output: Annotated[str | None, typer.Option(help="Folder of the report; the passes in it are reused.")] = None,
    json_file: shared.JsonFile = None,
    seed: Annotated[int, typer.Option(help="Seed of sample, folds and random weights.")] = 0,
    dry_run: shared.DryRun = False,
    quiet: shared.Quiet = False,
) -> None:
    """Rank models by how well their best layer predicts your labels: which model, which layer, how many labels."""
    use_threads(threads)
    whole(batch_size, 1, None, "batch_size")
    whole(seed, 0, None, "seed")
    if not model and models is None:
        raise NtpsError("no model is named; give --model (repeat it for several) or --models bundled, small or paper.")
    inputs = [task, *(model or [])]
    report, json_path = shared.claim_outputs(context, output, json_file, inputs=inputs)
    if quiet or not is_main_process():
        shared.hide_messages()

    from ntps.models import plan_pass
    from ntps.models.checkpoints import place_of
    from ntps.models.presets import GROUPS, models_of
    from ntps.report.ranking import write_ranking
    from ntps.study import RankSettings
    from ntps.study.ranking import rank_columns

    parsed = shared.parse_folds(folds)
    settings = RankSettings(
        layers=layers,
        max_length=max_length,
        pooling=pooling,
        folds=parsed,
        seed=seed,
        k_v=k_v,
        spectrum=spectrum,
        control=control,
        dtype=dtype,
        **loading,
    )
    named = list(model or [])
    if models is not None:
        places = {place_of(name) for name in named}
        named += [name for name in models_of(one_of(models, GROUPS, "models")) if place_of(name) not in places]
    labelled = shared.load_columns(task, data, limit=limit, seed=seed)
    if dry_run:
        plans = [
            plan_pass(
                name,
                labelled,
                layers=layers,
                max_length=max_length,
                batch_size=batch_size,
                device=device,
                bidirectional=True,
                **settings.loading(),
            )
            for name in named
        ]
        if is_main_process():
            shared.emit({"plans": [plan.to_dict() for plan in plans]}, json_path, "\n\n".join(map(str, plans)), quiet)
        return
    rankings = rank_columns(
        labelled,
        named,
        settings=settings,
        batch_size=batch_size,
        device=device,
        folder=None if report is None else report / "passes",
        progress=False if quiet else None,
    )
    if not is_main_process():
        return
    rankings = [
        replace(ranking, failed={name: str(shared.in_options(context, why)) for name, why in ranking.failed.items()})
        for ranking in rankings
    ]
    if report is not None:
        write_ranking(rankings, report)
    shared.emit_columns(rankings, report, json_path, quiet)
