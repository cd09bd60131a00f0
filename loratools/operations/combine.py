"""combine: several adapters into one, by weighted sums or by elections, whatever format, kind and rank each has."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

from loratools.adapters.adapter import Adapter, AdapterSet
from loratools.adapters.combine import Combination, Method
from loratools.adapters.election import ELECTIONS
from loratools.adapters.gather import Input, gathered
from loratools.adapters.made import Maker
from loratools.adapters.terms import zeros
from loratools.architectures.architecture import Architecture
from loratools.errors import ArchitectureMismatch, NotRepresentable, UsageError, nearest
from loratools.formats.configs import parse_json
from loratools.formats.format import BUNDLE
from loratools.formats.opening import Reference
from loratools.formats.registry import FORMATS
from loratools.formats.render import GROUPS_KEY
from loratools.operations.combination.pending import PendingCombination
from loratools.operations.conversion.to_kind import flattened_shape, shared
from loratools.operations.lora import Lora, open_lora, tables
from loratools.operations.outputs.files import AdapterOutput
from loratools.operations.outputs.laid_out import laid_out
from loratools.tensors.lazy import LazyTensor

METHODS = ("concat", "linear", "svd", *ELECTIONS)
Weighted = Reference | Lora | tuple[Reference | Lora, float]


def combine(
    loras: Sequence[Weighted],
    *,
    method: str = "concat",
    rank: int | None = None,
    density: float | None = None,
    seed: int = 0,
    to: str | None = None,
    dtype: str | None = None,
    arch: str | None = None,
    allow_lossy: bool = False,
    allow_partial: bool = False,
    unsafe_pickle: bool = False,
) -> PendingCombination:
    """Plan one adapter whose delta is Σ weight · Δ of all `loras`, each a reference or (reference, weight).

    "concat" is exact: ranks add up. "linear" is cut by SVD to the largest input rank of each layer, "svd" to `rank`.
    "ties", "dare_ties", "dare_linear" and "magnitude_prune" thin dense deltas out to `density` (`seed` is for the
    dice), one layer at a time, and cut the result to `rank` (the largest input rank where none is given).

    The output is spelt as the inputs are, or as the first's format, or in the format `to`; its dtype (a safetensors
    name) is the widest of the inputs, float32 where concat has to multiply a weight in. Raises UsageError, UnknownKeys,
    ArchitectureMismatch where two are for different models, NotRepresentable for what does not add up (DoRA, OFT, BOFT,
    (IA)³, GLoRA), and what opening and parsing raise. Nothing is computed yet.
    """
    how = _method(method, rank, density, seed, dtype)
    given = [item if isinstance(item, tuple) else (item, 1.0) for item in loras]
    if not given:
        raise UsageError("there is nothing to combine", hint="name at least one adapter")
    for _, weight in given:
        if not math.isfinite(weight):
            raise UsageError(f"a weight of {weight} is no finite number")
    opened = [open_lora(item, arch=arch, unsafe_pickle=unsafe_pickle) for item, _ in given]
    if not allow_partial:
        for lora in opened:
            lora.reading.require_known()
    common = _common(opened)
    weights = tuple(float(weight) for _, weight in given)
    parameters = {
        "weights": list(weights),
        "method": method,
        "rank": rank,
        "density": density,
        "seed": seed if method.startswith("dare") else None,
        "to": to,
        "dtype": dtype,
        "arch": arch,
        "allow_lossy": allow_lossy,
        "allow_partial": allow_partial,
    }
    known = [[table.id for table in tables(lora)] for lora in opened]
    candidates = [name for name in common if all(name in ids for ids in known)] or [common[0]]
    plans = [
        _planned([_bound(lora, name) for lora in opened], weights, how, to, parameters, allow_lossy=allow_lossy)
        for name in candidates
    ]
    for name, other in zip(candidates[1:], plans[1:], strict=True):
        if other.names != plans[0].names:
            raise ArchitectureMismatch(
                f"the files fit {candidates[0]} and {name}, which this format spells differently",
                path=opened[0].name,
                hint=f"say which with --arch {candidates[0]}",
                candidates=candidates,
            )
    return plans[0]


def _method(name: str, rank: int | None, density: float | None, seed: int, dtype: str | None) -> Method:
    """The method with its options; UsageError for those that it has not, or lacks."""
    if name not in METHODS:
        raise UsageError(f"unknown method {name!r}", hint=nearest(name, METHODS) or f"one of {', '.join(METHODS)}")
    if rank is not None and rank < 1:
        raise UsageError(f"a rank is at least 1, not {rank}")
    if name in ("concat", "linear") and rank is not None:
        raise UsageError(f"{name} takes no rank", hint="--method svd cuts to a rank")
    if name == "svd" and rank is None:
        raise UsageError("svd needs a rank", hint="--rank N; --method linear cuts to the largest input rank")
    if name in ELECTIONS:
        if density is None:
            raise UsageError(f"{name} needs a density", hint="--density 0.5 keeps half of the elements")
        if not 0 < density <= 1:
            raise UsageError(f"a density lies in (0, 1], not {density}")
    elif density is not None:
        raise UsageError(f"{name} takes no density", hint=f"it is for {', '.join(ELECTIONS)}")
    return Method(name, rank, 1.0 if density is None else density, seed, dtype)


def _common(loras: Sequence[Lora]) -> tuple[str, ...]:
    """The architectures that all may be; ArchitectureMismatch, naming the two that do not fit."""
    ids = [(lora.architecture,) if lora.architecture else lora.candidates for lora in loras]
    common = ids[0]
    for lora, theirs in zip(loras[1:], ids[1:], strict=True):
        both = shared(common, theirs)
        if not both:
            raise ArchitectureMismatch(
                f"{loras[0].name} is for {' or '.join(common)}, {lora.name} for {' or '.join(theirs)}",
                path=lora.name,
                hint="deltas of different models cannot be combined",
                expected=list(common),
                found=list(theirs),
            )
        common = both
    return common


def _bound(lora: Lora, arch: str) -> Lora:
    return lora if lora.candidates[0] == arch else open_lora(lora, arch=arch)


def _planned(
    loras: Sequence[Lora],
    weights: Sequence[float],
    how: Method,
    to: str | None,
    parameters: Mapping[str, Any],
    *,
    allow_lossy: bool,
) -> PendingCombination:
    sets = [lora.adapter_set for lora in loras]
    known = tables(loras[0])
    table = known[0] if known else None
    inputs = [
        Input(item.adapters, Fraction(weight), _recorded(item, lora.name))
        for item, weight, lora in zip(sets, weights, loras, strict=True)
    ]
    combinations, notes, empty = _combinations(inputs, how, known)
    adapters = (*(item.adapter for item in combinations), *empty)
    extras, lost = _extras(loras, sets, weights, allow_lossy=allow_lossy)
    made = replace(sets[0], adapters=adapters, extras=extras, metadata=_metadata(sets), configs=_configs(sets))
    found = laid_out(made, loras[0], _as_read(sets), table, to=to or _format(loras, sets), allow_lossy=allow_lossy)
    opened = [lora.reading.opened for lora in loras]
    folders = tuple(Path(item.name) for item in opened if item.layout in ("folder", "mlx", "peft"))
    files = tuple(file for item in opened for file in item.files)
    output = AdapterOutput("combine", parameters, files, folders, found.rendered, found.format, found.folder)
    left = tuple(f"{lora.name}: {item.key}: {item.kind}" for lora in loras for item in lora.reading.unknown)
    warnings = tuple(f"{lora.name}: {text}" for lora in loras for text in lora.reading.warnings)
    return PendingCombination(
        tuple(loras), tuple(weights), how, tuple(combinations), output, (*lost, *left), (*warnings, *notes), table
    )


def _combinations(
    inputs: Sequence[Input], how: Method, known: tuple[Architecture, ...]
) -> tuple[list[Combination], list[str], list[Adapter]]:
    """One for each weight that anything with a weight changes; notes about the others; zeros where there is nothing."""
    maker = Maker()
    found: list[Combination] = []
    idle: list[Adapter] = []
    for terms in gathered(inputs):
        counted = [term for term in terms if term.weight]
        if not counted:
            idle.append(terms[0].adapter)
            continue
        shapes = (flattened_shape(term.adapter, known) for term in counted)
        found.append(Combination(counted, how, maker, next((shape for shape in shapes if shape), None)))
    if not found:
        return [], ["every weight is 0: the delta is zero"], [zeros(item) for item in idle]
    notes = [f"{len(idle)} layers have the weight 0 in every input that changes them, and are left out"] if idle else []
    return found, notes, []


def _recorded(source: AdapterSet, path: str) -> Any:
    """The blocks that an earlier conversion fused, or None."""
    raw = source.metadata.get(GROUPS_KEY)
    return None if raw is None else parse_json(raw, path=path, key=GROUPS_KEY)


def _as_read(sets: Sequence[AdapterSet]) -> AdapterSet:
    """The first set, which also knows how the others of its format spell the components that it lacks."""
    spellings = {
        name: spelling
        for item in reversed(sets)
        if item.dialect.format == sets[0].dialect.format
        for name, spelling in item.dialect.spellings.items()
    }
    return replace(sets[0], dialect=replace(sets[0].dialect, spellings=spellings))


def _format(loras: Sequence[Lora], sets: Sequence[AdapterSet]) -> str | None:
    """None where all inputs are of one format, and can be followed as they are; else the first's."""
    if len({item.dialect.format for item in sets}) == 1:
        return None
    name = sets[0].dialect.format
    if name not in {row.id for row in FORMATS}:
        raise UsageError(
            f"{loras[0].name} is of a format that is only read ({name})",
            path=loras[0].name,
            hint=f"--to {' or '.join(row.id for row in FORMATS)}",
        )
    return name


