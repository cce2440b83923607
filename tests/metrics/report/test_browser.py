"""The page in a real browser, opened from disk: it plays, scrubs and swipes, and asks nobody."""

import shutil

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
sync_api = pytest.importorskip("playwright.sync_api", reason="needs pip install playwright")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs apt-get install chromium")


@pytest.fixture
def page(tmp_path, results):
    from vidsparse.metrics.report.write import write_report

    write_report(tmp_path, results)
    with sync_api.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 900}, color_scheme="light")
        page.asked, page.said = [], []
        page.on("request", lambda request: page.asked.append(request.url))
        page.on("console", lambda message: page.said.append(message.text))
        page.on("pageerror", lambda error: page.said.append(str(error)))
        page.on("dialog", lambda dialog: page.said.append(dialog.message))
        page.goto((tmp_path / "index.html").as_uri())
        until(page, f"({PIXELS})(1).reduce((a, b) => a + b) > 0")
        yield page
        assert [text for text in page.said if "getImageData" not in text] == []  # that is us
        assert [url for url in page.asked if not url.startswith(("file:", "blob:", "data:"))] == []
        browser.close()


def until(page, condition):
    """Wait for it from outside: the page's own policy forbids to evaluate text inside."""
    for _ in range(100):
        if page.evaluate(condition):
            return
        page.wait_for_timeout(50)
    raise AssertionError(condition)


PIXELS = """(pane) => {
  const canvas = document.querySelectorAll('#stage canvas')[pane];
  const { width, height } = canvas;
  return [...canvas.getContext('2d').getImageData(0, 0, width, height).data];
}"""


def pixels(page, pane):
    return page.evaluate(PIXELS, pane)


def apart(one, other):
    return sum(abs(a - b) for a, b in zip(one, other, strict=True)) / len(one)


def wait_for_frame(page, number):
    until(page, f"document.querySelector('#frame').textContent.startsWith('{number} ')")
    page.wait_for_timeout(250)  # the seek, then the drawing


def test_scrubbing_shows_another_frame_in_all_panes(page):
    before = [pixels(page, pane) for pane in (0, 1)]
    page.locator("#scrub").fill("9")
    wait_for_frame(page, 10)
    after = [pixels(page, pane) for pane in (0, 1)]
    for one, other in zip(before, after, strict=True):
        assert apart(one, other) > 3  # the ball moved
    assert apart(after[0], after[1]) > 0.5  # dense and sparse differ


def test_playing_moves_on_and_stops(page):
    page.keyboard.press(" ")
    until(page, "Number(document.querySelector('#scrub').value) > 2")
    page.keyboard.press(" ")
    page.wait_for_timeout(100)
    stood = page.locator("#scrub").input_value()
    page.wait_for_timeout(400)
    assert page.locator("#scrub").input_value() == stood


def test_arrows_step_one_frame(page):
    page.keyboard.press("ArrowRight")
    wait_for_frame(page, 2)
    page.keyboard.press("ArrowRight")
    wait_for_frame(page, 3)
    page.keyboard.press("ArrowLeft")
    wait_for_frame(page, 2)


def test_swiping_uncovers_the_sparse_clip(page):
    dense, sparse = pixels(page, 0), pixels(page, 1)
    page.locator('button[data-mode="swipe"]').click()
    box = page.locator("#swipe").bounding_box()
    shown = []
    for share in (0.99, 0.01):
        page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 20)
        page.mouse.down()
        page.mouse.move(box["x"] + share * box["width"], box["y"] + 20)
        page.mouse.up()
        shown.append(pixels(page, 3))
    assert apart(shown[0], dense) < apart(shown[0], sparse)
    assert apart(shown[1], sparse) < apart(shown[1], dense)
    assert page.locator("#handle").get_attribute("aria-valuenow") == "1"


def test_the_theme_switches(page, tmp_path):
    colour = "getComputedStyle(document.documentElement).backgroundColor"
    light = page.evaluate(colour)
    page.locator("#theme").click()
    dark = page.evaluate(colour)
    page.screenshot(path=tmp_path / "dark.png", full_page=True)  # to look at: pytest keeps it
    assert sum(map(int, light[4:-1].split(","))) > sum(map(int, dark[4:-1].split(","))) + 300
    page.keyboard.press("t")
    assert page.evaluate(colour) == light


def test_another_clip_shows_its_own_video_and_charts(page):
    before = pixels(page, 1)
    page.locator("#clip").select_option("5")
    page.wait_for_timeout(600)
    assert apart(before, pixels(page, 1)) > 0.5
    assert page.locator(".view:visible").get_attribute("data-view") == "5"
    assert "radial, seed 1" in page.locator("#caption").inner_text()


def test_it_fits_a_phone(page):
    page.set_viewport_size({"width": 390, "height": 844})
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
