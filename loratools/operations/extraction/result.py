"""The result of an extraction: what changed, what was kept of it at which error, and how the output was proven."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loratools.operations.extraction.factors import Extracted
from loratools.operations.outputs.proof import ProofReport

WORDS = {
    "layer": "layers",
    "norm": "norms",
    "bias": "biases",
    "embedding": "embeddings",
    "parameter": "parameters",
    "other": "others",
}
STATES = {"changed": "changed", "rounding": "within rounding", "identical": "identical", "left out": "left out"}


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer of the output: its rank, the relative error of its delta as stored, the share of ‖Δ‖² that the rank
    holds, ‖Δ‖, ‖Δ‖ / ‖W‖, and the energy at ranks 1, 2, 4, … up to where it was cut.
    """

    module: str
    shape: tuple[int, ...]
    rank: int
    error: float
    energy: float
    norm: float
    change: float | None
    curve: tuple[tuple[int, float], ...]

    @classmethod
    def of(cls, found: Extracted) -> Layer:
        """The report of one layer."""
        ranks = [rank for rank in _doubling(found.rank) if rank <= len(found.values)]
        return cls(
            found.twin.name,
            found.twin.base.shape,
            found.rank,
            found.error,
            found.energy(found.rank),
            found.norm,
            found.norm / found.weight if found.weight else None,
            tuple((rank, found.energy(rank)) for rank in ranks),
        )

    def to_dict(self) -> dict[str, Any]:
        """The JSON form."""
        return {
            "module": self.module,
            "shape": list(self.shape),
            "rank": self.rank,
            "error": self.error,
            "energy": self.energy,
            "norm": self.norm,
            "relative_change": self.change,
            "curve": [{"rank": rank, "energy": energy} for rank, energy in self.curve],
        }


@dataclass(frozen=True)
class Extraction:
    """What was written. `components` counts tensors by component, sort and state; `layers` are worst first; `error` and
    `energy` are of all layers with factors together; `curve` is the energy if every layer were cut at that rank.

    `measured` are layers whose error was measured again, in float64, from the output as re-opened and from both models.
    """

    path: Path
    base: str
    tuned: str
    format: str
    architecture: str | None
    dtype: str
    size: int
    payload_sha256: str | None
    components: Mapping[str, Mapping[str, Mapping[str, int]]]
    layers: tuple[Layer, ...]
    error: float
    energy: float
    curve: tuple[tuple[int, float], ...]
    stored: tuple[str, ...]
    left_out: tuple[str, ...]
    warnings: tuple[str, ...]
    proof: ProofReport | None
    measured: tuple[tuple[str, float], ...]
    loaders: Mapping[str, Any]
    skipped: bool = False

    def to_dict(self) -> dict[str, Any]:
        """The JSON document."""
        ranks = Counter(layer.rank for layer in self.layers)
        return {
            "schema": "loratools.extract/1",
            "path": str(self.path),
            "base": self.base,
            "tuned": self.tuned,
            "format": self.format,
            "architecture": self.architecture,
            "dtype": self.dtype,
            "size": self.size,
            "payload_sha256": self.payload_sha256,
            "components": {
                name: {sort: dict(counts) for sort, counts in by.items()} for name, by in self.components.items()
            },
            "ranks": {str(rank): count for rank, count in sorted(ranks.items())},
            "error": self.error,
            "energy": self.energy,
            "curve": [{"rank": rank, "energy": energy} for rank, energy in self.curve],
            "layers": [layer.to_dict() for layer in self.layers],
            "stored": list(self.stored),
            "left_out": list(self.left_out),
            "warnings": list(self.warnings),
            "proof": self.proof.to_dict() if self.proof else None,
            "measured": [{"module": name, "error": error} for name, error in self.measured],
            "loaders": dict(self.loaders),
            "skipped": self.skipped,
        }


def counted(found: Sequence[Extracted]) -> dict[str, dict[str, dict[str, int]]]:
    """component → sort → state → how many tensors."""
    counts: dict[str, dict[str, dict[str, int]]] = {}
    for item in found:
        sort = "norm" if item.twin.sort == "norm" else "bias" if item.twin.is_bias else item.twin.sort
        by_state = counts.setdefault(item.twin.target.component, {}).setdefault(WORDS[sort], {})
        by_state[STATES[item.state]] = by_state.get(STATES[item.state], 0) + 1
    return counts


def together(found: Sequence[Extracted]) -> tuple[float, float, tuple[tuple[int, float], ...]]:
    """(relative error, energy, energy curve) of all layers with factors as one."""
    layers = [item for item in found if item.has_factors]
    square = math.fsum(item.norm**2 for item in layers)
    if not square:
        return 0.0, 1.0, ()
    error = math.sqrt(math.fsum((item.error * item.norm) ** 2 for item in layers) / square)

    def energy(rank: int | None) -> float:
        parts = (item.energy(item.rank if rank is None else min(rank, item.rank)) * item.norm**2 for item in layers)
        return math.fsum(parts) / square

    curve = tuple((rank, energy(rank)) for rank in _doubling(max(item.rank for item in layers)))
    return error, energy(None), curve


def _doubling(last: int) -> list[int]:
    """1, 2, 4, … and the last."""
    found = [1]
    while 2 * found[-1] < last:
        found.append(2 * found[-1])
    return [*found, last] if found[-1] != last else found
