"""Fixtures that several rooms share."""

import logging
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
from filelock import FileLock
from helpers.models import WORDS, save_tiny

from ntps._processes import relax_garbage_collection

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch is loaded, for a pytest that make has not started
relax_garbage_collection()  # a tenth of the time went into searching what stays


@pytest.fixture(autouse=True)
def no_handler_of_a_command():
    """Let messages reach caplog: a command that ran in this process before sends them to stderr alone."""
    logger = logging.getLogger("ntps")
    logger.handlers, logger.propagate = [], True
    logger.setLevel(logging.NOTSET)


@pytest.fixture(scope="module")
def one_thread():
    """Tiny networks train faster without threads, and in the same order of additions everywhere."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def common(tmp_path_factory) -> Path:
    """A folder that all workers of a run of the tests share."""
    own = tmp_path_factory.getbasetemp()
    folder = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "common"
    folder.mkdir(exist_ok=True)
    return folder


def saved_once(common: Path, name: str, kind: str, **options) -> Path:
    """A tiny model that is written by the worker that first needs it."""
    with FileLock(common / f"{name}.lock"):
        return common / name if (common / name).exists() else save_tiny(common / name, kind, **options)


@pytest.fixture(scope="session")
def tiny_llama(common) -> Path:
    """Directory of a 3-block, 24-wide Llama with a right-padding word tokenizer that begins texts with "<s>"."""
    return saved_once(common, "tiny-llama", "llama", begin=True)


@pytest.fixture(scope="session")
def tiny_llama_left(common) -> Path:
    """The same Llama, its tokenizer set to pad on the left."""
    return saved_once(common, "tiny-llama-left", "llama", begin=True, padding_side="left")


@pytest.fixture(scope="session")
def tiny_gpt2(common) -> Path:
    """Directory of a 2-block, 24-wide GPT-2 whose tokenizer has no padding token and adds nothing to a text."""
    return saved_once(common, "tiny-gpt2", "gpt2", pad=False)


@pytest.fixture(scope="session")
def tiny_bert(common) -> Path:
    """Directory of an encoder, to be refused."""
    return saved_once(common, "tiny-bert", "bert")


@pytest.fixture(scope="session")
def tiny_t5(common) -> Path:
    """Directory of an encoder-decoder, to be refused."""
    return saved_once(common, "tiny-t5", "t5")


@pytest.fixture(scope="session")
def forks():
    """Processes with this one's environment and one thread, without matplotlib and datasets until they import them."""
    from helpers.forks import Forks

    alone = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    forks = Forks(alone | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"})
    yield forks
    forks.close()


@pytest.fixture
def sketches(monkeypatch):
    """Draw the pictures of reports without layout and pixels: for tests that look at pages and tables."""
    from helpers.pictures import sketch

    for page in ("ranking", "scores", "study"):
        monkeypatch.setattr(f"ntps.report.{page}.draw_picture", sketch)


@pytest.fixture
def fake_miniworld(monkeypatch, tiny_llama):
    """Stand in for the bundled language: one task "topic", one model "miniworld-base"."""
    import sys

    import numpy as np

    import ntps
    from ntps.errors import NtpsError

    def make_task(name, *, n=2000, seed=0, split="train", **knobs):
        if name != "topic":
            raise NtpsError(f"no bundled task {name!r}; choose one of: topic.")
        rng = np.random.default_rng(seed)
        texts = [" ".join(rng.choice(WORDS, size=6)) for _ in range(n)]
        return {"texts": texts, "labels": np.arange(n) % 2, "classes": ("a", "b"), "description": f"{split} {knobs}"}

    def model_path(name):
        if name != "miniworld-base":
            raise NtpsError(f"no bundled model {name!r}; choose one of: miniworld-base.")
        return tiny_llama

    fake = SimpleNamespace(
        make_task=make_task,
        task_names=lambda: ("topic",),
        describe_task=lambda name: {"name": name, "n_classes": 2, "description": "what it is about"},
        model_names=lambda: ("miniworld-base",),
        model_path=model_path,
        describe_model=lambda name: {"name": name, "path": str(tiny_llama), "description": "a tiny model"},
    )
    monkeypatch.setitem(sys.modules, "ntps.miniworld", fake)
    monkeypatch.setattr(ntps, "miniworld", fake, raising=False)
    return fake


def pytest_collection_modifyitems(items):
    """Start with what is slow, so that no worker is left alone with it at the end."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)
