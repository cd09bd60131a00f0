"""The scale itself as a tensor, for formats that store no alpha; and its record, where float32 rounds alpha / rank."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import replace
from fractions import Fraction

from loratools.adapters.adapter import Adapter, AdapterSet
from loratools.errors import MalformedFile, NonFinite
from loratools.formats.alpha_tensor import Stored
from loratools.formats.configs import parse_json
from loratools.formats.record import FRACTION
from loratools.tensors.dtypes import DTYPES, encode_scalar
from loratools.tensors.lazy import LazyTensor

SCALES_KEY = "loratools.scales"
_ROUNDED = Fraction(1, 1 << 24)  # the largest relative error of a float32


def scale_tensor(item: Adapter, stored: Stored | None = None) -> LazyTensor:
    """The scale of an adapter as a tensor: of the stored dtype or the factors' where that is exact, else of float32.

    What float32 would flush or has no form for is a float64; raises NonFinite beyond that. A reader multiplies it, so
    that integers are none of its dtypes.
    """
    value, shape = _value(item), stored[1] if stored else ()
    factors = next(iter(item.factors.values())).dtype
    for dtype in (stored[0] if stored else factors, factors, "F32"):
        raw = encode_scalar(value, dtype) if DTYPES[dtype].floating else None
        if raw is not None:
            return LazyTensor.from_bytes(dtype, shape, raw)
    near = _float32(value)
    if near is not None and abs(near - value) <= abs(value) * _ROUNDED:
        return LazyTensor.from_bytes("F32", shape, struct.pack("<f", float(near)))
    try:
        return LazyTensor.from_bytes("F64", shape, struct.pack("<d", float(value)))
    except OverflowError as error:
        raise NonFinite(f"no number of 64 bits holds the scale of {item.target.name}") from error


def rounded_scale(item: Adapter, written: LazyTensor) -> str | None:
    """The exact scale to record for an adapter, where the tensor written for it is not that number."""
    exact = item.scale.numerator
    return str(exact) if item.scale.root == 1 and written.item() != exact else None


def with_exact_scales(adapters: AdapterSet) -> tuple[AdapterSet, tuple[str, ...]]:
    """The set with the scales that an earlier writing rounded, and the names of their layers.

    A recorded scale counts where the one that was read is its rounding: otherwise somebody changed the file since.
    """
    raw = adapters.metadata.get(SCALES_KEY)
    if raw is None:
        return adapters, ()
    origin = next((item.origin for item in adapters.adapters if item.origin), None)
    recorded = _recorded(raw, path=origin.file if origin else None)
    names: list[str] = []
    changed: list[Adapter] = []
    for item in adapters.adapters:
        exact = recorded.get(item.target.name)
        if exact is not None and item.rank and item.scale.root == 1 and _float32(exact) == item.scale.numerator:
            names.append(item.target.name)
            changed.append(replace(item, alpha=item.alpha._replace(value=exact * item.rank)))
        else:
            changed.append(item)
    return replace(adapters, adapters=tuple(changed)), tuple(names)


def dumped(scales: Mapping[str, str]) -> str:
    """The record as it stands in the metadata."""
    return json.dumps(scales, sort_keys=True, separators=(",", ":"))


def _recorded(raw: str, *, path: object) -> dict[str, Fraction]:
    found = parse_json(raw, path=path, key=SCALES_KEY)
    for name, value in found.items():
        if not isinstance(value, str) or FRACTION.fullmatch(value) is None:
            raise MalformedFile(f"the record of scales is damaged ({name})", path=path, key=SCALES_KEY)
    return {name: Fraction(value) for name, value in found.items()}


def _value(item: Adapter) -> Fraction:
    """The scale; a double where it is irrational (rsLoRA)."""
    return item.scale.numerator if item.scale.root == 1 else Fraction(float(item.scale))


def _float32(value: Fraction) -> Fraction | None:
    """The nearest float32, or None where that is infinite."""
    try:
        return Fraction(struct.unpack("<f", struct.pack("<f", float(value)))[0])
    except OverflowError:
        return None
