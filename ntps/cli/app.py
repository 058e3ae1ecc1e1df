"""The command line, `ntps`: parsing and printing, nothing else."""

import json
import os
import sys
import textwrap
from pathlib import Path
from typing import Annotated, Any

import typer

from ntps._files import check_output
from ntps._version import __version__
from ntps.cli import lora_command, paper_command, prescreen_command, score_command, study_command
from ntps.cli.options import JsonFile, Quiet, emit, name_options, show_messages
from ntps.errors import NtpsError

app = typer.Typer(
    name="ntps",
    help="Next Token Perception Score: what next-token prediction keeps of a labelled text task.",
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


def main() -> None:
    """Run the command line; bad input is one sentence on stderr and exit status 2, Ctrl-C is 130."""
    # Threads that spin while they wait for each other slow a busy machine down several times; before torch is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    show_messages(_parameters)
    try:
        status = app(standalone_mode=False)
    except NtpsError as error:
        status = _refuse(name_options(str(error), _parameters()))
    except (KeyboardInterrupt, typer.Abort):
        status = 130
    except typer.Exit as error:
        status = error.exit_code
    except BrokenPipeError:  # the reader of our output, such as `head`, has exited
        sys.stderr.close()
        status = 0
    except Exception as error:
        if not hasattr(error, "format_message"):  # the parser's exceptions have it; any other is a bug
            raise
        status = _refuse(f"{error.format_message()} See ntps --help.")
    if status == 130:
        print("\nntps: interrupted; what was finished is kept.", file=sys.stderr)
    sys.exit(status if isinstance(status, int) else 0)


def _refuse(message: str) -> int:
    print(f"ntps: {' '.join(message.split())}", file=sys.stderr)
    return 2


def _parameters() -> list[Any]:
    """Return the click parameters of the command that is running."""
    command: Any = typer.main.get_command(app)
    for word in sys.argv[1:]:  # a group's command is the next word
        command = getattr(command, "commands", {}).get(word, command)
    return command.params


def _version(requested: bool) -> None:
    if requested:
        print(f"ntps {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass


for command in (score_command, study_command, lora_command, prescreen_command):
    app.command(command.NAME, epilog=command.EXAMPLES)(command.run)
app.add_typer(paper_command.app, name=paper_command.NAME)


@app.command("list")
def list_command(json_file: JsonFile = None) -> None:
    """List the models and tasks that are known by name."""
    from ntps.models import list_models
    from ntps.tasks import list_tasks

    models, tasks = list_models(), list_tasks()
    bundled = {
        name: [row for row in rows if row["kind"] == "bundled"] for name, rows in (("models", models), ("tasks", tasks))
    }
    sections = (
        ("Bundled models", bundled["models"]),
        ("Bundled tasks", bundled["tasks"]),
        ("The paper's models (from the hub)", [row for row in models if row["kind"] == "paper"]),
        ("The paper's tasks (from the hub)", [row for row in tasks if row["kind"] == "paper"]),
    )
    lines = []
    for title, rows in sections:
        lines.append(title)
        for row in rows:
            name = f"  {row['name']}  "
            about = textwrap.shorten(row["description"], max(80 - max(len(name), 29), 20), placeholder=" …")
            lines.append(f"{name:29}{about}")
        lines.append("")
    emit(json.dumps(bundled, indent=2, ensure_ascii=False), json_file, "\n".join(lines), json_file is not None)


@app.command("demo")
def demo_command(
    output: Annotated[Path, typer.Option(help="Folder of the report.")] = Path("report"),
    quiet: Quiet = False,
) -> None:
    """Score the bundled model on the bundled tasks, beside the same model before pretraining."""
    from ntps.report.demo import run_demo

    check_output(output)
    demo = run_demo(output, progress=False if quiet else None)
    if not quiet:
        print(demo)
