"""A plot of numbers by module: a map of blocks and layers, and spectra, as one HTML or PNG file."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from loratools.errors import UsageError
from loratools.reports.block_map import BlockMap
from loratools.tensors.output import disk_errors, guard_output, sync_folder, temporary_beside
from loratools.tensors.produce import copy_plain
from loratools.tensors.source import LocalFile

SUFFIXES = (".html", ".png")
# Viridis in five steps (Smith and van der Walt, 2015): read alike in grey, and by most who see few colours.
_RAMP = ((68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37))


@dataclass(frozen=True, slots=True)
class Plot:
    """What is drawn: `measure` names the numbers of the maps; `spectra` are singular values, largest first."""

    title: str
    measure: str
    maps: tuple[BlockMap, ...]
    spectra: Mapping[str, Sequence[float]]
    remarks: tuple[str, ...] = ()

    @property
    def scale(self) -> Scale:
        """The one scale of colours for all maps."""
        return Scale.of([value for one in self.maps for value in one.values.values() if value is not None])


@dataclass(frozen=True, slots=True)
class Scale:
    """From a value to a place between 0 and 1, by its logarithm; `low` and `high` are the ends, both positive."""

    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Scale:
        """The scale of all values that are positive and finite."""
        drawn = [value for value in values if 0 < value < math.inf]
        return cls(min(drawn, default=1.0), max(drawn, default=1.0))

    def at(self, value: float) -> float:
        """The place of a positive value."""
        if value == math.inf or self.high <= self.low:
            return 1.0
        share = math.log(value / self.low) / math.log(self.high / self.low)
        return min(1.0, max(0.0, share))

    def colour(self, value: float) -> str:
        """The colour of a positive value, as #rrggbb."""
        place = self.at(value) * (len(_RAMP) - 1)
        left = min(int(place), len(_RAMP) - 2)
        share = place - left
        mixed = (round(a + (b - a) * share) for a, b in zip(_RAMP[left], _RAMP[left + 1], strict=True))
        return "#{:02x}{:02x}{:02x}".format(*mixed)


def guard_plot(path: str | os.PathLike[str], inputs: Sequence[LocalFile] = (), *, overwrite: bool = False) -> None:
    """Raise what `write_plot` would, before there is anything to draw: UsageError for a suffix that is neither .html
    nor .png and for a .png without matplotlib; OutputExists, OutputRefused and PathNotFound for the place.
    """
    place = Path(path)
    if place.suffix not in SUFFIXES:
        raise UsageError("a plot is a .png or an .html file", path=place, hint=f"name it {place.stem or 'plot'}.html")
    if place.suffix == ".png" and find_spec("matplotlib") is None:
        raise UsageError(
            "a plot as .png needs matplotlib, which is not installed",
            path=place,
            hint="pip install 'loratools[report]', or write an .html file, which needs nothing",
        )
    guard_output(place, inputs, overwrite=overwrite)


def write_plot(
    path: str | os.PathLike[str], plot: Plot, inputs: Sequence[LocalFile] = (), *, overwrite: bool = False
) -> Path:
    """Write a plot, whole or not at all; .html is one file that fetches nothing, .png is drawn by matplotlib."""
    place = Path(path)
    guard_plot(place, inputs, overwrite=overwrite)
    if place.suffix == ".png":
        from loratools.reports.plot_png import drawn

        content = drawn(plot)
    else:
        from loratools.reports.plot_html import written

        content = written(plot).encode("utf-8")
    temporary = temporary_beside(place)
    with disk_errors(place, len(content)):
        try:
            copy_plain(temporary, content)
            guard_output(place, inputs, overwrite=overwrite)
            temporary.replace(place)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        sync_folder(place.parent)
    return place
