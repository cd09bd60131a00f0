"""AdapterSet → files: choose the spelling, regroup, give every factor its key and every alpha its place."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

from loratools.adapters.adapter import Adapter, AdapterSet
from loratools.adapters.regroup import Regrouped, Step, regroup
from loratools.adapters.settings import tuner_of
from loratools.errors import InternalError, NotRepresentable
from loratools.formats import diffusers, gguf, mlx, peft, peft_kinds
from loratools.formats.alpha_tensor import Stored, alpha_tensor, is_plain
from loratools.formats.configs import DIFFUSERS_KEY, Config, parse_json
from loratools.formats.control import as_comfyui_reads, biased_throughout, wider_inputs, with_bias_spelt
from loratools.formats.format import PEFT_WEIGHTS, Format
from loratools.formats.limits import holdable, uniform
from loratools.formats.scale_tensor import SCALES_KEY, dumped, rounded_scale, scale_tensor, with_exact_scales
from loratools.formats.spell import Writer
from loratools.formats.stacks import Piled, piled
from loratools.formats.suffixes import BY_TEXT
from loratools.formats.switches import switched, switched_as
from loratools.model import Container, Target
from loratools.tensors.lazy import LazyTensor

GROUPS_KEY = "loratools.groups"


@dataclass(frozen=True)
class OutputFile:
    """One file to write: its name inside the output ("" where the output is the file), and what stands beside it;
    `weights` is what it is called in a folder.
    """

    name: str
    tensors: Mapping[str, LazyTensor]
    metadata: Mapping[str, str]
    config: Mapping[str, Any] | None = None
    weights: str = PEFT_WEIGHTS
    container: Container = "safetensors"


@dataclass(frozen=True)
class Rendered:
    """A set as files, with the steps that regrouping took, what could not be kept, and the adapters as written.

    `rounded` are the layers whose scale is not the source's to the last bit, as a format stores it or stored it;
    `whole` are the tensors that are no adapters and go along, by component and key.
    """

    files: tuple[OutputFile, ...]
    steps: tuple[Step, ...]
    lost: tuple[str, ...]
    adapters: tuple[Adapter, ...]
    rounded: tuple[str, ...] = ()
    whole: Mapping[str, Mapping[str, LazyTensor]] = field(default_factory=dict)


def render(
    adapters: AdapterSet,
    form: Format,
    by_component: Mapping[str, Writer],
    *,
    target_of: Callable[[str, str], Target] | None = None,
    stored_alpha: Callable[[Adapter], Stored | None] = lambda item: item.alpha.stored,
    silent_alpha: Callable[[Adapter], bool] = lambda _: False,
    finish: Callable[[Adapter], Adapter] = lambda item: item,
    allow_lossy: bool = False,
) -> Rendered:
    """Lay a set out in a format; nothing is computed but what regrouping needs, and what `finish` makes of each adapter
    after it. Raises MalformedFile for a damaged record of groups, NotRepresentable for what the format cannot hold.
    """

    def native(component: str, path: str) -> Target:
        return by_component[component].target(component, path)

    adapters, restored = with_exact_scales(adapters)
    regrouped = regroup(adapters.adapters, target_of or native, recorded=recorded_groups(adapters))
    biased = biased_throughout(regrouped.adapters)

    def spelt(item: Adapter) -> Adapter:
        component = item.target.component
        suffixes = by_component[component].spelling.suffixes
        return with_bias_spelt(finish(item), suffixes, scaled=form.recorded or component in biased)

    form = as_comfyui_reads(diffusers.as_loaded(form, adapters.architectures), adapters)
    kept, lost = holdable([spelt(item) for item in regrouped.adapters], form, allow_lossy=allow_lossy)
    tensors: dict[str, dict[str, LazyTensor]] = {}
    placed: list[Adapter] = []
    scales: dict[str, str] = {}
    together: dict[str, Piled] = {}
    for component, found_members in _by_component(kept).items():
        writer = by_component[component]
        members = uniform(found_members, component) if form.alpha != "tensor" else found_members
        placed += members
        held = tensors.setdefault(component if form.folder else "", {})
        piles = together[component] = (switched if writer.switched else piled)(members, writer)
        held.update(piles.tensors(writer) | wider_inputs(members, writer, form, adapters.architectures))
        for item in piles.plain:
            found = writer.tensors(item)
            silent = (form.quiet or silent_alpha(item)) and (
                is_plain(item) or (form.absent is not None and item.alpha.value == form.absent)
            )
            if form.alpha == "tensor" and not silent:
                alpha, key = _alpha(item, writer, stored_alpha(item), scales)
                if alpha is not None:
                    found[key] = alpha
            clash = next((key for key in found if key in held), None)
            if clash:
                raise InternalError(f"two factors would be written under {clash}", key=clash)
            held.update(found)
    whole, extras = _extras(adapters, form, tensors, allow_lossy=allow_lossy)
    metadata = _metadata(adapters, regrouped)
    if scales:
        metadata[SCALES_KEY] = dumped(scales)
    files = _files(form, by_component, tensors, placed, metadata, configs=adapters.configs, together=together)
    steps = (*regrouped.steps, *(step for piles in together.values() for step in piles.steps))
    return Rendered(files, steps, (*lost, *extras), tuple(placed), (*restored, *scales), whole)


def _alpha(
    item: Adapter, writer: Writer, stored: Stored | None, scales: dict[str, str]
) -> tuple[LazyTensor | None, str]:
    """The tensor for an adapter's alpha and its key; a scale that had to be rounded is added to `scales`."""
    row = BY_TEXT.get(writer.spelling.suffixes.get("alpha", ""))
    if row is None or not row.is_scale:
        alpha = alpha_tensor(item, stored)
        return alpha, "" if alpha is None else writer.key(item, "alpha")
    scale = scale_tensor(item, stored)
    exact = rounded_scale(item, scale)
    if exact is not None:
        scales[item.target.name] = exact
    return scale, writer.key(item, "alpha")


