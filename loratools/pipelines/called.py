"""Which pipelines a word means: people type `wan` or `flux`, the registry knows what each architecture is called."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from loratools.architectures.registry import ARCHITECTURES
from loratools.architectures.registry import architecture as table
from loratools.pipelines.parts import Blueprint

Fits = Callable[[str, str], bool]

FITS: tuple[Fits, ...] = (
    lambda word, name: _plain(name) == word,
    lambda word, name: _plain(name).startswith(word),
    lambda word, name: any(_plain(name[at:]).startswith(word) for at in _starts(name)),
)
"""From the strictest on: the word is the whole name, begins it, or begins a word of it."""


def meant(word: str, entries: Sequence[Blueprint]) -> tuple[Blueprint, ...]:
    """The blueprints that `word` may mean: one for each architecture, and one for a family, whose members share all
    paths and shapes; none where it means another architecture, or nothing.
    """
    plain = _plain(word)
    if not plain:
        return ()
    for fits in FITS:
        called = [known.id for known in ARCHITECTURES if any(fits(plain, name) for name in known.words)]
        named = [entry for entry in entries if fits(plain, entry.name)]
        found = [*named, *(entry for entry in entries if entry.architecture in called)]
        if found or (fits is FITS[0] and called):
            return _first_of_each(found)
    return ()


def _first_of_each(found: Sequence[Blueprint]) -> tuple[Blueprint, ...]:
    """The blueprints without those of an architecture, or of a family, that an earlier one stands for."""
    kept: list[Blueprint] = []
    for entry in found:
        kin = {entry.architecture, *table(entry.architecture).family}
        if not kin.intersection(other.architecture for other in kept):
            kept.append(entry)
    return tuple(kept)


def _plain(name: str) -> str:
    """The letters and digits of a name, in lower case."""
    return re.sub(r"[\W_]+", "", name.lower())


def _starts(name: str) -> list[int]:
    return [found.start() for found in re.finditer(r"[^\W_]+", name)]
