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
from loratools.architectures.llm import model_types
from loratools.architectures.naming import Placement
from loratools.errors import IncompleteAdapter, UnknownKeys, WrongRole, closest
from loratools.formats import alphas, configs
from loratools.formats.alphas import Settings
from loratools.formats.choose import GENERIC, PEFT, Choice, candidates, generic, settled
from loratools.formats.collect import Group, canonical_roles, collect
from loratools.formats.detect import Place, Stem, by_names
from loratools.formats.dialect import dialect_of
from loratools.formats.format import BUNDLE, EMBEDDING
from loratools.formats.layouts import turned
from loratools.formats.opening import Opened, Part
from loratools.formats.processors import NEVER_RUN, never_run
from loratools.model import Target
from loratools.tensors.lazy import LazyTensor


class UnknownKey(NamedTuple):
    """A key that no adapter took: `kind` is "wrong family", "unknown" or "never run", which does no harm; `near` is the
    known key most like it.
    """

    key: str
    kind: str
    near: str | None = None


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
        unknown = [item for item in self.unknown if item.kind != NEVER_RUN]
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
    groups, rest = collect(opened.parts)
    idle = {stem: groups.pop(stem) for stem in never_run(groups)}
    if not groups:
        raise WrongRole(
            "no adapter weights were found", path=opened.name, hint="loratools inspect tells what the file is"
        )
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
    choice = candidates(opened, list(groups), weights, metadata, arch)
    found = choice.found
    settings = _Settings(opened, metadata)

    @cache
    def bind(arch_id: str) -> tuple[AdapterSet, list[str]]:
        candidate = next((item for item in found if item.architecture.id == arch_id), None)
        places = candidate.places if candidate else generic(list(groups))
        bound, warnings = _bind(groups, kinds, factors, places, settings)
        ids = tuple(item.architecture.id for item in found) if candidate else (GENERIC,)
        dialect = dialect_of(groups, places, bound, opened)
        extras = _extras(rest, bound[0].target.component if bound else "")
        return AdapterSet(ids, dialect, bound, extras, metadata, settings.components()), warnings

    first = found[0].architecture.id if found else GENERIC
    adapters, warnings = bind(first)
    placed = found[0].places if found else generic(list(groups))
    missed = [stem for stem in groups if stem not in placed]
    unknown = _unknown(groups, missed, [key for part, key in rest if not _is_extra(part, key)])
    unknown += tuple(UnknownKey(item.key, NEVER_RUN) for group in idle.values() for item in group.found.values())
    if idle:
        warnings.append(f"{len(idle)} layers were never run by the program that trained them, and are left out")
    chosen = settled(found, metadata, arch)
    if not found:
        types = model_types([item.target.paths[0] for item in adapters.adapters])
        adapters = replace(
            adapters, architectures=tuple(f"llm-{name.replace('_', '-')}" for name in types) or (GENERIC,)
        )
        chosen = adapters.architectures[0] if len(adapters.architectures) == 1 else GENERIC
    return Reading(
        opened,
        adapters,
        choice.variants,
        chosen,
        unknown,
        (*_counted(warnings), *_strange_sizes(choice)),
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
        self.free = Settings(free=alphas.free_alpha(metadata, path=opened.name))
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
        kind = kind_of(kinds[stem])
        held = dict(factors[stem])
        stored = group.found.get("alpha")
        said = settings.of(stem, place.component)
        names = _names(placement) if said.config is not None else ()
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
        if stored is None and any(item.cut.row.family == "hcp" for item in group.found.values()):
            warnings.append("no scale is stored, and 1 is taken; HCP-Diffusion's own loader would take 1 / rank")
        held = dict(turned(kind, held, placement, path=group.file, key=group.stem[1]))
        adapters.append(Adapter(target, kind.name, held, alpha, _origin(group), beside))
    return tuple(adapters), warnings


def _origin(group: Group) -> Origin:
    """Where a group was found, by the roles that its suffixes became."""
    keys = {role: item.key for role, item in group.found.items()}
    shapes = {role: item.tensor.shape for role, item in group.found.items()}
    if "dora_scale" in keys:
        for role in canonical_roles("dora_scale"):
            keys[role], shapes[role] = keys["dora_scale"], shapes["dora_scale"]
    return Origin(group.file, group.stem[1], keys, shapes)


def _names(placement: Placement) -> list[str]:
    """The names under which a configuration may speak of a module: native, canonical, with or without `text_model.`."""
    names = dict.fromkeys((placement.native, *placement.paths))
    return list(dict.fromkeys(spelt for name in names for spelt in (name, name.removeprefix("text_model."))))


def _extras(rest: Sequence[tuple[Part, str]], component: str) -> dict[str, dict[str, LazyTensor]]:
    """component → key → tensor of what is known and no adapter; `component` is that of a file that names none."""
    found: dict[str, dict[str, LazyTensor]] = {}
    for part, key in rest:
        if _is_extra(part, key):
            whole = key.startswith(PEFT)
            found.setdefault((part.component or component) if whole else "", {})[key] = part.source[key]
    return found


def _is_extra(part: Part, key: str) -> bool:
    """Whether a key that is no factor is known: a module that PEFT saves whole (modules_to_save, biases), an embedding
    that A1111 bundles, or one of cloneofsimo's tokens.
    """
    if key.startswith(PEFT):
        return key.endswith((".weight", ".bias"))
    return key.startswith(BUNDLE) or part.source.metadata.get(key) == EMBEDDING


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
        item._replace(near=closest(item.key, known[:4000])) if at < 3 else item for at, item in enumerate(found)
    )


def _counted(warnings: Sequence[str]) -> list[str]:
    """Each warning once, with how many layers it is about."""
    return [f"{text} ({count} layers)" for text, count in Counter(warnings).items()]
