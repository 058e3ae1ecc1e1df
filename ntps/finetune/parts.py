"""The texts of a run: which train, which choose the step, and which are tested."""

from dataclasses import replace
from typing import TYPE_CHECKING

from ntps.errors import NtpsError
from ntps.finetune.settings import TrainSettings
from ntps.finetune.train import check_classes
from ntps.models.plan import DEFAULT_MAX_LENGTH

if TYPE_CHECKING:
    from ntps.models.language_model import LanguageModel
    from ntps.tasks import Task

TEST_SHARE = 0.25  # of the texts, where there are no test texts of their own


def parts_of(
    model: "LanguageModel", task: "Task", test: "Task | None", settings: TrainSettings, *, seed: int
) -> "tuple[Task, Task, Task, int]":
    """Return training, validation and test texts of the first label column, and the number of texts without tokens."""
    task, n_skipped = _with_tokens(model, task.with_column(task.columns[0].name), settings.max_length)
    if test is not None:
        test, n_skipped_test = _with_tokens(model, test.with_column(test.columns[0].name), settings.max_length)
        n_skipped += n_skipped_test
    return *split_task(task, test, seed=seed, validation=settings.validation), n_skipped


def split_task(
    task: "Task", test: "Task | None" = None, *, seed: int = 0, validation: float = 0.2
) -> "tuple[Task, Task, Task]":
    """Return (train, validation, test), stratified.

    Args:
        task: Texts to split.
        test: Test texts of their own; by default a quarter of the task's.
        seed: Seed of the split.
        validation: Share of the texts that are not tested, in (0, 1), that become validation texts.

    Raises:
        NtpsError: If a part lacks a class (each class needs three texts), or the test texts have other classes.
    """
    check_classes(task, "labelled")
    if test is None:
        task, test = task.split(TEST_SHARE, seed=seed)
    elif test.classes != task.classes:
        differing = sorted(set(test.classes) ^ set(task.classes))
        raise NtpsError(f"test texts and training texts have different classes, such as {differing[0]!r}.")
    train, aside = task.split(validation, seed=seed)
    for name, texts in {"training": train, "validation": aside, "test": test}.items():
        check_classes(replace(texts, name=task.name), name)
    return train, aside, test


def _with_tokens(model: "LanguageModel", task: "Task", max_length: int | None) -> "tuple[Task, int]":
    """Return the task without the texts that have no token, and their number."""
    ids = model.tokenize(task.texts, DEFAULT_MAX_LENGTH if max_length is None else max_length).ids
    with_tokens = [index for index, row in enumerate(ids) if row]
    n_skipped = len(task) - len(with_tokens)
    return (task.subset(with_tokens) if n_skipped else task), n_skipped
