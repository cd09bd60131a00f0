"""Alpha as a writer needs it: divided by the rank, and as a tensor of the smallest dtype that holds it exactly."""

from __future__ import annotations

import struct
from fractions import Fraction

from loratools.adapters.adapter import Adapter
from loratools.errors import NonFinite
from loratools.model import Alpha, Scale
from loratools.tensors.dtypes import encode_scalar
from loratools.tensors.lazy import LazyTensor

Stored = tuple[str, tuple[int, ...]]  # dtype and shape of an alpha tensor


def plain(item: Adapter) -> Alpha:
    """The alpha of the same scale for a reader that divides by the rank: alpha · √rank, a double where irrational."""
    rank = item.rank
    if not item.alpha.rank_stabilized or not rank:
        return item.alpha
    scale = item.scale
    exact = scale.numerator * rank if scale.root == 1 else Fraction(float(scale) * rank)
    return Alpha(exact, item.alpha.source)


def is_plain(item: Adapter) -> bool:
    """Whether the factors are multiplied by exactly 1, so that no alpha needs to be written."""
    return item.scale.equals(Scale(Fraction(1)))


def alpha_tensor(item: Adapter, stored: Stored | None = None) -> LazyTensor | None:
    """The alpha of an adapter as a tensor; None for kinds without alpha.

    Its dtype is the stored one where that holds it exactly, else the factors', else float32, else float64. An absent
    alpha is written as the rank, which every reader takes as scale 1; an irrational one (rsLoRA) is rounded to float32,
    one without a finite binary form (AdaLoRA's, over init_r + 1e-5) to float64, and the proof measures that.
    """
    alpha = plain(item)
    value = Fraction(item.rank) if alpha.value is None and item.rank else alpha.value
    if value is None:
        return None
    wanted, shape = stored or (next(iter(item.factors.values())).dtype, ())
    if item.alpha.rank_stabilized and item.scale.root != 1:
        return LazyTensor.from_bytes("F32", shape, struct.pack("<f", float(value)))
    for dtype in (wanted, next(iter(item.factors.values())).dtype, "F32", "F64"):
        raw = encode_scalar(value, dtype)
        if raw is not None:
            return LazyTensor.from_bytes(dtype, shape, raw)
    try:
        return LazyTensor.from_bytes("F64", shape, struct.pack("<d", float(value)))
    except OverflowError as error:
        raise NonFinite(f"no number of 64 bits holds the alpha of {item.target.name}") from error
