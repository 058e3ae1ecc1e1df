"""Before and after fine-tuning: accuracy, scores of every layer, next-token loss, and what changed in the weights.

The texts are split once, stratified: 60 % train, 15 % choose the step by their loss, 25 % judge. "Before" is the frozen
linear probe fitted on the training texts, which is also the head that fine-tuning starts from; "after" is the tuned
network with its head. Both are judged on the same test texts, as are scores and next-token loss. No test text or label
is seen by training or by the choice of the step.
"""

import math
import os
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from ntps._files import jsonable
from ntps._version import __version__
from ntps.core.moments import Moments
from ntps.core.solve import score
from ntps.errors import NtpsError, in_range
from ntps.finetune.changes import find_intruders, layer_change
from ntps.finetune.head import Readout, fit_readout
from ntps.finetune.results import LoraRepeats, LoraResult, Side
from ntps.finetune.settings import TrainSettings
from ntps.finetune.train import FineTuned, check_classes, fine_tune
from ntps.models import loading
from ntps.models.features import Features
from ntps.models.forward import encode, pooled_features
from ntps.models.next_token import next_token_loss
from ntps.models.passes import collect
from ntps.models.plan import DEFAULT_MAX_LENGTH, layer_at, make_request, parse_layers
from ntps.scoring.probes import class_scores

if TYPE_CHECKING:
    from ntps.models.load import LanguageModel
    from ntps.tasks.load import Task

TEST_SHARE, VALIDATION_SHARE = 0.25, 0.15  # of all texts; the rest trains


def before_and_after(
    model: "str | os.PathLike[str] | LanguageModel",
    task: "Task",
    *,
    settings: TrainSettings | None = None,
    seed: int = 0,
    folds: int = 5,
    layers: str | int | Sequence[int] = "all",
    output: str | Path | None = None,
    resume: bool = False,
    changes: bool = True,
    intruders: bool = True,
    batch_size: int = 32,
    progress: bool | None = None,
    **loading_options: Any,
) -> LoraResult:
    """Fine-tune a model on a task and compare it with what it was.

    Args:
        model: A name or path as for `ntps.load_model`, or a model loaded by it. Given by name, it is loaded with its
            language-model head if it has one, for the next-token loss; of a loaded one that takes `head=True`.
        task: From `ntps.load_task`. Texts without tokens are left out and counted.
        settings: See `TrainSettings`; LoRA with its defaults when `None`.
        seed: Seed of the split, of training, and of the folds.
        folds: Folds of the test texts, for held-out shares; 0 for none.
        layers: Layers to score, as in `ntps.collect_moments`.
        output: Folder for training state, adapter, head and `training.json`.
        resume: Go on from the state in `output`.
        changes: Compare subspaces layer by layer (with folds it costs twice as much as the scores).
        intruders: Look for intruder dimensions (two singular value decompositions per trained matrix).
        batch_size: Most texts in a batch when scoring.
        progress: Show bars on stderr; by default when it is a terminal.
        **loading_options: For `ntps.load_model`: `dtype`, `device`, `revision`, `tokenizer`, `trust_remote_code`.

    The next-token loss after fine-tuning is that of the tuned network under the original head, which is not trained.
    Memory: the network twice (three times while Adam trains all weights, and its moments).

    Raises:
        NtpsError: If an option cannot be met, a class is missing from a part, or training fails; see `fine_tune`.
    """
    settings = settings or TrainSettings()
    loaded = load_for_training(model, **loading_options)
    settings = settings.for_width(loaded.width)
    bare = replace(loaded, model=loading.without_head(loaded.model))
    task, n_skipped = _with_tokens(loaded, task, settings.max_length)
    train, validation, test = split_task(task, seed=seed)
    options: dict[str, Any] = {"folds": folds, "seed": seed, "max_length": settings.max_length}
    make_request(bare.n_layers, bare.max_positions, test, layers=layers, **options)  # refused now, not after training
    wanted = parse_layers(layers, bare.n_layers)
    options |= {"layers": sorted({*wanted, bare.n_layers - 1}), "batch_size": batch_size, "progress": progress}

    tuned = fine_tune(
        bare, train, validation, settings=settings, seed=seed, output=output, resume=resume, progress=progress
    )
    n_trained, best_step = tuned.n_trained, tuned.best_step
    probe, both = _frozen_probes(bare, tuned, train, validation)
    merged = tuned.merge()
    passes: list[tuple[Moments, Features]] = [cast(Any, collect(which, test, **options)) for which in (bare, merged)]
    truth = passes[0][1].labels
    guesses = [head.predict(kept.layer(bare.n_layers - 1)) for head, (_, kept) in
               zip((probe, tuned.readout), passes, strict=True)]  # fmt: skip
    ids = encode(bare, test.texts, settings.max_length)
    has_head = loading.without_head(loaded.model) is not loaded.model
    losses = [next_token_loss(loaded, ids, network=which.model, batch_size=batch_size) if has_head else None
              for which in (bare, merged)]  # fmt: skip
    more = class_scores(truth, both.predict(passes[0][1].layer(bare.n_layers - 1)))[0]
    sides = [
        Side(*class_scores(truth, guess), loss, score(moments, layers=wanted), extra)
        for guess, loss, (moments, _), extra in zip(guesses, losses, passes, (more, None), strict=True)
    ]
    difference = (guesses[1] == truth).astype(float) - (guesses[0] == truth)
    return LoraResult(
        model=loaded.name,
        task=task.name,
        n_train=len(train),
        n_validation=len(validation),
        n_test=len(test),
        before=sides[0],
        after=sides[1],
        gain_standard_error=float(difference.std(ddof=1) / math.sqrt(len(truth))) if len(truth) > 1 else math.nan,
        settings=settings.to_dict(),
        seed=seed,
        curve=tuple(tuned.curve),
        best_step=best_step,
        changes=tuple(layer_change(passes[0][0], passes[1][0], n).to_dict() for n in wanted) if changes else (),
        intruders=tuple(row.to_dict() for row in find_intruders(bare.model, merged.model)) if intruders else (),
        provenance={
            "model_fingerprint": loaded.fingerprint,
            "model_source": loaded.source,
            "revision": loaded.revision,
            "dtype": loaded.dtype,
            "device": loaded.device.type,
            "task_fingerprint": task.fingerprint,
            "task_source": task.source,
            "classes": list(task.classes),
            "n_skipped": n_skipped,
            "n_trained": n_trained,
            "split": {"validation": VALIDATION_SHARE, "test": TEST_SHARE, "stratified": True},
            "pooling": "mean over tokens, after the final norm",
            "folds": folds,
            "versions": _versions(),
        },
    )


