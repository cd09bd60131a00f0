"""LTX-Video: the transformer under diffusers names (canonical) and its own, which ComfyUI keeps."""

from __future__ import annotations

from loratools.architectures.architecture import Architecture, Component, Variant
from loratools.architectures.naming import Naming, canonical_naming
from loratools.architectures.rules import Rule, rename, renamed, same

BLOCK = "transformer_blocks.{i<48}."
ENDS = (
    # diffusers                                     original
    ("proj_in",                                     "patchify_proj"),
    ("time_embed.emb.timestep_embedder.linear_1",   "adaln_single.emb.timestep_embedder.linear_1"),
    ("time_embed.emb.timestep_embedder.linear_2",   "adaln_single.emb.timestep_embedder.linear_2"),
    ("time_embed.linear",                           "adaln_single.linear"),
)  # fmt: skip
ENDS_SAME = ("caption_projection.linear_1", "caption_projection.linear_2", "proj_out")
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
NORMS = (("norm_q", "q_norm"), ("norm_k", "k_norm"))
FEED_FORWARD = ("net.0.proj", "net.2")
PARAMETERS = ("scale_shift_table", BLOCK + "scale_shift_table")

ORIGINAL: tuple[Rule, ...] = (
    *map(same, ENDS_SAME),
    *(same(path, joint="") for path in PARAMETERS),
    *renamed(ENDS),
    *(same(f"{BLOCK}{place}.{leaf}") for place in ("attn1", "attn2") for leaf in ATTENTION),
    *(
        rename(f"{BLOCK}{place}.{ours}", f"{BLOCK}{place}.{theirs}")
        for place in ("attn1", "attn2")
        for ours, theirs in NORMS
    ),
    *(same(f"{BLOCK}ff.{leaf}") for leaf in FEED_FORWARD),
)

LTX_VIDEO = Architecture(
    id="ltx-video",
    title="LTX-Video",
    components=(
        Component(
            "transformer",
            (canonical_naming(ORIGINAL, "diffusers"), Naming("original", ORIGINAL)),
            short=("unet", "transformer"),
            checkpoint=("model.diffusion_model.", ""),
        ),
    ),
    variants=(Variant("2b", "ltx-video-2b"), Variant("13b", "ltx-video-13b")),
    kohya="original",
    comfy="original",
    specification=("ltx-video", "ltxv"),
)
