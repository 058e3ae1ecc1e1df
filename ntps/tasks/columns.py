"""Find the columns of texts and labels, and turn labels into class numbers."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from ntps.errors import NtpsError
from ntps.tasks.tables import Table
from ntps.tasks.task import LabelColumn

TEXT_NAMES = (
    "text", "texts", "sentence", "sentences", "content", "contents", "document", "review", "review_text", "reviews",
    "question", "query", "utterance", "message", "sms", "tweet", "headline", "title", "body", "comment", "comment_text",
    "post", "passage", "paragraph", "article", "abstract", "context", "premise", "input", "prompt", "description",
)  # fmt: skip
LABEL_NAMES = (
    "label", "labels", "class", "classes", "category", "categories", "target", "targets", "sentiment", "intent",
    "emotion", "topic", "coarse_label", "fine_label", "bias_type", "clickbait", "spam", "is_spam", "answerkey", "y",
)  # fmt: skip

# Between joined columns, and between answer choices, which are numbered from 0: "(0) one (1) another". The paper's data
# preparation also uses a single space, so scores of its question pairs and multiple-choice set can be compared.
PAIR_SEPARATOR = " "


def find_column(table: Table, role: str, names: Sequence[str], taken: Sequence[str] = ()) -> str:
    """Return the one column whose name is among `names`, whatever its case, and not in `taken`.

    Args:
        table: The table to look in.
        role: Role of the column, "text" or "label".
        names: Names in lower case that suggest this role.
        taken: Columns that have another role.

    Raises:
        NtpsError: If no column or several columns have such a name.
    """
    candidates = [name for name in table.columns if name.strip().lower() in names and name not in taken]
    listed = ", ".join(table.columns)
    if not candidates:
        raise NtpsError(
            f"{table.source['path']}: no {role} column found among {listed}; name it with {role}_column "
            f"(known names: {', '.join(names[:5])}, ...)."
        )
    if len(candidates) > 1:
        raise NtpsError(
            f"{table.source['path']}: the {role} column is ambiguous ({' or '.join(candidates)}); "
            f"name one with {role}_column; columns: {listed}."
        )
    return candidates[0]


def split_names(table: Table, names: str) -> list[str]:
    """Return the text columns that `names` lists, separated by commas; a column may have a comma in its own name."""
    return [names] if names in table.columns else [name.strip() for name in names.split(",")]


def column_values(
    table: Table, name: str, role: str, *, allow_missing: bool = False
) -> tuple[list[Any], tuple[str, ...] | None]:
    """Return the values of a column and its declared class names; a dot looks into a field of objects.

    Args:
        table: The table to read.
        name: Name of the column, or COLUMN.FIELD.
        role: Role of the column, for messages.
        allow_missing: Whether an object may lack the field; its value is None then.

    Raises:
        NtpsError: If there is no such column or field.
    """
    if name in table.columns:
        return table.columns[name], table.declared.get(name)
    head, _, field = name.partition(".")
    if not field or head not in table.columns:
        raise NtpsError(f"{table.source['path']}: no {role} column {name!r}; columns: {', '.join(table.columns)}.")
    values = []
    for row, value in enumerate(table.columns[head]):
        inner = value
        for key in field.split("."):
            if isinstance(inner, dict) and key in inner:
                inner = inner[key]
            elif allow_missing:
                inner = None
                break
            else:
                raise NtpsError(f"{table.where(row)}: column {head!r} has no field {field!r}.")
        values.append(inner)
    return values, None


def read_texts(table: Table, names: str) -> tuple[list[str], int]:
    """Return the texts of a column, or of several joined by `PAIR_SEPARATOR`.

    Args:
        table: The table to read.
        names: Name of the text column, or several names separated by commas.

    Returns:
        The texts, and the number of texts in which broken characters were replaced.

    Raises:
        NtpsError: If a column does not exist, has missing values, or holds anything but text.
    """
    joined = zip(*(_strings(table, name) for name in split_names(table, names)), strict=True)
    texts = [PAIR_SEPARATOR.join(row) for row in joined]
    n_repaired = 0
    for row, text in enumerate(texts):
        try:
            text.encode("utf-8")
        except UnicodeEncodeError:  # JSON can spell half of a surrogate pair, which no tokenizer accepts
            texts[row] = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
            n_repaired += 1
    return texts, n_repaired


def _strings(table: Table, name: str) -> list[str]:
    """Return one column as strings; a list of strings, answers to choose from, becomes "(0) one (1) another"."""
    values, _ = column_values(table, name, "text")
    missing = [row for row, value in enumerate(values) if _is_null(value)]
    if missing:
        raise NtpsError(
            f"{table.where(missing[0])}: the text (column {name!r}) is missing{_more_rows(missing)}; "
            "drop such rows, or write empty texts."
        )
    texts = []
    for row, value in enumerate(values):
        if isinstance(value, list | tuple) and all(isinstance(item, str) for item in value):
            texts.append(PAIR_SEPARATOR.join(f"({number}) {item}" for number, item in enumerate(value)))
        elif isinstance(value, str):
            texts.append(str(value))
        else:
            raise NtpsError(f"{table.where(row)}: column {name!r} holds {_short(value)}, where a text is needed.")
    return texts


def read_labels(table: Table, name: str, *, allow_missing: bool = False) -> LabelColumn:
    """Turn a column of labels into class numbers.

    Labels are integers (also floats without a fractional part), strings or booleans. None, NaN and the empty string are
    missing labels; where the source declares class names, the labels are their numbers, and -1 is missing too.

    Args:
        table: The table to read.
        name: Name of the label column.
        allow_missing: Whether texts may lack a label; their class number is -1 then.

    Returns:
        The column. Its classes are those that occur: numbers by size (also strings that are all whole numbers), words
        in alphabetical order, declared names as declared.

    Raises:
        NtpsError: If there is no such column, if all labels are missing, or some are without `allow_missing`, or if
            labels are fractional, of several kinds, or not class labels.
    """
    values, declared = column_values(table, name, "label", allow_missing=allow_missing)
    values = [value.item() if isinstance(value, np.generic) else value for value in values]
    values = [value.strip() if isinstance(value, str) else value for value in values]
    missing = [_is_null(value) or value == "" or bool(declared and value == -1) for value in values]
    if values and (all(missing) or all(value == -1 for value in values)):
        raise NtpsError(_no_labels(table, name, values))
    if any(missing) and not allow_missing:
        rows = [row for row, absent in enumerate(missing) if absent]
        raise NtpsError(
            f"{table.where(rows[0])}: the label (column {name!r}) is missing{_more_rows(rows)}; drop such rows."
        )
    labels = {row: value for row, (value, absent) in enumerate(zip(values, missing, strict=True)) if not absent}
    kinds = _kinds_of(table, name, labels)
    if kinds <= {"fraction", "integer"}:
        labels = {row: int(label) for row, label in labels.items()}
    else:
        declared = None  # labels that are names already
    if declared:
        for row, label in labels.items():
            if not 0 <= label < len(declared):
                raise NtpsError(
                    f"{table.where(row)}: label {label} (column {name!r}) is not among its {len(declared)} classes "
                    f"(0 to {len(declared) - 1})."
                )
    ordered = sorted(set(labels.values()), key=_sort_key(list(labels.values())))
    if declared:
        classes = tuple(declared[label] for label in ordered)
    elif kinds == {"boolean"}:
        classes = tuple("true" if label else "false" for label in ordered)
    else:
        classes = tuple(map(str, ordered))
    number_of = {label: number for number, label in enumerate(ordered)}
    numbers = np.full(len(values), -1, dtype=np.int64)
    numbers[list(labels)] = [number_of[label] for label in labels.values()]
    return LabelColumn(name, numbers, classes)


def _kinds_of(table: Table, name: str, labels: dict[int, Any]) -> set[str]:
    """Return the kinds of labels, given by row.

    Raises:
        NtpsError: If a label cannot name a class, or their kinds do not go together.
    """
    kinds = set()
    for row, label in labels.items():
        kind = _kind(label)
        if kind == "other" or (kind == "fraction" and not float(label).is_integer()):
            raise NtpsError(
                f"{table.where(row)}: label {_short(label)} (column {name!r}) is not a class; a task is a "
                "classification: integers, strings or booleans are accepted."
            )
        kinds.add(kind)
    if len(kinds) > 1 and kinds != {"fraction", "integer"}:
        mixed = " and ".join(sorted(kinds))
        raise NtpsError(f"{table.source['path']}: column {name!r} mixes {mixed} labels; use one kind.")
    return kinds


def _sort_key(labels: Sequence[Any]) -> Any:
    """Return the sort key of labels: strings that are all whole numbers by size, anything else in its own order."""
    if any(isinstance(label, str) for label in labels):
        try:
            numbers = {label: int(label) for label in set(labels)}
        except ValueError:
            return None
        return lambda label: (numbers[label], label)
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
    """Return a value as Python writes it, shortened to fit a sentence."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _is_null(value: Any) -> bool:
    """Return whether a value is None or NaN."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def _more_rows(rows: Sequence[int]) -> str:
    """Return " (and in 3 more rows)" for a message that names the first of `rows`."""
    n_more = len(rows) - 1
    return f" (and in {n_more} more row{'s' if n_more > 1 else ''})" if n_more else ""


def _no_labels(table: Table, name: str, values: Sequence[Any]) -> str:
    """Return the message for a column without a single label, such as that of a split whose labels are hidden."""
    split = table.source.get("split")
    content = "-1" if values[0] == -1 else "empty"
    others = [other for other in table.splits if other != split and other not in {"test", "unsupervised"}]
    advice = f"; use split {' or '.join(map(repr, others))}" if others else "; labelled texts are needed"
    origin = f"split {split!r} of {table.source['path']}" if split else str(table.source["path"])
    return f"the labels of {origin} are hidden or missing: all {len(values)} are {content} (column {name!r}){advice}."
