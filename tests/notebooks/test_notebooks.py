"""The course: pairs by content, exercises made from solutions, the frame, links, symbols; and every notebook runs."""

import dataclasses
import re
import sys
from pathlib import Path
from xml.etree import ElementTree

import nbformat
import pytest

pytest.importorskip("jupytext", reason="the notebooks extra is not installed")
ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from ntps.course.figures import descriptions  # noqa: E402
from tools import badges, exercises, notebooks, pairs, rules  # noqa: E402
from tools.claims import CLAIMS  # noqa: E402
from tools.course import NOTEBOOKS, SOLUTIONS, load_course, scripts  # noqa: E402
from tools.run import Run, RunError, clean, limit_problems, output_problems, run  # noqa: E402

pytestmark = pytest.mark.slow

LESSONS = sorted(NOTEBOOKS.glob("[0-9]*.py"))


def write_script(path: Path, *cells: tuple[str, str, tuple[str, ...]]) -> Path:
    """A small notebook script."""
    path.write_text(pairs.script_text([pairs.Cell(*cell) for cell in cells]))
    return path


# The course as it stands ------------------------------------------------------------------------------------------


@pytest.mark.skipif(not LESSONS, reason="the notebooks are not part of this installation")
def test_the_course_has_no_faults():
    assert notebooks.problems() == []


def test_badges_follow_course_toml(capsys):
    assert badges.main(["--check"]) == 0, capsys.readouterr().out


def test_a_fork_changes_badges_and_install_lines_alone():
    """Not the blank lines, either, by which `make lint` would then stumble."""
    ours, fork = load_course(), dataclasses.replace(load_course(), repository="me/it")
    changed = badges.wanted(fork)
    assert len(changed) == 2 + len(ours.lessons) + len(ours.templates) + len(ours.exercises)
    for path, text in changed.items():
        assert "me/it" in text and text == path.read_text().replace(ours.repository, "me/it"), path.name


def test_badges_are_pictures_of_the_repository():
    places = [ROOT / "README.md", NOTEBOOKS / "README.md", *scripts(exercises=True)]
    for page in places:
        pictures = re.findall(r"!\[Open in (\w+)\]\(([^)]+)\)", page.read_text())
        assert {name for name, _ in pictures} == {"Binder", "Colab"}, page
        for name, target in pictures:
            picture = (page.parent / target).resolve()
            assert picture.parent == NOTEBOOKS / "images"
            drawn = ElementTree.parse(picture).getroot()
            assert "".join(drawn.itertext()).strip() == f"open in {name}"
            assert "href" not in picture.read_text() and "url(" not in picture.read_text()


def test_repository_is_named_in_one_place():
    repository = load_course().repository
    for path in [*scripts(exercises=True), *sorted(NOTEBOOKS.glob("*.md"))]:
        text = path.read_text()
        for name in ("badges", "course"):
            text = badges.fill(text, name, "")
        for line in text.splitlines():
            assert repository not in line or line.strip().startswith("address = "), f"{path.name}: {line}"


@pytest.mark.parametrize("script", [*LESSONS, *sorted(SOLUTIONS.glob("*.py"))], ids=lambda path: path.stem)
def test_colours_of_u_and_v_stand_for_nothing_else(script):
    text = script.read_text()
    assert "set_theme" not in text or "palette=PALETTE)" in text
    assert all("saturation=1" in bars for bars in re.findall(r"sns.barplot\((.*palette=.*)\)", text)), "paler otherwise"
    assert "colorblind" not in text and (script not in LESSONS or "set_theme" in text)


def test_each_description_is_of_one_picture():
    """Of the lesson that its name begins with, in the lesson's order."""
    shown = []
    for script in scripts():
        names = re.findall(r'^show\("(.+)"\)$', script.read_text(), re.MULTILINE)
        prefix = script.name[:2] if script in LESSONS else script.stem
        assert names == [f"{prefix}.{number}" for number in range(1, len(names) + 1)], script.name
        shown += names
    assert shown == list(descriptions())


def test_the_template_has_ten_cells_and_is_linked():
    (template,) = load_course().templates
    cells = pairs.cells_of(pairs.read_script(NOTEBOOKS / f"{template.file}.py"))
    assert len(cells) == 10
    assert f"({template.file}.ipynb)" in (NOTEBOOKS / "README.md").read_text()


