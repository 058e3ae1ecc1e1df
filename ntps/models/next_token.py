"""The next-token loss of texts, of a model's own network or of a tuned one under the same language-model head."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ntps.errors import NtpsError
from ntps.models import loading
from ntps.models.plan import plan_batches

if TYPE_CHECKING:
    from ntps.models.load import LanguageModel

_LOGITS = 1 << 25  # numbers of a batch's logits at most: a vocabulary may be wider than everything else together


def next_token_loss(
    model: "LanguageModel", ids: Sequence[Sequence[int]], *, network: Any = None, batch_size: int = 32
) -> float:
    """Return the mean negative log-likelihood of all tokens after the first, in nats per token.

    Args:
        model: Loaded with `head=True`.
        ids: Token ids of the texts.
        network: A network without a head to read them in place of the model's own, under the same head.
        batch_size: Most texts in a batch.

    Raises:
        NtpsError: If no text has two tokens.
    """
    causal, own = model.model, loading.without_head(model.model)
    name = next(key for key, child in causal.named_children() if child is own)
    limit = max(1, _LOGITS // model.vocabulary)
    total, count = 0.0, 0
    setattr(causal, name, own if network is None else network)
    try:
        with torch.inference_mode():
            for batch in plan_batches(np.array([len(row) for row in ids]), batch_size, limit):
                tokens, mask = model.pad([ids[place] for place in batch])
                logits = causal(input_ids=tokens, attention_mask=mask, use_cache=False).logits[:, :-1].float()
                wanted = tokens[:, 1:].masked_fill(mask[:, 1:] == 0, -100)
                losses = torch.nn.functional.cross_entropy(logits.flatten(0, 1), wanted.flatten(), reduction="sum")
                total, count = total + float(losses), count + int(mask[:, 1:].sum())
    finally:
        setattr(causal, name, own)
    if not count:
        raise NtpsError("every text has a single token; a next-token loss needs texts of two tokens or more.")
    return total / count
