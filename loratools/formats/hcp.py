"""HCP-Diffusion: dotted names by part of its wrapper, `….___.layer.W_down`, and a tensor a layer that is the scale."""

from __future__ import annotations

from loratools.architectures.architecture import Architecture, Component
from loratools.formats.format import Format, Options
from loratools.formats.hcp_words import DENOISER, TEXT, hcp_words
from loratools.formats.suffixes import WRITTEN
from loratools.model import Spelling


def _spell(architecture: Architecture | None, component: Component | None, _: Options) -> Spelling | None:
    """The module names of diffusers and transformers, CLIP with `text_model.`; None for models that it has not."""
    if architecture is None or component is None or architecture.id not in TEXT:
        return None
    words = (DENOISER,) if component is architecture.denoiser else hcp_words(architecture, component)
    return Spelling(f"{words[0]}.", component.namings[0].name, False, WRITTEN["hcp"]) if words else None


HCP = Format(
    id="hcp",
    title="HCP-Diffusion: its own dotted names, the scale itself as a tensor",
    readers=("hcp-diffusion",),
    alpha="tensor",
    kinds=("lora",),
    spell=_spell,
    strict=True,
)
