"""The sparse residual beside a LoRA: what its rank could not hold, as single elements of the weight's delta.

LyCORIS' extraction writes `bias_indices` [2, n] (row; column of the flattened weight), `bias_values` [n] and
`bias_size` [2]. Readers add it to up · down before they multiply by the scale. The positions are 16-bit, so those
beyond 32767 were stored as negative numbers: they are read modulo 2¹⁶, which is certain up to 65536 rows or columns.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from loratools.adapters.factors import Factors, Role, agree, incomplete, load, refusal, require

if TYPE_CHECKING:
    import torch

RESIDUAL = "residual_values"
ROLES = (Role("residual_indices"), Role(RESIDUAL), Role("residual_size"))

_WRAP = 2**16


def check_residual(kind: str, factors: Factors, key: str | None) -> None:
    """Raise IncompleteAdapter where a part of the residual is missing or their extents differ."""
    present = [role.name for role in ROLES if role.name in factors]
    if not present:
        return
    require(kind, factors, [role.name for role in ROLES], key)
    indices, values, size = (factors[role.name] for role in ROLES)
    agree(kind, "extents of residual_indices", (2, values.numel), indices.shape, key)
    agree(kind, "elements of residual_size", 2, size.numel, key)


def refuse_residual(kind: str, layout: str, factors: Factors) -> None:
    """Raise NotRepresentable where there is a residual: its elements are bound to their places in the whole weight."""
    if RESIDUAL in factors:
        raise refusal(kind, layout, "its sparse residual is bound to places in the whole weight", "try --allow-lossy")


def with_residual(product: torch.Tensor, kind: str, factors: Factors) -> torch.Tensor:
    """`product` [out, in·kernel] plus the residual, where there is one.

    Raises IncompleteAdapter for a residual of another size or with an element outside the weight.
    """
    import torch

    if RESIDUAL not in factors:
        return product
    indices, size = (load(factors[role], "int64") for role in ("residual_indices", "residual_size"))
    if factors["residual_indices"].dtype == "I16":
        if max(product.shape) > _WRAP:
            raise refusal(kind, "delta", f"16-bit positions cannot tell the elements of {list(product.shape)} apart")
        indices %= _WRAP
    found = size.reshape(-1).tolist()
    if any((told - extent) % _WRAP for told, extent in zip(found, product.shape, strict=True)):
        raise incomplete(kind, "a residual of another size", None, expected=list(product.shape), found=found)
    limits = torch.tensor(product.shape).reshape(2, 1)
    if bool(((indices < 0) | (indices >= limits)).any()):
        outside = indices.amax(1).tolist()
        raise incomplete(kind, "a residual outside the weight", None, expected=list(product.shape), found=outside)
    values = load(factors[RESIDUAL], str(product.dtype).removeprefix("torch.")).reshape(-1)
    return product.index_put((indices[0], indices[1]), values, accumulate=True)
