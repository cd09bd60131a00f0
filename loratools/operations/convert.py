"""convert: any readable adapter → any writable format, proven module by module from the output as re-opened."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from loratools.adapters.adapter import AdapterSet
from loratools.adapters.recast import fold, recast
from loratools.architectures.architecture import Architecture
from loratools.errors import ArchitectureMismatch, UsageError, nearest
from loratools.formats.format import ClipPrefix, Options
from loratools.formats.opening import Reference
from loratools.formats.original import ORIGINAL_KEY, Original, describe, restore
from loratools.formats.registry import ORIGINAL, format_of
from loratools.formats.render import GROUPS_KEY, Rendered, render
from loratools.formats.scale_tensor import SCALES_KEY
from loratools.formats.settle import scaled_in_factors
from loratools.formats.writers import writers
from loratools.operations.conversion.language_names import Names, language_names
from loratools.operations.conversion.pending import Pending
from loratools.operations.conversion.plan import plan_of
from loratools.operations.lora import Lora, open_lora, tables
from loratools.operations.outputs.finite import guarded
from loratools.operations.outputs.provenance import PROVENANCE_KEY

if TYPE_CHECKING:
    from loratools.bases.weights import Base
    from loratools.operations.conversion.to_kind import Plain


def convert(
    reference: Reference | Lora,
    *,
    to: str | None = None,
    runtime: str | None = None,
    arch: str | None = None,
    dtype: str | None = None,
    alpha: str = "keep",
    components: Sequence[str] | None = None,
    clip_prefix: ClipPrefix | None = None,
    names: Names | None = None,
    to_kind: str | None = None,
    rank: int | None = None,
    error: float | None = None,
    base: Reference | None = None,
    threads: int = 1,
    allow_lossy: bool = False,
    allow_partial: bool = False,
    allow_nonfinite: bool = False,
    unsafe_pickle: bool = False,
) -> Pending:
    """Plan a conversion to a format of `loratools formats`, or to "original"; or, instead of `to`, for a `runtime`
    (diffusers, peft, comfyui, a1111, kohya, vllm), whose row picks the format, the alpha policy and the components.

    `dtype` is a safetensors name (F16, BF16, F32); `alpha` "fold" multiplies it into the factors. Where such arithmetic
    meets NaN or infinity, NonFinite is raised when the values are asked for, unless `allow_nonfinite`; bytes that are
    copied are not looked at.

    `names` is for language models: "split" writes a layer for each expert and each projection, as checkpoints and vLLM
    name them, "whole" what transformers 5 has of the model's type, such as experts stacked in one parameter.

    `to_kind` "lora" makes every layer a plain LoRA: by algebra where its rank stays below the weight's, else by a
    truncated SVD to `rank`, or to the relative `error` (1e-5); that is computed when the output is, `threads` layers at
    once. `base` is the base model, which DoRA, (IA)³, GLoRA, OFT and BOFT need. Raises UnknownKeys, NotRepresentable,
    ArchitectureMismatch, UsageError, and what opening and parsing raise.
    """
    if (to is None) == (runtime is None):
        raise UsageError("give exactly one of a format and a runtime", hint="--to FORMAT or --for RUNTIME")
    lora = open_lora(reference, arch=arch, unsafe_pickle=unsafe_pickle)
    if runtime is not None:
        from loratools.formats.runtimes import choose

        choice = choose(runtime, lora.reading, components, plain=to_kind is not None, allow_lossy=allow_lossy)
        to, alpha, components = choice.to, choice.alpha or alpha, choice.components
    assert to is not None
    model = None
    if (to_kind, rank, error, base) != (None, None, None, None):
        model = _prepared(lora, to, to_kind, rank=rank, error=error, base=base, unsafe_pickle=unsafe_pickle)
    if not allow_partial:
        lora.reading.require_known()
    spelt = language_names(lora, names, runtime)
    if alpha not in ("keep", "fold"):
        raise UsageError(f"unknown alpha policy {alpha!r}", hint="keep or fold")
    form = None if to == ORIGINAL else format_of(to)
    left = [f"{item.key}: {item.kind}" for item in lora.reading.unknown]

    def planned(*, foresee: bool) -> Pending:
        chosen: list[_Choice] = []
        for table in _fitting(lora, model) if form else _as_recorded(lora, _fitting(lora, model)):
            source, dropped = _selected(lora.reading.bind(table.id) if table else lora.adapter_set, components)
            plain = None
            if to_kind is not None:
                from loratools.operations.conversion.to_kind import as_lora

                weights = model.of(table) if model else None
                plain = as_lora(
                    source,
                    tables(lora),
                    weights,
                    rank=rank,
                    error=error,
                    allow_lossy=allow_lossy,
                    threads=threads,
                    foresee=foresee,
                )
                source, dropped = plain.source, [*dropped, *plain.lost]
            settled = plain.adapters if plain else scaled_in_factors(source, form)
            changed = _changed(settled, dtype, alpha, allow_nonfinite=allow_nonfinite)
            if form is None:
                rendered = restore(changed, Original.of(source, path=lora.name), table, allow_lossy=allow_lossy)
            else:
                if settled is source or (plain and not plain.changes):
                    described = _described(changed, source, table, lora)
                else:
                    described = _undescribed(changed)
                by_component = writers(changed, form, table, Options(clip_prefix, spelt), tables(lora))
                rendered = render(described, form, by_component, allow_lossy=allow_lossy)
            folded = plain is None and settled is not source
            chosen.append(_Choice(table.id if table else None, source, rendered, plain, tuple(dropped), folded))
        _agreed(lora, chosen)
        first = chosen[0]
        source, rendered, plain = first.source, first.rendered, first.plain
        folder = form.folder if form else Original.of(source, path=lora.name).folder
        name = form.id if form else Original.of(source, path=lora.name).format
        parameters = {
            "to": to,
            "runtime": runtime,
            "arch": arch,
            "dtype": dtype,
            "alpha": None if alpha == "keep" else alpha,
            "components": list(components) if components else None,
            "clip_prefix": clip_prefix,
            **({"names": names} if names else {}),
            "to_kind": to_kind,
            "rank": rank,
            "error": error,
            "allow_lossy": allow_lossy,
            "allow_partial": allow_partial,
            "allow_nonfinite": allow_nonfinite,
        }
        costs = tuple(plain.costs.values()) if plain and plain.changes else ()
        plan = plan_of(
            lora, rendered, name, first.table or lora.architecture, left_out=(*left, *first.dropped), costs=costs
        )
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
            plain if plain and plain.changes else None,
            first.folded,
            partial(planned, foresee=False) if plain and not plain.settled else None,
        )

    return planned(foresee=True) if to_kind is None else _foreseen(planned)


# What changes kinds is imported where it is used: renaming, which is what conversions mostly are, starts sooner so.


def _prepared(
    lora: Lora,
    to: str,
    to_kind: str | None,
    *,
    rank: int | None,
    error: float | None,
    base: Reference | None,
    unsafe_pickle: bool,
) -> Base | None:
    """The base model, where one was given, after the options about kinds have been found to go together."""
    from loratools.operations.conversion.to_kind import open_model, require_options

    require_options(to, to_kind, rank=rank, error=error, base=base)
    return None if base is None else open_model(base, lora, unsafe_pickle=unsafe_pickle)


def _foreseen(planned: Callable[..., Pending]) -> Pending:
    """The plan before anything is decomposed, or after."""
    from loratools.adapters.to_lora import Unforeseen

    try:
        return planned(foresee=True)
    except Unforeseen:  # the layout depends on values: parts that share a factor, columns that are zero
        return planned(foresee=False)


class _Choice(NamedTuple):
    """What the file would become as one of its candidate architectures reads it."""

    table: str | None
    source: AdapterSet
    rendered: Rendered
    plain: Plain | None
    dropped: tuple[str, ...]
    folded: bool


def _fitting(lora: Lora, model: Base | None) -> tuple[Architecture | None, ...]:
    """The tables that the file may be read by, and the base model too; None stands for a model without one."""
    found = tables(lora)
    if model is None or not found:
        return found or (None,)
    return tuple(table for table in found if table.id in model.candidates)


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
    extras = {name: saved for name, saved in source.extras.items() if not name or name in components}
    dropped = [f"{name}: not among --components" for name in present if name not in components]
    return replace(source, adapters=kept, extras=extras), dropped


def _as_recorded(lora: Lora, tables: tuple[Architecture | None, ...]) -> tuple[Architecture | None, ...]:
    """Of the architectures that fit, those with the components and namings of the record of the original spelling."""
    record = Original.of(lora.adapter_set, path=lora.name)

    def has(table: Architecture, component: str) -> bool:
        known, spelling = table.by_name.get(component), record.spellings.get(component)
        return known is not None and spelling is not None and known.naming(spelling.naming) is not None

    kept = tuple(
        table
        for table in tables
        if table is None or all(has(table, item.target.component) for item in lora.reading.bind(table.id).adapters)
    )
    return kept or tables


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
    original = describe(source, table, folder=opened.layout in ("mlx", "peft"), path=opened.name)
    metadata = {key: value for key, value in changed.metadata.items() if key != PROVENANCE_KEY}
    return replace(changed, metadata={**metadata, ORIGINAL_KEY: original.to_json()})


def _undescribed(changed: AdapterSet) -> AdapterSet:
    """The set without a record of its spelling: its factors are others, and no spelling gives the old ones back."""
    spoken = (PROVENANCE_KEY, ORIGINAL_KEY, GROUPS_KEY, SCALES_KEY)
    return replace(changed, metadata={key: value for key, value in changed.metadata.items() if key not in spoken})


def _agreed(lora: Lora, chosen: Sequence[_Choice]) -> None:
    """Go on with several candidates only where all of them would write the same file."""
    first = _layout(chosen[0].rendered) if len(chosen) > 1 else []
    for other in chosen[1:]:
        if _layout(other.rendered) != first:
            raise ArchitectureMismatch(
                f"the file fits {chosen[0].table} and {other.table}, which this format spells differently",
                path=lora.name,
                hint=f"say which with --arch {chosen[0].table}",
                candidates=[choice.table for choice in chosen],
            )


def _layout(rendered: Rendered) -> list[tuple[str, str, str, tuple[int, ...]]]:
    return sorted(
        (file.name, key, tensor.dtype, tensor.shape) for file in rendered.files for key, tensor in file.tensors.items()
    )
