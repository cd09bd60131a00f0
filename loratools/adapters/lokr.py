"""LoKr: Δ = scale · w1 ⊗ w2, each factor whole or a product of two.

Output row o = i·b + j belongs to row i of w1 [a, c] and row j of w2 [b, d]: layouts follow where they respect that.
"""
# ruff: noqa: ARG002 - the signatures are the protocol's; not every kind needs every argument

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import TYPE_CHECKING

from loratools.adapters import dora
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
    same,
    spans,
    stack,
    stack_or_zeros,
    swapped,
    told,
    transposed,
    whole,
)
from loratools.adapters.traits import Additive
from loratools.model import Scale
from loratools.tensors.lazy import LazyTensor

if TYPE_CHECKING:
    import torch

FIRST = ("w1", "w1_a", "w1_b")
SECOND = ("w2", "w2_a", "w2_b", "t2")
HINT = "try --allow-lossy"


class LoKr(Additive):
    """w1 [a, c] | w1_a [a, r] w1_b [r, c]; w2 [b, d, kernel…] | w2_a [b, r] w2_b [r, d·kernel] | t2 with w2_a [r, b].

    The rank that alpha is divided by is None where both factors are whole: their scale is then 1, as LyCORIS trains
    it. A reader that divides by a rank all the same (PEFT) is told so by passing another `scale` to `delta`.
    """

    name = "lokr"
    roles = (
        Role("w1", required=True, rows=True),
        Role("w1_a", required=True, rows=True),
        Role("w1_b", required=True),
        Role("w2", required=True),
        Role("w2_a", required=True),
        Role("w2_b", required=True),
        Role("t2"),
        Role("bias_diff", rows=True),
        *dora.MAGNITUDES,
    )
    product = ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b", "t2")

    def rank(self, factors: Factors) -> int | None:
        """The inner extent of the decomposed factor (w1's before w2's), None where both are whole."""
        pair = factors.get("w1_b") or factors.get("w2_b")
        return pair.shape[0] if pair else None

    def weight_shape(self, factors: Factors) -> tuple[int | None, ...] | None:
        """(out, in, kernel…); a flattened w2_b gives (out, in·kernel)."""
        first = told(factors, w1=2) or told(factors, w1_a=2, w1_b=2)
        if not first or not (told(factors, w2=2) or told(factors, w2_a=2, w2_b=2)):
            return None
        a, c = self._first(factors)
        b, d, kernel = self._second(factors)
        return a * b, c * d, *kernel

    def check(self, factors: Factors, key: str | None = None) -> None:
        """Raise IncompleteAdapter for a missing or doubled factor, inner ranks that differ, or an empty one."""
        tucker = "t2" in factors
        for first, pair in (("w1", ("w1_a", "w1_b")), ("w2", ("w2_a", "w2_b"))):
            if first not in factors:
                require(self.name, factors, pair, key)
            else:
                agree(self.name, f"parts beside {first}", [], [name for name in pair if name in factors], key)
        for role in (name for name in self.product if name in factors):
            at_least(self.name, factors, role, 3 if role == "t2" else 2, key)
        not_empty(self.name, factors, key)
        if "w1_b" in factors:
            agree(self.name, "inner rank of w1_a", factors["w1_b"].shape[0], factors["w1_a"].shape[1], key)
        if "w2_b" in factors:
            rank = factors["w2_b"].shape[0]
            agree(self.name, "inner rank of w2_a", rank, factors["w2_a"].shape[0 if tucker else 1], key)
            if tucker:
                agree(self.name, "first extents of t2", (rank, rank), factors["t2"].shape[:2], key)
        elif tucker:
            require(self.name, factors, ("w2_a", "w2_b"), key)
        shape = self.weight_shape(factors) or ()
        if "bias_diff" in factors:
            agree(self.name, "elements of bias_diff", shape[0], factors["bias_diff"].numel, key)
        columns = None if "w2_b" in factors and not tucker else shape[1]
        dora.check_magnitudes(self.name, factors, shape[0] or 0, columns, key)

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
        """scale · kron(w1, w2); W' − W with a magnitude. `scale` is applied as given, also to whole factors."""
        import torch

        first, second = (self.factor(factors, number, dtype) for number in (1, 2))
        first = first.reshape(*first.shape, *(1,) * (second.ndim - 2))
        return dora.decomposed(torch.kron(first, second.contiguous()) * float(scale), base, factors)

    def factor(self, factors: Factors, number: int, dtype: str = "float32") -> torch.Tensor:
        """w1 [a, c] (number 1) or w2 [b, d, kernel…] (number 2), multiplied out."""
        import torch

        name = f"w{number}"
        if name in factors:
            return load(factors[name], dtype)
        left, right = matrix(factors[f"{name}_a"], dtype), matrix(factors[f"{name}_b"], dtype)
        if number == 2 and "t2" in factors:
            return torch.einsum("ij...,ip,jr->pr...", load(factors["t2"], dtype), left, right)
        return left @ right

    def bias_delta(
        self, factors: Factors, scale: Scale, base: torch.Tensor | None = None, *, dtype: str = "float32"
    ) -> torch.Tensor | None:
        """The stored difference of the bias [out], which no scale multiplies, or None."""
        return load(factors["bias_diff"], dtype).reshape(-1) if "bias_diff" in factors else None

    def split_rows(self, factors: Factors, sizes: Sequence[int]) -> list[dict[str, LazyTensor]]:
        """Exact where every part is whole rows of w1, or lies inside one; else NotRepresentable."""
        if len(sizes) > 1:
            dora.refuse_input_axis(self.name, "split_rows", factors)
        whole(self.name, (self.weight_shape(factors) or (None,))[0], sizes)
        block = self._second(factors)[0]
        parts: list[dict[str, LazyTensor]] = []
        for start, stop in spans(sizes):
            part = dict(factors)
            outer = "w1" if "w1" in factors else "w1_a"
            if start % block == 0 and stop % block == 0:
                part[outer] = factors[outer].rows(start // block, stop // block)
            elif start // block == (stop - 1) // block:
                part[outer] = factors[outer].rows(start // block, start // block + 1)
                part.update(self._second_rows(factors, start % block, start % block + stop - start))
            else:
                why = f"rows {start}…{stop - 1} cut across rows of w1, which stand for {block} rows each"
                raise refusal(self.name, "split_rows", why, HINT)
            for role in (name for name in ("magnitude", "bias_diff") if name in factors):
                part[role] = factors[role].rows(start, stop)
            parts.append(part)
        return parts

    def fuse_rows(self, parts: Sequence[Factors | None], sizes: Sequence[int]) -> dict[str, LazyTensor]:
        """Exact where w2 is the same in all parts (w1 is stacked), or all lie in the same one row of w1."""
        magnitude = dora.fused_magnitude(self.name, parts)
        present = [part for part in parts if part is not None]
        if same(present, (*SECOND, "w1_b")) and all(("w1" in part) == ("w1" in present[0]) for part in present):
            fused = self._stacked_first(parts, sizes, present[0])
        elif len(present) == len(parts) and same(present, FIRST) and self._first(present[0])[0] == 1:
            fused = self._stacked_second(present)
        else:
            why = "the parts have neither the same w2 nor the same single row of w1"
            raise refusal(self.name, "fuse_rows", why, HINT)
        whole(self.name, (self.weight_shape(fused) or (None,))[0], sizes)
        bias = stack_or_zeros(self.name, "bias_diff", parts, sizes)
        beside = {"magnitude": magnitude, "bias_diff": bias}
        fused = {role: tensor for role, tensor in fused.items() if role not in beside}
        return {**fused, **{role: tensor for role, tensor in beside.items() if tensor is not None}}

    def swap_halves(self, factors: Factors) -> dict[str, LazyTensor]:
        """The halves of w1's rows exchanged, or of w2's where w1 has one row."""
        result = dict(factors)
        a = self._first(factors)[0]
        for role in (name for name in ("magnitude", "bias_diff") if name in factors):
            result[role] = swapped(self.name, factors[role])
        if a == 1 and "t2" not in factors:
            outer = "w2" if "w2" in factors else "w2_a"
        elif a % 2 == 0:
            outer = "w1" if "w1" in factors else "w1_a"
        else:
            raise refusal(self.name, "swap_halves", f"the half of {a} rows of w1 cuts across one", HINT)
        result[outer] = swapped(self.name, factors[outer])
        return result

    def transpose(self, factors: Factors) -> dict[str, LazyTensor]:
        """(w1 ⊗ w2)ᵀ = w1ᵀ ⊗ w2ᵀ."""
        if "t2" in factors or "bias_diff" in factors or dora.is_dora(factors):
            raise refusal(self.name, "transpose", "only plain matrices have a transpose")
        exchange = {"w1_a": "w1_b", "w1_b": "w1_a", "w2_a": "w2_b", "w2_b": "w2_a"}
        return {role: transposed(factors[exchange.get(role, role)]) for role in factors}

    def _first(self, factors: Factors) -> tuple[int, int]:
        """(a, c)."""
        if "w1" in factors:
            return factors["w1"].shape[0], factors["w1"].shape[1]
        return factors["w1_a"].shape[0], factors["w1_b"].shape[1]

    def _second(self, factors: Factors) -> tuple[int, int, tuple[int, ...]]:
        """(b, d, kernel)."""
        if "w2" in factors:
            return factors["w2"].shape[0], factors["w2"].shape[1], factors["w2"].shape[2:]
        if "t2" in factors:
            return factors["w2_a"].shape[1], factors["w2_b"].shape[1], factors["t2"].shape[2:]
        return factors["w2_a"].shape[0], flat(factors["w2_b"])[1], ()

    def _second_rows(self, factors: Factors, start: int, stop: int) -> dict[str, LazyTensor]:
        if "t2" in factors:
            return {"w2_a": factors["w2_a"].columns(start, stop)}
        outer = "w2" if "w2" in factors else "w2_a"
        return {outer: factors[outer].rows(start, stop)}

    def _stacked_first(
        self, parts: Sequence[Factors | None], sizes: Sequence[int], model: Factors
    ) -> dict[str, LazyTensor]:
        outer, block = "w1" if "w1" in model else "w1_a", self._second(model)[0]
        rows: list[LazyTensor] = []
        for part, size in zip(parts, sizes, strict=True):
            if size % block:
                raise refusal(self.name, "fuse_rows", f"a part of {size} rows is not whole rows of w1 ({block})", HINT)
            zeros = LazyTensor.zeros(model[outer].dtype, (size // block, *model[outer].shape[1:]))
            rows.append(zeros if part is None else part[outer])
        return {**model, outer: stack(self.name, rows)}

    def _stacked_second(self, present: Sequence[Factors]) -> dict[str, LazyTensor]:
        model = present[0]
        if "t2" in model or not same(present, ("w2_b",)) or any(("w2" in part) != ("w2" in model) for part in present):
            raise refusal(self.name, "fuse_rows", "the parts have different w2_b", HINT)
        outer = "w2" if "w2" in model else "w2_a"
        return {**model, outer: stack(self.name, [part[outer] for part in present])}


LOKR = LoKr()
