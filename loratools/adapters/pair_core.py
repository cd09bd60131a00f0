"""The spectrum of a low-rank pair from the cores of its factors, without forming the product or an orthogonal basis.

B [rows, r] = Q·R and Aᵀ = P·T give B·A = Q·(R·Tᵀ)·Pᵀ: a core of r columns holds all singular values. Q and P are never
made: with C = R·Tᵀ and its left vectors U, the vectors of the product are B·Tᵀ·Cᵀ·U / σ² and (Uᵀ·R / σ)·A.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from loratools.adapters.decompose import Spectrum, finite
from loratools.errors import NonFinite

if TYPE_CHECKING:
    import torch

_NOISE = 1e-8
"""Singular values below this share of the largest are rounding of their squares, and count as zero."""


def spectrum_of_core(left: torch.Tensor, right: torch.Tensor) -> Spectrum:
    """The decomposition of left [rows, r] · right [r, columns], float64; no more values than the core is wide.

    U are eigenvectors of C·Cᵀ, and the values are the norms of the rows of Uᵀ·C: what is left out of a truncation is
    then measured, not estimated. A third of the time of LAPACK's decomposition of the core. Raises NonFinite.
    """
    import torch

    if left.shape[0] > right.shape[1]:
        turned = spectrum_of_core(right.T, left.T)

        def swapped(rank: int) -> tuple[torch.Tensor, torch.Tensor]:
            ours, theirs = turned.vectors(rank)
            return theirs.T, ours.T

        return Spectrum(turned.values, swapped)
    left, right = left.double(), right.double()
    upper = torch.linalg.qr(left, mode="r").R
    lower = torch.linalg.qr(right.T, mode="r").R
    core = upper @ lower.T
    if not bool(torch.isfinite(core).all()):
        finite(left), finite(right)
        raise NonFinite("the product of the factors overflows")
    largest = core.abs().amax() if core.numel() else core.new_zeros(())
    if not bool(largest > 0):
        extent = min(core.shape)
        return Spectrum(core.new_zeros(extent), lambda rank: _zeros(left, right, rank))
    core = core / largest
    vectors = torch.linalg.eigh(core @ core.T).eigenvectors.flip(1)
    images = vectors.T @ core
    values, order = torch.linalg.vector_norm(images, dim=1).sort(descending=True, stable=True)
    count = min(core.shape)
    values, vectors, images = values[:count], vectors[:, order[:count]], images[order[:count]]
    values = torch.where(values > _NOISE * values[0], values, torch.zeros_like(values))

    def pair(rank: int) -> tuple[torch.Tensor, torch.Tensor]:
        # A value of zero has no vectors here: zeros make the same product.
        inverse = torch.where(values > 0, 1 / values, values)[:rank] / largest
        ours = left @ (lower.T @ images[:rank].T * (inverse * inverse * largest))
        theirs = (inverse[:, None] * (vectors[:, :rank].T @ upper)) @ right
        return ours, theirs

    return Spectrum(values * largest, pair)


def _zeros(left: torch.Tensor, right: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    return left.new_zeros(left.shape[0], rank), right.new_zeros(rank, right.shape[1])
