"""`TrainSettings`: every option of fine-tuning, its default and its range."""

import math
from dataclasses import asdict, dataclass, replace
from typing import Any

from ntps.errors import NtpsError, in_range, one_of

METHODS = ("lora", "probe", "full", "scratch")
OPTIMIZERS = ("adamw", "adafactor")
# Measured on the bundled `miniworld-base`, 128 wide, with 100 steps of 16 texts; see `TrainSettings.for_width`.
LEARNING_RATES = {"lora": 3e-3, "probe": 1e-3, "full": 6e-4, "scratch": 1e-3}
REFERENCE_WIDTH = 128


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """What shapes fine-tuning, apart from model, texts and seed.

    Attributes:
        method: `"lora"`: low-rank adapters and a linear head; `"probe"`: the head alone, on frozen features;
            `"full"`: all weights; `"scratch"`: all weights, starting at random ones (the paper's Table 1 compares).
        steps: Optimiser steps.
        rank: Rank r of the adapters, in [1, width].
        alpha: Scale of the adapters: their product enters times alpha / rank.
        dropout: Share of an adapter's inputs dropped in training, in [0, 1).
        target: Where adapters go: `"all-linear"`, `"paper"` (the linear maps inside attention), or a tuple of endings
            of module names.
        learning_rate: Peak step size; `None` takes the method's, which is smaller for a wider model.
        weight_decay: Decoupled weight decay of matrices, at least 0.
        optimizer: `"adamw"`, or `"adafactor"` (the paper's).
        warmup: Share of the steps in which the step size rises linearly; then it falls to zero as a cosine.
        clip_norm: Largest norm of the gradient.
        batch_size: Texts in a batch.
        accumulation: Batches in a step.
        max_length: Most tokens of a text; `None`: 512, or the model's positions.
        evaluate_every: Steps between looks at the validation texts.
        patience: Looks without a lower validation loss before training ends; `None` runs all steps.
        margin: Standard errors (paired over validation texts) by which a look's loss must lie below the start's for its
            weights to be kept. With 0 any lower loss is enough, and on labels that cannot be learned the weights kept
            are those of a lucky look.
    """

    method: str = "lora"
    steps: int = 100
    rank: int = 32
    alpha: float = 32
    dropout: float = 0.05
    target: str | tuple[str, ...] = "all-linear"
    learning_rate: float | None = None
    weight_decay: float = 0.01
    optimizer: str = "adamw"
    warmup: float = 0.06
    clip_norm: float = 1.0
    batch_size: int = 16
    accumulation: int = 1
    max_length: int | None = None
    evaluate_every: int = 25
    patience: int | None = None
    margin: float = 2.0

    @property
    def step_size(self) -> float:
        """The peak learning rate: the one asked for, or the method's at the reference width."""
        return LEARNING_RATES[self.method] if self.learning_rate is None else self.learning_rate

    def for_width(self, width: int) -> "TrainSettings":
        """Return the settings with the learning rate of a model of this width filled in, where none was asked for.

        Adam moves every weight by about its learning rate, and `width` of them add up in an output: beyond the
        reference width the method's rate falls as 1/width (Yang et al., *Tensor Programs V*, arXiv 2203.03466, 2022).
        The head alone, whose inputs are standardised and whose start is converged, keeps its rate.
        """
        if self.learning_rate is not None:
            return self
        shrink = 1.0 if self.method == "probe" else min(1.0, REFERENCE_WIDTH / width)
        return replace(self, learning_rate=LEARNING_RATES[self.method] * shrink)

    def check(self, width: int | None = None) -> "TrainSettings":
        """Return the settings if they can be met.

        Args:
            width: The model's width, where it is known already.

        Raises:
            NtpsError: If one is out of range; the message names it and what would be accepted.
        """
        one_of(self.method, METHODS, "method")
        one_of(self.optimizer, OPTIMIZERS, "optimizer")
        for name in ("steps", "rank", "batch_size", "accumulation", "evaluate_every"):
            _whole(getattr(self, name), 1, name)
        for name, least in (("max_length", 2), ("patience", 1)):
            if getattr(self, name) is not None:
                _whole(getattr(self, name), least, name)
        if width is not None and self.rank > width and self.method == "lora":
            raise NtpsError(f"rank is {self.rank}, above the model's width; choose between 1 and {width}.")
        for name in ("learning_rate", "alpha", "clip_norm"):
            value = getattr(self, name)
            if value is None and name == "learning_rate":
                continue
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
                raise NtpsError(f"{name} is {value!r}; it must be a number above 0.")
        in_range(self.weight_decay, 0, None, "weight_decay")
        in_range(self.margin, 0, None, "margin")
        in_range(self.warmup, 0, 1, "warmup")
        in_range(self.dropout, 0, 0.999, "dropout")
        if isinstance(self.target, str):
            one_of(self.target, ("all-linear", "paper"), "target")
        elif not self.target or not all(isinstance(part, str) and part for part in self.target):
            raise NtpsError(f"target is {self.target!r}; give all-linear, paper, or endings of module names.")
        return self

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values, with the learning rate that is used."""
        target = self.target if isinstance(self.target, str) else list(self.target)
        return {**asdict(self), "target": target, "learning_rate": self.step_size}

    def rate(self, step: int) -> float:
        """Return the learning rate of a step, counted from 0: linear warm-up, then a cosine that ends at zero."""
        warm = max(1, round(self.warmup * self.steps))
        if step < warm:
            return self.step_size * (step + 1) / warm
        return self.step_size * (0.5 + 0.5 * math.cos(math.pi * (step - warm) / max(1, self.steps - warm)))


def _whole(value: Any, least: int, name: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise NtpsError(f"{name} is {value!r}; it must be a whole number of at least {least}.")
    in_range(value, least, None, name)
