"""The hidden states of a network, whatever it is: asked for in words that its `forward` knows, and checked."""

import inspect
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
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
    output = _run(network, ids, mask, every_state=True)
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


@dataclass(frozen=True)
class _Place:
    """Where a hidden state comes by while a network runs: an input or an output of a module that is called once.

    Attributes:
        module: The module.
        key: Position or name among its inputs, or position among its outputs.
        output: Whether it is an output.
    """

    module: Any
    key: Any
    output: bool


class StateReader:
    """Reads the hidden states of a network layer by layer while it runs, so that they need not all exist at once.

    A pass over two short texts shows where each state comes by, and that what is read there is what `hidden_states`
    returns, bit for bit. Where it is not (a state that no module returns, a block that is called twice), the states are
    those that `hidden_states` returns, all at once.

    Args:
        network: As for `hidden_states`.
        layers: The layers to read, by number.
        vocabulary: Number of token ids.
        device: Device of the network's inputs.

    Attributes:
        n_layers: Number of hidden states that the network has.
        places: Where each of `layers` is read; `None` if all states are asked for at once.
    """

    def __init__(self, network: Any, layers: Sequence[int], vocabulary: int, device: Any) -> None:
        import torch

        self.network, self.layers, self.places = without_head(network), tuple(layers), None
        ids = torch.arange(_TOKENS, device=device).remainder(vocabulary).repeat(2, 1)
        mask = torch.ones_like(ids)
        mask[1, _SHARED:] = 0
        with torch.inference_mode():
            states, found = _places(self.network, ids, mask)
            self.n_layers = len(states)
            if not all(layer in found for layer in self.layers):
                return
            places = tuple(found[layer] for layer in self.layers)
            same: list[bool] = []
            _read(self.network, places, ids, mask, lambda i, state: same.append(torch.equal(state, states[layers[i]])))
        if same == [True] * len(self.layers):
            self.places = places

    def read(self, ids: "torch.Tensor", mask: "torch.Tensor", take: "Callable[[int, torch.Tensor], None]") -> None:
        """Run the network and call `take(index, state)` once for each of `layers`, with the states (B, T, d)."""
        import torch

        with torch.inference_mode():
            if self.places is not None:
                _read(self.network, self.places, ids, mask, take)
                return
            states = hidden_states(self.network, ids, mask)
            for index, layer in enumerate(self.layers):
                take(index, states[layer])


def _read(
    network: Any,
    places: "Sequence[_Place]",
    ids: "torch.Tensor",
    mask: "torch.Tensor",
    take: "Callable[[int, torch.Tensor], None]",
) -> None:
    """Run a network and hand over the states at places, each when it comes by."""
    with ExitStack() as hooks:
        for index, place in enumerate(places):
            hooks.callback(_hook(place, index, take).remove)
        _run(network, ids, mask, every_state=False)


def _places(
    network: Any, ids: "torch.Tensor", mask: "torch.Tensor"
) -> "tuple[tuple[torch.Tensor, ...], dict[int, _Place]]":
    """Return all hidden states, and where each comes by, for those layers of which that is known."""
    calls: Counter[int] = Counter()
    seen: list[tuple[torch.Tensor, _Place]] = []  # holds the tensors, so that no other takes the place of one

    def note(module: Any, arguments: tuple[Any, ...], keywords: dict[str, Any], output: Any) -> None:
        calls[id(module)] += 1
        outputs = output if isinstance(output, tuple | list) else (output,)
        given = [*enumerate(arguments), *keywords.items()]
        seen.extend((value, _Place(module, key, True)) for key, value in enumerate(outputs) if _is_state(value, ids))
        seen.extend((value, _Place(module, key, False)) for key, value in given if _is_state(value, ids))

    with ExitStack() as hooks:
        for module in network.modules():
            hooks.callback(module.register_forward_hook(note, with_kwargs=True).remove)
        states = hidden_states(network, ids, mask)
    once = [(value, place) for value, place in seen if calls[id(place.module)] == 1]
    once.sort(key=lambda pair: not pair[1].output)  # outputs before inputs
    found: dict[tuple[Any, ...], _Place] = {}
    for value, place in once:
        found.setdefault(_identity(value), place)
    identities = [_identity(state) for state in states]
    return states, {layer: found[key] for layer, key in enumerate(identities) if key in found}


def _hook(place: _Place, index: int, take: "Callable[[int, torch.Tensor], None]") -> Any:
    """Give `take` the state at a place of a network, whenever it comes by; return the handle of the hook."""

    def returned(_module: Any, _arguments: Any, output: Any) -> None:
        take(index, output[place.key] if isinstance(output, tuple | list) else output)

    def given(_module: Any, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        take(index, arguments[place.key] if isinstance(place.key, int) else keywords[place.key])

    if place.output:
        return place.module.register_forward_hook(returned)
    return place.module.register_forward_pre_hook(given, with_kwargs=True)


def _identity(state: "torch.Tensor") -> tuple[Any, ...]:
    """Return what two tensors share that are the same numbers in the same memory."""
    return state.data_ptr(), state.device, state.dtype, tuple(state.shape), state.stride()


def _is_state(value: Any, ids: "torch.Tensor") -> bool:
    """Return whether a value is a tensor with a vector for every token."""
    import torch

    return (
        isinstance(value, torch.Tensor)
        and value.is_floating_point()
        and value.ndim == 3
        and value.shape[:2] == ids.shape
    )


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
        given = _first([*arguments, *keywords.values()], ids)
        returned = _first(output if isinstance(output, tuple | list) else [output], ids)
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


def _first(values: Iterable[Any], ids: "torch.Tensor") -> "torch.Tensor | None":
    """Return the first tensor that has a vector for every token."""
    return next((value for value in values if _is_state(value, ids)), None)


def without_head(network: Any) -> Any:
    """Return the network under a language-model head, or under an adapter's wrapper; the weights are shared."""
    unwrap: Callable[[], Any] | None = getattr(network, "get_base_model", None)  # PEFT
    network = unwrap() if unwrap is not None else network
    return getattr(network, "base_model", network)


def _run(network: Any, ids: "torch.Tensor", mask: "torch.Tensor", *, every_state: bool) -> Any:
    """Run a network without a cache, and without keeping its hidden states unless `every_state`."""
    keywords = {"input_ids": ids, "attention_mask": mask, "output_hidden_states": every_state, "use_cache": False}
    return network(**_known(network, {**keywords, "return_dict": True}))


def _known(network: Any, keywords: dict[str, Any]) -> dict[str, Any]:
    """Return those keywords that the network's `forward` takes."""
    parameters = inspect.signature(network.forward).parameters
    if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values()):
        return keywords
    return {name: value for name, value in keywords.items() if name in parameters}
