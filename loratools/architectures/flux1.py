"""FLUX.1: the transformer under diffusers names (canonical: q, k, v split) and BFL names (fused), CLIP-L and T5."""

from __future__ import annotations

from loratools.architectures.architecture import Architecture, Component, Variant
from loratools.architectures.naming import Naming, canonical_naming
from loratools.architectures.rules import Rule, fuse, fused, rename, renamed, swap_halves
from loratools.architectures.text_encoders import CLIP_L, T5

OURS, THEIRS = "transformer_blocks.{i<19}.", "double_blocks.{i<19}."
OURS_SINGLE, THEIRS_SINGLE = "single_transformer_blocks.{i<38}.", "single_blocks.{i<38}."

ENDS = (
    # diffusers                                        bfl
    ("x_embedder",                                     "img_in"),
    ("context_embedder",                               "txt_in"),
    ("time_text_embed.timestep_embedder.linear_1",     "time_in.in_layer"),
    ("time_text_embed.timestep_embedder.linear_2",     "time_in.out_layer"),
    ("time_text_embed.text_embedder.linear_1",         "vector_in.in_layer"),
    ("time_text_embed.text_embedder.linear_2",         "vector_in.out_layer"),
    ("time_text_embed.guidance_embedder.linear_1",     "guidance_in.in_layer"),
    ("time_text_embed.guidance_embedder.linear_2",     "guidance_in.out_layer"),
    ("proj_out",                                       "final_layer.linear"),
)  # fmt: skip
DOUBLE = (
    ("norm1.linear",              "img_mod.lin"),
    ("norm1_context.linear",      "txt_mod.lin"),
    ("attn.to_out.0",             "img_attn.proj"),
    ("attn.to_add_out",           "txt_attn.proj"),
    ("ff.net.0.proj",             "img_mlp.0"),
    ("ff.net.2",                  "img_mlp.2"),
    ("ff_context.net.0.proj",     "txt_mlp.0"),
    ("ff_context.net.2",          "txt_mlp.2"),
)  # fmt: skip
DOUBLE_FUSED = (
    (("attn.to_q", "attn.to_k", "attn.to_v"),                      "img_attn.qkv"),
    (("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),    "txt_attn.qkv"),
)  # fmt: skip
DOUBLE_NORMS = (
    ("attn.norm_q",               "img_attn.norm.query_norm"),
    ("attn.norm_k",               "img_attn.norm.key_norm"),
    ("attn.norm_added_q",         "txt_attn.norm.query_norm"),
    ("attn.norm_added_k",         "txt_attn.norm.key_norm"),
)  # fmt: skip
SINGLE = (
    ("norm.linear",               "modulation.lin"),
    ("proj_out",                  "linear2"),
)  # fmt: skip
SINGLE_FUSED = ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")
SINGLE_RATIO = (1, 1, 1, 4)
SINGLE_NORMS = (
    ("attn.norm_q",               "norm.query_norm"),
    ("attn.norm_k",               "norm.key_norm"),
)  # fmt: skip

BFL: tuple[Rule, ...] = (
    *renamed(ENDS),
    # BFL stacks (shift, scale), diffusers (scale, shift).
    swap_halves("norm_out.linear", "final_layer.adaLN_modulation.1"),
    *renamed(DOUBLE, OURS, THEIRS),
    *fused(DOUBLE_FUSED, OURS, THEIRS),
    *renamed(DOUBLE_NORMS, OURS, THEIRS, weight="scale"),
    *renamed(SINGLE, OURS_SINGLE, THEIRS_SINGLE),
    fuse(tuple(OURS_SINGLE + part for part in SINGLE_FUSED), THEIRS_SINGLE + "linear1", ratio=SINGLE_RATIO),
    *renamed(SINGLE_NORMS, OURS_SINGLE, THEIRS_SINGLE, weight="scale"),
)

# XLabs' processors hold LoRA layers beside the attentions, 1 for the image and 2 for the text.
XLABS: tuple[Rule, ...] = (
    fuse(tuple(OURS + f"attn.to_{part}" for part in "qkv"), THEIRS + "processor.qkv_lora1"),
    fuse(tuple(OURS + f"attn.add_{part}_proj" for part in "qkv"), THEIRS + "processor.qkv_lora2"),
    rename(OURS + "attn.to_out.0", THEIRS + "processor.proj_lora1"),
    rename(OURS + "attn.to_add_out", THEIRS + "processor.proj_lora2"),
    fuse(tuple(OURS_SINGLE + f"attn.to_{part}" for part in "qkv"), THEIRS_SINGLE + "processor.qkv_lora"),
    rename(OURS_SINGLE + "proj_out", THEIRS_SINGLE + "processor.proj_lora"),
)

FLUX1 = Architecture(
    id="flux1",
    title="FLUX.1",
    components=(
        Component(
            "transformer",
            (canonical_naming(BFL, "diffusers"), Naming("bfl", BFL)),
            short=("unet", "transformer"),
            checkpoint=("model.diffusion_model.", ""),
            adapters=(Naming("xlabs", XLABS),),
        ),
        Component("text_encoder", CLIP_L, short=("te1", "te"), checkpoint=("text_encoders.clip_l.transformer.",)),
        Component("text_encoder_2", T5, short=("te3", "te2"), checkpoint=("text_encoders.t5xxl.transformer.",)),
    ),
    variants=(
        Variant("dev", "flux1-dev"),
        Variant("schnell", "flux1-schnell"),
        Variant("fill", "flux1-fill"),
        Variant("control", "flux1-control"),
    ),
    kohya="bfl",
    comfy="bfl",
    family=("chroma",),
    specification=("flux-1-dev", "flux-1-schnell", "flux-1-fill-dev", "flux-1-kontext-dev", "flux.1-dev"),
    base_versions=("flux1", "flux", "flux_kontext"),
)
