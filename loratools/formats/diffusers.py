"""diffusers: `unet.….lora_A.weight`, ranks and alphas in `lora_adapter_metadata`, where its loader gets them right."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from loratools.architectures.architecture import Architecture, Component
from loratools.formats.configs import Module, build
from loratools.formats.format import Format, Options
from loratools.formats.suffixes import WRITTEN
from loratools.model import Spelling, Target

_WITH_FLUX_LOADER = ("bria-fibo", "chroma", "flux1")
_NORMS = ("norm_q", "norm_k", "norm_added_q", "norm_added_k")


def _spell(architecture: Architecture | None, component: Component | None, _: Options) -> Spelling | None:
    """Canonical names under the component's own; CLIP keeps `text_model.`, which the loader strips where it must."""
    if architecture is None or component is None:
        return None  # diffusers has no loader for it
    return Spelling(f"{component.name}.", component.namings[0].name, False, WRITTEN["diffusers"])


def loads_norm(target: Target) -> bool:
    """Whether the loader of Flux' control adapters puts that norm in its place: those of queries and keys alone."""
    return target.paths[0].rpartition(".")[2] in _NORMS


def as_loaded(form: Format, architectures: Collection[str]) -> Format:
    """The format with the kinds that the loader of these models takes: norms with Flux' alone."""
    if form is not DIFFUSERS or set(architectures) & set(_WITH_FLUX_LOADER):
        return form
    return form._replace(kinds=("lora",))


def block(component: str, modules: Sequence[tuple[str, int, Any]], **fields: Any) -> dict[str, Any]:
    """The `component.field` entries for (path, rank, alpha) of every module.

    Denoiser patterns are anchored: without `^`, Flux' `proj_out` also hits every `….proj_out`. Text encoders are named
    without `text_model.` and without `^`, so that a suffix match fits the flat and the nested class alike.
    """
    rows = []
    for path, rank, alpha in modules:
        text = component.startswith("text_encoder")
        name = path.removeprefix("text_model.") if text else path
        rows.append(Module(name, name if text else f"^{path}", rank, alpha))
    config = build(rows, **fields)
    del config["peft_type"]
    return {f"{component}.{field}": value for field, value in config.items()}


DIFFUSERS = Format(
    id="diffusers",
    title="diffusers: dotted names by component, alpha in lora_adapter_metadata",
    readers=("diffusers", "comfyui"),
    alpha="metadata",
    kinds=("lora", "norm"),
    spell=_spell,
)
