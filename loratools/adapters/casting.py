"""Casting sums to the dtype of a file: to the nearest value, or by a seeded throw of dice between its neighbours."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from loratools.adapters.factors import torch_dtype

if TYPE_CHECKING:
    import torch

_INTEGERS = {1: "int8", 2: "int16"}


@dataclass(frozen=True, slots=True)
class Dice:
    """Stochastic rounding: up or down with the probability that makes the expected value exact.

    The dice depend on the seed, the tensor's name and the place of a block, and on nothing else.
    """

    seed: int = 0

    def generator(self, name: str, start: int) -> torch.Generator:
        """The dice of one block."""
        import torch

        digest = hashlib.sha256(f"{self.seed}/{name}/{start}".encode()).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def largest(dtype: str) -> float:
    """The largest finite number of a float dtype."""
    import torch

    return float(torch.finfo(torch_dtype(dtype)).max)


def cast(values: torch.Tensor, dtype: str, dice: Dice | None, name: str, start: int) -> torch.Tensor:
    """`values` (float32 or float64) in `dtype`; 8-bit floats saturate, for want of an infinity."""
    import torch

    wanted = torch_dtype(dtype)
    if values.dtype == wanted:
        return values
    if wanted.itemsize == 1:
        limit = torch.finfo(wanted).max
        values = values.clamp(-limit, limit)
    near = values.to(wanted)
    if dice is None or wanted.itemsize not in _INTEGERS:
        return near
    return _thrown(values, near, dice.generator(name, start))


def _thrown(values: torch.Tensor, near: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Of `near` and its neighbour on the other side of the value, each with the probability that is due to it.

    Floats of one sign are ordered as their bit patterns are: a neighbour is one step of the integer away from zero or
    towards it, and from zero itself the smallest number of the value's sign.
    """
    import torch

    integer = getattr(torch, _INTEGERS[near.element_size()])
    back = near.to(values.dtype)
    bits = near.view(integer)
    step = torch.where(values.abs() > back.abs(), 1, -1).to(integer)
    lowest = torch.iinfo(integer).min
    smallest = torch.where(values < 0, lowest + 1, 1).to(integer)
    far = torch.where(back == 0, smallest, bits + step).view(near.dtype).to(values.dtype)
    share = (values - back).abs() / (far - back).abs()
    share = torch.where(torch.isfinite(share) & torch.isfinite(far), share, 0.0)
    thrown = torch.rand(values.shape, generator=generator, dtype=values.dtype).to(values.device)
    return torch.where(thrown < share, far, back).to(near.dtype)