@pytest.mark.notebooks
@pytest.mark.parametrize(
    "script", [*sorted(SOLUTIONS.glob("*.py")), NOTEBOOKS / "my_data.py"], ids=lambda path: path.stem
)
def test_runs_from_its_script(script):  # lessons run in the browser tests
    ran = run(script, CLAIMS.get(script.stem, ()))
    assert output_problems(clean(ran.notebook)) + limit_problems(ran) == []


@pytest.mark.notebooks
@pytest.mark.parametrize("lesson", ["03_empirical_correlations", "04_lora_effects", "05_gain_forecasts"])
def test_lessons_hold_with_the_results_of_an_earlier_run(lesson, tmp_path):
    text = (NOTEBOOKS / f"{lesson}.py").read_text()
    assert text.count("RERUN = True") == 1
    script = tmp_path / f"{lesson}.py"
    script.write_text(text.replace("RERUN = True", "RERUN = False"))
    ran = run(script, CLAIMS[lesson])
    assert ran.seconds < 60


@pytest.mark.parametrize("lesson", LESSONS, ids=lambda path: path.stem)
def test_what_shows_progress_can_be_read_from_an_earlier_run(lesson):
    slow = [cell.source for cell in pairs.cells_of(pairs.read_script(lesson)) if "with progress()" in cell.source]
    assert all("if RERUN:" in cell and "else:" in cell and "measurements." in cell for cell in slow)


# The tools: negative controls -------------------------------------------------------------------------------------


def test_pair_that_differs_is_found(tmp_path):
    script = write_script(tmp_path / "a.py", ("markdown", "# T", ()), ("code", "x = 1", ("t",)))
    assert "missing" in rules.pair_problems(script)[0]
    assert pairs.sync(script) and not pairs.sync(script)
    assert rules.pair_problems(script, executed=False) == []
    assert "outputs of other code" in rules.pair_problems(script)[0]
    for cells in (
        (("markdown", "# T", ()), ("code", "x = 2", ("t",))),
        (("markdown", "# T", ()), ("code", "x = 1", ())),
        (("markdown", "# T", ()), ("markdown", "x = 1", ("t",))),
        (("markdown", "# T", ()),),
        (("markdown", "# T", ()), ("code", "x = 1", ("t",)), ("code", "y", ())),
    ):
        write_script(script, *cells)
        assert "differs" in rules.pair_problems(script, executed=False)[0]


def test_code_that_only_draws_is_folded(tmp_path):
    script = write_script(tmp_path / "a.py", ("code", "print(1)", ()), ("code", "print(2)", ("hide-input",)))
    pairs.sync(script)
    plain, folded = pairs.read_notebook(script.with_suffix(".ipynb")).cells
    assert "jupyter" not in plain.metadata and folded.metadata.jupyter.source_hidden is True
    assert clean(pairs.read_notebook(script.with_suffix(".ipynb"))).cells[1].metadata.jupyter.source_hidden is True
    assert rules.pair_problems(script, executed=False) == []


def test_sync_keeps_outputs_of_unchanged_code(tmp_path):
    script = write_script(tmp_path / "a.py", ("code", "print(1)", ()), ("code", "print(2)", ()))
    tidy = clean(run(script).notebook)
    pairs.write_notebook(script.with_suffix(".ipynb"), tidy)
    assert rules.pair_problems(script) == []
    write_script(script, ("markdown", "New.", ()), ("code", "print(1)", ()), ("code", "print(3)", ()))
    pairs.sync(script)
    cells = pairs.read_notebook(script.with_suffix(".ipynb")).cells
    assert cells[1].outputs[0].text == "1\n" and cells[2].outputs == []
    assert "outputs of other code" in rules.pair_problems(script)[0], "stale outputs must be seen"


