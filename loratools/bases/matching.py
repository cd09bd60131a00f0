"""Which weights of which component the keys of a base model are, by the tables: names first, then shapes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cache, lru_cache
from math import prod

from loratools.architectures.architecture import Architecture, Component, Variant, shapes
from loratools.architectures.naming import Naming, Placement, skeleton, words_of
from loratools.architectures.registry import ARCHITECTURES, Spelt, architecture, namings_of
from loratools.bases.companions import companion

Shape = tuple[int, ...]
ANY_DENOISER = ("diffusion_model.",)


@dataclass(frozen=True, slots=True)
class Part:
    """How a file spells one component: prefix and naming, with the keys it has of it and the weight each one is."""

    component: str
    prefix: str
    naming: str
    keys: Mapping[str, Placement]


@dataclass(frozen=True, slots=True)
class Match:
    """One architecture's reading of a file. `misfits` are the keys whose shapes the best `variants` do not have."""

    architecture: Architecture
    parts: Mapping[str, Part]
    variants: tuple[str, ...]
    misfits: tuple[str, ...]

    @property
    def placed(self) -> int:
        """The number of keys that are weights of this architecture."""
        return sum(len(part.keys) for part in self.parts.values())

    @property
    def is_whole(self) -> bool:
        """Whether some part has every sort of module that its naming knows, save what a variant may lack."""
        return any(self._lacking(part) == 0 for part in self.parts.values())

    def _lacking(self, part: Part) -> int:
        naming = self.architecture.by_name[part.component].naming(part.naming)
        if naming is None:
            return 0
        known = [shapes(variant.shapes) for variant in self.architecture.variants]
        tables = [table[part.component] for table in known if part.component in table]
        present = {skeleton(placement.native)[0] for placement in part.keys.values()}
        wanted = {
            words_of(rule.native)
            for rule in naming.rules
            if words_of(rule.native) not in present
            and any(
                all(path in table for table in tables for path in placement.paths)
                and companion(placement.weight_key) is None
                for placement in naming.placements_of(rule)
            )
        }
        return len(wanted)


@dataclass(slots=True)
class _Reading:
    """The keys that one (component, prefix, naming) of an architecture explains."""

    component: Component
    prefix: str
    naming: str
    keys: dict[str, Placement] = field(default_factory=dict)


@cache
def _prefixes() -> tuple[tuple[str, frozenset[Spelt]], ...]:
    """Every prefix with the namings it may stand before, longest first; "" before any."""
    found: dict[str, set[Spelt]] = defaultdict(set)
    for known in ARCHITECTURES:
        outer = (*known.denoiser.checkpoint, *ANY_DENOISER)
        for component in known.components:
            spelt = _namings(known, component)
            for prefix in (*component.checkpoint, *ANY_DENOISER * (component is known.denoiser), ""):
                found[prefix].update(spelt)
            for prefix in outer if component.inside else ():
                found[prefix].update(item for item in spelt if item.naming == component.inside)
    return tuple((prefix, frozenset(found[prefix])) for prefix in sorted(found, key=len, reverse=True))


def _namings(known: Architecture, component: Component) -> frozenset[Spelt]:
    """Every naming of a component."""
    namings = (*component.namings, *component.adapters)
    return frozenset(Spelt(known.id, component.name, naming.name) for naming in namings)


def _spellings(key: str) -> Iterator[tuple[str, str, str]]:
    """(path, joint, leaf) in every way that a key of a weight or bias may be cut."""
    path, _, leaf = key.rpartition(".")
    if path and leaf in ("weight", "bias", "scale"):
        yield path, ".", leaf
        return
    for leaf in ("weight", "bias"):
        if key.endswith(f"_{leaf}"):
            yield key.removesuffix(f"_{leaf}"), "_", leaf
    yield key, "", ""


@cache
def _naming(spelt: Spelt) -> Naming | None:
    return architecture(spelt.architecture).by_name[spelt.component].naming(spelt.naming)


def _places(key: str, owners: frozenset[Spelt]) -> Iterator[tuple[Spelt, Placement]]:
    """Every weight that a key without its prefix is, among the namings that the prefix may stand before."""
    for path, joint, leaf in _spellings(key):
        words, numbers = skeleton(path)
        for spelt in namings_of(words):
            if spelt not in owners:
                continue
            naming = _naming(spelt)
            placement = naming.at_native(words, numbers) if naming else None
            if not placement or (placement.native, placement.joint) != (path, joint):
                continue
            if not joint or leaf in ("bias", placement.weight):
                yield spelt, placement


