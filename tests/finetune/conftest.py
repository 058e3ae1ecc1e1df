"""Tiny models that are tuned once for all tests of the room; a test that changes one tunes its own."""

from types import SimpleNamespace

import pytest
import torch
from helpers.finetune import FAST
from helpers.problems import order_task

from ntps.finetune.train import fine_tune
from ntps.models.load import load_model


@pytest.fixture(scope="package", autouse=True)
def one_thread():
    """Tiny networks train faster without threads, and in the same order of additions everywhere."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="package")
def llama(one_thread, tiny_llama):
    return load_model(str(tiny_llama))


@pytest.fixture(scope="package")
def parts():
    """Training and validation texts."""
    return order_task().split(0.25)


@pytest.fixture(scope="package")
def lora(llama, parts, tmp_path_factory):
    """A short run with adapters: `tuned`, and the `folder` it was written to."""
    folder = tmp_path_factory.mktemp("lora")
    return SimpleNamespace(tuned=fine_tune(llama, *parts, settings=FAST, output=folder, progress=False), folder=folder)


@pytest.fixture(scope="package")
def full(llama, parts, tmp_path_factory):
    """A short run that trains all weights: `tuned`, and the `folder` it was written to."""
    from dataclasses import replace

    folder = tmp_path_factory.mktemp("full")
    settings = replace(FAST, method="full", learning_rate=1e-3)
    return SimpleNamespace(
        tuned=fine_tune(llama, *parts, settings=settings, output=folder, progress=False), folder=folder
    )