def repeat(
    model: "str | os.PathLike[str] | LanguageModel",
    task: "Task",
    *,
    seeds: int | Sequence[int] = 3,
    output: str | Path | None = None,
    **options: Any,
) -> LoraRepeats:
    """Run `before_and_after` under several seeds; the model is loaded once.

    Args:
        model: As in `before_and_after`.
        task: As in `before_and_after`.
        seeds: The seeds, or how many, from 0.
        output: Each run writes into a folder `seed-N` in it.
        **options: As in `before_and_after`.

    Raises:
        NtpsError: As `before_and_after`, or if there is no seed or one comes twice.
    """
    if isinstance(seeds, int):
        in_range(seeds, 1, None, "seeds")
    chosen = list(range(seeds)) if isinstance(seeds, int) else list(seeds)
    if not chosen or len(set(chosen)) < len(chosen):
        raise NtpsError(f"seeds is {seeds!r}; give a number of at least 1, or different seeds.")
    loading_names = ("dtype", "device", "revision", "tokenizer", "trust_remote_code", "random_weights", "gguf_file")
    loaded = load_for_training(model, **{name: options.pop(name) for name in loading_names if name in options})
    folders = [None if output is None else Path(output) / f"seed-{seed}" for seed in chosen]
    pairs = zip(chosen, folders, strict=True)
    return LoraRepeats(tuple(before_and_after(loaded, task, seed=s, output=folder, **options) for s, folder in pairs))


