"""File → AdapterSet: the one reader of every combination of prefix, naming, suffix family and alpha policy."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from loratools.adapters.adapter import Adapter, AdapterSet, Origin
from loratools.adapters.kind import kind_of
from loratools.architectures.llm import model_types
from loratools.architectures.naming import Placement
from loratools.architectures.registry import ARCHITECTURES, architecture
from loratools.errors import ArchitectureMismatch, IncompleteAdapter, NotRepresentable, UnknownKeys, WrongRole, nearest
from loratools.formats import alphas, configs
from loratools.formats.alphas import Settings
from loratools.formats.collect import Group, collect
from loratools.formats.detect import Candidate, Place, Stem, by_names, by_shapes, claimed
from loratools.formats.opening import Opened, Part
from loratools.formats.prefixes import Prefix, prefixes
from loratools.model import Dialect, Spelling, Target
from loratools.tensors.lazy import LazyTensor

GENERIC = "llm"
GENERIC_COMPONENT = "model"


@dataclass(frozen=True, slots=True)
class UnknownKey:
    """A key that no adapter took: `kind` is "wrong family" or "unknown"; `near` the known key most like it."""

    key: str
    kind: str
    near: str | None = None


@dataclass(frozen=True)
class Reading:
    """A parsed file with everything that was noticed on the way. `bind` gives the same file as another candidate reads it."""

    opened: Opened
    adapters: AdapterSet
    variants: tuple[str, ...]
    settled: str | None
    unknown: tuple[UnknownKey, ...]
    warnings: tuple[str, ...]
    evidence: tuple[str, ...]
    bind: Callable[[str], AdapterSet]

    def require_known(self) -> None:
        """Raise UnknownKeys where a tensor was not recognised: a job would drop it."""
        if self.unknown:
            first = self.unknown[0]
            raise UnknownKeys(
                f"{len(self.unknown)} tensors belong to no adapter ({first.kind})",
                path=self.opened.name,
                key=first.key,
                hint=f"nearest known key: {first.near}" if first.near else "pass --allow-partial to leave them out",
                keys=[item.key for item in self.unknown],
            )


def parse(opened: Opened, *, arch: str | None = None) -> Reading:
    """Read an adapter file; raises WrongRole where it holds none, IncompleteAdapter, MalformedFile, ArchitectureMismatch."""
    metadata = {key: value for part in opened.parts for key, value in part.source.metadata.items()}
    groups, rest = collect(opened.parts)
    if not groups:
        raise WrongRole("no adapter weights were found", path=opened.name, hint="loratools inspect tells what the file is")
    kinds = {stem: group.kind for stem, group in groups.items()}
    factors = {stem: group.factors for stem, group in groups.items()}
    for stem, group in groups.items():
        _check(kinds[stem], factors[stem], group)
    weights = {
        stem: shape for stem in groups if (shape := kind_of(kinds[stem]).weight_shape(factors[stem])) is not None
    }
    found, variants, evidence = _candidates(opened, list(groups), weights, metadata, arch)
    settings = _Settings(opened, metadata)

    def bind(arch_id: str) -> tuple[AdapterSet, list[str]]:
        candidate = next((item for item in found if item.architecture.id == arch_id), None)
        places = candidate.places if candidate else _generic(list(groups))
        bound, warnings = _bind(groups, kinds, factors, places, settings)
        ids = tuple(item.architecture.id for item in found) if candidate else (GENERIC,)
        dialect = _dialect(groups, places, bound, opened)
        extras = _extras(rest)
        return AdapterSet(ids, dialect, bound, extras, metadata, settings.components()), warnings

    first = found[0].architecture.id if found else GENERIC
    adapters, warnings = bind(first)
    placed = found[0].places if found else _generic(list(groups))
    missed = [stem for stem in groups if stem not in placed]
    unknown = _unknown(groups, missed, [key for _, key in rest if key not in adapters.extras])
    settled = _settled(found, metadata, arch)
    if not found:
        types = model_types([item.target.paths[0] for item in adapters.adapters])
        adapters = replace(adapters, architectures=tuple(f"llm-{name.replace('_', '-')}" for name in types) or (GENERIC,))
        settled = adapters.architectures[0] if len(adapters.architectures) == 1 else GENERIC
    return Reading(
        opened,
        adapters,
        variants,
        settled,
        unknown,
        tuple(_counted(warnings)),
        tuple(evidence),
        lambda arch_id: bind(arch_id)[0],
    )


def _check(kind: str, factors: Mapping[str, LazyTensor], group: Group) -> None:
    """The kind's own check, with the file and key put to its error."""
    try:
        kind_of(kind).check(factors)
    except IncompleteAdapter as error:
        raise IncompleteAdapter(
            error.message,
            path=group.file,
            key=error.key or group.stem[1],
            hint=error.hint,
            keys=sorted(item.key for item in group.found.values()),
        ) from error


