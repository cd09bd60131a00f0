"""inspect: what a file is, from its header and its scalars alone."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from math import prod
from typing import TYPE_CHECKING, Any

from loratools.adapters.adapter import Adapter
from loratools.adapters.kind import kind_of
from loratools.errors import ArchitectureMismatch, IncompleteAdapter, UnreadableForm, WrongRole
from loratools.formats.collect import collect
from loratools.formats.configs import as_number
from loratools.formats.glance import glance
from loratools.formats.opening import Opened, Part, Reference
from loratools.formats.parse import Reading, parse
from loratools.formats.runtimes import loads, runtime_of
from loratools.operations.header.producer import base_model, producer, training, trigger_words
from loratools.operations.references import open_reference, remote_reference
from loratools.tensors.dtypes import nbytes

if TYPE_CHECKING:
    from loratools.bases.identify import Identity
    from loratools.operations.weights import Health

SCHEMA = "loratools.inspect/1"
_NOT_READ = "tensor (not read)"


@dataclass(frozen=True)
class Inspection:
    """Everything `inspect` says about one reference; `document` is the JSON of schema loratools.inspect/1."""

    document: Mapping[str, Any]
    modules: tuple[Mapping[str, Any], ...] | None = None
    unknown: int = field(default=0)

    def to_dict(self) -> dict[str, Any]:
        """The JSON document."""
        found = dict(self.document)
        if self.modules is not None:
            found["modules"] = [dict(item) for item in self.modules]
        return found


def inspect(
    reference: Reference,
    *,
    arch: str | None = None,
    unsafe_pickle: bool = False,
    weights: bool = False,
    modules: bool = False,
    runtime: str | None = None,
    threads: int = 1,
    plot: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
) -> Inspection:
    """Say what a reference is. `weights` also reads the values: norms, NaN, dead modules, singular values.

    `plot` draws them as a .png or .html file: the norm of every delta by block and layer, and the spectra.
    `runtime` (an id of formats.runtimes) adds, for every key, whether that runtime loads it, and why not. Raises
    UsageError for an unknown runtime, MalformedFile, UnsafeFile and NonFinite for what cannot be read, Unavailable for
    what the Hub does not give, ArchitectureMismatch where `arch` does not fit; any well-formed file gets an answer.
    """
    if runtime is not None:
        runtime_of(runtime)
    remote = remote_reference(reference)
    if remote is not None and plot is None and not weights:
        from loratools.operations.remote import by_header  # the Hub's client takes most of a second to import

        seen = by_header(remote)
        if seen is not None:
            found = _inspection(seen.opened, arch, runtime, weights=False, modules=modules, threads=threads)
            return replace(found, document=seen.told(found.document))
    opened = open_reference(reference, unsafe_pickle=unsafe_pickle)
    if plot is None:
        return _inspection(opened, arch, runtime, weights=weights, modules=modules, threads=threads)
    from loratools.operations.plots import weights_plot
    from loratools.reports.plot import guard_plot, write_plot

    guard_plot(plot, opened.files, overwrite=overwrite)
    found = _inspection(opened, arch, runtime, weights=True, modules=modules, threads=threads)
    drawn = write_plot(plot, weights_plot(found.document), opened.files, overwrite=overwrite)
    return replace(found, document={**found.document, "plot": str(drawn)})


def _inspection(
    opened: Opened, arch: str | None, runtime: str | None, *, weights: bool, modules: bool, threads: int
) -> Inspection:
    """The answer for one reference, whatever it is."""
    if opened.layout == "pipeline":
        return _other(opened)
    try:
        reading = parse(opened, arch=arch)
    except WrongRole:
        return _other(opened)
    except (ArchitectureMismatch, IncompleteAdapter, UnreadableForm) as error:
        if arch is not None:
            raise
        return _unplaced(opened, error)
    found = _health(reading, threads) if weights else None
    return _adapter(reading, found, modules=modules, runtime=runtime)


def _health(reading: Reading, threads: int) -> Health:
    from loratools.operations.weights import health  # its thread pool costs start-up time that a header does not need

    return health(reading.adapters.adapters, threads=threads)


def _adapter(reading: Reading, values: Health | None, *, modules: bool, runtime: str | None) -> Inspection:
    """The document of an adapter file."""
    held = reading.adapters
    dialect = held.dialect
    warnings = list(reading.warnings)
    if len(held.architectures) > 1 and reading.settled is None:
        warnings.append(f"fits {', '.join(held.architectures)} alike; --arch tells convert which")
    answers = loads(reading)
    ranks = [(item, item.rank) for item in held.adapters]
    document: dict[str, Any] = {
        **_frame(reading.opened, "adapter", dialect.format),
        "producer": producer(held),
        "architecture": reading.settled,
        "candidates": list(held.architectures),
        "variant": reading.variants[0] if len(reading.variants) == 1 else None,
        "kinds": sorted({name for item in held.adapters for name in kind_of(item.kind).kinds(item.factors)}),
        "components": dict(Counter(item.target.component for item in held.adapters)),
        "adapters": len(held.adapters),
        "ranks": _counts(rank for _, rank in ranks if rank is not None),
        "alpha": _alpha([item for item, rank in ranks if rank is not None]),
        "base_model": base_model(held),
        "trigger_words": trigger_words(held.metadata),
        "training": training(held.metadata),
        "metadata": dict(held.metadata),
        "extras": sorted(key for saved in held.extras.values() for key in saved),
        "unknown_keys": [
            {"key": item.key, "class": item.kind, **({"nearest": item.near} if item.near else {})}
            for item in reading.unknown
        ],
        "loaders": {answer.runtime: answer.to_dict() for answer in answers},
        "warnings": warnings,
        "evidence": list(reading.evidence),
    }
    asked = next((answer for answer in answers if answer.runtime == runtime), None)
    if asked is not None:
        strangers = [{"key": item.key, "loads": False, "reason": f"{item.kind} key"} for item in reading.unknown]
        document["loading"] = {"runtime": asked.runtime, "keys": [*asked.rows(), *strangers]}
    if values is not None:
        document["weights"] = values.to_dict()
    rows = tuple(_row(item) for item in held.adapters) if modules else None
    return Inspection(document, rows, len(reading.unknown))


def _frame(opened: Opened, role: str, form: str | None) -> dict[str, Any]:
    """What every file has, whatever its role."""
    held = (part.source[key] for part in opened.parts for key in part.source)
    tensors = Counter((item.dtype, item.shape) for item in held)
    dtypes: Counter[str] = Counter()
    for (dtype, _), count in tensors.items():
        dtypes[dtype] += count
    return {
        "schema": SCHEMA,
        "path": opened.hub or opened.name,
        **({"hub": {"reference": opened.hub, "read": "file"}} if opened.hub else {}),
        "role": role,
        "format": form,
        "tensors": tensors.total(),
        "parameters": sum(prod(shape) * count for (_, shape), count in tensors.items() if shape),
        "size": sum(nbytes(dtype, shape) * count for (dtype, shape), count in tensors.items()),
        "dtypes": dict(dtypes),
    }


def _counts(values: Iterable[Any]) -> dict[str, int]:
    """How often each value stands, commonest first."""
    return {str(value): count for value, count in Counter(values).most_common()}


def _alpha(ranked: Sequence[Adapter]) -> dict[str, Any]:
    """Where alpha came from, its values and the scales it makes."""
    sources = Counter(item.alpha.source for item in ranked)
    return {
        "source": "+".join(name for name, _ in sources.most_common()) or None,
        "values": _counts(float(item.alpha.value) for item in ranked if item.alpha.value is not None),
        "scales": _counts(round(float(item.scale), 9) for item in ranked if item.alpha.source != _NOT_READ),
        "rank_stabilized": any(item.alpha.rank_stabilized for item in ranked),
    }


def _number(value: Fraction | None) -> int | float | None:
    return None if value is None else as_number(value)


def _row(item: Adapter) -> dict[str, Any]:
    """One adapter of `--modules`."""
    return {
        "component": item.target.component,
        "paths": list(item.target.paths),
        "key": item.origin.stem if item.origin else None,
        "kind": item.kind,
        "rank": item.rank,
        "alpha": _number(item.alpha.value),
        "alpha_source": item.alpha.source,
        "scale": None if item.alpha.source == _NOT_READ else float(item.scale),
        "weight_shape": list(kind_of(item.kind).weight_shape(item.factors) or ()) or None,
        "factors": {role: [tensor.dtype, list(tensor.shape)] for role, tensor in item.factors.items()},
    }


def _other(opened: Opened) -> Inspection:
    """The document of a file, a folder or a pipeline that is no adapter."""
    from loratools.bases.agreement import alone, joined

    if opened.layout == "pipeline":
        parts = {part.component or "": _identity(_shapes([part])) for part in opened.parts}
        found = joined({name: item for name, item in parts.items() if item is not None})
        components = {name: len(part.source) for name, part in zip(parts, opened.parts, strict=True)}
    else:
        found = alone(_identity(_shapes(opened.parts)))
        components = {name: len(part.keys) for name, part in found.components.items()} if found else {}
    unmatched = list(found.unmatched) if found else sorted(_shapes(opened.parts))
    metadata = {key: value for part in opened.parts for key, value in part.source.metadata.items()}
    document = {
        **_frame(opened, found.role if found else "unknown", found.format if found else None),
        "producer": None,
        "architecture": found.candidates[0] if found and len(found.candidates) == 1 else None,
        "candidates": list(found.candidates) if found else [],
        "variant": found.variants[0] if found and len(found.variants) == 1 else None,
        "kinds": [],
        "components": components,
        "adapters": 0,
        "ranks": {},
        "alpha": None,
        "base_model": None,
        "trigger_words": trigger_words(metadata),
        "training": training(metadata),
        "metadata": metadata,
        "extras": [],
        "unknown_keys": [{"key": key, "class": "unknown"} for key in unmatched],
        "loaders": {},
        "warnings": [f"{key} has a size that no known variant has" for key in (found.misfits if found else ())],
        "evidence": [],
    }
    return Inspection(document, None, len(unmatched))


def _unplaced(opened: Opened, error: ArchitectureMismatch | IncompleteAdapter | UnreadableForm) -> Inspection:
    """The document of an adapter whose layers have no place: of an unknown architecture or form, or with factors amiss.

    What it says of it rests on the keys alone.
    """
    seen = glance(opened, error)
    document = {**_other(opened).document, "role": "adapter", "evidence": [error.message]}
    keys = sorted(_shapes(opened.parts))
    document["unknown_keys"] = [{"key": key, "class": "unknown"} for key in keys]
    document["warnings"] = [f"{error.message}: {error.key}" if error.key else error.message]
    document |= {"format": seen.format, "kinds": list(seen.kinds), "candidates": list(seen.candidates)}
    document["adapters"] = seen.adapters
    if isinstance(error, ArchitectureMismatch):
        groups, _ = collect(opened.parts)
        ready = [(kind_of(group.kind), group.factors) for group in groups.values()]
        document["ranks"] = _counts(rank for kind, factors in ready if (rank := kind.rank(factors)) is not None)
    return Inspection(document, None, len(keys))


def _shapes(parts: Sequence[Part]) -> dict[str, tuple[int, ...]]:
    return {key: part.source[key].shape for part in parts for key in part.source}


def _identity(sizes: Mapping[str, tuple[int, ...]]) -> Identity | None:
    """bases' answer; its tables are imported for files that are no adapter alone."""
    from loratools.bases.identify import identify as identity_of

    return identity_of(sizes)
