"""BOFT: m butterfly stages of block rotations of the outputs, then a rescale of the rows (arXiv 2311.06243).

Stage i takes the rows, exchanges the two innermost of (c, 2, 2ⁱ·b/2), rotates blocks of b rows, and exchanges back.
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
    load,
    needs_base,
    not_empty,
    refusal,
    require,
    told,
    whole,
)
from loratools.adapters.rotation import cayley, rescaled
from loratools.adapters.traits import OverBase
from loratools.model import Scale
from loratools.tensors.lazy import LazyTensor

if TYPE_CHECKING:
    import torch

WHY = "its butterfly mixes all rows"


class BOFT(OverBase):
    """blocks [m, k, b, b] and rescale [out]."""

    name = "boft"
    roles = (Role("blocks", required=True), Role("rescale", rows=True))
    constrained = True

    def weight_shape(self, factors: Factors) -> tuple[int | None, ...] | None:
        """(k·b, None)."""
        if not told(factors, blocks=3):
            return None
        return factors["blocks"].shape[1] * factors["blocks"].shape[2], None

    def check(self, factors: Factors, key: str | None = None) -> None:
        """Raise IncompleteAdapter where the blocks are missing, not square, odd, or do not fit the rescale."""
        require(self.name, factors, ("blocks",), key)
        not_empty(self.name, factors, key)
        shape = factors["blocks"].shape
        agree(self.name, "dimensions of blocks", 4, len(shape), key)
        agree(self.name, "columns of a block", shape[2], shape[3], key)
        agree(self.name, "rows of a block, modulo 2", 0, shape[2] % 2, key)
        span = 2 ** (shape[0] - 1) * shape[2]
        agree(self.name, f"rows modulo the span of the last stage ({span})", 0, shape[1] * shape[2] % span, key)
        if "rescale" in factors:
            agree(self.name, "elements of rescale", shape[1] * shape[2], factors["rescale"].numel, key)

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
        """scale · (rescale · butterfly(W) − W). `constraint` is the alpha that the file stores."""
        import torch

        if base is None:
            raise needs_base(self.name)
        whole(self.name, (self.weight_shape(factors) or (None,))[0], (base.shape[0],))
        stages = cayley(load(factors["blocks"], dtype), constraint, base.shape[0])
        weight = base.to(stages.dtype)
        rows = weight.reshape(weight.shape[0], -1)
        order = stages.shape[-1]
        for stage, rotation in enumerate(stages):
            half = 2**stage * order // 2
            mixed = rows.reshape(-1, 2, half, rows.shape[1]).transpose(1, 2).reshape(-1, order, rows.shape[1])
            turned = torch.einsum("bij,bjx->bix", rotation, mixed)
            rows = turned.reshape(-1, half, 2, rows.shape[1]).transpose(1, 2).reshape(rows.shape)
        return fitted(rescaled(rows.reshape(weight.shape), factors, dtype) - weight, base) * float(scale)

    def bias_delta(
        self, factors: Factors, scale: Scale, base: torch.Tensor | None = None, *, dtype: str = "float32"
    ) -> torch.Tensor | None:
        """A BOFT leaves the bias alone."""
        return None

    def split_rows(self, factors: Factors, sizes: Sequence[int]) -> list[dict[str, LazyTensor]]:
        """Refused, but for the one part that is the whole."""
        if len(sizes) == 1:
            return [dict(factors)]
        raise refusal(self.name, "split_rows", WHY, "try --allow-lossy with --base")

    def fuse_rows(self, parts: Sequence[Factors | None], sizes: Sequence[int]) -> dict[str, LazyTensor]:
        """Refused, but for the one part that is the whole."""
        if len(parts) == 1 and parts[0] is not None:
            return dict(parts[0])
        raise refusal(self.name, "fuse_rows", WHY, "try --allow-lossy with --base")

    def swap_halves(self, factors: Factors) -> dict[str, LazyTensor]:
        """Refused."""
        raise refusal(self.name, "swap_halves", WHY)

    def transpose(self, factors: Factors) -> dict[str, LazyTensor]:
        """Refused."""
        raise refusal(self.name, "transpose", "it rotates one side of the weight")


BOFT_KIND = BOFT()
