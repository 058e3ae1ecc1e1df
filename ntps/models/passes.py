"""Run a model over a task once and keep the moments of every layer, in batches of similar length, on any device.

Several processes split the batches, not the texts: what is added at once is the same whatever their number, so the sums
agree to rounding in float64. Start them with `torchrun --nproc-per-node N -m ntps score ...`.
"""

import atexit
import contextlib
import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ntps._version import __version__
from ntps.core.accumulator import MomentAccumulator, NonFiniteError, States
from ntps.core.layout import COLUMNS
from ntps.core.moments import Moments
from ntps.errors import NtpsError, in_range, one_of
from ntps.models.features import DTYPES, Features
from ntps.models.plan import assign_folds, group_batches, make_request, plan_batches

if TYPE_CHECKING:
    from ntps.models.load import LanguageModel
    from ntps.tasks.load import Task


def collect_moments(
    model: "LanguageModel",
    task: "Task",
    *,
    layers: str | int | Sequence[int] = "all",
    batch_size: int = 32,
    max_length: int | None = None,
    prefix: str = "sum",
    folds: int = 0,
    fold_prefix: bool = False,
    seed: int = 0,
    matmul_precision: str = "auto",
    progress: bool | None = None,
) -> Moments:
    """Run a model over a task once and return the moments of its layers.

    Args:
        model: From `ntps.load_model`.
        task: From `ntps.load_task`.
        layers: `"all"`, a number, a list, or text such as `"0,6,-1"`. Layer 0 is the embedding output, the last one the
            state after the final norm.
        batch_size: Most texts in a batch. It changes speed and memory, and the result by rounding only. On a GPU out of
            memory it is halved until the batch fits.
        max_length: Most tokens of a text; longer ones are cut and counted. By default 512, or the model's positions.
        prefix: `"sum"` (the paper), `"mean"` or `"last"`: what stands for the past of a token.
        folds: Keep pooled moments for so many folds, for held-out shares; 0 for none.
        fold_prefix: Keep C0 and C1 per fold too.
        seed: Seed of the folds.
        matmul_precision: See `MomentAccumulator`.
        progress: Show a progress bar on stderr; by default when it is a terminal.

    Returns:
        Moments of the texts that have tokens; `metadata` counts those skipped and cut.

    Raises:
        NtpsError: If an option is out of range, no text has a token, or a hidden state is not finite.
    """
    return collect(
        model,
        task,
        layers=layers,
        batch_size=batch_size,
        max_length=max_length,
        prefix=prefix,
        folds=folds,
        fold_prefix=fold_prefix,
        seed=seed,
        matmul_precision=matmul_precision,
        progress=progress,
        keep_features=False,
    )[0]


def collect(
    model: "LanguageModel",
    task: "Task",
    *,
    batch_size: int = 32,
    keep_features: bool = True,
    feature_dtype: str = "float32",
    progress: bool | None = None,
    **options: Any,
) -> tuple[Moments, Features | None]:
    """Return (moments, pooled features) from one pass; options as `collect_moments`.

    Features take S * n * d * 4 bytes of memory, half of that with `feature_dtype="float16"`, unless a state is beyond
    the 65,504 that float16 holds: then they are float32 all the same.

    Raises:
        NtpsError: As `collect_moments`.
    """
    one_of(feature_dtype, DTYPES, "feature_dtype")
    request = make_request(model.n_layers, model.max_positions, task, **options)
    in_range(batch_size, 1, None, "batch_size")
    tokenized = model.tokenize(task.texts, request.max_length)
    lengths = np.array([len(ids) for ids in tokenized.ids])
    if not lengths.any():
        raise NtpsError(f"{task.name}: none of the {len(task)} texts has a token in it.")
    batches = plan_batches(lengths, batch_size)
    groups = group_batches(batches, lengths, COLUMNS if model.device.type == "cpu" else 0)
    fold_of = assign_folds(task.labels, request.folds, seed=request.seed) if request.folds else None
    processes = _Processes(model.device)
    accumulator = MomentAccumulator(
        layers=request.layers,
        width=model.width,
        n_targets=task.n_classes,
        prefix=request.prefix,
        folds=request.folds,
        fold_prefix=request.fold_prefix,
        device=model.device,
        accumulate_dtype=torch.float64 if model.dtype == "float64" else torch.float32,
        matmul_precision=request.matmul_precision,
    )
    values = np.zeros((len(request.layers), len(task), model.width), dtype=feature_dtype) if keep_features else None
    run = _Run(model, task, tokenized.ids, accumulator, fold_of, values)
    with _progress_bar(int(lengths.sum()), progress, processes.is_main) as advance:
        for group in processes.share(groups):
            for batch in group:
                run.read(batch)
                advance(int(lengths[batch].sum()) * processes.count, len(batch) * processes.count)
            run.add_waiting()
    processes.reduce(accumulator.sums())
    kept = np.flatnonzero(lengths)
    features = None
    if run.values is not None:
        values = processes.reduce_array(run.values)
        fits = np.abs(values).max() <= np.finfo(feature_dtype).max
        values = values.astype(feature_dtype if fits else np.float32, copy=False)
        features = Features(
            values[:, kept], task.labels[kept], request.layers, kept, None if fold_of is None else fold_of[kept]
        )
    metadata = {
        "model": model.name,
        "model_fingerprint": model.fingerprint,
        "model_source": model.source,
        "revision": model.revision,
        "dtype": model.dtype,
        "task": task.name,
        "task_fingerprint": task.fingerprint,
        "task_source": task.source,
        "classes": list(task.classes),
        "max_length": request.max_length,
        "n_skipped": int((lengths == 0).sum()),
        "n_truncated": tokenized.n_truncated,
        "pooling": "mean over tokens",
        "layer_convention": "0 is the embedding output, the last is after the final norm",
        "settings": {**request.settings(), "dtype": model.dtype, "batch_size": batch_size, "device": str(model.device)},
        "version": __version__,
        "key": request.key(model.fingerprint, model.dtype, task),
    }
    return accumulator.finalize(metadata), features


