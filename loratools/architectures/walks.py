"""The order in which torch walks the modules of Stable Diffusion 1 and 2 and Cascade, for files that number layers.

It is the order in which their classes registered their children in 2022 and 2023: in diffusers and transformers the
middle block after the others, attentions before resnets, and CLIP's k and v before its q.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from loratools.architectures.architecture import Architecture
from loratools.architectures.sd1 import SD1
from loratools.architectures.sd1 import UNET as SD1_UNET
from loratools.architectures.sd2 import SD2
from loratools.architectures.sd2 import UNET as SD2_UNET
from loratools.architectures.stable_cascade import LEVELS
from loratools.architectures.text_encoders import ROOT
from loratools.architectures.unet import LAYERS, Levels

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
CLIP_ATTENTION = ("k_proj", "v_proj", "q_proj", "out_proj")
RESNET = ("conv1", "time_emb_proj", "conv2", "conv_shortcut")
# What a module of a class holds, by the classes' names of then and later.
CLASSES = {"CrossAttention": "attention", "Attention": "attention", "GEGLU": "geglu", "ResnetBlock2D": "resnet"}
TEXT_CLASSES = {"CLIPAttention": "attention"}
# A transformer block's children: the feed-forward stood between the attentions until diffusers 0.17.
BLOCK_ORDERS = (("attn1", "ff", "attn2"), ("attn1", "attn2", "ff"))


class Walked(NamedTuple):
    """One model whose order is known."""

    architecture: Architecture
    unet: Levels
    text_layers: int


WALKED = (Walked(SD1, SD1_UNET, 12), Walked(SD2, SD2_UNET, 23))


class _Walk(NamedTuple):
    """What is picked up on the way: the sorts of modules, and the order of a transformer block's children."""

    held: frozenset[str]
    order: tuple[str, ...]

    def attention(self, path: str, depth: int) -> Iterator[str]:
        for block in range(depth):
            for child in self.order:
                start = f"{path}.transformer_blocks.{block}.{child}"
                if child == "ff" and "geglu" in self.held:
                    yield f"{start}.net.0.proj"
                elif child != "ff" and "attention" in self.held:
                    yield from (f"{start}.{leaf}" for leaf in ATTENTION)

    def resnet(self, path: str, *, shortcut: bool) -> Iterator[str]:
        if "resnet" in self.held:
            yield from (f"{path}.{leaf}" for leaf in RESNET[: len(RESNET) if shortcut else -1])


def unet_walk(levels: Levels, held: frozenset[str], order: tuple[str, ...]) -> Iterator[str]:
    """The canonical paths of a UNet's layers in modules of the sorts `held` ("attention", "geglu", "resnet")."""
    walk = _Walk(held, order)
    for level, depth in enumerate(levels.depths):
        widens = level > 0 and levels.widths[level] != levels.widths[level - 1]
        for layer in range(LAYERS):
            yield from walk.attention(f"down_blocks.{level}.attentions.{layer}", depth)
        for layer in range(LAYERS):
            yield from walk.resnet(f"down_blocks.{level}.resnets.{layer}", shortcut=widens and layer == 0)
    for level, depth in enumerate(reversed(levels.depths)):
        for layer in range(LAYERS + 1):
            yield from walk.attention(f"up_blocks.{level}.attentions.{layer}", depth)
        for layer in range(LAYERS + 1):
            yield from walk.resnet(f"up_blocks.{level}.resnets.{layer}", shortcut=True)
    yield from walk.attention("mid_block.attentions.0", levels.middle)
    for layer in range(2):
        yield from walk.resnet(f"mid_block.resnets.{layer}", shortcut=False)


def clip_walk(layers: int) -> Iterator[str]:
    """The canonical paths of a CLIP text encoder's attention layers."""
    for layer in range(layers):
        yield from (f"{ROOT}encoder.layers.{layer}.self_attn.{leaf}" for leaf in CLIP_ATTENTION)


def cascade_walk() -> Iterator[str]:
    """The native paths of the attention weights of Stable Cascade's stage C, of the larger model: down, then up.

    A weight that is wrapped in place becomes the last child of its module: the output's comes before q, k and v.
    """
    for level, count in LEVELS:
        for block in range(count):
            yield from (f"{level}.{3 * block + 2}.attention.attn.{leaf}" for leaf in ("out_proj", "in_proj"))
