"""Factors that are made together, when the bytes of one of them are asked for, and kept until the others are taken."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from itertools import count
from typing import TYPE_CHECKING

from loratools.tensors.lazy import LazyTensor, tensor_bytes

if TYPE_CHECKING:
    import torch

KEPT = 16 << 20
"""How many bytes of finished factors a Maker holds on to."""


class Maker:
    """Makes the factors of a layer once for all of them; what was not asked for lately is made again.

    A writer takes the factors of a layer one after the other, so that a few layers' are enough to keep.
    """

    def __init__(self, most: int = KEPT) -> None:
        self._most = most
        self._held: OrderedDict[int, Mapping[str, bytes]] = OrderedDict()
        self._size = 0
        self._numbers = count()
        self._lock = threading.Lock()

    def lazily(
        self,
        shapes: Mapping[str, tuple[int, ...]],
        dtype: str,
        produce: Callable[[], Mapping[str, torch.Tensor]],
    ) -> dict[str, LazyTensor]:
        """A lazy tensor of `dtype` for each role of `shapes`, all made by one call of `produce`."""
        mine = threading.Lock()
        number = next(self._numbers)

        def bytes_of(role: str) -> bytes:
            with mine:
                with self._lock:
                    held = self._held.get(number)
                if held is None:
                    made = produce()
                    held = {name: tensor_bytes(made[name].reshape(shape), dtype) for name, shape in shapes.items()}
                    self._keep(number, held)
            return held[role]

        def lazy(role: str, shape: tuple[int, ...]) -> LazyTensor:
            return LazyTensor.produced(dtype, shape, lambda: bytes_of(role))

        return {role: lazy(role, shape) for role, shape in shapes.items()}

    def _keep(self, number: int, held: Mapping[str, bytes]) -> None:
        with self._lock:
            self._held[number] = held
            self._size += _length(held)
            while len(self._held) > 1 and self._size > self._most:
                _, dropped = self._held.popitem(last=False)
                self._size -= _length(dropped)


def _length(held: Mapping[str, bytes]) -> int:
    return sum(map(len, held.values()))
