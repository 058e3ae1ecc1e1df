"""What every notebook of the course keeps to; each function returns one line per fault."""

import ast
import re
from pathlib import Path

from ntps.course.figures import descriptions
from tools.course import NOTEBOOKS, ROOT, Entry, relative
from tools.exercises import exercise_cells, exercise_notebook
from tools.pairs import Cell, cells_of, code_digest, read_notebook, read_script
from tools.run import output_problems

MAX_CELLS = 40
MAX_BYTES = 1_000_000
MIN_PREDICTIONS = 3
QUESTIONS = 5
GLOSSARY = NOTEBOOKS / "glossary.md"


def pair_problems(script: Path, *, executed: bool = True) -> list[str]:
    """Compare a script with its .ipynb, and check the .ipynb itself.

    Args:
        script: The .py of the pair.
        executed: Whether outputs are to be there, and made by the code as it is now.
    """
    pair = script.with_suffix(".ipynb")
    if not pair.exists():
        return [f"{relative(pair)} is missing: run `make notebooks`"]
    ours, notebook = cells_of(read_script(script)), read_notebook(pair)
    theirs = cells_of(notebook)
    problems = []
    if ours != theirs:
        place = next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=False), 1) if a != b), len(theirs) + 1)
        problems.append(f"differs from its .py from cell {place} on: run `make notebooks`")
    if len(ours) > MAX_CELLS:
        problems.append(f"has {len(ours)} cells; at most {MAX_CELLS}")
    if pair.stat().st_size >= MAX_BYTES:
        problems.append(f"takes {pair.stat().st_size / 1e6:.2f} MB; less than {MAX_BYTES / 1e6:.0f} MB is allowed")
    if "widgets" in notebook.metadata:
        problems.append("holds widget state")
    if executed:
        if notebook.metadata.get("ntps", {}).get("code_sha256") != code_digest(ours):
            problems.append("has outputs of other code, or none: run `make notebooks`")
    elif any(cell.get("outputs") for cell in notebook.cells):
        problems.append("has outputs; an exercise has none")
    problems += output_problems(notebook)
    return [f"{relative(pair)} {problem}" for problem in problems]


def exercise_problems(solution: Path, exercise: Path) -> list[str]:
    """Compare an exercise with what its solution makes."""
    if not exercise.exists():
        return [f"{relative(exercise)} is missing: run `make exercises`"]
    pair = exercise.with_suffix(".ipynb")
    stale = pair.exists() and read_notebook(pair) != exercise_notebook(solution)
    if stale or cells_of(read_script(exercise)) != exercise_cells(solution):
        return [f"{relative(exercise)} is not what {relative(solution)} makes: run `make exercises`"]
    return []


def frame_problems(script: Path, entry: Entry | None) -> list[str]:
    """Check that a lesson has every part of the frame, in order.

    Args:
        script: The lesson.
        entry: The lesson's entry in `course.toml`.
    """
    cells = cells_of(read_script(script))
    prose = "\n\n".join(cell.source for cell in cells if cell.kind == "markdown")
    title = cells[0].source
    problems = []
    if entry is None:
        problems.append("is not listed in notebooks/course.toml")
    elif not title.startswith(f"# {script.name[:2]} · {entry.title}\n"):
        problems.append(f"must begin with '# {script.name[:2]} · {entry.title}', as course.toml has it")
    if entry and f"**Time:** {entry.minutes} minutes" not in title:
        problems.append(f"must say '**Time:** {entry.minutes} minutes' in its first cell")
    for part in ("<!-- badges -->", "**Prerequisites:**", "**In this lesson**", "glossary.md"):
        if part not in title:
            problems.append(f"lacks {part!r} in its first cell")
    if [cell.tags for cell in cells[1:3]] != [("colab",), ()] or "%matplotlib inline" not in cells[2].source:
        problems.append("must go on with a cell tagged 'colab' and a set-up cell with '%matplotlib inline'")
    predictions = prose.count("> **Predict.**")
    if predictions < MIN_PREDICTIONS:
        problems.append(f"asks for {predictions} predictions ('> **Predict.**'); at least {MIN_PREDICTIONS}")
    places = [prose.find(f"\n## {heading}") for heading in ("Take-away", "Quiz", "References")]
    if -1 in places or places != sorted(places):
        problems.append("must end with '## Take-away', '## Quiz' and '## References'")
    else:
        problems += _quiz_problems(prose[places[1] : places[2]])
    return [f"{relative(script)} {problem}" for problem in problems]


def _quiz_problems(quiz: str) -> list[str]:
    problems = []
    for number in range(1, QUESTIONS + 1):
        if f"**{number}.**" not in quiz:
            problems.append(f"lacks question '**{number}.**' in its quiz")
    answers = len(re.findall(r"<details><summary>Answer</summary>\n\n.+?\n\n</details>", quiz, flags=re.DOTALL))
    if answers != QUESTIONS or f"**{QUESTIONS + 1}.**" in quiz:
        problems.append(f"must have {QUESTIONS} questions and answers in its quiz; {answers} answers are folded")
    return problems


def picture_problems(script: Path) -> list[str]:
    """Return the cells of a lesson that show a picture without saying what is on it, or with a stale description.

    Args:
        script: The lesson.
    """
    problems = []
    described = set(descriptions().values())
    for number, cell in enumerate(read_notebook(script.with_suffix(".ipynb")).cells, 1):
        for output in cell.get("outputs", []):
            alt = output.get("metadata", {}).get("image/png", {}).get("alt", "")
            if "image/png" in output.get("data", {}) and alt not in described:
                problems.append(
                    f"cell {number} shows a picture that ntps/course/data/pictures.toml does not describe so: use "
                    "`ntps.course.show(...)` and run `make notebooks`"
                )
    return [f"{relative(script)} {problem}" for problem in problems]


