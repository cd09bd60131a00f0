"""DoRA: a magnitude beside any additive kind. W' = magnitude · V / ‖V‖ with V = W + Δ (arXiv 2402.09353)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from loratools.adapters.factors import Factors, Role, agree, fitted, load, needs_base, refusal, stack
from loratools.tensors.lazy import LazyTensor

if TYPE_CHECKING:
    import torch

MAGNITUDES = (Role("magnitude", rows=True), Role("input_magnitude"))


def is_dora(factors: Factors) -> bool:
    """Whether a magnitude is among the factors."""
    return "magnitude" in factors or "input_magnitude" in factors


def kinds(kind: str, factors: Factors) -> tuple[str, ...]:
    """The kind's name for reports, with "dora" where it has a magnitude."""
    return (kind, "dora") if is_dora(factors) else (kind,)


def check_magnitudes(kind: str, factors: Factors, rows: int, columns: int | None, key: str | None) -> None:
    """Raise IncompleteAdapter where a magnitude does not fit the output axis (or the input axis) or both are there."""
    if "magnitude" in factors:
        agree(kind, "elements of magnitude", rows, factors["magnitude"].numel, key)
        agree(kind, "magnitudes", 1, 1 + ("input_magnitude" in factors), key)
    if "input_magnitude" in factors and columns is not None:
        agree(kind, "elements of input_magnitude", columns, factors["input_magnitude"].numel, key)


def decomposed(delta: torch.Tensor, base: torch.Tensor | None, factors: Factors) -> torch.Tensor:
    """W' − W where the factors hold a magnitude, else `delta` itself, in the base's shape where there is a base.

    The norm runs over everything but the output axis for `magnitude`, over everything but the input axis for
    `input_magnitude`, and is summed in float64. A row of V that is all zero stays zero.
    """
    import torch

    delta = fitted(delta, base)
    if not is_dora(factors):
        return delta
    if base is None:
        raise needs_base("dora")
    weight = base.to(delta.dtype)
    new = weight + delta
    axis = 0 if "magnitude" in factors else 1
    others = [dimension for dimension in range(new.ndim) if dimension != axis]
    norm = torch.linalg.vector_norm(new, dim=others, keepdim=True, dtype=torch.float64)
    magnitude = load(factors["magnitude" if axis == 0 else "input_magnitude"], "float64").reshape(norm.shape)
    factor = magnitude / torch.where(norm == 0, torch.ones_like(norm), norm)
    return new.mul_(factor.to(new.dtype)).sub_(weight)  # in place: each copy of a large weight costs as much as a sum


def refuse_input_axis(kind: str, layout: str, factors: Factors) -> None:
    """Raise NotRepresentable where a norm over all fused rows makes the parts depend on each other."""
    if "input_magnitude" in factors:
        raise refusal(
            kind, layout, "an input-axis magnitude is a norm over all fused rows", "try --allow-lossy with --base"
        )


def fused_magnitude(kind: str, parts: Sequence[Factors | None]) -> LazyTensor | None:
    """The output-axis magnitudes of all parts stacked; raises NotRepresentable where only some parts have one."""
    found = [part["magnitude"] for part in parts if part is not None and "magnitude" in part]
    for part in parts:
        if part is not None:
            refuse_input_axis(kind, "fuse_rows", part)
    if found and len(found) < len(parts):
        raise refusal(
            kind, "fuse_rows", "a part without magnitude would need the row norms of the base", "give every part DoRA"
        )
    return stack(kind, found) if found else None
