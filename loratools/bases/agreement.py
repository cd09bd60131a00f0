"""Which architectures the models of a pipeline are together, and which of them go along as they are.

The denoiser decides. Any other model that is its pipeline's narrows the answer down, one of a class that no table is
for says nothing, and one that its pipeline has from another architecture is a mistake.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from loratools.architectures.registry import ARCHITECTURES

DENOISERS = frozenset(known.denoiser.name for known in ARCHITECTURES)

Told = tuple[str | None, tuple[str, ...]]
"""The component that a folder names (or None), and the architectures that its weights fit."""


class Agreement(NamedTuple):
    """The architectures that all parts allow (none where they contradict each other), and the parts, by their places,
    that no table of theirs is for: nothing can change those.
    """

    candidates: tuple[str, ...]
    carried: frozenset[int] = frozenset()


def agreement(parts: Sequence[Told]) -> Agreement:
    """What the parts are together."""
    shared = _in_all([candidates for _, candidates in parts])
    if shared:
        return Agreement(shared)
    deciding = [candidates for component, candidates in parts if component is None or component in DENOISERS]
    settled = _in_all(deciding)
    carried: set[int] = set()
    for at, (component, candidates) in enumerate(parts):
        if component is None or component in DENOISERS:
            continue
        both = tuple(name for name in settled if name in candidates)
        if not both and settled and not _is_foreign(component, candidates, settled):
            return Agreement(())
        if both:
            settled = both
        else:
            carried.add(at)
    return Agreement(settled, frozenset(carried)) if settled else Agreement(())


def _in_all(parts: Sequence[tuple[str, ...]]) -> tuple[str, ...]:
    """The candidates of the first part that all others have, too."""
    return tuple(name for name in parts[0] if all(name in others for others in parts)) if parts else ()


def _is_foreign(component: str, candidates: tuple[str, ...], settled: tuple[str, ...]) -> bool:
    """Whether a part is of no class in the tables, or stands where the settled architectures have nothing to adapt."""
    known = {item.id: item for item in ARCHITECTURES}
    if not any(name in known for name in candidates):
        return True
    return not any(component in known[name].by_name for name in settled if name in known)
