"""Sana and Sana 1.5: linear attention under diffusers names (canonical), and its own (fused)."""

from __future__ import annotations

from loratools.architectures.architecture import Architecture, Component, Variant
from loratools.architectures.language_encoders import GEMMA2_2B
from loratools.architectures.naming import Naming, canonical_naming
from loratools.architectures.rules import Rule, fused, renamed

OURS, THEIRS = "transformer_blocks.{i<60}.", "blocks.{i<60}."
ENDS = (
    # diffusers                                     original
    ("patch_embed.proj",                            "x_embedder.proj"),
    ("time_embed.emb.timestep_embedder.linear_1",   "t_embedder.mlp.0"),
    ("time_embed.emb.timestep_embedder.linear_2",   "t_embedder.mlp.2"),
    ("time_embed.linear",                           "t_block.1"),
    ("caption_projection.linear_1",                 "y_embedder.y_proj.fc1"),
    ("caption_projection.linear_2",                 "y_embedder.y_proj.fc2"),
    ("caption_norm",                                "attention_y_norm"),
    ("proj_out",                                    "final_layer.linear"),
)  # fmt: skip
BLOCK = (
    ("attn1.to_out.0",       "attn.proj"),
    ("attn1.norm_q",         "attn.q_norm"),
    ("attn1.norm_k",         "attn.k_norm"),
    ("attn2.to_q",           "cross_attn.q_linear"),
    ("attn2.to_out.0",       "cross_attn.proj"),
    ("attn2.norm_q",         "cross_attn.q_norm"),
    ("attn2.norm_k",         "cross_attn.k_norm"),
    ("ff.conv_inverted",     "mlp.inverted_conv.conv"),
    ("ff.conv_depth",        "mlp.depth_conv.conv"),
    ("ff.conv_point",        "mlp.point_conv.conv"),
)  # fmt: skip
BLOCK_FUSED = (
    (("attn1.to_q", "attn1.to_k", "attn1.to_v"),    "attn.qkv"),
    (("attn2.to_k", "attn2.to_v"),                  "cross_attn.kv_linear"),
)  # fmt: skip
PARAMETERS = (
    ("scale_shift_table",           "final_layer.scale_shift_table"),
    (OURS + "scale_shift_table",    THEIRS + "scale_shift_table"),
)  # fmt: skip

ORIGINAL: tuple[Rule, ...] = (
    *renamed(ENDS),
    *renamed(PARAMETERS, joint=""),
    *renamed(BLOCK, OURS, THEIRS),
    *fused(BLOCK_FUSED, OURS, THEIRS),
)

SANA = Architecture(
    id="sana",
    title="Sana",
    components=(
        Component(
            "transformer",
            (canonical_naming(ORIGINAL, "diffusers"), Naming("original", ORIGINAL)),
            short=("unet", "transformer"),
            checkpoint=("model.diffusion_model.", ""),
        ),
        Component("text_encoder", GEMMA2_2B, short=("te", "te1")),
    ),
    variants=(
        Variant("1600m", "sana-1600m"),
        Variant("600m", "sana-600m"),
        Variant("1.5-1600m", "sana15-1600m"),
        Variant("1.5-4800m", "sana15-4800m"),
    ),
)
