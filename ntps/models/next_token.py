"""The next-token loss of texts, under a model's own network or a tuned one with the same language-model head."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ntps.errors import NtpsError
from ntps.models.forward import halving
from ntps.models.plan import plan_batches
from ntps.models.states import without_head

if TYPE_CHECKING:
    from ntps.models.language_model import LanguageModel

_BATCH_SIZE = 32
_LOGITS = 1 << 25  # most logits in a batch: they can take more memory than everything else together


def next_token_loss(model: "LanguageModel", ids: Sequence[Sequence[int]], *, network: Any = None) -> float:
    """Return the mean negative log-likelihood of all tokens after the first, in nats per token.

    Args:
        model: A model loaded with `head=True`.
        ids: Token ids of the texts.
        network: Network without a head to put under the model's head, instead of its own.

    Raises:
        NtpsError: If no text has two tokens, or the memory is too small for a single text.
    """
    causal, backbone = model.model, without_head(model.model)
    if backbone is causal and network is not None:  # a network whose head is not apart: the tuned one has its own
        causal, backbone, network = network, network, None
    lengths = np.array([len(row) for row in ids])

    def summed_loss(batch: np.ndarray) -> float:
        tokens, mask = model.pad([ids[index] for index in batch])
        logits = causal(input_ids=tokens, attention_mask=mask, use_cache=False).logits[:, :-1].float()
        following = tokens[:, 1:].masked_fill(mask[:, 1:] == 0, -100)
        return float(torch.nn.functional.cross_entropy(logits.flatten(0, 1), following.flatten(), reduction="sum"))

    n_predicted = int(np.maximum(lengths - 1, 0).sum())
    if not n_predicted:
        raise NtpsError("every text has a single token; a next-token loss needs texts of two tokens or more.")
    batches = plan_batches(lengths, _BATCH_SIZE, max(1, _LOGITS // model.vocabulary))
    with torch.inference_mode(), _replaced(causal, backbone, network):
        return sum(loss for _, loss in halving(batches, summed_loss)) / n_predicted


@contextmanager
def _replaced(causal: Any, backbone: Any, network: Any) -> Iterator[None]:
    """Put a network in the place of the one under a head inside the block; `None` leaves it as it is."""
    if network is None:
        yield
        return
    path, _, name = next(path for path, module in causal.named_modules() if module is backbone).rpartition(".")
    parent = causal.get_submodule(path)
    setattr(parent, name, network)
    try:
        yield
    finally:
        setattr(parent, name, backbone)