def recorded_groups(adapters: AdapterSet) -> Mapping[str, Any] | None:
    """The blocks that an earlier conversion fused, or None."""
    raw = adapters.metadata.get(GROUPS_KEY)
    origin = next((item.origin for item in adapters.adapters if item.origin), None)
    return None if raw is None else parse_json(raw, path=origin.file if origin else None, key=GROUPS_KEY)


def _by_component(adapters: Sequence[Adapter]) -> dict[str, list[Adapter]]:
    found: dict[str, list[Adapter]] = {}
    for item in adapters:
        found.setdefault(item.target.component, []).append(item)
    return found


def _extras(
    adapters: AdapterSet, form: Format, tensors: dict[str, dict[str, LazyTensor]], *, allow_lossy: bool
) -> tuple[dict[str, dict[str, LazyTensor]], list[str]]:
    """Modules that PEFT saved whole go along to PEFT, bundled embeddings to their readers; others have no place: a line
    for each.
    """
    whole: dict[str, dict[str, LazyTensor]] = {}
    keys: list[str] = []
    for component, saved in adapters.extras.items():
        held = {key: tensor for key, tensor in saved.items() if key.startswith(form.extras)}
        place = component if form.folder else ""
        if held and place in tensors:
            tensors[place].update(held)
            whole[component] = held
        else:
            held = {}  # a component of which no adapter is written has no file to go along in
        keys += [key for key in saved if key not in held]
    if keys and not allow_lossy:
        raise NotRepresentable(
            f"{form.id} has no place for {len(keys)} tensors saved whole",
            key=keys[0],
            hint="--to peft keeps modules, --to kohya bundled embeddings; --allow-lossy leaves them out and lists them",
        )
    return whole, [f"{key}: saved whole" for key in keys]


def _metadata(adapters: AdapterSet, regrouped: Regrouped) -> dict[str, str]:
    """The file's own metadata, without what speaks of the spelling it had, with the blocks that regrouping made."""
    dropped = (DIFFUSERS_KEY, GROUPS_KEY, SCALES_KEY)
    found = {key: value for key, value in adapters.metadata.items() if key not in dropped}
    if regrouped.groups:
        found[GROUPS_KEY] = json.dumps(regrouped.groups, sort_keys=True, separators=(",", ":"))
    return found


def _files(
    form: Format,
    by_component: Mapping[str, Writer],
    tensors: Mapping[str, Mapping[str, LazyTensor]],
    adapters: Sequence[Adapter],
    metadata: Mapping[str, str],
    *,
    configs: Mapping[str, Config],
    together: Mapping[str, Piled],
) -> tuple[OutputFile, ...]:
    """The files with their metadata and configurations; `configs` are those that the source had, `together` what was
    put together of each component.
    """
    members = _by_component(adapters)
    if form.alpha == "tensor":
        return (OutputFile("", tensors[""], metadata),)
    if form.container == "gguf":
        return (OutputFile("", tensors[""], gguf.header(adapters, by_component, metadata), container="gguf"),)
    if form.alpha == "metadata":
        blocks: dict[str, Any] = {}
        for component, items in members.items():
            ranked = [item for item in items if item.kind != "norm"]  # which the loader puts in their place beside them
            blocks |= diffusers.block(component, _modules(ranked, by_component[component]), **_fields(ranked))
        text = json.dumps(blocks, indent=2, sort_keys=True)
        return (OutputFile("", tensors[""], {"format": "pt", **metadata, DIFFUSERS_KEY: text}),)
    return tuple(
        OutputFile(
            component,
            tensors[component],
            {"format": "pt", **metadata},
            _configuration(
                form,
                items,
                by_component[component],
                configs.get(component) or configs.get("") or {},
                together[component],
            ),
            form.weights,
        )
        for component, items in members.items()
    )


def _configuration(
    form: Format, items: Sequence[Adapter], writer: Writer, source: Config, piles: Piled
) -> Mapping[str, Any]:
    """adapter_config.json of one component, with what its source's configuration said beside ranks and alphas."""
    if form.id == mlx.MLX.id:

        def native(item: Adapter) -> str:
            return switched_as(item, writer) or writer.placement(item.target.paths[0]).native

        return mlx.config(items, native, source)
    if tuner_of(items[0].kind, items[0].factors) in peft_kinds.KINDS:
        return peft_kinds.config(
            items, lambda item: writer.placement(item.target.paths[0]).native, peft.carried(source), source
        )
    parameters, plain = piles.parameters(writer)
    return peft.config(_modules(plain, writer), parameters, **peft.carried(source), **_fields(items))


def _fields(members: Sequence[Adapter]) -> dict[str, Any]:
    """The switches of a configuration, which hold for a whole component."""
    fields: dict[str, Any] = {
        "use_dora": any("magnitude" in item.factors for item in members),
        "lora_bias": any("up_bias" in item.factors for item in members),
    }
    if any(item.alpha.rank_stabilized for item in members):
        fields["use_rslora"] = True
    return fields


def _modules(members: Sequence[Adapter], writer: Writer) -> list[tuple[str, int, Fraction]]:
    """(native path, rank, alpha) of every layer."""
    found = []
    for item in members:
        rank = item.rank
        if rank is None:
            raise InternalError(f"{item.target.name} has no rank")
        alpha = Fraction(rank) if item.alpha.value is None else item.alpha.value
        found.append((writer.placement(item.target.paths[0]).native, rank, alpha))
    return found
