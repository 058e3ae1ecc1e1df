"""Progress that is seen while a cell runs and gone when it is done."""

import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from typing import Any, TextIO


@contextmanager
def progress() -> Iterator[None]:
    """Show the progress bars of what runs inside as one line below the cell, and clear the cell's output at the end.

    What is printed after the block stays. Outside a notebook bars go to stderr, as ever.
    """
    from IPython.core.getipython import get_ipython

    if get_ipython() is None:
        yield
        return
    from IPython.display import clear_output, display

    handle = display({"text/plain": ""}, raw=True, display_id=True)
    with redirect_stderr(_Line(handle, sys.stderr)):
        yield
    clear_output()


class _Line(io.TextIOBase):
    """A stderr whose bars replace each other in one output; anything else passes."""

    def __init__(self, handle: Any, stderr: TextIO) -> None:
        self.handle, self.stderr = handle, stderr

    def write(self, text: str) -> int:
        bar = text.strip("\r\n ")
        if "%|" in bar or "% |" in bar:
            self.handle.update({"text/plain": bar}, raw=True)
        elif bar:
            self.stderr.write(text)
        return len(text)
