"""What a validation found: routes with their figures, noise floors, laws of scale, negative controls, the verdict."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from loratools.operations.validation.truth import Spot, SpotError
from loratools.pipelines.closeness import Closeness, finite

if TYPE_CHECKING:
    from loratools.pipelines.running import Drawn

Verdict = Literal["pass", "fail", "inconclusive"]
Status = Literal["pass", "fail", "inconclusive", "refused", "differs"]

MODULES = 1e-4
"""The largest relative error of a module's change."""
LATENTS = 1e-5
"""The largest relative error of float32 latents."""
EFFECT = 100
"""How many times the tolerance the adapter's own effect on the latents must be, or nothing was tested."""


@dataclass(frozen=True, slots=True)
class Modules:
    """The changes of one route held to the truth, worst first; `missing` has no change at all, `scaled` one that is the
    truth times a number, `unexpected` are parameters that should not have changed.
    """

    spots: tuple[SpotError, ...]
    unexpected: tuple[str, ...] = ()

    @property
    def beyond(self) -> tuple[SpotError, ...]:
        """Those whose error is above their limit."""
        return tuple(item for item in self.spots if not item.holds)

    @property
    def worst(self) -> float:
        """The largest error."""
        return max((item.error for item in self.spots), default=0.0)

    @property
    def holds(self) -> bool:
        """Whether every change is what it should be, and nothing else changed."""
        return not self.beyond and not self.unexpected

    def counts(self) -> dict[str, int]:
        """How many of those beyond their limits are missing, scaled by one number, or otherwise wrong."""
        found = {"missing": 0, "scaled": 0, "wrong": 0}
        for item in self.beyond:
            found[fault(item)] += 1
        return found

    def to_dict(self) -> dict[str, Any]:
        """The JSON form, without the modules that hold."""
        worst = self.spots[0].spot.name if self.spots else None
        return {
            "of": len(self.spots),
            "right": len(self.spots) - len(self.beyond),
            **self.counts(),
            "worst": finite(self.worst),
            "worst_module": worst,
            "wrong_modules": [
                {"module": item.spot.name, "error": finite(item.error), "ratio": finite(item.ratio), "is": fault(item)}
                for item in self.beyond
            ],
            "unexpected": list(self.unexpected),
        }


def fault(item: SpotError) -> Literal["missing", "scaled", "wrong"]:
    """What is wrong with a change: there is none, it is the right one times a number, or it is another one."""
    if item.ratio == 0 and item.error == 1:
        return "missing"
    rest = item.error**2 - (item.ratio - 1) ** 2  # of the part that no scale explains
    return "scaled" if math.isfinite(item.error) and rest <= (MODULES * max(1.0, abs(item.ratio))) ** 2 else "wrong"


@dataclass(frozen=True)
class Route:
    """One way of the adapters into the pipeline, and how far it is from the reference.

    `judged` compares in float32 (or in the dtype, where that pass could not be made), `in_dtype` in the dtype.
    `drawn` are the pictures of the dtype's pass, one a scene; `making` are the seconds that its files took, `seconds`
    those of loading or adding them, measuring and drawing.
    """

    name: str
    status: Status
    explains: str
    decides: bool = True
    remarks: tuple[str, ...] = ()
    modules: Modules | None = None
    judged: Closeness | None = None
    in_dtype: Closeness | None = None
    drawn: tuple[Drawn, ...] = ()
    making: float = 0.0
    seconds: float = 0.0
    peak_bytes: int = 0

    def to_dict(self) -> dict[str, Any]:
        """The JSON form."""
        return {
            "route": self.name,
            "status": self.status,
            "explains": self.explains,
            "decides": self.decides,
            "remarks": list(self.remarks),
            "modules": self.modules.to_dict() if self.modules else None,
            "judged": self.judged.to_dict() if self.judged else None,
            "in_dtype": self.in_dtype.to_dict() if self.in_dtype else None,
            "making_seconds": round(self.making, 3),
            "seconds": round(self.seconds, 3),
            "peak_bytes": self.peak_bytes,
        }


@dataclass(frozen=True, slots=True)
class Floor:
    """One measure of noise: the same thing done twice, and how far the two lie apart."""

    name: str
    explains: str
    closeness: Closeness

    def to_dict(self) -> dict[str, Any]:
        """The JSON form."""
        return {"floor": self.name, "explains": self.explains, **self.closeness.to_dict()}


