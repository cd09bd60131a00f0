"""Truncated singular value decompositions, of matrices, of low-rank products and of Kronecker products, in float64.

The error of a truncation is the norm of the singular values that are left out, so it is known without the product; no
matrix of that rank is nearer (Eckart and Young, 1936).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from loratools.errors import NonFinite, UsageError

if TYPE_CHECKING:
    import torch

TOLERANCE = 1e-5
"""The relative error that a decomposition keeps to where nobody says a rank or an error."""


@dataclass(frozen=True, slots=True)
class Spectrum:
    """Singular values, falling, and `vectors(k)`: the first k left ones [rows, k] and right ones [k, columns]."""

    values: torch.Tensor
    vectors: Callable[[int], tuple[torch.Tensor, torch.Tensor]]

    def tails(self) -> list[float]:
        """For every rank 0, 1, … the relative Frobenius error of keeping so many values; all 0 for a zero matrix."""
        squares = [*self.values.flip(0).square().cumsum(0).flip(0).tolist(), 0.0]
        return [math.sqrt(square / squares[0]) if squares[0] else 0.0 for square in squares]

    def halves(self, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
        """U·√S [rows, rank] and √S·Vᵀ [rank, columns]: both factors of like size, so that neither underflows first."""
        left, right = self.vectors(rank)
        root = self.values[:rank].sqrt()
        return left * root, right * root[:, None]


def lapack(matrix: torch.Tensor) -> Spectrum:
    """The whole decomposition of a matrix; a wide one is turned first, which is several times faster."""
    import torch

    if matrix.shape[0] < matrix.shape[1]:
        turned = lapack(matrix.T)

        def vectors(rank: int) -> tuple[torch.Tensor, torch.Tensor]:
            ours, theirs = turned.vectors(rank)
            return theirs.T, ours.T

        return Spectrum(turned.values, vectors)
    left, values, right = torch.linalg.svd(finite(matrix).double(), full_matrices=False)
    return Spectrum(values, lambda rank: (left[:, :rank], right[:rank]))


def spectrum_of_pair(left: torch.Tensor, right: torch.Tensor) -> Spectrum:
    """The decomposition of left [rows, r] · right [r, columns] through the cores of two QR: the product is not formed.

    left = Q R and rightᵀ = P T: left · right = Q (R Tᵀ) Pᵀ, and the singular values are those of the core R Tᵀ.
    """
    import torch

    q, upper = torch.linalg.qr(finite(left).double())
    p, lower = torch.linalg.qr(finite(right).double().T)
    core = lapack(upper @ lower.T)

    def vectors(rank: int) -> tuple[torch.Tensor, torch.Tensor]:
        outer, inner = core.vectors(rank)
        return q @ outer, inner @ p.T

    return Spectrum(core.values, vectors)


def spectrum_of_kron(first: Spectrum, second: Spectrum) -> Spectrum:
    """The decomposition of a Kronecker product from its factors': values are all products, vectors their Kronecker."""
    import torch

    products = torch.outer(first.values, second.values).reshape(-1)
    values, order = products.sort(descending=True, stable=True)

    def vectors(rank: int) -> tuple[torch.Tensor, torch.Tensor]:
        ours, theirs = order[:rank] // len(second.values), order[:rank] % len(second.values)
        left_1, right_1 = first.vectors(len(first.values))
        left_2, right_2 = second.vectors(len(second.values))
        left = torch.einsum("ar,br->abr", left_1[:, ours], left_2[:, theirs]).reshape(-1, len(ours))
        right = torch.einsum("ra,rb->rab", right_1[ours], right_2[theirs]).reshape(len(ours), -1)
        return left, right

    return Spectrum(values, vectors)


@dataclass(frozen=True, slots=True)
class Wanted:
    """How far to truncate: to a `rank`, to a relative Frobenius `error`, or to a share of the `energy` (‖Δ‖²).

    Raises UsageError where more than one is given, or one is out of its range.
    """

    rank: int | None = None
    error: float | None = None
    energy: float | None = None

    def __post_init__(self) -> None:
        given = [name for name in ("rank", "error", "energy") if getattr(self, name) is not None]
        if len(given) > 1:
            raise UsageError(f"{' and '.join(given)} cannot be asked for at once", hint="give one of them")
        if self.rank is not None and self.rank < 1:
            raise UsageError(f"a rank is at least 1, not {self.rank}")
        if self.error is not None and not 0 <= self.error < 1:
            raise UsageError(f"a relative error lies in [0, 1), not {self.error}")
        if self.energy is not None and not 0 < self.energy <= 1:
            raise UsageError(f"a share of the energy lies in (0, 1], not {self.energy}")

    @property
    def limit(self) -> float | None:
        """The relative error to keep to (TOLERANCE where nothing is said), or None where a rank is wanted."""
        if self.rank is not None:
            return None
        if self.energy is not None:
            return math.sqrt(1 - self.energy)
        return TOLERANCE if self.error is None else self.error

    def choose(self, found: Spectrum) -> tuple[int, float]:
        """The smallest rank (at least 1) that keeps to what is wanted, and its relative error."""
        tails, limit = found.tails(), self.limit
        if limit is None:
            rank = min(self.rank or 1, len(tails) - 1)
        else:
            rank = max(1, next(count for count, tail in enumerate(tails) if tail <= limit))
        return rank, tails[rank]


def finite(matrix: torch.Tensor) -> torch.Tensor:
    """The matrix; raises NonFinite where an element is NaN or infinite."""
    import torch

    if not bool(torch.isfinite(matrix).all()):
        raise NonFinite("a matrix with NaN or infinity has no singular values")
    return matrix
