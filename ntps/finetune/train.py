"""Fine-tune a causal language model with a linear head on mean-pooled states: a plain torch training loop.

The states of a text after the final norm are averaged over its tokens, and a linear head in float32 turns the mean into
logits for a cross-entropy. The head starts as the linear probe of the frozen features (`ntps.finetune.head`), or with
random weights. A later evaluation replaces that start only if its validation loss is lower by `margin` standard errors
(compare the one-standard-error rule of Breiman et al., 1984): where there is nothing to learn, the start stays, instead
of weights that suit a handful of validation texts by chance.

All randomness comes from the seed, and torch's global generator is restored afterwards.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ntps._files import atomic_write, held_folder, json_text, save_tensors
from ntps._text import progress as progress_bar
from ntps.errors import NtpsError, whole
from ntps.finetune import adapters
from ntps.finetune.head import Head
from ntps.finetune.loop import Trainer
from ntps.finetune.settings import TrainSettings
from ntps.models.forward import encode, pooled_features
from ntps.models.processes import Processes
from ntps.tasks.given import need_classes

if TYPE_CHECKING:
    from ntps.models.language_model import LanguageModel
    from ntps.tasks import Task


@dataclass(eq=False, kw_only=True)
class FineTuned:
    """A fine-tuned network with its head.

    Attributes:
        base: The model that was fine-tuned; its weights are unchanged.
        network: The tuned network (a copy, adapters in place), without a language-model head; on the base's device.
        adapter: PEFT's wrapper around it; `None` for other methods.
        head: The head.
        initial_head: The head that training starts from.
        settings: Options of the training.
        seed: Seed of the training.
        curve: One row per evaluation, with the entries of `ntps.finetune.state.Evaluation`.
        best_step: The step whose weights were chosen; 0 is the start.
        n_trained: Number of trained parameters, the head's included.
    """

    base: "LanguageModel"
    network: Any
    adapter: Any
    head: Head
    initial_head: Head
    settings: TrainSettings
    seed: int
    curve: list[dict[str, Any]]
    best_step: int
    n_trained: int

    def features(self, texts: Sequence[str]) -> np.ndarray:
        """Return the mean-pooled last states (n, d), float32, of texts.

        Raises:
            NtpsError: If a text has no token.
        """
        ids = encode(self.base, texts, self.settings.max_length)
        return pooled_features(self.base, self.network, ids).numpy()

    def predict(self, texts: Sequence[str]) -> np.ndarray:
        """Return the class index (n,) of each text."""
        return self.head.predict(self.features(texts))

    def merge(self) -> "LanguageModel":
        """Return the tuned model as an ordinary one, with the adapters added to the weights.

        To save memory the network itself becomes that model: save the adapter first. In bfloat16 or float16 the sum is
        rounded, so hidden states differ from the adapter's in the last digits of that type.
        """
        from ntps.models.load import load_model

        if self.settings.method == "probe":
            return self.base
        if self.adapter is not None:
            self.network, self.adapter = self.adapter.merge_and_unload(), None
        merged = load_model(self.network, tokenizer=self.base.tokenizer)
        merged.name = f"{self.base.name} after {self.settings.method}"
        return merged

    def save(self, folder: str | Path, *, classes: Sequence[str] = ()) -> Path:
        """Write the adapter (or the whole network), `head.safetensors` and `training.json`; return the folder.

        `peft.PeftModel.from_pretrained(AutoModel.from_pretrained(base), folder)` reads the adapter. The head
        (a safetensors file with `weight` (c, d) and `bias` (c,)) is for mean-pooled features x as they are:
        logits = weight x + bias.

        Args:
            folder: Destination folder; created if it does not exist.
            classes: Names of the classes, written into the files.

        Raises:
            NtpsError: If the adapters were merged into the network, a file cannot be written, or another run is writing
                into the folder.
        """
        if self.settings.method == "lora" and self.adapter is None:
            raise NtpsError(
                "the adapters are merged into the network and can no longer be saved; save before you merge."
            )
        folder = Path(folder)
        with held_folder(folder):
            self._write(folder, classes)
        return folder

    def _write(self, folder: Path, classes: Sequence[str]) -> None:
        if self.adapter is not None:
            adapters.write_adapter(self.adapter, folder, str(self.base.source.get("path", self.base.name)))
        elif self.settings.method in ("full", "scratch"):
            adapters.write_network(self.network, self.base.tokenizer, folder)
        weight, bias = self.head.folded()
        header = {"kind": "ntps-head", "classes": list(classes), "pooling": "mean over tokens"}
        save_tensors(folder / "head.safetensors", {"weight": weight, "bias": bias}, header)
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
        atomic_write(folder / "training.json", json_text(record))


def fine_tune(
    model: "LanguageModel",
    train: "Task",
    validation: "Task",
    *,
    settings: TrainSettings | None = None,
    seed: int = 0,
    output: str | Path | None = None,
    resume: bool = False,
    observe: Callable[[Trainer], None] | None = None,
    progress: bool | None = None,
) -> FineTuned:
    """Fine-tune a copy of a model on one task, and choose the step by the loss on validation texts.

    Args:
        model: From `ntps.load_model`; a language-model head is ignored. The network is copied, which takes its memory
            once more.
        train: Texts to train on.
        validation: Texts that choose the step whose weights are used; the start, step 0, is a candidate.
        settings: Options of the training; `None` is LoRA with the defaults of `TrainSettings`.
        seed: Seed of adapters, random weights, order, dropout, and the folds of the initial probe.
        output: Folder for the state, written after every evaluation, and for the files of `FineTuned.save`.
        resume: Whether to continue from the state in `output`, if there is one, to the result of an uninterrupted run.
        observe: Called with the trainer after every step; it must not change it.
        progress: Whether to show a progress bar on stderr; by default when it is a terminal.

    On a GPU, matrices are multiplied in bfloat16 while training (not in evaluations). Where its memory runs out, a
    batch is split in halves whose gradients add up. Under torchrun the processes share every batch, with the result of
    one process up to rounding, but for dropout, whose masks are others.

    Raises:
        NtpsError: If the model is not causal, an option is out of range, a class has no training or no validation text,
            the network lacks a target, the loss is not finite, the state belongs to another run, another run is
            writing into `output`, or a batch has fewer texts than there are processes.
    """
    with training(model, train, validation, settings, seed=seed, output=output, resume=resume) as trainer:
        show = progress if trainer.processes.is_main else False
        with progress_bar(trainer.settings.steps, "steps", show, initial=trainer.progress.step) as bar:
            for step in trainer.run():
                bar.set_description(f"fine-tuning, validation loss {trainer.progress.curve[-1].validation_loss:.3f}")
                bar.update(step - bar.n)
                if observe is not None:
                    observe(trainer)
        tuned = FineTuned(
            base=model,
            network=trainer.network.eval(),
            adapter=trainer.adapter,
            head=trainer.head,
            initial_head=trainer.initial_head,
            settings=trainer.settings,
            seed=seed,
            curve=[asdict(evaluation) for evaluation in trainer.progress.curve],
            best_step=trainer.progress.best_step,
            n_trained=sum(parameter.numel() for parameter in trainer.parameters.values()),
        )
        if output is not None:
            folder, own = Path(output), trainer.processes
            own.together(lambda: tuned._write(folder, train.classes) if own.is_main else None)
    return tuned


@contextmanager
def training(
    model: "LanguageModel",
    train: "Task",
    validation: "Task",
    settings: TrainSettings | None,
    *,
    seed: int,
    output: str | Path | None,
    resume: bool,
) -> Iterator[Trainer]:
    """Hold the folder and torch's generators while a run goes on; arguments and errors as for `fine_tune`."""
    whole(seed, 0, None, "seed")
    if resume and output is None:
        raise NtpsError("resume needs output, the folder of the run to continue.")
    if not model.causal:
        raise NtpsError(
            f"{model.name} reads later tokens; fine-tuning is of language models, so a causal one is needed."
        )
    if len(getattr(model.model, "hf_device_map", None) or {}) > 1:
        raise NtpsError(f"{model.name} is spread over devices, which training does not support; load it on one device.")
    dtype = None if settings is None else settings.dtype
    if dtype not in (None, "auto", model.dtype):
        raise NtpsError(f"dtype is {dtype}, and {model.name} is loaded in {model.dtype}; load it in {dtype}.")
    check_classes(train, "training")
    check_classes(validation, "validation")
    folder = None if output is None else Path(output)
    devices = [model.device] if model.device.type == "cuda" else []
    processes = Processes(model.device)
    with torch.random.fork_rng(devices=devices), ExitStack() as stack:
        if folder is not None:
            processes.together(lambda: stack.enter_context(held_folder(folder)) if processes.is_main else None)
        yield Trainer(model, train, validation, settings or TrainSettings(), seed=seed, folder=folder, resume=resume)


def check_classes(task: "Task", part: str) -> None:
    """Refuse a part of the texts ("training", for the message) that lacks a class.

    Raises:
        NtpsError: If labels are not classes, there are fewer texts than classes, or a class has none; the message names
            class and part.
    """
    need_classes([task], "fine-tuning")
    if len(task) < task.n_classes:
        raise NtpsError(f"{task.name}: {len(task)} {part} texts for {task.n_classes} classes; every class needs one.")
    counts = np.bincount(task.labels, minlength=task.n_classes)
    if not counts.all():
        missing = task.classes[int(np.argmin(counts))]
        raise NtpsError(f"{task.name}: class {missing!r} has no text in the {part} part; add texts of this class.")
