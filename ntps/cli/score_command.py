"""`ntps score`."""

from typing import Annotated, Any

import typer

from ntps._processes import is_main_process, use_threads
from ntps.cli import options as shared
from ntps.errors import NtpsError, whole

NAME = "score"
EXAMPLES = (
    "Examples:  ntps score miniworld-base miniworld/topic  |  "
    "ntps score ./my-model reviews.csv --text-column review --label-column stars --output report  |  "
    "ntps score ./my-model reviews.tsv --label-column rating --label-column condition  |  "
    "ntps score HuggingFaceTB/SmolLM2-135M rotten_tomatoes --limit 1000"
)


@shared.takes(data=shared.COLUMNS, loading=shared.LOADING)
def run(
    context: typer.Context,
    model: shared.ModelArgument,
    task: shared.TaskArgument,
    *,
    data: dict[str, Any],
    limit: shared.Limit = None,
    layers: shared.Layers = "all",
    max_length: shared.MaxLength = None,
    pooling: shared.Pooling = "mean",
    batch_size: shared.BatchSize = 32,
    dtype: shared.Dtype = None,
    device: shared.Device = None,
    threads: shared.Threads = None,
    device_map: Annotated[str | None, typer.Option(help="'auto' spreads a large model.")] = None,
    loading: dict[str, Any],
    center: shared.Center = False,
    prefix: shared.Prefix = "sum",
    folds: shared.Folds = "auto",
    permutations: Annotated[int, typer.Option(help="Also score this many shuffles of the labels: z and p.")] = 0,
    intervals: Annotated[
        bool, typer.Option("--intervals", help="Also the jackknife: in-sample share, spread of NTPS.")
    ] = False,
    probes: Annotated[
        bool, typer.Option("--probes/--no-probes", help="Logistic probe, TF-IDF, learning curve beside.")
    ] = True,
    control: Annotated[bool, typer.Option("--control", help="Also score random weights of the architecture.")] = False,
    k_u: Annotated[int | None, typer.Option("--k-u", help="Perception rank.  [default: rank of X]")] = None,
    k_v: shared.KV = None,
    convention: shared.Convention = "theory",
    fraction: shared.Fraction = None,
    rtol: Annotated[float | None, typer.Option(help="Relative tolerance of the decompositions.")] = None,
    matmul_precision: Annotated[str, typer.Option(help="auto, highest, high (TF32) or medium.")] = "auto",
    state_dtype: Annotated[
        str, typer.Option(help="Type of pooled states: float32, or float16 for half the size.")
    ] = "float32",
    output: Annotated[str | None, typer.Option(help="Folder of the report; the pass in it is reused.")] = None,
    json_file: shared.JsonFile = None,
    seed: Annotated[int, typer.Option(help="Seed of sample, folds, permutations and random weights.")] = 0,
    random_weights: Annotated[
        bool, typer.Option("--random-weights", help="Random weights instead of the model's.")
    ] = False,
    dry_run: shared.DryRun = False,
    quiet: shared.Quiet = False,
) -> None:
    """Score a causal language model on a labelled text set, layer by layer."""
    use_threads(threads)
    whole(batch_size, 1, None, "batch_size")
    whole(seed, 0, None, "seed")
    if control and (random_weights or device_map is not None):
        other = "--random-weights" if random_weights else "--device-map"
        raise NtpsError(f"--control and {other} exclude each other; give one of them.")
    report, json_path = shared.claim_outputs(context, output, json_file, inputs=[model, task])
    if quiet or not is_main_process():
        shared.hide_messages()

    from ntps.models import Representations, collect, load_model, plan_pass
    from ntps.models.plan import DEFAULT_MAX_LENGTH, PassSettings
    from ntps.report import write_report
    from ntps.scoring import ScoreSettings, assign_folds, score_task

    # Settings are checked when they are made, before anything is loaded.
    settings = ScoreSettings(
        folds=shared.parse_folds(folds),
        seed=seed,
        k_u=k_u,
        k_v=k_v,
        center=center,
        convention=convention,
        fraction=fraction,
        rtol=rtol,
        permutations=permutations,
        intervals=intervals,
        probes=probes,
    )
    PassSettings(
        layers=(0,),
        max_length=DEFAULT_MAX_LENGTH if max_length is None else max_length,
        pooling=pooling,
        prefix=prefix,
        matmul_precision=matmul_precision,
        state_dtype=state_dtype,
    )
    labelled = shared.load_columns(task, data, limit=limit, seed=seed)
    for column in labelled.columns:  # refused now, not after the pass
        fold_of = assign_folds(column.values[column.labelled], settings.folds)
        if intervals and (fold_of is None or fold_of.max() < 2):
            raise NtpsError(
                f"--intervals needs at least 3 folds, for which {column.name!r} has too few texts of one class."
            )
    if dry_run:
        plan = plan_pass(
            model,
            labelled,
            layers=layers,
            max_length=max_length,
            batch_size=batch_size,
            state_dtype=state_dtype,
            dtype=dtype,
            device=device,
            device_map=device_map,
            **loading,
        )
        if is_main_process():
            shared.emit(plan.to_dict(), json_path, plan, quiet)
        return
    representations: list[Representations] = []
    for with_random_weights in (random_weights, True) if control else (random_weights,):
        loaded = load_model(
            model,
            dtype=dtype,
            device=device,
            device_map=device_map,
            random_weights=with_random_weights,
            seed=seed if with_random_weights else None,
            **loading,
        )
        for name, rank in (("k_u", k_u), ("k_v", k_v)):
            if rank is not None:
                whole(rank, 1, loaded.width, name)
        folder = report if report is None or not representations else report / "control"
        representations.append(
            collect(
                loaded,
                labelled,
                layers=layers,
                max_length=max_length,
                pooling=pooling,
                prefix=prefix,
                batch_size=batch_size,
                matmul_precision=matmul_precision,
                state_dtype=state_dtype,
                folder=folder,
                progress=False if quiet else None,
            )
        )
        del loaded  # frees it before the control is loaded
    if not is_main_process():
        return
    results = score_task(representations[0], settings, control=representations[1] if control else None)
    if report is not None:
        write_report(results, report)
    shared.emit_columns(results, report, json_path, quiet)
