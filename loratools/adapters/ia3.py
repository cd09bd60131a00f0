"""(IA)³: a vector that multiplies the rows or the columns of the base weight.

LyCORIS stores `on_input` and trains around zero: W' = W · (1 + v). PEFT stores no flag and trains around one:
W' = W · v, on the input where v is [1, in, …], on the output (bias included) where it is [out, 1, …] or [out].
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
    load,
    needs_base,
    not_empty,
    refusal,
    require,
    same,
    spans,
    stack,
    swapped,
    whole,
)
from loratools.adapters.traits import OverBase
from loratools.model import Scale
from loratools.tensors.dtypes import encode_scalar
from loratools.tensors.lazy import LazyTensor

if TYPE_CHECKING:
    import torch


class IA3(OverBase):
    """scale_vector [n] in whatever shape its writer gave it, and on_input, a scalar 0 or 1 that only LyCORIS writes."""

    name = "ia3"
    roles = (Role("scale_vector", required=True, rows=True), Role("on_input"))

    def on_input(self, factors: Factors) -> bool:
        """Whether the vector multiplies the input axis: as the flag says, else by the vector's shape."""
        if "on_input" in factors:
            return factors["on_input"].item() != 0
        shape = factors["scale_vector"].shape
        return len(shape) > 1 and shape[0] == 1 and shape[1] != 1

    def weight_shape(self, factors: Factors) -> tuple[int | None, ...] | None:
        """(None, in) or (out, None); None where the flag that tells which is out of reach."""
        if "scale_vector" not in factors or not factors.get("on_input", factors["scale_vector"]).is_within_reach:
            return None
        extent = factors["scale_vector"].numel
        return (None, extent) if self.on_input(factors) else (extent, None)

    def check(self, factors: Factors, key: str | None = None) -> None:
        """Raise IncompleteAdapter where the vector is missing or empty."""
        require(self.name, factors, ("scale_vector",), key)
        not_empty(self.name, factors, key)

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
        """W · v (LyCORIS) or W · (v − 1) (PEFT), v along its axis."""
        if base is None:
            raise needs_base(self.name)
        axis = 1 if self.on_input(factors) else 0
        shape = [1] * base.ndim
        shape[axis] = base.shape[axis]
        whole(self.name, factors["scale_vector"].numel, (base.shape[axis],))
        vector = self._change(factors, dtype).reshape(shape)
        return base.to(vector.dtype) * vector * float(scale)

    def bias_delta(
        self, factors: Factors, scale: Scale, base: torch.Tensor | None = None, *, dtype: str = "float32"
    ) -> torch.Tensor | None:
        """bias · (v − 1) for PEFT's output axis, whose outputs are multiplied whole; `base` is the bias. Else None."""
        if base is None or "on_input" in factors or self.on_input(factors):
            return None
        change = self._change(factors, dtype)
        return base.to(change.dtype) * change * float(scale)

    def split_rows(self, factors: Factors, sizes: Sequence[int]) -> list[dict[str, LazyTensor]]:
        """The vector sliced, or shared where it multiplies the inputs."""
        if self.on_input(factors):
            return [dict(factors) for _ in sizes]
        vector = factors["scale_vector"]
        whole(self.name, vector.numel, sizes)
        return [{**factors, "scale_vector": _cut(vector, start, stop)} for start, stop in spans(sizes)]

    def fuse_rows(self, parts: Sequence[Factors | None], sizes: Sequence[int]) -> dict[str, LazyTensor]:
        """The vectors stacked, the neutral number where a part is missing; on the input only where all are the same."""
        present = [part for part in parts if part is not None]
        model = present[0]
        if not same(present, ("on_input",)) or any(self.on_input(part) != self.on_input(model) for part in present):
            raise refusal(self.name, "fuse_rows", "some parts multiply inputs, some outputs")
        if self.on_input(model):
            if len(present) < len(parts) or not same(present, ("scale_vector",)):
                raise refusal(self.name, "fuse_rows", "parts of one weight multiply their inputs differently")
            return dict(model)
        shape, dtype = model["scale_vector"].shape, model["scale_vector"].dtype
        neutral = encode_scalar(Fraction(0 if "on_input" in model else 1), dtype) or b""
        rows = [
            LazyTensor.from_bytes(dtype, (size,), neutral * size)
            if part is None
            else part["scale_vector"].reshape(part["scale_vector"].numel)
            for part, size in zip(parts, sizes, strict=True)
        ]
        vector = stack(self.name, rows)
        whole(self.name, vector.numel, sizes)
        return {**model, "scale_vector": vector.reshape(*_resized(shape, vector.numel))}

    def swap_halves(self, factors: Factors) -> dict[str, LazyTensor]:
        """The halves of an output-axis vector exchanged."""
        if self.on_input(factors):
            return dict(factors)
        vector = factors["scale_vector"]
        return {**factors, "scale_vector": swapped(self.name, vector.reshape(vector.numel)).reshape(*vector.shape)}

    def transpose(self, factors: Factors) -> dict[str, LazyTensor]:
        """Refused: the flag that names the axis would have to change with it."""
        raise refusal(self.name, "transpose", "its vector is bound to an axis by a flag or a shape")

    def _change(self, factors: Factors, dtype: str) -> torch.Tensor:
        vector = load(factors["scale_vector"], dtype).reshape(-1)
        return vector if "on_input" in factors else vector - 1


def on_axis(vector: LazyTensor, *, inputs: bool) -> LazyTensor:
    """PEFT's vector in a shape that tells its axis: a convolution's is [1, n, 1, 1] whichever it multiplies."""
    tail = vector.shape[2:]
    return vector.reshape(*((1, vector.numel) if inputs else (vector.numel, 1)), *tail)


def _resized(shape: tuple[int, ...], extent: int) -> tuple[int, ...]:
    """A vector's shape with its one long dimension set to `extent`."""
    long = max(range(len(shape)), key=lambda at: shape[at])
    return tuple(extent if at == long else 1 for at in range(len(shape)))


def _cut(vector: LazyTensor, start: int, stop: int) -> LazyTensor:
    return vector.reshape(vector.numel).rows(start, stop).reshape(*_resized(vector.shape, stop - start))


IA3_KIND = IA3()
