"""Cosmos Predict 2 and 2.5, and Anima, which was made of Predict 2: diffusers names (canonical) and Nvidia's own.

Anima has a network of its own between its text encoder and the transformer; its own files hold both as one model.
"""

from __future__ import annotations

from loratools.architectures.architecture import Architecture, Component, Variant
from loratools.architectures.language_encoders import QWEN3_06B
from loratools.architectures.naming import Naming, canonical_naming
from loratools.architectures.rules import Rule, rename, same

ENDS = (
    # diffusers                           original
    ("patch_embed.proj",                  "x_embedder.proj.1"),
    ("time_embed.t_embedder.linear_1",    "t_embedder.1.linear_1"),
    ("time_embed.t_embedder.linear_2",    "t_embedder.1.linear_2"),
    ("time_embed.norm",                   "t_embedding_norm"),
    ("norm_out.linear_1",                 "final_layer.adaln_modulation.1"),
    ("norm_out.linear_2",                 "final_layer.adaln_modulation.2"),
    ("proj_out",                          "final_layer.linear"),
)  # fmt: skip
BLOCK = (
    ("norm1.linear_1",    "adaln_modulation_self_attn.1"),
    ("norm1.linear_2",    "adaln_modulation_self_attn.2"),
    ("norm2.linear_1",    "adaln_modulation_cross_attn.1"),
    ("norm2.linear_2",    "adaln_modulation_cross_attn.2"),
    ("norm3.linear_1",    "adaln_modulation_mlp.1"),
    ("norm3.linear_2",    "adaln_modulation_mlp.2"),
    ("ff.net.0.proj",     "mlp.layer1"),
    ("ff.net.2",          "mlp.layer2"),
)  # fmt: skip
ATTENTIONS = (("attn1", "self_attn"), ("attn2", "cross_attn"))
ATTENTION = (
    ("to_q",        "q_proj"),
    ("to_k",        "k_proj"),
    ("to_v",        "v_proj"),
    ("to_out.0",    "output_proj"),
    ("norm_q",      "q_norm"),
    ("norm_k",      "k_norm"),
)  # fmt: skip
CROSS_PROJECTION = "crossattn_proj.0"  # of Predict 2.5, whose text features are 28 layers' side by side


def original(blocks: int) -> tuple[Rule, ...]:
    """The rules of the transformer with so many blocks."""
    ours, theirs = f"transformer_blocks.{{i<{blocks}}}.", f"blocks.{{i<{blocks}}}."
    return (
        *(rename(*row) for row in ENDS),
        *(rename(ours + here, theirs + there) for here, there in BLOCK),
        *(
            rename(f"{ours}{here}.{leaf}", f"{theirs}{there}.{other}")
            for here, there in ATTENTIONS
            for leaf, other in ATTENTION
        ),
    )


PREDICT, ANIMA_RULES = (*original(36), same(CROSS_PROJECTION)), original(28)

ADAPTER = "blocks.{i<6}."
ADAPTER_ATTENTION = ("q_proj", "q_norm", "k_proj", "k_norm", "v_proj", "o_proj")
CONDITIONER = (
    "embed", "out_proj", "norm",
    *(ADAPTER + path for path in ("norm_self_attn", "norm_cross_attn", "norm_mlp", "mlp.0", "mlp.2")),
    *(f"{ADAPTER}{place}.{leaf}" for place in ("self_attn", "cross_attn") for leaf in ADAPTER_ATTENTION),
)  # fmt: skip
CHECKPOINT = ("net.", "model.diffusion_model.", "")

COSMOS = Architecture(
    id="cosmos",
    title="Cosmos Predict 2 and 2.5",
    components=(
        Component(
            "transformer",
            (canonical_naming(PREDICT, "diffusers"), Naming("original", PREDICT)),
            short=("unet", "transformer"),
            checkpoint=CHECKPOINT,
        ),
    ),
    variants=(
        Variant("2.5-2b", "cosmos25-2b"),
        Variant("2.5-14b", "cosmos25-14b"),
        Variant("2-2b-t2i", "cosmos2-2b-t2i"),
        Variant("2-2b-v2w", "cosmos2-2b-v2w"),
        Variant("2-14b-t2i", "cosmos2-14b-t2i"),
        Variant("2-14b-v2w", "cosmos2-14b-v2w"),
    ),
    kohya="original",
    comfy="original",
    yields_to=("anima",),
    specification=("cosmos-predict2",),
)
ANIMA = Architecture(
    id="anima",
    title="Anima",
    components=(
        Component(
            "transformer",
            (canonical_naming(ANIMA_RULES, "diffusers"), Naming("original", ANIMA_RULES)),
            short=("unet", "transformer"),
            checkpoint=CHECKPOINT,
        ),
        Component(
            "text_conditioner",
            (
                Naming("diffusers", tuple(map(same, CONDITIONER))),
                Naming("original", tuple(rename(path, f"llm_adapter.{path}") for path in CONDITIONER)),
            ),
            short=(),
            inside="original",
        ),
        Component("text_encoder", QWEN3_06B, short=("te",), checkpoint=("text_encoders.qwen3_06b.transformer.",)),
    ),
    variants=(Variant("2b", "anima"),),
    kohya="original",
    comfy="original",
    specification=("anima", "anima-preview"),
    base_versions=("anima",),
)
