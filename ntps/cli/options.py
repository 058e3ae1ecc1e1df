"""Common parts of the commands: options, messages on stderr, JSON or text output, sentences that name options."""

import codecs
import functools
import inspect
import logging
import os
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ntps._files import atomic_write, json_text, local_path
from ntps._names import clean, one_line, shareable_results
from ntps._processes import is_main_process
from ntps.cli.outputs import STDOUT, claim
from ntps.errors import NtpsError

if TYPE_CHECKING:
    from ntps.tasks import Task

ModelArgument = Annotated[str, typer.Argument(help="A bundled model, a directory, a GGUF file or a hub name.")]
TaskArgument = Annotated[
    str,
    typer.Argument(
        help="A bundled task, a file, a folder, or a hub data set; NAME=PATH:OPTION,... says how to read it: text=, "
        "label=, split=, config=, revision=, no-header, drop-missing, regression."
    ),
]
TaskList = Annotated[
    list[str],
    typer.Option(
        "--task",
        help="A task, or NAME=PATH:OPTION,... with text=, label=, split=, config=, revision=, no-header, "
        "drop-missing; repeat for several.",
    ),
]
TextColumn = Annotated[str | None, typer.Option(help="Text column; several, to be joined, with commas.")]
LabelColumn = Annotated[str | None, typer.Option(help="Label column.")]
LabelColumns = Annotated[
    list[str] | None, typer.Option("--label-column", help="Label column; repeat to score several from one pass.")
]
Split = Annotated[str | None, typer.Option(help="Split of the data set.")]
Config = Annotated[str | None, typer.Option(help="Configuration of a hub data set.")]
Header = Annotated[bool, typer.Option("--header/--no-header", help="A table's first line names its columns, or not.")]
DropMissing = Annotated[bool, typer.Option("--drop-missing", help="Leave out rows without a text or a label.")]
Regression = Annotated[
    bool, typer.Option("--regression", help="Labels are real values, not classes (ntps score and ntps rank).")
]
Multilabel = Annotated[
    bool, typer.Option("--multilabel", help="The label columns are 0 and 1: several labels, predicted together.")
]
Limit = Annotated[int | None, typer.Option(help="Use a random sample of at most this many texts.")]
TaskLimit = Annotated[int, typer.Option(help="Use a random sample of at most this many texts per task.")]
Layers = Annotated[str, typer.Option(help="'all', or numbers such as 0,6,-1.")]
MaxLength = Annotated[int | None, typer.Option(help="Cut texts to this many tokens.  [default: 512]")]
Pooling = Annotated[str, typer.Option(help="What represents a text: mean over tokens, or last.")]
KV = Annotated[int | None, typer.Option("--k-v", help="Next-token rank.  [default: max(k_u, d/8)]")]
BatchSize = Annotated[int, typer.Option(help="Largest number of texts in a batch.")]
Prefix = Annotated[str, typer.Option(help="Past of a token: sum, mean or last.")]
Folds = Annotated[str, typer.Option(help="Held-out folds; 0 for none; auto is 5, or what fits.")]
Recipe = Annotated[
    str | None,
    typer.Option(help="The authors' values: paper, paper-probe or paper-scratch; other options change single ones."),
]
TestSplit = Annotated[str | None, typer.Option(help="Split of the test texts.  [default: a quarter of the texts]")]
Convention = Annotated[str, typer.Option(help="theory, or official: the released code's procedure.")]
Fraction = Annotated[float | None, typer.Option(help="Which of the official convention's 19: 0.05, ..., 0.95.")]
Center = Annotated[bool, typer.Option("--center/--no-center", help="Solve U from centred moments.")]
Dtype = Annotated[str | None, typer.Option(help="float32, bfloat16, float16 or float64.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, ...")]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit of a hub model.")]
Tokenizer = Annotated[str | None, typer.Option(help="Another tokenizer: directory or hub name.")]
TrustRemoteCode = Annotated[bool, typer.Option("--trust-remote-code", help="Run the model's own code.")]
Threads = Annotated[
    int | None, typer.Option(help="Threads of this process: torch and BLAS.  [default: what they choose]")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what the pass will read and take; no model runs.")]
JsonFile = Annotated[str | None, typer.Option("--json", help="Write the result as JSON; - for standard output.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress, messages or table.")]

# Groups of options, by the library's names for them, with their defaults; see `takes`.
DATA = {
    "text_column": (TextColumn, None),
    "label_column": (LabelColumn, None),
    "split": (Split, None),
    "config": (Config, None),
    "header": (Header, True),
    "drop_missing": (DropMissing, False),
    "regression": (Regression, False),
}
COLUMNS = DATA | {"label_column": (LabelColumns, None), "multilabel": (Multilabel, False)}  # of score and rank
LOADING = {
    "revision": (Revision, None),
    "tokenizer": (Tokenizer, None),
    "trust_remote_code": (TrustRemoteCode, False),
}


def _option(kind: Any, words: str) -> Any:
    return Annotated[kind, typer.Option(help=words)]


# The attributes of `TrainSettings` but for `max_length`.
TRAINING: dict[str, tuple[Any, Any]] = {
    "steps": (_option(int, "Optimiser steps."), 100),
    "epochs": (_option(int | None, "Read every text this often, instead of --steps."), None),
    "rank": (_option(int, "Rank of the adapters."), 32),
    "alpha": (_option(float, "Scale of the adapters, whose output is multiplied by alpha / rank."), 32),
    "dropout": (_option(float, "Share of an adapter's inputs dropped in training."), 0.05),
    "learning_rate": (_option(float | None, "Peak step size. [default: the method's]"), None),
    "weight_decay": (_option(float, "Decoupled weight decay of matrices."), 0.01),
    "warmup": (_option(float, "Share of the steps over which the rate rises."), 0.06),
    "schedule": (_option(str, "The rate then: cosine, or constant."), "cosine"),
    "clip_norm": (_option(float, "Largest norm of the gradient; 0 for any."), 1.0),
    "optimizer": (_option(str, "adamw, or adafactor (the paper's)."), "adamw"),
    "target": (_option(str, "Modules with adapters: all-linear, paper (q, k, v), or names with commas."), "all-linear"),
    "start_layer": (_option(str, "First block with adapters, from 0; auto: from where labels get lost."), 0),
    "head": (_option(str, "Start of the head: probe (converged), or random."), "probe"),
    "head_dropout": (_option(float, "Share of the head's inputs dropped in training."), 0.0),
    "method": (_option(str, "lora, full, probe (the head alone) or scratch."), "lora"),
    "batch_size": (_option(int, "Texts in a batch."), 16),
    "accumulation": (_option(int, "Batches in a step."), 1),
    "evaluate_every": (_option(int, "Steps between evaluations on the validation texts."), 25),
    "patience": (_option(int | None, "Stop after this many evaluations without progress."), None),
    "validation": (_option(float, "Share of the untested texts set aside for evaluations."), 0.2),
    "keep": (_option(str, "Weights of the best evaluation (by --margin), or the last."), "best"),
    "margin": (_option(float, "Standard errors by which the validation loss must fall."), 2.5),
    "dtype": (Dtype, None),
}
LORA = {f"lora_{name}": option for name, option in TRAINING.items()}  # in a study, beside options of the same names


def takes(**groups: dict[str, tuple[Any, Any]]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Put groups of options in the place of a command's parameters of these names; it gets each as a dictionary.

    Typer reads a command's options from its signature, so that they must stand there one by one.
    """

    def decorate(run: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(run)
        def command(**values: Any) -> None:
            grouped = {name: {option: values.pop(option) for option in group} for name, group in groups.items()}
            run(**values, **grouped)

        parameters = []
        for own in inspect.signature(run).parameters.values():
            for name, (annotation, default) in groups.get(own.name, {own.name: (own.annotation, own.default)}).items():
                kind = inspect.Parameter.KEYWORD_ONLY
                parameters.append(inspect.Parameter(name, kind, default=default, annotation=annotation))
        command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        command.__annotations__ = {one.name: one.annotation for one in parameters}
        return command

    return decorate


class _Stderr(logging.Handler):
    """Print messages as "ntps: ..." without breaking a progress bar; they name options as the command does."""

    def __init__(self, parameters: Callable[[], Iterable[Any]]) -> None:
        super().__init__()
        self.parameters = parameters

    def format(self, record: logging.LogRecord) -> str:
        return name_options(super().format(record), self.parameters())

    def emit(self, record: logging.LogRecord) -> None:
        message = f"ntps: {one_line(self.format(record))}"
        with suppress(OSError):
            if "tqdm" in sys.modules:
                sys.modules["tqdm"].tqdm.write(message, file=sys.stderr)
            else:
                print(message, file=sys.stderr)


def show_messages(parameters: Callable[[], Iterable[Any]] = tuple) -> None:
    """Send what the library logs to stderr.

    Args:
        parameters: Function that returns the parameters of the running command, for `name_options`.
    """
    logger = logging.getLogger("ntps")
    logger.handlers = [_Stderr(parameters)]
    logger.setLevel(logging.INFO)
    logger.propagate = False


def hide_messages() -> None:
    """Show errors only."""
    logging.getLogger("ntps").setLevel(logging.ERROR)


def plain_output() -> None:
    """Let standard output take any text: what its encoding lacks is written in simpler characters."""
    codecs.register_error("ntps-plain", _plainly)
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="ntps-plain")


_PLAIN = dict(zip("█▉▊▋▌▍▎▏–—…²×’‘“”−", "######  --.2x''\"\"-", strict=False)) | {
    "≥": ">=",
    "≤": "<=",
    "→": "->",
    "±": "+-",
}


def _plainly(error: UnicodeError) -> tuple[str, int]:
    """Return what stands for characters that an encoding lacks: the like, such as # for a bar, or their numbers."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lacking = error.object[error.start : error.end]
    found = (_PLAIN.get(letter) or letter.encode("ascii", "backslashreplace").decode() for letter in lacking)
    return "".join(found), error.end


def claim_outputs(
    context: typer.Context,
    output: str | None,
    json_file: str | None = None,
    *,
    inputs: Iterable[str] = (),
    shared: bool = False,
) -> tuple[Path | None, Path | None]:
    """Hold a command's outputs until it ends, and return them as paths; of several processes the first one holds them.

    Args:
        context: The command's context.
        output: Folder, `--output`.
        json_file: File, `--json`.
        inputs: Names of what is read, which no output may be.
        shared: Whether other runs may write the same at the same time.

    Raises:
        NtpsError: See `ntps.cli.outputs.claim`.
    """
    if json_file in STDOUT and sys.stdout is None:
        raise NtpsError("standard output is closed; name a file for --json.")
    if is_main_process():
        return context.with_resource(claim(output, json_file, inputs=inputs, shared=shared))
    return None if output is None else local_path(output), None if json_file is None else local_path(json_file)


def parse_folds(folds: str) -> int | str:
    """Return the number of folds, or "auto".

    Raises:
        NtpsError: If it is neither, 1, or negative.
    """
    if folds == "auto":
        return folds
    if not (folds.isascii() and folds.isdigit() and len(folds) < 19) or int(folds) == 1:
        raise NtpsError(f"folds is {folds}; it must be auto, 0 (none) or a number of at least 2.")
    return int(folds)


def train_settings(context: typer.Context, recipe: str | None, values: dict[str, Any]) -> Any:
    """Return the settings of fine-tuning: all values, or a recipe's but for those that were typed.

    Args:
        context: That of the command.
        recipe: A name for `TrainSettings.recipe`, or `None`.
        values: Values by parameter of the command: those of `TrainSettings`, some with `lora_` before them.
    """
    from ntps.finetune import TrainSettings
    from ntps.finetune.settings import TARGETS

    chosen = {name: value for name, value in values.items() if recipe is None or was_typed(context, name)}
    chosen = {name.removeprefix("lora_"): value for name, value in chosen.items()}
    if chosen.get("target", "paper") not in TARGETS:
        chosen["target"] = tuple(name.strip() for name in chosen["target"].split(","))
    with suppress(ValueError, KeyError):  # TrainSettings knows the word auto, and refuses others
        chosen["start_layer"] = int(chosen["start_layer"])
    if chosen.get("clip_norm") == 0:
        chosen["clip_norm"] = None
    return TrainSettings(**chosen) if recipe is None else TrainSettings.recipe(recipe, **chosen)


def was_typed(context: typer.Context, parameter: str) -> bool:
    """Return whether an option stands on the command line."""
    source = context.get_parameter_source(parameter)
    return source is not None and source.name == "COMMANDLINE"


def emit(content: Any, json_file: Path | None, text: object, quiet: bool) -> None:
    """Write JSON values to their file, if one was given, and print the text unless JSON goes to stdout or `quiet`."""
    if str(json_file) in STDOUT:
        _print(json_text(content).encode("utf-8"))  # whatever the terminal's encoding
        return
    if json_file is not None:
        atomic_write(json_file, json_text(content))
    if not quiet:
        say(text)


def load_columns(task: str, data: dict[str, Any], *, limit: int | None, seed: int) -> "Task":
    """Load a task with one or several label columns, by the options of `COLUMNS`."""
    from ntps.tasks import TaskSource

    columns = data["label_column"]
    label = columns[0] if columns and len(columns) == 1 else columns
    return TaskSource.parse(task, **{**data, "label_column": label}).load(limit=limit, seed=seed)


def emit_columns(results: Sequence[Any], report: Path | None, json_file: Path | None, quiet: bool) -> None:
    """Emit the results of one or several label columns."""
    text = "\n\n".join(map(str, results))
    if report is not None:
        text += f"\n\nReport: {report / 'report.html'}"
    emit(shareable_results(results), json_file, text, quiet)


def in_options(context: typer.Context, reason: str | None) -> str | None:
    """Return why a part of a result failed with the command's options in place of the library's parameters."""
    return None if reason is None else name_options(reason, context.command.params)


def say(text: object) -> None:
    """Print text, clean of what steers a terminal."""
    _print(clean(str(text)) + "\n")


def _print(text: str | bytes) -> None:
    """Write to standard output at once, so that a failure is met here; the end is quiet if its reader has gone.

    Raises:
        NtpsError: If it cannot be written.
    """
    if sys.stdout is None:
        return
    try:
        if isinstance(text, str):
            sys.stdout.write(text)
        else:
            sys.stdout.flush()
            sys.stdout.buffer.write(text)
        sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left in its buffer is not tried again
        if isinstance(error, BrokenPipeError):
            raise typer.Exit(0) from None
        raise NtpsError(f"cannot write to standard output: {error.strerror or error}.") from error


def name_options(message: str, parameters: Iterable[Any]) -> str:
    """Return a message of the library with the command's options in place of the parameters it names.

    A parameter is recognised where it is written as code (`name=`), by an underscore, or as the first word.
    """
    for parameter in parameters:
        option = next((word for word in parameter.opts if word.startswith("--")), None)
        if option is None:
            continue
        name = re.escape(parameter.name)
        message = re.sub(rf"\b{name}=True\b", option, message)
        for opposite in parameter.secondary_opts:
            message = re.sub(rf"\b{name}=False\b", opposite, message)
        message = re.sub(rf"\b{name}=", f"{option} ", message)
        message = re.sub(rf"'{name}'(?= (\(|is for))", option, message)
        message = re.sub(rf"^{name}(?= (is|has|needs|names|and) )", option, message)
        if "_" in parameter.name:
            message = re.sub(rf"(?<![\w-]){name}(?!\w)", option, message)
    return message
