"""LazyTensor: a dtype, a shape and where the bytes lie. Views move segments about; nothing is read until asked for."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

from loratools.errors import InternalError, NonFinite, UnsupportedFile
from loratools.tensors.dtypes import BY_TORCH, DTYPES, encode_scalar, nbytes
from loratools.tensors.segments import (
    CHUNK,
    Bytes,
    ByteSource,
    Columns,
    Computed,
    Fills,
    MemoryBytes,
    Segment,
    Zeros,
    join_segments,
    read_segments,
    segments_between,
)

if TYPE_CHECKING:
    import torch

__all__ = [
    "CHUNK",
    "ByteSource",
    "Bytes",
    "Columns",
    "Computed",
    "LazyTensor",
    "MemoryBytes",
    "Segment",
    "Zeros",
    "block_diagonal",
    "stack_rows",
    "tensor_bytes",
]


class LazyTensor(NamedTuple):
    """A tensor that has not been read: row-major, little-endian, `shape` elements of `dtype` (a safetensors name)."""

    dtype: str
    shape: tuple[int, ...]
    segments: tuple[Segment, ...]

    @classmethod
    def from_bytes(cls, dtype: str, shape: Sequence[int], data: bytes) -> LazyTensor:
        """A tensor over bytes in memory."""
        return cls(dtype, tuple(shape), (Bytes(MemoryBytes(data), 0, len(data)),) if data else ())

    @classmethod
    def scalar(cls, value: Fraction, dtype: str, shape: Sequence[int] = ()) -> LazyTensor:
        """One exact number; raises NonFinite when `dtype` cannot hold it exactly."""
        data = encode_scalar(value, dtype)
        if data is None:
            raise NonFinite(f"{float(value)} has no exact form in {dtype}")
        return cls.from_bytes(dtype, shape, data)

    @classmethod
    def zeros(cls, dtype: str, shape: Sequence[int]) -> LazyTensor:
        """All zeros, without memory."""
        return cls(dtype, tuple(shape), (Zeros(nbytes(dtype, tuple(shape))),))

    @classmethod
    def computed(cls, dtype: str, shape: Sequence[int], produce: Callable[[], torch.Tensor]) -> LazyTensor:
        """A tensor that `produce` makes when its bytes are asked for; its result must have this shape and dtype."""
        return cls.produced(dtype, shape, lambda: tensor_bytes(produce(), dtype))

    @classmethod
    def produced(cls, dtype: str, shape: Sequence[int], produce: Callable[[], bytes]) -> LazyTensor:
        """A tensor whose bytes `produce` makes when asked for, without torch."""
        return cls(dtype, tuple(shape), (Computed(nbytes(dtype, tuple(shape)), produce),))

    @classmethod
    def from_torch(cls, tensor: torch.Tensor) -> LazyTensor:
        """A tensor that torch holds already; its bytes are taken when asked for."""
        name = str(tensor.dtype).removeprefix("torch.")
        if name not in BY_TORCH:
            raise UnsupportedFile(f"torch dtype {name} has no safetensors form")
        dtype = BY_TORCH[name]
        return cls.computed(dtype, tuple(tensor.shape), lambda: tensor)

    @property
    def nbytes(self) -> int:
        """The bytes of the data."""
        return nbytes(self.dtype, self.shape)

    @property
    def numel(self) -> int:
        """The number of elements."""
        return math.prod(self.shape)

    @property
    def row_bytes(self) -> int:
        """The bytes of one row (one index of the first dimension)."""
        return _whole_bytes(self.dtype, self.shape[1:])

    @property
    def is_within_reach(self) -> bool:
        """Whether its bytes can be read; of a file on the Hub only the header is at hand."""
        return not any(
            isinstance(segment, Bytes) and getattr(segment.source, "header_only", False) for segment in self.segments
        )

    def reshape(self, *shape: int) -> LazyTensor:
        """The same bytes under another shape."""
        if math.prod(shape) != self.numel:
            raise ValueError(f"{list(self.shape)} cannot become {list(shape)}")
        return LazyTensor(self.dtype, shape, self.segments)

    def rows(self, start: int, stop: int) -> LazyTensor:
        """The rows [start, stop)."""
        if not 0 <= start <= stop <= self.shape[0]:
            raise ValueError(f"rows [{start}, {stop}) of {list(self.shape)}")
        width = self.row_bytes
        return LazyTensor(
            self.dtype, (stop - start, *self.shape[1:]), segments_between(self.segments, start * width, stop * width)
        )

    def swap_halves(self) -> LazyTensor:
        """The second half of the rows before the first."""
        half, odd = divmod(self.shape[0], 2)
        if odd:
            raise ValueError(f"{list(self.shape)} has no two halves of rows")
        return stack_rows([self.rows(half, self.shape[0]), self.rows(0, half)])

    def pad_rows(self, before: int, after: int) -> LazyTensor:
        """Zero rows before and after."""
        pads = [LazyTensor.zeros(self.dtype, (count, *self.shape[1:])) for count in (before, after)]
        return stack_rows([pads[0], self, pads[1]])

    def columns(self, start: int, stop: int) -> LazyTensor:
        """The columns [start, stop) of the second dimension."""
        return self._columns(start, stop, 0, 0)

    def pad_columns(self, before: int, after: int) -> LazyTensor:
        """Zero columns before and after, in the second dimension."""
        return self._columns(0, self.shape[1], before, after)

    def _columns(self, start: int, stop: int, before: int, after: int) -> LazyTensor:
        if not 0 <= start <= stop <= self.shape[1]:
            raise ValueError(f"columns [{start}, {stop}) of {list(self.shape)}")
        item = _whole_bytes(self.dtype, self.shape[2:])
        shape = (self.shape[0], before + stop - start + after, *self.shape[2:])
        if (start, stop, before, after) == (0, self.shape[1], 0, 0):
            return self
        if not self.row_bytes:
            return LazyTensor.zeros(self.dtype, shape)
        cut = Columns(self.segments, self.row_bytes, start * item, stop * item, before * item, after * item)
        return LazyTensor(self.dtype, shape, (cut,))

    def chunks(self) -> Iterator[bytes]:
        """The bytes, in order, in pieces."""
        return read_segments(self.segments)

    def tobytes(self) -> bytes:
        """All bytes."""
        if len(self.segments) == 1 and isinstance(self.segments[0], Bytes):
            run = self.segments[0]
            return run.source.read(run.offset, run.length)
        return b"".join(self.chunks())

    def same_bytes(self, other: LazyTensor) -> bool:
        """Whether dtype, shape and every byte are equal; nothing is read where both are the same place."""
        if (self.dtype, self.shape) != (other.dtype, other.shape):
            return False
        if self.segments == other.segments:
            return True
        if len(self.segments) == len(other.segments) == 1:
            ours, theirs = self.segments[0], other.segments[0]
            if isinstance(ours, Bytes) and isinstance(theirs, Bytes):
                return _equal_runs(ours, theirs)
        return _equal_streams(self.chunks(), other.chunks())

    def item(self) -> Fraction | float:
        """The one element, exactly, without torch; a float only when it is not finite."""
        if self.numel != 1 or DTYPES[self.dtype].decode is None:
            raise UnsupportedFile(f"a scalar was expected, found {self.dtype} {list(self.shape)}")
        return _number(self.dtype, self.tobytes())

    def load(self, room: bytearray | None = None) -> torch.Tensor:
        """The tensor in memory, writable, on the CPU, in its own dtype.

        It lies at the beginning of `room` where that is given and large enough, until somebody else uses it.
        """
        import torch

        name = DTYPES[self.dtype].torch
        if name is None or not hasattr(torch, name):
            raise UnsupportedFile(f"torch has no dtype for {self.dtype}")
        size = self.nbytes
        data = room if room is not None and len(room) >= size else bytearray(size)
        self._fill(memoryview(data)[:size])
        if not size:
            return torch.empty(self.shape, dtype=getattr(torch, name))
        return torch.frombuffer(data, dtype=getattr(torch, name), count=self.numel).reshape(self.shape)

    def _fill(self, room: memoryview) -> None:
        """The bytes, in order, into `room`."""
        at = 0
        for segment in self.segments:
            if isinstance(segment, Bytes) and isinstance(segment.source, Fills):
                segment.source.read_into(segment.offset, room[at : at + segment.length])
                at += segment.length
                continue
            for chunk in segment.chunks():
                room[at : at + len(chunk)] = chunk
                at += len(chunk)
        if at != len(room):
            raise InternalError(f"{at} bytes were read for {self.dtype} {list(self.shape)}")


@lru_cache(maxsize=1024)
def _number(dtype: str, data: bytes) -> Fraction | float:
    """The number that the bytes of one element are; the alphas of a file are nearly all one number."""
    decode = DTYPES[dtype].decode
    assert decode is not None
    value = decode(data)
    return Fraction(value) if math.isfinite(value) else float(value)


def _whole_bytes(dtype: str, shape: tuple[int, ...]) -> int:
    """The bytes of a part that must begin and end at a byte; raises UnsupportedFile where packed elements do not."""
    if math.prod(shape) * DTYPES[dtype].bits % 8:
        raise UnsupportedFile(f"{dtype} packs elements across bytes: parts of {list(shape)} cannot be cut out")
    return nbytes(dtype, shape)


def _equal_runs(ours: Bytes, theirs: Bytes) -> bool:
    """Whether two runs of one length hold the same bytes: the proof of a renaming does hardly anything else."""
    for start in range(0, ours.length, CHUNK):
        count = min(CHUNK, ours.length - start)
        if ours.source.read(ours.offset + start, count) != theirs.source.read(theirs.offset + start, count):
            return False
    return True


def _equal_streams(left: Iterator[bytes], right: Iterator[bytes]) -> bool:
    """Whether two streams of differently cut pieces hold the same bytes (bytes compare by memcmp, views do not)."""
    left, right = filter(None, left), filter(None, right)
    a = b = b""
    while True:
        a, b = a or next(left, b""), b or next(right, b"")
        if not a or not b:
            return not a and not b
        size = min(len(a), len(b))
        if (a if len(a) == size else a[:size]) != (b if len(b) == size else b[:size]):
            return False
        a, b = a[size:], b[size:]


def stack_rows(parts: Sequence[LazyTensor]) -> LazyTensor:
    """The rows of all parts, one after another; dtype and the other dimensions must agree."""
    first = parts[0]
    for part in parts[1:]:
        if part.dtype != first.dtype or part.shape[1:] != first.shape[1:]:
            raise ValueError(f"cannot stack {part.dtype} {list(part.shape)} under {first.dtype} {list(first.shape)}")
    segments = join_segments([segment for part in parts for segment in part.segments if segment.length])
    return LazyTensor(first.dtype, (sum(part.shape[0] for part in parts), *first.shape[1:]), segments)


def block_diagonal(parts: Sequence[LazyTensor]) -> LazyTensor:
    """Parts [rows, columns, …] along the diagonal of one tensor, zeros elsewhere."""
    width = sum(part.shape[1] for part in parts)
    placed: list[LazyTensor] = []
    at = 0
    for part in parts:
        placed.append(part.pad_columns(at, width - at - part.shape[1]))
        at += part.shape[1]
    return stack_rows(placed)


def tensor_bytes(tensor: torch.Tensor, dtype: str) -> bytes:
    """The row-major little-endian bytes of a torch tensor, which must be of `dtype`."""
    import torch

    if str(tensor.dtype) != f"torch.{DTYPES[dtype].torch}":
        raise ValueError(f"{tensor.dtype} is not {dtype}")
    flat = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""
