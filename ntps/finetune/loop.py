"""The training loop: batches, gradients, looks at the validation texts, the state on disk. `fine_tune` runs it."""

import contextlib
import copy
import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ntps.errors import NtpsError
from ntps.finetune import adapters
from ntps.finetune.head import Readout, fit_readout
from ntps.finetune.settings import TrainSettings
from ntps.finetune.state import read_state, write_state
from ntps.models import loading
from ntps.models.forward import pool, pooled_features, too_little_memory

if TYPE_CHECKING:
    from ntps.models.load import LanguageModel

Texts = tuple[list[list[int]], np.ndarray]  # token ids and labels
_WINDOW = 8  # batches that are sorted by length together: less padding, and still another mix every epoch


def epoch_batches(lengths: np.ndarray, batch_size: int, seed: int, epoch: int) -> list[np.ndarray]:
    """Return an epoch's batches of places: every text once, similar lengths together, all in random order.

    Args:
        lengths: (n,) tokens of each text.
        batch_size: Most texts in a batch; sizes differ by at most one, so that no batch of one text steps as far.
        seed: With `epoch`, all that the order depends on.
        epoch: Number of the epoch.
    """
    rng = np.random.default_rng((seed, epoch))
    order = rng.permutation(len(lengths))
    window = batch_size * _WINDOW
    parts = [order[start : start + window] for start in range(0, len(order), window)]
    order = np.concatenate([part[np.argsort(lengths[part], kind="stable")] for part in parts])
    batches = np.array_split(order, math.ceil(len(order) / batch_size))
    return [batches[place] for place in rng.permutation(len(batches))]


