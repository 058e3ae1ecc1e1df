"""One exception for everything a user can put right, and the checks that raise it."""

from collections.abc import Iterable
from numbers import Integral
from typing import Any

from ntps._names import one_line

LARGEST = 2**63 - 1  # of a whole number: what 64 bits hold


class NtpsError(ValueError):
    """A request that cannot be met.

    The message is one sentence that names the culprit (file and line, column, option) and what would be accepted.
    The command line prints it and exits with status 2; in Python it is an ordinary `ValueError`. Names in it may come
    from anywhere, so it is cleaned: one line, nothing that steers a terminal, nothing longer than a reader bears.
    """

    def __init__(self, message: str = "") -> None:
        super().__init__(one_line(str(message)))


def reason_of(error: Exception) -> str:
    """Return in one line why something failed; of a fault of ours, which is no `NtpsError`, also its kind."""
    return one_line(str(error) if isinstance(error, NtpsError) else f"{type(error).__name__}: {error}")


def one_of(value: Any, allowed: Iterable[Any], what: str) -> Any:
    """Return `value` if it is among `allowed`.

    Raises:
        NtpsError: If it is not; the message lists the choices.
    """
    choices = list(allowed)
    if value not in choices:
        raise NtpsError(f"{what} is {value!r}; choose one of: {', '.join(map(str, choices))}.")
    return value


def in_range(value: Any, low: float | None, high: float | None, what: str) -> Any:
    """Return `value` if `low <= value <= high`; a bound of `None` is open.

    Raises:
        NtpsError: If it lies outside, or is not a number.
    """
    try:
        inside = (low is None or value >= low) and (high is None or value <= high)
    except TypeError:
        inside = False
    if not inside or isinstance(value, bool):
        if low is None:
            accepted = f"at most {high}"
        elif high is None:
            accepted = f"at least {low}"
        else:
            accepted = f"between {low} and {high}"
        raise NtpsError(f"{what} is {value!r}; it must be {accepted}.")
    return value


def whole(value: Any, low: int | None, high: int | None, what: str) -> int:
    """Return `value` as an `int` if it is a whole number and `low <= value <= high`, as for `in_range`.

    Raises:
        NtpsError: If it is not, or has more than 64 bits.
    """
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise NtpsError(f"{what} is {value!r}; it must be a whole number.")
    number = int(value)
    if abs(number) > LARGEST:
        size = "above 2^63" if number > 0 else "below -2^63"
        raise NtpsError(f"{what} is a number of {number.bit_length()} bits, {size}; give a smaller one.")
    return int(in_range(number, low, high, what))
