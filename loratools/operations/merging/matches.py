"""Adapters of a merge and their places: one architecture for all, every module matched or named, nothing in silence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from loratools.adapters.adapter import AdapterSet
from loratools.adapters.dora import is_dora
from loratools.adapters.kind import kind_of
from loratools.architectures.architecture import Architecture
from loratools.architectures.registry import ARCHITECTURES
from loratools.bases.placing import Placing, Unmatched
from loratools.bases.weights import Base
from loratools.errors import ArchitectureMismatch, PartialMatch, UsageError, closest, nearest
from loratools.formats.opening import Reference
from loratools.operations.conversion.to_kind import shared
from loratools.operations.lora import Lora, open_lora
from loratools.operations.merging.result import Applied, UnmatchedModule, by_component
from loratools.operations.merging.saved_whole import place_saved
from loratools.operations.merging.scales import Scales, Weighing

Weighted = Reference | Lora | tuple[Reference | Lora, float]

_NEAREST = 8  # unmatched modules for which the nearest path is looked up


def opened(item: Weighted, arch: str | None, *, unsafe_pickle: bool) -> tuple[Lora, float]:
    """An adapter and its scale."""
    reference, scale = item if isinstance(item, tuple) else (item, 1.0)
    number = Scales.of(scale).overall
    return open_lora(reference, arch=arch, unsafe_pickle=unsafe_pickle), number


def shared_architecture(base: Base, loras: Sequence[Lora]) -> tuple[Architecture | None, str | None]:
    """The table and the id that the base and all adapters share; ArchitectureMismatch where there is none."""
    found = base.candidates
    for lora in loras:
        ours = (lora.architecture,) if lora.architecture else lora.candidates
        both = shared(ours, found)
        if found and not both:
            raise ArchitectureMismatch(
                f"the adapter is for {' or '.join(ours) or 'an unknown model'}, the base model is {' or '.join(found)}",
                path=lora.name,
                hint="give the base model that the adapter was trained on",
                expected=list(found),
                found=list(ours),
            )
        found = both
    known = {item.id: item for item in ARCHITECTURES}
    name = found[0] if found else None
    return (known.get(name) if name else None), name


@dataclass(frozen=True, slots=True)
class Weighed:
    """An adapter set as it is merged: the scale of all of it, what multiplies each layer beyond that, and the
    components that are left out.
    """

    lora: Lora
    source: AdapterSet
    scale: float
    weigh: Weighing
    table: Architecture | None
    left_out: tuple[str, ...]

    def scale_of(self, component: str, path: str) -> float:
        """What a change of one layer is multiplied by."""
        return self.scale * self.weigh(component, path)


def weighed(
    given: tuple[Lora, float], scales: Scales, table: Architecture | None, only: Sequence[str] | None
) -> Weighed:
    """An adapter set, or the components `only` of it; UsageError for components that it does not have."""
    lora, scale = given
    source = lora.reading.bind(table.id) if table else lora.adapter_set
    present = list(dict.fromkeys(item.target.component for item in source.adapters))
    for name in only or ():
        if name not in present:
            raise UsageError(
                f"the adapter has no component {name!r}",
                path=lora.name,
                hint=nearest(name, present) or f"components: {', '.join(present)}",
            )
    wanted = tuple(item for item in source.adapters if not only or item.target.component in only)
    extras = {name: saved for name, saved in source.extras.items() if not only or not name or name in only}
    left = tuple(name for name in present if only and name not in only)
    return Weighed(
        lora, replace(source, adapters=wanted, extras=extras), scale, scales.weighing(table, present), table, left
    )


def matched(
    placing: Placing, given: tuple[Lora, float], scales: Scales, table: Architecture | None, only: Sequence[str] | None
) -> Applied:
    """Put one adapter set, or the components `only` of it, in its places."""
    return placed(placing, weighed(given, scales, table, only))


def placed(placing: Placing, given: Weighed, *, skip: str | None = None) -> Applied:
    """Put one adapter set in its places; the path `skip` has its place already."""
    before = len(placing.unmatched)
    components: list[str] = []
    for item in given.source.adapters:
        by_path = {path: given.scale_of(item.target.component, path) for path in item.target.paths}
        if item.target.paths == (skip,) or placing.add(item, by_path):
            components.append(item.target.component)
    left = place_saved(placing, given.source, given.table, given.scale_of, skip=skip)
    missed = placing.unmatched[before:]
    return Applied(
        given.lora.name,
        given.lora.format,
        given.lora.kinds,
        given.scale,
        by_component([item.target.component for item in given.source.adapters]),
        by_component(components),
        tuple(_unmatched(item, placing if at < _NEAREST else None) for at, item in enumerate(missed)),
        (*left, *(f"{name}: not among --components" for name in given.left_out)),
    )


def _unmatched(item: Unmatched, placing: Placing | None) -> UnmatchedModule:
    near = closest(item.path, placing.paths(item.adapter.target.component)) if placing else None
    return UnmatchedModule(item.adapter.target.name, f"{item.why}: {item.path}", near)


def require_matches(applied: Sequence[Applied], base: str, *, allow_partial: bool) -> None:
    """Raise PartialMatch where a change has no place, unless that is allowed, and where no module of an adapter has."""
    for item in applied:
        total = sum(item.modules.values())
        missing = item.unmatched
        if not sum(item.matched.values()):
            raise PartialMatch(
                f"none of the {total} modules of the adapter has a weight in the base model",
                path=item.name,
                key=missing[0].module if missing else None,
                hint="give the base model that the adapter was trained on",
                base=base,
            )
        if missing and not allow_partial:
            lost = {
                name: count - item.matched.get(name, 0)
                for name, count in item.modules.items()
                if count > item.matched.get(name, 0)
            }
            told = ", ".join(f"{count} of {item.modules[name]} in {name}" for name, count in lost.items())
            near = f"; did you mean {missing[0].nearest!r}?" if missing[0].nearest else ""
            raise PartialMatch(
                f"{len(missing)} changes have no place in the base model ({told or missing[0].why})",
                path=item.name,
                key=missing[0].module,
                hint=f"{missing[0].why}{near} --allow-partial merges the rest, --components NAME chooses",
                base=base,
                unmatched=[entry.module for entry in missing],
            )


def remarks(placing: Placing, scales: Scales, given: Sequence[tuple[Lora, float]]) -> tuple[str, ...]:
    """What a user should know before the numbers are there."""
    found = [text for lora, _ in given for text in lora.reading.warnings]
    names = [
        (touched.component, path) for touched in placing.touched.values() for path in touched.native.placement.paths
    ]
    found += [f"no changed layer fits the pattern {pattern!r}" for pattern in scales.unused(names)]
    rotated = [
        change
        for touched in placing.touched.values()
        for change in touched.changes
        if change.scale != 1 and kind_of(change.adapter.kind).needs_base(change.adapter.factors)
    ]
    if any(is_dora(change.adapter.factors) for change in rotated):
        found.append(
            "DoRA at a scale other than 1: the change of the whole weight is scaled, as A1111 does; PEFT scales inside "
            "the norm, which gives another weight"
        )
    return tuple(dict.fromkeys(found))
