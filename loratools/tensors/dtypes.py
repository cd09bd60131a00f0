"""The element types of a safetensors file: width, order in the header, torch's name, exact scalars without torch."""

from __future__ import annotations

import struct
from collections.abc import Callable
from fractions import Fraction
from typing import NamedTuple


class Dtype(NamedTuple):
    """One element type; `bits` is its width, `rank` its place in the format's own ordering."""

    name: str
    bits: int
    rank: int
    torch: str | None
    floating: bool
    decode: Callable[[bytes], float | int] | None


def _unpack(code: str) -> Callable[[bytes], float | int]:
    return lambda raw: struct.unpack("<" + code, raw)[0]


def _bfloat16(raw: bytes) -> float:
    return float(struct.unpack("<f", b"\0\0" + raw)[0])


# The order is that of the format's own enumeration: writers sort tensors by it, downwards, then by name.
_ROWS: tuple[tuple[str, int, str | None, bool, Callable[[bytes], float | int] | None], ...] = (
    ("BOOL", 8, "bool", False, _unpack("B")),
    ("F4", 4, None, True, None),
    ("F6_E2M3", 6, None, True, None),
    ("F6_E3M2", 6, None, True, None),
    ("U8", 8, "uint8", False, _unpack("B")),
    ("I8", 8, "int8", False, _unpack("b")),
    ("F8_E5M2", 8, "float8_e5m2", True, None),
    ("F8_E4M3", 8, "float8_e4m3fn", True, None),
    ("F8_E8M0", 8, "float8_e8m0fnu", True, None),
    ("F8_E4M3FNUZ", 8, "float8_e4m3fnuz", True, None),
    ("F8_E5M2FNUZ", 8, "float8_e5m2fnuz", True, None),
    ("I16", 16, "int16", False, _unpack("h")),
    ("U16", 16, "uint16", False, _unpack("H")),
    ("F16", 16, "float16", True, _unpack("e")),
    ("BF16", 16, "bfloat16", True, _bfloat16),
    ("I32", 32, "int32", False, _unpack("i")),
    ("U32", 32, "uint32", False, _unpack("I")),
    ("F32", 32, "float32", True, _unpack("f")),
    ("C64", 64, "complex64", False, None),
    ("F64", 64, "float64", True, _unpack("d")),
    ("I64", 64, "int64", False, _unpack("q")),
    ("U64", 64, "uint64", False, _unpack("Q")),
)

DTYPES: dict[str, Dtype] = {
    name: Dtype(name, bits, rank, torch, floating, decode)
    for rank, (name, bits, torch, floating, decode) in enumerate(_ROWS)
}
BY_TORCH: dict[str, str] = {row.torch: name for name, row in DTYPES.items() if row.torch}

_ENCODE = {"F16": "e", "F32": "f", "F64": "d", "I64": "q", "I32": "i", "I16": "h", "I8": "b", "U8": "B"}


def nbytes(dtype: str, shape: tuple[int, ...]) -> int:
    """The bytes that `shape` elements of `dtype` take; a part of a byte counts as a whole one."""
    bits = DTYPES[dtype].bits
    for extent in shape:
        bits *= extent
    return (bits + 7) // 8


def encode_scalar(value: Fraction, dtype: str) -> bytes | None:
    """The bytes of `value` in `dtype` when that holds it exactly, else None."""
    try:
        if dtype == "BF16":
            raw = struct.pack("<f", float(value))
            return raw[2:] if raw[:2] == b"\0\0" and Fraction(_bfloat16(raw[2:])) == value else None
        code = _ENCODE[dtype]
        if code in "efd":
            raw = struct.pack("<" + code, float(value))
            return raw if Fraction(struct.unpack("<" + code, raw)[0]) == value else None
        return struct.pack("<" + code, int(value)) if value.denominator == 1 else None
    except (KeyError, OverflowError, struct.error):
        return None
