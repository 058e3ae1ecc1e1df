"""A student's browser: JupyterLab opens each lesson and runs it; what its prose says holds, it stays within its limits,
saving keeps its outputs, and every control of every panel changes the picture.

Screenshots go to artifacts/ (ignored by git). Run with `make test-browser`, or `pytest -m browser`.
"""

import contextlib
import hashlib
import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from functools import partial
from pathlib import Path

import pytest

try:
    from playwright.sync_api import TimeoutError as PlaywrightTimeout
except ImportError:  # the tests are skipped then
    PlaywrightTimeout = TimeoutError

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tools.claims import CLAIMS, code_of  # noqa: E402
from tools.run import MEASURE, Run, clean, limit_problems, output_problems, reading  # noqa: E402

pytestmark = [pytest.mark.browser, pytest.mark.slow]

NOTEBOOKS = ROOT / "notebooks"
ARTIFACTS = ROOT / "artifacts"
LESSONS = [path.stem for path in sorted(NOTEBOOKS.glob("[0-9][0-9]_*.ipynb"))]
SECONDS_TO_RUN = 400
PROMPTS = "() => [...document.querySelectorAll('.jp-CodeCell .jp-InputArea-prompt')].map(p => p.textContent.trim())"
WIDTHS = (1280, 800)
MARGINS = 4  # pixels that ipywidgets puts beside a child of full width


@pytest.fixture(scope="session")
def lab(tmp_path_factory):
    """JupyterLab on loopback over a copy of the lessons; yields (address, token, its folder)."""
    pytest.importorskip("jupyterlab", reason="jupyterlab is not installed (the notebooks extra)")
    nbformat = pytest.importorskip("nbformat")  # takes seconds to import
    home = tmp_path_factory.mktemp("lab")
    course = home / "course"
    shutil.copytree(
        NOTEBOOKS, course / "notebooks", ignore=shutil.ignore_patterns(".ipynb_checkpoints", "predictions.json")
    )
    shutil.copy(ROOT / "pyproject.toml", course)
    for file in course.glob("notebooks/*.ipynb"):  # without outputs, so that those seen later were made here
        notebook = nbformat.read(file, as_version=4)
        for cell in notebook.cells:
            if cell.cell_type == "code":
                cell.outputs, cell.execution_count = [], None
        nbformat.write(notebook, file)
    settings = home / "settings/@jupyterlab"
    for extension, values in {
        "notebook-extension/tracker": {"windowingMode": "none"},  # every cell is in the page, seen or not
        "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
    }.items():
        file = settings / f"{extension}.jupyterlab-settings"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(values))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    token = secrets.token_hex(16)
    folders = {
        name: str(home / name.lower()) for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR")
    }
    environment = {
        **os.environ,
        **folders,
        "HOME": str(home),
        "IPYTHONDIR": str(home / "ipython"),
        "JUPYTERLAB_SETTINGS_DIR": str(home / "settings"),
        "JUPYTERLAB_WORKSPACES_DIR": str(home / "workspaces"),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")])),
    }
    command = [
        sys.executable, "-m", "jupyterlab", "--no-browser", "--ip=127.0.0.1", f"--port={port}", "--allow-root",
        "--ServerApp.port_retries=0", f"--IdentityProvider.token={token}", f"--ServerApp.root_dir={course}",
    ]  # fmt: skip
    address = f"http://127.0.0.1:{port}"
    log = (home / "lab.log").open("w+")
    server = subprocess.Popen(command, env=environment, stdout=log, stderr=log, cwd=course, start_new_session=True)
    try:
        deadline = time.monotonic() + 90
        while not _answers(f"{address}/api?token={token}"):
            if server.poll() is not None or time.monotonic() > deadline:
                log.seek(0)
                pytest.fail(f"JupyterLab did not start:\n{log.read()[-2000:]}")
            time.sleep(0.3)
        while not _answers(f"{address}/api/kernelspecs?token={token}") and time.monotonic() < deadline:
            time.sleep(0.3)
        yield address, token, home
    finally:
        request = urllib.request.Request(
            f"{address}/api/shutdown", method="POST", headers={"Authorization": f"token {token}"}
        )
        with contextlib.suppress(OSError):
            urllib.request.urlopen(request, timeout=10).close()
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)
        log.close()


