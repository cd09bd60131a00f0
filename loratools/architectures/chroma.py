"""Chroma: FLUX.1 without modulation layers of its own; one small network makes all of it. T5 alone reads the prompt."""

from __future__ import annotations

from loratools.architectures import flux1
from loratools.architectures.architecture import Architecture, Component, Variant
from loratools.architectures.naming import Naming, canonical_naming
from loratools.architectures.rules import Rule, fuse, fused, rename, renamed, same
from loratools.architectures.text_encoders import T5

GUIDANCE = "distilled_guidance_layer."
GUIDANCE_LAYER = GUIDANCE + "layers.{n<5}."
ENDS = tuple(row for row in flux1.ENDS if not row[0].startswith("time_text_embed."))
DOUBLE = tuple(row for row in flux1.DOUBLE if not row[0].startswith("norm1"))
SINGLE = tuple(row for row in flux1.SINGLE if not row[0].startswith("norm."))

BFL: tuple[Rule, ...] = (
    same(GUIDANCE + "in_proj"),
    same(GUIDANCE + "out_proj"),
    rename(GUIDANCE_LAYER + "linear_1", GUIDANCE_LAYER + "in_layer"),
    rename(GUIDANCE_LAYER + "linear_2", GUIDANCE_LAYER + "out_layer"),
    rename(GUIDANCE + "norms.{n<5}", GUIDANCE + "norms.{n<5}", weight="scale"),
    *renamed(ENDS),
    *renamed(DOUBLE, flux1.OURS, flux1.THEIRS),
    *fused(flux1.DOUBLE_FUSED, flux1.OURS, flux1.THEIRS),
    *renamed(flux1.DOUBLE_NORMS, flux1.OURS, flux1.THEIRS, weight="scale"),
    *renamed(SINGLE, flux1.OURS_SINGLE, flux1.THEIRS_SINGLE),
    fuse(
        tuple(flux1.OURS_SINGLE + part for part in flux1.SINGLE_FUSED),
        flux1.THEIRS_SINGLE + "linear1",
        ratio=flux1.SINGLE_RATIO,
    ),
    *renamed(flux1.SINGLE_NORMS, flux1.OURS_SINGLE, flux1.THEIRS_SINGLE, weight="scale"),
)

CHROMA = Architecture(
    id="chroma",
    title="Chroma",
    components=(
        Component(
            "transformer",
            (canonical_naming(BFL, "diffusers"), Naming("bfl", BFL)),
            short=("unet", "transformer"),
            checkpoint=("model.diffusion_model.", ""),
        ),
        Component("text_encoder", T5, short=("te3", "te1", "te"), checkpoint=("text_encoders.t5xxl.transformer.",)),
    ),
    variants=(Variant("1", "chroma"),),
    kohya="bfl",
    comfy="bfl",
    family=("flux1",),
    rarer=True,
    specification=("chroma",),
    base_versions=("chroma",),
)
