"""Stable Diffusion 1.x."""

from __future__ import annotations

from loratools.architectures.architecture import Architecture, Component, Variant
from loratools.architectures.attn_procs import attn_procs, early_text_attn_procs, text_attn_procs
from loratools.architectures.text_encoders import CLIP_L
from loratools.architectures.unet import Levels, unet_namings

UNET = Levels(widths=(1, 2, 4, 4), depths=(1, 1, 1, 0), middle=1)

SD1 = Architecture(
    id="sd1",
    title="Stable Diffusion 1.x",
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
            short=("te", "te1"),
            checkpoint=("cond_stage_model.transformer.",),
            adapters=(text_attn_procs(CLIP_L[0]), early_text_attn_procs(CLIP_L[0])),
        ),
    ),
    variants=(Variant("base", "sd1"), Variant("inpaint", "sd1-inpaint"), Variant("edit", "sd1-edit")),
    comfy="ldm",
    specification=("stable-diffusion-v1",),
    base_versions=("sd_v1", "sd_1.5"),
)