class Trainer:
    """One run of training: a copy of the model's network, the head, and where they are.

    Attributes:
        network: The trained copy, without a language-model head.
        adapter: PEFT's wrapper around it, or `None`.
        readout: The head.
        parameters: What is trained, by name.
        curve: See `FineTuned`.
        step: Steps done.
        best_step: The step whose weights are kept: of the lowest validation loss among those below the start's by
            the settings' margin; 0 when there is none.
    """

    def __init__(
        self,
        model: "LanguageModel",
        train: Texts,
        validation: Texts,
        n_classes: int,
        settings: TrainSettings,
        seed: int,
    ) -> None:
        self.model, self.settings, self.seed, self.n_classes = model, settings, seed, n_classes
        self.ids, self.labels = train[0], torch.from_numpy(train[1].copy()).to(model.device)
        self.held_ids, self.held_labels = validation[0], torch.from_numpy(validation[1].copy())
        self.lengths = np.array([len(row) for row in self.ids])
        self.network, self.adapter = _trainable(model, settings, seed)
        self.frozen: torch.Tensor | None = None  # features of a network that does not change
        self.held: torch.Tensor | None = None
        self.micro = settings.batch_size  # texts that go through at once: halved when memory runs out
        self.curve: list[dict[str, Any]] = []
        self.running: list[float] = []
        self.step = self.best_step = 0
        self.best: dict[str, torch.Tensor] = {}

    def start(self) -> Readout:
        """Fit the head to the features as they are, make the optimiser, and return a copy of that head."""
        settings = self.settings
        features = pooled_features(self.model, self.network, self.ids)
        labels = self.labels.cpu()
        self.readout = fit_readout(features, labels.numpy(), self.n_classes, seed=self.seed).to(self.model.device)
        logits = self.readout(features.to(self.model.device)).detach().cpu()
        self.first_loss = float(_cross_entropy(logits, labels))
        if settings.method == "probe":
            self.frozen = features.to(self.model.device)
            self.held = pooled_features(self.model, self.network, self.held_ids)
        named = {f"network.{name}": p for name, p in self.network.named_parameters() if p.requires_grad}
        self.parameters: dict[str, torch.Tensor] = {
            **named,
            **{f"head.{n}": p for n, p in self.readout.named_parameters()},
        }
        groups = [
            {"params": [p for p in self.parameters.values() if p.ndim > 1], "weight_decay": settings.weight_decay},
            {"params": [p for p in self.parameters.values() if p.ndim <= 1], "weight_decay": 0.0},
        ]
        self.optimizer = _optimizer(settings, groups)
        return copy.deepcopy(self.readout)

    def run(self, keep: tuple[Path, dict[str, Any], int] | None, resume: bool, progress: bool | None) -> None:
        """Train to the end and put the best weights in place.

        Args:
            keep: Folder of the state, what the run is of, and steps between two states; `None` writes none.
            resume: Start from the state in the folder, if there is one.
            progress: Show a bar; `None`: on a terminal.

        Raises:
            NtpsError: If the loss is not finite, memory is too small, or the state is of another run.
        """
        settings = self.settings
        finished = resume and keep is not None and self._resume(keep[0], keep[1])
        if not self.curve:
            self._look(self.first_loss)
        with _bar(settings.steps, self.step, progress) as bar:
            while self.step < settings.steps and not finished:
                self._advance()
                bar.update()
                if self.step % settings.evaluate_every == 0 or self.step == settings.steps:
                    self._look(sum(self.running) / len(self.running))
                    self.running = []
                    seen = self.curve[-1]
                    bar.set_postfix_str(f"loss {seen['loss']:.3f}, accuracy {seen['validation_accuracy']:.3f}")
                    finished = self._out_of_patience()
                if keep is not None and self.step % keep[2] == 0 and self.step < settings.steps and not finished:
                    self._write(keep, done=False)
        if keep is not None:
            self._write(keep, done=True)
        with torch.no_grad():
            for name, value in self.best.items():
                self.parameters[name].copy_(value)

    def _advance(self) -> None:
        """Take one step of the optimiser."""
        settings, number = self.settings, self.step * self.settings.accumulation
        per_epoch = math.ceil(len(self.ids) / settings.batch_size)
        batches = []
        for place in range(number, number + settings.accumulation):
            epoch, index = divmod(place, per_epoch)
            batches.append(epoch_batches(self.lengths, settings.batch_size, self.seed, epoch)[index])
        loss = self._gradients(batches)
        norm = torch.nn.utils.clip_grad_norm_(self.parameters.values(), settings.clip_norm)
        if not math.isfinite(loss) or not math.isfinite(float(norm)):
            what = "loss" if not math.isfinite(loss) else "gradient"
            raise NtpsError(
                f"the {what} is not finite at step {self.step + 1}; try a learning_rate below {settings.step_size:g}."
            )
        for group in self.optimizer.param_groups:
            group["lr"] = settings.rate(self.step)
        self.optimizer.step()
        self.running.append(loss)
        self.step += 1

    def _gradients(self, batches: list[np.ndarray]) -> float:
        """Add up the gradients of the mean loss over a step's texts, and return that loss; smaller parts if need be."""
        while True:
            self.optimizer.zero_grad(set_to_none=True)
            torch.manual_seed(int(np.random.SeedSequence((self.seed, self.step)).generate_state(1)[0]))  # dropout
            try:
                return self._try_gradients(batches)
            except torch.cuda.OutOfMemoryError:
                if self.micro == 1:
                    raise too_little_memory(int(max(self.lengths[batch].max() for batch in batches))) from None
            self.optimizer.zero_grad(set_to_none=True)
            torch.cuda.empty_cache()
            self.micro = self.micro // 2

    def _try_gradients(self, batches: list[np.ndarray]) -> float:
        self.network.train()
        total, texts = 0.0, sum(len(batch) for batch in batches)
        for batch in batches:
            for start in range(0, len(batch), self.micro):
                part = batch[start : start + self.micro]
                if self.frozen is not None:
                    features = self.frozen[part]
                else:
                    with _autocast(self.model.device):
                        features = pool(self.model, self.network, [self.ids[i] for i in part])
                loss = _cross_entropy(self.readout(features), self.labels[part], "sum") / texts
                loss.backward()
                total += float(loss.detach())
        return total

    @torch.no_grad()
    def _look(self, loss: float) -> None:
        """Judge the validation texts, add a row to the curve, and keep the weights if they are better for sure."""
        features = self.held if self.held is not None else pooled_features(self.model, self.network, self.held_ids)
        logits = self.readout(features.to(self.model.device)).cpu()
        losses = _cross_entropy(logits, self.held_labels, "none").double().numpy()
        held_loss = float(losses.mean())
        if not math.isfinite(held_loss):
            raise NtpsError(
                f"the validation loss is not finite at step {self.step}; try a learning_rate below "
                f"{self.settings.step_size:g}."
            )
        right = float((logits.argmax(1) == self.held_labels).double().mean())
        if not self.curve:
            self.first_losses = losses
        saved = self.first_losses - losses  # by the steps so far, of each text
        sure = saved.mean() > self.settings.margin * saved.std(ddof=1) / math.sqrt(len(saved))
        kept = next((row["validation_loss"] for row in self.curve if row["step"] == self.best_step), math.inf)
        if not self.curve or (sure and held_loss < kept):
            self.best_step = self.step
            self.best = {name: p.detach().cpu().clone() for name, p in self.parameters.items()}
        self.curve.append({"step": self.step, "loss": loss, "validation_loss": held_loss, "validation_accuracy": right})

    def _out_of_patience(self) -> bool:
        losses = [row["validation_loss"] for row in self.curve]
        since = len(losses) - 1 - losses.index(min(losses))
        return self.settings.patience is not None and since >= self.settings.patience

    def _write(self, keep: tuple[Path, dict[str, Any], int], *, done: bool) -> None:
        progress = {
            "step": self.step,
            "best_step": self.best_step,
            "curve": self.curve,
            "running": self.running,
            "micro": self.micro,
            "first_losses": self.first_losses.tolist(),
            "done": done,
        }
        write_state(keep[0], keep[1], progress, self.parameters, self.best, None if done else self.optimizer)

    def _resume(self, folder: Path, run: dict[str, Any]) -> bool:
        """Read the state, if there is one; return whether its run had ended."""
        found = read_state(folder, run, self.parameters, self.optimizer)
        if found is None:
            return False
        progress, self.best = found
        self.step, self.best_step = progress["step"], progress["best_step"]
        self.curve, self.running, self.micro = progress["curve"], progress["running"], progress["micro"]
        self.first_losses = np.array(progress["first_losses"])
        return bool(progress["done"])


