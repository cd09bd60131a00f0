"""A GGUF file's header: its words, and its counts and lengths, held against its size before anybody loops over them."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

from loratools.errors import MalformedFile, UnsupportedFile
from loratools.tensors.source import LocalFile

MAGIC = b"GGUF"
"""How every such file begins."""

ARCHITECTURE, ALPHA = "general.architecture", "adapter.lora.alpha"
"""The keys of llama.cpp's name of the model, and of the alpha of all layers (0 for none)."""

INVOCATION = "adapter.alora.invocation_tokens"
"""The key of the tokens after which alone such an adapter changes anything (aLoRA)."""

DTYPES = ("BF16", "F16", "F32")
"""What llama.cpp multiplies by, of the dtypes that are copied as they are."""

_STRING, _ARRAY = 8, 9
# value type → bytes; strings and arrays have their own lengths
_WIDTHS = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_DIMENSIONS = 8
_LIMIT = 100_000_000  # of the header; a vocabulary takes a few million bytes


def gguf_package(*, path: object = None) -> Any:
    """The package that reads and writes headers; raises UnsupportedFile where it is not there."""
    try:
        import gguf
    except ImportError as error:
        hint = "pip install 'loratools[gguf]'"
        raise UnsupportedFile("GGUF files need the package gguf", path=path, hint=hint) from error
    return gguf


class _Walk:
    """A place in the header that only goes on, and never past the file."""

    def __init__(self, file: LocalFile) -> None:
        self.data = file.read(0, min(file.size, _LIMIT))
        self.name, self.at = file.name, 0

    def skip(self, length: int) -> None:
        self.at += length
        if self.at > len(self.data):
            raise MalformedFile("the header of the GGUF file is cut short or larger than the file", path=self.name)

    def number(self, code: str) -> int:
        start = self.at
        self.skip(struct.calcsize(code))
        return int(struct.unpack_from(code, self.data, start)[0])

    def string(self) -> None:
        self.skip(self.number("<Q"))

    def value(self, kind: int) -> None:
        if kind == _STRING:
            self.string()
        elif kind == _ARRAY:
            inner, count = self.number("<I"), self.number("<Q")
            if inner in _WIDTHS:
                self.skip(_WIDTHS[inner] * count)
            elif inner == _STRING:
                self.times(count, 8, self.string)
            else:
                raise MalformedFile(f"a GGUF array of type {inner}", path=self.name)
        elif kind in _WIDTHS:
            self.skip(_WIDTHS[kind])
        else:
            raise MalformedFile(f"a GGUF value of type {kind}", path=self.name)

    def times(self, count: int, least: int, step: Callable[[], None]) -> None:
        """`step` so many times, each of which takes at least `least` bytes."""
        if count * least > len(self.data) - self.at:
            raise MalformedFile(f"the GGUF file is too short for {count} entries", path=self.name)
        for _ in range(count):
            step()


def check_gguf(file: LocalFile) -> None:
    """Raise MalformedFile for a header whose counts and lengths do not fit into the file."""
    walk = _Walk(file)
    walk.skip(4)
    if walk.number("<I") & 0xFFFF == 0:
        raise MalformedFile("a GGUF file for machines of another byte order", path=file.name)
    tensors, pairs = walk.number("<Q"), walk.number("<Q")

    def pair() -> None:
        walk.string()
        walk.value(walk.number("<I"))

    def tensor() -> None:
        walk.string()
        dimensions = walk.number("<I")
        if dimensions > _DIMENSIONS:
            raise MalformedFile(f"a GGUF tensor of {dimensions} dimensions", path=file.name)
        walk.skip(8 * dimensions + 4 + 8)

    walk.times(pairs, 13, pair)
    walk.times(tensors, 24, tensor)
