"""A file to be, planned to the byte: which tensor goes where, and the header that says so."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from loratools.errors import InternalError, UsageError
from loratools.tensors.header import (
    METADATA_KEY,
    Entry,
    canonical_order,
    check_key,
    encode_header,
    entries_in_order,
    read_header,
)
from loratools.tensors.lazy import LazyTensor
from loratools.tensors.segments import read_segments, segments_between
from loratools.tensors.source import LocalFile

LateMetadata = Callable[[str], Mapping[str, str]]
"""Metadata that are known late: called first with 64 zeros to make room, then with the SHA-256 of the payload ("" where
none was wanted); the same keys, and values of the same lengths, must come back."""

PLACEHOLDER = "0" * 64
"""What stands for a SHA-256 until it is known."""


class Layout(NamedTuple):
    """What a file will be, to the byte, except for the values of computed tensors; `entries` are in file order."""

    tensors: Mapping[str, LazyTensor]
    entries: Mapping[str, Entry]
    metadata: Mapping[str, str]
    late: LateMetadata | None
    header: bytes
    size: int

    @classmethod
    def of(
        cls,
        tensors: Mapping[str, LazyTensor],
        metadata: Mapping[str, str],
        late: LateMetadata | None = None,
        *,
        keep_order: bool = False,
    ) -> Layout:
        """Lays `tensors` out, in the format's own order or (`keep_order`) in the mapping's."""
        for key, tensor in tensors.items():
            check_key(key, path=None)
            planned = sum(segment.length for segment in tensor.segments)
            if planned != tensor.nbytes:
                raise InternalError(f"{planned} bytes for {tensor.dtype} {list(tensor.shape)}", key=key)
        shapes = {key: (tensor.dtype, tensor.shape) for key, tensor in tensors.items()}
        order = list(shapes) if keep_order else canonical_order(shapes)
        whole = {**metadata, **(late(PLACEHOLDER) if late else {})}
        for name, text in whole.items():
            if not isinstance(name, str) or not isinstance(text, str):
                raise UsageError(f"metadata must be text, {name!r} is {type(text).__name__}", key=METADATA_KEY)
        entries = entries_in_order(order, shapes)
        header = encode_header(entries, whole)
        payload = max((entry.stop for entry in entries.values()), default=0)
        return cls(tensors, entries, whole, late, header, len(header) + payload)

    def final(self, payload_sha256: str | None) -> tuple[bytes, Mapping[str, str]]:
        """The header and the metadata as they must be, now that the payload is known."""
        if self.late is None:
            return self.header, self.metadata
        metadata = {**self.metadata, **self.late(payload_sha256 or "")}
        header = self._encoded(metadata)
        if len(header) != len(self.header):
            raise InternalError("late metadata has another length than its placeholder", key=METADATA_KEY)
        return header, metadata

    def _encoded(self, metadata: Mapping[str, str]) -> bytes:
        return encode_header(self.entries, metadata)

    def compare(self, path: Path, metadata: Mapping[str, str]) -> None:
        """Raise InternalError where the file at `path`, opened anew, states other tensors or metadata than planned."""
        with LocalFile(path) as file:
            header = read_header(file)
        found = {key: (entry.dtype, entry.shape) for key, entry in header.tensors.items()}
        if found != {key: (tensor.dtype, tuple(tensor.shape)) for key, tensor in self.tensors.items()}:
            raise InternalError("the written header is not the planned one", path=path)
        if dict(header.metadata) != dict(metadata):
            raise InternalError("the written metadata are not the planned ones", path=path)

    def window(self, start: int, stop: int) -> bytes:
        """The bytes [start, stop) of the payload, as far as it reaches; computed tensors among them are computed."""
        parts: list[bytes] = []
        for key, entry in self.entries.items():
            first, last = max(start, entry.start), min(stop, entry.stop)
            if first < last:
                cut = segments_between(self.tensors[key].segments, first - entry.start, last - entry.start)
                parts += read_segments(cut)
        return b"".join(parts)
