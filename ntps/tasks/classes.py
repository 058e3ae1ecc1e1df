"""Turn a column of labels into class numbers, or into real values, or say why that cannot be."""

import math
import re
from collections import Counter
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

import numpy as np

from ntps.errors import NtpsError
from ntps.tasks.columns import column_values, is_null, more_rows, short
from ntps.tasks.tables import INVISIBLE, Table, repaired
from ntps.tasks.task import LabelColumn

_WHOLE = re.compile(r"(-?(?:0|[1-9][0-9]{0,17}))(?:\.0*)?")  # "007" is a name: its zeros were meant
_NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
_TRUTHS = {"true": True, "false": False}
_MOST_BITS = 10_000  # of a whole number that Python writes
_PAIRS = (("0", "1"), ("false", "true"), ("no", "yes"))
_REGRESSION = "load them as real values with regression=True (for score and rank)"
_MANY, _ALONE = 10, 0.9  # from how many texts on, and from which share of them alone in their class, labels are names


def read_labels(table: Table, name: str, *, allow_missing: bool = False) -> LabelColumn:
    """Turn a column of labels into class numbers.

    Labels are integers, strings or booleans. The same number is the same class however it is written: 1, 1.0, "1" and
    "1.0"; "01" is another. So are True and "true", in any case. None, NaN and the empty string are missing labels;
    where the source declares class names, the labels are their numbers, and -1 is missing too.

    Args:
        table: The table to read.
        name: Name of the label column.
        allow_missing: Whether texts may lack a label; their class number is -1 then.

    Returns:
        The column. Its classes are those that occur: numbers by size (also strings that are all whole numbers), words
        in alphabetical order, declared names as declared.

    Raises:
        NtpsError: If there is no such column, if all labels are missing, or some are without `allow_missing`, if labels
            are numbers with fractions, of several kinds, or not class labels, or if nearly every one occurs once.
    """
    values, declared = _column(table, name, allow_missing=allow_missing)
    if values and all(map(_hidden, values)):
        raise NtpsError(_no_labels(table, name, values))
    labels = _one_kind(table, name, _present(table, name, values, declared, allow_missing=allow_missing))
    if declared and all(type(label) is int for label in labels.values()):
        for row, label in labels.items():
            if not 0 <= label < len(declared):
                raise NtpsError(
                    f"{table.where(row)}: label {label} (column {name!r}) is not among its {len(declared)} classes "
                    f"(0 to {len(declared) - 1})."
                )
    else:
        declared = None  # labels that are names already
    names = {row: _name(label) for row, label in labels.items()}
    counts = Counter(names.values())
    alone = sum(count == 1 for count in counts.values())
    if len(names) >= _MANY and alone > _ALONE * len(names):
        numeric = all(type(label) is int for label in labels.values())
        raise NtpsError(
            f"{table.source['path']}: column {name!r} names {len(counts)} classes for {len(names)} texts, so nearly "
            "every text is a class of its own; name a column whose values recur, with label_column"
            f"{f', or {_REGRESSION}' if numeric and not declared else ''}."
        )
    ordered = sorted(counts, key=_sort_key(counts))
    number_of = {label: number for number, label in enumerate(ordered)}
    numbers = np.full(len(values), -1, dtype=np.int64)
    numbers[list(names)] = [number_of[label] for label in names.values()]
    classes = tuple(declared[int(label)] for label in ordered) if declared else tuple(ordered)
    return LabelColumn(name, numbers, classes)


def read_values(table: Table, name: str, *, allow_missing: bool = False) -> LabelColumn:
    """Turn a column of numbers into real values, the targets of a regression.

    Args:
        table: The table to read.
        name: Name of the label column.
        allow_missing: Whether texts may lack a value (None, NaN, the empty string); it is NaN then.

    Raises:
        NtpsError: If there is no such column, values are missing as for `read_labels`, or one is not a finite number.
    """
    values, declared = _column(table, name, allow_missing=allow_missing)
    if declared:
        raise NtpsError(
            f"{table.source['path']}: column {name!r} holds the numbers of classes ({', '.join(declared[:3])}, ...), "
            "which are not real values; leave regression out."
        )
    numbers = np.full(len(values), math.nan)
    for row, value in _present(table, name, values, declared, allow_missing=allow_missing).items():
        numbers[row] = _real(value)
        if not math.isfinite(numbers[row]):
            raise NtpsError(
                f"{table.where(row)}: {short(value)} (column {name!r}) is not a finite number, as regression=True "
                "needs."
            )
    return LabelColumn(name, numbers)


