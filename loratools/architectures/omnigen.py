"""OmniGen: a language model that paints, under diffusers names (canonical) and its own, which are Phi-3's (fused)."""

from __future__ import annotations

from loratools.architectures.architecture import Architecture, Component, Variant
from loratools.architectures.naming import Naming, canonical_naming
from loratools.architectures.rules import Rule, fuse, renamed

OURS, THEIRS = "layers.{i<32}.", "llm.layers.{i<32}."
ENDS = (
    # diffusers                               original
    ("patch_embedding.output_image_proj",     "x_embedder.proj"),
    ("patch_embedding.input_image_proj",      "input_x_embedder.proj"),
    ("time_token.linear_1",                   "time_token.mlp.0"),
    ("time_token.linear_2",                   "time_token.mlp.2"),
    ("t_embedder.linear_1",                   "t_embedder.mlp.0"),
    ("t_embedder.linear_2",                   "t_embedder.mlp.2"),
    ("embed_tokens",                          "llm.embed_tokens"),
    ("norm",                                  "llm.norm"),
    ("norm_out.linear",                       "final_layer.adaLN_modulation.1"),
    ("proj_out",                              "final_layer.linear"),
)  # fmt: skip
BLOCK = (
    ("input_layernorm",             "input_layernorm"),
    ("self_attn.to_out.0",          "self_attn.o_proj"),
    ("post_attention_layernorm",    "post_attention_layernorm"),
    ("mlp.gate_up_proj",            "mlp.gate_up_proj"),
    ("mlp.down_proj",               "mlp.down_proj"),
)  # fmt: skip
QKV = ("self_attn.to_q", "self_attn.to_k", "self_attn.to_v")

ORIGINAL: tuple[Rule, ...] = (
    *renamed(ENDS),
    *renamed(BLOCK, OURS, THEIRS),
    fuse(tuple(OURS + part for part in QKV), THEIRS + "self_attn.qkv_proj"),
)

OMNIGEN = Architecture(
    id="omnigen",
    title="OmniGen",
    components=(
        Component(
            "transformer",
            (canonical_naming(ORIGINAL, "diffusers"), Naming("original", ORIGINAL)),
            short=("unet", "transformer"),
            checkpoint=("",),
        ),
    ),
    variants=(Variant("1", "omnigen"),),
    specification=("omnigen",),
)
