"""File → AdapterSet: the one reader of every combination of prefix, naming, suffix family and alpha policy."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import NamedTuple

from loratools.adapters.adapter import Adapter, AdapterSet, Origin
from loratools.adapters.ia3 import on_axis
from loratools.adapters.kind import kind_of
from loratools.adapters.settings import feedforward, settings_of
from loratools.architectures.llm import PREFIX, architecture_id
from loratools.errors import IncompleteAdapter, UnknownKeys, WrongRole
from loratools.formats import alphas, configs
from loratools.formats.alphas import Settings
from loratools.formats.choose import GENERIC, Choice, candidates, heirs, settled
from loratools.formats.collect import Group, canonical_roles, collect
from loratools.formats.detect import Place, Stem
from loratools.formats.dialect import dialect_of
from loratools.formats.experts import unstacked
from loratools.formats.language import configured_names, language_places, types_of
from loratools.formats.layouts import turned
from loratools.formats.leftovers import (
    KNOWN_HARMLESS,
    UnknownKey,
    extras_of,
    is_extra,
    kept_as_books,
    unknown_keys,
)
from loratools.formats.named import by_adapters_name
from loratools.formats.opening import Opened
from loratools.formats.passing import passing_of
from loratools.formats.peft_variants import moved_bases, refuse_variants
from loratools.formats.processors import NEVER_RUN, never_run
from loratools.formats.refused import refuse_control, refuse_known, refuse_tuner
from loratools.formats.unswitched import unswitched
from loratools.model import Alpha, Target
from loratools.tensors.lazy import LazyTensor


class Reading(NamedTuple):
    """A parsed file with all that was noticed on the way; `bind` gives the same file as another candidate reads it."""

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
        unknown = [item for item in self.unknown if item.kind not in (NEVER_RUN, KNOWN_HARMLESS)]
        if unknown:
            first = unknown[0]
            raise UnknownKeys(
                f"{len(unknown)} tensors belong to no adapter ({first.kind})",
                path=self.opened.name,
                key=first.key,
                hint=f"nearest known key: {first.near}" if first.near else "pass --allow-partial to leave them out",
                keys=[item.key for item in unknown],
            )


def parse(opened: Opened, *, arch: str | None = None) -> Reading:
    """Read an adapter file; raises WrongRole where it holds none, IncompleteAdapter, ArchitectureMismatch."""
    metadata = {key: value for part in opened.parts for key, value in part.source.metadata.items()}
    refuse_control(opened.parts, path=opened.name)
    groups, rest = collect(opened.parts)
    refuse_known(groups.values(), [key for _, key in rest], path=opened.name)
    idle = {stem: groups.pop(stem) for stem in never_run(groups)}
    books = {stem: groups.pop(stem) for stem, group in list(groups.items()) if kept_as_books(group)}
    if not groups:
        refuse_tuner(opened.parts, path=opened.name)
        raise WrongRole(
            "no adapter weights were found", path=opened.name, hint="loratools inspect tells what the file is"
        )
    refuse_variants(opened.parts, path=opened.name)
    groups, experts = unstacked(groups, opened.parts)
    groups, switch = unswitched(groups)
    kinds = {stem: group.kind for stem, group in groups.items()}
    factors = {stem: group.factors for stem, group in groups.items()}
    sound: set[tuple[object, ...]] = set()
    for stem, group in groups.items():
        # A check looks at roles and shapes alone, and most layers share theirs with others.
        shapes = (kinds[stem], *[(role, tensor.shape) for role, tensor in factors[stem].items()])
        if shapes not in sound:
            _check(kinds[stem], factors[stem], group)
            sound.add(shapes)
    weights = {
        stem: shape for stem in groups if (shape := kind_of(kinds[stem]).weight_shape(factors[stem])) is not None
    }
    passing = passing_of(groups, opened)
    families = {item.cut.row.family for group in groups.values() for item in group.found.values() if item.cut.row.kind}
    choice = candidates(opened, list(groups), weights, metadata, arch, passing=passing, families=families)
    found = choice.found
    settings = _Settings(opened, metadata)

    @cache
    def unnamed() -> dict[Stem, Place]:
        return language_places(groups, weights, experts, passing, switch)

    @cache
    def bind(arch_id: str) -> tuple[AdapterSet, list[str]]:
        candidate = next((item for item in (*found, *heirs(arch_id, groups)) if item.architecture.id == arch_id), None)
        places = by_adapters_name(candidate.places, groups, candidate.architecture) if candidate else unnamed()
        bound, warnings = _bind(groups, kinds, factors, places, settings)
        ids = tuple(item.architecture.id for item in found) if candidate else (GENERIC,)
        dialect = dialect_of(groups, places, bound, opened)
        extras = extras_of(rest, bound[0].target.component if bound else "")
        return AdapterSet(ids, dialect, bound, extras, metadata, settings.components()), warnings

    first = found[0].architecture.id if found else GENERIC
    adapters, warnings = bind(first)
    placed = found[0].places if found else unnamed()
    missed = [stem for stem in groups if stem not in placed]
    unknown = unknown_keys(groups, missed, [key for part, key in rest if not is_extra(part, key)])
    for kind, held in ((NEVER_RUN, idle), (KNOWN_HARMLESS, books)):
        unknown += tuple(UnknownKey(item.key, kind) for group in held.values() for item in group.found.values())
    if idle:
        warnings.append(f"{len(idle)} layers were never run by the program that trained them, and are left out")
    chosen = settled(found, metadata, arch)
    if not found:
        types = types_of(placed.values())
        ids = tuple(map(architecture_id, [passing.model_type] if passing.model_type in types else types))
        if arch is not None and arch.startswith(PREFIX):
            ids = (arch,)
        adapters = replace(adapters, architectures=ids or (GENERIC,))
        chosen = adapters.architectures[0] if len(adapters.architectures) == 1 else GENERIC
    return Reading(
        opened,
        adapters,
        choice.variants,
        chosen,
        unknown,
        (*_counted(warnings), *moved_bases(opened.parts), *_strange_sizes(choice)),
        choice.evidence,
        lambda arch_id: bind(arch_id)[0],
    )


def _strange_sizes(choice: Choice) -> list[str]:
    """A warning for layers whose factors imply a weight of a size that the model does not have."""
    if not choice.misfits:
        return []
    first, name = choice.misfits[0][1], choice.found[0].architecture.id
    return [f"{len(choice.misfits)} layers are not of the size that {name} has there, first {first}"]


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


class _Settings:
    """What the configurations and the metadata say about alphas, by component."""

    def __init__(self, opened: Opened, metadata: Mapping[str, str]) -> None:
        self.opened = opened
        raw = metadata.get(configs.DIFFUSERS_KEY)
        self.diffusers = configs.by_component(raw, path=opened.name) if raw else {}
        free = alphas.free_alpha(metadata, path=opened.name)
        self.free = Settings(free=free, trained=alphas.trained_alpha(metadata))
        for config in (*self.diffusers.values(), *(part.config for part in opened.parts)):
            if config:
                from loratools.formats.patterns import require_bounded  # a file without a configuration has no patterns

                require_bounded(config, path=opened.name)

    def of(self, stem: Stem, component: str) -> Settings:
        """The settings of one layer."""
        for part in self.opened.parts:
            if part.component == stem[0] and part.config is not None:
                return Settings(part.config, "config")
        if component in self.diffusers:
            return Settings(self.diffusers[component], "metadata")
        return self.free

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
        if placement.layout == "dealt":
            warnings.append("rows are read as dealt out by heads, which the adapter's name inside the keys tells alone")
        kind = kind_of(kinds[stem])
        held = dict(factors[stem])
        stored = group.found.get("alpha")
        said = settings.of(stem, place.component)
        names = _names(place) if said.config is not None else ()
        beside = settings_of(said.config, **alphas.stated_rank(said.config, names)) if said.config is not None else {}
        inputs = feedforward(said.config, names) if kind.name == "ia3" and said.config is not None else None
        if inputs is not None and "on_input" not in held:
            held["scale_vector"] = on_axis(held["scale_vector"], inputs=inputs)
        if said.config is not None and (kind.constrained or kind.name == "ia3"):
            said = Settings()  # PEFT's alpha divides by a rank, which these kinds have not
        alpha, noticed = alphas.resolve(
            stored.tensor if stored else None,
            stored.key if stored else None,
            names,
            kind.rank(held),
            said,
            path=group.file,
            is_scale=stored is not None and stored.cut.row.is_scale,
        )
        warnings += noticed
        family = next(iter(group.found.values())).cut.row.family
        if stored is None and family in alphas.ABSENT:
            alpha = Alpha(alphas.ABSENT[family])
        if stored is None and any(item.cut.row.family == "hcp" for item in group.found.values()):
            warnings.append("no scale is stored, and 1 is taken; HCP-Diffusion's own loader would take 1 / rank")
        held = dict(turned(kind, held, placement, path=group.file, key=group.stem[1], native=True))
        adapters.append(Adapter(target, kind.name, held, alpha, _origin(group), beside))
    return tuple(adapters), warnings


def _origin(group: Group) -> Origin:
    """Where a group was found, by the roles that its suffixes became."""
    keys = {role: item.key for role, item in group.found.items()}
    shapes = {role: item.tensor.shape for role, item in group.found.items()}
    if "dora_scale" in keys:
        for role in canonical_roles("dora_scale"):
            keys[role], shapes[role] = keys["dora_scale"], shapes["dora_scale"]
    stem = next(iter(group.found.values())).cut.stem  # an expert's is that of all experts
    return Origin(group.file, stem, keys, shapes)


def _names(place: Place) -> list[str]:
    """The names under which a configuration may speak of a module: native, canonical, with or without `text_model.`."""
    names = dict.fromkeys((*configured_names(place), place.placement.native, *place.placement.paths))
    return list(dict.fromkeys(spelt for name in names for spelt in (name, name.removeprefix("text_model."))))


def _counted(warnings: Sequence[str]) -> list[str]:
    """Each warning once, with how many layers it is about."""
    return [f"{text} ({count} layers)" for text, count in Counter(warnings).items()]
