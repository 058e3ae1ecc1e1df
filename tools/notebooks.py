"""Keep the course's notebooks in order.

    python -m tools.notebooks sync [NAME...]         .py -> .ipynb, outputs of unchanged code kept
    python -m tools.notebooks exercises              solutions -> exercises, both as pairs
    python -m tools.notebooks execute [NAME...]      run from the .py, measure, check the claims, write clean outputs
    python -m tools.notebooks check                  compare pairs by content; sizes, outputs, frame, links, symbols
    python -m tools.notebooks all                    badges, exercises, execute, check

NAME is a part of a file's path, such as 01 or solutions. The .py is the source; edit nothing else by hand.
"""

import argparse
import sys
from pathlib import Path

from tools import badges, exercises, rules
from tools.claims import CLAIMS
from tools.course import EXERCISES, NOTEBOOKS, ROOT, SOLUTIONS, load_course, relative, scripts
from tools.pairs import EditedError, cells_of, read_script, refuse_edited, sync, write_notebook
from tools.run import RunError, clean, limit_problems, output_problems, run


def sync_all(names: list[str]) -> int:
    """Bring every .ipynb up to date with its script."""
    for script in scripts(*names):
        if sync(script):
            print(f"wrote {relative(script.with_suffix('.ipynb'))}")
    return 0


def make_exercises() -> int:
    """Generate every exercise from its solution."""
    for solution in sorted(SOLUTIONS.glob("*.py")):
        try:
            if exercises.generate(solution):
                print(f"wrote {relative(EXERCISES / solution.name)} and .ipynb")
        except (ValueError, SyntaxError) as error:
            print(error, file=sys.stderr)
            return 1
    return 0


def execute(names: list[str]) -> int:
    """Run lessons and solutions; write those without fault; return 1 if any had one."""
    failed = False
    for script in scripts(*names):
        sync(script)
        try:
            ran = run(script, CLAIMS.get(script.stem, ()))
        except RunError as error:
            print(error, file=sys.stderr)
            failed = True
            continue
        tidy = clean(ran.notebook)
        problems = output_problems(tidy) + limit_problems(ran)
        verdict = "refused" if problems else "ok"
        print(f"{relative(script):45s} {ran.seconds:6.1f} s {ran.megabytes:7.0f} MB  {verdict}", flush=True)
        for problem in problems:
            print(f"    {problem}", file=sys.stderr)
        if problems:
            failed = True
        else:
            refuse_edited(script.with_suffix(".ipynb"), cells_of(tidy))  # it may have been saved meanwhile
            write_notebook(script.with_suffix(".ipynb"), tidy)
    return int(failed)


def problems() -> list[str]:
    """Return every fault of the course, one line each."""
    course = load_course()
    entries = {entry.file: entry for entry in course.lessons}
    found = []
    for lesson in sorted(NOTEBOOKS.glob("[0-9]*.py")):
        found += rules.pair_problems(lesson) + rules.frame_problems(lesson, entries.get(lesson.stem))
        found += rules.symbol_problems(lesson) + rules.prediction_problems(lesson)
        found += rules.picture_problems(lesson)
    for entry in course.templates:
        found += rules.pair_problems(NOTEBOOKS / f"{entry.file}.py")
        found += rules.picture_problems(NOTEBOOKS / f"{entry.file}.py")
    for solution in sorted(SOLUTIONS.glob("*.py")):
        exercise = EXERCISES / solution.name
        found += rules.pair_problems(solution) + rules.exercise_problems(solution, exercise)
        if exercise.exists():
            found += rules.pair_problems(exercise, executed=False)
    for stray in sorted({p.stem for p in EXERCISES.glob("*.*")} - {p.stem for p in SOLUTIONS.glob("*.py")}):
        found.append(f"notebooks/exercises/{stray} has no solution that makes it")
    for entry in (*course.lessons, *course.exercises, *course.templates):
        if not (ROOT / entry.path).exists():
            found.append(f"{entry.path} is listed in notebooks/course.toml and does not exist")
    for path in _readable():
        text = rules.prose(cells_of(read_script(path))) if path.suffix == ".py" else path.read_text(encoding="utf-8")
        found += rules.link_problems(path, text)
    return found


def _readable() -> list[Path]:
    pages = [*sorted(ROOT.glob("*.md")), *sorted(NOTEBOOKS.glob("*.md"))]
    return [*pages, *scripts(exercises=True)]


def check() -> int:
    """Print every fault; return 1 if there is one."""
    found = problems()
    for problem in found:
        print(problem)
    return int(bool(badges.main(["--check"]) or found))


def main(arguments: list[str] | None = None) -> int:
    """Run one command; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.notebooks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=["sync", "exercises", "execute", "check", "all"])
    parser.add_argument("names", nargs="*", metavar="NAME")
    options = parser.parse_args(arguments)
    try:
        if options.command == "sync":
            return sync_all(options.names)
        if options.command == "exercises":
            return sync_all(["solutions"]) or make_exercises()
        if options.command == "execute":
            return execute(options.names)
        if options.command == "check":
            return check()
        return badges.main([]) or make_exercises() or execute(options.names) or check()
    except EditedError as error:
        print(error, file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
