"""Regroup adapters over the layers that a destination fuses: untouched, slice, pad, share or block."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Literal, NamedTuple

from loratools.adapters.adapter import Adapter, Origin
from loratools.adapters.blame import named
from loratools.adapters.blocks import Columns
from loratools.adapters.factors import widened
from loratools.adapters.fold import alpha_for, folded
from loratools.adapters.kind import Kind, kind_of
from loratools.adapters.settings import common_settings
from loratools.adapters.slices import Groups, Piece, Slicer
from loratools.errors import ArchitectureMismatch, IncompleteAdapter, NotRepresentable
from loratools.model import Scale, Target
from loratools.tensors.lazy import LazyTensor

What = Literal["untouched", "slice", "narrow", "pad", "share", "block", "fold"]


ONE = Scale(Fraction(1))


class Step(NamedTuple):
    """What was done for one target; `measured` where values were rounded on the way.

    A slice is rows of one adapter, byte for byte; narrow is a slice without the rank columns that are all zero there.
    """

    target: Target
    what: What
    note: str = ""
    measured: bool = False


class Regrouped(NamedTuple):
    """The adapters in their new groups, a step for each, and the columns [first, last) that every part of a block took.

    `groups` is keyed by the fused target's name; a part that it does not list was missing.
    """

    adapters: tuple[Adapter, ...]
    steps: tuple[Step, ...]
    groups: Groups


def regroup(
    adapters: Sequence[Adapter], group_of: Callable[[str, str], Target], recorded: Groups | None = None
) -> Regrouped:
    """The same deltas over the targets that `group_of(component, canonical path)` names.

    `recorded` are the `groups` of the run that fused these adapters: they undo it exactly. Raises IncompleteAdapter
    where two adapters cover one path, NotRepresentable where a kind cannot follow, ArchitectureMismatch where the rows
    cannot be shared out.
    """
    cover = covered(adapters)
    wanted: dict[tuple[str, tuple[str, ...]], Target] = {}
    for (component, path), item in cover.items():
        with named(item):
            target = group_of(component, path)
        wanted.setdefault((target.component, target.paths), target)
    slicer = Slicer(recorded or {})
    done: list[Adapter] = []
    steps: list[Step] = []
    groups: dict[str, Sequence[tuple[str, int, int]]] = {}
    for target in wanted.values():
        sources = {path: cover.get((target.component, path)) for path in target.paths}
        first = next(source for source in sources.values() if source is not None)
        if first.target.paths == target.paths:
            done.append(first)
            steps.append(Step(target, "untouched"))
            if slicer.recorded and first.target.name in slicer.recorded:
                groups[first.target.name] = slicer.recorded[first.target.name]
        elif len(target.paths) == 1:
            with named(first):
                piece = slicer.slice(first, target.paths[0])
            if piece.factors is not None:
                done.append(_sliced(first, target, piece))
            whole = piece.factors is not None and kind_of(first.kind).rank(piece.factors) == kind_of(first.kind).rank(
                first.factors
            )
            steps.append(Step(target, "slice" if whole else "narrow", piece.note))
        else:
            with named(first):
                adapter, more = _assembled(target, sources, slicer, groups)
            if adapter is not None:
                done.append(adapter)
            steps += more
    return Regrouped(tuple(done), tuple(steps), groups)


def covered(adapters: Sequence[Adapter]) -> dict[tuple[str, str], Adapter]:
    """The one adapter of each (component, path); raises IncompleteAdapter, naming both origins, where there are two."""
    cover: dict[tuple[str, str], Adapter] = {}
    for adapter in adapters:
        for path in adapter.target.paths:
            other = cover.setdefault((adapter.target.component, path), adapter)
            if other is not adapter:
                where = [item.origin.stem if item.origin else item.target.name for item in (other, adapter)]
                raise IncompleteAdapter(
                    f"{adapter.target.component}:{path} is changed twice: by {where[0]} and by {where[1]}",
                    path=adapter.origin.file if adapter.origin else None,
                    key=where[1],
                    hint="combine the two, or remove one",
                    expected=1,
                    found=where,
                )
    return cover


def _sliced(source: Adapter, target: Target, piece: Piece) -> Adapter:
    """The adapter of one part: the source's scale at the part's rank. A slice never needs another scale."""
    sliced = replace(source, target=target, factors=piece.factors or {})
    if sliced.scale.equals(source.scale):
        return sliced
    return replace(sliced, alpha=alpha_for(source.alpha, source.scale, sliced.rank)[0])


class _Part(NamedTuple):
    """One run of a target's paths: where its factors come from, or None where nothing changes these layers."""

    paths: tuple[str, ...]
    shares: int
    source: Adapter | None = None
    factors: Mapping[str, LazyTensor] | None = None
    scale: Scale = ONE