def join_labels(table: Table, columns: Sequence[LabelColumn]) -> LabelColumn:
    """Join columns that say of each text whether it has a label into one.

    Args:
        table: What they were read from, for messages.
        columns: At least two, of the classes 0 and 1, false and true, or no and yes; every text has a label in each.

    Raises:
        NtpsError: If there are fewer, or one has other classes.
    """
    if len(columns) < 2:
        raise NtpsError("multilabel=True needs several label columns, one for each label; name them with label_column.")
    values = []
    for column in columns:
        names = [name.lower() for name in column.classes]
        pair = next((pair for pair in _PAIRS if set(names) <= set(pair)), None)
        if pair is None:
            shown = ", ".join(map(repr, column.classes[:3])) + (", ..." if len(names) > 3 else "")
            raise NtpsError(
                f"{table.source['path']}: column {column.name!r} has the classes {shown}, where multilabel=True needs "
                "0 and 1, false and true, or no and yes."
            )
        values.append(np.array([pair.index(name) for name in names])[column.values])
    names = [column.name for column in columns]
    return LabelColumn(f"{len(names)} labels", np.stack(values, axis=1), tuple(names))


def _real(value: Any) -> float:
    """Return the number that a label is or spells; NaN if it is none."""
    if isinstance(value, bool) or not (isinstance(value, int | float | Decimal) or _spells_number(value)):
        return math.nan
    try:
        return float(value)
    except OverflowError:
        return math.inf


def _present(
    table: Table, name: str, values: Sequence[Any], declared: tuple[str, ...] | None, *, allow_missing: bool
) -> dict[int, Any]:
    """Return the labels there are, by row.

    Raises:
        NtpsError: If all are missing, or some are without `allow_missing`.
    """
    missing = _missing(values, declared)
    if values and len(missing) == len(values):
        raise NtpsError(_no_labels(table, name, values))
    if missing and not allow_missing:
        raise NtpsError(
            f"{table.where(missing[0])}: the label (column {name!r}) is missing{more_rows(missing)}; "
            "drop such rows with drop_missing=True."
        )
    absent = set(missing)
    return {row: value for row, value in enumerate(values) if row not in absent}


def missing_labels(table: Table, name: str) -> set[int]:
    """Return the rows without a label."""
    return set(_missing(*_column(table, name, allow_missing=True)))


def _column(table: Table, name: str, *, allow_missing: bool) -> tuple[list[Any], tuple[str, ...] | None]:
    """Return labels as plain values, and the declared class names.

    Raises:
        NtpsError: If there is no such column, or two labels differ in broken characters only.
    """
    values, declared = column_values(table, name, "label", allow_missing=allow_missing)
    broken: dict[str, str] = {}
    for row, value in enumerate(values):
        if isinstance(value, str) and repaired(value) != value and broken.setdefault(repaired(value), value) != value:
            raise NtpsError(
                f"{table.where(row)}: label {short(value)} (column {name!r}) differs from another in a broken "
                "character only; write labels in whole characters."
            )
    return [_plain(value) for value in values], declared


def _plain(value: Any) -> Any:
    """Return a label as a plain value of Python; a number without a fraction as an integer."""
    if getattr(value, "ndim", None) == 0 and hasattr(value, "item"):  # scalars and tensors
        value = value.item()
    if isinstance(value, str):
        return repaired(str(value)).strip(INVISIBLE)
    if isinstance(value, float | Decimal) and math.isfinite(value) and value == int(value):
        return int(value)
    return value


