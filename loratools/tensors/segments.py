"""Where the bytes of a tensor lie: runs of a source, zeros, cut and padded rows, or arithmetic that will make them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

from loratools.errors import InternalError, MalformedFile

CHUNK = 1 << 20


class ByteSource(Protocol):
    """Random access to bytes: a local file, memory, or (in hub/) a remote file."""

    @property
    def name(self) -> str:
        """How messages name it."""
        ...

    @property
    def size(self) -> int:
        """The number of bytes."""
        ...

    def read(self, offset: int, length: int) -> bytes:
        """Exactly `length` bytes from `offset`; raises when the source is shorter or has changed."""
        ...

    def fileno(self) -> int | None:
        """A file descriptor for copying inside the kernel, or None."""
        ...


@runtime_checkable
class Fills(Protocol):
    """A ByteSource that can read into memory that is there already."""

    def read_into(self, offset: int, room: memoryview) -> None:
        """Fill `room` from `offset` on."""
        ...


class MemoryBytes:
    """A ByteSource over bytes that are already in memory."""

    __slots__ = ("data", "name")

    def __init__(self, data: bytes, name: str = "<memory>") -> None:
        self.data = data
        self.name = name

    @property
    def size(self) -> int:
        """The number of bytes held."""
        return len(self.data)

    def read(self, offset: int, length: int) -> bytes:
        """The bytes from `offset` on; raises MalformedFile where there are fewer."""
        if offset + length > len(self.data):
            raise MalformedFile(f"{length} bytes are needed at {offset}, {len(self.data)} are there", path=self.name)
        return self.data[offset : offset + length]

    def fileno(self) -> None:
        """Memory has no descriptor."""


class Bytes(NamedTuple):
    """A run of bytes of one source."""

    source: ByteSource
    offset: int
    length: int

    def cut(self, start: int, stop: int) -> Segment:
        """The bytes [start, stop) of this run."""
        return Bytes(self.source, self.offset + start, stop - start)

    def chunks(self) -> Iterator[bytes]:
        """The bytes, in pieces of at most CHUNK."""
        for start in range(0, self.length, CHUNK):
            yield self.source.read(self.offset + start, min(CHUNK, self.length - start))


class Zeros(NamedTuple):
    """A run of zero bytes, which lies nowhere."""

    length: int

    def cut(self, start: int, stop: int) -> Segment:
        """A shorter run of zeros."""
        return Zeros(stop - start)

    def chunks(self) -> Iterator[bytes]:
        """The zeros, in pieces of at most CHUNK."""
        for start in range(0, self.length, CHUNK):
            yield bytes(min(CHUNK, self.length - start))


class Columns(NamedTuple):
    """Every row of `inner` cut to the bytes [start, stop) and set between `left` and `right` zero bytes."""

    inner: tuple[Segment, ...]
    row: int
    start: int
    stop: int
    left: int
    right: int

    @property
    def length(self) -> int:
        """Bytes after cutting and padding."""
        return sum(part.length for part in self.inner) // self.row * (self.left + self.stop - self.start + self.right)

    def cut(self, start: int, stop: int) -> Segment:
        """Whole rows are cut lazily; anything else goes through the bytes."""
        width = self.left + self.stop - self.start + self.right
        if start % width == 0 and stop % width == 0:
            inner = segments_between(self.inner, start // width * self.row, stop // width * self.row)
            return self._replace(inner=inner)
        return Computed(stop - start, lambda: b"".join(self.chunks())[start:stop])

    def chunks(self) -> Iterator[bytes]:
        """The rows, some at a time; `inner` is streamed once, because a Computed part is made anew for every cut."""
        size = max(1, CHUNK // max(self.row, self.left + self.stop - self.start + self.right)) * self.row
        rest = b""
        for chunk in read_segments(self.inner):
            rest += chunk
            whole = len(rest) // self.row * self.row
            for start in range(0, whole, size):
                yield self._block(rest[start : min(start + size, whole)])
            rest = rest[whole:]

    def _block(self, block: bytes) -> bytes:
        pieces = [block[at + self.start : at + self.stop] for at in range(0, len(block), self.row)]
        return bytes(self.left) + bytes(self.right + self.left).join(pieces) + bytes(self.right)


class Computed:
    """Bytes that arithmetic makes when they are asked for."""

    __slots__ = ("length", "produce")

    def __init__(self, length: int, produce: Callable[[], bytes]) -> None:
        self.length = length
        self.produce = produce

    def cut(self, start: int, stop: int) -> Segment:
        """A part of the result, made when asked for."""
        return Computed(stop - start, lambda: self.produce()[start:stop])

    def chunks(self) -> Iterator[bytes]:
        """The result in one piece."""
        data = self.produce()
        if len(data) != self.length:
            raise InternalError(f"a computed tensor has {len(data)} bytes where {self.length} were planned")
        yield data


Segment = Bytes | Zeros | Columns | Computed


def segments_between(segments: Sequence[Segment], start: int, stop: int) -> tuple[Segment, ...]:
    """The segments that make the bytes [start, stop) of `segments`."""
    found: list[Segment] = []
    at = 0
    for segment in segments:
        first, last = max(start, at), min(stop, at + segment.length)
        if first < last:
            whole = last - first == segment.length
            found.append(segment if whole else segment.cut(first - at, last - at))
        at += segment.length
    return tuple(found)


def read_segments(segments: Sequence[Segment]) -> Iterator[bytes]:
    """The bytes of all segments, in order, in pieces."""
    for segment in segments:
        yield from segment.chunks()


def join_segments(segments: Sequence[Segment]) -> tuple[Segment, ...]:
    """Neighbouring runs of one source become one run, so that copies stay large."""
    found: list[Segment] = []
    for segment in segments:
        last = found[-1] if found else None
        if isinstance(last, Bytes) and isinstance(segment, Bytes):
            if last.source is segment.source and last.offset + last.length == segment.offset:
                found[-1] = Bytes(last.source, last.offset, last.length + segment.length)
                continue
        elif isinstance(last, Zeros) and isinstance(segment, Zeros):
            found[-1] = Zeros(last.length + segment.length)
            continue
        found.append(segment)
    return tuple(found)
