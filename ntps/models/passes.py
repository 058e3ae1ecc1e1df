"""One pass of a model over texts: hidden states become pooled states and next-token moments; no label is read.

Several processes split the batches; their sums agree with those of one process up to float64 rounding. Start them with
`torchrun --nproc-per-node N -m ntps score ...`, or `rank`.
"""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ntps._text import counted
from ntps._text import progress as progress_bar
from ntps._version import __version__
from ntps.core import NextTokenMoments, NonFiniteError, TextBatch, check_finite
from ntps.core.threads import NARROW_MODEL, one_torch_thread
from ntps.errors import NtpsError, whole
from ntps.models.forward import halving
from ntps.models.plan import (
    DEFAULT_MAX_LENGTH,
    PassPlan,
    PassSettings,
    parse_layers,
    plan_batches,
    plan_of,
    plan_that_fits,
)
from ntps.models.processes import Processes, freed_memory_returned
from ntps.models.representations import Representations, allocate_states, kept_states
from ntps.models.states import StateReader
from ntps.models.tokens import Tokens
from ntps.models.unfinished import Unfinished
from ntps.tasks.task import Task, fingerprint_texts

if TYPE_CHECKING:
    from ntps.models.language_model import LanguageModel

FILE = "representations.safetensors"
MANY_UNKNOWN = 0.1  # share of tokens that a tokenizer does not know beyond which it is said
SLOW_BATCH = 5.0  # seconds of a batch beside which a GPU's start does not matter
logger = logging.getLogger(__name__)


def collect(
    model: "LanguageModel",
    texts: Task | Sequence[str],
    *,
    layers: str | int | Sequence[int] = "all",
    max_length: int | None = None,
    pooling: str = "mean",
    prefix: str = "sum",
    batch_size: int = 32,
    matmul_precision: str = "auto",
    state_dtype: str = "float32",
    folder: str | Path | None = None,
    progress: bool | None = None,
) -> Representations:
    """Run a model over texts once and return what everything else is computed from.

    Memory: pooled states take 4 S n d bytes (on disk beyond 1 GB), next-token moments 16 S d^2 bytes on the model's
    device, for S layers, n texts and width d.

    Args:
        model: From `ntps.load_model`.
        texts: A task from `ntps.load_task`, whose labels are not read, or texts.
        layers: `"all"`, a number, a list, or text such as `"0,6,-1"`. Layer 0 is the embedding output, the last one the
            state after the final norm.
        max_length: Largest number of tokens of a text; longer texts are cut and counted. By default 512, or the model's
            positions if fewer.
        pooling: State that represents a text: the `"mean"` over its tokens (the paper's), or the `"last"`.
        prefix: The past of a token: `"sum"` of the states so far (the paper's), their `"mean"`, or the `"last"`.
        batch_size: Largest number of texts in a batch. It affects speed and memory, and the result by rounding only. A
            batch for which a GPU has too little memory is halved until it fits. `plan_pass` says beforehand what fits.
        matmul_precision: See `ntps.core.NextTokenMoments`.
        state_dtype: Type in which pooled states are kept once the pass is over: `"float32"`, or `"float16"` for half
            the size, about the mean of each channel and in a unit of its own.
        folder: Folder in which to keep the result, and to reuse it for the same model, texts and settings.
        progress: Whether to show a progress bar on stderr; by default when it is a terminal.

    Returns:
        Representations of the texts that have tokens; `metadata` counts those skipped and cut. A model that reads later
        tokens (`load_model(..., bidirectional=True)`) has pooled states and no next-token moments.

    Raises:
        NtpsError: If an option is out of range, no text has a token, the pass does not fit into memory, or a hidden
            state is not finite.
    """
    whole(batch_size, 1, None, "batch_size")
    task, texts = (texts, texts.texts) if isinstance(texts, Task) else (None, _as_texts(texts))
    settings = _settings(
        model,
        layers,
        max_length,
        pooling=pooling,
        prefix=prefix,
        matmul_precision=matmul_precision,
        state_dtype=state_dtype,
    )
    texts_digest = fingerprint_texts(texts) if task is None else task.texts_fingerprint
    processes = Processes(model.device)
    key = settings.key(processes.together(lambda: model.fingerprint), model.dtype, texts_digest)
    path = None if folder is None else Path(folder) / FILE
    if path is not None:
        earlier = processes.all_agree(lambda: _read_earlier(path, key))
        if earlier is not None:
            logger.info("using the representations in %s: same model, texts and settings.", path)
            return replace(earlier, task=task)
    started = time.monotonic()
    name = "the texts" if task is None else task.name
    tokens = processes.together(lambda: _tokens(model, texts, settings, name))
    lengths = tokens.lengths
    if processes.is_main:
        _log_losses(model, tokens, settings.max_length)
    alone = processes.count == 1 and not hasattr(model.model, "hf_device_map")  # several share memory, or have several
    plan = (plan_that_fits if alone else plan_of)(model, lengths, settings, batch_size)
    batches = processes.share(plan_batches(lengths, plan.batch_size))
    unfinished = None
    if path is not None:
        rows = _rows(lengths)[np.concatenate([np.zeros(0, dtype=np.int64), *batches])]
        unfinished = Unfinished(path.parent, key, rows, processes.rank)
    with freed_memory_returned(model.device), one_torch_thread(model.width < NARROW_MODEL):
        threads = torch.get_num_threads()
        states, moments = processes.together(
            lambda: _run(model, tokens, settings, plan, processes, progress, batches, unfinished)
        )
        if processes.count > 1:
            if moments is not None:
                moments.all_reduce()
            for layer_states in states:
                processes.add(layer_states)
    representations = Representations(
        **processes.together(lambda: kept_states(states, settings.state_dtype)),
        layers=settings.layers,
        widths=tuple(model.widths[layer] for layer in settings.layers),
        next_token=moments,
        text_index=np.flatnonzero(lengths),
        lengths=lengths,
        text_group=tokens.groups(),
        seconds=round(time.monotonic() - started, 3),
        metadata={
            "model": model.name,
            "model_fingerprint": model.fingerprint,
            "model_source": model.source,
            "revision": model.revision,
            "dtype": model.dtype,
            "texts_fingerprint": texts_digest,
            "max_length": settings.max_length,
            "n_skipped": int((lengths == 0).sum()),
            "n_truncated": tokens.n_truncated,
            "n_unknown": _unknown(model, tokens),
            "pooling": "mean over tokens" if settings.pooling == "mean" else "last token",
            "n_parameters": model.n_parameters,
            "memory_bytes": plan.needs.get(plan.device, plan.needs["memory"]),
            "layer_convention": "0 is the embedding output, the last is after the final norm",
            "settings": {
                **settings.to_dict(),
                "dtype": model.dtype,
                "batch_size": batch_size,
                "device": str(model.device),
                "threads": threads,
            },
            "version": __version__,
            "key": key,
        },
        task=task,
    )
    if path is not None and unfinished is not None:
        processes.together(lambda: representations.save(path) if processes.is_main else None)
        unfinished.remove()
    return representations


