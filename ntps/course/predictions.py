"""Read the predictions of a class: one table, one row per question.

    python -m ntps.course.predictions FOLDER

Reads every .json file in FOLDER and below, one per student: the `predictions.json` that lies beside a student's
notebooks, under any name. A file that is not one is named below the table and left out.
"""

import argparse
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from ntps._names import shortened
from ntps._text import Column, text_table
from ntps.course.guesses import Prediction, Value, read_predictions, shown
from ntps.errors import NtpsError

LONGEST = 60  # characters of a question or a choice in the table


@dataclass(frozen=True, kw_only=True)
class Question:
    """What a class guessed.

    Attributes:
        name: The question.
        n: Number of guesses.
        guess: Their median; of choices, the most frequent one.
        n_same: Number of guesses that are `guess`.
        outcome: The same of the outcomes that were shown; `None` if none was.
    """

    name: str
    n: int
    guess: Value
    n_same: int
    outcome: Value | None


def collect(folder: str | Path) -> tuple[list[Question], list[str]]:
    """Return what a class guessed, by question in alphabetical order, and a line for each file that is left out.

    Args:
        folder: Folder of the files, which may lie in folders of their own.

    Raises:
        NtpsError: If there is no such folder.
    """
    root = Path(folder)
    if not root.is_dir():
        raise NtpsError(f"{folder} is not a folder; give the one that holds the predictions of a class.")
    by_question: dict[str, list[Prediction]] = {}
    left_out = []
    for path in sorted(root.rglob("*.json")):
        if any(part.startswith(".") for part in path.relative_to(root).parts):  # JupyterLab's copies of a file
            continue
        try:
            found = read_predictions(path)
        except NtpsError as error:
            left_out.append(str(error))
            continue
        for name, prediction in found.items():
            by_question.setdefault(name, []).append(prediction)
    return [_question(name, by_question[name]) for name in sorted(by_question)], left_out


def main(arguments: list[str] | None = None) -> int:
    """Print the table; return the exit status: 1 if a file was left out, 2 if there is no table."""
    parser = argparse.ArgumentParser(
        prog="python -m ntps.course.predictions", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("folder", help="folder of the predictions.json files, one per student, under any name")
    folder = parser.parse_args(arguments).folder
    try:
        questions, left_out = collect(folder)
    except NtpsError as error:
        print(error, file=sys.stderr)
        return 2
    columns = [
        Column("question", lambda row: shortened(row.name, LONGEST), words=True),
        Column("guesses", lambda row: str(row.n)),
        Column("middle or most frequent", _guess, words=True),
        Column("outcome", lambda row: shown(row.outcome), words=True),
    ]
    print("\n".join(text_table(columns, questions)) if questions else f"no predictions in {folder}")
    for line in left_out:
        print(f"left out: {line}", file=sys.stderr)
    return int(bool(left_out)) if questions else 2


def _question(name: str, predictions: list[Prediction]) -> Question:
    guess = _middle([prediction.guess for prediction in predictions])
    outcomes = [prediction.outcome for prediction in predictions if prediction.outcome is not None]
    return Question(
        name=name,
        n=len(predictions),
        guess=guess,
        n_same=sum(prediction.guess == guess for prediction in predictions),
        outcome=_middle(outcomes) if outcomes else None,
    )


def _middle(values: list[Value]) -> Value:
    """Return the most frequent text if there is one, else the median of the numbers."""
    texts = Counter(value for value in values if isinstance(value, str))
    if texts:
        return texts.most_common(1)[0][0]
    return median(value for value in values if not isinstance(value, str))


def _guess(row: Question) -> str:
    return (
        f"{shortened(row.guess, LONGEST)} ({row.n_same} of {row.n})" if isinstance(row.guess, str) else shown(row.guess)
    )


if __name__ == "__main__":
    sys.exit(main())
