"""What the keys alone say of an adapter that cannot be read: its key grammar, its kinds, and whose names it has."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from loratools.adapters.kind import kind_of
from loratools.architectures.registry import without_heirs
from loratools.errors import IncompleteAdapter, UnreadableForm
from loratools.formats.collect import Group, collect
from loratools.formats.detect import Candidate, Stem, by_names, by_shapes
from loratools.formats.dialect import dialect_of
from loratools.formats.opening import Opened


class Glance(NamedTuple):
    """`candidates` are the architectures that have a place for every layer, whatever the sizes of its factors say."""

    format: str | None = None
    kinds: tuple[str, ...] = ()
    candidates: tuple[str, ...] = ()
    adapters: int = 0


def glance(opened: Opened, error: Exception) -> Glance:
    """A look at a file that `error` refused; no factor of it is trusted."""
    if isinstance(error, UnreadableForm):
        return Glance(error.evidence["form"], tuple(error.evidence["kinds"]))
    try:
        groups, _ = collect(opened.parts)
        kinds = {word for group in groups.values() for word in _words(group)}
    except IncompleteAdapter:
        return Glance()  # not even the keys go together, and the error that brought us here says how
    found = _nearest([item for item in by_names(list(groups)) if not item.missed], groups)
    word = _format(groups, found[0], opened) if found else None
    return Glance(word, tuple(sorted(kinds)), tuple(item.architecture.id for item in found), len(groups))


def _nearest(found: list[Candidate], groups: Mapping[Stem, Group]) -> list[Candidate]:
    """Of the architectures with all the names those with the most of the sizes; heirs give way."""
    sizes = {stem: shape for stem, group in groups.items() if (shape := _shape(group)) is not None}
    odds = [len(by_shapes(item, sizes).misfits) for item in found]
    kept = [item for item, odd in zip(found, odds, strict=True) if odd == min(odds)]
    return without_heirs([item.architecture for item in kept], kept)


def _shape(group: Group) -> tuple[int | None, ...] | None:
    """The shape of the weight that the factors imply; None where they imply none."""
    try:
        return kind_of(group.kind).weight_shape(group.factors) or None  # a scalar implies none
    except IncompleteAdapter:
        return None  # a look goes on where a reading would end


def _words(group: Group) -> tuple[str, ...]:
    return (group.kind, "dora") if {"dora_scale", "magnitude"} & set(group.found) else (group.kind,)


def _format(groups: Mapping[Stem, Group], best: Candidate, opened: Opened) -> str:
    return dialect_of(groups, best.places, (), opened).format
