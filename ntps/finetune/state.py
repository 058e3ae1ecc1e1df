"""The state of a run of training on disk, from which it continues: what it holds, and what it must be to be trusted."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from ntps._files import from_json, load_tensors, save_tensors
from ntps.errors import NtpsError
from ntps.finetune.settings import TrainSettings

FILE = "state.safetensors"
_KIND = "ntps-train-state"


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The evaluation of one step on the validation texts; losses in nats.

    Attributes:
        step: Number of steps completed.
        loss: Mean training loss since the last evaluation; at step 0 that of the head that training starts from.
        validation_loss: Mean loss of the validation texts.
        validation_accuracy: Share of them whose class is predicted right.
    """

    step: int
    loss: float
    validation_loss: float
    validation_accuracy: float


@dataclass(kw_only=True)
class Progress:
    """The state of a run apart from its tensors, as JSON values.

    Attributes:
        micro_batch: Number of texts that go through the network at once; halved when memory runs out.
        step: Steps completed.
        best_step: The step whose weights are chosen: that of the lowest validation loss among those below the initial
            one by the settings' margin; 0 when there is none.
        curve: The evaluations so far, the first at step 0.
        initial_losses: Loss of each validation text at step 0.
        losses: Training loss of each step since the last evaluation.
        finished: Whether the run is over.
    """

    micro_batch: int
    step: int = 0
    best_step: int = 0
    curve: list[Evaluation] = field(default_factory=list)
    initial_losses: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    finished: bool = False

    def over(self, settings: TrainSettings) -> bool:
        """Return whether all steps are done or patience has run out."""
        losses = [evaluation.validation_loss for evaluation in self.curve]
        since = len(losses) - 1 - losses.index(min(losses))
        return self.step == settings.steps or (settings.patience is not None and since >= settings.patience)

    def fits(self, settings: TrainSettings, n_validation: int) -> bool:
        """Return whether a run with these settings and this number of validation texts writes such a progress."""
        if not 0 < self.step <= settings.steps:
            return False
        every = settings.evaluate_every
        due = [step for step in range(1, self.step + 1) if step % every == 0 or step == settings.steps]
        steps = [evaluation.step for evaluation in self.curve]
        losses = [loss for evaluation in self.curve for loss in (evaluation.loss, evaluation.validation_loss)]
        return (
            steps == [0, *due]
            and len(self.losses) == self.step - steps[-1]
            and all(0 <= loss < math.inf for loss in (*losses, *self.losses, *self.initial_losses))
            and all(0 <= evaluation.validation_accuracy <= 1 for evaluation in self.curve)
            and len(self.initial_losses) == n_validation
            and math.isclose(sum(self.initial_losses) / n_validation, self.curve[0].validation_loss, rel_tol=1e-6)
            and self.best_step in (steps if settings.keep == "best" else steps[-1:])
            and 1 <= self.micro_batch <= settings.batch_size
            and self.finished == self.over(settings)
        )


@dataclass(kw_only=True)
class State:
    """All that a run needs to continue.

    Attributes:
        progress: Step, curve and other JSON values.
        best: The trained tensors at the best step by name.
        now: Those after the last step; none once the run is finished.
        optimizer: The optimiser's entries, tensors and numbers, by the number of the trained tensor.
    """

    progress: Progress
    best: dict[str, torch.Tensor]
    now: dict[str, torch.Tensor]
    optimizer: dict[int, dict[str, Any]]

    def holds(self, trained: Mapping[str, torch.Tensor], optimizer: Mapping[int, Mapping[str, Any]]) -> bool:
        """Return whether its tensors are those of a run.

        Args:
            trained: The tensors that the run trains by name.
            optimizer: What its optimiser keeps of each after a step; only kinds and shapes are read.
        """
        if not _alike(self.best, trained):
            return False
        if self.progress.finished:
            return not self.now and not self.optimizer
        return (
            _alike(self.now, trained)
            and bool(self.optimizer)
            and self.optimizer.keys() <= optimizer.keys()
            and all(self._follows(entries, optimizer[index]) for index, entries in self.optimizer.items())
        )

    def _follows(self, entries: Mapping[str, Any], expected: Mapping[str, Any]) -> bool:
        """Return whether an optimiser can keep these entries of a tensor after this run's steps."""
        squares = [value for name, value in entries.items() if "_sq" in name]
        return (
            _alike(_tensors(entries), _tensors(expected))
            and entries.keys() == expected.keys()
            and 1 <= entries["step"] <= self.progress.step  # fewer where a tensor had no gradient
            and all(bool((square >= 0).all()) for square in squares)
        )


def write_state(path: Path, run: Mapping[str, Any], state: State) -> None:
    """Write a state, and what the run is made of.

    Raises:
        NtpsError: If the file cannot be written.
    """
    tensors = {f"best|{name}": value for name, value in state.best.items()}
    tensors |= {f"now|{name}": value for name, value in state.now.items()}
    scalars: dict[str, dict[str, int]] = {}
    for index, entries in state.optimizer.items():
        kept = _tensors(entries)
        tensors |= {f"optimizer|{index}|{key}": value for key, value in kept.items()}
        scalars[str(index)] = {key: value for key, value in entries.items() if key not in kept}
    header = {"kind": _KIND, "run": dict(run), "progress": asdict(state.progress), "scalars": scalars}
    save_tensors(path, tensors, header)


def read_state(path: Path) -> tuple[dict[str, Any], State]:
    """Return what the run of a state is made of, and the state.

    Raises:
        NtpsError: If the file is damaged or holds something else.
    """
    tensors, header = load_tensors(path, _KIND)
    try:
        run = from_json(dict[str, Any], header.get("run"), "run")
        progress = from_json(Progress, header.get("progress"), "progress")
        scalars = from_json(dict[str, dict[str, int]], header.get("scalars"), "scalars")
    except NtpsError as error:
        raise NtpsError(f"{path} is damaged: {error}") from error
    state = State(progress=progress, best={}, now={}, optimizer={})
    try:
        state.optimizer = {int(index): dict(entries) for index, entries in scalars.items()}
        for name, value in tensors.items():
            group, _, rest = name.partition("|")
            if group == "optimizer":
                index, _, key = rest.partition("|")
                if key in (entries := state.optimizer.setdefault(int(index), {})):
                    raise KeyError(key)
                entries[key] = value
            else:
                {"best": state.best, "now": state.now}[group][rest] = value
    except (KeyError, ValueError) as error:
        raise NtpsError(f"{path} is damaged: it holds tensors that no run has.") from error
    return run, state


def _tensors(entries: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    return {name: value for name, value in entries.items() if isinstance(value, torch.Tensor)}


def _alike(found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> bool:
    """Return whether tensors have the expected names, shapes and types, and hold finite numbers."""
    return found.keys() == expected.keys() and all(
        tensor.shape == expected[name].shape and tensor.dtype == expected[name].dtype and bool(tensor.isfinite().all())
        for name, tensor in found.items()
    )
