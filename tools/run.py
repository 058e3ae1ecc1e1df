"""Run a notebook from its script in a fresh kernel, measure it, and clean what it printed."""

import os
import re
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError
from nbformat import NotebookNode

from tools.claims import code_of
from tools.course import ROOT, relative
from tools.pairs import build, cells_of, code_digest, read_script

MAX_SECONDS = 240  # of the processor, which neighbours slow too; the aim is 180 on one quiet thread
CELL_SECONDS = 300
MAX_MEGABYTES = 1000
LONGEST_LINE = 85  # characters of a printed line: 80 is the aim, and numbers may grow
_LONGEST_TWIN = 80  # of the plain text beside a picture or a table, which no reader sees
PANEL_NOTE = "*Interactive panel: run this cell to use it.*"
PREDICTION_NOTE = "*Your prediction: run this cell to write it down.*"

# Prints the kernel's peak memory (MB) and processor time (s). Its own high-water mark, not `ru_maxrss`: Linux carries
# that over from the process that started the kernel.
MEASURE = """
import os as _os, sys as _sys, time as _time
if _os.path.exists("/proc/self/status"):
    _peak = [int(line.split()[1]) / 1000 for line in open("/proc/self/status") if line.startswith("VmHWM")][0]
else:
    import resource as _resource
    _peak = _resource.getrusage(_resource.RUSAGE_SELF).ru_maxrss / (1e6 if _sys.platform == "darwin" else 1e3)
print(_peak, _time.process_time())
"""


class RunError(Exception):
    """A notebook did not run, or printed what a reader should not see."""


@dataclass(frozen=True)
class Run:
    """An executed notebook.

    Attributes:
        notebook: With outputs.
        seconds: Processor time of the kernel, all threads together.
        megabytes: The kernel's peak resident memory.
    """

    notebook: NotebookNode
    seconds: float
    megabytes: float


def environment(folder: str) -> dict[str, str]:
    """Return the kernel's environment: offline, without the user's start-up files."""
    return {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "IPYTHONDIR": folder,
        "NTPS_PREDICTIONS": str(Path(folder) / "predictions.json"),  # outputs must not hang on anybody's guesses
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
        "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "PASSIVE"),
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")])),
        "TOKENIZERS_PARALLELISM": "false",
    }


def run(script: Path, claims: Iterable[str] = (), *, timeout: int = CELL_SECONDS) -> Run:
    """Run a script's cells in a fresh kernel whose working directory is the script's folder.

    Args:
        script: A .py in percent format.
        claims: What must hold after the last cell, as expressions.
        timeout: Seconds that a single cell may take.

    Raises:
        RunError: If a cell or a claim fails, or a cell takes too long; the message names it.
    """
    notebook = build(cells_of(read_script(script)))
    notebook.cells += [nbformat.v4.new_code_cell(code_of(claims)), nbformat.v4.new_code_cell(MEASURE)]
    client = NotebookClient(
        notebook,
        timeout=timeout,
        kernel_name="python3",
        record_timing=False,
        resources={"metadata": {"path": str(script.parent)}},
    )
    with tempfile.TemporaryDirectory() as folder:
        try:
            client.execute(env=environment(folder))
        except (CellExecutionError, CellTimeoutError) as error:
            raise RunError(f"{relative(script)}: {_plain(str(error))}") from None
    measured = notebook.cells.pop()
    notebook.cells.pop()
    notebook.metadata.pop("widgets", None)
    return Run(notebook, *reading("".join(output.text for output in measured.outputs)))  # a line may come in parts


def reading(printed: str) -> tuple[float, float]:
    """Return what MEASURE printed: processor seconds and peak megabytes."""
    megabytes, seconds = map(float, printed.split())
    return seconds, megabytes


def clean(notebook: NotebookNode) -> NotebookNode:
    """Return the notebook as it is committed: no widget state, no paths of this machine, no execution metadata."""
    cells = cells_of(notebook)
    tidy = build(cells, notebook)
    for cell in tidy.cells:
        if cell.cell_type == "code":
            cell.outputs = [_tidy(output) for output in cell.outputs]
    tidy.metadata["ntps"] = {"code_sha256": code_digest(cells)}
    return tidy