def _number(value: Any) -> Any:
    """Return the integer that a label spells, or the label as it is."""
    spelled = _WHOLE.fullmatch(value) if isinstance(value, str) else None
    return int(spelled[1]) if spelled else value


def _hidden(value: Any) -> bool:
    """Return whether a label is -1, which stands for hidden labels on the hub."""
    number = _number(value)
    return isinstance(number, int) and number == -1


def _missing(values: Sequence[Any], declared: tuple[str, ...] | None) -> list[int]:
    """Return the rows of missing labels, in order."""
    return [
        row
        for row, value in enumerate(values)
        if is_null(value) or (isinstance(value, str) and not value) or (declared is not None and _hidden(value))
    ]


def _one_kind(table: Table, name: str, labels: dict[int, Any]) -> dict[int, Any]:
    """Return labels, given by row, as booleans, or as integers and strings.

    Raises:
        NtpsError: If a label cannot name a class, or their kinds do not go together.
    """
    kinds = {row: _kind(label) for row, label in labels.items()}
    numeric = all(kind in {"integer", "fraction"} or _spells_number(labels[row]) for row, kind in kinds.items())
    for row, kind in kinds.items():
        fraction = kind == "fraction" or (numeric and kind == "string" and _has_fraction(labels[row]))
        if fraction or kind == "other":
            raise NtpsError(
                f"{table.where(row)}: label {short(labels[row])} (column {name!r}) is not a class; integers, strings "
                f"or booleans are accepted{_advice(name, labels[row], fraction)}."
            )
    found = set(kinds.values())
    if found <= {"boolean", "string"} and all(str(label).lower() in _TRUTHS for label in labels.values()):
        return {row: _TRUTHS[str(label).lower()] for row, label in labels.items()}
    if len(found) > 1 and not numeric:
        mixed = " and ".join(sorted(found))
        raise NtpsError(f"{table.source['path']}: column {name!r} mixes {mixed} labels; use one kind.")
    return {row: _number(label) for row, label in labels.items()}


def _kind(value: Any) -> str:
    """Return "boolean", "integer", "fraction", "string" or "other"."""
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, int):
        return "integer" if value.bit_length() <= _MOST_BITS else "other"
    if isinstance(value, float | Decimal):
        return "fraction"
    return "string" if isinstance(value, str) else "other"


def _spells_number(label: Any) -> bool:
    return isinstance(label, str) and _NUMBER.fullmatch(label) is not None


def _has_fraction(label: str) -> bool:
    number = float(label)
    return math.isfinite(number) and not number.is_integer()


def _advice(name: str, label: Any, fraction: bool) -> str:
    """Return advice for a label that cannot name a class."""
    if fraction:
        return f"; group numbers with fractions into classes first, or {_REGRESSION}"
    if isinstance(label, dict):
        field = next(iter(label), "FIELD")
        return f"; name a field of the object, as in '{name}.{field}'"
    if isinstance(label, list | tuple) or getattr(label, "ndim", None):
        return "; of a list such as one-hot labels, give the place of the 1"
    return ""


def _name(label: Any) -> str:
    return str(label).lower() if isinstance(label, bool) else str(label)


def _sort_key(labels: Sequence[str] | Counter[str]) -> Any:
    """Return the sort key of labels: whole numbers by size, anything else in alphabetical order."""
    try:
        numbers = {label: int(label) for label in labels}
    except ValueError:
        return None
    return lambda label: (numbers[label], label)


def _no_labels(table: Table, name: str, values: Sequence[Any]) -> str:
    """Return the message for a column without a single label, such as that of a split whose labels are hidden."""
    split = table.source.get("split")
    content = "-1" if _hidden(values[0]) else "empty"
    others = [other for other in table.splits if other != split and other not in {"test", "unsupervised"}]
    advice = f"; use split {' or '.join(map(repr, others))}" if others else "; labelled texts are needed"
    origin = f"split {split!r} of {table.source['path']}" if split else str(table.source["path"])
    return f"the labels of {origin} are hidden or missing: all {len(values)} are {content} (column {name!r}){advice}."