def fine_tune_gain(
    model: "str | os.PathLike[str] | LanguageModel",
    task: "Task",
    settings: TrainSettings | None = None,
    *,
    seed: int = 0,
    folds: int = 5,
    batch_size: int = 32,
) -> dict[str, Any]:
    """Return what a study needs of one fine-tuning: gains and headline scores, JSON values; no subspaces or intruders.

    Returns:
        `accuracy_before`, `accuracy_after`, `gain`, `standard_error` (of the gain, paired over test texts), `n_test`,
        `best_step`, `next_token_loss_before`, `next_token_loss_after`, and `layers`: for half the depth and the last
        layer, by number as text, `before` and `after`, each with `ntps`, `explained_heldout`, `ceiling_heldout`.

    Raises:
        NtpsError: As `before_and_after`.
    """
    loaded = load_for_training(model)
    layers = sorted({layer_at(depth, loaded.n_layers) for depth in (0.5, 1.0)})
    quiet: dict[str, Any] = {"progress": False, "changes": False, "intruders": False}
    done = before_and_after(
        loaded, task, settings=settings, seed=seed, folds=folds, layers=layers, batch_size=batch_size, **quiet
    )
    names = ("ntps", "explained_heldout", "ceiling_heldout")
    rows: dict[str, Any] = {}
    for layer in layers:
        sides = {"before": asdict(done.before.score[layer]), "after": asdict(done.after.score[layer])}
        rows[str(layer)] = {side: {name: values[name] for name in names} for side, values in sides.items()}
    found = {
        "accuracy_before": done.before.accuracy,
        "accuracy_after": done.after.accuracy,
        "gain": done.gain,
        "standard_error": done.gain_standard_error,
        "n_test": done.n_test,
        "best_step": done.best_step,
        "next_token_loss_before": done.before.next_token_loss,
        "next_token_loss_after": done.after.next_token_loss,
        "layers": rows,
    }
    return cast("dict[str, Any]", jsonable(found))


def load_for_training(model: "str | os.PathLike[str] | LanguageModel", **options: Any) -> "LanguageModel":
    """Load a model with its language-model head, or without where the checkpoint has none.

    Raises:
        NtpsError: As `ntps.load_model`.
    """
    from ntps.models.load import LanguageModel, load_model

    if isinstance(model, LanguageModel):
        return load_model(model, **options)
    try:
        return load_model(model, head=True, **options)
    except NtpsError:
        return load_model(model, **options)  # a checkpoint without a head; what else was wrong is said here


def split_task(task: "Task", *, seed: int = 0) -> "tuple[Task, Task, Task]":
    """Return (train, validation, test), stratified: 60, 15 and 25 % of the texts.

    Raises:
        NtpsError: If a part lacks a class: each class needs three texts.
    """
    check_classes(task, "labelled")
    rest, test = task.split(TEST_SHARE, seed=seed)
    train, validation = rest.split(VALIDATION_SHARE / (1 - TEST_SHARE), seed=seed)
    parts = {"training": train, "validation": validation, "test": test}
    for name, part in parts.items():
        check_classes(replace(part, name=task.name), name)
    return train, validation, test


def _with_tokens(model: "LanguageModel", task: "Task", max_length: int | None) -> "tuple[Task, int]":
    """Return the task without the texts that have no token, and their number."""
    ids = model.tokenize(task.texts, DEFAULT_MAX_LENGTH if max_length is None else max_length).ids
    kept = [place for place, row in enumerate(ids) if row]
    return (task, 0) if len(kept) == len(task) else (task.subset(kept), len(task) - len(kept))


def _frozen_probes(model: "LanguageModel", tuned: FineTuned, train: "Task", held: "Task") -> tuple[Readout, Readout]:
    """Return the frozen model's probes, fitted on the training texts, and on these and the validation texts."""
    ids = encode(model, [*train.texts, *held.texts], tuned.settings.max_length)
    features = pooled_features(model, model.model, ids)
    labels, n = np.concatenate([train.labels, held.labels]), train.n_classes
    both = fit_readout(features, labels, n, seed=tuned.seed)
    if tuned.settings.method != "scratch":
        return tuned.initial_readout.cpu(), both.cpu()
    return fit_readout(features[: len(train)], train.labels, n, seed=tuned.seed), both


def _versions() -> dict[str, str]:
    import peft
    import torch
    import transformers

    return {"ntps": __version__, "torch": torch.__version__, "transformers": transformers.__version__,
            "peft": peft.__version__}  # fmt: skip
