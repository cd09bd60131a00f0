"""What combining makes of each layer, the plan that says so, and the result that was measured."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loratools.operations.outputs.proof import ProofReport


@dataclass(frozen=True, slots=True)
class Combined:
    """One layer: the numbers of the inputs that change it, their ranks, the kind and rank it has now, and what cutting
    to that rank cost: ‖Δ − Δ'‖ / ‖Δ‖, for a combined delta of norm ‖Δ‖; None where not computed.
    """

    module: str
    inputs: tuple[int, ...]
    ranks: tuple[int, ...]
    kind: str
    rank: int | None
    error: float | None
    norm: float | None

    def to_dict(self) -> dict[str, Any]:
        """The JSON form."""
        return {
            "module": self.module,
            "inputs": list(self.inputs),
            "ranks": list(self.ranks),
            "kind": self.kind,
            "rank": self.rank,
            "error": self.error,
        }


def total_error(layers: Sequence[Combined]) -> float | None:
    """The relative error over the layers that were cut, 0 where none was; None while one of them is not known."""
    cut = [item for item in layers if item.error != 0.0]
    if any(item.error is None or item.norm is None for item in cut):
        return None
    norm = math.fsum((item.norm or 0.0) ** 2 for item in cut)
    lost = math.fsum(((item.norm or 0.0) * (item.error or 0.0)) ** 2 for item in cut)
    return math.sqrt(lost / norm) if norm else 0.0


def rank_counts(layers: Sequence[Combined]) -> dict[str, int]:
    """Rank → how many layers have it."""
    counts = Counter(item.rank for item in layers if item.rank is not None)
    return {str(rank): counts[rank] for rank in sorted(counts)}


@dataclass(frozen=True, slots=True)
class CombinePlan:
    """What will be written, and from what: (name, weight) of the inputs; `size` is that of the finished file."""

    inputs: tuple[tuple[str, float], ...]
    method: str
    format: str
    architecture: str | None
    layers: tuple[Combined, ...]
    size: int
    lost: tuple[str, ...]
    notes: tuple[str, ...]
    path: str | None = None
    free_disk: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """The JSON document."""
        return {
            "schema": "loratools.combine-plan/1",
            "inputs": [{"path": name, "weight": weight} for name, weight in self.inputs],
            "method": self.method,
            "format": self.format,
            "architecture": self.architecture,
            "size": self.size,
            "ranks": rank_counts(self.layers),
            "layers": [item.to_dict() for item in self.layers],
            "lost": list(self.lost),
            "notes": list(self.notes),
            "path": self.path,
            "free_disk": self.free_disk,
        }


@dataclass(frozen=True)
class CombineResult:
    """What was written, and its proof: each layer of the output as re-opened against the weighted sum of the inputs'
    deltas (ties, dare and magnitude_prune: against the delta that they elect).
    """

    path: Path
    inputs: tuple[tuple[str, float], ...]
    method: str
    format: str
    architecture: str | None
    size: int
    payload_sha256: str | None
    proof: ProofReport | None
    layers: tuple[Combined, ...]
    lost: tuple[str, ...]
    warnings: tuple[str, ...]
    skipped: bool = False

    @property
    def error(self) -> float | None:
        """What cutting to ranks cost over the layers that were cut, from the singular values left out."""
        return total_error(self.layers)

    def to_dict(self) -> dict[str, Any]:
        """The JSON document."""
        return {
            "schema": "loratools.combine/1",
            "path": str(self.path),
            "inputs": [{"path": name, "weight": weight} for name, weight in self.inputs],
            "method": self.method,
            "format": self.format,
            "architecture": self.architecture,
            "size": self.size,
            "payload_sha256": self.payload_sha256,
            "error": self.error,
            "ranks": rank_counts(self.layers),
            "layers": [item.to_dict() for item in self.layers],
            "proof": self.proof.to_dict() if self.proof else None,
            "lost": list(self.lost),
            "warnings": list(self.warnings),
            "skipped": self.skipped,
        }
