"""Which architectures a file's keys fit: an intersection over one global index, key by key, never a loop over formats.

Names first (most keys placed), then shapes (sizes that contradict rule an architecture out, unless every size is
unknown: tiny and custom models keep their names), then metadata as a tie-break, never against the shapes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from math import prod
from typing import NamedTuple

from loratools.architectures.architecture import Architecture, shapes
from loratools.architectures.naming import Located, Naming, Placement, Rows, Skeleton, locate, skeleton
from loratools.architectures.registry import ARCHITECTURES, namings_of
from loratools.formats.prefixes import Prefix, prefixes

# A stem of one file of a set: the component that the file's place in a folder names (or None), and the stem itself.
Stem = tuple[str | None, str]
WeightShape = tuple[int | None, ...]


_NONE: Mapping[str, tuple[int, ...]] = {}


class Place(NamedTuple):
    """Where one architecture puts a stem."""

    component: str
    naming: str
    prefix: Prefix
    placement: Placement


class _Fit(NamedTuple):
    """One way to read a stem; its placement is made only for the fit that is chosen."""

    component: str
    naming: Naming
    prefix: Prefix
    located: Located

    def place(self) -> Place:
        return Place(self.component, self.naming.name, self.prefix, self.naming.place(self.located))


class Candidate(NamedTuple):
    """One architecture with the places of the stems it knows, and the stems it does not."""

    architecture: Architecture
    places: Mapping[Stem, Place]
    missed: tuple[Stem, ...]


# What a skeleton behind a prefix can be, before its numbers are looked at: (architecture, component, naming, its rows).
_Option = tuple[str, str, Naming, Rows]


class _Options:
    """The options of every skeleton, made once: the layers of a file share a few dozen skeletons."""

    def __init__(self, architectures: Iterable[Architecture]) -> None:
        self.by_id = {arch.id: arch for arch in architectures}
        self._known: dict[tuple[str | None, Prefix, Skeleton], list[_Option]] = {}

    def fits(self, stem: Stem) -> dict[str, list[_Fit]]:
        """Every (component, naming) of every architecture that a stem can be, by architecture."""
        hint, text = stem
        found: dict[str, list[_Fit]] = {}
        for prefix, rest in prefixes(text):
            words, numbers = skeleton(rest)
            key = (hint, prefix, words)
            options = self._known.get(key)
            if options is None:
                options = self._known[key] = self._options(hint, prefix, words)
            for arch_id, component, naming, rows in options:
                located = locate(rows, numbers)
                if located is not None:
                    found.setdefault(arch_id, []).append(_Fit(component, naming, prefix, located))
            if found:
                break  # a less telling prefix could only repeat it
        return found

    def _options(self, hint: str | None, prefix: Prefix, words: Skeleton) -> list[_Option]:
        options: list[_Option] = []
        for arch_id, component_name, naming_name in namings_of(words):
            if arch_id not in self.by_id or (hint is not None and hint != component_name):
                continue
            component = self.by_id[arch_id].by_name[component_name]
            naming = component.naming(naming_name)
            if naming and prefix.means(self.by_id[arch_id], component, naming_name):
                options.append((arch_id, component_name, naming, naming.natives.rows(words)))
        return options


def by_names(
    stems: Sequence[Stem], architectures: Iterable[Architecture] = ARCHITECTURES, *, fewer: int = 0
) -> list[Candidate]:
    """The architectures that place the most stems, or up to `fewer` less (none when nothing places any), likelier ones
    first.
    """
    options = _Options(architectures)
    fits = {stem: options.fits(stem) for stem in stems}
    votes = Counter(arch_id for found in fits.values() for arch_id in found)
    most = max(votes.values(), default=0)
    winners = [arch for arch_id, arch in options.by_id.items() if votes[arch_id] >= max(most - fewer, 1)]
    winners.sort(key=lambda arch: arch.rarer)
    return [_settle(arch, {stem: found.get(arch.id, []) for stem, found in fits.items()}) for arch in winners]


def _settle(arch: Architecture, fits: Mapping[Stem, list[_Fit]]) -> Candidate:
    """Choose one fit a stem: the naming and component that hold over the most stems, the first hit never."""
    counts = Counter((fit.component, fit.naming.name) for found in fits.values() for fit in found)
    components = Counter(component for found in fits.values() for component in {fit.component for fit in found})
    order = {component.name: at for at, component in enumerate(arch.components)}

    def weight(fit: _Fit) -> tuple[int, int, int]:
        return components[fit.component], -order[fit.component], counts[fit.component, fit.naming.name]

    places: dict[Stem, Place] = {}
    for stem, found in fits.items():
        if found:
            places[stem] = (max(found, key=weight) if len(found) > 1 else found[0]).place()
    return Candidate(arch, places, tuple(stem for stem, found in fits.items() if not found))


class Sizes(NamedTuple):
    """How the shapes of a file agree with one architecture: the variants that fit best, and the stems that do not.

    `larger` counts the misfits that have an extent beyond the table's: a tiny model has none, another model has many.
    """

    variants: tuple[str, ...]
    misfits: tuple[Stem, ...]
    compared: int
    larger: int = 0


def by_shapes(candidate: Candidate, weights: Mapping[Stem, WeightShape]) -> Sizes:
    """Compare the weight shapes that the factors imply with each variant's table."""
    results: list[tuple[str, tuple[Stem, ...], int, int]] = []
    flat = {stem: _flattened(weight) for stem, weight in weights.items()}
    for variant in candidate.architecture.variants:
        table = shapes(variant.shapes)
        misfits: list[Stem] = []
        compared = larger = 0
        for stem, place in candidate.places.items():
            expected = _expected(place.placement.paths, table.get(place.component, _NONE))
            if expected is None and _belongs(candidate.architecture, place):  # but to other variants alone
                compared += 1
                misfits.append(stem)
                continue
            if expected is None or stem not in flat:
                continue
            compared += 1
            if not _agrees(flat[stem], expected):
                misfits.append(stem)
                larger += _exceeds(flat[stem], expected)
        results.append((variant.name, tuple(misfits), larger, compared))
    fewest = min(len(misfits) for _, misfits, _, _ in results)
    best = [row for row in results if len(row[1]) == fewest]
    _, least, larger, compared = best[0]
    return Sizes(tuple(row[0] for row in best), least, compared, larger)


