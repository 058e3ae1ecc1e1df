"""`ntps lora`."""

from dataclasses import replace
from typing import Annotated, Any

import typer

from ntps._files import atomic_write, json_text
from ntps._names import shareable
from ntps._processes import is_main_process, use_threads
from ntps.cli import options as shared
from ntps.errors import NtpsError, whole

NAME = "lora"
EXAMPLES = (
    "Examples:  ntps lora miniworld-base miniworld/intent  |  ntps lora ./my-model reviews.csv "
    "--steps 300 --rank 16 --target paper --output tuned  |  the same again with --resume after a crash  |  "
    "ntps lora miniworld-base miniworld/intent --method full --seeds 3 --json -"
)


@shared.takes(data=shared.DATA, training=shared.TRAINING, loading=shared.LOADING)
def run(
    context: typer.Context,
    model: shared.ModelArgument,
    task: shared.TaskArgument,
    recipe: shared.Recipe = None,
    *,
    data: dict[str, Any],
    training: dict[str, Any],
    test_split: shared.TestSplit = None,
    limit: shared.Limit = None,
    max_length: shared.MaxLength = None,
    layers: shared.Layers = "all",
    folds: shared.Folds = "auto",
    convention: shared.Convention = "theory",
    fraction: shared.Fraction = None,
    seed: Annotated[int, typer.Option(help="Seed of sample, split, training and folds.")] = 0,
    seeds: Annotated[int, typer.Option(help="Repeat under this many seeds, starting from --seed.")] = 1,
    device: shared.Device = None,
    threads: shared.Threads = None,
    loading: dict[str, Any],
    output: Annotated[str | None, typer.Option(help="Folder for training state, adapter, head and lora.json.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue from the state in --output.")] = False,
    json_file: shared.JsonFile = None,
    quiet: shared.Quiet = False,
) -> None:
    """Fine-tune with LoRA, and compare accuracy and scores before and after."""
    use_threads(threads)
    whole(seed, 0, None, "seed")
    whole(seeds, 1, None, "seeds")
    if limit is not None:
        whole(limit, 1, None, "limit")
    requested_folds = shared.parse_folds(folds)
    if resume and output is None:
        raise NtpsError("--resume needs --output, the folder of the run to continue.")
    if output is not None:
        from ntps.models.checkpoints import check_separate

        check_separate(model, output)
    folder, json_path = shared.claim_outputs(context, output, json_file, inputs=[model, task])
    if quiet:
        shared.hide_messages()

    from ntps.finetune import before_and_after, repeat
    from ntps.finetune.before_after import load_for_training
    from ntps.tasks import TaskSource
    from ntps.tasks.given import need_classes

    # Settings are checked when they are made, before anything is loaded.
    settings = shared.train_settings(context, recipe, {**training, "max_length": max_length})
    source = TaskSource.parse(task, **data)
    need_classes([source], "fine-tuning")  # refused now, not after the model is loaded
    labelled = source.load(limit=limit, seed=seed)
    test = None
    if test_split is not None:
        try:
            test = replace(source, options={**source.options, "split": test_split}).load(seed=seed)
        except NtpsError as error:
            raise NtpsError(f"the test texts cannot be read: {error}") from error
    loaded = load_for_training(model, dtype=settings.dtype, device=device, **loading)
    options: dict[str, Any] = {
        "test": test,
        "settings": settings,
        "folds": requested_folds,
        "convention": convention,
        "fraction": fraction,
        "layers": layers,
        "output": folder,
        "resume": resume,
        "progress": False if quiet else None,
    }
    if seeds == 1:
        result: Any = before_and_after(loaded, labelled, seed=seed, **options)
    else:
        result = repeat(loaded, labelled, seeds=range(seed, seed + seeds), **options)
    if not is_main_process():
        return
    content, text = shareable(result.to_dict()), str(result)
    if folder is not None:
        atomic_write(folder / "lora.json", json_text(content))
        text += f"\n\nAdapter, head and lora.json: {folder}"
    shared.emit(content, json_path, text, quiet)
