"""Which columns hold texts and labels, and what the labels' classes are."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from ntps.errors import NtpsError
from ntps.tasks.tables import Table

TEXT_NAMES = (
    "text", "texts", "sentence", "sentences", "content", "contents", "document", "review", "review_text", "reviews",
    "question", "query", "utterance", "message", "sms", "tweet", "headline", "title", "body", "comment", "comment_text",
    "post", "passage", "paragraph", "article", "abstract", "context", "premise", "input", "prompt", "description",
)  # fmt: skip
LABEL_NAMES = (
    "label", "labels", "class", "classes", "category", "categories", "target", "targets", "sentiment", "intent",
    "emotion", "topic", "coarse_label", "fine_label", "bias_type", "clickbait", "spam", "is_spam", "answerkey", "y",
)  # fmt: skip


def find_column(table: Table, what: str, names: Sequence[str], other: str | None = None) -> str:
    """Return the one column whose name is among `names`, upper or lower case alike, and not in `other`.

    Raises:
        NtpsError: If none or several are.
    """
    taken = set((other or "").split(","))
    found = [name for name in table.columns if name.strip().lower() in names and name not in taken]
    listed = ", ".join(table.columns)
    if not found:
        raise NtpsError(
            f"{table.source['path']}: no {what} column found among {listed}; name it with {what}_column "
            f"(known by name: {', '.join(names[:5])}, ...)."
        )
    if len(found) > 1:
        raise NtpsError(
            f"{table.source['path']}: the {what} column is ambiguous ({' or '.join(found)}); "
            f"name one with {what}_column; columns: {listed}."
        )
    return found[0]


def column(table: Table, name: str, what: str) -> tuple[list[Any], tuple[str, ...] | None]:
    """Return a named column and its declared class names; a dot looks into objects.

    Raises:
        NtpsError: If there is no such column or field.
    """
    if name in table.columns:
        return table.columns[name], table.declared.get(name)
    head, _, rest = name.partition(".")
    if not rest or head not in table.columns:
        raise NtpsError(f"{table.source['path']}: no {what} column {name!r}; columns: {', '.join(table.columns)}.")
    values = []
    for row, value in enumerate(table.columns[head]):
        inner = value
        for key in rest.split("."):
            if not isinstance(inner, dict) or key not in inner:
                raise NtpsError(f"{table.where(row)}: column {head!r} has no field {rest!r}.")
            inner = inner[key]
        values.append(inner)
    return values, None


def texts_of(table: Table, name: str, separator: str) -> tuple[list[str], int]:
    """Return the texts of a column, or of several joined by `separator`, and how many held broken characters.

    Raises:
        NtpsError: If a column is missing, or holds nulls or something else than text.
    """
    names = [name] if name in table.columns else [part.strip() for part in name.split(",")]
    parts = [_strings(table, part, separator) for part in names]
    texts = [separator.join(row) for row in zip(*parts, strict=True)]
    repaired = 0
    for row, text in enumerate(texts):
        try:
            text.encode("utf-8")
        except UnicodeEncodeError:  # JSON may spell half a character; no tokenizer takes it
            texts[row] = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
            repaired += 1
    return texts, repaired


def _strings(table: Table, name: str, separator: str) -> list[str]:
    """Return one column as strings; a list of strings, answers to choose from, becomes "(0) one (1) another"."""
    values, _ = column(table, name, "text")
    nulls = [row for row, value in enumerate(values) if _null(value)]
    if nulls:
        raise NtpsError(
            f"{table.where(nulls[0])}: the text (column {name!r}) is missing{_more(nulls)}; "
            "drop such rows, or write empty texts."
        )
    texts = []
    for row, value in enumerate(values):
        if isinstance(value, list | tuple) and all(isinstance(item, str) for item in value):
            texts.append(separator.join(f"({number}) {item}" for number, item in enumerate(value)))
        elif isinstance(value, str):
            texts.append(str(value))
        else:
            raise NtpsError(f"{table.where(row)}: column {name!r} holds {_short(value)}, where a text is needed.")
    return texts


def encode(
    values: Sequence[Any], table: Table, name: str, declared: tuple[str, ...] | None = None
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Turn labels into class numbers.

    Args:
        values: One label a text: integers (also as fractions without a fractional part), strings, or booleans.
        table: Where they come from, for messages.
        name: Their column.
        declared: Class names, where the source declares them; then `values` are their numbers, and -1 is "hidden".

    Returns:
        Class numbers, int64 of shape (n,), and the names of the classes that occur: numbers by size (words that are all
        whole numbers too), words by alphabet, declared names as declared.

    Raises:
        NtpsError: If labels are missing, hidden, fractional, mixed, or no labels at all.
    """
    values = [value.item() if isinstance(value, np.generic) else value for value in values]
    values = [value.strip() if isinstance(value, str) else value for value in values]
    hidden = [row for row, value in enumerate(values) if _null(value) or value == "" or (declared and value == -1)]
    if values and (len(hidden) == len(values) or all(value == -1 for value in values)):
        raise NtpsError(_hidden(table, name, values))
    if hidden:
        first = table.where(hidden[0])
        raise NtpsError(f"{first}: the label (column {name!r}) is missing{_more(hidden)}; drop such rows.")
    kinds = {_kind(value) for value in values}
    for row, value in enumerate(values):
        kind = _kind(value)
        if kind == "other" or (kind == "fraction" and not float(value).is_integer()):
            raise NtpsError(
                f"{table.where(row)}: label {_short(value)} (column {name!r}) is no class; a task is a classification: "
                "integers, strings or booleans are accepted."
            )
    if len(kinds) > 1 and kinds != {"fraction", "integer"}:
        mixed = " and ".join(sorted(kinds))
        raise NtpsError(f"{table.source.get('path', name)}: column {name!r} mixes {mixed} labels; use one kind.")
    if kinds & {"fraction", "integer"}:
        values = [int(value) for value in values]
    if declared and kinds <= {"fraction", "integer"}:
        beyond = next((row for row, value in enumerate(values) if not 0 <= value < len(declared)), None)
        if beyond is not None:
            raise NtpsError(f"{table.where(beyond)}: label {values[beyond]} of {len(declared)} declared classes.")
    ordered = sorted(set(values), key=_order(values))
    number = {value: index for index, value in enumerate(ordered)}
    if declared and kinds <= {"fraction", "integer"}:
        names = tuple(declared[value] for value in ordered)
    elif kinds == {"boolean"}:
        names = tuple("true" if value else "false" for value in ordered)
    else:
        names = tuple(map(str, ordered))
    return np.array([number[value] for value in values], dtype=np.int64), names


