"""Before and after fine-tuning: accuracy, scores of every layer, next-token loss, and what changed in the weights.

The texts are split once, stratified: a quarter for the test, unless there are test texts of their own; a fifth of the
others to choose the step by their loss; the rest for training.
"Before" is the frozen linear probe fitted on the training texts, which is also the head that fine-tuning starts from
unless that head, or the network, starts as random; "after" is the tuned network with its head. Accuracies, scores and
next-token losses of both are measured on the test texts, of which neither training nor the choice of the step sees
anything.
"""

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ntps._files import jsonable, picked
from ntps._version import __version__
from ntps.errors import NtpsError, one_of, whole
from ntps.finetune.adapters import describe_targets
from ntps.finetune.changes import LayerChange, find_intruders, layer_change
from ntps.finetune.head import Head, fit_head
from ntps.finetune.look import saved_losses
from ntps.finetune.loop import Trainer
from ntps.finetune.parts import parts_of
from ntps.finetune.results import LoraRepeats, LoraResult, Side
from ntps.finetune.settings import LOOK_STEPS, TrainSettings
from ntps.finetune.train import FineTuned, fine_tune
from ntps.models import LanguageModel, Representations, collect, load_model
from ntps.models.checkpoints import check_separate
from ntps.models.forward import encode, pooled_features
from ntps.models.load import has_language_model_head
from ntps.models.next_token import next_token_loss
from ntps.models.plan import layer_at, parse_layers
from ntps.models.states import without_head
from ntps.scoring import LayerScore, ScoreResult, ScoreSettings, assign_folds, labels_of, score_layers
from ntps.scoring.probes import class_scores
from ntps.scoring.scores import score_result
from ntps.tasks.given import need_classes

if TYPE_CHECKING:
    from ntps.tasks import Task

ANALYSES = ("changes", "intruders")


def before_and_after(
    model: str | os.PathLike[str] | LanguageModel,
    task: "Task",
    *,
    test: "Task | None" = None,
    settings: TrainSettings | None = None,
    seed: int = 0,
    folds: int | str = "auto",
    convention: str = "theory",
    fraction: float | None = None,
    layers: str | int | Sequence[int] = "all",
    analyses: Sequence[str] = ANALYSES,
    output: str | Path | None = None,
    resume: bool = False,
    observe: Callable[[Trainer], None] | None = None,
    progress: bool | None = None,
) -> LoraResult:
    """Fine-tune a model on a task and compare it with the original.

    Args:
        model: A name or path, which is loaded by `load_for_training`; for other options give a model loaded by
            `ntps.load_model`, with `head=True` for the next-token loss.
        task: From `ntps.load_task`; its first label column is used. Texts without tokens are left out and counted.
        test: Test texts of their own, with the same classes; by default a quarter of the task's.
        settings: Options of the training; `None` is LoRA with the defaults of `TrainSettings`.
        seed: Seed of the split, of training, and of the folds.
        folds: Folds of the test texts for held-out shares; 0 for none; `"auto"` for 5, or fewer if no class has as many
            test texts.
        convention: As in `ntps.score`.
        fraction: As in `ntps.score`.
        layers: Layers to score, as for `ntps.collect`.
        analyses: Further analyses: `"changes"`, of the subspaces of each layer (with folds it takes as long as the
            scores), and `"intruders"`, of the singular vectors of each trained matrix.
        output: Folder for training state, adapter, head and `training.json`.
        resume: Continue from the state in `output`, if there is one.
        observe: As in `fine_tune`.
        progress: Whether to show progress bars on stderr; by default when it is a terminal.

    The next-token loss after fine-tuning is that of the tuned network under the original head, which is not trained.
    Memory: the network twice; with method `"full"` or `"scratch"` also gradients and optimiser state.

    Raises:
        NtpsError: If an option is out of range, a class is missing from a part, or training fails; see `fine_tune`.
    """
    for analysis in analyses:
        one_of(analysis, ANALYSES, "analyses")
    need_classes([task], "fine-tuning")  # refused now, not after the model is loaded
    scoring = ScoreSettings(folds=folds, seed=seed, convention=convention, fraction=fraction)
    if output is not None and isinstance(model, str | os.PathLike):
        check_separate(model, output)
    loaded = _loaded(model, settings)
    settings = (settings or TrainSettings()).for_width(loaded.width)
    frozen = replace(loaded, model=without_head(loaded.model))
    train, validation, test, n_skipped = parts_of(loaded, task, test, settings, seed=seed)
    chosen = parse_layers(layers, loaded.n_layers)
    assign_folds(test.labels, folds, seed=seed)  # refused now, not after training

    tuned = fine_tune(
        frozen, train, validation, settings=settings, seed=seed, output=output, resume=resume, observe=observe,
        progress=progress,
    )  # fmt: skip
    adapted = describe_targets(frozen.model, tuned.settings) if settings.method == "lora" else None
    probe, larger_probe = _frozen_probes(frozen, tuned, train, validation)
    merged = tuned.merge()

    last = loaded.n_layers - 1
    before, after = (
        collect(side, test, layers=[*chosen, last], max_length=settings.max_length, progress=progress)
        for side in (frozen, merged)
    )
    scores, changes = _compare_layers(before, after, scoring, chosen, with_changes="changes" in analyses)
    predicted = probe.predict(before.layer(last)), tuned.head.predict(after.layer(last))
    losses: tuple[float | None, float | None] = (None, None)
    if loaded.has_head:
        ids = encode(loaded, test.texts, settings.max_length)
        losses = next_token_loss(loaded, ids), next_token_loss(loaded, ids, network=merged.model)
    with_validation = class_scores(test.labels, larger_probe.predict(before.layer(last)))[0]
    intruders = find_intruders(frozen.model, merged.model) if "intruders" in analyses else ()
    difference = (predicted[1] == test.labels).astype(float) - (predicted[0] == test.labels)
    return LoraResult(
        model=loaded.name,
        task=task.name,
        n_train=len(train),
        n_validation=len(validation),
        n_test=len(test),
        before=replace(
            _side(test.labels, predicted[0], losses[0], scores[0]), accuracy_with_validation=with_validation
        ),
        after=_side(test.labels, predicted[1], losses[1], scores[1]),
        gain_standard_error=float(difference.std(ddof=1) / math.sqrt(len(test))) if len(test) > 1 else math.nan,
        settings=tuned.settings.to_dict(),
        seed=seed,
        curve=tuple(tuned.curve),
        best_step=tuned.best_step,
        changes=tuple(change.to_dict() for change in changes),
        intruders=tuple(row.to_dict() for row in intruders),
        provenance={
            "model_fingerprint": loaded.fingerprint,
            "model_source": loaded.source,
            "revision": loaded.revision,
            "dtype": loaded.dtype,
            "device": loaded.device.type,
            "threads": torch.get_num_threads(),
            "task_fingerprint": task.fingerprint,
            "task_source": task.source,
            "classes": list(task.classes),
            "n_skipped": n_skipped,
            "n_trained": tuned.n_trained,
            "adapted": adapted,
            "split": {"validation": len(validation), "test": test.source, "stratified": True},
            "pooling": "mean over tokens, after the final norm",
            "folds": scores[0].settings["folds"],
            "versions": _versions(),
        },
    )


