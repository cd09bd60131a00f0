"""The terms of a sum of adapters: weights, what adds up at all, the shape and the dtype that hold them together."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import TYPE_CHECKING

from loratools.adapters.adapter import Adapter
from loratools.adapters.blame import named
from loratools.adapters.dora import is_dora
from loratools.adapters.factors import load, refusal, torch_dtype
from loratools.adapters.fold import folded
from loratools.adapters.kind import kind_of, strength_of
from loratools.adapters.lora import LORA
from loratools.adapters.pairs import algebra
from loratools.errors import ArchitectureMismatch, NonFinite
from loratools.model import Alpha, Scale
from loratools.tensors.dtypes import DTYPES
from loratools.tensors.lazy import LazyTensor

if TYPE_CHECKING:
    import torch

PLAIN = "convert --to-kind lora --base BASE makes plain LoRA of it first"


@dataclass(frozen=True, slots=True)
class Term:
    """One adapter and the weight of its delta; `number` is the place of its file among the inputs."""

    adapter: Adapter
    weight: Fraction
    number: int

    @property
    def scale(self) -> Scale:
        """What multiplies the product of its factors."""
        scale = strength_of(self.adapter)
        return Scale(scale.numerator * self.weight, scale.root)


def require_additive(adapter: Adapter) -> None:
    """Raise NotRepresentable, with the reason, for an adapter whose delta does not add up with others'."""
    kind = "+".join(kind_of(adapter.kind).kinds(adapter.factors))
    why = None
    if is_dora(adapter.factors):
        why = "a magnitude sets the norm of the whole weight: two of them do not add up"
    elif adapter.kind in ("ia3", "oft", "boft", "glora"):
        why = "its delta is a function of the base weight"
    elif adapter.kind not in ("full", "norm") and algebra(adapter, None) is None:
        why = "it has a sparse residual"
    if why is not None:
        with named(adapter):
            raise refusal(kind, "combine", f"{adapter.target.name}: {why}", PLAIN)


def has_pair(adapter: Adapter) -> bool:
    """Whether its delta is a product of few columns, given that it is additive."""
    return adapter.kind not in ("full", "norm")


def is_whole(adapter: Adapter) -> bool:
    """Whether the result is stored whole because of this one; a bias alone stands beside a LoRA."""
    return adapter.kind == "norm" or "diff" in adapter.factors


def inner_rank(adapter: Adapter) -> int:
    """The rank of the exact pair, 0 where there is none."""
    found = algebra(adapter, None)
    return found.rank if found else 0


def common_shape(adapters: Sequence[Adapter]) -> tuple[int, ...]:
    """The shape of the weight, as the first that tells it does; ArchitectureMismatch where another's differs."""
    told = [(item, kind_of(item.kind).weight_shape(item.factors)) for item in adapters]
    whole = [(item, tuple(extent or 0 for extent in shape)) for item, shape in told if shape and None not in shape]
    if not whole:
        return ()
    first, extents = whole[0]
    # A kernel may be flattened into the inputs: the longest form tells it.
    for item, shape in whole[1:]:
        same = shape[0] == extents[0] and math.prod(shape) == math.prod(extents)
        if not same or ("embedding_down" in item.factors) != ("embedding_down" in first.factors):
            raise ArchitectureMismatch(
                f"{item.target.name} is {list(extents)} in one input and {list(shape)} in another",
                path=item.origin.file if item.origin else None,
                key=item.origin.stem if item.origin else None,
                expected=list(extents),
                found=list(shape),
            )
    return max((shape for _, shape in whole), key=lambda shape: (math.prod(shape[2:]) > 1, shape is extents))


def widest(terms: Sequence[Term]) -> str:
    """The dtype that holds the factors of all terms; two different halves need float32."""
    names = {
        tensor.dtype for term in terms for tensor in term.adapter.factors.values() if DTYPES[tensor.dtype].floating
    }
    bits = max(DTYPES[name].bits for name in names)
    widest = sorted(name for name in names if DTYPES[name].bits == bits)
    return widest[0] if all(holds(name, widest[0]) for name in names) else "F32"


def holds(narrow: str, wide: str) -> bool:
    """Whether every number of one dtype is one of the other."""
    if narrow == wide:
        return True
    return wide == "F64" or (wide == "F32" and narrow != "F64")


def sum_of(held: Sequence[tuple[LazyTensor, float]], dtype: str) -> LazyTensor:
    """Σ factor · tensor, summed in float64 and cast once."""
    tensors = tuple(held)
    if len(tensors) == 1 and tensors[0][1] == 1 and tensors[0][0].dtype == dtype:
        return tensors[0][0]

    def produce() -> torch.Tensor:
        total: torch.Tensor | None = None
        for tensor, factor in tensors:
            part = load(tensor, "float64").reshape(tensors[0][0].shape) * factor
            total = part if total is None else total + part
        assert total is not None
        made = total.to(torch_dtype(dtype))
        if not math.isfinite(float(made.double().abs().sum())):
            raise NonFinite(f"a sum overflows in {dtype}", hint="--dtype float32")
        return made

    return LazyTensor.computed(dtype, tensors[0][0].shape, produce)


def weighted(term: Term) -> Adapter:
    """The term as one adapter, for comparing: the weight in its alpha where it has one, else in a factor."""
    item = replace(term.adapter)
    if term.weight == 1:
        return item
    factors = dict(item.factors)
    if "bias_diff" in factors and item.kind != "full":
        factors["bias_diff"] = sum_of([(factors["bias_diff"], float(term.weight))], "F64")
    if item.kind == LORA.name and term.scale.root == 1 and not item.settings:
        alpha = Alpha(term.scale.numerator * (item.rank or 1), "tensor")
        return replace(item, factors=factors, alpha=alpha)
    made, _ = folded(kind_of(item.kind), factors, Scale(term.weight))
    return replace(item, factors=made)


def zeros(adapter: Adapter) -> Adapter:
    """An adapter of the same weight that changes nothing: of rank 1, or zeros as they would be stored whole."""
    told = kind_of(adapter.kind).weight_shape(adapter.factors) or ()
    if has_pair(adapter) and told and None not in told:
        out, columns, *kernel = (extent or 0 for extent in told)
        shapes = {"down": (1, columns, *kernel), "up": (out, 1, *(1 for _ in kernel))}
        if "embedding_down" in adapter.factors:
            shapes = {"embedding_down": (1, out), "embedding_up": (columns, 1)}
        factors = {role: LazyTensor.zeros(widest([Term(adapter, Fraction(1), 0)]), s) for role, s in shapes.items()}
        alpha = Alpha(Fraction(1), "tensor", stored=adapter.alpha.stored)
        return replace(adapter, kind=LORA.name, factors=factors, alpha=alpha, settings={})
    factors = {role: LazyTensor.zeros(tensor.dtype, tensor.shape) for role, tensor in adapter.factors.items()}
    return replace(adapter, factors=factors)