class _Run:
    """One pass: forward, accumulate, and on a GPU without memory do it again in halves.

    On a CPU the states of short batches wait for one another: their sums are then read and written once. On a GPU they
    would only take memory.
    """

    def __init__(
        self,
        model: "LanguageModel",
        task: "Task",
        ids: list[list[int]],
        accumulator: MomentAccumulator,
        fold_of: np.ndarray | None,
        values: np.ndarray | None,
    ) -> None:
        self.model, self.task, self.ids = model, task, ids
        self.accumulator, self.fold_of, self.values = accumulator, fold_of, values
        self.most: int | None = None  # texts that fit, once memory ran out
        self.waiting: list[tuple[np.ndarray, list[torch.Tensor], torch.Tensor]] = []

    def read(self, batch: np.ndarray) -> None:
        """Run the model on a batch; when memory runs out, in parts. A size that did not fit is not tried again."""
        start = 0
        while start < len(batch):
            part = batch[start : start + (self.most or len(batch))]
            forward = self._forward(part)
            if forward is not None:
                self.waiting.append((part, *forward))
                start += len(part)
                if self.most:
                    self.add_waiting()
            elif len(part) > 1:
                torch.cuda.empty_cache()
                self.most = len(part) // 2
            else:
                raise self._too_long(part)

    def _forward(self, batch: np.ndarray) -> tuple[list[torch.Tensor], torch.Tensor] | None:
        """Return the chosen layers' states and the mask, or `None` when memory ran out."""
        tokens, mask = self.model.pad([self.ids[place] for place in batch])
        try:
            states = self.model.hidden_states(tokens, mask)
        except torch.cuda.OutOfMemoryError:
            return None
        if len(states) != self.model.n_layers:
            raise NtpsError(f"{self.model.name} returned {len(states)} hidden states; {self.model.n_layers} expected.")
        return [states[layer] for layer in self.accumulator.layers], mask

    def add_waiting(self) -> None:
        """Add the states that wait to the sums."""
        if not self.waiting:
            return
        waiting, self.waiting = self.waiting, []
        places = np.concatenate([batch for batch, *_ in waiting])
        batches: list[States] = [
            (states, mask, torch.from_numpy(self.task.labels[batch]), self._folds(batch))
            for batch, states, mask in waiting
        ]
        try:
            pooled = self.accumulator.update_many(batches, return_pooled=self.values is not None)
        except NonFiniteError as error:
            place = int(places[error.text])
            raise NonFiniteError(error.layer, place, self.task.texts[place]) from None
        except torch.cuda.OutOfMemoryError:  # it halves batches itself: not even one text fits
            raise self._too_long(places) from None
        if self.values is not None and pooled is not None:
            rows = pooled.float().cpu().numpy()
            if np.abs(rows).max() > np.finfo(self.values.dtype).max:
                self.values = self.values.astype(np.float32)
            self.values[:, places] = rows

    def _folds(self, batch: np.ndarray) -> torch.Tensor | None:
        return None if self.fold_of is None else torch.from_numpy(self.fold_of[batch])

    def _too_long(self, batch: np.ndarray) -> NtpsError:
        return NtpsError(
            f"the device has too little memory for one text of {len(self.ids[batch[0]])} tokens; lower max_length or "
            "choose a smaller dtype."
        )


def _leave() -> None:
    """Close the process group: its threads must be joined before the interpreter ends, or it may abort."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


class _Processes:
    """The processes that torchrun started, or this one alone."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.count, self.rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
        if self.count > 1:
            from accelerate import PartialState

            state = PartialState(cpu=device.type == "cpu")
            self.count, self.rank = state.num_processes, state.process_index
            atexit.unregister(_leave)
            atexit.register(_leave)

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def share(self, groups: list[list[np.ndarray]]) -> list[list[np.ndarray]]:
        return groups[self.rank :: self.count]

    def reduce(self, sums: dict[str, torch.Tensor]) -> None:
        if self.count > 1:
            for name in sorted(sums):
                torch.distributed.all_reduce(sums[name])

    def reduce_array(self, values: np.ndarray) -> np.ndarray:
        if self.count == 1:
            return values
        tensor = torch.from_numpy(values.astype(np.float32)).to(
            self.device
        )  # each text was read by one process: the others hold zeros
        torch.distributed.all_reduce(tensor)
        return tensor.cpu().numpy()


@contextlib.contextmanager
def _progress_bar(n_tokens: int, show: bool | None, is_main: bool) -> Iterator[Any]:
    from tqdm import tqdm

    disable = None if show is None and is_main else not (show and is_main)  # None: only on a terminal
    layout = "{desc} {percentage:3.0f}% |{bar}| {n_fmt}/{total_fmt} tokens, {rate_fmt}, {remaining} left"
    texts = 0
    with tqdm(total=n_tokens, unit=" tokens", unit_scale=True, disable=disable, bar_format=layout, ncols=80) as bar:

        def advance(tokens: int, more_texts: int) -> None:
            nonlocal texts
            texts += more_texts
            bar.set_description_str(f"{texts} texts", refresh=False)
            bar.update(min(tokens, n_tokens - bar.n))

        yield advance
