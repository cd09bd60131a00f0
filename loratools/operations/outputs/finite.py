"""NaN and infinity where values are computed: an input's are refused unless allowed, those that we made always.

A conversion that renames copies bytes and looks at no value: what was NaN stays NaN, and is proven identical.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from loratools.adapters.adapter import Adapter
from loratools.adapters.blame import named
from loratools.errors import NonFinite
from loratools.tensors.lazy import LazyTensor

_ALLOW = "--allow-nonfinite goes on with them"


def guarded(before: Adapter, after: Adapter, *, allow: bool) -> Adapter:
    """`after`, made from `before` by arithmetic, so that every computed factor is checked when its bytes are asked for.

    Raises NonFinite then: for NaN and infinity that come from `before` unless `allow`, for overflow always.
    """
    factors = {
        role: tensor if tensor is before.factors[role] else _checked(before, role, tensor, allow=allow)
        for role, tensor in after.factors.items()
    }
    return replace(after, factors=factors)


def holds_nonfinite(adapters: Sequence[Adapter]) -> bool:
    """Whether any factor holds NaN or infinity; reads them all."""
    return any(not is_finite(tensor) for item in adapters for tensor in item.factors.values())


def is_finite(tensor: LazyTensor) -> bool:
    """Whether every element is a finite number; reads the tensor."""
    import torch

    values = tensor.load()
    if not values.is_floating_point():
        return True
    return bool(torch.isfinite(values.float() if values.element_size() < 4 else values).all())


def _checked(before: Adapter, role: str, made: LazyTensor, *, allow: bool) -> LazyTensor:
    source = before.factors[role]
    key = before.origin.keys.get(role) if before.origin else None
    path = before.origin.file if before.origin else None
    name = key or f"{before.target.name} ({role})"

    def produce() -> bytes:
        with named(before):
            sound = is_finite(source)
        if not sound and not allow:
            raise NonFinite(f"{name} holds NaN or infinity", path=path, key=key, hint=_ALLOW)
        data = made.tobytes()
        if sound and not is_finite(LazyTensor.from_bytes(made.dtype, made.shape, data)):
            raise NonFinite(f"a finite value of {name} overflows in {made.dtype}", path=path, key=key)
        return data

    return LazyTensor.produced(made.dtype, made.shape, produce)
