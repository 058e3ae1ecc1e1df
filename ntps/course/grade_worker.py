"""The process in which handed-in answers run; `ntps.course.grade` starts it and reads what it says.

It loads the package once, reads one request per line from its input (JSON: given code, the cells that were handed in, a
check) and answers each with one line: whether the check passed, and what was wrong. Each check runs in a child of its
own, with limits of processor time, memory and file size, in an empty folder: what an answer does to the child, the next
check does not see. Of a notebook only those statements run that bind a name which the checked answer needs.
"""

import ast
import builtins
import dis
import json
import linecache
import os
import re
import resource
import select
import signal
import sys
import tempfile
import time
from contextlib import suppress
from types import CodeType
from typing import Any, NamedTuple

from ntps.course import checks

_PATIENCE = 3  # seconds on the clock for each second of the processor: neighbours take their share, and sleep is free
_FILE_BYTES = 64_000_000
_LONGEST_REASON = 500
_MAGIC = re.compile(r"^[ \t]*[%!?].*$|^.*\?[ \t]*$", re.MULTILINE)  # what only IPython understands


class _Statement(NamedTuple):
    """One statement of a notebook."""

    cell: int
    label: str
    code: CodeType
    binds: set[str]
    uses: set[str]


class _Broken(Exception):
    """An answer cannot be checked; the message says why."""


def _names(code: CodeType, verb: str) -> set[str]:
    """Return the module's names that code loads or stores; `verb` is LOAD or STORE."""
    wanted = (f"{verb}_NAME", f"{verb}_GLOBAL", f"{verb}_FROM_DICT_OR_GLOBALS")
    return {each.argval for each in dis.get_instructions(code) if each.opname in wanted}


def _uses(code: CodeType) -> set[str]:
    """Return the module's names that code loads, inside its functions, too."""
    inner = [_uses(part) for part in code.co_consts if isinstance(part, CodeType)]
    return _names(code, "LOAD").union(*inner)


def _parse(source: str) -> ast.Module:
    """Parse a cell; lines for IPython alone are left out, the others keep their numbers."""
    try:
        return ast.parse(source)
    except SyntaxError:
        return ast.parse(_MAGIC.sub("", source))


def _statements(cells: list[list[str]]) -> tuple[list[_Statement], list[str]]:
    """Return the statements of cells, (label, source) each, and a sentence about each cell that cannot be read."""
    found, unreadable = [], []
    for number, (label, source) in enumerate(cells):
        try:
            tree = _parse(source)
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            unreadable.append(f"{label} is not Python: {error}")
            continue
        linecache.cache[label] = (len(source), None, source.splitlines(keepends=True), label)
        for node in tree.body:
            code = compile(ast.Module([node], []), label, "exec")
            star = {"*"} if isinstance(node, ast.ImportFrom) and node.names[0].name == "*" else set()
            found.append(_Statement(number, label, code, _names(code, "STORE") | star, _uses(code)))
    return found, unreadable


def _needed(statements: list[_Statement], names: set[str]) -> list[_Statement]:
    """Return the statements that bind some names, and those that bind what they use, in the order of the notebook."""
    names = names | {"*"}  # `from ... import *` may bind any
    while True:
        chosen = [statement for statement in statements if statement.binds & names]
        more = set[str]().union(*(statement.uses for statement in chosen)) - names
        if not more:
            return chosen
        names |= more


def judge(request: dict[str, Any]) -> None:
    """Run a check on a notebook's answer.

    Args:
        request: `given`, the sources of the exercise's own cells; `cells`, a list of (label, source) that were handed
            in; `before`, how many of them stand before the check, if that is known; `check`, the source of the check.

    Raises:
        CheckFailed: If the answer is wrong.
        _Broken: If there is none.
    """
    given, _ = _statements([["the exercise's own code", source] for source in request["given"]])
    answers, unreadable = _statements(request["cells"])
    check = compile(request["check"], "check", "exec")
    names = _uses(check) - {"checks"}
    before = [statement for statement in answers if statement.cell < (request["before"] or 0)]
    if all(any(name in statement.binds for statement in before) for name in names):
        answers = before  # as the learner ran it, and not what became of the name afterwards
    bound = set(dir(builtins)).union(*(statement.binds for statement in (*given, *answers)))
    for name in sorted(names - bound):
        raise _Broken(". ".join([f"{name} is not defined", *unreadable]))
    namespace: dict[str, Any] = {"__name__": "answers"}
    for statement in _needed([*given, *answers], names):
        try:
            exec(statement.code, namespace)
        except Exception as error:
            raise _Broken(f"{statement.label} raised {type(error).__name__}: {error}") from error
    exec(check, {**namespace, "checks": checks})


def _limit(seconds: int, megabytes: int) -> None:
    """Limit this process: its processor time, its memory beyond what it has, the size of its files; no core dumps."""
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
    resource.setrlimit(resource.RLIMIT_FSIZE, (_FILE_BYTES, _FILE_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if os.path.exists("/proc/self/statm"):  # elsewhere no limit of memory is kept
        with open("/proc/self/statm") as pages:
            now = int(pages.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (now + megabytes * 1_000_000,) * 2)


def _child(request: dict[str, Any], writer: int, folder: str, seconds: int, megabytes: int) -> None:
    """Judge in this process, say how it went, and end it."""
    try:
        os.setsid()
        os.chdir(folder)
        nowhere = os.open(os.devnull, os.O_RDWR)
        for stream in range(3):
            os.dup2(nowhere, stream)
        _limit(seconds, megabytes)
        passed, reason = False, ""
        try:
            judge(request)
            passed = True
        except (checks.CheckFailed, _Broken) as error:
            reason = str(error)
        except BaseException as error:
            reason = f"{type(error).__name__}: {error}"
        os.write(writer, json.dumps([passed, reason[:_LONGEST_REASON]]).encode() + b"\n")
    finally:
        os._exit(0)


def _answer_of(reader: int, seconds: float) -> bytes | None:
    """Return the line that a child writes, what there is of it if the child ends, or `None` after too many seconds."""
    said, deadline = b"", time.monotonic() + seconds
    while not said.endswith(b"\n") and len(said) < 1 << 16:
        ready, _, _ = select.select([reader], [], [], max(deadline - time.monotonic(), 0))
        if not ready:
            return None
        part = os.read(reader, 1 << 16)
        if not part:
            break
        said += part
    return said


def attempt(request: dict[str, Any], seconds: int, megabytes: int) -> tuple[bool, str]:
    """Judge in a child; return whether the check passed, and what is wrong.

    Args:
        request: As `judge` takes it.
        seconds: Of the processor, at most.
        megabytes: That the answer may take beyond what the package takes.
    """
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reader)
            _child(request, writer, folder, seconds, megabytes)
        os.close(writer)
        said = _answer_of(reader, _PATIENCE * seconds)
        os.close(reader)
        for kill in (os.killpg, os.kill):  # with all that it started, if it came so far as to lead a group
            with suppress(ProcessLookupError, PermissionError):
                kill(child, signal.SIGKILL)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if said is None or code == -signal.SIGXCPU:
        return False, f"the answer took more than {seconds} seconds."
    try:
        passed, reason = json.loads(said)
        return bool(passed), str(reason)
    except ValueError:
        how = f"signal {-code}" if code < 0 else f"exit status {code}"
        return False, f"the answer ended the process before the check was over ({how})."


def main(seconds: int, megabytes: int) -> None:
    """Answer requests until the input ends."""
    print("ready", flush=True)
    for line in sys.stdin:
        print(json.dumps(attempt(json.loads(line), seconds, megabytes)), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
