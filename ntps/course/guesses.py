"""Predictions that are kept: a guess before the result, and the outcome beside it once it is there.

    predict("tails in ten tosses")                        a field to type a number in
    predict("the next toss", choices=("heads", "tails"))  a list to choose from
    predict("tails in ten tosses", 4)                     the same in code, where no widget is live

    outcome("tails in ten tosses", 6)                     prints "you guessed 4, it is 6"; nothing without a guess

Guesses stand in `predictions.json` in the working directory, which is the notebook's folder, or in the file that the
environment variable NTPS_PREDICTIONS names. `python -m ntps.course.predictions FOLDER` reads those of a class.
"""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ntps._files import atomic_write, from_json, json_text, read_json
from ntps.errors import NtpsError, one_of

if TYPE_CHECKING:
    import ipywidgets

FILE, FILE_VARIABLE = "predictions.json", "NTPS_PREDICTIONS"
FORMAT = "ntps-predictions 1"
Value = float | str


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """A guess, and what came out.

    Attributes:
        guess: A number, or one of the choices.
        outcome: The same, or `None` before the result was shown.
    """

    guess: Value
    outcome: Value | None = None

    def __post_init__(self) -> None:
        for value in (self.guess, self.outcome):
            if not isinstance(value, int | float | str | None) or isinstance(value, bool):
                raise NtpsError(f"a guess or outcome is {value!r}; a number or a text is needed.")
            if isinstance(value, int | float) and not math.isfinite(value):
                raise NtpsError(f"a guess or outcome is {value!r}; a finite number is needed.")


def read_predictions(path: str | Path) -> dict[str, Prediction]:
    """Return the predictions of one file by question.

    Raises:
        NtpsError: If the file cannot be read or is not one that `predict` writes.
    """
    content = read_json(path)
    if not isinstance(content, dict) or content.get("format") != FORMAT or set(content) != {"format", "predictions"}:
        raise NtpsError(f"{path} is not a file of predictions ({FORMAT!r}).")
    try:
        found = from_json(dict[str, Any], content["predictions"], "predictions")
        return {question: _prediction(entry, question) for question, entry in found.items()}
    except NtpsError as error:
        raise NtpsError(f"{path}: {error}") from error


def predict(question: str, guess: Value | None = None, *, choices: Sequence[str] = ()) -> "ipywidgets.VBox | None":
    """Ask for a guess before the result is shown, and keep it.

    Args:
        question: What is asked, in a few words; the name under which `outcome` finds the guess.
        guess: The guess, if it is given in code: a number, or one of `choices`. Without it a widget asks.
        choices: What there is to choose from; none asks for a number.

    Returns:
        The widget, or `None` if `guess` is given.

    Raises:
        NtpsError: If the guess is no finite number or none of the choices, or cannot be written.
    """
    if guess is None:
        return _widget(question, choices)
    if choices:
        one_of(guess, choices, "guess")
    elif isinstance(guess, str):
        guess = number(guess)
    print(_keep(question, guess))
    return None


def outcome(question: str, value: Value) -> None:
    """Print what came out beside the guess; without a guess, nothing.

    Args:
        question: As it was given to `predict`.
        value: The result: a number, or one of the choices.
    """
    try:
        known = _known()
        if question not in known:
            return
        guess = known[question].guess
        known[question] = Prediction(guess=guess, outcome=value if isinstance(value, str) else float(value))
        _write(known)
    except NtpsError as error:  # a lesson goes on without its predictions
        print(error)
        return
    found = known[question].outcome
    print(
        f"{question}: you guessed {shown(guess)}, " + ("and so it is." if guess == found else f"it is {shown(found)}.")
    )


def shown(value: Value | None) -> str:
    """Return a guess or an outcome as a reader sees it: at most three digits of a number, a dash for none."""
    if value is None:
        return "-"
    return value if isinstance(value, str) else f"{value:.3g}"


def number(text: str) -> float:
    """Return what a reader typed as a number; `40 %` is 0.4, and a comma is a point.

    Raises:
        NtpsError: If it is none.
    """
    bare = text.strip().replace(",", ".").replace("−", "-")
    share = bare.endswith("%")
    try:
        value = float(bare.removesuffix("%"))
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise NtpsError(f"{text!r} is not a number; type one, such as 0.4 or 40 %.")
    return value / 100 if share else value


def _prediction(entry: Any, question: str) -> Prediction:
    if not isinstance(entry, dict) or set(entry) != {"guess", "outcome"} or entry["guess"] is None:
        raise NtpsError(f"{question!r} needs a guess and an outcome.")
    return Prediction(**entry)


def _file() -> Path:
    return Path(os.environ.get(FILE_VARIABLE) or FILE)


def _known() -> dict[str, Prediction]:
    path = _file()
    return read_predictions(path) if path.exists() else {}


def _write(known: dict[str, Prediction]) -> None:
    rows = {question: {"guess": found.guess, "outcome": found.outcome} for question, found in known.items()}
    atomic_write(_file(), json_text({"format": FORMAT, "predictions": rows}))


def _keep(question: str, guess: Value) -> str:
    """Write a guess, unless its result was shown already; return what to tell the reader."""
    known = _known()
    before = known.get(question)
    if before is not None and before.outcome is not None:
        return f"{question}: you guessed {shown(before.guess)} before you saw the result; that guess stays."
    known[question] = Prediction(guess=guess)
    _write(known)
    return f"{question}: your guess {shown(guess)} is kept."


def _widget(question: str, choices: Sequence[str]) -> "ipywidgets.VBox":
    """Return a field with its label, and a line below that says what was kept."""
    import ipywidgets

    look = {
        "description": question,
        "style": {"description_width": "initial"},
        "layout": ipywidgets.Layout(width="44em", max_width="100%"),
    }
    field: Any
    if choices:
        field = ipywidgets.Dropdown(options=[("choose ...", None), *((choice, choice) for choice in choices)], **look)
    else:
        field = ipywidgets.Text(placeholder="a number, then Enter", continuous_update=False, **look)
    line = ipywidgets.HTML()

    def tell(text: str) -> None:
        line.value = f'<div role="status" aria-live="polite">{escape(text)}</div>'

    def follow(change: dict[str, Any]) -> None:
        if change["new"]:
            try:
                tell(_keep(question, change["new"] if choices else number(change["new"])))
            except NtpsError as error:
                tell(str(error))

    class Prediction(ipywidgets.VBox):
        """A box under a name of its own, by which `tools.run` knows it among stored outputs."""

    field.observe(follow, names="value")
    box = Prediction([field, line])
    box.add_class("ntps-predict")
    box.field, box.line = field, line
    return box
