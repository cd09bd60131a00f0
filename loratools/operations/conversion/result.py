"""The result of a conversion that was saved."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loratools.operations.conversion.losses import Losses
from loratools.operations.outputs.proof import ProofReport

if TYPE_CHECKING:
    from loratools.operations.conversion.to_kind import Cost


@dataclass(frozen=True)
class Conversion:
    """What was written, and its proof. `skipped` when the output was already made from these inputs; `losses` are those
    of the runtime that it was made for.
    """

    path: Path
    format: str
    architecture: str | None
    size: int
    payload_sha256: str | None
    proof: ProofReport | None
    lost: tuple[str, ...]
    warnings: tuple[str, ...]
    skipped: bool = False
    costs: tuple[Cost, ...] = ()
    losses: Losses | None = None

    def to_dict(self) -> dict[str, Any]:
        """The JSON document."""
        return {
            "schema": "loratools.convert/1",
            "path": str(self.path),
            "format": self.format,
            "architecture": self.architecture,
            "size": self.size,
            "payload_sha256": self.payload_sha256,
            "proof": self.proof.to_dict() if self.proof else None,
            "lost": list(self.lost),
            "warnings": list(self.warnings),
            "skipped": self.skipped,
            "to_kind": [cost.to_dict() for cost in self.costs],
            "for": self.losses.to_dict() if self.losses else None,
        }
