"""Qwen-Image 2.1: diffusers names (canonical), and ComfyUI's, which fuses the two halves of the gated layer."""

from __future__ import annotations

from loratools.architectures.architecture import Architecture, Component, Variant
from loratools.architectures.naming import Naming, canonical_naming
from loratools.architectures.rules import Rule, fuse, same

BLOCK = "transformer_blocks.{i<32}."
ENDS = (
    "time_text_embed.timestep_embedder.linear_1", "time_text_embed.timestep_embedder.linear_2", "txt_in.text_norm",
    "txt_in.in_layer", "txt_in.out_layer", "img_in", "modulation.1", "norm_out.linear", "proj_out",
)  # fmt: skip
MODULES = (
    *(f"attn.{leaf}" for leaf in ("to_q", "to_k", "to_v", "to_out.0", "norm_q", "norm_k")), "img_mlp.out",
)  # fmt: skip

COMFY: tuple[Rule, ...] = (
    *map(same, ENDS),
    *(same(BLOCK + path) for path in MODULES),
    fuse((BLOCK + "img_mlp.gate_layer", BLOCK + "img_mlp.proj"), BLOCK + "img_mlp.gate_up"),
)

QWEN_IMAGE21 = Architecture(
    id="qwen-image-2.1",
    title="Qwen-Image 2.1",
    components=(
        Component(
            "transformer",
            (canonical_naming(COMFY, "diffusers"), Naming("comfy", COMFY)),
            short=("unet", "transformer"),
            checkpoint=("model.diffusion_model.", ""),
        ),
    ),
    variants=(Variant("7b", "qwen-image-2.1"),),
    comfy="diffusers",  # whose halves it addresses
    specification=("qwen-image-2.1",),
)