def _answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(address, timeout=2) as reply:
            return reply.status == 200
    except OSError:
        return False


@pytest.fixture
def lesson(request, browser, lab):
    """A page with the lesson open and all its cells run, and what the kernel needed for them."""
    address, token, home = lab
    page = browser.new_page(viewport={"width": WIDTHS[0], "height": 900})
    page.set_default_timeout(60_000)
    start_kernel(address, token, request.param)
    page.goto(f"{address}/lab/tree/notebooks/{request.param}.ipynb?reset&token={token}")
    wait(page, "kernel", 90, lambda page: idle(page) and prompts(page))
    assert not any(map(finished, prompts(page)))
    page.keyboard.press("Control+b")  # the side bar takes a third of a small screen
    run_all(page, request.param)
    page.lesson = request.param
    page.kernel = partial(kernel_says, connection(address, token, home, page.lesson))
    page.ran = Run(saved(page, home / "course/notebooks" / f"{page.lesson}.ipynb"), *reading(page.kernel(MEASURE)))
    yield page
    page.close()


def start_kernel(address: str, token: str, name: str) -> None:
    """Start a lesson's kernel before its page opens: a page that finds none may ask which to take, however late."""
    path = f"notebooks/{name}.ipynb"
    session = {"path": path, "name": name, "type": "notebook", "kernel": {"name": "python3"}}
    request = urllib.request.Request(
        f"{address}/api/sessions",
        data=json.dumps(session).encode(),
        headers={"Authorization": f"token {token}", "Content-Type": "application/json"},
    )
    urllib.request.urlopen(request, timeout=60).close()


def connection(address: str, token: str, home: Path, name: str) -> Path:
    """The connection file of the kernel that the page uses: it may have started another."""
    with urllib.request.urlopen(f"{address}/api/sessions?token={token}", timeout=60) as reply:
        (kernel,) = [each["kernel"]["id"] for each in json.load(reply) if each["path"] == f"notebooks/{name}.ipynb"]
    return home / f"jupyter_runtime_dir/kernel-{kernel}.json"


def kernel_says(connection: Path, code: str) -> str:
    """Run code in the lesson's kernel, beside the page; return what it prints, or what went wrong."""
    from jupyter_client import BlockingKernelClient

    said = []
    client = BlockingKernelClient(connection_file=str(connection))
    client.load_connection_file()
    client.start_channels()
    try:
        reply = client.execute_interactive(
            code,
            store_history=False,
            timeout=120,
            output_hook=lambda message: said.append(message["content"].get("text", "")),
        )
    finally:
        client.stop_channels()
    content = reply["content"]
    return "".join(said) if content["status"] == "ok" else f"{content['ename']}: {content['evalue']}"


def saved(page, file: Path):
    """Save the notebook from its page; return it as it is on the disk."""
    nbformat = pytest.importorskip("nbformat")
    before = file.stat().st_mtime_ns
    page.keyboard.press("Control+s")
    wait(page, "saving", 60, lambda page: file.stat().st_mtime_ns > before)
    return nbformat.read(file, as_version=4)


def wait(page, what: str, seconds: float, ready) -> None:
    """Ask once a second: Playwright's own waiting looks at every frame, and the kernel needs the processor."""
    deadline = time.monotonic() + seconds
    while not ready(page):
        if time.monotonic() > deadline:
            ARTIFACTS.mkdir(exist_ok=True)
            page.screenshot(path=ARTIFACTS / "stuck.png")
            raise TimeoutError(f"{what}: not ready after {seconds:.0f} s: {prompts(page)}; see artifacts/stuck.png")
        time.sleep(1)


