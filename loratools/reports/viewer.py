"""The viewer: two pictures over one another, compared by a slider, by flipping or by their amplified difference."""

from __future__ import annotations

from collections.abc import Sequence

from loratools.reports.evidence import BASE, REFERENCE, Scene
from loratools.reports.markup import Markup, element, joined
from loratools.reports.text import cut

AMPLIFICATIONS = (1, 4, 16, 64, 128)
MODES = (("slider", "Slider"), ("flip", "Flip"), ("difference", "Difference"))
ZOOMS = ((0, "Fit"), (1, "1:1"), (2, "2:1"), (4, "4:1"), (8, "8:1"))


def viewer(scenes: Sequence[Scene]) -> Markup | None:
    """Two pictures over one another, at any zoom; nothing without pictures or without scripts."""
    if not any(panel.pixels is not None for scene in scenes for panel in scene.panels):
        return None
    first = scenes[0]
    shown = [panel.route for panel in first.panels if panel.pixels is not None and panel.route not in {BASE, REFERENCE}]
    choices = (
        element("option", f"{at + 1}: seed {scene.seed}, {cut(scene.prompt, 60) or '(empty prompt)'}", value=at)
        for at, scene in enumerate(scenes)
    )
    controls = element(
        "div",
        element("label", "scene", element("select", *choices, data_part="scene")),
        element("label", "left", element("select", data_part="left", data_first=REFERENCE)),
        element("label", "right", element("select", data_part="right", data_first=shown[0] if shown else BASE)),
        _buttons("compare by", "mode", MODES),
        _buttons("zoom", "zoom", ZOOMS),
        _buttons("difference times", "amplify", [(at, f"×{at}") for at in AMPLIFICATIONS], part="amplification"),
        class_="controls",
    )
    stage = element(
        "div",
        element(
            "div",
            element("img", data_part="before", alt="", src=_NOTHING),
            element("img", data_part="after", alt="", src=_NOTHING),
            element("canvas", data_part="canvas", hidden=True),
            element("div", class_="edge", data_part="edge"),
            class_="frame",
            data_part="frame",
        ),
        class_="stage",
        data_part="stage",
        tabindex=0,
        role="group",
        aria_label="two pictures over one another; arrow keys move the slider, plus and minus zoom, 0 fits",
    )
    return element(
        "section",
        element("h2", "Look for yourself"),
        element(
            "p",
            "Drag on the picture to move the slider, click it to zoom. Keys: ",
            *(joined((element("kbd", key), f" {what}")) for key, what in _KEYS),
            class_="note",
        ),
        element(
            "div",
            controls,
            stage,
            element(
                "div", element("span", data_part="leftname"), element("span", data_part="rightname"), class_="names"
            ),
            element(
                "input", type="range", min=0, max=100, value=50, step="any", data_part="slide", aria_label="slider"
            ),
            element("p", class_="said", data_part="said", aria_live="polite"),
            class_="viewer",
            id="viewer",
        ),
        id="look",
        hidden=True,
    )


_KEYS = (("←", ""), ("→", "move it, "), ("+", ""), ("−", "zoom, "), ("0", "fits, "), ("space", "flips."))
_NOTHING = "data:image/gif;base64,R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7"


def _buttons(legend: str, kind: str, choices: Sequence[tuple[object, str]], part: str | None = None) -> Markup:
    made = (
        element("button", label, type="button", aria_pressed="false", **{f"data_{kind}": str(value)})
        for value, label in choices
    )
    return element("fieldset", element("legend", legend), element("div", *made, class_="row"), data_part=part)
