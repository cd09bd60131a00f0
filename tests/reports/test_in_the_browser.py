"""The page as a browser shows it: headless Chromium, where it is installed (Debian's `chromium`)."""

import numpy as np
import pytest

from loratools.reports.page import page
from tests.reports.browser import CHROMIUM, Browser
from tests.reports.made import evidence, scene
from tests.reports.test_page import HOSTILE, hostile

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine: apt-get install chromium")

WIDTHS = (390, 1440)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    found = Browser(tmp_path_factory.mktemp("browser"))
    yield found
    found.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    place = tmp_path_factory.mktemp("report") / "index.html"
    place.write_text(page(evidence()), encoding="utf-8")
    return place


def settled(browser):
    """Asserts that the script ran to its end, without an error and without a request."""
    browser.ask("new Promise((done) => requestAnimationFrame(() => setTimeout(done, 20)))")
    assert browser.ask("document.documentElement.dataset.ready") == "yes"
    assert browser.ask("document.documentElement.dataset.error") is None
    assert browser.ask("document.documentElement.dataset.requests") == "0"
    assert browser.faults == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
def test_the_page_runs_without_errors_or_requests_and_fits_its_width(browser, report, width, scheme):
    browser.open(report, width=width, scheme=scheme)
    settled(browser)
    assert browser.ask("document.documentElement.scrollWidth") <= width
    paper = browser.ask("getComputedStyle(document.body).backgroundColor")
    assert paper == ("rgb(255, 255, 255)" if scheme == "light" else "rgb(20, 22, 26)")


def test_the_page_is_whole_without_scripts(browser, report):
    browser.open(report, scripts=False)
    browser.call("Emulation.setScriptExecutionDisabled", value=False)  # to ask; the page's own script has not run
    assert browser.ask("document.documentElement.dataset.ready") is None
    assert browser.ask("document.getElementById('look').offsetHeight") == 0
    assert browser.ask("[...document.querySelectorAll('table')].every((one) => one.offsetHeight > 0)")
    assert browser.ask("document.querySelectorAll('table').length") == 5
    assert browser.ask("[...document.querySelectorAll('.panel img')].every((one) => one.naturalWidth > 0)")
    assert browser.faults == []


def test_hostile_names_run_nothing(browser, tmp_path):
    place = tmp_path / "index.html"
    place.write_text(page(hostile(" ".join(HOSTILE))), encoding="utf-8")
    browser.open(place)
    settled(browser)
    assert browser.ask("document.querySelectorAll('script').length") == 1


def press(browser, selector):
    browser.ask(f"document.querySelector({selector!r}).click()")
    settled(browser)


def test_the_difference_in_the_browser_is_the_difference_of_the_pixels(browser, tmp_path):
    made = scene()
    place = tmp_path / "index.html"
    place.write_text(page(evidence((made,))), encoding="utf-8")
    browser.open(place)
    settled(browser)
    press(browser, "[data-mode=difference]")
    press(browser, "[data-amplify='64']")
    wanted = np.abs(made.panel("reference").pixels.astype(int) - made.panel("merged").pixels)
    shown = browser.ask(
        "(() => { const one = document.querySelector('canvas[data-part=canvas]');"
        " return [...one.getContext('2d').getImageData(0, 0, one.width, one.height).data]; })()"
    )
    assert np.array_equal(np.array(shown).reshape(64, 64, 4)[:, :, :3], np.minimum(wanted * 64, 255))
    said = browser.ask("document.querySelector('[data-part=said]').textContent")
    assert "the largest difference is 1 of 255" in said
    assert f"{100 * wanted.any(axis=2).mean():.1f} % of the pixels differ" in said


def test_the_slider_shows_the_reference_on_the_left_and_the_route_on_the_right(browser, report):
    browser.open(report)
    settled(browser)
    chosen = browser.ask("['left', 'right'].map((side) => document.querySelector(`[data-part=${side}]`).value)")
    assert chosen == ["reference", "merged"]
    stage = "document.querySelector('[data-part=stage]')"
    browser.ask(f"{stage}.dispatchEvent(new KeyboardEvent('keydown', {{key: 'ArrowLeft'}}))")
    cut = browser.ask("document.querySelector('[data-part=after]').style.clipPath")
    assert cut == "inset(0px 0px 0px 48%)"


@pytest.mark.parametrize(("presses", "side"), [(1, 64), (2, 128), (4, 512)])
def test_plus_zooms_to_whole_pixels(browser, report, presses, side):
    browser.open(report)
    settled(browser)
    stage = "document.querySelector('[data-part=stage]')"
    for _ in range(presses):
        browser.ask(f"{stage}.dispatchEvent(new KeyboardEvent('keydown', {{key: '+'}}))")
    assert browser.ask("document.querySelector('[data-part=frame]').offsetWidth") == side
    assert browser.ask("getComputedStyle(document.querySelector('[data-part=after]')).imageRendering") == "pixelated"


def test_a_click_on_a_picture_brings_it_into_the_viewer(browser, report):
    browser.open(report)
    settled(browser)
    press(browser, "img[data-scene='1'][data-route='loaded']")
    assert browser.ask("document.querySelector('[data-part=scene]').value") == "1"
    assert browser.ask("document.querySelector('[data-part=right]').value") == "loaded"
    shown = browser.ask("document.querySelector('[data-part=after]').src")
    assert shown == browser.ask("document.querySelector(`img[data-scene='1'][data-route='loaded']`).src")
