"""`TrainSettings`: the options of fine-tuning with their defaults and ranges."""

import math
from dataclasses import dataclass, replace
from typing import Any

from ntps._files import Record, jsonable
from ntps.errors import NtpsError, in_range, one_of, whole
from ntps.models.pretrained import DTYPES

LOOK_STEPS = 20  # first steps of a run after which a look reads what they save
METHODS = ("lora", "probe", "full", "scratch")
OPTIMIZERS = ("adamw", "adafactor")
TARGETS = ("all-linear", "paper")  # or endings of module names
HEADS = ("probe", "random")
KEPT = ("best", "last")
SCHEDULES = ("cosine", "constant")
# The authors' scripts, value by value: lora_finetuning.py, linear_training.py and from_scratch.py in
# github.com/Yu-AngCheng/NTPS, commit 0f877f7. They train on all training texts; here a twentieth is set aside, for the
# curve alone. Adafactor clips by its own rule.
_PAPER: dict[str, Any] = {
    "dtype": "bfloat16", "head": "random", "head_dropout": 0.05, "optimizer": "adafactor", "learning_rate": 1e-4,
    "weight_decay": 1e-5, "clip_norm": None, "warmup": 0.05, "batch_size": 1, "evaluate_every": 500, "keep": "last",
    "validation": 0.05,
}  # fmt: skip
RECIPES: dict[str, dict[str, Any]] = {
    "paper": {**_PAPER, "method": "lora", "target": "paper", "rank": 32, "alpha": 32, "dropout": 0.05, "steps": 5000},
    "paper-probe": {
        **_PAPER, "method": "probe", "optimizer": "adamw", "weight_decay": 0.01, "schedule": "constant", "warmup": 0.0,
        "batch_size": 64, "epochs": 50,
    },
    "paper-scratch": {**_PAPER, "method": "scratch", "steps": 10000, "dtype": "float32"},
}  # fmt: skip
# Measured on the bundled `miniworld-base`, 128 wide, with 100 steps of 16 texts; see `TrainSettings.for_width`.
LEARNING_RATES = {"lora": 3e-3, "probe": 1e-3, "full": 6e-4, "scratch": 1e-3}
REFERENCE_WIDTH = 128


