"""The parts of a fused adapter, one canonical path each, with a block-diagonal fuse undone where that is certain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeAlias

from loratools.adapters.adapter import Adapter
from loratools.adapters.blocks import Columns
from loratools.adapters.kind import kind_of
from loratools.adapters.ownership import only_these_columns, owned_columns
from loratools.errors import ArchitectureMismatch, NotRepresentable
from loratools.tensors.lazy import LazyTensor

Groups: TypeAlias = Mapping[str, Sequence[tuple[str, int, int]]]


class Piece(NamedTuple):
    """The factors of one path (None: no change there), and what is worth saying about them."""

    factors: Mapping[str, LazyTensor] | None
    note: str


def rows_by_path(adapter: Adapter) -> dict[str, Mapping[str, LazyTensor]]:
    """The factors of every path at the full rank, by slicing rows.

    Raises ArchitectureMismatch where the rows cannot be shared out by the target's ratio, NotRepresentable where the
    kind cannot follow.
    """
    target, kind = adapter.target, kind_of(adapter.kind)
    if len(target.paths) == 1:
        return {target.paths[0]: adapter.factors}
    if target.axis == "columns":
        raise NotRepresentable(f"{target.name}: layers whose inputs are grouped are not split", layout="columns")
    if kind.constrained and adapter.alpha.value:
        raise NotRepresentable(
            f"{target.name}: {kind.name}'s constraint is about all rows at once and cannot be shared out",
            hint="try --allow-lossy with --base",
            kind=kind.name,
            layout="split_rows",
        )
    return dict(zip(target.paths, kind.split_rows(adapter.factors, sizes_of(adapter)), strict=True))


def sizes_of(adapter: Adapter) -> tuple[int, ...]:
    """The rows of every part of an adapter's target; the bare ratio where the factors do not tell them."""
    total = (kind_of(adapter.kind).weight_shape(adapter.factors) or (None,))[0]
    sizes = adapter.target.ratio if total is None else adapter.target.sizes(total)
    if sizes is None:
        raise ArchitectureMismatch(
            f"{adapter.target.name}: {total} rows cannot be shared out as {':'.join(map(str, adapter.target.ratio))}",
            path=adapter.origin.file if adapter.origin else None,
            key=adapter.origin.stem if adapter.origin else None,
            expected=list(adapter.target.ratio),
            found=total,
        )
    return sizes


def _listed(entries: object) -> dict[str, Columns] | None:
    """The columns by path of one record, None for anything else: records come out of files, and may hold nonsense."""
    listed: dict[str, Columns] = {}
    for entry in entries if isinstance(entries, Sequence) else ():
        if not isinstance(entry, Sequence) or [type(item) for item in entry] != [str, int, int]:
            return None
        listed[entry[0]] = (entry[1], entry[2])
    return listed or None


def _beside(source: Adapter) -> bool:
    """Whether a part whose `up` is all zero may still change something: by a bias or a magnitude of its own."""
    return not {"up_bias", "bias_diff", "magnitude"}.isdisjoint(source.factors)


class Slicer:
    """Cuts fused adapters into pieces, each adapter once; `recorded` are the groups of the run that fused them."""

    def __init__(self, recorded: Groups) -> None:
        self.recorded = recorded
        self._cut: dict[int, dict[str, Piece]] = {}

    def slice(self, source: Adapter, path: str) -> Piece:
        """The piece of one path of a source."""
        if id(source) not in self._cut:
            self._cut[id(source)] = self._pieces(source)
        return self._cut[id(source)][path]

    def _pieces(self, source: Adapter) -> dict[str, Piece]:
        kind, parts = kind_of(source.kind), rows_by_path(source)
        narrow = getattr(kind, "narrow", None)
        if narrow is None:
            return {path: Piece(factors, "rows") for path, factors in parts.items()}
        columns, note = self._columns(source, parts)
        pieces: dict[str, Piece] = {}
        for path, factors in parts.items():
            span = columns.get(path, ())
            if span is None:
                pieces[path] = Piece(None, f"{note}: no change here")
            elif span and span != (0, source.rank):
                pieces[path] = Piece(narrow(factors, *span), f"{note}: columns {span[0]}…{span[1] - 1}")
            else:
                pieces[path] = Piece(factors, note)
        return pieces

    def _columns(
        self, source: Adapter, parts: Mapping[str, Mapping[str, LazyTensor]]
    ) -> tuple[dict[str, Columns | None], str]:
        """The columns of every path (none listed: the full rank), and how they are known."""
        note = "rows"
        if source.target.name in self.recorded:
            listed = _listed(self.recorded[source.target.name])
            spans: dict[str, Columns | None] = {path: (listed or {}).get(path) for path in parts}
            if listed and self._holds(source, parts, spans):
                return spans, "recorded block"
            note = "the recorded blocks do not fit the values: full rank kept"
        up = source.factors.get("up") if source.kind == "lora" else None
        if up is None:
            return {}, note
        owned = owned_columns(up, [part["up"].shape[0] for part in parts.values()])
        if owned is None or (None in owned and _beside(source)):
            return {}, note
        return dict(zip(parts, owned, strict=True)), "block found by its zeros"

    def _holds(
        self, source: Adapter, parts: Mapping[str, Mapping[str, LazyTensor]], spans: Mapping[str, Columns | None]
    ) -> bool:
        """Whether a record fits the rank, and the values are zero outside its blocks."""
        rank = source.rank or 0
        for path, factors in parts.items():
            span = spans[path]
            if span is not None and not 0 <= span[0] < span[1] <= rank:
                return False
            if source.kind == "lora":
                if not only_these_columns(factors["up"], span):
                    return False
                if span is None and _beside(source):
                    return False
            elif "t1" in factors or not all(only_these_columns(factors[role], span) for role in ("w1_a", "w2_a")):
                return False
        return True
