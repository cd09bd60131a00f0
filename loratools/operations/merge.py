"""merge: adapters of any format and kind into the weights of a base model, in its own container, naming and dtype."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from loratools.adapters.addition import Addition, How
from loratools.adapters.casting import Dice
from loratools.architectures.architecture import Architecture
from loratools.bases.checkpoint import Checkpoint, open_checkpoint
from loratools.bases.companions import companion
from loratools.bases.placing import Placing, Touched
from loratools.bases.quantised import unit_key
from loratools.bases.untying import tie_in
from loratools.errors import NonFinite, UsageError
from loratools.operations.located import base_path
from loratools.operations.merging.matches import (
    Weighted,
    opened,
    placed,
    remarks,
    require_matches,
    shared_architecture,
    weighed,
)
from loratools.operations.merging.output import MergeOutput
from loratools.operations.merging.result import Merge, MergedLayer, MergePlan
from loratools.operations.merging.scales import Scales
from loratools.operations.merging.stacks import results
from loratools.operations.merging.tied_head import once, untied
from loratools.tensors.dtypes import DTYPES
from loratools.tensors.lazy import LazyTensor
from loratools.tensors.writer import Progress

_START_UP = 300 << 20  # torch, the tables and headers, and what is made ahead of the writer
DTYPE_NAMES = ("F32", "F16", "BF16", "F8_E4M3", "F8_E5M2")


@dataclass(frozen=True)
class PendingMerge:
    """A merge that has been planned from headers: nothing has been computed or written."""

    plan: MergePlan
    output: MergeOutput
    additions: tuple[tuple[Touched, Addition], ...]
    casts: tuple[Addition, ...] = ()

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
        try:
            saved = self.output.save(
                Path(out), overwrite=overwrite, if_needed=if_needed, threads=threads, progress=progress
            )
        except NonFinite as error:
            error.path = error.path or self.plan.base
            raise
        return self.told(saved.path, saved.size, saved.payload_sha256, skipped=saved.skipped)

    def told(self, path: Path, size: int, payload_sha256: str | None = None, *, skipped: bool = False) -> Merge:
        """The report of what was written; every change has been computed, unless the output was `skipped`."""
        layers = () if skipped else tuple(_layer(touched, item) for touched, item in self.additions)
        made = () if skipped else (*(item for _, item in self.additions), *self.casts)
        oddities = tuple(line for item in made for line in _oddities(item))
        return Merge(path, self.plan, layers, size, payload_sha256, skipped, oddities)


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
    base: str | os.PathLike[str] | Checkpoint,
    adapters: Sequence[Weighted],
    *,
    bare: bool = False,
    scale: float | str | Mapping[str, float] | None = None,
    weights: Sequence[str] = (),
    components: Sequence[str] | None = None,
    arch: str | None = None,
    dtype: str | None = None,
    max_shard_size: int | None = None,
    stochastic_seed: int | None = None,
    untie: bool = False,
    device: str = "cpu",
    allow_partial: bool = False,
    allow_nonfinite: bool = False,
    unsafe_pickle: bool = False,
) -> PendingMerge:
    """Plan the sum W + Σ scale·Δ for every weight of `base` that an adapter changes.

    Every delta is taken from the base's own weight, also where several adapters hit it; all are summed in float32 and
    cast once to the base's dtype, or to `dtype` (a safetensors name, then for every float of the files). `scale`
    multiplies all adapters, or those of one component; `weights` are `PATTERN=W` or one list of block weights.
    `max_shard_size` is in bytes. With `stochastic_seed` values are rounded by seeded dice. `bare` allows no adapter at
    all: then nothing is changed, at most cast. `untie` gives a language model whose head is its embedding once more a
    head of its own, and says so in its configuration.

    Raises PartialMatch where modules find no weight, unless `allow_partial` (always where all of one adapter find
    none); NotRepresentable where a tied head and its embedding would change in two ways; ArchitectureMismatch,
    WrongRole, UnknownKeys, UsageError, and what opening raises.
    """
    if not adapters and not bare:
        raise UsageError("no adapter was given", hint="loratools merge BASE LORA=0.8 -o OUT")
    if dtype is not None and dtype not in DTYPE_NAMES:
        raise UsageError(f"a merge cannot be written as {dtype}", hint=f"one of {', '.join(DTYPE_NAMES)}")
    given = [opened(item, arch, unsafe_pickle=unsafe_pickle) for item in adapters]
    if isinstance(base, Checkpoint):
        checkpoint = base
    else:
        place = base_path(base, [lora for lora, _ in given], pickles=unsafe_pickle)
        checkpoint = open_checkpoint(place, unsafe_pickle=unsafe_pickle)
    table, name = shared_architecture(checkpoint.base, [lora for lora, _ in given])
    if not allow_partial:
        for lora, _ in given:
            lora.reading.require_known()
    scales = Scales.of(scale, weights)
    tie = tie_in(checkpoint)
    if untie:
        checkpoint = untied(checkpoint, tie)
    placing = Placing(checkpoint.base, table)
    sets = [weighed(item, scales, table, components) for item in given]
    skip, remark = once(tie, sets, placing.weights, untie=untie) if tie else (None, None)
    applied = tuple(placed(placing, item, skip=skip) for item in sets)
    require_matches(applied, checkpoint.name, allow_partial=allow_partial)
    dice = Dice(stochastic_seed) if stochastic_seed is not None else None
    how = How(dtype, dice, device, allow_nonfinite)
    additions = {place: (item, _addition(item, table, how)) for place, item in placing.touched.items()}
    changed = results(placing, additions, how)
    for touched, item in additions.values():
        if item.requantised and touched.native.unit:
            changed[id(touched.native.source), touched.native.unit] = item.unit()
    casts = _casts(checkpoint, changed, placing, table, how) if dtype else {}
    cast = {place: item.result() for place, item in casts.items()}
    dropped = _dropped(checkpoint) if dtype and DTYPES[dtype].bits > 8 else frozenset()
    parameters = {
        "scale": scale if not isinstance(scale, Mapping) else dict(scale),
        "scales": [by for _, by in given],
        "weights": list(weights) or None,
        "components": list(components) if components else None,
        "arch": arch,
        "dtype": dtype,
        "max_shard_size": max_shard_size,
        "stochastic_seed": stochastic_seed,
        **({"untie": True} if untie else {}),
        "allow_partial": allow_partial,
        "allow_nonfinite": allow_nonfinite,
    }
    adapter_files = tuple(file for lora, _ in given for file in lora.reading.opened.files)
    folders = tuple(place for lora, _ in given if (place := Path(lora.reading.opened.name)).is_dir())
    output = MergeOutput(
        checkpoint, {**changed, **cast}, parameters, adapter_files, dtype, max_shard_size, dropped, folders
    )
    tensors = sum(len(item.keys) for item in checkpoint.weights)
    largest = max((item.dense_bytes for _, item in additions.values()), default=0)
    plan = MergePlan(
        base=checkpoint.name,
        architecture=name,
        adapters=applied,
        changed=len(additions),
        cast=len(cast),
        copied=tensors - len({**changed, **cast}) - len(dropped),
        files=output.sizes(),
        beside=len(output.beside),
        left_out=output.left_out,
        peak_memory=_START_UP + 3 * largest,
        warnings=(*checkpoint.warnings, *remarks(placing, scales, given), *([remark] if remark else [])),
    )
    return PendingMerge(plan, output, tuple(additions.values()), tuple(casts.values()))


def _addition(touched: Touched, table: Architecture | None, how: How) -> Addition:
    native = touched.native
    return Addition(
        native.tensor,
        touched.changes,
        replace(how, dtype=_wanted(native.tensor, how.dtype, touched, table)),
        name=native.key,
        layout=native.placement.layout,
        bias=native.is_bias,
        unit=native.source[native.unit] if native.unit else None,
    )


def _wanted(tensor: LazyTensor, dtype: str | None, touched: Touched | None, table: Architecture | None) -> str:
    """The dtype that a tensor is to have: 8-bit floats are for the denoiser's matrices alone."""
    if dtype is None or not DTYPES[tensor.dtype].floating:
        return tensor.dtype
    if DTYPES[dtype].bits > 8:
        return dtype
    if DTYPES[tensor.dtype].bits <= 8:
        return tensor.dtype
    denoiser = table.denoiser.name if table else ""
    is_matrix = touched is not None and touched.component == denoiser and len(tensor.shape) > 1
    return dtype if is_matrix else tensor.dtype


