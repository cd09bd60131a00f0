"""Z-Image: diffusers names (canonical, and its first release's), and those of ComfyUI's single files (fused)."""

from __future__ import annotations

from loratools.architectures.architecture import Architecture, Component, Variant
from loratools.architectures.naming import Naming, canonical_naming
from loratools.architectures.rules import Rule, fuse, rename, renamed, same

REFINERS = ("noise_refiner.{i<2}.", "context_refiner.{i<2}.")
LAYERS = "layers.{i<30}."
ENDS = ("t_embedder.mlp.0", "t_embedder.mlp.2", "cap_embedder.0", "cap_embedder.1")
PARAMETERS = ("x_pad_token", "cap_pad_token")
# The one patch size there is, 2 by 2 in 1 frame.
PATCH = (
    # diffusers                                 comfy
    ("all_x_embedder.2-1",                      "x_embedder"),
    ("all_final_layer.2-1.linear",              "final_layer.linear"),
    ("all_final_layer.2-1.adaLN_modulation.1",  "final_layer.adaLN_modulation.1"),
)  # fmt: skip
BLOCK = (
    ("attention.to_out.0",    "attention.out"),
    ("attention.norm_q",      "attention.q_norm"),
    ("attention.norm_k",      "attention.k_norm"),
)  # fmt: skip
BLOCK_SAME = (
    "feed_forward.w1", "feed_forward.w2", "feed_forward.w3", "attention_norm1", "attention_norm2", "ffn_norm1",
    "ffn_norm2",
)  # fmt: skip
QKV = ("attention.to_q", "attention.to_k", "attention.to_v")
# The text's refiner is not modulated.
MODULATED = (REFINERS[0], LAYERS)

COMFY: tuple[Rule, ...] = (
    *map(same, ENDS),
    *(same(path, joint="") for path in PARAMETERS),
    *renamed(PATCH),
    *(rename(block + ours, block + theirs) for block in (*REFINERS, LAYERS) for ours, theirs in BLOCK),
    *(same(block + path) for block in (*REFINERS, LAYERS) for path in BLOCK_SAME),
    *(fuse(tuple(block + part for part in QKV), block + "attention.qkv") for block in (*REFINERS, LAYERS)),
    *(same(block + "adaLN_modulation.0") for block in MODULATED),
)

Z_IMAGE = Architecture(
    id="z-image",
    title="Z-Image",
    components=(
        Component(
            "transformer",
            (canonical_naming(COMFY, "diffusers"), Naming("comfy", COMFY)),
            short=("unet", "transformer"),
            checkpoint=("model.diffusion_model.", ""),
        ),
    ),
    variants=(Variant("base", "z-image"),),
    # ComfyUI fuses split adapters as it loads them, so trainers leave them split.
    comfy="diffusers",
    specification=("z-image",),
    base_versions=("z_image",),
)
