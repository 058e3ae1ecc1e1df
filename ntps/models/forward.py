"""Texts to mean-pooled last states, with or without gradients: what a head reads."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ntps.errors import NtpsError
from ntps.models.plan import DEFAULT_MAX_LENGTH, plan_batches

if TYPE_CHECKING:
    from ntps.models.load import LanguageModel


def encode(model: "LanguageModel", texts: Sequence[str], max_length: int | None) -> list[list[int]]:
    """Return the token ids of texts, cut as `collect_moments` cuts them.

    Raises:
        NtpsError: If a text has no token.
    """
    ids = model.tokenize(texts, DEFAULT_MAX_LENGTH if max_length is None else max_length).ids
    empty = next((place for place, row in enumerate(ids) if not row), None)
    if empty is not None:
        raise NtpsError(f"text {empty + 1} ({texts[empty][:40]!r}) has no token; leave such texts out.")
    return ids


def pool(model: "LanguageModel", network: Any, ids: Sequence[Sequence[int]]) -> torch.Tensor:
    """Return the mean over tokens (n, d), float32, of the states after the final norm."""
    tokens, mask = model.pad(ids)
    output = network(
        input_ids=tokens, attention_mask=mask, output_hidden_states=True, use_cache=False, return_dict=True
    )
    states = output.hidden_states[-1].float()
    return (states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)


@torch.no_grad()
def pooled_features(
    model: "LanguageModel", network: Any, ids: Sequence[Sequence[int]], batch_size: int = 32
) -> torch.Tensor:
    """Return `pool` of all texts on the CPU, without gradients or dropout; on a GPU short of memory in smaller batches.

    Raises:
        NtpsError: If not even one text fits.
    """
    network.eval()
    values = torch.zeros(len(ids), model.width)
    waiting = plan_batches(np.array([len(row) for row in ids]), batch_size)[::-1]
    while waiting:
        batch = waiting.pop()
        try:
            values[torch.from_numpy(batch)] = pool(model, network, [ids[i] for i in batch]).cpu()
            continue
        except torch.cuda.OutOfMemoryError:
            if len(batch) == 1:
                raise too_little_memory(len(ids[batch[0]])) from None
        torch.cuda.empty_cache()
        waiting += [batch[len(batch) // 2 :], batch[: len(batch) // 2]]
    return values


def too_little_memory(tokens: int) -> NtpsError:
    """Return what to say when one text does not fit."""
    return NtpsError(
        f"the device has too little memory for one text of {tokens} tokens; lower max_length or choose another dtype."
    )
