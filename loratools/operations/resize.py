"""resize: another rank for every layer, from the factors: by rank, energy, error, a dynamic rule, or size."""

from __future__ import annotations

import math
import os
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from loratools.adapters.adapter import Adapter
from loratools.adapters.kind import kind_of
from loratools.adapters.ranks import Rule, tails
from loratools.adapters.resize import Resizable
from loratools.adapters.settings import tuner_of
from loratools.errors import UsageError
from loratools.formats.opening import Reference
from loratools.operations.lora import Lora, open_lora
from loratools.operations.outputs import derived
from loratools.operations.outputs.files import AdapterOutput
from loratools.operations.resizing.layers import Resizing
from loratools.operations.resizing.promise import promise
from loratools.operations.resizing.result import Resized, ResizePlan, ResizeResult
from loratools.operations.working.one_thread import one_thread
from loratools.tensors.writer import Progress

if TYPE_CHECKING:
    import torch

_LOUD = 0.01  # rounding beyond this share of a layer's delta is worth a warning


def resize(
    reference: Reference | Lora,
    *,
    rank: int | None = None,
    conv_rank: int | None = None,
    error: float | None = None,
    energy: float | None = None,
    size: int | None = None,
    method: str | None = None,
    parameter: float | None = None,
    to: str | None = None,
    dtype: str | None = None,
    arch: str | None = None,
    threads: int = 1,
    allow_lossy: bool = False,
    allow_partial: bool = False,
    unsafe_pickle: bool = False,
    progress: Progress | None = None,
) -> PendingResize:
    """Plan another rank for every layer of an adapter, in its own format and spelling (or the format `to`).

    `rank` and, for kernels larger than 1, `conv_rank`; or the smallest ranks that keep a relative `error`, a share of
    the `energy` (‖Δ‖²), or what sd-scripts' `method` (sv_ratio, sv_fro, sv_cumulative) keeps at its `parameter`, with
    `rank` as the most; or those that fit into `size` bytes and lose least over all layers, with `rank` as
    the most. `dtype` is a safetensors name. Layers that do not shrink keep their bytes.

    A fixed rank computes nothing yet; otherwise singular values are, `threads` layers at once, and `progress` is told
    the bytes of the factors. Raises UsageError, UnknownKeys, ArchitectureMismatch, NonFinite, NotRepresentable for
    kinds that are no low-rank product, and what opening and parsing raise.
    """
    if size is not None and (error is not None or energy is not None or method is not None):
        raise UsageError("a size leaves no choice of an error, an energy or a method", hint="give one of them")
    rule = Rule(rank=rank, conv_rank=conv_rank, error=error, energy=energy, method=method, parameter=parameter)
    if rule == Rule() and size is None:
        raise UsageError("nothing says how far to resize", hint="--rank, --energy, --error or --size")
    lora = open_lora(reference, arch=arch, unsafe_pickle=unsafe_pickle)
    if not allow_partial:
        lora.reading.require_known()
    left = tuple(f"{item.key}: {item.kind}" for item in lora.reading.unknown)
    parameters = {
        "rank": rank,
        "conv_rank": conv_rank,
        "error": error,
        "energy": energy,
        "size": size,
        "method": method,
        "parameter": parameter,
        "to": to,
        "dtype": dtype,
        "arch": arch,
        "allow_lossy": allow_lossy,
        "allow_partial": allow_partial,
    }
    thrifty = rank is None and conv_rank is None  # a rank that is named is the rank that comes out
    work = Resizing(lora, dtype, to, parameters, thrifty=thrifty, allow_lossy=allow_lossy)
    if rule.adaptive or size is not None:
        work.measure(threads, progress)
    chosen = [_fixed(layer, rule) for layer in work.layers]
    if size is None and work.make_alike(chosen):
        chosen = [_fixed(layer, rule) for layer in work.layers]
    if size is not None:
        chosen = work.fitted(size, [0 if item is None else item for item in chosen])
    return PendingResize(lora, work, tuple(chosen), work.output(chosen), left)


def _fixed(layer: Resizable | None, rule: Rule) -> int | None:
    if layer is None:
        return None
    if rule.adaptive:
        return layer.limited(rule.choose(layer.measured(), convolution=layer.convolution))
    most = rule.most(convolution=layer.convolution)
    return layer.limited(layer.rank if most is None else most)


