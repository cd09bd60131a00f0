"""The way back from a fold: the alpha and the dtypes that an adapter had before its scale was multiplied in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from fractions import Fraction
from typing import TYPE_CHECKING

from loratools.adapters.adapter import Adapter
from loratools.adapters.factors import load, widened
from loratools.adapters.fold import folded
from loratools.adapters.kind import kind_of
from loratools.model import Scale
from loratools.tensors.dtypes import DTYPES
from loratools.tensors.lazy import LazyTensor

if TYPE_CHECKING:
    import torch


def unfolded(adapter: Adapter, alpha: Fraction | None, dtypes: Mapping[str, str]) -> Adapter:
    """The adapter as it was with `alpha` and factors of `dtypes` (by role), where folding that again gives these very
    bytes; otherwise the adapter as it is, for then the record is about other values.
    """
    kind = kind_of(adapter.kind)
    before = replace(adapter, alpha=adapter.alpha._replace(value=alpha))
    now, then = adapter.scale, before.scale
    if not now.numerator or not then.numerator:
        return before if now.equals(then) else adapter
    # then / now: n₁/√a · √b/n₂ = n₁·b / (n₂·√(a·b))
    ratio = Scale.of(then.numerator / now.numerator * now.root, then.root * now.root)
    changed = {role for role, tensor in adapter.factors.items() if dtypes.get(role, tensor.dtype) != tensor.dtype}
    if not ratio.equals(Scale(Fraction(1))):
        role = next((name for name in kind.product if name in adapter.factors), None)
        if role is None:
            return adapter
        scaled = {role, *(bias for bias in kind.biases if bias in adapter.factors)}
    else:
        scaled = set()
    factors = {
        role: _divided(tensor, float(ratio) if role in scaled else 1.0, dtypes.get(role, tensor.dtype))
        if role in scaled | changed
        else tensor
        for role, tensor in adapter.factors.items()
    }
    again = folded(kind, factors, ratio)[0] if scaled else factors
    for role in scaled | changed:
        if not widened(again[role], adapter.factors[role].dtype).same_bytes(adapter.factors[role]):
            return adapter
    return replace(before, factors=factors)


def _divided(tensor: LazyTensor, ratio: float, dtype: str) -> LazyTensor:
    def produce() -> torch.Tensor:
        import torch

        wanted: torch.dtype = getattr(torch, DTYPES[dtype].torch or "")
        return (load(tensor, "float64") / ratio).to(wanted)

    return LazyTensor.computed(dtype, tensor.shape, produce)
