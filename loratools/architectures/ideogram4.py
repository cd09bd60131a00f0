"""Ideogram 4: diffusers names (canonical) and its own (fused); a second transformer of the same names guides it."""

from __future__ import annotations

from loratools.architectures.architecture import Architecture, Component, Variant
from loratools.architectures.naming import Naming, canonical_naming
from loratools.architectures.rules import Rule, fuse, rename, same

BLOCK = "layers.{i<34}."
ENDS = (
    "input_proj", "llm_cond_norm", "llm_cond_proj", "t_embedding.mlp_in", "t_embedding.mlp_out", "adaln_proj",
    "embed_image_indicator", "final_layer.linear", "final_layer.adaln_modulation",
)  # fmt: skip
MODULES = (
    "attention.norm_q", "attention.norm_k", "feed_forward.w1", "feed_forward.w2", "feed_forward.w3", "attention_norm1",
    "ffn_norm1", "attention_norm2", "ffn_norm2", "adaln_modulation",
)  # fmt: skip
QKV = ("attention.to_q", "attention.to_k", "attention.to_v")

ORIGINAL: tuple[Rule, ...] = (
    *map(same, ENDS),
    *(same(BLOCK + path) for path in MODULES),
    rename(BLOCK + "attention.to_out.0", BLOCK + "attention.o"),
    fuse(tuple(BLOCK + part for part in QKV), BLOCK + "attention.qkv"),
)
NAMINGS = (canonical_naming(ORIGINAL, "diffusers"), Naming("original", ORIGINAL))

IDEOGRAM4 = Architecture(
    id="ideogram4",
    title="Ideogram 4",
    components=(
        Component("transformer", NAMINGS, short=("unet", "transformer"), checkpoint=("model.diffusion_model.", "")),
    ),
    variants=(Variant("9b", "ideogram4"),),
    kohya="original",
    comfy="original",
    specification=("ideogram-4",),
    base_versions=("ideogram4",),
)
