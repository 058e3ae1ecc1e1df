"""Studies and commands in processes of their own: killed at random moments until done, or several in one folder.

    python tests/helpers/kill_study.py kill FOLDER MODEL KILLS SEED        MODEL: a directory
    python tests/helpers/kill_study.py share FOLDER MODEL PROCESSES
    python tests/helpers/kill_study.py commands FOLDER MODEL KILLS SEED    KILLS of each command

What happened is printed as JSON. The process that forks has computed nothing, so that a child starts in milliseconds
and without another's threads.
"""

import json
import logging
import os
import shutil
import signal
import sys
import time
import traceback
from pathlib import Path

import numpy as np
import peft  # noqa: F401
import scipy.stats  # noqa: F401  imported here once, so that children spend their time computing
import sklearn.covariance
import sklearn.linear_model
import sklearn.neighbors  # noqa: F401
import torch
from transformers import LlamaForCausalLM, LlamaModel, PreTrainedTokenizerFast  # noqa: F401

import ntps.cli.app
import ntps.finetune.before_after  # noqa: F401
import ntps.report.scores as scores
import ntps.report.study as study_pages
import ntps.scoring.probes as probes
import ntps.study.cells as cells
from helpers.pictures import no_picture
from ntps.study.measure import StudySettings
from ntps.study.study import run_study
from ntps.tasks import load_task

SETTINGS = StudySettings(limit=60, folds=3, permutations=20)


def make_tasks(count=5, n=60):
    """Tasks of words: what is asked differs, the texts too."""
    from helpers.models import WORDS

    tasks = []
    for number in range(count):
        rng = np.random.default_rng(number)
        picked = rng.choice(WORDS, size=(n, 6))
        strength = [0.9, 0.7, 0.5, 0.3, 0.0][number % 5]
        labels = rng.integers(0, 2, n)
        marked = rng.random(n) < strength
        picked[marked, 0] = np.where(labels[marked] == 1, "good", "bad")
        tasks.append(load_task(texts=[" ".join(row) for row in picked], labels=labels.tolist(), name=f"task{number}"))
    return tasks


def other_labels(task, name):
    """The same texts under another name, with labels of their own."""
    labels = [int("good" in text.split() or "bad" in text.split()) for text in task.texts]
    return load_task(texts=list(task.texts), labels=labels, name=name)


def fixed_c(x, y, cs, seed):
    """Stand in for the choice of C, which takes two thirds of a cell's time and is tested elsewhere."""
    return 0.1


def study(folder, model):
    return run_study([model], make_tasks(), output=folder, settings=SETTINGS, progress=False)


class Lines(logging.Handler):
    """Appends every message to a file, as a line of JSON."""

    def __init__(self, handle):
        super().__init__()
        self.descriptor = handle

    def emit(self, record):
        os.write(self.descriptor, (json.dumps(["log", record.getMessage()]) + "\n").encode())


def child(folder, model, log):
    """Run the study, writing down each cell that is computed and each warning; leave without cleaning up."""
    torch.set_num_threads(1)
    probes.choose_c = fixed_c
    real = cells.measure

    def measure(representations, *rest, **options):
        line = json.dumps(["cell", representations.task.name, options["control"]]) + "\n"
        os.write(handle, line.encode())
        return real(representations, *rest, **options)

    handle = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    cells.measure = measure
    logger = logging.getLogger("ntps.study")
    logger.addHandler(Lines(handle))
    study(folder, model)
    os._exit(0)


def start(folder, model, log):
    """Return the process id of a child that runs the study."""
    process = os.fork()
    if process == 0:
        try:
            child(folder, model, log)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)
    return process


def attempt(folder, model, log, delay):
    """Run a child and kill it after a delay (None: wait for it); return whether it was killed."""
    process = start(folder, model, log)
    if delay is not None:
        time.sleep(delay)
        os.kill(process, signal.SIGKILL)
    _, status = os.waitpid(process, 0)
    assert os.WIFSIGNALED(status) or os.waitstatus_to_exitcode(status) == 0
    return os.WIFSIGNALED(status)


def contents(folder):
    """Every cell's content without its duration and checksum."""
    cells = {}
    for path in sorted(Path(folder, "cells").glob("*.json")):
        content = json.loads(path.read_text())
        del content["checksum"], content["result"]["seconds"]
        cells[path.name] = content
    return cells


def share(folder, model, count):
    """Run children at once in one folder; return which cells they computed, and whether all saw the same study."""
    logs = [folder / f"log-{index}" for index in range(count)]
    processes = [start(folder / "shared", model, log) for log in logs]
    assert all(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 0 for process in processes)
    lines = [[json.loads(line) for line in log.read_bytes().splitlines()] for log in logs]
    assert not attempt(folder / "alone", model, folder / "log", None)
    return {
        "cells": sorted(line[1:] for child_lines in lines for line in child_lines if line[0] == "cell"),
        "busy": sum(any(line[0] == "cell" for line in child_lines) for child_lines in lines),
        "cells_equal": contents(folder / "shared") == contents(folder / "alone"),
        "results_equal": study(folder / "shared", model).to_json() == study(folder / "alone", model).to_json(),
    }


