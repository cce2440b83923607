"""The page in a real browser, opened from disk: it plays, scrubs and swipes, and asks nobody."""

import shutil

import numpy as np
import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
sync_api = pytest.importorskip("playwright.sync_api", reason="needs pip install playwright")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs apt-get install chromium")


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def address(tmp_path_factory, make_results):
    """Of a report whose frame n is grey of level 20 + 18 n in its top left corner."""
    from vidsparse.metrics.report.write import write_report

    folder = tmp_path_factory.mktemp("report")
    results = make_results(folder)
    for path in {path for clip in results.clips for path in clip.frames.values()}:
        frames = np.load(folder / path)
        frames[:, :16, :16] = (20 + 18 * np.arange(len(frames)))[:, None, None, None]
        np.save(folder / path, frames)
    write_report(folder, results)
    return (folder / "index.html").as_uri()


@pytest.fixture
def motion():
    return "no-preference"


@pytest.fixture
def page(browser, address, motion):
    context = browser.new_context(
        viewport={"width": 1280, "height": 900}, color_scheme="light", reduced_motion=motion
    )
    page = context.new_page()
    page.asked, page.said = [], []
    page.on("request", lambda request: page.asked.append(request.url))
    page.on("console", lambda message: page.said.append(message.text))
    page.on("pageerror", lambda error: page.said.append(str(error)))
    page.on("dialog", lambda dialog: (page.said.append(dialog.message), dialog.dismiss()))
    page.goto(address)
    until(page, f"({PIXELS})(1).reduce((a, b) => a + b) > 0")
    page.opened_at = page.locator("#frame").inner_text(), page.locator("#said").inner_text()
    page.locator("#scrub").fill("0")
    page.locator("#scrub").blur()  # which would keep keys to itself
    wait_for_frame(page, 0)
    yield page
    assert [text for text in page.said if "getImageData" not in text] == []  # that is us
    assert [url for url in page.asked if not url.startswith(("file:", "blob:", "data:"))] == []
    context.close()


def until(page, condition):
    """Wait for it from outside: the page's own policy forbids to evaluate text inside."""
    for _ in range(500):
        if page.evaluate(condition):
            return
        page.wait_for_timeout(10)
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


def changed(page, pane, before, least):
    """The pixels once they differ from before by so much: drawing follows a seek, in its time."""
    for _ in range(100):
        after = pixels(page, pane)
        if len(after) == len(before) and apart(before, after) > least:
            return after
        page.wait_for_timeout(50)
    raise AssertionError(f"pane {pane} still shows what it showed")


DRAWN = """() => {
  const context = document.querySelector('#stage canvas').getContext('2d');
  return (context.getImageData(6, 6, 1, 1).data[0] - 20) / 18;
}"""


def wait_for_frame(page, number):
    until(page, f"document.querySelector('#frame').textContent.startsWith('{number} ')")
    until(page, f"Math.abs(({DRAWN})() - {number}) < 0.5")  # after the seek


def test_it_opens_at_the_worst_frame(page, make_results, tmp_path):
    curve = make_results(tmp_path).clips[0].curves["psnr"]
    worst = min((value, at) for at, value in enumerate(curve) if value is not None)[1]
    number, said = page.opened_at
    assert worst > 0
    assert number == f"{worst} / 11"
    assert said.endswith(", the worst of this clip")


def test_scrubbing_shows_another_frame_in_all_panes(page):
    before = [pixels(page, pane) for pane in (0, 1)]
    page.locator("#scrub").fill("9")
    wait_for_frame(page, 9)
    after = [changed(page, pane, before[pane], 3) for pane in (0, 1)]  # the ball moved
    assert apart(after[0], after[1]) > 0.5  # dense and sparse differ


def test_playing_moves_on_and_stops(page):
    page.keyboard.press(" ")
    until(page, "Number(document.querySelector('#scrub').value) > 2")
    page.keyboard.press(" ")
    page.wait_for_timeout(100)
    stood = page.locator("#scrub").input_value()
    page.wait_for_timeout(400)
    assert page.locator("#scrub").input_value() == stood


FRAMES_SEEN = """async () => {
  const context = document.querySelector('#stage canvas').getContext('2d');
  const seen = [];
  for (let turn = 0; turn < 150; turn++) {
    await new Promise(requestAnimationFrame);
    const level = context.getImageData(6, 6, 1, 1).data[0];
    seen.push([Number(document.querySelector('#scrub').value), (level - 20) / 18]);
  }
  return seen;
}"""


def test_what_is_said_while_playing_is_of_the_frame_that_is_drawn(page):
    page.locator("#play").click()
    seen = page.evaluate(FRAMES_SEEN)
    assert len({said for said, _ in seen}) > 5  # it played
    assert [pair for pair in seen if abs(pair[0] - pair[1]) > 0.5] == []


HASTE = """() => {
  const clip = document.querySelector('#clip'), play = document.querySelector('#play');
  for (const value of [1, 2, 3, 4]) {
    play.click();
    clip.value = value;
    clip.dispatchEvent(new Event('change'));
  }
}"""


def test_haste_leaves_the_console_clean(page):
    for key in "  n  p 23b1b  nnnn  ":
        page.keyboard.press(key)
    page.evaluate(HASTE)
    page.wait_for_timeout(500)  # the fixture looks at the console


