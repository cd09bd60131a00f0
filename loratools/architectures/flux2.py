"""FLUX.2: the transformer under diffusers names (canonical) and BFL's; diffusers leaves the single blocks fused."""

from __future__ import annotations

from loratools.architectures.architecture import Architecture, Component, Variant
from loratools.architectures.flux1 import DOUBLE_FUSED, DOUBLE_NORMS, SINGLE_NORMS
from loratools.architectures.naming import Naming, canonical_naming
from loratools.architectures.rules import Rule, fused, renamed, swap_halves

OURS, THEIRS = "transformer_blocks.{i<8}.", "double_blocks.{i<8}."
OURS_SINGLE, THEIRS_SINGLE = "single_transformer_blocks.{i<48}.", "single_blocks.{i<48}."

ENDS = (
    # diffusers                                             bfl
    ("x_embedder",                                          "img_in"),
    ("context_embedder",                                    "txt_in"),
    ("time_guidance_embed.timestep_embedder.linear_1",      "time_in.in_layer"),
    ("time_guidance_embed.timestep_embedder.linear_2",      "time_in.out_layer"),
    ("time_guidance_embed.guidance_embedder.linear_1",      "guidance_in.in_layer"),
    ("time_guidance_embed.guidance_embedder.linear_2",      "guidance_in.out_layer"),
    ("double_stream_modulation_img.linear",                 "double_stream_modulation_img.lin"),
    ("double_stream_modulation_txt.linear",                 "double_stream_modulation_txt.lin"),
    ("single_stream_modulation.linear",                     "single_stream_modulation.lin"),
    ("proj_out",                                            "final_layer.linear"),
)  # fmt: skip
DOUBLE = (
    ("attn.to_out.0",             "img_attn.proj"),
    ("attn.to_add_out",           "txt_attn.proj"),
    ("ff.linear_in",              "img_mlp.0"),
    ("ff.linear_out",             "img_mlp.2"),
    ("ff_context.linear_in",      "txt_mlp.0"),
    ("ff_context.linear_out",     "txt_mlp.2"),
)  # fmt: skip
SINGLE = (
    ("attn.to_qkv_mlp_proj",      "linear1"),
    ("attn.to_out",               "linear2"),
)  # fmt: skip

BFL: tuple[Rule, ...] = (
    *renamed(ENDS),
    # BFL stacks (shift, scale), diffusers (scale, shift).
    swap_halves("norm_out.linear", "final_layer.adaLN_modulation.1"),
    *renamed(DOUBLE, OURS, THEIRS),
    *fused(DOUBLE_FUSED, OURS, THEIRS),
    *renamed(DOUBLE_NORMS, OURS, THEIRS, weight="scale"),
    *renamed(SINGLE, OURS_SINGLE, THEIRS_SINGLE),
    *renamed(SINGLE_NORMS, OURS_SINGLE, THEIRS_SINGLE, weight="scale"),
)

FLUX2 = Architecture(
    id="flux2",
    title="FLUX.2",
    components=(
        Component(
            "transformer",
            (canonical_naming(BFL, "diffusers"), Naming("bfl", BFL)),
            short=("unet", "transformer"),
            checkpoint=("model.diffusion_model.", ""),
        ),
    ),
    variants=(
        Variant("dev", "flux2-dev"),
        Variant("klein-4b", "flux2-klein-4b"),
        Variant("klein-9b", "flux2-klein-9b"),
    ),
    kohya="bfl",
    comfy="bfl",
    specification=("flux.2-dev", "flux.2-klein-4b", "flux.2-klein-9b"),
    base_versions=("flux_2_dev", "flux_2_klein_4b", "flux_2_klein_9b"),
)
