"""Kandinsky 2.2: the decoder (a UNet over image embeddings) and the prior (text to image embedding), two pipelines."""

from __future__ import annotations

from loratools.architectures.architecture import Architecture, Component, Variant
from loratools.architectures.attn_procs import attn_procs
from loratools.architectures.naming import Naming
from loratools.architectures.rules import same
from loratools.architectures.text_encoders import CLIP_G

RESNET = ("norm1", "conv1", "time_emb_proj", "norm2", "conv2")
ATTENTION = ("group_norm", "to_q", "to_k", "to_v", "add_k_proj", "add_v_proj", "to_out.0")
ENDS = (
    "conv_in", "time_embedding.linear_1", "time_embedding.linear_2", "encoder_hid_proj.image_embeds",
    "encoder_hid_proj.norm", "add_embedding.image_proj", "add_embedding.image_norm", "conv_norm_out", "conv_out",
)  # fmt: skip
# The outermost level has no attention; the samplers of all levels but the innermost are resnets.
RESNETS = (
    "down_blocks.{b<4}.resnets.{l<3}", "down_blocks.{b<3}.downsamplers.0", "mid_block.resnets.{l<2}",
    "up_blocks.{b<4}.resnets.{l<4}", "up_blocks.{b<3}.upsamplers.0",
)  # fmt: skip
SHORTCUTS = ("down_blocks.{b<3*1+1}.resnets.0", "up_blocks.{b<4}.resnets.{l<4}")
ATTENTIONS = (
    "down_blocks.{b<3*1+1}.attentions.{l<3}", "mid_block.attentions.0", "up_blocks.{b<3}.attentions.{l<4}",
)  # fmt: skip

PRIOR_BLOCK = "transformer_blocks.{i<20}."
PRIOR_MODULES = (
    "norm1", "attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_out.0", "norm3", "ff.net.0.proj", "ff.net.2",
)  # fmt: skip
PRIOR_ENDS = (
    "time_embedding.linear_1", "time_embedding.linear_2", "proj_in", "embedding_proj", "encoder_hidden_states_proj",
    "norm_out", "proj_to_clip_embeddings",
)  # fmt: skip
PRIOR_PARAMETERS = ("positional_embedding", "prd_embedding", "clip_mean", "clip_std")

DECODER = Naming(
    "diffusers",
    (
        *map(same, ENDS),
        *(same(f"{block}.{path}") for block in RESNETS for path in RESNET),
        *(same(f"{block}.conv_shortcut") for block in SHORTCUTS),
        *(same(f"{block}.{path}") for block in ATTENTIONS for path in ATTENTION),
    ),
)
PRIOR = Naming(
    "diffusers",
    (
        *map(same, PRIOR_ENDS),
        *(same(PRIOR_BLOCK + path) for path in PRIOR_MODULES),
        *(same(path, joint="") for path in PRIOR_PARAMETERS),
    ),
)

KANDINSKY22 = Architecture(
    id="kandinsky2.2",
    title="Kandinsky 2.2",
    components=(
        Component("unet", (DECODER,), short=("unet",), adapters=(attn_procs(DECODER),)),
        Component("prior", (PRIOR,), short=("prior",), adapters=(attn_procs(PRIOR),)),
        Component("text_encoder", CLIP_G, short=("te",)),
    ),
    variants=(Variant("decoder", "kandinsky22-decoder"), Variant("prior", "kandinsky22-prior")),
)