def plan_pass(
    model: "LanguageModel | str",
    texts: Task | Sequence[str],
    *,
    layers: str | int | Sequence[int] = "all",
    max_length: int | None = None,
    batch_size: int = 32,
    state_dtype: str = "float32",
    **loading: Any,
) -> PassPlan:
    """Say what `collect` will read and take with the same arguments; texts are tokenized, and no model runs.

    Args:
        model: A model, or the name of one whose weights need not be here: its configuration and tokenizer are read.
        texts: As for `collect`, and so are the others.
        layers: The layers.
        max_length: Largest number of tokens of a text.
        batch_size: Largest number of texts in a batch.
        state_dtype: Type of the pooled states.
        **loading: Options of `load_model`, with a name: `dtype`, `device`, `tokenizer`, ...

    Returns:
        Tokens, batches, dtype, the place of the sums, and bytes by place. `print` shows it; `to_dict` gives JSON.

    Raises:
        NtpsError: As for `load_model` and `collect`: a pass that does not fit is refused with the smallest change with
            which it would.
    """
    from ntps.models.load import load_model, outline_model

    whole(batch_size, 1, None, "batch_size")
    found = outline_model(model, **loading) if isinstance(model, str) else load_model(model, **loading)
    name, texts = (texts.name, texts.texts) if isinstance(texts, Task) else ("the texts", _as_texts(texts))
    settings = _settings(found, layers, max_length, state_dtype=state_dtype)
    tokens = _tokens(found, texts, settings, name)
    return plan_that_fits(found, tokens.lengths, settings, batch_size, tokens.n_truncated)


def _settings(
    model: "LanguageModel", layers: str | int | Sequence[int], max_length: int | None, **others: Any
) -> PassSettings:
    """Return the settings of a pass of a model."""
    max_length = whole(DEFAULT_MAX_LENGTH if max_length is None else max_length, 2, None, "max_length")
    max_length = min(max_length, model.max_positions or max_length)
    return PassSettings(layers=parse_layers(layers, model.n_layers), max_length=max_length, **others)


