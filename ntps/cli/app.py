"""The command line: `ntps score`, `study`, `lora`, `list`, `demo`. Parsing and printing, nothing else."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from ntps._files import check_output
from ntps._version import __version__
from ntps.cli import lora as cli_lora
from ntps.cli import prescreen as cli_prescreen
from ntps.cli import study as cli_study
from ntps.errors import NtpsError, in_range, one_of

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
    try:
        status = app(standalone_mode=False)
    except NtpsError as error:
        status = _complain(str(error))
    except (KeyboardInterrupt, typer.Abort):
        status = 130
    except typer.Exit as error:
        status = error.exit_code
    except BrokenPipeError:  # the reader of our output, `head` for instance, has left
        sys.stderr.close()
        status = 0
    except Exception as error:
        if not hasattr(error, "format_message"):  # what the parser raises has it; anything else is a fault of ours
            raise
        status = _complain(f"{error.format_message()} See ntps --help.")
    if status == 130:
        print("\nntps: interrupted; what was finished is kept.", file=sys.stderr)
    sys.exit(status if isinstance(status, int) else 0)


def _complain(message: str) -> int:
    print(f"ntps: {' '.join(message.split())}", file=sys.stderr)
    return 2


def _version(wanted: bool) -> None:
    if wanted:
        print(f"ntps {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass


@app.command(
    "score",
    epilog="Examples:  ntps score miniworld-base miniworld/topic  |  "
    "ntps score ./my-model reviews.csv --text-column review --label-column stars --folds 5 --output report  |  "
    "ntps score HuggingFaceTB/SmolLM2-135M rotten_tomatoes --limit 1000",
)
def score_command(
    model: Annotated[str, typer.Argument(help="A bundled model, a directory, a GGUF file or a hub name.")],
    task: Annotated[str, typer.Argument(help="A bundled task, a file, a folder, or a hub data set.")],
    text_column: Annotated[str | None, typer.Option(help="Text column; several, joined, with commas.")] = None,
    label_column: Annotated[str | None, typer.Option(help="Label column.")] = None,
    split: Annotated[str | None, typer.Option(help="Split of the data set.")] = None,
    config: Annotated[str | None, typer.Option(help="Configuration of a hub data set.")] = None,
    limit: Annotated[int | None, typer.Option(help="Use a random sample of so many texts.")] = None,
    layers: Annotated[str, typer.Option(help="'all', or numbers such as 0,6,-1.")] = "all",
    max_length: Annotated[int | None, typer.Option(help="Most tokens of a text.  [default: 512]")] = None,
    batch_size: Annotated[int, typer.Option(help="Most texts in a batch.")] = 32,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16, float16 or float64.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, ...")] = None,
    device_map: Annotated[str | None, typer.Option(help="'auto' spreads a large model.")] = None,
    center: Annotated[bool, typer.Option("--center/--no-center", help="Solve U from centred moments.")] = False,
    prefix: Annotated[str, typer.Option(help="Past of a token: sum, mean or last.")] = "sum",
    folds: Annotated[
        int | None, typer.Option(help="Held-out folds; 0 for none, which takes less memory.  [default: 5]")
    ] = None,
    permutations: Annotated[int, typer.Option(help="Also score so many shuffles of the labels: z and p.")] = 0,
    intervals: Annotated[
        bool, typer.Option("--intervals", help="95 % intervals from 3 folds or more; sums take 3 times the memory.")
    ] = False,
    control: Annotated[bool, typer.Option("--control", help="Also score fresh weights of the architecture.")] = False,
    k_u: Annotated[int | None, typer.Option("--k-u", help="Perception rank.  [default: rank of X]")] = None,
    k_v: Annotated[int | None, typer.Option("--k-v", help="Next-token rank.  [default: max(k_u, d/8)]")] = None,
    convention: Annotated[str, typer.Option(help="theory, or official: the released code's procedure.")] = "theory",
    matmul_precision: Annotated[str, typer.Option(help="auto, highest, high (TF32) or medium.")] = "auto",
    output: Annotated[Path | None, typer.Option(help="Write a report here; its moments are used again.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the result as JSON; - for stdout.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of sample and folds.")] = 0,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a hub model.")] = None,
    tokenizer: Annotated[str | None, typer.Option(help="Another tokenizer: directory or hub name.")] = None,
    trust_remote_code: Annotated[bool, typer.Option("--trust-remote-code", help="Run the model's own code.")] = False,
    random_weights: Annotated[bool, typer.Option("--random-weights", help="Fresh weights: the control.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress, no table.")] = False,
) -> None:
    """Score a causal language model on a labelled text set, layer by layer."""
    from ntps import score
    from ntps.core.solve import CONVENTIONS
    from ntps.models.load import load_model
    from ntps.models.plan import default_folds
    from ntps.models.runs import run_pass
    from ntps.report.page import write_report
    from ntps.scoring.evidence import add_evidence
    from ntps.scoring.intervals import jackknife
    from ntps.scoring.nulls import permutation_null
    from ntps.tasks.load import load_task

    # What can be refused before anything is loaded is refused here.
    one_of(convention, CONVENTIONS, "--convention")
    one_of(prefix, ("sum", "mean", "last"), "--prefix")
    in_range(batch_size, 1, None, "--batch-size")
    in_range(seed, 0, None, "--seed")
    for name, value, least in (("limit", limit, 1), ("max-length", max_length, 2), ("k-u", k_u, 1), ("k-v", k_v, 1)):
        if value is not None:
            in_range(value, least, None, f"--{name}")
    in_range(permutations, 0, None, "--permutations")
    if folds is not None and (folds < 0 or folds == 1):
        raise NtpsError(f"--folds is {folds}; it must be 0 (none) or at least 2.")
    if intervals and folds is not None and folds < 3:
        raise NtpsError(f"--intervals needs folds to leave out; give --folds 3 or more (it is {folds}).")
    if control and (random_weights or device_map is not None):
        other = "--random-weights" if random_weights else "--device-map"
        raise NtpsError(f"--control and {other} exclude each other; give one of them.")
    if convention == "official" and (permutations or intervals):
        raise NtpsError("--permutations and --intervals need --convention theory: they are of its score.")
    check_output(output, json_file)
    labelled = load_task(
        task,
        config=config,
        split=split,
        text_column=text_column,
        label_column=label_column,
        limit=limit,
        seed=seed,
    )

    def load(name: str, random: bool) -> Any:
        return load_model(
            name,
            tokenizer=tokenizer,
            revision=revision,
            dtype=dtype,
            device=device,
            device_map=device_map,
            trust_remote_code=trust_remote_code,
            random_weights=random,
            seed=seed,
        )

    if folds is None:
        folds = default_folds(labelled)
    loaded = load(model, random_weights)
    options: dict[str, Any] = {
        "layers": layers,
        "batch_size": batch_size,
        "max_length": max_length,
        "prefix": prefix,
        "folds": folds,
        "seed": seed,
        "matmul_precision": matmul_precision,
    }
    done = run_pass(
        loaded, labelled, output, keep_features=permutations > 0, fold_prefix=intervals, quiet=quiet, **options
    )
    fresh = None
    if control:
        loaded = None  # frees it before the control comes
        fresh = run_pass(load(model, True), labelled, output, name="control", quiet=quiet, **options)
    if not done.reports:
        return
    result = score(done.moments, k_u=k_u, k_v=k_v, center=center, convention=convention)
    ranks: dict[str, Any] = {"k_u": k_u, "k_v": k_v, "center": center}
    if permutations or intervals or fresh is not None:
        result = add_evidence(
            result,
            nulls=permutation_null(done.moments, done.features, n_permutations=permutations, seed=seed, **ranks)
            if done.features is not None
            else None,
            intervals=jackknife(done.moments, **ranks) if intervals else None,
            control=None if fresh is None else score(fresh.moments, **ranks),
        )
    if output is not None:
        write_report(result, output)
    to_stdout = str(json_file) == "-"
    if json_file is not None and not to_stdout:
        _write(json_file, result.to_json() + "\n")
    if to_stdout:
        print(result.to_json())
    elif not quiet:
        print(result)
        if output is not None:
            print(f"\nReport: {output / 'report.html'}")


def _write(path: Path, text: str) -> None:
    from ntps._files import atomic_write

    atomic_write(path, text)


cli_study.register(app)
cli_lora.register(app)
cli_prescreen.register(app)


@app.command("list")
def list_command(
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write what is bundled as JSON; - for stdout.")
    ] = None,
) -> None:
    """List the models and tasks that are known by name."""
    import textwrap

    from ntps.models.load import list_models
    from ntps.tasks.load import list_tasks

    models, tasks = list_models(), list_tasks()
    if json_file is not None:
        bundled = {
            "models": [row for row in models if row["kind"] == "bundled"],
            "tasks": [row for row in tasks if row["kind"] == "bundled"],
        }
        text = json.dumps(bundled, indent=2, ensure_ascii=False)
        if str(json_file) == "-":
            print(text)
        else:
            _write(json_file, text + "\n")
        return
    sections = (("Bundled models", models, "bundled"), ("Bundled tasks", tasks, "bundled"))
    papers = (
        ("The paper's models (from the hub)", models, "paper"),
        ("The paper's tasks (from the hub)", tasks, "paper"),
    )
    for title, rows, kind in (*sections, *papers):
        print(title)
        for row in rows:
            if row["kind"] == kind:
                name = f"  {row['name']}  "
                about = textwrap.shorten(row["description"], max(80 - max(len(name), 29), 20), placeholder=" …")
                print(f"{name:29}{about}")
        print()


@app.command("demo")
def demo_command(
    output: Annotated[Path, typer.Option(help="Folder of the report.")] = Path("report"),
    quiet: Annotated[bool, typer.Option("--quiet", help="No table.")] = False,
) -> None:
    """Score the bundled model on the bundled tasks, beside the same model before pretraining."""
    from ntps.report.demo import run_demo

    check_output(output, None)
    demo = run_demo(output, progress=not quiet)
    if not quiet:
        print(demo)
