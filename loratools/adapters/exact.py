"""Whether two adapters of one path make exactly the same delta, without forming it: by bytes, by zeros, by value."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import TYPE_CHECKING

from loratools.adapters.adapter import Adapter
from loratools.adapters.factors import Factors, load
from loratools.adapters.fold import is_power_of_two
from loratools.adapters.kind import constraint_of, kind_of
from loratools.adapters.lora import LORA
from loratools.adapters.ownership import only_these_columns, zero_bytes
from loratools.adapters.settings import beyond_scale
from loratools.model import Scale
from loratools.tensors.dtypes import DTYPES
from loratools.tensors.lazy import LazyTensor

if TYPE_CHECKING:
    import torch


def identical(ours: Adapter, theirs: Adapter) -> bool:
    """The same kind and roles, factors of equal bytes, and exactly equal scales."""
    if ours.kind != theirs.kind or not _same_strength(ours, theirs):
        return False
    return ours.factors.keys() == theirs.factors.keys() and all(
        same_values(tensor, theirs.factors[role]) for role, tensor in ours.factors.items()
    )


def same_values(ours: LazyTensor, theirs: LazyTensor) -> bool:
    """Equal bytes in shapes that differ at most by trailing dimensions of 1 (a 1×1 convolution is a linear layer)."""
    if ours.shape == theirs.shape:
        return ours.same_bytes(theirs)
    if _stripped(ours.shape) != _stripped(theirs.shape):
        return False
    return ours.same_bytes(theirs.reshape(*ours.shape))


def zero(adapter: Adapter) -> bool:
    """Whether the delta is zero because an additive factor of it is all zero bytes, and nothing stands beside."""
    kind = kind_of(adapter.kind)
    others = set(adapter.factors) - set(kind.product)
    if not all(role in (*kind.biases, "bias_diff") and zero_bytes(adapter.factors[role]) for role in others):
        return False
    present = [role for role in kind.product if role in adapter.factors]
    if not present:
        return bool(others)
    return adapter.scale.numerator == 0 or any(zero_bytes(adapter.factors[role]) for role in present)


def widened_rank(narrow: Adapter, wide: Adapter) -> bool:
    """Whether `wide` is `narrow` among columns of `up` that are all zero: a LoRA in or out of a block-diagonal fuse."""
    if not narrow.kind == wide.kind == LORA.name or not _same_strength(narrow, wide):
        return False
    ours, theirs = narrow.factors, wide.factors
    if ours.keys() != theirs.keys() or "down" not in ours:
        return False
    rank, more = ours["down"].shape[0], theirs["down"].shape[0]
    beside = [role for role in ours if role not in ("down", "up", "mid")]
    if rank >= more or not all(same_values(ours[role], theirs[role]) for role in beside):
        return False
    first = _offset(ours["down"], theirs["down"])
    while first is not None:
        if _is_block(ours, theirs, first, first + rank):
            return True
        first = _offset(ours["down"], theirs["down"], first + 1)
    return False


def same_product(ours: Adapter, theirs: Adapter) -> bool:
    """Whether every factor is the other's times a power of two, value by value, and the scales make up for it exactly.

    Casts to a wider dtype are the power 0. Biases must carry the scale's change; everything else must be equal.
    """
    if ours.kind != theirs.kind or ours.factors.keys() != theirs.factors.keys():
        return False
    if not _same_rules(ours, theirs):
        return False
    kind = kind_of(ours.kind)
    powers: dict[str, Fraction] = {}
    for role, tensor in ours.factors.items():
        power = _power(tensor, theirs.factors[role])
        if power is None:
            return False
        powers[role] = power
    change = math.prod((powers[role] for role in kind.product if role in powers), start=Fraction(1))
    fixed = all(powers[role] == 1 for role in powers if role not in (*kind.product, *kind.biases))
    biases = all(_times(theirs.scale, powers[role]).equals(ours.scale) for role in kind.biases if role in powers)
    return fixed and biases and _times(theirs.scale, change).equals(ours.scale)


def _same_strength(ours: Adapter, theirs: Adapter) -> bool:
    return ours.scale.equals(theirs.scale) and _same_rules(ours, theirs)


def _same_rules(ours: Adapter, theirs: Adapter) -> bool:
    if constraint_of(ours) != constraint_of(theirs):
        return False
    return beyond_scale(ours.settings) == beyond_scale(theirs.settings)


def _times(scale: Scale, factor: Fraction) -> Scale:
    return Scale(scale.numerator * factor, scale.root)


def _stripped(shape: tuple[int, ...]) -> tuple[int, ...]:
    while shape and shape[-1] == 1:
        shape = shape[:-1]
    return shape


def _offset(ours: LazyTensor, theirs: LazyTensor, start: int = 0) -> int | None:
    """The first row from `start` on at which the rows of `ours` stand in `theirs`."""
    if ours.dtype != theirs.dtype or ours.row_bytes != theirs.row_bytes:
        return None
    needle, hay, width = ours.tobytes(), theirs.tobytes(), theirs.row_bytes
    at = hay.find(needle, start * width)
    while at >= 0 and at % width:
        at = hay.find(needle, at + 1)
    return at // width if at >= 0 else None


def _is_block(ours: Factors, theirs: Factors, first: int, last: int) -> bool:
    """Whether the columns [first, last) of the wider `up` are ours and the others zero (and likewise the core)."""
    up = theirs["up"]
    if not same_values(ours["up"], up.columns(first, last)) or not only_these_columns(up, (first, last)):
        return False
    if "mid" not in ours:
        return True
    rows = theirs["mid"].rows(first, last)
    return same_values(ours["mid"], rows.columns(first, last)) and only_these_columns(rows, (first, last))


def _power(ours: LazyTensor, theirs: LazyTensor) -> Fraction | None:
    """The power of two p with theirs = p · ours in every element; 1 for two zeros; None where there is none."""
    import torch

    if _stripped(ours.shape) != _stripped(theirs.shape):
        return None
    left, right = (_doubles(tensor) for tensor in (ours, theirs))
    if left is None or right is None:
        return None
    if not left.numel():
        return Fraction(1)
    at = int(left.abs().argmax())
    largest, other = float(left[at]), float(right[at])
    if not math.isfinite(largest) or not math.isfinite(other):
        return None
    if largest == 0:
        return Fraction(1) if not bool(right.any()) else None
    power = Fraction(other) / Fraction(largest)
    if not is_power_of_two(power):
        return None
    return power if bool(torch.equal(left * float(power), right)) else None


def _doubles(tensor: LazyTensor) -> torch.Tensor | None:
    """The values as float64, which holds every narrower float exactly; None for dtypes that it, or torch, lacks."""
    if DTYPES[tensor.dtype].torch is None or tensor.dtype in ("I64", "U64"):
        return None
    return load(tensor, "float64").reshape(-1)