def _tidy(output: NotebookNode) -> NotebookNode:
    if "application/vnd.jupyter.widget-view+json" in output.get("data", {}):
        note = PREDICTION_NOTE if output.data.get("text/plain", "").startswith("Prediction(") else PANEL_NOTE
        return nbformat.v4.new_output("display_data", {"text/markdown": note, "text/plain": note})
    if "metadata" in output:
        alt = output.metadata.get("image/png", {}).get("alt")
        output.metadata = nbformat.from_dict({"image/png": {"alt": alt}} if alt else {})
    if "text" in output:
        output.text = _short(output.text)
    for kind, data in output.get("data", {}).items():
        if kind.startswith("text/") and isinstance(data, str):
            output.data[kind] = _short(data)
    plain = output.get("data", {}).get("text/plain", "")
    if len(output.get("data", {})) > 1 and len(plain) > _LONGEST_TWIN:
        output.data["text/plain"] = plain[: _LONGEST_TWIN - 4] + " ..."
    return output


def _short(text: str) -> str:
    return text.replace(f"{ROOT}{os.sep}", "").replace(str(ROOT), ".")


def _plain(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


def text_of(output: NotebookNode) -> str:
    """Return all text of an output, whatever its form."""
    data = output.get("data", {})
    parts = [output.get("text", ""), *(value for kind, value in data.items() if kind.startswith("text/"))]
    return "\n".join(part if isinstance(part, str) else "".join(part) for part in parts)


_PATH = re.compile(r"(?<![\w.:/<])/(?:home|root|tmp|Users|usr|opt|var|mnt|srv|private|content|workspace)/")
_ADDRESS = re.compile(r"\bat 0x[0-9a-f]{6,}")
_CLOCK = re.compile(r"\b20\d\d-\d\d-\d\d[T ]\d\d:\d\d")


def output_problems(notebook: NotebookNode) -> list[str]:
    """Return what is wrong with a notebook's outputs, one line each.

    Errors, warnings, paths, addresses, times of day, and printed lines that do not fit a small screen.
    """
    problems = []
    local = [str(ROOT), str(Path.home()), sys.prefix]
    for number, cell in enumerate(notebook.cells, 1):
        for output in cell.get("outputs", []):
            text = text_of(output)
            first = text.strip().partition("\n")[0][:160]
            if output.output_type == "error":
                problems.append(f"cell {number} fails: {output.ename}: {output.evalue}")
            elif output.output_type == "stream" and output.name == "stderr":
                problems.append(f"cell {number} writes to stderr (a warning, a progress bar?): {first}")
            elif re.search(r"\b\w*Warning: ", text):
                problems.append(f"cell {number} shows a warning: {first}")
            elif _PATH.search(text) or any(len(path) > 1 and path + os.sep in text for path in local):
                problems.append(f"cell {number} shows a path of the machine it ran on: {first}")
            elif _ADDRESS.search(text):
                problems.append(f"cell {number} shows an object's address; end the line with ';' or assign it: {first}")
            elif _CLOCK.search(text):
                problems.append(f"cell {number} shows a time of day, which changes with every run: {first}")
            elif output.output_type == "stream" and (wide := [x for x in text.splitlines() if len(x) > LONGEST_LINE]):
                problems.append(f"cell {number} prints a line of {len(wide[0])} characters; use `say(...)`: {wide[0]}")
            if "application/vnd.jupyter.widget-view+json" in output.get("data", {}):
                problems.append(f"cell {number} holds a widget view without its state")
    return problems


def limit_problems(ran: Run) -> list[str]:
    """Return which limits of time and memory a run broke, one line each."""
    problems = []
    if ran.seconds > MAX_SECONDS:
        problems.append(f"took {ran.seconds:.0f} s of the processor; the limit is {MAX_SECONDS} s")
    if ran.megabytes > MAX_MEGABYTES:
        problems.append(f"needed {ran.megabytes:.0f} MB at its peak; the limit is {MAX_MEGABYTES} MB")
    return problems