def kill(folder, model, kills, seed):
    """Kill a study until it has been killed often enough, then let it finish; return what happened."""
    rng = np.random.default_rng(seed)
    reference, tried, log = folder / "reference", folder / "killed", folder / "log"
    started = time.monotonic()
    assert not attempt(reference, model, folder / "reference-log", None)
    whole = time.monotonic() - started
    killed = wasted = 0
    warnings = []
    while killed < kills:
        before = set(contents(tried))
        mark = log.stat().st_size if log.exists() else 0
        if len(before) == len(contents(reference)):  # it came through: begin again with some of the cells
            for name in rng.permutation(sorted(before))[: len(before) // 2 + 1]:
                (tried / "cells" / name).unlink()
            before = set(contents(tried))
        killed += attempt(tried, model, log, float(rng.uniform(0, 0.6 * whole)))
        lines = [json.loads(line) for line in log.read_bytes()[mark:].splitlines()] if log.exists() else []
        computed = [line for line in lines if line[0] == "cell"]
        finished = set(contents(tried)) - before
        wasted = max(wasted, len(computed) - len(finished))
        warnings += [line for line in lines if line[0] == "log"]
    assert not attempt(tried, model, log, None)
    equal = contents(reference) == contents(tried)
    half_written = [path.name for path in (tried / "cells").iterdir() if path.suffix == ".part"]
    same = study(reference, model).to_json() == study(tried, model).to_json()
    return {
        "killed": killed,
        "most_wasted": wasted,
        "warnings": warnings,
        "cells_equal": equal,
        "results_equal": same,
        "half_written": half_written,
        "seconds": round(whole, 2),
    }


def commands(folder, model, kills, seed):
    """Kill each command `kills` times, in turn with SIGTERM and SIGKILL, then let it finish; return what happened."""
    rng = np.random.default_rng(seed)
    tasks = []
    for task in make_tasks(3):  # too few for correlations, which take long
        rows = [f"{text},{task.classes[label]}" for text, label in zip(task.texts, task.labels, strict=True)]
        tasks.append(folder / f"{task.name}.csv")
        tasks[-1].write_text("\n".join(["text,label", *rows]) + "\n")
    several = [word for task in tasks for word in ("--task", str(task))]
    quick = ["--folds", "3", "--quiet", "--batch-size", "8"]
    study = ["study", "--model", str(model), "--permutations", "20", "--no-control", *quick]
    lines = {
        "score": ["score", str(model), str(tasks[0]), "--no-probes", *quick],
        "study": [*study, *several],
        "study-lora": [*study, *several[:4], "--lora", "--lora-steps", "3", "--lora-rank", "2"],
        "lora": [
            "lora",
            str(model),
            str(tasks[0]),
            "--steps",
            "9",
            "--evaluate-every",
            "3",
            "--rank",
            "2",
            "--resume",
            *quick,
        ],
    }
    return {name: _kill_command(line, folder / name, kills, rng) for name, line in lines.items()}


def _kill_command(line, folder, kills, rng):
    def run(place, delay=None, number=signal.SIGKILL):
        process = os.fork()
        if process == 0:
            _command([*line, "--output", str(place / "out"), "--json", str(place / "result.json")])
        if delay is not None:
            time.sleep(delay)
            os.kill(process, number)
        return os.waitpid(process, 0)[1]

    def left(place):
        """What no run should leave: half-written files, locks of runs, temporary folders."""
        return sorted(path.name for path in place.rglob(".*"))

    reference, tried = folder / "reference", folder / "tried"
    started = time.monotonic()
    assert run(reference) == 0
    whole = time.monotonic() - started
    report = {"killed": 0, "left_by_sigterm": [], "statuses": [], "seconds": round(whole, 2)}
    while report["killed"] < kills:
        number = (signal.SIGTERM, signal.SIGKILL)[report["killed"] % 2]
        before = left(tried)
        status = run(tried, float(rng.uniform(0.02, 0.6 * whole)), number)
        report["killed"] += status != 0
        if os.WIFEXITED(status) and status:
            report["statuses"].append(os.WEXITSTATUS(status))
            report["left_by_sigterm"] += set(left(tried)) - set(before)
        elif not status:  # it came through: begin again
            shutil.rmtree(tried)
    assert run(tried) == 0
    results = [json.loads((place / "result.json").read_text()) for place in (reference, tried)]
    report["equal"] = results[0] == results[1]
    report["left"] = left(folder)
    names = [sorted(str(path.relative_to(place)) for path in place.rglob("*")) for place in (reference, tried)]
    report["files_equal"] = names[0] == names[1]
    return report


def _command(arguments):
    """Run the command line in a child, as a process of its own would, and leave."""
    code = 1
    try:
        torch.set_num_threads(1)
        probes.choose_c = fixed_c
        scores.draw_picture = study_pages.draw_picture = no_picture
        silent = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silent, 2)
        sys.argv = ["ntps", *arguments]
        from ntps.cli.app import main

        main()
    except SystemExit as end:
        code = end.code or 0
    finally:
        os._exit(code)


if __name__ == "__main__":
    command, target, model = sys.argv[1], Path(sys.argv[2]), sys.argv[3]
    print(
        json.dumps(
            {"kill": kill, "share": share, "commands": commands}[command](target, model, *map(int, sys.argv[4:]))
        )
    )
