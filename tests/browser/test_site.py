"""A reader's browser on the site that `make site` built, from a plain file server and under a sub-path."""

import subprocess
import sys
import time
import urllib.request
from contextlib import suppress
from html.parser import HTMLParser
from importlib import import_module
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

pytestmark = [pytest.mark.browser, pytest.mark.slow]

SITE = Path(__file__).resolve().parents[2] / "build/site"
PAGES = sorted(
    path.relative_to(SITE).as_posix()
    for path in SITE.rglob("*.html")
    if path.relative_to(SITE).parts[0] not in {"_static", "index.html"}
)
PANELS = [name for name in PAGES if "data-panel=" in (SITE / name).read_text(encoding="utf-8")]
WIDTHS = (1280, 800)
MAX_BYTES = 15e6  # of all pictures of panels
AXE = {"preload": False, "resultTypes": ["violations"]}  # to preload, it asks for style sheets where none are
# Contrast takes axe longest: it looks at the first text of each colour, background, size and weight of the site.
LOOKS = """
const seen = new Set(JSON.parse(localStorage.looks ?? "[]"));
for (const element of document.querySelectorAll("body *")) {
  if (![...element.childNodes].some((child) => child.nodeType === Node.TEXT_NODE && child.data.trim())) continue;
  const { color, fontSize, fontWeight } = getComputedStyle(element);
  const back = (part) => getComputedStyle(part).backgroundColor;
  let under = element;
  while (under.parentElement && back(under) === "rgba(0, 0, 0, 0)") under = under.parentElement;
  const look = [color, fontSize, fontWeight, back(under)].join();
  if (!seen.has(look)) element.dataset.look = "first";
  seen.add(look);
}
localStorage.looks = JSON.stringify([...seen]);
axe.configure({ rules: [{ id: "color-contrast", selector: "[data-look]" }] });
"""


def test_the_site_is_there():
    assert PAGES, "no site: run `make site`"
    assert PANELS, "no page has a panel"


@pytest.fixture(scope="module")
def server():
    """Python's file server over the folder above the site; yields the site's address."""
    command = [sys.executable, "-u", "-m", "http.server", "0", "--bind", "127.0.0.1", "--directory", str(SITE.parent)]
    running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    port = running.stdout.readline().split(" port ")[1].split()[0]
    address = f"http://127.0.0.1:{port}/site"
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        with suppress(OSError), urllib.request.urlopen(f"{address}/index.html", timeout=2):
            break
    yield address
    running.terminate()
    running.wait(10)


@pytest.fixture(scope="module")
def window(browser):
    """One window for all pages."""
    page = browser.new_page(viewport={"width": WIDTHS[0], "height": 900})
    yield page
    page.close()


@pytest.fixture
def page(window, server):
    """The window, which must ask no other server for anything and have nothing to complain of."""
    complaints = []

    def asked(request):
        if not request.url.startswith((server, "data:")):
            complaints.append(f"asks for {request.url}")

    def said(message):
        if message.type in {"error", "warning"}:
            complaints.append(f"says {message.text} ({message.location.get('url')})")

    listeners = {"request": asked, "console": said, "pageerror": lambda error: complaints.append(str(error))}
    for event, listener in listeners.items():
        window.on(event, listener)
    window.set_viewport_size({"width": WIDTHS[0], "height": 900})
    yield window
    for event, listener in listeners.items():
        window.remove_listener(event, listener)
    assert complaints == []


@pytest.mark.parametrize("name", PAGES)
def test_page(page, server, name):
    base = pytest.importorskip("axe_playwright_python.base")
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe(base.AXE_SCRIPT + LOOKS)
    page.goto(f"{server}/{name}", wait_until="load")
    for width in WIDTHS:
        page.set_viewport_size({"width": width, "height": 900})
        over = page.evaluate("document.documentElement.scrollWidth - innerWidth")
        assert over <= 0, f"{over} px too wide at {width} px"
    found = axe.run(page, options=AXE).response["violations"]
    serious = [
        f"{fault['id']}: {node['html'][:200]}"
        for fault in found
        if fault["impact"] in {"serious", "critical"}
        for node in fault["nodes"]
    ]
    assert serious == []


def test_the_root_leads_to_the_first_page(page, server):
    page.goto(f"{server}/")
    page.wait_for_url(f"{server}/docs/index.html")


def state(panel):
    """What the panel shows: address of the picture, its alternative text and the sentence; the picture is loaded."""
    picture = panel.locator(".ntps-picture")
    picture.evaluate("picture => picture.decode()")
    sentence = panel.locator('[aria-live="polite"]').inner_text()
    assert picture.get_attribute("alt") == sentence
    return picture.get_attribute("src"), sentence


def moved(panel, before):
    now = state(panel)
    assert now[0] != before[0], "the picture did not change"
    assert now[1] != before[1], "the sentence did not change"
    return now


