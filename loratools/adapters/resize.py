"""A LoRA at another rank, by the QR cores of its factors: the delta itself is never formed."""

from __future__ import annotations

from dataclasses import replace

from loratools.adapters.adapter import Adapter
from loratools.adapters.blame import named
from loratools.adapters.decompose import Wanted, spectrum_of_pair
from loratools.adapters.dora import MAGNITUDES
from loratools.adapters.factors import refusal
from loratools.adapters.kind import strength_of
from loratools.adapters.lora import LORA
from loratools.adapters.residual import RESIDUAL
from loratools.adapters.to_lora import Converted, decomposed_lora, to_lora
from loratools.errors import UsageError


def resize(
    adapter: Adapter, *, rank: int | None = None, error: float | None = None, energy: float | None = None
) -> Converted:
    """The LoRA of `rank`, or of the smallest that keeps a relative `error` or a share of the `energy` (‖Δ‖²).

    Raises UsageError unless one of them is given, NotRepresentable for other kinds. A Tucker core is collapsed and
    AdaLoRA's singular values are multiplied in first; where the rank does not shrink, that is all, and it is exact.
    A magnitude is kept as it is: the error is then that of the low-rank part inside the norm. Singular values go half
    into each factor, the scale with them, and alpha is the new rank.
    """
    wanted = Wanted(rank=rank, error=error, energy=energy)
    if rank is error is energy is None:
        raise UsageError("nothing says how far to resize", hint="give a rank, an error or an energy")
    if adapter.kind != LORA.name:
        raise refusal(adapter.kind, "resize", "only low-rank pairs are resized", "convert it to LoRA first")
    if RESIDUAL in adapter.factors:
        raise refusal(adapter.kind, "resize", "it has a sparse residual", "convert it to plain LoRA first")
    beside = {role.name: adapter.factors[role.name] for role in MAGNITUDES if role.name in adapter.factors}
    bare = replace(adapter, factors={role: kept for role, kept in adapter.factors.items() if role not in beside})
    with named(adapter):
        left, right = LORA.low_rank(bare.factors, "float64")
        found = spectrum_of_pair(left * float(strength_of(bare)), right)
        chosen, lost = wanted.choose(found)
    if chosen >= (bare.rank or 0):
        plain = to_lora(bare)
        return replace(plain, adapter=replace(plain.adapter, factors={**plain.adapter.factors, **beside}))
    extents = [extent or 0 for extent in LORA.weight_shape(bare.factors) or ()]
    made = decomposed_lora(bare, found, chosen, extents)
    return Converted(replace(made, factors={**made.factors, **beside}), False, lost, chosen)
