"""What panels are built from: representations of two tasks, words, a small study, three fine-tuning runs."""

from dataclasses import replace

import numpy as np
import pytest
from helpers.kill_study import SETTINGS, make_tasks
from helpers.problems import make_problem, order_task, representations_of

from ntps.course.vocabulary import KINDS, WordStates
from ntps.course.widgets import BoundsPanel, LinearWorldPanel, LoraPanel, SelectionPanel, SpectraPanel
from ntps.finetune import TrainSettings, before_and_after
from ntps.study import run_study

LAYERS, WIDTH, N_WORDS = 3, 12, 40
SHORT = {"steps": 6, "evaluate_every": 2, "batch_size": 8, "learning_rate": 1e-2, "margin": 0}


def make_representations(seed: int, classes: int):
    problem = make_problem(seed, n=120, d=WIDTH, c=classes, longest=7)
    rng = np.random.default_rng(seed)
    mixing = rng.standard_normal((LAYERS, WIDTH, WIDTH)) * np.geomspace(3, 0.1, WIDTH)
    return representations_of(problem, *([states @ mix for states in problem.texts] for mix in mixing))


@pytest.fixture(scope="session")
def representations():
    return {"three": make_representations(0, 3), "two": make_representations(1, 2)}


@pytest.fixture(scope="session")
def words():
    return WordStates(
        words=tuple(f"word{i}" for i in range(N_WORDS)),
        counts=np.arange(1, N_WORDS + 1),
        means=np.random.default_rng(3).standard_normal((LAYERS, N_WORDS, WIDTH)),
        kinds=tuple(KINDS[i % len(KINDS)] for i in range(N_WORDS)),
    )


@pytest.fixture(scope="session")
def study(tmp_path_factory, tiny_llama):
    settings = replace(SETTINGS, control=False)
    folder = tmp_path_factory.mktemp("study")
    return run_study([str(tiny_llama)], make_tasks(), output=folder, settings=settings, progress=False)


@pytest.fixture(scope="session")
def runs(tiny_llama):
    settings = [
        TrainSettings(rank=2, alpha=2, **SHORT),
        TrainSettings(rank=2, alpha=64, **SHORT),
        TrainSettings(method="full", **SHORT),
    ]
    quick = {"folds": 0, "layers": -1, "analyses": ["intruders"], "progress": False}
    return [before_and_after(str(tiny_llama), order_task(80), settings=each, **quick) for each in settings]


@pytest.fixture(params=["linear world", "spectra", "bounds", "selection", "lora"])
def panel(request):
    """Every panel of the course, freshly built."""
    match request.param:
        case "linear world":
            return LinearWorldPanel()
        case "spectra":
            words = request.getfixturevalue("words")
            groupings = {"kind": words.kinds, "half": [None if i % 2 else "even" for i in range(N_WORDS)]}
            return SpectraPanel(request.getfixturevalue("representations")["three"], words, groupings)
        case "bounds":
            return BoundsPanel(request.getfixturevalue("representations"))
        case "selection":
            return SelectionPanel(request.getfixturevalue("study"))
        case _:
            return LoraPanel(request.getfixturevalue("runs"))
