"""Factors by role: the words that every kind shares for checking, slicing, stacking and loading them."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from loratools.errors import ArchitectureMismatch, IncompleteAdapter, NotRepresentable
from loratools.model import Scale
from loratools.tensors.dtypes import DTYPES
from loratools.tensors.lazy import LazyTensor, stack_rows

if TYPE_CHECKING:
    import torch

Factors: TypeAlias = Mapping[str, LazyTensor]
Settings: TypeAlias = Mapping[str, Any]

NO_SETTINGS: Settings = MappingProxyType({})
"""No configuration: everything stands in the tensors."""


class Role(NamedTuple):
    """One factor of a kind. `required`: the kind is named by it; `rows`: its first axis is the weight's output axis."""

    name: str
    required: bool = False
    rows: bool = False


def could_be(roles: Sequence[Role], present: Collection[str]) -> bool:
    """Whether every role present is one of `roles` and one of them names the kind; `check` judges completeness."""
    return set(present) <= {role.name for role in roles} and any(r.required and r.name in present for r in roles)


def incomplete(kind: str, message: str, key: str | None, **evidence: Any) -> IncompleteAdapter:
    """The error for factors that do not make an adapter; `expected` and `found` are its evidence."""
    return IncompleteAdapter(f"{kind}: {message}", key=key, kind=kind, **evidence)


def refusal(kind: str, layout: str, why: str, hint: str | None = None) -> NotRepresentable:
    """The error for a layout or an arithmetic that a kind cannot follow."""
    return NotRepresentable(f"{kind} cannot follow {layout!r}: {why}", hint=hint, kind=kind, layout=layout, why=why)


def needs_base(kind: str) -> NotRepresentable:
    """The error for a delta that is a function of the base weight, when there is none."""
    return refusal(kind, "delta", "its delta depends on the base weight", "give the base model (--base)")


def require(kind: str, factors: Factors, names: Sequence[str], key: str | None) -> None:
    """Raise IncompleteAdapter where a role of `names` is missing."""
    lacking = [name for name in names if name not in factors]
    if lacking:
        raise incomplete(kind, f"{' and '.join(lacking)} missing", key, expected=list(names), found=sorted(factors))


def agree(kind: str, what: str, expected: object, found: object, key: str | None) -> None:
    """Raise IncompleteAdapter where two extents that must be equal are not."""
    if expected != found:
        raise incomplete(kind, f"{what} should be {expected}, found {found}", key, expected=expected, found=found)


def not_empty(kind: str, factors: Factors, key: str | None) -> None:
    """Raise IncompleteAdapter where a factor has no element (rank 0 among them)."""
    for name, tensor in factors.items():
        if not tensor.numel:
            raise incomplete(kind, f"{name} {list(tensor.shape)} is empty", key, expected="elements", found=0)


def at_least(kind: str, factors: Factors, name: str, dimensions: int, key: str | None) -> None:
    """Raise IncompleteAdapter where a factor has fewer dimensions than its role needs."""
    if name in factors and len(factors[name].shape) < dimensions:
        shape = list(factors[name].shape)
        raise incomplete(kind, f"{name} {shape} has too few dimensions", key, expected=dimensions, found=len(shape))


def told(factors: Factors, **dimensions: int) -> bool:
    """Whether these roles are there with at least so many dimensions: what a shape can be read from before a check."""
    for name, least in dimensions.items():  # noqa: SIM110 - a plain loop is twice as fast, and it runs for every layer
        if name not in factors or len(factors[name].shape) < least:
            return False
    return True


def flat(tensor: LazyTensor) -> tuple[int, int]:
    """(rows, elements of one row)."""
    return tensor.shape[0], math.prod(tensor.shape[1:])


def spans(sizes: Sequence[int]) -> Iterator[tuple[int, int]]:
    """(start, stop) of every part."""
    start = 0
    for size in sizes:
        yield start, start + size
        start += size


def whole(kind: str, total: int | None, sizes: Sequence[int]) -> None:
    """Raise ArchitectureMismatch where the parts do not make up the rows there are."""
    if total is not None and sum(sizes) != total:
        raise ArchitectureMismatch(
            f"{kind}: {total} rows cannot be shared out as {list(sizes)}", expected=sum(sizes), found=total
        )


def split_by_roles(roles: Sequence[Role], factors: Factors, sizes: Sequence[int]) -> list[dict[str, LazyTensor]]:
    """Factors with an output axis cut into parts of `sizes` rows; the others shared by every part."""
    follows = {role.name for role in roles if role.rows}
    return [
        {name: tensor.rows(start, stop) if name in follows else tensor for name, tensor in factors.items()}
        for start, stop in spans(sizes)
    ]


