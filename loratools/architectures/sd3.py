"""Stable Diffusion 3 and 3.5: the transformer under diffusers names (canonical) and its own (fused), CLIP-L, G, T5."""

from __future__ import annotations

from loratools.architectures.architecture import Architecture, Component, Variant
from loratools.architectures.naming import Naming, canonical_naming
from loratools.architectures.rules import Rule, fuse, fused, renamed, same, swap_halves, swap_pair
from loratools.architectures.text_encoders import CLIP_G, CLIP_L_PROJECTED, T5

# The last block, which is the 24th of medium and the 38th of large, has nothing behind the attention to its text;
# the first thirteen of 3.5-medium have a second attention.
OURS, THEIRS = "transformer_blocks.{i<38}.", "joint_blocks.{i<38}."
BUT_LAST = "transformer_blocks.{i<37}.", "joint_blocks.{i<37}."
DUAL = "transformer_blocks.{i<13}.", "joint_blocks.{i<13}."

ENDS = (
    # diffusers                                        original
    ("pos_embed.proj",                                 "x_embedder.proj"),
    ("time_text_embed.timestep_embedder.linear_1",     "t_embedder.mlp.0"),
    ("time_text_embed.timestep_embedder.linear_2",     "t_embedder.mlp.2"),
    ("time_text_embed.text_embedder.linear_1",         "y_embedder.mlp.0"),
    ("time_text_embed.text_embedder.linear_2",         "y_embedder.mlp.2"),
    ("proj_out",                                       "final_layer.linear"),
)  # fmt: skip
BLOCK = (
    ("norm1.linear",              "x_block.adaLN_modulation.1"),
    ("attn.to_out.0",             "x_block.attn.proj"),
    ("attn.norm_q",               "x_block.attn.ln_q"),
    ("attn.norm_k",               "x_block.attn.ln_k"),
    ("attn.norm_added_q",         "context_block.attn.ln_q"),
    ("attn.norm_added_k",         "context_block.attn.ln_k"),
    ("ff.net.0.proj",             "x_block.mlp.fc1"),
    ("ff.net.2",                  "x_block.mlp.fc2"),
)  # fmt: skip
BLOCK_FUSED = (
    (("attn.to_q", "attn.to_k", "attn.to_v"),                      "x_block.attn.qkv"),
    (("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),    "context_block.attn.qkv"),
)  # fmt: skip
BLOCK_BUT_LAST = (
    ("attn.to_add_out",           "context_block.attn.proj"),
    ("ff_context.net.0.proj",     "context_block.mlp.fc1"),
    ("ff_context.net.2",          "context_block.mlp.fc2"),
)  # fmt: skip
BLOCK_DUAL = (
    ("attn2.to_out.0",            "x_block.attn2.proj"),
    ("attn2.norm_q",              "x_block.attn2.ln_q"),
    ("attn2.norm_k",              "x_block.attn2.ln_k"),
)  # fmt: skip
DUAL_FUSED = ("attn2.to_q", "attn2.to_k", "attn2.to_v")

ORIGINAL: tuple[Rule, ...] = (
    *renamed(ENDS),
    same("context_embedder"),
    # The original stacks (shift, scale), diffusers (scale, shift): at the end, and in the last block's text.
    swap_halves("norm_out.linear", "final_layer.adaLN_modulation.1"),
    swap_pair(OURS + "norm1_context.linear", THEIRS + "context_block.adaLN_modulation.1"),
    *renamed(BLOCK, OURS, THEIRS),
    *fused(BLOCK_FUSED, OURS, THEIRS),
    *renamed(BLOCK_BUT_LAST, *BUT_LAST),
    *renamed(BLOCK_DUAL, *DUAL),
    fuse(tuple(DUAL[0] + part for part in DUAL_FUSED), DUAL[1] + "x_block.attn2.qkv"),
)

SD3 = Architecture(
    id="sd3",
    title="Stable Diffusion 3 and 3.5",
    components=(
        Component(
            "transformer",
            (canonical_naming(ORIGINAL, "diffusers"), Naming("original", ORIGINAL)),
            short=("unet", "transformer"),
            checkpoint=("model.diffusion_model.", ""),
        ),
        Component(
            "text_encoder", CLIP_L_PROJECTED, short=("te1", "te"), checkpoint=("text_encoders.clip_l.transformer.",)
        ),
        Component("text_encoder_2", CLIP_G, short=("te2",), checkpoint=("text_encoders.clip_g.transformer.",)),
        Component("text_encoder_3", T5, short=("te3",), checkpoint=("text_encoders.t5xxl.transformer.",)),
    ),
    variants=(
        Variant("medium", "sd3-medium"),
        Variant("3.5-medium", "sd35-medium"),
        Variant("3.5-large", "sd35-large"),
    ),
    kohya="original",
    comfy="original",
    specification=(
        "stable-diffusion-3", "stable-diffusion-3-medium", "stable-diffusion-3-5-medium", "stable-diffusion-3-5-large",
        "stable-diffusion-v3-medium",
    ),
    base_versions=("medium", "5-medium", "5-large"),
)  # fmt: skip
