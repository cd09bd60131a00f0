"""A plot as a PNG file, drawn by matplotlib (the extra `report`) without a screen."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from textwrap import wrap
from typing import Any

from loratools.reports.block_map import BlockMap
from loratools.reports.plot import Plot, Scale
from loratools.reports.text import number, shown

_DPI = 110
_TALLEST = 240  # inches; matplotlib draws no more than 2^16 pixels


def drawn(plot: Plot) -> bytes:
    """The PNG's bytes: no time in it, the same for the same plot."""
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    spectra = {name: values for name, values in plot.spectra.items() if values and values[0] > 0}
    heights = [0.6 + 0.2 * len(one.blocks) for one in plot.maps] + ([3.2] if spectra else [])
    # Names are text: no dollar sign in them starts a formula.
    with mpl.rc_context({"font.family": "DejaVu Sans", "font.size": 8, "text.parse_math": False}):
        figure = Figure(
            figsize=(11, min(_TALLEST, sum(heights) + 1.2 * len(heights) + 1)), dpi=_DPI, layout="constrained"
        )
        axes = figure.subplots(len(heights), 1, squeeze=False, height_ratios=heights)[:, 0]
        title = "\n".join(wrap(shown(plot.title), 110))
        figure.suptitle(f"{title}\n{plot.measure}, by block and layer", fontsize=11)
        scale = plot.scale
        for one, place in zip(plot.maps, axes, strict=False):
            _map(place, one, scale)
        if spectra:
            _spectra(axes[-1], spectra)
        buffer = io.BytesIO()
        FigureCanvasAgg(figure)
        figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def _map(place: Any, one: BlockMap, scale: Scale) -> None:
    """One map on its axes; × is 0, – was not measured, and what does not exist is bare."""
    import numpy as np
    from matplotlib.colors import LogNorm

    numbers = np.full((len(one.blocks), len(one.layers)), np.nan)
    signs = []
    for (block, layer), value in one.values.items():
        at = (one.blocks.index(block), one.layers.index(layer))
        if value is None or value <= 0:
            signs.append((*at, "–" if value is None else "×"))
        else:
            numbers[at] = min(value, scale.high)
    high = scale.high if scale.high > scale.low else math.nextafter(scale.low, math.inf)
    image = place.imshow(numbers, aspect="auto", cmap="viridis", norm=LogNorm(scale.low, high))
    for row, column, sign in signs:
        place.text(column, row, sign, ha="center", va="center")
    place.set_title(shown(one.title), loc="left")
    place.set_yticks(range(len(one.blocks)), [shown(block) for block in one.blocks], fontsize=7)
    place.set_xticks(range(len(one.layers)), [shown(layer) for layer in one.layers], rotation=45, ha="right")
    ends = sorted({scale.low, math.sqrt(scale.low * high), high})
    key = place.figure.colorbar(image, ax=place, pad=0.01, format=lambda value, _: number(value))
    key.ax.minorticks_off()
    key.set_ticks(ends)


def _spectra(place: Any, spectra: Mapping[str, Sequence[float]]) -> None:
    """All spectra, each over its largest value, one colour for each component."""
    components = list(dict.fromkeys(name.rpartition(":")[0] for name in spectra))
    for name, values in spectra.items():
        line = [value / values[0] for value in values]
        colour = f"C{components.index(name.rpartition(':')[0]) % 10}"
        place.semilogy(range(1, len(line) + 1), line, color=colour, alpha=0.25, linewidth=0.8)
    for component in components:
        place.plot([], [], color=f"C{components.index(component) % 10}", label=shown(component))
    place.yaxis.set_major_formatter(lambda value, _: number(float(f"{value:.3g}")))
    place.yaxis.set_minor_formatter(lambda value, _: number(float(f"{value:.3g}")))
    place.set_title("singular values over the largest", loc="left")
    place.legend()
