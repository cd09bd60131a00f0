"""SANA-Video: Sana with a convolution over time, under diffusers names."""

from __future__ import annotations

from loratools.architectures.architecture import Architecture, Component, Variant
from loratools.architectures.naming import Naming
from loratools.architectures.rules import same

BLOCK = "transformer_blocks.{i<20}."
ENDS = (
    "patch_embedding", "time_embed.emb.timestep_embedder.linear_1", "time_embed.emb.timestep_embedder.linear_2",
    "time_embed.linear", "caption_projection.linear_1", "caption_projection.linear_2", "caption_norm", "proj_out",
)  # fmt: skip
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0", "norm_q", "norm_k")
MODULES = (
    *(f"{place}.{leaf}" for place in ("attn1", "attn2") for leaf in ATTENTION),
    *(f"ff.{leaf}" for leaf in ("conv_inverted", "conv_depth", "conv_point", "conv_temp")),
)  # fmt: skip
PARAMETERS = ("scale_shift_table", BLOCK + "scale_shift_table")

DIFFUSERS = Naming(
    "diffusers",
    (
        *map(same, ENDS),
        *(same(path, joint="") for path in PARAMETERS),
        *(same(BLOCK + path) for path in MODULES),
    ),
)

SANA_VIDEO = Architecture(
    id="sana-video",
    title="SANA-Video",
    components=(Component("transformer", (DIFFUSERS,), short=("unet", "transformer"), checkpoint=("",)),),
    variants=(Variant("2b", "sana-video"),),
    yields_to=("sana",),
    specification=("sana-video",),
)