def _belongs(arch: Architecture, place: Place) -> bool:
    """Whether pipelines have the weight; some, such as open_clip's last block in SD2, are in checkpoints only."""
    canonical = arch.by_name[place.component].namings[0]
    return all(canonical.at_canonical(path) for path in place.placement.paths)


def _expected(paths: tuple[str, ...], table: Mapping[str, tuple[int, ...]]) -> tuple[int, int] | None:
    """(out, everything else) of the native weight, from its canonical parts."""
    first = table.get(paths[0])
    if first is None or len(paths) == 1:  # nearly all
        return None if first is None else (first[0], prod(first[1:]))
    parts = [table[path] for path in paths if path in table]
    return (sum(part[0] for part in parts), prod(first[1:])) if len(parts) == len(paths) else None


@lru_cache(maxsize=1024)
def _flattened(weight: WeightShape) -> tuple[int | None, int | None]:
    """(out, everything else), None where unknown: flattened, a 1×1 convolution equals a linear layer."""
    rest = [extent for extent in weight[1:] if extent is not None]
    return weight[0], prod(rest) if rest and len(rest) == len(weight) - 1 else None


def _agrees(weight: tuple[int | None, int | None], expected: tuple[int, int]) -> bool:
    """Whether the extents are the table's; unknown ones agree with anything."""
    return weight[0] in (None, expected[0]) and weight[1] in (None, expected[1])


def _exceeds(weight: tuple[int | None, int | None], expected: tuple[int, int]) -> bool:
    """Whether an extent is larger than the table's."""
    return (weight[0] or 0) > expected[0] or (weight[1] or 0) > expected[1]


def claimed(metadata: Mapping[str, str]) -> tuple[str, ...]:
    """The architecture ids that the metadata names, in the words of trainers and of ModelSpec."""
    specification = metadata.get("modelspec.architecture", "").split("/")[0].strip().lower()
    version = metadata.get("ss_base_model_version", "").strip().lower()
    return tuple(
        arch.id
        for arch in ARCHITECTURES
        if (specification and specification in arch.specification) or (version and version in arch.base_versions)
    )