@pytest.mark.parametrize("motion", ["reduce"])
def test_whoever_wants_less_motion_gets_no_endless_loop(page):
    page.locator("#scrub").fill("9")
    page.keyboard.press("Escape")
    page.locator("#play").click()
    until(page, "document.querySelector('video').ended")
    page.wait_for_timeout(400)
    assert page.locator("#play").get_attribute("data-playing") == "false"


def test_a_curve_can_be_clicked_and_follows(page):
    chart = page.locator(".view:visible svg.frames").first
    chart.scroll_into_view_if_needed()
    box = chart.bounding_box()
    page.mouse.click(box["x"] + box["width"] * 540 / 560, box["y"] + box["height"] / 3)
    wait_for_frame(page, 11)
    shift = chart.locator(".cursor").get_attribute("transform")
    assert shift == "translate(460 0)"
    assert page.locator("#said").inner_text().startswith("This frame: PSNR ")


def test_a_heat_map_reads_out_the_cell(page):
    cells = page.locator(".view:visible svg.heat .cells").first
    cells.scroll_into_view_if_needed()
    box = cells.bounding_box()
    said = page.locator(".view:visible .cell:visible").first
    page.mouse.move(box["x"] + 5, box["y"] + 5)
    assert said.inner_text() == "layer 0, step 0: 1"
    page.mouse.move(box["x"] + box["width"] - 5, box["y"] + box["height"] - 5)
    assert said.inner_text() == "layer 3, step 5: no value"


def test_blinking_shows_all_of_one_then_all_of_the_other(page):
    dense, sparse = pixels(page, 0), pixels(page, 1)
    page.keyboard.press("b")
    first = pixels(page, 3)
    page.keyboard.press("b")
    second = pixels(page, 3)
    ends = sorted([first, second], key=lambda shown: apart(shown, dense))
    assert apart(ends[0], dense) < apart(ends[0], sparse)
    assert apart(ends[1], sparse) < apart(ends[1], dense)


def test_a_clip_is_watched_from_its_row(page):
    page.locator('button[data-open="4"]').click()
    page.wait_for_timeout(600)
    assert page.locator("#clip").input_value() == "4"
    assert "draft, seed 1" in page.locator("#caption").inner_text()


def test_arrows_step_one_frame(page):
    page.keyboard.press("ArrowRight")
    wait_for_frame(page, 1)
    page.keyboard.press("ArrowRight")
    wait_for_frame(page, 2)
    page.keyboard.press("ArrowLeft")
    wait_for_frame(page, 1)


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
    changed(page, 1, before, 0.5)
    assert page.locator(".view:visible").get_attribute("data-view") == "5"
    assert "radial, seed 1" in page.locator("#caption").inner_text()


def test_it_fits_a_phone(page, tmp_path):
    page.set_viewport_size({"width": 390, "height": 844})
    for mode in ("side", "swipe", "difference"):
        page.locator(f'button[data-mode="{mode}"]').click()
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        page.screenshot(path=tmp_path / f"phone-{mode}.png", full_page=True)


def test_frames_are_counted_from_0_everywhere(page):
    assert page.locator("#frame").inner_text() == "0 / 11"
    assert page.locator("#scrub").get_attribute("aria-valuetext") == "frame 0 of 0 to 11"
    ticks = page.locator(".view:visible svg.frames").first.locator(".tick").all_text_contents()
    assert {"0", "2", "10"} <= set(ticks)
    assert "Frames are counted from 0" in page.locator("#watch").inner_text()


def test_a_table_that_is_cut_says_so_and_is_shaded_where_it_goes_on(page):
    hints, tables = page.locator(".cut"), page.locator(".wide")
    assert not hints.nth(1).is_visible()
    assert tables.nth(1).get_attribute("class") == "wide"
    page.set_viewport_size({"width": 390, "height": 844})
    until(page, "document.querySelectorAll('.wide')[1].classList.contains('more-right')")
    assert hints.nth(1).inner_text() == "This table goes on to the right: scroll it sideways."
    tables.nth(1).evaluate("(box) => box.scrollTo(10000, 0)")
    until(page, "document.querySelectorAll('.wide')[1].className === 'wide more-left'")
    shadow = tables.nth(1).evaluate("(box) => getComputedStyle(box).boxShadow")
    assert "14px 0px 10px -10px" in shadow


CLIPPED = """() => [...document.querySelectorAll('svg[role="img"]')].flatMap((svg) => {
  const whole = svg.getBoundingClientRect();
  return [...svg.querySelectorAll('text')].filter((text) => {
    const box = text.getBoundingClientRect();
    return box.width && (box.left < whole.left - 1 || box.right > whole.right + 1
      || box.top < whole.top - 1 || box.bottom > whole.bottom + 1);
  }).map((text) => text.textContent);
})"""
OVERFULL = """() => [...document.querySelectorAll('svg .inside')].filter((text) => {
  const box = text.getBoundingClientRect();
  const bar = text.previousElementSibling.getBoundingClientRect();
  return box.left < bar.left || box.right > bar.right;
}).map((text) => text.textContent)"""


@pytest.mark.parametrize("width", [320, 390, 1280])
def test_no_label_of_a_chart_is_clipped(page, width):
    page.set_viewport_size({"width": width, "height": 844})
    assert page.evaluate(CLIPPED) == []
    assert page.evaluate(OVERFULL) == []


def test_prompts_are_shown_and_not_run(page):
    assert "<script>alert(1)</script>" in page.locator("#caption").inner_text()
    assert "<script>alert(2)</script>" in page.locator("pre").inner_text()
