"""Wan 2.1 and 2.2: the transformer under diffusers names (canonical) and its own; 2.2's A14B has two of them."""

from __future__ import annotations

from loratools.architectures.architecture import Architecture, Component, Variant
from loratools.architectures.naming import Naming, canonical_naming
from loratools.architectures.rules import Rule, rename, renamed, same
from loratools.architectures.text_encoders import UMT5

BLOCK = "blocks.{i<40}."
ENDS = (
    # diffusers                                        original
    ("condition_embedder.time_embedder.linear_1",      "time_embedding.0"),
    ("condition_embedder.time_embedder.linear_2",      "time_embedding.2"),
    ("condition_embedder.time_proj",                   "time_projection.1"),
    ("condition_embedder.text_embedder.linear_1",      "text_embedding.0"),
    ("condition_embedder.text_embedder.linear_2",      "text_embedding.2"),
    ("proj_out",                                       "head.head"),
)  # fmt: skip
MODULES = (
    ("norm2",                "norm3"),  # the original counts its norms in another order
    ("attn1.to_q",           "self_attn.q"),
    ("attn1.to_k",           "self_attn.k"),
    ("attn1.to_v",           "self_attn.v"),
    ("attn1.to_out.0",       "self_attn.o"),
    ("attn1.norm_q",         "self_attn.norm_q"),
    ("attn1.norm_k",         "self_attn.norm_k"),
    ("attn2.to_q",           "cross_attn.q"),
    ("attn2.to_k",           "cross_attn.k"),
    ("attn2.to_v",           "cross_attn.v"),
    ("attn2.to_out.0",       "cross_attn.o"),
    ("attn2.norm_q",         "cross_attn.norm_q"),
    ("attn2.norm_k",         "cross_attn.norm_k"),
    ("ffn.net.0.proj",       "ffn.0"),
    ("ffn.net.2",            "ffn.2"),
)  # fmt: skip
PARAMETERS = (
    ("scale_shift_table",           "head.modulation"),
    (BLOCK + "scale_shift_table",   BLOCK + "modulation"),
)  # fmt: skip
# Of 2.1's image-to-video models alone.
IMAGE_ENDS = (
    ("condition_embedder.image_embedder.norm1",           "img_emb.proj.0"),
    ("condition_embedder.image_embedder.ff.net.0.proj",   "img_emb.proj.1"),
    ("condition_embedder.image_embedder.ff.net.2",        "img_emb.proj.3"),
    ("condition_embedder.image_embedder.norm2",           "img_emb.proj.4"),
)  # fmt: skip
IMAGE_MODULES = (
    ("attn2.add_k_proj",     "cross_attn.k_img"),
    ("attn2.add_v_proj",     "cross_attn.v_img"),
    ("attn2.norm_added_k",   "cross_attn.norm_k_img"),
)  # fmt: skip
IMAGE_PARAMETER = ("condition_embedder.image_embedder.pos_embed", "img_emb.emb_pos")  # of the first and last frame

ORIGINAL: tuple[Rule, ...] = (
    same("patch_embedding"),
    *renamed(ENDS),
    *renamed(PARAMETERS, joint=""),
    *renamed(MODULES, BLOCK, BLOCK),
)
WITH_IMAGE: tuple[Rule, ...] = (
    *ORIGINAL,
    *renamed(IMAGE_ENDS),
    rename(*IMAGE_PARAMETER, joint=""),
    *renamed(IMAGE_MODULES, BLOCK, BLOCK),
)
NAMINGS_21 = (canonical_naming(WITH_IMAGE, "diffusers"), Naming("original", WITH_IMAGE))
NAMINGS_22 = (canonical_naming(ORIGINAL, "diffusers"), Naming("original", ORIGINAL))
CHECKPOINT = ("model.diffusion_model.", "")
ENCODER = Component("text_encoder", UMT5, short=(), checkpoint=("text_encoders.umt5xxl.transformer.",))

# Trainers write one word, wan or wan2.1, into the files of both, so the metadata settle nothing.
WAN21 = Architecture(
    id="wan2.1",
    title="Wan 2.1",
    components=(
        Component("transformer", NAMINGS_21, short=("unet", "transformer"), checkpoint=CHECKPOINT),
        ENCODER,
    ),
    variants=(
        Variant("t2v-1.3b", "wan21-t2v-1.3b"),
        Variant("t2v-14b", "wan21-t2v-14b"),
        Variant("i2v-14b", "wan21-i2v-14b"),
        Variant("flf2v-14b", "wan21-flf2v-14b"),
    ),
    kohya="original",
    comfy="original",
    family=("wan2.2",),
)
WAN22 = Architecture(
    id="wan2.2",
    title="Wan 2.2",
    components=(
        # The expert for high noise; a file for one expert does not say which it is for.
        Component("transformer", NAMINGS_22, short=("unet", "transformer"), checkpoint=CHECKPOINT),
        Component("transformer_2", NAMINGS_22, short=()),
        ENCODER,
    ),
    variants=(
        Variant("t2v-a14b", "wan22-t2v-a14b"),
        Variant("i2v-a14b", "wan22-i2v-a14b"),
        Variant("ti2v-5b", "wan22-ti2v-5b"),
    ),
    kohya="original",
    comfy="original",
    family=("wan2.1",),
)