def _metadata(sets: Sequence[AdapterSet]) -> dict[str, str]:
    """What all inputs say alike."""
    first, *others = (item.metadata for item in sets)
    return {key: value for key, value in first.items() if all(other.get(key) == value for other in others)}


def _configs(sets: Sequence[AdapterSet]) -> dict[str, Mapping[str, Any]]:
    found: dict[str, Mapping[str, Any]] = {}
    for item in reversed(sets):
        found.update(item.configs)
    return found


def _extras(
    loras: Sequence[Lora], sets: Sequence[AdapterSet], weights: Sequence[float], *, allow_lossy: bool
) -> tuple[dict[str, dict[str, LazyTensor]], list[str]]:
    """Bundled embeddings of all inputs; modules saved whole are no deltas, and have no weighted sum."""
    if len(sets) == 1 and weights[0] == 1:
        return {component: dict(saved) for component, saved in sets[0].extras.items()}, []
    found: dict[str, dict[str, LazyTensor]] = {}
    lost: list[str] = []
    for lora, item, weight in zip(loras, sets, weights, strict=True):
        for component, saved in item.extras.items():
            for key, tensor in saved.items():
                held = found.setdefault(component, {})
                if not weight:
                    lost.append(f"{lora.name}: {key}: its weight is 0")
                    continue
                if key.startswith(BUNDLE) and (key not in held or held[key].same_bytes(tensor)):
                    held[key] = tensor
                    continue
                why = "an embedding of another input has its name" if key.startswith(BUNDLE) else "saved whole"
                if not allow_lossy:
                    raise NotRepresentable(
                        f"{key} cannot be combined: {why}, it is no delta that adds up",
                        path=lora.name,
                        key=key,
                        hint="--allow-lossy leaves it out and lists it",
                    )
                lost.append(f"{lora.name}: {key}: {why}")
    return found, lost
