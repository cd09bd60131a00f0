"""Arithmetic on whole adapters that changes no delta but by rounding: other dtypes, and alpha multiplied in."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from typing import TYPE_CHECKING

from loratools.adapters.adapter import Adapter
from loratools.adapters.factors import load
from loratools.adapters.fold import folded
from loratools.adapters.kind import kind_of
from loratools.errors import NonFinite, UsageError
from loratools.model import Alpha, Scale
from loratools.tensors.dtypes import DTYPES
from loratools.tensors.lazy import LazyTensor

if TYPE_CHECKING:
    import torch

_FLOATS = frozenset(name for name, row in DTYPES.items() if row.floating and row.torch)


def fold(adapter: Adapter, dtype: str | None = None) -> Adapter:
    """The same delta at scale 1: the scale is multiplied into a factor, and alpha is absent.

    A power of two stays in the factor's dtype where every value allows it; anything else is computed in float32, to be
    cast once, to `dtype` if that is given. Kinds whose alpha is no scale are returned as they are.
    """
    kind = kind_of(adapter.kind)
    if kind.constrained:
        return adapter
    if adapter.scale.equals(Scale(Fraction(1))):
        return replace(adapter, alpha=Alpha())
    factors, _ = folded(kind, adapter.factors, adapter.scale)
    return recast(replace(adapter, factors=factors, alpha=Alpha()), dtype)


def recast(adapter: Adapter, dtype: str | None) -> Adapter:
    """The same adapter with its floating factors in `dtype` (a safetensors name); alpha is untouched.

    Raises UsageError for what is no dtype of floats; NonFinite, when the bytes are asked for, where a finite value has
    no finite form in `dtype`.
    """
    if dtype is None:
        return adapter
    if dtype not in _FLOATS:
        raise UsageError(f"factors cannot be {dtype!r}", hint="F16, BF16 or F32")
    keys = adapter.origin.keys if adapter.origin else {}
    file = adapter.origin.file if adapter.origin else None
    factors = {
        role: _cast(tensor, dtype, keys.get(role, f"{adapter.target.name} ({role})"), file)
        for role, tensor in adapter.factors.items()
    }
    return replace(adapter, factors=factors)


def _cast(tensor: LazyTensor, dtype: str, key: str, file: str | None) -> LazyTensor:
    if tensor.dtype == dtype or not DTYPES[tensor.dtype].floating:
        return tensor

    def produce() -> torch.Tensor:
        import torch

        values, cast = tensor.load(), load(tensor, DTYPES[dtype].torch or "")
        if bool(torch.isfinite(values.float()).logical_and(~torch.isfinite(cast.float())).any()):
            raise NonFinite(f"a finite value of {key} overflows in {dtype}", path=file, key=key, hint="try BF16 or F32")
        return cast

    return LazyTensor.computed(dtype, tensor.shape, produce)
