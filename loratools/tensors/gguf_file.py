"""Tensors of a GGUF file, found by the `gguf` package: floats as they lie, quantised blocks as the floats they mean."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from loratools.errors import MalformedFile, UnsupportedFile
from loratools.tensors.gguf_check import INVOCATION, MAGIC, check_gguf, gguf_package
from loratools.tensors.lazy import LazyTensor
from loratools.tensors.segments import Bytes
from loratools.tensors.source import LocalFile

_FLOATS = {
    "BF16": "BF16",
    "F16": "F16",
    "F32": "F32",
    "F64": "F64",
    "I8": "I8",
    "I16": "I16",
    "I32": "I32",
    "I64": "I64",
}
# What the reader raises where a count, a length or a name in the file is not what it should be.
_DAMAGE = (AttributeError, IndexError, KeyError, MemoryError, OverflowError, TypeError, UnicodeDecodeError, ValueError)
_TOKENIZER, _LONG = "tokenizer.", 1 << 16  # a vocabulary is no metadata of an adapter


class GgufFile:
    """A TensorSource over one local GGUF file; scalars and strings of its header are the metadata."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Reads the header; raises MalformedFile, and UnsupportedFile where the `gguf` package is not there."""
        self._file = LocalFile(path)
        self.name = self._file.name
        self.files = (self._file,)
        self.metadata: Mapping[str, str] = {}
        self._tensors: dict[str, LazyTensor] = {}
        if self._file.read(0, min(4, self._file.size)) != MAGIC:
            raise MalformedFile("this is no GGUF file", path=self.name)
        check_gguf(self._file)
        reader = _reader(self.name)
        try:
            self.metadata = _metadata(reader.fields)
            self._tensors = {tensor.name: self._tensor(tensor) for tensor in reader.tensors}
        except _DAMAGE as error:
            raise MalformedFile(f"the header of the GGUF file is damaged: {error}", path=self.name) from error

    def _tensor(self, found: Any) -> LazyTensor:
        """One tensor, in the order of dimensions that everybody else has."""
        from gguf import quants

        shape = tuple(int(extent) for extent in reversed(found.shape))
        place = Bytes(self._file, int(found.data_offset), int(found.n_bytes))
        if place.offset + place.length > self._file.size:
            raise MalformedFile("the GGUF file is cut short", path=self.name, key=found.name)
        coded, key, kind = found.tensor_type, found.name, found.tensor_type.name  # `found` itself keeps the file mapped
        if kind in _FLOATS:
            return LazyTensor(_FLOATS[kind], shape, (place,) if place.length else ())

        def dequantised() -> bytes:
            import torch

            raw = torch.frombuffer(bytearray(self._file.read(place.offset, place.length)), dtype=torch.uint8)
            try:
                return bytes(quants.dequantize(raw.numpy(), coded).astype("<f4").tobytes())
            except NotImplementedError as error:
                raise UnsupportedFile(f"{kind} is not read", path=self.name, key=key) from error

        return LazyTensor.produced("F32", shape, dequantised)

    def keys(self) -> Sequence[str]:
        """The names in the order of the file."""
        return tuple(self._tensors)

    def __getitem__(self, key: str) -> LazyTensor:
        return self._tensors[key]

    def __len__(self) -> int:
        return len(self._tensors)

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)


def _reader(path: str) -> Any:
    """The package's reader; it maps the file, and is let go of once the header is read."""
    package = gguf_package(path=path)
    try:
        return package.GGUFReader(path)
    except _DAMAGE as error:
        raise MalformedFile(f"the header of the GGUF file is damaged: {error}", path=path) from error


def _metadata(fields: Mapping[str, Any]) -> dict[str, str]:
    """Scalars and strings of the header but a vocabulary, and the one array that says what an adapter is, as text."""
    found = {}
    for key, field in fields.items():
        if key.startswith("GGUF.") or (len(field.types) != 1 and key != INVOCATION):
            continue
        value = field.contents()
        if not (key.startswith(_TOKENIZER) and len(str(value)) >= _LONG):
            found[key] = str(value)
    return found
