"""merge: adapters of any format and kind into the weights of a base model, in its own container, naming and dtype."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from loratools.adapters.addition import Addition, How
from loratools.adapters.casting import Dice
from loratools.adapters.dora import is_dora
from loratools.adapters.kind import kind_of
from loratools.architectures.architecture import Architecture
from loratools.architectures.registry import ARCHITECTURES
from loratools.bases.checkpoint import Checkpoint, open_checkpoint
from loratools.bases.placing import Placing, Touched, Unmatched
from loratools.errors import ArchitectureMismatch, PartialMatch, UsageError, closest, nearest
from loratools.formats.opening import Reference
from loratools.operations.lora import Lora, open_lora
from loratools.operations.merge_output import MergeOutput
from loratools.operations.merging import Applied, Merge, MergedLayer, MergePlan, UnmatchedModule, by_component
from loratools.operations.saved_whole import place_saved
from loratools.operations.scales import Scales
from loratools.operations.to_kind import shared
from loratools.tensors.dtypes import DTYPES
from loratools.tensors.lazy import LazyTensor
from loratools.tensors.writer import Progress

Weighted = Reference | Lora | tuple[Reference | Lora, float]

_START_UP = 300 << 20  # torch, the tables and headers, and what is made ahead of the writer
DTYPE_NAMES = ("F32", "F16", "BF16", "F8_E4M3", "F8_E5M2")
_NEAREST = 8  # unmatched modules for which the nearest path is looked up


@dataclass(frozen=True)
class PendingMerge:
    """A merge that has been planned from headers: nothing has been computed or written."""

    plan: MergePlan
    output: MergeOutput
    additions: tuple[tuple[Touched, Addition], ...]

    def preview(self, out: str | os.PathLike[str], *, overwrite: bool = False) -> MergePlan:
        """The plan for an output, with the disk space that is free there; raises what `save` would before it writes."""
        free = self.output.preview(Path(out), overwrite=overwrite)
        return replace(self.plan, path=str(Path(out)), free_disk=free)

    def save(
        self,
        out: str | os.PathLike[str],
        *,
        overwrite: bool = False,
        if_needed: bool = False,
        threads: int = 1,
        progress: Progress | None = None,
    ) -> Merge:
        """Compute, write, verify. Raises OutputExists, OutputRefused, ResourceError, NonFinite."""
        saved = self.output.save(
            Path(out), overwrite=overwrite, if_needed=if_needed, threads=threads, progress=progress
        )
        layers = () if saved.skipped else tuple(_layer(touched, item) for touched, item in self.additions)
        return Merge(saved.path, self.plan, layers, saved.size, saved.payload_sha256, saved.skipped)


def merge(
    base: str | os.PathLike[str],
    adapters: Sequence[Weighted],
    out: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    if_needed: bool = False,
    threads: int = 1,
    progress: Progress | None = None,
    **how: Any,
) -> Merge:
    """Merge `adapters`, each a reference or (reference, scale), into `base` and write `out`; `how` as `plan_merge`."""
    pending = plan_merge(base, adapters, **how)
    return pending.save(out, overwrite=overwrite, if_needed=if_needed, threads=threads, progress=progress)


def plan_merge(
    base: str | os.PathLike[str],
    adapters: Sequence[Weighted],
    *,
    scale: float | str | Mapping[str, float] | None = None,
    weights: Sequence[str] = (),
    components: Sequence[str] | None = None,
    arch: str | None = None,
    dtype: str | None = None,
    max_shard_size: int | None = None,
    stochastic_seed: int | None = None,
    device: str = "cpu",
    allow_partial: bool = False,
    allow_nonfinite: bool = False,
    unsafe_pickle: bool = False,
) -> PendingMerge:
    """Plan the sum W + Σ scale·Δ for every weight of `base` that an adapter changes.

    Every delta is taken from the base's own weight, also where several adapters hit it; all are summed in float32 and
    cast once to the base's dtype, or to `dtype` (a safetensors name, then for every float of the files). `scale`
    multiplies all adapters, or those of one component; `weights` are `PATTERN=W` or one list of block weights.
    `max_shard_size` is in bytes. With `stochastic_seed` values are rounded by seeded dice.

    Raises PartialMatch where modules find no weight, unless `allow_partial` (always where all of one adapter find
    none); ArchitectureMismatch, WrongRole, UnknownKeys, UsageError, and what opening raises.
    """
    if not adapters:
        raise UsageError("no adapter was given", hint="loratools merge BASE LORA=0.8 -o OUT")
    if dtype is not None and dtype not in DTYPE_NAMES:
        raise UsageError(f"a merge cannot be written as {dtype}", hint=f"one of {', '.join(DTYPE_NAMES)}")
    checkpoint = open_checkpoint(base, unsafe_pickle=unsafe_pickle)
    given = [_opened(item, arch, unsafe_pickle=unsafe_pickle) for item in adapters]
    table, name = _architecture(checkpoint, [lora for lora, _ in given])
    if not allow_partial:
        for lora, _ in given:
            lora.reading.require_known()
    placing = Placing(checkpoint.base, table)
    scales = Scales.of(scale, weights)
    applied = tuple(_applied(placing, item, scales, table, components) for item in given)
    _require_matches(applied, checkpoint.name, allow_partial=allow_partial)
    dice = Dice(stochastic_seed) if stochastic_seed is not None else None
    how = How(dtype, dice, device, allow_nonfinite)
    additions: dict[tuple[int, str], tuple[Touched, Addition]] = {}
    for place, touched in placing.touched.items():
        additions[place] = touched, _addition(touched, table, how)
    changed = {place: item.result() for place, (_, item) in additions.items()}
    cast = _casts(checkpoint, changed, placing, table, how) if dtype else {}
    parameters = {
        "scale": scale if not isinstance(scale, Mapping) else dict(scale),
        "scales": [by for _, by in given],
        "weights": list(weights) or None,
        "components": list(components) if components else None,
        "arch": arch,
        "dtype": dtype,
        "max_shard_size": max_shard_size,
        "stochastic_seed": stochastic_seed,
        "allow_partial": allow_partial,
        "allow_nonfinite": allow_nonfinite,
    }
    adapter_files = tuple(file for lora, _ in given for file in lora.reading.opened.files)
    output = MergeOutput(checkpoint, {**changed, **cast}, parameters, adapter_files, dtype, max_shard_size)
    tensors = sum(len(item.keys) for item in checkpoint.weights)
    largest = max((item.dense_bytes for _, item in additions.values()), default=0)
    plan = MergePlan(
        base=checkpoint.name,
        architecture=name,
        adapters=applied,
        changed=len(additions),
        cast=len(cast),
        copied=tensors - len(additions) - len(cast),
        files=output.sizes(),
        beside=len(output.beside),
        left_out=output.left_out,
        peak_memory=_START_UP + 3 * largest,
        warnings=_warnings(placing, scales, given),
    )
    return PendingMerge(plan, output, tuple(additions.values()))


def _opened(item: Weighted, arch: str | None, *, unsafe_pickle: bool) -> tuple[Lora, float]:
    reference, scale = item if isinstance(item, tuple) else (item, 1.0)
    number = Scales.of(scale).overall
    return open_lora(reference, arch=arch, unsafe_pickle=unsafe_pickle), number


def _architecture(checkpoint: Checkpoint, loras: Sequence[Lora]) -> tuple[Architecture | None, str | None]:
    """The table and the id that the base and all adapters share; ArchitectureMismatch where there is none."""
    found = checkpoint.base.candidates
    for lora in loras:
        ours = (lora.architecture,) if lora.architecture else lora.candidates
        both = shared(ours, found)
        if found and not both:
            raise ArchitectureMismatch(
                f"the adapter is for {' or '.join(ours) or 'an unknown model'}, the base model is {' or '.join(found)}",
                path=lora.name,
                hint="give the base model that the adapter was trained on",
                expected=list(found),
                found=list(ours),
            )
        found = both
    known = {item.id: item for item in ARCHITECTURES}
    name = found[0] if found else None
    return (known.get(name) if name else None), name


def _applied(
    placing: Placing, given: tuple[Lora, float], scales: Scales, table: Architecture | None, only: Sequence[str] | None
) -> Applied:
    """Put one adapter set, or the components `only` of it, in its places."""
    (lora, by), components = given, only
    source = lora.reading.bind(table.id) if table else lora.adapter_set
    present = list(dict.fromkeys(item.target.component for item in source.adapters))
    for name in components or ():
        if name not in present:
            raise UsageError(
                f"the adapter has no component {name!r}",
                path=lora.name,
                hint=nearest(name, present) or f"components: {', '.join(present)}",
            )
    wanted = [item for item in source.adapters if not components or item.target.component in components]
    weigh = scales.weighing(table, present)
    before = len(placing.unmatched)
    matched: list[str] = []
    for item in wanted:
        by_path = {path: by * weigh(item.target.component, path) for path in item.target.paths}
        if placing.add(item, by_path):
            matched.append(item.target.component)
    left = place_saved(placing, source, table, by, components)
    missed = placing.unmatched[before:]
    return Applied(
        lora.name,
        lora.format,
        lora.kinds,
        by,
        by_component([item.target.component for item in wanted]),
        by_component(matched),
        tuple(_unmatched(item, placing if at < _NEAREST else None) for at, item in enumerate(missed)),
        (*left, *(f"{name}: not among --components" for name in present if components and name not in components)),
    )


def _unmatched(item: Unmatched, placing: Placing | None) -> UnmatchedModule:
    near = closest(item.path, placing.paths(item.adapter.target.component)) if placing else None
    return UnmatchedModule(item.adapter.target.name, f"{item.why}: {item.path}", near)


def _require_matches(applied: Sequence[Applied], base: str, *, allow_partial: bool) -> None:
    for item in applied:
        total = sum(item.modules.values())
        missing = item.unmatched
        if not sum(item.matched.values()):
            raise PartialMatch(
                f"none of the {total} modules of the adapter has a weight in the base model",
                path=item.name,
                key=missing[0].module if missing else None,
                hint="give the base model that the adapter was trained on",
                base=base,
            )
        if missing and not allow_partial:
            lost = {
                name: count - item.matched.get(name, 0)
                for name, count in item.modules.items()
                if count > item.matched.get(name, 0)
            }
            told = ", ".join(f"{count} of {item.modules[name]} in {name}" for name, count in lost.items())
            near = f"; did you mean {missing[0].nearest!r}?" if missing[0].nearest else ""
            raise PartialMatch(
                f"{len(missing)} changes have no place in the base model ({told or missing[0].why})",
                path=item.name,
                key=missing[0].module,
                hint=f"{missing[0].why}{near} --allow-partial merges the rest, --components NAME chooses",
                base=base,
                unmatched=[entry.module for entry in missing],
            )


def _addition(touched: Touched, table: Architecture | None, how: How) -> Addition:
    native = touched.native
    return Addition(
        native.tensor,
        touched.changes,
        replace(how, dtype=_wanted(native.tensor, how.dtype, touched, table)),
        name=native.key,
        layout=native.placement.layout,
        bias=native.is_bias,
    )


def _wanted(tensor: LazyTensor, dtype: str | None, touched: Touched | None, table: Architecture | None) -> str:
    """The dtype that a tensor is to have: 8-bit floats are for the denoiser's matrices alone."""
    if dtype is None or not DTYPES[tensor.dtype].floating:
        return tensor.dtype
    if DTYPES[dtype].bits > 8:
        return dtype
    denoiser = table.denoiser.name if table else ""
    is_matrix = touched is not None and touched.component == denoiser and len(tensor.shape) > 1
    return dtype if is_matrix else tensor.dtype


