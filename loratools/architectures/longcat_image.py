"""LongCat-Image: a shorter FLUX.1 without the pooled prompt, under diffusers names and under BFL's (fused)."""

from __future__ import annotations

from loratools.architectures import flux1
from loratools.architectures.architecture import Architecture, Component, Variant
from loratools.architectures.naming import Naming, canonical_naming
from loratools.architectures.rules import Rule, fuse, fused, renamed, swap_halves

OURS, THEIRS = "transformer_blocks.{i<10}.", "double_blocks.{i<10}."
OURS_SINGLE, THEIRS_SINGLE = "single_transformer_blocks.{i<20}.", "single_blocks.{i<20}."
ENDS = (
    # diffusers                                   bfl
    ("x_embedder",                                "img_in"),
    ("context_embedder",                          "txt_in"),
    ("time_embed.timestep_embedder.linear_1",     "time_in.in_layer"),
    ("time_embed.timestep_embedder.linear_2",     "time_in.out_layer"),
    ("proj_out",                                  "final_layer.linear"),
)  # fmt: skip

BFL: tuple[Rule, ...] = (
    *renamed(ENDS),
    swap_halves("norm_out.linear", "final_layer.adaLN_modulation.1"),
    *renamed(flux1.DOUBLE, OURS, THEIRS),
    *fused(flux1.DOUBLE_FUSED, OURS, THEIRS),
    *renamed(flux1.DOUBLE_NORMS, OURS, THEIRS, weight="scale"),
    *renamed(flux1.SINGLE, OURS_SINGLE, THEIRS_SINGLE),
    fuse(tuple(OURS_SINGLE + part for part in flux1.SINGLE_FUSED), THEIRS_SINGLE + "linear1", ratio=flux1.SINGLE_RATIO),
    *renamed(flux1.SINGLE_NORMS, OURS_SINGLE, THEIRS_SINGLE, weight="scale"),
)

LONGCAT_IMAGE = Architecture(
    id="longcat-image",
    title="LongCat-Image",
    components=(
        Component(
            "transformer",
            (canonical_naming(BFL, "diffusers"), Naming("bfl", BFL)),
            short=("unet", "transformer"),
            checkpoint=("model.diffusion_model.", ""),
        ),
    ),
    variants=(Variant("6b", "longcat-image"),),
    comfy="bfl",
    yields_to=("flux1", "chroma"),
    specification=("longcat-image",),
)
