"""A small trained head on pooled features, as the paper trains one: linear, or one hidden layer."""

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from ntps._files import jsonable
from ntps.errors import NtpsError, in_range
from ntps.scoring.probes import check_features, class_scores, make_folds, standardise


@dataclass(frozen=True)
class HeadResult:
    """A trained head on texts that neither training nor early stopping saw.

    Attributes:
        accuracy: Share of test texts predicted right.
        balanced_accuracy: Mean recall over the classes in the test texts.
        macro_f1: Mean F1.
        above_majority: Accuracy minus the share of the most frequent class among test texts.
        best_epoch: Epoch (from 1) whose weights were kept, by validation loss.
        train_loss, validation_loss: Cross-entropy of each epoch run, in nats.
        n_train, n_validation, n_test: Texts in each part.
    """

    accuracy: float
    balanced_accuracy: float
    macro_f1: float
    above_majority: float
    best_epoch: int
    train_loss: tuple[float, ...] = field(repr=False)
    validation_loss: tuple[float, ...] = field(repr=False)
    n_train: int
    n_validation: int
    n_test: int

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-able dictionary."""
        return jsonable(vars(self))


def trained_head(
    features: ArrayLike,
    labels: ArrayLike,
    *,
    hidden: int | None = None,
    split: tuple[ArrayLike, ArrayLike] | None = None,
    learning_rate: float = 1e-3,
    weight_decay: float = 0.01,
    batch_size: int = 32,
    epochs: int = 100,
    patience: int = 5,
    random_state: int = 0,
) -> HeadResult:
    """Train a linear or one-hidden-layer (ReLU) head with AdamW and early stopping.

    A fifth of the training texts, stratified, is kept for early stopping: training ends when its loss has not
    improved for `patience` epochs, and the best weights are used. The result depends on `random_state` alone: the
    global torch generator is neither read nor moved.

    Args:
        features: (n, d), finite, n >= 10.
        labels: Class indices (n,), at least two different.
        hidden: Width of the hidden layer; `None` is a linear head.
        split: `(train, test)` index arrays; `None` tests on a stratified fifth.
        learning_rate: Step size, positive.
        weight_decay: Decoupled weight decay, at least 0.
        batch_size: Texts a step, at least 1.
        epochs: Most passes over the training texts.
        patience: Epochs without improvement before stopping.
        random_state: Seed of split, initial weights and order.

    Raises:
        NtpsError: If shapes, values, split or options are unusable, or the loss becomes non-finite.
    """
    import torch

    x, y = check_features(features, labels)
    for name, value, low in (("batch_size", batch_size, 1), ("epochs", epochs, 1), ("patience", patience, 1)):
        in_range(value, low, None, name)
    in_range(learning_rate, 1e-8, 1e3, "learning_rate")
    in_range(weight_decay, 0, None, "weight_decay")
    if hidden is not None:
        in_range(hidden, 1, None, "hidden")
    in_range(len(y), 10, None, "the number of texts")
    train, test = make_folds(y, 5 if split is None else [split], random_state)[0]
    in_range(len(train), 5, None, "the number of training texts")
    fit, check = make_folds(y[train], 5, random_state + 1)[0]
    scaled, held = standardise(x[train[fit]], np.concatenate([x[train[check]], x[test]]))
    data = [torch.from_numpy(part.astype(np.float32)) for part in (scaled, held[: len(check)], held[len(check) :])]
    targets = [torch.from_numpy(y[part]) for part in (train[fit], train[check])]
    classes, threads = int(y.max()) + 1, torch.get_num_threads()
    generator = torch.Generator().manual_seed(random_state)
    torch.set_num_threads(1)  # steps this small only wait for each other on several
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(random_state)
            model = (
                torch.nn.Linear(x.shape[1], classes)
                if hidden is None
                else torch.nn.Sequential(
                    torch.nn.Linear(x.shape[1], hidden), torch.nn.ReLU(), torch.nn.Linear(hidden, classes)
                )
            )
        optimiser = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=weight_decay)
        loss_of = torch.nn.functional.cross_entropy
        losses: list[float] = []
        validation: list[float] = []
        best, best_epoch, kept = math.inf, 0, {}
        for epoch in range(1, epochs + 1):
            total = 0.0
            for rows in torch.randperm(len(fit), generator=generator).split(batch_size):
                loss = loss_of(model(data[0][rows]), targets[0][rows])
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                total += float(loss.detach()) * len(rows)
            losses.append(total / len(fit))
            with torch.no_grad():
                validation.append(float(loss_of(model(data[1]), targets[1])))
            if not math.isfinite(losses[-1]) or not math.isfinite(validation[-1]):
                raise NtpsError(
                    f"the head's loss is not finite at epoch {epoch}; try a learning_rate below {learning_rate}."
                )
            if validation[-1] < best:
                best, best_epoch = validation[-1], epoch
                kept = {name: value.clone() for name, value in model.state_dict().items()}
            elif epoch - best_epoch >= patience:
                break
        model.load_state_dict(kept)
        with torch.no_grad():
            guess = model(data[2]).argmax(1).numpy()
    finally:
        torch.set_num_threads(threads)
    accuracy, balanced, f1 = class_scores(y[test], guess)
    majority = float(np.bincount(y[test]).max() / len(test))
    sizes = (len(fit), len(check), len(test))
    return HeadResult(accuracy, balanced, f1, accuracy - majority, best_epoch, tuple(losses), tuple(validation), *sizes)
