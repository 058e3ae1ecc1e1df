"""The command line, `ntps`: parsing and printing, nothing else."""

import os
import signal
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from typing import Annotated, Any

import typer

from ntps._names import one_line
from ntps._processes import is_main_process, refuse_processes, relax_garbage_collection, use_threads
from ntps._version import __version__
from ntps.cli import lora_command, paper_command, prescreen_command, rank_command, score_command, study_command
from ntps.cli.options import (
    JsonFile,
    Quiet,
    Threads,
    claim_outputs,
    emit,
    name_options,
    plain_output,
    say,
    show_messages,
)
from ntps.errors import NtpsError

app = typer.Typer(
    name="ntps",
    help="Next Token Perception Score: what next-token prediction keeps of a labelled text task.",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


def main() -> None:
    """Run the command line; bad input is one sentence on stderr and exit status 2.

    Ctrl-C is 130; SIGTERM and a closed terminal end a run as it does, with 143 and 129.
    """
    # Threads that spin while they wait for each other slow a busy machine down several times; before torch is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ["MPLBACKEND"] = "agg"  # pictures are files; a backend for windows may be missing
    if sys.stderr is None:  # closed; `print` would take standard output for it
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115  it stays open to the end
    relax_garbage_collection()
    show_messages(_parameters)
    plain_output()
    with _signals() as came:
        status = _status(came)
        if status == 130 or (status and came):
            status = 128 + came[0] if came else 130
            print("\nntps: interrupted; what was finished is kept.", file=sys.stderr)
    sys.exit(status)


def _status(came: list[int]) -> int:
    """Run the command and return its exit status; `came` are the signals that have come by its end."""
    try:
        status = _command()(sys.argv[1:] or ["--help"], standalone_mode=False)
    except (KeyboardInterrupt, typer.Abort):
        return 130
    except typer.Exit as error:
        return int(error.exit_code)
    except SystemExit:  # the parser's answer to a closed pipe
        return 0 if "--help" in sys.argv else _refuse("a pipe or a connection was closed by the other end; try again.")
    except Exception as error:
        if came:  # compiled code may make another exception of an interruption, as torch does while it reads a tensor
            return 130
        if isinstance(error, NtpsError):
            return _refuse(name_options(str(error), _parameters()))
        if not hasattr(error, "format_message"):  # the parser's exceptions have it; any other is a bug
            raise
        if type(error).__name__ == "NoArgsIsHelpError":  # a group without a command, such as `ntps paper`
            say(error.format_message())
            return 0
        return _refuse(f"{error.format_message().rstrip('.')}. See ntps --help.")
    return status if isinstance(status, int) else 0


@contextmanager
def _signals() -> Iterator[list[int]]:
    """Let the signals that ask for an end interrupt the block, and yield the list of those that came."""
    came: list[int] = []

    def stop(number: int, _: Any) -> None:
        came.append(number)
        raise KeyboardInterrupt

    before = {}
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        usual = (signal.SIG_DFL, signal.default_int_handler)  # nohup ignores SIGHUP
        if number is not None and signal.getsignal(number) in usual:
            before[number] = signal.signal(number, stop)
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _refuse(message: str) -> int:
    try:
        speaks = is_main_process()
    except NtpsError:
        speaks = True
    if speaks:
        with suppress(OSError):
            print(f"ntps: {one_line(message)}", file=sys.stderr)
    return 2


@cache
def _command() -> Any:
    """Return the whole command line as click knows it; making it out of signatures takes longer than parsing."""
    return typer.main.get_command(app)


def _parameters() -> list[Any]:
    """Return the click parameters of the command that is running."""
    command = _command()
    for word in sys.argv[1:]:  # a group's command is the next word
        command = getattr(command, "commands", {}).get(word, command)
    return command.params


def _version(requested: bool) -> None:
    if requested:
        say(f"ntps {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass


for command in (score_command, rank_command, study_command, lora_command, prescreen_command):
    app.command(command.NAME, epilog=command.EXAMPLES)(command.run)
app.add_typer(paper_command.app, name=paper_command.NAME)


@app.command("list")
def list_command(context: typer.Context, json_file: JsonFile = None) -> None:
    """List the models and tasks that are known by name."""
    _, path = claim_outputs(context, None, json_file)
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
    emit(bundled, path, "\n".join(lines), path is not None)


@app.command("demo")
def demo_command(
    context: typer.Context,
    output: Annotated[str, typer.Option(help="Folder of the report.")] = "report",
    threads: Threads = None,
    quiet: Quiet = False,
) -> None:
    """Score the bundled model on the bundled tasks, beside the same model before pretraining."""
    use_threads(threads)
    refuse_processes("the demo")
    folder = claim_outputs(context, output)[0]

    from ntps.report.demo import run_demo

    demo = run_demo(folder or output, progress=False if quiet else None)
    if not quiet:
        say(demo)
