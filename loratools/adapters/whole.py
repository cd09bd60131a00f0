"""A whole matrix as decompositions use it: multiplied and measured in float64 by blocks of rows, never copied in it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

BLOCK = 1 << 22
"""Elements that are float64 at a time."""
NEAR = 1 << 18
"""The same where they are used but once: so many stay near the processor, where making them costs little."""
CANCELS = 1e-6
"""Relative errors below: ‖D‖² − ‖B‖² is rounding, and the difference is formed instead."""


class Whole:
    """A tall matrix times a power of two: in float32 for the turns, in float64 by blocks of rows for what counts."""

    def __init__(self, matrix: torch.Tensor, power: float) -> None:
        import torch

        self.matrix = matrix
        self.power = power
        near = NEAR if matrix.device.type == "cpu" else BLOCK
        self._near, self._far = (max(1, size // matrix.shape[1]) for size in (near, BLOCK))
        squares = [float(torch.linalg.vector_norm(block)) ** 2 for _, block in self.blocks()]
        self.square = math.fsum(squares)

    def singles(self) -> torch.Tensor:
        """All of it in float32."""
        import torch

        if self.matrix.dtype == torch.float32 and self.power == 1:
            return self.matrix
        if self.power == 1:
            return self.matrix.to(torch.float32)
        return torch.cat([block.to(torch.float32) for _, block in self.blocks()])

    def doubles(self) -> torch.Tensor:
        """All of it in float64."""
        return self.matrix.double() * self.power if self.power != 1 else self.matrix.double()

    def blocks(self, *, far: bool = False) -> Iterator[tuple[slice, torch.Tensor]]:
        """(rows, those rows in float64), one after the other, in larger steps with `far`."""
        step = self._far if far else self._near
        for start in range(0, self.matrix.shape[0], step):
            place = slice(start, min(start + step, self.matrix.shape[0]))
            block = self.matrix[place].double()
            yield place, block * self.power if self.power != 1 else block

    def gram(self) -> torch.Tensor:
        """Dᵀ·D [columns, columns]."""
        total = self.matrix.new_zeros((self.matrix.shape[1],) * 2).double()
        for _, block in self.blocks(far=True):
            total.addmm_(block.T, block)
        return total

    def times(self, right: torch.Tensor) -> torch.Tensor:
        """D · right [columns, k]."""
        import torch

        made = right.new_empty((self.matrix.shape[0], right.shape[1]))
        for place, block in self.blocks():
            torch.mm(block, right, out=made[place])
        return made

    def under(self, left: torch.Tensor) -> torch.Tensor:
        """leftᵀ · D, for left [rows, k]."""
        total = left.new_zeros((left.shape[1], self.matrix.shape[1]))
        for place, block in self.blocks():
            total.addmm_(left[place].T, block)
        return total

    def error(self, left: torch.Tensor, values: torch.Tensor, right: torch.Tensor) -> float:
        """‖D − left·diag(values)·right‖ / ‖D‖; formed where the subtraction of squares would cancel."""
        import torch

        rest = self.square - math.fsum(values.square().tolist())
        relative = math.sqrt(max(0.0, rest) / self.square)
        if relative > CANCELS:
            return relative
        scaled = left * values
        squares = [
            float(torch.linalg.vector_norm(block.addmm(scaled[place], right, alpha=-1))) ** 2
            for place, block in self.blocks()
        ]
        return math.sqrt(math.fsum(squares) / self.square)