def _candidates(
    opened: Opened,
    stems: Sequence[Stem],
    weights: Mapping[Stem, tuple[int | None, ...]],
    metadata: Mapping[str, str],
    arch: str | None,
) -> tuple[list[Candidate], tuple[str, ...], list[str]]:
    """The architectures that fit, likeliest first (none: the generic transformer), the variants of the first, and why."""
    if arch is not None and arch.split("-")[0] == GENERIC:
        return [], (), [f"{arch} as asked"]
    asked = (architecture(arch),) if arch is not None else ARCHITECTURES
    found = by_names(stems, asked)
    generic = all(_generic_prefix(stem) is not None for stem in stems)
    if not found or (found[0].missed and generic and arch is None):
        if generic and arch is None:
            return [], (), ["a PEFT adapter of no architecture in the tables: names pass through"]
        raise ArchitectureMismatch(
            f"the keys fit {'no architecture' if arch is None else arch + ' nowhere'}",
            path=opened.name,
            key=stems[0][1],
            hint="loratools architectures lists what is known",
        )
    evidence = [f"names: {len(found[0].places)} of {len(stems)} layers fit {', '.join(_ids(found))}"]
    sizes = {item.architecture.id: by_shapes(item, weights) for item in found}
    compared = max(size.compared for size in sizes.values())
    fewest = min(len(size.misfits) for size in sizes.values())
    if compared and fewest < compared:
        found = [item for item in found if len(sizes[item.architecture.id].misfits) == fewest]
        evidence.append(f"shapes: {compared - fewest} of {compared} layers have the sizes of {', '.join(_ids(found))}")
    elif compared:
        if generic and arch is None and model_types([stem[1].removeprefix(_PEFT) for stem in stems]):
            return [], (), ["a PEFT adapter of sizes that no architecture in the tables has: names pass through"]
        evidence.append("shapes: of no known size, so names alone decide")
    claims = claimed(metadata)
    if any(item.architecture.id in claims for item in found):
        found.sort(key=lambda item: item.architecture.id not in claims)
        evidence.append(f"metadata names {', '.join(claims)}")
    elif claims:
        evidence.append(f"metadata names {', '.join(claims)}, which the keys and shapes do not fit")
    variants = sizes[found[0].architecture.id].variants if compared and fewest < compared else ()
    return found, variants, evidence


def _ids(found: Sequence[Candidate]) -> list[str]:
    return [item.architecture.id for item in found]


def _settled(found: Sequence[Candidate], metadata: Mapping[str, str], arch: str | None) -> str | None:
    """The one architecture that names, shapes, metadata or the caller settle, or None."""
    if arch is not None or len(found) == 1:
        return found[0].architecture.id if found else arch
    claims = claimed(metadata)
    named = [item.architecture.id for item in found if item.architecture.id in claims]
    return named[0] if len(named) == 1 else None


_PEFT = "base_model.model."


def _generic_prefix(stem: Stem) -> tuple[Prefix, str] | None:
    """The cut that a PEFT adapter of any model has, or None for keys that only a known architecture could explain."""
    return next(((prefix, rest) for prefix, rest in prefixes(stem[1]) if prefix.style == "peft"), None)


