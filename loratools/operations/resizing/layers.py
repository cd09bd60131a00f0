"""The layers of one file on their way to other ranks: measured, given ranks, fitted into a size, laid out as files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from loratools.adapters.adapter import Adapter, AdapterSet
from loratools.adapters.budget import share_out
from loratools.adapters.kind import kind_of
from loratools.adapters.lora import LORA
from loratools.adapters.made import Maker
from loratools.adapters.recast import recast
from loratools.adapters.resize import Resizable
from loratools.adapters.settings import tuner_of
from loratools.architectures.architecture import Architecture
from loratools.errors import ArchitectureMismatch, NotRepresentable, UsageError
from loratools.formats.registry import format_of
from loratools.operations.conversion.to_kind import flattened_shape
from loratools.operations.lora import Lora, tables
from loratools.operations.outputs.files import AdapterOutput
from loratools.operations.outputs.finite import guarded
from loratools.operations.outputs.laid_out import LaidOut, laid_out
from loratools.operations.working.one_thread import one_thread
from loratools.operations.working.side_by_side import side_by_side
from loratools.operations.working.tally import Tally
from loratools.tensors.writer import Progress

_TRIES = 24


class Resizing:
    """The layers of one file on their way to other ranks; None stands for what has no rank and stays as it is."""

    def __init__(
        self,
        lora: Lora,
        dtype: str | None,
        to: str | None,
        parameters: Mapping[str, Any],
        *,
        thrifty: bool,
        allow_lossy: bool,
    ) -> None:
        self.lora, self.dtype, self.to, self.parameters = lora, dtype, to, parameters
        self.allow_lossy, self.thrifty = allow_lossy, thrifty
        self.known = tables(lora)
        self.table = self.known[0] if self.known else None
        self.source = lora.reading.bind(self.table.id) if self.table else lora.adapter_set
        maker = Maker()
        self.layers = [self._layer(item, maker) for item in self.source.adapters]
        if not any(self.layers):
            raise NotRepresentable("the file holds no layer with a rank", path=lora.name)

    def _layer(self, item: Adapter, maker: Maker) -> Resizable | None:
        if _without_rank(item):
            return None
        try:
            shape = flattened_shape(item, self.known)
            return Resizable(item, maker=maker, dtype=self.dtype, shape=shape, thrifty=self.thrifty)
        except NotRepresentable as problem:
            raise NotRepresentable(
                f"{item.target.name}: {problem.message}",
                path=item.origin.file if item.origin else self.lora.name,
                key=item.origin.stem if item.origin else None,
                hint=problem.hint,
                **problem.evidence,
            ) from problem

    def measure(self, threads: int, progress: Progress | None = None) -> None:
        """Compute the singular values of all layers; `progress` is told the bytes of the factors that were read."""
        missing = [
            (item, layer)
            for item, layer in zip(self.source.adapters, self.layers, strict=True)
            if layer is not None and layer.values is None
        ]
        tally = Tally(progress, sum(item.nbytes for item, _ in missing))

        def one(row: tuple[Adapter, Resizable]) -> None:
            row[1].measured()
            tally.add(row[0].nbytes)

        with one_thread():
            side_by_side(one, missing, threads)

    @property
    def one_kind(self) -> bool:
        """Whether the output holds adapters of one kind alone in each component, as a PEFT configuration does."""
        return (format_of(self.to).alpha if self.to else self.source.dialect.alpha) == "config"

    def make_alike(self, chosen: Sequence[int | None]) -> bool:
        """Where some layers of a component become LoRA at these ranks and the output holds one kind, let all of them
        become it; whether there are such.
        """
        if not self.one_kind:
            return False
        rows = [
            (item, layer, layer.keeps(rank))
            for item, layer, rank in zip(self.source.adapters, self.layers, chosen, strict=True)
            if layer is not None and rank is not None
        ]
        changed = {item.target.component for item, _, kept in rows if not kept}
        mixed = [
            layer
            for item, layer, kept in rows
            if kept and item.target.component in changed and tuner_of(item.kind, item.factors) != LORA.name
        ]
        for layer in mixed:
            layer.plainly = True
        return bool(mixed)

    def made(self, chosen: Sequence[int | None]) -> tuple[Adapter, ...]:
        """The adapters at these ranks, lazily."""
        pairs = zip(self.source.adapters, self.layers, chosen, strict=True)
        return tuple(
            self._recast(item, recast(item, self.dtype))
            if layer is None or rank is None
            else self._recast(item, layer.at(rank))
            if layer.keeps(rank)
            else layer.at(rank)
            for item, layer, rank in pairs
        )

    def _recast(self, before: Adapter, after: Adapter) -> Adapter:
        return after if after is before else guarded(before, after, allow=False)

    def output(self, chosen: Sequence[int | None]) -> AdapterOutput:
        """The files that hold the adapters at these ranks."""
        made = self.made(chosen)
        found = self._laid_out(replace(self.source, adapters=made), self.source, self.table)
        if self.to is not None:
            self._require_agreement(made, found)
        opened = self.lora.reading.opened
        folders = (Path(opened.name),) if opened.layout in ("peft", "folder") else ()
        return AdapterOutput(
            "resize", self.parameters, opened.files, folders, found.rendered, found.format, found.folder
        )

    def _laid_out(self, made: AdapterSet, source: AdapterSet, table: Architecture | None) -> LaidOut:
        return laid_out(made, self.lora, source, table, to=self.to, allow_lossy=self.allow_lossy)

    def _require_agreement(self, made: Sequence[Adapter], found: LaidOut) -> None:
        """Go on with several candidates only where all of them would write the same names."""
        by_stem = {(item.origin.file, item.origin.stem): item for item in made if item.origin}
        for table in self.known[1:]:
            other = self.lora.reading.bind(table.id)
            adapters = tuple(
                replace(by_stem[item.origin.file, item.origin.stem], target=item.target)
                for item in other.adapters
                if item.origin and (item.origin.file, item.origin.stem) in by_stem
            )
            theirs = self._laid_out(replace(other, adapters=adapters), other, table)
            if _names(theirs) != _names(found):
                assert self.table is not None
                raise ArchitectureMismatch(
                    f"the file fits {self.table.id} and {table.id}, which this format spells differently",
                    path=self.lora.name,
                    hint=f"say which with --arch {self.table.id}",
                    candidates=[item.id for item in self.known],
                )

    def fitted(self, size: int, most: Sequence[int]) -> list[int | None]:
        """The ranks that lose least of ‖Δ‖² over all layers in a file of at most `size` bytes.

        What is not rank (headers, alphas, biases) depends a little on the ranks, so that the budget is corrected until
        no further rank of a layer fits. Raises UsageError where rank 1 everywhere is too large.
        """
        if self.one_kind and self.output([layer.rank if layer else None for layer in self.layers]).size > size:
            for layer in filter(None, self.layers):
                layer.plainly = True
        spectra = [self._offered(layer, limit) for layer, limit in zip(self.layers, most, strict=True)]
        units = [layer.unit if layer else 1 for layer in self.layers]
        least = [1 if layer else None for layer in self.layers]
        floor = self.output(least).size
        if floor > size:
            raise UsageError(
                f"at rank 1 the file has {floor:,} bytes, more than {size:,}",
                path=self.lora.name,
                hint="--dtype float16 halves a float32 file",
                needed=floor,
                allowed=size,
            )
        budget = size - floor + sum(unit for layer, unit in zip(self.layers, units, strict=True) if layer)
        best: tuple[int, list[int | None]] = (floor, list(least))
        tried: list[list[int]] = []
        while len(tried) < _TRIES:
            bought = share_out(spectra, units, budget, 1)
            if bought in tried:
                break
            tried.append(bought)
            ranks = [self._settled(*row) for row in zip(self.layers, bought, spectra, most, strict=True)]
            found = self.output(ranks).size
            if best[0] < found <= size:
                best = found, ranks
            budget = sum(rank * unit for rank, unit in zip(bought, units, strict=True)) + size - found
            if budget < sum(unit for values, unit in zip(spectra, units, strict=True) if values):
                break
        return best[1]

    def _settled(self, layer: Resizable | None, bought: int, values: Sequence[float], limit: int) -> int | None:
        """The rank that a layer gets; one that got all that was on offer stays as it is, as far as `limit` allows."""
        if layer is None:
            return None
        stays = bought == len(values) and not layer.becomes_plain
        return layer.limited(limit if stays else max(1, bought))

    def _offered(self, layer: Resizable | None, limit: int) -> list[float]:
        """The values that the budget may buy: as many as weigh less than the layer does as it is."""
        if layer is None:
            return []
        values = layer.measured()
        fit = layer.weight // layer.unit if layer.thrifty and not layer.becomes_plain else limit
        return values[: max(1, min(limit, len(values), fit))]


def _without_rank(item: Adapter) -> bool:
    """Whether an adapter is a vector (a norm, or a bias alone), which has no rank to change."""
    if item.kind != "full":
        return item.kind == "norm"
    return "diff" not in item.factors or len(kind_of(item.kind).weight_shape(item.factors) or ()) < 2


def _names(found: LaidOut) -> list[tuple[str, str, str, tuple[int, ...]]]:
    return sorted(
        (file.name, key, tensor.dtype, tensor.shape)
        for file in found.rendered.files
        for key, tensor in file.tensors.items()
    )
