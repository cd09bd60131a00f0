"""ComfyUI's own names: `diffusion_model.…` and `text_encoders.clip_l.transformer.…`, one alpha tensor a layer."""

from __future__ import annotations

from loratools.architectures.architecture import Architecture, Component
from loratools.architectures.language_encoders import COMFY_LEVEL
from loratools.architectures.text_encoders import comfy_word
from loratools.formats.format import BUNDLE, Format, Options
from loratools.formats.suffixes import WRITTEN
from loratools.model import Spelling

KEYS = ("img_in.lora_A.weight", "single_blocks.0.norm.key_norm.scale")
"""The keys by which ComfyUI knows a control adapter of Flux."""

MODEL, INPUT = "flux1", "x_embedder"
"""The model of such adapters, and its layer that they widen."""


def _spell(architecture: Architecture | None, component: Component | None, _: Options) -> Spelling | None:
    """The names of the modules as ComfyUI builds them; None for models that it has not."""
    if architecture is None or component is None or not architecture.comfy:
        return None
    if component is architecture.denoiser:
        return Spelling("diffusion_model.", architecture.comfy, False, WRITTEN["comfy"])
    if component.inside:
        return Spelling("diffusion_model.", component.inside, False, WRITTEN["comfy"])
    word = comfy_word(component.namings)
    if word is None:
        return None
    naming = component.naming(COMFY_LEVEL) or component.namings[0]
    return Spelling(f"text_encoders.{word}.transformer.", naming.name, False, WRITTEN["comfy"])


# Without an alpha tensor ComfyUI takes scale 1, whatever the metadata say, so its alphas are kohya's.
COMFY = Format(
    id="comfy",
    title="ComfyUI: its own dotted names by component, alpha tensors",
    readers=("comfyui",),
    alpha="tensor",
    kinds=("boft", "full", "glora", "loha", "lokr", "lora", "norm", "oft"),  # its adapters have no (IA)³
    spell=_spell,
    extras=(BUNDLE,),
)
