"""From texts to mean-pooled last states, the features of a head, with or without gradients; batches that fit."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch

from ntps.errors import NtpsError
from ntps.models.plan import DEFAULT_MAX_LENGTH, plan_batches
from ntps.models.processes import Processes
from ntps.models.states import hidden_states

if TYPE_CHECKING:
    from ntps.models.language_model import LanguageModel

T = TypeVar("T")


def encode(model: "LanguageModel", texts: Sequence[str], max_length: int | None) -> list[list[int]]:
    """Return the token ids of texts, cut as `collect` cuts them.

    Raises:
        NtpsError: If a text has no token.
    """
    ids = model.tokenize(texts, DEFAULT_MAX_LENGTH if max_length is None else max_length).ids
    empty = next((index for index, row in enumerate(ids) if not row), None)
    if empty is not None:
        raise NtpsError(f"text {empty + 1} ({texts[empty][:40]!r}) has no token; leave such texts out.")
    return ids


def pool(model: "LanguageModel", network: Any, ids: Sequence[Sequence[int]]) -> torch.Tensor:
    """Return the means over tokens of the states after the final norm, (n, d) float32."""
    tokens, mask = model.pad(ids)
    states = hidden_states(network, tokens, mask)[-1].float()
    return (states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)


@torch.no_grad()
def pooled_features(
    model: "LanguageModel", network: Any, ids: Sequence[Sequence[int]], batch_size: int = 32
) -> torch.Tensor:
    """Return `pool` of all texts on the CPU, without gradients or dropout; batches shrink to fit a GPU's memory.

    Processes that torchrun started share the batches; all of them must call this, and have all rows.

    Raises:
        NtpsError: If not even one text fits.
    """
    network.eval()
    values, processes = torch.zeros(len(ids), model.width), Processes(model.device)
    batches = processes.share(plan_batches(np.array([len(row) for row in ids]), batch_size))

    def read() -> None:
        for batch, pooled in halving(batches, lambda batch: pool(model, network, [ids[i] for i in batch]).cpu()):
            values[torch.from_numpy(batch)] = pooled

    processes.together(read)
    processes.add(values.numpy())
    return values


def halving(batches: Iterable[np.ndarray], run: Callable[[np.ndarray], T]) -> Iterator[tuple[np.ndarray, T]]:
    """Run batches one after another and yield each with its result; one that does not fit is halved until it does.

    Args:
        batches: Arrays of text indices.
        run: Called with a batch. Where it raises `torch.cuda.OutOfMemoryError`, it must have changed nothing.

    Raises:
        NtpsError: If a batch of one text does not fit into the memory of the device.
    """
    waiting, most = list(batches)[::-1], None
    while waiting:
        batch = waiting.pop()
        if most is not None and len(batch) > most:  # a size that did not fit is not tried again
            waiting += [batch[most:], batch[:most]]
            continue
        try:
            result = run(batch)
        except torch.cuda.OutOfMemoryError:
            if len(batch) == 1:
                raise NtpsError(
                    f"the device has too little memory for text {int(batch[0]) + 1} alone; lower max_length or choose "
                    "another dtype."
                ) from None
            most = len(batch) // 2
            waiting.append(batch)
        else:
            yield batch, result
            continue
        torch.cuda.empty_cache()  # outside the handler, so that what the failed attempt held is free