@dataclass(frozen=True, slots=True)
class Law:
    """A promise about scales: what must hold, what was measured, and the most that is allowed (0: bit for bit)."""

    name: str
    explains: str
    error: float
    limit: float

    @property
    def holds(self) -> bool:
        """Whether it does."""
        return self.error <= self.limit

    def to_dict(self) -> dict[str, Any]:
        """The JSON form."""
        return {
            "law": self.name,
            "explains": self.explains,
            "error": finite(self.error),
            "limit": self.limit,
            "holds": self.holds,
        }


@dataclass(frozen=True, slots=True)
class Control:
    """A deliberate mistake. `modules` and `latents` are its errors in float32; `in_dtype` that of the latents in the
    dtype, where it was seen only if that is more than twice the noise there (`seen_in_dtype`).
    """

    name: str
    explains: str
    modules: float
    latents: float
    by_modules: bool
    by_latents: bool
    in_dtype: float | None = None
    seen_in_dtype: bool | None = None

    @property
    def caught(self) -> bool:
        """Whether the check fails as it must."""
        return self.by_modules or self.by_latents

    def to_dict(self) -> dict[str, Any]:
        """The JSON form."""
        return {
            "control": self.name,
            "explains": self.explains,
            "caught": self.caught,
            "modules": finite(self.modules),
            "latents": finite(self.latents),
            "caught_by_modules": self.by_modules,
            "caught_by_latents": self.by_latents,
            "latents_in_dtype": None if self.in_dtype is None else finite(self.in_dtype),
            "seen_in_dtype": self.seen_in_dtype,
        }


@dataclass(frozen=True)
class Validation:
    """The result of `validate`."""

    pipeline: Mapping[str, Any]
    adapters: tuple[Mapping[str, Any], ...]
    parameters: Mapping[str, Any]
    verdict: Verdict
    reasons: tuple[str, ...]
    effect: float
    dtype: str
    judged_in: str
    routes: tuple[Route, ...]
    floors: tuple[Floor, ...]
    laws: tuple[Law, ...]
    controls: tuple[Control, ...]
    not_held: tuple[tuple[str, str], ...]
    warnings: tuple[str, ...]
    versions: Mapping[str, str]
    scenes: tuple[tuple[str, int], ...]
    base: tuple[Drawn, ...] = ()
    report: tuple[Path, ...] = field(default=())

    @property
    def passed(self) -> bool:
        """Whether the verdict is "pass"."""
        return self.verdict == "pass"

    def route(self, name: str) -> Route:
        """The route of that name; raises KeyError."""
        found = next((route for route in self.routes if route.name == name), None)
        if found is None:
            raise KeyError(name)
        return found

    def to_dict(self) -> dict[str, Any]:
        """The JSON document."""
        return {
            "schema": "loratools.validate/1",
            "verdict": self.verdict,
            "reasons": list(self.reasons),
            "pipeline": dict(self.pipeline),
            "adapters": [dict(item) for item in self.adapters],
            "parameters": dict(self.parameters),
            "dtype": self.dtype,
            "judged_in": self.judged_in,
            "tolerance": {"modules": MODULES, "latents": LATENTS, "effect": EFFECT * LATENTS},
            "effect": finite(self.effect),
            "scenes": [{"prompt": prompt, "seed": seed} for prompt, seed in self.scenes],
            "routes": [route.to_dict() for route in self.routes],
            "not_held": [{"route": name, "why": why} for name, why in self.not_held],
            "floors": [floor.to_dict() for floor in self.floors],
            "scale": [law.to_dict() for law in self.laws],
            "controls": [control.to_dict() for control in self.controls],
            "modules": self._modules(),
            "warnings": list(self.warnings),
            "versions": dict(self.versions),
            "report": [str(path) for path in self.report],
        }

    def _modules(self) -> list[dict[str, Any]]:
        """Every parameter with its error in every route, the worst first."""
        errors: dict[Spot, dict[str, float | None]] = {}
        facts: dict[Spot, SpotError] = {}
        for route in self.routes:
            for item in route.modules.spots if route.modules else ():
                errors.setdefault(item.spot, {})[route.name] = finite(item.error)
                if route.decides or item.spot not in facts:
                    facts[item.spot] = item
        order = sorted(errors, key=lambda spot: -max(_large(error) for error in errors[spot].values()))
        return [
            {
                "module": spot.name,
                "norm": facts[spot].norm,
                "weight": facts[spot].base,
                "rounding": facts[spot].rounding,
                "limit": facts[spot].limit,
                "errors": errors[spot],
            }
            for spot in order
        ]


def _large(error: float | None) -> float:
    return math.inf if error is None else error
