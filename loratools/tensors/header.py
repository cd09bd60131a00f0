"""The strict safetensors header: what the reference library accepts, less what two readers could read in two ways."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping, Sequence
from operator import itemgetter
from typing import Any, NamedTuple

from loratools.errors import MalformedFile
from loratools.tensors.damage import SNIFFED, explain
from loratools.tensors.dtypes import DTYPES, nbytes
from loratools.tensors.segments import ByteSource
from loratools.tensors.strict_json import strict_json

FORMAT_LIMIT = 100_000_000
"""The longest header the format allows, in bytes."""
HEADER_LIMIT = 32 << 20
"""The longest header that is read, in bytes."""
METADATA_LIMIT = 16 << 20
"""The most metadata that is read, in characters."""
TENSOR_LIMIT = 200_000
KEY_LIMIT = 1024
"""The longest key, in bytes of UTF-8."""
DIMENSION_LIMIT = 8

METADATA_KEY = "__metadata__"
_FIELDS = ("dtype", "shape", "data_offsets")
_fields = itemgetter(*_FIELDS)
_WORD = 1 << 64
_AGAIN = "download the file again, and compare its size with the one the site states"


class Entry(NamedTuple):
    """One tensor: its dtype, shape and bytes [start, stop) counted from the end of the header."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


class Header(NamedTuple):
    """A whole header: tensors in the order of their data, metadata as stored, `length` = 8 + the JSON's bytes.

    `warnings` are oddities that harm nobody, such as fields that the format does not know.
    """

    tensors: Mapping[str, Entry]
    metadata: Mapping[str, str]
    length: int
    warnings: tuple[str, ...] = ()

    @property
    def payload(self) -> int:
        """The bytes that follow the header."""
        return max((entry.stop for entry in self.tensors.values()), default=0)


def parse_header(raw: bytes, *, path: object) -> Header:
    """The header whose JSON part is `raw`; raises MalformedFile for everything that safetensors refuses, and more."""
    if len(raw) > FORMAT_LIMIT:
        raise MalformedFile(f"a header of {len(raw)} bytes is over the format's {FORMAT_LIMIT}", path=path)
    document = strict_json(raw, path=path, what="the header")
    if not isinstance(document, dict):
        raise MalformedFile(f"the header is a JSON {type(document).__name__}, not an object", path=path)
    metadata = _metadata(document.pop(METADATA_KEY, None), path)
    if len(document) > TENSOR_LIMIT:
        raise MalformedFile(f"the header names {len(document)} tensors, more than {TENSOR_LIMIT}", path=path)
    unknown: set[str] = set()
    entries = {key: _entry(key, value, unknown, path) for key, value in document.items()}
    ordered = entries
    if not _is_gapless(entries):
        ordered = dict(sorted(entries.items(), key=lambda item: (item[1].start, item[1].stop)))
    at = 0
    for key, entry in ordered.items():
        if entry.start != at:
            what = f"a hole of {entry.start - at} bytes before it" if entry.start > at else "bytes of another tensor"
            raise MalformedFile(f"the data of {key!r} has {what}", path=path, key=key)
        at = entry.stop
    warnings = tuple(f"the header has the unknown field {name!r}" for name in sorted(unknown))
    return Header(ordered, metadata, 8 + len(raw), warnings)


def _is_gapless(entries: Mapping[str, Entry]) -> bool:
    """Whether each begins where the one before it ends, as nearly every file has them."""
    at = 0
    for entry in entries.values():
        if entry.start != at:
            return False
        at = entry.stop
    return True


def read_header(source: ByteSource) -> Header:
    """The header of a whole file, with its data's length checked against the file's; raises MalformedFile."""
    size, path = source.size, source.name
    start = source.read(0, min(SNIFFED, size))
    if len(start) < 8:
        raise explain(start, size, path=path) or MalformedFile(
            f"the file has {size} bytes, fewer than the 8 that begin every safetensors file", path=path, hint=_AGAIN
        )
    (length,) = struct.unpack("<Q", start[:8])
    opens = start[8:].lstrip(b" \t\r\n")[:1]
    if opens != b"{" or length > FORMAT_LIMIT:
        # Its first bytes tell what it is better than a number that was never a length.
        raise explain(start, size, path=path) or MalformedFile(
            f"no safetensors header: its length would be {length} bytes and it would begin with {opens!r}", path=path
        )
    if length > HEADER_LIMIT:
        raise MalformedFile(f"a header of {length} bytes is over the limit of {HEADER_LIMIT}", path=path)
    if 8 + length > size:
        raise MalformedFile(
            f"the file ends inside its header: {8 + length} bytes are declared, {size} are there",
            path=path,
            hint=_AGAIN,
        )
    header = parse_header(source.read(8, length), path=path)
    _check_size(header, size, path)
    return header


def _check_size(header: Header, size: int, path: object) -> None:
    declared = header.length + header.payload
    if size < declared:
        raise MalformedFile(
            f"the file is cut short: its header describes {declared} bytes, {size} are there",
            path=path,
            hint=f"the download or copy was broken off; {_AGAIN}",
            declared=declared,
            size=size,
        )
    if size > declared:
        raise MalformedFile(f"{size - declared} bytes follow the last tensor", path=path, declared=declared, size=size)


