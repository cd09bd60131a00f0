"""The UNet of Stable Diffusion 1, 2, XL and the XL refiner: diffusers names (canonical) against LDM / sgm names.

LDM counts its blocks through: `input_blocks.{1 + 3·level + layer}` and `output_blocks.{3·level + layer}`; inside one,
0 is the resnet, 1 the attention where there is one, and the last the upsampler.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import NamedTuple

from loratools.architectures.naming import Naming, canonical_naming
from loratools.architectures.rules import Rule, rename

ENDS = (
    # diffusers                    ldm
    ("conv_in",                    "input_blocks.0.0"),
    ("time_embedding.linear_1",    "time_embed.0"),
    ("time_embedding.linear_2",    "time_embed.2"),
    ("conv_norm_out",              "out.0"),
    ("conv_out",                   "out.2"),
)  # fmt: skip
ADD_EMBEDDING = (
    ("add_embedding.linear_1",     "label_emb.0.0"),
    ("add_embedding.linear_2",     "label_emb.0.2"),
)  # fmt: skip
RESNET = (
    ("norm1",                      "in_layers.0"),
    ("conv1",                      "in_layers.2"),
    ("time_emb_proj",              "emb_layers.1"),
    ("norm2",                      "out_layers.0"),
    ("conv2",                      "out_layers.3"),
)  # fmt: skip
SHORTCUT = ("conv_shortcut",       "skip_connection")  # fmt: skip
ATTENTION = ("norm", "proj_in", "proj_out")
BLOCK = (
    "norm1", "attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_out.0",
    "norm2", "attn2.to_q", "attn2.to_k", "attn2.to_v", "attn2.to_out.0",
    "norm3", "ff.net.0.proj", "ff.net.2",
)  # fmt: skip
LAYERS = 2  # resnets per level on the way down; the way up has one more


class Levels(NamedTuple):
    """What tells one UNet's modules from another's, from the outermost level inwards.

    `widths` are the channels relative to the first level; `depths` the transformer blocks of each attention, 0 where a
    level has none; `middle` those of the middle block.
    """

    widths: tuple[int, ...]
    depths: tuple[int, ...]
    middle: int
    add_embedding: bool = False


@cache
def unet_namings(levels: Levels) -> tuple[Naming, Naming]:
    """The namings "diffusers" (canonical) and "ldm" of one UNet."""
    rules = tuple(_rules(levels))
    return canonical_naming(rules, "diffusers"), Naming("ldm", rules)


def _rules(levels: Levels) -> Iterator[Rule]:
    last = len(levels.depths) - 1
    for ours, theirs in ENDS + ADD_EMBEDDING * levels.add_embedding:
        yield rename(ours, theirs)
    for level, depth in enumerate(levels.depths):
        widens = level > 0 and levels.widths[level] != levels.widths[level - 1]
        for layer in range(LAYERS):
            ours, theirs = f"down_blocks.{level}", f"input_blocks.{1 + 3 * level + layer}"
            yield from _resnet(f"{ours}.resnets.{layer}", f"{theirs}.0", shortcut=widens and layer == 0)
            yield from _attention(f"{ours}.attentions.{layer}", f"{theirs}.1", depth)
        if level < last:
            yield rename(f"down_blocks.{level}.downsamplers.0.conv", f"input_blocks.{3 * (level + 1)}.0.op")
    yield from _resnet("mid_block.resnets.0", "middle_block.0")
    yield from _attention("mid_block.attentions.0", "middle_block.1", levels.middle)
    yield from _resnet("mid_block.resnets.1", "middle_block.2")
    for level, depth in enumerate(reversed(levels.depths)):
        for layer in range(LAYERS + 1):
            ours, theirs = f"up_blocks.{level}", f"output_blocks.{3 * level + layer}"
            yield from _resnet(f"{ours}.resnets.{layer}", f"{theirs}.0", shortcut=True)
            yield from _attention(f"{ours}.attentions.{layer}", f"{theirs}.1", depth)
        if level < last:
            # Without an attention the upsampler moves up to its place: SD1 has output_blocks.2.1.conv.
            place = f"output_blocks.{3 * level + LAYERS}.{2 if depth else 1}.conv"
            yield rename(f"up_blocks.{level}.upsamplers.0.conv", place)


def _resnet(ours: str, theirs: str, *, shortcut: bool = False) -> Iterator[Rule]:
    for canonical, native in (*RESNET, SHORTCUT) if shortcut else RESNET:
        yield rename(f"{ours}.{canonical}", f"{theirs}.{native}")


def _attention(ours: str, theirs: str, depth: int) -> Iterator[Rule]:
    if depth:
        for path in ATTENTION:
            yield rename(f"{ours}.{path}", f"{theirs}.{path}")
        block = f"transformer_blocks.{{k<{depth}}}"
        for path in BLOCK:
            yield rename(f"{ours}.{block}.{path}", f"{theirs}.{block}.{path}")