def repeat(
    model: str | os.PathLike[str] | LanguageModel,
    task: "Task",
    *,
    test: "Task | None" = None,
    seeds: int | Sequence[int] = 3,
    settings: TrainSettings | None = None,
    folds: int | str = "auto",
    convention: str = "theory",
    fraction: float | None = None,
    layers: str | int | Sequence[int] = "all",
    analyses: Sequence[str] = ANALYSES,
    output: str | Path | None = None,
    resume: bool = False,
    progress: bool | None = None,
) -> LoraRepeats:
    """Run `before_and_after` under several seeds; the model is loaded once.

    `seeds` are the seeds, or their number: then they are 0, 1, ... Each run has its own folder `seed-N` in `output`.
    All other arguments are those of `before_and_after`.

    Raises:
        NtpsError: If there is no seed or one is given twice, or a run fails; see `before_and_after`.
    """
    if isinstance(seeds, int):
        whole(seeds, 1, None, "seeds")
    chosen = list(range(seeds)) if isinstance(seeds, int) else list(seeds)
    if not chosen or len(set(chosen)) < len(chosen):
        raise NtpsError(f"seeds is {seeds!r}; give a number of at least 1, or different seeds.")
    loaded = _loaded(model, settings)
    runs = [
        before_and_after(
            loaded,
            task,
            test=test,
            settings=settings,
            seed=seed,
            folds=folds,
            convention=convention,
            fraction=fraction,
            layers=layers,
            analyses=analyses,
            output=None if output is None else Path(output) / f"seed-{seed}",
            resume=resume,
            progress=progress,
        )
        for seed in chosen
    ]
    return LoraRepeats(runs=tuple(runs))