def _casts(
    checkpoint: Checkpoint,
    changed: Mapping[tuple[int, str], LazyTensor],
    placing: Placing,
    table: Architecture | None,
    how: How,
) -> dict[tuple[int, str], LazyTensor]:
    """The tensors that no adapter changes, in the dtype that was asked for."""
    found: dict[tuple[int, str], LazyTensor] = {}
    owners = placing.owners()
    for item in checkpoint.weights:
        for key in item.keys:
            place, tensor = (id(item.part), key), item.part[key]
            wanted = _wanted(tensor, how.dtype, owners.get(place), table)
            if place not in changed and wanted != tensor.dtype:
                found[place] = Addition(tensor, (), replace(how, dtype=wanted), name=key).result()
    return found


def _warnings(placing: Placing, scales: Scales, given: Sequence[tuple[Lora, float]]) -> tuple[str, ...]:
    """What a user should know before the numbers are there."""
    found = [text for lora, _ in given for text in lora.reading.warnings]
    names = [
        (touched.component, path) for touched in placing.touched.values() for path in touched.native.placement.paths
    ]
    found += [f"no changed layer fits the pattern {pattern!r}" for pattern in scales.unused(names)]
    rotated = [
        change
        for touched in placing.touched.values()
        for change in touched.changes
        if change.scale != 1 and kind_of(change.adapter.kind).needs_base(change.adapter.factors)
    ]
    if any(is_dora(change.adapter.factors) for change in rotated):
        found.append(
            "DoRA at a scale other than 1: the change of the whole weight is scaled, as A1111 does; PEFT scales inside "
            "the norm, which gives another weight"
        )
    return tuple(dict.fromkeys(found))


def _layer(touched: Touched, addition: Addition) -> MergedLayer:
    measured = addition.measure()
    return MergedLayer(touched.name, touched.native.key, len(addition.changes), measured.ratio, measured.error)