def test_what_was_saved_in_a_notebook_alone_is_not_overwritten(tmp_path, capsys, monkeypatch):
    """An edit, a cell more, an answer in an exercise: refused with what to do; the source's own edits go through."""
    from jupytext.cli import jupytext

    script = write_script(tmp_path / "a.py", ("markdown", "# T", ()), ("code", "x = 1", ()))
    pairs.sync(script)
    pair = script.with_suffix(".ipynb")
    edited = pairs.read_notebook(pair)
    edited.cells[1].source = "x = 2"
    nbformat.write(edited, pair)
    before = pair.read_text()
    with pytest.raises(pairs.EditedError, match=r"a.ipynb: cell 2 \('x = 2'\) was edited there.*jupytext --to py"):
        pairs.sync(script)
    monkeypatch.setattr(notebooks, "scripts", lambda *names: [script])
    assert notebooks.main(["sync"]) == notebooks.main(["execute"]) == 1
    assert "delete that file" in capsys.readouterr().err and pair.read_text() == before
    jupytext(["--to", "py:percent", str(pair)])
    assert pairs.sync(script) and "x = 2" in script.read_text() and "x = 2" in pair.read_text()
    write_script(script, ("markdown", "# T", ()), ("code", "x = 3", ()))
    assert pairs.sync(script) and "x = 3" in pair.read_text()
    added = pairs.read_notebook(pair)
    added.cells.append(nbformat.v4.new_code_cell("y = 1"))

    def run_and_save(script, claims):
        ran = Run(pairs.read_notebook(pair), 1.0, 1.0)
        nbformat.write(added, pair)
        return ran

    monkeypatch.setattr(notebooks, "run", run_and_save)
    assert notebooks.main(["execute"]) == 1 and "y = 1" in pair.read_text()
    with pytest.raises(pairs.EditedError, match="cell 3"):
        pairs.sync(script)
    monkeypatch.setattr(badges, "wanted", lambda course: {script: script.read_text() + "\n# %%\nz = 1\n"})
    assert badges.main([]) == 1 and "y = 1" in pair.read_text()
    solution = write_script(tmp_path / "ex.py", ("markdown", "# T", ()), ("code", "# Find k.\n\nk = 3", ("solution",)))
    assert exercises.generate(solution, tmp_path / "out")
    answered = pairs.read_notebook(tmp_path / "out/ex.ipynb")
    answered.cells[1].source += "\nk = 4"
    nbformat.write(answered, tmp_path / "out/ex.ipynb")
    with pytest.raises(pairs.EditedError, match="copy that file to another name"):
        exercises.generate(solution, tmp_path / "out")
    assert "k = 4" in (tmp_path / "out/ex.ipynb").read_text()


@pytest.mark.long
def test_running_fails_on_error_and_measures_memory_and_the_processor(tmp_path):
    bad = write_script(tmp_path / "bad.py", ("code", "1 / 0", ()))
    with pytest.raises(RunError, match="ZeroDivisionError"):
        run(bad)
    slow = write_script(tmp_path / "slow.py", ("code", "import time; time.sleep(60)", ()))
    with pytest.raises(RunError, match="timed out"):
        run(slow, timeout=1)
    big = write_script(tmp_path / "big.py", ("code", "import time; time.sleep(8); x = bytearray(1_300_000_000)", ()))
    ran = run(big)
    assert 0 < ran.seconds < 8, "what a busy neighbour takes must not count"
    assert ran.megabytes > 1300 and "at its peak" in limit_problems(ran)[0]


@pytest.mark.parametrize(
    ("output", "problem"),
    [
        (nbformat.v4.new_output("error", ename="E", evalue="v", traceback=[]), "fails"),
        (nbformat.v4.new_output("stream", name="stderr", text="x"), "stderr"),
        (nbformat.v4.new_output("stream", text="UserWarning: x"), "warning"),
        (nbformat.v4.new_output("stream", text="see /home/me/x"), "path"),
        (nbformat.v4.new_output("stream", text=f"in {sys.prefix}/lib"), "path"),
        (nbformat.v4.new_output("execute_result", data={"text/plain": "<Legend at 0x7f00aa11bb22>"}), "address"),
        (nbformat.v4.new_output("display_data", data={"text/html": "2026-01-02 03:04:05"}), "time of day"),
        (nbformat.v4.new_output("display_data", data={"application/vnd.jupyter.widget-view+json": {}}), "widget"),
        (nbformat.v4.new_output("stream", text="short\n" + 86 * "x"), "a line of 86 characters"),
        (nbformat.v4.new_output("execute_result", data={"text/plain": 86 * "x", "text/html": "<table>"}), None),
        (nbformat.v4.new_output("stream", text=85 * "x"), None),
        (nbformat.v4.new_output("stream", text="0.5, a/home, https://x.org/home/y\n"), None),
    ],
)
def test_outputs_are_judged(output, problem):
    cell = nbformat.v4.new_code_cell("x", outputs=[output])
    found = output_problems(nbformat.v4.new_notebook(cells=[cell]))
    assert (found == []) if problem is None else (problem in found[0])


