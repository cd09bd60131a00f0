"""Columns of a matrix dealt out in turn, and put back: how PEFT stores the experts of a stacked parameter.

Of a matrix [rows, width·count] part n has the columns n, n + count, n + 2·count …: a copy of bytes, no arithmetic.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from functools import partial
from typing import Literal

from loratools.errors import UnsupportedFile
from loratools.tensors.dtypes import DTYPES
from loratools.tensors.lazy import LazyTensor

_Code = Literal["B", "H", "I", "Q"]
_CODES: dict[int, _Code] = {8: "B", 16: "H", 32: "I", 64: "Q"}
"""Bits of an element → the letter by which memory is looked at so."""


class _Shelf:
    """The bytes of the matrix that was asked for last: its parts are mostly asked for one after another."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._held: tuple[LazyTensor, bytes] | None = None

    def bytes_of(self, tensor: LazyTensor) -> bytes:
        """All bytes of the tensor."""
        with self._lock:
            if self._held is None or self._held[0] is not tensor:
                self._held = tensor, tensor.tobytes()
            return self._held[1]


class Dealer:
    """Deals matrices of one file; one of them is kept in memory."""

    def __init__(self) -> None:
        self._shelf = _Shelf()

    def dealt(self, tensor: LazyTensor, count: int) -> list[LazyTensor]:
        """The `count` parts [rows, width] of a matrix [rows, width·count]."""
        rows, columns = tensor.shape
        if columns % count:
            raise ValueError(f"{columns} columns cannot be dealt out to {count}")
        code = _code(tensor.dtype)
        shape = (rows, columns // count)

        def part(at: int) -> bytes:
            return memoryview(self._shelf.bytes_of(tensor)).cast(code)[at::count].tobytes()

        return [LazyTensor.produced(tensor.dtype, shape, partial(part, at)) for at in range(count)]


def interleaved(parts: Sequence[LazyTensor]) -> LazyTensor:
    """The matrix [rows, width·count] whose parts, of one dtype and shape, are these."""
    first = parts[0]
    if any((part.dtype, part.shape) != (first.dtype, first.shape) for part in parts):
        raise ValueError(f"parts of different dtypes or shapes: {sorted({str(part.shape) for part in parts})}")
    rows, width = first.shape
    code, count = _code(first.dtype), len(parts)

    def produce() -> bytes:
        room = bytearray(first.nbytes * count)
        view = memoryview(room).cast(code)
        for at, part in enumerate(parts):
            view[at::count] = memoryview(part.tobytes()).cast(code)
        return bytes(room)

    return LazyTensor.produced(first.dtype, (rows, width * count), produce)


def _code(dtype: str) -> _Code:
    bits = DTYPES[dtype].bits
    if bits not in _CODES:
        raise UnsupportedFile(f"{dtype} packs elements across bytes: its columns cannot be dealt out")
    return _CODES[bits]