def _tokens(model: "LanguageModel", texts: Sequence[str], settings: PassSettings, name: str) -> Tokens:
    """Return the tokens of texts.

    Raises:
        NtpsError: If no text has one.
    """
    tokens = Tokens.of(model, texts, settings.max_length)
    if not tokens.lengths.any():
        raise NtpsError(f"{name}: none of the {len(texts)} texts has a token.")
    return tokens


def _as_texts(texts: Sequence[str]) -> tuple[str, ...]:
    """Return texts as a tuple, after checking that they are strings."""
    if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
        raise NtpsError("texts must be a Task or a sequence of strings.")
    return tuple(texts)


def _read_earlier(path: Path, key: str) -> Representations | None:
    """Return the representations of an earlier pass if their key is the same; log it if they are damaged."""
    if not path.is_file():
        return None
    try:
        earlier = Representations.load(path)
        if earlier.metadata.get("key") != key:
            return None
        _check_whole(earlier, path)
    except NtpsError as error:
        logger.warning("%s The model runs again.", error)
        return None
    except (AttributeError, LookupError, TypeError, ValueError) as error:  # its checksum fits, but we did not write it
        logger.warning("%s is damaged (%s). The model runs again.", path, error)
        return None
    return earlier


def _check_whole(earlier: Representations, path: Path) -> None:
    """Check that the parts of representations fit each other and hold numbers.

    Raises:
        NtpsError: If they do not.
    """
    moments, (n_layers, n, width) = earlier.next_token, earlier.states.shape
    fits = (
        len(earlier.layers) == len(earlier.widths) == n_layers
        and max(earlier.widths) == width
        and earlier.text_group.shape == (n,)
        and np.array_equal(earlier.text_index, np.flatnonzero(earlier.lengths > 0))
        and len(earlier.text_index) == n
    )
    if moments is not None:
        fits = (
            fits
            and tuple(moments.past_gram.shape) == tuple(moments.cross.shape) == (n_layers, width, width)
            and [int(count) for count in moments.counts] == [n, earlier.n_tokens, earlier.n_tokens - n]
            and bool(moments.past_gram.isfinite().all() and moments.cross.isfinite().all())
        )
    if not (fits and all(np.isfinite(earlier.layer(layer)).all() for layer in earlier.layers)):
        raise NtpsError(f"{path} is damaged: its parts do not fit each other.")


def _rows(lengths: np.ndarray) -> np.ndarray:
    """Return the row of each given text among those with tokens."""
    return np.cumsum(lengths > 0) - 1


def _after(batches: Sequence[np.ndarray], done: int) -> list[np.ndarray]:
    """Return batches without the first `done` texts."""
    left = []
    for batch in batches:
        left += [batch[done:]] if done < len(batch) else []
        done = max(0, done - len(batch))
    return left


def _unknown(model: "LanguageModel", tokens: Tokens) -> int:
    """Return how many tokens stand for words that the tokenizer does not know."""
    names = ("bos", "eos", "pad", "cls", "sep")
    others = [getattr(model.tokenizer, f"{name}_token_id", None) for name in names]  # one of which some take for it
    unknown = getattr(model.tokenizer, "unk_token_id", None)
    return 0 if unknown is None or unknown in others else int((tokens.ids == unknown).sum())


def _log_losses(model: "LanguageModel", tokens: Tokens, max_length: int) -> None:
    """Log how many texts were left out or cut, and how many tokens say nothing if they are many."""
    n, left_out = len(tokens.lengths), int((tokens.lengths == 0).sum())
    if left_out:
        logger.warning("%d of %d texts have no token and were left out.", left_out, n)
    if tokens.n_truncated:
        message = "%d of %d texts are longer than %d tokens and were cut."
        logger.warning(message, tokens.n_truncated, n, max_length)
    unknown = _unknown(model, tokens)
    if unknown > MANY_UNKNOWN * len(tokens.ids):
        logger.warning("%d of %d tokens stand for words that %s does not know.", unknown, len(tokens.ids), model.name)