def idle(page) -> bool:
    """Whether the kernel is there and has nothing to do."""
    dismiss(page)
    return page.locator('.jp-Notebook-ExecutionIndicator[data-status="idle"]').count() > 0


def faults(page) -> list[str]:
    """What error and warning outputs say, and widgets that could not be shown."""
    kinds = [f'[data-mime-type="application/vnd.jupyter.{kind}"]' for kind in ("error", "stderr")]
    found = [text for kind in kinds for text in page.locator(kind).all_inner_texts()]
    return (
        found + page.get_by_text(re.compile("Click to show javascript error|Error displaying widget")).all_inner_texts()
    )


def prompts(page) -> list[str]:
    """What stands before each code cell: "[ ]:", "[*]:" or "[3]:"."""
    return page.evaluate(PROMPTS)


def finished(prompt: str) -> bool:
    """Whether a cell has run."""
    return prompt.strip("[]:").isdigit()


def menu(page, name: str, entry: str) -> None:
    """Choose an entry of the main menu."""
    page.get_by_role("menuitem", name=name, exact=True).click(timeout=5000)
    page.locator(".lm-Menu-itemLabel").get_by_text(entry, exact=True).click(timeout=5000)


def run_all(page, name: str) -> None:
    """Run all cells to the end, or to the first fault.

    While JupyterLab settles, a click may be lost, or a late dialog lie above the menu or take the kernel away, which
    interrupts the cell that runs: whenever the kernel rests and cells wait, or one was interrupted, ask again.
    """

    def done(page) -> bool:
        rests, now, found = idle(page), prompts(page), faults(page)
        interrupted = any("KeyboardInterrupt" in text for text in found)
        wait_for_us = interrupted or not (found or all(map(finished, now)))
        if rests and wait_for_us and not any("*" in prompt for prompt in now):
            with contextlib.suppress(PlaywrightTimeout):
                menu(page, "Run", "Run All Cells")
            time.sleep(4)
            return False
        return rests and not interrupted and bool(found or all(map(finished, now)))

    wait(page, name, SECONDS_TO_RUN, done)


def dismiss(page) -> None:
    """Accept a dialog: a slow start makes JupyterLab ask which kernel to take."""
    accept = page.locator(".jp-Dialog .jp-mod-accept")
    if accept.count():
        accept.first.click(timeout=5000)


def picture(panel) -> str:
    """Digest of the panel's picture, as the browser holds it."""
    data = panel.locator("img.ntps-picture, .ntps-picture img").first.evaluate(
        "async img => Array.from(new Uint8Array(await (await fetch(img.src)).arrayBuffer()))"
    )
    return hashlib.sha256(bytes(data)).hexdigest()


def changed(panel, before: str, seconds: float = 15) -> str | None:
    """The picture's new digest once it differs from `before`; None if it stays the same for so long."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        now = picture(panel)
        if now != before:
            return now
        panel.page.wait_for_timeout(50)
    return None


def classes(control, start: str) -> str:
    """The control's own class, for messages."""
    return next(name for name in control.get_attribute("class").split() if name.startswith(start))


def move_sliders(panel) -> int:
    """Move each slider by keyboard, there and back; the picture must follow every time."""
    sliders = panel.locator('[class*="ntps-slider"]')
    for index in range(sliders.count()):
        slider = sliders.nth(index)
        name = classes(slider, "ntps-slider")
        handle = slider.locator(".noUi-handle").first
        low, high, value = (float(handle.get_attribute(f"aria-value{part}")) for part in ("min", "max", "now"))
        assert low < high, f"{name} has nowhere to go"
        assert handle.get_attribute("aria-label") == slider.locator("label").inner_text(), f"{name} has no name"
        keys = ["ArrowRight", "ArrowLeft"] if value < high else ["ArrowLeft", "ArrowRight"]
        for key in keys:
            before = picture(panel)
            handle.focus()
            panel.page.keyboard.press(key)
            assert changed(panel, before), f"{name}: {key} did not change the picture"
    return sliders.count()


