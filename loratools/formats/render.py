"""AdapterSet → files: choose the spelling, regroup, give every factor its key and every alpha its place."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

from loratools.adapters.adapter import Adapter, AdapterSet
from loratools.adapters.regroup import Regrouped, Step, regroup
from loratools.architectures.architecture import Architecture
from loratools.errors import InternalError, NotRepresentable
from loratools.formats import diffusers, peft
from loratools.formats.configs import DIFFUSERS_KEY
from loratools.formats.format import Format, Options
from loratools.formats.spell import Writer, dimensions_of
from loratools.model import Alpha, Scale, Target
from loratools.tensors.dtypes import encode_scalar
from loratools.tensors.lazy import LazyTensor

GROUPS_KEY = "loratools.groups"

Stored = tuple[str, tuple[int, ...]]  # dtype and shape of an alpha tensor


@dataclass(frozen=True)
class OutputFile:
    """One file to write: its name inside the output ("" where the output is the file), and what stands beside it."""

    name: str
    tensors: Mapping[str, LazyTensor]
    metadata: Mapping[str, str]
    config: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Rendered:
    """A set as files, with the steps that regrouping took, what could not be kept, and the adapters as written."""

    files: tuple[OutputFile, ...]
    steps: tuple[Step, ...]
    lost: tuple[str, ...]
    adapters: tuple[Adapter, ...]
    targets: Mapping[str, str]


def writers(
    adapters: AdapterSet, form: Format, architecture: Architecture | None, options: Options, known: tuple[Architecture, ...]
) -> dict[str, Writer]:
    """component → Writer; raises NotRepresentable where the format cannot name a component at all."""
    found: dict[str, Writer] = {}
    for name in dict.fromkeys(item.target.component for item in adapters.adapters):
        component = architecture.by_name[name] if architecture else None
        spelling = form.spell(architecture, component, options)
        if spelling is None:
            raise NotRepresentable(
                f"{form.id} has no names for a model without a table ({', '.join(adapters.architectures)})",
                hint="--to peft keeps the model's own names",
            )
        naming = component.naming(spelling.naming) if component else None
        found[name] = Writer(spelling, naming, dimensions_of(known, name) if form.alpha != "tensor" else {})
    return found


def render(
    adapters: AdapterSet,
    form: Format,
    by_component: Mapping[str, Writer],
    *,
    target_of: Callable[[str, str], Target] | None = None,
    stored_alpha: Callable[[Adapter], Stored | None] = lambda item: item.alpha.stored,
    silent_alpha: Callable[[Adapter], bool] = lambda item: False,
    allow_lossy: bool = False,
) -> Rendered:
    """Lay a set out in a format; nothing is computed. Raises NotRepresentable for what the format cannot hold."""

    def native(component: str, path: str) -> Target:
        return by_component[component].target(component, path)

    recorded = json.loads(adapters.metadata[GROUPS_KEY]) if GROUPS_KEY in adapters.metadata else None
    regrouped = regroup(adapters.adapters, target_of or native, recorded=recorded)
    kept, lost = _holdable(regrouped.adapters, form, allow_lossy)
    tensors: dict[str, dict[str, LazyTensor]] = {}
    placed: list[Adapter] = []
    targets: dict[str, str] = {}
    for component, members in _by_component(kept).items():
        writer = by_component[component]
        members = _uniform(members, component) if form.alpha != "tensor" else members
        placed += members
        held = tensors.setdefault(component if form.folder else "", {})
        for item in members:
            found = writer.tensors(item)
            if form.alpha == "tensor" and not (silent_alpha(item) and _plain_scale(item)):
                alpha = alpha_tensor(item, stored_alpha(item))
                if alpha is not None:
                    found[writer.key(item, "alpha")] = alpha
            clash = next((key for key in found if key in held), None)
            if clash:
                raise InternalError(f"two factors would be written under {clash}", key=clash)
            held.update(found)
            targets.update(dict.fromkeys(found, item.target.name))
    extras = _extras(adapters, form, tensors, allow_lossy)
    metadata = _metadata(adapters, regrouped)
    files = _files(form, by_component, tensors, placed, metadata)
    return Rendered(files, regrouped.steps, (*lost, *extras), tuple(placed), targets)


def _by_component(adapters: Sequence[Adapter]) -> dict[str, list[Adapter]]:
    found: dict[str, list[Adapter]] = {}
    for item in adapters:
        found.setdefault(item.target.component, []).append(item)
    return found


def _holdable(adapters: Sequence[Adapter], form: Format, allow_lossy: bool) -> tuple[list[Adapter], list[str]]:
    """The adapters that the format can hold, and the names of those it cannot, where that is allowed."""
    kept: list[Adapter] = []
    lost: list[str] = []
    for item in adapters:
        reason = _refusal(item, form)
        if reason is None:
            kept.append(item)
        elif allow_lossy:
            lost.append(f"{item.target.name}: {reason}")
        else:
            raise NotRepresentable(
                f"{item.target.name}: {reason}",
                key=item.origin.stem if item.origin else None,
                path=item.origin.file if item.origin else None,
                hint="--allow-lossy leaves such layers out and lists them; --to kohya holds every kind",
            )
    if not kept:
        raise NotRepresentable(f"{form.id} can hold none of the layers", hint="--to kohya holds every kind")
    return kept, lost


def _refusal(item: Adapter, form: Format) -> str | None:
    """Why a format cannot hold an adapter exactly, or None."""
    if item.kind not in form.kinds:
        return f"{form.id} has no place for {item.kind}"
    if "singular" in item.factors:
        return f"{form.id} has no place for AdaLoRA's singular values (lora_E)"
    if item.kind == "ia3" and "on_input" not in item.factors:
        return f"{form.id} needs to be told which axis the vector scales, and this file does not say"
    if form.alpha == "tensor":
        roles = {"embedding_down", "embedding_up", "up_bias"} & set(item.factors)
        return f"{form.id} has no place for {sorted(roles)[0]}" if roles else None
    if "mid" in item.factors:
        return f"{form.id} has no place for a Tucker core (lora_mid)"
    if "input_magnitude" in item.factors:
        return f"{form.id} knows DoRA on the output axis only; this one is normalised over the outputs of each input"
    return None


def _uniform(members: list[Adapter], component: str) -> list[Adapter]:
    """One configuration speaks for a whole component: DoRA, biases and rsLoRA must be everywhere or nowhere."""
    with_magnitude = [item for item in members if "magnitude" in item.factors]
    if with_magnitude and len(with_magnitude) < len(members):
        plain = next(item for item in members if "magnitude" not in item.factors)
        raise NotRepresentable(
            f"{component}: {len(with_magnitude)} of {len(members)} layers are DoRA; one configuration holds all or none",
            key=plain.origin.stem if plain.origin else None,
            hint="the others need a magnitude, the row norms of base + delta, which this file does not hold",
        )
    if any("up_bias" in item.factors for item in members):
        members = [_with_bias(item) for item in members]
    if any(item.alpha.rank_stabilized for item in members) and not all(item.alpha.rank_stabilized for item in members):
        members = [replace(item, alpha=_plain(item)) for item in members]
    return members


def _with_bias(item: Adapter) -> Adapter:
    """The same adapter with a bias, of zeros where it had none: exact."""
    if "up_bias" in item.factors or "up" not in item.factors:
        return item
    up = item.factors["up"]
    return replace(item, factors={**item.factors, "up_bias": LazyTensor.zeros(up.dtype, (up.shape[0],))})


def _plain(item: Adapter) -> Alpha:
    """The alpha of the same scale for a reader that divides by the rank: alpha · √rank, as a double where irrational."""
    rank = item.rank
    if not item.alpha.rank_stabilized or not rank:
        return item.alpha
    scale = item.scale
    exact = scale.numerator * rank if scale.root == 1 else Fraction(float(scale) * rank)
    return Alpha(exact, item.alpha.source)


def _plain_scale(item: Adapter) -> bool:
    """Whether the factors are multiplied by exactly 1, so that no alpha needs to be written."""
    return item.scale.equals(Scale(Fraction(1)))


def alpha_tensor(item: Adapter, stored: Stored | None = None) -> LazyTensor | None:
    """The alpha of an adapter as a tensor; None for kinds without alpha.

    Its dtype is the stored one where that holds it exactly, else the factors', else float32, else float64. An absent
    alpha is written as the rank, which every reader takes as scale 1; an irrational one (rsLoRA) is rounded to float32,
    and the proof measures that.
    """
    alpha = _plain(item)
    value = Fraction(item.rank) if alpha.value is None and item.rank else alpha.value
    if value is None:
        return None
    wanted, shape = stored or (next(iter(item.factors.values())).dtype, ())
    if item.alpha.rank_stabilized and item.scale.root != 1:
        return LazyTensor.from_bytes("F32", shape, struct.pack("<f", float(value)))
    for dtype in (wanted, next(iter(item.factors.values())).dtype, "F32", "F64"):
        raw = encode_scalar(value, dtype)
        if raw is not None:
            return LazyTensor.from_bytes(dtype, shape, raw)
    raise InternalError(f"no dtype holds the alpha {value} of {item.target.name}")


def _extras(
    adapters: AdapterSet, form: Format, tensors: dict[str, dict[str, LazyTensor]], allow_lossy: bool
) -> list[str]:
    """Modules that PEFT saved whole go along to PEFT; elsewhere they have no place."""
    if not adapters.extras:
        return []
    if form.alpha == "config":
        next(iter(tensors.values())).update(adapters.extras)
        return []
    if not allow_lossy:
        raise NotRepresentable(
            f"{form.id} has no place for {len(adapters.extras)} tensors saved whole",
            key=next(iter(adapters.extras)),
            hint="--to peft keeps them; --allow-lossy leaves them out and lists them",
        )
    return [f"{key}: saved whole" for key in adapters.extras]


def _metadata(adapters: AdapterSet, regrouped: Regrouped) -> dict[str, str]:
    """The file's own metadata, without what speaks of the spelling it had, with the blocks that regrouping made."""
    dropped = (DIFFUSERS_KEY, GROUPS_KEY)
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
) -> tuple[OutputFile, ...]:
    """The files with their metadata and configurations."""
    members = _by_component(adapters)
    if form.alpha == "tensor":
        return (OutputFile("", tensors[""], metadata),)
    if form.alpha == "metadata":
        blocks: dict[str, Any] = {}
        for component, items in members.items():
            blocks |= diffusers.block(component, _modules(items, by_component[component]), **_fields(items))
        text = json.dumps(blocks, indent=2, sort_keys=True)
        return (OutputFile("", tensors[""], {"format": "pt", **metadata, DIFFUSERS_KEY: text}),)
    return tuple(
        OutputFile(
            component,
            tensors[component],
            {"format": "pt", **metadata},
            peft.config(_modules(items, by_component[component]), **_fields(items)),
        )
        for component, items in members.items()
    )


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
