"""Tensors that a model has under two names: the same place of a file, or a head that is its embedding once more."""

from __future__ import annotations

from collections.abc import Sequence

from loratools.bases.pairing import Twin
from loratools.tensors.segments import Bytes

HEADS = ("lm_head", "embed_out")
"""The last words of layers that many language models tie to their embedding."""


def untied(twins: Sequence[Twin]) -> tuple[list[Twin], list[str]]:
    """Each tensor once, under its first name or, where one is an embedding, under that one's; a line for each other.

    Reads a head and an embedding of one shape, to compare them.
    """
    tables = [twin for twin in twins if twin.sort == "embedding"]
    kept: list[Twin] = []
    lines: list[str] = []
    places: dict[tuple[tuple[Bytes, ...], ...], Twin] = {}
    for twin in twins:
        place = _place(twin)
        is_head = twin.sort == "layer" and twin.target.paths[0].rpartition(".")[2] in HEADS
        first = places.get(place) if all(place) else None
        if first is None and is_head:
            first = next((table for table in tables if _equal(table, twin)), None)
        if first is None:
            kept.append(twin)
            places[place] = twin
        else:
            lines.append(f"{twin.name} is tied to {first.name}: one tensor, counted once")
    return kept, lines


def _place(twin: Twin) -> tuple[tuple[Bytes, ...], ...]:
    """Where both versions lie in their files; empty where a file does not hold them as they are."""
    sides = (twin.base.segments, twin.tuned.segments)
    return tuple(tuple(segment for segment in side if isinstance(segment, Bytes)) for side in sides)


def _equal(first: Twin, second: Twin) -> bool:
    return (
        first.base.shape == second.base.shape
        and first.tuned.same_bytes(second.tuned)
        and first.base.same_bytes(second.base)
    )
