"""A plot as one HTML file: maps and spectra as SVG, which any browser shows sharp at any size, and fetches nothing."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import median

from loratools.reports.block_map import BlockMap
from loratools.reports.markup import Markup, element, joined
from loratools.reports.page import framed
from loratools.reports.plot import Plot, Scale
from loratools.reports.tables import remarks, table
from loratools.reports.text import number

WIDE, HIGH = 30, 18  # of one cell, in pixels
LETTER = 6.7  # the width of one letter of the labels, in pixels, at most
LARGEST_SHOWN = 30
_LINES = ("#4f7bd9", "#d1495b", "#1f9e89", "#c08400", "#9a5fb5")  # of components: seen on white and on black


def written(plot: Plot) -> str:
    """The document."""
    scale = plot.scale
    parts = [
        element(
            "header",
            element("h1", plot.title),
            element("p", f"{plot.measure}, for every module: one row for each block, one column for each layer."),
            _key(scale),
            remarks(plot.remarks),
            class_="plot-head",
        ),
        *(element("section", element("h2", one.title), _map(one, scale, plot.measure)) for one in plot.maps),
    ]
    if any(plot.spectra.values()):
        parts += [
            element(
                "section",
                element("h2", "Spectra"),
                element(
                    "p",
                    "The largest singular values of every change, each over the module's largest. A line that falls "
                    "steeply could do with a lower rank. The thick line is the median of a component.",
                    class_="note",
                ),
                _spectra(plot.spectra),
            )
        ]
    parts.append(_largest(plot))
    return framed(plot.title, joined(parts))


def _key(scale: Scale) -> Markup:
    """What the colours mean."""
    steps = 48
    ratio = scale.high / scale.low
    bars = (
        element("rect", x=at * 5, y=0, width=5.5, height=14, fill=scale.colour(scale.low * ratio ** (at / (steps - 1))))
        for at in range(steps)
    )
    strip = element("svg", *bars, width=steps * 5, height=14, role="img", aria_label="colours from small to large")
    ends = (element("span", number(scale.low)), strip, element("span", number(scale.high)))
    marks = ("× means 0", "– means not measured")
    return element("p", *ends, *(element("span", mark, class_="note") for mark in marks), class_="plot-key")


def _map(one: BlockMap, scale: Scale, measure: str) -> Markup:
    left = round(max(len(block) for block in one.blocks) * LETTER) + 10
    top = round(max(len(layer) for layer in one.layers) * LETTER * 0.71) + 14
    right = round(len(one.layers[-1]) * LETTER * 0.71) + 10
    width, height = left + WIDE * len(one.layers) + right, top + HIGH * len(one.blocks) + 2
    parts: list[Markup] = []
    for at, layer in enumerate(one.layers):
        x = left + WIDE * at + WIDE // 2
        parts.append(element("text", layer, transform=f"translate({x} {top - 6}) rotate(-45)"))
    for at, block in enumerate(one.blocks):
        parts.append(element("text", block, x=left - 8, y=top + HIGH * at + 13, text_anchor="end"))
    for (block, layer), value in one.values.items():
        x, y = left + WIDE * one.layers.index(layer), top + HIGH * one.blocks.index(block)
        parts.append(_cell(x, y, value, scale, f"{block} {layer}: {measure} {number(value)}"))
    svg = element("svg", *parts, viewBox=f"0 0 {width} {height}", width=width, height=height, role="img", class_="map")
    return element("div", svg, class_="scroll plot-map")


def _cell(x: int, y: int, value: float | None, scale: Scale, words: str) -> Markup:
    """One module; what was not measured, or is 0, has a sign in place of a colour."""
    drawn = value is not None and value > 0
    box = element(
        "rect",
        x=x,
        y=y,
        width=WIDE - 1,
        height=HIGH - 1,
        fill=scale.colour(value) if value is not None and drawn else "none",
        class_=None if drawn else "bare",
    )
    sign = None if drawn else element("text", "–" if value is None else "×", x=x + WIDE / 2 - 4, y=y + 13)
    return element("g", element("title", words), box, sign)


def _spectra(spectra: Mapping[str, Sequence[float]]) -> Markup:
    """A line for each module, thin, and the median of each component, thick; both axes start at 1."""
    groups: dict[str, list[Sequence[float]]] = {}
    for module, values in spectra.items():
        if values and values[0] > 0:
            groups.setdefault(module.rpartition(":")[0], []).append([value / values[0] for value in values])
    most = max(len(line) for lines in groups.values() for line in lines)
    low = min((v for lines in groups.values() for line in lines for v in line if v > 0), default=1.0)
    decades = max(1, min(8, math.ceil(-math.log10(low))))
    width, height, left, top = 680, 300, 60, 12

    def point(at: int, value: float) -> str:
        depth = min(decades, -math.log10(value)) if value > 0 else decades
        return f"{left + (width - left - 20) * at / max(1, most - 1):.1f},{top + height * depth / decades:.1f}"

    parts: list[Markup] = []
    for decade in range(decades + 1):
        y = round(top + height * decade / decades, 1)
        parts.append(element("line", x1=left, x2=width - 20, y1=y, y2=y, class_="grid"))
        parts.append(element("text", number(10.0**-decade), x=left - 8, y=y + 4, text_anchor="end"))
    for at in range(most):
        x = point(at, 1.0).partition(",")[0]
        parts.append(element("text", str(at + 1), x=x, y=top + height + 18, text_anchor="middle"))
    for index, (component, lines) in enumerate(groups.items()):
        colour = _LINES[index % len(_LINES)]
        faint = max(0.06, min(0.5, 12 / len(lines)))
        for line in lines:
            way = " ".join(point(at, value) for at, value in enumerate(line))
            parts.append(element("polyline", points=way, stroke=colour, stroke_opacity=round(faint, 2), class_="one"))
        middle = [median(line[at] for line in lines if len(line) > at) for at in range(max(map(len, lines)))]
        way = " ".join(point(at, value) for at, value in enumerate(middle))
        parts.append(element("polyline", points=way, stroke=colour, class_="middle"))
        parts.append(element("text", f"— {component}", x=left + 14, y=top + height - 12 - 18 * index, fill=colour))
    sizes = {"width": width, "height": top + height + 30}
    box = f"0 0 {sizes['width']} {sizes['height']}"
    svg = element("svg", *parts, viewBox=box, role="img", class_="spectra", **sizes)
    return element("div", svg, class_="scroll plot-map")


def _largest(plot: Plot) -> Markup:
    """The modules with the largest numbers, as a table."""
    rows = [
        (one.component, block, layer, value)
        for one in plot.maps
        for (block, layer), value in one.values.items()
        if value is not None
    ]
    rows.sort(key=lambda row: -row[3])
    shown = rows[:LARGEST_SHOWN]
    caption = f"the largest {len(shown)} of {len(rows):,}" if len(rows) > len(shown) else "all, the largest first"
    cells = [(f"{block}.{layer}", component, number(value)) for component, block, layer, value in shown]
    return element("section", element("h2", "Largest"), table(caption, ("module", "component", plot.measure), cells))
