"""LoHa: Δ = scale · (w1_a · w1_b) ⊙ (w2_a · w2_b), each product through a Tucker core where t1 and t2 are there."""
# ruff: noqa: ARG002 - the signatures are the protocol's; not every kind needs every argument

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import TYPE_CHECKING

from loratools.adapters import dora
from loratools.adapters.blocks import Blocks, blocks, core, input_side, output_side, output_side_across
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
    not_empty,
    refusal,
    require,
    spans,
    split_by_roles,
    stack_or_zeros,
    swap_by_roles,
    told,
    transposed,
    whole,
)
from loratools.adapters.traits import Additive
from loratools.model import Scale
from loratools.tensors.lazy import LazyTensor

if TYPE_CHECKING:
    import torch

PAIRS = (("w1_a", "w1_b", "t1"), ("w2_a", "w2_b", "t2"))


class LoHa(Additive):
    """w_a [out, r] · w_b [r, in·kernel]; with t [r, r, kernel]: w_a [r, out], w_b [r, in]."""

    name = "loha"
    roles = (
        Role("w1_a", required=True, rows=True),
        Role("w1_b", required=True),
        Role("w2_a", required=True, rows=True),
        Role("w2_b", required=True),
        Role("t1"),
        Role("t2"),
        Role("bias_diff", rows=True),
        *dora.MAGNITUDES,
    )
    product = ("w1_a", "w1_b", "w2_a", "w2_b", "t1", "t2")

    def rank(self, factors: Factors) -> int | None:
        """The inner extent r of each product: the rows of w1_b. The delta's own rank is up to r²."""
        return factors["w1_b"].shape[0] if "w1_b" in factors else None

    def weight_shape(self, factors: Factors) -> tuple[int | None, ...] | None:
        """(out, in, kernel…) with a core, else (out, in·kernel)."""
        if not told(factors, w1_a=2, w1_b=2):
            return None
        if "t1" in factors:
            return factors["w1_a"].shape[1], factors["w1_b"].shape[1], *factors["t1"].shape[2:]
        return factors["w1_a"].shape[0], flat(factors["w1_b"])[1]

    def check(self, factors: Factors, key: str | None = None) -> None:
        """Raise IncompleteAdapter for a missing partner, inner ranks or outer shapes that differ, or rank 0."""
        require(self.name, factors, ("w1_a", "w1_b", "w2_a", "w2_b"), key)
        tucker = "t1" in factors or "t2" in factors
        if tucker:
            require(self.name, factors, ("t1", "t2"), key)
        for role in (name for name in self.product if name in factors):
            at_least(self.name, factors, role, 3 if role in ("t1", "t2") else 2, key)
        not_empty(self.name, factors, key)
        for a, b, t in PAIRS:
            rank = factors[b].shape[0]
            agree(self.name, f"inner rank of {a}", rank, factors[a].shape[0 if tucker else 1], key)
            if tucker:
                agree(self.name, f"first extents of {t}", (rank, rank), factors[t].shape[:2], key)
        agree(self.name, "rank of the second product", factors["w1_b"].shape[0], factors["w2_b"].shape[0], key)
        agree(self.name, "output extents of w2_a", factors["w1_a"].shape, factors["w2_a"].shape, key)
        agree(self.name, "input extents of w2_b", flat(factors["w1_b"]), flat(factors["w2_b"]), key)
        shape = self.weight_shape(factors) or ()
        if "bias_diff" in factors:
            agree(self.name, "elements of bias_diff", shape[0], factors["bias_diff"].numel, key)
        dora.check_magnitudes(self.name, factors, shape[0] or 0, shape[1] if tucker else None, key)

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
        """scale · the Hadamard product of the two products; W' − W with a magnitude."""
        import torch

        halves: list[torch.Tensor] = []
        for a, b, t in PAIRS:
            left, right = matrix(factors[a], dtype), matrix(factors[b], dtype)
            if t in factors:
                halves.append(torch.einsum("ij...,ip,jr->pr...", load(factors[t], dtype), left, right))
            else:
                halves.append(left @ right)
        return dora.decomposed(halves[0] * halves[1] * float(scale), base, factors)

    def bias_delta(
        self, factors: Factors, scale: Scale, base: torch.Tensor | None = None, *, dtype: str = "float32"
    ) -> torch.Tensor | None:
        """The stored difference of the bias [out], which no scale multiplies, or None."""
        return load(factors["bias_diff"], dtype).reshape(-1) if "bias_diff" in factors else None

    def split_rows(self, factors: Factors, sizes: Sequence[int]) -> list[dict[str, LazyTensor]]:
        """w1_a and w2_a sliced along the output axis, everything else shared: exact."""
        if len(sizes) > 1:
            dora.refuse_input_axis(self.name, "split_rows", factors)
        whole(self.name, (self.weight_shape(factors) or (None,))[0], sizes)
        if "t1" not in factors:
            return split_by_roles(self.roles, factors, sizes)
        return [
            {
                role: tensor.columns(start, stop)
                if role in ("w1_a", "w2_a")
                else (tensor.rows(start, stop) if role in ("magnitude", "bias_diff") else tensor)
                for role, tensor in factors.items()
            }
            for start, stop in spans(sizes)
        ]

    def blocks(self, parts: Sequence[Factors | None]) -> Blocks:
        """The columns of w1_a and w2_a that each part takes when fused; Tucker parts never share."""
        tucker = any("t1" in part for part in parts if part is not None)
        return blocks(parts, ("w1_b", "w2_b"), share=not tucker)

    def fuse_rows(self, parts: Sequence[Factors | None], sizes: Sequence[int]) -> dict[str, LazyTensor]:
        """Both products block-diagonal at once, since a block meets only its own block; a missing part is zero rows."""
        magnitude = dora.fused_magnitude(self.name, parts)
        place = self.blocks(parts)
        bias = stack_or_zeros(self.name, "bias_diff", parts, sizes)
        fused: dict[str, LazyTensor | None] = {"magnitude": magnitude, "bias_diff": bias}
        for a, b, t in PAIRS:
            fused[t] = core(self.name, t, parts, place)
            side = output_side if fused[t] is None else output_side_across
            fused[a] = side(self.name, a, parts, sizes, place)
            fused[b] = input_side(self.name, b, parts, place)
        return {role: tensor for role, tensor in fused.items() if tensor is not None}

    def narrow(self, factors: Factors, first: int, last: int) -> dict[str, LazyTensor]:
        """The rank columns [first, last) of both products only."""
        cut = dict(factors)
        for a, b, t in PAIRS:
            cut[b] = factors[b].rows(first, last)
            if t in factors:
                cut[t] = factors[t].rows(first, last).columns(first, last)
                cut[a] = factors[a].rows(first, last)
            else:
                cut[a] = factors[a].columns(first, last)
        return cut

    def swap_halves(self, factors: Factors) -> dict[str, LazyTensor]:
        """The halves of the output rows exchanged."""
        if "t1" in factors:
            raise refusal(self.name, "swap_halves", "with a Tucker core the output axis is the second one")
        return swap_by_roles(self.roles, factors)

    def transpose(self, factors: Factors) -> dict[str, LazyTensor]:
        """The adapter of the transposed weight: a and b exchange roles."""
        if "t1" in factors or "bias_diff" in factors or dora.is_dora(factors):
            raise refusal(self.name, "transpose", "only plain pairs of matrices have a transpose")
        return {new: transposed(factors[old]) for a, b, _ in PAIRS for new, old in ((a, b), (b, a))}


LOHA = LoHa()