def _readings(keys: Iterable[str], forced: str | None) -> dict[str, list[_Reading]]:
    """The readings of every architecture that places any key."""
    found: dict[tuple[Spelt, str], _Reading] = {}
    denoisers = frozenset(spelt for known in ARCHITECTURES for spelt in _namings(known, known.denoiser))
    prefixes = ((forced, denoisers),) if forced is not None else _prefixes()
    for key in keys:
        # The longest prefix that fits is the only one: no path begins like one.
        prefix, owners = next((row for row in prefixes if key.startswith(row[0])), ("", frozenset()))
        for spelt, placement in _places(key[len(prefix) :], owners):
            at = spelt, prefix
            if at not in found:
                component = architecture(spelt.architecture).by_name[spelt.component]
                found[at] = _Reading(component, prefix, spelt.naming)
            found[at].keys[key] = placement
    by_architecture: dict[str, list[_Reading]] = defaultdict(list)
    for (spelt, _), reading in found.items():
        by_architecture[spelt.architecture].append(reading)
    return by_architecture


def matches(sizes: Mapping[str, Shape | None], *, prefix: str | None = None) -> list[Match]:
    """Every architecture that places any key, in registry order.

    `prefix` forces one prefix, before the denoiser: a ControlNet's `control_model.`.
    """
    return list(_matches(tuple(sizes.items()), prefix))


@lru_cache(maxsize=16)  # one model is looked at by several verbs, and by each adapter that is applied to it
def _matches(held: tuple[tuple[str, Shape | None], ...], prefix: str | None) -> tuple[Match, ...]:
    sizes = dict(held)
    found = _readings(sizes, prefix)
    return tuple(_settle(known, found[known.id], sizes) for known in ARCHITECTURES if known.id in found)


def _settle(known: Architecture, readings: list[_Reading], sizes: Mapping[str, Shape | None]) -> Match:
    """The variants that leave the fewest misfits, and of those the ones of which the least is missing."""
    settled = [_settle_variant(known, variant, readings, sizes) for variant in known.variants]
    best = min(rank for rank, _ in settled)
    fitting = [match for rank, match in settled if rank == best]
    return replace(fitting[0], variants=tuple(name for match in fitting for name in match.variants))


def _settle_variant(
    known: Architecture, variant: Variant, readings: list[_Reading], sizes: Mapping[str, Shape | None]
) -> tuple[tuple[int, int], Match]:
    """Give each key to one reading and each component one reading; (misfits, weights of the variant) and the match.

    A naming that explains more keys goes first whatever the shapes: a tiny model keeps its names.
    """
    table = shapes(variant.shapes)
    judged = [(reading, _misfits(reading, table, sizes)) for reading in readings]
    parts: dict[str, Part] = {}
    misfits: list[str] = []
    taken: set[str] = set()
    for reading, wrong in sorted(judged, key=lambda row: (-len(row[0].keys), len(row[1]))):
        keys = {key: placement for key, placement in reading.keys.items() if key not in taken}
        if keys and reading.component.name not in parts:
            parts[reading.component.name] = Part(reading.component.name, reading.prefix, reading.naming, keys)
            taken.update(keys)
            misfits += [key for key in wrong if key in keys]
    # FLUX.1 dev is schnell and a guidance embedder: the smaller of two that fit is the right one.
    rank = len(misfits), sum(len(table.get(name, ())) for name in parts)
    return rank, Match(known, parts, (variant.name,), tuple(misfits))


def _misfits(
    reading: _Reading, table: Mapping[str, Mapping[str, Shape]], sizes: Mapping[str, Shape | None]
) -> list[str]:
    """The keys of a reading whose shapes are not those of the table, or that the variant does not have."""
    component = table.get(reading.component.name)
    if component is None:
        return list(reading.keys)  # a component that only other variants have
    wrong: list[str] = []
    for key, placement in reading.keys.items():
        size = sizes[key]
        if size is None:
            continue
        expected = native_shape(placement, component)
        if size == expected and (len(size) == 1 or not key.endswith("bias")):
            continue  # as nearly all are
        if expected is None:
            # A weight that only checkpoints have (open_clip's last block) is in no variant; others are a misfit.
            canonical = reading.component.namings[0]
            if all(canonical.at_canonical(path) for path in placement.paths):
                wrong.append(key)
        elif placement.bias_key and key == reading.prefix + placement.bias_key:
            if size != expected[:1]:
                wrong.append(key)
        elif placement.joint == "" and prod(size) == prod(expected):
            continue  # a parameter of its own may be stored flat
        elif size[:1] != expected[:1] or prod(size[1:]) != prod(expected[1:]):
            wrong.append(key)
    return wrong


def native_shape(placement: Placement, table: Mapping[str, Shape]) -> Shape | None:
    """The shape of a native weight, made of its canonical parts; None where the variant lacks one of them."""
    if len(placement.paths) == 1 and placement.layout != "transpose":
        return table.get(placement.paths[0])
    parts = [table[path] for path in placement.paths if path in table]
    if len(parts) < len(placement.paths):
        return None
    if placement.layout == "transpose":
        return parts[0][::-1]
    return (sum(part[0] for part in parts), *parts[0][1:])