def test_clean_takes_out_what_changes(tmp_path):
    cells = [nbformat.v4.new_code_cell("x", metadata={"execution": {"a": "b"}})]
    cells[0].outputs = [
        nbformat.v4.new_output("stream", text=f"wrote {ROOT}/runs/a.csv\n"),
        nbformat.v4.new_output(
            "display_data", {"application/vnd.jupyter.widget-view+json": {}, "text/plain": "VBox()"}
        ),
        nbformat.v4.new_output("execute_result", {"text/html": "<b>1</b>", "text/plain": "Long(" + 900 * "x" + ")"}),
    ]
    tidy = clean(nbformat.v4.new_notebook(cells=cells, metadata={"widgets": {"state": 1}}))
    outputs = tidy.cells[0].outputs
    assert outputs[0].text == "wrote runs/a.csv\n"
    assert "run this cell" in outputs[1].data["text/markdown"]
    assert len(outputs[2].data["text/plain"]) < 100
    assert "widgets" not in tidy.metadata and tidy.cells[0].metadata == {}
    assert output_problems(tidy) == []


SOLUTION = '''\
import numpy as np


def projector(V: np.ndarray) -> np.ndarray:
    """Return the projector.

    Args:
        V: (d, k).
    """
    Q, _ = np.linalg.qr(V)
    return Q @ Q.T


@staticmethod
def plain(
    a,
    b=1,
):
    # the answer
    return a + b'''


def test_exercises_keep_signature_and_docstring_only(tmp_path):
    solution = write_script(
        tmp_path / "ex.py",
        ("markdown", "# Title", ()),
        ("code", SOLUTION, ("solution",)),
        ("code", "# Find k.\n\nk = 3", ("solution", "other")),
        ("markdown", "Because.", ("solution",)),
        ("code", "secret", ("solution-only",)),
        ("code", "check(projector)", ()),
    )
    made = exercises.exercise_cells(solution)
    assert [cell.kind for cell in made] == ["markdown", "code", "code", "markdown", "code"]
    text = made[1].source
    assert "Args:\n        V: (d, k).\n" in text and "import numpy" in text and "b=1,\n):" in text
    assert "qr" not in text and "a + b" not in text and "answer" not in text
    assert text.count('    raise NotImplementedError("your turn")') == 2
    compile(text, "exercise", "exec")
    assert made[2].source == "# Find k.\n# your turn" and made[2].tags == ("other",)
    assert made[3].source == "*Your answer:*" and made[4].source == "check(projector)"
    assert exercises.generate(solution, tmp_path / "out") and not exercises.generate(solution, tmp_path / "out")
    assert rules.pair_problems(tmp_path / "out/ex.py", executed=False) == []
    assert rules.exercise_problems(solution, tmp_path / "out/ex.py") == []
    (tmp_path / "out/ex.py").write_text((tmp_path / "out/ex.py").read_text().replace("your turn", "mine"))
    assert "is not what" in rules.exercise_problems(solution, tmp_path / "out/ex.py")[0]


def test_stray_code_beside_a_solution_is_refused(tmp_path):
    cell = ("code", "def f():\n    return 1\n\n\nANSWER = f()", ("solution",))
    solution = write_script(tmp_path / "ex.py", ("markdown", "# T", ()), cell)
    with pytest.raises(ValueError, match="line 5"):
        exercises.exercise_cells(solution)


@pytest.mark.parametrize("folder", [SOLUTIONS], ids=["solutions"])
def test_no_answer_is_left_in_an_exercise(folder):
    for solution in folder.glob("*.py"):
        cells = pairs.cells_of(pairs.read_script(solution))
        given = {line.strip() for cell in cells if "solution" not in cell.tags for line in cell.source.splitlines()}
        text = "\n".join(cell.source for cell in exercises.exercise_cells(solution))
        for cell in cells:
            if "solution" in cell.tags and cell.kind == "code":
                answers = {line.strip() for line in cell.source.splitlines() if line.strip().startswith("return ")}
                assert not any(answer in text for answer in answers - given), f"{solution.name}: {answers}"


def test_pictures_without_a_description_are_found(tmp_path):
    script = write_script(tmp_path / "a.py", ("code", "show()", ()))
    bare, other, told = (
        nbformat.v4.new_output("display_data", {"image/png": "x"}, metadata={"image/png": {"alt": alt}} if alt else {})
        for alt in ("", "A line that rises with the layer, from 0 to 1.", descriptions()["00.1"])
    )
    for output, wrong in ((bare, True), (other, True), (told, False)):
        tidy = clean(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("show()", outputs=[output])]))
        pairs.write_notebook(script.with_suffix(".ipynb"), tidy)
        assert bool(rules.picture_problems(script)) is wrong


