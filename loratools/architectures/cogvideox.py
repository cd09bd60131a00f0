"""CogVideoX: diffusers names. Its first release shuffles the rows of two norms in one layer; no trainer keeps that."""

from __future__ import annotations

from loratools.architectures.architecture import Architecture, Component, Variant
from loratools.architectures.naming import Naming
from loratools.architectures.rules import same

BLOCK = "transformer_blocks.{i<42}."
ENDS = (
    "patch_embed.proj", "patch_embed.text_proj", "time_embedding.linear_1", "time_embedding.linear_2",
    "ofs_embedding.linear_1", "ofs_embedding.linear_2", "norm_final", "norm_out.linear", "norm_out.norm", "proj_out",
)  # fmt: skip
MODULES = (
    "norm1.linear", "norm1.norm", "norm2.linear", "norm2.norm", "attn1.norm_q", "attn1.norm_k", "attn1.to_q",
    "attn1.to_k", "attn1.to_v", "attn1.to_out.0", "ff.net.0.proj", "ff.net.2",
)  # fmt: skip

DIFFUSERS = Naming("diffusers", (*map(same, ENDS), *(same(BLOCK + path) for path in MODULES)))

COGVIDEOX = Architecture(
    id="cogvideox",
    title="CogVideoX",
    components=(Component("transformer", (DIFFUSERS,), short=("unet", "transformer"), checkpoint=("",)),),
    variants=(
        Variant("2b", "cogvideox-2b"),
        Variant("5b", "cogvideox-5b"),
        Variant("5b-i2v", "cogvideox-5b-i2v"),
        Variant("1.5-5b", "cogvideox15-5b"),
        Variant("1.5-5b-i2v", "cogvideox15-5b-i2v"),
    ),
    specification=("cogvideox", "cogvideo-x"),
)