# Predictions -----------------------------------------------------------------------------------------------------


def prediction_problems(script: Path) -> list[str]:
    """Check that each question of `predict` is asked once, is numbered after the lesson and has an outcome later.

    Args:
        script: The lesson.
    """
    asked: list[str] = []
    problems = []
    shown = set()
    for number, cell in enumerate(cells_of(read_script(script)), 1):
        for name, question in _calls(cell.source) if cell.kind == "code" else ():
            if name == "outcome":
                shown.add(question)
                if question not in asked:
                    problems.append(f"cell {number} shows the outcome of {question!r}, which no cell before it asks")
            elif not question.startswith(f"{script.name[:2]}."):
                problems.append(f"cell {number} asks {question!r}; begin with '{script.name[:2]}.' and its number")
            elif question in asked:
                problems.append(f"cell {number} asks {question!r} again")
            else:
                asked.append(question)
    problems += [f"asks {question!r} and never shows its outcome" for question in asked if question not in shown]
    return [f"{relative(script)} {problem}" for problem in problems]


def _calls(source: str) -> list[tuple[str, str]]:
    """Return the calls of `predict` and `outcome` in a cell, each with its question, in order."""
    code = "\n".join("" if line.startswith(("%", "!")) else line for line in source.splitlines())
    return [
        (node.func.id, str(ast.literal_eval(node.args[0])))
        for node in ast.walk(ast.parse(code))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("predict", "outcome")
    ]


# Links -----------------------------------------------------------------------------------------------------------

_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_PICTURE_ELSEWHERE = re.compile(r"!\[[^\]]*\]\((https?://[^)\s]+)\)")
_HEADING = re.compile(r"^#{1,6}\s+(.+?)\s*$", re.MULTILINE)


def anchors(text: str) -> set[str]:
    """Return the anchors of a Markdown text's headings; GitHub and JupyterLab agree on lower-case ones."""
    plain = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in _HEADING.findall(plain)}


def link_problems(path: Path, text: str, root: Path | None = None) -> list[str]:
    """Return links of a Markdown text that lead nowhere in the repository, and pictures that another server has.

    Args:
        path: The file the text is in: links are relative to its folder.
        text: The Markdown.
        root: The folder that links must not leave; the repository's if `None`.
    """
    root = (root or ROOT).resolve()
    problems = [
        f"shows {picture}, which nobody sees without network; put a picture into notebooks/images/"
        for picture in _PICTURE_ELSEWHERE.findall(text)
    ]
    for target in _LINK.findall(text):
        if target.startswith(("https://", "mailto:")):
            continue
        if "://" in target:
            problems.append(f"links to {target}; use https")
            continue
        file, _, anchor = target.partition("#")
        there = (path.parent / file if file else path).resolve()
        if not there.exists():
            problems.append(f"links to {target}, which does not exist")
        elif not there.is_relative_to(root):
            problems.append(f"links to {target}, outside {root.name}/")
        elif anchor and there.suffix == ".md" and anchor not in anchors(there.read_text(encoding="utf-8")):
            problems.append(f"links to {target}; {relative(there)} has no such heading")
    return [f"{relative(path)} {problem}" for problem in problems]


def prose(cells: list[Cell]) -> str:
    """Return all Markdown of a notebook."""
    return "\n\n".join(cell.source for cell in cells if cell.kind == "markdown")


# Symbols ---------------------------------------------------------------------------------------------------------

_FORMULA = re.compile(r"\$\$(.+?)\$\$|\$([^$\n]+?)\$", re.DOTALL)
_WORDS = re.compile(r"\\(?:text|mathrm|operatorname|textbf|mathbf\{?\\?text|begin|end|tag|label)\*?\{[^}]*\}")
_GREEK = (
    "alpha|beta|gamma|delta|epsilon|varepsilon|zeta|eta|theta|kappa|lambda|mu|nu|xi|pi|rho|sigma|tau|phi|varphi|chi|psi|"
    "omega|Gamma|Delta|Theta|Lambda|Xi|Pi|Sigma|Phi|Psi|Omega"
)
_COMMAND = re.compile(rf"\\(?!(?:{_GREEK})(?![A-Za-z]))[A-Za-z]+")
_SYMBOL = re.compile(rf"\\({_GREEK})(?![A-Za-z])|([A-Za-z])")


def formulas(text: str) -> list[str]:
    """Return the TeX of every formula in a Markdown text, code left out."""
    plain = re.sub(r"```.*?```|`[^`\n]*`", "", text, flags=re.DOTALL)
    return [display or inline for display, inline in _FORMULA.findall(plain)]


def symbols(text: str) -> set[str]:
    """Return the letters, Latin and Greek, that a Markdown text's formulas use."""
    found = set()
    for formula in formulas(text):
        bare = _COMMAND.sub(" ", _WORDS.sub(" ", formula))
        found |= {greek or latin for greek, latin in _SYMBOL.findall(bare)}
    return found


def symbol_problems(script: Path, glossary: Path = GLOSSARY) -> list[str]:
    """Return the letters in a lesson's formulas that no formula of the glossary holds."""
    missing = symbols(prose(cells_of(read_script(script)))) - symbols(glossary.read_text(encoding="utf-8"))
    return [f"{relative(script)} uses {letter!r} in a formula; the glossary does not" for letter in sorted(missing)]
