"""What resizing makes of each layer, the plan that says so, and the result that was measured."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loratools.operations.outputs.proof import ProofReport


@dataclass(frozen=True, slots=True)
class Resized:
    """One layer: its kind, its rank before and after, ‖Δ − Δ'‖ / ‖Δ‖, and ‖Δ‖; the last two None where not computed.

    `norm` is that of the low-rank delta, within the norm of a DoRA.
    """

    module: str
    kind: str
    old_rank: int | None
    new_rank: int | None
    error: float | None
    norm: float | None

    def to_dict(self) -> dict[str, Any]:
        """The JSON form."""
        return {
            "module": self.module,
            "kind": self.kind,
            "old_rank": self.old_rank,
            "new_rank": self.new_rank,
            "error": self.error,
        }


def total_error(layers: Sequence[Resized]) -> float | None:
    """‖Δ − Δ'‖ / ‖Δ‖ over the whole set; None while some layer's is not known."""
    if any(item.error is None or item.norm is None for item in layers):
        return None
    norm = math.fsum((item.norm or 0.0) ** 2 for item in layers)
    lost = math.fsum(((item.norm or 0.0) * (item.error or 0.0)) ** 2 for item in layers)
    return math.sqrt(lost / norm) if norm else 0.0


def ranks(layers: Sequence[Resized]) -> list[dict[str, int]]:
    """How many layers went from which rank to which, the most frequent first."""
    counts = Counter((item.old_rank, item.new_rank) for item in layers if item.old_rank is not None)
    return [
        {"old": old or 0, "new": new or 0, "layers": count}
        for (old, new), count in sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    ]


@dataclass(frozen=True, slots=True)
class ResizePlan:
    """What will be written: `layers` with their new ranks, `size` of the finished file (or folder) in bytes.

    Errors are known where singular values were needed to choose the ranks, or were asked for.
    """

    source: str
    source_format: str
    format: str
    architecture: str | None
    layers: tuple[Resized, ...]
    size: int
    old_size: int
    lost: tuple[str, ...]
    notes: tuple[str, ...]
    path: str | None = None
    free_disk: int | None = None

    @property
    def error(self) -> float | None:
        """The relative error over the whole set, or None."""
        return total_error(self.layers)

    def to_dict(self) -> dict[str, Any]:
        """The JSON document."""
        return {
            "schema": "loratools.resize-plan/1",
            "source": self.source,
            "source_format": self.source_format,
            "format": self.format,
            "architecture": self.architecture,
            "size": self.size,
            "old_size": self.old_size,
            "error": self.error,
            "ranks": ranks(self.layers),
            "layers": [item.to_dict() for item in self.layers],
            "lost": list(self.lost),
            "notes": list(self.notes),
            "path": self.path,
            "free_disk": self.free_disk,
        }


@dataclass(frozen=True)
class ResizeResult:
    """What was written, and its proof: each layer of the output as re-opened against the source's factors.

    `error` is what the ranks cost over the whole set; the proof's worst error of a layer holds the rounding too.
    """

    path: Path
    format: str
    architecture: str | None
    size: int
    old_size: int
    payload_sha256: str | None
    proof: ProofReport | None
    layers: tuple[Resized, ...]
    lost: tuple[str, ...]
    warnings: tuple[str, ...]
    skipped: bool = False

    @property
    def error(self) -> float | None:
        """‖Δ − Δ'‖ / ‖Δ‖ over the whole set, from the singular values left out; None where nothing was done."""
        return total_error(self.layers)

    def to_dict(self) -> dict[str, Any]:
        """The JSON document."""
        return {
            "schema": "loratools.resize/1",
            "path": str(self.path),
            "format": self.format,
            "architecture": self.architecture,
            "size": self.size,
            "old_size": self.old_size,
            "payload_sha256": self.payload_sha256,
            "error": self.error,
            "ranks": ranks(self.layers),
            "layers": [item.to_dict() for item in self.layers],
            "proof": self.proof.to_dict() if self.proof else None,
            "lost": list(self.lost),
            "warnings": list(self.warnings),
            "skipped": self.skipped,
        }
