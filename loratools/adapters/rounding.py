"""Whether two copies of a weight differ by more than the rounding of the dtypes that they are stored in."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

ULPS = 2.0
"""A difference of no more units in the last place of the coarser dtype is rounding: a cast makes half of one."""

SCALED = "scaled "
"""Before the name of a dtype whose numbers are multiplied by a scale that stands beside them."""

_FIRST = 1 << 12  # elements that are looked at before all others

# dtype → (bits of the fraction, exponent of the smallest normal number)
_FLOATS = {
    "F64": (52, -1022),
    "F32": (23, -126),
    "BF16": (7, -126),
    "F16": (10, -14),
    "F8_E5M2": (2, -14),
    "F8_E4M3": (3, -6),
    # A scale multiplies these, so that no magnitude is the smallest.
    f"{SCALED}F8_E5M2": (2, -126),
    f"{SCALED}F8_E4M3": (3, -126),
}


def beyond_rounding(base: torch.Tensor, tuned: torch.Tensor, dtypes: tuple[str, str]) -> bool:
    """Whether any element differs by more than ULPS units in the last place of the coarser of two stored dtypes.

    `base` and `tuned` are the float32 values of tensors stored in `dtypes` (safetensors names); a dtype without units
    (an integer) counts any difference.
    """
    import torch

    if any(name not in _FLOATS for name in dtypes):
        return bool((base != tuned).any())
    ours, theirs = base.reshape(-1), tuned.reshape(-1)
    for place in (slice(0, _FIRST), slice(_FIRST, None)):  # the first few nearly always decide
        first, second = ours[place], theirs[place]
        size = torch.maximum(first.abs(), second.abs())
        if bool(((second - first).abs() > ULPS * _unit(size, dtypes)).any()):
            return True
    return False


def _unit(size: torch.Tensor, dtypes: tuple[str, str]) -> torch.Tensor:
    """The unit in the last place of the coarser dtype at each magnitude."""
    import torch

    exponent = torch.frexp(size).exponent - 1  # frexp gives a fraction in [½, 1)
    units = [exponent.clamp_min(least) - bits for bits, least in (_FLOATS[name] for name in set(dtypes))]
    coarser = torch.stack(units).amax(0) if len(units) > 1 else units[0]
    return torch.ldexp(torch.ones_like(size), coarser)
