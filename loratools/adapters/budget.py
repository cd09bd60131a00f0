"""One budget of bytes for all layers: which rank each gets, so that the sum of the squared errors is smallest."""

from __future__ import annotations

from collections.abc import Sequence
from heapq import heapify, heappop, heappush

from loratools.errors import UsageError


def share_out(spectra: Sequence[Sequence[float]], unit_bytes: Sequence[int], budget: int, least: int = 1) -> list[int]:
    """The rank of each layer: the units (one singular value σ and its two vectors) of the highest σ² per byte.

    `spectra` are singular values in falling order, `unit_bytes` what one rank of each layer weighs; every layer gets
    `least` first (or all it has). A layer whose next unit does not fit is full; the others go on, so that at most the
    smallest unit still wanted stays unused. A zero value is never bought. Greedy on σ²/bytes is the optimum of
    Σ_kept σ² for the bytes it spends up to the first unit that does not fit. Raises UsageError where `least` ranks
    need more than `budget`.
    """
    ranks = [min(least, len(values)) for values in spectra]
    left = budget - sum(rank * unit for rank, unit in zip(ranks, unit_bytes, strict=True))
    if left < 0:
        raise UsageError(
            f"rank {least} in each of {len(ranks)} layers needs {budget - left:,} bytes, {budget:,} are allowed",
            hint="allow more bytes",
            needed=budget - left,
            allowed=budget,
        )

    def offer(layer: int) -> tuple[float, int] | None:
        """What the next unit of a layer is worth, best first in a heap; ties go to the earlier layer."""
        values, at = spectra[layer], ranks[layer]
        if at >= len(values) or not values[at] > 0:
            return None
        return -(float(values[at]) ** 2) / unit_bytes[layer], layer

    heap = [found for found in map(offer, range(len(ranks))) if found is not None]
    heapify(heap)
    while heap:
        _, layer = heappop(heap)
        if unit_bytes[layer] > left:
            continue
        ranks[layer] += 1
        left -= unit_bytes[layer]
        again = offer(layer)
        if again is not None:
            heappush(heap, again)
    return ranks
