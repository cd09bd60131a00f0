"""The report of a merge: what matched where, how large each change is, and how much of it the dtype could hold."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FADING = 0.1
"""From this share of a change lost to rounding on, a layer is warned about."""


@dataclass(frozen=True, slots=True)
class MergedLayer:
    """One tensor that was changed: ‖Δ‖ / ‖W‖, and ‖W' − (W + Δ)‖ / ‖Δ‖ (what the dtype could not hold); NaN where
    values that are not finite went along.
    """

    name: str
    key: str
    adapters: int
    ratio: float
    lost: float

    def to_dict(self) -> dict[str, Any]:
        """The JSON form; a change of a zero weight has no ratio."""
        return {
            "layer": self.name,
            "key": self.key,
            "adapters": self.adapters,
            "ratio": self.ratio if math.isfinite(self.ratio) else None,
            "lost": self.lost if math.isfinite(self.lost) else None,
        }


@dataclass(frozen=True, slots=True)
class UnmatchedModule:
    """A module of an adapter that the base has no place for, why, and the nearest path that it has."""

    module: str
    why: str
    nearest: str | None

    def to_dict(self) -> dict[str, Any]:
        """The JSON form."""
        return {"module": self.module, "why": self.why, "nearest": self.nearest}


@dataclass(frozen=True, slots=True)
class Applied:
    """One adapter of a merge: its modules by component, how many of them the base holds, and the others."""

    name: str
    format: str
    kinds: tuple[str, ...]
    scale: float
    modules: dict[str, int]
    matched: dict[str, int]
    unmatched: tuple[UnmatchedModule, ...]
    left_out: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The JSON form."""
        return {
            "path": self.name,
            "format": self.format,
            "kinds": list(self.kinds),
            "scale": self.scale,
            "modules": self.modules,
            "matched": self.matched,
            "unmatched": [item.to_dict() for item in self.unmatched],
            "left_out": list(self.left_out),
        }


@dataclass(frozen=True)
class MergePlan:
    """What a merge will do: the tensors changed, cast and copied, the files written, carried along and left out."""

    base: str
    architecture: str | None
    adapters: tuple[Applied, ...]
    changed: int
    cast: int
    copied: int
    files: tuple[tuple[str, int, int], ...]
    beside: int
    left_out: tuple[str, ...]
    peak_memory: int
    warnings: tuple[str, ...]
    path: str | None = None
    free_disk: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """The JSON document."""
        return {
            "schema": "loratools.merge-plan/1",
            "base": self.base,
            "architecture": self.architecture,
            "adapters": [item.to_dict() for item in self.adapters],
            "changed": self.changed,
            "cast": self.cast,
            "copied": self.copied,
            "files": [{"name": name, "tensors": count, "bytes": size} for name, count, size in self.files],
            "beside": self.beside,
            "left_out": list(self.left_out),
            "peak_memory": self.peak_memory,
            "warnings": list(self.warnings),
            "path": self.path,
            "free_disk": self.free_disk,
        }


@dataclass(frozen=True)
class Merge:
    """What was merged and written. `skipped` when the output was already made from these inputs."""

    path: Path
    plan: MergePlan
    layers: tuple[MergedLayer, ...]
    size: int
    payload_sha256: str | None
    skipped: bool = False
    oddities: tuple[str, ...] = ()

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the plan says, and what the numbers say."""
        fading = [layer for layer in self.layers if layer.lost > FADING]
        found = [*self.plan.warnings, *self.oddities]
        if fading:
            worst = max(fading, key=lambda layer: layer.lost)
            found.append(
                f"{len(fading)} of {len(self.layers)} layers lose more than {FADING:.0%} of their change to rounding "
                f"(most: {worst.name}, {worst.lost:.0%}); --dtype F32 keeps it"
            )
        return tuple(found)

    def to_dict(self) -> dict[str, Any]:
        """The JSON document."""
        plan = self.plan
        return {
            "schema": "loratools.merge/1",
            "path": str(self.path),
            "base": plan.base,
            "architecture": plan.architecture,
            "adapters": [item.to_dict() for item in plan.adapters],
            "changed": plan.changed,
            "cast": plan.cast,
            "copied": plan.copied,
            "beside": plan.beside,
            "left_out": list(plan.left_out),
            "size": self.size,
            "payload_sha256": self.payload_sha256,
            "ratio": _rooted([layer.ratio for layer in self.layers]),
            "lost": max((layer.lost for layer in self.layers if math.isfinite(layer.lost)), default=0.0),
            "layers": [layer.to_dict() for layer in self.layers],
            "warnings": list(self.warnings),
            "skipped": self.skipped,
        }


def _rooted(ratios: list[float]) -> float | None:
    """The root mean square of the finite ratios, None without any."""
    finite = [ratio for ratio in ratios if math.isfinite(ratio)]
    return math.sqrt(math.fsum(ratio * ratio for ratio in finite) / len(finite)) if finite else None


def by_component(names: list[str]) -> dict[str, int]:
    """How many there are of each, in the order of their first."""
    return dict(Counter(names))
