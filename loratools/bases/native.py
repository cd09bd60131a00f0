"""Native: a weight, or a bias, of a base model as its file holds it."""

from __future__ import annotations

from dataclasses import dataclass

from loratools.architectures.naming import Placement
from loratools.tensors.lazy import LazyTensor
from loratools.tensors.source import TensorSource

Place = tuple[int, str]
"""A tensor of a base: the identity of its source, and its key there (`key[3]` is the fourth expert of a stack)."""


@dataclass(frozen=True, slots=True)
class Native:
    """A weight, or a bias, as its file holds it: the tensor, its key, and where its canonical paths lie in it.

    `unit` is the key of the scale that an 8-bit weight is multiplied by. `part` is the number of the expert whose slice
    of a stacked parameter the tensor is.
    """

    tensor: LazyTensor
    key: str
    placement: Placement
    source: TensorSource
    is_bias: bool = False
    unit: str | None = None
    part: int | None = None

    @property
    def place(self) -> Place:
        """Where it lies: the source, and the key, with the number of the expert behind it."""
        return id(self.source), self.key if self.part is None else f"{self.key}[{self.part}]"