def _metadata(value: Any, path: object) -> dict[str, str]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise MalformedFile(f"{METADATA_KEY} is no object of strings", path=path, key=METADATA_KEY)
    total = 0
    for name, text in value.items():
        if not isinstance(text, str):
            kind = type(text).__name__
            raise MalformedFile(f"{METADATA_KEY} holds a {kind} where only strings may be", path=path, key=name)
        total += len(name) + len(text)
    if total > METADATA_LIMIT:
        raise MalformedFile(f"{total} characters of metadata are over the limit of {METADATA_LIMIT}", path=path)
    return value


def check_key(key: str, *, path: object) -> None:
    """Raises MalformedFile for a tensor key that is empty, too long, reserved, or that some reader would cut short."""
    try:
        length = len(key) if key.isascii() else len(key.encode("utf-8"))
    except UnicodeEncodeError as error:
        raise MalformedFile("a tensor key is not Unicode text", path=path, key=ascii(key)) from error
    if not 0 < length <= KEY_LIMIT:
        raise MalformedFile(f"a tensor key of {length} bytes (1 to {KEY_LIMIT} are read)", path=path, key=key[:80])
    if "\0" in key:
        raise MalformedFile(f"the tensor key {key!r} holds a NUL character", path=path, key=key)
    if key == METADATA_KEY:
        raise MalformedFile(f"{METADATA_KEY} cannot name a tensor", path=path, key=key)


def _entry(key: str, value: Any, unknown: set[str], path: object) -> Entry:
    check_key(key, path=path)

    def refuse(message: str) -> MalformedFile:
        return MalformedFile(f"tensor {key!r}: {message}", path=path, key=key)

    if not isinstance(value, dict):
        raise refuse(f"a JSON {type(value).__name__} where its dtype, shape and data_offsets should be")
    try:
        dtype, shape, offsets = _fields(value)
    except KeyError as missing:
        raise refuse(f"no {missing.args[0]}") from missing
    if len(value) != len(_FIELDS):
        unknown.update(_unknown_fields(value, refuse))
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise refuse(f"unknown dtype {dtype!r}")
    if not _are_words(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise refuse(f"its data_offsets {offsets!r} are no range")
    bits = _bits(dtype, shape, refuse)
    start, stop = offsets
    if bits != (stop - start) * 8:
        raise refuse(f"{dtype} {shape} takes {bits / 8:g} bytes, its data_offsets span {stop - start}")
    return Entry(dtype, tuple(shape), start, stop)


def _unknown_fields(value: Mapping[str, Any], refuse: Callable[[str], MalformedFile]) -> set[str]:
    unknown = value.keys() - set(_FIELDS)
    for name in unknown:
        if isinstance(value[name], dict | list):
            raise refuse(f"the unknown field {name!r} is no plain value")
    return unknown


def _are_words(value: Any) -> bool:
    """Whether it is a list of whole numbers that fit into 64 bits (True and 1.0 are no whole numbers)."""
    if not isinstance(value, list):
        return False
    for item in value:  # noqa: SIM110 - a plain loop is twice as fast, and it runs for every tensor
        if type(item) is not int or not 0 <= item < _WORD:
            return False
    return True


def _bits(dtype: str, shape: Any, refuse: Callable[[str], MalformedFile]) -> int:
    """The bits of `shape` elements of `dtype`; no product on the way may leave 64 bits, even if a zero follows."""
    if not _are_words(shape):
        raise refuse("its shape is no list of whole numbers")
    if len(shape) > DIMENSION_LIMIT:
        raise refuse(f"{len(shape)} dimensions, more than {DIMENSION_LIMIT}")
    count: int = 1
    for extent in shape:
        count *= extent
        if count >= _WORD:
            raise refuse(f"shape {shape} overflows")
    count *= DTYPES[dtype].bits
    if count >= _WORD:
        raise refuse(f"shape {shape} overflows")
    return count


def canonical_order(tensors: Mapping[str, tuple[str, Sequence[int]]]) -> list[str]:
    """The keys in the order in which the format's own writer lays data out: widest dtype first, then by name."""
    return sorted(tensors, key=lambda key: (-DTYPES[tensors[key][0]].rank, key))


def entries_in_order(order: Sequence[str], tensors: Mapping[str, tuple[str, Sequence[int]]]) -> dict[str, Entry]:
    """The entries of (dtype, shape) tensors laid one after another in `order`."""
    found: dict[str, Entry] = {}
    at = 0
    for key in order:
        dtype, shape = tensors[key][0], tuple(tensors[key][1])
        stop = at + nbytes(dtype, shape)
        found[key] = Entry(dtype, shape, at, stop)
        at = stop
    return found


def encode_header(entries: Mapping[str, Entry], metadata: Mapping[str, str]) -> bytes:
    """The length word and the JSON of `entries` in the order given; metadata sorted by key; padded to 8 with spaces."""
    document: dict[str, Any] = {METADATA_KEY: dict(sorted(metadata.items()))} if metadata else {}
    for key, entry in entries.items():
        offsets = [entry.start, entry.stop]
        document[key] = {"dtype": entry.dtype, "shape": list(entry.shape), "data_offsets": offsets}
    text = json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def canonical_header(tensors: Mapping[str, tuple[str, Sequence[int]]], metadata: Mapping[str, str]) -> bytes:
    """The header of (dtype, shape) tensors, byte for byte as the format's own writer makes it (metadata sorted)."""
    return encode_header(entries_in_order(canonical_order(tensors), tensors), metadata)
