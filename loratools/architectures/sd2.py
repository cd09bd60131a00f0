"""Stable Diffusion 2.x; the 512 and 768 pixel models have the same modules and shapes."""

from __future__ import annotations

from loratools.architectures.architecture import Architecture, Component, Variant
from loratools.architectures.attn_procs import attn_procs, early_text_attn_procs, text_attn_procs
from loratools.architectures.text_encoders import CLIP_H
from loratools.architectures.unet import Levels, unet_namings

UNET = Levels(widths=(1, 2, 4, 4), depths=(1, 1, 1, 0), middle=1)

SD2 = Architecture(
    id="sd2",
    title="Stable Diffusion 2.x",
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
            CLIP_H,
            short=("te", "te1"),
            checkpoint=("cond_stage_model.model.",),
            adapters=(text_attn_procs(CLIP_H[0]), early_text_attn_procs(CLIP_H[0])),
        ),
    ),
    variants=(Variant("base", "sd2"), Variant("inpaint", "sd2-inpaint"), Variant("depth", "sd2-depth")),
    comfy="ldm",
    specification=("stable-diffusion-v2-512", "stable-diffusion-v2-768-v"),
    base_versions=("sd_v2", "sd_v2_v", "sd_v2_768_v", "sd_2.1"),
)
