"""Full differences: Δ is stored as it is, for the weight (`diff`) and the bias (`bias_diff`).

Some files hold the new weight itself (`replacement`): Δ is then what it takes from the base's to that.
"""
# ruff: noqa: ARG002 - the signatures are the protocol's; not every kind needs every argument

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import TYPE_CHECKING

from loratools.adapters.factors import (
    NO_SETTINGS,
    Factors,
    Role,
    Settings,
    agree,
    fitted,
    incomplete,
    load,
    needs_base,
    not_empty,
    refusal,
    scaled_bias,
    split_by_roles,
    stack_or_zeros,
    swap_by_roles,
    transposed,
    whole,
)
from loratools.adapters.traits import Named
from loratools.model import Scale
from loratools.tensors.lazy import LazyTensor

if TYPE_CHECKING:
    import torch

REPLACEMENT = "replacement"


class Stored(Named):
    """A kind whose delta is stored whole: `weight` [out, …] and `bias` [out] are its two roles. It has no rank.

    `replacement` stands in the place of `weight` where a file holds the weight as it is to be.
    """

    constrained = False

    def __init__(self, name: str, weight: str, bias: str) -> None:
        self.name = name
        self.weight, self.bias = weight, bias
        self.roles = tuple(Role(role, required=True, rows=True) for role in (weight, bias, REPLACEMENT))
        self.product = (weight,)
        self.biases = (bias,)

    def needs_base(self, factors: Factors) -> bool:
        """Only a difference of the bias alone, whose weight's shape is not known, and a weight to put in its place."""
        return self.weight not in factors

    def rank(self, factors: Factors) -> int | None:
        """None: nothing to divide an alpha by."""
        return None

    def weight_shape(self, factors: Factors) -> tuple[int | None, ...] | None:
        """The shape of the stored weight; only (out, None) is known where there is a bias alone."""
        stored = factors.get(self.weight) or factors.get(REPLACEMENT)
        if stored:
            return stored.shape
        if self.bias not in factors:
            return None
        return (factors[self.bias].numel, None) if self.name == "full" else (factors[self.bias].numel,)

    def check(self, factors: Factors, key: str | None = None) -> None:
        """Raise IncompleteAdapter for no factor at all, an empty one, a bias that does not fit the weight, or a weight
        beside a difference of it.
        """
        if not factors:
            raise incomplete(self.name, "no factor", key, expected=[self.weight], found=[])
        not_empty(self.name, factors, key)
        held = [role for role in (self.weight, REPLACEMENT) if role in factors]
        if len(held) > 1:
            raise incomplete(self.name, "a difference and a weight in one", key, expected=held[:1], found=held)
        for role in held:
            if not factors[role].shape:
                raise incomplete(self.name, f"{role} is a scalar", key, expected=1, found=0)
        if held and self.bias in factors:
            rows = factors[held[0]].shape[0]
            agree(self.name, f"elements of {self.bias}", rows, factors[self.bias].numel, key)

    def delta(
        self,
        factors: Factors,
        scale: Scale,
        base: torch.Tensor | None = None,
        *,
        dtype: str = "float32",
        constraint: Fraction | None = None,
        settings: Settings = NO_SETTINGS,
    ) -> torch.Tensor:
        """The stored difference, or `replacement` − base; zeros in the base's shape where only the bias has one."""
        import torch

        if self.weight in factors:
            return fitted(load(factors[self.weight], dtype) * float(scale), base)
        if base is None:
            raise needs_base(self.name)
        if REPLACEMENT in factors:
            return (fitted(load(factors[REPLACEMENT], dtype), base) - base.to(getattr(torch, dtype))) * float(scale)
        return torch.zeros(base.shape, dtype=getattr(torch, dtype))

    def bias_delta(
        self, factors: Factors, scale: Scale, base: torch.Tensor | None = None, *, dtype: str = "float32"
    ) -> torch.Tensor | None:
        """The stored difference of the bias [out], or None."""
        return scaled_bias(factors, self.bias, scale, dtype)

    def split_rows(self, factors: Factors, sizes: Sequence[int]) -> list[dict[str, LazyTensor]]:
        """Both differences sliced: exact."""
        whole(self.name, (self.weight_shape(factors) or (None,))[0], sizes)
        return split_by_roles(self.roles, factors, sizes)

    def fuse_rows(self, parts: Sequence[Factors | None], sizes: Sequence[int]) -> dict[str, LazyTensor]:
        """Both differences stacked, zeros where a part lacks one: exact. Weights can be stacked where all are there."""
        if any(REPLACEMENT in (part or {}) for part in parts) and not all(
            REPLACEMENT in (part or {}) for part in parts
        ):
            raise refusal(self.name, "fuse_rows", "a part keeps its weight, which the base model alone has")
        fused = {role.name: stack_or_zeros(self.name, role.name, parts, sizes) for role in self.roles}
        return {role: tensor for role, tensor in fused.items() if tensor is not None}

    def swap_halves(self, factors: Factors) -> dict[str, LazyTensor]:
        """The halves of the rows exchanged."""
        return swap_by_roles(self.roles, factors)

    def transpose(self, factors: Factors) -> dict[str, LazyTensor]:
        """The difference (or the replacement) of the transposed weight."""
        if self.bias in factors or any(len(tensor.shape) < 2 for tensor in factors.values()):
            raise refusal(self.name, "transpose", "only a matrix has a transpose")
        return {role: transposed(tensor) for role, tensor in factors.items()}


FULL = Stored("full", "diff", "bias_diff")
