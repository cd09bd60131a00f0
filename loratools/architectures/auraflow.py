"""AuraFlow: diffusers names (canonical) and its own; nothing is fused."""

from __future__ import annotations

from loratools.architectures.architecture import Architecture, Component, Variant
from loratools.architectures.naming import Naming, canonical_naming
from loratools.architectures.rules import Rule, rename, renamed, same, swap_halves

OURS, THEIRS = "joint_transformer_blocks.{i<4}.", "double_layers.{i<4}."
OURS_SINGLE, THEIRS_SINGLE = "single_transformer_blocks.{i<32}.", "single_layers.{i<32}."
ENDS = (
    # diffusers                     original
    ("pos_embed.proj",              "init_x_linear"),
    ("context_embedder",            "cond_seq_linear"),
    ("time_step_proj.linear_1",     "t_embedder.mlp.0"),
    ("time_step_proj.linear_2",     "t_embedder.mlp.2"),
    ("proj_out",                    "final_linear"),
)  # fmt: skip
JOINT = (
    ("norm1.linear",                "modX.1"),
    ("norm1_context.linear",        "modC.1"),
    ("attn.to_q",                   "attn.w2q"),
    ("attn.to_k",                   "attn.w2k"),
    ("attn.to_v",                   "attn.w2v"),
    ("attn.to_out.0",               "attn.w2o"),
    ("attn.add_q_proj",             "attn.w1q"),
    ("attn.add_k_proj",             "attn.w1k"),
    ("attn.add_v_proj",             "attn.w1v"),
    ("attn.to_add_out",             "attn.w1o"),
    ("ff.linear_1",                 "mlpX.c_fc1"),
    ("ff.linear_2",                 "mlpX.c_fc2"),
    ("ff.out_projection",           "mlpX.c_proj"),
    ("ff_context.linear_1",         "mlpC.c_fc1"),
    ("ff_context.linear_2",         "mlpC.c_fc2"),
    ("ff_context.out_projection",   "mlpC.c_proj"),
)  # fmt: skip
SINGLE = (
    ("norm1.linear",                "modCX.1"),
    ("attn.to_q",                   "attn.w1q"),
    ("attn.to_k",                   "attn.w1k"),
    ("attn.to_v",                   "attn.w1v"),
    ("attn.to_out.0",               "attn.w1o"),
    ("ff.linear_1",                 "mlp.c_fc1"),
    ("ff.linear_2",                 "mlp.c_fc2"),
    ("ff.out_projection",           "mlp.c_proj"),
)  # fmt: skip
PARAMETERS = ("register_tokens", "pos_embed.pos_embed")

ORIGINAL: tuple[Rule, ...] = (
    same("register_tokens", joint=""),
    rename("pos_embed.pos_embed", "positional_encoding", joint=""),
    *renamed(ENDS),
    # The original stacks (shift, scale), diffusers (scale, shift).
    swap_halves("norm_out.linear", "modF.1"),
    *renamed(JOINT, OURS, THEIRS),
    *renamed(SINGLE, OURS_SINGLE, THEIRS_SINGLE),
)

AURAFLOW = Architecture(
    id="auraflow",
    title="AuraFlow",
    components=(
        Component(
            "transformer",
            (canonical_naming(ORIGINAL, "diffusers"), Naming("original", ORIGINAL)),
            short=("unet", "transformer"),
            checkpoint=("model.diffusion_model.", ""),
        ),
    ),
    variants=(Variant("base", "auraflow"),),
    comfy="original",
)