def _assembled(
    target: Target,
    sources: Mapping[str, Adapter | None],
    slicer: Slicer,
    groups: dict[str, Sequence[tuple[str, int, int]]],
) -> tuple[Adapter | None, list[Step]]:
    """One adapter over several paths, from whole sources, slices of wider ones, and nothing."""
    if target.axis == "columns":
        raise NotRepresentable(f"{target.name}: layers whose inputs are grouped are not regrouped", layout="columns")
    parts = _parts(target, sources, slicer)
    present = [part for part in parts if part.source is not None and part.factors is not None]
    if not present:
        return None, [Step(target, "narrow", "no delta in any part: left out")]
    kind = _one_kind(target, present)
    sizes = _sizes(target, kind, parts)
    scale = common_scale([part.scale for part in present])
    steps: list[Step] = []
    ready: list[Mapping[str, LazyTensor] | None] = []
    for part in parts:
        if part.factors is None or part.scale.equals(scale):
            ready.append(part.factors)
            continue
        ratio = ratio_of(part.scale, scale)
        factors, exact = folded(kind, part.factors, ratio)
        ready.append(factors)
        note = f"{'+'.join(part.paths)}: scale {float(part.scale):g} brought to {float(scale):g} by ×{float(ratio):g}"
        steps.append(Step(target, "fold", note, measured=not exact))
    ready = _one_dtype(ready)
    fused = kind.fuse_rows(ready, sizes)
    rank, settings = (
        kind.rank(fused),
        common_settings(target.name, [part.source.settings for part in present if part.source]),
    )
    divisor = settings.get("r") if rank is None else rank
    alphas = [part.source.alpha for part in present if part.source and part.scale.equals(scale)]
    alpha, exact = alpha_for(next((a for a in alphas if a.value is not None), alphas[0]), scale, divisor)
    what = _what(kind, parts, present, rank)
    note = _note(parts, present, rank)
    if not exact:
        note += "; α/√rank is irrational at the new rank: alpha is rounded"
    steps.insert(0, Step(target, what, note, measured=not exact))
    columns = _columns(kind, ready)
    if columns and rank is not None and any(span != (0, rank) for span in columns):
        groups[target.name] = [
            (path, *span) for part, span in zip(parts, columns, strict=True) if span is not None for path in part.paths
        ]
    return Adapter(target, kind.name, fused, alpha, _origin(present), settings), steps


def _parts(target: Target, sources: Mapping[str, Adapter | None], slicer: Slicer) -> list[_Part]:
    """The target's paths in runs: a source that lies in them whole is one run, everything else goes path by path."""
    parts: list[_Part] = []
    at = 0
    while at < len(target.paths):
        path = target.paths[at]
        source = sources[path]
        run = source.target.paths if source is not None else (path,)
        if target.paths[at : at + len(run)] != run:
            run = (path,)
        shares = sum(target.ratio[at : at + len(run)])
        at += len(run)
        if source is None:
            parts.append(_Part(run, shares))
        elif run == source.target.paths:
            parts.append(_Part(run, shares, source, source.factors, source.scale))
        else:
            parts.append(_Part(run, shares, source, slicer.slice(source, path).factors, source.scale))
    return parts


