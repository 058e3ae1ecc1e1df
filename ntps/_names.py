"""Names and messages as any screen, page or file can show them: one cleaner for all of them."""

import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain, count
from typing import Any

LONGEST_WORD, LONGEST_MESSAGE = 200, 1000  # characters of a message

# What steers a terminal: sequences that begin with an escape, control characters, and overrides of the direction of
# writing. Joiners and direction marks stay, as scripts and emoji need them.
_ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|[\]PX^_][^\x07\x1b]*(?:\x07|\x1b\\)?|[ -/]*[0-~])?|\x9b[0-?]*[@-~]")
_CONTROLS = re.compile("[\x00-\x08\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ufeff]")
_SURROGATES = re.compile("[\ud800-\udfff]")  # lone ones: bytes of a file name, or half a character of a damaged text


def valid(text: str) -> str:
    """Return text that every encoding of Unicode can write: lone surrogates become U+FFFD."""
    return _SURROGATES.sub("\ufffd", text)


def clean(text: str) -> str:
    """Return text without what steers a terminal and without lone surrogates; lines stay lines."""
    return valid(_CONTROLS.sub("", _ESCAPES.sub("", text)))


def shortened(text: str, length: int) -> str:
    """Return text of at most `length` characters: the middle of a longer one becomes "…"."""
    if len(text) <= length:
        return text
    tail = length // 3
    return f"{text[: length - tail - 1]}…{text[-tail:]}"


def one_line(message: str) -> str:
    """Return a message as one clean line, in which neither a word nor the whole is longer than a reader bears."""
    words = (shortened(word, LONGEST_WORD) for word in clean(message[: 1 << 20]).split())
    return shortened(" ".join(words), LONGEST_MESSAGE)


def last_part(path: str) -> str:
    """Return the last part of a path, of any system: it says neither where a file lay nor whose it was."""
    parts = [part for part in re.split(r"[/\\]", path) if part not in ("", ".", "..", "~")]
    return parts[-1] if parts else path


def short_name(name: str) -> str:
    """Return the last part of a path, or another name, such as one on the hub, as it is; clean in both cases."""
    local = name.startswith(("/", "\\", ".", "~")) or re.match(r"[A-Za-z]:[/\\]", name)
    return clean(last_part(name) if local else name)


def distinct(names: Iterable[str]) -> dict[str, str]:
    """Return a short name for each name, all different, with as many parts of its path as tell it from the others.

    Where no part tells them apart, as of `/x/m` and `x/m` on the hub, a path gets a number.
    """
    given = list(dict.fromkeys(names))
    found = {name: short_name(name) for name in given}
    for depth in range(2, 9):
        short = list(found.values())
        twice = [name for name in given if short.count(found[name]) > 1 and found[name] != clean(name)]
        for name in twice:
            found[name] = "/".join([part for part in re.split(r"[/\\]", name) if part][-depth:])
    return dict(zip(given, _apart(given, list(found.values()), "{} ({})"), strict=True))


def _apart(names: Sequence[str], short: Sequence[str], form: str) -> list[str]:
    """Return short forms of names, none empty, all different: those alike get a number, from their place in the list.

    Args:
        names: The names. One that is its own short form keeps it.
        short: The short form of each.
        form: Template of a short form and a number.
    """
    own = {name for name, wanted in zip(names, short, strict=True) if name == wanted}
    found: list[str] = []
    for place, (name, wanted) in enumerate(zip(names, short, strict=True), 1):
        taken = {"", *found, *(own - {name})}
        numbered = (form.format(wanted, number).strip("- ") for number in count(place))
        found.append(next(each for each in chain([wanted], numbered) if each not in taken))
    return found


# Paths of any system within a sentence; what follows a letter or a colon is an address, a unit or a fraction.
_PATHS = re.compile(r"(?<![\w:/\\.~-])(?:~?/|[A-Za-z]:[/\\])(?:[^\s/\\:;,'\"<>()]+[/\\])+(?=[^\s/\\])")
_AS_THEY_ARE = {"classes", "class", "label"}  # words of the data may look like paths


def shareable(content: Any, key: str = "") -> Any:
    """Return JSON values in which no path says where files lie or whose they are: its last part stays.

    Args:
        content: JSON values, of a report.
        key: The key that holds them.
    """
    if isinstance(content, Mapping):
        return {shareable(name): shareable(item, name) for name, item in content.items()}
    if isinstance(content, list):
        return [shareable(item, key) for item in content]
    if not isinstance(content, str) or key in _AS_THEY_ARE:
        return content
    name = short_name(content)
    return name if name != content and not re.search(r"[:;,.'\"] ", content) else _PATHS.sub("", content)


def shareable_results(results: Sequence[Any]) -> dict[str, Any]:
    """Return the JSON of the result of one label column as it is, and of several as a list under `tasks`."""
    contents = [shareable(result.to_dict()) for result in results]
    if len(contents) == 1:
        return contents[0]
    return {"schema_version": contents[0]["schema_version"], "tasks": contents}


def file_names(names: Sequence[str]) -> list[str]:
    """Return names for files and links: letters, digits and dashes, all different.

    A name that is one already stays as it is; of those that come out alike, others end in a number.
    """
    return _apart(names, [re.sub(r"\W+", "-", name.lower()).strip("-") for name in names], "{}-{}")
