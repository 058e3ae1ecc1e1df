"""What every check is made of: try the learner's function, and say in one sentence what is wrong with the answer."""

import linecache
import sys
import traceback
from collections.abc import Callable
from types import FrameType
from typing import Any, NoReturn

import numpy as np

from ntps._text import wrap

PRECISION = 1e-5  # relative: an answer computed in single precision is right


class CheckFailed(AssertionError):
    """An exercise's function does not yet do what it should; the message says what it does instead."""

    def _render_traceback_(self) -> list[str]:
        """Tell IPython to show the sentence without a traceback."""
        return wrap(f"✗ {self}")


class _Answer:
    """Where the answer that is being judged came from: a sentence about the learner's own line, or nothing."""

    origin = ""


def require(condition: Any, message: str) -> None:
    """Raise `CheckFailed` with the message, and the line that the answer came from, unless the condition holds."""
    if not bool(condition):
        raise CheckFailed(message + _Answer.origin)


def diagnose(*slips: tuple[Any, str], otherwise: str) -> NoReturn:
    """Raise `CheckFailed` with what is wrong.

    Args:
        *slips: Known mistakes in the order of trial: whether the answer is the one that the mistake gives, and what to
            say about it.
        otherwise: What to say about an answer that none of them gives.
    """
    for applies, message in slips:
        require(not applies, message)
    raise CheckFailed(otherwise + _Answer.origin)


def passed(message: str) -> None:
    """Print the one line of a check that passed."""
    print("\n".join(wrap(f"✓ {message}")))


def close(value: Any, right: Any, precision: float = PRECISION) -> bool:
    """Return whether an answer equals the right one, relative to the largest entry of the right one."""
    value, right = np.asarray(value), np.asarray(right)
    if value.shape != right.shape:
        return False
    return bool(np.abs(value - right).max(initial=0.0) <= precision * max(np.abs(right).max(initial=0.0), 1e-3))


def call(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call the learner's function on copies of the arguments; what goes wrong becomes a sentence with its line."""
    _Answer.origin = ""
    require(callable(function), f"give the function itself, not {type(function).__name__}: checks.name(my_function).")
    name = getattr(function, "__name__", "your function")
    copies = [value.copy() if isinstance(value, np.ndarray) else value for value in arguments]
    code = getattr(function, "__code__", None)
    last_line = 0

    def note(frame: FrameType, event: str, _: Any) -> None:
        nonlocal last_line
        if event == "return" and frame.f_code is code:
            last_line = frame.f_lineno

    profiler = sys.getprofile()
    sys.setprofile(note)
    try:
        result = function(*copies)
    except NotImplementedError:
        message = f"{name} is not written yet: put your code in place of `raise NotImplementedError`."
        raise CheckFailed(message) from None
    except CheckFailed:
        raise
    except Exception as error:
        shapes = ", ".join(str(value.shape) if isinstance(value, np.ndarray) else repr(value) for value in arguments)
        where = _line_of(function, error)
        raise CheckFailed(f"{name} raised {type(error).__name__}{where}: {error} (it was given {shapes}).") from error
    finally:
        sys.setprofile(profiler)
    if code is not None and last_line:
        _Answer.origin = f" (Your answer came from {_place(code.co_filename, last_line)}.)"
    for before, after in zip(arguments, copies, strict=True):
        changed = isinstance(before, np.ndarray) and not np.array_equal(before, after)
        require(not changed, f"{name} changed its input in place; work on a copy.")
    require(result is not None, f"{name} returned None; did you forget `return`?")
    return result


def _line_of(function: Callable[..., Any], error: Exception) -> str:
    """Return where in the learner's own cell an error arose, or nothing where the function has no Python code."""
    file = getattr(getattr(function, "__code__", None), "co_filename", "")
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
    return f" in {_place(file, lines[-1])}" if lines and lines[-1] else ""


def _place(file: str, line: int) -> str:
    """Return a line of a cell as a sentence names it: its number, and what stands there."""
    source = linecache.getline(file, line).strip()
    return f"line {line}" + (f", `{source}`" if source else "")


def plain(result: Any) -> Any:
    """Return a result, a tensor as an array, also one that a gradient hangs on."""
    return result.detach().cpu().numpy() if hasattr(result, "detach") else result


def _numbers(result: Any, message: str) -> np.ndarray:
    """Return a result (a number, an array, a tensor or a list) as a float64 array; text is refused."""
    result = plain(result)
    try:
        kind = np.asarray(result).dtype.kind
        require(kind in "biuf", f"{message}; yours is {'text' if kind in 'US' else type(result).__name__}.")
        return np.asarray(result, dtype=np.float64)
    except (TypeError, ValueError):
        raise CheckFailed(f"{message}; yours is {type(result).__name__}.") from None


def as_array(result: Any, shape: tuple[int, ...], what: str) -> np.ndarray:
    """Return a result (an array, a tensor or a list) as a finite float64 array of the right shape.

    Where one axis is asked for, a single column or row is taken as it is meant.
    """
    array = _numbers(result, f"{what} must be an array of numbers")
    if len(shape) == 1 and array.ndim == 2 and sorted(array.shape) == sorted((1, shape[0])):
        array = array.ravel()
    hint = " It looks transposed: directions are columns." if array.shape == shape[::-1] and len(shape) == 2 else ""
    require(array.shape == shape, f"{what} must have shape {shape}; yours has {array.shape}.{hint}")
    require(np.isfinite(array).all(), f"{what} holds NaN or infinity; did you divide by an eigenvalue of zero?")
    return array


def as_number(result: Any, what: str) -> float:
    """Return a result as one finite number."""
    array = _numbers(result, f"{what} must be one number")
    require(array.size == 1, f"{what} must be one number; yours has shape {array.shape}.")
    value = float(array.reshape(()))
    require(np.isfinite(value), f"{what} is {value}; it must be finite.")
    return value
