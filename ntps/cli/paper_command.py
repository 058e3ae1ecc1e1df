"""`ntps paper`: the paper's figures, an audit of its evidence, and how to make its numbers anew."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from ntps._files import atomic_path, atomic_write, check_output
from ntps.cli import options as shared

NAME = "paper"
app = typer.Typer(
    help="The paper (arXiv 2505.17169): its figures, an audit of its evidence, and how to make its numbers anew.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@app.command("figures")
def figures(
    output: Annotated[Path, typer.Option(help="Folder of the figures and correlations.csv.")] = Path("paper"),
    quiet: shared.Quiet = False,
) -> None:
    """Draw Figures 1, 2 and 3 from the published numbers."""
    check_output(output)

    from ntps.paper import write_figures

    files = write_figures(output)
    if not quiet:
        print("\n".join(str(path) for path in files))


@app.command("audit")
def audit(json_file: shared.JsonFile = None, quiet: shared.Quiet = False) -> None:
    """Check the paper's mathematics, and its evidence by its own numbers; offline, in seconds."""
    check_output(None, json_file)

    from ntps.paper import audit

    found = audit()
    text = json.dumps(found.to_dict(), indent=2, ensure_ascii=False, allow_nan=False)
    shared.emit(text, json_file, found, quiet)


@app.command("words")
@shared.takes(data=shared.DATA, loading=shared.LOADING)
def words(
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
    output: Annotated[Path, typer.Option(help="Folder of words.png and words.csv.")] = Path("paper"),
    quiet: shared.Quiet = False,
) -> None:
    """Draw Figure 1 for any model: words in the released code's first directions of U and of V."""
    check_output(output)
    if quiet:
        shared.hide_messages()

    from ntps.models import load_model
    from ntps.paper import plot_words, project_words
    from ntps.tasks import TaskSource

    labelled = TaskSource.parse(task, **data).load(limit=limit)
    loaded = load_model(model, dtype=dtype, device=device, **loading)
    table = project_words(loaded, labelled, word, layer=layer, max_length=max_length, progress=False if quiet else None)
    figure = plot_words(table)[0].figure
    output.mkdir(parents=True, exist_ok=True)
    with atomic_path(output / "words.png") as temporary:
        figure.savefig(temporary, format="png", dpi=150)
    atomic_write(output / "words.csv", table.to_csv(index=False))
    if not quiet:
        print(f"{table.to_string(index=False, float_format='{:.3f}'.format)}\n\nPicture: {output / 'words.png'}")