def _trainable(model: "LanguageModel", settings: TrainSettings, seed: int) -> tuple[Any, Any]:
    """Return a copy of the network in which the right weights can be trained, and PEFT's wrapper or `None`."""
    backbone = loading.without_head(model.model)
    if settings.method == "scratch":
        network = loading.fresh_network(backbone.config, False, seed, "float32").to(model.device)
    else:
        network = copy.deepcopy(backbone)
    if settings.method in ("full", "scratch"):
        # Steps are smaller than the spacing of bfloat16 weights: in float32, or most of them would be lost.
        return network.float().requires_grad_(True), None
    network.requires_grad_(False)
    adapter = adapters.attach(network, settings) if settings.method == "lora" else None
    return network, adapter


def _optimizer(settings: TrainSettings, groups: list[dict[str, Any]]) -> Any:
    groups = [group for group in groups if group["params"]]
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=settings.step_size)
    from transformers.optimization import Adafactor

    return Adafactor(groups, lr=settings.step_size, scale_parameter=False, relative_step=False, warmup_init=False)


def _cross_entropy(logits: torch.Tensor, labels: torch.Tensor, reduction: str = "mean") -> torch.Tensor:
    return torch.nn.functional.cross_entropy(logits, labels, reduction=reduction)


def _autocast(device: torch.device) -> Any:
    if device.type == "cuda" and torch.cuda.is_bf16_supported():
        return torch.autocast("cuda", dtype=torch.bfloat16)
    return contextlib.nullcontext()


@contextlib.contextmanager
def _bar(total: int, done: int, show: bool | None) -> Iterator[Any]:
    from tqdm import tqdm

    disable = None if show is None else not show  # None: only on a terminal
    with tqdm(total=total, initial=done, desc="fine-tuning", unit="step", disable=disable, ncols=80) as bar:
        yield bar
