"""A figure as a bar on a logarithmic axis: its value, the noise floor, and where its limit lies."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from loratools.reports.evidence import Figure
from loratools.reports.markup import Markup, element
from loratools.reports.text import beside, number, spoken

WIDTH = 116


class Axis(NamedTuple):
    """The decades that all figures of one name are drawn on."""

    low: float
    high: float

    def at(self, value: float) -> float:
        """The place of a value, cut to the axis."""
        share = (math.log10(value) - self.low) / (self.high - self.low) if value > 0 else 0.0
        return round(WIDTH * min(1.0, max(0.0, share)), 1)


def axes(figures: Iterable[Figure]) -> Mapping[str, Axis]:
    """One axis for each name of figures that have limits and where less is better, a decade wider than its numbers."""
    seen: dict[str, list[float]] = {}
    for figure in figures:
        if figure.better == "low" and figure.limit is not None:
            values = (figure.value, figure.limit, figure.floor)
            seen.setdefault(figure.name, []).extend(
                value for value in values if value is not None and 0 < value < math.inf
            )
    return {
        name: Axis(math.floor(math.log10(min(values))) - 1, math.ceil(math.log10(max(values))) + 1)
        for name, values in seen.items()
        if values
    }


def bar(figure: Figure, axis: Axis | None, *, right: bool) -> Markup | None:
    """The bar, or None where a figure has no limit to be drawn against."""
    if axis is None or figure.value is None or not figure.limit or math.isnan(figure.value):
        return None
    limit = axis.at(figure.limit)
    return element(
        "svg",
        element("rect", class_="track", x=0, y=4.5, width=WIDTH, height=3),
        element("rect", class_="beyond", x=limit, y=1, width=round(WIDTH - limit, 1), height=10),
        None if not figure.floor else element("rect", class_="floor", x=axis.at(figure.floor), y=0, width=2, height=12),
        element("circle", class_="value" if right else "value over", cx=axis.at(figure.value), cy=6, r=4.5),
        class_="bar",
        viewBox=f"0 0 {WIDTH} 12",
        role="img",
        aria_label=spoken(figure),
    )


def value(figure: Figure, *, right: bool = True) -> Markup:
    """The number alone, marked where it is not right."""
    words = number(figure.value, figure.unit)
    return element("span", words, class_="figure" if right else "figure over", title=figure.remark or None)


def cell(figure: Figure, axis: Axis | None = None, *, right: bool | None = None) -> Markup:
    """A figure in a table: the number, its bar, and what it is held to.

    `right` says whether it is as it should be: by itself, whether it keeps its limit.
    """
    if figure.value is None:
        return element("span", "not measured", class_="note", title=figure.remark or None)
    good = figure.within is not False if right is None else right
    held = beside(figure)
    return element(
        "div",
        value(figure, right=good),
        bar(figure, axis, right=good),
        element("span", held, class_="beside") if held else None,
    )
