"""What `notebooks/course.toml` says, and where the notebooks are."""

import tomllib
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = ROOT / "notebooks"
SOLUTIONS = NOTEBOOKS / "solutions"
EXERCISES = NOTEBOOKS / "exercises"


@dataclass(frozen=True)
class Entry:
    """A lesson, the exercises to one, or a template."""

    file: str
    title: str
    minutes: int
    needs: str = ""
    lesson: str = ""

    @property
    def path(self) -> str:
        """Path of the notebook that a student opens, from the root of the repository."""
        return f"notebooks/{'exercises/' if self.lesson else ''}{self.file}.ipynb"


@dataclass(frozen=True)
class Course:
    """The whole of `course.toml`."""

    repository: str
    ref: str
    lessons: tuple[Entry, ...]
    exercises: tuple[Entry, ...]
    templates: tuple[Entry, ...]

    def binder(self, path: str) -> str:
        """Return the address at which Binder opens a notebook in JupyterLab."""
        return f"https://mybinder.org/v2/gh/{self.repository}/{self.ref}?urlpath=lab/tree/{path}"

    def colab(self, path: str) -> str:
        """Return the address at which Colab opens a notebook."""
        return f"https://colab.research.google.com/github/{self.repository}/blob/{self.ref}/{path}"


def load_course(path: Path = NOTEBOOKS / "course.toml") -> Course:
    """Read `course.toml`."""
    data = tomllib.loads(path.read_text(encoding="utf-8"))
    return Course(
        data["repository"],
        data["ref"],
        tuple(Entry(**row) for row in data.get("lessons", [])),
        tuple(Entry(**row) for row in data.get("exercises", [])),
        tuple(Entry(**row) for row in data.get("templates", [])),
    )


def scripts(*names: str, exercises: bool = False) -> list[Path]:
    """Return the .py files of lessons and solutions, and of exercises on request.

    Args:
        *names: Keep only files whose path holds one of these; none keeps all.
        exercises: Also the generated exercise notebooks.
    """
    folders = [NOTEBOOKS, SOLUTIONS, *([EXERCISES] if exercises else [])]
    found = [path for folder in folders for path in sorted(folder.glob("*.py"))]
    return [path for path in found if not names or any(name in relative(path) for name in names)]


def relative(path: Path) -> str:
    """Return a path as the reader of a message wants it: from the root, with forward slashes."""
    return path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else path.as_posix()
