"""Full differences: Δ is stored as it is, for the weight (`diff`) and the bias (`bias_diff`)."""
# ruff: noqa: ARG002 - the signatures are the protocol's; not every kind needs every argument

from __future__ import annotations

from collections.abc import Collection, Sequence
from fractions import Fraction
from typing import TYPE_CHECKING

from loratools.adapters.factors import (
    NO_SETTINGS,
    Factors,
    Role,
    Settings,
    agree,
    could_be,
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
from loratools.model import Scale
from loratools.tensors.lazy import LazyTensor

if TYPE_CHECKING:
    import torch


class Stored:
    """A kind whose delta is stored whole: `weight` [out, …] and `bias` [out] are its two roles. It has no rank."""

    constrained = False

    def __init__(self, name: str, weight: str, bias: str) -> None:
        self.name = name
        self.weight, self.bias = weight, bias
        self.roles = (Role(weight, required=True, rows=True), Role(bias, required=True, rows=True))
        self.product = (weight,)
        self.biases = (bias,)

    def identify(self, present: Collection[str]) -> bool:
        """Whether these roles could be this kind's."""
        return could_be(self.roles, present)

    def kinds(self, factors: Factors) -> tuple[str, ...]:
        """The kind's own name."""
        return (self.name,)

    def needs_base(self, factors: Factors) -> bool:
        """Only a difference of the bias alone, whose weight's shape is not known."""
        return self.weight not in factors

    def rank(self, factors: Factors) -> int | None:
        """None: nothing to divide an alpha by."""
        return None

    def weight_shape(self, factors: Factors) -> tuple[int | None, ...] | None:
        """The shape of the stored difference; only (out, None) is known where there is a bias alone."""
        if self.weight in factors:
            return factors[self.weight].shape
        if self.bias not in factors:
            return None
        return (factors[self.bias].numel, None) if self.name == "full" else (factors[self.bias].numel,)

    def check(self, factors: Factors, key: str | None = None) -> None:
        """Raise IncompleteAdapter for no factor at all, an empty one, or a bias that does not fit the weight."""
        if not factors:
            raise incomplete(self.name, "no factor", key, expected=[self.weight], found=[])
        not_empty(self.name, factors, key)
        if self.weight in factors and not factors[self.weight].shape:
            raise incomplete(self.name, f"{self.weight} is a scalar", key, expected=1, found=0)
        if self.weight in factors and self.bias in factors:
            rows = factors[self.weight].shape[0]
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
        """The stored difference; zeros in the base's shape where only the bias has one."""
        import torch

        if self.weight in factors:
            return fitted(load(factors[self.weight], dtype) * float(scale), base)
        if base is None:
            raise needs_base(self.name)
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
        """Both differences stacked, zeros where a part lacks one: exact."""
        fused = {role.name: stack_or_zeros(self.name, role.name, parts, sizes) for role in self.roles}
        return {role: tensor for role, tensor in fused.items() if tensor is not None}

    def swap_halves(self, factors: Factors) -> dict[str, LazyTensor]:
        """The halves of the rows exchanged."""
        return swap_by_roles(self.roles, factors)

    def transpose(self, factors: Factors) -> dict[str, LazyTensor]:
        """The difference of the transposed weight."""
        if self.bias in factors or len(factors[self.weight].shape) < 2:
            raise refusal(self.name, "transpose", "only a matrix has a transpose")
        return {self.weight: transposed(factors[self.weight])}


FULL = Stored("full", "diff", "bias_diff")
