"""Ranks for a file of a given size: one budget of bytes for all layers, the finished file never above it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from loratools.adapters.budget import share_out
from loratools.bases.pairing import Twin
from loratools.errors import InternalError, UsageError
from loratools.operations.extraction.factors import Extracted
from loratools.operations.extraction.wishes import Wishes
from loratools.tensors.dtypes import DTYPES

_GENEROUS = 4  # times the rank that every layer would get if all had the same
_LEAST = 8


def first_cap(twins: Sequence[Twin], asked: Wishes) -> int:
    """The rank to which layers are decomposed before their bytes are shared out."""
    units = sum(sum(twin.matrix) for twin in twins if twin.sort == "layer" and asked.rank_of(twin) is None)
    even = (asked.size or 0) // max(1, units * DTYPES[asked.dtype].bits // 8)
    return max(_LEAST, _GENEROUS * even)


def within_size(
    found: Sequence[Extracted],
    asked: Wishes,
    measure: Callable[[Sequence[Extracted]], int],
    again: Callable[[Twin, int], Extracted],
) -> list[Extracted]:
    """The layers cut so that the finished file, as `measure` has it, is not above the size that was asked for.

    Bytes go where σ² is largest, over all layers. A layer that takes every value that was computed for it is decomposed
    `again` to twice the rank, and the bytes are shared out anew. Raises UsageError where rank 1 is too much.
    """
    assert asked.size is not None
    held = list(found)
    free = [at for at, item in enumerate(held) if item.has_factors and asked.rank_of(item.twin) is None]
    while True:
        cut = _shared_out(held, free, asked.size, measure)
        short = [at for at in free if cut[at].rank == _width(held[at]) and _has_more(held[at])]
        if not short:
            return cut
        for at in short:
            held[at] = again(held[at].twin, 2 * _width(held[at]))


def _has_more(item: Extracted) -> bool:
    """Whether a layer has singular values beyond those that were computed."""
    return _width(item) < min(item.twin.matrix) and item.values[-1] > 0


def _width(item: Extracted) -> int:
    """The rank to which a layer was decomposed."""
    return item.down.shape[0] if item.down else 0


def _shared_out(
    held: Sequence[Extracted], free: Sequence[int], size: int, measure: Callable[[Sequence[Extracted]], int]
) -> list[Extracted]:
    spectra, units = [held[at].values for at in free], [held[at].unit for at in free]
    least = _cut(held, free, [1] * len(free))
    budget = size - (measure(least) - sum(units))
    if budget < sum(units):
        raise UsageError(
            f"{size:,} bytes do not hold rank 1 of every layer: that takes {measure(least):,}",
            hint=f"allow more, or leave layers out by a pattern: {held[free[0]].twin.target.name.replace(':', '.')}=0"
            if free
            else None,
        )
    for _ in range(len(free) + 8):
        cut = _cut(held, free, share_out(spectra, units, budget))
        excess = measure(cut) - size
        if excess <= 0:
            return cut
        budget -= excess  # the header grew with the numbers in it
    raise InternalError(f"no ranks were found for a file of {size} bytes")


def _cut(held: Sequence[Extracted], free: Sequence[int], ranks: Sequence[int]) -> list[Extracted]:
    cut = list(held)
    for at, rank in zip(free, ranks, strict=True):
        cut[at] = held[at].cut(rank)
    return cut