@pytest.mark.parametrize(
    ("cells", "problem"),
    [
        (('predict("01.1 k")', '%matplotlib inline\nif x:\n    outcome("01.1 k", 3)'), None),
        (('predict("01.1 k")',), "never shows"),
        (('outcome("01.1 k", 3)', 'predict("01.1 k")'), "no cell before it asks"),
        (('predict("02.1 k")', 'outcome("02.1 k", 3)'), "begin with '01.'"),
        (('predict("01.1 k")', 'predict("01.1 k")', 'outcome("01.1 k", 3)'), "again"),
    ],
)
def test_predictions_without_an_outcome_are_found(tmp_path, cells, problem):
    script = write_script(tmp_path / "01_a.py", *(("code", cell, ()) for cell in cells))
    found = rules.prediction_problems(script)
    assert (found == []) if problem is None else (problem in found[0])


def test_outputs_do_not_hang_on_guesses(tmp_path, monkeypatch):
    cells = ('predict("k", choices=("a", "b"))', 'outcome("k", "a")', 'print("done")')
    setup = "from ntps.course import outcome, predict"
    script = write_script(tmp_path / "a.py", *(("code", cell, ()) for cell in (setup, *cells)))
    (tmp_path / "predictions.json").write_text(
        '{"format": "ntps-predictions 1", "predictions": {"k": {"guess": "b", "outcome": null}}}'
    )
    _, asked, shown, done = clean(run(script).notebook).cells
    assert "write it down" in asked.outputs[0].data["text/markdown"]
    assert shown.outputs == [] and done.outputs[0].text == "done\n"


@pytest.mark.parametrize("status", [0, 1])
def test_colab_says_in_one_sentence_why_it_cannot_install(monkeypatch, capsys, status):
    import subprocess

    said = "notice: new pip\nERROR: Repository not found.\n"
    monkeypatch.setitem(sys.modules, "google.colab", sys)
    monkeypatch.setattr(subprocess, "run", lambda *a, **k: subprocess.CompletedProcess(a, status, "", said))
    exec(badges.COLAB.format(repository="me/it", ref="main"), {})
    address = "git+https://github.com/me/it@main"
    wanted = f"Nothing below will run: {address} could not be installed. ERROR: Repository not found.\n"
    assert capsys.readouterr().out == (wanted if status else "")


def test_links_and_anchors(tmp_path, monkeypatch):
    monkeypatch.setattr(rules, "ROOT", tmp_path)
    page = tmp_path / "a.md"
    (tmp_path / "g.md").write_text("# Big\n\n### two words\n\n```\n# no heading\n```\n")
    text = "[a](g.md) [b](g.md#two-words) [c](https://x.org) [d](g.md#no-heading) [e](none.md) [f](http://x.org)"
    page.write_text(text)
    assert [
        problem.split("links to ")[1].split(",")[0].split(";")[0] for problem in rules.link_problems(page, text)
    ] == [
        "g.md#no-heading",
        "none.md",
        "http://x.org",
    ]


def test_pictures_of_other_servers_are_faults():
    text = "[![a](https://x.org/a.svg)](https://y.org) ![b](http://x.org/b.png) [c](https://x.org/c.svg) ![d](d.png)"
    faults = [fault for fault in rules.link_problems(NOTEBOOKS / "README.md", text) if " shows " in fault]
    assert [re.findall(r"shows (\S+),", fault)[0] for fault in faults] == ["https://x.org/a.svg", "http://x.org/b.png"]


def test_symbols_are_read_from_formulas():
    text = r"a $C_0 = \mathbb{E}\sum_{t<L} s_t^\top$ `$q$` $$\frac{\mu_{\max}}{z}\text{ if so}$$ costs \$5"
    assert rules.symbols(text) == {"C", "E", "t", "L", "s", "mu", "z"}


def test_frame_faults_are_named(tmp_path):
    script = write_script(tmp_path / "01_x.py", ("markdown", "# 01 · X", ()), ("code", "1", ()), ("code", "2", ()))
    text = "\n".join(rules.frame_problems(script, load_course().lessons[0]))
    for part in ("Time", "Prerequisites", "In this lesson", "badges", "colab", "predictions", "Take-away"):
        assert part in text