def fine_tune_gain(
    model: str | os.PathLike[str] | LanguageModel,
    task: "Task",
    settings: TrainSettings | None = None,
    *,
    test: "Task | None" = None,
    seed: int = 0,
    folds: int | str = "auto",
) -> dict[str, Any]:
    """Return the part of `before_and_after` that a study needs, as JSON values; the arguments are the same.

    Returns:
        `accuracy_before`, `accuracy_after`, `gain`, `standard_error` (of the gain, paired over test texts), `n_test`,
        `best_step`, `saved` (as `Look.kept`), `next_token_loss_before`, `next_token_loss_after`, and `layers`: for the
        layer at half the depth and the last one, by number as text, `before` and `after`, each with `ntps`,
        `explained_heldout` and `ceiling_heldout`.

    Raises:
        NtpsError: If training or scoring fails; see `before_and_after`.
    """
    loaded = _loaded(model, settings)
    layers = sorted({layer_at(depth, loaded.n_layers) for depth in (0.5, 1.0)})
    saved = math.nan

    def observe(trainer: Trainer) -> None:
        nonlocal saved
        if trainer.progress.step == min(LOOK_STEPS, trainer.settings.steps):
            saved = float(saved_losses(trainer).mean())

    result = before_and_after(
        loaded, task, test=test, settings=settings, seed=seed, folds=folds, layers=layers, analyses=(), observe=observe,
        progress=False,
    )  # fmt: skip

    def headline(score: LayerScore) -> dict[str, Any]:
        return picked(score, "ntps", "explained_heldout", "ceiling_heldout")

    return jsonable(
        {
            "accuracy_before": result.before.accuracy,
            "accuracy_after": result.after.accuracy,
            "gain": result.gain,
            "standard_error": result.gain_standard_error,
            "n_test": result.n_test,
            "best_step": result.best_step,
            "saved": max(saved, 0.0),
            "next_token_loss_before": result.before.next_token_loss,
            "next_token_loss_after": result.after.next_token_loss,
            "layers": {
                str(layer): {
                    "before": headline(result.before.score[layer]),
                    "after": headline(result.after.score[layer]),
                }
                for layer in layers
            },
        }
    )


def load_for_training(
    model: str | os.PathLike[str] | LanguageModel,
    *,
    tokenizer: Any = None,
    revision: str | None = None,
    dtype: str | None = None,
    device: str | None = None,
    trust_remote_code: bool = False,
) -> LanguageModel:
    """Load a model as `ntps.load_model` does, with its language-model head if its checkpoint has one.

    Raises:
        NtpsError: If the model cannot be loaded, or an option is given together with a loaded model.
    """
    options: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
    # A loaded model is returned as it is, and refuses every option, the head too.
    head = not isinstance(model, LanguageModel) and has_language_model_head(model, **options)
    return load_model(model, tokenizer=tokenizer, dtype=dtype, device=device, head=head, **options)


def _loaded(model: str | os.PathLike[str] | LanguageModel, settings: TrainSettings | None) -> LanguageModel:
    """Return a model that is loaded, or load it by its name in the type that the settings ask for."""
    if isinstance(model, LanguageModel) or settings is None:
        return load_for_training(model)
    return load_for_training(model, dtype=settings.dtype)


def _frozen_probes(model: LanguageModel, tuned: FineTuned, train: "Task", validation: "Task") -> tuple[Head, Head]:
    """Return probes of the frozen model fitted on the training texts, and on training and validation texts."""
    ids = encode(model, [*train.texts, *validation.texts], tuned.settings.max_length)
    features = pooled_features(model, model.model, ids)
    labels, n_classes = np.concatenate([train.labels, validation.labels]), train.n_classes
    larger = fit_head(features, labels, n_classes, seed=tuned.seed)
    if tuned.settings.method == "scratch" or tuned.settings.head == "random":  # they start from something else
        return fit_head(features[: len(train)], train.labels, n_classes, seed=tuned.seed), larger
    return tuned.initial_head.cpu(), larger


def _compare_layers(
    before: Representations,
    after: Representations,
    settings: ScoreSettings,
    layers: Sequence[int],
    *,
    with_changes: bool,
) -> tuple[tuple[ScoreResult, ScoreResult], list[LayerChange]]:
    """Score both sides, and compare their solutions layer by layer; each is solved once and then released."""
    labels = labels_of(before)
    scores: list[tuple[LayerScore, LayerScore]] = []
    changes: list[LayerChange] = []
    sides = (score_layers(side, labels, settings, layers=layers) for side in (before, after))
    for first, second in zip(*sides, strict=True):
        scores.append((first.score, second.score))
        if with_changes:
            changes.append(layer_change(first, second))
    results = (
        score_result(before, labels, settings, [pair[0] for pair in scores]),
        score_result(after, labels, settings, [pair[1] for pair in scores]),
    )
    return results, changes


def _side(labels: np.ndarray, predicted: np.ndarray, next_token_loss: float | None, score: ScoreResult) -> Side:
    accuracy, balanced_accuracy, macro_f1 = class_scores(labels, predicted)
    return Side(
        accuracy=accuracy,
        balanced_accuracy=balanced_accuracy,
        macro_f1=macro_f1,
        next_token_loss=next_token_loss,
        score=score,
    )


def _versions() -> dict[str, str]:
    import peft
    import transformers

    return {
        "ntps": __version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "peft": peft.__version__,
    }
