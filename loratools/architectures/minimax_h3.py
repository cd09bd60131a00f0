"""MiniMax-H3: diffusers names (canonical) and its own (fused), as its single files and most trainers stack them.

Its sharded release deals the rows of q, k and v out head by head, and so does DiffSynth's trainer; no size tells. What
does is the name of the adapter, `default`, that DiffSynth leaves inside its keys, and every other trainer takes out.
"""

from __future__ import annotations

from loratools.architectures.architecture import Architecture, Component, Variant
from loratools.architectures.naming import Naming, canonical_naming
from loratools.architectures.rules import Rule, deal, fuse, rename, renamed, swap_halves

BLOCKS = (
    # diffusers                                 original
    ("transformer_blocks.{i<50}.",              "blocks.{i<50}."),
    ("token_refiner.refiner_blocks.{i<2}.",     "token_refiner.blocks.{i<2}."),
)  # fmt: skip
ENDS = (
    ("proj_in",                     "video_patch_proj"),
    ("audio_proj_in",               "audio_patch_proj"),
    ("context_embedder",            "condition_proj"),
    ("time_embedder.linear_1",      "time_embedder.proj_in"),
    ("time_embedder.linear_2",      "time_embedder.proj_out"),
    ("token_refiner.final_norm",    "token_refiner.final_norm"),
    ("norm_out.norm",               "final_layer.norm"),
    ("norm_out.linear",             "final_layer.adaln_proj.linear"),
    ("proj_out",                    "final_layer.video_out"),
    ("audio_proj_out",              "final_layer.audio_out"),
)  # fmt: skip
BLOCK = (
    ("norm1",            "norm1"),
    ("norm2",            "norm2"),
    ("attn.norm_q",      "attn.q_norm"),
    ("attn.norm_k",      "attn.k_norm"),
    ("attn.to_out.0",    "attn.out_proj"),
    ("ff.net.2",         "mlp.fc2"),
)  # fmt: skip
QKV = ("attn.to_q", "attn.to_k", "attn.to_v")

ORIGINAL: tuple[Rule, ...] = (
    *renamed(ENDS),
    *(rename(ours + here, theirs + there) for ours, theirs in BLOCKS for here, there in BLOCK),
    *(fuse(tuple(ours + part for part in QKV), theirs + "attn.qkv_proj") for ours, theirs in BLOCKS),
    # The original stacks (gate, value), diffusers (value, gate).
    *(swap_halves(ours + "ff.net.0.proj", theirs + "mlp.fc1") for ours, theirs in BLOCKS),
    rename(BLOCKS[0][0] + "adaln_proj.linear", BLOCKS[0][1] + "adaln_proj.linear"),
)
HEAD = 128
DIFFSYNTH = tuple(
    deal(rule.canonical, rule.native, hand=HEAD) if rule.native.endswith("attn.qkv_proj") else rule for rule in ORIGINAL
)
NAMINGS = (canonical_naming(ORIGINAL, "diffusers"), Naming("original", ORIGINAL))

MINIMAX_H3 = Architecture(
    id="minimax-h3",
    title="MiniMax-H3",
    components=(
        Component(
            "transformer",
            NAMINGS,
            short=("unet", "transformer"),
            checkpoint=("model.diffusion_model.", ""),
            adapters=(Naming("diffsynth", DIFFSYNTH, named="default"),),
        ),
        # The same again, for pictures to keep to; a file does not say which it is for.
        Component("transformer_ref", NAMINGS, short=()),
    ),
    variants=(Variant("33b", "minimax-h3"),),
    kohya="original",
    comfy="original",
    specification=("minimax-h3",),
)
