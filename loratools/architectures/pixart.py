"""PixArt-α and -Σ: diffusers names (canonical), and their own (fused); T5 reads the prompt."""

from __future__ import annotations

from loratools.architectures.architecture import Architecture, Component, Variant
from loratools.architectures.naming import Naming, canonical_naming
from loratools.architectures.rules import Rule, fused, renamed
from loratools.architectures.text_encoders import T5

OURS, THEIRS = "transformer_blocks.{i<28}.", "blocks.{i<28}."
ADALN = "adaln_single."
ENDS = (
    # diffusers                                      original
    ("pos_embed.proj",                               "x_embedder.proj"),
    (ADALN + "emb.timestep_embedder.linear_1",       "t_embedder.mlp.0"),
    (ADALN + "emb.timestep_embedder.linear_2",       "t_embedder.mlp.2"),
    (ADALN + "emb.resolution_embedder.linear_1",     "csize_embedder.mlp.0"),  # α at 1024 alone, as the next
    (ADALN + "emb.resolution_embedder.linear_2",     "csize_embedder.mlp.2"),
    (ADALN + "emb.aspect_ratio_embedder.linear_1",   "ar_embedder.mlp.0"),
    (ADALN + "emb.aspect_ratio_embedder.linear_2",   "ar_embedder.mlp.2"),
    (ADALN + "linear",                               "t_block.1"),
    ("caption_projection.linear_1",                  "y_embedder.y_proj.fc1"),
    ("caption_projection.linear_2",                  "y_embedder.y_proj.fc2"),
    ("proj_out",                                     "final_layer.linear"),
)  # fmt: skip
BLOCK = (
    ("attn1.to_out.0",       "attn.proj"),
    ("attn2.to_q",           "cross_attn.q_linear"),
    ("attn2.to_out.0",       "cross_attn.proj"),
    ("ff.net.0.proj",        "mlp.fc1"),
    ("ff.net.2",             "mlp.fc2"),
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

PIXART = Architecture(
    id="pixart",
    title="PixArt-α and PixArt-Σ",
    components=(
        Component(
            "transformer",
            (canonical_naming(ORIGINAL, "diffusers"), Naming("original", ORIGINAL)),
            short=("unet", "transformer"),
            checkpoint=("model.diffusion_model.", ""),
        ),
        Component("text_encoder", T5, short=("te1", "te"), checkpoint=("text_encoders.t5xxl.transformer.",)),
    ),
    # α at 512 pixels has the shapes of Σ.
    variants=(Variant("alpha", "pixart-alpha"), Variant("sigma", "pixart-sigma")),
    comfy="original",
)
