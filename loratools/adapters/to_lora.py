"""Any kind as a plain LoRA: by algebra where the delta is a product of few columns, else by a truncated SVD."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from math import prod
from typing import TYPE_CHECKING

from loratools.adapters.adapter import Adapter
from loratools.adapters.blame import named
from loratools.adapters.decompose import Spectrum, Wanted, spectrum, spectrum_of_kron, spectrum_of_pair
from loratools.adapters.factors import needs_base, refusal, torch_dtype, wide_dtype
from loratools.adapters.fold import alpha_for
from loratools.adapters.kind import bias_delta_of, delta_of, kind_of, strength_of
from loratools.adapters.lora import LORA, collapsed
from loratools.adapters.pairs import Algebra, algebra, kron_factor
from loratools.model import Alpha, Scale
from loratools.tensors.lazy import LazyTensor

if TYPE_CHECKING:
    import torch

BIASES = ("up_bias", "bias_diff")

_ROUNDING = 2.0**-53


@dataclass(frozen=True, slots=True)
class Converted:
    """A plain LoRA and what it cost: `exact` where no decomposition was made (the error is then 0, but for rounding to
    the factors' dtype), else `error` is ‖Δ − Δ'‖ / ‖Δ‖ in Frobenius norms, from the singular values left out.
    """

    adapter: Adapter
    exact: bool
    error: float
    rank: int


def to_lora(
    adapter: Adapter,
    *,
    rank: int | None = None,
    error: float | None = None,
    base: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    shape: Sequence[int] | None = None,
) -> Converted:
    """The adapter as `down` and `up` of kind lora, in the weight's shape.

    Where neither `rank` nor `error` is given, the result is exact if the algebra's rank lies below the weight's own,
    else the smallest that keeps a relative error of 1e-5. Exact factors are lazy and leave the scale in alpha; those of
    a decomposition hold it themselves, half in each, and alpha is the rank. Factors are F32, or F64 where they were.

    `base` is the weight, which DoRA, IA3, GLoRA, OFT and BOFT need (NotRepresentable without it); `bias` the layer's
    bias, which PEFT's IA3 changes too; `shape` the weight's shape where there is no base: LoHa and LoKr of a
    convolution may hold its kernel flattened into the inputs. Raises NotRepresentable for what is no matrix.
    """
    kind, wanted = kind_of(adapter.kind), Wanted(rank=rank, error=error)
    if adapter.kind == "norm" or (adapter.kind == "full" and len(_shape_of(adapter, base, shape)) < 2):
        raise refusal(adapter.kind, "to_lora", "a vector is no product of matrices", "--to kohya keeps it as it is")
    if adapter.kind == "full" and "diff" not in adapter.factors:
        raise refusal(adapter.kind, "to_lora", "it changes a bias only", "--to kohya keeps it as it is")
    if base is None and kind.needs_base(adapter.factors):
        raise needs_base(" and ".join(kind.kinds(adapter.factors)))
    extents = _shape_of(adapter, base, shape)
    most, exactly = min(extents[0], prod(extents[1:])), algebra(adapter, base)
    with named(adapter):
        if exactly and _suffices(exactly, wanted, most):
            return _exact(adapter, exactly, extents)
        found = _spectrum(adapter, exactly if exactly and exactly.rank < most else None, base)
        chosen, lost = wanted.choose(found)
        if exactly and chosen >= exactly.rank:
            return _exact(adapter, exactly, extents)
        return Converted(decomposed_lora(adapter, found, chosen, extents, bias), False, lost, chosen)


def _suffices(exactly: Algebra, wanted: Wanted, most: int) -> bool:
    """Whether the exact pair is what is wanted: no larger than the rank asked for, or than the weight itself."""
    if wanted.rank is not None:
        return exactly.rank <= wanted.rank
    return wanted.error is None and (exactly.rank < most or exactly.adapter.kind == LORA.name)


def _shape_of(adapter: Adapter, base: torch.Tensor | None, shape: Sequence[int] | None) -> tuple[int, ...]:
    if base is not None:
        return tuple(base.shape)
    return tuple(shape or (extent or 0 for extent in kind_of(adapter.kind).weight_shape(adapter.factors) or ()))


def _exact(adapter: Adapter, exactly: Algebra, extents: tuple[int, ...]) -> Converted:
    rank = exactly.rank
    alpha, kept = alpha_for(adapter.alpha, strength_of(adapter), rank)
    if adapter.kind == LORA.name:
        factors = collapsed(adapter.factors)
    else:
        factors = {role: adapter.factors[role] for role in BIASES if role in adapter.factors}
        factors |= _lazy_pair(exactly, extents)
    plain = replace(adapter, kind=LORA.name, factors=factors, alpha=alpha, settings={})
    return Converted(plain, kept, 0.0 if kept else _ROUNDING, rank)


def _lazy_pair(exactly: Algebra, extents: tuple[int, ...]) -> dict[str, LazyTensor]:
    """down and up, made when their bytes are asked for; at once where they would keep a base weight in memory."""
    dtype = wide_dtype(exactly.adapter.factors)
    shapes = _pair_shapes(exactly.rank, extents)
    if exactly.base is not None:
        made = dict(zip(("up", "down"), exactly.pair(), strict=True))
        return {role: _stored(made[role], shape, dtype) for role, shape in shapes.items()}

    def lazily(role: str, side: int) -> LazyTensor:
        return LazyTensor.computed(
            dtype, shapes[role], lambda: exactly.pair()[side].to(torch_dtype(dtype)).reshape(shapes[role])
        )

    return {"down": lazily("down", 1), "up": lazily("up", 0)}


def _spectrum(adapter: Adapter, exactly: Algebra | None, base: torch.Tensor | None) -> Spectrum:
    """The decomposition of the delta at the user's scale 1, by the cheapest way there is."""
    scale = float(strength_of(adapter))
    if adapter.kind == "lokr" and not kind_of("lokr").needs_base(adapter.factors):
        left, right = kron_factor(adapter.factors, 1)
        first = spectrum_of_pair(left * scale, right)
        return spectrum_of_kron(first, spectrum_of_pair(*kron_factor(adapter.factors, 2)))
    if exactly:
        left, right = exactly.pair()
        return spectrum_of_pair(left * scale, right)
    return spectrum(delta_of(adapter, base, dtype="float64").flatten(1))


def _halves(found: Spectrum, rank: int, extents: Sequence[int], adapter: Adapter) -> dict[str, LazyTensor]:
    """The factors of the first `rank` singular values, in the shapes that a weight of `extents` wants."""
    left, right = found.halves(rank)
    dtype, shapes = wide_dtype(adapter.factors), _pair_shapes(rank, extents)
    if "embedding_down" in adapter.factors:
        turned = {"embedding_down": left.T, "embedding_up": right.T}
        return {role: _stored(values, tuple(values.shape), dtype) for role, values in turned.items()}
    return {"down": _stored(right, shapes["down"], dtype), "up": _stored(left, shapes["up"], dtype)}


def _pair_shapes(rank: int, extents: Sequence[int]) -> dict[str, tuple[int, ...]]:
    """down [r, in, kernel…] and up [out, r, 1…]."""
    return {"down": (rank, *extents[1:]), "up": (extents[0], rank, *(1,) * (len(extents) - 2))}


def _stored(values: torch.Tensor, shape: tuple[int, ...], dtype: str) -> LazyTensor:
    return LazyTensor.from_torch(values.to(torch_dtype(dtype)).reshape(shape).contiguous())


def decomposed_lora(
    adapter: Adapter, found: Spectrum, rank: int, extents: Sequence[int], bias: torch.Tensor | None = None
) -> Adapter:
    """The LoRA of the first `rank` singular values at scale 1 (alpha is the rank), with the adapter's biases."""
    held = _halves(found, rank, extents, adapter)
    if "up_bias" in adapter.factors:
        held["up_bias"] = _scaled(adapter.factors["up_bias"], strength_of(adapter))
    if "bias_diff" in adapter.factors:
        held["bias_diff"] = adapter.factors["bias_diff"]
    elif bias is not None and (change := bias_delta_of(adapter, bias, dtype="float64")) is not None:
        held["bias_diff"] = _stored(change, tuple(change.shape), wide_dtype(adapter.factors))
    return replace(adapter, kind=LORA.name, factors=held, alpha=Alpha(Fraction(rank), "tensor"), settings={})


def _scaled(tensor: LazyTensor, scale: Scale) -> LazyTensor:
    dtype = wide_dtype({"": tensor})
    return LazyTensor.computed(
        dtype, tensor.shape, lambda: (tensor.load().double() * float(scale)).to(torch_dtype(dtype))
    )
