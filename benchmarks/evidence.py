"""What nulls, training, studies and a busy neighbour cost: parts of `python -m benchmarks`."""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from threadpoolctl import threadpool_limits

from benchmarks.common import described, forward_only, race, real_or_stand_in
from benchmarks.default_quantity import MODELS, TASKS
from ntps import StudySettings, TrainSettings, collect, fine_tune, load_model, load_task, permutation_null, run_study
from ntps.finetune.loop import Trainer, epoch_batches
from ntps.finetune.parts import split_task
from ntps.models import LanguageModel
from ntps.study import study_executor
from ntps.tasks import Task

STUDY_TEXTS = 500


def bench_permutations(model_name: str | None, task_name: str | None) -> dict[str, Any]:
    """200 shuffled labels at every layer over the forward pass of the same texts, nothing solved before."""
    model, _, task = real_or_stand_in(model_name, task_name, 256)
    representations = collect(model, task, progress=False)
    mine, other = race(lambda: permutation_null(representations, permutations=200), forward_only(model, task), 2)
    return {
        "ratios": {"permutations_200_over_forward": mine / other},
        "permutations": {"model": described(model_name), "texts": len(task), "seconds": mine, "forward_seconds": other},
    }


def bench_training(real: str | None, texts: str | None) -> dict[str, Any]:
    """100 steps on the base model, and tokens a second against training all weights and against batches of one text.

    On a real model, tokens a second against training all weights, over four steps of each.
    """
    model = load_model("miniworld-base", dtype="float32")
    train, validation, _ = split_task(load_task("miniworld/intent", n=1000))
    start = time.perf_counter()
    fine_tune(model, train, validation, progress=False)
    whole = time.perf_counter() - start

    def speed(model: LanguageModel, train: Task, validation: Task, steps: int, **changes: Any) -> float:
        trainer = Trainer(model, train, validation, TrainSettings(steps=steps + 1, evaluate_every=steps + 1, **changes))
        run = trainer.run()
        next(run)  # the first step comes after an evaluation
        begun = time.perf_counter()
        for _ in range(steps - 1):
            next(run)
        seconds = time.perf_counter() - begun
        epoch = epoch_batches(trainer.lengths, trainer.settings.batch_size, 0, 0)
        return sum(int(trainer.lengths[batch].sum()) for batch in epoch[1:steps]) / seconds

    kinds: dict[str, dict[str, Any]] = {"lora": {}, "full": {"method": "full"}, "lora, one text": {"batch_size": 1}}
    rates = dict.fromkeys(kinds, 0.0)
    for _ in range(3):  # in turns, the best of each
        for name, changes in kinds.items():
            rates[name] = max(rates[name], speed(model, train, validation, 30, **changes))
    ratios = {
        "training_over_one_text_a_batch": rates["lora"] / rates["lora, one text"],
        "training_over_all_weights": rates["lora"] / rates["full"],
    }
    measured: dict[str, Any] = {"training": {"seconds_100_steps": whole, "tokens_per_second": rates}}
    if real and texts:
        model = load_model(real, dtype="float32")
        train, validation, _ = split_task(load_task(texts, limit=150))
        own = {name: speed(model, train, validation, 5, **kinds[name], max_length=32) for name in ("lora", "full")}
        ratios["training_over_all_weights_real"] = own["lora"] / own["full"]
        measured["training_real"] = {"model": Path(real).name, "tokens_per_second": own}
    return {"ratios": ratios, **measured}


def bench_study() -> dict[str, Any]:
    """A study of four bundled models by ten tasks, with controls, folds, nulls and probes."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        study = run_study(MODELS, TASKS, output=folder, settings=StudySettings(limit=STUDY_TEXTS), progress=False)
        assert all(cell.done for cell in study.cells)
        seconds = time.perf_counter() - start
    return {
        "ratios": {},
        "study": {"models": len(MODELS), "tasks": len(TASKS), "texts": STUDY_TEXTS, "seconds": seconds},
    }


def bench_workers() -> dict[str, Any]:
    """The same study in one process over two workers, one thread each, with the start of the workers."""
    seconds = {}
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with threadpool_limits(1):  # of this process, as the workers have
        for workers in (1, 2):
            with tempfile.TemporaryDirectory() as folder:
                start = time.perf_counter()
                with study_executor(MODELS, workers=workers) as executor:
                    options: dict[str, Any] = {"settings": StudySettings(limit=STUDY_TEXTS), "progress": False}
                    study = run_study(MODELS, TASKS, output=folder, executor=executor, **options)
                assert all(cell.done for cell in study.cells)
                seconds[str(workers)] = time.perf_counter() - start
    torch.set_num_threads(before)
    return {"ratios": {"study_two_workers": seconds["1"] / seconds["2"]}, "workers": {"seconds": seconds}}


def bench_neighbour() -> dict[str, Any]:
    """The same command beside a process that keeps a core busy, over the command alone."""
    command = [sys.executable, "-m", "ntps", "score", "miniworld-large", "miniworld/topic", "--limit", "1500"]
    environment = dict(os.environ)
    environment.pop("OMP_WAIT_POLICY", None)  # which the command sets itself

    def alone() -> None:
        subprocess.run(command, check=True, env=environment, capture_output=True)

    def beside() -> None:
        with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as neighbour:
            try:
                alone()
            finally:
                neighbour.kill()

    busy, quiet = race(beside, alone, 2)
    return {"ratios": {"beside_a_neighbour": busy / quiet}, "neighbour": {"seconds": busy, "alone_seconds": quiet}}
