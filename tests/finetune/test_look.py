"""A short look at training: it is the start of the full run, and shows where there is something to learn."""

import math
from dataclasses import replace

import pytest
from helpers.problems import order_task

from ntps.errors import NtpsError
from ntps.finetune.before_after import before_and_after
from ntps.finetune.look import look_at_training
from ntps.finetune.settings import TrainSettings

pytestmark = pytest.mark.slow

SETTINGS = TrainSettings(steps=20, rank=8, batch_size=16, evaluate_every=10, learning_rate=5e-3, margin=0)


@pytest.fixture(scope="module")
def looked(llama, tmp_path_factory):
    """A look at a task that can be learned, and its folder."""
    folder = tmp_path_factory.mktemp("look")
    return look_at_training(llama, order_task(160), steps=13, settings=SETTINGS, output=folder), folder


@pytest.mark.long
def test_it_is_the_start_of_the_full_run(llama, looked):
    look, folder = looked
    every = replace(SETTINGS, evaluate_every=13)
    curve = before_and_after(llama, order_task(160), settings=every, folds=3, analyses=(), progress=False).curve
    assert look.loss == curve[0]["validation_loss"]
    assert math.isclose(look.saved, curve[0]["validation_loss"] - curve[1]["validation_loss"], abs_tol=1e-12)
    assert (look.n_train, look.n_validation, look.steps) == (96, 24, 13)
    assert look.seconds > 0 and look.seconds_left > 0

    whole, continued = (
        before_and_after(
            llama, order_task(160), settings=SETTINGS, folds=3, analyses=(), progress=False, output=output, resume=True
        )
        for output in (folder.parent / "whole", folder)
    )
    assert continued.curve == whole.curve and continued.after.accuracy == whole.after.accuracy


def test_labels_that_mean_nothing_save_nothing(llama, looked):
    look, _ = looked
    noise = look_at_training(llama, order_task(160, noise=True), steps=13, settings=SETTINGS)
    assert look.saved > 2 * look.standard_error
    assert noise.saved < 2 * noise.standard_error


@pytest.mark.parametrize("steps", [0, 1.5])
def test_what_is_no_number_of_steps_is_refused(llama, steps):
    with pytest.raises(NtpsError, match=r"steps is .*1"):
        look_at_training(llama, order_task(), steps=steps, settings=SETTINGS)


def test_a_run_of_fewer_steps_is_looked_at_whole(llama):
    look = look_at_training(llama, order_task(), steps=50, settings=replace(SETTINGS, steps=3))
    assert (look.steps, look.seconds_left) == (3, 0)
