"""The values that a report is made from: what was compared, what came out, and how far it lay from the reference."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Pixels = NDArray[np.uint8]

Status = Literal["pass", "fail", "inconclusive", "refused", "differs", "info"]
Verdict = Literal["pass", "fail", "inconclusive"]
BASE = "base"
REFERENCE = "reference"


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured number. `value` None means not measured, and `remark` says why.

    `limit` is what the judgement allows, `floor` what the same measure gives where nothing differs (the noise floor).
    `better` says which way is better: "low" for errors, "high" for PSNR and SSIM. `unit` is printed behind the number.
    """

    name: str
    value: float | None
    limit: float | None = None
    floor: float | None = None
    better: Literal["low", "high"] = "low"
    unit: str = ""
    remark: str = ""

    @property
    def within(self) -> bool | None:
        """Whether the value keeps its limit; None where there is no value or no limit."""
        if self.value is None or self.limit is None:
            return None
        return self.value <= self.limit if self.better == "low" else self.value >= self.limit


@dataclass(frozen=True, slots=True)
class Panel:
    """One picture of a scene: what a route made of the prompt. `pixels` is uint8 [height, width, 3], or None where the
    route made none (refused, failed), which `remarks` explain. `figures` compare it with the scene's reference.
    """

    route: str
    status: Status
    pixels: Pixels | None
    figures: tuple[Figure, ...] = ()
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Scene:
    """One prompt at one seed through every route. The panels named BASE and REFERENCE are what others are held to."""

    prompt: str
    seed: int
    panels: tuple[Panel, ...]

    def panel(self, route: str) -> Panel | None:
        """The panel of a route, or None."""
        return next((panel for panel in self.panels if panel.route == route), None)


@dataclass(frozen=True, slots=True)
class Route:
    """One row of the table of routes: its worst figures over all scenes, and what there is to say about it.

    `explains` is one sentence on what the route is; `seconds` and `peak_bytes` are what it took. `decides` is whether
    the verdict depends on it.
    """

    name: str
    status: Status
    figures: tuple[Figure, ...] = ()
    explains: str = ""
    remarks: tuple[str, ...] = ()
    modules: tuple[str, ...] = ()
    seconds: float | None = None
    peak_bytes: int | None = None
    decides: bool = True


@dataclass(frozen=True, slots=True)
class ModuleRow:
    """One module of one route: the relative error of its delta against the reference's, and the reference's norm.

    `ratio` is ⟨got, reference⟩ / ⟨reference, reference⟩: 1 where only noise differs, 0.5 where a scale is halved.
    """

    component: str
    path: str
    route: str
    error: float
    norm: float | None = None
    ratio: float | None = None
    limit: float | None = None


@dataclass(frozen=True, slots=True)
class Noise:
    """One measured noise floor: what was run twice, and how far the two lay apart."""

    name: str
    figures: tuple[Figure, ...]
    explains: str = ""


@dataclass(frozen=True, slots=True)
class Control:
    """One deliberate mistake, and whether the check caught it. `visible_in` are the measures that saw it."""

    name: str
    caught: bool
    figures: tuple[Figure, ...]
    explains: str = ""
    visible_in: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Law:
    """One promise about scales and order (scale 0 equals the base, removal restores): what must hold, and whether."""

    name: str
    status: Status
    figures: tuple[Figure, ...] = ()
    explains: str = ""


@dataclass(frozen=True, slots=True)
class Evidence:
    """Everything a report shows. `facts` name the inputs; `repeat` is the command; `versions` and `hashes` go with it.

    `summary` is one sentence that explains the verdict to somebody who has never seen the tool. `document` is the
    JSON of the operation, written beside the page as report.json.
    """

    title: str
    verdict: Verdict
    summary: str
    routes: tuple[Route, ...]
    scenes: tuple[Scene, ...] = ()
    facts: Mapping[str, str] | None = None
    modules: tuple[ModuleRow, ...] = ()
    noise: tuple[Noise, ...] = ()
    controls: tuple[Control, ...] = ()
    laws: tuple[Law, ...] = ()
    repeat: str = ""
    versions: Mapping[str, str] | None = None
    hashes: Mapping[str, str] | None = None
    remarks: tuple[str, ...] = ()
    document: Mapping[str, Any] | None = None
