"""Scales moved between alpha and the factors: which are exact, which are rounded, and what alpha keeps a scale."""

from __future__ import annotations

from fractions import Fraction

from loratools.adapters.factors import Factors, load, refusal
from loratools.adapters.kind import Kind
from loratools.model import Alpha, Scale
from loratools.tensors.dtypes import DTYPES
from loratools.tensors.lazy import LazyTensor


def is_power_of_two(number: Fraction) -> bool:
    """Whether the number is ±2ⁿ."""
    over, under = abs(number.numerator), number.denominator
    return over > 0 and over & (over - 1) == 0 and under & (under - 1) == 0


def alpha_for(alpha: Alpha, scale: Scale, rank: int | None) -> tuple[Alpha, bool]:
    """The alpha that makes `scale` at `rank`, and whether it does so exactly.

    Absent stays absent where the scale is 1. α/√r is kept as a rule where its alpha is rational, else α/r; where
    neither is (three ranks of 2 fused under α/√r), alpha is the nearest double.
    """
    if rank is None or (alpha.value is None and scale.equals(Scale(Fraction(1)))):
        return alpha, True
    if alpha.rank_stabilized:
        # (n / √root) · √rank = n · rank / √(root · rank)
        stable = Scale.of(scale.numerator * rank, scale.root * rank)
        if stable.root == 1:
            return alpha._replace(value=stable.numerator), True
    if scale.root == 1:
        return alpha._replace(value=scale.numerator * rank, rank_stabilized=False), True
    return alpha._replace(value=Fraction(float(scale) * rank), rank_stabilized=False), False


def folded(kind: Kind, factors: Factors, ratio: Scale) -> tuple[dict[str, LazyTensor], bool]:
    """The factors with `ratio` multiplied into the first factor of the kind's product (and into biases), and whether
    every value is exact.

    A power of two is tried in the factor's own dtype, value by value (float16 has subnormals), then in float32; any
    other ratio is multiplied in float32.
    """
    role = next((name for name in kind.product if name in factors), None)
    if role is None:
        raise refusal(kind.name, "fold", "its delta is linear in no factor")
    result, exact = dict(factors), True
    for name in (role, *(bias for bias in kind.biases if bias in factors and bias != role)):
        result[name], exact_here = _times(factors[name], ratio)
        exact = exact and exact_here
    return result, exact


def _times(tensor: LazyTensor, ratio: Scale) -> tuple[LazyTensor, bool]:
    """The tensor times the ratio, computed when its bytes are asked for, and whether every value is exact."""
    if ratio.numerator == 0:
        return LazyTensor.zeros(tensor.dtype, tensor.shape), True
    value = float(ratio)
    wide = "F64" if tensor.dtype == "F64" else "F32"
    if ratio.root == 1 and is_power_of_two(ratio.numerator):
        for dtype in dict.fromkeys((tensor.dtype, wide)):
            product = _product(tensor, value, dtype)
            if _is_exact(tensor, value, product):
                return product, True
    return _product(tensor, value, wide), False


def _product(tensor: LazyTensor, value: float, dtype: str) -> LazyTensor:
    name = DTYPES[dtype].torch or ""
    return LazyTensor.computed(dtype, tensor.shape, lambda: load(tensor, name) * value)


def _is_exact(tensor: LazyTensor, value: float, product: LazyTensor) -> bool:
    import torch

    return bool(torch.equal(load(tensor, "float64") * value, load(product, "float64")))
