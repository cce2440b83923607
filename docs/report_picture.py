"""The picture of a report in docs/comparing.md, of what ``make demo`` made.

    make demo && .venv/bin/python docs/report_picture.py demo

Writes docs/report.png: the top of the page in a chromium that is installed, driven by playwright.
"""

from __future__ import annotations

import io
import shutil
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright

from vidsparse.errors import BadInputError

PICTURE = Path(__file__).resolve().parent / "report.png"
WIDTH, TALLEST, COLOURS = 1280, 1500, 256
STARTED = "!!document.querySelector('#frame')?.textContent.trim()"


def main(folder: Path) -> None:
    """Draw the page of a comparison's folder."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        raise BadInputError("there is no chromium and no google-chrome: install one")
    with sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=browser, args=["--no-sandbox"])
        page = opened.new_page(
            viewport={"width": WIDTH, "height": TALLEST},
            color_scheme="light",
            reduced_motion="reduce",
        )
        page.goto((folder / "index.html").resolve().as_uri())
        _wait(page)
        content = page.screenshot(clip={"x": 0, "y": 0, "width": WIDTH, "height": _end(page)})
        opened.close()
    picture = Image.open(io.BytesIO(content)).convert("RGB")
    picture.quantize(COLOURS).save(PICTURE, optimize=True)


def _wait(page: Page) -> None:
    """Until the players show a frame; asked from outside, as the page's policy wants."""
    for _ in range(200):
        if page.evaluate(STARTED):
            page.wait_for_timeout(500)
            return
        page.wait_for_timeout(50)
    raise BadInputError("the players of the page show no frame: is it a report of vidsparse?")


def _end(page: Page) -> float:
    """Where the players end, in pixels from the top; as far as the picture may go."""
    box = page.locator("#scrub").bounding_box()
    return TALLEST if box is None else min(TALLEST, box["y"] + box["height"] + 12)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
