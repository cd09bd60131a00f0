"""OFT: rotations by blocks. LyCORIS and kohya rotate the outputs (W' = rescale · Rᵀ W), PEFT the inputs (W' = W Rᵀ).

R = (I + Q)(I − Q)⁻¹ with Q = blocks − blocksᵀ (Cayley), Q first shrunk to the norm `constraint` · out where a
constraint is stored (COFT; it is stored as alpha). The oldest files hold R itself (`diagonal`; alpha means nothing
there). PEFT's R is a truncated series whose length only its config states.
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
from loratools.adapters.rotation import cayley, order_of, peft_rotation, rescaled
from loratools.adapters.traits import OverBase
from loratools.errors import ArchitectureMismatch
from loratools.model import Scale
from loratools.tensors.dtypes import encode_scalar
from loratools.tensors.lazy import LazyTensor

if TYPE_CHECKING:
    import torch


class OFT(OverBase):
    """blocks or diagonal [k, n, n] (output side) or skew [k, n(n−1)/2] (PEFT, input side), and rescale [out]."""

    name = "oft"
    roles = (
        Role("blocks", required=True, rows=True),
        Role("diagonal", required=True, rows=True),
        Role("skew", required=True),
        Role("rescale", rows=True),
    )
    constrained = True

    def weight_shape(self, factors: Factors) -> tuple[int | None, ...] | None:
        """(k·n, None) on the output side; (None, k·n) on the input side, None where one block serves all."""
        square = _square(factors)
        if told(factors, **{square: 2}):
            return factors[square].shape[0] * factors[square].shape[1], None
        if not told(factors, skew=2):
            return None
        count, entries = factors["skew"].shape
        return None, None if count == 1 else count * order_of(entries)

    def check(self, factors: Factors, key: str | None = None) -> None:
        """Raise IncompleteAdapter where the blocks are missing, not square, or do not fit the rescale."""
        if len({"blocks", "diagonal", "skew"} & set(factors)) != 1:
            raise incomplete(self.name, "one of blocks, diagonal, skew", key, expected=1, found=sorted(factors))
        not_empty(self.name, factors, key)
        if "skew" in factors:
            at_least(self.name, factors, "skew", 2, key)
            entries, order = factors["skew"].shape[1], order_of(factors["skew"].shape[1])
            agree(self.name, "entries of a skew-symmetric matrix", order * (order - 1) // 2, entries, key)
            return
        blocks = factors[_square(factors)]
        agree(self.name, "dimensions of blocks", 3, len(blocks.shape), key)
        agree(self.name, "columns of a block", blocks.shape[1], blocks.shape[2], key)
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
        settings: Settings = NO_SETTINGS,
    ) -> torch.Tensor:
        """scale · (rescale · Rᵀ W − W), `constraint` being the alpha of the file; W Rᵀ − W by PEFT's settings."""
        import torch

        if "skew" in factors and "num_cayley_neumann_terms" not in settings:
            why = "PEFT's rotation is a series, and its length stands in a config only"
            raise refusal(self.name, "delta", why, "keep adapter_config.json beside the weights")
        if base is None:
            raise needs_base(self.name)
        if "skew" in factors:
            return self._turned_inputs(factors, base, dtype, settings) * float(scale)
        whole(self.name, (self.weight_shape(factors) or (None,))[0], (base.shape[0],))
        stored = load(factors[_square(factors)], dtype)
        rotation = stored if "diagonal" in factors else cayley(stored, constraint, base.shape[0])
        weight = base.to(rotation.dtype)
        rows = weight.reshape(*rotation.shape[:2], -1)
        turned = torch.einsum("knm,knx->kmx", rotation, rows).reshape(weight.shape)
        return fitted(rescaled(turned, factors, dtype) - weight, base) * float(scale)

    def _turned_inputs(self, factors: Factors, base: torch.Tensor, dtype: str, settings: Settings) -> torch.Tensor:
        """W Rᵀ − W over blocks of the flattened inputs; one block serves all where only one is stored.

        For kernels larger than 1×1 this is what PEFT merges. Its unmerged layer adds overlapping patches up, which is
        no convolution at all (peft 0.21: even untrained, its outputs are off by more than their own norm).
        """
        import torch

        rotation = peft_rotation(load(factors["skew"], dtype), settings)
        weight = base.to(rotation.dtype).reshape(base.shape[0], -1)
        count, order = rotation.shape[:2]
        if count * order != weight.shape[1] and (count != 1 or weight.shape[1] % order):
            raise ArchitectureMismatch(
                f"{count} rotations of {order} inputs do not fit a weight of {weight.shape[1]} inputs",
                expected=weight.shape[1],
                found=count * order,
            )
        columns = weight.reshape(weight.shape[0], -1, order)
        turned = torch.einsum("okc,krc->okr", columns, rotation.expand(columns.shape[1], order, order))
        return fitted(turned.reshape(base.shape) - base.to(turned.dtype), base)

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
        square = _square(factors)
        order = factors[square].shape[1]
        parts: list[dict[str, LazyTensor]] = []
        for start, stop in spans(sizes):
            if start % order or stop % order:
                why = f"rows {start}…{stop - 1} are not whole blocks of {order}"
                raise refusal(self.name, "split_rows", why, "try --allow-lossy with --base")
            part = {**factors, square: factors[square].rows(start // order, stop // order)}
            if "rescale" in factors:
                part["rescale"] = factors["rescale"].rows(start, stop)
            parts.append(part)
        return parts

    def fuse_rows(self, parts: Sequence[Factors | None], sizes: Sequence[int]) -> dict[str, LazyTensor]:
        """Blocks stacked; the identity (blocks of zeros) and a rescale of ones where a part is missing."""
        present = [part for part in parts if part is not None]
        model = present[0]
        if "skew" in model:
            if len(present) < len(parts) or not same(present, ("skew",)):
                raise refusal(self.name, "fuse_rows", "parts of one weight rotate their inputs differently")
            return dict(model)
        square = _square(model)
        if any(square not in part for part in present):
            raise refusal(self.name, "fuse_rows", "some parts hold rotations, some what makes them")
        order, dtype = model[square].shape[1], model[square].dtype
        rows: list[LazyTensor] = []
        for part, size in zip(parts, sizes, strict=True):
            if size % order or (part is not None and part[square].shape[1] != order):
                raise refusal(self.name, "fuse_rows", f"a part of {size} rows is not whole blocks of {order}")
            rows.append(_neutral(square, dtype, size // order, order) if part is None else part[square])
        fused = {square: stack(self.name, rows)}
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


def _square(factors: Factors) -> str:
    """The role that holds square blocks."""
    return "diagonal" if "diagonal" in factors else "blocks"


def _neutral(role: str, dtype: str, count: int, order: int) -> LazyTensor:
    """Blocks that change nothing: zeros where they make a rotation, identities where they are one."""
    if role == "blocks":
        return LazyTensor.zeros(dtype, (count, order, order))
    one, zero = (encode_scalar(Fraction(value), dtype) or b"" for value in (1, 0))
    identity = b"".join(one if row == column else zero for row in range(order) for column in range(order))
    return LazyTensor.from_bytes(dtype, (count, order, order), identity * count)


OFT_KIND = OFT()
