"""Processes that torchrun starts fine-tune together: with what one of them does alone, and no one waits in vain."""

import json
import shutil
from pathlib import Path

import pytest
from filelock import FileLock
from helpers.forks import torchrun

pytestmark = pytest.mark.long

SCRIPT = """
import json, os, sys
from dataclasses import replace
from pathlib import Path
sys.path.insert(0, {tests!r})
import torch
torch.set_num_threads(1)
from helpers.problems import order_task
import ntps.finetune.head as head
import ntps.scoring.probes as probes
from ntps.errors import NtpsError
from ntps.finetune import before_and_after
from ntps.finetune.before_after import load_for_training
from ntps.finetune.loop import Trainer
from ntps.finetune.settings import TrainSettings
head.choose_c = probes.choose_c = lambda *_: 0.1  # two thirds of the time
rank, out = os.environ.get("RANK", "alone"), Path({out!r})
model, task = load_for_training({model!r}, device="cpu"), order_task(101)
settings = TrainSettings(steps=12, rank=4, batch_size=7, evaluate_every=4, learning_rate=1e-2, dropout=0, margin=0)
options = dict(settings=settings, folds=3, analyses=(), progress=False)

def trained(name, **more):
    more = options | more
    if more.get("output") == "own":
        more["output"] = out / (name if rank != "alone" else name + "-alone")
    try:
        found = before_and_after(model, task, **more).to_dict()
    except NtpsError as error:
        found = str(error)
    (out / f"{{name}}-{{rank}}.json").write_text(json.dumps(found))

trained("lora", output="own")
trained("full", settings=replace(settings, method="full", learning_rate=1e-3))
trained("accumulated", settings=replace(settings, accumulation=2, clip_norm=0.1, start_layer="auto"))
gradients, seeds = Trainer._add_gradients, set()
def noted(self, batch, n_texts):
    seeds.add(torch.initial_seed())
    return gradients(self, batch, n_texts)
Trainer._add_gradients = noted
trained("dropout", settings=replace(settings, dropout=0.3))
Trainer._add_gradients = gradients
(out / f"seeds-{{rank}}.json").write_text(json.dumps(sorted(seeds)))
whole = Trainer.run
Trainer.run = lambda self: whole(self, stop=6)
trained("resumed", output="own")
Trainer.run = whole
trained("resumed", output="own", resume=True)
trained("single", settings=replace(settings, batch_size=1))

# What fails in one process fails in all.
if rank == "1":
    def no_memory(self, batch, n_texts):
        raise NtpsError("no memory here")
    Trainer._add_gradients = no_memory
if rank != "alone":
    trained("failing")
    Trainer._add_gradients = gradients
    if rank == "0":
        def full_disk(self, path):
            raise NtpsError("the disk is full")
        Trainer._write_state = full_disk
    trained("full disk", output="own")
"""


@pytest.fixture(scope="module")
def found(tiny_llama, common, forks):
    """What each process found, by the name of the run: that of one process alone, and of both of two."""
    out = common / "processes"
    script = SCRIPT.format(tests=str(Path(__file__).parents[1]), model=str(tiny_llama), out=str(out))
    with FileLock(common / "processes.lock"):  # for all workers that run these tests
        if not (out / "done").exists():
            shutil.rmtree(out, ignore_errors=True)
            out.mkdir()
            for processes in ([{}], torchrun(2)):
                for finished in forks.run(script, *processes):
                    assert finished.returncode == 0, finished.stderr[-3000:]
            (out / "done").touch()

    def of(name):
        return [json.loads((out / f"{name}-{rank}.json").read_text()) for rank in ("alone", 0, 1)]

    return of, out


@pytest.mark.parametrize("name", ["lora", "full", "accumulated", "resumed"])
def test_two_train_as_one(found, name):
    alone, *both = found[0](name)
    for run in both:
        assert [row["step"] for row in run["curve"]] == [0, 4, 8, 12]
        for theirs, ours in zip(run["curve"], alone["curve"], strict=True):
            assert theirs == pytest.approx(ours, rel=1e-3)
        assert run["best_step"] == alone["best_step"] > 0
        assert run["after"]["accuracy"] == alone["after"]["accuracy"]
        for theirs, ours in zip(run["after"]["layers"], alone["after"]["layers"], strict=True):
            assert theirs["ceiling_heldout"] == pytest.approx(ours["ceiling_heldout"], abs=1e-3)


def test_they_hold_the_same_weights(found):
    for name in ("lora", "full", "accumulated", "dropout", "resumed"):
        _, first, second = found[0](name)
        assert first["curve"] == second["curve"] and first["gain"] == second["gain"]


def test_dropout_falls_on_other_inputs_in_each(found):
    of, _ = found
    with_dropout, without = of("dropout")[1]["curve"], of("lora")[1]["curve"]
    assert with_dropout[0] == without[0]
    assert with_dropout[-1] != without[-1]
    alone, first, second = of("seeds")  # one for each step
    assert first == alone and len(second) == 12 and not set(first) & set(second)


def test_the_main_one_writes_what_one_alone_does(found):
    from ntps._files import load_tensors

    _, out = found
    for name in ("lora", "resumed"):
        files = [sorted(path.name for path in (out / folder).iterdir()) for folder in (name, f"{name}-alone")]
        assert files[0] == files[1]
    ours, theirs = (load_tensors(out / name / "head.safetensors", "ntps-head")[0] for name in ("lora", "lora-alone"))
    assert {name: value.numpy() for name, value in ours.items()}.keys() == {"weight", "bias"}
    assert all(abs(ours[name] - theirs[name]).max() < 1e-3 * abs(theirs[name]).max() for name in ours)


def test_a_batch_has_a_text_for_each(found):
    alone, *both = found[0]("single")
    assert alone["curve"]
    assert all("2 processes share batches of 1 texts" in said for said in both)


def test_what_fails_in_one_fails_in_both(found):
    _, out = found
    for name, reason in (("failing", "no memory here"), ("full disk", "the disk is full")):
        assert [json.loads((out / f"{name}-{rank}.json").read_text()) for rank in (0, 1)] == [reason] * 2
