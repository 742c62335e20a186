"""Takes the images of the page in docs/images: a transcript with speakers, the demo checkpoint."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, expect, sync_playwright

ROOT = Path(__file__).resolve().parent.parent
IMAGES = ROOT / "docs" / "images"
RECORDING = ROOT / "samples" / "minute.mp3"
PATIENCE_MS = 300_000
VIEWS: dict[str, dict[str, Any]] = {
    "page-desktop": {"viewport": {"width": 960, "height": 720}},
    "page-dark": {"viewport": {"width": 960, "height": 720}, "color_scheme": "dark"},
    "page-phone": {
        "viewport": {"width": 390, "height": 760},
        "device_scale_factor": 1.5,
        "is_mobile": True,
    },
}


def main() -> None:
    """Write each view as PNG."""
    chromium = shutil.which("chromium")
    if chromium is None:
        sys.exit("chromium is missing; install the system's package")
    with _server() as url, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for name, options in VIEWS.items():
            _take(browser, url, IMAGES / f"{name}.png", options)


@contextmanager
def _server() -> Iterator[str]:
    """`parakeet serve` on a free port."""
    command = [sys.executable, "-m", "parakeet_worker.entrypoints.cli", "serve", "--port", "0"]
    with subprocess.Popen(
        [*command, "--model", "demo"],
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
        stderr=subprocess.STDOUT, stdout=subprocess.PIPE, text=True,
    ) as server:  # fmt: skip
        assert server.stdout is not None
        try:
            lines = (re.search(r"http://[\d.]+:\d+", line) for line in server.stdout)
            yield next(match[0] for match in lines if match)
        finally:
            server.terminate()


def _take(browser: Browser, url: str, target: Path, options: dict[str, Any]) -> None:
    with browser.new_context(reduced_motion="reduce", **options) as context:
        context.set_default_timeout(PATIENCE_MS)
        page = context.new_page()
        page.goto(url)
        page.get_by_text("Options").click()
        page.locator("#speakers-option").select_option("true")
        page.locator("#file").set_input_files(RECORDING)
        expect(page.locator("#outcome")).to_be_visible(timeout=PATIENCE_MS)
        name = page.locator("#speakers input").first
        name.fill("Ada")
        name.press("Enter")
        page.locator(".word").nth(11).click()
        page.locator("#play").click()
        page.evaluate("scrollTo(0, 0)")
        page.screenshot(path=target)


if __name__ == "__main__":
    main()
