"""Find the columns of texts and labels, and read texts."""

import math
import reprlib
from collections.abc import Iterable, Sequence
from typing import Any

from ntps.errors import NtpsError
from ntps.tasks.tables import Table, clean_name, repaired

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
    path = table.source["path"]
    candidates = [name for name in table.columns if name.lower() in names and name not in taken]
    if not candidates:
        known = {name.lower() for name in table.columns} & {*TEXT_NAMES, *LABEL_NAMES}
        unnamed = "the first line must name the columns (if it names none, header=False numbers them: 1, 2, ...); "
        raise NtpsError(
            f"{path}: no {role} column found among {table.listed}; {unnamed if table.headed and not known else ''}"
            f"name it with {role}_column (known names: {', '.join(names[:5])}, ...)."
        )
    if len(candidates) > 1:
        raise NtpsError(
            f"{path}: the {role} column is ambiguous ({' or '.join(candidates)}); "
            f"name one with {role}_column; columns: {table.listed}."
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
        NtpsError: If there is no such column or field, or several columns have this name.
    """
    path = table.source["path"]
    whole, (head, _, field) = name in table.columns, name.partition(".")
    if not whole and (not field or head not in table.columns):
        raise NtpsError(f"{path}: no {role} column {name!r}; columns: {table.listed}.")
    column = clean_name(name if whole else head)
    if column in table.columns.doubled:
        raise NtpsError(f"{path}: two columns are named {column!r}, which is wanted; give each its own name.")
    if whole:
        return table.columns[name], table.declared.get(column)
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
    whole = [repaired(text) for text in texts]
    return whole, sum(text != before for text, before in zip(whole, texts, strict=True))


def missing_texts(table: Table, names: str) -> set[int]:
    """Return the rows without a text: a column is missing, or all are blank."""
    columns = [column_values(table, name, "text", allow_missing=True)[0] for name in split_names(table, names)]
    return {
        row
        for row, values in enumerate(zip(*columns, strict=True))
        if any(map(is_null, values)) or all(isinstance(value, str) and not value.strip() for value in values)
    }


def _strings(table: Table, name: str) -> list[str]:
    """Return one column as strings; a list of strings, answers to choose from, becomes "(0) one (1) another"."""
    values, _ = column_values(table, name, "text")
    missing = [row for row, value in enumerate(values) if is_null(value)]
    if missing:
        raise NtpsError(
            f"{table.where(missing[0])}: the text (column {name!r}) is missing{more_rows(missing)}; "
            "write empty texts, or drop such rows with drop_missing=True."
        )
    texts = []
    for row, value in enumerate(values):
        if isinstance(value, list | tuple) and all(isinstance(item, str) for item in value):
            texts.append(PAIR_SEPARATOR.join(f"({number}) {item}" for number, item in enumerate(value)))
        elif isinstance(value, str):
            texts.append(str(value))
        else:
            raise NtpsError(f"{table.where(row)}: column {name!r} holds {short(value)}, where a text is needed.")
    return texts


def short(value: Any) -> str:
    """Return a value as Python writes it, shortened to fit a sentence."""
    writer = reprlib.Repr()
    writer.maxlevel, writer.maxstring, writer.maxlong, writer.maxother = 2, 60, 60, 60
    try:
        return " ".join(writer.repr(value).split())
    except ValueError:  # more digits than Python writes
        return "a number of too many digits"


def is_null(value: Any) -> bool:
    """Return whether a value is None or NaN."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def more_rows(rows: Iterable[int]) -> str:
    """Return " (and in 3 more rows)" for a message that names the first of `rows`."""
    n_more = len(list(rows)) - 1
    return f" (and in {n_more} more row{'s' if n_more > 1 else ''})" if n_more else ""