def _casts(
    checkpoint: Checkpoint,
    changed: Mapping[tuple[int, str], LazyTensor],
    placing: Placing,
    table: Architecture | None,
    how: How,
) -> dict[tuple[int, str], Addition]:
    """The tensors that no adapter changes, in the dtype that was asked for."""
    found: dict[tuple[int, str], Addition] = {}
    owners = placing.owners()
    for item in checkpoint.weights:
        for key in item.keys:
            place, tensor = (id(item.part), key), item.part[key]
            wanted = _wanted(tensor, how.dtype, owners.get(place), table)
            if place not in changed and wanted != tensor.dtype:
                unit = unit_key(item.part, key)
                scale = item.part[unit] if unit else None
                found[place] = Addition(tensor, (), replace(how, dtype=wanted), name=key, unit=scale)
    return found


def _dropped(checkpoint: Checkpoint) -> frozenset[tuple[int, str]]:
    """The scales and marks of 8-bit weights, which nothing is left to be said about in a wider dtype."""
    return frozenset(
        (id(item.part), key) for item in checkpoint.weights for key in item.keys if companion(key) == "quantisation"
    )


def _oddities(addition: Addition) -> list[str]:
    """What became of numbers that the file's dtype, or any, does not have."""
    found, dtype = addition.measure(), addition.dtype
    lines = [f"{addition.name}: {found.wild:,} values are NaN or infinite"] if found.wild else []
    return lines + ([f"{addition.name}: {found.cut:,} values lie beyond {dtype} and were cut"] if found.cut else [])


def _layer(touched: Touched, addition: Addition) -> MergedLayer:
    measured = addition.measure()
    return MergedLayer(touched.name, touched.native.key, len(addition.changes), measured.ratio, measured.error)
