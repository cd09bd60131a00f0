"""Flux' control adapters as ComfyUI takes them: whole under BFL's names, by whose keys it knows them, else in parts.

`img_in.lora_A.weight` beside `single_blocks.0.norm.key_norm.scale` makes ComfyUI widen the model's input, add the
biases (`lora_B.bias`) and put the norms in their place; every release of it that has control adapters does so.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence

from loratools.adapters.adapter import Adapter, AdapterSet
from loratools.adapters.bias import SCALED, STORED, with_bias_as
from loratools.adapters.lora import LORA
from loratools.architectures.architecture import Architecture, Component, shapes
from loratools.formats.comfy import COMFY, INPUT, MODEL
from loratools.formats.format import Format, Options
from loratools.formats.spell import Writer, suffix_of
from loratools.formats.suffixes import WRITTEN
from loratools.model import Spelling
from loratools.tensors.lazy import LazyTensor

_COMPONENT = "transformer"
# The layers of those keys, and what must stand there.
_LAYERS = {(INPUT, "down"), ("single_transformer_blocks.0.attn.norm_k", "replacement")}
_RESHAPE = ".reshape_weight"


def _bare(_: Architecture | None, component: Component | None, __: Options) -> Spelling | None:
    """BFL's names without a prefix, as its own control adapters have them."""
    return Spelling("", "bfl", False, WRITTEN["bfl"]) if component is not None else None


BFL = COMFY._replace(id="bfl", readers=("comfyui", "diffusers"), spell=_bare, quiet=True)
"""`comfy` for a control adapter. An alpha that says nothing is left out: diffusers' reader of such files has none."""


def as_comfyui_reads(form: Format, adapters: AdapterSet) -> Format:
    """The format itself, or BFL's names instead of ComfyUI's own where the set is a control adapter of Flux."""
    if form is not COMFY or MODEL not in adapters.architectures:
        return form
    if any(item.target.component != _COMPONENT for item in adapters.adapters):
        return form  # ComfyUI would take every key of the file for one of the transformer's
    held = {(path, role) for item in adapters.adapters for path in item.target.paths[:1] for role in item.factors}
    return BFL if held >= _LAYERS else form


def biased_throughout(adapters: Sequence[Adapter]) -> frozenset[str]:
    """The components of which every LoRA has a bias beside it."""
    plain = [item for item in adapters if item.kind == LORA.name]
    without = {item.target.component for item in plain if not {SCALED, STORED} & item.factors.keys()}
    return frozenset(item.target.component for item in plain) - without


def with_bias_spelt(item: Adapter, suffixes: Mapping[str, str], *, scaled: bool) -> Adapter:
    """The adapter with its bias under the role that the suffixes have: PEFT's as a difference where that is equal.

    The other way round only where `scaled` says so: in PEFT a bias is every layer's or none's.
    """
    if SCALED not in item.factors and STORED not in item.factors:
        return item
    for role, other in ((STORED, SCALED), (SCALED, STORED)):
        known, missing = (suffix_of(suffixes, item.kind, name) for name in (role, other))
        if known and not missing and (scaled or role == STORED):
            return with_bias_as(item, role)
    return item


def wider_inputs(
    items: Sequence[Adapter], writer: Writer, form: Format, architectures: Sequence[str]
) -> dict[str, LazyTensor]:
    """The size of the weight, for ComfyUI to widen the model's to, where an input is that of Flux' control models."""
    if form.id not in ("comfy", "kohya") or MODEL not in architectures:
        return {}
    found = {}
    for item in items:
        down, up = item.factors.get("down"), item.factors.get("up")
        if item.target.paths != (INPUT,) or not down or not up:
            continue
        wide = shapes("flux1-control")[_COMPONENT][INPUT]
        if (up.shape[0], *down.shape[1:]) == wide:
            found[writer.stem(item.target) + _RESHAPE] = LazyTensor.from_bytes("I64", (2,), struct.pack("<2q", *wide))
    return found
