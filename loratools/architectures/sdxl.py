"""Stable Diffusion XL, the base model."""

from __future__ import annotations

from loratools.architectures.architecture import Architecture, Component, Variant
from loratools.architectures.attn_procs import attn_procs, text_attn_procs
from loratools.architectures.text_encoders import CLIP_G, CLIP_L
from loratools.architectures.unet import Levels, unet_namings

UNET = Levels(widths=(1, 2, 4), depths=(0, 2, 10), middle=10, add_embedding=True)

SDXL = Architecture(
    id="sdxl",
    title="Stable Diffusion XL",
    components=(
        Component(
            "unet",
            unet_namings(UNET),
            short=("unet",),
            checkpoint=("model.diffusion_model.",),
            adapters=(attn_procs(unet_namings(UNET)[0]),),
        ),
        Component(
            "text_encoder",
            CLIP_L,
            short=("te1",),
            checkpoint=("conditioner.embedders.0.transformer.",),
            adapters=(text_attn_procs(CLIP_L[0]),),
        ),
        Component(
            "text_encoder_2",
            CLIP_G,
            short=("te2",),
            checkpoint=("conditioner.embedders.1.model.",),
            adapters=(text_attn_procs(CLIP_G[0]),),
        ),
    ),
    variants=(Variant("base", "sdxl"), Variant("inpaint", "sdxl-inpaint"), Variant("edit", "sdxl-edit")),
    kohya="ldm",
    comfy="ldm",
    specification=("stable-diffusion-xl-v1-base",),
    base_versions=("sdxl_base_v1-0", "sdxl_base_v0-9", "sdxl_1.0"),
)
