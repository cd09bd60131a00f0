"""Which architectures the models of a pipeline are together, and which of them go along as they are.

The denoiser decides. Any other model that is its pipeline's narrows the answer down, one of a class that no table is
for says nothing, and one that its pipeline has from another architecture is a mistake.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from loratools.architectures.llm import PREFIX
from loratools.architectures.registry import ARCHITECTURES
from loratools.bases.identify import Identity

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


def alone(found: Identity | None) -> Identity | None:
    """A file that no pipeline is around: a language model is one, though some pipeline may read its prompts by it."""
    language = tuple(name for name in found.candidates if name.startswith(PREFIX)) if found else ()
    return replace(found, candidates=language) if found and language else found


def joined(identities: Mapping[str, Identity]) -> Identity | None:
    """What a whole pipeline is, by its components: the architectures that the models with a table allow."""
    models = {name: item for name, item in identities.items() if item.role == "base"} or dict(identities)
    if not models:
        return None
    agreed = agreement([(name, item.candidates) for name, item in models.items()])
    told = [item for at, item in enumerate(models.values()) if at not in agreed.carried]
    unmatched = tuple(key for item in told for key in item.unmatched)
    variants = next((item.variants for item in told if item.variants), ())
    first = next((item for item in told if item.candidates), told[0])
    return replace(
        first, role="base", candidates=agreed.candidates, components={}, unmatched=unmatched, variants=variants
    )
