"""Mochi 1: diffusers names (canonical) and its own (fused), under which its trainer leaves `lora_A` bare."""

from __future__ import annotations

from loratools.architectures.architecture import Architecture, Component, Variant
from loratools.architectures.naming import Naming, canonical_naming
from loratools.architectures.rules import Rule, fused, rename, renamed, same, swap_halves

OURS, THEIRS = "transformer_blocks.{i<48}.", "blocks.{i<48}."
# The last block hands no text on.
BUT_LAST = "transformer_blocks.{i<47}.", "blocks.{i<47}."
LAST = "transformer_blocks.47.", "blocks.47."
ENDS = (
    # diffusers                                   original
    ("patch_embed.proj",                          "x_embedder.proj"),
    ("time_embed.timestep_embedder.linear_1",     "t_embedder.mlp.0"),
    ("time_embed.timestep_embedder.linear_2",     "t_embedder.mlp.2"),
    ("time_embed.pooler.to_kv",                   "t5_y_embedder.to_kv"),
    ("time_embed.pooler.to_q",                    "t5_y_embedder.to_q"),
    ("time_embed.pooler.to_out",                  "t5_y_embedder.to_out"),
    ("time_embed.caption_proj",                   "t5_yproj"),
    ("proj_out",                                  "final_layer.linear"),
)  # fmt: skip
BLOCK = (
    ("norm1.linear",          "mod_x"),
    ("attn1.to_out.0",        "attn.proj_x"),
    ("attn1.norm_q",          "attn.q_norm_x"),
    ("attn1.norm_k",          "attn.k_norm_x"),
    ("attn1.norm_added_q",    "attn.q_norm_y"),
    ("attn1.norm_added_k",    "attn.k_norm_y"),
    ("ff.net.2",              "mlp_x.w2"),
)  # fmt: skip
BLOCK_FUSED = (
    (("attn1.to_q", "attn1.to_k", "attn1.to_v"),                      "attn.qkv_x"),
    (("attn1.add_q_proj", "attn1.add_k_proj", "attn1.add_v_proj"),    "attn.qkv_y"),
)  # fmt: skip
BLOCK_BUT_LAST = (
    ("norm1_context.linear",  "mod_y"),
    ("attn1.to_add_out",      "attn.proj_y"),
    ("ff_context.net.2",      "mlp_y.w2"),
)  # fmt: skip

ORIGINAL: tuple[Rule, ...] = (
    same("pos_frequencies", joint=""),
    *renamed(ENDS),
    # The original stacks (shift, scale) and (gate, value), diffusers the other way round.
    swap_halves("norm_out.linear", "final_layer.mod"),
    swap_halves(OURS + "ff.net.0.proj", THEIRS + "mlp_x.w1"),
    swap_halves(BUT_LAST[0] + "ff_context.net.0.proj", BUT_LAST[1] + "mlp_y.w1"),
    *renamed(BLOCK, OURS, THEIRS),
    *fused(BLOCK_FUSED, OURS, THEIRS),
    *renamed(BLOCK_BUT_LAST, *BUT_LAST),
    rename(LAST[0] + "norm1_context.linear_1", LAST[1] + "mod_y"),
)

MOCHI = Architecture(
    id="mochi",
    title="Mochi 1",
    components=(
        Component(
            "transformer",
            (canonical_naming(ORIGINAL, "diffusers"), Naming("original", ORIGINAL)),
            short=("unet", "transformer"),
            checkpoint=("model.diffusion_model.", ""),
        ),
    ),
    variants=(Variant("1", "mochi"),),
    kohya="original",
    comfy="original",
    specification=("mochi", "mochi-1"),
)
