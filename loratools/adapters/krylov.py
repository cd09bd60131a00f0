"""The leading directions of a matrix, found block by block: a randomised block Krylov space (Musco and Musco, 2015).

A block of random rows is turned through the matrix and back, again and again, and every block is kept: the space holds
all polynomials of DᵀD up to the number of blocks, and comes near the leading singular vectors in far fewer products
than the last block alone would (power iterations). The blocks are float32, which is enough to find directions, also
those of values a thousand times smaller than the largest, as every block is orthogonal to those before. The factors
come from one more product with the matrix, in float64 where it counts, so that their error is theirs and no estimate.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from loratools.adapters.whole import Whole

if TYPE_CHECKING:
    import torch

LEAST = 3
"""Blocks of at least as many directions as wanted, before what the last ones gained says how much is left."""
EXTRA = 8
"""Directions beyond the rank that the last product takes along: they hold what is not yet told apart."""

_NEAR = 5e-4  # a space grows until its error is within this of the best, relatively
_MUCH = 1e-4  # of the energy: where more is left out, float32 does not hide how much
_LITTLE = 1e-10  # of the energy: gains below are float32's rounding
_CLEAN, _PASSES = 1e-6, 5  # the largest overlap of a block with those before it, and how often it is taken out
_FASTEST, _SLOWEST = 0.12, 0.95  # what a block gains, at least and at most, of what the one before it did


class Krylov:
    """Orthonormal directions V among the columns of a tall matrix D [rows, columns], `block` more at a time, and D·V.

    The first block is Dᵀ times normal numbers, drawn by `seed`.
    """

    def __init__(self, whole: Whole, block: int, seed: int) -> None:
        import torch

        self.whole, self.block = whole, block
        self._single = whole.singles()
        generator = torch.Generator().manual_seed(seed)
        last = torch.randn(self._single.shape[0], block, generator=generator).to(self._single.device)
        self._images = [last]  # D times each block of directions; first, what the first block is made of
        self._basis = last.new_zeros((self._single.shape[1], 0))
        self._gram = last.new_zeros((0, 0)).double()  # of the images
        self._energies: list[torch.Tensor] = []

    @property
    def columns(self) -> int:
        """How many directions there are."""
        return int(self._basis.shape[1])

    def grow(self) -> None:
        """Add a block: two products with the matrix."""
        import torch

        found = self._apart(self._single.T @ self._images[-1])
        image = self._single @ found
        self._images = [*self._images, image] if self.columns else [image]
        self._basis = torch.cat([self._basis, found], 1)
        beside = torch.cat([other.T @ image for other in self._images]).double()
        above = beside[: -self.block]
        self._gram = torch.cat([torch.cat([self._gram, above], 1), torch.cat([above.T, beside[-self.block :]], 1)])
        self._energies.append(torch.linalg.eigvalsh(self._gram).flip(0).clamp_min(0).cumsum(0).cpu())

    def _apart(self, columns: torch.Tensor) -> torch.Tensor:
        """Orthonormal columns, without what the space holds of them already.

        Once leaves traces in float32, and where nothing is left of a column it leaves rounding, mostly of the space.
        """
        import torch

        if self.columns:
            columns = columns - self._basis @ (self._basis.T @ columns)
            columns = columns - self._basis @ (self._basis.T @ columns)
        found: torch.Tensor = torch.linalg.qr(columns).Q
        for _ in range(_PASSES if self.columns else 0):
            overlap = self._basis.T @ found
            if float(overlap.abs().max()) < _CLEAN:
                break
            found = torch.linalg.qr(found - self._basis @ overlap).Q
        return found

    def converge(self, rank: int, most: int) -> bool:
        """Grow until the energy of the `rank` leading directions does no longer; whether `most` columns sufficed."""
        while (more := self._blocks_left(rank)) > 0:
            if self.columns + more * self.block > most:
                return False
            self.grow()
        return True

    def _blocks_left(self, rank: int) -> int:
        """How many more blocks it takes, at the pace of the last ones, until what is not yet captured is too little."""
        wide = [energies for energies in self._energies if len(energies) >= rank]
        if len(wide) < LEAST:
            return LEAST - len(wide)
        captured = [float(energies[rank - 1]) / self.whole.square for energies in wide[-3:]]
        last, before = captured[2] - captured[1], captured[1] - captured[0]
        if last <= _LITTLE or before <= 0:
            return 0
        pace = min(max(last / before, _FASTEST), _SLOWEST)
        left, little = last * pace / (1 - pace), max(2 * _NEAR * (1 - captured[2]), _LITTLE)
        return math.ceil(math.log(left / little) / -math.log(pace)) if left > little else 0

    def settled(self, rank: int, *, exact: bool) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """left [rows, k], values [k], right [k, columns] of D's projection onto its leading directions, float64; k is a
        little more than `rank`.

        Unless it must be `exact`, the projection is a product in float32 where much is left out anyway: what that
        rounds is a part in 10⁵ of the error then.
        """
        import torch

        count = min(rank + EXTRA, self.columns)
        leading = torch.linalg.eigh(self._gram).eigenvectors[:, -count:].to(self._basis.dtype)
        outer = torch.linalg.qr((torch.cat(self._images, 1) @ leading).double()).Q
        if exact or 1 - float(self._energies[-1][rank - 1]) / self.whole.square < _MUCH:
            image = self.whole.under(outer).T
        else:
            image = (self._single.T @ outer.to(self._single.dtype)).double()
        inner, upper = torch.linalg.qr(image)
        right, values, left = torch.linalg.svd(upper, full_matrices=False)
        return outer @ left.T, values, (inner @ right).T
