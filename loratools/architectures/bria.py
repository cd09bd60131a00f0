"""Bria's Fibo, which has the blocks of FLUX.1, and Fibo 2, which has those of a Lumina with a perceiver."""

from __future__ import annotations

from loratools.architectures import flux1
from loratools.architectures.architecture import Architecture, Component, Variant
from loratools.architectures.naming import Naming
from loratools.architectures.rules import same

# FLUX.1 without its pooled prompt, and a projection for every layer of the text encoder.
FIBO_ENDS = (
    "time_embed.timestep_embedder.linear_1", "time_embed.timestep_embedder.linear_2", "context_embedder", "x_embedder",
    "norm_out.linear", "proj_out", "caption_projection.{n<57}.linear",
)  # fmt: skip
BLOCKS = (flux1.OURS, flux1.OURS_SINGLE)
FIBO = Naming(
    "diffusers",
    (
        *map(same, FIBO_ENDS),
        *(same(part) for rule in flux1.BFL for part in rule.canonical if part.startswith(BLOCKS)),
    ),
)

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0", "norm_q", "norm_k")
SELF = (
    *(f"attention.{leaf}" for leaf in ATTENTION), *(f"feed_forward.{leaf}" for leaf in ("w1", "w2", "w3")),
    "attention_norm1", "attention_norm2", "ffn_norm1", "ffn_norm2", "adaLN_modulation.0",
)  # fmt: skip
CROSS = (*(f"cross_attention.{leaf}" for leaf in ATTENTION), "cross_attn_norm1", "cross_attn_norm2")
PERCEIVER = (
    *(f"{place}.{leaf}" for place in ("cross_attention", "self_attention") for leaf in ATTENTION),
    *(f"ffn.{leaf}" for leaf in ("w1", "w2", "w3")), "cross_attn_norm", "self_attn_norm", "ffn_norm",
)  # fmt: skip
LAYER = "layers.{i<44}."
INJECTED = "layers.{i<5*8+6}."  # where the prompt comes in again
FIBO2_ENDS = (
    "x_embedder", "t_embedder.mlp.0", "t_embedder.mlp.2", "perceiver.norm_out", "final_layer.linear",
    "final_layer.adaLN_modulation.1",
)  # fmt: skip
FIBO2_PARAMETERS = ("perceiver.latent_queries", INJECTED + "cross_attn_gate")
FIBO2 = Naming(
    "diffusers",
    (
        *map(same, FIBO2_ENDS),
        *(same(path, joint="") for path in FIBO2_PARAMETERS),
        *(same(block + path) for block in ("noise_refiner.{i<2}.", LAYER) for path in SELF),
        *(same(INJECTED + path) for path in CROSS),
        *(same("perceiver.layers.{i<2}." + path) for path in PERCEIVER),
    ),
)

BRIA_FIBO = Architecture(
    id="bria-fibo",
    title="Bria Fibo",
    components=(Component("transformer", (FIBO,), short=("unet", "transformer"), checkpoint=("",)),),
    variants=(Variant("1", "bria-fibo"),),
    yields_to=("flux1", "chroma"),
    specification=("bria-fibo",),
)
BRIA_FIBO2 = Architecture(
    id="bria-fibo-2",
    title="Bria Fibo 2",
    components=(Component("transformer", (FIBO2,), short=("unet", "transformer"), checkpoint=("",)),),
    variants=(Variant("8b", "bria-fibo-2"),),
    specification=("bria-fibo-2",),
)
