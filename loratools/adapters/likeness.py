"""What tells a fine-tune's delta from the difference of two strangers: how alike the weights are, how white the delta.

The entries of white noise [m, n] of variance s² have a largest singular value near s·(√m + √n) (Marchenko and Pastur):
no direction stands out. Training always leaves directions that do.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

STRANGERS = 0.5
"""Weights whose cosine is below this have not come from one another."""
WHITE = 1.1
"""A largest σ² of no more than so many times that of white noise of the same norm is noise's."""
JUDGED = 64
"""The short side from which a spectrum can tell noise: below, chance decides."""

_STEPS, _COLUMNS = 16, 4


@dataclass(frozen=True, slots=True)
class Likeness:
    """One layer: the cosine of both weights, ‖Δ‖ / ‖W‖, and σ₁² of the delta over that of white noise (None: too
    small to tell).
    """

    cosine: float
    change: float
    peak: float | None

    @property
    def white(self) -> bool:
        """Whether the delta's spectrum is that of noise."""
        return self.peak is not None and self.peak <= WHITE


def likeness(base: torch.Tensor, tuned: torch.Tensor) -> Likeness | None:
    """How two float32 weights of one shape compare; None where they are equal, or one of them is zero."""
    import torch

    ours, theirs = base.flatten(1).double(), tuned.flatten(1).double()
    delta = theirs - ours
    sizes = [float(torch.linalg.vector_norm(values)) for values in (ours, theirs, delta)]
    if not all(sizes) or not all(map(math.isfinite, sizes)):
        return None
    cosine = float((ours * theirs).sum()) / (sizes[0] * sizes[1])
    return Likeness(cosine, sizes[2] / sizes[0], _peak(delta.float()))


def _peak(delta: torch.Tensor) -> float | None:
    """σ₁² / (‖Δ‖² · (1/√m + 1/√n)²), by power iteration."""
    import torch

    rows, columns = delta.shape
    if min(rows, columns) < JUDGED:
        return None
    basis = torch.randn(columns, _COLUMNS, generator=torch.Generator().manual_seed(0)).to(delta.device)
    for _ in range(_STEPS):
        basis = torch.linalg.qr(delta.T @ (delta @ basis)).Q
    largest = float(torch.linalg.svdvals((delta @ basis).double())[0])
    square = float(torch.linalg.vector_norm(delta, dtype=torch.float64)) ** 2
    return largest**2 / (square * (1 / math.sqrt(rows) + 1 / math.sqrt(columns)) ** 2)
