"""Krea 2: diffusers names (canonical) and its own, which its trainer, ai-toolkit, musubi and ComfyUI keep."""

from __future__ import annotations

from loratools.architectures.architecture import Architecture, Component, Variant
from loratools.architectures.naming import Naming, canonical_naming
from loratools.architectures.rules import Rule, rename, renamed

# The blocks, and the two stacks that fuse what the layers of the text encoder saw.
BLOCKS = (
    ("transformer_blocks.{i<28}.",           "blocks.{i<28}."),
    ("text_fusion.layerwise_blocks.{i<2}.",  "txtfusion.layerwise_blocks.{i<2}."),
    ("text_fusion.refiner_blocks.{i<2}.",    "txtfusion.refiner_blocks.{i<2}."),
)  # fmt: skip
ENDS = (
    # diffusers                 original
    ("img_in",                  "first"),
    ("time_embed.linear_1",     "tmlp.0"),
    ("time_embed.linear_2",     "tmlp.2"),
    ("time_mod_proj",           "tproj.1"),
    ("txt_in.linear_1",         "txtmlp.1"),
    ("txt_in.linear_2",         "txtmlp.3"),
    ("text_fusion.projector",   "txtfusion.projector"),
    ("final_layer.linear",      "last.linear"),
)  # fmt: skip
ENDS_NORMS = (("txt_in.norm", "txtmlp.0"), ("final_layer.norm", "last.norm"))
BLOCK = (
    ("attn.to_q",        "attn.wq"),
    ("attn.to_k",        "attn.wk"),
    ("attn.to_v",        "attn.wv"),
    ("attn.to_out.0",    "attn.wo"),
    ("attn.to_gate",     "attn.gate"),
    ("ff.gate",          "mlp.gate"),
    ("ff.up",            "mlp.up"),
    ("ff.down",          "mlp.down"),
)  # fmt: skip
BLOCK_NORMS = (
    ("norm1",            "prenorm"),
    ("norm2",            "postnorm"),
    ("attn.norm_q",      "attn.qknorm.qnorm"),
    ("attn.norm_k",      "attn.qknorm.knorm"),
)  # fmt: skip
PARAMETERS = (
    (BLOCKS[0][0] + "scale_shift_table",   BLOCKS[0][1] + "mod.lin"),
    ("final_layer.scale_shift_table",      "last.modulation.lin"),
)  # fmt: skip

ORIGINAL: tuple[Rule, ...] = (
    *renamed(ENDS),
    *renamed(ENDS_NORMS, weight="scale"),
    *(rename(ours + here, theirs + there) for ours, theirs in BLOCKS for here, there in BLOCK),
    *(rename(ours + here, theirs + there, weight="scale") for ours, theirs in BLOCKS for here, there in BLOCK_NORMS),
    *renamed(PARAMETERS, joint=""),
)

KREA2 = Architecture(
    id="krea2",
    title="Krea 2",
    components=(
        Component(
            "transformer",
            (canonical_naming(ORIGINAL, "diffusers"), Naming("original", ORIGINAL)),
            short=("unet", "transformer"),
            checkpoint=("model.diffusion_model.", ""),
        ),
    ),
    variants=(Variant("base", "krea2"),),
    kohya="original",
    comfy="original",
    specification=("krea-2",),
    base_versions=("krea2",),
)
