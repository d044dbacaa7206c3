"""A headless Chromium for the tests of this folder."""

import os
import shutil

import pytest

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")


def open_browser():
    """A fixture's body: yields Playwright's browser; skips if Playwright or Chromium is absent."""
    playwright = pytest.importorskip("playwright.sync_api", reason="make test-browser installs it")
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        pytest.skip("no Chromium or Chrome here (Debian: apt install chromium)")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield browser
        browser.close()


def setting(name: str, target: str) -> str:
    """A variable that `make target` sets; without it the calling module is skipped."""
    if not os.environ.get(name):
        pytest.skip(f"`make {target}` runs this", allow_module_level=True)
    return os.environ[name]
