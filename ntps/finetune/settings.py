"""`TrainSettings`: the options of fine-tuning with their defaults and ranges."""

import math
from dataclasses import asdict, dataclass, replace
from typing import Any

from ntps._files import jsonable
from ntps.errors import NtpsError, in_range, one_of, whole

METHODS = ("lora", "probe", "full", "scratch")
OPTIMIZERS = ("adamw", "adafactor")
TARGETS = ("all-linear", "paper")  # or endings of module names
# Measured on the bundled `miniworld-base`, 128 wide, with 100 steps of 16 texts; see `TrainSettings.for_width`.
LEARNING_RATES = {"lora": 3e-3, "probe": 1e-3, "full": 6e-4, "scratch": 1e-3}
REFERENCE_WIDTH = 128


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """Options of fine-tuning, checked when they are made.

    Attributes:
        method: `"lora"`: low-rank adapters and a linear head; `"probe"`: the head alone, on frozen features;
            `"full"`: all weights; `"scratch"`: all weights, starting from random ones (as in the paper's Table 1).
        steps: Number of optimiser steps, at least 1.
        rank: Rank r of the adapters, from 1 to the model's width.
        alpha: Scale of the adapters, above 0: their output is multiplied by alpha / rank.
        dropout: Share of an adapter's inputs dropped in training, from 0 to 0.999.
        target: Modules that get adapters: `"all-linear"`, `"paper"` (the linear maps inside attention), or a tuple of
            endings of module names.
        learning_rate: Peak learning rate, above 0; `None` is the method's, which is smaller for a wider model.
        weight_decay: Decoupled weight decay of matrices, at least 0.
        optimizer: `"adamw"`, or `"adafactor"` (the paper's).
        warmup: Share of the steps, in [0, 1], over which the learning rate rises linearly; it then falls to zero along
            a cosine.
        clip_norm: Largest norm of the gradient, above 0.
        batch_size: Texts per batch.
        accumulation: Batches per step.
        max_length: Largest number of tokens of a text, at least 2; `None` is 512, or the model's positions if fewer.
        evaluate_every: Steps between two evaluations on the validation texts.
        patience: Number of evaluations without a lower validation loss after which training ends; `None` runs all
            steps.
        margin: Standard errors (paired over validation texts) by which the validation loss of an evaluation must lie
            below the initial one for its weights to be chosen. With 0 any lower loss is enough: on labels that cannot
            be learned, the weights of a lucky evaluation are then chosen. With 2.5, and four evaluations that each may
            be the lucky one, this happens in about 2 % of runs (with 2, in 7 %); more often where training makes a few
            texts much worse and none of the validation texts is among them.

    Raises:
        NtpsError: If an option is out of range; the message names it and what is accepted.
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
    margin: float = 2.5

    def __post_init__(self) -> None:
        one_of(self.method, METHODS, "method")
        one_of(self.optimizer, OPTIMIZERS, "optimizer")
        for name in ("steps", "rank", "batch_size", "accumulation", "evaluate_every"):
            whole(getattr(self, name), 1, None, name)
        for name, least in (("max_length", 2), ("patience", 1)):
            if getattr(self, name) is not None:
                whole(getattr(self, name), least, None, name)
        for name in ("alpha", "clip_norm", *(["learning_rate"] if self.learning_rate is not None else [])):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
                raise NtpsError(f"{name} is {value!r}; it must be a number above 0.")
        in_range(self.weight_decay, 0, None, "weight_decay")
        in_range(self.margin, 0, None, "margin")
        in_range(self.warmup, 0, 1, "warmup")
        in_range(self.dropout, 0, 0.999, "dropout")
        if isinstance(self.target, str):
            one_of(self.target, TARGETS, "target")
        elif not self.target or not all(isinstance(ending, str) and ending for ending in self.target):
            raise NtpsError(f"target is {self.target!r}; give all-linear, paper, or endings of module names.")

    @property
    def step_size(self) -> float:
        """The peak learning rate: the one given, or the method's at the reference width."""
        return LEARNING_RATES[self.method] if self.learning_rate is None else self.learning_rate

    def for_width(self, width: int) -> "TrainSettings":
        """Return the settings for a model of this width: its learning rate is filled in where none was given.

        Adam moves every weight by about its learning rate, and `width` of them add up in an output: beyond the
        reference width the method's rate falls as 1/width (Yang et al., *Tensor Programs V*, arXiv 2203.03466, 2022).
        The head alone, whose inputs are standardised and which starts converged, keeps its rate.

        Raises:
            NtpsError: If the rank is above the width.
        """
        if self.rank > width and self.method == "lora":
            raise NtpsError(f"rank is {self.rank}, above the model's width; choose between 1 and {width}.")
        if self.learning_rate is not None:
            return self
        shrink = 1.0 if self.method == "probe" else min(1.0, REFERENCE_WIDTH / width)
        return replace(self, learning_rate=LEARNING_RATES[self.method] * shrink)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values; `learning_rate` is the rate used."""
        return jsonable({**asdict(self), "learning_rate": self.step_size})

    def rate(self, step: int) -> float:
        """Return the learning rate of a step, counted from 0: linear warm-up, then a cosine that ends at zero."""
        warm = max(1, round(self.warmup * self.steps))
        if step < warm:
            return self.step_size * (step + 1) / warm
        return self.step_size * (0.5 + 0.5 * math.cos(math.pi * (step - warm) / max(1, self.steps - warm)))
