"""The hidden states of a network, whatever it is: asked for in words that its `forward` knows, and checked."""

import inspect
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from ntps.errors import NtpsError

if TYPE_CHECKING:
    import torch

_TOKENS = 17  # of the texts that test causality; no network has this width or number of heads
_SHARED = 4  # tokens at their beginning that are the same in both: the more differs after them, the more shows
_ROUNDING = 4  # units of the last place by which rounding may change a channel although no later token is read
_LEAST = 1e-5  # and the relative change that is never taken for a dependence, in types of more digits
_CLEAR = 0.1  # the change of a module's output, at tokens at which its input is the same, that no rounding makes


def hidden_states(network: Any, ids: "torch.Tensor", mask: "torch.Tensor") -> "tuple[torch.Tensor, ...]":
    """Return all hidden states of a network, each (B, T, d) with a width d of its own, without a cache.

    The first is the embedding output, the last one follows the final norm: it is the network's `last_hidden_state`
    where there is one. A language-model head is not run. Where a network keeps several streams of states (Gemma 3n),
    they are those of the stream from which its blocks predict.

    Args:
        network: A transformers network, or one of a repository's own code.
        ids: (B, T) token ids.
        mask: (B, T), 1 where there is a token.

    Raises:
        NtpsError: If the network does not return one state per block and token; the message says what it returns.
    """
    import torch

    network = without_head(network)
    name = type(network).__name__
    keywords = {"input_ids": ids, "attention_mask": mask, "output_hidden_states": True, "use_cache": False}
    output = network(**_known(network, {**keywords, "return_dict": True}))
    states = getattr(output, "hidden_states", None)
    if not states:
        what = "a plain tuple" if isinstance(output, tuple) else f"{type(output).__name__} without hidden_states"
        raise NtpsError(
            f"{name} returns {what}; a model whose forward takes output_hidden_states=True and returns the states of "
            "all its blocks by that name is needed."
        )
    streams = getattr(network.config.get_text_config(), "altup_active_idx", None)
    states = [state[streams] if streams is not None and state.ndim == 4 else state for state in states]
    last = getattr(output, "last_hidden_state", None)
    if isinstance(last, torch.Tensor) and last.ndim == 3:
        states[-1] = last
    for layer, state in enumerate(states):
        if state.ndim != 3 or state.shape[:2] != ids.shape:
            raise NtpsError(
                f"{name} returns hidden states of shape {tuple(state.shape)} at layer {layer} for {ids.shape[0]} texts "
                f"of {ids.shape[1]} tokens; one state per token, (texts, tokens, width), is needed."
            )
    return tuple(states)


def reads_later_tokens(network: Any, vocabulary: int, device: Any) -> bool:
    """Return whether some hidden state depends on a later token, by a pass over two texts with the same beginning.

    The change of each channel at the shared tokens is compared with that channel's own size, and the upper quartile
    over channels decides: a few channels that are a thousand times larger than the others, as real models have, hide
    nothing, and channels near zero are not taken for a change.

    Where the embeddings are so large that adding a block's output to them changes no digit (bfloat16 has three), the
    states hide what the blocks do. So modules are asked too: given the same at the shared tokens, none may return
    something else there.
    """
    import torch

    ids = torch.arange(_TOKENS, device=device).remainder(vocabulary).repeat(2, 1)
    ids[1, _SHARED:] = (ids[1, _SHARED:] + max(1, vocabulary // 2)) % vocabulary
    found = []

    def ask(_module: Any, arguments: tuple[Any, ...], keywords: dict[str, Any], output: Any) -> None:
        given = _first([*arguments, *keywords.values()], ids.shape)
        returned = _first(output if isinstance(output, tuple | list) else [output], ids.shape)
        if given is not None and returned is not None and torch.equal(*given[:, :_SHARED]):
            found.append(_change(returned) > _CLEAR)

    hooks = [module.register_forward_hook(ask, with_kwargs=True) for module in without_head(network).modules()]
    try:
        with torch.inference_mode():
            states = hidden_states(network, ids, torch.ones_like(ids))
    finally:
        for hook in hooks:
            hook.remove()
    least = [max(_ROUNDING * torch.finfo(state.dtype).eps, _LEAST) for state in states]
    return any(found) or any(_change(state) > limit for state, limit in zip(states, least, strict=True))


def _change(state: "torch.Tensor") -> float:
    """Return the upper quartile over channels of the relative change between two texts at their shared tokens."""
    import torch

    first, second = state[:, :_SHARED].cpu().double()  # on the CPU, because MPS has no float64
    size, change = first.square().mean(0).sqrt(), (first - second).square().mean(0).sqrt()
    return float(torch.where(change > 0, change / size, 0.0).quantile(0.75))  # infinite where a channel was zero


def _first(values: Iterable[Any], shape: "torch.Size") -> "torch.Tensor | None":
    """Return the first tensor that has a vector for every token."""
    import torch

    tensors = (value for value in values if isinstance(value, torch.Tensor) and value.is_floating_point())
    return next((tensor for tensor in tensors if tensor.ndim == 3 and tensor.shape[:2] == shape), None)


def without_head(network: Any) -> Any:
    """Return the network under a language-model head, or under an adapter's wrapper; the weights are shared."""
    unwrap: Callable[[], Any] | None = getattr(network, "get_base_model", None)  # PEFT
    network = unwrap() if unwrap is not None else network
    return getattr(network, "base_model", network)


def _known(network: Any, keywords: dict[str, Any]) -> dict[str, Any]:
    """Return those keywords that the network's `forward` takes."""
    parameters = inspect.signature(network.forward).parameters
    if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values()):
        return keywords
    return {name: value for name, value in keywords.items() if name in parameters}