@dataclass(frozen=True, kw_only=True)
class TrainSettings(Record):
    """Options of fine-tuning, checked when they are made.

    Attributes:
        method: `"lora"`: low-rank adapters and a linear head; `"probe"`: the head alone, on frozen features;
            `"full"`: all weights; `"scratch"`: all weights, starting from random ones (as in the paper's Table 1).
        steps: Number of optimiser steps, at least 1.
        epochs: Number of times that every training text is read, instead of `steps`.
        rank: Rank r of the adapters, from 1 to the model's width.
        alpha: Scale of the adapters, above 0: their output is multiplied by alpha / rank.
        dropout: Share of an adapter's inputs dropped in training, from 0 to 0.999.
        target: Modules that get adapters: `"all-linear"`, `"paper"` (query, key and value, joint or separate), or a
            tuple of endings of module names.
        start_layer: First block, counted from 0, whose modules get adapters; `"auto"` is that after which the training
            texts' labels are read worse, or 0 if they are nowhere (see `ntps.finetune.depth`).
        head: How the linear head starts: `"probe"`, the converged logistic probe of standardised features, or
            `"random"`, on features as they are.
        head_dropout: Share of the head's inputs dropped in training, from 0 to 0.999.
        learning_rate: Peak learning rate, above 0; `None` is the method's, which is smaller for a wider model.
        weight_decay: Decoupled weight decay of matrices, at least 0.
        optimizer: `"adamw"`, or `"adafactor"` (the paper's).
        warmup: Share of the steps, in [0, 1], over which the learning rate rises linearly.
        schedule: What it does then: `"cosine"`, fall to zero along a cosine, or `"constant"`.
        clip_norm: Largest norm of the gradient, above 0; `None` for any.
        batch_size: Texts per batch.
        accumulation: Batches per step.
        dtype: Type of the weights that training starts from, as in `ntps.load_model`: a model that is given by name is
            loaded in it, one that is loaded already must have it.
        max_length: Largest number of tokens of a text, at least 2; `None` is 512, or the model's positions if fewer.
        evaluate_every: Steps between two evaluations on the validation texts.
        validation: Share of the texts that are not tested, in (0, 1), that are set aside for evaluations.
        keep: Weights of which evaluation are used: the `"best"` by the margin below, or the `"last"`.
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
    epochs: int | None = None
    rank: int = 32
    alpha: float = 32
    dropout: float = 0.05
    target: str | tuple[str, ...] = "all-linear"
    start_layer: int | str = 0
    head: str = "probe"
    head_dropout: float = 0.0
    learning_rate: float | None = None
    weight_decay: float = 0.01
    optimizer: str = "adamw"
    warmup: float = 0.06
    schedule: str = "cosine"
    clip_norm: float | None = 1.0
    batch_size: int = 16
    accumulation: int = 1
    dtype: str | None = None
    max_length: int | None = None
    evaluate_every: int = 25
    validation: float = 0.2
    keep: str = "best"
    patience: int | None = None
    margin: float = 2.5

    def __post_init__(self) -> None:
        one_of(self.method, METHODS, "method")
        one_of(self.optimizer, OPTIMIZERS, "optimizer")
        one_of(self.head, HEADS, "head")
        one_of(self.keep, KEPT, "keep")
        one_of(self.schedule, SCHEDULES, "schedule")
        if self.dtype is not None:
            one_of(self.dtype, DTYPES, "dtype")
        if self.start_layer != "auto":
            if isinstance(self.start_layer, str):
                raise NtpsError(
                    f"start_layer is {self.start_layer!r}; it must be auto or a whole number of at least 0."
                )
            whole(self.start_layer, 0, None, "start_layer")
        for name in ("steps", "rank", "batch_size", "accumulation", "evaluate_every"):
            whole(getattr(self, name), 1, None, name)
        for name, least in (("max_length", 2), ("patience", 1), ("epochs", 1)):
            if getattr(self, name) is not None:
                whole(getattr(self, name), least, None, name)
        for name in ("alpha", "clip_norm", "learning_rate"):
            value = getattr(self, name)
            if value is None and name != "alpha":
                continue
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
                raise NtpsError(f"{name} is {value!r}; it must be a number above 0.")
        in_range(self.weight_decay, 0, None, "weight_decay")
        in_range(self.margin, 0, None, "margin")
        in_range(self.warmup, 0, 1, "warmup")
        in_range(self.dropout, 0, 0.999, "dropout")
        in_range(self.head_dropout, 0, 0.999, "head_dropout")
        in_range(self.validation, 0.01, 0.9, "validation")
        if isinstance(self.target, str):
            one_of(self.target, TARGETS, "target")
        elif not self.target or not all(isinstance(ending, str) and ending for ending in self.target):
            raise NtpsError(f"target is {self.target!r}; give all-linear, paper, or endings of module names.")

    @classmethod
    def recipe(cls, name: str, **changes: Any) -> "TrainSettings":
        """Return a named recipe, with some values changed.

        `"paper"` is the authors' LoRA, `"paper-probe"` the linear head that they compare it with (Figure 3, Table 1),
        `"paper-scratch"` their training from random weights.

        Args:
            name: One of the three.
            **changes: Attributes to change.

        Raises:
            NtpsError: If the recipe is unknown, or a value out of range.
        """
        one_of(name, RECIPES, "recipe")
        return cls(**{**RECIPES[name], **changes})

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

    def for_texts(self, n: int) -> "TrainSettings":
        """Return the settings for n training texts: `steps` is filled in where `epochs` were given."""
        if self.epochs is None:
            return self
        return replace(self, steps=math.ceil(self.epochs * math.ceil(n / self.batch_size) / self.accumulation))

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values; `learning_rate` is the rate used."""
        return jsonable({**vars(self), "learning_rate": self.step_size})

    def rate(self, step: int) -> float:
        """Return the learning rate of a step, counted from 0."""
        warm = max(1, round(self.warmup * self.steps))
        if step < warm:
            return self.step_size * (step + 1) / warm
        if self.schedule == "constant":
            return self.step_size
        return self.step_size * (0.5 + 0.5 * math.cos(math.pi * (step - warm) / max(1, self.steps - warm)))