@pytest.mark.parametrize("name", PANELS)
def test_panels_move_by_keyboard(page, server, name):
    page.goto(f"{server}/{name}")
    panels = page.locator(".ntps-panel")
    for place in range(panels.count()):
        panel = panels.nth(place)
        now = state(panel)
        sliders, choices = panel.locator("input[type=range]"), panel.locator("select")
        assert sliders.count() >= 1, "a panel without a slider"
        for control in sliders.all():
            label = control.get_attribute("id")
            said, shown = control.get_attribute("aria-valuetext"), panel.locator(f'output[for="{label}"]')
            assert panel.locator(f'label[for="{label}"]').inner_text()
            assert shown.inner_text() == said
            last = control.input_value() == control.get_attribute("max")
            keys = ("ArrowLeft", "ArrowRight") if last else ("ArrowRight", "ArrowLeft")
            control.press(keys[0])
            now = moved(panel, now)
            assert control.get_attribute("aria-valuetext") == shown.inner_text() != said
            control.press(keys[1])
            now = moved(panel, now)
        for control in choices.all():
            assert panel.locator(f'label[for="{control.get_attribute("id")}"]').inner_text()
            first = control.input_value()
            control.select_option(index=1)
            now = moved(panel, now)
            control.select_option(value=first)
            now = moved(panel, now)


def test_a_rank_that_the_task_does_not_have_is_cut_back(page, server):
    page.goto(f"{server}/{next(name for name in PANELS if 'score_and_bounds' in name)}")
    panel = page.locator('[data-panel="c"]')
    rank = panel.locator("#ntps-c-k-u")
    rank.press("End")
    most = rank.get_attribute("aria-valuetext")
    panel.locator("#ntps-c-task").select_option(label="noise")
    assert (most, rank.get_attribute("aria-valuetext")) == ("8", "2")  # eight topics; heads or tails
    assert panel.locator('output[for="ntps-c-k-u"]').inner_text() == "2"


def test_panels_play_from_the_disk(browser):
    page = browser.new_page()
    page.goto((SITE / PANELS[0]).as_uri())
    panel = page.locator(".ntps-panel").first
    before = state(panel)
    panel.locator("input[type=range]").first.press("ArrowRight")
    moved(panel, before)
    page.close()


def test_pictures_of_panels_are_small():
    assert sum(path.stat().st_size for path in (SITE / "_static/panels").rglob("*.webp")) < MAX_BYTES


def test_search_finds(page, server):
    page.goto(f"{server}/search.html?q=eigenvalue")
    page.locator("#search-results li a").first.wait_for()
    links = page.locator("#search-results li a").evaluate_all("found => found.map(link => link.href)")
    assert any("glossary" in link for link in links)


def test_print_has_the_text_and_nothing_else(page, server):
    page.goto(f"{server}/{PANELS[0]}")
    page.emulate_media(media="print")
    page.set_viewport_size({"width": 718, "height": 1000})  # of A4 between the margins
    try:
        for gone in (".bd-sidebar-primary", ".bd-sidebar-secondary", ".ntps-controls", ".bd-header-article"):
            assert not page.locator(gone).first.is_visible(), gone
        cut = page.locator(".bd-article :is(pre, .ntps-formula, .ntps-panel, table, img)").evaluate_all(
            "parts => parts.filter(part => part.scrollWidth > part.clientWidth + 1 && part.clientWidth)"
            ".map(part => part.textContent.slice(0, 80))"
        )
        assert cut == []
        assert page.pdf(format="A4").startswith(b"%PDF")
    finally:
        page.emulate_media(media="screen")


def test_the_reference_has_every_public_function_and_class():
    missing = []
    for path in sorted((SITE / "docs/reference").glob("*.html")):
        if path.stem != "ntps":  # a list of links to the others
            room, anchors = import_module(f"ntps.{path.stem}"), _Page(path.read_text(encoding="utf-8")).anchors
            names = [name for name in room.__all__ if callable(getattr(room, name))]
            missing += [name for name in names if f"{room.__name__}.{name}" not in anchors]
    assert missing == []


class _Page(HTMLParser):
    """The links and the anchors of a page."""

    def __init__(self, text):
        super().__init__()
        self.links, self.anchors = set(), set()
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.links |= {found[key] for key in ("href", "src") if found.get(key)}
        self.anchors |= {found[key] for key in ("id", "name") if found.get(key)}


def test_every_link_within_the_site_leads_somewhere():
    pages = {name: _Page((SITE / name).read_text(encoding="utf-8")) for name in PAGES}
    broken = []
    for name, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            there = (SITE / name).parent / unquote(parts.path) if parts.path else SITE / name
            target = there.resolve()
            if not target.is_file():
                broken.append(f"{name}: {link}")
            elif parts.fragment and target.suffix == ".html":
                anchors = pages[target.relative_to(SITE).as_posix()].anchors
                if unquote(parts.fragment) not in anchors:
                    broken.append(f"{name}: {link} (no such place)")
    assert broken == []
