"""The training loop: gradients, and evaluations on the validation texts. `fine_tune` runs it."""

import contextlib
import copy
import math
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ntps.core import NonFiniteError
from ntps.errors import NtpsError
from ntps.finetune import adapters
from ntps.finetune.depth import start_of_loss
from ntps.finetune.head import fit_head, random_head
from ntps.finetune.settings import TrainSettings
from ntps.finetune.state import FILE, Evaluation, Progress, State, read_state, write_state
from ntps.models.forward import encode, halving, pool, pooled_features
from ntps.models.pretrained import random_network
from ntps.models.processes import Processes
from ntps.models.states import without_head

if TYPE_CHECKING:
    from ntps.models.language_model import LanguageModel
    from ntps.tasks import Task

_WINDOW = 8  # number of batches sorted by length together: less padding, and still another mixture in every epoch
_ADVICE = "name another output, delete it, or train without resume"


def epoch_batches(lengths: np.ndarray, batch_size: int, seed: int, epoch: int) -> list[np.ndarray]:
    """Return an epoch's batches of text indices: every text once, similar lengths together, all in random order.

    Args:
        lengths: (n,) number of tokens of each text.
        batch_size: Largest number of texts in a batch; sizes differ by at most one, so that no small last batch moves
            the weights as far as a full one.
        seed: Seed; the order depends on it and on `epoch` alone.
        epoch: Number of the epoch, from 0.
    """
    rng = np.random.default_rng((seed, epoch))
    order = rng.permutation(len(lengths))
    window = batch_size * _WINDOW
    windows = [order[start : start + window] for start in range(0, len(order), window)]
    order = np.concatenate([indices[np.argsort(lengths[indices], kind="stable")] for indices in windows])
    batches = np.array_split(order, math.ceil(len(order) / batch_size))
    return [batches[number] for number in rng.permutation(len(batches))]


def clearly_lower(saved: np.ndarray, margin: float) -> bool:
    """Return whether the loss that each validation text saved (n,) has a mean above `margin` standard errors."""
    return bool(saved.mean() > margin * saved.std(ddof=1) / math.sqrt(len(saved)))


