"""How a native weight lays out its rows, done to the factors of an adapter. Most layouts undo themselves."""

from __future__ import annotations

from collections.abc import Mapping

from loratools.adapters.dealt import dealt, gathered
from loratools.adapters.kind import Kind
from loratools.architectures.naming import Placement
from loratools.errors import NotRepresentable
from loratools.tensors.lazy import LazyTensor

Factors = Mapping[str, LazyTensor]


def turned(
    kind: Kind, factors: Factors, placement: Placement, *, path: str | None, key: str | None, native: bool
) -> Factors:
    """Canonical factors in the native layout, or (`native`) native ones in the canonical one.

    Raises NotRepresentable where the layout hangs on the weight's shape, which the factors do not tell.
    """
    if placement.layout == "rows":
        return factors
    if placement.layout == "dealt":
        return (gathered if native else dealt)(kind, factors, len(placement.paths), placement.hand)
    settled = placement.settled(kind.weight_shape(factors) or ())
    if settled is None:
        raise NotRepresentable(
            f"{placement.native}: whether its halves change places hangs on the size of the weight, which a "
            f"{kind.name} does not tell",
            path=path,
            key=key,
        )
    if settled.layout == "swap_halves":
        return kind.swap_halves(factors)
    return kind.transpose(factors) if settled.layout == "transpose" else factors