def _generic(stems: Sequence[Stem]) -> dict[Stem, Place]:
    """Every stem under its own name: the generic transformer."""
    places = {}
    for stem in stems:
        found = _generic_prefix(stem)
        if found:
            places[stem] = Place(stem[0] or GENERIC_COMPONENT, "", found[0], Placement(found[1], (found[1],), (1,), "rows", "."))
    return places


class _Settings:
    """What the configurations and the metadata say about alphas, by component."""

    def __init__(self, opened: Opened, metadata: Mapping[str, str]) -> None:
        self.opened = opened
        raw = metadata.get(configs.DIFFUSERS_KEY)
        self.diffusers = configs.by_component(raw, path=opened.name) if raw else {}
        self.free = alphas.free_alpha(metadata, path=opened.name)

    def of(self, stem: Stem, component: str) -> Settings:
        """The settings of one layer."""
        for part in self.opened.parts:
            if part.component == stem[0] and part.config is not None:
                return Settings(part.config, "config")
        if component in self.diffusers:
            return Settings(self.diffusers[component], "metadata")
        return Settings(free=self.free)

    def components(self) -> dict[str, configs.Config]:
        """component → configuration, wherever it stood."""
        found: dict[str, configs.Config] = dict(self.diffusers)
        for part in self.opened.parts:
            if part.config is not None:
                found[part.component or ""] = part.config
        return found


def _bind(
    groups: Mapping[Stem, Group],
    kinds: Mapping[Stem, str],
    factors: Mapping[Stem, Mapping[str, LazyTensor]],
    places: Mapping[Stem, Place],
    settings: _Settings,
) -> tuple[tuple[Adapter, ...], list[str]]:
    """The adapters of the placed groups, in canonical form."""
    adapters: list[Adapter] = []
    warnings: list[str] = []
    taken: dict[tuple[str, str], Group] = {}
    for stem, group in groups.items():
        place = places.get(stem)
        if place is None:
            continue
        placement = place.placement
        target = Target(place.component, placement.paths, placement.ratio)
        for path in placement.paths:
            other = taken.setdefault((place.component, path), group)
            if other is not group:
                raise IncompleteAdapter(
                    f"two adapters change {place.component}:{path}: {other.stem[1]} and {group.stem[1]}",
                    path=group.file,
                    key=group.stem[1],
                    hint="the file names one layer in two ways; remove one of them",
                )
        kind = kind_of(kinds[stem])
        held = dict(factors[stem])
        stored = group.found.get("alpha")
        names = _names(placement)
        alpha, noticed = alphas.resolve(
            stored.tensor if stored else None,
            stored.key if stored else None,
            names,
            kind.rank(held),
            settings.of(stem, place.component),
            path=group.file,
        )
        warnings += noticed
        if placement.layout == "swap_halves":
            held = dict(kind.swap_halves(held))
        elif placement.layout == "transpose":
            raise NotRepresentable(
                f"{kind.name} on {group.stem[1]}, which its file stores transposed",
                path=group.file,
                key=group.stem[1],
                hint="no trainer is known to write this; please report the file",
            )
        origin = Origin(
            group.file,
            stem[1],
            {name: item.key for role, item in group.found.items() for name in _canonical_roles(role)},
            {name: item.tensor.shape for role, item in group.found.items() for name in _canonical_roles(role)},
        )
        adapters.append(Adapter(target, kind.name, held, alpha, origin))
    return tuple(adapters), warnings


def _canonical_roles(role: str) -> tuple[str, ...]:
    """The roles that a suffix can become: a DoRA scale is a magnitude on the axis that its shape tells."""
    return ("magnitude", "input_magnitude") if role == "dora_scale" else (role,)


def _names(placement: Placement) -> list[str]:
    """The names under which a configuration may speak of a module: native, canonical, with and without `text_model.`."""
    names = dict.fromkeys((placement.native, *placement.paths))
    return list(dict.fromkeys(spelt for name in names for spelt in (name, name.removeprefix("text_model."))))


