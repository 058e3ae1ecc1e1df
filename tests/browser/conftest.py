"""The browser that drives JupyterLab and the site."""

import os
import shutil

import pytest


def browser_path() -> str | None:
    """A Chromium on this machine: NTPS_BROWSER, or the first found by its usual names."""
    names = (os.environ.get("NTPS_BROWSER"), "chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    return next((found for name in names if name and (found := shutil.which(name))), None)


@pytest.fixture(scope="session")
def browser():
    """A headless Chromium."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (the browser extra)")
    path = browser_path()
    if path is None:
        pytest.skip("no browser: install Debian's chromium, or set NTPS_BROWSER to a Chromium")
    with api.sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield running
        running.close()
