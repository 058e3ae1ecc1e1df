"""Add a trained adapter (PEFT) to the weights of a network."""

import warnings
from pathlib import Path
from typing import Any

from ntps import _hub
from ntps.errors import NtpsError
from ntps.models.states import without_head

_PREFIX = "base_model.model."  # of PEFT's names


def add_adapter(network: Any, adapter: str | Path, name: str) -> None:
    """Add an adapter to a network's weights, in place; in bfloat16 or float16 the sums are rounded.

    An adapter is for the network with its language-model head or for the one below it: the names of its tensors tell.

    Args:
        network: A transformers network, with its head if there is one.
        adapter: Directory of the adapter.
        name: Name of model and adapter, for messages.

    Raises:
        NtpsError: If the adapter is damaged, does not belong to the network, or adds something else than weights.
    """
    from peft import PeftConfig, PeftModel, get_peft_model_state_dict
    from peft.utils import load_peft_weights

    inner = without_head(network)
    children = {child for child, _ in network.named_children()}
    try:
        with _hub.quiet(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about tensors without a place: they are looked for below
            kind = PeftConfig.from_pretrained(str(adapter))
            if kind.is_prompt_learning:
                raise NtpsError(
                    f"{name}: the adapter holds tokens (prompt learning), not weights as LoRA and its kin do."
                )
            stored = set(load_peft_weights(str(adapter), device="cpu"))
            starts = {key.removeprefix(_PREFIX).partition(".")[0] for key in stored}
            wrapped = PeftModel.from_pretrained(inner if starts.isdisjoint(children) else network, str(adapter))
        config = wrapped.peft_config["default"]
        moved = getattr(config, "target_parameters", None)  # PEFT renames tensors for experts that are kept as one
        placed = {*get_peft_model_state_dict(wrapped, save_embedding_layers=False), *wrapped.state_dict()}
        missing = set() if moved else stored - placed
        if missing or not stored:
            raise NtpsError(
                f"{name}: {len(missing)} of the adapter's {len(stored)} tensors have no place in the model (first: "
                f"{min(missing, default='none')}); it belongs to another base model."
            )
        wrapped.merge_and_unload()
    except (NtpsError, MemoryError):
        raise
    except Exception as error:
        if type(error).__name__ == "OutOfMemoryError":
            raise
        reason = " ".join(str(error).split())[:200].rstrip(".")
        raise NtpsError(f"{name}: the adapter cannot be added to this base model ({reason}).") from error
