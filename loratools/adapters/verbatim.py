"""Low-rank adapters side by side without arithmetic: their factors' own bytes, signs aside, under one alpha."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from loratools.adapters.adapter import Adapter
from loratools.adapters.factors import load, widened
from loratools.adapters.lora import LORA
from loratools.adapters.terms import Term, holds, inner_rank
from loratools.model import Alpha, Scale
from loratools.tensors.dtypes import DTYPES, encode_scalar
from loratools.tensors.lazy import LazyTensor, stack_rows

if TYPE_CHECKING:
    import torch

_ROLES = frozenset(("down", "up", "up_bias", "bias_diff", "embedding_down", "embedding_up"))


def verbatim(pairs: Sequence[Term], dtype: str, shapes: Mapping[str, tuple[int, ...]]) -> Adapter | None:
    """All `pairs` as one adapter in `dtype`, whose factors have these shapes, its biases left out; None where one alpha
    cannot say it exactly.
    """
    scales = [term.scale for term in pairs]
    size = Scale(abs(scales[0].numerator), scales[0].root)
    alike = all(Scale(abs(scale.numerator), scale.root).equals(size) for scale in scales)
    plain = all(
        term.adapter.kind == LORA.name and set(term.adapter.factors) <= _ROLES and not term.adapter.settings
        for term in pairs
    )
    alpha = size.numerator * sum(inner_rank(term.adapter) for term in pairs)
    if not (alike and plain) or size.root != 1 or encode_scalar(alpha, "F32") is None or alpha == 0:
        return None
    first = pairs[0].adapter
    embedding = "embedding_down" in first.factors
    inner, outer = ("embedding_down", "embedding_up") if embedding else ("down", "up")
    inners = [term.adapter.factors[inner] for term in pairs]
    outers = [(term.adapter.factors[outer], scale.numerator < 0) for term, scale in zip(pairs, scales, strict=True)]
    if not all(holds(tensor.dtype, dtype) for tensor in (*inners, *(tensor for tensor, _ in outers))):
        return None
    rows = [widened(tensor, dtype).reshape(tensor.shape[0], *shapes[inner][1:]) for tensor in inners]
    if len(outers) == 1 and not outers[0][1]:
        up = widened(outers[0][0], dtype).reshape(*shapes[outer])
    else:
        up = LazyTensor.computed(dtype, shapes[outer], lambda: _abreast(outers, dtype, shapes[outer]))
    factors = {inner: stack_rows(rows), outer: up}
    settled = Alpha(alpha, "tensor", stored=first.alpha.stored)
    return replace(first, kind=LORA.name, factors=factors, alpha=settled, settings={})


def _abreast(outers: Sequence[tuple[LazyTensor, bool]], dtype: str, shape: tuple[int, ...]) -> torch.Tensor:
    """Columns next to each other, those with a minus negated."""
    import torch

    name = DTYPES[dtype].torch or ""
    columns = [load(tensor, name).reshape(shape[0], -1) * (-1 if minus else 1) for tensor, minus in outers]
    return torch.cat(columns, 1).reshape(shape)
