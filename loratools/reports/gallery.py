"""Every picture of every scene, with its difference to the reference and its figures."""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt
from typing import TYPE_CHECKING

from loratools.reports import tables
from loratools.reports.bars import value
from loratools.reports.evidence import BASE, REFERENCE, Figure, Panel, Scene
from loratools.reports.markup import Markup, element
from loratools.reports.pictures import amplified, data_uri, difference, factor_of, pooled, require_pixels, resized
from loratools.reports.text import beside, cut

if TYPE_CHECKING:
    from loratools.reports.evidence import Pixels

EMBEDDED_PIXELS = 12_000_000  # of all pictures together: 36 MB at the worst, about half of it for what models paint
SMALL = 256  # a picture that is shown with its pixels as squares, and the longer side of an embedded difference
REMARK = 160  # letters of a remark under a picture; the table of routes has all of it


def pictures(scenes: Sequence[Scene]) -> Markup | None:
    """Every picture of every scene, with its difference to the reference and its figures."""
    if not scenes:
        return None
    area = sum(
        panel.pixels.shape[0] * panel.pixels.shape[1]
        for scene in scenes
        for panel in scene.panels
        if panel.pixels is not None
    )
    share = min(1.0, sqrt(EMBEDDED_PIXELS / area)) if area else 1.0
    note = "The figures were measured on the pictures as they were made, 8 bits a channel."
    if share < 1:
        note += f" They are shown here at {share:.0%} of their size, to keep the page small."
    return element(
        "section",
        element("h2", "All pictures"),
        element("p", note, class_="note"),
        *(_scene(at, scene, share, opened=at < 2) for at, scene in enumerate(scenes)),
        _measures(scenes),
    )


def _measures(scenes: Sequence[Scene]) -> Markup | None:
    """How each figure was measured, or why it was not: once for all pictures."""
    said = {
        figure.name: f"not measured: {figure.remark}" if figure.value is None else figure.remark
        for scene in scenes
        for panel in scene.panels
        for figure in panel.figures
        if figure.remark
    }
    if not said:
        return None
    rows = (part for name, remark in said.items() for part in (element("dt", name), element("dd", remark)))
    summary = element("summary", "How the figures under the pictures are measured")
    return element("details", summary, element("dl", *rows, class_="facts note"), class_="more")


def _scene(at: int, scene: Scene, share: float, *, opened: bool) -> Markup:
    return element(
        "details",
        element(
            "summary",
            element("strong", f"Scene {at + 1}, seed {scene.seed}: "),
            scene.prompt or "(empty prompt)",
        ),
        element("div", *(_panel(at, panel, scene, share) for panel in scene.panels), class_="panels"),
        class_="scene",
        open=opened,
    )


def _panel(at: int, panel: Panel, scene: Scene, share: float) -> Markup:
    title = element(
        "div",
        element("h3", panel.route),
        None if panel.status == "info" or panel.route in {BASE, REFERENCE} else tables.status(panel.status),
        class_="title",
    )
    if panel.pixels is None:
        shown: list[Markup | None] = [element("div", "no picture", class_="none")]
    else:
        pixels = require_pixels(panel.pixels, panel.route)
        height, width = (max(1, round(side * share)) for side in pixels.shape[:2])
        image = element(
            "img",
            src=data_uri(resized(pixels, width, height)),
            alt=f"{panel.route}, scene {at + 1}",
            width=width,
            height=height,
            class_="small" if max(width, height) <= SMALL else None,
            data_scene=at,
            data_route=panel.route,
        )
        shown = [
            element("button", image, type="button", class_="picture", aria_label=f"look at {panel.route}"),
            *_difference(panel, pixels, scene),
        ]
    lines = [_line(figure) for figure in panel.figures if figure.value is not None]
    under = (
        element("ul", *lines) if lines else None,
        tables.remarks([cut(remark, REMARK) for remark in panel.remarks]),
    )
    return element("figure", title, *shown, *under, class_="panel")


def _line(figure: Figure) -> Markup:
    """A figure under a picture, in one line."""
    held = beside(figure)
    return element(
        "li",
        f"{figure.name} ",
        value(figure, right=figure.within is not False),
        element("span", f" {held}", class_="note") if held else None,
    )


def _difference(panel: Panel, pixels: Pixels, scene: Scene) -> list[Markup | None]:
    """The amplified difference to the reference, with the factor stated, or why there is none."""
    reference = scene.panel(REFERENCE)
    if panel.route == REFERENCE:
        return [element("p", "what the others are held to", class_="note")]
    if reference is None or reference.pixels is None:
        return [element("p", "no reference to compare with", class_="note")]
    found = difference(pixels, require_pixels(reference.pixels, REFERENCE))
    if found is None:
        return [element("p", "not of the reference's size", class_="note")]
    if not found.any():
        return [element("p", "no pixel differs from the reference", class_="note")]
    factor = factor_of(found)
    small = pooled(found, SMALL)
    what = "what the adapter changes" if panel.route == BASE else "difference to the reference"
    return [
        element(
            "img",
            src=data_uri(amplified(small, factor)),
            alt=f"{what} of {panel.route}",
            width=small.shape[1],
            height=small.shape[0],
            class_="small",
        ),
        element("p", f"{what} ×{factor}, largest {int(found.max())} of 255", class_="note"),
    ]
