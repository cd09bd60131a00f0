"""apply: any readable adapter into a live pipeline or model, with the right change in every module, and out again."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import PurePath
from typing import Any, get_args

from loratools.adapters.dora import is_dora
from loratools.bases.placing import Placing
from loratools.errors import UsageError
from loratools.formats.opening import Reference
from loratools.operations.application.applied import Applied, Scale, by_component
from loratools.operations.application.ways import Choosing, Ways
from loratools.operations.lora import Lora, open_lora
from loratools.operations.merging.matches import matched, require_matches, shared_architecture
from loratools.operations.merging.result import Applied as Matched
from loratools.operations.merging.scales import Scales
from loratools.pipelines.kept import LOCK, Keep
from loratools.pipelines.live import Live
from loratools.pipelines.peft_layers import names
from loratools.pipelines.servable import require_in_memory
from loratools.tensors.writer import Progress


def apply(
    pipe: Any,
    lora: Reference | Lora,
    scale: Scale = 1.0,
    *,
    how: str = "auto",
    keep: Keep = "cpu",
    components: Sequence[str] | None = None,
    weights: Sequence[str] = (),
    name: str | None = None,
    arch: str | None = None,
    threads: int = 1,
    allow_partial: bool = False,
    allow_nonfinite: bool = False,
    unsafe_pickle: bool = False,
    progress: Progress | None = None,
) -> Applied:
    """Add an adapter, of any format and kind, to a live diffusers pipeline or a diffusers or transformers model.

    Every weight becomes W + Σ scale·Δ over all adapters that are applied, each Δ taken from the original W; a module
    gets a layer of PEFT's where PEFT makes that very change (LoRA on linear layers, convolutions and embeddings), else
    the change is added to its weight in place, summed in float32 (float64 for float64 weights) and cast once. `how`
    "peft" or "weights" allows one way only; `.modules` of the result tells which way each module went.

    `scale` is a number, or numbers by component ("unet=0.8,text_encoder=0.5", or a mapping; others are 1); `weights`
    are PATTERN=W, or one list of block weights, as for merge. `keep` says where the original weights wait for remove():
    in memory ("cpu"), in a temporary file without a name ("file"; TMPDIR says where), or nowhere ("none": what was
    added in place stays). `components` chooses among those of the adapter; for a single model, one name says which
    component it is. `name` is the adapter's name in PEFT, and in diffusers' set_adapters.

    Not while the pipeline runs, nor from two threads for one model. After an exception the pipeline is as it was.
    Raises PartialMatch where a module is not there, unless `allow_partial` (always where none is); NotRepresentable,
    by name, for modules that neither way can change: quantised weights, weights that are offloaded, projections that
    are fused; NonFinite, unless `allow_nonfinite`; ArchitectureMismatch, UnknownKeys, UsageError, ResourceError, and
    what opening raises.
    """
    if keep not in get_args(Keep):
        raise UsageError(f"unknown place {keep!r} to keep weights in", hint=f"one of {', '.join(get_args(Keep))}")
    with LOCK:
        single = components[0] if components and len(components) == 1 else None
        live = Live(pipe, single)
        require_in_memory(live)
        opened = open_lora(lora, arch=arch, unsafe_pickle=unsafe_pickle)
        if not allow_partial:
            opened.reading.require_known()
        table, architecture = shared_architecture(live.base, [opened])
        placing = Placing(live.base, table)
        patterns = Scales.of(None, weights)
        found = matched(placing, (opened, 1.0), patterns, table, components)
        scales = by_component(scale, dict.fromkeys(found.modules, 1.0))
        choosing = Choosing(live, how, scales, allow_nonfinite=allow_nonfinite)
        ways = choosing.deal(placing, allow_partial=allow_partial)
        found = _without_held(found, placing, choosing)
        require_matches([found], live.name, allow_partial=allow_partial)
        applied = Applied(
            name=_name(name, opened, live),
            matched=found,
            architecture=architecture,
            ways=ways,
            scales=scales,
            keep=keep,
            warnings=_remarks(opened, placing, patterns, ways, keep),
            threads=threads,
            allow_nonfinite=allow_nonfinite,
        )
        applied.enter(progress)
        return applied


def _without_held(found: Matched, placing: Placing, choosing: Choosing) -> Matched:
    """The report without those that only lack a bias which PEFT's layer brings along."""
    kept = tuple(
        line
        for line, item in zip(found.unmatched, placing.unmatched, strict=True)
        if not choosing.holds_bias(item.adapter, item.path)
    )
    return replace(found, unmatched=kept)


def _name(name: str | None, lora: Lora, live: Live) -> str:
    """A name that no adapter of the models has: the one that was asked for, or one made of the file's."""
    taken = frozenset().union(*(names(model) for model in live.models.values()))
    if name is not None:
        if not name or "." in name:
            raise UsageError(f"an adapter cannot be called {name!r}", hint="a word without dots")
        if any(other == name or other.startswith(f"{name}_") for other in taken):
            raise UsageError(f"the pipeline has an adapter {name!r} already", hint="give another name")
        return name
    stem = re.sub(r"\W+", "_", PurePath(lora.name).stem).strip("_") or "adapter"
    wanted = f"lt_{stem}"  # never a word that torch's containers keep for themselves
    number = 1
    while any(other == wanted or other.startswith(f"{wanted}_") for other in taken):
        number += 1
        wanted = f"lt{number}_{stem}"
    return wanted


def _remarks(lora: Lora, placing: Placing, patterns: Scales, ways: Ways, keep: Keep) -> tuple[str, ...]:
    """What a user should know."""
    found = list(lora.reading.warnings)
    paths = [
        (touched.component, path) for touched in placing.touched.values() for path in touched.native.placement.paths
    ]
    found += [f"no changed layer fits the pattern {pattern!r}" for pattern in patterns.unused(paths)]
    if any(is_dora(change.adapter.factors) for item in ways.weights for change in item.changes):
        found.append("DoRA is scaled as a change of the whole weight, as A1111 does; PEFT scales inside the norm")
    if keep == "none" and ways.weights:
        found.append(f"keep=none: the {len(ways.weights)} weights that were changed in place cannot be put back")
    return tuple(dict.fromkeys(found))