class Trainer:
    """One run of training: a copy of the model's network with a head, and the progress of the run.

    The dropout of a step and the order of an epoch are drawn from the seed and their number, so a resumed run needs
    no generator state. They use torch's global generator, which `fine_tune` restores.

    Processes that torchrun started share the texts of each batch, add up their gradients, and then take the same step;
    the main one alone writes.

    Attributes:
        settings: The options, for this model and these texts.
        network: The trained copy, without a language-model head.
        adapter: PEFT's wrapper around it, or `None`.
        head: The head.
        initial_head: A copy of the head that training starts from.
        parameters: The trained tensors by name.
        best: The trained tensors at the best step so far, on the CPU.
        progress: Step, curve and other JSON values.
    """

    def __init__(
        self,
        model: "LanguageModel",
        train: "Task",
        validation: "Task",
        settings: TrainSettings,
        *,
        seed: int = 0,
        folder: Path | None = None,
        resume: bool = False,
    ) -> None:
        """Build the network, fit the head, and read the state; arguments as for `fine_tune`, `folder` as its `output`.

        Raises:
            NtpsError: If a text has no token, the network lacks a target, or the state is damaged or of another run.
        """
        self.model, self.seed, self.folder, self.processes = model, seed, folder, Processes(model.device)
        settings = settings.for_width(model.width).for_texts(len(train))
        smallest = len(train) // math.ceil(len(train) / settings.batch_size)  # batch, of those of `epoch_batches`
        if smallest < self.processes.count:
            raise NtpsError(
                f"{self.processes.count} processes share batches of {smallest} texts; start fewer, or give a larger "
                "batch_size or more texts."
            )
        if settings.method == "lora" and settings.start_layer == "auto":
            start = start_of_loss(model, train, max_length=settings.max_length, seed=seed)
            settings = replace(settings, start_layer=start)
        self.settings = settings
        torch.manual_seed(seed)
        self.ids = encode(model, train.texts, settings.max_length)
        self.validation_ids = encode(model, validation.texts, settings.max_length)
        self.lengths = np.array([len(row) for row in self.ids])
        self.labels = torch.from_numpy(train.labels.copy()).to(model.device)
        self.validation_labels = torch.from_numpy(validation.labels.copy())
        self.network, self.adapter = _trainable(model, settings, seed)
        features = pooled_features(model, self.network, self.ids)
        for text in (~features.isfinite().all(1)).nonzero():
            raise NonFiniteError(model.n_layers - 1, int(text), train.texts[int(text)])
        if settings.head == "random":
            head = random_head(features.shape[1], train.n_classes)
        else:
            head = self.processes.of_main(lambda: fit_head(features, train.labels, train.n_classes, seed=seed))
        head.dropout = settings.head_dropout
        self.head = head.eval().to(model.device)
        self.initial_head = copy.deepcopy(self.head)
        with torch.no_grad():
            logits = self.head(features.to(model.device)).cpu()
        self.initial_loss = float(_cross_entropy(logits, self.labels.cpu()))
        frozen = settings.method == "probe"  # then features never change, and are computed once
        self.features = features.to(model.device) if frozen else None
        self.validation_features = pooled_features(model, self.network, self.validation_ids) if frozen else None
        trained = {f"network.{name}": p for name, p in self.network.named_parameters() if p.requires_grad}
        trained |= {f"head.{name}": p for name, p in self.head.named_parameters()}
        self.parameters: dict[str, torch.Tensor] = trained
        self.optimizer = _optimizer(settings, self.parameters.values())
        self.best: dict[str, torch.Tensor] = {}
        self.progress = Progress(micro_batch=settings.batch_size)
        self.run_record = {
            "model": model.fingerprint,
            "train": train.fingerprint,
            "validation": validation.fingerprint,
            "seed": seed,
            **settings.to_dict(),
            "dtype": model.dtype,
        }
        if resume and folder is not None and self.processes.of_main((folder / FILE).is_file):
            self.processes.together(lambda: self._read_state(folder / FILE))

    def run(self, stop: int | None = None) -> Iterator[int]:
        """Train to the end and put the best weights in place, or stop early as if interrupted, with the state written.

        Args:
            stop: Number of steps after which to stop; `None` to train to the end.

        Yields:
            The number of each step once it is complete, evaluated and written if that is due.

        Raises:
            NtpsError: If the loss is not finite, memory is too small, or the state cannot be written.
        """
        settings, progress, folder = self.settings, self.progress, self.folder
        if not progress.curve:
            self._evaluate(self.initial_loss)
        while not progress.finished:
            if stop is not None and progress.step >= stop:
                return
            progress.losses.append(self._advance())
            due = progress.step == settings.steps or progress.step % settings.evaluate_every == 0
            if due:
                self._evaluate(sum(progress.losses) / len(progress.losses))
                progress.losses = []
                progress.finished = progress.over(settings)
            if folder is not None and (due or progress.step == stop):
                self.processes.together(lambda: self._write_state(folder / FILE) if self.processes.is_main else None)
            yield progress.step
        with torch.no_grad():
            for name, value in self.best.items():
                self.parameters[name].copy_(value)

    def _advance(self) -> float:
        """Take one step of the optimiser and return its loss."""
        settings, step = self.settings, self.progress.step
        per_epoch = math.ceil(len(self.ids) / settings.batch_size)
        batches = []
        for number in range(step * settings.accumulation, (step + 1) * settings.accumulation):
            epoch, index = divmod(number, per_epoch)
            batches.append(epoch_batches(self.lengths, settings.batch_size, self.seed, epoch)[index])
        loss = self._accumulate(batches)
        largest = math.inf if settings.clip_norm is None else settings.clip_norm
        norm = torch.nn.utils.clip_grad_norm_(self.parameters.values(), largest)
        if not math.isfinite(loss) or not math.isfinite(float(norm)):
            what = "loss" if not math.isfinite(loss) else "gradient"
            raise NtpsError(
                f"the {what} is not finite at step {step + 1}; try a learning_rate below {settings.step_size:g}."
            )
        for group in self.optimizer.param_groups:
            group["lr"] = settings.rate(step)
        self.optimizer.step()
        self.progress.step += 1
        return loss

    def _accumulate(self, batches: list[np.ndarray]) -> float:
        """Add up the gradients of the mean loss over a step's texts, and return that loss."""
        self.network.train()
        self.optimizer.zero_grad(set_to_none=True)
        rank = (self.processes.rank,) if self.processes.rank else ()
        entropy = np.random.SeedSequence((self.seed, self.progress.step, *rank))
        torch.manual_seed(int(entropy.generate_state(1)[0]))  # dropout
        size, n_texts = self.progress.micro_batch, sum(len(batch) for batch in batches)
        batches = [self.processes.share(batch) for batch in batches]
        micro_batches = [batch[start : start + size] for batch in batches for start in range(0, len(batch), size)]
        self.head.train()
        losses = self.processes.together(
            lambda: [loss for _, loss in halving(micro_batches, lambda batch: self._add_gradients(batch, n_texts))]
        )
        self.head.eval()
        if len(losses) > len(micro_batches):  # memory ran out: the next steps start with what fits
            self.progress.micro_batch = max(1, size // 2)
        own = [parameter.grad is not None for parameter in self.parameters.values()]
        shares = self.processes.gather((sum(losses), own))
        for parameter, *used in zip(self.parameters.values(), *(used for _, used in shares), strict=True):
            if parameter.grad is None and any(used):  # such as an expert that no text of this process was sent to
                parameter.grad = torch.zeros_like(parameter)
        self.processes.add_up(p.grad for p in self.parameters.values() if p.grad is not None)
        return sum(loss for loss, _ in shares)

    def _add_gradients(self, batch: np.ndarray, n_texts: int) -> float:
        """Add the gradients of a batch's share of the mean loss over `n_texts`, and return that share."""
        if self.features is not None:
            features = self.features[batch]
        else:
            with _autocast(self.model.device):
                features = pool(self.model, self.network, [self.ids[index] for index in batch])
        loss = _cross_entropy(self.head(features), self.labels[batch], "sum") / n_texts
        # Not loss.backward(): where memory runs out half-way, it has added to some gradients already.
        parameters = list(self.parameters.values())
        for parameter, gradient in zip(
            parameters, torch.autograd.grad(loss, parameters, allow_unused=True), strict=True
        ):
            if gradient is not None:
                parameter.grad = gradient if parameter.grad is None else parameter.grad.add_(gradient)
        return float(loss.detach())

    @torch.no_grad()
    def validate(self) -> tuple[np.ndarray, float]:
        """Return the loss of each validation text (n,), in nats, and the accuracy, with the weights as they are now.

        Raises:
            NtpsError: If the mean loss is not finite.
        """
        features = self.validation_features
        if features is None:
            features = pooled_features(self.model, self.network, self.validation_ids)

        def judge() -> tuple[np.ndarray, float]:
            logits = self.head(features.to(self.model.device)).cpu()
            right = (logits.argmax(1) == self.validation_labels).double().mean()
            return _cross_entropy(logits, self.validation_labels, "none").double().numpy(), float(right)

        losses, accuracy = self.processes.of_main(judge)  # all decide by the same digits whether they go on
        if not math.isfinite(losses.mean()):
            raise NtpsError(
                f"the validation loss is not finite at step {self.progress.step}; try a learning_rate below "
                f"{self.settings.step_size:g}."
            )
        return losses, accuracy

    def _evaluate(self, loss: float) -> None:
        """Evaluate the validation texts, add to the curve, and keep the weights if they are better by the margin."""
        progress = self.progress
        losses, accuracy = self.validate()
        validation_loss = float(losses.mean())
        if not progress.curve:
            progress.initial_losses = losses.tolist()
        saved = np.array(progress.initial_losses) - losses  # by each validation text
        better = clearly_lower(saved, self.settings.margin)
        best_loss = next((e.validation_loss for e in progress.curve if e.step == progress.best_step), math.inf)
        last = self.settings.keep == "last"
        if not progress.curve or last or (better and validation_loss < best_loss):
            progress.best_step = progress.step
            self.best = {name: p.detach().cpu().clone() for name, p in self.parameters.items()}
        evaluation = Evaluation(
            step=progress.step,
            loss=loss,
            validation_loss=validation_loss,
            validation_accuracy=accuracy,
        )
        progress.curve.append(evaluation)

    def _write_state(self, path: Path) -> None:
        """Write all that the run needs to continue; once it is finished, the best weights alone."""
        state = State(progress=self.progress, best=self.best, now={}, optimizer={})
        if not self.progress.finished:
            state.now, state.optimizer = self.parameters, self.optimizer.state_dict()["state"]
        write_state(path, self.run_record, state)

    def _read_state(self, path: Path) -> None:
        """Restore what `_write_state` wrote.

        Raises:
            NtpsError: If it is damaged, or of another model, other texts, other settings or another seed; the message
                says which.
        """
        try:
            run, state = read_state(path)
        except NtpsError as error:
            raise NtpsError(f"{str(error).rstrip('.')}; {_ADVICE}.") from error
        names = {"model": "another model", "train": "other training texts", "validation": "other validation texts"}
        for key, value in self.run_record.items():
            other = run.get(key)
            if other != value:
                difference = f"on {names[key]}" if key in names else f"with {key} {other!r}, not {value!r}"
                raise NtpsError(f"{path} is the state of a run {difference}; {_ADVICE}.")
        if not state.progress.fits(self.settings, len(self.validation_ids)) or not state.holds(
            self.parameters, _after_a_step(self.settings, self.parameters.values())
        ):
            raise NtpsError(f"{path} is damaged: its parts do not fit each other; {_ADVICE}.")
        self.progress, self.best = state.progress, state.best
        for name, value in state.now.items():
            self.parameters[name].data.copy_(value)
        if state.optimizer:
            groups = self.optimizer.state_dict()["param_groups"]
            self.optimizer.load_state_dict({"state": state.optimizer, "param_groups": groups})


def _trainable(model: "LanguageModel", settings: TrainSettings, seed: int) -> tuple[Any, Any]:
    """Return a copy of the network in which the method's weights require gradients, and PEFT's wrapper or `None`."""
    backbone = without_head(model.model)
    if settings.method == "scratch":
        network = random_network(backbone.config, seed=seed, dtype="float32").to(model.device)
    else:
        network = copy.deepcopy(backbone)
    if settings.method in ("full", "scratch"):
        # In float32: most steps are smaller than the spacing of bfloat16 weights, and would be lost.
        return network.float().requires_grad_(True), None
    network.requires_grad_(False)
    adapter = adapters.attach(network, settings) if settings.method == "lora" else None
    return network, adapter


def _optimizer(settings: TrainSettings, parameters: Iterable[torch.Tensor]) -> Any:
    matrices, vectors = [p for p in parameters if p.ndim > 1], [p for p in parameters if p.ndim <= 1]
    groups: list[dict[str, Any]] = [
        {"params": matrices, "weight_decay": settings.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=settings.step_size)
    from transformers.optimization import Adafactor

    return Adafactor(groups, lr=settings.step_size, scale_parameter=False, relative_step=False, warmup_init=False)


def _after_a_step(settings: TrainSettings, parameters: Iterable[torch.Tensor]) -> dict[int, dict[str, Any]]:
    """Return what the optimiser of these tensors keeps after a step: kinds and shapes, without memory for values."""
    shapes = [torch.empty_like(parameter, device="meta", requires_grad=True) for parameter in parameters]
    for shape in shapes:
        shape.grad = torch.empty_like(shape)
    optimizer = _optimizer(settings, shapes)
    optimizer.step()
    return optimizer.state_dict()["state"]


def _cross_entropy(logits: torch.Tensor, labels: torch.Tensor, reduction: str = "mean") -> torch.Tensor:
    return torch.nn.functional.cross_entropy(logits, labels, reduction=reduction)


def _autocast(device: torch.device) -> Any:
    if device.type == "cuda" and torch.cuda.is_bf16_supported():
        return torch.autocast("cuda", dtype=torch.bfloat16)
    return contextlib.nullcontext()
