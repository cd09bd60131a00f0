"""A layer at another rank, by the cores of its factors: the delta itself is never formed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import TYPE_CHECKING

from loratools.adapters.adapter import Adapter
from loratools.adapters.blame import named
from loratools.adapters.decompose import Spectrum, spectrum_of_kron
from loratools.adapters.dora import MAGNITUDES
from loratools.adapters.factors import refusal, torch_dtype
from loratools.adapters.kind import kind_of, strength_of
from loratools.adapters.lora import LORA
from loratools.adapters.made import Maker
from loratools.adapters.pair_core import spectrum_of_core
from loratools.adapters.pairs import algebra, kron_factor
from loratools.adapters.ranks import Rule, tails
from loratools.adapters.recast import recast
from loratools.adapters.residual import RESIDUAL
from loratools.adapters.to_lora import Converted
from loratools.errors import NonFinite, UsageError
from loratools.model import Alpha, Scale
from loratools.tensors.dtypes import DTYPES, nbytes
from loratools.tensors.lazy import LazyTensor

if TYPE_CHECKING:
    import torch

PLAIN = "convert --to-kind lora makes plain LoRA of it first"
_PLAIN_ROLES = frozenset(("down", "up", "embedding_down", "embedding_up"))
_BESIDE = ("up_bias", "bias_diff")
ONE = Scale(Fraction(1))


class Resizable:
    """An adapter whose delta is a product of few columns, and what is known of its singular values so far.

    `rank` is that of the exact pair (LoHa of rank r has r²), `full` the most that the weight can have. `dtype` is what
    its new factors are stored in, the widest of the old ones where none is given. A magnitude stays as it is: errors
    are then those of the low-rank part inside the norm. `thrifty` keeps what would weigh more as a LoRA (LoHa, LoKr, a
    Tucker core); once `plainly` is set nothing but a LoRA stays what it is, because others beside it become one. Raises
    NotRepresentable for what is no such product.
    """

    def __init__(
        self,
        adapter: Adapter,
        *,
        maker: Maker | None = None,
        dtype: str | None = None,
        shape: Sequence[int] | None = None,
        thrifty: bool = False,
    ) -> None:
        magnitudes = {role.name for role in MAGNITUDES}
        self.adapter = adapter
        self.bare = replace(adapter, factors={r: t for r, t in adapter.factors.items() if r not in magnitudes})
        if RESIDUAL in adapter.factors:
            raise refusal(adapter.kind, "resize", "it has a sparse residual", PLAIN)
        exactly = None if kind_of(adapter.kind).needs_base(self.bare.factors) else algebra(self.bare, None)
        if exactly is None:
            raise refusal(adapter.kind, "resize", "only products of few columns are resized", PLAIN)
        self._exactly = exactly
        self._maker = maker or Maker()
        told = shape or kind_of(adapter.kind).weight_shape(self.bare.factors) or ()
        self.extents = tuple(extent or 0 for extent in told)
        self.rank = exactly.rank
        self.full = min(exactly.rank, self.extents[0], math.prod(self.extents[1:]))
        product = [self.bare.factors[role] for role in kind_of(adapter.kind).product if role in self.bare.factors]
        self.dtype = dtype or max((tensor.dtype for tensor in product), key=lambda name: DTYPES[name].bits)
        self._recast = dtype
        self.thrifty = thrifty
        self.plainly = False
        self._product = product
        self.values: list[float] | None = None
        self.rounding: float | None = None

    @property
    def dora(self) -> bool:
        """Whether a magnitude stands beside the factors."""
        return self.bare.factors.keys() != self.adapter.factors.keys()

    @property
    def convolution(self) -> bool:
        """Whether the weight has a kernel larger than 1."""
        return math.prod(self.extents[2:]) > 1

    @property
    def unit(self) -> int:
        """The bytes of one rank: a row of `down` and a column of `up`."""
        return nbytes(self.dtype, (self.extents[0] + math.prod(self.extents[1:]),))

    @property
    def weight(self) -> int:
        """The bytes of the factors as they are, in `dtype`."""
        return sum(
            nbytes(self._recast if self._recast and DTYPES[t.dtype].floating else t.dtype, t.shape)
            for t in self._product
        )

    def limited(self, rank: int) -> int:
        """A wanted rank, or the largest that makes a difference."""
        if self.becomes_plain:
            return min(rank, self.rank, self.full)
        return self.rank if rank >= self.rank else min(rank, self.full)

    def keeps(self, rank: int) -> bool:
        """Whether the adapter stays what it is at this rank: nothing would be left out, or no byte would be saved."""
        if self.becomes_plain:
            return False
        return rank >= self.rank or (self.thrifty and not self.plain and rank * self.unit >= self.weight)

    @property
    def plain(self) -> bool:
        """Whether it is a pair of factors already, of which a lower rank is always smaller."""
        return self.adapter.kind == LORA.name and set(self.bare.factors) <= {*_PLAIN_ROLES, *_BESIDE}

    @property
    def becomes_plain(self) -> bool:
        """Whether it is made a LoRA though it need not shrink."""
        return self.plainly and (self.adapter.kind != LORA.name or "singular" in self.bare.factors)

    def spectrum(self) -> Spectrum:
        """The decomposition of the delta at the user's scale 1; `values` are known from then on."""
        scale = float(strength_of(self.bare))
        with named(self.adapter):
            if self.adapter.kind == "lokr":
                left, right = kron_factor(self.bare.factors, 1)
                found = spectrum_of_kron(
                    spectrum_of_core(left * scale, right), spectrum_of_core(*kron_factor(self.bare.factors, 2))
                )
            else:
                left, right = self._exactly.pair()
                found = spectrum_of_core(left * scale, right)
        self.values = found.values.tolist()
        return found

    def measured(self) -> list[float]:
        """The singular values, computed where they are not known yet."""
        if self.values is None:
            self.spectrum()
        return self.values or []

    def at(self, rank: int) -> Adapter:
        """The adapter at a rank: itself where that saves nothing, else a LoRA whose factors are made when asked for.

        Singular values go half into each factor, the scale with them, and alpha is the rank.
        """
        if self.keeps(rank):
            return recast(self.adapter, self._recast)
        factors = {role: t for role, t in self.adapter.factors.items() if role in {r.name for r in MAGNITUDES}}
        if "bias_diff" in self.bare.factors:
            factors["bias_diff"] = self.bare.factors["bias_diff"]
        if "up_bias" in self.bare.factors:
            factors["up_bias"] = _times(self.bare.factors["up_bias"], strength_of(self.bare))
        beside = recast(replace(self.adapter, factors=factors), self._recast).factors
        pair = self._maker.lazily(self._shapes(rank), self.dtype, lambda: self._pair(rank))
        alpha = Alpha(Fraction(rank), "tensor", stored=self.adapter.alpha.stored)
        return replace(self.adapter, kind=LORA.name, factors={**pair, **beside}, alpha=alpha, settings={})

    def _shapes(self, rank: int) -> dict[str, tuple[int, ...]]:
        if "embedding_down" in self.bare.factors:
            return {"embedding_down": (rank, self.extents[0]), "embedding_up": (self.extents[1], rank)}
        ones = (1,) * (len(self.extents) - 2)
        return {"down": (rank, *self.extents[1:]), "up": (self.extents[0], rank, *ones)}

    def _pair(self, rank: int) -> Mapping[str, torch.Tensor]:
        found = self.spectrum()
        left, right = found.halves(rank)
        with named(self.adapter):
            (up, off_left), (down, off_right) = (stored(half, self.dtype) for half in (left, right))
        largest = math.sqrt(float(found.values[0])) if len(found.values) else 0.0
        norm = float(found.values.square().sum().sqrt())
        # ‖U·D − L·R‖ ≤ ‖U − L‖·‖D‖₂ + ‖L‖₂·‖D − R‖
        bound = off_left * (largest + off_right) + largest * off_right
        self.rounding = bound / norm if norm else 0.0
        if "embedding_down" in self.bare.factors:
            return {"embedding_down": up.T, "embedding_up": down.T}
        return {"down": down, "up": up}