def _dialect(
    groups: Mapping[Stem, Group], places: Mapping[Stem, Place], adapters: Sequence[Adapter], opened: Opened
) -> Dialect:
    """How most keys of the file are spelt, by component."""
    votes: dict[str, Counter[tuple[str, str, bool]]] = {}
    suffixes: dict[str, dict[str, Counter[str]]] = {}
    styles: Counter[tuple[str, str, str]] = Counter()
    for stem, place in places.items():
        group = groups[stem]
        native = place.placement.native
        flat = "." in native and "." not in stem[1][len(place.prefix.text) :]
        votes.setdefault(place.component, Counter())[place.prefix.text, place.naming, flat] += 1
        for role, item in group.found.items():
            for name in _canonical_roles(role):
                name = f"{item.cut.row.kind}.{name}" if item.cut.row.kind else name
                suffixes.setdefault(place.component, {}).setdefault(name, Counter())[item.cut.suffix] += 1
            if role not in ("alpha", "dora_scale"):
                styles[place.prefix.style, item.cut.row.family, place.naming] += 1
    spellings = {}
    for component, counter in votes.items():
        prefix, naming, flat = counter.most_common(1)[0][0]
        flat = any(was_flat for _, _, was_flat in counter)
        written = {name: counts.most_common(1)[0][0] for name, counts in suffixes[component].items()}
        spellings[component] = Spelling(prefix, naming, flat, written)
    stored = Counter(item.alpha.stored[0] for item in adapters if item.alpha.stored)
    sources = Counter(item.alpha.source for item in adapters)
    policy = sources.most_common(1)[0][0] if sources else "absent"
    return Dialect(
        _format(styles, opened),
        spellings,
        "none" if policy == "absent" else policy,
        stored.most_common(1)[0][0] if stored else None,
    )


# (prefix style, suffix family) → the format's word; what is not here is decided by the naming.
_FORMATS = {
    ("kohya", "kohya"): "kohya",
    ("lycoris", "kohya"): "lycoris",
    ("component", "peft"): "diffusers",
    ("component", "diffusers-old"): "diffusers-old",
    ("component", "kohya"): "onetrainer",
    ("peft", "peft"): "peft",
    ("peft", "kohya"): "peft",
}


def _format(styles: Counter[tuple[str, str, str]], opened: Opened) -> str:
    """The word for the key grammar of most factors."""
    if not styles:
        return "unknown"
    style, family, naming = styles.most_common(1)[0][0]
    if style == "comfy":
        return "comfy"
    if style == "bare":
        return "bfl" if naming == "bfl" else "peft" if opened.layout == "peft" else "bare"
    return _FORMATS.get((style, family), style)


def _extras(rest: Sequence[tuple[Part, str]]) -> dict[str, LazyTensor]:
    """Tensors that are recognised but are no adapters: the modules that PEFT saves whole."""
    return {key: part.source[key] for part, key in rest if key.startswith(_PEFT) and key.endswith((".weight", ".bias"))}


def _unknown(groups: Mapping[Stem, Group], missed: Sequence[Stem], rest: Sequence[str]) -> tuple[UnknownKey, ...]:
    """The keys that no adapter took, with the nearest known key for the first few."""
    found = [
        UnknownKey(item.key, "wrong family" if by_names([stem]) else "unknown")
        for stem in missed
        for item in groups[stem].found.values()
    ]
    found += [UnknownKey(key, "unknown") for key in rest]
    known = [item.key for stem, group in groups.items() if stem not in set(missed) for item in group.found.values()]
    return tuple(
        replace(item, near=_near(item.key, known)) if at < 3 else item for at, item in enumerate(found)
    )


def _near(key: str, known: Sequence[str]) -> str | None:
    hint = nearest(key, known[:4000])
    return hint.split("'")[1] if hint else None


def _counted(warnings: Sequence[str]) -> list[str]:
    """Each warning once, with how many layers it is about."""
    return [f"{text} ({count} layers)" for text, count in Counter(warnings).items()]
