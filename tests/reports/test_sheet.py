"""The contact sheet: the pixels themselves, their amplified differences, and the same bytes every time."""

import io

import numpy as np
import pytest
from PIL import Image

from loratools.errors import InternalError
from loratools.reports.evidence import Panel, Scene
from loratools.reports.lettering import folded, font_for
from loratools.reports.pictures import amplified, difference, factor_of, pooled
from loratools.reports.sheet import contact_sheet
from tests.reports.made import evidence, picture, scene


def opened(content):
    return Image.open(io.BytesIO(content))


def holds(sheet, block):
    """Whether a block of pixels stands somewhere in a sheet."""
    height, width = block.shape[:2]
    rows, columns = sheet.shape[0] - height + 1, sheet.shape[1] - width + 1
    corners = np.argwhere((sheet[:rows, :columns] == block[0, 0]).all(axis=2))
    return any(np.array_equal(sheet[y : y + height, x : x + width], block) for y, x in corners)


def grown(pixels, times):
    return pixels.repeat(times, axis=0).repeat(times, axis=1)


def test_the_same_evidence_gives_the_same_bytes_without_a_time():
    content = contact_sheet(evidence())
    assert content == contact_sheet(evidence())
    assert b"tIME" not in content
    assert opened(content).text == {"Title": "style.safetensors at 0.8 on tiny-sdxl", "Comment": "verdict: pass"}


def test_pictures_grow_by_whole_pixels_and_differences_by_the_stated_factor():
    made = scene()
    sheet = np.asarray(opened(contact_sheet(evidence((made,)))))
    reference = made.panel("reference").pixels
    for panel in made.panels:
        if panel.pixels is None:
            continue
        assert holds(sheet, grown(panel.pixels, 4))
        found = np.abs(panel.pixels.astype(int) - reference)
        if found.any():
            factor = max(power for power in (1, 2, 4, 8, 16, 32, 64, 128) if power == 1 or found.max() * power <= 255)
            assert holds(sheet, grown((found * factor).astype(np.uint8), 4))


def test_many_routes_wrap_and_a_long_prompt_does_too():
    pixels = picture(1)
    panels = tuple(Panel(f"route {at}", "pass", pixels) for at in range(11))
    wide = opened(contact_sheet(evidence((Scene("word " * 400 + "x" * 4000, 0, panels),))))
    assert wide.width <= 1800
    sheets = [evidence((Scene("word", 0, panels[:count]),), summary="") for count in (4, 6, 7)]
    heights = [opened(contact_sheet(sheet)).height for sheet in sheets]
    assert heights[0] == heights[1] < heights[2]


def test_scenes_past_the_limit_are_counted():
    many = tuple(scene(seed=seed) for seed in range(2))
    assert opened(contact_sheet(evidence(many), most=1)).height < opened(contact_sheet(evidence(many))).height


@pytest.mark.parametrize(("height", "width"), [(1, 1), (8, 700), (700, 8), (300, 200), (1024, 768)])
def test_any_size_of_picture_fits(height, width):
    pixels = np.full((height, width, 3), 90, np.uint8)
    other = pixels + np.uint8(1)
    given = Scene("", 0, (Panel("reference", "info", pixels), Panel("merged", "pass", other)))
    assert opened(contact_sheet(evidence((given,)))).width >= 224


def test_a_picture_of_another_size_than_the_reference_is_shown_without_a_difference():
    given = Scene("", 0, (Panel("reference", "info", picture(1)), Panel("merged", "pass", picture(1, side=32))))
    contact_sheet(evidence((given,)))
    assert difference(picture(1), picture(1, side=32)) is None


@pytest.mark.parametrize("bad", [np.zeros((4, 4, 3)), np.zeros((4, 4), np.uint8), np.zeros((4, 4, 4), np.uint8)])
def test_pixels_that_are_none_are_refused(bad):
    with pytest.raises(InternalError, match="merged"):
        contact_sheet(evidence((Scene("", 0, (Panel("merged", "pass", bad),)),)))


@pytest.mark.parametrize(
    ("most", "factor"), [(0, 128), (1, 128), (2, 64), (3, 64), (40, 4), (127, 2), (128, 1), (255, 1)]
)
def test_the_factor_is_the_largest_power_of_two_that_cuts_nothing(most, factor):
    found = np.array([[[0, most, 0]]], np.uint8)
    assert factor_of(found) == factor
    assert amplified(found, factor).max() == most * factor


def test_no_differing_pixel_vanishes_when_a_difference_is_made_small():
    found = np.zeros((999, 640, 3), np.uint8)
    found[731, 17, 1] = 3
    small = pooled(found, 256)
    assert max(small.shape) <= 256
    assert small.sum() == 3


def test_letters_that_the_built_in_font_lacks_come_from_another_or_are_boxes():
    assert font_for("plain words", 15) is font_for("other words", 15)
    contact_sheet(evidence((Scene("ночь 夜 \U0001f319", 0, (Panel("reference", "info", picture(1)),)),)))


@pytest.mark.parametrize("text", ["", "one", "many words that are longer than a line", "x" * 90, "a\nb"])
def test_folded_lines_fit_and_lose_nothing(text):
    font = font_for(text, 15)
    lines = folded(text, font, 120)
    assert all(font.getlength(line) <= 120 for line in lines)
    assert "".join(lines).replace(" ", "") == text.replace(" ", "").replace("\n", "")
    cut = folded(text, font, 120, most=1)
    assert len(cut) == 1
    assert cut == lines or cut[0].endswith(" …")
