"""convert: any readable adapter → any writable format, proven module by module from the output as re-opened."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from loratools.adapters.adapter import AdapterSet
from loratools.adapters.recast import fold, recast
from loratools.architectures.architecture import Architecture
from loratools.errors import ArchitectureMismatch, UsageError, nearest
from loratools.formats.format import ClipPrefix, Options
from loratools.formats.opening import Reference
from loratools.formats.original import ORIGINAL_KEY, Original, describe, restore
from loratools.formats.registry import ORIGINAL, format_of
from loratools.formats.render import Rendered, render, writers
from loratools.operations.finite import guarded
from loratools.operations.lora import Lora, open_lora, tables
from loratools.operations.pending import Pending
from loratools.operations.plan import plan_of
from loratools.operations.provenance import PROVENANCE_KEY


def convert(
    reference: Reference | Lora,
    *,
    to: str,
    arch: str | None = None,
    dtype: str | None = None,
    alpha: str = "keep",
    components: Sequence[str] | None = None,
    clip_prefix: ClipPrefix | None = None,
    allow_lossy: bool = False,
    allow_partial: bool = False,
    allow_nonfinite: bool = False,
    unsafe_pickle: bool = False,
) -> Pending:
    """Plan a conversion to a format of `loratools formats`, or to "original".

    `dtype` is a safetensors name (F16, BF16, F32); `alpha` "fold" multiplies it into the factors. Where such arithmetic
    meets NaN or infinity, NonFinite is raised when the values are asked for, unless `allow_nonfinite`; bytes that are
    copied are not looked at. Raises UnknownKeys, NotRepresentable, ArchitectureMismatch, UsageError, and what opening
    and parsing raise.
    """
    lora = open_lora(reference, arch=arch, unsafe_pickle=unsafe_pickle)
    if not allow_partial:
        lora.reading.require_known()
    if alpha not in ("keep", "fold"):
        raise UsageError(f"unknown alpha policy {alpha!r}", hint="keep or fold")
    form = None if to == ORIGINAL else format_of(to)
    left = [f"{item.key}: {item.kind}" for item in lora.reading.unknown]
    chosen: list[tuple[str | None, AdapterSet, Rendered]] = []
    for table in tables(lora) or (None,):
        source, dropped = _selected(lora.reading.bind(table.id) if table else lora.adapter_set, components)
        changed = _changed(source, dtype, alpha, allow_nonfinite=allow_nonfinite)
        if form is None:
            rendered = restore(changed, Original.of(source, path=lora.name), table, allow_lossy=allow_lossy)
        else:
            by_component = writers(changed, form, table, Options(clip_prefix), tables(lora))
            rendered = render(_described(changed, source, table, lora), form, by_component, allow_lossy=allow_lossy)
        chosen.append((table.id if table else None, source, rendered))
    _agreed(lora, chosen)
    table_id, source, rendered = chosen[0]
    folder = form.folder if form else Original.of(source, path=lora.name).folder
    name = form.id if form else Original.of(source, path=lora.name).format
    parameters = {
        "to": to,
        "arch": arch,
        "dtype": dtype,
        "alpha": None if alpha == "keep" else alpha,
        "components": list(components) if components else None,
        "clip_prefix": clip_prefix,
        "allow_lossy": allow_lossy,
        "allow_partial": allow_partial,
        "allow_nonfinite": allow_nonfinite,
    }
    plan = plan_of(lora, rendered, name, table_id or lora.architecture, left_out=(*left, *dropped))
    arithmetic = dtype is not None or alpha == "fold"
    return Pending(
        lora,
        _without(source, rendered),
        rendered,
        plan,
        parameters,
        folder,
        arithmetic,
        lora.reading.warnings,
        allow_nonfinite,
    )


def _without(source: AdapterSet, rendered: Rendered) -> AdapterSet:
    """The part of the source that the output must make: what the plan lists as lost is not asked of it."""
    written = {(item.target.component, path) for item in rendered.adapters for path in item.target.paths}
    kept = tuple(
        item for item in source.adapters if any((item.target.component, path) in written for path in item.target.paths)
    )
    return replace(source, adapters=kept)


def _selected(source: AdapterSet, components: Sequence[str] | None) -> tuple[AdapterSet, list[str]]:
    """The adapters of the wanted components, and a line for each component left out."""
    if not components:
        return source, []
    present = dict.fromkeys(item.target.component for item in source.adapters)
    for name in components:
        if name not in present:
            hint = nearest(name, present) or f"components: {', '.join(present)}"
            raise UsageError(f"the file has no component {name!r}", hint=hint)
    kept = tuple(item for item in source.adapters if item.target.component in components)
    dropped = [f"{name}: not among --components" for name in present if name not in components]
    return replace(source, adapters=kept), dropped


def _changed(source: AdapterSet, dtype: str | None, alpha: str, *, allow_nonfinite: bool) -> AdapterSet:
    """The arithmetic that was asked for, still lazy."""
    adapters = source.adapters
    if alpha == "fold":
        adapters = tuple(fold(item) for item in adapters)
    if dtype is not None:
        adapters = tuple(recast(item, dtype) for item in adapters)
    pairs = zip(source.adapters, adapters, strict=True)
    return replace(source, adapters=tuple(guarded(old, new, allow=allow_nonfinite) for old, new in pairs))


def _described(changed: AdapterSet, source: AdapterSet, table: Architecture | None, lora: Lora) -> AdapterSet:
    """The set with the record of its original spelling in its metadata."""
    opened = lora.reading.opened
    original = describe(source, table, folder=opened.layout == "peft", path=opened.name)
    metadata = {key: value for key, value in changed.metadata.items() if key != PROVENANCE_KEY}
    return replace(changed, metadata={**metadata, ORIGINAL_KEY: original.to_json()})


def _agreed(lora: Lora, chosen: Sequence[tuple[str | None, AdapterSet, Rendered]]) -> None:
    """Go on with several candidates only where all of them would write the same file."""
    first = _layout(chosen[0][2]) if len(chosen) > 1 else []
    for name, _, rendered in chosen[1:]:
        if _layout(rendered) != first:
            raise ArchitectureMismatch(
                f"the file fits {chosen[0][0]} and {name}, which this format spells differently",
                path=lora.name,
                hint=f"say which with --arch {chosen[0][0]}",
                candidates=[candidate for candidate, _, _ in chosen],
            )


def _layout(rendered: Rendered) -> list[tuple[str, str, str, tuple[int, ...]]]:
    return sorted(
        (file.name, key, tensor.dtype, tensor.shape) for file in rendered.files for key, tensor in file.tensors.items()
    )
