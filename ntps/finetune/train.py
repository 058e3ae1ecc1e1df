"""Fine-tune a causal language model with a linear head on mean-pooled states: a plain torch training loop.

The model reads a text, the states after the final norm are averaged over its tokens, and a linear head in float32 gives
the logits of a cross-entropy. The head starts as the frozen linear probe (`ntps.finetune.head`), and the start is a candidate
when the validation loss chooses the weights to keep. A look is preferred to it only where its loss is lower by a margin
of standard errors (compare the one-standard-error rule of Breiman et al., 1984): where there is nothing to learn, the
probe stays, rather than weights that a handful of texts liked by chance.

Everything depends on the seed alone. The noise of a step (dropout) and the order of an epoch are drawn from it and
their number, so a resumed run needs no generator's state, and torch's global generator is as before afterwards.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ntps._files import atomic_path, atomic_write
from ntps.errors import NtpsError, in_range
from ntps.finetune import adapters
from ntps.finetune.head import Readout
from ntps.finetune.loop import Trainer
from ntps.finetune.settings import TrainSettings
from ntps.models.forward import encode, pooled_features

if TYPE_CHECKING:
    from ntps.models.load import LanguageModel
    from ntps.tasks.load import Task


@dataclass(eq=False)
class FineTuned:
    """A fine-tuned network with its head.

    Attributes:
        base: The model that was fine-tuned; its weights are as they were.
        network: The tuned network (a copy, adapters in place), without a language-model head; on the base's device.
        adapter: PEFT's wrapper around it; `None` for other methods.
        readout: The head.
        start: The head it started from: the linear probe of the features before the first step.
        settings: What shaped the training.
        seed: Its seed.
        curve: A row per look at the validation texts: `step`, `loss` (mean training loss since the last look; the
            probe's at step 0), `validation_loss`, `validation_accuracy`. Losses in nats.
        best_step: The step whose weights were kept; 0 is the start.
        n_trained: Number of trained parameters, the head's included.
    """

    base: "LanguageModel"
    network: Any
    adapter: Any
    readout: Readout
    start: Readout
    settings: TrainSettings
    seed: int
    curve: list[dict[str, Any]]
    best_step: int
    n_trained: int

    def features(self, texts: Sequence[str], *, batch_size: int = 32) -> np.ndarray:
        """Return mean-pooled last states (n, d), float32, of texts that have tokens."""
        ids = encode(self.base, texts, self.settings.max_length)
        return pooled_features(self.base, self.network, ids, batch_size).numpy()

    def predict(self, texts: Sequence[str]) -> np.ndarray:
        """Return the class (n,) of each text."""
        return self.readout.predict(self.features(texts))

    def merge(self) -> "LanguageModel":
        """Return the tuned model as an ordinary one, the adapters added into the weights.

        This object's network is that model afterwards: save before. Where weights are bfloat16 or float16, adding
        rounds, so hidden states differ from the adapter's in the last digits of that type.
        """
        from ntps.models.load import load_model

        if self.settings.method == "probe":
            return self.base
        if self.adapter is not None:
            self.network, self.adapter = self.adapter.merge_and_unload(), None
        made = load_model(self.network, tokenizer=self.base.tokenizer)
        made.name = f"{self.base.name} after {self.settings.method}"
        return made

    def save(self, folder: str | Path, *, classes: Sequence[str] = ()) -> Path:
        """Write the adapter (or the whole network), `head.safetensors` and `training.json`; return the folder.

        `peft.PeftModel.from_pretrained(AutoModel.from_pretrained(base), folder)` reads the adapter. The head is for
        plain mean-pooled features: logits = weight x + bias.

        Raises:
            NtpsError: If a file cannot be written.
        """
        from safetensors.torch import save_file

        folder = Path(folder)
        if self.adapter is not None:
            adapters.write_adapter(self.adapter, folder, str(self.base.source.get("path", self.base.name)))
        elif self.settings.method in ("full", "scratch"):
            adapters.write_network(self.network, self.base.tokenizer, folder)
        weight, bias = self.readout.folded()
        with atomic_path(folder / "head.safetensors") as temporary:
            tensors = {"weight": weight.contiguous(), "bias": bias.contiguous()}
            save_file(
                tensors, temporary, metadata={"classes": json.dumps(list(classes)), "pooling": "mean over tokens"}
            )
        record = {
            "kind": "ntps-training",
            "schema_version": 1,
            "base": self.base.name,
            "base_fingerprint": self.base.fingerprint,
            "classes": list(classes),
            "pooling": "mean over tokens, after the final norm",
            "settings": self.settings.to_dict(),
            "seed": self.seed,
            "best_step": self.best_step,
            "n_trained": self.n_trained,
            "curve": self.curve,
        }
        atomic_write(folder / "training.json", json.dumps(record, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
        return folder


def fine_tune(
    model: "LanguageModel",
    train: "Task",
    validation: "Task",
    *,
    settings: TrainSettings | None = None,
    seed: int = 0,
    output: str | Path | None = None,
    resume: bool = False,
    state_every: int = 25,
    progress: bool | None = None,
) -> FineTuned:
    """Fine-tune a copy of a model on one task, and choose among its looks by the loss on other texts.

    Args:
        model: From `ntps.load_model`; a head is left aside. Its network is copied: that takes its memory once more.
        train: Texts to train on.
        validation: Texts that choose the step whose weights are kept; the start, step 0, is a candidate.
        settings: See `TrainSettings`; LoRA with its defaults when `None`.
        seed: Seed of adapters, random weights, order, dropout, and the folds of the probe that the head starts from.
        output: Folder for the state every `state_every` steps and, in the end, what `FineTuned.save` writes.
        resume: Go on from the state in `output`, if there is one, to the curve of an uninterrupted run.
        state_every: Steps between two states.
        progress: Show a bar on stderr; by default when it is a terminal.

    On a GPU, matrices are multiplied in bfloat16 while training (not while judging). When its memory runs out, a
    batch is cut in halves whose gradients add up.

    Raises:
        NtpsError: If a setting is out of range, a class has no text in one of the two parts, the network lacks a
            target, the loss is not finite, or the state belongs to another run.
    """
    settings = (settings or TrainSettings()).check(model.width).for_width(model.width)
    in_range(seed, 0, None, "seed")
    in_range(state_every, 1, None, "state_every")
    if len(getattr(model.model, "hf_device_map", None) or {}) > 1:
        raise NtpsError(f"{model.name} is spread over devices, which training does not do; load it with device=.")
    for part, task in (("training", train), ("validation", validation)):
        check_classes(task, part)
    folder = None if output is None else Path(output)
    devices = [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        ids = [encode(model, task.texts, settings.max_length) for task in (train, validation)]
        trainer = Trainer(model, (ids[0], train.labels), (ids[1], validation.labels), train.n_classes, settings, seed)
        start = trainer.start()
        run = {
            "model": model.fingerprint,
            "dtype": model.dtype,
            "train": train.fingerprint,
            "validation": validation.fingerprint,
            "seed": seed,
            **settings.to_dict(),
        }
        trainer.run(None if folder is None else (folder, run, state_every), resume, progress)
    tuned = FineTuned(
        base=model,
        network=trainer.network.eval(),
        adapter=trainer.adapter,
        readout=trainer.readout,
        start=start,
        settings=settings,
        seed=seed,
        curve=trainer.curve,
        best_step=trainer.best_step,
        n_trained=sum(parameter.numel() for parameter in trainer.parameters.values()),
    )
    if folder is not None:
        tuned.save(folder, classes=train.classes)
    return tuned


def check_classes(task: "Task", part: str) -> None:
    """Refuse texts that lack a class.

    Raises:
        NtpsError: If there are fewer texts than classes, or a class has none; the message names class and part.
    """
    if len(task) < task.n_classes:
        raise NtpsError(f"{task.name}: {len(task)} {part} texts for {task.n_classes} classes; every class needs one.")
    counts = np.bincount(task.labels, minlength=task.n_classes)
    if not counts.all():
        missing = task.classes[int(np.argmin(counts))]
        raise NtpsError(f"{task.name}: class {missing!r} has no text in the {part} part; give more texts of it.")
