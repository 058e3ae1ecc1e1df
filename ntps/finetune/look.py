"""A short look at training: its first steps, and by how much they lower the validation loss."""

import math
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ntps._files import Record
from ntps.errors import whole
from ntps.finetune.loop import Trainer
from ntps.finetune.parts import parts_of
from ntps.finetune.settings import LOOK_STEPS, TrainSettings
from ntps.finetune.train import training
from ntps.models.states import without_head

if TYPE_CHECKING:
    from ntps.models.language_model import LanguageModel
    from ntps.tasks import Task


@dataclass(frozen=True, kw_only=True)
class Look(Record):
    """What the first steps of a run showed.

    Attributes:
        steps: Number of steps.
        all_steps: Number of steps of the whole run.
        n_train: Number of training texts.
        n_validation: Number of validation texts.
        loss: Mean loss of the validation texts under the head that training starts from, in nats.
        saved: By how much lower it is after the steps, in nats; negative where they made it worse.
        standard_error: Standard error of `saved`, paired over validation texts.
        seconds: What the look took: probe, steps and two evaluations.
        seconds_left: What the remaining steps would take at the same pace, without evaluations.
    """

    steps: int
    all_steps: int
    n_train: int
    n_validation: int
    loss: float
    saved: float
    standard_error: float
    seconds: float
    seconds_left: float

    @property
    def kept(self) -> float:
        """What is saved, or 0 where the steps made it worse: then the head that training starts from is kept."""
        return max(self.saved, 0.0)


def saved_losses(trainer: Trainer) -> np.ndarray:
    """Return by how much each validation text's loss (n,), in nats, lies below that at the start."""
    return np.array(trainer.progress.initial_losses) - trainer.validate()[0]


def look_at_training(
    model: "LanguageModel",
    task: "Task",
    *,
    test: "Task | None" = None,
    steps: int = LOOK_STEPS,
    settings: TrainSettings | None = None,
    seed: int = 0,
    output: str | Path | None = None,
    resume: bool = False,
) -> Look:
    """Take the first steps of the run that `before_and_after` would take with the same arguments.

    The split, the order of texts and the learning rates are those of the full run, so it can be continued: with
    `output`, the state is written there, and `resume` goes on from it to the result of an uninterrupted run.

    Args:
        model: From `ntps.load_model`.
        task: All labelled texts, as for `before_and_after`; test texts are set aside and not looked at.
        test: As for `before_and_after`.
        steps: Number of steps; all of a run that has fewer.
        settings: Options of the full training.
        seed: Seed of split and training.
        output: Folder for the state.
        resume: Continue from the state in `output`, such as that of a shorter look.

    Raises:
        NtpsError: If an option is out of range, or training fails; see `before_and_after`.
    """
    whole(steps, 1, None, "steps")
    settings = settings or TrainSettings()
    started = time.perf_counter()
    train, validation, _, _ = parts_of(model, task, test, settings, seed=seed)
    model = replace(model, model=without_head(model.model))
    with training(model, train, validation, settings, seed=seed, output=output, resume=resume) as trainer:
        steps = min(steps, trainer.settings.steps)
        taken = steps - trainer.progress.step
        mark = time.perf_counter()
        for _ in trainer.run(stop=steps):
            pass
        pace = (time.perf_counter() - mark) / max(taken, 1)
        saved = saved_losses(trainer)
        return Look(
            steps=steps,
            all_steps=trainer.settings.steps,
            n_train=len(train),
            n_validation=len(validation),
            loss=trainer.progress.curve[0].validation_loss,
            saved=float(saved.mean()),
            standard_error=float(saved.std(ddof=1) / math.sqrt(len(saved))) if len(saved) > 1 else math.nan,
            seconds=time.perf_counter() - started,
            seconds_left=pace * (trainer.settings.steps - steps),
        )