def stored(values: torch.Tensor, dtype: str) -> tuple[torch.Tensor, float]:
    """`values` cast to `dtype` (a safetensors name), and the norm of what rounding changed; NonFinite on overflow."""
    import torch

    cast = values.to(torch_dtype(dtype))
    back = cast.double()
    if not bool(torch.isfinite(back).all()):
        raise NonFinite(f"a finite value overflows in {dtype}", hint="--dtype float32")
    return cast, float(torch.linalg.vector_norm(back - values))


def _times(tensor: LazyTensor, scale: Scale) -> LazyTensor:
    """A bias with the scale multiplied in, as it is where that is 1."""
    if scale.equals(ONE):
        return tensor
    dtype = "F64" if tensor.dtype == "F64" else "F32"
    return LazyTensor.computed(
        dtype, tensor.shape, lambda: (tensor.load().double() * float(scale)).to(torch_dtype(dtype))
    )


def resize(
    adapter: Adapter, *, rank: int | None = None, error: float | None = None, energy: float | None = None
) -> Converted:
    """One adapter at `rank`, or at the smallest that keeps a relative `error` or a share of the `energy` (‖Δ‖²).

    Raises UsageError unless one of them is given, NotRepresentable for what is no low-rank product.
    """
    if rank is error is energy is None:
        raise UsageError("nothing says how far to resize", hint="give a rank, an error or an energy")
    rule, layer = Rule(rank=rank, error=error, energy=energy), Resizable(adapter, thrifty=rank is None)
    values = layer.measured()
    chosen = layer.limited(rank if rank is not None else rule.choose(values, convolution=layer.convolution))
    kept = layer.keeps(chosen)
    return Converted(layer.at(chosen), kept, 0.0 if kept else tails(values)[chosen], chosen)
