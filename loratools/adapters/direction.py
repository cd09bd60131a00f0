"""A tuned weight as DoRA: its row norms as magnitude, and the smallest change of the base that gives its directions.

DoRA computes W' = m · V / ‖V‖ row by row with V = W + Δ (arXiv 2402.09353). With m the row norms of W', any V whose
rows point where those of W' point gives W' exactly; of all such V the nearest to W has the rows c · W'ᵢ with
c = ⟨Wᵢ, W'ᵢ⟩ / ‖W'ᵢ‖², the projections of W's rows. So Δ = c · W' − W is what the low-rank factors approximate: it is
never larger than W' − W, because what changed in length only is in the magnitude.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def direction(base: torch.Tensor, tuned: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(Δ [out, in·kernel] float32, magnitude [out] float64) of rows of a base weight and of its tuned version.

    A row that turned by a right angle or more, and one that was zero, is taken at its full length; a row that became
    zero needs no direction, its magnitude is 0.
    """
    import torch

    ours, theirs = base.flatten(1), tuned.flatten(1)
    squares = torch.linalg.vector_norm(theirs, dim=1, dtype=torch.float64).square()
    along = (ours * theirs).sum(1, dtype=torch.float64)
    length = torch.where(along > 0, along / squares.clamp_min(torch.finfo(torch.float64).tiny), torch.ones_like(along))
    change = theirs * length.float()[:, None] - ours
    return torch.where((squares > 0)[:, None], change, torch.zeros_like(change)), squares.sqrt()
