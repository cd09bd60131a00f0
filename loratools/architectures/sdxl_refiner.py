"""Stable Diffusion XL, the refiner: one text encoder only, the second of the base model."""

from __future__ import annotations

from loratools.architectures.architecture import Architecture, Component, Variant
from loratools.architectures.text_encoders import CLIP_G
from loratools.architectures.unet import Levels, unet_namings

UNET = Levels(widths=(1, 2, 4, 4), depths=(0, 4, 4, 0), middle=4, add_embedding=True)

SDXL_REFINER = Architecture(
    id="sdxl-refiner",
    title="Stable Diffusion XL refiner",
    components=(
        Component("unet", unet_namings(UNET), short=("unet",), checkpoint=("model.diffusion_model.",)),
        Component("text_encoder_2", CLIP_G, short=("te2", "te"), checkpoint=("conditioner.embedders.0.model.",)),
    ),
    variants=(Variant("refiner", "sdxl-refiner"),),
    kohya="ldm",
    comfy="ldm",
    specification=("stable-diffusion-xl-v1-refiner",),
    base_versions=("sdxl_refiner_v1-0", "sdxl_refiner_v0-9"),
)
