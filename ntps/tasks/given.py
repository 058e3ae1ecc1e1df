"""A task as it is named in a list of tasks: where it is, under which name, and how to read it."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ntps._files import local_path
from ntps._text import listed
from ntps.errors import NtpsError
from ntps.tasks.files import EXTENSIONS
from ntps.tasks.load import KINDS, load_task
from ntps.tasks.task import Task

_VALUES = {"text": "text_column", "label": "label_column", **{name: name for name in ("split", "config", "revision")}}
_FLAGS = {
    "no-header": {"header": False},
    "drop-missing": {"drop_missing": True},
    "regression": {"regression": True},
}
_OPTION = rf"(?:(?:{'|'.join(_VALUES)})=|(?:{'|'.join(_FLAGS)})(?=,|$))"
_OTHER = re.compile(rf"(?:{'|'.join(map(re.escape, EXTENSIONS))}):(?!{_OPTION})", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class TaskSource:
    """A task that is yet to be loaded.

    Attributes:
        name: Name of the task.
        path: As for `load_task`: a file, a folder, a bundled task, or a data set on the hub.
        options: Options of `load_task` that say how to read it: columns, split, ...
    """

    name: str
    path: str
    options: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def parse(cls, given: str, **options: Any) -> "TaskSource":
        """Read `PATH`, `NAME=PATH` or `NAME=PATH:OPTION,OPTION,...`.

        An option is text=COLUMN, label=COLUMN, split=SPLIT, config=NAME, revision=REVISION, no-header, drop-missing or
        regression: "stars=reviews.csv:text=title,body,label=stars" joins two text columns. A file whose name is all of
        `given` is that file. The name is by default the file's, without its extension, or the path.

        Args:
            given: The words.
            **options: Options of `load_task` for what `given` does not say.

        Raises:
            NtpsError: If a name, a path or the value of an option is empty, or there is no such option.
        """
        head, own = given, dict(options)
        colon = None if _exists(given) else re.search(rf":(?={_OPTION})", given)
        if colon:
            head = given[: colon.start()]
            for option in re.split(rf",(?={_OPTION})", given[colon.end() :]):
                word, _, value = option.partition("=")
                if word in _VALUES and not value.strip():
                    raise NtpsError(f"task {given!r} gives {word} no value; write {word}=NAME.")
                own |= {_VALUES[word]: value} if word in _VALUES else _FLAGS[word]
        elif _OTHER.search(given) and not _exists(given):
            words, flags = ", ".join(_VALUES), listed(list(_FLAGS))
            raise NtpsError(
                f"task {given!r} has an unknown option after its file; with a value there are {words}, without one "
                f"{flags}."
            )
        name, separator, path = head.partition("=")
        if not separator or _exists(head):
            name, path = Path(head).stem if Path(head).suffix.lower() in EXTENSIONS else head, head
        if not name.strip() or not path.strip():
            raise NtpsError(f"a task is given as {given!r}; give its name or path, or NAME=PATH.")
        return cls(name=name, path=path, options=own)

    def load(self, *, limit: int | None = None, seed: int = 0) -> Task:
        """Load the task, a random sample of at most `limit` texts.

        Raises:
            NtpsError: As for `load_task`.
        """
        return load_task(self.path, name=self.name, limit=limit, seed=seed, **self.options)


def need_classes(tasks: Iterable[Task | TaskSource], what: str) -> None:
    """Refuse tasks without classes before anything is computed.

    Args:
        tasks: Loaded or not.
        what: What needs classes, for the message.

    Raises:
        NtpsError: If the labels of a task are real values, or several for each text.
    """
    for task in tasks:
        options = {} if isinstance(task, Task) else task.options
        kind = task.columns[0].kind if isinstance(task, Task) else next(filter(options.get, KINDS), "classification")
        if kind != "classification":
            raise NtpsError(f"{task.name} is a {kind} task, and {what} needs classes; score and rank take it.")


def _exists(name: str) -> bool:
    try:
        return local_path(name).exists()
    except NtpsError:  # no name of a file
        return False
