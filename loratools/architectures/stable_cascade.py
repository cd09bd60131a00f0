"""Stable Cascade: stage C under diffusers names (canonical: q, k, v split), its own (fused), ComfyUI's; and CLIP-G."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from loratools.architectures.architecture import Architecture, Component, Variant
from loratools.architectures.naming import Naming, canonical_naming
from loratools.architectures.rules import Rule, fuse, rename, same
from loratools.architectures.text_encoders import CLIP_G

# The blocks of each level, of three modules each: a resnet, a time step and an attention.
LEVELS = (("down_blocks.0", 8), ("down_blocks.1", 24), ("up_blocks.0", 24), ("up_blocks.1", 8))
ENDS = (
    "clip_txt_pooled_mapper", "clip_txt_mapper", "clip_img_mapper", "embedding.1",
    "down_downscalers.1.1.blocks.0", "up_upscalers.0.1.blocks.1", "clf.1",
)  # fmt: skip
RESNET_MODULES = ("depthwise", "channelwise.0", "channelwise.4")
RESNET_PARAMETERS = ("channelwise.2.gamma", "channelwise.2.beta")
TIMESTEP_MODULES = ("mapper", "mapper_sca", "mapper_crp")
QKV = ("to_q", "to_k", "to_v")
OUT = ("attention.to_out.0", "attention.attn.out_proj")


def _fused(block: str) -> tuple[Rule, ...]:
    """torch's own MultiheadAttention, as the checkpoints have it."""
    return (fuse(tuple(f"{block}.attention.{part}" for part in QKV), f"{block}.attention.attn.in_proj", joint="_"),)


def _split(block: str) -> tuple[Rule, ...]:
    """ComfyUI splits it when it loads; the adapters that OneTrainer writes for it are named so."""
    return tuple(rename(f"{block}.attention.{part}", f"{block}.attention.attn.{part}") for part in QKV)


def _rules(attention: Callable[[str], tuple[Rule, ...]]) -> Iterator[Rule]:
    yield from map(same, ENDS)
    for level, count in LEVELS:
        resnet, timestep, block = (f"{level}.{{i<{count}*3+{place}}}" for place in range(3))
        yield from (same(f"{resnet}.{path}") for path in RESNET_MODULES)
        yield from (same(f"{resnet}.{path}", joint="") for path in RESNET_PARAMETERS)
        yield from (same(f"{timestep}.{path}") for path in TIMESTEP_MODULES)
        yield from attention(block)
        yield rename(f"{block}.{OUT[0]}", f"{block}.{OUT[1]}")
        yield same(f"{block}.kv_mapper.1")


ORIGINAL, COMFY = tuple(_rules(_fused)), tuple(_rules(_split))

STABLE_CASCADE = Architecture(
    id="stable-cascade",
    title="Stable Cascade",
    components=(
        Component(
            "prior",
            (canonical_naming(COMFY, "diffusers"), Naming("comfy", COMFY), Naming("original", ORIGINAL)),
            short=("prior_unet", "unet"),
            checkpoint=("model.diffusion_model.",),
        ),
        Component("text_encoder", CLIP_G, short=("prior_te",), checkpoint=("text_encoder.clip_g.transformer.",)),
    ),
    variants=(Variant("base", "stable-cascade"), Variant("lite", "stable-cascade-lite")),
    kohya="comfy",
    comfy="comfy",
    specification=("stable-cascade-v1-prior",),
)
