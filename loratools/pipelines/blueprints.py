"""The blueprints by architecture and size: what `make_pipeline` makes and what a pipeline folder is rebuilt from."""

from __future__ import annotations

from collections.abc import Mapping

from loratools.errors import UsageError, nearest
from loratools.pipelines.blueprints_full import FULL
from loratools.pipelines.blueprints_tiny import TINY
from loratools.pipelines.called import meant
from loratools.pipelines.parts import Blueprint, Size

BLUEPRINTS: Mapping[Size, tuple[Blueprint, ...]] = {"tiny": TINY, "full": FULL}
"""By size; of several with one architecture the first is the one that is meant where nothing else is said."""


def architectures(size: Size = "tiny") -> tuple[str, ...]:
    """The words that `blueprint` knows: architectures, with the variant behind those that have several."""
    return tuple(sorted({entry.name for entry in BLUEPRINTS[size]}))


def blueprint(architecture: str, size: Size = "tiny", *, pixels: int | None = None) -> Blueprint:
    """The blueprint of an architecture (sd1, wan2.1, kandinsky2.2-prior, …), tiny or as published ("full").

    Any word that only one of them is called by will do (wan, flux, qwen). `pixels` picks among models of one
    architecture by the resolution that they were made for: sd2 has one of 768 (v-prediction, the default) and one of
    512. Raises UsageError where there is none, or several.
    """
    entries = BLUEPRINTS.get(size)
    if entries is None:
        raise UsageError(f"{size!r} is no size; there are tiny and full", hint=nearest(size, BLUEPRINTS))
    found = [entry for entry in entries if entry.name == architecture] or _called(architecture, size)
    for entry in found:
        if pixels is None or entry.pixels == pixels:
            return entry
    made_for = ", ".join(str(entry.pixels) for entry in found)
    raise UsageError(f"no {size} {architecture} is made for {pixels} pixels; there are {made_for}")


def _called(word: str, size: Size) -> list[Blueprint]:
    """The blueprints of the one name that a word means; raises UsageError where it means none, or several."""
    entries, known = BLUEPRINTS[size], architectures(size)
    names = sorted({entry.name for entry in meant(word, entries)})
    if len(names) > 1:
        raise UsageError(f"{word!r} may be {' or '.join(names)}", hint="name one of them", known=names)
    if not names:
        raise UsageError(
            f"no {size} pipeline is known for {word!r}; there are {', '.join(known)}",
            hint=nearest(word, known),
            known=list(known),
        )
    return [entry for entry in entries if entry.name == names[0]]