def change_choices(panel) -> int:
    """Pick another entry of each drop-down; the picture must follow."""
    choices = panel.locator('[class*="ntps-choice"]')
    for index in range(choices.count()):
        name = classes(choices.nth(index), "ntps-choice")
        select = choices.nth(index).locator("select")
        first = select.input_value()
        other = select.evaluate("s => [...s.options].map(o => o.value).filter(v => v !== s.value)[0]")
        for value in (other, first):
            before = picture(panel)
            select.select_option(value=value)
            assert changed(panel, before, 30), f"{name}: choosing {value!r} did not change the picture"
    return choices.count()


def guess(asked) -> None:
    """Write a prediction down; the line below must say that it is kept."""
    asked.scroll_into_view_if_needed()
    if asked.locator("select").count():
        asked.locator("select").select_option(index=1)
    else:
        asked.locator("input").fill("0.5")
        asked.locator("input").press("Enter")
    asked.get_by_role("status").get_by_text("is kept").wait_for(timeout=30_000)


@pytest.mark.parametrize("lesson", LESSONS, indirect=True)
def test_lesson_in_the_browser(lesson):
    ARTIFACTS.mkdir(exist_ok=True)
    assert faults(lesson) == []
    assert lesson.kernel(code_of(CLAIMS[lesson.lesson])) == ""
    cells = lesson.ran.notebook.cells
    speaking = [cell for cell in cells if re.search(r"^(print|display|say|show)\(", cell.source, re.MULTILINE)]
    assert speaking and all(cell.outputs for cell in speaking), "outputs are not saved"
    assert output_problems(clean(lesson.ran.notebook)) + limit_problems(lesson.ran) == []
    source = (NOTEBOOKS / f"{lesson.lesson}.py").read_text()
    panels = lesson.locator(".ntps-panel")
    assert panels.count() == len(re.findall(r"^(?!plt\.)\w.*\.show\(\)$", source, re.MULTILINE)), "a panel is missing"
    asked = lesson.locator(".ntps-predict")
    assert asked.count() == len(re.findall(r"^predict\(", source, re.MULTILINE)), "a prediction is not asked for"
    guess(asked.first)
    assert lesson.locator(".ntps-alt").count() == len(re.findall(r"^show\(", source, re.MULTILINE))
    for index in range(panels.count()):
        panel = panels.nth(index)
        panel.scroll_into_view_if_needed()
        assert move_sliders(panel) >= 1, "a panel without a slider"
        change_choices(panel)
    for width in WIDTHS:
        lesson.set_viewport_size({"width": width, "height": 900})
        lesson.wait_for_timeout(500)
        for index in range(panels.count()):
            panel = panels.nth(index)
            panel.scroll_into_view_if_needed()
            panel.screenshot(path=ARTIFACTS / f"{lesson.lesson}-panel{index + 1}-{width}.png")
            over = panel.evaluate("p => p.scrollWidth - p.clientWidth")
            assert over <= MARGINS, f"panel {index + 1} is {over} px too wide at {width} px"
        _long_screenshots(lesson, width)


def _long_screenshots(page, width: int) -> None:
    """Photograph the whole lesson, top to bottom, in one picture: the window grows to the notebook's height."""
    height = page.evaluate(
        "() => Math.max(...[...document.querySelectorAll('.jp-NotebookPanel *')].map(e => e.scrollHeight))"
    )
    page.set_viewport_size({"width": width, "height": int(min(height + 200, 16_000))})
    page.locator(".jp-Cell").first.scroll_into_view_if_needed()
    page.wait_for_timeout(1000)
    page.screenshot(path=ARTIFACTS / f"{page.lesson}-{width}.png")
