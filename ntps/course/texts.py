"""A file of labelled texts, as a learner would bring one."""

from importlib import resources
from pathlib import Path


def example_file() -> Path:
    """Return the path of a small CSV file with the columns `text` and `label`.

    200 texts of the bundled language, of two classes: whether they tell of the past or of the present.
    """
    return Path(str(resources.files("ntps.course").joinpath("data/my_texts.csv")))
