"""The sections of the page, in the order in which they are read: verdict, pictures, figures, and how to repeat it."""

from __future__ import annotations

from collections.abc import Mapping

from loratools.reports import tables
from loratools.reports.evidence import BASE, REFERENCE, Evidence, Panel, Scene
from loratools.reports.markup import Markup, element, joined
from loratools.reports.pictures import data_uri, difference, require_pixels, resized
from loratools.reports.text import MARKS, spoken

GLANCE = 176  # the longer side of a picture in the header


def header(evidence: Evidence) -> Markup:
    """The verdict, what it is about, the first scene at a glance, and each route's status."""
    return element(
        "header",
        element("p", f"{MARKS[evidence.verdict]} {evidence.verdict.upper()}", class_="word"),
        element("h1", evidence.title),
        element("p", evidence.summary, class_="summary"),
        glance(evidence),
        facts(evidence.facts or {}),
        tables.remarks(evidence.remarks),
        class_=f"verdict {evidence.verdict}",
    )


def glance(evidence: Evidence) -> Markup | None:
    """The first scene in a row of small pictures, each with its route's status; routes without one stand alone."""
    panels = evidence.scenes[0].panels if evidence.scenes else ()
    pictured = [panel for panel in panels if panel.pixels is not None]
    statuses = {panel.route: panel.status for panel in panels} | {row.name: row.status for row in evidence.routes}
    items = [_small(panel, statuses[panel.route], evidence.scenes[0]) for panel in pictured]
    shown = {panel.route for panel in pictured}
    items += [
        element("li", element("strong", name), tables.status(status))
        for name, status in statuses.items()
        if name not in shown and status != "info" and name not in {BASE, REFERENCE}
    ]
    return element("ul", *items, class_="glance", aria_label="the first scene by every route") if items else None


def _small(panel: Panel, status: str, scene: Scene) -> Markup:
    """One picture of the row, and what to see in it."""
    assert panel.pixels is not None
    pixels = require_pixels(panel.pixels, panel.route)
    scale = min(1.0, GLANCE / max(pixels.shape[:2]))
    height, width = (max(1, round(side * scale)) for side in pixels.shape[:2])
    image = element(
        "img",
        src=data_uri(resized(pixels, width, height)),
        alt="",
        width=width,
        height=height,
        class_="small" if scale == 1 else None,
    )
    known = {BASE: "without the adapter", REFERENCE: "with it"}
    words = known.get(panel.route) or _apart(panel, scene)
    chip = None if status == "info" or panel.route in known else tables.status(status)
    return element("li", image, element("strong", panel.route), element("span", words, class_="note"), chip)


def _apart(panel: Panel, scene: Scene) -> str | None:
    """How far a picture is from the reference's, in a few words."""
    reference = scene.panel(REFERENCE)
    if panel.pixels is None or reference is None or reference.pixels is None:
        return None
    found = difference(panel.pixels, reference.pixels)
    if found is None:
        return "of another size"
    if not found.any():
        return "no pixel differs"
    words = f"off by up to {int(found.max())} of 255"
    measured = next((figure for figure in panel.figures if figure.floor and figure.value is not None), None)
    # Beside what rounding alone does: in a narrow dtype pictures differ although nothing is wrong.
    return words if measured is None else f"{words}; {spoken(measured)}"


def facts(pairs: Mapping[str, str], *, mono: bool = False) -> Markup | None:
    """Names and values, or nothing."""
    if not pairs:
        return None
    rows = (
        part
        for name, value in pairs.items()
        for part in (element("dt", name), element("dd", value, class_="mono" if mono else None))
    )
    return element("dl", *rows, class_="facts")


def figures(evidence: Evidence) -> Markup:
    """Routes, noise floor, laws, controls and modules."""
    parts: list[Markup | None] = []
    if evidence.routes:
        parts += _headed("The routes, in figures", _READING, tables.routes(evidence.routes))
    if evidence.noise:
        parts += _headed("Noise floor", _NOISE, tables.noise(evidence.noise))
    if evidence.laws:
        parts += _headed("Scales", _LAWS, tables.laws(evidence.laws))
    if evidence.controls:
        parts += _headed("Deliberate mistakes", _CONTROLS, tables.controls(evidence.controls))
    if evidence.modules:
        parts += _headed("Modules furthest from the reference", _MODULES, tables.modules(evidence.modules))
    return joined(parts)


_READING = (
    "Each number lies on a logarithmic bar: the dot is what was measured, the grey tick the noise floor, and red is "
    "beyond the limit."
)
_NOISE = "How far two runs lie apart although nothing differs but rounding. A figure near it tells nothing."
_LAWS = "What strength must mean: 0 is the base, twice the strength twice the change, removal restores."
_CONTROLS = (
    "A check that cannot fail proves nothing: each of these mistakes was made on purpose, and must break a limit."
)
_MODULES = (
    "The change that a route made to each weight, against the change that the file describes: "
    "‖got − wanted‖ / ‖wanted‖. The ratio is 1 where only rounding differs, 0.5 where a scale was halved."
)


def _headed(heading: str, note: str, content: Markup) -> list[Markup | None]:
    return [element("section", element("h2", heading), element("p", note, class_="note"), content)]


def repeating(evidence: Evidence) -> Markup | None:
    """The command, the versions and the hashes."""
    if not (evidence.repeat or evidence.versions or evidence.hashes):
        return None
    command = (
        element("pre", evidence.repeat, id="command"),
        element("button", "Copy", type="button", data_copy="command", hidden=True),
    )
    return element(
        "section",
        element("h2", "Repeat it"),
        *(command if evidence.repeat else ()),
        element("h3", "Versions") if evidence.versions else None,
        facts(evidence.versions or {}),
        element("h3", "SHA-256 of what was read") if evidence.hashes else None,
        facts(evidence.hashes or {}, mono=True),
    )