def _one_kind(target: Target, present: Sequence[_Part]) -> Kind:
    names = sorted({part.source.kind for part in present if part.source})
    if len(names) > 1:
        raise NotRepresentable(
            f"{target.name}: its parts are of different kinds ({', '.join(names)}) and cannot become one adapter",
            hint="try --allow-lossy",
            kinds=names,
            layout="fuse_rows",
        )
    kind = kind_of(names[0])
    if kind.constrained and any(part.source and part.source.alpha.value for part in present):
        raise NotRepresentable(
            f"{target.name}: {kind.name}'s constraint is about all rows at once and cannot be shared out",
            hint="try --allow-lossy with --base",
            kind=kind.name,
            layout="fuse_rows",
        )
    return kind


def _sizes(target: Target, kind: Kind, parts: Sequence[_Part]) -> list[int]:
    """The rows of every part; raises ArchitectureMismatch where the parts that are there fit no common ratio."""
    found: dict[str, int] = {}
    units: set[Fraction] = set()
    for part in parts:
        rows = (kind.weight_shape(part.factors) or (None,))[0] if part.factors is not None else None
        if rows is not None:
            found["+".join(part.paths)] = rows
            units.add(Fraction(rows, part.shares))
    if len(units) > 1 or any((unit * part.shares).denominator != 1 for unit in units for part in parts):
        raise ArchitectureMismatch(
            f"{target.name}: rows {found} do not fit the ratio {':'.join(map(str, target.ratio))}",
            expected=list(target.ratio),
            found=found,
        )
    unit = units.pop() if units else Fraction(1)
    return [int(unit * part.shares) for part in parts]


def common_scale(scales: Sequence[Scale]) -> Scale:
    """The scale that most parts have (the first of equals), and not zero unless all are."""
    nonzero = [scale for scale in scales if scale.numerator] or list(scales)
    return max(nonzero, key=lambda scale: sum(scale.equals(other) for other in nonzero))


def ratio_of(scale: Scale, common: Scale) -> Scale:
    """scale / common: n₁/√a · √b/n₂ = n₁·b / (n₂·√(a·b))."""
    return Scale.of(scale.numerator / common.numerator * common.root, scale.root * common.root)


def _one_dtype(parts: Sequence[Mapping[str, LazyTensor] | None]) -> list[Mapping[str, LazyTensor] | None]:
    """Parts whose dtypes differ in a role, widened there to the one that holds all: float32, or float64."""
    dtypes: dict[str, set[str]] = {}
    for part in parts:
        for role, tensor in (part or {}).items():
            dtypes.setdefault(role, set()).add(tensor.dtype)
    wide = {role: "F64" if "F64" in names else "F32" for role, names in dtypes.items() if len(names) > 1}
    return [
        part and {role: widened(tensor, wide.get(role, tensor.dtype)) for role, tensor in part.items()}
        for part in parts
    ]


def _columns(kind: Kind, parts: Sequence[Mapping[str, LazyTensor] | None]) -> tuple[Columns | None, ...]:
    """The columns of every part where the kind has blocks, else nothing."""
    place = getattr(kind, "blocks", None)
    return place(parts).columns if place else ()


def _what(kind: Kind, parts: Sequence[_Part], present: Sequence[_Part], rank: int | None) -> What:
    if len({id(part.source) for part in present}) == 1:
        return "pad" if len(present) < len(parts) else "slice"
    return "block" if rank is not None and rank != kind.rank(present[0].factors or {}) else "share"


def _note(parts: Sequence[_Part], present: Sequence[_Part], rank: int | None) -> str:
    missing = ["+".join(part.paths) for part in parts if part.factors is None]
    note = f"{len(present)} of {len(parts)} parts" + (f" at rank {rank}" if rank is not None else "")
    return note + (f"; no change for {', '.join(missing)}" if missing else "")


def _origin(present: Sequence[_Part]) -> Origin | None:
    origins = [part.source.origin for part in present if part.source and part.source.origin]
    if not origins:
        return None
    stems = dict.fromkeys(origin.stem for origin in origins)
    return (
        origins[0]._replace(stem=" + ".join(stems))
        if len(stems) == 1
        else Origin(origins[0].file, " + ".join(stems), {}, {})
    )
