"""Würstchen v2: the prior (stage C), whose blocks are a resnet, a time step and an attention in turn."""

from __future__ import annotations

from loratools.architectures.architecture import Architecture, Component, Variant
from loratools.architectures.attn_procs import attn_procs
from loratools.architectures.naming import Naming
from loratools.architectures.rules import same

RESNET, TIMESTEP, ATTENTION = "blocks.{i<32*3+0}.", "blocks.{i<32*3+1}.", "blocks.{i<32*3+2}."
RESNET_MODULES = ("depthwise", "channelwise.0", "channelwise.4")
RESNET_PARAMETERS = ("channelwise.2.gamma", "channelwise.2.beta")
ATTENTION_MODULES = ("attention.to_q", "attention.to_k", "attention.to_v", "attention.to_out.0", "kv_mapper.1")

PRIOR = Naming(
    "diffusers",
    (
        *map(same, ("projection", "cond_mapper.0", "cond_mapper.2", "out.1")),
        *(same(RESNET + path) for path in RESNET_MODULES),
        *(same(RESNET + path, joint="") for path in RESNET_PARAMETERS),
        same(TIMESTEP + "mapper"),
        *(same(ATTENTION + path) for path in ATTENTION_MODULES),
    ),
)

WUERSTCHEN = Architecture(
    id="wuerstchen",
    title="Würstchen",
    components=(Component("prior", (PRIOR,), short=("prior_unet", "unet"), adapters=(attn_procs(PRIOR),)),),
    variants=(Variant("base", "wuerstchen"),),
)
