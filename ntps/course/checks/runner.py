"""What every check is made of: try the learner's function, and say in one sentence what is wrong with the answer."""

from collections.abc import Callable
from typing import Any, NoReturn

import numpy as np


class CheckFailed(AssertionError):
    """An exercise's function does not yet do what it should; the message says what it does instead."""

    def _render_traceback_(self) -> list[str]:
        """Tell IPython to show the sentence without a traceback."""
        return [f"✗ {self}"]


def require(condition: Any, message: str) -> None:
    """Raise `CheckFailed` with the message unless the condition holds."""
    if not bool(condition):
        raise CheckFailed(message)


def diagnose(*slips: tuple[Any, str], otherwise: str) -> NoReturn:
    """Raise `CheckFailed` with what is wrong.

    Args:
        *slips: Known mistakes in the order of trial: whether the answer is the one that the mistake gives, and what to
            say about it.
        otherwise: What to say about an answer that none of them gives.
    """
    for applies, message in slips:
        require(not applies, message)
    raise CheckFailed(otherwise)


def passed(message: str) -> None:
    """Print the one line of a check that passed."""
    print(f"✓ {message}")


def call(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call the learner's function on copies of the arguments; what goes wrong becomes a sentence."""
    require(callable(function), f"give the function itself, not {type(function).__name__}: checks.name(my_function).")
    name = getattr(function, "__name__", "your function")
    copies = [value.copy() if isinstance(value, np.ndarray) else value for value in arguments]
    try:
        result = function(*copies)
    except NotImplementedError:
        message = f"{name} is not written yet: put your code in place of `raise NotImplementedError`."
        raise CheckFailed(message) from None
    except CheckFailed:
        raise
    except Exception as error:
        shapes = ", ".join(str(value.shape) if isinstance(value, np.ndarray) else repr(value) for value in arguments)
        message = f"{name} raised {type(error).__name__}: {error} (it was given {shapes})."
        raise CheckFailed(message) from error
    for before, after in zip(arguments, copies, strict=True):
        changed = isinstance(before, np.ndarray) and not np.array_equal(before, after)
        require(not changed, f"{name} changed its input in place; work on a copy.")
    require(result is not None, f"{name} returned None; did you forget `return`?")
    return result


def as_array(result: Any, shape: tuple[int, ...], what: str) -> np.ndarray:
    """Return a result (an array, a tensor or a list) as a finite float64 array of the right shape."""
    try:
        array = np.asarray(result, dtype=np.float64)
    except (TypeError, ValueError):
        raise CheckFailed(f"{what} must be an array of numbers; yours is {type(result).__name__}.") from None
    hint = " It looks transposed: directions are columns." if array.shape == shape[::-1] and len(shape) == 2 else ""
    require(array.shape == shape, f"{what} must have shape {shape}; yours has {array.shape}.{hint}")
    require(np.isfinite(array).all(), f"{what} holds NaN or infinity; did you divide by an eigenvalue of zero?")
    return array


def as_number(result: Any, what: str) -> float:
    """Return a result as one finite number."""
    try:
        array = np.asarray(result, dtype=np.float64)
    except (TypeError, ValueError):
        raise CheckFailed(f"{what} must be one number; yours is {type(result).__name__}.") from None
    require(array.size == 1, f"{what} must be one number; yours has shape {array.shape}.")
    value = float(array.reshape(()))
    require(np.isfinite(value), f"{what} is {value}; it must be finite.")
    return value
