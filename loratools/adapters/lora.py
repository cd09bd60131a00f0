"""LoRA and LoCon: Δ = scale · up · down, with a Tucker core `mid` between them where there is one; and embeddings."""
# ruff: noqa: ARG002 - the signatures are the protocol's; not every kind needs every argument

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import TYPE_CHECKING

from loratools.adapters import dora
from loratools.adapters.blocks import Blocks, blocks, core, input_side, output_side
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
    scaled_bias,
    split_by_roles,
    stack_or_zeros,
    swap_by_roles,
    told,
    torch_dtype,
    transposed,
    whole,
    wide_dtype,
)
from loratools.adapters.residual import RESIDUAL, ROLES, check_residual, refuse_residual, with_residual
from loratools.adapters.traits import Additive
from loratools.model import Scale
from loratools.tensors.lazy import LazyTensor

if TYPE_CHECKING:
    import torch

NO_ROWS = "the rows of an embedding are its vocabulary"


class LoRA(Additive):
    """down [r, in, kernel…] · up [out, r] · mid [r, r, kernel…]; embedding_down [r, vocab] · embedding_up [dim, r].

    `singular` [r, 1] (AdaLoRA's lora_E) multiplies the rows of `down`; its scale is another one, see `settings`.
    Two biases [out] can stand beside: `up_bias`, which the scale multiplies (PEFT), and `bias_diff`, which it does not;
    and a sparse residual, whose values are added to up · down before the scale.
    """

    name = "lora"
    roles = (
        Role("down", required=True),
        Role("up", required=True, rows=True),
        Role("mid"),
        Role("singular"),
        Role("up_bias", rows=True),
        Role("bias_diff", rows=True),
        Role("embedding_down", required=True),
        Role("embedding_up", required=True),
        *ROLES,
        *dora.MAGNITUDES,
    )
    product = ("up", "mid", "down", "embedding_up", "embedding_down", "singular")
    biases = ("up_bias", RESIDUAL)

    def rank(self, factors: Factors) -> int | None:
        """The inner extent r: the rows of `down`."""
        down = factors.get("down") or factors.get("embedding_down")
        return down.shape[0] if down and down.shape else None

    def weight_shape(self, factors: Factors) -> tuple[int | None, ...] | None:
        """(out, in, kernel…) of the weight; (vocab, dim) of an embedding."""
        if "embedding_down" in factors and told(factors, embedding_down=2, embedding_up=2):
            return factors["embedding_down"].shape[1], factors["embedding_up"].shape[0]
        if not told(factors, down=2, up=2):
            return None
        kernel = factors["mid"].shape[2:] if "mid" in factors else factors["down"].shape[2:]
        return factors["up"].shape[0], factors["down"].shape[1], *kernel

    def check(self, factors: Factors, key: str | None = None) -> None:
        """Raise IncompleteAdapter for a missing partner, inner ranks that differ, too few dimensions or rank 0."""
        embedding = "embedding_down" in factors or "embedding_up" in factors
        down, up = ("embedding_down", "embedding_up") if embedding else ("down", "up")
        require(self.name, factors, (down, up), key)
        at_least(self.name, factors, down, 2, key)
        at_least(self.name, factors, up, 2, key)
        not_empty(self.name, {name: factors[name] for name in factors if not name.startswith("residual_")}, key)
        rank = factors[down].shape[0]
        agree(self.name, f"inner rank of {up} {list(factors[up].shape)}", rank, factors[up].shape[1], key)
        agree(self.name, f"kernel of {up} {list(factors[up].shape)}", 1, math.prod(factors[up].shape[2:]), key)
        if "mid" in factors:
            at_least(self.name, factors, "mid", 3, key)
            agree(self.name, "first extents of mid", (rank, rank), factors["mid"].shape[:2], key)
            agree(self.name, "kernel of down beside mid", 1, math.prod(factors[down].shape[2:]), key)
        if "singular" in factors:
            agree(self.name, "elements of singular", rank, factors["singular"].numel, key)
        check_residual(self.name, factors, key)
        rows = factors[up].shape[0]
        for bias in (name for name in ("up_bias", "bias_diff") if name in factors):
            agree(self.name, f"elements of {bias}", rows, factors[bias].numel, key)
        dora.check_magnitudes(self.name, factors, rows, factors[down].shape[1], key)

    def low_rank(self, factors: Factors, dtype: str = "float32") -> tuple[torch.Tensor, torch.Tensor]:
        """(left [out, r], right [r, in·kernel]) whose product is Δ at scale 1 (but for a residual and a magnitude).

        right = Σₙ mid[m, n, kernel] · down[n, in], times the singular values: exact, no decomposition. [vocab, r] and
        [r, dim] for an embedding.
        """
        import torch

        if "embedding_down" in factors:
            return matrix(factors["embedding_down"], dtype).T, matrix(factors["embedding_up"], dtype).T
        left, right = matrix(factors["up"], dtype), matrix(factors["down"], dtype)
        if "mid" in factors:
            mid = load(factors["mid"], dtype)
            right = torch.einsum("mn...,ni->mi...", mid, right).reshape(mid.shape[0], -1)
        if "singular" in factors:
            right = right * load(factors["singular"], dtype).reshape(-1, 1)
        return left, right

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
        """scale · (up · down + residual) in the weight's shape (the base's, where given); W' − W with a magnitude."""
        left, right = self.low_rank(factors, dtype)
        product = with_residual(left @ right, self.name, factors) * float(scale)
        shape = [extent or -1 for extent in self.weight_shape(factors) or ()]
        return dora.decomposed(product.reshape(shape), base, factors)

    def bias_delta(
        self, factors: Factors, scale: Scale, base: torch.Tensor | None = None, *, dtype: str = "float32"
    ) -> torch.Tensor | None:
        """scale · up_bias + bias_diff [out], or None."""
        scaled = scaled_bias(factors, "up_bias", scale, dtype)
        if "bias_diff" not in factors:
            return scaled
        stored = load(factors["bias_diff"], dtype).reshape(-1)
        return stored if scaled is None else scaled + stored

    def split_rows(self, factors: Factors, sizes: Sequence[int]) -> list[dict[str, LazyTensor]]:
        """`down` shared, `up`, its bias and the magnitude sliced: exact."""
        if len(sizes) > 1:
            self._has_rows("split_rows", factors)
        whole(self.name, (self.weight_shape(factors) or (None,))[0], sizes)
        return split_by_roles(self.roles, factors, sizes)

    def blocks(self, parts: Sequence[Factors | None]) -> Blocks:
        """The columns of `up` that each part takes when fused."""
        return blocks(parts, ("down", "mid"))

    def fuse_rows(self, parts: Sequence[Factors | None], sizes: Sequence[int]) -> dict[str, LazyTensor]:
        """`up` block-diagonal over stacked `down`s (identical ones once); a missing part is zero rows. Equal scales."""
        for part in parts:
            self._has_rows("fuse_rows", part or {})
            if "singular" in (part or {}):
                raise refusal(self.name, "fuse_rows", "AdaLoRA's scale is no alpha / rank", "convert it to LoRA first")
        magnitude = dora.fused_magnitude(self.name, parts)
        place = self.blocks(parts)
        fused = {
            "down": input_side(self.name, "down", parts, place),
            "up": output_side(self.name, "up", parts, sizes, place),
            "mid": core(self.name, "mid", parts, place),
            "up_bias": stack_or_zeros(self.name, "up_bias", parts, sizes),
            "bias_diff": stack_or_zeros(self.name, "bias_diff", parts, sizes),
            "magnitude": magnitude,
        }
        return {role: tensor for role, tensor in fused.items() if tensor is not None}

    def narrow(self, factors: Factors, first: int, last: int) -> dict[str, LazyTensor]:
        """The rank columns [first, last) only."""
        cut = {"up": factors["up"].columns(first, last), "down": factors["down"].rows(first, last)}
        if "mid" in factors:
            cut["mid"] = factors["mid"].rows(first, last).columns(first, last)
        if "singular" in factors:
            cut["singular"] = factors["singular"].rows(first, last)
        return {**factors, **cut}

    def swap_halves(self, factors: Factors) -> dict[str, LazyTensor]:
        """The halves of the output rows exchanged; column norms do not feel it."""
        if "embedding_down" in factors:
            raise refusal(self.name, "swap_halves", NO_ROWS)
        refuse_residual(self.name, "swap_halves", factors)
        return swap_by_roles(self.roles, factors)

    def transpose(self, factors: Factors) -> dict[str, LazyTensor]:
        """The adapter of the transposed weight: up and down exchange roles, and so do the magnitudes."""
        if {"mid", "singular", "embedding_down", "up_bias", "bias_diff", RESIDUAL} & set(factors):
            raise refusal(self.name, "transpose", "only a plain pair of matrices has a transpose")
        turned = {"down": transposed(factors["up"]), "up": transposed(factors["down"])}
        for ours, theirs in (("magnitude", "input_magnitude"), ("input_magnitude", "magnitude")):
            if ours in factors:
                turned[theirs] = factors[ours]
        return turned

    def _has_rows(self, layout: str, factors: Factors) -> None:
        if "embedding_down" in factors:
            raise refusal(self.name, layout, NO_ROWS)
        dora.refuse_input_axis(self.name, layout, factors)
        refuse_residual(self.name, layout, factors)


def collapsed(factors: Factors) -> dict[str, LazyTensor]:
    """A Tucker LoRA or an AdaLoRA as a plain one of the same rank, `up` unchanged.

    down [r, in, kernel…] = singular · mid × down, summed in float64 and stored in float32 (float64 where it came so).
    """
    if "mid" not in factors and "singular" not in factors:
        return dict(factors)
    shape, dtype = factors["down"].shape, wide_dtype(factors)
    if "mid" in factors:
        shape = (factors["mid"].shape[0], flat(factors["down"])[1], *factors["mid"].shape[2:])
    down = LazyTensor.computed(
        dtype, shape, lambda: LORA.low_rank(factors, "float64")[1].reshape(shape).to(torch_dtype(dtype))
    )
    return {**{role: tensor for role, tensor in factors.items() if role not in ("mid", "singular")}, "down": down}


LORA = LoRA()