def _order(values: Sequence[Any]) -> Any:
    """Return the sort key of classes: whole numbers by size, even when spelled as words; the rest as they compare."""
    if any(isinstance(value, str) for value in values):
        try:
            numbers = {value: int(value) for value in set(values)}
        except ValueError:
            return None
        return lambda value: (numbers[value], value)
    return None


def _kind(value: Any) -> str:
    """Return "boolean", "integer", "fraction", "string" or "other"."""
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, int):
        return "integer"
    if isinstance(value, float):
        return "fraction"
    return "string" if isinstance(value, str) else "other"


def _short(value: Any) -> str:
    """Return a value as it is written in Python, cut to fit a sentence."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _null(value: Any) -> bool:
    """Return whether a value is missing: None or not a number."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def _more(rows: Sequence[int]) -> str:
    """Return " (and in 3 more rows)" for a message that names the first of `rows`."""
    others = len(rows) - 1
    return f" (and in {others} more row{'s' if others > 1 else ''})" if others else ""


def _hidden(table: Table, name: str, values: Sequence[Any]) -> str:
    """Return the message for a split without public labels."""
    split = table.source.get("split")
    what = "-1" if values[0] == -1 else "empty"
    others = [other for other in table.splits if other != split and other not in {"test", "unsupervised"}]
    advice = f"; use split {' or '.join(map(repr, others))}" if others else "; labelled texts are needed"
    place = f"split {split!r} of {table.source.get('path')}" if split else str(table.source.get("path", name))
    return f"the labels of {place} are hidden or missing: all {len(values)} are {what} (column {name!r}){advice}."