def swap_by_roles(roles: Sequence[Role], factors: Factors) -> dict[str, LazyTensor]:
    """Factors with an output axis with the halves of their rows exchanged."""
    follows = {role.name for role in roles if role.rows}
    return {name: swapped(name, tensor) if name in follows else tensor for name, tensor in factors.items()}


def swapped(kind: str, tensor: LazyTensor) -> LazyTensor:
    """The second half of the rows before the first; raises NotRepresentable for an odd number."""
    if tensor.shape[0] % 2:
        raise refusal(kind, "swap_halves", f"{tensor.shape[0]} rows have no halves")
    return tensor.swap_halves()


def stack(kind: str, tensors: Sequence[LazyTensor]) -> LazyTensor:
    """Rows one after another; raises NotRepresentable where dtype or the other dimensions differ."""
    try:
        return stack_rows(tensors)
    except ValueError as problem:
        raise refusal(kind, "fuse_rows", str(problem)) from problem


def stack_or_zeros(kind: str, role: str, parts: Sequence[Factors | None], sizes: Sequence[int]) -> LazyTensor | None:
    """One role of all parts stacked, zeros where a part lacks it; None where no part has it."""
    found = [part[role] for part in parts if part is not None and role in part]
    if not found:
        return None
    tail, dtype = found[0].shape[1:], found[0].dtype
    rows: list[LazyTensor] = []
    for part, size in zip(parts, sizes, strict=True):
        tensor = None if part is None else part.get(role)
        if tensor is not None:
            whole(kind, tensor.shape[0], (size,))
        rows.append(LazyTensor.zeros(dtype, (size, *tail)) if tensor is None else tensor)
    return stack(kind, rows)


def same(parts: Sequence[Factors], roles: Sequence[str]) -> bool:
    """Whether all parts have byte-identical factors (or none) in these roles."""
    first = parts[0]
    for part in parts[1:]:
        for role in roles:
            ours, theirs = first.get(role), part.get(role)
            if (ours is None) != (theirs is None) or (ours and theirs and not ours.same_bytes(theirs)):
                return False
    return True


def transposed(tensor: LazyTensor) -> LazyTensor:
    """The transpose of a matrix (trailing dimensions of 1 dropped), computed when its bytes are asked for."""
    rows, columns = flat(tensor)
    if any(extent != 1 for extent in tensor.shape[2:]):
        raise refusal("convolution", "transpose", f"{list(tensor.shape)} is no matrix")
    return LazyTensor.computed(tensor.dtype, (columns, rows), lambda: tensor.load().reshape(rows, columns).T)


def widened(tensor: LazyTensor, dtype: str) -> LazyTensor:
    """The same numbers in a wider element type, computed when the bytes are asked for."""
    if tensor.dtype == dtype:
        return tensor
    name = DTYPES[dtype].torch or ""
    return LazyTensor.computed(dtype, tensor.shape, lambda: load(tensor, name))


def wide_dtype(factors: Factors) -> str:
    """The safetensors dtype for computed factors: F64 where one of them is, else F32, which holds all narrower ones."""
    return "F64" if any(tensor.dtype == "F64" for tensor in factors.values()) else "F32"


def torch_dtype(name: str) -> torch.dtype:
    """Torch's dtype of a safetensors name."""
    import torch

    found: torch.dtype = getattr(torch, DTYPES[name].torch or "")
    return found


def load(tensor: LazyTensor, dtype: str) -> torch.Tensor:
    """The tensor in memory as torch's `dtype` (a torch name: "float32")."""
    import torch

    wanted: torch.dtype = getattr(torch, dtype)
    return tensor.load().to(wanted)


def matrix(tensor: LazyTensor, dtype: str) -> torch.Tensor:
    """The tensor in memory as [rows, everything else]."""
    return load(tensor, dtype).reshape(flat(tensor))


def scaled_bias(factors: Factors, role: str, scale: Scale, dtype: str) -> torch.Tensor | None:
    """scale · bias, flat, or None where the role is absent."""
    return load(factors[role], dtype).reshape(-1) * float(scale) if role in factors else None


def fitted(delta: torch.Tensor, base: torch.Tensor | None) -> torch.Tensor:
    """`delta` in the base weight's shape (1×1 convolution ↔ linear); raises ArchitectureMismatch."""
    if base is None or delta.shape == base.shape:
        return delta
    if delta.numel() != base.numel() or delta.shape[0] != base.shape[0]:
        raise ArchitectureMismatch(
            f"a delta of shape {list(delta.shape)} does not fit a weight of shape {list(base.shape)}",
            expected=list(base.shape),
            found=list(delta.shape),
        )
    return delta.reshape(base.shape)
