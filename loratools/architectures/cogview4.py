"""CogView 4: diffusers names."""

from __future__ import annotations

from loratools.architectures.architecture import Architecture, Component, Variant
from loratools.architectures.naming import Naming
from loratools.architectures.rules import same

BLOCK = "transformer_blocks.{i<28}."
EMBED = "time_condition_embed."
ENDS = (
    "patch_embed.proj", "patch_embed.text_proj", EMBED + "timestep_embedder.linear_1",
    EMBED + "timestep_embedder.linear_2", EMBED + "condition_embedder.linear_1", EMBED + "condition_embedder.linear_2",
    "norm_out.linear", "proj_out",
)  # fmt: skip
MODULES = (
    "norm1.linear", "attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_out.0", "ff.net.0.proj", "ff.net.2",
)  # fmt: skip

DIFFUSERS = Naming("diffusers", (*map(same, ENDS), *(same(BLOCK + path) for path in MODULES)))

COGVIEW4 = Architecture(
    id="cogview4",
    title="CogView 4",
    components=(Component("transformer", (DIFFUSERS,), short=("unet", "transformer"), checkpoint=("",)),),
    variants=(Variant("6b", "cogview4"),),
    specification=("cogview4",),
)
