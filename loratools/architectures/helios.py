"""Helios: the blocks of Wan over a long memory, under diffusers names."""

from __future__ import annotations

from loratools.architectures.architecture import Architecture, Component, Variant
from loratools.architectures.naming import Naming
from loratools.architectures.rules import same

BLOCK = "blocks.{i<40}."
EMBED = "condition_embedder."
ENDS = (
    "patch_embedding", "patch_short", "patch_mid", "patch_long", EMBED + "time_embedder.linear_1",
    EMBED + "time_embedder.linear_2", EMBED + "time_proj", EMBED + "text_embedder.linear_1",
    EMBED + "text_embedder.linear_2", "proj_out",
)  # fmt: skip
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0", "norm_q", "norm_k")
MODULES = (
    *(f"{place}.{leaf}" for place in ("attn1", "attn2") for leaf in ATTENTION), "norm2", "ffn.net.0.proj", "ffn.net.2",
)  # fmt: skip
PARAMETERS = ("norm_out.scale_shift_table", BLOCK + "scale_shift_table")

DIFFUSERS = Naming(
    "diffusers",
    (
        *map(same, ENDS),
        *(same(path, joint="") for path in PARAMETERS),
        *(same(BLOCK + path) for path in MODULES),
    ),
)

HELIOS = Architecture(
    id="helios",
    title="Helios",
    components=(Component("transformer", (DIFFUSERS,), short=("unet", "transformer"), checkpoint=("",)),),
    variants=(Variant("14b", "helios"),),
    yields_to=("wan2.1", "wan2.2"),
    specification=("helios",),
)
