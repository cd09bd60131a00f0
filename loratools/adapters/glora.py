"""GLoRA: Δ = scale · (W · a1 · a2 + b1 · b2), a function of the base weight.

Today's layout (LyCORIS 3 on) is a1 [in, r], a2 [r, in], b1 [out, r], b2 [r, in]. The old one is Δ = W · a2 · a1 +
b2 · b1 with a1 [r, in], a2 [in, r], b1 [r, in], b2 [out, r]. Shapes tell them apart: on a square layer both fit, and
the one whose rank does not exceed the layer is meant. Square factors are ambiguous, and nothing is computed from them.
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
    at_least,
    flat,
    load,
    matrix,
    needs_base,
    not_empty,
    refusal,
    require,
    same,
    spans,
    stack,
    swapped,
    told,
    whole,
)
from loratools.adapters.traits import OverBase
from loratools.model import Scale
from loratools.tensors.lazy import LazyTensor

if TYPE_CHECKING:
    import torch

PAIRS = ("a1", "a2", "b1", "b2")


class GLoRA(OverBase):
    """a1 a2 b1 b2, and bm [r, r, kernel…], a Tucker core between b1 and b2."""

    name = "glora"
    roles = (*(Role(name, required=True) for name in PAIRS), Role("bm"))

    def is_old(self, factors: Factors) -> bool:
        """Whether the shapes are those of the old layout: its only, or with the smaller of two possible ranks."""
        a1, a2, b1, b2 = (factors[name].shape for name in PAIRS)
        new = a1[1] == a2[0] and b1[1] == b2[0] and a1[0] == a2[1] == b2[1]
        old = a1[0] == a2[1] and b1[0] == b2[1] and a1[1] == a2[0] == b1[1]
        return old and (not new or a1[0] < a1[1])

    def refuse_ambiguous(self, layout: str, factors: Factors) -> None:
        """Raise NotRepresentable where both layouts fit the shapes and mean different products."""
        a1, a2, b1, b2 = (factors[name].shape[:2] for name in PAIRS)
        if a1 == a2 == b1 == b2 and a1[0] == a1[1]:
            why = f"its factors are all square {list(a1)}: the old layout (W·a2·a1 + b2·b1) and today's both fit"
            raise refusal(self.name, layout, why)

    def rank(self, factors: Factors) -> int | None:
        """The inner extent of b1 · b2."""
        if not told(factors, a1=2, a2=2, b1=2, b2=2):
            return None
        return factors["b1"].shape[0] if self.is_old(factors) else factors["b2"].shape[0]

    def weight_shape(self, factors: Factors) -> tuple[int | None, ...] | None:
        """(out, in, kernel…)."""
        if not told(factors, a1=2, a2=2, b1=2, b2=2):
            return None
        output, inputs = self._sides(factors)
        kernel = factors["bm"].shape[2:] if "bm" in factors else factors[inputs].shape[2:]
        return factors[output].shape[0], factors[inputs].shape[1], *kernel

    def check(self, factors: Factors, key: str | None = None) -> None:
        """Raise IncompleteAdapter for a missing partner, inner ranks that fit neither layout, or rank 0."""
        require(self.name, factors, PAIRS, key)
        for role in PAIRS:
            at_least(self.name, factors, role, 2, key)
        at_least(self.name, factors, "bm", 3, key)
        not_empty(self.name, factors, key)
        left, right = ("a2", "a1") if self.is_old(factors) else ("a1", "a2")
        output, inputs = self._sides(factors)
        agree(self.name, f"inner rank of {output}", factors[inputs].shape[0], factors[output].shape[1], key)
        agree(self.name, f"inner rank of {left}", factors[right].shape[0], factors[left].shape[1], key)
        agree(self.name, f"inputs of {left}", factors[inputs].shape[1], factors[left].shape[0], key)
        agree(self.name, f"inputs of {right}", factors[inputs].shape[1], factors[right].shape[1], key)
        if "bm" in factors:
            rank = factors[inputs].shape[0]
            agree(self.name, "first extents of bm", (rank, rank), factors["bm"].shape[:2], key)

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
        """scale · (W · a1 · a2 + b1 · b2) in the base's shape; a convolution's W meets a1 on its input axis."""
        import torch

        self.refuse_ambiguous("delta", factors)
        if base is None:
            raise needs_base(self.name)
        weight = base.to(getattr(torch, dtype))
        first, second = ("a2", "a1") if self.is_old(factors) else ("a1", "a2")
        output, inputs = self._sides(factors)
        whole(self.name, factors[output].shape[0], (weight.shape[0],))
        left, right = matrix(factors[output], dtype), matrix(factors[inputs], dtype)
        if "bm" in factors:
            right = torch.einsum("mn...,ni->mi...", load(factors["bm"], dtype), right).reshape(left.shape[1], -1)
        moved = torch.einsum(
            "oi...,ij,jk->ok...", weight, matrix(factors[first], dtype), matrix(factors[second], dtype)
        )
        return (moved + (left @ right).reshape(weight.shape)) * float(scale)

    def bias_delta(
        self, factors: Factors, scale: Scale, base: torch.Tensor | None = None, *, dtype: str = "float32"
    ) -> torch.Tensor | None:
        """A GLoRA has no bias."""
        return None

    def split_rows(self, factors: Factors, sizes: Sequence[int]) -> list[dict[str, LazyTensor]]:
        """The output factor sliced, the rest shared: rows of W · a1 · a2 are rows of W times the same matrix."""
        if len(sizes) > 1:
            self.refuse_ambiguous("split_rows", factors)
        output = self._sides(factors)[0]
        whole(self.name, flat(factors[output])[0], sizes)
        return [{**factors, output: factors[output].rows(start, stop)} for start, stop in spans(sizes)]

    def fuse_rows(self, parts: Sequence[Factors | None], sizes: Sequence[int]) -> dict[str, LazyTensor]:
        """Exact only where all parts are there and share everything but the output factor."""
        present = [part for part in parts if part is not None]
        for part in present:
            self.refuse_ambiguous("fuse_rows", part)
        output = self._sides(present[0])[0]
        shared = [role.name for role in self.roles if role.name != output]
        if len(present) < len(parts) or not same(present, shared):
            raise refusal(self.name, "fuse_rows", "one product with the fused base serves all parts", "use --base")
        fused = stack(self.name, [part[output] for part in present])
        whole(self.name, fused.shape[0], sizes)
        return {**present[0], output: fused}

    def swap_halves(self, factors: Factors) -> dict[str, LazyTensor]:
        """The halves of the output factor's rows exchanged."""
        self.refuse_ambiguous("swap_halves", factors)
        output = self._sides(factors)[0]
        return {**factors, output: swapped(self.name, factors[output])}

    def transpose(self, factors: Factors) -> dict[str, LazyTensor]:
        """Refused: Wᵀ would be multiplied from the other side."""
        raise refusal(self.name, "transpose", "its product with the base is on the input side")

    def _sides(self, factors: Factors) -> tuple[str, str]:
        """The roles of the output factor [out, r] and of the input factor [r, in]."""
        return ("b2", "b1") if self.is_old(factors) else ("b1", "b2")


GLORA = GLoRA()
