"""One safetensors file as a TensorSource: only its header is read."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import BinaryIO, Self

from loratools.tensors.header import Header, read_header
from loratools.tensors.lazy import LazyTensor
from loratools.tensors.segments import Bytes, ByteSource, MemoryBytes
from loratools.tensors.source import FileObjectBytes, LocalFile


class SafetensorsFile:
    """The tensors of one safetensors file, local, remote or in memory."""

    def __init__(self, source: ByteSource) -> None:
        """Reads and checks the header; raises MalformedFile."""
        self.source = source
        self.header: Header = read_header(source)
        self.files: tuple[LocalFile, ...] = (source,) if isinstance(source, LocalFile) else ()
        self._made: dict[str, LazyTensor] = {}

    @classmethod
    def from_bytes(cls, data: bytes, *, name: str = "<memory>") -> Self:
        """The safetensors file that `data` is."""
        return cls(MemoryBytes(data, name))

    @classmethod
    def from_file(cls, file: BinaryIO, *, name: str | None = None) -> Self:
        """The safetensors file in a binary file object that can seek, which must stay open."""
        return cls(FileObjectBytes(file, name))

    @property
    def name(self) -> str:
        """The name of its source."""
        return self.source.name

    @property
    def metadata(self) -> Mapping[str, str]:
        """The metadata as stored."""
        return self.header.metadata

    def keys(self) -> Sequence[str]:
        """The keys in the order of their data."""
        return tuple(self.header.tensors)

    def __getitem__(self, key: str) -> LazyTensor:
        made = self._made.get(key)
        if made is None:
            dtype, shape, start, stop = self.header.tensors[key]
            place = (Bytes(self.source, self.header.length + start, stop - start),) if stop > start else ()
            made = self._made[key] = LazyTensor(dtype, shape, place)
        return made

    def __len__(self) -> int:
        return len(self.header.tensors)

    def __iter__(self) -> Iterator[str]:
        return iter(self.header.tensors)


def open_safetensors(file: str | os.PathLike[str] | bytes | BinaryIO) -> SafetensorsFile:
    """The safetensors file at a path, in bytes, or in a binary file object that can seek."""
    if isinstance(file, bytes):
        return SafetensorsFile.from_bytes(file)
    if isinstance(file, str | os.PathLike):
        return SafetensorsFile(LocalFile(file))
    return SafetensorsFile.from_file(file)
