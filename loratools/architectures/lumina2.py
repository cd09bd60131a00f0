"""Lumina-Image 2.0: diffusers names (canonical) and its own (fused, with grouped keys and values)."""

from __future__ import annotations

from loratools.architectures.architecture import Architecture, Component, Variant
from loratools.architectures.language_encoders import GEMMA2_2B
from loratools.architectures.naming import Naming, canonical_naming
from loratools.architectures.rules import Rule, fuse, rename, renamed, same

NOISE, CONTEXT, LAYERS = "noise_refiner.{i<2}.", "context_refiner.{i<2}.", "layers.{i<26}."
BLOCKS = (NOISE, CONTEXT, LAYERS)
EMBED = "time_caption_embed."
ENDS = (
    # diffusers                             original
    (EMBED + "timestep_embedder.linear_1",  "t_embedder.mlp.0"),
    (EMBED + "timestep_embedder.linear_2",  "t_embedder.mlp.2"),
    (EMBED + "caption_embedder.0",          "cap_embedder.0"),
    (EMBED + "caption_embedder.1",          "cap_embedder.1"),
    ("norm_out.linear_1",                   "final_layer.adaLN_modulation.1"),
    ("norm_out.linear_2",                   "final_layer.linear"),
)  # fmt: skip
BLOCK = (
    ("attn.to_out.0",             "attention.out"),
    ("attn.norm_q",               "attention.q_norm"),
    ("attn.norm_k",               "attention.k_norm"),
    ("feed_forward.linear_1",     "feed_forward.w1"),
    ("feed_forward.linear_2",     "feed_forward.w2"),
    ("feed_forward.linear_3",     "feed_forward.w3"),
    ("norm2",                     "attention_norm2"),
    ("ffn_norm1",                 "ffn_norm1"),
    ("ffn_norm2",                 "ffn_norm2"),
)  # fmt: skip
QKV = ("attn.to_q", "attn.to_k", "attn.to_v")
# The text's refiner is not modulated, so that its first norm stands alone.
MODULATED = (("norm1.linear", "adaLN_modulation.1"), ("norm1.norm", "attention_norm1"))

ORIGINAL: tuple[Rule, ...] = (
    same("x_embedder"),
    *renamed(ENDS),
    *(rename(block + ours, block + theirs) for block in BLOCKS for ours, theirs in BLOCK),
    *(fuse(tuple(block + part for part in QKV), block + "attention.qkv", ratio=(3, 1, 1)) for block in BLOCKS),
    *(rename(block + ours, block + theirs) for block in (NOISE, LAYERS) for ours, theirs in MODULATED),
    rename(CONTEXT + "norm1", CONTEXT + "attention_norm1"),
)

LUMINA2 = Architecture(
    id="lumina2",
    title="Lumina-Image 2.0",
    components=(
        Component(
            "transformer",
            (canonical_naming(ORIGINAL, "diffusers"), Naming("original", ORIGINAL)),
            short=("unet", "transformer"),
            checkpoint=("model.diffusion_model.", ""),
        ),
        Component("text_encoder", GEMMA2_2B, short=("te",), checkpoint=("text_encoders.gemma2_2b.transformer.",)),
    ),
    variants=(Variant("base", "lumina2"),),
    kohya="original",
    comfy="original",
    specification=("lumina-2", "lumina"),
    base_versions=("lumina2",),
)
