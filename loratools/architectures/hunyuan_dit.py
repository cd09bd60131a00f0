"""HunyuanDiT: diffusers names (canonical) and its own (fused), under which its trainer writes PEFT's keys."""

from __future__ import annotations

from loratools.architectures.architecture import Architecture, Component, Variant
from loratools.architectures.naming import Naming, canonical_naming
from loratools.architectures.rules import Rule, fused, renamed, same, swap_halves

BLOCK = "blocks.{i<40}."
LATE = "blocks.{i<19*1+21}."  # takes in what the early half saw
EXTRA = "time_extra_emb."
ENDS = (
    # diffusers                                original
    ("pos_embed.proj",                         "x_embedder.proj"),
    ("text_embedder.linear_1",                 "mlp_t5.0"),
    ("text_embedder.linear_2",                 "mlp_t5.2"),
    (EXTRA + "timestep_embedder.linear_1",     "t_embedder.mlp.0"),
    (EXTRA + "timestep_embedder.linear_2",     "t_embedder.mlp.2"),
    (EXTRA + "pooler.q_proj",                  "pooler.q_proj"),
    (EXTRA + "pooler.k_proj",                  "pooler.k_proj"),
    (EXTRA + "pooler.v_proj",                  "pooler.v_proj"),
    (EXTRA + "pooler.c_proj",                  "pooler.c_proj"),
    (EXTRA + "style_embedder",                 "style_embedder"),  # to 1.1
    (EXTRA + "extra_embedder.linear_1",        "extra_embedder.0"),
    (EXTRA + "extra_embedder.linear_2",        "extra_embedder.2"),
    ("proj_out",                               "final_layer.linear"),
)  # fmt: skip
MODULES = (
    ("norm1.linear",      "default_modulation.1"),
    ("norm1.norm",        "norm1"),
    ("norm2",             "norm3"),  # the original counts its norms in another order
    ("norm3",             "norm2"),
    ("attn1.to_out.0",    "attn1.out_proj"),
    ("attn1.norm_q",      "attn1.q_norm"),
    ("attn1.norm_k",      "attn1.k_norm"),
    ("attn2.to_q",        "attn2.q_proj"),
    ("attn2.to_out.0",    "attn2.out_proj"),
    ("attn2.norm_q",      "attn2.q_norm"),
    ("attn2.norm_k",      "attn2.k_norm"),
    ("ff.net.0.proj",     "mlp.fc1"),
    ("ff.net.2",          "mlp.fc2"),
)  # fmt: skip
FUSED = (
    (("attn1.to_q", "attn1.to_k", "attn1.to_v"),    "attn1.Wqkv"),
    (("attn2.to_k", "attn2.to_v"),                  "attn2.kv_proj"),
)  # fmt: skip
PARAMETERS = (
    ("text_embedding_padding",                 "text_embedding_padding"),
    (EXTRA + "pooler.positional_embedding",    "pooler.positional_embedding"),
)  # fmt: skip

ORIGINAL: tuple[Rule, ...] = (
    *renamed(ENDS),
    *renamed(PARAMETERS, joint=""),
    # The original stacks (shift, scale), diffusers (scale, shift).
    swap_halves("norm_out.linear", "final_layer.adaLN_modulation.1"),
    *renamed(MODULES, BLOCK, BLOCK),
    *fused(FUSED, BLOCK, BLOCK),
    *(same(LATE + path) for path in ("skip_norm", "skip_linear")),
)

HUNYUAN_DIT = Architecture(
    id="hunyuan-dit",
    title="HunyuanDiT",
    components=(
        Component(
            "transformer",
            (canonical_naming(ORIGINAL, "diffusers"), Naming("original", ORIGINAL)),
            short=("unet", "transformer"),
            checkpoint=("model.diffusion_model.", ""),
        ),
    ),
    variants=(Variant("1.2", "hunyuan-dit-1.2"), Variant("1.1", "hunyuan-dit-1.1")),
    kohya="original",
    comfy="original",
    specification=("hunyuan-dit",),
)
