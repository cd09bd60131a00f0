"""Any kind as a plain LoRA: by algebra where the delta is a product of few columns, else by a truncated SVD."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from math import prod
from typing import TYPE_CHECKING

from loratools.adapters.adapter import Adapter
from loratools.adapters.blame import named
from loratools.adapters.decompose import Wanted, spectrum_of_kron, spectrum_of_pair
from loratools.adapters.factors import needs_base, refusal, torch_dtype, wide_dtype
from loratools.adapters.fold import alpha_for
from loratools.adapters.kind import bias_delta_of, delta_of, kind_of, strength_of
from loratools.adapters.lora import LORA, collapsed
from loratools.adapters.pairs import Algebra, Pair, algebra, kron_factor
from loratools.adapters.range_finder import truncated_svd
from loratools.errors import InternalError
from loratools.model import Alpha, Scale
from loratools.tensors.lazy import LazyTensor

if TYPE_CHECKING:
    import torch

BIASES = ("up_bias", "bias_diff")

_ROUNDING = 2.0**-53


@dataclass(frozen=True, slots=True)
class Converted:
    """A plain LoRA and what it cost: `exact` where no decomposition was made (the error is then 0, but for rounding to
    the factors' dtype), else `error` is ‖Δ − Δ'‖ / ‖Δ‖ in Frobenius norms, from the singular values left out; None
    where the decomposition is only foreseen.
    """

    adapter: Adapter
    exact: bool
    error: float | None
    rank: int


class Unforeseen(InternalError):
    """A factor was asked for that a decomposition would make, while that was only planned."""


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
    wanted = Wanted(rank=rank, error=error)
    extents = _required(adapter, base, shape)
    most, exactly = min(extents[0], prod(extents[1:])), algebra(adapter, base)
    with named(adapter):
        if exactly and _suffices(exactly, wanted, most):
            return _exact(adapter, exactly, extents)
        halves, chosen, lost = _truncated(adapter, exactly if exactly and exactly.rank < most else None, base, wanted)
        if exactly and chosen >= exactly.rank:
            return _exact(adapter, exactly, extents)
        return Converted(decomposed_lora(adapter, halves, chosen, extents, bias), False, lost, chosen)


def foreseen(
    adapter: Adapter,
    *,
    rank: int | None = None,
    error: float | None = None,
    base: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    shape: Sequence[int] | None = None,
) -> Converted:
    """What `to_lora` will make, from shapes alone; `base` may be on the meta device. Refuses what that refuses.

    What needs no weight and no decomposition is as it will be. Otherwise the error is None, reading a factor raises
    Unforeseen, and the rank is the one asked for, or the largest that the error may need.
    """
    wanted = Wanted(rank=rank, error=error)
    extents = _required(adapter, base, shape)
    most, exactly = min(extents[0], prod(extents[1:])), algebra(adapter, base)
    if exactly and _suffices(exactly, wanted, most):
        made = _exact(adapter, exactly, extents)
        return made if base is None else replace(made, error=None)
    likely = min(wanted.rank or most, most, exactly.rank if exactly else most)
    dtype = wide_dtype(adapter.factors)
    halves = {role: _unmade(dtype, told) for role, told in _shapes(adapter, likely, extents).items()}
    return Converted(_assembled(adapter, halves, likely, bias), False, None, likely)


def _required(adapter: Adapter, base: torch.Tensor | None, shape: Sequence[int] | None) -> tuple[int, ...]:
    """The weight's shape; raises NotRepresentable for what is no matrix, or needs the base and has none."""
    kind = kind_of(adapter.kind)
    if adapter.kind == "norm" or (adapter.kind == "full" and len(_shape_of(adapter, base, shape)) < 2):
        raise refusal(adapter.kind, "to_lora", "a vector is no product of matrices", "--to kohya keeps it as it is")
    if adapter.kind == "full" and "diff" not in adapter.factors:
        raise refusal(adapter.kind, "to_lora", "it changes a bias only", "--to kohya keeps it as it is")
    if base is None and kind.needs_base(adapter.factors):
        raise needs_base(" and ".join(kind.kinds(adapter.factors)))
    return _shape_of(adapter, base, shape)


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
    if exactly.base is not None and exactly.base.is_meta:
        return {role: _unmade(dtype, shape) for role, shape in shapes.items()}
    if exactly.base is not None:
        made = dict(zip(("up", "down"), exactly.pair(), strict=True))
        return {role: _stored(made[role], shape, dtype) for role, shape in shapes.items()}

    def lazily(role: str, side: int) -> LazyTensor:
        return LazyTensor.computed(
            dtype, shapes[role], lambda: exactly.pair()[side].to(torch_dtype(dtype)).reshape(shapes[role])
        )

    return {"down": lazily("down", 1), "up": lazily("up", 0)}


def _truncated(
    adapter: Adapter, exactly: Algebra | None, base: torch.Tensor | None, wanted: Wanted
) -> tuple[Pair, int, float]:
    """Both halves of the delta at the user's scale 1, truncated the cheapest way there is; its rank and error."""
    scale, found = float(strength_of(adapter)), None
    if adapter.kind == "lokr" and not kind_of("lokr").needs_base(adapter.factors):
        left, right = kron_factor(adapter.factors, 1)
        first = spectrum_of_pair(left * scale, right)
        found = spectrum_of_kron(first, spectrum_of_pair(*kron_factor(adapter.factors, 2)))
    elif exactly:
        left, right = exactly.pair()
        found = spectrum_of_pair(left * scale, right)
    if found is not None:
        rank, lost = wanted.choose(found)
        return found.halves(rank), rank, lost
    delta = delta_of(adapter, base, dtype="float64").flatten(1)
    cut = truncated_svd(delta, rank=wanted.rank, error=wanted.error, energy=wanted.energy)
    return cut.halves(), cut.rank, cut.error


def _halves(halves: Pair, rank: int, extents: Sequence[int], adapter: Adapter) -> dict[str, LazyTensor]:
    """Both halves as factors, in the shapes that a weight of `extents` wants."""
    left, right = halves
    dtype, told = wide_dtype(adapter.factors), _shapes(adapter, rank, extents)
    turned = {"down": right, "up": left, "embedding_down": left.T, "embedding_up": right.T}
    return {role: _stored(turned[role], shape, dtype) for role, shape in told.items()}


def _shapes(adapter: Adapter, rank: int, extents: Sequence[int]) -> dict[str, tuple[int, ...]]:
    """The factors of a LoRA of this rank, with their shapes."""
    if "embedding_down" in adapter.factors:
        return {"embedding_down": (rank, extents[0]), "embedding_up": (prod(extents[1:]), rank)}
    return _pair_shapes(rank, extents)


def _unmade(dtype: str, shape: tuple[int, ...]) -> LazyTensor:
    def produce() -> bytes:
        raise Unforeseen("a decomposition is only planned")

    return LazyTensor.produced(dtype, shape, produce)


def _pair_shapes(rank: int, extents: Sequence[int]) -> dict[str, tuple[int, ...]]:
    """down [r, in, kernel…] and up [out, r, 1…]."""
    return {"down": (rank, *extents[1:]), "up": (extents[0], rank, *(1,) * (len(extents) - 2))}


def _stored(values: torch.Tensor, shape: tuple[int, ...], dtype: str) -> LazyTensor:
    return LazyTensor.from_torch(values.to(torch_dtype(dtype)).reshape(shape).contiguous())


def decomposed_lora(
    adapter: Adapter, halves: Pair, rank: int, extents: Sequence[int], bias: torch.Tensor | None = None
) -> Adapter:
    """The LoRA of `halves` (left [rows, rank], right [rank, columns]) at scale 1 (alpha is the rank), with the
    adapter's biases.
    """
    return _assembled(adapter, _halves(halves, rank, extents, adapter), rank, bias)


def _assembled(
    adapter: Adapter, halves: Mapping[str, LazyTensor], rank: int, bias: torch.Tensor | None = None
) -> Adapter:
    held = dict(halves)
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