@dataclass(frozen=True)
class PendingResize:
    """A resize that has been planned: ranks and names are settled, factors are computed when they are asked for."""

    lora: Lora
    work: Resizing
    chosen: tuple[int | None, ...]
    output: AdapterOutput
    left_out: tuple[str, ...]

    @property
    def adapters(self) -> tuple[Adapter, ...]:
        """The adapters as they will be written, in canonical form."""
        return self.output.rendered.adapters

    @property
    def layers(self) -> tuple[Resized, ...]:
        """Every layer's ranks, with errors as far as singular values are known."""
        found = []
        for item, layer, rank in zip(self.work.source.adapters, self.work.layers, self.chosen, strict=True):
            words = "+".join(kind_of(item.kind).kinds(item.factors))
            if layer is None or rank is None:
                found.append(Resized(item.target.name, words, None, None, 0.0, 0.0))
                continue
            kept, values = layer.keeps(rank), layer.values
            norm = None if values is None else math.sqrt(math.fsum(value * value for value in values))
            error = 0.0 if kept else None if values is None else tails(values)[rank]
            old = item.rank or layer.rank
            found.append(Resized(item.target.name, words, old, old if kept else rank, error, norm))
        return tuple(found)

    @property
    def plan(self) -> ResizePlan:
        """The plan; errors that are not known yet are None (see `measure`)."""
        return ResizePlan(
            source=self.lora.name,
            source_format=self.lora.format,
            format=self.output.format,
            architecture=self.lora.architecture or (self.work.table.id if self.work.table else None),
            layers=self.layers,
            size=self.output.size,
            old_size=_size_of(self.lora),
            lost=(*self.output.rendered.lost, *self.left_out),
            notes=(*self.lora.reading.warnings, *self._notes()),
        )

    def measure(self, *, threads: int = 1, progress: Progress | None = None) -> ResizePlan:
        """The plan with the error of every layer, whose singular values are computed now."""
        self.work.measure(threads, progress)
        return self.plan

    def _notes(self) -> list[str]:
        pairs = zip(self.work.layers, self.chosen, strict=True)
        found = [(layer, rank) for layer, rank in pairs if layer and rank and not layer.keeps(rank)]
        heavier = [layer for layer, rank in found if rank * layer.unit > layer.weight]
        dora = sum(layer.dora for layer, _ in found)
        notes = [f"{dora} layers are DoRA: errors are those of the delta inside the norm"] if dora else []
        alike = Counter(
            tuner_of(layer.adapter.kind, layer.adapter.factors)
            for layer, rank in found
            if layer.becomes_plain and rank >= min(layer.rank, layer.full)
        )
        notes += [
            f"{count} layers of {kind} that need not shrink become LoRA too: one configuration holds one kind"
            for kind, count in sorted(alike.items())
        ]
        if heavier:
            kinds = " and ".join(sorted({layer.adapter.kind for layer in heavier}))
            notes.append(f"{len(heavier)} layers of {kinds} weigh more as LoRA of that rank than they did")
        return notes

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Every tensor by its key, computed now; keys of several files are joined by `component/`."""
        with one_thread():
            return self.output.state_dict()

    def preview(
        self,
        out: str | os.PathLike[str],
        *,
        overwrite: bool = False,
        threads: int = 1,
        progress: Progress | None = None,
    ) -> ResizePlan:
        """The plan with every error, for an output; raises what `save` would before it writes."""
        free = self.output.preview(out, overwrite=overwrite)
        return replace(self.measure(threads=threads, progress=progress), path=str(Path(out)), free_disk=free)

    def save(
        self,
        out: str | os.PathLike[str],
        *,
        overwrite: bool = False,
        if_needed: bool = False,
        threads: int = 1,
        progress: Progress | None = None,
    ) -> ResizeResult:
        """Write, verify, prove. Raises OutputExists, OutputRefused, ResourceError, NonFinite; InternalError when a
        layer of the output differs from its source by more than the error of its rank and the rounding to its dtype.
        """
        saved, proof = derived.save(
            self.output,
            out,
            self._held(),
            lambda: promise(self.work.source.adapters, self.work.layers, self.chosen, self.work.dtype),
            architecture=self.lora.architecture or (self.work.table.id if self.work.table else None),
            overwrite=overwrite,
            if_needed=if_needed,
            threads=threads,
            progress=progress,
        )
        if not saved.skipped:
            self.work.measure(threads)
        warnings = (*self.lora.reading.warnings, *self._notes(), *self._loud(), *(proof.warnings if proof else ()))
        return ResizeResult(
            saved.path,
            self.output.format,
            self.lora.architecture,
            saved.size,
            _size_of(self.lora),
            saved.payload_sha256,
            proof,
            () if saved.skipped else self.layers,
            (*self.output.rendered.lost, *self.left_out),
            warnings,
            saved.skipped,
        )

    def _held(self) -> tuple[Adapter, ...]:
        """The source's adapters that the output must make."""
        written = {(item.target.component, path) for item in self.adapters for path in item.target.paths}
        return tuple(
            item
            for item in self.work.source.adapters
            if any((item.target.component, path) in written for path in item.target.paths)
        )

    def _loud(self) -> list[str]:
        loud = [layer for layer in self.work.layers if layer and (layer.rounding or 0.0) > _LOUD]
        if not loud:
            return []
        worst = max(loud, key=lambda layer: layer.rounding or 0.0)
        told = f"{worst.dtype} rounds {len(loud)} layers by up to {worst.rounding:.2g} of their delta"
        return [f"{told}, worst {worst.adapter.target.name}: --dtype float32 would not"]


def _size_of(lora: Lora) -> int:
    """The bytes of the files that an adapter was read from, or of its tensors where it came from memory."""
    files = lora.reading.opened.files
    return sum(file.size for file in files) if files else sum(item.nbytes for item in lora.adapters)
