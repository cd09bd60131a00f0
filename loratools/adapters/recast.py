"""Arithmetic on whole adapters that somebody asked for: another dtype, or alpha multiplied into the factors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from typing import TYPE_CHECKING

from loratools.adapters.adapter import Adapter
from loratools.errors import NonFinite, NotRepresentable, UsageError, nearest
from loratools.model import Alpha, Scale
from loratools.tensors.dtypes import DTYPES
from loratools.tensors.lazy import LazyTensor

if TYPE_CHECKING:
    import torch

WRITABLE = ("BF16", "F16", "F32", "F64")
# The factors of each kind that may take the scale: one of each pair, whichever is larger by value, so that little is lost.
_SCALED: dict[str, tuple[tuple[str, ...], ...]] = {
    "lora": (("up", "down"), ("embedding_up", "embedding_down")),
    "loha": (("w1_a", "w1_b"),),
    "lokr": (("w1", "w1_a", "w2", "w2_a"),),
    "glora": (),
}
_BIASES = ("up_bias",)


def cast(tensor: torch.Tensor, dtype: str, name: str) -> torch.Tensor:
    """Round to a dtype; raises NonFinite where a finite value has no finite form in it."""
    import torch

    found = tensor.to(getattr(torch, DTYPES[dtype].torch or ""))
    if not torch.isfinite(found).all() and torch.isfinite(tensor).all():
        raise NonFinite(f"{name} overflows in {dtype}", key=name, hint="choose a dtype with a wider range, such as BF16")
    return found


def _check_dtype(dtype: str) -> None:
    if dtype not in WRITABLE:
        raise UsageError(f"unknown dtype {dtype!r}", hint=nearest(dtype, WRITABLE) or f"one of {', '.join(WRITABLE)}")


def recast(item: Adapter, dtype: str) -> Adapter:
    """The adapter with every floating factor in `dtype`, rounded once; raises UsageError for a dtype nobody reads."""
    _check_dtype(dtype)
    return replace(item, factors={role: _as(tensor, dtype, role, item) for role, tensor in item.factors.items()})


def _as(tensor: LazyTensor, dtype: str, role: str, item: Adapter) -> LazyTensor:
    if tensor.dtype == dtype or not DTYPES[tensor.dtype].floating:
        return tensor
    name = item.origin.keys.get(role, role) if item.origin else role
    return LazyTensor.computed(dtype, tensor.shape, lambda: cast(tensor.load(), dtype, name))


def fold(item: Adapter, dtype: str | None) -> Adapter:
    """The adapter with its scale multiplied into the larger factor: scale 1, no alpha.

    The factor keeps its dtype where that is exact, value by value (a power of two, nothing subnormal); else it becomes
    float32, unless `dtype` says what the caller will round it to anyway.
    """
    if item.scale.equals(Scale(Fraction(1))):
        return replace(item, alpha=Alpha())
    pairs = [[role for role in pair if role in item.factors] for pair in _SCALED.get(item.kind, ())]
    roles = next((pair for pair in pairs if pair), None)
    if roles is None:
        if item.rank is None:
            return item
        raise NotRepresentable(
            f"{item.kind} on {item.target.name} has no factor that could take its scale", hint="keep alpha: --alpha keep"
        )
    scale = float(item.scale)
    role = _largest(item, roles)
    changed = {role: _times(item.factors[role], scale, dtype)}
    changed |= {name: _times(item.factors[name], scale, dtype) for name in _BIASES if name in item.factors}
    return replace(item, factors={**item.factors, **changed}, alpha=Alpha())


def _largest(item: Adapter, roles: Sequence[str]) -> str:
    """The factor with the largest element."""
    return max(roles, key=lambda role: float(item.factors[role].load().double().abs().max()))


def _times(tensor: LazyTensor, scale: float, dtype: str | None) -> LazyTensor:
    """tensor · scale, in its own dtype where every value stays exact, else in float32 (float64 for a float64 tensor)."""
    import torch

    def product() -> torch.Tensor:
        loaded = tensor.load()
        return loaded * scale if loaded.dtype == torch.float64 else loaded.float() * scale

    wide = "F64" if tensor.dtype == "F64" else "F32"
    exact = torch.equal(product().to(tensor.load().dtype).double() / scale, tensor.load().double())
    if exact and dtype is None:
        own = tensor.load().dtype
        return LazyTensor.computed(tensor.dtype, tensor.shape, lambda: product().to(own))
    return LazyTensor.computed(wide, tensor.shape, product)
