"""OFT: rotations by blocks. LyCORIS and kohya rotate the outputs (W' = rescale · Rᵀ W), PEFT the inputs.

R = (I + Q)(I − Q)⁻¹ with Q = blocks − blocksᵀ (Cayley), Q first shrunk to the norm `constraint` · out where a
constraint is stored (COFT; it is stored as alpha). PEFT's R is a truncated series whose length only its config states.
"""
# ruff: noqa: ARG002 - the signatures are the protocol's; not every kind needs every argument

from __future__ import annotations

from collections.abc import Collection, Sequence
from fractions import Fraction
from math import isqrt
from typing import TYPE_CHECKING

from loratools.adapters.factors import (
    Factors,
    Role,
    agree,
    at_least,
    could_be,
    fitted,
    incomplete,
    load,
    needs_base,
    not_empty,
    refusal,
    same,
    spans,
    stack,
    swapped,
    told,
    whole,
)
from loratools.model import Scale
from loratools.tensors.dtypes import encode_scalar
from loratools.tensors.lazy import LazyTensor

if TYPE_CHECKING:
    import torch


class OFT:
    """blocks [k, n, n] (output side) or skew [k, n(n−1)/2] (PEFT, input side), and rescale [out]."""

    name = "oft"
    roles = (
        Role("blocks", required=True, rows=True),
        Role("skew", required=True),
        Role("rescale", rows=True),
    )
    product: tuple[str, ...] = ()
    biases: tuple[str, ...] = ()
    constrained = True

    def identify(self, present: Collection[str]) -> bool:
        """Whether these roles could be an OFT's (3-D blocks; 4-D ones are a BOFT's)."""
        return could_be(self.roles, present)

    def kinds(self, factors: Factors) -> tuple[str, ...]:
        """The word oft."""
        return (self.name,)

    def needs_base(self, factors: Factors) -> bool:
        """Always: the base is what is rotated."""
        return True

    def rank(self, factors: Factors) -> int | None:
        """None: alpha is a constraint here, and divides by nothing."""
        return None

    def weight_shape(self, factors: Factors) -> tuple[int | None, ...] | None:
        """(k·n, None) on the output side; (None, k·n) on the input side, None where one block serves all."""
        if told(factors, blocks=2):
            return factors["blocks"].shape[0] * factors["blocks"].shape[1], None
        if not told(factors, skew=2):
            return None
        count, entries = factors["skew"].shape
        return None, None if count == 1 else count * _order(entries)

    def check(self, factors: Factors, key: str | None = None) -> None:
        """Raise IncompleteAdapter where the blocks are missing, not square, or do not fit the rescale."""
        if ("blocks" in factors) == ("skew" in factors):
            raise incomplete(self.name, "either blocks or skew", key, expected=["blocks"], found=sorted(factors))
        not_empty(self.name, factors, key)
        if "skew" in factors:
            at_least(self.name, factors, "skew", 2, key)
            entries, order = factors["skew"].shape[1], _order(factors["skew"].shape[1])
            agree(self.name, "entries of a skew-symmetric matrix", order * (order - 1) // 2, entries, key)
            return
        agree(self.name, "dimensions of blocks", 3, len(factors["blocks"].shape), key)
        agree(self.name, "columns of a block", factors["blocks"].shape[1], factors["blocks"].shape[2], key)
        if "rescale" in factors:
            rows = (self.weight_shape(factors) or (0,))[0]
            agree(self.name, "elements of rescale", rows, factors["rescale"].numel, key)

    def delta(
        self,
        factors: Factors,
        scale: Scale,
        base: torch.Tensor | None = None,
        *,
        dtype: str = "float32",
        constraint: Fraction | None = None,
    ) -> torch.Tensor:
        """scale · (rescale · Rᵀ W − W). `constraint` is the alpha that the file stores."""
        import torch

        if "skew" in factors:
            raise refusal(self.name, "delta", "PEFT's rotation is a series, and its length stands in a config only")
        if base is None:
            raise needs_base(self.name)
        whole(self.name, (self.weight_shape(factors) or (None,))[0], (base.shape[0],))
        rotation = cayley(load(factors["blocks"], dtype), constraint, base.shape[0])
        weight = base.to(rotation.dtype)
        rows = weight.reshape(*rotation.shape[:2], -1)
        turned = torch.einsum("knm,knx->kmx", rotation, rows).reshape(weight.shape)
        return fitted(rescaled(turned, factors, dtype) - weight, base) * float(scale)

    def bias_delta(
        self, factors: Factors, scale: Scale, base: torch.Tensor | None = None, *, dtype: str = "float32"
    ) -> torch.Tensor | None:
        """An OFT leaves the bias alone."""
        return None

    def split_rows(self, factors: Factors, sizes: Sequence[int]) -> list[dict[str, LazyTensor]]:
        """Whole blocks sliced; shared where the inputs are rotated. Exact without a constraint."""
        if "skew" in factors:
            return [dict(factors) for _ in sizes]
        whole(self.name, (self.weight_shape(factors) or (None,))[0], sizes)
        order = factors["blocks"].shape[1]
        parts: list[dict[str, LazyTensor]] = []
        for start, stop in spans(sizes):
            if start % order or stop % order:
                why = f"rows {start}…{stop - 1} are not whole blocks of {order}"
                raise refusal(self.name, "split_rows", why, "try --allow-lossy with --base")
            part = {**factors, "blocks": factors["blocks"].rows(start // order, stop // order)}
            if "rescale" in factors:
                part["rescale"] = factors["rescale"].rows(start, stop)
            parts.append(part)
        return parts

    def fuse_rows(self, parts: Sequence[Factors | None], sizes: Sequence[int]) -> dict[str, LazyTensor]:
        """Blocks stacked, zero blocks (the identity) and a rescale of ones where a part is missing."""
        present = [part for part in parts if part is not None]
        model = present[0]
        if "skew" in model:
            if len(present) < len(parts) or not same(present, ("skew",)):
                raise refusal(self.name, "fuse_rows", "parts of one weight rotate their inputs differently")
            return dict(model)
        order, dtype = model["blocks"].shape[1], model["blocks"].dtype
        rows: list[LazyTensor] = []
        for part, size in zip(parts, sizes, strict=True):
            if size % order or (part is not None and part["blocks"].shape[1] != order):
                raise refusal(self.name, "fuse_rows", f"a part of {size} rows is not whole blocks of {order}")
            zeros = LazyTensor.zeros(dtype, (size // order, order, order))
            rows.append(zeros if part is None else part["blocks"])
        fused = {"blocks": stack(self.name, rows)}
        found = next((part["rescale"] for part in present if "rescale" in part), None)
        if found is not None:
            one = encode_scalar(Fraction(1), found.dtype) or b""
            ones = [LazyTensor.from_bytes(found.dtype, (size, *found.shape[1:]), one * size) for size in sizes]
            scales = [(part or {}).get("rescale", neutral) for part, neutral in zip(parts, ones, strict=True)]
            fused["rescale"] = stack(self.name, scales)
        whole(self.name, (self.weight_shape(fused) or (None,))[0], sizes)
        return fused

    def swap_halves(self, factors: Factors) -> dict[str, LazyTensor]:
        """The halves of the blocks exchanged."""
        if "skew" in factors:
            return dict(factors)
        return {role: swapped(self.name, tensor) for role, tensor in factors.items()}

    def transpose(self, factors: Factors) -> dict[str, LazyTensor]:
        """Refused: a rotation of outputs is one of inputs there."""
        raise refusal(self.name, "transpose", "it rotates one side of the weight")


def cayley(blocks: torch.Tensor, constraint: Fraction | None, rows: int) -> torch.Tensor:
    """The rotations [..., n, n] of blocks [..., n, n]; Q is shrunk to the Frobenius norm constraint · rows, if any."""
    import torch

    skew = blocks - blocks.transpose(-1, -2)
    limit = float(constraint or 0) * rows
    if limit > 0:
        norm = float(torch.linalg.vector_norm(skew, dtype=torch.float64)) + 1e-8
        skew = skew * (limit / norm) if norm > limit else skew
    identity = torch.eye(skew.shape[-1], dtype=skew.dtype)
    rotation: torch.Tensor = torch.linalg.solve(identity - skew, identity + skew, left=False)
    return rotation


def rescaled(weight: torch.Tensor, factors: Factors, dtype: str) -> torch.Tensor:
    """The rows of `weight` times the rescale, where there is one."""
    if "rescale" not in factors:
        return weight
    return weight * load(factors["rescale"], dtype).reshape(-1, *(1,) * (weight.ndim - 1))


def _order(entries: int) -> int:
    """n of n(n−1)/2 entries."""
    return (1 + isqrt(1 + 8 * entries)) // 2


OFT_KIND = OFT()
