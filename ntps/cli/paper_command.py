"""`ntps paper`: the paper's figures, an audit of its evidence, and how to make its numbers anew."""

from typing import Annotated, Any

import typer

from ntps._files import atomic_path, atomic_write
from ntps._names import shareable
from ntps._processes import refuse_processes
from ntps.cli import options as shared

NAME = "paper"
app = typer.Typer(
    help="The paper (arXiv 2505.17169): its figures, an audit of its evidence, and how to make its numbers anew.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@app.command("figures")
def figures(
    context: typer.Context,
    output: Annotated[str, typer.Option(help="Folder of the figures and correlations.csv.")] = "paper",
    quiet: shared.Quiet = False,
) -> None:
    """Draw Figures 1, 2 and 3 from the published numbers."""
    folder, _ = shared.claim_outputs(context, output)

    from ntps.paper import write_figures

    files = write_figures(folder or output)
    if not quiet:
        shared.say("\n".join(str(path) for path in files))


@app.command("audit")
def audit(context: typer.Context, json_file: shared.JsonFile = None, quiet: shared.Quiet = False) -> None:
    """Check the paper's mathematics, and its evidence by its own numbers; offline, in seconds."""
    _, json_path = shared.claim_outputs(context, None, json_file)

    from ntps.paper import audit

    found = audit()
    shared.emit(shareable(found.to_dict()), json_path, found, quiet)


@app.command("words")
@shared.takes(data=shared.DATA, loading=shared.LOADING)
def words(
    context: typer.Context,
    model: shared.ModelArgument,
    task: shared.TaskArgument,
    *,
    data: dict[str, Any],
    word: Annotated[list[str] | None, typer.Option("--word", help="A word; repeat.  [default: the paper's 13]")] = None,
    layer: Annotated[int, typer.Option(help="Layer number; the paper's is 0.")] = 0,
    limit: shared.Limit = None,
    max_length: shared.MaxLength = None,
    dtype: shared.Dtype = None,
    device: shared.Device = None,
    loading: dict[str, Any],
    output: Annotated[str, typer.Option(help="Folder of words.png and words.csv.")] = "paper",
    quiet: shared.Quiet = False,
) -> None:
    """Draw Figure 1 for any model: words in the released code's first directions of U and of V."""
    refuse_processes("ntps paper words")
    folder = shared.claim_outputs(context, output, inputs=[model, task])[0]
    assert folder is not None
    if quiet:
        shared.hide_messages()

    from ntps.models import load_model
    from ntps.paper import plot_words, project_words
    from ntps.report.page import csv_text
    from ntps.tasks import TaskSource

    labelled = TaskSource.parse(task, **data).load(limit=limit)
    loaded = load_model(model, dtype=dtype, device=device, **loading)
    table = project_words(loaded, labelled, word, layer=layer, max_length=max_length, progress=False if quiet else None)
    figure = plot_words(table)[0].figure
    with atomic_path(folder / "words.png") as temporary:
        figure.savefig(temporary, format="png", dpi=150)
    atomic_write(folder / "words.csv", csv_text(table))
    if not quiet:
        shared.say(f"{table.to_string(index=False, float_format='{:.3f}'.format)}\n\nPicture: {folder / 'words.png'}")


@app.command("commands")
def commands(context: typer.Context, json_file: shared.JsonFile = None, quiet: shared.Quiet = False) -> None:
    """Print the command that makes each table and figure anew with hub access, and what it would cost."""
    _, json_path = shared.claim_outputs(context, None, json_file)

    from dataclasses import asdict

    from ntps.paper import commands, costs_text

    content = {"schema_version": 1, "kind": "ntps-paper-commands", "commands": [asdict(row) for row in commands()]}
    shared.emit(content, json_path, costs_text(), quiet)