class _Foresight:
    """Says once, from the time of one batch, how long a pass will take, if that is over a minute.

    Batches come longest first, so that the first ones are alike. A GPU starts slowly: its first batch is the measure
    only where it takes so long that the start cannot matter.
    """

    def __init__(self, plan: PassPlan, n_tokens: int) -> None:
        self.plan, self.n_tokens, self.n_batches, self.said = plan, n_tokens, 0, False
        self.started = time.monotonic()

    def add(self, n_tokens: int) -> None:
        """Take note of a batch of so many tokens."""
        now = time.monotonic()
        took, self.started, self.n_batches = now - self.started, now, self.n_batches + 1
        if self.said or (self.n_batches < 2 and took < SLOW_BATCH):
            return
        self.said = True
        seconds = took * self.n_tokens / n_tokens
        if seconds > 60:
            logger.info("about %s: %s.", counted(round(seconds / 60), "minute"), self.plan.summary)


def _run(
    model: "LanguageModel",
    tokens: Tokens,
    settings: PassSettings,
    plan: PassPlan,
    processes: Processes,
    progress: bool | None,
    batches: Sequence[np.ndarray],
    unfinished: Unfinished | None,
) -> tuple[np.ndarray, NextTokenMoments | None]:
    """Run the model over this process's batches; return pooled states (S, n, d) and, if it is causal, moments.

    Pooled states of the texts that other processes read are zero.
    """
    widths, lengths = [model.widths[layer] for layer in settings.layers], tokens.lengths
    moments = None
    if model.causal:
        moments = NextTokenMoments(
            layers=settings.layers,
            width=widths,
            prefix=settings.prefix,
            dtype=torch.float64 if model.dtype == "float64" else torch.float32,
            device=plan.sums_on,
            matmul_precision=settings.matmul_precision,
        )
    row_of = _rows(lengths)
    states = allocate_states((len(settings.layers), int(row_of[-1]) + 1, max(widths)), "float32")
    reader = StateReader(model.model, settings.layers, model.vocabulary, model.device)
    if reader.n_layers != model.n_layers:
        raise NtpsError(f"{model.name} returned {reader.n_layers} hidden states; {model.n_layers} expected.")
    summed: dict[int, set[int]] = {}  # of texts whose batch ran out of memory: the layers that were added before

    def forward(batch: np.ndarray) -> tuple[torch.Tensor, Callable[[], object]]:
        """Run the model; return pooled states on their way to the CPU, and a call that waits until they are there."""
        ids, mask = model.pad(list(tokens.rows(batch)))
        present = torch.arange(ids.shape[1]) < torch.from_numpy(lengths[batch])[:, None]
        texts_of = TextBatch(present, widths, pooling=settings.pooling, device=model.device, moments=moments)
        added = set(summed.get(int(batch[0]), ()))

        def take(index: int, states: torch.Tensor) -> None:
            texts_of.add(index, states, sums=index not in added)
            added.add(index)

        try:
            reader.read(ids, mask, take)
        except torch.cuda.OutOfMemoryError:
            summed.update((int(index), added) for index in batch)
            raise
        for index in batch if summed else ():
            summed.pop(int(index), None)
        if moments is not None:
            moments.counts += texts_of.counts
        if model.device.type != "cuda":
            return texts_of.pooled.float().cpu(), lambda: None
        pooled, event = texts_of.pooled.float().to("cpu", non_blocking=True), torch.cuda.Event()
        event.record(torch.cuda.current_stream(model.device))
        return pooled, event.synchronize

    def keep(batch: np.ndarray, pooled: torch.Tensor, wait: Callable[[], object]) -> None:
        wait()
        try:
            check_finite(pooled, settings.layers)
        except NonFiniteError as error:
            index = int(batch[error.text])
            raise NonFiniteError(error.layer, index, tokens.texts[index]) from None
        states[:, row_of[batch]] = pooled.numpy()
        n_tokens = int(lengths[batch].sum())
        bar.update(n_tokens)
        if processes.is_main:
            foresight.add(n_tokens)

    done, total = 0, int(sum(lengths[batch].sum() for batch in batches))
    if unfinished is not None:
        unfinished.resume(states, moments)
        done, batches = unfinished.done, _after(batches, unfinished.done)
    left = int(sum(lengths[batch].sum() for batch in batches))
    foresight = _Foresight(plan, left)
    with progress_bar(total, "tokens", progress if processes.is_main else False, unit_scale=True) as bar:
        bar.update(total - left)
        running = None  # its states are kept once the next batch is on its way: a GPU need not wait for that
        for batch, result in halving(batches, forward):
            if running is not None:
                keep(*running)
            running, done = (batch, *result), done + len(batch)
            if unfinished is not None and unfinished.due and not summed:  # where the sums are those of whole texts
                keep(*running)
                running = None
                unfinished.keep(states, moments, done)
        if running is not None:
            keep(*running)
    return states, moments
