"""What a resized output may differ by from its source, layer by layer, and how that is measured."""

from __future__ import annotations

import math
from collections.abc import Sequence

from loratools.adapters.adapter import Adapter
from loratools.adapters.difference import difference, relative
from loratools.adapters.proof import Proof, aligned, prove
from loratools.adapters.ranks import tails
from loratools.adapters.resize import Resizable
from loratools.operations.outputs.derived import LIMIT, Promise

# dtype → half a unit in the last place, relatively: what a cast changes of a bias at most.
_HALF_UNIT = {"F32": 2.0**-24, "F16": 2.0**-11, "BF16": 2.0**-8}


def promise(
    source: Sequence[Adapter], layers: Sequence[Resizable | None], chosen: Sequence[int | None], dtype: str | None
) -> Promise:
    """Layers that keep their bytes are identical, others within the error of their rank and the rounding of the casts;
    where only a cast was asked for (`dtype`), its error is measured and told, not limited.
    """
    known = {id(item): (layer, rank) for item, layer, rank in zip(source, layers, chosen, strict=True)}

    def shrinks(item: Adapter) -> bool:
        layer, rank = known[id(item)]
        return layer is not None and rank is not None and not layer.keeps(rank)

    def prover(ours: Sequence[Adapter], theirs: Sequence[Adapter]) -> Proof:
        return distance(ours, theirs) if any(map(shrinks, ours)) else prove(ours, theirs)

    def allowed(ours: Sequence[Adapter]) -> float:
        if all(map(shrinks, ours)) or (dtype is None and any(map(shrinks, ours))):
            return _allowed([known[id(item)] for item in ours], dtype)
        return math.inf if dtype else LIMIT

    return Promise(prover, allowed, [])


def _allowed(found: Sequence[tuple[Resizable | None, int | None]], dtype: str | None) -> float:
    """The relative error over all layers of a cluster that their ranks and casts account for."""
    lost = whole = rounded = 0.0
    for layer, rank in found:
        if layer is None or rank is None:
            continue
        values = layer.measured()
        norm = math.sqrt(math.fsum(value * value for value in values))
        whole += norm**2
        if not layer.keeps(rank):
            lost += (norm * tails(values)[rank]) ** 2
            rounded += norm * (layer.rounding or 0.0)
    beside = _HALF_UNIT.get(dtype or "F32", 0.0)
    cast = max(relative(rounded, math.sqrt(whole)), beside)
    return relative(math.sqrt(lost), math.sqrt(whole)) * (1 + LIMIT) + cast + LIMIT


def distance(source: Sequence[Adapter], output: Sequence[Adapter]) -> Proof:
    """‖Δ − Δ'‖ / ‖Δ‖ over all weights of a cluster, or what differs beside them where that is more."""
    apart = whole = beside = 0.0
    for ours, theirs in aligned(source, output):
        found = difference([ours] if ours else [], [theirs] if theirs else [])
        apart += found.distance**2
        whole += found.norm_a**2
        if found.relative_error > relative(found.distance, found.norm_a):
            beside = max(beside, found.relative_error)
    return Proof("measured", max(relative(math.sqrt(apart), math.sqrt(whole)), beside))
