"""Latte: diffusers names; blocks over the picture and over time take turns."""

from __future__ import annotations

from loratools.architectures.architecture import Architecture, Component, Variant
from loratools.architectures.naming import Naming
from loratools.architectures.rules import same

SPATIAL, TEMPORAL = "transformer_blocks.{i<28}.", "temporal_transformer_blocks.{i<28}."
ENDS = (
    "pos_embed.proj", "proj_out", "adaln_single.emb.timestep_embedder.linear_1",
    "adaln_single.emb.timestep_embedder.linear_2", "adaln_single.linear", "caption_projection.linear_1",
    "caption_projection.linear_2",
)  # fmt: skip
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
BOTH = (*(f"attn1.{leaf}" for leaf in ATTENTION), "ff.net.0.proj", "ff.net.2")
PARAMETERS = ("scale_shift_table", SPATIAL + "scale_shift_table", TEMPORAL + "scale_shift_table")

DIFFUSERS = Naming(
    "diffusers",
    (
        *map(same, ENDS),
        *(same(path, joint="") for path in PARAMETERS),
        *(same(block + path) for block in (SPATIAL, TEMPORAL) for path in BOTH),
        *(same(f"{SPATIAL}attn2.{leaf}") for leaf in ATTENTION),
    ),
)

LATTE = Architecture(
    id="latte",
    title="Latte",
    components=(Component("transformer", (DIFFUSERS,), short=("unet", "transformer"), checkpoint=("",)),),
    variants=(Variant("1", "latte"),),
    yields_to=("pixart",),  # whose blocks over a picture it has
    specification=("latte",),
)
